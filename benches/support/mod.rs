//! What the benchmarks need: servers of their own, a workload, the limits to measure against, and the table of ratios.

// Each benchmark uses a part of it.
#![allow(dead_code)]

pub mod accounting;
pub mod archive;
pub mod arguments;
pub mod content;
pub mod copy;
pub mod figure;
pub mod growth;
pub mod messages;
pub mod postgres;
pub mod reel;
pub mod sender;
pub mod statistics;
pub mod workload;

use std::{error::Error, future::Future, process::ExitCode, sync::LazyLock, time::Instant};

use tokio::signal::unix::{SignalKind, signal};

/// Why a benchmark gives up. It has no figure then: one of a run that lost something would be worth nothing.
pub type Failure = Box<dyn Error + Send + Sync>;

/// What almost everything here returns.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Runs a benchmark, and stops the servers it has started even when it is broken off.
pub async fn run(benchmark: impl Future<Output = Result<()>>) -> ExitCode {
    let interrupted = async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => {}
            pressed = tokio::signal::ctrl_c() => pressed?,
        }
        Err(Failure::from("broken off"))
    };
    let outcome = tokio::select! {
        outcome = benchmark => outcome,
        outcome = interrupted => outcome,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("failed: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// When the benchmark began, or at least spoke first.
static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Says what is being measured, on standard error: standard output is for the figures.
pub fn progress(what: impl std::fmt::Display) {
    eprintln!("{:4} s  {what}", BEGUN.elapsed().as_secs());
}
