//! Filters of sessions and matches of actions. Everything in them is bounded: sizes, counts and depth.

use chrono::TimeDelta;

use super::request::{check_text, optional_timestamp, parse_duration, parse_user_email, parse_user_id};
use crate::{
    error::{Error, Result},
    model::{
        ActionMatch, AttributeMatch, Between, DataCondition, DataTest, Scalar, SequenceStep, SessionFilter, TargetMatch,
    },
    proto::{self, action_match::TargetMatch as ProtoTargetMatch, data_condition::Value},
};

/// Matches of a filter at most, those of its sequence apart.
const MAX_MATCHES: usize = 16;

/// Steps of a sequence at most.
const MAX_STEPS: usize = 10;

/// Conditions on the data of one match at most.
const MAX_CONDITIONS: usize = 8;

/// Attributes of a filter at most.
const MAX_ATTRIBUTES: usize = 16;

/// Values of an attribute at most.
const MAX_VALUES: usize = 64;

/// Bytes of a text that is searched for.
const MAX_TEXT_BYTES: usize = 1_024;

/// Bytes of a target that is searched for, and so of one that may be configured to be taken.
pub const MAX_TARGET_BYTES: usize = 8_192;

/// Bytes of a path.
const MAX_PATH_BYTES: usize = 512;

/// The highest `min_count`.
const MAX_MIN_COUNT: i64 = 1_000_000;

/// Takes the filter of a request. Left out, it is for all sessions.
pub fn parse_session_filter(filter: Option<proto::SessionFilter>) -> Result<SessionFilter> {
    let Some(filter) = filter else { return Ok(SessionFilter::default()) };
    let user_id = match filter.user_id {
        id if id.is_empty() => None,
        id => Some(parse_user_id("filter.user_id", id)?),
    };
    let email = parse_user_email("filter.email", &filter.email)?;
    let email_prefix = parse_user_email("filter.email_prefix", &filter.email_prefix)?;
    let started_after = optional_timestamp("filter.started_after", filter.started_after.as_ref())?;
    let started_before = optional_timestamp("filter.started_before", filter.started_before.as_ref())?;
    if let (Some(after), Some(before)) = (started_after, started_before)
        && before <= after
    {
        return Err(Error::invalid("filter.started_before", "must be later than `started_after`"));
    }
    let matches = filter.all_of.len() + filter.any_of.len() + filter.none_of.len();
    if matches > MAX_MATCHES {
        let description = format!("at most {MAX_MATCHES} in `all_of`, `any_of` and `none_of` together");
        return Err(Error::invalid("filter.all_of", description));
    }
    let parsed = SessionFilter {
        user_id,
        email: (!email.is_empty()).then_some(email),
        email_prefix: (!email_prefix.is_empty()).then_some(email_prefix),
        users: None,
        started_after,
        started_before,
        duration_ms: durations("duration", filter.min_duration, filter.max_duration)?,
        active_ms: durations("active_time", filter.min_active_time, filter.max_active_time)?,
        action_count: counts("action_count", filter.min_action_count, filter.max_action_count)?,
        error_count: counts("error_count", filter.min_error_count, filter.max_error_count)?,
        rage_click_count: counts("rage_click_count", filter.min_rage_click_count, None)?,
        is_dead_end: filter.is_dead_end,
        attributes: parse_attributes(filter.attributes)?,
        is_live: filter.is_live,
        is_pinned: filter.is_pinned,
        all_of: parse_matches("filter.all_of", filter.all_of)?,
        any_of: parse_matches("filter.any_of", filter.any_of)?,
        none_of: parse_matches("filter.none_of", filter.none_of)?,
        sequence: match filter.sequence {
            steps if steps.is_empty() => Vec::new(),
            steps => parse_sequence("filter.sequence", steps)?,
        },
    };
    check_reading(&parsed)?;
    Ok(parsed)
}

/// What reads the data of actions has to say which: all of them would take for ever.
fn check_reading(filter: &SessionFilter) -> Result<()> {
    let lists = [("all_of", &filter.all_of), ("any_of", &filter.any_of), ("none_of", &filter.none_of)];
    let listed = lists.into_iter().flat_map(|(field, matches)| matches.iter().map(move |wanted| (field, wanted)));
    let steps = filter.sequence.iter().map(|step| ("sequence", &step.action));
    for (field, wanted) in listed.chain(steps) {
        if !wanted.is_of_facets() && !wanted.names_facets() && !filter.has_time_range() {
            return Err(Error::invalid(
                format!("filter.{field}"),
                "conditions on data or time alone read every action: give a type or a target, \
                 or both filter.started_after and filter.started_before",
            ));
        }
    }
    Ok(())
}

