//! What is erased, or has expired, is in no segment either.

use std::{fmt::Write as _, path::Path};

use chrono::{TimeDelta, Utc};
use reel::{
    model::{ArchivePolicy, ExpiryReason, RetentionPolicy},
    proto::{
        DeleteSessionRequest, DeleteUserRequest, GetStorageStatsRequest, SessionEnd, SessionStart,
        retention_service_client::RetentionServiceClient,
    },
    store::{Due, FacetIds},
};
use tonic::Code;

use super::{
    archive_all, files,
    gate::{Gate, Stop},
    later, record_sessions, tidy, with_archive,
};
use crate::{
    exact::{check_index, wait_until_indexed},
    harness::{
        Backend, NOON_MS, Reel, TestDatabase, action, batch, end, eventually, service_args, session_id, start, user,
    },
    on_both_databases,
    retention::traces::everything,
};

on_both_databases!(
    what_is_erased_is_in_no_segment,
    a_user_deleted_by_hand_is_in_no_segment,
    archived_sessions_expire_with_their_files,
    the_budget_archives_the_oldest_days,
    whoever_has_read_a_session_before_it_was_erased_makes_none_of_its_facets_anew,
);

const CANARY: &str = "canary";

/// All texts of the database and of the archive's files, as another reader of Parquet would see them.
async fn everything_everywhere(database: &TestDatabase, folder: &Path) -> String {
    let mut all = everything(database).await;
    for file in files(folder) {
        let bytes = bytes::Bytes::from(std::fs::read(&file).unwrap());
        all.push_str(&String::from_utf8_lossy(&bytes));
        let batches = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
        for batch in batches.build().unwrap() {
            write!(all, "{:?}", batch.unwrap()).unwrap();
        }
    }
    all
}

/// Records two sessions of a user that nobody is to find any more.
async fn record_canaries(reel: &Reel, database: &TestDatabase) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..2 {
        let id = session_id(NOON_MS + 60_000 * number);
        let mut actions: Vec<_> = (0..3).map(|offset| action(offset, "click", "canary-target")).collect();
        "\"canary-data\"".clone_into(&mut actions[0].data);
        let of = SessionStart { user: Some(user("canary-user", "canary@example.com")), ..Default::default() };
        let requests = vec![start(&id, of), batch("", "canary-source", 1, actions), end("", SessionEnd::default())];
        reel.record(requests).await.unwrap();
        ids.push(id);
    }
    wait_until_indexed(database).await;
    ids
}

async fn what_is_erased_is_in_no_segment(backend: Backend) {
    let (reel, database, folder) = with_archive(backend).await;
    let others = record_sessions(&reel, &database, 1).await;
    let ids = record_canaries(&reel, &database).await;
    let before = reel.play_all(&others[0]).await;
    archive_all(&reel).await;
    assert!(everything_everywhere(&database, folder.path()).await.contains("canary-data"), "it can be found");
    let request = DeleteSessionRequest { session_id: ids[0].clone() };
    assert_eq!(reel.sessions().delete_session(request).await.unwrap().into_inner().erased_action_count, 3);
    assert_eq!(reel.get(&ids[0]).await.unwrap_err().code(), Code::NotFound);
    let erased = reel.users().delete_user(DeleteUserRequest { user_id: "canary-user".to_owned() }).await.unwrap();
    assert_eq!(erased.into_inner().erased_action_count, 3);
    // Within minutes.
    tidy(&reel).await;
    assert!(!everything_everywhere(&database, folder.path()).await.contains(CANARY));
    assert_eq!(reel.play_all(&others[0]).await, before);
    assert_eq!(files(folder.path()).len(), 1);
    reel.stop().await;
}

async fn a_user_deleted_by_hand_is_in_no_segment(backend: Backend) {
    let (reel, database, folder) = with_archive(backend).await;
    record_canaries(&reel, &database).await;
    archive_all(&reel).await;
    database.execute("DELETE FROM users WHERE email = 'canary@example.com'").await;
    assert_eq!(database.number("SELECT count(*) FROM session_facets").await, 0);
    tidy(&reel).await;
    assert_eq!(files(folder.path()), Vec::<String>::new());
    // SQLite's own shell does not overwrite what it deletes, unless told to.
    if backend == Backend::Postgres {
        assert!(!everything(&database).await.contains(CANARY));
    }
    assert_eq!(database.number("SELECT count(*) FROM facets").await, 0);
    check_index(&database).await;
    reel.stop().await;
}

