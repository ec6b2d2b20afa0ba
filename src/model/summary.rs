//! What a session's actions say, taken together: the one definition of everything that the index holds. Whatever is not in
//! the index yet is taken together by the same code when somebody asks.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};

use super::{ERROR_TYPE, SessionId};

/// Pauses up to this long are activity. The same after which rrweb's player calls a user inactive
/// (`SKIP_TIME_THRESHOLD`, 10 s).
pub const LONGEST_PAUSE: TimeDelta = TimeDelta::seconds(10);

/// The version of the definitions in this file. The index notes by which it was made; what an older one has made is made anew
/// in the background, and is not believed meanwhile. 2: rage clicks slide, and have a target.
pub const DEFINITIONS: i32 = 2;

/// The type of actions that may be rage clicks.
const CLICK_TYPE: &str = "click";

/// So many clicks on one target within [`RAGE_WITHIN`] are a rage click: as many as other recorders ask for.
const RAGE_CLICKS: usize = 3;

/// How long a rage click takes at most.
const RAGE_WITHIN: TimeDelta = TimeDelta::seconds(1);

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

/// How often a facet occurs in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FacetCount {
    /// Number of actions.
    pub count: i64,
    /// The earliest timestamp.
    pub first_at: DateTime<Utc>,
}

/// Facets of a session: by type, then by target.
pub type Facets = HashMap<String, HashMap<String, FacetCount>>;

/// Takes the actions of a session together, one after the other.
#[derive(Debug, Default)]
pub struct Summing {
    summary: Summary,
    active: TimeDelta,
    facets: Facets,
    /// The latest clicks on each target.
    clicks: HashMap<String, Clicks>,
}

/// The latest clicks on a target.
#[derive(Clone, Copy, Debug, Default)]
struct Clicks {
    /// When they were, the earliest first: of as many as are a rage click, all but one.
    times: [Option<DateTime<Utc>>; RAGE_CLICKS - 1],
    /// Whether the last of them was part of a rage click.
    is_rage: bool,
}

impl Summing {
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
            self.click(timestamp, target);
        }
        self.count(timestamp, kind, target);
    }

    fn count(&mut self, first_at: DateTime<Utc>, kind: &str, target: &str) {
        let new = FacetCount { count: 1, first_at };
        match self.facets.get_mut(kind) {
            Some(targets) => match targets.get_mut(target) {
                Some(facet) => facet.count += 1,
                None => {
                    targets.insert(target.to_owned(), new);
                }
            },
            None => {
                self.facets.insert(kind.to_owned(), HashMap::from([(target.to_owned(), new)]));
            }
        }
    }

    fn click(&mut self, timestamp: DateTime<Utc>, target: &str) {
        // Whatever has no target need not be the same.
        if target.is_empty() {
            return;
        }
        let clicks = match self.clicks.get_mut(target) {
            Some(clicks) => clicks,
            None => self.clicks.entry(target.to_owned()).or_default(),
        };
        let is_rage = clicks.times[0].is_some_and(|first| timestamp - first <= RAGE_WITHIN);
        self.summary.rage_click_count += i64::from(is_rage && !clicks.is_rage);
        clicks.is_rage = is_rage;
        clicks.times.rotate_left(1);
        clicks.times[RAGE_CLICKS - 2] = Some(timestamp);
    }

    /// What all of them say.
    #[must_use]
    pub fn finish(self) -> (Summary, Facets) {
        (Summary { active_ms: self.active.num_milliseconds(), ..self.summary }, self.facets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(actions: &[(i64, &str, &str)]) -> (Summary, Facets) {
        let mut summing = Summing::default();
        for (millis, kind, target) in actions {
            summing.push(DateTime::from_timestamp_millis(*millis).expect("in range"), kind, target);
        }
        summing.finish()
    }

    #[test]
    fn pauses_up_to_ten_seconds_are_activity() {
        let (summary, _) = sum(&[(0, "a", ""), (10_000, "a", ""), (20_001, "a", ""), (20_002, "b", "")]);
        assert_eq!((summary.active_ms, summary.action_count), (10_001, 4));
        assert_eq!(sum(&[]).0, Summary::default());
    }

    #[test]
    fn three_clicks_on_one_target_within_a_second_are_a_rage_click_and_more_are_no_other() {
        let rage = |actions: &[(i64, &str, &str)]| sum(actions).0.rage_click_count;
        assert_eq!(rage(&[(0, "click", "x"), (1, "click", "x")]), 0);
        assert_eq!(rage(&[(0, "click", "x"), (500, "click", "y"), (600, "click", "x"), (1_000, "click", "x")]), 1);
        assert_eq!(rage(&[(0, "click", "x"), (500, "click", "x"), (1_001, "click", "x")]), 0);
        let clicks: Vec<_> = (0..7).map(|at| (at * 100, "click", "x")).collect();
        assert_eq!(rage(&clicks), 1);
        // The second within a second of the fourth.
        assert_eq!(rage(&[0, 800, 1_100, 1_200].map(|at| (at, "click", "x"))), 1);
        let long_row: Vec<_> = (0..40).map(|at| (at * 100, "click", "x")).collect();
        assert_eq!(rage(&long_row), 1);
        assert_eq!(rage(&[0, 1, 2].map(|at| (at, "click", ""))), 0);
        let two_rows: Vec<_> = [0, 1, 2, 1_500, 1_501, 1_502].map(|at| (at, "click", "x")).into();
        assert_eq!(rage(&two_rows), 2);
        assert_eq!(rage(&[(0, "tap", "x"), (1, "tap", "x"), (2, "tap", "x")]), 0);
    }

    #[test]
    fn a_dead_end_is_a_last_action_that_is_an_error() {
        assert!(sum(&[(0, "click", ""), (1, "error", "")]).0.is_dead_end);
        let (summary, facets) = sum(&[(0, "error", "E"), (1, "click", ""), (2, "error", "E"), (3, "click", "")]);
        assert!(!summary.is_dead_end);
        assert_eq!(summary.error_count, 2);
        assert_eq!(facets["error"]["E"], FacetCount { count: 2, first_at: DateTime::UNIX_EPOCH });
    }
}
