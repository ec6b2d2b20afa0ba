//! What the indexer costs those who record, and how far behind it is.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sea_orm::sqlx::{Connection as _, Executor as _, PgConnection, query_as};
use tokio::time::sleep;

use crate::support::{
    Result,
    archive::{name_routes, wait_until_indexed},
    arguments::Arguments,
    figure::{Figure, Goal, print},
    postgres::Postgres,
    progress,
    reel::Reel,
    sender::{Rpc, Upload, start_sessions},
    statistics::{Rounds, percentile_ms},
    workload::{LIVE_SESSIONS, Plan, Workload},
};

/// How long the index may take to catch up after a measurement.
const INDEXED_WITHIN: Duration = Duration::from_mins(2);

/// The index is to have a session so soon after its last action.
const LAG_GOAL: Goal = Goal::ValueAtMost(5_000.0);

fn workload(arguments: &Arguments, seed: u64, actions: usize) -> Arc<Workload> {
    let now = chrono::Utc::now();
    let started = (now - chrono::TimeDelta::minutes(60), now - chrono::TimeDelta::minutes(30));
    let (senders, batch) = (8, arguments.scale(20, 100, 100));
    let plan = Plan { seed, actions, senders, batch, live: LIVE_SESSIONS, session: Some(200), started };
    let mut workload = Workload::generate(&plan);
    name_routes(&mut workload);
    Arc::new(workload)
}

pub async fn measure(arguments: &Arguments, postgres: &Postgres) -> Result<()> {
    progress("ingest with the indexer on and off");
    let (mut rounds, mut off) = (Rounds::default(), Vec::new());
    for round in 0..arguments.rounds() {
        let actions = arguments.scale(4_000, 500_000, 3_000_000);
        let seed = arguments.seed.wrapping_add(round as u64);
        let with = rate(arguments, postgres, &format!("with_{round}"), "on", seed, actions).await?;
        let without = rate(arguments, postgres, &format!("without_{round}"), "off", seed, actions).await?;
        rounds.add(with, without);
        off.push(without);
    }
    let on = Figure::of_rounds("indexer on ÷ off", &rounds, "actions/s").goal(Goal::RatioAtLeast(0.85));
    let half = rounds.limit() / 2.0;
    let mut lags = lags(arguments, postgres, half).await?;
    let lag =
        |name: &str, lags: &mut Vec<Duration>, part| Figure::new(name, percentile_ms(lags, part), "ms").goal(LAG_GOAL);
    let figures = [
        on,
        lag("in the index after the last action at half that rate, p50", &mut lags, 0.5),
        lag("… p99", &mut lags, 0.99),
    ];
    print("recording and indexing", &figures, arguments.json);
    Ok(())
}

async fn rate(
    arguments: &Arguments,
    postgres: &Postgres,
    database: &str,
    indexer: &str,
    seed: u64,
    actions: usize,
) -> Result<f64> {
    let url = postgres.database(database).await?;
    let reel = Reel::serve_with(&url, &["--indexer", indexer]).await?;
    let channels = reel.connect(4).await?;
    let workload = workload(arguments, seed, actions);
    let ids = workload.mint();
    start_sessions(&channels, &ids).await?;
    let took = Upload::new(Rpc::StreamActions, &workload, &ids).send(&channels).await?;
    let mut connection = PgConnection::connect(&url).await?;
    if indexer == "on" {
        wait_until_indexed(&mut connection, INDEXED_WITHIN).await?;
    }
    reel.stop().await?;
    connection.execute("CHECKPOINT").await?;
    Ok(workload.actions() as f64 / took.as_secs_f64())
}

/// How long after its last batch each session is in the index, while actions come at this rate.
async fn lags(arguments: &Arguments, postgres: &Postgres, rate: f64) -> Result<Vec<Duration>> {
    progress("how far behind the index is");
    let url = postgres.database("lag").await?;
    let reel = Reel::serve(&url).await?;
    let channels = reel.connect(4).await?;
    let mut connection = PgConnection::connect(&url).await?;
    let slices = arguments.scale(2, 40, 200);
    let slice = Duration::from_millis(200);
    let actions = ((rate * slice.as_secs_f64()) as usize).max(1_000);
    let mut lags = Vec::new();
    let mut waiting: Vec<(Instant, Vec<uuid::Uuid>)> = Vec::new();
    let mut next = Instant::now();
    for number in 0..slices {
        // Each slice is some sessions from their first action to their last.
        let workload = workload(arguments, arguments.seed ^ (number as u64 + 1), actions);
        let ids = workload.mint();
        start_sessions(&channels, &ids).await?;
        Upload::new(Rpc::StreamActions, &workload, &ids).send(&channels).await?;
        waiting.push((Instant::now(), ids.iter().map(|id| id.as_uuid()).collect()));
        collect(&mut connection, &mut waiting, &mut lags).await?;
        next += slice;
        sleep(next.saturating_duration_since(Instant::now())).await;
    }
    let give_up_at = Instant::now() + INDEXED_WITHIN;
    while !waiting.is_empty() {
        collect(&mut connection, &mut waiting, &mut lags).await?;
        if Instant::now() > give_up_at {
            return Err("sessions are still not indexed".into());
        }
        sleep(Duration::from_millis(50)).await;
    }
    reel.stop().await?;
    Ok(lags)
}

/// Takes the sessions out that are in the index now.
async fn collect(
    connection: &mut PgConnection,
    waiting: &mut Vec<(Instant, Vec<uuid::Uuid>)>,
    lags: &mut Vec<Duration>,
) -> Result<()> {
    let dirty: Vec<(uuid::Uuid,)> = query_as("SELECT session_id FROM tracks WHERE dirty").fetch_all(connection).await?;
    let dirty: std::collections::HashSet<_> = dirty.into_iter().map(|(id,)| id).collect();
    for (since, ids) in waiting.iter_mut() {
        let before = ids.len();
        ids.retain(|id| dirty.contains(id));
        lags.extend(std::iter::repeat_n(since.elapsed(), before - ids.len()));
    }
    waiting.retain(|(_, ids)| !ids.is_empty());
    Ok(())
}
