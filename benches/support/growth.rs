//! A database in which much is stored already: sessions of the last two weeks, put there past the service.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use reel::model::SessionId;
use sea_orm::sqlx::{Connection as _, Executor as _, PgConnection, query};
use uuid::Uuid;

use super::{
    Result,
    copy::Copiers,
    progress,
    reel::Reel,
    sender::{Rpc, Upload, start_sessions},
    workload::{LIVE_SESSIONS, Plan, Workload},
};

/// Over how many days the sessions are spread.
const DAYS: i32 = 14;

/// Actions that are generated at once.
const CHUNK: usize = 200_000;

/// How long a stored session is.
const SESSION: usize = 100;

/// Rows of sessions and tracks are those of a session that the service recorded itself, but for these columns: whatever else
/// a row has is as the service writes it. They are not dirty: nobody is to index them while something else is measured.
const SESSIONS: &str = "
INSERT INTO sessions
SELECT (jsonb_populate_record(template, jsonb_build_object('id', new.id, 'started_at', new.started_at))).*
FROM sessions template, unnest($2::uuid[], $3::timestamptz[]) AS new (id, started_at) WHERE template.id = $1";

const TRACKS: &str = "
INSERT INTO tracks
SELECT (jsonb_populate_record(template, jsonb_build_object(
    'session_id', new.id, 'last_seq', new.count, 'accepted_count', new.count, 'dirty', false))).*
FROM tracks template, unnest($2::uuid[], $3::bigint[]) AS new (id, count) WHERE template.session_id = $1";

/// Stores so many actions. Gives the ids of their sessions, oldest chunk first.
pub async fn preload(reel: &Reel, database_url: &str, actions: usize, seed: u64) -> Result<Vec<SessionId>> {
    let now = Utc::now();
    let template = prepare(reel, now, seed).await?;
    let mut copiers = Copiers::connect(database_url).await?;
    let mut connection = PgConnection::connect(database_url).await?;
    let chunks = actions.div_ceil(CHUNK);
    let step = TimeDelta::days(DAYS.into()) / i32::try_from(chunks)?;
    let mut all = Vec::new();
    for chunk in 0..chunks {
        let begin = now - TimeDelta::days(DAYS.into()) + step * i32::try_from(chunk)?;
        let plan = Plan {
            seed: seed.wrapping_add(chunk as u64),
            actions: CHUNK.min(actions - chunk * CHUNK),
            senders: 8,
            batch: 20,
            live: LIVE_SESSIONS,
            session: Some(SESSION),
            started: (begin, begin + step),
        };
        let workload = Arc::new(Workload::generate(&plan));
        let ids = workload.mint();
        copiers.copy(&workload, &ids).await?;
        store_sessions(&mut connection, template, &workload, &ids).await?;
        all.extend(ids);
        if (chunk + 1).is_multiple_of(5) {
            progress(format_args!("{} actions are stored", (chunk + 1) * CHUNK));
        }
    }
    connection.execute("VACUUM (ANALYZE) actions").await?;
    connection.execute("VACUUM (ANALYZE) sessions").await?;
    connection.execute("VACUUM (ANALYZE) tracks").await?;
    connection.execute("CHECKPOINT").await?;
    Ok(all)
}

/// Has the service record a session on each of the days, so that it makes the partitions. Gives the last of them.
async fn prepare(reel: &Reel, now: DateTime<Utc>, seed: u64) -> Result<Uuid> {
    let channels = reel.connect(1).await?;
    let mut last = Uuid::nil();
    for day in 0..=DAYS {
        let started = now - TimeDelta::days((DAYS - day).into());
        let plan =
            Plan { seed, actions: 20, senders: 1, batch: 20, live: 1, session: None, started: (started, started) };
        let workload = Workload::generate(&plan);
        let ids = workload.mint();
        start_sessions(&channels, &ids).await?;
        Upload::new(Rpc::StreamActions, &workload, &ids).send(&channels).await?;
        last = ids[0].as_uuid();
    }
    Ok(last)
}

async fn store_sessions(
    connection: &mut PgConnection,
    template: Uuid,
    workload: &Workload,
    ids: &[SessionId],
) -> Result<()> {
    let mut counts = vec![0_i64; ids.len()];
    for batch in workload.senders.iter().flatten() {
        counts[batch.session] += batch.actions.len() as i64;
    }
    let ids: Vec<_> = ids.iter().map(|id| id.as_uuid()).collect();
    query(SESSIONS).bind(template).bind(&ids).bind(&workload.starts).execute(&mut *connection).await?;
    query(TRACKS).bind(template).bind(&ids).bind(&counts).execute(&mut *connection).await?;
    Ok(())
}
