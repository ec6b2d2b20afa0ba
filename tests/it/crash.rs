//! What survives when processes die: the service, PostgreSQL and the importer, killed in the middle of their work or asked
//! to end. These tests run the real program. Those that kill PostgreSQL start a server of their own.

mod import;
pub mod postgres;
pub mod process;
pub mod sender;

use rand::RngExt as _;
use reel::{proto::PlaySessionRequest, server::ServeError, store::Unfit};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
};

use self::{
    postgres::Postgres,
    process::Process,
    sender::{SENDERS, Senders, Trouble},
};
use crate::{
    harness::{Backend, Reel, TestDatabase, connect, eventually, play, reason},
    on_both_databases,
};

/// How often a process is killed in one test.
const KILLS: i64 = 5;

on_both_databases!(
    a_killed_server_loses_nothing_that_it_has_acknowledged,
    a_server_that_is_told_to_end_drains_and_exits_with_success,
);

/// Everything that sets a recording apart, as lines of text: all columns but the times of arrival, and the counts of what
/// came twice.
async fn contents(database: &TestDatabase) -> Vec<String> {
    // SQLite keeps ids as bytes.
    let text = |column: &str| match database.backend() {
        Backend::Sqlite => format!("hex({column})"),
        Backend::Postgres => format!("CAST({column} AS text)"),
    };
    let (id, session_id) = (text("id"), text("session_id"));
    let mut lines = Vec::new();
    for sql in [
        "SELECT id || '|' || coalesce(email, '') || '|' || CAST(attributes AS text) FROM users ORDER BY id".to_owned(),
        format!(
            "SELECT {id} || '|' || coalesce(user_id, '') || '|' || CAST(started_at AS text) || '|' || \
             coalesce(CAST(ended_at AS text), 'live') || '|' || coalesce(end_reason, '') || '|' || \
             CAST(attributes AS text) FROM sessions ORDER BY id"
        ),
        format!(
            "SELECT {session_id} || '|' || number || '|' || source || '|' || last_seq || '|' || error_count \
             FROM tracks ORDER BY session_id, number"
        ),
        format!(
            "SELECT {session_id} || '|' || CAST(timestamp AS text) || '|' || track || '|' || seq || '|' || type || '|' || \
             target || '|' || coalesce(CAST(data AS text), 'none') FROM actions ORDER BY session_id, track, seq"
        ),
    ] {
        lines.extend(database.texts(&sql).await);
    }
    lines
}

/// Checks that the database holds what one has to which the same was sent without trouble.
async fn check_same_as_undisturbed(database: &TestDatabase, undisturbed: &TestDatabase) {
    let (disturbed, undisturbed) = (contents(database).await, contents(undisturbed).await);
    let differing = disturbed.iter().zip(&undisturbed).find(|(one, other)| one != other);
    assert_eq!(differing, None);
    assert_eq!(disturbed.len(), undisturbed.len());
}

async fn a_killed_server_loses_nothing_that_it_has_acknowledged(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let mut server = Process::serve(&database.url, &[]).await;
    let senders = Senders::start(server.address, Trouble::ServerMayGoAway);
    for kill in 0..KILLS {
        senders.reach_share(rand::rng().random_range(kill..=kill + 1), KILLS + 2).await;
        server.kill().await;
        server.start_again().await;
    }
    senders.finish().await;

    let (reel, undisturbed) = Reel::start(backend).await;
    Senders::start(reel.address, Trouble::None).finish().await;
    check_same_as_undisturbed(&database, &undisturbed).await;
}

async fn a_server_that_is_told_to_end_drains_and_exits_with_success(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let mut server = Process::serve(&database.url, &[]).await;
    let _silent = TcpStream::connect(server.address).await.unwrap();
    let channel = connect(server.address).await;
    let request = HealthCheckRequest { service: String::new() };
    let mut health = HealthClient::new(channel.clone()).watch(request).await.unwrap().into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().status, ServingStatus::Serving as i32);

    let senders = Senders::start(server.address, Trouble::ServerEnds);
    senders.reach_share(1, 4).await;
    senders.all_have_begun().await;
    let follow = PlaySessionRequest { follow: true, ..play(&sender::session(0)) };
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
    let acknowledged = senders.broken_off().await;
    let exit = server.exited().await;
    assert!(exit.success(), "{exit}");

    let reel = Reel::start_on(&database, &[]).await;
    for (number, acknowledged) in (0..SENDERS).zip(acknowledged) {
        let stored = reel.play_all(&sender::session(number)).await;
        assert!(stored.len() >= acknowledged, "{acknowledged} were acknowledged, {} are there", stored.len());
        sender::check_content(number, &stored);
        assert!(reel.get(&sender::session(number)).await.unwrap().end_time.is_none(), "nobody has ended it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_postgres_backend_costs_retries_and_nothing_else() {
    let postgres = Postgres::start().await;
    let (database, undisturbed) = (postgres.database("disturbed").await, postgres.database("undisturbed").await);
    let mut server = Process::serve(&database.url, &[]).await;
    let senders = Senders::start(server.address, Trouble::DatabaseMayGoAway);
    for kill in 0..KILLS {
        senders.reach_share(kill + 1, KILLS + 2).await;
        postgres.kill_a_backend().await;
    }
    senders.finish().await;
    assert!(server.is_running());

    let second = Process::serve(&undisturbed.url, &[]).await;
    Senders::start(second.address, Trouble::None).finish().await;
    check_same_as_undisturbed(&database, &undisturbed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_postgres_is_waited_for_and_nothing_is_lost() {
    let mut postgres = Postgres::start().await;
    let (database, undisturbed) = (postgres.database("disturbed").await, postgres.database("undisturbed").await);
    let mut server = Process::serve(&database.url, &[]).await;
    let senders = Senders::start(server.address, Trouble::DatabaseMayGoAway);
    for kill in 0..2 {
        senders.reach_share(kill + 1, 4).await;
        postgres.kill();
        eventually("health says so", async || server.health().await == Some(ServingStatus::NotServing)).await;
        let refused = sender::ask_for_cursor(server.address).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "DATABASE_UNAVAILABLE"));
        postgres.start_again().await;
        eventually("health says so", async || server.health().await == Some(ServingStatus::Serving)).await;
    }
    senders.finish().await;
    assert!(server.is_running());

    let second = Process::serve(&undisturbed.url, &[]).await;
    Senders::start(second.address, Trouble::None).finish().await;
    check_same_as_undisturbed(&database, &undisturbed).await;
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
