//! Placeholders give way to the actions that they stand for, once these can be stored.

use reel::proto::{Action, RejectionReason, SessionEnd, SessionStart};

use crate::{
    archive::archive_all,
    cli::{run, succeed},
    exact::{check_index_with, wait_until_indexed},
    harness::{
        Backend, NOON_MS, Reel, TestDatabase, action, batch, check_tracks_agree_with_actions, clicks, end, session_id,
        start, timestamp,
    },
    on_both_databases,
    retention::traces::everything,
};

on_both_databases!(
    an_action_that_is_taken_now_replaces_its_placeholder,
    a_placeholder_whose_time_was_wrong_stays_and_says_so,
    a_placeholder_says_nothing_of_what_is_redacted_and_gives_way_all_the_same,
    a_placeholder_of_an_archived_session_is_replaced_and_archived_again,
    importing_again_says_what_is_still_a_placeholder,
);

/// Limits that many actions break.
const STRICT: [&str; 4] = ["--max-action-bytes", "200", "--max-json-depth", "3"];

/// What a receipt counts: accepted, of these replaced, duplicates, of these placeholders, rejected.
async fn send(reel: &Reel, id: &str, actions: &[Action]) -> (i64, i64, i64, i64, i64) {
    let receipt = reel.append(id, "", 1, actions.to_vec()).await.unwrap();
    assert_eq!(receipt.placeholders.len(), usize::try_from(receipt.placeholder_count).unwrap());
    let (accepted, duplicates) = (receipt.accepted_count, receipt.duplicate_count);
    (accepted, receipt.replaced_count, duplicates, receipt.placeholder_count, receipt.rejected_count)
}

