//! Full disks: a small file system that the test fills and frees.

use std::{
    env, fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use tempfile::TempDir;

use super::{Disturbed, sender::ask_for_cursor};
use crate::{crash::postgres::Postgres, harness::TestDatabase};

/// Set to 1, lets the tests of full disks pass where the machine forbids to mount one.
const MAY_SKIP: &str = "REEL_TEST_MAY_SKIP_FULL_DISK";

/// A file system in memory, of a few MiB. Gone when dropped.
struct SmallDisk {
    folder: TempDir,
}

/// Runs a command as root, which is who may mount. Gives what it says where it fails.
fn as_root(arguments: &[&str]) -> Result<(), String> {
    // The shell, because `sudo` need not be there where everybody is root already.
    let script = r#"if [ "$(id -u)" = 0 ]; then exec "$@"; else exec sudo -n "$@"; fi"#;
    let output = Command::new("sh").args(["-c", script, "sh"]).args(arguments).output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

impl SmallDisk {
    /// None where it cannot be made and need not be.
    fn mount(mebibytes: u32) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let options = format!("size={mebibytes}m,mode=0777");
        let mounted =
            as_root(&["mount", "-t", "tmpfs", "-o", &options, "reel-test", &folder.path().display().to_string()]);
        match mounted {
            Ok(()) => Some(Self { folder }),
            Err(error) if env::var(MAY_SKIP).is_ok_and(|value| value == "1") => {
                eprintln!("NOT TESTED, as {MAY_SKIP} allows: no small file system could be mounted: {error}");
                None
            }
            Err(error) => panic!(
                "no small file system could be mounted, so that it cannot be tested what a full disk does: {error}\
                 Run the tests where root may mount, or set {MAY_SKIP}=1 to do without these"
            ),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut filler = fs::File::create(self.filler()).unwrap();
        let error = loop {
            if let Err(error) = filler.write_all(&[0; 4 << 10]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }

    fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: somebody who is on the way out may still look at it.
        if let Err(error) = as_root(&["umount", "-l", &self.path().display().to_string()]) {
            eprintln!("{}: {error}", self.path().display());
        }
    }
}

/// Health falls soon after the first write that did not go through: before, there was room.
async fn fill_until_refused(disturbed: &Disturbed, disk: &SmallDisk) {
    let filled = Instant::now();
    disk.fill();
    let refused = disturbed.senders.one_is_refused(filled).await;
    disturbed.health_falls(refused).await;
    disturbed.senders.all_are_refused().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_on_a_full_disk_takes_no_senders_and_goes_on_answering() {
    let Some(disk) = SmallDisk::mount(48) else { return };
    let url = format!("sqlite://{}/reel.db", disk.path().display());
    let disturbed = Disturbed::start(TestDatabase::at(url)).await;
    for _ in 0..2 {
        fill_until_refused(&disturbed, &disk).await;
        assert!(ask_for_cursor(disturbed.server.address).await.unwrap() > 0);
        let freed = Instant::now();
        disk.free();
        disturbed.resumes(freed).await;
    }
    disturbed.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_with_a_full_tablespace_takes_no_senders_and_goes_on_answering() {
    let Some(disk) = SmallDisk::mount(96) else { return };
    let postgres = Postgres::start().await;
    let disturbed = Disturbed::start(postgres.database_in("reel", disk.path()).await).await;
    for _ in 0..2 {
        fill_until_refused(&disturbed, &disk).await;
        assert!(ask_for_cursor(disturbed.server.address).await.unwrap() > 0);
        let freed = Instant::now();
        disk.free();
        disturbed.resumes(freed).await;
    }
    disturbed.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_on_a_full_disk_is_waited_for_even_if_it_gives_up() {
    let Some(disk) = SmallDisk::mount(160) else { return };
    let mut postgres = Postgres::start_in(disk.path(), &["--wal-segsize=1"]).await;
    let disturbed = Disturbed::start(postgres.database("reel").await).await;
    for _ in 0..2 {
        fill_until_refused(&disturbed, &disk).await;
        disk.free();
        // It ends when there is no room for the write-ahead log. Whoever looks after it starts it again.
        if postgres.has_ended() {
            postgres.start_again().await;
        }
        disturbed.resumes(Instant::now()).await;
    }
    disturbed.check().await;
}
