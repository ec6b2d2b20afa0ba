//! Keeping the index: what sessions' actions say is read, taken together by [`Summing`], and written as the difference to what
//! was written before.
//!
//! Reading locks nothing. What was read is written in one transaction, for the sessions that nobody else has indexed
//! meanwhile; a track stays dirty unless it is still where it was when its actions were read, and nobody has deleted any by hand. The roll-up changes by exactly
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
    ColumnTrait as _, ConnectionTrait as _, DatabaseTransaction, DbErr, EntityTrait as _, FromQueryResult,
    QueryFilter as _, QueryOrder as _, QuerySelect as _, Statement,
    sea_query::{Expr, ExprTrait as _},
};
use uuid::Uuid;

pub use self::{facets::FacetIds, verify::Difference};
pub(super) use self::{facets::target_digest, write::Table};
use super::{
    Store,
    claim::Claim,
    entity::{action, session},
    failure::Failure,
    track::{ACTIONS_OF_TRACK, tracks_of},
};
use crate::{
    archive::ArchivedAction,
    error::{Error, Result},
    model::{FacetDetail, Facets, SessionId, StoredAction, Summary, Summing, Track},
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

/// Sessions of one call that may fail before no more are tried.
const MAX_FAILED: usize = 20;

/// A session that is due.
#[derive(Clone, Copy, Debug)]
pub struct DueSession {
    session_id: Uuid,
    /// About how many actions it has.
    action_count: i64,
    is_archived: bool,
}

impl DueSession {
    /// The session.
    #[must_use]
    pub fn id(&self) -> SessionId {
        SessionId::from_uuid(self.session_id)
    }

    /// Whether it takes long, or waits for others: it has many actions, or they are in a segment.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        self.is_archived || self.action_count.cast_unsigned() > ACTIONS_A_STATEMENT
    }
}

/// A part of the dirty sessions.
#[derive(Debug)]
pub struct DueSessions {
    /// Those that are due, in the order of their ids.
    pub due: Vec<DueSession>,
    /// The last that was looked at. None where these were the last.
    pub last: Option<SessionId>,
}

/// What became of sessions that were to be indexed.
#[derive(Debug, Default)]
pub struct IndexedSessions {
    /// Those that are indexed.
    pub sessions: Vec<SessionId>,
    /// How many actions were read for it.
    pub actions: u64,
    /// Those that could not be, and why.
    pub failed: Vec<(SessionId, Error)>,
}

/// A dirty session.
#[derive(FromQueryResult)]
struct DirtyRow {
    session_id: Uuid,
    /// As its tracks say.
    action_count: i64,
    /// As the index says.
    indexed_count: i64,
    last_received_at: DateTime<Utc>,
    segment_id: Option<i64>,
}

impl DirtyRow {
    fn is_due(&self, due: Due) -> bool {
        // Growing by half each time, a session that goes on for hours is read three times over in all.
        let has_grown = self.action_count >= self.indexed_count.saturating_add(due.grown_by)
            && self.action_count.saturating_mul(2) >= self.indexed_count.saturating_mul(3);
        self.last_received_at < due.quiet_since || has_grown
    }
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
    /// Number of actions that were read, by the track's number.
    of_tracks: HashMap<i16, i64>,
    summary: Summary,
    facets: Facets,
}

impl Reading {
    /// How many of a track's actions are not there.
    fn lost_count(&self, track: &Track) -> i64 {
        track.last_seq - self.of_tracks.get(&track.number).copied().unwrap_or(0)
    }
}

/// What was read of a session.
#[derive(Default)]
struct Read {
    summing: Summing,
    /// Number of actions, by the track's number.
    of_tracks: HashMap<i16, i64>,
}

impl Read {
    fn push(&mut self, track: i16, timestamp: DateTime<Utc>, kind: &str, target: &str) {
        self.summing.push(timestamp, kind, target);
        *self.of_tracks.entry(track).or_default() += 1;
    }
}

/// What is read of each session.
type Reads = HashMap<Uuid, Read>;

impl Store {
    /// Looks at the next dirty sessions after one, in the order of their ids, and gives those that are due to be indexed. What
    /// it costs does not depend on how many are dirty. Uses `tracks_dirty`, and the primary keys of `tracks` and `sessions`.
    pub async fn index_due(&self, due: Due, after: Option<SessionId>, limit: u64) -> Result<DueSessions> {
        let sql = format!(
            "SELECT tracks.session_id, CAST(sum({ACTIONS_OF_TRACK}) AS bigint) AS action_count, \
                 sessions.action_count AS indexed_count, max(tracks.last_received_at) AS last_received_at, \
                 sessions.segment_id \
             FROM (SELECT DISTINCT session_id FROM tracks WHERE dirty AND session_id > $1 ORDER BY session_id LIMIT $2) \
                 AS found \
             JOIN tracks ON tracks.session_id = found.session_id JOIN sessions ON sessions.id = found.session_id \
             GROUP BY tracks.session_id, sessions.action_count, sessions.segment_id ORDER BY tracks.session_id"
        );
        let after = after.map_or(Uuid::nil(), SessionId::as_uuid);
        let values = [after.into(), i64::try_from(limit).unwrap_or(i64::MAX).into()];
        let statement = Statement::from_sql_and_values(self.backend, sql, values);
        let rows = DirtyRow::find_by_statement(statement).all(&self.read).await?;
        let is_full = u64::try_from(rows.len()).is_ok_and(|count| count >= limit);
        let last = rows.last().filter(|_| is_full).map(|row| SessionId::from_uuid(row.session_id));
        let due = rows.iter().filter(|row| row.is_due(due)).map(|row| DueSession {
            session_id: row.session_id,
            action_count: row.action_count,
            is_archived: row.segment_id.is_some(),
        });
        Ok(DueSessions { due: due.collect(), last })
    }