/// Five actions: the second is large, the third an error that is nested, the fourth no JSON.
fn some_are_strange() -> Vec<Action> {
    let mut actions = clicks(0..5);
    actions[1].data = format!(r#"{{"text": "{}"}}"#, "x".repeat(300));
    "error".clone_into(&mut actions[2].r#type);
    r#"{"a": [[["deep"]]]}"#.clone_into(&mut actions[2].data);
    "{secret".clone_into(&mut actions[3].data);
    actions
}

fn kinds(actions: &[Action]) -> Vec<&str> {
    actions.iter().map(|action| action.r#type.as_str()).collect()
}

/// What is stored of actions, as it was sent.
fn content(actions: &[Action]) -> Vec<(&str, &str, &str)> {
    actions.iter().map(|action| (action.r#type.as_str(), action.target.as_str(), action.data.as_str())).collect()
}

async fn an_action_that_is_taken_now_replaces_its_placeholder(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let id = session_id(NOON_MS);
    let sent = some_are_strange();
    let strict = Reel::start_on(&database, &STRICT).await;
    strict.send(start(&id, SessionStart::default())).await.unwrap();
    assert_eq!(send(&strict, &id, &sent).await, (2, 0, 0, 0, 3));
    assert_eq!(send(&strict, &id, &sent).await, (0, 0, 5, 3, 0));
    wait_until_indexed(&database).await;

    // Another service writes to the same database, and takes more.
    let reel = Reel::start_on(&database, &[]).await;
    assert_eq!(database.number("SELECT count(*) FROM tracks WHERE cut <> 0").await, 0);
    assert_eq!(send(&reel, &id, &sent).await, (2, 2, 3, 1, 0));
    // By this, whoever has read the session before knows that it has changed.
    assert_eq!(database.number("SELECT count(*) FROM tracks WHERE cut <> 0").await, 1);
    let played = reel.play_all(&id).await;
    assert_eq!(kinds(&played), ["click", "click", "error", "reel.rejected", "click"]);
    assert_eq!((content(&played)[..3].to_vec(), played[1].seq), (content(&sent)[..3].to_vec(), 2));
    // At once, and when it is indexed.
    assert_eq!(reel.get(&id).await.unwrap().error_count, 1);
    wait_until_indexed(&database).await;
    check_index_with(&database, &[]).await;
    let track = reel.get(&id).await.unwrap().tracks.remove(0);
    assert_eq!((track.accepted_count, track.rejected_count, track.error_count), (4, 1, 1));
    check_tracks_agree_with_actions(&database).await;

    // Once replaced, an action is stored as any other: what is stricter now finds it there.
    assert_eq!(send(&strict, &id, &sent).await, (0, 0, 5, 1, 0));
    let mut other = sent.clone();
    other[1].data.push(' ');
    assert_eq!(send(&reel, &id, &other).await, (0, 0, 4, 1, 1));
    // Those that are new come with it in one batch.
    let more = [sent, clicks(5..7)].concat();
    assert_eq!(send(&reel, &id, &more).await, (2, 0, 5, 1, 0));
}

async fn a_placeholder_whose_time_was_wrong_stays_and_says_so(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let id = session_id(NOON_MS);
    let mut sent = clicks(0..3);
    let in_two_days = chrono::Utc::now() + chrono::TimeDelta::days(2);
    sent[1].timestamp = Some(timestamp(in_two_days.timestamp_millis()));
    let reel = Reel::start_on(&database, &[]).await;
    reel.send(start(&id, SessionStart::default())).await.unwrap();
    assert_eq!(send(&reel, &id, &sent).await, (2, 0, 0, 0, 1));
    let lenient = Reel::start_on(&database, &["--max-clock-lead", "10days"]).await;
    let receipt = lenient.append(&id, "", 1, sent).await.unwrap();
    assert_eq!((receipt.duplicate_count, receipt.placeholder_count, receipt.replaced_count), (3, 1, 0));
    let stays = &receipt.placeholders[0];
    assert_eq!((stays.seq, stays.reason()), (2, RejectionReason::InvalidTimestamp));
    assert!(stays.description.contains("stays"), "{}", stays.description);
    assert_eq!(kinds(&lenient.play_all(&id).await), ["click", "reel.rejected", "click"]);
}

async fn a_placeholder_says_nothing_of_what_is_redacted_and_gives_way_all_the_same(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let rules = ["--redact", "password", "--redact", "/canary/"];
    let with = |secret: &str| {
        let mut action = action(1, "input", "Sign in as canary");
        action.data = format!(r#"{{"password": "{secret}", "why": [[[1]]]}}"#);
        action
    };
    let id = session_id(NOON_MS);
    let strict = Reel::start_on(&database, &[&STRICT[..], &rules].concat()).await;
    strict.send(start(&id, SessionStart::default())).await.unwrap();
    // Who guesses the secret cannot tell by the digest whether that was it.
    assert_eq!(send(&strict, &id, &[with("one"), with("two")]).await, (0, 0, 0, 0, 2));
    let placeholders = strict.play_all(&id).await;
    assert_eq!(placeholders[0].data, placeholders[1].data);
    strict.stop().await;
    let reel = Reel::start_on(&database, &rules).await;
    assert_eq!(send(&reel, &id, &[with("one"), with("two")]).await, (2, 2, 0, 0, 0));
    let played = reel.play_all(&id).await;
    assert_eq!(played[0].target, "Sign in as [redacted]");
    assert_eq!(played[0].data, r#"{"password": "[redacted]", "why": [[[1]]]}"#);
    assert!(!everything(&database).await.contains("canary"));
}

async fn a_placeholder_of_an_archived_session_is_replaced_and_archived_again(backend: Backend) {
    let (database, folder) = (TestDatabase::new(backend).await, tempfile::tempdir().unwrap());
    let archive = ["--archive", folder.path().to_str().unwrap()];
    let id = session_id(NOON_MS);
    let sent = some_are_strange();
    let strict = Reel::start_on(&database, &[&STRICT[..], &archive].concat()).await;
    let upload =
        vec![start(&id, SessionStart::default()), batch("", "", 1, sent.clone()), end("", SessionEnd::default())];
    strict.record(upload).await.unwrap();
    wait_until_indexed(&database).await;
    archive_all(&strict).await;
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 0);
    strict.stop().await;

    let reel = Reel::start_on(&database, &archive).await;
    assert_eq!(send(&reel, &id, &sent).await, (2, 2, 3, 1, 0));
    let played = reel.play_all(&id).await;
    assert_eq!(kinds(&played), ["click", "click", "error", "reel.rejected", "click"]);
    assert_eq!(content(&played)[..3], content(&sent)[..3]);
    wait_until_indexed(&database).await;
    check_index_with(&database, &archive).await;
    archive_all(&reel).await;
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 0);
    assert_eq!(reel.play_all(&id).await, played);
    assert_eq!(send(&reel, &id, &sent).await, (0, 0, 5, 1, 0));
}

async fn importing_again_says_what_is_still_a_placeholder(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("recording.jsonl");
    let line = |offset: i64, text: &str| {
        let time = NOON_MS + offset;
        format!(r#"{{"session":"visit","timestamp":{time},"type":"click","data":{{"text":"{text}"}}}}"#)
    };
    std::fs::write(&file, [line(0, "a"), line(1, &"x".repeat(300)), line(2, "b")].join("\n")).unwrap();
    let file = file.to_str().unwrap();
    let strict = Reel::start_on(&database, &STRICT).await;
    for said in ["2 new, 0 already stored, 1 rejected", "0 new, 3 already stored, 0 rejected; 1 still placeholders"] {
        let output = run(&strict, &["import", file]).await;
        assert_eq!(output.status.code(), Some(1));
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(out.contains(said), "{out}");
        assert!(err.contains("seq 2: TOO_LARGE"), "{err}");
    }
    strict.stop().await;
    let reel = Reel::start_on(&database, &[]).await;
    let healed = succeed(&reel, &["import", file]).await;
    assert!(healed.contains("1 new, 2 already stored, 0 rejected; 1 in the place of placeholders"), "{healed}");
    let again = succeed(&reel, &["import", file]).await;
    assert!(again.contains("0 new, 3 already stored, 0 rejected\n"), "{again}");
}
