//! Sessions begin, end and are erased; what is sent before, between and after.

use chrono::Utc;
use reel::proto::{DeleteSessionRequest, SessionEnd, SessionStart};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::{
    harness::{
        Backend, NOON_MS, Reel, TestDatabase, batch, clicks, end, eventually, metadata, reason, session_id, start,
        timestamp, user,
    },
    on_both_databases,
};

on_both_databases!(
    a_session_id_is_minted_from_its_start_time_or_brought,
    starting_again_merges_and_another_user_is_refused,
    late_actions_are_accepted_after_the_end,
    a_session_is_not_ended_before_its_tracks_are_complete,
    nothing_is_stored_for_a_session_that_was_never_started_or_was_erased,
    a_cancelled_upload_never_ends_a_session,
    idle_sessions_are_ended_and_a_senders_own_end_overrules_that,
    the_service_ends_idle_sessions_by_itself,
    a_start_that_is_refused_leaves_nothing_of_its_user,
);

async fn a_session_id_is_minted_from_its_start_time_or_brought(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let at_noon = SessionStart { start_time: Some(timestamp(NOON_MS + 7)), ..Default::default() };
    let minted = reel.send(start("", at_noon.clone())).await.unwrap().session_id;
    assert_eq!(reel.get(&minted).await.unwrap().start_time, Some(timestamp(NOON_MS + 7)));
    let again = reel.send(start("", at_noon.clone())).await.unwrap().session_id;
    assert_ne!(minted, again);

    let mine = session_id(NOON_MS + 7);
    assert_eq!(reel.send(start(&mine, at_noon)).await.unwrap().session_id, mine);
    let other_time = SessionStart { start_time: Some(timestamp(NOON_MS)), ..Default::default() };
    assert_eq!(reel.send(start(&mine, other_time)).await.unwrap_err().code(), Code::InvalidArgument);
}

async fn starting_again_merges_and_another_user_is_refused(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = session_id(NOON_MS);
    let with = |key: &str, value: &str, of: Option<&str>| SessionStart {
        attributes: [(key.to_owned(), value.to_owned())].into(),
        user: of.map(|id| user(id, "")),
        ..Default::default()
    };
    reel.send(start(&id, with("browser", "old", None))).await.unwrap();
    reel.send(start(&id, with("browser", "new", Some("ada")))).await.unwrap();
    reel.send(start(&id, with("release", "7", None))).await.unwrap();
    let session = reel.get(&id).await.unwrap();
    assert_eq!((session.user_id.as_str(), session.attributes["browser"].as_str()), ("ada", "new"));
    assert_eq!(session.attributes.len(), 2);

    let refused = reel.send(start(&id, with("a", "b", Some("bob")))).await.unwrap_err();
    assert_eq!(reason(&refused), "SESSION_OF_ANOTHER_USER");
    for number in 0..62 {
        reel.send(start(&id, with(&format!("key-{number}"), "", None))).await.unwrap();
    }
    let refused = reel.send(start(&id, with("one-more", "", None))).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "TOO_MANY_ATTRIBUTES"));
}

async fn late_actions_are_accepted_after_the_end(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = reel.start_session().await;
    reel.append(&id, "", 1, clicks(0..2)).await.unwrap();
    let ended = SessionEnd { reason: "logout".to_owned(), ..Default::default() };
    assert!(reel.send(end(&id, ended)).await.unwrap().ended);
    let first_end = reel.get(&id).await.unwrap();
    assert_eq!(reel.append(&id, "", 3, clicks(2..4)).await.unwrap().accepted_count, 2);
    // A second end changes nothing.
    reel.send(end(&id, SessionEnd { reason: "again".to_owned(), ..Default::default() })).await.unwrap();
    let session = reel.get(&id).await.unwrap();
    assert_eq!((session.action_count, session.end_reason.as_str()), (4, "logout"));
    assert_eq!(session.end_time, first_end.end_time);
}

async fn a_session_is_not_ended_before_its_tracks_are_complete(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = session_id(NOON_MS);
    reel.send(start(&id, SessionStart::default())).await.unwrap();
    reel.append(&id, "web", 1, clicks(0..3)).await.unwrap();
    for (source, last_seq, committed) in [("web", 4, "3"), ("web", 2, "3"), ("api", 1, "0")] {
        let proof = SessionEnd { last_seqs: [(source.to_owned(), last_seq)].into(), ..Default::default() };
        let refused = reel.send(end(&id, proof)).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "TRACK_INCOMPLETE"));
        assert_eq!(metadata(&refused, "committed_seq"), committed);
    }
    assert!(reel.get(&id).await.unwrap().end_time.is_none());
    let last_seqs = [("web".to_owned(), 3), ("api".to_owned(), 0)].into();
    let end_time = Some(timestamp(NOON_MS + 9_000));
    reel.send(end(&id, SessionEnd { last_seqs, end_time, ..Default::default() })).await.unwrap();
    assert_eq!(reel.get(&id).await.unwrap().end_time, end_time);
}

