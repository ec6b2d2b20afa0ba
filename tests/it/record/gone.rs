//! Writers remember tracks. What they remember may have gone: by an erasure, by hand, or with a server that was failed over.

use reel::proto::{DeleteSessionRequest, SessionStart};
use tonic::Code;

use crate::{
    harness::{Backend, NOON_MS, Reel, TestDatabase, clicks, metadata, reason, session_id, start},
    on_both_databases,
};

on_both_databases!(
    a_track_whose_row_has_gone_begins_at_1,
    a_session_made_anew_does_not_go_on_where_the_erased_one_stopped,
    actions_go_to_the_track_that_has_their_source_now,
);

async fn expect_to_begin_at_1(reel: &Reel, session: &str, first_seq: i64) {
    let refused = reel.append(session, "", first_seq, clicks(first_seq - 1..first_seq)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Aborted, "SEQUENCE_GAP"));
    assert_eq!(metadata(&refused, "expected_seq"), "1");
}

async fn a_track_whose_row_has_gone_begins_at_1(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let id = reel.start_session().await;
    reel.append(&id, "", 1, clicks(0..3)).await.unwrap();
    database.execute("DELETE FROM actions").await;
    database.execute("DELETE FROM tracks").await;
    expect_to_begin_at_1(&reel, &id, 4).await;
    // Asked again, the answer is the same.
    expect_to_begin_at_1(&reel, &id, 4).await;
    assert_eq!(database.number("SELECT count(*) FROM tracks").await, 0);
    let receipt = reel.append(&id, "", 1, clicks(0..4)).await.unwrap();
    assert_eq!((receipt.committed_seq, receipt.accepted_count), (4, 4));
}

/// Erases a session through this process, and starts it again as one may when nothing is known of the erasure any more.
async fn make_anew(reel: &Reel, database: &TestDatabase, id: &str) {
    reel.sessions().delete_session(DeleteSessionRequest { session_id: id.to_owned() }).await.unwrap();
    database.execute("DELETE FROM tombstones").await;
    reel.send(start(id, SessionStart::default())).await.unwrap();
}

async fn a_session_made_anew_does_not_go_on_where_the_erased_one_stopped(backend: Backend) {
    let (first, database) = Reel::start(backend).await;
    let second = Reel::start_on(&database, &[]).await;
    for eraser in [&first, &second] {
        let id = session_id(NOON_MS);
        first.send(start(&id, SessionStart::default())).await.unwrap();
        first.append(&id, "", 1, clicks(0..3)).await.unwrap();
        make_anew(eraser, &database, &id).await;
        expect_to_begin_at_1(&first, &id, 4).await;
        expect_to_begin_at_1(&second, &id, 4).await;
        assert_eq!(first.play_all(&id).await.len(), 0);
    }
}

async fn actions_go_to_the_track_that_has_their_source_now(backend: Backend) {
    let (first, database) = Reel::start(backend).await;
    let second = Reel::start_on(&database, &[]).await;
    let id = session_id(NOON_MS);
    first.send(start(&id, SessionStart::default())).await.unwrap();
    first.append(&id, "web", 1, clicks(0..3)).await.unwrap();
    make_anew(&second, &database, &id).await;
    // The same track in the same place, but it has another number.
    second.append(&id, "server", 1, clicks(10..11)).await.unwrap();
    second.append(&id, "web", 1, clicks(0..3)).await.unwrap();
    let receipt = first.append(&id, "web", 4, clicks(3..4)).await.unwrap();
    assert_eq!((receipt.committed_seq, receipt.accepted_count), (4, 1));
    let played = first.play_all(&id).await;
    let of_web: Vec<_> = played.iter().filter(|action| action.source == "web").map(|action| action.seq).collect();
    assert_eq!((of_web, played.len()), (vec![1, 2, 3, 4], 5));
}
