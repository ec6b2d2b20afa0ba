//! Writing segments.

use std::sync::Arc;

use object_store::buffered::BufWriter;
use parquet::{
    arrow::AsyncArrowWriter,
    basic::{Compression, Encoding, ZstdLevel},
    errors::ParquetError,
    file::{
        metadata::SortingColumn,
        properties::{EnabledStatistics, WriterProperties},
    },
    schema::types::ColumnPath,
};
use uuid::Uuid;

use super::{
    Archive, SegmentFile,
    format::{RowDigest, Rows, SCHEMA},
    unreadable,
};
use crate::{error::Result, model::StoredAction};

/// A segment has enough with so many actions; the session that reaches it is in it whole.
pub const SEGMENT_ACTIONS: u64 = 300_000;

/// Rows of a row group at most. Of columns with dictionaries, a reader needs the dictionary of the whole row group.
const GROUP_ROWS: usize = 16_384;

/// Bytes of a row group at most, uncompressed, and one action more.
const GROUP_BYTES: usize = 16 << 20;

/// Rows of a page at most: what a reader of one action has to decode.
const PAGE_ROWS: usize = 1_024;

/// Bytes of a page of data, uncompressed, when it is full.
const PAGE_BYTES: usize = 256 << 10;

/// Rows that are passed to the writer at once, and bytes.
const BATCH_ROWS: usize = 1_024;
const BATCH_BYTES: usize = 1 << 20;

/// Bytes of an upload's part. S3 takes parts of 5 MiB and more.
const PART_BYTES: usize = 8 << 20;

/// A segment that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The file.
    pub file: SegmentFile,
    /// Number of its actions.
    pub actions: u64,
    /// The [`RowDigest`] of its rows.
    pub digest: String,
}

/// A segment being written. What is dropped before its end does not become a segment.
pub struct SegmentWriter {
    path: String,
    writer: AsyncArrowWriter<BufWriter>,
    rows: Rows,
    /// Rows that wait, and bytes.
    waiting: (usize, usize),
    /// Rows of the row group, and bytes.
    group: (usize, usize),
    actions: u64,
    digest: RowDigest,
    /// Whether the storage has failed: it has given up by itself then, and cannot be told to.
    has_failed: bool,
}

impl Archive {
    /// Begins a segment.
    pub fn write(&self, path: &str) -> Result<SegmentWriter> {
        let upload = BufWriter::with_capacity(Arc::clone(&self.storage), self.key(path), PART_BYTES);
        let writer = AsyncArrowWriter::try_new(upload, Arc::clone(&SCHEMA), Some(properties()));
        Ok(SegmentWriter {
            path: path.to_owned(),
            writer: writer.map_err(|error| unreadable(path, &error))?,
            rows: Rows::new(),
            waiting: (0, 0),
            group: (0, 0),
            actions: 0,
            digest: RowDigest::default(),
            has_failed: false,
        })
    }
}

impl SegmentWriter {
    /// How many actions it has.
    #[must_use]
    pub fn actions(&self) -> u64 {
        self.actions
    }

    /// Adds an action. They come by session, and those of a session in the order of playback.
    pub async fn push(&mut self, session: Uuid, user: Option<&str>, source: &str, row: &StoredAction) -> Result<()> {
        self.rows.push(session, user, source, row);
        self.digest.push(session, row);
        self.actions += 1;
        let bytes = row.size();
        self.waiting = (self.waiting.0 + 1, self.waiting.1 + bytes);
        self.group = (self.group.0 + 1, self.group.1 + bytes);
        let is_full = self.group.0 >= GROUP_ROWS || self.group.1 >= GROUP_BYTES;
        if is_full || self.waiting.0 >= BATCH_ROWS || self.waiting.1 >= BATCH_BYTES {
            let passed_on = self.pass_on(is_full).await;
            self.has_failed = passed_on.is_err();
            passed_on.map_err(|error| unreadable(&self.path, &error))?;
        }
        Ok(())
    }

    async fn pass_on(&mut self, ends_group: bool) -> Result<(), ParquetError> {
        if self.waiting.0 > 0 {
            let batch = self.rows.take()?;
            self.writer.write(&batch).await?;
            self.waiting = (0, 0);
        }
        if ends_group {
            self.writer.flush().await?;
            self.group = (0, 0);
        }
        Ok(())
    }

    /// Ends the segment: it is durable afterwards.
    pub async fn finish(&mut self) -> Result<Written> {
        let finished = async {
            self.pass_on(true).await?;
            self.writer.finish().await
        };
        let finished = finished.await;
        self.has_failed = finished.is_err();
        finished.map_err(|error| unreadable(&self.path, &error))?;
        let bytes = u64::try_from(self.writer.bytes_written()).unwrap_or(u64::MAX);
        let (path, digest) = (self.path.clone(), std::mem::take(&mut self.digest));
        Ok(Written { file: SegmentFile { path, bytes }, actions: self.actions, digest: digest.finish() })
    }

    /// Gives the segment up, with the parts of it that are in the storage already.
    pub async fn abort(self) {
        if self.has_failed {
            return;
        }
        if let Err(error) = self.writer.into_inner().abort().await {
            tracing::warn!(%error, path = self.path, "the parts of a segment that was given up are left in the storage");
        }
    }
}

fn properties() -> WriterProperties {
    let column = |name: &str| ColumnPath::from(name);
    let sorting = |index| SortingColumn { column_idx: index, descending: false, nulls_first: false };
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("reel ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(9).unwrap_or_default()))
        .set_max_row_group_row_count(None)
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_data_page_size_limit(PAGE_BYTES)
        // How often the size of a page is looked at. Actions may have a MiB each.
        .set_write_batch_size(64)
        .set_sorting_columns(Some((0..4).map(sorting).collect()))
        // What tells pages apart is the session and the time.
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_column_statistics_enabled(column("session_id"), EnabledStatistics::Page)
        .set_column_statistics_enabled(column("timestamp"), EnabledStatistics::Page)
        .set_column_bloom_filter_enabled(column("session_id"), true)
        .set_column_bloom_filter_fpp(column("session_id"), 0.01)
        .set_column_bloom_filter_max_ndv(column("session_id"), GROUP_ROWS as u64);
    for name in ["timestamp", "seq"] {
        properties = properties
            .set_column_dictionary_enabled(column(name), false)
            .set_column_encoding(column(name), Encoding::DELTA_BINARY_PACKED);
    }
    // Data is rarely the same twice, and where it is, the compression sees it.
    properties
        .set_column_dictionary_enabled(column("data"), false)
        .set_column_statistics_enabled(column("data"), EnabledStatistics::None)
        .build()
}
