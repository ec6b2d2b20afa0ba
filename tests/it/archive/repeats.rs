//! What arrives again of an archived session: whatever is wrong with the archive is wrong for that upload alone.

use reel::proto::{Action, SessionStart};

use super::{
    archive_all,
    gate::{Gate, Stop},
    record_sessions,
};
use crate::{
    harness::{Backend, NOON_MS, Reel, TestDatabase, action, batch, clicks, eventually, reason, session_id, start},
    on_both_databases,
};

on_both_databases!(
    a_storage_that_hangs_holds_up_no_other_upload,
    a_missing_file_fails_nobody_elses_upload,
    what_comes_after_a_repeated_batch_waits_for_it,
    a_storage_that_hangs_is_given_up,
);

/// What was sent to a track of a session.
async fn sent(reel: &Reel, id: &str, source: &str) -> Vec<Action> {
    let of_source = reel.play_all(id).await.into_iter().filter(|action| action.source == source);
    of_source.map(|action| Action { seq: 0, source: String::new(), ..action }).collect()
}

/// Uploads that have nothing to do with the archive, enough to come through every lane.
async fn record_others(reel: &Reel) {
    for number in 0..16 {
        let id = session_id(NOON_MS + number);
        let requests = vec![start(&id, SessionStart::default()), batch("", "", 1, clicks(0..3))];
        reel.record(requests).await.unwrap();
        // Repeated, too.
        assert_eq!(reel.append(&id, "", 1, clicks(0..3)).await.unwrap().duplicate_count, 3);
    }
}

async fn a_storage_that_hangs_holds_up_no_other_upload(backend: Backend) {
    let (database, gate) = (TestDatabase::new(backend).await, Gate::default());
    let reel = gate.serve(&database).await;
    let ids = record_sessions(&reel, &database, 2).await;
    let again = sent(&reel, &ids[0], "backend").await;
    archive_all(&reel).await;
    gate.close(Stop::BeforeRead(0));
    let mut ingest = reel.ingest();
    let request = batch(&ids[0], "backend", 1, again);
    let repeating = tokio::spawn(async move { ingest.record_actions(tokio_stream::iter(vec![request])).await });
    gate.somebody_waits().await;
    record_others(&reel).await;
    // Of the same session, too.
    assert_eq!(reel.append(&ids[0], "late", 1, clicks(0..3)).await.unwrap().accepted_count, 3);
    assert!(!repeating.is_finished());
    gate.open_up();
    let receipt = repeating.await.unwrap().unwrap().into_inner().receipts.remove(0).tracks.remove(0);
    assert_eq!((receipt.duplicate_count, receipt.accepted_count, receipt.rejected_count), (20, 0, 0));
    reel.stop().await;
}

async fn a_missing_file_fails_nobody_elses_upload(backend: Backend) {
    let (database, gate) = (TestDatabase::new(backend).await, Gate::default());
    let reel = gate.serve(&database).await;
    let ids = record_sessions(&reel, &database, 2).await;
    let again = sent(&reel, &ids[0], "backend").await;
    archive_all(&reel).await;
    let tracks = database.number("SELECT CAST(sum(last_seq) AS bigint) FROM tracks").await;
    gate.remove_all().await;
    let repeat_beside_others = async |missing: &str| {
        let repeating = async {
            for _ in 0..8 {
                let status = reel.append(&ids[0], "backend", 1, again.clone()).await.unwrap_err();
                let (code, reason) = (status.code(), reason(&status));
                assert_eq!((code, reason.as_str()), (tonic::Code::DataLoss, "SEGMENT_MISSING"), "{missing}");
            }
        };
        tokio::join!(repeating, record_others(&reel), record_others(&reel));
    };
    repeat_beside_others("a file").await;
    assert_eq!(database.number("SELECT CAST(sum(last_seq) AS bigint) FROM tracks").await, tracks + 2 * 16 * 3);
    database.execute("UPDATE segments SET path = NULL").await;
    repeat_beside_others("what was given up").await;
    reel.stop().await;
}

async fn what_comes_after_a_repeated_batch_waits_for_it(backend: Backend) {
    let (database, gate) = (TestDatabase::new(backend).await, Gate::default());
    let reel = gate.serve(&database).await;
    let ids = record_sessions(&reel, &database, 2).await;
    let again = sent(&reel, &ids[0], "backend").await;
    archive_all(&reel).await;
    let late = || vec![action(100_000, "click", "late")];
    // Half of them, then the rest and one that is new, then another.
    let upload = || {
        vec![
            batch(&ids[0], "backend", 1, again[..10].to_vec()),
            batch(&ids[0], "backend", 11, [&again[10..], &late()].concat()),
            batch(&ids[0], "backend", 22, late()),
        ]
    };
    gate.close(Stop::BeforeRead(0));
    let cursor = "SELECT last_seq FROM tracks WHERE source = 'backend' ORDER BY session_id LIMIT 1";
    let recording = async { reel.record(upload()).await };
    let watching = async {
        gate.somebody_waits().await;
        // What the lane had when it came to the first batch, it has looked at by now.
        record_others(&reel).await;
        assert_eq!(database.number(cursor).await, 20);
        gate.open_up();
    };
    let (recorded, ()) = tokio::join!(recording, watching);
    let receipt = recorded.unwrap().receipts.remove(0).tracks.remove(0);
    assert_eq!((receipt.duplicate_count, receipt.accepted_count, receipt.rejected_count), (20, 2, 0));
    assert_eq!(database.number(cursor).await, 22);

    // Nothing is stored of an upload after what was refused.
    gate.remove_all().await;
    let mut refused = upload();
    refused.push(batch(&ids[0], "backend", 23, late()));
    refused.push(batch(&ids[0], "other", 1, late()));
    let status = reel.record(refused).await.unwrap_err();
    assert_eq!(reason(&status), "SEGMENT_MISSING");
    record_others(&reel).await;
    assert_eq!(database.number(cursor).await, 22);
    assert_eq!(database.number("SELECT count(*) FROM tracks WHERE source = 'other'").await, 0);
    reel.stop().await;
}

async fn a_storage_that_hangs_is_given_up(backend: Backend) {
    let (database, gate) = (TestDatabase::new(backend).await, Gate::default());
    let reel = gate.serve(&database).await;
    let ids = record_sessions(&reel, &database, 1).await;
    let again = sent(&reel, &ids[0], "backend").await;
    archive_all(&reel).await;
    gate.close(Stop::BeforeRead(0));
    let status = reel.append(&ids[0], "backend", 1, again.clone()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (tonic::Code::Unavailable, "ARCHIVE_UNAVAILABLE"));
    gate.open_up();
    eventually("it goes on", async || reel.append(&ids[0], "backend", 1, again.clone()).await.is_ok()).await;
    reel.stop().await;
}
