//! When processes are killed: at moments that chance decides, so many times in all tests together.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::harness::{say_seed, setting};

/// How many kills there are in all tests together, unless `REEL_TEST_KILLS` says otherwise.
const KILLS: u64 = 50;

/// The kills of one test.
pub struct Kills {
    pub seed: u64,
    rng: StdRng,
    done: u64,
    wanted: u64,
}

impl Kills {
    /// As many as this test has of [`KILLS`], or of what is wanted instead.
    pub fn new(share: u64) -> Self {
        let seed = setting("REEL_TEST_SEED").unwrap_or_else(rand::random);
        say_seed(seed);
        let wanted = (setting("REEL_TEST_KILLS").unwrap_or(KILLS) * share).div_ceil(KILLS);
        Self { seed, rng: StdRng::seed_from_u64(seed), done: 0, wanted }
    }

    /// Counts one more. Gives whether it is to be done.
    pub fn go_on(&mut self) -> bool {
        self.done += 1;
        self.done <= self.wanted
    }

    pub fn is_first(&self) -> bool {
        self.done == 1
    }

    /// Whether what was killed before is to be back at work before it is killed again. Now and then it is killed while it
    /// recovers.
    pub fn let_recover(&mut self) -> bool {
        self.done == 1 || self.rng.random_bool(0.7)
    }

    /// Waits for a moment that nothing marks.
    pub async fn moment(&mut self) {
        tokio::time::sleep(Duration::from_micros(self.rng.random_range(0..150_000))).await;
    }
}
