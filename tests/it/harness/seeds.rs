//! Tests that draw their plans from seeds: `REEL_TEST_SEED` runs one seed alone; `REEL_TEST_PLANS` says how many are tried.

use std::{env, str::FromStr};

/// A number that the environment may give.
pub fn setting<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// The seeds to try: as many as `plans`, unless the environment says otherwise.
pub fn seeds(plans: u64) -> Vec<u64> {
    match setting("REEL_TEST_SEED") {
        Some(seed) => vec![seed],
        None => (0..setting("REEL_TEST_PLANS").unwrap_or(plans)).map(|_| rand::random()).collect(),
    }
}

/// Says how to run a seed again, where the runner shows it: with the output of a test that failed.
pub fn say_seed(seed: u64) {
    eprintln!("again with REEL_TEST_SEED={seed}");
}
