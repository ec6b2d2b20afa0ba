//! Rage clicks: several clicks on one target in a short time.

use std::{collections::HashMap, mem::take};

use chrono::{DateTime, TimeDelta, Utc};

/// So many clicks on one target within [`WITHIN`] are a rage click: as many as other recorders ask for.
const CLICKS: usize = 3;

/// How long a rage click takes at most.
const WITHIN: TimeDelta = TimeDelta::seconds(1);

/// Targets that are looked at from one moment on until [`WITHIN`] has passed. Nobody clicks on as many; what says so would fill
/// the memory.
const MAX_TARGETS: usize = 1_000;

/// Counts the rage clicks of a session. What it keeps does not grow with the session.
#[derive(Debug, Default)]
pub(super) struct RageClicks {
    count: i64,
    /// The latest clicks on each target that was clicked on since a moment, [`WITHIN`] ago or less.
    recent: HashMap<String, Clicks>,
    since: Option<DateTime<Utc>>,
    /// The same of those before that, for longer than [`WITHIN`]: what is in neither is too long ago to count.
    before: HashMap<String, Clicks>,
}

/// The latest clicks on a target.
#[derive(Clone, Copy, Debug, Default)]
struct Clicks {
    /// When they were, the earliest first: of as many as are a rage click, all but one.
    times: [Option<DateTime<Utc>>; CLICKS - 1],
    /// Whether the last of them was part of a rage click.
    is_rage: bool,
}

impl RageClicks {
    /// Takes the next click in the order of playback.
    pub(super) fn push(&mut self, timestamp: DateTime<Utc>, target: &str) {
        // Whatever has no target need not be the same.
        if target.is_empty() {
            return;
        }
        if self.since.is_none_or(|since| timestamp - since > WITHIN) {
            self.before = take(&mut self.recent);
            self.since = Some(timestamp);
        }
        let is_full = self.recent.len() >= MAX_TARGETS;
        let clicks = match self.recent.get_mut(target) {
            Some(clicks) => clicks,
            None if is_full => return,
            None => {
                let clicks = self.before.remove(target).unwrap_or_default();
                self.recent.entry(target.to_owned()).or_insert(clicks)
            }
        };
        let is_rage = clicks.times[0].is_some_and(|first| timestamp - first <= WITHIN);
        self.count += i64::from(is_rage && !clicks.is_rage);
        clicks.is_rage = is_rage;
        clicks.times.rotate_left(1);
        clicks.times[CLICKS - 2] = Some(timestamp);
    }

    /// How many there were.
    pub(super) fn count(&self) -> i64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rage(clicks: impl IntoIterator<Item = (i64, impl AsRef<str>)>) -> RageClicks {
        let mut rage = RageClicks::default();
        for (millis, target) in clicks {
            rage.push(DateTime::from_timestamp_millis(millis).expect("in range"), target.as_ref());
        }
        rage
    }

    #[test]
    fn three_clicks_on_one_target_within_a_second_are_a_rage_click_and_more_are_no_other() {
        let count = |clicks: &[(i64, &str)]| rage(clicks.iter().copied()).count();
        let on_x = |times: &[i64]| rage(times.iter().map(|at| (*at, "x"))).count();
        assert_eq!(on_x(&[0, 1]), 0);
        assert_eq!(count(&[(0, "x"), (500, "y"), (600, "x"), (1_000, "x")]), 1);
        assert_eq!(on_x(&[0, 500, 1_001]), 0);
        let row: Vec<_> = (0..7).map(|at| at * 100).collect();
        assert_eq!(on_x(&row), 1);
        // The second within a second of the fourth.
        assert_eq!(on_x(&[0, 800, 1_100, 1_200]), 1);
        let long_row: Vec<_> = (0..40).map(|at| at * 100).collect();
        assert_eq!(on_x(&long_row), 1);
        assert_eq!(count(&[0, 1, 2].map(|at| (at, ""))), 0);
        assert_eq!(on_x(&[0, 1, 2, 1_500, 1_501, 1_502]), 2);
    }

    #[test]
    fn what_is_kept_does_not_grow_with_the_number_of_targets() {
        let targets = i64::try_from(MAX_TARGETS).expect("few");
        // As many a second as are looked at, for ten seconds.
        let steady = rage((0..10 * targets).map(|number| (number / targets * 1_001, number.to_string())));
        assert_eq!((steady.recent.len(), steady.before.len()), (MAX_TARGETS, MAX_TARGETS));
        // All at the same moment.
        let at_once = rage((0..5 * targets).map(|number| (0, number.to_string())));
        assert_eq!((at_once.recent.len(), at_once.before.len()), (MAX_TARGETS, 0));
        // The last one that is looked at, and the first that is not.
        let three = |target: i64| (0..3).map(move |_| (1, target.to_string()));
        let many = |count: i64| (0..count).map(|number| (0, number.to_string()));
        assert_eq!(rage(many(targets - 1).chain(three(targets))).count(), 1);
        assert_eq!(rage(many(targets).chain(three(targets))).count(), 0);
    }
}
