//! `reel import`, broken off in every way: run again, it ends with exactly what an import without trouble ends with.

use std::{fmt::Write as _, fs, net::SocketAddr, path::PathBuf, process::Stdio};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{
    postgres::Postgres,
    process::{Process, reel},
};
use crate::{
    harness::{Backend, NOON_MS, Reel, TestDatabase, check_same_as_undisturbed, eventually},
    on_both_databases,
};

/// How many actions the recording has, in how many sessions.
const ACTIONS: i64 = 20_000;
const SESSIONS: usize = 20;

/// How often a process is killed in one test.
const KILLS: i64 = 5;

on_both_databases!(
    an_import_that_is_killed_again_and_again_ends_as_if_it_had_not_been,
    an_import_outlives_the_server_and_imports_everything_once,
);

/// A recording, the same at every run.
struct Recording {
    _folder: TempDir,
    file: PathBuf,
}

impl Recording {
    fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(20);
        let mut lines = String::new();
        for number in 0..ACTIONS {
            let session = rng.random_range(0..SESSIONS);
            let source = ["web", "worker"][rng.random_range(0..2)];
            let timestamp = NOON_MS + number * 10 + rng.random_range(-5_000..5_000);
            let kind = ["click", "input", "error", "rrweb"][rng.random_range(0..4)];
            let text = "x".repeat(rng.random_range(0..200));
            writeln!(
                lines,
                r#"{{"session":"visit {session}","user":"user-{}","source":"{source}","timestamp":{timestamp},"type":"{kind}","target":"t{number}","data":{{ "n":{number}, "text":"{text}"}}}}"#,
                session % 7
            )
            .unwrap();
        }
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("recording.jsonl");
        fs::write(&file, lines).unwrap();
        Self { _folder: folder, file }
    }

    fn import(&self, server: SocketAddr) -> Command {
        let mut command =
            reel(&["import", "--batch", "100", "--retry-for", "5min", "--server", &format!("http://{server}")]);
        command.arg(&self.file).stdout(Stdio::piped());
        command
    }

    /// Imports it to the end, and gives what that says.
    async fn import_all(&self, server: SocketAddr) -> String {
        finished(self.import(server).spawn().unwrap()).await
    }
}

async fn finished(import: Child) -> String {
    let output = import.wait_with_output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}: {said}", output.status);
    said
}

/// Waits until so many parts of so many are stored.
async fn reach_share(database: &TestDatabase, part: i64, parts: i64) {
    let stored = "SELECT CAST(coalesce(sum(last_seq), 0) AS bigint) FROM tracks";
    eventually("the import gets on", async || database.number(stored).await >= ACTIONS * part / parts).await;
}

/// Checks that the database holds what an undisturbed import gives, and that importing again adds nothing.
async fn check(recording: &Recording, database: &TestDatabase, undisturbed: &TestDatabase) {
    let clean = Reel::start_on(undisturbed, &[]).await;
    let said = recording.import_all(clean.address).await;
    assert!(said.contains("20,000 actions: 20,000 new, 0 already stored, 0 rejected"), "{said}");
    check_same_as_undisturbed(database, undisturbed).await;
    let said = recording.import_all(clean.address).await;
    assert!(said.contains("20,000 actions: 0 new, 20,000 already stored, 0 rejected"), "{said}");
    check_same_as_undisturbed(database, undisturbed).await;
}

async fn an_import_that_is_killed_again_and_again_ends_as_if_it_had_not_been(backend: Backend) {
    let recording = Recording::new();
    let (server, database) = Reel::start(backend).await;
    for kill in 0..KILLS {
        let mut import = recording.import(server.address).spawn().unwrap();
        reach_share(&database, kill + 1, KILLS + 2).await;
        import.kill().await.unwrap();
    }
    recording.import_all(server.address).await;
    check(&recording, &database, &TestDatabase::new(backend).await).await;
}

async fn an_import_outlives_the_server_and_imports_everything_once(backend: Backend) {
    let recording = Recording::new();
    let database = TestDatabase::new(backend).await;
    let mut server = Process::serve(&database.url, &[]).await;
    let import = recording.import(server.address).spawn().unwrap();
    for kill in 0..KILLS {
        reach_share(&database, kill + 1, KILLS + 2).await;
        server.kill().await;
        server.start_again().await;
    }
    finished(import).await;
    check(&recording, &database, &TestDatabase::new(backend).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_outlives_postgres_and_imports_everything_once() {
    let recording = Recording::new();
    let mut postgres = Postgres::start().await;
    let (database, undisturbed) = (postgres.database("disturbed").await, postgres.database("undisturbed").await);
    let server = Process::serve(&database.url, &[]).await;
    let import = recording.import(server.address).spawn().unwrap();
    for kill in 0..2 {
        reach_share(&database, kill + 1, 4).await;
        postgres.kill();
        postgres.start_again().await;
    }
    finished(import).await;
    check(&recording, &database, &undisturbed).await;
}