    /// Takes the lock of the process that indexes. None if another process has it.
    pub async fn index_claim(&self) -> Result<Option<Claim>> {
        self.claim(INDEX_LOCK).await
    }

    /// Indexes sessions, many a transaction. One that fails is told apart from the others, which are indexed without it.
    pub async fn index_sessions(&self, due: &[DueSession], ids: &mut FacetIds) -> Result<IndexedSessions> {
        let mut result = IndexedSessions::default();
        let mut portions: Vec<&[DueSession]> = portions(due).collect();
        portions.reverse();
        while let Some(portion) = portions.pop() {
            match (self.index_portion(portion, ids).await.map_err(Error::from), portion) {
                (Ok(()), _) => {
                    result.sessions.extend(portion.iter().map(DueSession::id));
                    result.actions += portion.iter().map(|session| session.action_count.cast_unsigned()).sum::<u64>();
                }
                // What one block of one session has, too, says the same of the database.
                (Err(error @ Error::DatabaseUnavailable), _) if self.is_away() => return Err(error),
                (Err(error), [alone]) => {
                    result.failed.push((alone.id(), error));
                    // It is not the sessions, then. The others are found again.
                    if result.failed.len() >= MAX_FAILED {
                        return Ok(result);
                    }
                }
                (Err(_), _) => {
                    let (first, second) = portion.split_at(portion.len() / 2);
                    portions.extend([second, first]);
                }
            }
        }
        Ok(result)
    }

    /// Indexes sessions in one transaction. A failure is not worth waiting for: another portion is tried meanwhile.
    async fn index_portion(&self, sessions: &[DueSession], ids: &mut FacetIds) -> Result<(), Failure> {
        match self.index_once(sessions, ids).await {
            Err(Failure::Outdated) => {
                *ids = FacetIds::default();
                self.index_once(sessions, ids).await
            }
            result => result,
        }
    }

    async fn index_once(&self, sessions: &[DueSession], ids: &mut FacetIds) -> Result<(), Failure> {
        let facets = |_: &session::Model| Facets::new(FacetDetail::Targets, self.max_session_facets);
        let readings = self.index_read(sessions, facets).await?;
        self.facets_learn(&readings, ids).await?;
        for reading in &readings {
            self.partition_ensure_for(SessionId::from_uuid(reading.row.id)).await;
        }
        let tx = self.begin_to_index().await?;
        write::in_txn(&tx, &readings, ids).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Begins a transaction during which nobody sweeps facets.
    async fn begin_to_index(&self) -> Result<DatabaseTransaction, DbErr> {
        let tx = self.begin().await?;
        if self.is_postgres() {
            let share = format!("SET LOCAL lock_timeout = '500ms'; SELECT pg_advisory_xact_lock_shared({FACETS_LOCK})");
            tx.execute_unprepared(&share).await?;
        }
        Ok(tx)
    }

    /// `facets` says what to keep of the facets of a session.
    async fn index_read(
        &self,
        sessions: &[DueSession],
        facets: impl Fn(&session::Model) -> Facets,
    ) -> Result<Vec<Reading>, Failure> {
        let ids: Vec<_> = sessions.iter().map(|session| session.session_id).collect();
        // How far the tracks are, before their actions: what comes later leaves its track dirty.
        let mut tracks = tracks_of(&self.read, &ids).await?;
        let rows =
            session::Entity::find().filter(session::Column::Id.is_in(ids.iter().copied())).all(&self.read).await?;
        let read = |row: &session::Model| Read { summing: Summing::with(facets(row)), ..Read::default() };
        let mut reads = rows.iter().map(|row| (row.id, read(row))).collect();
        self.index_sum(sessions, &mut reads).await?;
        let readings = rows.into_iter().map(|row| {
            let Read { summing, of_tracks } = reads.remove(&row.id).unwrap_or_default();
            let (summary, facets) = summing.finish();
            Reading { tracks: tracks.remove(&row.id).unwrap_or_default(), of_tracks, row, summary, facets }
        });
        Ok(readings.collect())
    }

    /// Reads all actions of sessions, in the order of playback.
    async fn index_sum(&self, sessions: &[DueSession], reads: &mut Reads) -> Result<(), Failure> {
        let ids: Vec<_> = sessions.iter().map(|session| session.session_id).collect();
        let archived: HashSet<Uuid> = self.segments_of(&ids).await?.into_values().flatten().collect();
        let (archived, sessions): (Vec<DueSession>, Vec<DueSession>) =
            sessions.iter().partition(|session| archived.contains(&session.session_id));
        self.index_sum_rows(&sessions, reads).await?;
        for session in archived {
            let mut actions = self.actions_in_order(&[session.session_id], false).await?;
            while let Some(ArchivedAction { session, stored: StoredAction { track, action, .. } }) =
                actions.next().await?
            {
                if let Some(read) = reads.get_mut(&session) {
                    read.push(track, action.timestamp, &action.kind, &action.target);
                }
            }
        }
        Ok(())
    }

    /// The same of sessions that are not archived.
    async fn index_sum_rows(&self, sessions: &[DueSession], reads: &mut Reads) -> Result<(), Failure> {
        if sessions.is_empty() {
            return Ok(());
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
                if let Some(read) = reads.get_mut(&session) {
                    read.push(track, timestamp, &kind, &target);
                }
                (count, last) = (count + 1, Some((timestamp, track, seq)));
            }
            if sessions.len() > 1 || count < ACTIONS_A_STATEMENT {
                return Ok(());
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
        let due = |action_count| DueSession { session_id: Uuid::nil(), action_count, is_archived: false };
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
