//! A storage that fails, that changes what it is given, and segments that are not what was written.

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};
use reel::{
    archive::Archive,
    error::Error,
    proto::{ListSessionsRequest, SessionEnd, SessionFilter, SessionStart},
    store::Store,
};

use super::{archive_after, archive_all, files, later, play_each, record_sessions, tidy, with_archive};
use crate::{
    crash::process::reel as reel_command,
    exact::wait_until_indexed,
    harness::{
        Backend, NOON_MS, Reel, TestDatabase, action, batch, end, play, reason, service_args, session_id, start,
    },
    on_both_databases,
};

on_both_databases!(
    a_storage_that_fails_loses_nothing,
    a_segment_that_is_damaged_is_refused_and_reported,
    a_playback_reads_no_more_than_the_row_groups_of_its_session,
);

/// What is wrong with a storage.
const NOTHING: u8 = 0;
const REFUSES: u8 = 1;
const SPOILS: u8 = 2;

/// A storage in memory that does something wrong, after some requests.
#[derive(Clone, Debug, Default)]
struct Faulty {
    inner: Arc<InMemory>,
    fault: Arc<AtomicU8>,
    /// How many requests go well before.
    patience: Arc<AtomicI64>,
    /// How many bytes were read.
    read: Arc<AtomicU64>,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl Faulty {
    fn begin(&self, fault: u8, patience: i64) {
        self.patience.store(patience, Ordering::SeqCst);
        self.fault.store(fault, Ordering::SeqCst);
    }

    fn check(&self) -> Result<u8> {
        let fault = self.fault.load(Ordering::SeqCst);
        if fault == NOTHING || self.patience.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(NOTHING);
        }
        if fault == REFUSES {
            return Err(object_store::Error::Generic { store: "Faulty", source: "refused".into() });
        }
        Ok(fault)
    }
}

#[tonic::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if self.check()? == SPOILS {
            let mut bytes: Vec<u8> = Bytes::from(payload).to_vec();
            let middle = bytes.len() / 3;
            bytes[middle] ^= 0x55;
            return self.inner.put_opts(location, bytes.into(), options).await;
        }
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.check()?;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.check()?;
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.check()?;
        self.read.fetch_add(ranges.iter().map(|range| range.end - range.start).sum(), Ordering::SeqCst);
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.check() {
            Ok(_) => self.inner.delete_stream(locations),
            Err(error) => futures_util::stream::once(std::future::ready(Err(error))).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

async fn a_storage_that_fails_loses_nothing(backend: Backend) {
    let (database, storage) = (TestDatabase::new(backend).await, Faulty::default());
    let store = Store::open(&database.url.parse().unwrap(), 4).await.unwrap();
    let store = store.with_archive(Some(Archive::new(Arc::new(storage.clone()), Path::from("reel"))));
    let reel = Reel::start_with(store, service_args(&[])).await;
    reel.wait_until_serving().await;
    let ids = record_sessions(&reel, &database, 3).await;
    let before = play_each(&reel, &ids).await;
    // It refuses from the first request on, from the second, and so on, until archiving needs no more.
    let mut outcomes = Vec::new();
    for (fault, patience) in [(SPOILS, 0), (REFUSES, 0), (REFUSES, 1), (REFUSES, 2), (REFUSES, 3)] {
        storage.begin(fault, patience);
        let outcome = reel.store.retention_apply(&archive_after(0), later()).await;
        storage.begin(NOTHING, 0);
        assert_eq!(play_each(&reel, &ids).await, before, "{fault} after {patience}");
        outcomes.push(outcome.err());
    }
    let expected = [Error::SegmentDamaged, Error::ArchiveUnavailable, Error::ArchiveUnavailable];
    assert_eq!(outcomes[..3], expected.map(Some));
    tidy(&reel).await;
    archive_all(&reel).await;
    tidy(&reel).await;
    assert_eq!(play_each(&reel, &ids).await, before);
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 0);
    let objects = storage.inner.list(None).collect::<Vec<_>>().await.len();
    assert_eq!(i64::try_from(objects).unwrap(), database.number("SELECT count(*) FROM segments").await);

    // While it is away, archived sessions are found and cannot be played; the others can.
    storage.begin(REFUSES, 0);
    let status = reel.play(play(&ids[0])).await.err().unwrap();
    assert_eq!((status.code(), reason(&status).as_str()), (tonic::Code::Unavailable, "ARCHIVE_UNAVAILABLE"));
    let with_errors = SessionFilter { min_action_count: Some(1), ..Default::default() };
    let request = ListSessionsRequest { filter: Some(with_errors), ..Default::default() };
    assert_eq!(reel.sessions().list_sessions(request).await.unwrap().into_inner().sessions.len(), 3);
    storage.begin(NOTHING, 0);
    assert_eq!(play_each(&reel, &ids).await, before);
    reel.stop().await;
}

