//! What a filter means, said once more as plainly as possible.

use reel::proto::{
    ActionMatch, DataCondition, DataOperator, SequenceStep, SessionFilter, action_match::TargetMatch,
    data_condition::Value as Wanted,
};
use serde_json::Value;

use super::world::{Act, LONE, Recorded, duration_ms, micros};

/// Where a session matches first, if it says. None where it does not match.
#[allow(clippy::option_option)]
pub fn matches(filter: &SessionFilter, recorded: &Recorded) -> Option<Option<i64>> {
    if !is_of_session(filter, recorded) || !is_of_summary(filter, recorded) {
        return None;
    }
    let start = recorded.start_ms;
    let count = |wanted: &ActionMatch| {
        i64::try_from(recorded.acts.iter().filter(|act| is_match(wanted, start, act)).count()).unwrap()
    };
    let happened = |wanted: &ActionMatch| count(wanted) >= wanted.min_count.max(1);
    if !filter.all_of.iter().all(happened) || filter.none_of.iter().any(happened) {
        return None;
    }
    if !filter.any_of.is_empty() && !filter.any_of.iter().any(happened) {
        return None;
    }
    if !filter.sequence.is_empty() {
        return Some(Some(sequence(&filter.sequence, recorded)?));
    }
    let wanted: Vec<_> = filter.all_of.iter().chain(&filter.any_of).collect();
    let first = recorded.acts.iter().find(|act| wanted.iter().any(|wanted| is_match(wanted, start, act)));
    Some(first.map(|act| act.micros))
}

fn is_of_session(filter: &SessionFilter, recorded: &Recorded) -> bool {
    let start_micros = recorded.start_ms * 1_000;
    (filter.user_id.is_empty() || recorded.user == Some(filter.user_id.as_str()))
        && (filter.email.is_empty() || caseless(recorded.email()) == caseless(&filter.email))
        && (filter.email_prefix.is_empty() || caseless(recorded.email()).starts_with(&caseless(&filter.email_prefix)))
        && filter.started_after.as_ref().is_none_or(|after| start_micros >= micros(after))
        && filter.started_before.as_ref().is_none_or(|before| start_micros < micros(before))
        && filter.is_live.is_none_or(|is_live| is_live != recorded.is_ended)
        && filter.is_pinned.is_none_or(|is_pinned| is_pinned == recorded.is_pinned)
        && filter.attributes.iter().all(|attribute| {
            let value = recorded.attributes.get(&attribute.key);
            value.is_some_and(|value| attribute.values.is_empty() || attribute.values.contains(value))
        })
}

/// A sigma is a sigma, wherever in a word it is.
fn caseless(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).collect::<String>().replace('ς', "σ")
}

fn is_of_summary(filter: &SessionFilter, recorded: &Recorded) -> bool {
    let count = i64::try_from(recorded.acts.len()).unwrap();
    let between = |number: i64, min: Option<i64>, max: Option<i64>| {
        min.is_none_or(|min| number >= min) && max.is_none_or(|max| number <= max)
    };
    let ms = |duration: &Option<prost_types::Duration>| duration.as_ref().map(duration_ms);
    between(recorded.duration_ms(), ms(&filter.min_duration), ms(&filter.max_duration))
        && between(recorded.active_ms(), ms(&filter.min_active_time), ms(&filter.max_active_time))
        && between(count, filter.min_action_count, filter.max_action_count)
        && between(recorded.errors(), filter.min_error_count, filter.max_error_count)
        && between(recorded.rage_clicks(), filter.min_rage_click_count, None)
        && filter.is_dead_end.is_none_or(|is_dead_end| is_dead_end == recorded.is_dead_end())
}