fn parse_attributes(attributes: Vec<proto::AttributeMatch>) -> Result<Vec<AttributeMatch>> {
    if attributes.len() > MAX_ATTRIBUTES {
        return Err(Error::invalid("filter.attributes", format!("at most {MAX_ATTRIBUTES}")));
    }
    let parse = |(index, attribute): (usize, proto::AttributeMatch)| {
        let field = |name: &str| format!("filter.attributes[{index}].{name}");
        check_key(&field("key"), &attribute.key)?;
        if attribute.values.len() > MAX_VALUES {
            return Err(Error::invalid(field("values"), format!("at most {MAX_VALUES}")));
        }
        attribute.values.iter().try_for_each(|value| check_searched(&field("values"), value))?;
        Ok(AttributeMatch { key: attribute.key, values: attribute.values })
    };
    attributes.into_iter().enumerate().map(parse).collect()
}

/// An attribute's key.
pub(super) fn check_key(field: &str, key: &str) -> Result<()> {
    if key.is_empty() || key.len() > 64 || key.contains('\0') {
        return Err(Error::invalid(field, "must have from 1 to 64 bytes, without NUL"));
    }
    Ok(())
}

fn parse_matches(field: &str, matches: Vec<proto::ActionMatch>) -> Result<Vec<ActionMatch>> {
    let indexed = matches.into_iter().enumerate();
    indexed.map(|(index, wanted)| parse_match(&format!("{field}[{index}]"), wanted)).collect()
}

