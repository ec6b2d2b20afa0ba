//! Sessions of the last days, recorded through the service and indexed by it.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, NaiveTime, TimeDelta, Utc};
use sea_orm::sqlx::{Connection as _, Executor as _, PgConnection, query_scalar};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use super::{
    Result,
    postgres::Postgres,
    progress,
    reel::Reel,
    sender::{Rpc, Upload, start_sessions},
    workload::{LIVE_SESSIONS, Plan, Workload},
};

/// Actions that are generated at once.
const CHUNK: usize = 200_000;

/// How long indexing may take, for each million actions.
const INDEXED_WITHIN: Duration = Duration::from_mins(3);

/// A service and what it has recorded.
pub struct Archive {
    pub reel: Reel,
    pub channel: Channel,
    pub connection: PgConnection,
    pub actions: usize,
    /// Bytes of all actions as plain JSON Lines.
    pub json_lines_bytes: f64,
    /// Bytes of the same compressed with gzip, as far as those of the first sessions tell.
    pub gzip_bytes: f64,
    /// The end of the days.
    pub until: DateTime<Utc>,
}

impl Archive {
    /// Records so many actions in sessions of some, spread over the days before today.
    pub async fn record(
        postgres: &Postgres,
        database: &str,
        days: i64,
        (actions, in_session): (usize, usize),
        seed: u64,
    ) -> Result<Self> {
        let url = postgres.database(database).await?;
        let reel = Reel::serve(&url).await?;
        let channels = reel.connect(4).await?;
        let mut connection = PgConnection::connect(&url).await?;
        let until = Utc::now().date_naive().and_time(NaiveTime::MIN).and_utc();
        let (mut json_lines_bytes, mut gzip_ratio) = (0.0, 0.0);
        let chunks = actions.div_ceil(CHUNK);
        for chunk in 0..chunks {
            let mut workload = Workload::generate(&Plan {
                seed: seed.wrapping_add(chunk as u64),
                actions: CHUNK.min(actions - chunk * CHUNK),
                senders: 8,
                batch: 25,
                live: LIVE_SESSIONS,
                session: Some(in_session),
                started: (until - TimeDelta::days(days), until - TimeDelta::milliseconds(1)),
            });
            name_routes(&mut workload);
            let workload = Arc::new(workload);
            let bytes = workload.json_lines_bytes() as f64;
            json_lines_bytes += bytes;
            if chunk == 0 {
                gzip_ratio = workload.gzip_bytes() as f64 / bytes;
            }
            let ids = workload.mint();
            start_sessions(&channels, &ids).await?;
            Upload::new(Rpc::StreamActions, &workload, &ids).send(&channels).await?;
        }
        progress(format_args!("{actions} actions are recorded"));
        let millions = u32::try_from(actions.div_ceil(1_000_000))?;
        wait_until_indexed(&mut connection, INDEXED_WITHIN * millions).await?;
        progress("they are indexed");
        connection.execute("VACUUM (ANALYZE)").await?;
        connection.execute("CHECKPOINT").await?;
        let channel = channels.into_iter().next().ok_or("no connection")?;
        let gzip_bytes = json_lines_bytes * gzip_ratio;
        Ok(Self { reel, channel, connection, actions, json_lines_bytes, gzip_bytes, until })
    }
}

/// Names pages and endpoints as routers do, `/posts/:id` for `/posts/17`: a target is what a person would say.
pub fn name_routes(workload: &mut Workload) {
    let actions = workload.senders.iter_mut().flatten().flat_map(|batch| &mut batch.actions);
    for action in actions {
        let route = action.target.trim_end_matches(|letter: char| letter.is_ascii_digit());
        if route.len() < action.target.len() && route.ends_with('/') {
            action.target = format!("{route}:id");
        }
    }
}

pub async fn wait_until_indexed(connection: &mut PgConnection, within: Duration) -> Result<()> {
    let give_up_at = Instant::now() + within;
    loop {
        let dirty: i64 = query_scalar("SELECT count(*) FROM tracks WHERE dirty").fetch_one(&mut *connection).await?;
        if dirty == 0 {
            return Ok(());
        }
        if Instant::now() > give_up_at {
            return Err(format!("{dirty} tracks are still not indexed").into());
        }
        sleep(Duration::from_millis(20)).await;
    }
}
