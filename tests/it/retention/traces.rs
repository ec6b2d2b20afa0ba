//! After an erasure or an expiry nothing is left of what was there.

use reel::proto::{DeleteSessionRequest, DeleteUserRequest, SessionStart};

use super::{keep_days, listed, midnight, record_day};
use crate::{
    crash::process::Process,
    exact::wait_until_indexed,
    harness::{Backend, NOON_MS, Reel, TestDatabase, action, batch, clicks, eventually, session_id, start, user},
    on_both_databases,
};

on_both_databases!(
    what_went_is_nowhere_any_more,
    the_facets_of_a_session_are_found_by_the_session_alone,
    facets_are_swept_in_steps_each_a_commit_of_its_own,
);

/// Every text of every table, or the bytes of the file.
pub async fn everything(database: &TestDatabase) -> String {
    if database.backend() == Backend::Sqlite {
        let path = database.url.strip_prefix("sqlite://").unwrap();
        return [path.to_owned(), format!("{path}-wal")]
            .iter()
            .filter_map(|path| std::fs::read(path).ok())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .collect();
    }
    let mut all = String::new();
    for table in database.texts("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'").await {
        all.extend(database.texts(&format!("SELECT t::text FROM \"{table}\" AS t")).await);
    }
    all
}

async fn what_went_is_nowhere_any_more(backend: Backend) {
    const CANARIES: [&str; 5] =
        ["canary-user", "canary@example.com", "canary-target", "canary-data", "canary-attribute"];
    let (reel, database) = Reel::start(backend).await;
    let kept = record_day(&reel, 1, 2).await;
    for (number, how) in ["expired", "erased"].into_iter().enumerate() {
        let id = session_id(midnight(0).timestamp_millis() + i64::try_from(number).unwrap());
        let actions = (0..300).map(|offset| {
            let mut canary = action(offset, "click", &format!("canary-target {}", offset % 7));
            canary.data = format!("{{\"secret\": \"canary-data {offset} {}\"}}", "y".repeat(500));
            canary
        });
        let canary = SessionStart {
            user: Some(user("canary-user", "canary@example.com")),
            attributes: [("of".to_owned(), "canary-attribute".to_owned())].into(),
            ..Default::default()
        };
        reel.record(vec![start(&id, canary), batch("", "", 1, actions.collect())]).await.unwrap();
        wait_until_indexed(&database).await;
        let all = everything(&database).await;
        assert!(CANARIES.iter().all(|canary| all.contains(canary)), "{how}: they can be found");
        if how == "erased" {
            let request = DeleteSessionRequest { session_id: id };
            assert_eq!(reel.sessions().delete_session(request).await.unwrap().into_inner().erased_action_count, 300);
        }
        reel.store.retention_apply(&keep_days(1), midnight(2)).await.unwrap();
        if how == "erased" {
            let request = DeleteUserRequest { user_id: "canary-user".to_owned() };
            let _ = reel.users().delete_user(request).await;
            reel.store.retention_apply(&keep_days(1), midnight(2)).await.unwrap();
        }
        let all = everything(&database).await;
        let left: Vec<_> = CANARIES.iter().filter(|canary| all.contains(**canary)).collect();
        // The user was made just now, and is kept as long as a session would be.
        let left: Vec<_> = left.into_iter().filter(|canary| how == "erased" || !canary.contains("user")).collect();
        let left: Vec<_> = left.into_iter().filter(|canary| how == "erased" || !canary.contains('@')).collect();
        assert_eq!(left, Vec::<&&str>::new(), "{how}");
    }
    assert_eq!(listed(&reel).await.len(), kept.len());
    reel.stop().await;
}

/// Records two sessions that are in the index, and gives their ids.
async fn two_indexed_sessions(reel: &Reel, database: &TestDatabase) -> [String; 2] {
    let ids = [0, 1].map(|number| session_id(NOON_MS + number));
    for id in &ids {
        reel.record(vec![start(id, SessionStart::default()), batch("", "", 1, clicks(0..300))]).await.unwrap();
    }
    wait_until_indexed(database).await;
    ids
}

async fn the_facets_of_a_session_are_found_by_the_session_alone(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let ids = two_indexed_sessions(&reel, &database).await;
    reel.stop().await;
    let facets = async || database.number("SELECT count(*) FROM session_facets").await;
    assert_eq!(facets().await, 600);
    // Nobody indexes them again without their actions.
    let reel = Reel::start_on(&database, &["--indexer", "off"]).await;
    database.execute("DELETE FROM actions").await;
    let request = DeleteSessionRequest { session_id: ids[0].clone() };
    reel.sessions().delete_session(request).await.unwrap();
    assert_eq!(facets().await, 300);
    assert_eq!(database.number("SELECT CAST(sum(session_count) AS bigint) FROM facet_days").await, 300);
    database.execute("DELETE FROM sessions").await;
    assert_eq!(facets().await, 0);
    assert_eq!(database.number("SELECT CAST(sum(session_count) AS bigint) FROM facet_days").await, 0);
    reel.stop().await;
}

async fn facets_are_swept_in_steps_each_a_commit_of_its_own(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let mut process = Process::serve(&database.url, &[]).await;
    process.kill().await;
    let numbers = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 5000)";
    database
        .execute(&format!("{numbers} INSERT INTO facets (type, target) SELECT 'click', 'loose ' || n FROM c"))
        .await;
    let left = async || database.number("SELECT count(*) FROM facets").await;
    assert_eq!(left().await, 5_000);
    process.begin_again_to_die_at("facets swept for a step");
    assert_eq!(process.exited().await.code(), None, "it died");
    let after_a_step = left().await;
    assert!((1..5_000).contains(&after_a_step), "{after_a_step}");
    process.start_again_to_die_at(None).await;
    eventually("all are swept", async || left().await == 0).await;
}
