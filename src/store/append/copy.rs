//! The write on PostgreSQL: one transaction of two statements, an upsert of the tracks and a binary COPY of the actions. The
//! only file that speaks to the driver past sea-orm, which has no COPY.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{
    DbErr, RuntimeErr,
    sqlx::{self, AssertSqlSafe, Executor as _, PgConnection, Postgres, pool::PoolConnection},
};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    AppendError,
    plan::{BatchWrite, Plan, TrackWrite},
};
use crate::{
    model::{Action, SessionId},
    store::{connect::CopyPool, failure::Cause},
};

/// How long the database may take for a whole transaction before the connection is given up: a hundred times what it takes
/// under load. It may have been done all the same, which is found out then.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// A short wait for locks: many batches are behind the one that waits.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '500ms'";

/// One text for any number of tracks, so that it is prepared once. The rows come in the order of their keys, and are locked
/// in it. A track is moved only from where it is expected, and keeps its number: rows that are not are not given back. A row
/// that is new (its `xmax` is 0) was expected to be so only if it has all seqs from 1 on. Placeholders that are replaced move nothing else that
/// an indexer could see: they change `cut`.
const MOVE_TRACKS: &str = "
INSERT INTO tracks AS track (session_id, number, source, last_seq, accepted_count, duplicate_count, rejected_count,
    error_count, last_action_at, last_received_at)
SELECT given.*, $10::timestamptz FROM unnest($1::uuid[], $2::smallint[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[],
    $7::bigint[], $8::bigint[], $9::timestamptz[]) AS given
ON CONFLICT (session_id, source) DO UPDATE SET
    last_seq = excluded.last_seq,
    accepted_count = track.accepted_count + excluded.accepted_count,
    duplicate_count = track.duplicate_count + excluded.duplicate_count,
    rejected_count = greatest(track.rejected_count + excluded.rejected_count, 0),
    error_count = track.error_count + excluded.error_count,
    last_action_at = greatest(track.last_action_at, excluded.last_action_at),
    last_received_at = excluded.last_received_at,
    dirty = track.dirty OR excluded.accepted_count > 0 OR excluded.rejected_count > 0,
    cut = track.cut + CASE WHEN excluded.rejected_count < 0 THEN 1 ELSE 0 END
WHERE track.last_seq = excluded.last_seq - excluded.accepted_count - excluded.rejected_count
    AND track.number = excluded.number
RETURNING NOT (track.xmax = 0) OR track.last_seq = track.accepted_count + track.rejected_count AS is_whole";

/// Conflicts are counted apart: nothing is stored of them, so they do not move the track.
const COUNT_CONFLICTS: &str =
    "UPDATE tracks SET rejected_count = rejected_count + $3 WHERE session_id = $1 AND source = $2";

/// The actions of one batch that take the place of placeholders.
const REPLACE_PLACEHOLDERS: &str = "
UPDATE actions SET type = given.type, target = given.target, data = nullif(given.data, '')::json
FROM unnest($3::timestamptz[], $4::bigint[], $5::text[], $6::text[], $7::text[]) AS given (at, seq, type, target, data)
WHERE actions.session_id = $1 AND actions.track = $2 AND actions.timestamp = given.at AND actions.seq = given.seq
    AND actions.type = 'reel.rejected'";

const COPY_ACTIONS: &str =
    "COPY actions (session_id, timestamp, track, seq, type, target, data) FROM STDIN (FORMAT binary)";

/// Bytes that are handed to the driver at once.
const CHUNK_BYTES: usize = 128 << 10;

/// Writes a plan in one transaction.
pub(super) async fn append(copy: &CopyPool, plan: &Plan<'_>, now: DateTime<Utc>) -> Result<(), AppendError> {
    let rows = encode(plan);
    let (_permit, mut connection) = copy.acquire().await?;
    let mut is_committing = false;
    let transaction = write(&mut connection, plan, &rows, now, &mut is_committing);
    let error = match timeout(WRITE_TIMEOUT, transaction).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error,
        Err(_) => Unwritten::Failed(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    };
    match error {
        Unwritten::Outdated => {
            roll_back(connection).await;
            Err(AppendError::Outdated)
        }
        Unwritten::Failed(error) => {
            let error = DbErr::Exec(RuntimeErr::SqlxError(error.into()));
            // An answer that says why is an answer; anything else says nothing about what the server did.
            let is_answer = !matches!(Cause::of(&error), Cause::Unavailable | Cause::Unexpected);
            if !is_committing {
                roll_back(connection).await;
                return Err(AppendError::Failed(error));
            }
            drop(connection.detach());
            Err(if is_answer { AppendError::Failed(error) } else { AppendError::Unknown(error) })
        }
    }
}

/// Goes the way of a write, with everything that one needs but something to store, and runs these statements in the same
/// transaction.
pub(super) async fn rehearse(pool: &CopyPool, statements: String, within: Duration) -> Result<(), DbErr> {
    let (_permit, mut connection) = pool.acquire().await?;
    let nothing = Plan::default();
    let written = async {
        connection.execute(sqlx::raw_sql(BEGIN)).await?;
        connection.execute(sqlx::raw_sql(AssertSqlSafe(statements))).await?;
        move_tracks(&mut connection, &nothing, Utc::now()).await?;
        copy(&mut connection, &encode(&nothing)).await?;
        connection.execute(sqlx::raw_sql("COMMIT")).await?;
        Ok(())
    };
    let error = match timeout(within, written).await {
        Ok(Ok(()) | Err(Unwritten::Outdated)) => return Ok(()),
        Ok(Err(Unwritten::Failed(error))) => error,
        Err(_) => sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()),
    };
    roll_back(connection).await;
    Err(DbErr::Exec(RuntimeErr::SqlxError(error.into())))
}

