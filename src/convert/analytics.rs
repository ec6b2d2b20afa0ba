//! Questions about many sessions at once, and their answers.

use std::collections::BTreeMap;

use chrono::{NaiveDate, NaiveTime, TimeDelta};
use prost_types::Timestamp;

use super::{
    filter::{check_key, check_searched, check_target, parse_action_match, parse_sequence, parse_session_filter},
    reply::{millis, timestamp},
    request::{MAX_LISTED, parse_duration},
};
use crate::{
    error::{Error, Result},
    model::{
        ActionCounting, ActionCounts, ActionMatch, Dimension, ErrorFrequency, FunnelCounting, FunnelStep, GroupKey,
        SessionFilter, Transition, TransitionCounting, Transitions,
    },
    proto::{self, ActionDimension},
};

/// Groups of an answer, where no number is asked for.
const DEFAULT_LIMIT: usize = 20;

/// Groups of an answer at most.
const MAX_LIMIT: usize = 1_000;

/// Dimensions of a group at most.
const MAX_DIMENSIONS: usize = 4;

/// Buckets of a histogram at most.
const MAX_BUCKETS: usize = 50;

/// Where the buckets of a histogram end unless others are asked for, in milliseconds.
const DEFAULT_BUCKETS: [i64; 9] = [1_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000, 3_600_000];

/// Exits of a step at most.
const MAX_EXITS: usize = 100;

/// The shortest and the longest interval of error frequencies, in seconds.
const INTERVAL_SECONDS: std::ops::RangeInclusive<u64> = 60..=366 * 86_400;

