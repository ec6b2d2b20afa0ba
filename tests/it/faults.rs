//! A faulty network between client and server, and between server and database: connections that break at any byte, in good
//! order or not, that stall, drip, and go silent. What is acknowledged is kept, nothing is stored twice, and when the network
//! heals everything goes on by itself.
//!
//! A failure prints its seed. `REEL_TEST_SEED` runs that seed alone; `REEL_TEST_PLANS` says how many are tried.

mod fault;
mod proxy;
mod reader;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tonic_health::pb::health_check_response::ServingStatus;

use self::{
    fault::{Direction, Hazards, Kind},
    proxy::Proxy,
};
use crate::{
    harness::{Backend, Reel, TestDatabase, say_seed, seeds},
    on_both_databases,
    senders::{Script, Senders, Trouble},
};

/// How many plans are tried in each test, unless `REEL_TEST_PLANS` says otherwise.
const PLANS: u64 = 2;

/// How many connections break in each plan before the network heals.
const FAULTS: usize = 30;

/// How long anything may take to go on by itself once its cause has ended.
const RECOVERS_WITHIN: Duration = Duration::from_secs(10);

on_both_databases!(
    senders_behind_a_faulty_network_lose_nothing_and_store_nothing_twice,
    a_playback_that_is_resumed_after_every_break_shows_everything_once_and_in_order,
);

/// The bytes that a connection of senders lives for.
const FEW_BYTES: u64 = 200_000;

/// The bytes that a connection lives for through which a session is read that has more.
const MANY_BYTES: u64 = 1_500_000;

/// Between clients and the server, a black hole costs no more than the client's patience.
fn between_client_and_server(seed: u64, longest: u64) -> Hazards {
    Hazards { seed, black_holes: 0.1, at_commits: 0.0, longest }
}

/// Between the server and its database, whoever is served waits with it.
fn between_server_and_database(seed: u64, longest: u64) -> Hazards {
    Hazards { seed, black_holes: 0.05, at_commits: 0.5, longest }
}

/// Where a PostgreSQL server is, by the URL of a database.
fn server_of(url: &str) -> SocketAddr {
    let place = url.rsplit_once('@').unwrap().1;
    place.split_once('/').unwrap().0.parse().expect("the address of a server on this machine")
}

/// The URL of the same database through a proxy.
fn through(proxy: &Proxy, url: &str) -> String {
    url.replace(&server_of(url).to_string(), &proxy.address.to_string())
}

