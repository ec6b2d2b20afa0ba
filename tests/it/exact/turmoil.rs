//! Asking while others write, and while the process that indexes is killed and started again.
//!
//! Of sessions that nobody writes to, answers must be equal. Of the others they must lie between two worlds: what was
//! acknowledged before the question was asked, and what had been sent when it was answered.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use reel::proto::{ActionDimension, CountActionsRequest, ListSessionsRequest, SessionFilter, SessionOrder};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    FEW_FACETS, answers,
    ask::{Asker, analytics, ask_before},
    check_index,
    questions::{action_match, steps},
    wait_until_indexed,
    world::{DAY_MS, SOURCES, World, millis},
};
use crate::{
    crash::process::Process,
    harness::{Backend, NOON_MS, Reel, TestDatabase, say_seed, seeds},
    on_both_databases,
};

/// How many questions are asked between two kills.
const QUESTIONS: usize = 12;

/// How many batches may be sent during a question: more would make sessions longer than a plain model can look at.
const BATCHES: usize = 4;

/// How often the process that indexes is killed.
const KILLS: usize = 4;

/// How many write at once, each to sessions of its own.
const SENDERS: usize = 3;

/// Sessions that start before this are not written to any more.
const WRITTEN_FROM_MS: i64 = (NOON_MS / DAY_MS + 2) * DAY_MS;

on_both_databases!(
    answers_are_exact_while_others_write_and_the_indexer_is_killed,
    answers_are_exact_in_turmoil_where_sessions_have_more_facets_than_the_index_keeps,
);

/// What was acknowledged, and what was sent.
#[derive(Default)]
struct Worlds {
    acknowledged: World,
    sent: World,
}

async fn answers_are_exact_while_others_write_and_the_indexer_is_killed(backend: Backend) {
    answers_are_exact(backend, &[]).await;
}

async fn answers_are_exact_in_turmoil_where_sessions_have_more_facets_than_the_index_keeps(backend: Backend) {
    answers_are_exact(backend, &FEW_FACETS).await;
}

async fn answers_are_exact(backend: Backend, arguments: &[&str]) {
    for seed in seeds(1) {
        say_seed(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let database = TestDatabase::new(backend).await;
        let reel = Arc::new(Reel::start_on(&database, &[&["--indexer", "off"], arguments].concat()).await);
        let mut world = World::new(&mut rng);
        world.record(&reel, &mut rng).await;
        let worlds = Arc::new(Mutex::new(Worlds { acknowledged: world.clone(), sent: world }));
        let mut indexer = Process::serve(&database.url, arguments).await;
        let (stop, allowed) = (CancellationToken::new(), Arc::new(Semaphore::new(0)));
        let senders: Vec<_> = (0..SENDERS)
            .map(|number| {
                let rng = StdRng::seed_from_u64(rng.random());
                let sending =
                    send(Arc::clone(&reel), Arc::clone(&worlds), number, rng, (stop.clone(), Arc::clone(&allowed)));
                AbortOnDropHandle::new(tokio::spawn(sending))
            })
            .collect();
        let mut found = 0;
        for kill in 0..=KILLS {
            for _ in 0..QUESTIONS {
                allowed.add_permits(BATCHES);
                let before = worlds.lock().unwrap().acknowledged.clone();
                ask_before(&reel, &before, WRITTEN_FROM_MS, &mut rng).await.unwrap();
                found += usize::from(ask_for_sessions(&reel, &worlds, &mut rng).await);
                ask_for_counts(&reel, &worlds, &mut rng).await;
            }
            if kill < KILLS {
                indexer.kill().await;
                indexer.start_again().await;
            }
        }
        assert!(found * 4 > QUESTIONS * KILLS, "{found} questions had sessions for an answer");
        stop.cancel();
        for sender in senders {
            assert!(sender.await.unwrap() > 0, "a sender got something in");
        }
        wait_until_indexed(&database).await;
        check_index(&database).await;
        let world = worlds.lock().unwrap().acknowledged.clone();
        Asker::default().ask_many(&reel, &world, &mut rng, 40).await;
    }
}

/// Goes on with its sessions until it is told to stop. Gives how many batches were acknowledged.
async fn send(
    reel: Arc<Reel>,
    worlds: Arc<Mutex<Worlds>>,
    number: usize,
    mut rng: StdRng,
    (stop, allowed): (CancellationToken, Arc<Semaphore>),
) -> usize {
    let sessions: Vec<String> = {
        let worlds = worlds.lock().unwrap();
        let live = worlds.sent.sessions.values().filter(|recorded| recorded.start_ms >= WRITTEN_FROM_MS);
        live.map(|recorded| recorded.id.clone()).skip(number).step_by(SENDERS).collect()
    };
    let mut acknowledged = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return acknowledged,
            permit = allowed.acquire() => permit.unwrap().forget(),
        }
        let id = sessions.choose(&mut rng).expect("some sessions are written to");
        let (source, actions, first_seq) = {
            let mut worlds = worlds.lock().unwrap();
            let recorded = worlds.sent.sessions.get_mut(id).unwrap();
            let source = *SOURCES.choose(&mut rng).unwrap();
            let first_seq = recorded.acts.iter().filter(|act| act.source == source).count() + 1;
            let (_, actions) = recorded.more(&mut rng).swap_remove(0);
            recorded.store(source, actions.clone());
            (source, actions, i64::try_from(first_seq).unwrap())
        };
        reel.append(id, source, first_seq, actions.clone()).await.unwrap();
        worlds.lock().unwrap().acknowledged.sessions.get_mut(id).unwrap().store(source, actions);
        acknowledged += 1;
    }
}

