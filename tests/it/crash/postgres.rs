//! A PostgreSQL server of the test's own, to be killed.
//!
//! `REEL_TEST_PG_BIN` is the folder of `initdb` and `postgres`; `REEL_TEST_PG_USER` the user to run them as where the tests
//! run as root, which PostgreSQL refuses. `tests/run` sets both.

mod outage;

use std::{
    env,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use sea_orm::{ConnectionTrait as _, Statement};
use tempfile::TempDir;

use super::process::{free_port, signal, try_signal};
use crate::harness::{TestDatabase, administer, eventually, try_connect};

/// The server. Stopped and removed when it is dropped.
pub struct Postgres {
    folder: TempDir,
    port: u16,
    child: Child,
}

/// The user and the group to run as.
fn user() -> Option<(u32, u32)> {
    let name = env::var("REEL_TEST_PG_USER").ok().filter(|name| !name.is_empty())?;
    let id = |kind: &str| {
        let output = Command::new("id").args([kind, &name]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().expect("REEL_TEST_PG_USER is a user")
    };
    Some((id("-u"), id("-g")))
}

fn command(folder: &TempDir, program: &str) -> Command {
    let bin: PathBuf =
        env::var("REEL_TEST_PG_BIN").expect("REEL_TEST_PG_BIN is not set: run the tests by tests/run").into();
    let mut command = Command::new(bin.join(program));
    command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some((uid, gid)) = user() {
        command.uid(uid).gid(gid);
    }
    command
}

fn spawn(folder: &TempDir, port: u16) -> Child {
    let mut command = command(folder, "postgres");
    command.args(["-D", "data", "-p", &port.to_string()]);
    for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "restart_after_crash=on"] {
        command.args(["-c", setting]);
    }
    command.spawn().unwrap()
}

impl Postgres {
    pub async fn start() -> Self {
        Self::start_in(&env::temp_dir(), &[]).await
    }

    /// Starts a server whose data lies in this folder, made with these arguments of `initdb`.
    pub async fn start_in(parent: &Path, arguments: &[&str]) -> Self {
        let folder = TempDir::new_in(parent).unwrap();
        if let Some((uid, gid)) = user() {
            chown(folder.path(), Some(uid), Some(gid)).unwrap();
        }
        let made = command(&folder, "initdb")
            .args([
                "-D",
                "data",
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ])
            .args(arguments)
            .status();
        assert!(made.unwrap().success(), "initdb failed");
        let port = free_port();
        let child = spawn(&folder, port);
        let mut postgres = Self { folder, port, child };
        postgres.wait_until_ready().await;
        postgres
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes a database. It goes with the server.
    pub async fn database(&self, name: &str) -> TestDatabase {
        administer(&self.url("postgres"), &format!("CREATE DATABASE {name}")).await;
        TestDatabase::at(self.url(name))
    }

    /// Changes a setting of the whole server, and waits until it is in force.
    pub async fn set(&self, setting: &str, value: &str) {
        let server = self.url("postgres");
        administer(&server, &format!("ALTER SYSTEM SET {setting} = {value}")).await;
        administer(&server, "SELECT pg_reload_conf()").await;
        let query = format!("SELECT current_setting('{setting}')");
        eventually("the setting is in force", async || {
            TestDatabase::at(server.clone()).texts(&query).await == [value.to_owned()]
        })
        .await;
    }

    /// SIGKILL to one of the server processes that work for Reel, or while it works if there is one that does: PostgreSQL then
    /// throws out everybody and recovers. Waits for one to be there.
    pub async fn kill_a_backend(&self, while_it_works: bool) {
        let order = if while_it_works { "state = 'active' DESC, xact_start NULLS LAST" } else { "random()" };
        let pids = format!("SELECT pid FROM pg_stat_activity WHERE application_name = 'reel' ORDER BY {order} LIMIT 1");
        let server = self.url("postgres");
        eventually("a backend is killed", async || {
            // Refused while it recovers.
            let Some(connection) = try_connect(&server).await else { return false };
            let statement = Statement::from_string(connection.get_database_backend(), &pids);
            let Ok(Some(row)) = connection.query_one_raw(statement).await else { return false };
            try_signal("KILL", &row.try_get_by_index::<i32>(0).unwrap().to_string())
        })
        .await;
    }

    /// SIGKILL to the server itself. Its children notice, and end.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub async fn start_again(&mut self) {
        self.begin_again();
        self.wait_until_ready().await;
    }

    /// Starts it again without waiting for its recovery.
    pub fn begin_again(&mut self) {
        self.child = spawn(&self.folder, self.port);
    }

    pub async fn wait_until_ready(&mut self) {
        let url = self.url("postgres");
        eventually("PostgreSQL is ready", async || {
            // Refused as long as a child of the killed server lives.
            if self.child.try_wait().unwrap().is_some() {
                self.child = spawn(&self.folder, self.port);
            }
            match try_connect(&url).await {
                Some(connection) => connection.ping().await.is_ok(),
                None => false,
            }
        })
        .await;
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // One that is paused would not hear of its end.
            self.resume();
            // At once, children included.
            signal("QUIT", &self.child.id().to_string());
            let _ = self.child.wait();
        }
    }
}
