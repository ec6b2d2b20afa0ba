//! Asks, and compares.

use std::collections::BTreeMap;

use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use reel::proto::{
    ActionDimension, ActionMatch, CountActionsRequest, GetErrorFrequencyRequest, GetFunnelRequest,
    GetSessionDurationsRequest, ListActionsRequest, ListSessionsRequest, ListTransitionsRequest, SessionFilter,
    SessionOrder, analytics_service_client::AnalyticsServiceClient,
};

use super::{
    answers,
    matching::is_match,
    questions::{action_match, filter, steps, time_range},
    world::{KEYS, KINDS, TARGETS, World, micros, millis, summary},
};
use crate::harness::{Reel, timestamp};

/// Asks questions, and remembers how many of each kind had something for an answer.
#[derive(Default)]
pub struct Asker {
    found: BTreeMap<&'static str, (usize, usize)>,
}

impl Asker {
    pub async fn ask_many(&mut self, reel: &Reel, world: &World, rng: &mut StdRng, questions: usize) {
        for number in 0..questions {
            let (kind, has_found) = match number % 8 {
                0..3 => ("ListSessions", sessions(reel, world, rng).await),
                3 => ("ListActions", actions(reel, world, rng).await),
                4 => ("CountActions", counts(reel, world, rng).await),
                5 => ("GetSessionDurations", durations(reel, world, rng).await),
                6 if rng.random_bool(0.5) => ("GetErrorFrequency", errors(reel, world, rng).await),
                6 => ("ListTransitions", transitions(reel, world, rng).await),
                _ => ("GetFunnel", funnel(reel, world, rng).await),
            };
            let counts = self.found.entry(kind).or_default();
            counts.0 += usize::from(has_found);
            counts.1 += 1;
        }
    }

    /// Checks that the questions were not all about nothing.
    pub fn check_enough_was_found(&self) {
        eprintln!("questions with something for an answer, and all: {:?}", self.found);
        assert!(self.found.values().all(|(found, asked)| found * 4 >= *asked), "{:?}", self.found);
    }
}

pub fn analytics(reel: &Reel) -> AnalyticsServiceClient<tonic::transport::Channel> {
    AnalyticsServiceClient::new(reel.channel.clone())
}

async fn sessions(reel: &Reel, world: &World, rng: &mut StdRng) -> bool {
    let orders = [
        SessionOrder::Unspecified,
        SessionOrder::StartTime,
        SessionOrder::Duration,
        SessionOrder::ActionCount,
        SessionOrder::ErrorCount,
        SessionOrder::LastActionTime,
    ];
    let order = *orders.choose(rng).unwrap();
    let request = ListSessionsRequest {
        page_size: if rng.random_bool(0.5) { 0 } else { rng.random_range(1..8) },
        filter: Some(filter(rng)),
        order_by: order.into(),
        ascending: rng.random_bool(0.3),
        count_total: rng.random_bool(0.5),
        ..ListSessionsRequest::default()
    };
    let expected = answers::sessions(world, request.filter.as_ref().unwrap(), order, request.ascending);
    let (mut found, mut page) = (Vec::new(), request.clone());
    loop {
        let answer = reel.sessions().list_sessions(page.clone()).await;
        let answer = answer.unwrap_or_else(|status| panic!("{status:?}\n{request:?}")).into_inner();
        let total = request.count_total.then(|| i64::try_from(expected.len()).unwrap());
        assert_eq!(answer.total_count, total, "{request:?}");
        found.extend(answer.sessions);
        if answer.next_page_token.is_empty() {
            break;
        }
        page.page_token = answer.next_page_token;
    }
    let ids: Vec<_> = found.iter().map(|session| session.id.as_str()).collect();
    let expected_ids: Vec<_> = expected.iter().map(|(recorded, _)| recorded.id.as_str()).collect();
    assert_eq!(ids, expected_ids, "{request:?}");
    for (session, (recorded, first)) in found.iter().zip(&expected) {
        assert_eq!(session.summary, Some(summary(recorded)), "{request:?} {recorded:?}");
        let filter = request.filter.as_ref().unwrap();
        let has_place = !filter.all_of.is_empty() || !filter.any_of.is_empty() || !filter.sequence.is_empty();
        let time = session.first_match.as_ref().and_then(|place| place.time.as_ref()).map(micros);
        assert_eq!(time, first.filter(|_| has_place), "{request:?} {recorded:?}");
        assert_eq!(usize::try_from(session.action_count).unwrap(), recorded.acts.len());
        assert_eq!(session.error_count, recorded.errors());
        assert_eq!(session.attributes, recorded.attributes);
    }
    !found.is_empty()
}

