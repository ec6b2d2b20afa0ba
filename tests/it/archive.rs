//! The archive: sessions whose actions are in segments are found, played, counted and erased as before, and nothing is lost on
//! the way there, whatever dies and whatever fails.

mod damage;
mod erase;
mod faults;
mod gate;
mod kills;
mod lease;
mod repeats;
mod s3;

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use chrono::{DateTime, TimeDelta, Utc};
use reel::{
    error::Error,
    model::{ArchivePolicy, Pin, RetentionPolicy, RetentionReport},
    proto::{
        Action, ActionDimension, ActionMatch, CountActionsRequest, PlaySessionRequest, SessionEnd, SessionFilter,
        SessionStart, analytics_service_client::AnalyticsServiceClient, play_session_request::Begin,
    },
    store::Store,
};
use tempfile::TempDir;

use crate::{
    crash::process::reel as reel_command,
    exact::wait_until_indexed,
    harness::{
        Backend, NOON_MS, Reel, TestDatabase, action, batch, clicks, end, eventually, play, reason, session_id, start,
        user,
    },
    on_both_databases,
};

on_both_databases!(
    an_archived_session_is_played_through_the_same_pages_and_cursors,
    an_archived_session_takes_what_comes_late_and_knows_what_comes_again,
    playing_and_recording_go_on_while_sessions_are_archived,
    late_actions_find_their_session_whether_it_is_archived_or_not,
    two_processes_archive_at_once,
);

/// Later than all sessions of tests.
pub fn later() -> DateTime<Utc> {
    "2027-01-01T00:00:00Z".parse().unwrap()
}

/// Archives everything that is older than some days.
pub fn archive_after(days: i64) -> RetentionPolicy {
    let archive = ArchivePolicy { after: Some(TimeDelta::days(days)), keep_for: None };
    RetentionPolicy { archive: Some(archive), ..RetentionPolicy::default() }
}

/// Applies a policy, once nobody else does, and nobody is at the tables: every service does so by itself now and then.
pub async fn apply(store: &Store, policy: &RetentionPolicy, now: DateTime<Utc>) -> RetentionReport {
    let mut report = None;
    eventually("nobody else applies retention", async || match store.retention_apply(policy, now).await {
        Err(Error::RetentionRunning | Error::Contention) => false,
        applied => {
            report = Some(applied.unwrap());
            true
        }
    })
    .await;
    report.unwrap()
}

/// Archives whatever can be archived.
pub async fn archive_all(reel: &Reel) -> RetentionReport {
    let preview = reel.store.retention_preview(&archive_after(0), later()).await.unwrap();
    let report = apply(&reel.store, &archive_after(0), later()).await;
    let gist = |report: &RetentionReport| -> Vec<_> {
        report.days.iter().map(|day| (day.window, day.reason, day.sessions, day.actions)).collect()
    };
    assert_eq!(gist(&preview), gist(&report), "a dry run says what is done");
    report
}

/// Makes whoever applies retention look dead to others.
pub async fn end_lease(database: &TestDatabase) {
    database.execute("UPDATE leases SET until = '2026-01-01T00:00:00.000000+00:00'").await;
    if database.backend() == Backend::Postgres {
        // The connection that has the lock breaks; keys of other locks are other.
        database
            .number(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4 \
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            )
            .await;
        let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4 \
                    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        eventually("the lock is free", async || database.number(held).await == 0).await;
    }
}

/// The files below a folder, by name.
pub fn files(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push(path.to_str().unwrap().to_owned());
        }
    }
    files.sort();
    files
}

/// Records so many sessions of some hundred actions on two tracks, all of which end, and gives their ids.
pub async fn record_sessions(reel: &Reel, database: &TestDatabase, sessions: i64) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..sessions {
        let id = session_id(NOON_MS + number * 3_600_000);
        let mut requests = vec![start(&id, SessionStart { user: Some(user("ada", "")), ..Default::default() })];
        for (source, count) in [("main", 150 + number), ("backend", 20)] {
            let actions = (0..count).map(|offset| {
                let mut action = action(offset * 37, "click", &format!("{source} {}", offset % 13));
                action.data = format!("{{\"n\": {offset},  \"of\": \"{number} \u{1F3AC}\"}}");
                action
            });
            requests.push(batch("", source, 1, actions.collect()));
        }
        requests.push(end("", SessionEnd::default()));
        reel.record(requests).await.unwrap();
        ids.push(id);
    }
    wait_until_indexed(database).await;
    ids
}

