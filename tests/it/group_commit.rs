//! What is written together: many senders' batches share transactions, and no fate.

use futures_util::future::join_all;
use reel::proto::{SessionStart, StreamActionsRequest, ingest_service_client::IngestServiceClient};
use tonic::Code;

use crate::{
    harness::{Backend, NOON_MS, Reel, TestDatabase, batch, click, clicks, play, reason, session_id, start, streamed},
    on_both_databases,
};

on_both_databases!(
    a_batch_that_the_database_refuses_harms_nobody_it_is_written_with,
    messages_of_one_stream_are_written_together_and_acknowledged_in_order,
    after_a_refused_batch_nothing_of_its_stream_is_written,
    a_track_that_another_process_has_moved_is_read_again,
);

/// Makes the database refuse actions on this target, as no check of the service does.
async fn refuse_poison(database: &TestDatabase) {
    let sql = match database.backend() {
        Backend::Sqlite => {
            "CREATE TRIGGER refuse_poison BEFORE INSERT ON actions WHEN NEW.target = 'poison'
                BEGIN SELECT RAISE(ABORT, 'poison'); END"
        }
        Backend::Postgres => {
            "CREATE FUNCTION refuse_poison() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN RAISE 'poison'; END $$;
             CREATE TRIGGER refuse_poison BEFORE INSERT ON actions FOR EACH ROW
                WHEN (NEW.target = 'poison') EXECUTE FUNCTION refuse_poison()"
        }
    };
    database.execute(sql).await;
}

async fn a_batch_that_the_database_refuses_harms_nobody_it_is_written_with(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    refuse_poison(&database).await;
    let sessions: Vec<_> = (0..24).map(|number| session_id(NOON_MS + number)).collect();
    for session in &sessions {
        reel.send(start(session, SessionStart::default())).await.unwrap();
    }
    let poisoned = |number: usize| number % 8 == 3;
    let sent = sessions.iter().enumerate().map(async |(number, session)| {
        let mut actions = clicks(0..20);
        if poisoned(number) {
            actions[7] = click(7_000, "poison");
        }
        reel.append(session, "main", 1, actions).await
    });
    for (number, (outcome, session)) in join_all(sent).await.into_iter().zip(&sessions).enumerate() {
        let stored = reel.play_all(session).await.len();
        if poisoned(number) {
            let status = outcome.unwrap_err();
            assert_eq!((status.code(), reason(&status).as_str(), stored), (Code::Internal, "INTERNAL", 0));
        } else {
            assert_eq!((outcome.unwrap().accepted_count, stored), (20, 20));
        }
    }
    let receipt = reel.append(&sessions[3], "main", 1, clicks(0..20)).await.unwrap();
    assert_eq!((receipt.accepted_count, receipt.committed_seq), (20, 20), "nothing is left of the poisoned batch");
}

/// Sends all of this on one stream without waiting, and gives the receipts' cursors, and the status at the end.
async fn send_at_once(reel: &Reel, messages: Vec<StreamActionsRequest>) -> (Vec<i64>, Option<tonic::Status>) {
    let mut client = IngestServiceClient::new(reel.channel.clone());
    let mut receipts = client.stream_actions(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let mut cursors = Vec::new();
    loop {
        match receipts.message().await {
            Ok(Some(response)) => {
                let tracks = response.receipt.unwrap().tracks;
                cursors.extend(tracks.into_iter().map(|track| track.committed_seq));
            }
            Ok(None) => return (cursors, None),
            Err(status) => return (cursors, Some(status)),
        }
    }
}

async fn messages_of_one_stream_are_written_together_and_acknowledged_in_order(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let session = session_id(NOON_MS);
    let batches = 200;
    let mut messages = vec![streamed(start(&session, SessionStart::default()))];
    messages.extend((0..batches).map(|n| streamed(batch("", "main", n * 5 + 1, clicks(n * 5..n * 5 + 5)))));
    let (cursors, status) = send_at_once(&reel, messages).await;
    assert!(status.is_none(), "{status:?}");
    assert_eq!(cursors, (1..=batches).map(|number| number * 5).collect::<Vec<_>>());
    assert_eq!(reel.play_all(&session).await.len(), 1_000);
    if backend == Backend::Postgres {
        // Each row knows the transaction that wrote it.
        let transactions = database.number("SELECT count(DISTINCT xmin::text) FROM actions").await;
        assert!(transactions <= batches / 2, "{batches} batches took {transactions} transactions");
    }
}

async fn after_a_refused_batch_nothing_of_its_stream_is_written(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let session = session_id(NOON_MS);
    let batch_at = |source: &str, first: i64| streamed(batch("", source, first, clicks(first - 1..first + 4)));
    let messages = vec![
        streamed(start(&session, SessionStart::default())),
        batch_at("main", 1),
        batch_at("main", 6),
        batch_at("main", 16),
        batch_at("main", 11),
        batch_at("web", 1),
    ];
    let (cursors, status) = send_at_once(&reel, messages).await;
    let status = status.unwrap();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Aborted, "SEQUENCE_GAP"));
    assert_eq!(cursors, [5, 10]);
    let played = reel.play(play(&session)).await.unwrap();
    assert_eq!(played.actions.len(), 10, "what comes after the gap is not stored");
    assert_eq!(played.session.unwrap().tracks.len(), 1);
}

async fn a_track_that_another_process_has_moved_is_read_again(backend: Backend) {
    let (one, database) = Reel::start(backend).await;
    let other = Reel::start_on(&database, &[]).await;
    let session = one.start_session().await;
    for round in 0..5 {
        for (number, reel) in [&one, &other].into_iter().enumerate() {
            let first = round * 20 + i64::try_from(number).unwrap() * 10;
            let receipt = reel.append(&session, "main", first + 1, clicks(first..first + 10)).await.unwrap();
            assert_eq!((receipt.accepted_count, receipt.duplicate_count, receipt.committed_seq), (10, 0, first + 10));
        }
    }
    let again = one.append(&session, "main", 81, clicks(80..110)).await.unwrap();
    assert_eq!((again.accepted_count, again.duplicate_count, again.committed_seq), (10, 20, 110));
    // Started by the one, and given a new track by both.
    let (web, worker) =
        tokio::join!(one.append(&session, "web", 0, clicks(0..3)), other.append(&session, "worker", 0, clicks(0..3)));
    assert_eq!((web.unwrap().committed_seq, worker.unwrap().committed_seq), (3, 3));
    assert_eq!(one.get(&session).await.unwrap().tracks.len(), 3);
}
