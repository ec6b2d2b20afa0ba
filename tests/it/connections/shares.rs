//! How connections are shared out: a server that has few to give is enough, and nobody waits for what others ask.

use reel::{
    model::SessionId,
    proto::{
        ActionMatch, GetStorageStatsRequest, ListSessionsRequest, PreviewRetentionRequest, SessionFilter, SessionStart,
        action_match::TargetMatch, retention_service_client::RetentionServiceClient,
    },
    store::Store,
};
use sea_orm::{
    ConnectionTrait as _, TransactionTrait as _,
    sqlx::{Connection as _, PgConnection},
};
use tokio::task::JoinSet;

use crate::{
    crash::postgres::Postgres,
    harness::{Backend, Reel, TestDatabase, batch, clicks, eventually, play, play_through, service_args, start},
};

/// Starts the service as the command line does by default.
async fn process(database: &TestDatabase) -> Reel {
    let store = Store::open(&database.url.parse().unwrap(), 12).await.unwrap();
    let reel = Reel::start_with(store, service_args(&[])).await;
    reel.wait_until_serving().await;
    reel
}

/// So many clients at once upload a session each, play it, and look for sessions, and none of them is refused.
async fn serves(reel: &Reel, clients: usize) {
    let one = async || {
        let messages = vec![start("", SessionStart::default()), batch("", "", 1, clicks(0..10))];
        let session = reel.record(messages).await.unwrap().receipts[0].session_id.clone();
        let played = play_through(reel.channel.clone(), play(&session)).await.unwrap();
        assert_eq!(played.actions.len(), 10);
        reel.sessions().list_sessions(ListSessionsRequest { page_size: 1, ..Default::default() }).await.unwrap();
    };
    futures_util::future::join_all((0..clients).map(|_| one())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_processes_work_on_a_server_of_a_hundred_connections() {
    let mut postgres = Postgres::start().await;
    postgres.set_and_restart("max_connections", "100").await;
    let database = postgres.database("reel").await;
    let mut reels = Vec::new();
    for _ in 0..8 {
        reels.push(process(&database).await);
    }
    futures_util::future::join_all(reels.iter().map(|reel| serves(reel, 6))).await;
    let connections = database.number("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'reel'").await;
    assert!(connections <= 97, "{connections}");
    futures_util::future::join_all(reels.into_iter().map(Reel::stop)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_few_connections_left_refuses_no_upload() {
    for max_connections in ["20", "13"] {
        let mut postgres = Postgres::start().await;
        postgres.set_and_restart("max_connections", max_connections).await;
        let reel = process(&postgres.database("reel").await).await;
        serves(&reel, 40).await;
        reel.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_given_back_when_the_server_has_none_left() {
    let mut postgres = Postgres::start().await;
    postgres.set_and_restart("max_connections", "30").await;
    let database = postgres.database("reel").await;
    let reel = process(&database).await;
    let session = reel.start_session().await;
    // Whoever reads needs connections; nothing has needed one for COPY.
    let read = (0..6).map(|_| async { assert!(reel.play_all(&session).await.is_empty()) });
    futures_util::future::join_all(read).await;
    let mut taken = Vec::new();
    while let Ok(connection) = PgConnection::connect(&database.url).await {
        taken.push(connection);
    }
    eventually("an upload gets through", async || {
        reel.append(&session, "", 1, clicks(0..3)).await.is_ok_and(|receipt| receipt.committed_seq == 3)
    })
    .await;
    drop(taken);
    reel.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_makes_do_with_fewer_connections_where_others_have_taken_them() {
    let mut postgres = Postgres::start().await;
    postgres.set_and_restart("superuser_reserved_connections", "0").await;
    postgres.set_and_restart("max_connections", "30").await;
    let database = postgres.database("reel").await;
    let store = Store::open(&database.url.parse().unwrap(), 20).await.unwrap();
    let reel = Reel::start_with(store, service_args(&[])).await;
    reel.wait_until_serving().await;
    let mut taken = Vec::new();
    eventually("others have twenty connections", async || {
        // Refused where it has more now than will be left to it.
        taken.extend(PgConnection::connect(&database.url).await.ok());
        taken.len() == 20
    })
    .await;
    eventually("nobody waits for a connection that cannot be had", async || reel.store.connections_wanted() <= 10)
        .await;
    for _ in 0..3 {
        serves(&reel, 20).await;
    }
    reel.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_there_before_its_server_takes_no_more_than_that_has() {
    let mut postgres = Postgres::start().await;
    postgres.set_and_restart("superuser_reserved_connections", "0").await;
    postgres.set_and_restart("max_connections", "10").await;
    let database = postgres.database("reel").await;
    postgres.kill();
    let store = Store::open(&database.url.parse().unwrap(), 20).await.unwrap();
    let reel = Reel::start_with(store, service_args(&[])).await;
    postgres.start_again().await;
    reel.wait_until_serving().await;
    eventually("no more are wanted than there are", async || reel.store.connections_wanted() <= 10).await;
    for _ in 0..3 {
        serves(&reel, 20).await;
    }
    reel.stop().await;
}

/// Waits until so many of the service's connections wait for a lock.
async fn wait_for_lock(database: &TestDatabase, connections: i64) {
    let sql = "SELECT count(*) FROM pg_stat_activity \
         WHERE datname = current_database() AND application_name = 'reel' AND wait_event_type = 'Lock'";
    eventually("connections wait for a lock", async || database.number(sql).await >= connections).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statistics_that_take_long_hold_no_playback_up() {
    let (reel, database) = Reel::start(Backend::Postgres).await;
    let session = reel.start_session().await;
    reel.append(&session, "", 1, clicks(0..3)).await.unwrap();
    let connection = database.connect().await;
    let lock = connection.begin().await.unwrap();
    lock.execute_unprepared("LOCK TABLE users IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut asking = JoinSet::new();
    for _ in 0..20 {
        let (mut stats, mut preview) =
            (RetentionServiceClient::new(reel.channel.clone()), RetentionServiceClient::new(reel.channel.clone()));
        asking.spawn(async move { stats.get_storage_stats(GetStorageStatsRequest {}).await.map(|_| ()) });
        asking.spawn(async move { preview.preview_retention(PreviewRetentionRequest {}).await.map(|_| ()) });
    }
    wait_for_lock(&database, 2).await;
    for _ in 0..3 {
        assert_eq!(reel.play_all(&session).await.len(), 3);
    }
    asking.shutdown().await;
    lock.rollback().await.unwrap();
    reel.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_described_while_all_questions_wait() {
    let (reel, database) = Reel::start(Backend::Postgres).await;
    let session = reel.start_session().await;
    reel.append(&session, "", 1, clicks(0..3)).await.unwrap();
    let connection = database.connect().await;
    let lock = connection.begin().await.unwrap();
    lock.execute_unprepared("LOCK TABLE facets, session_facets IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let wanted = ActionMatch {
        r#type: "click".to_owned(),
        target_match: Some(TargetMatch::Target("1".to_owned())),
        ..Default::default()
    };
    let filter = SessionFilter { all_of: vec![wanted], ..Default::default() };
    let mut asking = JoinSet::new();
    for _ in 0..20 {
        let (mut sessions, filter) = (reel.sessions(), filter.clone());
        let request = ListSessionsRequest { filter: Some(filter), ..Default::default() };
        asking.spawn(async move { sessions.list_sessions(request).await.map(|_| ()) });
    }
    wait_for_lock(&database, 2).await;
    for _ in 0..3 {
        assert_eq!(reel.get(&session).await.unwrap().id, session);
    }
    asking.shutdown().await;
    lock.rollback().await.unwrap();
    reel.stop().await;
}

/// Questions about one session go by the connections for reading. With one of these, nobody may hold it and wait for another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_described_by_one_connection() {
    let (reel, database) = Reel::start(Backend::Postgres).await;
    let session = reel.start_session().await;
    reel.append(&session, "", 1, clicks(0..3)).await.unwrap();
    reel.stop().await;
    // It is described by its actions, which are in partitions.
    database.execute("UPDATE tracks SET dirty = true").await;
    let store = Store::open(&database.url.parse().unwrap(), 9).await.unwrap();
    // One of the two connections for reading listens.
    let listener = store.changes_listen().await.unwrap();
    let id: SessionId = session.parse().unwrap();
    let found = store.session_describe(id).await.unwrap();
    assert_eq!(found.summary.action_count, 3);
    drop(listener);
    store.close().await;
}
