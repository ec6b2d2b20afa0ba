//! What has to be answered, computed from the world in the plainest way.

use std::collections::{BTreeMap, BTreeSet};

use reel::proto::{
    ActionDimension, ActionGroup, CountActionsRequest, CountActionsResponse, ErrorFrequency, FunnelExit, FunnelStep,
    GetErrorFrequencyRequest, GetErrorFrequencyResponse, GetFunnelRequest, GetSessionDurationsResponse,
    ListTransitionsRequest, ListTransitionsResponse, SessionDurations, SessionFilter, SessionOrder, Transition,
};

use super::{
    matching::{is_match, matches, reaches},
    world::{Act, DAY_MS, Recorded, World, duration_ms, millis},
};
use crate::harness::timestamp;

/// The sessions that match, with where they match first, in an order.
pub fn sessions<'a>(
    world: &'a World,
    filter: &SessionFilter,
    order: SessionOrder,
    ascending: bool,
) -> Vec<(&'a Recorded, Option<i64>)> {
    let mut found: Vec<_> =
        world.sessions.values().filter_map(|recorded| Some((recorded, matches(filter, recorded)?))).collect();
    let key = |recorded: &Recorded| match order {
        SessionOrder::Unspecified | SessionOrder::StartTime => 0,
        SessionOrder::Duration => recorded.duration_ms(),
        SessionOrder::ActionCount => i64::try_from(recorded.acts.len()).unwrap(),
        SessionOrder::ErrorCount => recorded.errors(),
        SessionOrder::LastActionTime => recorded.last_micros().unwrap_or(recorded.start_ms * 1_000),
    };
    found.sort_by_key(|(recorded, _)| (key(recorded), recorded.id.clone()));
    if !ascending {
        found.reverse();
    }
    found
}

fn matching<'a>(world: &'a World, filter: Option<&SessionFilter>) -> Vec<&'a Recorded> {
    let everything = SessionFilter::default();
    let filter = filter.unwrap_or(&everything);
    let all = sessions(world, filter, SessionOrder::StartTime, false);
    all.into_iter().map(|(recorded, _)| recorded).collect()
}

type Key = (
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
);

pub fn counts(world: &World, request: &CountActionsRequest) -> CountActionsResponse {
    let mut groups: BTreeMap<Key, i64> = BTreeMap::new();
    for recorded in matching(world, request.filter.as_ref()) {
        for act in &recorded.acts {
            if request.r#match.as_ref().is_none_or(|wanted| is_match(wanted, recorded.start_ms, act)) {
                *groups.entry(key(request, recorded, act)).or_default() += 1;
            }
        }
    }
    let total_action_count = groups.values().sum();
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, count)| -count);
    let limit = if request.limit == 0 { 20 } else { usize::try_from(request.limit).unwrap() };
    let others = groups.split_off(limit.min(groups.len()));
    let group = |((user_id, kind, target, source, attribute, session_day, day, hour), action_count): (Key, i64)| {
        let time = |ms: Option<i64>| ms.map(timestamp);
        ActionGroup {
            user_id,
            r#type: kind,
            target,
            source,
            attribute,
            session_day: time(session_day),
            day: time(day),
            hour: time(hour),
            action_count,
        }
    };
    CountActionsResponse {
        other_group_count: i64::try_from(others.len()).unwrap(),
        other_action_count: others.iter().map(|(_, count)| count).sum(),
        groups: groups.into_iter().map(group).collect(),
        total_action_count,
    }
}