/// Takes the steps of a sequence. `field` is where they stand in the request.
pub(super) fn parse_sequence(field: &str, steps: Vec<proto::SequenceStep>) -> Result<Vec<SequenceStep>> {
    if !(2..=MAX_STEPS).contains(&steps.len()) {
        return Err(Error::invalid(field, format!("must have from 2 to {MAX_STEPS} steps")));
    }
    let parse = |(index, step): (usize, proto::SequenceStep)| {
        let field = format!("{field}[{index}]");
        let action = parse_single_match(&format!("{field}.match"), step.r#match)?;
        let within = step.within.map(|within| offset(&format!("{field}.within"), &within)).transpose()?;
        if within.is_some() && index == 0 {
            return Err(Error::invalid(format!("{field}.within"), "the first step has none before it"));
        }
        if within == Some(TimeDelta::zero()) {
            return Err(Error::invalid(format!("{field}.within"), "must be more than 0"));
        }
        Ok(SequenceStep { action, within })
    };
    steps.into_iter().enumerate().map(parse).collect()
}

/// Takes a match that is required, and is of single actions.
fn parse_single_match(field: &str, wanted: Option<proto::ActionMatch>) -> Result<ActionMatch> {
    let wanted = parse_action_match(field, wanted)?;
    wanted.ok_or_else(|| Error::invalid(field, "must be set"))
}

/// Takes a match of single actions, if there is one.
pub(super) fn parse_action_match(field: &str, wanted: Option<proto::ActionMatch>) -> Result<Option<ActionMatch>> {
    let Some(wanted) = wanted else { return Ok(None) };
    let parsed = parse_match(field, wanted)?;
    if parsed.min_count > 1 {
        return Err(Error::invalid(format!("{field}.min_count"), "must be left out here"));
    }
    Ok(Some(parsed))
}

fn parse_match(field: &str, wanted: proto::ActionMatch) -> Result<ActionMatch> {
    check_text(&format!("{field}.type"), &wanted.r#type, MAX_TEXT_BYTES)?;
    let target = match wanted.target_match {
        None => None,
        Some(ProtoTargetMatch::Target(target)) => {
            check_target(&format!("{field}.target"), &target)?;
            Some(TargetMatch::Exact(target))
        }
        Some(ProtoTargetMatch::TargetPrefix(prefix)) => {
            Some(TargetMatch::Prefix(check_part(&format!("{field}.target_prefix"), prefix)?))
        }
        Some(ProtoTargetMatch::TargetContains(part)) => {
            Some(TargetMatch::Contains(check_part(&format!("{field}.target_contains"), part)?))
        }
    };
    if !(0..=MAX_MIN_COUNT).contains(&wanted.min_count) {
        return Err(Error::invalid(format!("{field}.min_count"), format!("must be from 0 to {MAX_MIN_COUNT}")));
    }
    let from = wanted.from.map(|from| offset(&format!("{field}.from"), &from)).transpose()?;
    let until = wanted.until.map(|until| offset(&format!("{field}.until"), &until)).transpose()?;
    if until.is_some_and(|until| until <= from.unwrap_or_default()) {
        return Err(Error::invalid(format!("{field}.until"), "must be more than `from`"));
    }
    if wanted.data.len() > MAX_CONDITIONS {
        return Err(Error::invalid(format!("{field}.data"), format!("at most {MAX_CONDITIONS}")));
    }
    let conditions = wanted.data.into_iter().enumerate();
    let data = conditions.map(|(index, condition)| parse_condition(&format!("{field}.data[{index}]"), condition));
    Ok(ActionMatch {
        kind: (!wanted.r#type.is_empty()).then_some(wanted.r#type),
        target,
        min_count: wanted.min_count.max(1),
        from,
        until,
        data: data.collect::<Result<_>>()?,
    })
}

fn parse_condition(field: &str, condition: proto::DataCondition) -> Result<DataCondition> {
    use proto::DataOperator as Operator;

    let operator = condition.operator();
    if condition.path.len() > MAX_PATH_BYTES {
        return Err(Error::invalid(format!("{field}.path"), format!("at most {MAX_PATH_BYTES} bytes")));
    }
    let path = condition.path.parse().map_err(|error| Error::invalid(format!("{field}.path"), format!("{error}")))?;
    let scalar = match condition.value {
        None => None,
        Some(Value::Text(text)) => {
            check_searched(&format!("{field}.text"), &text)?;
            Some(Scalar::Text(text))
        }
        Some(Value::Number(number)) if number.is_nan() => {
            return Err(Error::invalid(format!("{field}.number"), "must be a number"));
        }
        Some(Value::Number(number)) => Some(Scalar::Number(number)),
        Some(Value::Boolean(boolean)) => Some(Scalar::Boolean(boolean)),
    };
    let compares_booleans = matches!(operator, Operator::Equal | Operator::NotEqual | Operator::Contains);
    if matches!(scalar, Some(Scalar::Boolean(_))) && !compares_booleans && operator != Operator::Exists {
        return Err(Error::invalid(format!("{field}.boolean"), "neither less nor greater than anything"));
    }
    let test = match (operator, scalar) {
        (Operator::Unspecified, _) => return Err(Error::invalid(format!("{field}.operator"), "must be set")),
        (Operator::Exists, None) => DataTest::Exists,
        (Operator::Exists, Some(_)) => return Err(Error::invalid(format!("{field}.value"), "EXISTS takes none")),
        (_, None) => return Err(Error::invalid(format!("{field}.value"), "must be set")),
        (Operator::Equal, Some(scalar)) => DataTest::Equal(scalar),
        (Operator::NotEqual, Some(scalar)) => DataTest::NotEqual(scalar),
        (Operator::Less, Some(scalar)) => DataTest::Less(scalar),
        (Operator::LessOrEqual, Some(scalar)) => DataTest::LessOrEqual(scalar),
        (Operator::Greater, Some(scalar)) => DataTest::Greater(scalar),
        (Operator::GreaterOrEqual, Some(scalar)) => DataTest::GreaterOrEqual(scalar),
        (Operator::Contains, Some(scalar)) => DataTest::Contains(scalar),
    };
    Ok(DataCondition { path, test })
}

fn durations(name: &str, min: Option<prost_types::Duration>, max: Option<prost_types::Duration>) -> Result<Between> {
    // The least in whole milliseconds that is not less, the most that is not more.
    let millis = |field: &str, duration: prost_types::Duration, round_up: bool| {
        let duration = parse_duration(field, &duration)?;
        let rounding = u128::from(round_up) * 999_999;
        Ok::<_, Error>(i64::try_from((duration.as_nanos() + rounding) / 1_000_000).unwrap_or(i64::MAX))
    };
    let min = min.map(|min| millis(&format!("filter.min_{name}"), min, true)).transpose()?;
    let max = max.map(|max| millis(&format!("filter.max_{name}"), max, false)).transpose()?;
    between(name, min, max)
}

fn counts(name: &str, min: Option<i64>, max: Option<i64>) -> Result<Between> {
    for (field, count) in [("min", min), ("max", max)] {
        if count.is_some_and(|count| count < 0) {
            return Err(Error::invalid(format!("filter.{field}_{name}"), "must not be negative"));
        }
    }
    between(name, min, max)
}

fn between(name: &str, min: Option<i64>, max: Option<i64>) -> Result<Between> {
    if let (Some(min), Some(max)) = (min, max)
        && max < min
    {
        return Err(Error::invalid(format!("filter.max_{name}"), "must not be less than the minimum"));
    }
    // At least none is no limit.
    Ok(Between { min: min.filter(|min| *min > 0), max })
}

fn offset(field: &str, duration: &prost_types::Duration) -> Result<TimeDelta> {
    let duration = parse_duration(field, duration)?;
    TimeDelta::from_std(duration).map_err(|_| Error::invalid(field, "too long"))
}

fn check_part(field: &str, text: String) -> Result<String> {
    if text.is_empty() {
        return Err(Error::invalid(field, "must not be empty"));
    }
    check_target(field, &text)?;
    Ok(text)
}

/// Text that is searched for.
pub(super) fn check_searched(field: &str, text: &str) -> Result<()> {
    check_searched_up_to(field, text, MAX_TEXT_BYTES)
}

/// A target, or a part of one, that is searched for.
pub(super) fn check_target(field: &str, text: &str) -> Result<()> {
    check_searched_up_to(field, text, MAX_TARGET_BYTES)
}

/// PostgreSQL takes no text with NUL, so none is stored with it.
fn check_searched_up_to(field: &str, text: &str, limit: usize) -> Result<()> {
    if text.len() > limit {
        return Err(Error::invalid(field, format!("has {} bytes, the limit is {limit}", text.len())));
    }
    if text.contains('\0') {
        return Err(Error::invalid(field, "must not contain NUL"));
    }
    Ok(())
}
