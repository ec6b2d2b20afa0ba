//! Keeping the index: what sessions' actions say is read, taken together by [`Summing`], and written as the difference to what
//! was written before.
//!
//! Reading locks nothing. What was read is written in one transaction, for the sessions that nobody else has indexed
//! meanwhile; a track stays dirty unless it is still where it was when its actions were read. The roll-up changes by exactly
//! what the rows of the sessions change by, so that it is always their sum.

mod definitions;
pub(super) mod erase;
mod facets;
mod verify;
mod write;

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, EntityTrait as _, FromQueryResult, QueryFilter as _, QueryOrder as _,
    QuerySelect as _, Statement,
    sea_query::{Expr, ExprTrait as _},
};
use uuid::Uuid;

pub(super) use self::write::Table;
pub use self::{facets::FacetIds, verify::Difference};
use super::{
    Store,
    claim::Claim,
    entity::{action, session},
    failure::{Attempts, Failure},
    track::tracks_of,
};
use crate::{
    archive::ArchivedAction,
    error::Result,
    model::{Facets, SessionId, StoredAction, Summary, Summing, Track},
};

/// Key of the advisory lock that the process holds that indexes: "reel" in ASCII, and 3. It saves others the work; that
/// nothing is counted twice does not depend on it.
const INDEX_LOCK: i64 = 0x7265_656c_0000_0003;

/// Key of the advisory lock that whoever writes the index shares, and whoever removes facets and days from it has alone:
/// "reel" in ASCII, and 5.
pub(super) const FACETS_LOCK: i64 = 0x7265_656c_0000_0005;

/// Actions that are read by one statement.
const ACTIONS_A_STATEMENT: u64 = 20_000;

/// Sessions that are indexed by one transaction at most.
const SESSIONS_A_TRANSACTION: usize = 500;

/// A session that is due.
#[derive(Clone, Copy, Debug, FromQueryResult)]
pub struct DueSession {
    session_id: Uuid,
    /// About how many actions it has.
    action_count: i64,
}

/// When sessions are due.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    /// Nothing has arrived since then.
    pub quiet_since: DateTime<Utc>,
    /// It has grown by so many actions, and by half.
    pub grown_by: i64,
}

/// A session as it was read.
struct Reading {
    /// As it was in the index.
    row: session::Model,
    /// How far its tracks were before its actions were read.
    tracks: Vec<Track>,
    summary: Summary,
    facets: Facets,
}

impl Store {
    /// Sessions that are due to be indexed, those that have been quiet for longest first. Uses `tracks_dirty`.
    pub async fn index_due(&self, due: Due, limit: u64) -> Result<Vec<DueSession>> {
        // Growing by half each time, a session that goes on for hours is read three times over in all.
        let sql = "SELECT tracks.session_id, CAST(sum(tracks.last_seq) AS bigint) AS action_count \
             FROM tracks JOIN sessions ON sessions.id = tracks.session_id \
             WHERE tracks.session_id IN (SELECT session_id FROM tracks WHERE dirty) \
             GROUP BY tracks.session_id, sessions.action_count \
             HAVING max(tracks.last_received_at) < $1 OR (sum(tracks.last_seq) >= sessions.action_count + $2 \
                 AND 2 * sum(tracks.last_seq) >= 3 * sessions.action_count) \
             ORDER BY max(tracks.last_received_at) LIMIT $3";
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let values = [due.quiet_since.into(), due.grown_by.into(), limit.into()];
        let statement = Statement::from_sql_and_values(self.backend, sql, values);
        Ok(DueSession::find_by_statement(statement).all(&self.read).await?)
    }

    /// Takes the lock of the process that indexes. None if another process has it.
    pub async fn index_claim(&self) -> Result<Option<Claim>> {
        self.claim(INDEX_LOCK).await
    }

    /// Indexes sessions, many a transaction. Gives the number of actions that were read for it.
    pub async fn index_sessions(&self, due: &[DueSession], ids: &mut FacetIds) -> Result<u64> {
        let mut actions = 0;
        for sessions in portions(due) {
            let mut attempts = Attempts::default();
            loop {
                match self.index_once(sessions, ids).await {
                    Ok(()) => break,
                    Err(failure) => {
                        if matches!(failure, Failure::Outdated) {
                            *ids = FacetIds::default();
                        }
                        attempts.again_after(failure).await?;
                    }
                }
            }
            actions += sessions.iter().map(|session| session.action_count.cast_unsigned()).sum::<u64>();
        }
        Ok(actions)
    }