async fn a_segment_that_is_damaged_is_refused_and_reported(backend: Backend) {
    let (reel, database, folder) = with_archive(backend).await;
    let ids = record_sessions(&reel, &database, 2).await;
    archive_all(&reel).await;
    let [file] = files(folder.path()).try_into().unwrap();
    let whole = std::fs::read(&file).unwrap();
    reel.stop().await;
    let damages: [(&str, Vec<u8>, &str); 5] = [
        ("half of it", whole[..whole.len() / 2].to_vec(), "SEGMENT_DAMAGED"),
        ("nothing", Vec::new(), "SEGMENT_DAMAGED"),
        ("zeros", vec![0; whole.len()], "SEGMENT_DAMAGED"),
        (
            "its footer spoilt",
            {
                let mut bytes = whole.clone();
                let end = bytes.len();
                bytes[end - 40..end - 8].fill(0xff);
                bytes
            },
            "SEGMENT_DAMAGED",
        ),
        (
            "its pages spoilt",
            {
                let mut bytes = whole.clone();
                bytes[4..2_000].fill(0xaa);
                bytes
            },
            "SEGMENT_DAMAGED",
        ),
    ];
    let arguments = ["--archive", folder.path().to_str().unwrap()];
    let verify = async || {
        let mut command =
            reel_command(&["archive", "--verify", arguments[0], arguments[1], "--database-url", &database.url]);
        command.output().await.unwrap()
    };
    for (damage, bytes, expected) in damages {
        std::fs::write(&file, bytes).unwrap();
        let reel = Reel::start_on(&database, &arguments).await;
        let status = reel.play(play(&ids[0])).await.err().unwrap_or_else(|| panic!("{damage} is played"));
        assert_eq!((status.code(), reason(&status).as_str()), (tonic::Code::DataLoss, expected), "{damage}");
        assert!(reel.get(&ids[0]).await.is_ok());
        let output = verify().await;
        assert!(!output.status.success(), "{damage}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 segments are not what was written"), "{damage}");
        reel.stop().await;
    }
    std::fs::remove_file(&file).unwrap();
    let reel = Reel::start_on(&database, &arguments).await;
    assert_eq!(reason(&reel.play(play(&ids[0])).await.err().unwrap()), "SEGMENT_MISSING");
    std::fs::write(&file, &whole).unwrap();
    assert_eq!(reel.play_all(&ids[0]).await.len(), 170);
    assert!(verify().await.status.success());
    reel.stop().await;
}

async fn a_playback_reads_no_more_than_the_row_groups_of_its_session(backend: Backend) {
    let (database, storage) = (TestDatabase::new(backend).await, Faulty::default());
    let store = Store::open(&database.url.parse().unwrap(), 4).await.unwrap();
    let store = store.with_archive(Some(Archive::new(Arc::new(storage.clone()), Path::default())));
    let reel = Reel::start_with(store, service_args(&[])).await;
    reel.wait_until_serving().await;
    let mut ids = record_sessions(&reel, &database, 3).await;
    // One that is longer than a row group may be, with targets of its own.
    let long = session_id(NOON_MS + 1_800_000);
    let mut requests = vec![start(&long, SessionStart::default())];
    for chunk in 0..16 {
        let actions = (chunk * 1_500..(chunk + 1) * 1_500).map(|number| {
            let mut action = action(number * 7, "click", &format!("target {}", number * 31 % 2_003));
            action.data = format!("{{\"number\": {}}}", number * 7_919 % 104_729);
            action
        });
        requests.push(batch("", "", chunk * 1_500 + 1, actions.collect()));
    }
    requests.push(end("", SessionEnd::default()));
    reel.record(requests).await.unwrap();
    ids.push(long);
    wait_until_indexed(&database).await;
    archive_all(&reel).await;
    let object = storage.inner.list(None).next().await.unwrap().unwrap();
    let bytes = storage.inner.get(&object.location).await.unwrap().bytes().await.unwrap();
    let file = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
    let groups = file.metadata().row_groups();
    assert!(groups.len() > 1);
    for id in &ids {
        let of_session: i64 = groups
            .iter()
            .filter(|group| {
                let statistics = group.column(0).statistics().unwrap();
                let (min, max) = (statistics.min_bytes_opt().unwrap(), statistics.max_bytes_opt().unwrap());
                (min..=max).contains(&id.as_bytes())
            })
            .map(parquet::file::metadata::RowGroupMetaData::compressed_size)
            .sum();
        // The footer is read once.
        reel.play_all(id).await;
        storage.read.store(0, Ordering::SeqCst);
        let played = reel.play_all(id).await.len();
        let read = storage.read.load(Ordering::SeqCst);
        assert!(read > 0 && read <= of_session.cast_unsigned(), "{played} actions: {read} of {of_session} bytes");
    }
    reel.stop().await;
}
