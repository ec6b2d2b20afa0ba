//! The write on SQLite: one transaction, an upsert of the tracks and prepared inserts of many actions each.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait as _, DatabaseTransaction, DbBackend, DbErr, Statement, Value};

use super::{AppendError, plan::Plan};
use crate::model::{Action, SessionId};

/// SQLite takes 32,766 parameters a statement; an action has 7, a track 10. Few enough for the statement cache to be of use.
const ROWS_A_STATEMENT: usize = 100;

const NEW_TRACKS: &str = "
INSERT INTO tracks (session_id, number, source, last_seq, accepted_count, duplicate_count, rejected_count,
    error_count, last_action_at, last_received_at)
VALUES ";

const UNLESS_THERE: &str = " ON CONFLICT (session_id, source) DO NOTHING";

/// Those that are expected to be there are not made anew should they have gone: they would begin in the middle.
const MOVE_TRACKS: &str = "
WITH given (session_id, number, source, last_seq, accepted_count, duplicate_count, rejected_count, error_count,
    last_action_at, last_received_at) AS (VALUES ";

/// As on PostgreSQL: a track is moved only from where it is expected.
const FROM_WHERE_EXPECTED: &str = ")
UPDATE tracks SET
    last_seq = given.last_seq,
    accepted_count = tracks.accepted_count + given.accepted_count,
    duplicate_count = tracks.duplicate_count + given.duplicate_count,
    rejected_count = max(tracks.rejected_count + given.rejected_count, 0),
    error_count = tracks.error_count + given.error_count,
    last_action_at = nullif(max(coalesce(tracks.last_action_at, ''), coalesce(given.last_action_at, '')), ''),
    last_received_at = given.last_received_at,
    dirty = tracks.dirty OR given.accepted_count > 0 OR given.rejected_count > 0,
    cut = tracks.cut + (given.rejected_count < 0)
FROM given WHERE tracks.session_id = given.session_id AND tracks.source = given.source AND tracks.number = given.number
    AND tracks.last_seq = given.last_seq - given.accepted_count - given.rejected_count";

const COUNT_CONFLICTS: &str =
    "UPDATE tracks SET rejected_count = rejected_count + $3 WHERE session_id = $1 AND source = $2";

const REPLACE_PLACEHOLDER: &str = "UPDATE actions SET type = $5, target = $6, data = $7 \
     WHERE session_id = $1 AND timestamp = $2 AND track = $3 AND seq = $4 AND type = 'reel.rejected'";

const INSERT_ACTIONS: &str = "INSERT INTO actions (session_id, timestamp, track, seq, type, target, data) VALUES ";

/// Writes a plan in a transaction.
pub(super) async fn append_in_txn(
    tx: &DatabaseTransaction,
    plan: &Plan<'_>,
    now: DateTime<Utc>,
) -> Result<(), AppendError> {
    move_tracks(tx, plan, now).await?;
    for write in &plan.batches {
        for (seq, action) in write.replacements() {
            let values = row(write.batch.session, write.track, seq, action);
            let replace = Statement::from_sql_and_values(DbBackend::Sqlite, REPLACE_PLACEHOLDER, values);
            if tx.execute_raw(replace).await?.rows_affected() != 1 {
                return Err(AppendError::Outdated);
            }
        }
    }
    let rows: Vec<_> = plan
        .batches
        .iter()
        .flat_map(|write| write.rows().map(|(seq, action)| (write.batch.session, write.track, seq, action)))
        .collect();
    for rows in rows.chunks(ROWS_A_STATEMENT) {
        let values = rows.iter().flat_map(|(session, track, seq, action)| row(*session, *track, *seq, action));
        run(tx, INSERT_ACTIONS, 7, rows.len(), "", values).await?;
    }
    Ok(())
}

async fn move_tracks(tx: &DatabaseTransaction, plan: &Plan<'_>, now: DateTime<Utc>) -> Result<(), AppendError> {
    let (new, known): (Vec<_>, Vec<_>) = plan.tracks.iter().partition(|(_, track)| track.is_new);
    let new = new.chunks(ROWS_A_STATEMENT).map(|tracks| (NEW_TRACKS, UNLESS_THERE, tracks));
    let known = known.chunks(ROWS_A_STATEMENT).map(|tracks| (MOVE_TRACKS, FROM_WHERE_EXPECTED, tracks));
    for (head, tail, tracks) in new.chain(known) {
        let values = tracks.iter().flat_map(|((session, source), track)| {
            [
                Value::from(session.as_uuid()),
                track.number.into(),
                (*source).into(),
                track.last_seq.into(),
                track.accepted_count.into(),
                track.duplicate_count.into(),
                track.rejected_count.into(),
                track.error_count.into(),
                track.last_action_at.into(),
                now.into(),
            ]
        });
        let moved = run(tx, head, 10, tracks.len(), tail, values).await?;
        if moved != u64::try_from(tracks.len()).unwrap_or(u64::MAX) {
            return Err(AppendError::Outdated);
        }
    }
    for ((session, source), track) in plan.tracks.iter().filter(|(_, track)| track.conflict_count > 0) {
        let values = [Value::from(session.as_uuid()), (*source).into(), track.conflict_count.into()];
        tx.execute_raw(Statement::from_sql_and_values(DbBackend::Sqlite, COUNT_CONFLICTS, values)).await?;
    }
    Ok(())
}

fn row(session: SessionId, track: i16, seq: i64, action: &Action) -> [Value; 7] {
    [
        session.as_uuid().into(),
        action.timestamp.into(),
        track.into(),
        seq.into(),
        action.kind.to_string().into(),
        action.target.to_string().into(),
        (!action.data.is_empty()).then(|| action.data.to_string()).into(),
    ]
}

/// Runs a statement with that many rows of values. Gives the number of rows it has changed.
async fn run(
    tx: &DatabaseTransaction,
    head: &str,
    columns: usize,
    rows: usize,
    tail: &str,
    values: impl Iterator<Item = Value>,
) -> Result<u64, DbErr> {
    let row = format!("({})", vec!["?"; columns].join(", "));
    let sql = format!("{head}{}{tail}", vec![row.as_str(); rows].join(", "));
    Ok(tx.execute_raw(Statement::from_sql_and_values(DbBackend::Sqlite, sql, values)).await?.rows_affected())
}