    async fn index_once(&self, sessions: &[DueSession], ids: &mut FacetIds) -> Result<(), Failure> {
        let readings = self.index_read(sessions).await?;
        self.facets_learn(&readings, ids).await?;
        for reading in &readings {
            self.partition_ensure_for(SessionId::from_uuid(reading.row.id)).await;
        }
        let tx = self.begin().await?;
        if self.is_postgres() {
            let share = format!("SET LOCAL lock_timeout = '500ms'; SELECT pg_advisory_xact_lock_shared({FACETS_LOCK})");
            tx.execute_unprepared(&share).await?;
        }
        write::in_txn(&tx, &readings, ids).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn index_read(&self, sessions: &[DueSession]) -> Result<Vec<Reading>, Failure> {
        let ids: Vec<_> = sessions.iter().map(|session| session.session_id).collect();
        // How far the tracks are, before their actions: what comes later leaves its track dirty.
        let mut tracks = tracks_of(&self.read, &ids).await?;
        let rows =
            session::Entity::find().filter(session::Column::Id.is_in(ids.iter().copied())).all(&self.read).await?;
        let mut summings = self.index_sum(sessions).await?;
        let readings = rows.into_iter().map(|row| {
            let (summary, facets) = summings.remove(&row.id).unwrap_or_default().finish();
            Reading { tracks: tracks.remove(&row.id).unwrap_or_default(), row, summary, facets }
        });
        Ok(readings.collect())
    }

    /// Reads all actions of sessions, in the order of playback.
    async fn index_sum(&self, sessions: &[DueSession]) -> Result<HashMap<Uuid, Summing>, Failure> {
        let ids: Vec<_> = sessions.iter().map(|session| session.session_id).collect();
        let archived: HashSet<Uuid> = self.segments_of(&ids).await?.into_values().flatten().collect();
        let (archived, sessions): (Vec<DueSession>, Vec<DueSession>) =
            sessions.iter().partition(|session| archived.contains(&session.session_id));
        let mut summings = self.index_sum_rows(&sessions).await?;
        for session in archived {
            let mut actions = self.actions_in_order(&[session.session_id], false).await?;
            while let Some(ArchivedAction { session, stored: StoredAction { action, .. } }) = actions.next().await? {
                summings.entry(session).or_default().push(action.timestamp, &action.kind, &action.target);
            }
        }
        Ok(summings)
    }

    /// The same of sessions that are not archived.
    async fn index_sum_rows(&self, sessions: &[DueSession]) -> Result<HashMap<Uuid, Summing>, Failure> {
        let mut summings: HashMap<Uuid, Summing> = HashMap::new();
        if sessions.is_empty() {
            return Ok(summings);
        }
        let ids = sessions.iter().map(|session| session.session_id);
        let mut after = None;
        loop {
            let mut page = action::Entity::find()
                .select_only()
                .columns([
                    action::Column::SessionId,
                    action::Column::Timestamp,
                    action::Column::Track,
                    action::Column::Seq,
                    action::Column::Kind,
                    action::Column::Target,
                ])
                .order_by_asc(action::Column::SessionId)
                .order_by_asc(action::Column::Timestamp)
                .order_by_asc(action::Column::Track)
                .order_by_asc(action::Column::Seq);
            page = match sessions {
                [alone] => page.filter(action::Column::SessionId.eq(alone.session_id)),
                _ => page.filter(action::Column::SessionId.is_in(ids.clone())),
            };
            // Only where there is one session are there pages.
            if let Some((timestamp, track, seq)) = after {
                let columns = [action::Column::Timestamp, action::Column::Track, action::Column::Seq].map(Expr::col);
                let values = Expr::tuple([
                    Expr::val::<DateTime<Utc>>(timestamp),
                    Expr::val::<i16>(track),
                    Expr::val::<i64>(seq),
                ]);
                page = page.filter(Expr::tuple(columns).gt(values));
            }
            if sessions.len() == 1 {
                page = page.limit(ACTIONS_A_STATEMENT);
            }
            // One by one: all of them would be large.
            let mut rows =
                page.into_tuple::<(Uuid, DateTime<Utc>, i16, i64, String, String)>().stream(&self.read).await?;
            let (mut count, mut last) = (0, None);
            while let Some((session, timestamp, track, seq, kind, target)) = rows.try_next().await? {
                summings.entry(session).or_default().push(timestamp, &kind, &target);
                (count, last) = (count + 1, Some((timestamp, track, seq)));
            }
            if sessions.len() > 1 || count < ACTIONS_A_STATEMENT {
                return Ok(summings);
            }
            after = last;
        }
    }
}

/// Cuts the sessions that are due into what one transaction takes. A large session is alone.
fn portions(due: &[DueSession]) -> impl Iterator<Item = &[DueSession]> {
    let mut rest = due;
    std::iter::from_fn(move || {
        let mut actions = 0_u64;
        let fits = rest.iter().take(SESSIONS_A_TRANSACTION).take_while(|session| {
            actions = actions.saturating_add(session.action_count.cast_unsigned());
            actions <= ACTIONS_A_STATEMENT
        });
        let length = fits.count().max(1).min(rest.len());
        let (portion, others) = rest.split_at(length);
        rest = others;
        (!portion.is_empty()).then_some(portion)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_sessions_are_indexed_alone_and_small_ones_together() {
        let due = |action_count| DueSession { session_id: Uuid::nil(), action_count };
        let lengths = |counts: &[i64]| {
            let due: Vec<_> = counts.iter().copied().map(due).collect();
            portions(&due).map(<[_]>::len).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&[]), Vec::<usize>::new());
        assert_eq!(lengths(&[1_000_000]), [1]);
        assert_eq!(lengths(&[10, 20_000, 19_990, 10, 1]), [1, 1, 2, 1]);
        assert_eq!(lengths(&[1; 1_001]), [500, 500, 1]);
    }
}