/// Gives a connection back as if nothing had been begun, or closes it.
async fn roll_back(mut connection: PoolConnection<Postgres>) {
    if !matches!(timeout(ROLLBACK_TIMEOUT, connection.execute("ROLLBACK")).await, Ok(Ok(_))) {
        // Not closed in good order, which would wait for the server.
        drop(connection.detach());
    }
}

/// How long a rollback may take.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(1);

enum Unwritten {
    Outdated,
    Failed(sqlx::Error),
}

impl From<sqlx::Error> for Unwritten {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error)
    }
}

async fn write(
    connection: &mut PgConnection,
    plan: &Plan<'_>,
    rows: &[u8],
    now: DateTime<Utc>,
    is_committing: &mut bool,
) -> Result<(), Unwritten> {
    connection.execute(sqlx::raw_sql(BEGIN)).await?;
    move_tracks(connection, plan, now).await?;
    for write in plan.batches.iter().filter(|write| !write.replaces.is_empty()) {
        replace_placeholders(connection, write).await?;
    }
    if rows.len() > HEADER.len() + TRAILER.len() {
        copy(connection, rows).await?;
    }
    *is_committing = true;
    connection.execute(sqlx::raw_sql("COMMIT")).await?;
    Ok(())
}

async fn copy(connection: &mut PgConnection, rows: &[u8]) -> Result<(), sqlx::Error> {
    let mut copy = connection.copy_in_raw(COPY_ACTIONS).await?;
    for chunk in rows.chunks(CHUNK_BYTES) {
        copy.send(chunk).await?;
    }
    copy.finish().await?;
    Ok(())
}

