//! How fast sessions are found and actions are counted, and what it costs that they are.
//!
//!     cargo bench --bench query                every figure, in less than three minutes
//!     cargo bench --bench query -- --json      the same as JSON Lines
//!     cargo bench --bench query -- --full      longer, and how the figures change from 1M to 10M actions
//!     cargo bench --bench query -- search      one part: search, analytics, disk or ingest
//!
//! The service is the real program in a process of its own, with its defaults, on PostgreSQL (started for the run, see
//! `support/postgres.rs`). What is asked for was recorded through it: 1M actions in sessions of 50, of 5,000 users, over 30 days,
//! with a few hundred different targets.
//!
//! * search, analytics: a call, from request to answer ÷ the best SQL that we know for the same question on the same tables
//!   (summaries, facets, roll-up), prepared, its rows fetched by this process through the service's own driver. Both by turns.
//! * actions: the same question asked of the table of actions in SQL ÷ the call.
//! * disk: what facets and roll-up take beside the same actions as plain JSON Lines.
//! * ingest: the rate with the indexer on ÷ off, and how long after a session's last action it is in the index.
//! * growth, with `--full`: the time of a call with 10M actions stored ÷ with 1M.

#![allow(clippy::print_stdout, clippy::print_stderr)]
// Figures are rounded anyway.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
#![allow(clippy::cast_possible_wrap, unreachable_pub)]

use std::process::ExitCode;

use clap::Parser as _;

use query::{disk, indexing, questions};
use support::{Result, archive::Archive, arguments::Arguments, figure::print, postgres::Postgres};

mod support;

mod query {
    pub mod disk;
    pub mod indexing;
    pub mod questions;
    pub mod sql;
}

/// Over how many days sessions are spread.
const DAYS: i64 = 30;

#[tokio::main]
async fn main() -> ExitCode {
    support::run(measure(Arguments::parse())).await
}

async fn measure(arguments: Arguments) -> Result<()> {
    let postgres = Postgres::start().await?;
    if ["search", "analytics", "disk"].into_iter().any(|part| arguments.wants(part)) {
        let size = arguments.scale(4_000, 1_000_000, 1_000_000);
        let mut archive = Archive::record(&postgres, "small", DAYS, (size, 50), arguments.seed).await?;
        let before = questions::measure(&arguments, &mut archive).await?;
        if arguments.wants("disk") {
            print("disk an action ÷ JSON Lines", &disk::measure(&mut archive).await?, arguments.json);
        }
        archive.reel.stop().await?;
        if arguments.full {
            let mut archive = Archive::record(&postgres, "large", DAYS, (10 * size, 50), arguments.seed).await?;
            let after = questions::measure(&arguments, &mut archive).await?;
            print("10M ÷ 1M actions stored", &questions::growth(&before, &after), arguments.json);
            archive.reel.stop().await?;
        }
    }
    if arguments.wants("ingest") {
        indexing::measure(&arguments, &postgres).await?;
    }
    Ok(())
}