async fn actions(reel: &Reel, world: &World, rng: &mut StdRng) -> bool {
    let (mut filter, wanted) = (filter(rng), action_match(rng));
    if wanted.r#type.is_empty() && wanted.target_match.is_none() {
        time_range(&mut filter, rng);
    }
    let request = ListActionsRequest {
        page_size: if rng.random_bool(0.5) { 1_000 } else { rng.random_range(1..20) },
        filter: Some(filter.clone()),
        r#match: Some(wanted.clone()),
        ..ListActionsRequest::default()
    };
    let mut expected = Vec::new();
    for (recorded, _) in answers::sessions(world, &filter, SessionOrder::StartTime, false) {
        let acts = recorded.acts.iter().filter(|act| is_match(&wanted, recorded.start_ms, act));
        expected.extend(acts.map(|act| {
            let texts = (act.source.to_owned(), act.kind.to_owned(), act.target.to_owned(), act.data.clone());
            (recorded.id.clone(), act.micros, act.seq, texts)
        }));
    }
    let (mut found, mut page) = (Vec::new(), request.clone());
    loop {
        let answer = reel.sessions().list_actions(page.clone()).await;
        let answer = answer.unwrap_or_else(|status| panic!("{status:?}\n{request:?}")).into_inner();
        found.extend(answer.actions.into_iter().map(|found| {
            let action = found.action.unwrap();
            let time = micros(action.timestamp.as_ref().unwrap());
            (found.session_id, time, action.seq, (action.source, action.r#type, action.target, action.data))
        }));
        if answer.next_page_token.is_empty() {
            break;
        }
        page.page_token = answer.next_page_token;
    }
    assert_eq!(found, expected, "{request:?}");
    !found.is_empty()
}

async fn counts(reel: &Reel, world: &World, rng: &mut StdRng) -> bool {
    let all: Vec<i32> = (1..=8).collect();
    let how_many = rng.random_range(0..4);
    let group_by: Vec<i32> = all.sample(rng, how_many).copied().collect();
    let by_attribute = group_by.contains(&ActionDimension::Attribute.into());
    let mut request = CountActionsRequest {
        filter: Some(if rng.random_bool(0.5) { filter(rng) } else { SessionFilter::default() }),
        r#match: rng.random_bool(0.5).then(|| action_match(rng)),
        attribute_key: if by_attribute { (*KEYS.choose(rng).unwrap()).to_owned() } else { String::new() },
        group_by,
        limit: if rng.random_bool(0.5) { 0 } else { rng.random_range(1..6) },
    };
    let is_broad = |wanted: &ActionMatch| wanted.r#type.is_empty() && wanted.target_match.is_none();
    if rng.random_bool(0.5) || request.r#match.as_ref().is_none_or(is_broad) {
        let filter = request.filter.as_mut().unwrap();
        if filter.started_after.is_none() || filter.started_before.is_none() {
            time_range(filter, rng);
        }
    }
    let answer = analytics(reel).count_actions(request.clone()).await;
    let answer = answer.unwrap_or_else(|status| panic!("{status:?}\n{request:?}")).into_inner();
    assert_eq!(answer, answers::counts(world, &request), "{request:?}");
    answer.total_action_count > 0
}