async fn move_tracks(connection: &mut PgConnection, plan: &Plan<'_>, now: DateTime<Utc>) -> Result<(), Unwritten> {
    let keys = || plan.tracks.keys();
    let column = |value: fn(&TrackWrite) -> i64| plan.tracks.values().map(value).collect::<Vec<_>>();
    let moved: Vec<bool> = sqlx::query_scalar(MOVE_TRACKS)
        .bind(keys().map(|(session, _)| session.as_uuid()).collect::<Vec<_>>())
        .bind(plan.tracks.values().map(|track| track.number).collect::<Vec<_>>())
        .bind(keys().map(|(_, source)| *source).collect::<Vec<_>>())
        .bind(column(|track| track.last_seq))
        .bind(column(|track| track.accepted_count))
        .bind(column(|track| track.duplicate_count))
        .bind(column(|track| track.rejected_count))
        .bind(column(|track| track.error_count))
        .bind(plan.tracks.values().map(|track| track.last_action_at).collect::<Vec<_>>())
        .bind(now)
        .fetch_all(&mut *connection)
        .await?;
    if moved.len() != plan.tracks.len() || !moved.into_iter().all(|is_whole| is_whole) {
        return Err(Unwritten::Outdated);
    }
    for ((session, source), track) in plan.tracks.iter().filter(|(_, track)| track.conflict_count > 0) {
        let count = sqlx::query(COUNT_CONFLICTS).bind(session.as_uuid()).bind(*source).bind(track.conflict_count);
        count.execute(&mut *connection).await?;
    }
    Ok(())
}

async fn replace_placeholders(connection: &mut PgConnection, write: &BatchWrite<'_>) -> Result<(), Unwritten> {
    let text = |value: fn(&Action) -> &str| write.replacements().map(|(_, action)| value(action)).collect::<Vec<_>>();
    let replaced = sqlx::query(REPLACE_PLACEHOLDERS)
        .bind(write.batch.session.as_uuid())
        .bind(write.track)
        .bind(write.replacements().map(|(_, action)| action.timestamp).collect::<Vec<_>>())
        .bind(&write.replaces)
        .bind(text(|action| &action.kind))
        .bind(text(|action| &action.target))
        .bind(text(|action| &action.data))
        .execute(&mut *connection)
        .await?;
    let is_whole = replaced.rows_affected() == u64::try_from(write.replaces.len()).unwrap_or(u64::MAX);
    // Others were faster, or the session is being archived.
    if is_whole { Ok(()) } else { Err(Unwritten::Outdated) }
}

/// Signature, flags and the length of an extension that is not there; see
/// <https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format".
const HEADER: [u8; 19] = *b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// Seconds from 1970 to 2000, where PostgreSQL's timestamps begin.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// The rows of a plan in the binary format of COPY.
fn encode(plan: &Plan<'_>) -> Vec<u8> {
    /// Number of fields, their lengths, and those of fixed size.
    const ROW_BYTES: usize = 2 + 7 * 4 + 16 + 8 + 2 + 8;
    let actions = || plan.batches.iter().flat_map(|write| write.rows().map(|(_, action)| action));
    let size: usize =
        actions().map(|action| ROW_BYTES + action.kind.len() + action.target.len() + action.data.len()).sum();
    let mut rows = Vec::with_capacity(HEADER.len() + size + TRAILER.len());
    rows.extend_from_slice(&HEADER);
    for write in &plan.batches {
        for (seq, action) in write.rows() {
            encode_row(&mut rows, write.batch.session, write.track, seq, action);
        }
    }
    rows.extend_from_slice(&TRAILER);
    rows
}

fn encode_row(rows: &mut Vec<u8>, session: SessionId, track: i16, seq: i64, action: &Action) {
    let micros = action.timestamp.timestamp_micros() - EPOCH_MICROS;
    rows.extend_from_slice(&7_i16.to_be_bytes());
    let mut field = |bytes: &[u8]| {
        // No message is that long.
        let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
        rows.extend_from_slice(&length.to_be_bytes());
        rows.extend_from_slice(bytes);
    };
    let session: Uuid = session.as_uuid();
    field(session.as_bytes());
    field(&micros.to_be_bytes());
    field(&track.to_be_bytes());
    field(&seq.to_be_bytes());
    field(action.kind.as_bytes());
    field(action.target.as_bytes());
    if action.data.is_empty() {
        rows.extend_from_slice(&(-1_i32).to_be_bytes());
    } else {
        field(action.data.as_bytes());
    }
}