/// Everything of these sessions, as it is played.
pub async fn play_each(reel: &Reel, ids: &[String]) -> Vec<Vec<Action>> {
    let mut played = Vec::new();
    for id in ids {
        played.push(reel.play_all(id).await);
    }
    played
}

pub async fn with_archive(backend: Backend) -> (Reel, TestDatabase, TempDir) {
    let (database, folder) = (TestDatabase::new(backend).await, tempfile::tempdir().unwrap());
    let reel = Reel::start_on(&database, &["--archive", folder.path().to_str().unwrap()]).await;
    (reel, database, folder)
}

/// A request for a part of a session.
fn part(id: &str, of: impl FnOnce(&mut PlaySessionRequest)) -> PlaySessionRequest {
    let mut request = play(id);
    of(&mut request);
    request
}

async fn an_archived_session_is_played_through_the_same_pages_and_cursors(backend: Backend) {
    let (reel, database, _folder) = with_archive(backend).await;
    let id = session_id(NOON_MS);
    let actions: Vec<_> = (0..6_000)
        .map(|offset| {
            let mut action = action(offset, if offset % 3 == 0 { "input" } else { "click" }, &format!("{offset}"));
            action.data = format!("\"{}\"", "x".repeat(usize::try_from(offset % 300).unwrap()));
            action
        })
        .collect();
    let mut requests = vec![start(&id, SessionStart::default())];
    requests
        .extend(actions.chunks(500).zip(0..).map(|(chunk, number)| batch("", "", 1 + 500 * number, chunk.to_vec())));
    requests.push(batch("", "other", 1, clicks(0..50)));
    requests.push(end("", SessionEnd::default()));
    reel.record(requests).await.unwrap();
    let others = record_sessions(&reel, &database, 3).await;
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 500_000_000 });
    let parts = || {
        vec![
            part(&id, |_| {}),
            part(&id, |request| request.begin = Some(Begin::From(seconds(2).unwrap()))),
            part(&id, |request| request.until = seconds(3)),
            part(&id, |request| request.types = vec!["input".to_owned()]),
            part(&id, |request| request.sources = vec!["other".to_owned()]),
            part(&others[1], |request| request.begin = Some(Begin::From(seconds(1).unwrap()))),
        ]
    };
    let mut hot = Vec::new();
    for request in parts() {
        hot.push(reel.play(request).await.unwrap());
    }
    archive_all(&reel).await;
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 0);
    for (request, hot) in parts().into_iter().zip(&hot) {
        let archived = reel.play(request).await.unwrap();
        assert_eq!(archived.actions, hot.actions);
        assert_eq!(archived.end_cursor, hot.end_cursor);
    }
    // From every cursor that was given before, to the end.
    for (count, cursor) in &hot[0].pages {
        let rest = reel.play(part(&id, |request| request.begin = Some(Begin::Cursor(cursor.clone())))).await.unwrap();
        assert_eq!(rest.actions, hot[0].actions[*count..], "after {count}");
    }
    reel.stop().await;
    // Who does not know where the archive is says so, and still finds the session.
    let reel = Reel::start_on(&database, &[]).await;
    assert_eq!(reason(&reel.play(play(&id)).await.err().unwrap()), "ARCHIVE_NOT_CONFIGURED");
    assert!(reel.get(&id).await.is_ok());
    reel.stop().await;
}

