//! Arguments → one subcommand, nothing else.

use std::process::ExitCode;

use clap::Parser as _;
use reel::cli::{Cli, report};

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&*error),
    }
}
