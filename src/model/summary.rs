//! What a session's actions say, taken together: the one definition of everything that the index holds. Whatever is not in
//! the index yet is taken together by the same code when somebody asks.

use chrono::{DateTime, TimeDelta, Utc};

use super::{ERROR_TYPE, Facets, SessionId, rage::RageClicks};

/// Pauses up to this long are activity. The same after which rrweb's player calls a user inactive
/// (`SKIP_TIME_THRESHOLD`, 10 s).
pub const LONGEST_PAUSE: TimeDelta = TimeDelta::seconds(10);

/// The version of the definitions in this file. The index notes by which it was made; what an older one has made is made anew
/// in the background, and is not believed meanwhile. 2: rage clicks slide, have a target, and are
/// looked for on 1,000 targets a second at most.
pub const DEFINITIONS: i32 = 2;

/// The type of actions that may be rage clicks.
const CLICK_TYPE: &str = "click";

/// What is known of a session without its actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Number of actions.
    pub action_count: i64,
    /// Number of actions of type `error`.
    pub error_count: i64,
    /// The earliest timestamp.
    pub first_action_at: Option<DateTime<Utc>>,
    /// The latest.
    pub last_action_at: Option<DateTime<Utc>>,
    /// How long the user was active.
    pub active_ms: i64,
    /// Number of rage clicks.
    pub rage_click_count: i64,
    /// Whether the last action is an error.
    pub is_dead_end: bool,
}

/// How long a session lasts: from its start to its last action, in whole milliseconds, and 0 where that is before.
#[must_use]
pub fn duration_ms(session: SessionId, last_action_at: Option<DateTime<Utc>>) -> i64 {
    last_action_at.map_or(0, |last| (last - session.started_at()).num_milliseconds().max(0))
}

/// Takes the actions of a session together, one after the other. By default, facets are left out.
#[derive(Debug, Default)]
pub struct Summing {
    summary: Summary,
    active: TimeDelta,
    facets: Facets,
    rage_clicks: RageClicks,
}

impl Summing {
    /// The same with facets, as far as `facets` keeps them.
    #[must_use]
    pub fn with(facets: Facets) -> Self {
        Self { facets, ..Self::default() }
    }

    /// Takes the next action in the order of playback.
    pub fn push(&mut self, timestamp: DateTime<Utc>, kind: &str, target: &str) {
        let summary = &mut self.summary;
        if let Some(last) = summary.last_action_at
            && timestamp - last <= LONGEST_PAUSE
        {
            self.active += timestamp - last;
        }
        summary.action_count += 1;
        summary.first_action_at.get_or_insert(timestamp);
        summary.last_action_at = Some(timestamp);
        summary.is_dead_end = kind == ERROR_TYPE;
        summary.error_count += i64::from(summary.is_dead_end);
        if kind == CLICK_TYPE {
            self.rage_clicks.push(timestamp, target);
        }
        self.facets.push(timestamp, kind, target);
    }

    /// What all of them say.
    #[must_use]
    pub fn finish(self) -> (Summary, Facets) {
        let (active_ms, rage_click_count) = (self.active.num_milliseconds(), self.rage_clicks.count());
        (Summary { active_ms, rage_click_count, ..self.summary }, self.facets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(actions: &[(i64, &str, &str)]) -> Summary {
        let mut summing = Summing::default();
        for (millis, kind, target) in actions {
            summing.push(DateTime::from_timestamp_millis(*millis).expect("in range"), kind, target);
        }
        summing.finish().0
    }

    #[test]
    fn pauses_up_to_ten_seconds_are_activity() {
        let summary = sum(&[(0, "a", ""), (10_000, "a", ""), (20_001, "a", ""), (20_002, "b", "")]);
        assert_eq!((summary.active_ms, summary.action_count), (10_001, 4));
        assert_eq!(sum(&[]), Summary::default());
    }

    #[test]
    fn only_clicks_are_rage_clicks() {
        let rage = |kind: &str| sum(&[0, 1, 2].map(|at| (at, kind, "x"))).rage_click_count;
        assert_eq!((rage("click"), rage("tap")), (1, 0));
    }

    #[test]
    fn a_dead_end_is_a_last_action_that_is_an_error() {
        assert!(sum(&[(0, "click", ""), (1, "error", "")]).is_dead_end);
        let summary = sum(&[(0, "error", "E"), (1, "click", ""), (2, "error", "E"), (3, "click", "")]);
        assert!(!summary.is_dead_end);
        assert_eq!(summary.error_count, 2);
    }
}
