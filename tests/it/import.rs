//! Which session a recording becomes, and that an import never adds to one that is another's.

use std::{
    io::Write as _,
    path::Path,
    process::{Output, Stdio},
};

use flate2::{Compression, write::GzEncoder};
use reel::{
    model::SessionId,
    proto::{Action, DeleteSessionRequest, ListSessionsRequest, Session, SessionEnd, SessionStart},
};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    cli::{run, succeed},
    harness::{Backend, NOON_MS, Reel, TestDatabase, batch, end, session_id, start, timestamp},
    on_both_databases,
};

on_both_databases!(
    recordings_that_begin_with_the_same_event_are_sessions_of_their_own,
    a_recording_is_the_same_however_it_comes,
    what_the_rule_of_the_first_event_has_stored_is_not_stored_again,
    what_another_recording_has_stored_by_the_rule_of_the_first_event_stays_as_it_was,
    what_was_erased_under_the_rule_of_the_first_event_does_not_come_back,
    of_a_broken_rrweb_recording_nothing_is_stored,
    after_a_conflict_nothing_is_added_to_that_session,
);

/// Events as rrweb has them, of which the first is everybody's.
fn events(who: &str, count: i64) -> Vec<String> {
    let mut events = vec![format!(r#"{{"type":0,"data":{{}},"timestamp":{NOON_MS}}}"#)];
    events.extend((1..count).map(|number| {
        let data = format!(r#"{{"tag":"note","payload":{{"text":"{who} {number}","password":"{number}"}}}}"#);
        format!(r#"{{"type":5,"data":{data},"timestamp":{}}}"#, NOON_MS + number)
    }));
    events
}

fn write(folder: &TempDir, file: &str, events: &[String]) -> String {
    let path = folder.path().join(file);
    std::fs::write(&path, format!("[{}]", events.join(","))).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The id that release 0.1.0 gave to a recording that begins with this event.
fn first_event_id(event: &str) -> String {
    let mut hash = Sha256::new();
    for part in ["reel import", event] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut random = [0; 10];
    random.copy_from_slice(&hash.finalize()[..10]);
    SessionId::from_parts(chrono::DateTime::from_timestamp_millis(NOON_MS).unwrap(), random).to_string()
}

/// Stores events as release 0.1.0 did for a file of this name, the first `count` of them.
async fn store_by_first_event(reel: &Reel, name: &str, events: &[String], count: usize) -> String {
    let id = first_event_id(&events[0]);
    let actions = events[..count].iter().zip(NOON_MS..).map(|(event, at)| Action {
        timestamp: Some(timestamp(at)),
        r#type: "rrweb".to_owned(),
        data: event.clone(),
        ..Default::default()
    });
    let attributes = [("name".to_owned(), name.to_owned())].into();
    let mut messages =
        vec![start(&id, SessionStart { attributes, ..Default::default() }), batch(&id, "", 1, actions.collect())];
    if count == events.len() {
        messages.push(end(&id, SessionEnd::default()));
    }
    reel.record(messages).await.unwrap();
    id
}

async fn sessions(reel: &Reel) -> Vec<Session> {
    reel.sessions().list_sessions(ListSessionsRequest::default()).await.unwrap().into_inner().sessions
}

/// What is stored of the session of this name.
async fn stored(reel: &Reel, name: &str) -> Vec<String> {
    let sessions = sessions(reel).await;
    let mut named = sessions.iter().filter(|session| session.attributes["name"] == name);
    let session = named.next().unwrap_or_else(|| panic!("no session {name}"));
    assert!(named.next().is_none(), "one session {name}");
    reel.play_all(&session.id).await.into_iter().map(|action| action.data).collect()
}

fn errors(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

async fn recordings_that_begin_with_the_same_event_are_sessions_of_their_own(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let folder = TempDir::new().unwrap();
    let (ada, bob) = (events("Ada", 4), events("Bob", 700));
    let files = [write(&folder, "ada.json", &ada), write(&folder, "bob.json", &bob)];
    let said = succeed(&reel, &["import", &files[0], &files[1]]).await;
    assert!(said.contains("4 new, 0 already stored, 0 rejected"), "{said}");
    assert!(said.contains("700 new, 0 already stored, 0 rejected"), "{said}");
    let said = succeed(&reel, &["import", &files[1], &files[0]]).await;
    assert!(said.contains("0 new, 4 already stored") && said.contains("0 new, 700 already stored"), "{said}");
    assert_eq!(sessions(&reel).await.len(), 2);
    assert_eq!((stored(&reel, "ada").await, stored(&reel, "bob").await), (ada, bob));
}

async fn a_recording_is_the_same_however_it_comes(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let folder = TempDir::new().unwrap();
    let ada = events("Ada", 300);
    let file = write(&folder, "ada.json", &ada);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(format!("\n [ {} ]\n", ada.join(" ,\n")).as_bytes()).unwrap();
    let said = import_from_pipe(&reel, &gzip.finish().unwrap()).await;
    assert!(said.contains("300 new"), "{said}");
    let said = succeed(&reel, &["import", &file]).await;
    assert!(said.contains("0 new, 300 already stored"), "{said}");
    assert_eq!(sessions(&reel).await.len(), 1);
    // Lines can be piped, too: nothing of them is kept elsewhere.
    let line = format!(r#"{{"session":"lines","timestamp":{NOON_MS},"type":"click"}}"#);
    let said = import_from_pipe(&reel, line.as_bytes()).await;
    assert!(said.contains("1 session, 1 action: 1 new"), "{said}");
}

async fn import_from_pipe(reel: &Reel, bytes: &[u8]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reel"));
    command.args(["import", "-", "--server", &format!("http://{}", reel.address)]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut input, bytes).await.unwrap();
    drop(input);
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// Also where an earlier import was broken off, and where what is stored is not what was sent, because it was redacted.
async fn what_the_rule_of_the_first_event_has_stored_is_not_stored_again(backend: Backend) {
    for count in [1, 4, 250, 300] {
        let database = TestDatabase::new(backend).await;
        let reel = Reel::start_on(&database, &["--redact", "password"]).await;
        let folder = TempDir::new().unwrap();
        let ada = events("Ada", 300);
        let id = store_by_first_event(&reel, "ada", &ada, count).await;
        let file = write(&folder, "ada.json", &ada);
        let said = succeed(&reel, &["import", &file]).await;
        let expected = format!("{} new, {count} already stored, 0 rejected", 300 - count);
        assert!(said.contains(&expected) && said.contains(&id), "{count}: {said}");
        let again = succeed(&reel, &["import", &file]).await;
        assert!(again.contains("0 new, 300 already stored, 0 rejected"), "{again}");
        let sessions = sessions(&reel).await;
        assert_eq!((sessions.len(), sessions[0].action_count), (1, 300));
        assert!(sessions[0].end_time.is_some());
        reel.stop().await;
    }
}

async fn what_another_recording_has_stored_by_the_rule_of_the_first_event_stays_as_it_was(backend: Backend) {
    for count in [1, 4] {
        let (reel, _database) = Reel::start(backend).await;
        let folder = TempDir::new().unwrap();
        let ada = events("Ada", 4);
        let id = store_by_first_event(&reel, "ada", &ada, count).await;
        let before = (reel.get(&id).await.unwrap().attributes, reel.play_all(&id).await);
        // Of the same length, shorter, longer.
        for (name, length) in [("bob", 4), ("eve", 3), ("joe", 700)] {
            let file = write(&folder, &format!("{name}.json"), &events(name, length));
            let said = succeed(&reel, &["import", &file]).await;
            assert!(said.contains(&format!("{length} new, 0 already stored, 0 rejected")), "{said}");
            assert!(!said.contains(&id), "{said}");
            assert_eq!(stored(&reel, name).await, events(name, length));
            assert_eq!((reel.get(&id).await.unwrap().attributes, reel.play_all(&id).await), before);
        }
        reel.stop().await;
    }
}

async fn what_was_erased_under_the_rule_of_the_first_event_does_not_come_back(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let folder = TempDir::new().unwrap();
    let ada = events("Ada", 4);
    let id = store_by_first_event(&reel, "ada", &ada, 4).await;
    reel.sessions().delete_session(DeleteSessionRequest { session_id: id.clone() }).await.unwrap();
    let output = run(&reel, &["import", &write(&folder, "ada.json", &ada)]).await;
    assert!(!output.status.success());
    assert!(errors(&output).contains("ada.json") && errors(&output).contains(&id), "{}", errors(&output));
    assert!(sessions(&reel).await.is_empty());
}

async fn of_a_broken_rrweb_recording_nothing_is_stored(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let folder = TempDir::new().unwrap();
    let mut broken = events("Ada", 4);
    r#"{"type":5}"#.clone_into(&mut broken[2]);
    let file = write(&folder, "ada.json", &broken);
    let output = run(&reel, &["import", &file]).await;
    assert!(!output.status.success());
    assert!(errors(&output).contains("ada.json: event 3"), "{}", errors(&output));
    let whole = write(&folder, "ada.json", &events("Ada", 4));
    std::fs::write(Path::new(&file), std::fs::read_to_string(&whole).unwrap().trim_end_matches(']')).unwrap();
    let output = run(&reel, &["import", &file]).await;
    assert!(!output.status.success() && errors(&output).contains("ada.json: "), "{}", errors(&output));
    assert!(sessions(&reel).await.is_empty());
}

async fn after_a_conflict_nothing_is_added_to_that_session(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let folder = TempDir::new().unwrap();
    let (id, other) = (session_id(NOON_MS), session_id(NOON_MS + 1));
    let line = |session: &str, source: &str, seq: i64, text: &str| {
        let at = NOON_MS + seq;
        format!(
            r#"{{"session":"{session}","source":"{source}","seq":{seq},"timestamp":{at},"type":"t","data":"{text}"}}"#
        )
    };
    let about = |session: &str, text: &str| format!(r#"{{"session":"{session}","attributes":{{"from":"{text}"}}}}"#);
    let write = |file: &str, lines: &[String]| {
        let path = folder.path().join(file);
        std::fs::write(&path, lines.join("\n")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mut first: Vec<_> = (1..=150).map(|seq| line(&id, "main", seq, "a")).collect();
    first.push(about(&id, "a"));
    succeed(&reel, &["import", "--no-end", &write("first.jsonl", &first)]).await;
    let before = (reel.get(&id).await.unwrap().attributes, reel.play_all(&id).await);

    // The difference is in the second of the messages that compare; other tracks and the end come after it.
    let mut second = vec![about(&id, "b")];
    second.extend((1..=900).map(|seq| line(&id, "main", seq, if seq == 120 { "b" } else { "a" })));
    second.extend((1..=700).map(|seq| line(&id, "backend", seq, "b")));
    second.extend((1..=3).map(|seq| line(&other, "main", seq, "c")));
    second.extend((901..=999).map(|seq| line(&id, "main", seq, "b")));
    let output = run(&reel, &["import", &write("second.jsonl", &second)]).await;
    assert!(!output.status.success());
    let told = errors(&output);
    let names_both = |line: &str| line.contains("second.jsonl") && line.contains(&id) && line.contains("seq 120");
    assert!(told.lines().any(names_both), "{told}");
    let session = reel.get(&id).await.unwrap();
    assert_eq!((session.attributes, reel.play_all(&id).await), before);
    assert_eq!((session.tracks.len(), session.end_time), (1, None));
    assert_eq!(reel.play_all(&other).await.len(), 3, "others are imported all the same");
}