async fn archived_sessions_expire_with_their_files(backend: Backend) {
    let (reel, database, folder) = with_archive(backend).await;
    record_canaries(&reel, &database).await;
    archive_all(&reel).await;
    let mut client = RetentionServiceClient::new(reel.channel.clone());
    let stats = client.get_storage_stats(GetStorageStatsRequest {}).await.unwrap().into_inner().archive.unwrap();
    assert_eq!((stats.segment_count, stats.session_count, stats.action_count), (1, 2, 6));
    assert_eq!(stats.bytes, i64::try_from(std::fs::metadata(&files(folder.path())[0]).unwrap().len()).unwrap());
    let archive = Some(ArchivePolicy { after: Some(TimeDelta::days(1)), keep_for: Some(TimeDelta::days(30)) });
    let policy = RetentionPolicy { keep_for: Some(TimeDelta::days(1)), max_bytes: None, archive };
    let day = chrono::DateTime::from_timestamp_millis(NOON_MS).unwrap().date_naive();
    let due = day.and_hms_opt(0, 0, 0).unwrap().and_utc() + TimeDelta::days(31);
    let early = crate::archive::apply(&reel.store, &policy, due - TimeDelta::microseconds(1)).await;
    assert_eq!(early.days, []);
    let preview = reel.store.retention_preview(&policy, due).await.unwrap();
    let report = crate::archive::apply(&reel.store, &policy, due).await;
    for report in [preview, report] {
        let gone: Vec<_> = report.days.iter().map(|day| (day.reason, day.sessions, day.actions)).collect();
        assert_eq!(
            gone.iter().filter(|(_, sessions, _)| *sessions > 0).collect::<Vec<_>>(),
            [&(ExpiryReason::Age, 2, 6)]
        );
    }
    tidy(&reel).await;
    assert_eq!(files(folder.path()), Vec::<String>::new());
    let left = everything_everywhere(&database, folder.path()).await;
    assert!(!left.contains("canary-data") && !left.contains("canary-target"));
    reel.stop().await;
}

async fn the_budget_archives_the_oldest_days(backend: Backend) {
    let (reel, database, _folder) = with_archive(backend).await;
    let ids = record_sessions(&reel, &database, 30).await;
    let archive = Some(ArchivePolicy { after: None, keep_for: None });
    let bytes = reel.store.retention_preview(&RetentionPolicy::default(), Utc::now()).await.unwrap().bytes_before;
    // One day has to go, not both.
    let policy = RetentionPolicy { keep_for: None, max_bytes: Some(bytes - 1), archive };
    let report = crate::archive::apply(&reel.store, &policy, later()).await;
    assert_eq!(report.days.len(), 1, "{report:?}");
    assert_eq!((report.days[0].reason, report.days[0].sessions), (ExpiryReason::Archive, 12));
    assert!(report.bytes_after < report.bytes_before, "{report:?}");
    assert_eq!(reel.get(&ids[0]).await.unwrap().action_count, 170);
    reel.stop().await;
}

async fn whoever_has_read_a_session_before_it_was_erased_makes_none_of_its_facets_anew(backend: Backend) {
    let (database, gate) = (TestDatabase::new(backend).await, Gate::default());
    let reel = gate.serve(&database).await;
    record_canaries(&reel, &database).await;
    archive_all(&reel).await;
    reel.stop().await;
    let reel = Reel::start_with(gate.open(&database).await, service_args(&["--indexer", "off"])).await;
    reel.wait_until_serving().await;
    let everything = Due { quiet_since: later(), grown_by: 0 };
    let all_due = async || {
        database.execute("UPDATE tracks SET dirty = true, lost_count = NULL").await;
        let store = gate.open(&database).await;
        let due = store.index_due(everything, None, 10).await.unwrap().due;
        assert_eq!(due.len(), 2);
        (store, due)
    };
    let before = gate.reads();
    let (store, due) = all_due().await;
    store.index_sessions(&due, &mut FacetIds::default()).await.unwrap();
    let reads = gate.reads() - before;

    gate.close(Stop::AfterRead(reads - 1));
    let (store, due) = all_due().await;
    let indexing = tokio::spawn(async move { store.index_sessions(&due, &mut FacetIds::default()).await.unwrap() });
    gate.somebody_waits().await;
    let request = DeleteUserRequest { user_id: "canary-user".to_owned() };
    reel.users().delete_user(request).await.unwrap();
    let facets = async || database.number("SELECT count(*) FROM facets").await;
    eventually("facets are swept", async || {
        let _ = reel.store.erasures_finish(Utc::now()).await;
        facets().await == 0
    })
    .await;
    gate.open_up();
    let indexed = indexing.await.unwrap();
    assert_eq!((indexed.sessions.len(), indexed.failed.len()), (2, 0), "they were read before");
    assert_eq!(facets().await, 0);
    reel.stop().await;
}