async fn an_archived_session_takes_what_comes_late_and_knows_what_comes_again(backend: Backend) {
    let (reel, database, _folder) = with_archive(backend).await;
    let ids = record_sessions(&reel, &database, 2).await;
    archive_all(&reel).await;
    let before = reel.play_all(&ids[0]).await;
    let sent: Vec<_> = before.iter().filter(|action| action.source == "backend").cloned().collect();
    let again: Vec<_> = sent.iter().map(|sent| Action { seq: 0, source: String::new(), ..sent.clone() }).collect();
    // What is stored already is a duplicate, what differs is a conflict, what is new is stored.
    let mut batch = again.clone();
    "another".clone_into(&mut batch[3].target);
    batch.push(action(100_000, "error", "late"));
    let receipt = reel.append(&ids[0], "backend", 1, batch).await.unwrap();
    assert_eq!((receipt.duplicate_count, receipt.accepted_count, receipt.rejected_count), (19, 1, 1));
    assert_eq!(receipt.rejections[0].seq, 4);
    let after = reel.play_all(&ids[0]).await;
    assert_eq!(after.len(), before.len() + 1);
    assert_eq!(after.last().unwrap().target, "late");
    // In between, too: it was committed after the archive's, and happened before its last.
    reel.append(&ids[0], "", 151, vec![action(1, "click", "early")]).await.unwrap();
    let merged = reel.play_all(&ids[0]).await;
    assert_eq!(merged.iter().position(|action| action.target == "early"), Some(2));
    wait_until_indexed(&database).await;
    archive_all(&reel).await;
    assert_eq!(reel.play_all(&ids[0]).await, merged);
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 0);
    reel.stop().await;
}

