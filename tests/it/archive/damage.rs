//! A damaged session does not keep what was erased in its file for ever.

use std::ops::Range;

use chrono::TimeDelta;
use parquet::{
    arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
    file::metadata::PageIndexPolicy,
};
use reel::{
    archive::Archive,
    error::Error,
    model::RetentionPolicy,
    proto::{Action, DeleteSessionRequest, GetErasureRequest, SessionEnd, SessionStart},
    store::Store,
};
use tempfile::TempDir;

use super::{archive_all, files, later, with_archive};
use crate::{
    crash::process::reel as reel_command,
    exact::wait_until_indexed,
    harness::{
        Backend, NOON_MS, Reel, TestDatabase, action, batch, end, eventually, play, reason, session_id, start, user,
    },
    on_both_databases,
};

on_both_databases!(
    what_cannot_be_read_of_a_segment_is_given_up_when_there_was_time_to_put_it_back,
    a_segment_that_is_put_back_in_time_loses_nothing,
);

/// Records a session of so many actions, which name it.
async fn record(reel: &Reel, at_ms: i64, user_id: &str, count: i64) -> String {
    let id = session_id(at_ms);
    let of = SessionStart { user: Some(user(user_id, "")), ..Default::default() };
    let mut requests = vec![start(&id, of)];
    let actions: Vec<_> = (0..count)
        .map(|offset| {
            let mut action = action(offset, "click", user_id);
            action.data = format!("{{\"{user_id}\": {}}}", offset * 7_919 % 104_729);
            action
        })
        .collect();
    requests
        .extend(actions.chunks(500).zip(0..).map(|(chunk, number)| batch("", "", 1 + 500 * number, chunk.to_vec())));
    requests.push(end("", SessionEnd::default()));
    reel.record(requests).await.unwrap();
    id
}

/// Where the page with the data of this row is in a file of one row group.
fn page_of_row(file: &[u8], row: i64) -> Range<usize> {
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
    let bytes = bytes::Bytes::copy_from_slice(file);
    let footer = ArrowReaderMetadata::load(&bytes, options).unwrap();
    assert_eq!(footer.metadata().num_row_groups(), 1);
    let columns = footer.metadata().row_group(0).columns();
    let data = columns.iter().position(|column| column.column_path().string() == "data").unwrap();
    let index = footer.metadata().page_index_for_row_group(0);
    let pages = index.page_locations(data).unwrap();
    let page = pages.iter().rev().find(|page| page.first_row_index <= row).unwrap();
    let begin = usize::try_from(page.offset).unwrap();
    begin..begin + usize::try_from(page.compressed_page_size).unwrap()
}

/// An archive of one file with three sessions, of which one is damaged and one was erased.
struct Damaged {
    database: TestDatabase,
    folder: TempDir,
    /// For looking after it while no service runs.
    store: Store,
    file: String,
    intact: Vec<u8>,
    erased: String,
    damaged: String,
    whole: String,
    /// What was played of the whole one, and of the damaged one, before.
    before: [Vec<Action>; 2],
}

impl Damaged {
    async fn new(backend: Backend) -> Self {
        let (reel, database, folder) = with_archive(backend).await;
        let erased = record(&reel, NOON_MS, "canary", 3).await;
        let damaged = record(&reel, NOON_MS + 60_000, "ada", 4_000).await;
        let whole = record(&reel, NOON_MS + 120_000, "grace", 2_000).await;
        wait_until_indexed(&database).await;
        archive_all(&reel).await;
        let before = [reel.play_all(&whole).await, reel.play_all(&damaged).await];
        let [file] = files(folder.path()).try_into().unwrap();
        let intact = std::fs::read(&file).unwrap();
        let mut bytes = intact.clone();
        bytes[page_of_row(&intact, 2_000)].fill(0xaa);
        std::fs::write(&file, bytes).unwrap();
        reel.sessions().delete_session(DeleteSessionRequest { session_id: erased.clone() }).await.unwrap();
        reel.stop().await;
        // The service may have found it, by today's clock.
        database.execute("UPDATE segments SET damaged_at = NULL").await;
        let archive = Archive::open(&folder.path().to_str().unwrap().parse().unwrap()).unwrap();
        let store = Store::open(&database.url.parse().unwrap(), 9).await.unwrap().with_archive(Some(archive));
        store.prepare().await.unwrap();
        Self { database, folder, store, file, intact, erased, damaged, whole, before }
    }

    fn arguments(&self) -> [&str; 2] {
        ["--archive", self.folder.path().to_str().unwrap()]
    }