fn key(request: &CountActionsRequest, recorded: &Recorded, act: &Act) -> Key {
    let has = |dimension: ActionDimension| request.group_by.contains(&dimension.into());
    let text = |dimension, text: Option<&str>| text.filter(|_| has(dimension)).map(str::to_owned);
    let floor = |ms: i64, length: i64| ms.div_euclid(length) * length;
    let time = |dimension, ms: i64| has(dimension).then_some(ms);
    let act_ms = act.micros.div_euclid(1_000);
    (
        text(ActionDimension::User, recorded.user),
        text(ActionDimension::Type, Some(act.kind)),
        text(ActionDimension::Target, Some(act.target)),
        text(ActionDimension::Source, Some(act.source)),
        text(ActionDimension::Attribute, recorded.attributes.get(&request.attribute_key).map(String::as_str)),
        time(ActionDimension::SessionDay, floor(recorded.start_ms, DAY_MS)),
        time(ActionDimension::Day, floor(act_ms, DAY_MS)),
        time(ActionDimension::Hour, floor(act_ms, 3_600_000)),
    )
}

pub fn durations(world: &World, filter: &SessionFilter, bounds_ms: &[i64]) -> GetSessionDurationsResponse {
    let mut days: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for recorded in matching(world, Some(filter)) {
        days.entry(recorded.start_ms.div_euclid(DAY_MS) * DAY_MS).or_default().push(recorded.duration_ms());
    }
    let all = days.values().flatten().copied().collect();
    let days = days
        .into_iter()
        .map(|(day, durations)| SessionDurations { day: Some(timestamp(day)), ..of_durations(durations, bounds_ms) });
    GetSessionDurationsResponse { days: days.collect(), total: Some(of_durations(all, bounds_ms)) }
}

fn of_durations(mut durations: Vec<i64>, bounds_ms: &[i64]) -> SessionDurations {
    durations.sort_unstable();
    let count = i64::try_from(durations.len()).unwrap();
    // The least of which so many percent are at most as long.
    let percentile = |percent: i64| {
        let reaches = |duration: &&i64| {
            let shorter = durations.iter().filter(|other| other <= duration).count();
            i64::try_from(shorter).unwrap() * 100 >= percent * count
        };
        durations.iter().find(reaches).map(|duration| millis(*duration))
    };
    let mut histogram = vec![0; bounds_ms.len() + 1];
    for duration in &durations {
        let bucket = bounds_ms.iter().position(|bound| duration < bound).unwrap_or(bounds_ms.len());
        histogram[bucket] += 1;
    }
    SessionDurations {
        day: None,
        session_count: count,
        mean: (count > 0).then(|| millis(durations.iter().sum::<i64>() / count)),
        p50: percentile(50),
        p75: percentile(75),
        p90: percentile(90),
        p95: percentile(95),
        p99: percentile(99),
        max: durations.last().map(|duration| millis(*duration)),
        histogram,
    }
}

pub fn errors(world: &World, request: &GetErrorFrequencyRequest) -> GetErrorFrequencyResponse {
    let length = request.interval.as_ref().map_or(3_600_000_000, |interval| duration_ms(interval) * 1_000);
    let mut found: Vec<(i64, &Recorded)> = Vec::new();
    for recorded in matching(world, request.filter.as_ref()) {
        for act in recorded.acts.iter().filter(|act| act.kind == "error") {
            if request.target.is_empty() || act.target == request.target {
                found.push((act.micros.div_euclid(length) * length, recorded));
            }
        }
    }
    let frequency = |start: Option<i64>| {
        let of_it = || found.iter().filter(move |(at, _)| start.is_none_or(|start| *at == start)).map(|(_, of)| of);
        ErrorFrequency {
            start_time: start.map(|micros| timestamp(micros / 1_000)),
            error_count: i64::try_from(of_it().count()).unwrap(),
            session_count: i64::try_from(of_it().map(|of| &of.id).collect::<BTreeSet<_>>().len()).unwrap(),
            user_count: i64::try_from(of_it().filter_map(|of| of.user).collect::<BTreeSet<_>>().len()).unwrap(),
        }
    };
    let starts: BTreeSet<i64> = found.iter().map(|(start, _)| *start).collect();
    GetErrorFrequencyResponse {
        total: Some(frequency(None)),
        intervals: starts.into_iter().map(|start| frequency(Some(start))).collect(),
    }
}