/// Takes a request for counts of actions.
pub fn parse_count_actions(request: proto::CountActionsRequest) -> Result<ActionCounting> {
    let filter = parse_session_filter(request.filter)?;
    let action = parse_action_match("match", request.r#match)?.unwrap_or_default();
    if request.group_by.len() > MAX_DIMENSIONS {
        return Err(Error::invalid("group_by", format!("at most {MAX_DIMENSIONS}")));
    }
    let mut group_by = Vec::new();
    for (index, dimension) in request.group_by.iter().enumerate() {
        let dimension = parse_dimension(&format!("group_by[{index}]"), *dimension, &request.attribute_key)?;
        if group_by.contains(&dimension) {
            return Err(Error::invalid(format!("group_by[{index}]"), "is there twice"));
        }
        group_by.push(dimension);
    }
    let by_attribute = group_by.iter().any(|dimension| matches!(dimension, Dimension::Attribute(_)));
    if !by_attribute && !request.attribute_key.is_empty() {
        return Err(Error::invalid("attribute_key", "must be empty unless `group_by` has ATTRIBUTE"));
    }
    group_by.sort();
    Ok(ActionCounting { filter, action, group_by, limit: parse_limit(request.limit)? })
}

fn parse_dimension(field: &str, dimension: i32, attribute_key: &str) -> Result<Dimension> {
    match ActionDimension::try_from(dimension) {
        Ok(ActionDimension::User) => Ok(Dimension::User),
        Ok(ActionDimension::Type) => Ok(Dimension::Type),
        Ok(ActionDimension::Target) => Ok(Dimension::Target),
        Ok(ActionDimension::Source) => Ok(Dimension::Source),
        Ok(ActionDimension::Attribute) => {
            check_key("attribute_key", attribute_key)?;
            Ok(Dimension::Attribute(attribute_key.to_owned()))
        }
        Ok(ActionDimension::SessionDay) => Ok(Dimension::SessionDay),
        Ok(ActionDimension::Day) => Ok(Dimension::Day),
        Ok(ActionDimension::Hour) => Ok(Dimension::Hour),
        Ok(ActionDimension::Unspecified) | Err(_) => Err(Error::invalid(field, "is no dimension")),
    }
}

fn parse_limit(asked: i32) -> Result<usize> {
    match usize::try_from(asked) {
        Ok(0) => Ok(DEFAULT_LIMIT),
        Ok(limit) => Ok(limit.min(MAX_LIMIT)),
        Err(_) => Err(Error::invalid("limit", "must not be negative")),
    }
}

/// Counts of actions by these dimensions.
#[must_use]
pub fn action_counts_to_proto(counts: ActionCounts, group_by: &[Dimension]) -> proto::CountActionsResponse {
    let groups = counts.groups.into_iter().map(|(key, count)| group_to_proto(key, count, group_by));
    proto::CountActionsResponse {
        groups: groups.collect(),
        other_group_count: counts.other_group_count,
        other_action_count: counts.other_action_count,
        total_action_count: counts.total,
    }
}

fn group_to_proto(key: GroupKey, action_count: i64, group_by: &[Dimension]) -> proto::ActionGroup {
    let mut group = proto::ActionGroup { action_count, ..proto::ActionGroup::default() };
    for (dimension, value) in group_by.iter().zip(key) {
        match dimension {
            Dimension::User => group.user_id = value,
            Dimension::Type => group.r#type = value,
            Dimension::Target => group.target = value,
            Dimension::Source => group.source = value,
            Dimension::Attribute(_) => group.attribute = value,
            Dimension::SessionDay => group.session_day = value.as_deref().and_then(beginning),
            Dimension::Day => group.day = value.as_deref().and_then(beginning),
            Dimension::Hour => group.hour = value.as_deref().and_then(beginning),
        }
    }
    group
}

/// When a day, as 2026-11-24, or an hour, as 2026-11-24T08, begins.
fn beginning(text: &str) -> Option<Timestamp> {
    let (day, hour) = text.split_once('T').unwrap_or((text, "0"));
    let day: NaiveDate = day.parse().ok()?;
    Some(timestamp(day.and_hms_opt(hour.parse().ok()?, 0, 0)?.and_utc()))
}

fn midnight(day: NaiveDate) -> Timestamp {
    timestamp(day.and_time(NaiveTime::MIN).and_utc())
}

/// Takes a request for durations: the sessions, and where the buckets of the histogram end, in milliseconds.
pub fn parse_session_durations(request: proto::GetSessionDurationsRequest) -> Result<(SessionFilter, Vec<i64>)> {
    let filter = parse_session_filter(request.filter)?;
    if request.bucket_bounds.is_empty() {
        return Ok((filter, DEFAULT_BUCKETS.to_vec()));
    }
    if request.bucket_bounds.len() > MAX_BUCKETS {
        return Err(Error::invalid("bucket_bounds", format!("at most {MAX_BUCKETS}")));
    }
    let mut bounds: Vec<i64> = Vec::new();
    for (index, bound) in request.bucket_bounds.iter().enumerate() {
        let field = format!("bucket_bounds[{index}]");
        let bound = parse_duration(&field, bound)?.as_nanos().div_ceil(1_000_000);
        // Durations are in whole milliseconds: less than the bound is less than the next one.
        let bound = i64::try_from(bound).unwrap_or(i64::MAX);
        if bound <= bounds.last().copied().unwrap_or(0) {
            return Err(Error::invalid(field, "must be more than the one before, by a millisecond or more"));
        }
        bounds.push(bound);
    }
    Ok((filter, bounds))
}

/// Durations by day, and the buckets of their histogram.
#[must_use]
pub fn session_durations_to_proto(
    days: BTreeMap<NaiveDate, Vec<i64>>,
    bounds: &[i64],
) -> proto::GetSessionDurationsResponse {
    let mut all: Vec<i64> = days.values().flatten().copied().collect();
    let total = durations_to_proto(&mut all, bounds);
    let days = days.into_iter().map(|(day, mut durations)| proto::SessionDurations {
        day: Some(midnight(day)),
        ..durations_to_proto(&mut durations, bounds)
    });
    proto::GetSessionDurationsResponse { days: days.collect(), total: Some(total) }
}

fn durations_to_proto(durations: &mut [i64], bounds: &[i64]) -> proto::SessionDurations {
    durations.sort_unstable();
    let mut histogram = vec![0; bounds.len() + 1];
    for duration in durations.iter() {
        histogram[bounds.partition_point(|bound| bound <= duration)] += 1;
    }
    let length = durations.len();
    // The nearest rank: the least that so many percent do not exceed.
    let percentile = |percent: usize| {
        let rank = (length * percent).div_ceil(100);
        rank.checked_sub(1).map(|index| millis(durations[index]))
    };
    let sum: i128 = durations.iter().map(|duration| i128::from(*duration)).sum();
    let mean = i128::try_from(length).ok().filter(|length| *length > 0).map(|length| sum / length);
    proto::SessionDurations {
        day: None,
        session_count: i64::try_from(length).unwrap_or(i64::MAX),
        mean: mean.and_then(|mean| i64::try_from(mean).ok()).map(millis),
        p50: percentile(50),
        p75: percentile(75),
        p90: percentile(90),
        p95: percentile(95),
        p99: percentile(99),
        max: durations.last().copied().map(millis),
        histogram,
    }
}

/// Takes a request for error frequencies: the sessions, the errors' target, and the interval in seconds.
pub fn parse_error_frequency(request: proto::GetErrorFrequencyRequest) -> Result<(SessionFilter, Option<String>, i64)> {
    let filter = parse_session_filter(request.filter)?;
    check_target("target", &request.target)?;
    let seconds = match request.interval {
        None => 3_600,
        Some(interval) => {
            let interval = parse_duration("interval", &interval)?;
            if interval.subsec_nanos() > 0 || !INTERVAL_SECONDS.contains(&interval.as_secs()) {
                return Err(Error::invalid("interval", "must be from 1 min to 366 days, in whole seconds"));
            }
            i64::try_from(interval.as_secs()).unwrap_or(i64::MAX)
        }
    };
    Ok((filter, Some(request.target).filter(|target| !target.is_empty()), seconds))
}

/// How often errors happened.
#[must_use]
pub fn error_frequency_to_proto(frequency: ErrorFrequency) -> proto::ErrorFrequency {
    proto::ErrorFrequency {
        start_time: frequency.start.map(timestamp),
        error_count: frequency.error_count,
        session_count: frequency.session_count,
        user_count: frequency.user_count,
    }
}

/// Takes a request for transitions.
pub fn parse_list_transitions(request: proto::ListTransitionsRequest) -> Result<TransitionCounting> {
    let filter = parse_session_filter(request.filter)?;
    if !filter.has_time_range() && !filter.all_of.iter().any(ActionMatch::names_facets) {
        let description = "this reads the actions of the sessions: give both started_after and started_before, or an action in all_of";
        return Err(Error::invalid("filter", description));
    }
    if request.types.len() > MAX_LISTED {
        return Err(Error::invalid("types", format!("at most {MAX_LISTED}")));
    }
    for (index, kind) in request.types.iter().enumerate() {
        check_searched(&format!("types[{index}]"), kind)?;
    }
    check_target("from_target", &request.from_target)?;
    let from_target = Some(request.from_target).filter(|target| !target.is_empty());
    Ok(TransitionCounting { filter, types: request.types, from_target, limit: parse_limit(request.limit)? })
}

/// What follows what.
#[must_use]
pub fn transitions_to_proto(transitions: Transitions) -> proto::ListTransitionsResponse {
    let transition = |transition: Transition| proto::Transition {
        from_type: transition.from.0,
        from_target: transition.from.1,
        to_type: transition.to.0,
        to_target: transition.to.1,
        count: transition.count,
        median_time: Some(duration(transition.median)),
    };
    proto::ListTransitionsResponse {
        transitions: transitions.transitions.into_iter().map(transition).collect(),
        other_transition_count: transitions.other_transition_count,
        other_count: transitions.other_count,
    }
}

fn duration(time: TimeDelta) -> prost_types::Duration {
    prost_types::Duration { seconds: time.num_seconds(), nanos: time.subsec_nanos() }
}

/// Takes a request for a funnel.
pub fn parse_funnel(request: proto::GetFunnelRequest) -> Result<FunnelCounting> {
    let filter = parse_session_filter(request.filter)?;
    let steps = parse_sequence("steps", request.steps)?;
    for (index, step) in steps.iter().enumerate() {
        if !step.action.names_facets() {
            return Err(Error::invalid(format!("steps[{index}].match"), "needs a type or a target"));
        }
    }
    let exit_limit = usize::try_from(request.exit_limit).ok().filter(|limit| *limit <= MAX_EXITS);
    let exit_limit =
        exit_limit.ok_or_else(|| Error::invalid("exit_limit", format!("must be from 0 to {MAX_EXITS}")))?;
    Ok(FunnelCounting { filter, steps, exit_limit })
}

/// How many reach each step.
#[must_use]
pub fn funnel_to_proto(steps: Vec<FunnelStep>) -> proto::GetFunnelResponse {
    let exit = |(next, session_count): (Option<(String, String)>, i64)| {
        let (kind, target) = next.unzip();
        proto::FunnelExit { r#type: kind, target, session_count }
    };
    let step = |step: FunnelStep| proto::FunnelStep {
        session_count: step.session_count,
        user_count: step.user_count,
        exits: step.exits.into_iter().map(exit).collect(),
        other_exit_count: step.other_exit_count,
    };
    proto::GetFunnelResponse { steps: steps.into_iter().map(step).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank_and_buckets_end_before_their_bound() {
        let days = BTreeMap::from([(NaiveDate::MIN, vec![]), (NaiveDate::MAX, vec![])]);
        assert_eq!(session_durations_to_proto(days, &[10]).total.map(|total| total.p50), Some(None));
        let mut durations: Vec<i64> = (1..=100).collect();
        let summary = durations_to_proto(&mut durations, &[10, 50]);
        assert_eq!((summary.p50, summary.p99, summary.max), (Some(millis(50)), Some(millis(99)), Some(millis(100))));
        assert_eq!(summary.histogram, [9, 40, 51]);
        let one = durations_to_proto(&mut [7], &[7]);
        assert_eq!(
            (one.p50, one.p99, one.mean, one.histogram),
            (Some(millis(7)), Some(millis(7)), Some(millis(7)), vec![0, 1])
        );
    }

    #[test]
    fn days_and_hours_are_read_back_as_times() {
        let at = |text: &str| beginning(text).map(|time| time.seconds);
        assert_eq!(at("1970-01-02"), Some(86_400));
        assert_eq!(at("1970-01-02T03"), Some(86_400 + 3 * 3_600));
        assert_eq!(at("x"), None);
    }
}
