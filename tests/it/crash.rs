//! What survives when processes die: the service, PostgreSQL and the importer, killed in the middle of their work or asked
//! to end. These tests run the real program. Those that kill PostgreSQL start a server of their own.
//!
//! `REEL_TEST_KILLS` says how many kills there are, in all tests that kill at random moments together. A failure prints its
//! seed, from which `REEL_TEST_SEED` makes the same data and the same moments again.

mod import;
mod kills;
pub mod postgres;
pub mod process;

use reel::{proto::PlaySessionRequest, server::ServeError, store::Unfit};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
};

use self::{kills::Kills, postgres::Postgres, process::Process};
use crate::{
    harness::{Backend, Reel, TestDatabase, connect, eventually, play, reason, say_seed},
    on_both_databases,
    senders::{Place, Script, Senders, Trouble, ask_for_cursor},
};

on_both_databases!(
    a_killed_server_loses_nothing_that_it_has_acknowledged,
    a_server_that_is_told_to_end_drains_and_exits_with_success,
);

async fn a_killed_server_loses_nothing_that_it_has_acknowledged(backend: Backend) {
    let mut kills = Kills::new(if backend == Backend::Sqlite { 17 } else { 15 });
    let database = TestDatabase::new(backend).await;
    let mut server = Process::serve(&database.url, &[]).await;
    let senders = Senders::start(server.address, Trouble::ServerMayGoAway, Script::new(kills.seed));
    while kills.go_on() {
        if kills.let_recover() {
            server.wait_until_serving().await;
            senders.get_on().await;
        }
        kills.moment().await;
        server.kill().await;
        server.begin_again();
    }
    server.wait_until_serving().await;
    let sent = senders.stop().await;
    sent.check(server.address, Trouble::None, &database, &TestDatabase::new(backend).await).await;
}

async fn a_server_that_is_told_to_end_drains_and_exits_with_success(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let mut server = Process::serve(&database.url, &[]).await;
    let _silent = TcpStream::connect(server.address).await.unwrap();
    let channel = connect(server.address).await;
    let request = HealthCheckRequest { service: String::new() };
    let mut health = HealthClient::new(channel.clone()).watch(request).await.unwrap().into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().status, ServingStatus::Serving as i32);

    let seed = rand::random();
    say_seed(seed);
    let script = Script::of_endless_sessions(seed);
    let senders = Senders::start(server.address, Trouble::ServerEnds, script);
    senders.all_get_on().await;
    let first = Place { sender: 0, number: 0 }.session();
    let follow = PlaySessionRequest { follow: true, ..play(&first) };
    let mut playback = reel::proto::playback_service_client::PlaybackServiceClient::new(channel.clone());
    let mut playback = playback.play_session(follow).await.unwrap().into_inner();
    playback.message().await.unwrap().expect("a start");

    server.terminate();
    assert_eq!(health.message().await.unwrap().unwrap().status, ServingStatus::NotServing as i32);
    let status = loop {
        if let Err(status) = playback.message().await {
            break status;
        }
    };
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "DRAINING"));
    drop((health, playback, channel));
    let sent = senders.broken_off().await;
    let exit = server.exited().await;
    assert!(exit.success(), "{exit}");

    let reel = Reel::start_on(&database, &[]).await;
    sent.check_stored(&reel.channel, Trouble::None, &database).await;
    for (place, _) in sent.places() {
        assert!(reel.get(&place.session()).await.unwrap().end_time.is_none(), "nobody has ended it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_postgres_backend_costs_retries_and_nothing_else() {
    let mut kills = Kills::new(10);
    let postgres = Postgres::start().await;
    let (database, undisturbed) = (postgres.database("disturbed").await, postgres.database("undisturbed").await);
    let mut server = Process::serve(&database.url, &[]).await;
    let senders = Senders::start(server.address, Trouble::DatabaseMayGoAway, Script::new(kills.seed));
    while kills.go_on() {
        let while_it_works = kills.let_recover();
        if while_it_works {
            senders.get_on().await;
        }
        kills.moment().await;
        postgres.kill_a_backend(while_it_works).await;
    }
    senders.all_get_on().await;
    let sent = senders.stop().await;
    assert!(server.is_running());
    sent.check(server.address, Trouble::DatabaseMayGoAway, &database, &undisturbed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_postgres_is_waited_for_and_nothing_is_lost() {
    let mut kills = Kills::new(8);
    let mut postgres = Postgres::start().await;
    let (database, undisturbed) = (postgres.database("disturbed").await, postgres.database("undisturbed").await);
    let mut server = Process::serve(&database.url, &[]).await;
    let senders = Senders::start(server.address, Trouble::DatabaseMayGoAway, Script::new(kills.seed));
    while kills.go_on() {
        if kills.let_recover() {
            postgres.wait_until_ready().await;
            senders.get_on().await;
        }
        kills.moment().await;
        postgres.kill();
        if kills.is_first() {
            eventually("health says so", async || server.health().await == Some(ServingStatus::NotServing)).await;
            let refused = ask_for_cursor(server.address).await.unwrap_err();
            assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "DATABASE_UNAVAILABLE"));
        }
        postgres.begin_again();
    }
    postgres.wait_until_ready().await;
    eventually("health says so", async || server.health().await == Some(ServingStatus::Serving)).await;
    senders.all_get_on().await;
    let sent = senders.stop().await;
    assert!(server.is_running());
    sent.check(server.address, Trouble::DatabaseMayGoAway, &database, &undisturbed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_may_lose_what_it_has_committed_is_refused() {
    let postgres = Postgres::start().await;
    let database = postgres.database("reel").await;
    for unsafe_setting in ["fsync", "full_page_writes"] {
        postgres.set(unsafe_setting, "off").await;
        let refused = Reel::start_unready(&database.url, &[]).await.ended().await.unwrap_err();
        assert!(
            matches!(&refused, ServeError::Database(Unfit::NotDurable { setting, .. }) if *setting == unsafe_setting),
            "{refused}"
        );
        postgres.set(unsafe_setting, "on").await;
    }
    Reel::start_on(&database, &[]).await.stop().await;
}
