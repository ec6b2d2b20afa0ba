//! How fast actions are taken in, and what they cost.
//!
//!     cargo bench --bench ingest                 every figure, in less than three minutes
//!     cargo bench --bench ingest -- --json       the same as JSON Lines
//!     cargo bench --bench ingest -- --full       longer, all combinations, and with 1M and 10M actions stored already
//!     cargo bench --bench ingest -- latency      one part: throughput, latency, disk, sqlite or growth
//!
//! The service is the real program in a process of its own, with its defaults, reached over gRPC by the senders in this process;
//! PostgreSQL is started for the run (see `support/postgres.rs`). Client, service and database share the machine. Every figure
//! stands beside a limit that is measured in the same run, on the same server and disk, with the same rows:
//!
//! * throughput: senders with a stream each, at most eight messages under way on a stream, up to eight connections. The limit is
//!   COPY BINARY into the same table by two connections that do nothing else, 2,000 rows a transaction, with rows in the order in
//!   which the senders' batches arrive. Each measurement begins with an empty table after a checkpoint; sessions are started before
//!   the clock does. Enough actions are sent that it takes most of a second at the service's speed.
//! * receipt latency: an open loop at a tenth and at half of what COPY takes (see `ingest/latency.rs`).
//! * disk: sessions of 100 actions, beside the lines that `reel play` would print of them.
//! * SQLite: beside a loop of prepared inserts (see `ingest/sqlite.rs`).
//! * growth, with `--full`: beside a database with 1M actions (see `ingest/growth.rs`).
//!
//! Value and limit are measured by turns, in several rounds; both columns show medians, and the ratio is the median of the
//! rounds' own ratios, which what else the machine does disturbs less. CPU is user and system time from /proc, of PostgreSQL with
//! all its processes, in microseconds an action, the mean of the rounds. Nothing is printed of a run in which a receipt was
//! wrong or an action is missing.

#![allow(clippy::print_stdout, clippy::print_stderr)]
// Figures are rounded anyway.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
#![allow(clippy::cast_possible_wrap, unreachable_pub)]

use std::process::ExitCode;

use clap::Parser as _;

use support::{Result, arguments::Arguments, postgres::Postgres};

mod support;

mod ingest {
    pub mod disk;
    pub mod growth;
    pub mod lab;
    pub mod latency;
    pub mod sqlite;
    pub mod throughput;
}

#[tokio::main]
async fn main() -> ExitCode {
    support::run(measure(Arguments::parse())).await
}

async fn measure(arguments: Arguments) -> Result<()> {
    let postgres = Postgres::start().await?;
    if arguments.wants("throughput") {
        ingest::throughput::measure(&arguments, &postgres).await?;
    }
    if arguments.wants("latency") {
        ingest::latency::measure(&arguments, &postgres).await?;
    }
    if arguments.wants("disk") {
        ingest::disk::measure(&arguments, &postgres).await?;
    }
    if arguments.wants("sqlite") {
        ingest::sqlite::measure(&arguments).await?;
    }
    if (arguments.full || arguments.smoke) && arguments.wants("growth") {
        ingest::growth::measure(&arguments, &postgres).await?;
    }
    Ok(())
}