/// Questions to which more actions can only add sessions.
async fn ask_for_sessions(reel: &Reel, worlds: &Mutex<Worlds>, rng: &mut StdRng) -> bool {
    let mut filter = SessionFilter::default();
    for _ in 0..rng.random_range(1..3) {
        let mut wanted = action_match(rng);
        if wanted.r#type.is_empty() && wanted.target_match.is_none() {
            "click".clone_into(&mut wanted.r#type);
        }
        wanted.min_count = rng.random_range(0..5);
        match rng.random_range(0..4) {
            0 => filter.any_of.push(wanted),
            1 => filter.min_duration = Some(millis(rng.random_range(0..100_000))),
            2 => filter.min_error_count = Some(rng.random_range(0..4)),
            _ => filter.all_of.push(wanted),
        }
    }
    if rng.random_bool(0.3) {
        filter.sequence = steps(rng);
        for step in &mut filter.sequence {
            "click".clone_into(&mut step.r#match.as_mut().unwrap().r#type);
        }
    }
    let request = ListSessionsRequest { filter: Some(filter.clone()), page_size: 1_000, ..Default::default() };
    let before = worlds.lock().unwrap().acknowledged.clone();
    let answer = reel.sessions().list_sessions(request.clone()).await.unwrap().into_inner();
    let after = worlds.lock().unwrap().sent.clone();
    let matching = |world: &World| -> BTreeSet<String> {
        let found = answers::sessions(world, &filter, SessionOrder::StartTime, false);
        found.into_iter().map(|(recorded, _)| recorded.id.clone()).collect()
    };
    let found: BTreeSet<String> = answer.sessions.into_iter().map(|session| session.id).collect();
    let (least, most) = (matching(&before), matching(&after));
    assert!(least.is_subset(&found), "missing: {:?} {request:?}", least.difference(&found));
    assert!(found.is_subset(&most), "too many: {:?} {request:?}", found.difference(&most));
    !found.is_empty()
}

async fn ask_for_counts(reel: &Reel, worlds: &Mutex<Worlds>, rng: &mut StdRng) {
    let dimensions = [
        ActionDimension::Type,
        ActionDimension::User,
        ActionDimension::SessionDay,
        ActionDimension::Source,
        ActionDimension::Target,
    ];
    let dimension = *dimensions.choose(rng).unwrap();
    let request = CountActionsRequest { group_by: vec![dimension.into()], limit: 1_000, ..Default::default() };
    let before = answers::counts(&worlds.lock().unwrap().acknowledged, &request);
    let answer = analytics(reel).count_actions(request.clone()).await.unwrap().into_inner();
    let after = answers::counts(&worlds.lock().unwrap().sent, &request);
    let count = |groups: &[reel::proto::ActionGroup], like: &reel::proto::ActionGroup| {
        let same = |group: &&reel::proto::ActionGroup| {
            let key = |group: &reel::proto::ActionGroup| reel::proto::ActionGroup { action_count: 0, ..group.clone() };
            key(group) == key(like)
        };
        groups.iter().find(same).map_or(0, |group| group.action_count)
    };
    for group in before.groups.iter().chain(&answer.groups) {
        let counts = [&before, &answer, &after].map(|answer| count(&answer.groups, group));
        assert!(counts.is_sorted(), "{counts:?} {group:?} {request:?}");
    }
    assert!(before.total_action_count <= answer.total_action_count, "{request:?}");
    assert!(answer.total_action_count <= after.total_action_count, "{request:?}");
}
