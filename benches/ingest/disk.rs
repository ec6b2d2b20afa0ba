//! Bytes on disk, with everything that a session leaves, beside the same actions as plain JSON Lines.

use std::sync::Arc;

use sea_orm::sqlx::query_as;

use crate::{
    ingest::lab::{Lab, an_hour_ago},
    support::{
        Result,
        arguments::Arguments,
        figure::{Figure, Goal, print},
        postgres::Postgres,
        progress,
        sender::Rpc,
        workload::{LIVE_SESSIONS, Plan, Workload},
    },
};

const SIZES: &str = "
SELECT (SELECT sum(pg_table_size(relid))::float8 FROM pg_partition_tree('actions')),
    (SELECT sum(pg_indexes_size(relid))::float8 FROM pg_partition_tree('actions')),
    pg_total_relation_size('sessions')::float8,
    pg_total_relation_size('tracks')::float8";

/// Sessions of 100 actions, as they come: 200 at once, 20 actions a batch.
pub fn plan(arguments: &Arguments) -> Plan {
    Plan {
        seed: arguments.seed,
        actions: arguments.scale(4_000, 200_000, 1_000_000),
        senders: 8,
        batch: 20,
        live: LIVE_SESSIONS,
        session: Some(100),
        started: an_hour_ago(),
    }
}

pub async fn measure(arguments: &Arguments, postgres: &Postgres) -> Result<()> {
    progress("disk");
    let mut lab = Lab::open(postgres, "disk").await?;
    let workload = Arc::new(Workload::generate(&plan(arguments)));
    let (measured, _) = lab.send(Rpc::StreamActions, &workload).await?;
    let (actions, indexes, sessions, tracks): (f64, f64, f64, f64) =
        query_as(SIZES).fetch_one(&mut lab.connection).await?;
    let count = workload.actions() as f64;
    let json_lines = workload.json_lines_bytes() as f64 / count;
    let an_action = |name: &str, bytes: f64| Figure::new(name, bytes / count, "bytes").beside(json_lines);
    let figures = [
        an_action("actions", actions),
        an_action("indexes of actions", indexes),
        an_action("sessions", sessions),
        an_action("tracks", tracks),
        an_action("all of these", actions + indexes + sessions + tracks).goal(Goal::RatioAtMost(1.1)),
        an_action("WAL", measured.wal_bytes_an_action() * count),
    ];
    print("disk an action, PostgreSQL ÷ JSON Lines", &figures, arguments.json);
    lab.reel.stop().await
}
