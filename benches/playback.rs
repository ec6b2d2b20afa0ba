//! How fast sessions are played back.
//!
//!     cargo bench --bench playback                every figure, in less than three minutes
//!     cargo bench --bench playback -- --json      the same as JSON Lines
//!     cargo bench --bench playback -- --full      longer, and with 1M and 10M actions stored already
//!     cargo bench --bench playback -- first       one part: rate, first, paced or growth
//!
//! The service is the real program in a process of its own, with its defaults, on PostgreSQL (started for the run, see
//! `support/postgres.rs`) and on SQLite. It has recorded what it plays: one session of 300,000 actions and a thousand of 100
//! actions, interleaved as they came. The limit is the keyset query that playback is made of, a page of 1,000 rows by the primary
//! key at a time, drained by this process through the same driver with no service between (see `playback/reader.rs`).
//!
//! * rate: one playback at speed 0 of the large session, from the call to its end, ÷ the query. Both must bring the same bytes.
//! * first: from the call to the first action of a small session ÷ a query of its first page, p50 and p99 of many.
//! * paced: 500 playbacks at speed 1, how late their actions come (see `playback/paced.rs`).
//! * growth, with `--full`: rate and first action beside a database with 1M actions.
//!
//! Value and limit are measured by turns, in several rounds; both columns show medians, and the ratio is the median of the
//! rounds' own ratios, which what else the machine does disturbs less. CPU is user and system time from /proc, of PostgreSQL with
//! all its processes, in microseconds an action, the mean of the rounds.

#![allow(clippy::print_stdout, clippy::print_stderr)]
// Figures are rounded anyway.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
#![allow(clippy::cast_possible_wrap, unreachable_pub)]

use std::process::ExitCode;

use clap::Parser as _;

use playback::{first_action, growth, library::Library, paced, rate};
use support::{Result, arguments::Arguments, figure::print, postgres::Postgres};

mod support;

mod playback {
    pub mod first_action;
    pub mod growth;
    pub mod library;
    pub mod paced;
    pub mod rate;
    pub mod reader;
}

#[tokio::main]
async fn main() -> ExitCode {
    support::run(measure(Arguments::parse())).await
}

async fn measure(arguments: Arguments) -> Result<()> {
    let postgres = Postgres::start().await?;
    if ["rate", "first", "paced"].into_iter().any(|part| arguments.wants(part)) {
        let mut libraries = [Library::on_postgres(&postgres, &arguments).await?, Library::on_sqlite(&arguments).await?];
        if arguments.wants("rate") {
            let mut figures = Vec::new();
            for library in &mut libraries {
                figures.extend(rate::measure(&arguments, library).await?);
            }
            print("playback ÷ the bare query", &figures, arguments.json);
        }
        if arguments.wants("first") {
            let mut figures = Vec::new();
            for library in &mut libraries {
                figures.extend(first_action::measure(&arguments, library).await?);
            }
            print("first action ÷ a bare page", &figures, arguments.json);
        }
        if arguments.wants("paced") {
            let mut figures = Vec::new();
            for library in &libraries {
                figures.extend(paced::measure(&arguments, library).await?);
            }
            print("paced playbacks", &figures, arguments.json);
        }
        for library in libraries {
            library.reel.stop().await?;
        }
    }
    if (arguments.full || arguments.smoke) && arguments.wants("growth") {
        growth::measure(&arguments, &postgres).await?;
    }
    Ok(())
}
