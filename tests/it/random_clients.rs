//! Random clients against a model: a seed makes a plan, concurrent clients carry it out on one or two servers of one
//! database, and afterwards the database must hold what the model says it may.
//!
//! A failure prints its seed and its plan. `REEL_TEST_SEED` runs that seed alone; `REEL_TEST_PLANS` says how many plans are
//! tried.

mod client;
pub mod content;
mod model;
mod plan;
mod run;
mod verify;

use self::{plan::Plan, run::Run};
use crate::{
    harness::{Backend, seeds},
    on_both_databases,
};

/// How many plans are tried on each database, unless `REEL_TEST_PLANS` says otherwise.
const PLANS: u64 = 6;

on_both_databases!(random_clients_lose_nothing_store_nothing_twice_and_see_everything_in_order);

async fn random_clients_lose_nothing_store_nothing_twice_and_see_everything_in_order(backend: Backend) {
    for seed in seeds(PLANS) {
        let plan = Plan::new(seed);
        let run = tokio::spawn(Run::carry_out(plan.clone(), backend));
        match run.await {
            Ok(summary) => eprintln!("REEL_TEST_SEED={seed}: {summary}"),
            Err(panic) => {
                eprintln!("{plan}\nfailed on {backend:?}; again with REEL_TEST_SEED={seed}");
                std::panic::resume_unwind(panic.into_panic());
            }
        }
    }
}
