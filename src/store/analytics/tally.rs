//! Groups and how many are in them.

use std::collections::HashMap;

use super::too_much;
use crate::{
    error::Result,
    model::{ActionCounts, GroupKey},
};

/// Groups that are kept at most.
const MAX_GROUPS: usize = 1_000_000;

/// Groups of actions.
#[derive(Default)]
pub(super) struct Tally(HashMap<GroupKey, i64>);

impl Tally {
    /// Adds so many actions to a group, or takes them away.
    pub(super) fn add(&mut self, key: GroupKey, count: i64) -> Result<()> {
        *self.0.entry(key).or_default() += count;
        if self.0.len() > MAX_GROUPS { Err(too_much("group_by", MAX_GROUPS, "groups")) } else { Ok(()) }
    }

    /// The groups with the most actions.
    pub(super) fn finish(self, limit: usize) -> ActionCounts {
        let mut groups: Vec<_> = self.0.into_iter().filter(|(_, count)| *count > 0).collect();
        let total = groups.iter().map(|(_, count)| count).sum();
        groups
            .sort_unstable_by(|(one_key, one), (other_key, other)| other.cmp(one).then_with(|| one_key.cmp(other_key)));
        let others = groups.split_off(limit.min(groups.len()));
        ActionCounts {
            groups,
            other_group_count: i64::try_from(others.len()).unwrap_or(i64::MAX),
            other_action_count: others.iter().map(|(_, count)| count).sum(),
            total,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_come_by_count_then_by_key_and_the_rest_is_counted() {
        let mut tally = Tally::default();
        for (key, count) in [(Some("b"), 2), (None, 2), (Some("a"), 5), (Some("c"), 1), (Some("gone"), 4)] {
            tally.add(vec![key.map(str::to_owned)], count).expect("few groups");
        }
        tally.add(vec![Some("gone".to_owned())], -4).expect("few groups");
        let counts = tally.finish(2);
        assert_eq!(counts.groups, [(vec![Some("a".to_owned())], 5), (vec![None], 2)]);
        assert_eq!((counts.other_group_count, counts.other_action_count, counts.total), (2, 3, 10));
    }
}