async fn durations(reel: &Reel, world: &World, rng: &mut StdRng) -> bool {
    let filter = filter(rng);
    let bounds: Vec<i64> = if rng.random_bool(0.5) {
        vec![1_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000, 3_600_000]
    } else {
        vec![1, 50_000, 50_001]
    };
    let is_default = bounds.len() > 3;
    let bucket_bounds = if is_default { Vec::new() } else { bounds.iter().map(|bound| millis(*bound)).collect() };
    let request = GetSessionDurationsRequest { filter: Some(filter.clone()), bucket_bounds };
    let answer = analytics(reel).get_session_durations(request.clone()).await.unwrap().into_inner();
    assert_eq!(answer, answers::durations(world, &filter, &bounds), "{request:?}");
    answer.total.is_some_and(|total| total.session_count > 0)
}

async fn errors(reel: &Reel, world: &World, rng: &mut StdRng) -> bool {
    let request = GetErrorFrequencyRequest {
        filter: Some(filter(rng)),
        interval: rng.random_bool(0.5).then(|| millis([60_000, 86_400_000, 90_000][rng.random_range(0..3)])),
        target: if rng.random_bool(0.7) { String::new() } else { (*TARGETS.choose(rng).unwrap()).to_owned() },
    };
    let answer = analytics(reel).get_error_frequency(request.clone()).await.unwrap().into_inner();
    assert_eq!(answer, answers::errors(world, &request), "{request:?}");
    !answer.intervals.is_empty()
}

async fn transitions(reel: &Reel, world: &World, rng: &mut StdRng) -> bool {
    let mut filter = filter(rng);
    time_range(&mut filter, rng);
    let request = ListTransitionsRequest {
        filter: Some(filter),
        types: if rng.random_bool(0.5) { Vec::new() } else { vec![KINDS[0].to_owned(), KINDS[2].to_owned()] },
        from_target: if rng.random_bool(0.7) { String::new() } else { (*TARGETS.choose(rng).unwrap()).to_owned() },
        limit: if rng.random_bool(0.5) { 0 } else { rng.random_range(1..6) },
    };
    let answer = analytics(reel).list_transitions(request.clone()).await.unwrap().into_inner();
    assert_eq!(answer, answers::transitions(world, &request), "{request:?}");
    !answer.transitions.is_empty()
}

async fn funnel(reel: &Reel, world: &World, rng: &mut StdRng) -> bool {
    let mut steps = steps(rng);
    for step in &mut steps {
        let wanted = step.r#match.as_mut().unwrap();
        if wanted.r#type.is_empty() && wanted.target_match.is_none() {
            KINDS[0].clone_into(&mut wanted.r#type);
        }
    }
    let filter = rng.random_bool(0.5).then(|| filter(rng));
    let request = GetFunnelRequest { filter, steps, exit_limit: rng.random_range(0..4) };
    let answer = analytics(reel).get_funnel(request.clone()).await.unwrap().into_inner();
    assert_eq!(answer.steps, answers::funnel(world, &request), "{request:?}");
    answer.steps[0].session_count > 0
}

/// Asks about sessions that nobody writes to: those that started before a time.
pub async fn ask_before(reel: &Reel, world: &World, before_ms: i64, rng: &mut StdRng) -> Result<(), tonic::Status> {
    let mut filter = filter(rng);
    filter.started_after = Some(timestamp(0));
    filter.started_before = Some(timestamp(before_ms));
    let request = ListSessionsRequest { filter: Some(filter.clone()), page_size: 1_000, ..Default::default() };
    let answer = reel.sessions().list_sessions(request.clone()).await?.into_inner();
    let expected = answers::sessions(world, &filter, SessionOrder::StartTime, false);
    let found: Vec<_> = answer.sessions.iter().map(|session| session.id.as_str()).collect();
    let expected: Vec<_> = expected.iter().map(|(recorded, _)| recorded.id.as_str()).collect();
    assert_eq!(found, expected, "{request:?}");
    let group_by = vec![ActionDimension::Type.into(), ActionDimension::Target.into()];
    let request = CountActionsRequest { filter: Some(filter), group_by, ..CountActionsRequest::default() };
    let answer = analytics(reel).count_actions(request.clone()).await?.into_inner();
    assert_eq!(answer, answers::counts(world, &request), "{request:?}");
    Ok(())
}
