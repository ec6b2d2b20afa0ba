//! Checks the index against the actions, and makes it anew.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, EntityTrait as _, FromQueryResult, QueryFilter as _, QueryOrder as _,
    QuerySelect as _, Statement,
};
use uuid::Uuid;

use super::{DueSession, INDEX_LOCK, Reading, facets::FacetIds};
use crate::{
    error::Result,
    model::{FacetDetail, Facets, SessionId, duration_ms},
    store::{
        Store,
        entity::{facet_day, session, session_facet},
        failure::{Attempts, Failure},
        search::summary_of_row,
    },
};

/// Sessions that are checked together.
const SESSIONS_A_STEP: u64 = 500;

/// Something that the index says and the actions do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// What is known of a session.
    Summary(SessionId),
    /// The facets of a session.
    Facets(SessionId),
    /// How many of a session's actions are there, by its tracks.
    Tracks(SessionId),
    /// The facets of so many sessions of a day that are not there.
    Gone(NaiveDate, i64),
    /// The roll-up of a day: so many facets are wrong.
    Day(NaiveDate, usize),
}

#[derive(FromQueryResult)]
struct SumOfDay {
    facet_id: i64,
    actions: i64,
    sessions: i64,
}

#[derive(FromQueryResult)]
struct Count {
    count: i64,
}

impl Store {
    /// Compares what the index says of the sessions of a range of days with their actions, and the roll-up of these days with
    /// the sessions. Sessions that are not in the index as they are are passed over: nobody relies on what it says of them.
    pub async fn index_verify(&self, from: NaiveDate, to: NaiveDate) -> Result<(u64, Vec<Difference>)> {
        let mut differences = Vec::new();
        let (mut checked, mut after) = (0, first_id(from));
        loop {
            let rows = session::Entity::find()
                .filter(session::Column::Id.gt(after))
                .filter(session::Column::Id.lt(first_id(to)))
                .order_by_asc(session::Column::Id)
                .limit(SESSIONS_A_STEP)
                .all(&self.read)
                .await?;
            let (Some(first), Some(last)) = (rows.first(), rows.last()) else { break };
            let bounds = (first.id, last.id);
            after = last.id;
            checked += u64::try_from(rows.len()).unwrap_or(u64::MAX);
            differences.extend(self.verify_sessions(&rows, bounds).await?);
        }
        let mut next = from;
        while let Some(day) = self.index_day_from(next).await?.filter(|day| *day < to) {
            let gone = self.count_gone(day).await?;
            if gone > 0 {
                differences.push(Difference::Gone(day, gone));
            }
            let wrong = self.verify_day(day).await?;
            if wrong > 0 {
                differences.push(Difference::Day(day, wrong));
            }
            next = next_day(day);
        }
        Ok((checked, differences))
    }

    /// The first day, from one on, on which a session has started, or of which the index has anything.
    pub async fn index_day_from(&self, from: NaiveDate) -> Result<Option<NaiveDate>> {
        let of_session = session::Entity::find()
            .select_only()
            .column(session::Column::Id)
            .filter(session::Column::Id.gte(first_id(from)))
            .order_by_asc(session::Column::Id)
            .into_tuple()
            .one(&self.read)
            .await?;
        // Uses `session_facets_session`.
        let of_facets = session_facet::Entity::find()
            .select_only()
            .column(session_facet::Column::SessionId)
            .filter(session_facet::Column::SessionId.gte(first_id(from)))
            .order_by_asc(session_facet::Column::SessionId)
            .into_tuple()
            .one(&self.read)
            .await?;
        let of_roll_up: Option<(NaiveDate,)> = facet_day::Entity::find()
            .select_only()
            .column(facet_day::Column::Day)
            .filter(facet_day::Column::Day.gte(from))
            .order_by_asc(facet_day::Column::Day)
            .into_tuple()
            .one(&self.read)
            .await?;
        let of_session = of_session.map(|(id,): (Uuid,)| day_of(id));
        let of_facets = of_facets.map(|(id,): (Uuid,)| day_of(id));
        Ok([of_session, of_facets, of_roll_up.map(|(day,)| day)].into_iter().flatten().min())
    }

    /// How many facets are in no session. They go by themselves: whoever forgets sweeps them.
    pub async fn index_loose_facets(&self) -> Result<i64> {
        let sql = format!("SELECT count(*) AS count FROM facets WHERE {}", self.is_loose());
        let row = Count::find_by_statement(Statement::from_string(self.backend, sql)).one(&self.read).await?;
        Ok(row.map_or(0, |row| row.count))
    }

