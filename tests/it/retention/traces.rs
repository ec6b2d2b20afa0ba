//! After an erasure or an expiry nothing is left of what was there.

use chrono::{TimeDelta, Utc};
use reel::{
    error::Error,
    proto::{DeleteSessionRequest, DeleteUserRequest, GetErasureRequest, SessionEnd, SessionStart},
};
use sea_orm::{ConnectionTrait as _, IsolationLevel, TransactionTrait as _};

use super::{keep_days, listed, midnight, record_day};
use crate::{
    archive::{archive_all, files, later, with_archive},
    connections::role_of,
    crash::process::Process,
    exact::wait_until_indexed,
    harness::{Backend, NOON_MS, Reel, TestDatabase, action, batch, clicks, end, eventually, session_id, start, user},
    on_both_databases,
    users::refuse_to_erase,
};

on_both_databases!(
    what_went_is_nowhere_any_more,
    the_facets_of_a_session_are_found_by_the_session_alone,
    facets_are_swept_in_steps_each_a_commit_of_its_own,
    an_erasure_is_finished_when_no_sql_and_no_byte_shows_it,
    what_is_gone_is_tidied_up_whatever_failed_before,
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
        crate::archive::apply(&reel.store, &keep_days(1), midnight(2)).await;
        if how == "erased" {
            let request = DeleteUserRequest { user_id: "canary-user".to_owned() };
            let _ = reel.users().delete_user(request).await;
            crate::archive::apply(&reel.store, &keep_days(1), midnight(2)).await;
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
    // Different ones are enough.
    let digest = match backend {
        Backend::Postgres => "convert_to('loose ' || n, 'UTF8')",
        Backend::Sqlite => "CAST('loose ' || n AS blob)",
    };
    database
        .execute(&format!(
            "{numbers} INSERT INTO facets (type, target, target_sha256) SELECT 'click', 'loose ' || n, {digest} FROM c"
        ))
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

async fn is_finished(reel: &Reel, request: &GetErasureRequest) -> bool {
    reel.users().get_erasure(request.clone()).await.unwrap().into_inner().finish_time.is_some()
}

/// Goes on with erasures until this one is finished.
async fn finish(reel: &Reel, request: &GetErasureRequest) {
    eventually("the erasure is finished", async || {
        let _ = reel.store.erasures_finish(Utc::now()).await;
        is_finished(reel, request).await
    })
    .await;
}

async fn an_erasure_is_finished_when_no_sql_and_no_byte_shows_it(backend: Backend) {
    const SESSIONS: i64 = 12;
    const BATCHES: i64 = 8;
    let (reel, database) = Reel::start(backend).await;
    // Side by side and of all sizes, so that rows move from page to page, and copies of them stay behind.
    let ids: Vec<_> = (0..SESSIONS).map(|number| session_id(NOON_MS + number)).collect();
    let name = |number: i64| if number % 2 == 0 { "canary" } else { "keep" };
    for (id, number) in ids.iter().zip(0..) {
        let of = SessionStart { user: Some(user(&format!("{}-user", name(number)), "")), ..Default::default() };
        reel.record(vec![start(id, of)]).await.unwrap();
    }
    for batch_number in 0..BATCHES {
        for (id, number) in ids.iter().zip(0..) {
            let actions = (0..9).map(|offset| {
                let at = offset * 1_000 + (batch_number * 7 + number) % 12;
                let mut action = action(at, "click", &format!("{}-target {}", name(number), offset * number));
                let size = usize::try_from((batch_number * 131 + offset * 47 + number * 17) % 700).unwrap();
                action.data = format!("\"{}-data {}\"", name(number), "x".repeat(size));
                action
            });
            reel.append(id, "", batch_number * 9 + 1, actions.collect()).await.unwrap();
        }
    }
    wait_until_indexed(&database).await;
    assert!(everything(&database).await.contains("canary-data"), "it can be found");
    // What statistics show of columns, too, where somebody has made them.
    let statistics = async || {
        let rows = database.texts("SELECT s::text FROM pg_stats AS s WHERE schemaname = current_schema()").await;
        rows.concat()
    };
    if backend == Backend::Postgres {
        database.execute("ANALYZE").await;
        assert!(statistics().await.contains("canary"), "they show values");
    }
    // One of the sessions alone, the others with their user.
    reel.sessions().delete_session(DeleteSessionRequest { session_id: ids[0].clone() }).await.unwrap();
    let alone = GetErasureRequest { session_id: ids[0].clone(), ..Default::default() };
    let request = DeleteUserRequest { user_id: "canary-user".to_owned() };
    let erased = reel.users().delete_user(request).await.unwrap().into_inner();
    assert_eq!(
        (erased.erased_session_count, erased.erased_action_count),
        (SESSIONS / 2 - 1, (SESSIONS / 2 - 1) * BATCHES * 9)
    );
    let of_user = GetErasureRequest { user_id: "canary-user".to_owned(), ..Default::default() };
    finish(&reel, &of_user).await;
    finish(&reel, &alone).await;
    assert!(!everything(&database).await.contains("canary"));
    assert_eq!(database.number("SELECT count(*) FROM erasure_remains").await, 0);
    if backend == Backend::Postgres {
        assert!(!statistics().await.contains("canary"));
        let day = ids[0].parse::<reel::model::SessionId>().unwrap().started_at().format("%Y%m%d").to_string();
        let names =
            format!("('users', 'sessions', 'tracks', 'facets', 'facet_days', 'actions_{day}', 'session_facets_{day}')");
        let cleared = format!("SELECT count(*) FROM pg_stat_user_tables WHERE vacuum_count > 0 AND relname IN {names}");
        assert_eq!(database.number(&cleared).await, 7);
    }
    assert_eq!(reel.play_all(&ids[1]).await.len(), usize::try_from(BATCHES * 9).unwrap());
    reel.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_is_not_finished_while_somebody_reads_who_still_sees_it() {
    let database = TestDatabase::new(Backend::Postgres).await;
    // To which the server does not tell what others are about.
    let (url, _) = role_of(&database).await;
    let owned = TestDatabase::at(url);
    let reel = Reel::start_on(&owned, &[]).await;
    let ids = two_indexed_sessions(&reel, &database).await;
    let reader = database.connect().await;
    let reading = reader.begin_with_config(Some(IsolationLevel::RepeatableRead), None).await.unwrap();
    reading.execute_unprepared("SELECT count(*) FROM sessions").await.unwrap();
    reel.sessions().delete_session(DeleteSessionRequest { session_id: ids[0].clone() }).await.unwrap();
    let request = GetErasureRequest { session_id: ids[0].clone(), ..Default::default() };
    assert_eq!(reel.store.erasures_finish(Utc::now()).await, Err(Error::Contention));
    assert!(!is_finished(&reel, &request).await);
    reading.rollback().await.unwrap();
    finish(&reel, &request).await;
    reel.stop().await;
}

async fn what_is_gone_is_tidied_up_whatever_failed_before(backend: Backend) {
    let (reel, database, folder) = with_archive(backend).await;
    for (number, name) in ["canary", "keep", "stuck"].into_iter().enumerate() {
        let id = session_id(NOON_MS + i64::try_from(number).unwrap());
        let of = SessionStart { user: Some(user(name, "")), ..Default::default() };
        let requests = vec![start(&id, of), batch("", "", 1, clicks(0..3)), end("", SessionEnd::default())];
        reel.record(requests).await.unwrap();
    }
    wait_until_indexed(&database).await;
    archive_all(&reel).await;
    reel.users().delete_user(DeleteUserRequest { user_id: "canary".to_owned() }).await.unwrap();
    database.execute(&refuse_to_erase(backend, "stuck")).await;
    let request = GetErasureRequest { user_id: "canary".to_owned(), ..Default::default() };
    let _ = reel.store.erasures_finish(Utc::now()).await;
    assert!(!is_finished(&reel, &request).await, "its segment is not written anew yet");
    let before = files(folder.path());
    for hours in 1..=4 {
        let now = later() + TimeDelta::hours(hours);
        assert!(reel.store.retention_apply(&keep_days(1), now).await.is_err(), "a session cannot be expired");
    }
    let after = files(folder.path());
    assert!(after.len() <= 1 && after != before, "{before:?} {after:?}");
    finish(&reel, &request).await;
    reel.stop().await;
}
