//! What is exported is imported as the same sessions, byte for byte, in each format; hot or archived.

use reel::proto::{self, ListSessionsRequest, SessionEnd, SessionStart, UpdateSessionRequest, UpsertUserRequest, User};

use crate::{
    archive::archive_all,
    cli::{run, succeed},
    exact::wait_until_indexed,
    harness::{Backend, NOON_MS, Reel, TestDatabase, action, batch, clicks, end, session_id, start, timestamp},
    on_both_databases,
};

on_both_databases!(
    what_is_exported_is_imported_as_the_same,
    a_search_is_exported_and_nothing_else,
    more_sessions_than_a_page_has_are_exported,
);

/// Sessions of every kind there is.
async fn record(reel: &Reel) -> Vec<String> {
    let ids: Vec<_> = (0..4).map(|number| session_id(NOON_MS + number * 1_000)).collect();
    let ada = User {
        id: "ada \"λ\"".to_owned(),
        email: "ada@example.com".to_owned(),
        name: "Ada \"λ\" Lovelace".to_owned(),
        attributes: [("plan".to_owned(), "\"pro\"".to_owned())].into(),
        create_time: None,
    };
    let attributes = [("browser".to_owned(), "Fire\tfox".to_owned()), ("it's".to_owned(), String::new())].into();
    let mut actions = clicks(0..9);
    for (action, data) in actions.iter_mut().zip([
        "",
        "null",
        "{\"a\":1,  \"a\": 2}",
        " {\"blanks\": \"around\"} ",
        "[1,\r\n 2]",
        "\"\\ud800 \u{1F3AC}\"",
        "1e400",
        "{\"not\": JSON}",
        "[[[[0.10]]]]",
    ]) {
        data.clone_into(&mut action.data);
    }
    actions[1].timestamp.as_mut().unwrap().nanos += 123_000;
    "line\nbreak \"quoted\"".clone_into(&mut actions[2].target);
    reel.users().upsert_user(UpsertUserRequest { user: Some(ada.clone()) }).await.unwrap();
    let ended =
        SessionEnd { end_time: Some(timestamp(NOON_MS + 99_999)), reason: "logout".to_owned(), ..Default::default() };
    let requests = vec![
        start(&ids[0], SessionStart { user: Some(ada), attributes, ..Default::default() }),
        batch("", "", 1, actions),
        batch("", "backend", 1, vec![action(5, "error", "TypeError"), action(-5, "click", "early")]),
        end("", ended),
        // Without actions, and without a user.
        start(&ids[1], SessionStart::default()),
        end("", SessionEnd::default()),
        // Still going on.
        start(&ids[2], SessionStart::default()),
        batch("", "", 1, clicks(0..3)),
        start(
            &ids[3],
            SessionStart { attributes: [("of".to_owned(), "many".to_owned())].into(), ..Default::default() },
        ),
    ];
    reel.record(requests).await.unwrap();
    for chunk in 0..6 {
        reel.append(&ids[3], "", 1 + chunk * 500, clicks(chunk * 500..(chunk + 1) * 500)).await.unwrap();
    }
    reel.record(vec![end(&ids[3], SessionEnd::default())]).await.unwrap();
    ids
}

/// What must be the same: all but how often what was sent.
async fn all_of(reel: &Reel, ids: &[String]) -> Vec<(proto::Session, Vec<proto::Action>, Option<User>)> {
    let mut all = Vec::new();
    for id in ids {
        let mut session = reel.get(id).await.unwrap();
        session.tracks.clear();
        let user = if session.user_id.is_empty() {
            None
        } else {
            let request = proto::GetUserRequest { user_id: session.user_id.clone() };
            let user = reel.users().get_user(request).await.unwrap().into_inner().user.unwrap();
            Some(User { create_time: None, ..user })
        };
        all.push((session, reel.play_all(id).await, user));
    }
    all
}

