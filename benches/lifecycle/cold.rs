//! What archived sessions cost: bytes, the time until the first action comes, and what is read for it.

use std::{
    fmt,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream::BoxStream;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, local::LocalFileSystem, path::Path,
};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use rand::{SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use reel::{
    archive,
    model::{ArchivePolicy, RetentionPolicy, SessionId},
    proto::{PlaySessionRequest, play_session_response::Event, playback_service_client::PlaybackServiceClient},
    store::{ActionQuery, SeqWindow, Store},
};
use sea_orm::sqlx::{Connection as _, Executor as _, PgConnection, query_scalar, types::Uuid};
use tempfile::TempDir;
use tonic::transport::Channel;

use super::expiry::bytes;
use crate::support::{
    Result,
    arguments::Arguments,
    figure::{Figure, Goal},
    postgres::Postgres,
    progress,
    reel::Reel,
    statistics::{Rounds, percentile_ms},
};

/// What was recorded.
pub struct Recorded {
    pub sessions: f64,
    pub json_lines_bytes: f64,
    pub gzip_bytes: f64,
    pub until: DateTime<Utc>,
}

/// Compares a database of hot sessions with one in which they are archived first.
pub async fn measure(
    arguments: &Arguments,
    postgres: &Postgres,
    (hot, cold): (&str, &str),
    recorded: &Recorded,
) -> Result<Vec<Figure>> {
    let folder = TempDir::new()?;
    let storage = Counting { inner: Arc::new(LocalFileSystem::new_with_prefix(folder.path())?), read: Arc::default() };
    let opened = archive::Archive::new(Arc::new(storage.clone()), Path::default());
    let store = Store::open(&postgres.url(cold).parse()?, 4).await?.with_archive(Some(opened));
    let mut connection = PgConnection::connect(&postgres.url(cold)).await?;
    let hot_bytes = bytes(&mut connection).await?;
    // Only what has ended is archived; the senders of this benchmark end nothing.
    connection.execute("UPDATE sessions SET ended_at = started_at, end_reason = 'idle'").await?;
    let archive = Some(ArchivePolicy { after: Some(TimeDelta::zero()), keep_for: None });
    let policy = RetentionPolicy { archive, ..RetentionPolicy::default() };
    let begun = Instant::now();
    let report = store.retention_apply(&policy, recorded.until).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let actions: i64 = report.days.iter().map(|day| day.actions).sum();
    progress(format_args!("{actions} actions are archived"));
    let left: i64 = query_scalar("SELECT count(*) FROM actions").fetch_one(&mut connection).await?;
    if left > 0 {
        return Err(format!("{left} actions are not archived").into());
    }
    let cold_bytes = bytes(&mut connection).await?;
    let segment_bytes =
        files(folder.path())?.iter().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum::<u64>() as f64;
    let sessions: Vec<Uuid> = query_scalar("SELECT id FROM sessions").fetch_all(&mut connection).await?;
    let sessions: Vec<_> = sessions.into_iter().map(SessionId::from_uuid).collect();
    let (read, groups) = read_for_playbacks(arguments, &store, &storage, folder.path(), &sessions).await?;
    store.close().await;
    let mut figures = vec![
        Figure::new("bytes of a session: hot ÷ JSON Lines", hot_bytes / recorded.sessions, "bytes")
            .beside(recorded.json_lines_bytes / recorded.sessions),
        Figure::new("… in its segment", segment_bytes / recorded.sessions, "bytes")
            .beside(recorded.json_lines_bytes / recorded.sessions)
            .goal(Goal::RatioAtMost(0.15)),
        Figure::new("… left in the database, to find it", cold_bytes / recorded.sessions, "bytes")
            .beside(recorded.json_lines_bytes / recorded.sessions),
        Figure::new("… as JSON Lines, gzip", recorded.gzip_bytes / recorded.sessions, "bytes")
            .beside(recorded.json_lines_bytes / recorded.sessions),
        Figure::new("time to archive a million actions", seconds * 1e6 / actions as f64, "s"),
        Figure::new("bytes read for a playback ÷ its row groups", read, "bytes")
            .beside(groups)
            .goal(Goal::RatioAtMost(1.0)),
    ];
    figures.extend(playbacks(arguments, postgres, (hot, cold), folder.path(), &sessions).await?);
    Ok(figures)
}

/// First actions and whole playbacks, archived beside hot, by turns.
async fn playbacks(
    arguments: &Arguments,
    postgres: &Postgres,
    (hot, cold): (&str, &str),
    folder: &std::path::Path,
    sessions: &[SessionId],
) -> Result<Vec<Figure>> {
    let folder = folder.to_str().ok_or("the folder has no name")?;
    let services = [
        Reel::serve_with(&postgres.url(hot), &["--indexer", "off"]).await?,
        Reel::serve_with(&postgres.url(cold), &["--indexer", "off", "--archive", folder]).await?,
    ];
    let mut channels = Vec::new();
    for service in &services {
        channels.extend(service.connect(1).await?);
    }
    let count = arguments.scale(20, 400, 1_000);
    let (mut first, mut tail, mut whole) = (Rounds::default(), Rounds::default(), Rounds::default());
    for round in 0..=arguments.rounds() {
        let mut random = StdRng::seed_from_u64(arguments.seed + round as u64);
        let mut times = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
        for number in 0..count {
            let Some(session) = sessions.choose(&mut random) else { return Err("there are no sessions".into()) };
            for place in [number % 2, 1 - number % 2] {
                let (first, all) = play(&channels[place], *session).await?;
                times[place].0.push(first);
                times[place].1.push(all);
            }
        }
        // The first round opens connections and reads footers.
        if round > 0 {
            let [hot, cold] = &mut times;
            first.add(percentile_ms(&mut cold.0, 0.5), percentile_ms(&mut hot.0, 0.5));
            tail.add(percentile_ms(&mut cold.0, 0.99), percentile_ms(&mut hot.0, 0.99));
            whole.add(percentile_ms(&mut cold.1, 0.5), percentile_ms(&mut hot.1, 0.5));
        }
    }
    for service in services {
        service.stop().await?;
    }
    Ok(vec![
        Figure::of_rounds("first action archived ÷ hot, p50", &first, "ms").goal(Goal::RatioAtMost(3.0)),
        Figure::of_rounds("… p99", &tail, "ms"),
        Figure::of_rounds("playback of a session archived ÷ hot", &whole, "ms"),
    ])
}

async fn play(channel: &Channel, session: SessionId) -> Result<(Duration, Duration)> {
    let begun = Instant::now();
    let request = PlaySessionRequest { session_id: session.to_string(), ..Default::default() };
    let mut playback = PlaybackServiceClient::new(channel.clone()).play_session(request).await?.into_inner();
    let (mut first, mut actions) = (None, 0);
    while let Some(message) = playback.message().await? {
        if let Some(Event::Actions(page)) = message.event {
            first.get_or_insert_with(|| begun.elapsed());
            actions += page.actions.len();
        }
    }
    if actions == 0 {
        return Err("a playback has no actions".into());
    }
    Ok((first.ok_or("a playback has no actions")?, begun.elapsed()))
}

/// Bytes that are read for the playback of one session, footers aside, and those of the row groups that it is in; on average.
async fn read_for_playbacks(
    arguments: &Arguments,
    store: &Store,
    storage: &Counting,
    folder: &std::path::Path,
    sessions: &[SessionId],
) -> Result<(f64, f64)> {
    let groups = row_groups(folder)?;
    let mut random = StdRng::seed_from_u64(arguments.seed);
    let windows = [SeqWindow { track: 0, above: 0, up_to: i64::MAX }];
    let (mut read, mut of_groups, mut count) = (0.0, 0.0, 0.0);
    for _ in 0..arguments.scale(20, 500, 500) {
        let Some(session) = sessions.choose(&mut random) else { return Err("there are no sessions".into()) };
        let query =
            ActionQuery { session: *session, windows: &windows, after: None, from: None, until: None, types: &[] };
        let mut segment = None;
        // At first their footers are read.
        store.action_page(&query, 1_000, 1 << 20, &mut segment).await?;
        storage.read.store(0, Ordering::Relaxed);
        let page = store.action_page(&query, 1_000, 1 << 20, &mut segment).await?;
        if page.actions.is_empty() {
            return Err("an archived session has no actions".into());
        }
        read += storage.read.load(Ordering::Relaxed) as f64;
        let id = session.to_string();
        let its = groups.iter().filter(|(least, greatest, _)| *least <= id && id <= *greatest);
        of_groups += its.map(|(_, _, bytes)| *bytes).sum::<f64>();
        count += 1.0;
    }
    Ok((read / count, of_groups / count))
}

/// The first and the last session of all row groups, and their bytes.
fn row_groups(folder: &std::path::Path) -> Result<Vec<(String, String, f64)>> {
    let mut groups = Vec::new();
    for file in files(folder)? {
        let reader = SerializedFileReader::new(std::fs::File::open(file)?)?;
        for group in reader.metadata().row_groups() {
            let statistics = group.column(0).statistics().ok_or("no statistics")?;
            let text = |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
            let bounds = text(statistics.min_bytes_opt()).zip(text(statistics.max_bytes_opt()));
            let (least, greatest) = bounds.ok_or("no statistics")?;
            groups.push((least, greatest, group.compressed_size() as f64));
        }
    }
    Ok(groups)
}

fn files(folder: &std::path::Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(files(&path)?);
        } else {
            all.push(path);
        }
    }
    Ok(all)
}

/// A folder, and how many bytes of it were read.
#[derive(Clone, Debug)]
struct Counting {
    inner: Arc<LocalFileSystem>,
    read: Arc<AtomicU64>,
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[tonic::async_trait]
impl ObjectStore for Counting {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        let bytes = ranges.iter().map(|range| range.end - range.start).sum();
        self.read.fetch_add(bytes, Ordering::Relaxed);
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
