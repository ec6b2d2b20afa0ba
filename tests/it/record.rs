//! Recording: what is stored, what is acknowledged, what is refused.

mod gone;
mod heal;

use reel::proto::{
    Action, GetIngestCursorRequest, RejectionReason, SessionEnd, SessionStart,
    ingest_service_client::IngestServiceClient,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::{
    harness::{
        Backend, NOON_MS, Reel, TestDatabase, action, batch, click, clicks, connect, end, eventually, metadata, reason,
        session_id, start, streamed, timestamp,
    },
    on_both_databases,
};

on_both_databases!(
    a_stream_of_start_batch_and_end_is_recorded,
    one_stream_may_carry_many_sessions,
    every_message_of_a_stream_gets_its_receipt_in_order,
    what_arrives_again_is_counted_as_duplicate,
    other_content_under_a_stored_seq_is_a_conflict_and_not_stored,
    a_gap_is_refused_and_says_what_was_expected,
    a_batch_without_first_seq_is_numbered,
    tracks_are_numbered_independently_up_to_the_limit,
    rejected_actions_leave_a_placeholder_and_harm_nobody,
    a_dropped_connection_leaves_whole_batches_only,
    what_is_acknowledged_is_in_the_database,
    two_senders_of_one_track_do_not_interleave,
    two_services_record_into_one_session,
    cursors_tell_where_to_go_on,
    data_comes_back_byte_for_byte,
);

async fn a_stream_of_start_batch_and_end_is_recorded(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let requests =
        vec![start("", SessionStart::default()), batch("", "", 1, clicks(0..3)), end("", SessionEnd::default())];
    let receipts = reel.record(requests).await.unwrap().receipts;
    assert_eq!(receipts.len(), 1);
    let receipt = &receipts[0];
    assert!(receipt.started && receipt.ended);
    let track = &receipt.tracks[0];
    assert_eq!((track.source.as_str(), track.committed_seq, track.accepted_count), ("main", 3, 3));

    let session = reel.get(&receipt.session_id).await.unwrap();
    assert_eq!((session.action_count, session.end_reason.as_str()), (3, "ended"));
    let played = reel.play_all(&receipt.session_id).await;
    assert_eq!(played.iter().map(|action| action.seq).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(played.iter().all(|action| action.source == "main"));
}

async fn one_stream_may_carry_many_sessions(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let (first, second) = (session_id(NOON_MS), session_id(NOON_MS + 1));
    let receipts = reel
        .record(vec![
            start(&first, SessionStart::default()),
            start(&second, SessionStart::default()),
            batch("", "", 1, clicks(0..2)),
            batch(&first, "", 1, clicks(0..3)),
            batch("", "", 3, clicks(2..4)),
        ])
        .await
        .unwrap()
        .receipts;
    let seen: Vec<_> =
        receipts.iter().map(|receipt| (receipt.session_id.as_str(), receipt.tracks[0].committed_seq)).collect();
    assert_eq!(seen, [(first.as_str(), 3), (second.as_str(), 4)]);
}

async fn every_message_of_a_stream_gets_its_receipt_in_order(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut receipts = reel.ingest().stream_actions(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    sender.send(streamed(start("", SessionStart::default()))).await.unwrap();
    let started = receipts.message().await.unwrap().unwrap().receipt.unwrap();
    assert!(started.started && started.tracks.is_empty());
    for number in 0..5 {
        sender.send(streamed(batch("", "", number * 2 + 1, clicks(number * 2..number * 2 + 2)))).await.unwrap();
        // The receipt comes while the stream is still open, and what it says is there for everybody.
        let receipt = receipts.message().await.unwrap().unwrap().receipt.unwrap();
        assert_eq!(receipt.tracks[0].committed_seq, number * 2 + 2);
        assert_eq!(reel.get(&started.session_id).await.unwrap().action_count, number * 2 + 2);
    }
    drop(sender);
    assert!(receipts.message().await.unwrap().is_none());
    assert!(reel.get(&started.session_id).await.unwrap().end_time.is_none());
}

async fn what_arrives_again_is_counted_as_duplicate(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = reel.start_session().await;
    reel.append(&id, "", 1, clicks(0..10)).await.unwrap();
    for (first, range, accepted, duplicate) in
        [(1, 0..10, 0, 10), (1, 0..1, 0, 1), (10, 9..10, 0, 1), (8, 7..13, 3, 3), (14, 13..14, 1, 0)]
    {
        let receipt = reel.append(&id, "", first, clicks(range)).await.unwrap();
        assert_eq!((receipt.accepted_count, receipt.duplicate_count, receipt.rejected_count), (accepted, duplicate, 0));
    }
    let session = reel.get(&id).await.unwrap();
    assert_eq!((session.action_count, session.tracks[0].duplicate_count), (14, 15));
    assert_eq!(reel.play_all(&id).await.len(), 14);
}

async fn other_content_under_a_stored_seq_is_a_conflict_and_not_stored(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = reel.start_session().await;
    reel.append(&id, "", 1, clicks(0..6)).await.unwrap();
    let before = reel.play_all(&id).await;
    let mut changed = clicks(0..6);
    changed[0].target.push('!');
    changed[1].r#type = "tap".into();
    changed[2].data = r#"{"at":2000}"#.into();
    changed[3].timestamp = Some(timestamp(NOON_MS - 86_400_000));
    changed[4].data.clear();
    let receipt = reel.append(&id, "", 1, changed).await.unwrap();
    assert_eq!((receipt.accepted_count, receipt.duplicate_count, receipt.rejected_count), (0, 1, 5));
    assert_eq!(receipt.rejections.iter().map(|rejection| rejection.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(receipt.rejections.iter().all(|rejection| rejection.reason() == RejectionReason::Conflict));
    assert_eq!(reel.play_all(&id).await, before);
}

async fn a_gap_is_refused_and_says_what_was_expected(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = reel.start_session().await;
    for (committed, first_seq) in [(0, 2), (3, 5), (3, i64::MAX)] {
        if committed > 0 {
            reel.append(&id, "", 1, clicks(0..committed)).await.unwrap();
        }
        let refused = reel.append(&id, "", first_seq, clicks(0..1)).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Aborted, "SEQUENCE_GAP"));
        assert_eq!(metadata(&refused, "expected_seq"), (committed + 1).to_string());
        assert_eq!(reel.get(&id).await.unwrap().action_count, committed);
    }
    // What came before the gap on the same stream stays.
    let refused =
        reel.record(vec![batch(&id, "", 4, clicks(3..5)), batch(&id, "", 9, clicks(8..9))]).await.unwrap_err();
    assert_eq!(metadata(&refused, "expected_seq"), "6");
    assert_eq!(reel.get(&id).await.unwrap().action_count, 5);
}

async fn a_batch_without_first_seq_is_numbered(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = reel.start_session().await;
    for committed in [2, 4] {
        let receipt = reel.append(&id, "", 0, clicks(0..2)).await.unwrap();
        assert_eq!((receipt.committed_seq, receipt.accepted_count), (committed, 2));
    }
    let empty = reel.append(&id, "", 0, Vec::new()).await.unwrap();
    assert_eq!((empty.committed_seq, empty.accepted_count), (4, 0));
}

async fn tracks_are_numbered_independently_up_to_the_limit(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = reel.start_session().await;
    for track in 0..64 {
        let receipt = reel.append(&id, &format!("source-{track}"), 1, clicks(0..1)).await.unwrap();
        assert_eq!(receipt.committed_seq, 1);
    }
    let refused = reel.append(&id, "one-more", 1, clicks(0..1)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "TOO_MANY_TRACKS"));
    reel.append(&id, "source-63", 2, clicks(1..2)).await.unwrap();
    // An empty batch asks for the cursor and makes no track.
    let other = reel.start_session().await;
    assert_eq!(reel.append(&other, "", 1, Vec::new()).await.unwrap().committed_seq, 0);
    assert!(reel.get(&other).await.unwrap().tracks.is_empty());
}

async fn rejected_actions_leave_a_placeholder_and_harm_nobody(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = reel.start_session().await;
    let mut actions = clicks(0..5);
    actions[1].data = "{secret".into();
    actions[3].timestamp = None;
    let receipt = reel.append(&id, "", 1, actions.clone()).await.unwrap();
    assert_eq!((receipt.committed_seq, receipt.accepted_count, receipt.rejected_count), (5, 3, 2));
    let reasons: Vec<_> = receipt.rejections.iter().map(|rejection| (rejection.seq, rejection.reason())).collect();
    assert_eq!(reasons, [(2, RejectionReason::InvalidData), (4, RejectionReason::InvalidTimestamp)]);

    let played = reel.play_all(&id).await;
    let kinds: Vec<_> = played.iter().map(|action| (action.seq, action.r#type.as_str())).collect();
    assert_eq!(
        kinds,
        [(1, "click"), (2, "reel.rejected"), (3, "click"), (4, "reel.rejected"), (5, "click")],
        "the placeholder of an action without a time stands behind its neighbour"
    );
    let placeholder: serde_json::Value = serde_json::from_str(&played[1].data).unwrap();
    assert_eq!((placeholder["reason"].as_str(), placeholder["size_bytes"].as_i64()), (Some("INVALID_DATA"), Some(13)));
    assert!(!played[1].data.contains("secret"));

    // Sent again, rejected actions are known; other content in their place is a conflict.
    let receipt = reel.append(&id, "", 1, actions.clone()).await.unwrap();
    assert_eq!((receipt.duplicate_count, receipt.rejected_count), (5, 0));
    actions[1].data = "{other".into();
    actions[3].data = "{}".into();
    let receipt = reel.append(&id, "", 1, actions).await.unwrap();
    assert_eq!((receipt.duplicate_count, receipt.rejected_count), (3, 2));
}

async fn a_dropped_connection_leaves_whole_batches_only(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let id = reel.start_session().await;
    for round in 0..10 {
        let channel = connect(reel.address).await;
        let requests: Vec<_> = (0..20).map(|_| batch(&id, "", 0, clicks(0..50))).collect();
        let mut client = IngestServiceClient::new(channel);
        let upload = tokio::spawn(async move { client.record_actions(tokio_stream::iter(requests)).await });
        let begun = reel.get(&id).await.unwrap().action_count;
        if round % 2 == 0 {
            eventually("something of the upload is committed", async || {
                upload.is_finished() || reel.get(&id).await.unwrap().action_count > begun
            })
            .await;
        }
        upload.abort();
        let _ = upload.await;
    }
    // The end of the service waits for the writes under way.
    reel.stop().await;
    let committed = database.number("SELECT last_seq FROM tracks").await;
    assert_eq!(committed % 50, 0);
    assert_eq!(database.number("SELECT count(*) FROM actions").await, committed);
    assert_eq!(database.number("SELECT count(DISTINCT seq) FROM actions").await, committed);
}

async fn what_is_acknowledged_is_in_the_database(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let id = reel.start_session().await;
    for number in 0..20 {
        let receipt = reel.append(&id, "", number + 1, vec![click(number, "x")]).await.unwrap();
        assert_eq!(database.number("SELECT count(*) FROM actions").await, receipt.committed_seq);
    }
}

async fn two_senders_of_one_track_do_not_interleave(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let id = reel.start_session().await;
    let senders: Vec<_> = (0..8)
        .map(|sender| {
            let (mut client, id) = (reel.ingest(), id.clone());
            tokio::spawn(async move {
                let requests: Vec<_> = (0..10)
                    .map(|_| batch(&id, "", 0, (0..7).map(|_| click(0, &format!("sender-{sender}"))).collect()))
                    .collect();
                client.record_actions(tokio_stream::iter(requests)).await.unwrap();
            })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
    let played = reel.play_all(&id).await;
    assert_eq!(played.len(), 8 * 10 * 7);
    let mut by_seq: Vec<(i64, &str)> = played.iter().map(|action| (action.seq, action.target.as_str())).collect();
    by_seq.sort_unstable();
    assert!(by_seq.iter().zip(1..).all(|((seq, _), expected)| *seq == expected));
    assert!(by_seq.chunks(7).all(|batch| batch.iter().all(|(_, target)| *target == batch[0].1)), "batches are whole");
    assert_eq!(database.number("SELECT count(*) FROM tracks").await, 1);
}

async fn two_services_record_into_one_session(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let (one, other) = (Reel::start_on(&database, &[]).await, Reel::start_on(&database, &[]).await);
    let id = session_id(NOON_MS);
    let starts = [&one, &other].map(|reel| reel.send(start(&id, SessionStart::default())));
    for started in futures_util::future::join_all(starts).await {
        assert!(started.unwrap().started);
    }
    // Many new tracks at once, which all want the next number.
    let appends = (0..16).map(|number| {
        let reel = if number % 2 == 0 { &one } else { &other };
        let id = &id;
        async move { reel.append(id, &format!("track-{}", number / 2), 0, clicks(0..5)).await }
    });
    for receipt in futures_util::future::join_all(appends).await {
        assert_eq!(receipt.unwrap().accepted_count, 5);
    }
    let session = one.get(&id).await.unwrap();
    assert_eq!((session.tracks.len(), session.action_count), (8, 80));
    assert_eq!(other.play_all(&id).await.len(), 80);
}

async fn cursors_tell_where_to_go_on(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = reel.start_session().await;
    reel.append(&id, "web", 1, clicks(0..3)).await.unwrap();
    reel.append(&id, "api", 1, clicks(0..1)).await.unwrap();
    let cursors = async |source: &str| {
        let request = GetIngestCursorRequest { session_id: id.clone(), source: source.to_owned() };
        let response = reel.ingest().get_ingest_cursor(request).await.unwrap().into_inner();
        let cursors = response.cursors.into_iter().map(|cursor| (cursor.source, cursor.committed_seq));
        (cursors.collect::<Vec<_>>(), response.ended)
    };
    assert_eq!(cursors("").await, (vec![("web".to_owned(), 3), ("api".to_owned(), 1)], false));
    assert_eq!(cursors("api").await, (vec![("api".to_owned(), 1)], false));
    assert_eq!(cursors("other").await, (vec![("other".to_owned(), 0)], false));
    reel.send(end(&id, SessionEnd::default())).await.unwrap();
    assert!(cursors("").await.1);

    let request = GetIngestCursorRequest { session_id: session_id(NOON_MS), source: String::new() };
    let unknown = reel.ingest().get_ingest_cursor(request).await.unwrap_err();
    assert_eq!(reason(&unknown), "SESSION_NOT_FOUND");
}

async fn data_comes_back_byte_for_byte(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = reel.start_session().await;
    let texts = [
        "",
        "null",
        " {\t\"b\" :1 , \"a\":2,\"a\":3}\n",
        "1e400",
        "9223372036854775808",
        "-0.0",
        r#""\u0000 \ud800 \/ é 😀""#,
        "[[],{},\"\"]",
    ];
    let actions: Vec<Action> = texts
        .iter()
        .enumerate()
        .map(|(number, text)| Action {
            data: (*text).to_owned(),
            target: "tab\tnewline\n'quote' \"é😀\" \u{7f}".to_owned(),
            timestamp: Some(prost_types::Timestamp {
                seconds: NOON_MS / 1_000,
                nanos: i32::try_from(number).unwrap() * 1_000,
            }),
            ..action(0, "a.b_c:d/e-F9", "")
        })
        .collect();
    reel.append(&id, "", 1, actions.clone()).await.unwrap();
    let played = reel.play_all(&id).await;
    let bare: Vec<_> = played.into_iter().map(|action| Action { seq: 0, source: String::new(), ..action }).collect();
    assert_eq!(bare, actions);
    // Finer than a microsecond is cut off, and the same action is a duplicate all the same.
    let mut finer = actions;
    finer[1].timestamp.as_mut().unwrap().nanos += 999;
    assert_eq!(reel.append(&id, "", 1, finer).await.unwrap().duplicate_count, 8);
}