/// Waits until so many connections have broken.
async fn faults(proxy: &Proxy) {
    let faults = async {
        while proxy.faults() < FAULTS {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(2), faults).await.expect("the network is faulty");
}

/// Waits until the service says that it serves and senders get on. Not longer than it may take.
async fn recovers(reel: &Reel, senders: &Senders) {
    let begun = Instant::now();
    tokio::time::timeout(RECOVERS_WITHIN, reel.wait_until_serving()).await.expect("health says so");
    let left = RECOVERS_WITHIN.saturating_sub(begun.elapsed());
    tokio::time::timeout(left, senders.get_on()).await.expect("writing goes on by itself");
}

async fn senders_behind_a_faulty_network_lose_nothing_and_store_nothing_twice(backend: Backend) {
    for seed in seeds(PLANS) {
        say_seed(seed);
        let (reel, database) = Reel::start(backend).await;
        let proxy = Proxy::start(reel.address, between_client_and_server(seed, FEW_BYTES)).await;
        let senders = Senders::start(proxy.address, Trouble::NetworkMayFail, Script::new(seed));
        faults(&proxy).await;
        proxy.heal();
        recovers(&reel, &senders).await;
        let sent = senders.stop().await;
        sent.check(reel.address, Trouble::None, &database, &TestDatabase::new(backend).await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_behind_a_faulty_network_to_its_database_loses_nothing_and_recovers() {
    // Only some connections break at a COMMIT that is worth something: with fewer plans, acknowledging it unseen goes unnoticed.
    for seed in seeds(3 * PLANS) {
        say_seed(seed);
        let database = TestDatabase::new(Backend::Postgres).await;
        let proxy = Proxy::start(server_of(&database.url), between_server_and_database(seed, FEW_BYTES)).await;
        let reel = Reel::start_unready(&through(&proxy, &database.url), &[]).await;
        reel.wait_until_serving().await;
        let senders = Senders::start(reel.address, Trouble::DatabaseNetworkMayFail, Script::new(seed));
        faults(&proxy).await;
        proxy.heal();
        recovers(&reel, &senders).await;
        let sent = senders.stop().await;
        let undisturbed = TestDatabase::new(Backend::Postgres).await;
        sent.check(reel.address, Trouble::DatabaseNetworkMayFail, &database, &undisturbed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_falls_silent_is_noticed_and_connections_that_stay_silent_are_given_up() {
    let seed = seeds(1)[0];
    say_seed(seed);
    let database = TestDatabase::new(Backend::Postgres).await;
    let proxy = Proxy::start_healthy(server_of(&database.url)).await;
    let reel = Reel::start_unready(&through(&proxy, &database.url), &[]).await;
    reel.wait_until_serving().await;
    let senders = Senders::start(reel.address, Trouble::DatabaseNetworkMayFail, Script::new(seed));
    senders.all_get_on().await;
    proxy.fall_silent();
    let noticed = async {
        while reel.health().await != ServingStatus::NotServing {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), noticed).await.expect("health says so");
    proxy.heal();
    recovers(&reel, &senders).await;
    // Longer than elsewhere: the cause has not ended for the connections that there were.
    tokio::time::timeout(3 * RECOVERS_WITHIN, senders.all_get_on()).await.expect("everybody goes on by itself");
    let sent = senders.stop().await;
    let undisturbed = TestDatabase::new(Backend::Postgres).await;
    sent.check(reel.address, Trouble::DatabaseNetworkMayFail, &database, &undisturbed).await;
}

async fn a_playback_that_is_resumed_after_every_break_shows_everything_once_and_in_order(backend: Backend) {
    for seed in seeds(PLANS) {
        say_seed(seed);
        let (reel, _database) = Reel::start(backend).await;
        let (session, recorded) = reader::record(&reel, seed).await;
        let proxy = Proxy::start(reel.address, between_client_and_server(seed, MANY_BYTES)).await;
        let mut resumed = 0;
        while proxy.faults() < FAULTS || resumed == 0 {
            resumed += reader::play_with_breaks(proxy.address, &session, Trouble::NetworkMayFail, &recorded).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_playback_is_resumed_after_every_break_between_server_and_database() {
    for seed in seeds(PLANS) {
        say_seed(seed);
        let (direct, database) = Reel::start(Backend::Postgres).await;
        let (session, recorded) = reader::record(&direct, seed).await;
        let proxy = Proxy::start(server_of(&database.url), between_server_and_database(seed, MANY_BYTES)).await;
        let reel = Reel::start_unready(&through(&proxy, &database.url), &[]).await;
        reel.wait_until_serving().await;
        let mut resumed = 0;
        while proxy.faults() < FAULTS || resumed == 0 {
            resumed +=
                reader::play_with_breaks(reel.address, &session, Trouble::DatabaseNetworkMayFail, &recorded).await;
        }
    }
}

#[test]
fn a_plan_is_the_same_at_every_run_has_every_fault_and_breaks_every_connection() {
    let hazards = between_server_and_database(7, FEW_BYTES);
    let plans: Vec<_> = (0..1_000).map(|number| hazards.of_connection(number)).collect();
    let again: Vec<_> = (0..1_000).map(|number| hazards.of_connection(number)).collect();
    assert_eq!(plans, again);
    assert!([true, false].iter().all(|is_delivered| {
        plans.iter().filter_map(|plan| plan.at_commit).any(|fault| fault.is_delivered == *is_delivered)
    }));
    let faults: Vec<_> = plans.iter().flat_map(|plan| &plan.faults).collect();
    let kinds: [fn(Kind) -> bool; 5] = [
        |kind| kind == Kind::Cut,
        |kind| kind == Kind::Reset,
        |kind| matches!(kind, Kind::BlackHole(_)),
        |kind| matches!(kind, Kind::Stall(_)),
        |kind| matches!(kind, Kind::Drip { .. }),
    ];
    for direction in [Direction::Up, Direction::Down] {
        for is_kind in kinds {
            assert!(faults.iter().any(|fault| fault.direction == direction && is_kind(fault.kind)));
        }
        for plan in &plans {
            let own = &plan.faults;
            assert!(own.iter().any(|fault| fault.direction == direction && fault.kind.is_fatal()));
            assert!(own.is_sorted_by_key(|fault| fault.after));
        }
    }
}