async fn playing_and_recording_go_on_while_sessions_are_archived(backend: Backend) {
    let (reel, database, _folder) = with_archive(backend).await;
    let ids = record_sessions(&reel, &database, 6).await;
    let before = play_each(&reel, &ids).await;
    let archiving = async {
        for _ in 0..4 {
            archive_all(&reel).await;
            for id in reel.store.sessions_archived(DateTime::UNIX_EPOCH, later()).await.unwrap() {
                let pin = Pin { until: DateTime::UNIX_EPOCH, reason: String::new() };
                reel.store.session_restore(id, &pin).await.unwrap();
            }
        }
        archive_all(&reel).await;
    };
    let is_over = AtomicBool::new(false);
    let playing = async {
        let mut rounds = 0;
        while !is_over.load(Ordering::Relaxed) {
            for (id, before) in ids.iter().zip(&before) {
                // A page at a time, so that the session moves while it is played.
                let request = part(id, |request| request.speed = 40.0);
                let played = reel.play(request).await.unwrap().actions;
                assert_eq!(&played[..before.len()], before.as_slice());
            }
            rounds += 1;
        }
        rounds
    };
    let recording = async {
        let live = reel.start_session().await;
        let mut seq = 1;
        while !is_over.load(Ordering::Relaxed) {
            let receipt = reel.append(&live, "", seq, clicks(seq..seq + 5)).await.unwrap();
            assert_eq!(receipt.accepted_count, 5);
            seq += 5;
        }
        assert_eq!(reel.play_all(&live).await.len(), usize::try_from(seq - 1).unwrap());
        seq
    };
    let asking = async {
        let filter = SessionFilter { user_id: "ada".to_owned(), ..Default::default() };
        let clicks = ActionMatch { r#type: "click".to_owned(), ..Default::default() };
        let group_by = vec![ActionDimension::Hour.into()];
        let request =
            CountActionsRequest { filter: Some(filter), r#match: Some(clicks), group_by, ..Default::default() };
        let mut analytics = AnalyticsServiceClient::new(reel.channel.clone());
        let all: usize = before.iter().map(Vec::len).sum();
        let mut answers = 0;
        while !is_over.load(Ordering::Relaxed) {
            // Reads the actions, wherever they are at that moment.
            match analytics.count_actions(request.clone()).await {
                Ok(counted) => {
                    assert_eq!(usize::try_from(counted.into_inner().total_action_count).unwrap(), all);
                    answers += 1;
                }
                // A day was dropped meanwhile: to be asked again.
                Err(status) => assert_eq!(reason(&status), "CONTENTION"),
            }
        }
        answers
    };
    let archiving = async {
        archiving.await;
        is_over.store(true, Ordering::Relaxed);
    };
    let ((), rounds, seq, answers) = tokio::join!(archiving, playing, recording, asking);
    assert!(rounds > 0 && seq > 5 && answers > 5, "{rounds} {seq} {answers}");
    assert_eq!(play_each(&reel, &ids).await, before);
    reel.stop().await;
}

async fn late_actions_find_their_session_whether_it_is_archived_or_not(backend: Backend) {
    const BATCHES: i64 = 40;
    let (reel, database, _folder) = with_archive(backend).await;
    let ids = record_sessions(&reel, &database, 4).await;
    let before = play_each(&reel, &ids).await;
    let is_over = AtomicBool::new(false);
    let sending = async {
        for number in 0..BATCHES {
            for id in &ids {
                // Some of them happened before what is archived already.
                let actions: Vec<_> = (0..5).map(|part| action((number * 5 + part) * 31, "late", id)).collect();
                let receipt = reel.append(id, "late", number * 5 + 1, actions.clone()).await.unwrap();
                assert_eq!(receipt.accepted_count, 5);
                // A receipt that was lost: what is stored is a duplicate, wherever it is by now.
                let again = reel.append(id, "late", number * 5 + 1, actions).await.unwrap();
                assert_eq!(again.duplicate_count, 5, "{again:?}");
            }
            if number % 4 == 3 {
                // Goes on as soon as the first of them is archived, while the others are.
                let rows = "SELECT count(*) FROM sessions WHERE id NOT IN (SELECT session_id FROM actions)";
                eventually("some are archived", async || database.number(rows).await > 0).await;
            }
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let archiving = async {
        let mut archived = 0;
        while !is_over.load(Ordering::Relaxed) {
            // It would take a while until they are quiet.
            database.execute("UPDATE tracks SET last_received_at = '2026-01-01T00:00:00.000000+00:00'").await;
            let report = apply(&reel.store, &archive_after(0), later()).await;
            archived += report.days.iter().map(|day| day.sessions).sum::<i64>();
        }
        archived
    };
    let ((), archived) = tokio::join!(sending, archiving);
    assert!(archived > 8, "{archived}: more often than once each");
    wait_until_indexed(&database).await;
    for last in [false, true] {
        for (id, before) in ids.iter().zip(&before) {
            let played = reel.play_all(id).await;
            let of = |source: &str| played.iter().filter(|action| action.source == source).collect::<Vec<_>>();
            assert_eq!(played.len(), before.len() + usize::try_from(5 * BATCHES).unwrap());
            assert!(of("late").iter().map(|action| action.seq).eq(1..=5 * BATCHES));
            assert_eq!([of("main").len(), of("backend").len()], [before.len() - 20, 20]);
        }
        if !last {
            archive_all(&reel).await;
            assert_eq!(database.number("SELECT count(*) FROM actions").await, 0);
        }
    }
    reel.stop().await;
}

async fn two_processes_archive_at_once(backend: Backend) {
    let (reel, database, folder) = with_archive(backend).await;
    let ids = record_sessions(&reel, &database, 8).await;
    let before = play_each(&reel, &ids).await;
    let run = async || {
        let archive = folder.path().to_str().unwrap();
        let output =
            reel_command(&["archive", "--archive", archive, "--before", "2027-01-01", "--database-url", &database.url])
                .output()
                .await;
        let output = output.unwrap();
        // One may find the other at it.
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || text.contains("another process"), "{text}");
    };
    tokio::join!(run(), run(), run());
    archive_all(&reel).await;
    assert_eq!(play_each(&reel, &ids).await, before);
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 0);
    tidy(&reel).await;
    assert_eq!(
        files(folder.path()).len(),
        usize::try_from(database.number("SELECT count(*) FROM segments").await).unwrap()
    );
    assert_eq!(database.number("SELECT count(*) FROM segment_files WHERE state <> 'in_use'").await, 0);
    assert_eq!(database.number("SELECT count(*) FROM segments WHERE stale <> 0 OR path IS NULL").await, 0);
    reel.stop().await;
}

/// Lets so much time pass that nothing is left to tidy up.
pub async fn tidy(reel: &Reel) {
    for hours in (1..=8).step_by(2) {
        apply(&reel.store, &RetentionPolicy::default(), later() + TimeDelta::hours(hours)).await;
    }
}
