//! What it costs to forget.
//!
//!     cargo bench --bench lifecycle                every figure, in less than three minutes
//!     cargo bench --bench lifecycle -- --json      the same as JSON Lines
//!     cargo bench --bench lifecycle -- --full      a day of 5M actions instead of 1M
//!
//! A day's sessions are recorded through the service, on PostgreSQL (started for the run, see `support/postgres.rs`), and the
//! database is copied: one copy is archived, in another the day expires, in the others the same is deleted, or only the
//! partitions are dropped. Rows of sessions and tracks go one by one however it is done, so it matters how long sessions are:
//! they have 50 actions, as in all benchmarks; then, for expiry only, 500, about as many as real ones (those of the Balabit
//! Mouse Dynamics Challenge that we tried have 311 to 894).

#![allow(clippy::print_stdout, clippy::print_stderr)]
// Figures are rounded anyway.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
#![allow(clippy::cast_possible_wrap, unreachable_pub)]

use std::process::ExitCode;

use clap::Parser as _;
use sea_orm::sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use support::{Result, archive::Archive, arguments::Arguments, figure::print, postgres::Postgres, progress};

#[path = "lifecycle/cold.rs"]
mod cold;
#[path = "lifecycle/expiry.rs"]
mod expiry;
mod support;

#[tokio::main]
async fn main() -> ExitCode {
    support::run(Box::pin(measure(Arguments::parse()))).await
}

async fn measure(arguments: Arguments) -> Result<()> {
    let mut postgres = Postgres::start().await?;
    let actions = arguments.scale(4_000, 1_000_000, 5_000_000);
    for in_session in [50, 500] {
        let [expired, archived, deleted, dropped] =
            ["expired", "archived", "deleted", "dropped"].map(|name| format!("{name}_{in_session}"));
        let size = (actions, in_session);
        let archive = Archive::record(&postgres, &expired, 1, size, arguments.seed).await?;
        let recorded = cold::Recorded {
            sessions: actions as f64 / in_session as f64,
            json_lines_bytes: archive.json_lines_bytes,
            gzip_bytes: archive.gzip_bytes,
            until: archive.until,
        };
        archive.reel.stop().await?;
        archive.connection.close().await?;
        let mut connection = PgConnection::connect(&postgres.url("postgres")).await?;
        for copy in [&archived, &deleted, &dropped] {
            let sql = format!("CREATE DATABASE {copy} TEMPLATE {expired} STRATEGY file_copy");
            connection.execute(AssertSqlSafe(sql)).await?;
        }
        progress("a day is there four times");
        if in_session == 50 {
            let cold = cold::measure(&arguments, &postgres, (&deleted, &archived), &recorded).await?;
            print("archived sessions", &cold, arguments.json);
        }
        let figures = expiry::measure(&mut postgres, [&expired, &deleted, &dropped], recorded.until, size).await?;
        print(&format!("expiring a day of sessions of {in_session}, an action"), &figures, arguments.json);
    }
    Ok(())
}