    /// How many sessions of a day the index has facets of that are not there.
    async fn count_gone(&self, day: NaiveDate) -> Result<i64> {
        let sql = "SELECT count(DISTINCT session_id) AS count FROM session_facets \
             WHERE session_id >= $1 AND session_id < $2 \
                 AND NOT EXISTS (SELECT 1 FROM sessions WHERE sessions.id = session_facets.session_id)";
        let values = [first_id(day).into(), first_id(next_day(day)).into()];
        let statement = Statement::from_sql_and_values(self.backend, sql, values);
        Ok(Count::find_by_statement(statement).one(&self.read).await?.map_or(0, |row| row.count))
    }

    async fn verify_sessions(&self, rows: &[session::Model], bounds: (Uuid, Uuid)) -> Result<Vec<Difference>> {
        // The others would be read in vain, and may have facets without end.
        let clean = self.clean_versions(rows).await?;
        let due = rows.iter().filter(|row| clean.contains_key(&row.id));
        let due: Vec<_> = due.map(|row| due_of(row.id, row.action_count, row.segment_id)).collect();
        // As many as the index has, whatever the limit is by now.
        let facets = |row: &session::Model| Facets::new(FacetDetail::from_number(row.facet_detail), usize::MAX);
        let mut readings = Vec::new();
        for portion in super::portions(&due) {
            match self.index_read(portion, facets).await {
                Ok(read) => readings.extend(read),
                Err(failure) => Attempts::default().again_after(failure).await?,
            }
        }
        let mut ids = FacetIds::default();
        match self.facets_look_up(&readings, &mut ids).await {
            Ok(()) => {}
            Err(failure) => Attempts::default().again_after(failure).await?,
        }
        let stored = session_facet::Entity::find()
            .filter(session_facet::Column::SessionId.between(bounds.0, bounds.1))
            .all(&self.read)
            .await?;
        let mut facets: HashMap<Uuid, BTreeMap<i64, (i64, DateTime<Utc>)>> = HashMap::new();
        for row in stored {
            facets.entry(row.session_id).or_default().insert(row.facet_id, (i64::from(row.count), row.first_at));
        }
        // Looked at last: what was written to while this went on is dirty by now, or was indexed again.
        let clean = self.clean_versions(rows).await?;
        // Nor does anybody rely on what older definitions have said.
        let outdated = self.definitions_outdated_below().await?;
        readings.retain(|reading| outdated.is_none_or(|below| reading.row.id >= below));
        let readings = readings.iter().filter(|reading| clean.get(&reading.row.id) == Some(&reading.row.index_version));
        Ok(readings.filter_map(|reading| differs(reading, facets.remove(&reading.row.id), &ids)).collect())
    }

    /// How often those of these sessions were indexed that are in the index as they are.
    async fn clean_versions(&self, rows: &[session::Model]) -> Result<HashMap<Uuid, i64>> {
        let clean: Vec<(Uuid, i64)> = session::Entity::find()
            .select_only()
            .columns([session::Column::Id, session::Column::IndexVersion])
            .filter(session::Column::Id.is_in(rows.iter().map(|row| row.id)))
            .filter(crate::store::search::is_clean(FacetDetail::Nothing))
            .into_tuple()
            .all(&self.read)
            .await?;
        Ok(clean.into_iter().collect())
    }

    /// How many facets of a day the roll-up is wrong about. One statement, so that it sees one moment.
    async fn verify_day(&self, day: NaiveDate) -> Result<usize> {
        let sql = "SELECT facet_id, CAST(sum(actions) AS bigint) AS actions, CAST(sum(sessions) AS bigint) AS sessions FROM ( \
                 SELECT facet_id, CAST(count AS bigint) AS actions, CAST(1 AS bigint) AS sessions FROM session_facets \
                     WHERE session_id >= $1 AND session_id < $2 \
                 UNION ALL SELECT facet_id, -action_count, -session_count FROM facet_days WHERE day = $3 \
             ) AS counted GROUP BY facet_id HAVING sum(actions) <> 0 OR sum(sessions) <> 0";
        let values = [first_id(day).into(), first_id(next_day(day)).into(), day.into()];
        let statement = Statement::from_sql_and_values(self.backend, sql, values);
        let wrong = SumOfDay::find_by_statement(statement).all(&self.read).await?;
        for SumOfDay { facet_id, actions, sessions } in &wrong {
            tracing::debug!(%day, facet_id, actions, sessions, "the roll-up is off by this");
        }
        Ok(wrong.len())
    }