pub fn transitions(world: &World, request: &ListTransitionsRequest) -> ListTransitionsResponse {
    let mut kinds: BTreeMap<[String; 4], Vec<i64>> = BTreeMap::new();
    for recorded in matching(world, request.filter.as_ref()) {
        let is_chosen = |act: &&Act| request.types.is_empty() || request.types.iter().any(|kind| kind == act.kind);
        let acts: Vec<_> = recorded.acts.iter().filter(is_chosen).collect();
        for pair in acts.windows(2) {
            if request.from_target.is_empty() || pair[0].target == request.from_target {
                let names = [pair[0].kind, pair[0].target, pair[1].kind, pair[1].target].map(str::to_owned);
                kinds.entry(names).or_default().push(pair[1].micros - pair[0].micros);
            }
        }
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, gaps)| std::cmp::Reverse(gaps.len()));
    let limit = if request.limit == 0 { 20 } else { usize::try_from(request.limit).unwrap() };
    let others = kinds.split_off(limit.min(kinds.len()));
    let transition = |([from_type, from_target, to_type, to_target], mut gaps): ([String; 4], Vec<i64>)| {
        gaps.sort_unstable();
        let median = gaps[gaps.len().div_ceil(2) - 1];
        let nanos = i32::try_from(median % 1_000_000 * 1_000).unwrap();
        let median_time = Some(prost_types::Duration { seconds: median / 1_000_000, nanos });
        let count = i64::try_from(gaps.len()).unwrap();
        Transition { from_type, from_target, to_type, to_target, count, median_time }
    };
    ListTransitionsResponse {
        transitions: kinds.into_iter().map(transition).collect(),
        other_transition_count: i64::try_from(others.len()).unwrap(),
        other_count: others.iter().map(|(_, gaps)| i64::try_from(gaps.len()).unwrap()).sum(),
    }
}

/// Where sessions go: type and target of the next action, if there is one.
type Exits<'a> = BTreeMap<Option<(&'a str, &'a str)>, i64>;

pub fn funnel(world: &World, request: &GetFunnelRequest) -> Vec<FunnelStep> {
    let steps = &request.steps;
    let mut reached: Vec<Vec<&Recorded>> = vec![Vec::new(); steps.len()];
    let mut exits: Vec<Exits<'_>> = vec![BTreeMap::new(); steps.len()];
    for recorded in matching(world, request.filter.as_ref()) {
        let last_of =
            |step: usize| (0..recorded.acts.len()).rev().find(|index| reaches(steps, step, recorded, *index).is_some());
        let lasts: Vec<usize> = (0..steps.len()).map_while(last_of).collect();
        for of_step in &mut reached[..lasts.len()] {
            of_step.push(recorded);
        }
        if let Some(last) = lasts.last().filter(|_| lasts.len() < steps.len()) {
            let next = recorded.acts.get(last + 1).map(|act| (act.kind, act.target));
            *exits[lasts.len() - 1].entry(next).or_default() += 1;
        }
    }
    let limit = usize::try_from(request.exit_limit).unwrap();
    let step = |(of_step, exits): (Vec<&Recorded>, Exits<'_>)| {
        let mut exits: Vec<_> = if limit == 0 { Vec::new() } else { exits.into_iter().collect() };
        exits.sort_by_key(|(_, count)| -count);
        let others = exits.split_off(limit.min(exits.len()));
        let exit = |(next, session_count): (Option<(&str, &str)>, i64)| FunnelExit {
            r#type: next.map(|(kind, _)| kind.to_owned()),
            target: next.map(|(_, target)| target.to_owned()),
            session_count,
        };
        FunnelStep {
            session_count: i64::try_from(of_step.len()).unwrap(),
            user_count: i64::try_from(of_step.iter().filter_map(|of| of.user).collect::<BTreeSet<_>>().len()).unwrap(),
            exits: exits.into_iter().map(exit).collect(),
            other_exit_count: others.iter().map(|(_, count)| count).sum(),
        }
    };
    reached.into_iter().zip(exits).map(step).collect()
}
