//! The process dies at every step of archiving and of writing segments anew.

use std::path::Path;

use futures_util::{StreamExt as _, stream};
use reel::proto::DeleteSessionRequest;

use super::{archive_all, end_lease, files, play_each, record_sessions, tidy, with_archive};
use crate::{
    crash::process::reel as reel_command,
    harness::{Backend, TestDatabase},
    on_both_databases,
};

on_both_databases!(killed_at_any_step_it_loses_nothing_and_shows_nothing_twice);

/// The places of `failpoint::reach`: those of archiving, then those of writing anew.
const STEPS: [&str; 7] = [
    "segment planned",
    "segment written",
    "segment verified",
    "segment noted",
    "segment sealed",
    "session archived",
    "segments sealed",
];
const DROPPING: [&str; 2] = ["actions detached", "actions dropped"];
const RENEWING: [&str; 4] = ["renewal planned", "renewal written", "renewal swapped", "file removed"];
/// Tidying up behind one that has died.
const FORGOING: [&str; 1] = ["file forgone"];

/// Runs `reel archive`, to its death if it gets to a place. Gives whether it did.
async fn archive(database: &TestDatabase, folder: &Path, place: &str) -> bool {
    let arguments = ["archive", "--before", "2027-01-01", "--archive", folder.to_str().unwrap()];
    let mut command = reel_command(&arguments);
    let output = command.args(["--database-url", &database.url]).env("REEL_DIE_AT", place).output().await.unwrap();
    assert!(output.status.success() || output.status.code().is_none(), "{}", String::from_utf8_lossy(&output.stderr));
    !output.status.success()
}

/// Dies at a place. Gives whether it got there.
async fn die_at(place: &str, backend: Backend) -> bool {
    let (reel, database, folder) = with_archive(backend).await;
    let mut ids = record_sessions(&reel, &database, 4).await;
    let mut before = play_each(&reel, &ids).await;
    if RENEWING.contains(&place) {
        archive_all(&reel).await;
        let request = DeleteSessionRequest { session_id: ids.remove(1) };
        reel.sessions().delete_session(request).await.unwrap();
        before.remove(1);
        if place == "file removed" {
            // Written anew long ago: the old file is to be removed.
            archive(&database, folder.path(), "nowhere").await;
            database.execute("UPDATE segment_files SET since = '2026-01-01T00:00:00.000000+00:00'").await;
        }
    }
    if FORGOING.contains(&place) {
        assert!(archive(&database, folder.path(), "segment written").await);
        end_lease(&database).await;
    }
    let has_died = archive(&database, folder.path(), place).await;
    end_lease(&database).await;
    assert_eq!(play_each(&reel, &ids).await, before, "after dying at {place}");
    // By the next run all is as if it had not died.
    archive_all(&reel).await;
    tidy(&reel).await;
    assert_eq!(play_each(&reel, &ids).await, before, "after going on from {place}");
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 0, "{place}");
    assert_eq!(
        database.number("SELECT CAST(sum(archived_count) AS bigint) FROM sessions").await,
        database.number("SELECT CAST(sum(action_count) AS bigint) FROM segments").await,
        "{place}"
    );
    let in_use = database.texts("SELECT path FROM segments ORDER BY path").await;
    let files = files(folder.path());
    assert!(
        files.len() == in_use.len() && files.iter().zip(&in_use).all(|(file, path)| file.ends_with(path)),
        "{place}: {files:?} {in_use:?}"
    );
    let mut verify = reel_command(&[
        "archive",
        "--verify",
        "--archive",
        folder.path().to_str().unwrap(),
        "--database-url",
        &database.url,
    ]);
    assert!(verify.status().await.unwrap().success());
    reel.stop().await;
    has_died
}

async fn killed_at_any_step_it_loses_nothing_and_shows_nothing_twice(backend: Backend) {
    let places = STEPS.into_iter().chain(DROPPING).chain(RENEWING).chain(FORGOING);
    let deaths = stream::iter(places).map(async |place| (place, die_at(place, backend).await)).buffered(4);
    let died_at: Vec<_> = deaths.filter_map(async |(place, has_died)| has_died.then_some(place)).collect().await;
    let expected: Vec<_> = match backend {
        // Where there are no partitions, sessions go one by one; where there are, days.
        Backend::Sqlite => STEPS[..6].iter().chain(&RENEWING).chain(&FORGOING).copied().collect(),
        Backend::Postgres => {
            let archiving =
                ["segment planned", "segment written", "segment verified", "segment noted", "segments sealed"];
            archiving.into_iter().chain(DROPPING).chain(RENEWING).chain(FORGOING).collect()
        }
    };
    assert_eq!(died_at, expected);
}