    /// Takes all sessions that started on a day out of the index. They are dirty then, and answers are exact as before.
    pub async fn index_forget(&self, day: NaiveDate) -> Result<()> {
        let mut attempts = Attempts::default();
        loop {
            match self.index_forget_once(day).await {
                Ok(()) => return Ok(()),
                Err(failure) => attempts.again_after(failure).await?,
            }
        }
    }

    async fn index_forget_once(&self, day: NaiveDate) -> Result<(), Failure> {
        let (from, to) = (first_id(day), first_id(next_day(day)));
        let tx = self.begin().await?;
        if self.is_postgres() {
            tx.execute_unprepared("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0").await?;
            // What another process indexes meanwhile would be half forgotten.
            tx.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({INDEX_LOCK})")).await?;
        }
        for sql in [
            "UPDATE sessions SET index_version = index_version + 1 WHERE id >= $1 AND id < $2",
            "UPDATE tracks SET dirty = true, lost_count = NULL WHERE session_id >= $1 AND session_id < $2 \
                 AND (NOT dirty OR lost_count IS NOT NULL)",
            "DELETE FROM session_facets WHERE session_id >= $1 AND session_id < $2",
        ] {
            tx.execute_raw(Statement::from_sql_and_values(self.backend, sql, [from.into(), to.into()])).await?;
        }
        facet_day::Entity::delete_many().filter(facet_day::Column::Day.eq(day)).exec(&tx).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Sessions of a day that are not in the index as they are.
    pub async fn index_dirty(&self, day: NaiveDate) -> Result<Vec<DueSession>> {
        #[derive(FromQueryResult)]
        struct Row {
            session_id: Uuid,
            action_count: i64,
            segment_id: Option<i64>,
        }
        let sql = "SELECT session_id, CAST(sum(last_seq) AS bigint) AS action_count, sessions.segment_id \
             FROM tracks JOIN sessions ON sessions.id = tracks.session_id \
             WHERE session_id >= $1 AND session_id < $2 \
             GROUP BY session_id, sessions.segment_id \
             HAVING sum(CASE WHEN dirty THEN 1 ELSE 0 END) > 0 ORDER BY session_id";
        let values = [first_id(day).into(), first_id(next_day(day)).into()];
        let statement = Statement::from_sql_and_values(self.backend, sql, values);
        let rows = Row::find_by_statement(statement).all(&self.read).await?;
        Ok(rows.iter().map(|row| due_of(row.session_id, row.action_count, row.segment_id)).collect())
    }
}

fn due_of(session_id: Uuid, action_count: i64, segment_id: Option<i64>) -> DueSession {
    DueSession { session_id, action_count, is_archived: segment_id.is_some() }
}

fn differs(
    reading: &Reading,
    stored: Option<BTreeMap<i64, (i64, DateTime<Utc>)>>,
    ids: &FacetIds,
) -> Option<Difference> {
    let id = SessionId::from_uuid(reading.row.id);
    let duration = duration_ms(id, reading.summary.last_action_at);
    if summary_of_row(&reading.row) != reading.summary || reading.row.duration_ms != duration {
        return Some(Difference::Summary(id));
    }
    if numbered(&reading.facets, ids) != stored.unwrap_or_default() {
        return Some(Difference::Facets(id));
    }
    let is_same = reading.tracks.iter().all(|track| track.lost_count == Some(reading.lost_count(track)));
    (!is_same).then_some(Difference::Tracks(id))
}

fn numbered(facets: &Facets, ids: &FacetIds) -> BTreeMap<i64, (i64, DateTime<Utc>)> {
    let all = facets.iter();
    all.map(|(kind, target, facet)| (ids.get(kind, target).unwrap_or(-1), (facet.count, facet.first_at))).collect()
}

fn day_of(session: Uuid) -> NaiveDate {
    SessionId::from_uuid(session).started_at().date_naive()
}

fn next_day(day: NaiveDate) -> NaiveDate {
    day.checked_add_days(Days::new(1)).unwrap_or(NaiveDate::MAX)
}

fn first_id(day: NaiveDate) -> Uuid {
    SessionId::least_at(day.and_time(NaiveTime::MIN).and_utc())
}
