//! When each action of a playback is due.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

/// Nothing is due later than this from now: clocks end somewhere.
const FAR: Duration = Duration::from_hours(24 * 365);

/// Turns the session's time into the player's.
#[derive(Clone, Debug)]
pub(super) struct Pacer {
    speed: f64,
    max_idle: Option<Duration>,
    /// The session's time that `due` stands for.
    reached: Option<DateTime<Utc>>,
    due: Instant,
}

impl Pacer {
    /// Starts the clock at this time of the session, or at the first action where it is None. `speed` is finite and not
    /// negative; 0 makes everything due at once.
    pub(super) fn start(begin: Option<DateTime<Utc>>, speed: f64, max_idle: Option<Duration>) -> Self {
        Self { speed, max_idle, reached: begin, due: Instant::now() }
    }

    /// When an action is due. Actions are asked for in the order in which they are played; one that is older than those
    /// before it is due at once.
    pub(super) fn due(&mut self, timestamp: DateTime<Utc>) -> Instant {
        let reached = *self.reached.get_or_insert(timestamp);
        if self.speed > 0.0
            && let Ok(gap) = (timestamp - reached).to_std()
        {
            let gap = self.max_idle.map_or(gap, |max_idle| gap.min(max_idle));
            let pause = Duration::try_from_secs_f64(gap.as_secs_f64() / self.speed).unwrap_or(FAR);
            self.due = self.due.checked_add(pause.min(FAR)).unwrap_or(self.due);
            self.reached = Some(timestamp);
        }
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(millis).expect("in range")
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_are_divided_by_the_speed_and_cut_to_max_idle() {
        let start = Instant::now();
        let mut pacer = Pacer::start(Some(at(0)), 2.0, Some(Duration::from_secs(10)));
        let due: Vec<_> = [1_000, 1_000, 61_000, 500, 62_000]
            .map(|millis| (pacer.due(at(millis)) - start).as_millis())
            .into_iter()
            .collect();
        assert_eq!(due, [500, 500, 5_500, 5_500, 6_000]);
    }

    #[tokio::test(start_paused = true)]
    async fn at_speed_0_and_at_the_ends_of_the_range_nothing_breaks() {
        let start = Instant::now();
        assert_eq!(Pacer::start(Some(at(0)), 0.0, None).due(at(1 << 50)), start);
        assert_eq!(Pacer::start(Some(at(0)), f64::MIN_POSITIVE, None).due(at(1 << 50)), start + FAR);
    }
}