async fn nothing_is_stored_for_a_session_that_was_never_started_or_was_erased(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let id = session_id(NOON_MS);
    let attempts =
        || [start(&id, SessionStart::default()), batch(&id, "", 1, clicks(0..1)), end(&id, SessionEnd::default())];
    for request in attempts().into_iter().skip(1) {
        let refused = reel.send(request).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::NotFound, "SESSION_NOT_FOUND"));
    }
    reel.send(start(&id, SessionStart::default())).await.unwrap();
    reel.append(&id, "", 1, clicks(0..2)).await.unwrap();
    let delete = DeleteSessionRequest { session_id: id.clone() };
    assert_eq!(reel.sessions().delete_session(delete.clone()).await.unwrap().into_inner().erased_action_count, 2);
    for request in attempts() {
        let refused = reel.send(request).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "SESSION_ERASED"));
    }
    let again = reel.sessions().delete_session(delete).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
    for table in ["sessions", "tracks", "actions"] {
        assert_eq!(database.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
}

async fn a_cancelled_upload_never_ends_a_session(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    let id = session_id(NOON_MS);
    let mut client = reel.ingest();
    let upload = tokio::spawn(async move { client.record_actions(ReceiverStream::new(receiver)).await });
    sender.send(start(&id, SessionStart::default())).await.unwrap();
    sender.send(batch("", "", 1, clicks(0..3))).await.unwrap();
    eventually("the batch is committed", async || reel.get(&id).await.is_ok_and(|session| session.action_count == 3))
        .await;
    // Resets the stream: to the server it looks finished.
    upload.abort();
    assert!(upload.await.unwrap_err().is_cancelled());
    drop(sender);
    let receipt = reel.append(&id, "", 4, clicks(3..4)).await.unwrap();
    assert_eq!(receipt.committed_seq, 4);
    assert!(reel.get(&id).await.unwrap().end_time.is_none());
}

async fn idle_sessions_are_ended_and_a_senders_own_end_overrules_that(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let (id, empty) = (session_id(NOON_MS), session_id(NOON_MS));
    reel.send(start(&empty, SessionStart::default())).await.unwrap();
    reel.record(vec![start(&id, SessionStart::default()), batch("", "", 1, clicks(0..3))]).await.unwrap();
    let minutes = chrono::TimeDelta::minutes;
    assert!(
        reel.store.session_end_idle(Utc::now() - minutes(1), 10).await.unwrap().is_empty(),
        "not idle for a minute"
    );
    let ended = reel.store.session_end_idle(Utc::now() + minutes(1), 10).await.unwrap();
    assert_eq!(ended.len(), 2);
    let session = reel.get(&id).await.unwrap();
    assert_eq!((session.end_reason.as_str(), session.end_time), ("idle", Some(timestamp(NOON_MS + 2_000))));
    assert_eq!(reel.get(&empty).await.unwrap().end_time, Some(timestamp(NOON_MS)));
    assert!(reel.store.session_end_idle(Utc::now() + minutes(1), 10).await.unwrap().is_empty(), "ended already");

    reel.append(&id, "", 4, clicks(3..4)).await.unwrap();
    eventually("it is live again", async || {
        // By this or by the service itself.
        reel.store.session_revive().await.unwrap();
        let session = reel.get(&id).await.unwrap();
        session.end_time.is_none() && session.end_reason.is_empty()
    })
    .await;
    assert!(reel.get(&empty).await.unwrap().end_time.is_some(), "nothing was stored of it");
    reel.send(end(&id, SessionEnd::default())).await.unwrap();
    let session = reel.get(&id).await.unwrap();
    assert_eq!((session.end_reason.as_str(), session.end_time), ("ended", Some(timestamp(NOON_MS + 3_000))));
    reel.append(&id, "", 5, clicks(4..5)).await.unwrap();
    reel.store.session_revive().await.unwrap();
    assert_eq!(reel.get(&id).await.unwrap().end_reason, "ended", "what its sender has ended stays so");
}

async fn the_service_ends_idle_sessions_by_itself(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &["--idle-timeout", "100ms"]).await;
    let id = reel.start_session().await;
    eventually("the idle session is ended", async || reel.get(&id).await.unwrap().end_reason == "idle").await;
}

async fn a_start_that_is_refused_leaves_nothing_of_its_user(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let (id, erased) = (session_id(NOON_MS), session_id(NOON_MS));
    let by = |of: &str| SessionStart { user: Some(user(of, "x@example.com")), ..Default::default() };
    for id in [&id, &erased] {
        reel.send(start(id, by("ada"))).await.unwrap();
    }
    reel.sessions().delete_session(DeleteSessionRequest { session_id: erased.clone() }).await.unwrap();
    let refused = reel.send(start(&erased, by("bob"))).await.unwrap_err();
    assert_eq!(reason(&refused), "SESSION_ERASED");
    let refused = reel.send(start(&id, by("bob"))).await.unwrap_err();
    assert_eq!(reason(&refused), "SESSION_OF_ANOTHER_USER");
    assert_eq!(database.number("SELECT count(*) FROM users").await, 1);
}