/// Whether an action is one of these.
pub fn is_match(wanted: &ActionMatch, start_ms: i64, act: &Act) -> bool {
    let offset = act.micros - start_ms * 1_000;
    let limit = |duration: &prost_types::Duration| duration_ms(duration) * 1_000;
    (wanted.r#type.is_empty() || wanted.r#type == act.kind)
        && match &wanted.target_match {
            None => true,
            Some(TargetMatch::Target(target)) => act.target == target,
            Some(TargetMatch::TargetPrefix(prefix)) => act.target.starts_with(prefix.as_str()),
            Some(TargetMatch::TargetContains(part)) => act.target.contains(part.as_str()),
        }
        && wanted.from.as_ref().is_none_or(|from| offset >= limit(from))
        && wanted.until.as_ref().is_none_or(|until| offset < limit(until))
        && wanted.data.iter().all(|condition| holds(condition, &act.data))
}

fn holds(condition: &DataCondition, data: &str) -> bool {
    // A character that nobody asks for, and that is as large; numbers that are as good as infinite.
    let data = data.replace(LONE, "\u{f8ff}").replace("1e309", "1e300").replace("-2e400", "-1e300");
    let data = data.replace("1e999", "1e300").replace("1E-999", "0");
    let Ok(data) = serde_json::from_str::<Value>(&data) else { return false };
    // `$.a[0].b` is `/a/0/b`.
    let pointer = condition.path[1..].replace('[', "/").replace(']', "").replace('.', "/");
    let Some(value) = data.pointer(&pointer) else { return false };
    let equal = |value: &Value| match condition.value.as_ref() {
        Some(Wanted::Text(text)) => value.as_str() == Some(text),
        Some(Wanted::Number(number)) => value.is_number() && value.as_f64() == Some(*number),
        Some(Wanted::Boolean(boolean)) => value.as_bool() == Some(*boolean),
        None => false,
    };
    let less = |or_equal: bool, reverse: bool| match condition.value.as_ref() {
        Some(Wanted::Text(text)) => value.as_str().is_some_and(|value| {
            let (one, other) = if reverse { (text.as_str(), value) } else { (value, text.as_str()) };
            one < other || (or_equal && one == other)
        }),
        Some(Wanted::Number(number)) => value.as_f64().is_some_and(|value| {
            let (one, other) = if reverse { (*number, value) } else { (value, *number) };
            if or_equal { one <= other } else { one < other }
        }),
        _ => false,
    };
    match condition.operator() {
        DataOperator::Unspecified => false,
        DataOperator::Exists => true,
        DataOperator::Equal => equal(value),
        DataOperator::NotEqual => !equal(value),
        DataOperator::Less => less(false, false),
        DataOperator::LessOrEqual => less(true, false),
        DataOperator::Greater => less(false, true),
        DataOperator::GreaterOrEqual => less(true, true),
        DataOperator::Contains => match (value, condition.value.as_ref()) {
            (Value::String(value), Some(Wanted::Text(part))) => value.contains(part.as_str()),
            (Value::Array(elements), _) => elements.iter().any(equal),
            _ => false,
        },
    }
}

/// The time of the first step of the occurrence that is complete first.
fn sequence(steps: &[SequenceStep], recorded: &Recorded) -> Option<i64> {
    (0..recorded.acts.len()).find_map(|index| reaches(steps, steps.len() - 1, recorded, index))
}

/// If the action at this index is this step of an occurrence, when the latest such occurrence began.
pub fn reaches(steps: &[SequenceStep], step: usize, recorded: &Recorded, index: usize) -> Option<i64> {
    let act = &recorded.acts[index];
    if !is_match(steps[step].r#match.as_ref().unwrap(), recorded.start_ms, act) {
        return None;
    }
    if step == 0 {
        return Some(act.micros);
    }
    let (before, began) =
        (0..index).rev().find_map(|before| Some((before, reaches(steps, step - 1, recorded, before)?)))?;
    let pause = act.micros - recorded.acts[before].micros;
    let is_in_time = steps[step].within.as_ref().is_none_or(|within| pause <= duration_ms(within) * 1_000);
    is_in_time.then_some(began)
}
