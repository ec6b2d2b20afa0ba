//! Filters at random, from the words of the world, so that many of them match something.

use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use reel::proto::{
    ActionMatch, AttributeMatch, DataCondition, DataOperator, SequenceStep, SessionFilter, action_match::TargetMatch,
    data_condition::Value,
};

use super::world::{DAY_MS, KEYS, KINDS, TARGETS, USERS, VALUES, millis};
use crate::harness::{NOON_MS, timestamp};

/// A filter with a few parts.
pub fn filter(rng: &mut StdRng) -> SessionFilter {
    let mut filter = SessionFilter::default();
    for _ in 0..rng.random_range(0..3) {
        part(&mut filter, rng);
    }
    // What reads actions must say which.
    let is_broad = |wanted: &ActionMatch| wanted.r#type.is_empty() && wanted.target_match.is_none();
    let steps: Vec<_> = filter.sequence.iter().filter_map(|step| step.r#match.clone()).collect();
    let matches = filter.all_of.iter().chain(&filter.any_of).chain(&filter.none_of).chain(&steps);
    if matches.filter(|wanted| is_broad(wanted)).count() > 0 {
        time_range(&mut filter, rng);
    }
    filter
}

/// A time range, open or not, on the edge of a day or not.
pub fn time_range(filter: &mut SessionFilter, rng: &mut StdRng) {
    let day = (NOON_MS / DAY_MS + rng.random_range(0..4)) * DAY_MS;
    let (from, to) = match rng.random_range(0..4) {
        0 => (day, day + DAY_MS),
        1 => (day, day + 2 * DAY_MS),
        2 => (day - DAY_MS / 2, day + DAY_MS + DAY_MS / 3),
        _ => (day + DAY_MS / 4, day + DAY_MS / 2),
    };
    filter.started_after = Some(timestamp(from));
    filter.started_before = Some(timestamp(to));
    if rng.random_bool(0.3) {
        // A moment after the millisecond that sessions have.
        filter.started_after.as_mut().unwrap().nanos += 1_000;
    }
}

fn part(filter: &mut SessionFilter, rng: &mut StdRng) {
    let (user, email) = USERS.choose(rng).unwrap();
    match rng.random_range(0..20) {
        0 => (*user).clone_into(&mut filter.user_id),
        1 => filter.email = email.to_uppercase(),
        2 => filter.email_prefix = email.chars().take(rng.random_range(1..5)).collect(),
        3 | 4 => time_range(filter, rng),
        5 => {
            filter.started_after = Some(timestamp(NOON_MS + rng.random_range(0..3) * DAY_MS));
            filter.started_before = None;
        }
        6 => filter.min_duration = Some(millis(rng.random_range(0..200_000))),
        7 => filter.max_duration = Some(millis(rng.random_range(200_000..400_000))),
        8 => filter.min_active_time = Some(millis(rng.random_range(0..20_000))),
        9 => filter.max_active_time = Some(millis(rng.random_range(20_000..40_000))),
        10 => filter.min_action_count = Some(rng.random_range(0..20)),
        11 => filter.max_action_count = Some(rng.random_range(20..30)),
        12 => filter.min_error_count = Some(rng.random_range(0..3)),
        13 => filter.max_error_count = Some(rng.random_range(3..5)),
        14 => {
            let values = VALUES.sample(rng, 2);
            let count = rng.random_range(0..2);
            let values = values.take(count).map(|value| (*value).to_owned()).collect();
            let key = (*KEYS.choose(rng).unwrap()).to_owned();
            filter.attributes.push(AttributeMatch { key, values });
        }
        15 => filter.is_live = Some(rng.random_bool(0.5)),
        16 => filter.is_pinned = Some(rng.random_bool(0.5)),
        17 => {
            if rng.random_bool(0.5) {
                filter.min_rage_click_count = Some(rng.random_range(0..2));
            } else {
                filter.is_dead_end = Some(rng.random_bool(0.5));
            }
        }
        18 => filter.sequence = steps(rng),
        _ => {
            let matches = match rng.random_range(0..4) {
                0 | 1 => &mut filter.all_of,
                2 => &mut filter.any_of,
                _ => &mut filter.none_of,
            };
            for _ in 0..rng.random_range(1..3) {
                let mut wanted = action_match(rng);
                wanted.min_count = rng.random_range(0..4);
                matches.push(wanted);
            }
        }
    }
}

/// Two or three steps.
pub fn steps(rng: &mut StdRng) -> Vec<SequenceStep> {
    let step = |index: usize, rng: &mut StdRng| SequenceStep {
        r#match: Some(action_match(rng)),
        within: (index > 0 && rng.random_bool(0.4)).then(|| millis(rng.random_range(1..60_000))),
    };
    (0..rng.random_range(2..4)).map(|index| step(index, rng)).collect()
}

/// Actions of a type, of a target, or with something in their data.
pub fn action_match(rng: &mut StdRng) -> ActionMatch {
    let mut wanted = ActionMatch::default();
    if rng.random_bool(0.7) {
        (*KINDS.choose(rng).unwrap()).clone_into(&mut wanted.r#type);
    }
    if rng.random_bool(0.5) {
        let target = *TARGETS.choose(rng).unwrap();
        let from = rng.random_range(0..3);
        let part: String = target.chars().skip(from).take(4).collect();
        let prefix: String = target.chars().take(4).collect();
        wanted.target_match = match rng.random_range(0..3) {
            0 if !part.is_empty() => Some(TargetMatch::TargetContains(part)),
            1 if !prefix.is_empty() => Some(TargetMatch::TargetPrefix(prefix)),
            _ => Some(TargetMatch::Target(target.to_owned())),
        };
    }
    if rng.random_bool(0.15) {
        wanted.from = Some(millis(rng.random_range(0..50_000)));
    }
    if rng.random_bool(0.15) {
        wanted.until = Some(millis(rng.random_range(50_000..100_000)));
    }
    if rng.random_bool(0.2) {
        wanted.data = (0..rng.random_range(1..3)).map(|_| condition(rng)).collect();
    }
    wanted
}

fn condition(rng: &mut StdRng) -> DataCondition {
    let path = ["$.n", "$.s", "$.deep.list", "$.deep.list[0]", "$[0]", "$[2].n", "$.none", "$.is", "$"];
    let operators = [
        DataOperator::Equal,
        DataOperator::NotEqual,
        DataOperator::Less,
        DataOperator::LessOrEqual,
        DataOperator::Greater,
        DataOperator::GreaterOrEqual,
        DataOperator::Contains,
        DataOperator::Exists,
    ];
    let operator = *operators.choose(rng).unwrap();
    let takes_boolean = matches!(operator, DataOperator::Equal | DataOperator::NotEqual | DataOperator::Contains);
    let value = match rng.random_range(0..3) {
        0 => Value::Text((*["abc", "b", "a_b", "%", "1"].choose(rng).unwrap()).to_owned()),
        1 if takes_boolean => Value::Boolean(true),
        _ => Value::Number([0.0, 1.0, 1.5, -1.0][rng.random_range(0..4)]),
    };
    let value = (operator != DataOperator::Exists).then_some(value);
    DataCondition { path: (*path.choose(rng).unwrap()).to_owned(), operator: operator.into(), value }
}
