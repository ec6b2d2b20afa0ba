//! Whether what a filter asks of a session's actions is so: looks at the actions one after the other.

use chrono::{DateTime, Utc};

use super::{ActionMatch, ActionView, SequenceStep, SessionFilter};

/// Looks at the actions of one session.
pub struct Evaluation<'a> {
    filter: &'a SessionFilter,
    started_at: DateTime<Utc>,
    /// How many actions match each of `all_of`, then of `any_of`, then of `none_of`.
    counts: Vec<i64>,
    /// The earliest action that matches any of `all_of` and `any_of`.
    first_at: Option<DateTime<Utc>>,
    sequence: SequenceSearch<'a>,
}

/// What became of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it matches.
    pub matches: bool,
    /// Where it does first.
    pub first_at: Option<DateTime<Utc>>,
}

impl<'a> Evaluation<'a> {
    /// Begins with a session that started at this time.
    #[must_use]
    pub fn new(filter: &'a SessionFilter, started_at: DateTime<Utc>) -> Self {
        let counts = vec![0; filter.all_of.len() + filter.any_of.len() + filter.none_of.len()];
        Self { filter, started_at, counts, first_at: None, sequence: SequenceSearch::new(&filter.sequence, started_at) }
    }

    /// Takes the next action in the order of playback. Actions that no part of the filter matches may be left out.
    pub fn push(&mut self, action: &ActionView<'_>) {
        let filter = self.filter;
        let listed = filter.all_of.iter().chain(&filter.any_of).chain(&filter.none_of);
        let wanted = filter.all_of.len() + filter.any_of.len();
        for (index, (wanted_match, count)) in listed.zip(&mut self.counts).enumerate() {
            if wanted_match.matches(self.started_at, action) {
                *count += 1;
                if index < wanted {
                    self.first_at.get_or_insert(action.timestamp);
                }
            }
        }
        self.sequence.push(action);
    }

    /// What all of them say.
    #[must_use]
    pub fn finish(self) -> Verdict {
        let filter = self.filter;
        let (all, rest) = self.counts.split_at(filter.all_of.len());
        let (any, none) = rest.split_at(filter.any_of.len());
        let is_so = |(wanted, count): (&ActionMatch, &i64)| *count >= wanted.min_count;
        let matches = filter.all_of.iter().zip(all).all(is_so)
            && (any.is_empty() || filter.any_of.iter().zip(any).any(is_so))
            && !filter.none_of.iter().zip(none).any(is_so)
            && (filter.sequence.is_empty() || self.sequence.began_at.is_some());
        let first_at = if filter.sequence.is_empty() { self.first_at } else { self.sequence.began_at };
        Verdict { matches, first_at: first_at.filter(|_| matches) }
    }
}

/// Looks for the first complete occurrence of a sequence.
struct SequenceSearch<'a> {
    steps: &'a [SequenceStep],
    started_at: DateTime<Utc>,
    /// For each step, where the latest occurrence that ends with it began and ended: of all that end with it, the one that ends
    /// latest leaves the most room for the step after.
    reached: Vec<Option<Reached>>,
    /// Where the occurrence that was complete first began.
    began_at: Option<DateTime<Utc>>,
}

#[derive(Clone, Copy)]
struct Reached {
    began_at: DateTime<Utc>,
    ended_at: DateTime<Utc>,
}

impl<'a> SequenceSearch<'a> {
    fn new(steps: &'a [SequenceStep], started_at: DateTime<Utc>) -> Self {
        Self { steps, started_at, reached: vec![None; steps.len()], began_at: None }
    }

    fn push(&mut self, action: &ActionView<'_>) {
        if self.began_at.is_some() {
            return;
        }
        let ended_at = action.timestamp;
        // From the last step on: an action is one step of an occurrence only.
        for (index, step) in self.steps.iter().enumerate().rev() {
            let began_at = match index.checked_sub(1) {
                None => Some(ended_at),
                Some(before) => self.reached[before]
                    .filter(|before| step.within.is_none_or(|within| ended_at - before.ended_at <= within))
                    .map(|before| before.began_at),
            };
            let Some(began_at) = began_at else { continue };
            if step.action.matches(self.started_at, action) {
                self.reached[index] = Some(Reached { began_at, ended_at });
                if index + 1 == self.steps.len() {
                    self.began_at = Some(began_at);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn of(kind: &str) -> ActionMatch {
        ActionMatch { kind: Some(kind.to_owned()), ..ActionMatch::default() }
    }

    fn evaluate(filter: &SessionFilter, actions: &[(i64, &str)]) -> Verdict {
        let mut evaluation = Evaluation::new(filter, DateTime::UNIX_EPOCH);
        for (seconds, kind) in actions {
            let timestamp = DateTime::UNIX_EPOCH + TimeDelta::seconds(*seconds);
            evaluation.push(&ActionView { timestamp, kind, target: "", data: "" });
        }
        evaluation.finish()
    }

    fn at(seconds: i64) -> Verdict {
        Verdict { matches: true, first_at: Some(DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)) }
    }

    const NO: Verdict = Verdict { matches: false, first_at: None };

    #[test]
    fn all_any_and_none_are_combined() {
        let filter = SessionFilter {
            all_of: vec![ActionMatch { min_count: 2, ..of("a") }],
            any_of: vec![of("b"), of("c")],
            none_of: vec![of("d")],
            ..SessionFilter::default()
        };
        assert_eq!(evaluate(&filter, &[(1, "c"), (2, "a"), (3, "a")]), at(1));
        for no in [&[(1, "a"), (2, "b")][..], &[(1, "a"), (2, "a")], &[(1, "a"), (2, "a"), (3, "b"), (4, "d")], &[]] {
            assert_eq!(evaluate(&filter, no), NO, "{no:?}");
        }
    }

    #[test]
    fn a_sequence_is_found_even_where_its_first_beginning_is_too_early() {
        let step =
            |kind: &str, within: Option<i64>| SequenceStep { action: of(kind), within: within.map(TimeDelta::seconds) };
        let filter = SessionFilter { sequence: vec![step("a", None), step("b", Some(10))], ..SessionFilter::default() };
        assert_eq!(evaluate(&filter, &[(0, "a"), (5, "a"), (12, "x"), (15, "b")]), at(5));
        assert_eq!(evaluate(&filter, &[(0, "b"), (1, "a"), (12, "b")]), NO);
        let same = SessionFilter { sequence: vec![step("a", None), step("a", None)], ..SessionFilter::default() };
        assert_eq!(evaluate(&same, &[(3, "a")]), NO);
        assert_eq!(evaluate(&same, &[(3, "a"), (3, "a")]), at(3));
    }
}