    /// Looks after the archive some hours after the first time. A service may do so by itself, at another time.
    async fn tidy_after(&self, hours: i64) -> Result<(), Error> {
        let now = later() + TimeDelta::hours(hours);
        let mut tidied = Err(Error::RetentionRunning);
        // The service may have ended in the middle of it, and its lease outlives it by some seconds.
        eventually("nobody else looks after the archive", async || {
            tidied = self.store.retention_apply(&RetentionPolicy::default(), now).await.map(|_| ());
            tidied != Err(Error::RetentionRunning)
        })
        .await;
        tidied
    }

    /// The last line of what `reel archive --verify` says.
    async fn verify(&self) -> String {
        let [option, folder] = self.arguments();
        let command = ["archive", "--verify", option, folder, "--database-url", &self.database.url];
        let output = reel_command(&command).output().await.unwrap();
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        lines.lines().last().unwrap_or_default().to_owned()
    }

    async fn erasure_is_finished(&self, reel: &Reel) -> bool {
        let request = GetErasureRequest { session_id: self.erased.clone(), ..Default::default() };
        reel.users().get_erasure(request).await.unwrap().into_inner().finish_time.is_some()
    }
}

async fn what_cannot_be_read_of_a_segment_is_given_up_when_there_was_time_to_put_it_back(backend: Backend) {
    let archive = Damaged::new(backend).await;
    let (database, folder) = (&archive.database, archive.folder.path());
    for hours in [0, 1, 23] {
        assert_eq!(archive.tidy_after(hours).await, Err(Error::SegmentDamaged), "{hours}");
        assert_eq!(files(folder), std::slice::from_ref(&archive.file), "{hours}");
    }
    let reel = Reel::start_on(database, &archive.arguments()).await;
    assert_eq!(reel.play_all(&archive.whole).await, archive.before[0]);
    assert_eq!(reason(&reel.play(play(&archive.damaged)).await.err().unwrap()), "SEGMENT_DAMAGED");
    assert!(!archive.erasure_is_finished(&reel).await);
    reel.stop().await;

    // There was time to put it back. What is found then is looked at again a run later, and removed when nobody reads it.
    assert_eq!(archive.tidy_after(25).await, Err(Error::SegmentDamaged));
    for hours in [26, 27, 29] {
        assert_eq!(archive.tidy_after(hours).await, Ok(()), "{hours}");
    }
    let [renewed] = files(folder).try_into().unwrap();
    assert_ne!(renewed, archive.file);
    let reel = Reel::start_on(database, &archive.arguments()).await;
    assert_eq!(reel.play_all(&archive.whole).await, archive.before[0]);
    let status = reel.play(play(&archive.damaged)).await.err().unwrap();
    assert_eq!((status.code(), reason(&status).as_str()), (tonic::Code::DataLoss, "SEGMENT_MISSING"));
    assert!(reel.get(&archive.damaged).await.is_ok());
    eventually("the erasure is finished", async || archive.erasure_is_finished(&reel).await).await;
    assert_eq!(archive.verify().await, "2 segments, 6000 actions, 1 segments are not what was written");

    // Without its session, nothing is left of what was lost.
    reel.sessions().delete_session(DeleteSessionRequest { session_id: archive.damaged.clone() }).await.unwrap();
    reel.stop().await;
    assert_eq!(archive.tidy_after(30).await, Ok(()));
    assert_eq!(archive.verify().await, "1 segments, 2000 actions, 0 segments are not what was written");
    archive.store.close().await;
}

async fn a_segment_that_is_put_back_in_time_loses_nothing(backend: Backend) {
    let archive = Damaged::new(backend).await;
    assert_eq!(archive.tidy_after(0).await, Err(Error::SegmentDamaged));
    std::fs::write(&archive.file, &archive.intact).unwrap();
    for hours in [25, 27, 29] {
        assert_eq!(archive.tidy_after(hours).await, Ok(()), "{hours}");
    }
    assert_eq!(archive.database.number("SELECT count(*) FROM segments WHERE damaged_at IS NOT NULL").await, 0);
    let reel = Reel::start_on(&archive.database, &archive.arguments()).await;
    assert_eq!(reel.play_all(&archive.whole).await, archive.before[0]);
    assert_eq!(reel.play_all(&archive.damaged).await, archive.before[1]);
    eventually("the erasure is finished", async || archive.erasure_is_finished(&reel).await).await;
    reel.stop().await;
    archive.store.close().await;
}
