//! Retention and storage as RetentionService tells of them.

use chrono::{TimeDelta, Utc};
use reel::proto::{
    ApplyRetentionRequest, ExpiryReason, GetStorageStatsRequest, PreviewRetentionRequest,
    retention_service_client::RetentionServiceClient,
};

use super::{listed, midnight, pin, record_day};
use crate::{
    harness::{Backend, Reel, TestDatabase, eventually, timestamp},
    on_both_databases,
};

on_both_databases!(the_service_says_what_is_stored_and_what_would_go);

/// What is stored is what the database says, of every table that migrations make: a budget of bytes is kept by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bytes_of_all_tables_are_counted_on_postgres() {
    let (reel, database) = Reel::start(Backend::Postgres).await;
    record_day(&reel, 0, 20).await;
    reel.stop().await;
    let store = reel::store::Store::open(&database.url.parse().unwrap(), 4).await.unwrap();
    let stats = store.storage_stats(Utc::now()).await.unwrap();
    let mut counted: Vec<_> = stats.tables.iter().map(|table| table.name.as_str()).collect();
    counted.sort_unstable();
    let whole = "FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')";
    let names = format!("SELECT relname::text {whole} AND NOT relispartition ORDER BY relname::text COLLATE \"C\"");
    assert_eq!(counted, database.texts(&names).await);
    // The server's own upkeep may add a page in between.
    eventually("the same bytes are counted", async || {
        let tables = store.storage_stats(Utc::now()).await.unwrap().tables;
        let bytes: i64 = tables.iter().map(|table| table.table_bytes + table.index_bytes).sum();
        bytes == database.number(&format!("SELECT sum(pg_total_relation_size(oid))::bigint {whole}")).await
    })
    .await;
    store.close().await;
}

async fn the_service_says_what_is_stored_and_what_would_go(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let recorder = Reel::start_on(&database, &[]).await;
    let ids = record_day(&recorder, 0, 3).await;
    record_day(&recorder, 1, 2).await;
    pin(&recorder, &ids[0], Some(Utc::now() + TimeDelta::days(9))).await;
    let mut retention = RetentionServiceClient::new(recorder.channel.clone());
    let stats = retention.get_storage_stats(GetStorageStatsRequest {}).await.unwrap().into_inner();
    assert_eq!((stats.session_count, stats.action_count, stats.user_count), (5, 50, 2));
    assert_eq!((stats.kept_session_count, stats.next_expiry.is_some()), (1, false));
    assert_eq!(stats.oldest_start_time, Some(timestamp(midnight(0).timestamp_millis())));
    assert_eq!(stats.newest_start_time, Some(timestamp(midnight(2).timestamp_millis() - 1)));
    assert!(stats.bytes > 0 && !stats.tables.is_empty(), "{stats:?}");
    let days: Vec<_> = stats.days.iter().map(|day| (day.day.as_str(), day.session_count, day.action_count)).collect();
    assert_eq!(days, [("2026-11-02", 3, 30), ("2026-11-03", 2, 20)]);
    assert!(backend == Backend::Sqlite || stats.days.iter().all(|day| day.bytes > 0));
    // Nothing goes where everything is kept.
    let nothing = retention.apply_retention(ApplyRetentionRequest {}).await.unwrap().into_inner().report.unwrap();
    assert_eq!((nothing.days.len(), nothing.session_count), (0, 0));
    recorder.stop().await;

    // The sessions are from 2026; another service keeps them for ten thousand days, and a third for one.
    let keeper = Reel::start_on(&database, &["--retention", "10000days"]).await;
    let mut retention = RetentionServiceClient::new(keeper.channel.clone());
    let stats = retention.get_storage_stats(GetStorageStatsRequest {}).await.unwrap().into_inner();
    let next = midnight(1) + TimeDelta::days(10_000);
    assert_eq!(stats.next_expiry_time, Some(timestamp(next.timestamp_millis())));
    assert_eq!(stats.next_expiry.unwrap().session_count, 3);
    keeper.stop().await;

    // What it does by itself as soon as it is up.
    let service = Reel::start_on(&database, &["--retention", "1day"]).await;
    eventually("what is too old has gone", async || listed(&service).await == ids[..1]).await;
    let mut retention = RetentionServiceClient::new(service.channel.clone());
    let preview = retention.preview_retention(PreviewRetentionRequest {}).await.unwrap().into_inner().report.unwrap();
    assert_eq!(preview.days.len(), 0, "{preview:?}");
    pin(&service, &ids[0], None).await;
    let preview = retention.preview_retention(PreviewRetentionRequest {}).await.unwrap().into_inner().report.unwrap();
    let [only] = preview.days.as_slice() else { panic!("{preview:?}") };
    assert_eq!((only.day.as_str(), only.reason(), only.session_count), ("2026-11-02", ExpiryReason::Age, 1));
    let gone = retention.apply_retention(ApplyRetentionRequest {}).await.unwrap().into_inner().report.unwrap();
    assert_eq!((gone.session_count, gone.action_count), (1, 10));
    service.stop().await;
}
