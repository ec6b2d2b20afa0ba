//! A PostgreSQL server of the benchmark's own, removed afterwards.
//!
//! `REEL_TEST_PG_BIN` may name the folder of `initdb` and `postgres`; otherwise Debian's newest is taken, or what `pg_config`
//! says. PostgreSQL refuses to run as root: then it runs as `REEL_TEST_PG_USER`, or `postgres`, or `nobody`. `TMPDIR` decides on
//! which disk it lies.

use std::{
    env, fs,
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::fs::{Advice, fadvise};
use sea_orm::sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;

use super::{Failure, Result};

/// What a team would set on a small machine, and what durability needs. Checkpoints are made between measurements instead of
/// by the clock.
const SETTINGS: [&str; 9] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=100",
    "shared_buffers=256MB",
    "max_wal_size=4GB",
    "checkpoint_timeout=1h",
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
];

/// The server. Stopped and removed when it is dropped.
pub struct Postgres {
    folder: TempDir,
    bin: PathBuf,
    user: Option<(u32, u32)>,
    port: u16,
    child: Child,
}

impl Postgres {
    pub async fn start() -> Result<Self> {
        let bin = binaries()?;
        let user = unprivileged_user()?;
        let folder = TempDir::new()?;
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid))?;
        }
        let mut init = command(&folder, &bin, user, "initdb");
        init.args(["-D", "data", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]);
        if !init.arg("--no-sync").status()?.success() {
            return Err("initdb failed".into());
        }
        let port = free_port()?;
        let child = serve(&folder, &bin, user, port)?;
        let mut postgres = Self { folder, bin, user, port, child };
        postgres.wait_until_ready().await?;
        Ok(postgres)
    }

    /// Starts it again with nothing in memory of what it stores: not in its own, nor in the system's page cache.
    pub async fn start_cold(&mut self) -> Result<()> {
        // SIGINT: after a checkpoint, whose pages are on the disk then and may be forgotten.
        self.end("INT")?;
        forget_pages(&self.folder.path().join("data"))?;
        self.child = serve(&self.folder, &self.bin, self.user, self.port)?;
        self.wait_until_ready().await
    }

    /// The process of the server, the parent of all others.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes a database. Gives its URL.
    pub async fn database(&self, name: &str) -> Result<String> {
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await?;
        connection.close().await?;
        Ok(self.url(name))
    }

    /// Sends it a signal that ends it, and waits until it has ended.
    fn end(&mut self, signal: &str) -> Result<()> {
        // The program `kill` is not everywhere, the shell is.
        Command::new("sh").args(["-c", &format!("kill -{signal} {}", self.child.id())]).status()?;
        self.child.wait()?;
        Ok(())
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let give_up_at = Instant::now() + Duration::from_secs(30);
        while let Err(error) = PgConnection::connect(&self.url("postgres")).await {
            if self.child.try_wait()?.is_some() || Instant::now() > give_up_at {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                return Err(format!("PostgreSQL does not start: {error}\n{log}").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGQUIT: at once, children included.
        let _ = self.end("QUIT");
    }
}

/// A program of PostgreSQL's, run where its data is, as a user that it accepts.
fn command(folder: &TempDir, bin: &Path, user: Option<(u32, u32)>, program: &str) -> Command {
    let mut command = Command::new(bin.join(program));
    command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}

fn serve(folder: &TempDir, bin: &Path, user: Option<(u32, u32)>, port: u16) -> Result<Child> {
    let mut server = command(folder, bin, user, "postgres");
    server.args(["-D", "data", "-p", &port.to_string()]);
    SETTINGS.iter().for_each(|setting| {
        server.args(["-c", setting]);
    });
    Ok(server.stderr(fs::File::create(folder.path().join("log"))?).spawn()?)
}

/// Lets the system forget what it knows of the files in a folder.
fn forget_pages(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            forget_pages(&path)?;
        } else {
            fadvise(fs::File::open(path)?, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// A port that nobody listens on now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn binaries() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("REEL_TEST_PG_BIN") {
        return Ok(folder.into());
    }
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions = debian.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    if let Some(newest) = versions.max() {
        return Ok(format!("/usr/lib/postgresql/{newest}/bin").into());
    }
    let missing = "no PostgreSQL server found; REEL_TEST_PG_BIN may name the folder of its programs";
    let output = Command::new("pg_config").arg("--bindir").output().map_err(|_| Failure::from(missing))?;
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

/// The user and the group to run as, if not as who we are.
fn unprivileged_user() -> Result<Option<(u32, u32)>> {
    let id = |arguments: &[&str]| -> Option<u32> {
        let output = Command::new("id").args(arguments).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    if id(&["-u"]) != Some(0) {
        return Ok(None);
    }
    let given = env::var("REEL_TEST_PG_USER").ok().filter(|name| !name.is_empty());
    let names = given.map_or_else(|| vec!["postgres".to_owned(), "nobody".to_owned()], |name| vec![name]);
    let found = names.iter().find_map(|name| Some((id(&["-u", name])?, id(&["-g", name])?)));
    found.map(Some).ok_or_else(|| format!("there is no user {}", names.join(" or ")).into())
}