async fn what_is_exported_is_imported_as_the_same(backend: Backend) {
    let (database, folder) = (TestDatabase::new(backend).await, tempfile::tempdir().unwrap());
    let archive = folder.path().join("archive");
    let reel = Reel::start_on(&database, &["--archive", archive.to_str().unwrap()]).await;
    let ids = record(&reel).await;
    wait_until_indexed(&database).await;
    let before = all_of(&reel, &ids).await;
    assert_eq!(before[0].1.iter().filter(|action| action.r#type == "reel.rejected").count(), 1);
    let name = |file: &str| folder.path().join(file).to_str().unwrap().to_owned();
    let files = [name("all.jsonl"), name("all.jsonl.gz"), name("all.parquet")];
    for (file, how) in files.iter().zip(["hot", "hot", "archived"]) {
        if how == "archived" {
            archive_all(&reel).await;
        }
        let said = succeed(&reel, &["export", "--output", file]).await;
        assert!(said.contains("4 sessions, 3014 actions"), "{said}");
    }
    // The same again, on the standard output.
    let lines = succeed(&reel, &["export"]).await;
    assert_eq!(lines, std::fs::read_to_string(&files[0]).unwrap());
    reel.stop().await;
    for file in &files {
        let (other, _database) = Reel::start(backend).await;
        let said = succeed(&other, &["import", file]).await;
        assert!(said.contains("4 sessions, 3,014 actions: 3,014 new, 0 already stored, 0 rejected"), "{file}: {said}");
        assert_eq!(all_of(&other, &ids).await, before, "{file}");
        let again = succeed(&other, &["import", file]).await;
        assert!(again.contains("0 new, 3,014 already stored, 0 rejected"), "{file}: {again}");
        assert_eq!(all_of(&other, &ids).await, before, "{file}");
        other.stop().await;
    }
}

async fn more_sessions_than_a_page_has_are_exported(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let ids: Vec<_> = (0..201).map(|number| session_id(NOON_MS + number)).collect();
    let starts = ids.iter().map(|id| start(id, SessionStart::default()));
    reel.record(starts.collect()).await.unwrap();
    let lines = succeed(&reel, &["export"]).await;
    let mut exported: Vec<_> = lines.lines().map(|line| &line[12..48]).collect();
    exported.sort_unstable();
    assert_eq!(exported, ids);
    reel.stop().await;
}

async fn a_search_is_exported_and_nothing_else(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let ids = record(&reel).await;
    wait_until_indexed(&database).await;
    let request = UpdateSessionRequest {
        session_id: ids[2].clone(),
        attributes: [("browser".to_owned(), "Other".to_owned())].into(),
        ..Default::default()
    };
    reel.sessions().update_session(request).await.unwrap();
    for (filter, expected) in [
        ("{\"email\": \"ada@example.com\"}", &ids[..1]),
        ("{\"isLive\": true}", &ids[2..3]),
        ("{\"allOf\": [{\"type\": \"error\"}]}", &ids[..1]),
        ("{\"email\": \"nobody@example.com\"}", &[]),
    ] {
        let lines = succeed(&reel, &["export", "--filter", filter]).await;
        let mut exported: Vec<&str> = lines
            .lines()
            .filter(|line| line.contains("\"attributes\":{") && !line.contains("\"seq\""))
            .map(|line| &line[12..48])
            .collect();
        exported.sort_unstable();
        assert_eq!(exported, expected, "{filter}");
        assert!(lines.lines().all(|line| expected.iter().any(|id| line.contains(id))), "{filter}");
    }
    let all = reel.sessions().list_sessions(ListSessionsRequest::default()).await.unwrap().into_inner().sessions;
    assert_eq!(all.len(), ids.len());
    for (wrong, expected) in [("{\"mail\": 1}", "--filter"), ("{\"minErrorCount\": -1}", "filter.min_error_count")] {
        let output = run(&reel, &["export", "--filter", wrong]).await;
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(expected), "{wrong}: {text}");
    }
    let output = run(&reel, &["export", "--format", "parquet"]).await;
    assert!(!output.status.success() && output.stdout.is_empty());
    reel.stop().await;
}
