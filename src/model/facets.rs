//! The facets of a session: how often each type occurs, and each type with each target, as far as they are few enough to be kept.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

/// How much is known of the facets of a session, or has to be to answer a question. What is known of a session with few
/// facets is all of them; of one with too many, only how often each type occurs; and of one with too many types, nothing.
/// A question that asks for more than that is answered from the session's actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum FacetDetail {
    /// Nothing.
    #[default]
    Nothing,
    /// How often each type occurs.
    Types,
    /// How often each type occurs with each target.
    Targets,
}

impl FacetDetail {
    /// As it is stored.
    #[must_use]
    pub fn number(self) -> i16 {
        match self {
            Self::Nothing => 0,
            Self::Types => 1,
            Self::Targets => 2,
        }
    }

    /// From as it is stored.
    #[must_use]
    pub fn from_number(number: i16) -> Self {
        match number {
            2.. => Self::Targets,
            1 => Self::Types,
            ..=0 => Self::Nothing,
        }
    }
}

/// How often a facet occurs in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FacetCount {
    /// Number of actions.
    pub count: i64,
    /// The earliest timestamp.
    pub first_at: DateTime<Utc>,
}

impl FacetCount {
    fn first(first_at: DateTime<Utc>) -> Self {
        Self { count: 1, first_at }
    }
}

/// The facets of a session, or what is kept of them: never more than a limit.
#[derive(Clone, Debug, Default)]
pub struct Facets {
    detail: FacetDetail,
    /// As many are kept at most.
    max: usize,
    /// How many targets there are, counted anew for each type.
    target_count: usize,
    types: HashMap<String, OfType>,
}

/// What a session has of a type.
#[derive(Clone, Debug)]
struct OfType {
    all: FacetCount,
    /// Empty where targets are not kept.
    targets: HashMap<String, FacetCount>,
}

impl Facets {
    /// As many are kept of a session unless the configuration says otherwise.
    pub const DEFAULT_MAX: usize = 10_000;

    /// Keeps so much of them, and no more than `max`: of what would be more, less detail is kept from then on.
    #[must_use]
    pub fn new(detail: FacetDetail, max: usize) -> Self {
        Self { detail, max, ..Self::default() }
    }

    /// What is known of them.
    #[must_use]
    pub fn detail(&self) -> FacetDetail {
        self.detail
    }

    /// Takes the next action in the order of playback.
    pub fn push(&mut self, timestamp: DateTime<Utc>, kind: &str, target: &str) {
        if self.detail == FacetDetail::Nothing {
            return;
        }
        let is_full = self.types.len() >= self.max;
        let of_type = match self.types.get_mut(kind) {
            Some(of_type) => {
                of_type.all.count += 1;
                of_type
            }
            None if is_full => return self.keep_only(FacetDetail::Nothing),
            None => {
                let new = OfType { all: FacetCount::first(timestamp), targets: HashMap::new() };
                self.types.entry(kind.to_owned()).or_insert(new)
            }
        };
        if self.detail < FacetDetail::Targets {
            return;
        }
        match of_type.targets.get_mut(target) {
            Some(facet) => facet.count += 1,
            None if self.target_count >= self.max => self.keep_only(FacetDetail::Types),
            None => {
                of_type.targets.insert(target.to_owned(), FacetCount::first(timestamp));
                self.target_count += 1;
            }
        }
    }

    fn keep_only(&mut self, detail: FacetDetail) {
        self.detail = detail;
        match detail {
            FacetDetail::Nothing => self.types = HashMap::new(),
            _ => self.types.values_mut().for_each(|of_type| of_type.targets = HashMap::new()),
        }
    }

    /// Each with its type, and its target where targets are kept.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&str>, FacetCount)> {
        let has_targets = self.detail == FacetDetail::Targets;
        self.types.iter().flat_map(move |(kind, of_type)| {
            let all = (!has_targets).then_some((kind.as_str(), None, of_type.all));
            let targets = of_type.targets.iter();
            all.into_iter().chain(targets.map(move |(target, facet)| (kind.as_str(), Some(target.as_str()), *facet)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type, target, number of actions and the earliest timestamp in milliseconds.
    type Facet = (String, Option<String>, i64, i64);

    fn facets(max: usize, actions: &[(&str, &str)]) -> (FacetDetail, Vec<Facet>) {
        let mut facets = Facets::new(FacetDetail::Targets, max);
        for (at, (kind, target)) in (0..).zip(actions) {
            facets.push(DateTime::from_timestamp_millis(at).expect("in range"), kind, target);
        }
        let mut all: Vec<_> = facets
            .iter()
            .map(|(kind, target, facet)| {
                (kind.to_owned(), target.map(str::to_owned), facet.count, facet.first_at.timestamp_millis())
            })
            .collect();
        all.sort();
        (facets.detail(), all)
    }

    fn is(kind: &str, target: Option<&str>, count: i64, first: i64) -> Facet {
        (kind.to_owned(), target.map(str::to_owned), count, first)
    }

    #[test]
    fn of_too_many_targets_types_are_kept_and_of_too_many_types_nothing() {
        let actions = [("a", "x"), ("b", "x"), ("a", "y"), ("a", "x"), ("b", "z"), ("c", "x"), ("d", "")];
        let (detail, all) = facets(3, &actions[..4]);
        assert_eq!(detail, FacetDetail::Targets);
        assert_eq!(all, [is("a", Some("x"), 2, 0), is("a", Some("y"), 1, 2), is("b", Some("x"), 1, 1)]);
        let (detail, all) = facets(3, &actions[..6]);
        assert_eq!(detail, FacetDetail::Types);
        assert_eq!(all, [is("a", None, 3, 0), is("b", None, 2, 1), is("c", None, 1, 5)]);
        assert_eq!(facets(3, &actions), (FacetDetail::Nothing, Vec::new()));
        assert_eq!(facets(5, &actions[..6]).0, FacetDetail::Targets);
        assert_eq!(facets(0, &actions[..1]), (FacetDetail::Nothing, Vec::new()));
        // A type more and a target more at once.
        assert_eq!(facets(1, &[("a", ""), ("b", "")]), (FacetDetail::Nothing, Vec::new()));
    }

    #[test]
    fn a_detail_is_stored_as_a_number() {
        for detail in [FacetDetail::Nothing, FacetDetail::Types, FacetDetail::Targets] {
            assert_eq!(FacetDetail::from_number(detail.number()), detail);
        }
    }
}
