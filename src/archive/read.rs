//! Reading segments: only the pages that may have what is wanted.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{FutureExt as _, TryStreamExt as _, future::BoxFuture};
use parquet::{
    arrow::{
        ParquetRecordBatchStreamBuilder, ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection},
        async_reader::{AsyncFileReader, MetadataFetch},
    },
    errors::ParquetError,
    file::{
        metadata::{ColumnChunkMetaData, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData},
        page_index::column_index::ColumnIndexMetaData,
    },
};
use uuid::Uuid;

use super::{
    Archive, ArchivedAction, SegmentFile,
    format::{Columns, DATA, OF_ACTIONS, SESSION_ID, TIMESTAMP},
    unreadable,
};
use crate::error::{Error, Result};

/// Rows that are decoded at once.
const BATCH_ROWS: usize = 512;

/// Bytes at the end of a segment that are read at once, for its footer and the statistics of its pages.
const FOOTER_BYTES: usize = 256 << 10;

/// What to read of a segment.
#[derive(Clone, Debug, Default)]
pub struct Wanted<'a> {
    /// Of these sessions, in their order. None means all.
    pub sessions: Option<&'a [Uuid]>,
    /// At this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Before this time.
    pub until: Option<DateTime<Utc>>,
    /// With their data.
    pub with_data: bool,
    /// Rows that are read at once, at most: of a page that is played there may be no more to come.
    pub rows_at_once: usize,
}

/// Rows of a row group that may be wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stretch {
    group: usize,
    rows: Range<usize>,
}

/// Reads a segment from its beginning to its end.
pub struct Reader {
    archive: Archive,
    file: SegmentFile,
    footer: ArrowReaderMetadata,
    /// In the order of the ids.
    sessions: Option<Vec<Uuid>>,
    micros: Range<i64>,
    with_data: bool,
    rows_at_once: usize,
    stretches: VecDeque<Stretch>,
    dictionaries: Dictionaries,
}

/// The dictionaries of the row group that was read last: each stretch of it needs them.
#[derive(Clone, Default)]
struct Dictionaries(Arc<Mutex<OfGroup>>);

/// A row group, and where its dictionaries begin, with those that were read.
type OfGroup = (usize, HashMap<u64, Option<Bytes>>);

impl Dictionaries {
    /// Gets ready for a row group.
    fn enter(&self, group: usize, columns: &RowGroupMetaData) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0 != group || known.1.is_empty() {
            let starts = columns.columns().iter().filter_map(ColumnChunkMetaData::dictionary_page_offset);
            *known = (group, starts.map(|start| (start.cast_unsigned(), None)).collect());
        }
    }

    fn get(&self, range: &Range<u64>) -> Option<Bytes> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.1.get(&range.start)?.clone().filter(|bytes| bytes.len() as u64 == range.end - range.start)
    }

    fn put(&self, range: &Range<u64>, bytes: &Bytes) {
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).1.get_mut(&range.start) {
            *known = Some(bytes.clone());
        }
    }
}

impl Archive {
    /// Begins to read a segment.
    pub async fn read(&self, file: &SegmentFile, wanted: Wanted<'_>) -> Result<Reader> {
        let footer = self.load_footer(file).await?;
        let footer = ArrowReaderMetadata::try_new(footer, ArrowReaderOptions::new());
        let footer = footer.map_err(|error| unreadable(&file.path, &error))?;
        let sessions = wanted.sessions.map(|sessions| {
            let mut sessions = sessions.to_vec();
            sessions.sort_unstable();
            sessions
        });
        let from = wanted.from.map_or(i64::MIN, |time| time.timestamp_micros());
        let until = wanted.until.map_or(i64::MAX, |time| time.timestamp_micros());
        let mut reader = Reader {
            archive: self.clone(),
            file: file.clone(),
            footer,
            sessions,
            micros: from..until,
            with_data: wanted.with_data,
            rows_at_once: wanted.rows_at_once.max(1),
            stretches: VecDeque::new(),
            dictionaries: Dictionaries::default(),
        };
        reader.stretches = reader.find_stretches()?;
        Ok(reader)
    }

    async fn load_footer(&self, file: &SegmentFile) -> Result<Arc<ParquetMetaData>> {
        if let Some(footer) = self.footer(file) {
            return Ok(footer);
        }
        let prefetch = usize::try_from(file.bytes).unwrap_or(usize::MAX).min(FOOTER_BYTES);
        let reader = ParquetMetaDataReader::new()
            .with_page_index_policy(PageIndexPolicy::Optional)
            .with_prefetch_hint(Some(prefetch));
        let footer = reader.load_and_finish(Fetch { archive: self, file }, file.bytes).await;
        let footer = match footer {
            Ok(footer) => Arc::new(footer),
            Err(error) => return Err(self.diagnose(file, &error).await),
        };
        self.remember(file, &footer);
        Ok(footer)
    }
}

impl Reader {
    /// Reads so many rows at once from now on, at most.
    pub fn read_at_once(&mut self, rows: usize) {
        self.rows_at_once = rows.max(1);
    }

    /// The next actions that are wanted, in the order of the segment. None after the last.
    pub async fn next(&mut self) -> Result<Option<Vec<ArchivedAction>>> {
        while let Some(stretch) = self.next_stretch() {
            let actions = self.read(stretch).await?;
            if !actions.is_empty() {
                return Ok(Some(actions));
            }
        }
        Ok(None)
    }

    /// As many rows as are read at once, of one row group.
    fn next_stretch(&mut self) -> Option<Stretch> {
        let mut stretch = self.stretches.pop_front()?;
        while let Some(next) = self.stretches.front()
            && next.group == stretch.group
            && next.rows.start == stretch.rows.end
        {
            stretch.rows.end = next.rows.end;
            self.stretches.pop_front();
        }
        let end = stretch.rows.end.min(stretch.rows.start + self.rows_at_once);
        if end < stretch.rows.end {
            self.stretches.push_front(Stretch { group: stretch.group, rows: end..stretch.rows.end });
        }
        Some(Stretch { group: stretch.group, rows: stretch.rows.start..end })
    }

    async fn read(&self, stretch: Stretch) -> Result<Vec<ArchivedAction>> {
        match self.try_read(stretch).await {
            Ok(Some(actions)) => Ok(actions),
            Ok(None) => {
                tracing::error!(path = self.file.path, "a segment has rows that are no actions");
                Err(Error::SegmentDamaged)
            }
            Err(error) => Err(self.archive.diagnose(&self.file, &error).await),
        }
    }

    /// None where there are rows that are no actions.
    async fn try_read(&self, stretch: Stretch) -> Result<Option<Vec<ArchivedAction>>, ParquetError> {
        let groups = self.footer.metadata().row_groups();
        let rows = groups.get(stretch.group).map_or(0, |group| usize::try_from(group.num_rows()).unwrap_or(0));
        if let Some(columns) = groups.get(stretch.group) {
            self.dictionaries.enter(stretch.group, columns);
        }
        let (archive, file, dictionaries) = (self.archive.clone(), self.file.clone(), self.dictionaries.clone());
        let source = Source { archive, file, dictionaries };
        let leaves = OF_ACTIONS.into_iter().filter(|column| self.with_data || *column != DATA);
        let projection = ProjectionMask::leaves(self.footer.parquet_schema(), leaves);
        let mut batches = ParquetRecordBatchStreamBuilder::new_with_metadata(source, self.footer.clone())
            .with_row_groups(vec![stretch.group])
            .with_row_selection(RowSelection::from_consecutive_ranges(std::iter::once(stretch.rows), rows))
            .with_projection(projection)
            .with_batch_size(BATCH_ROWS)
            .build()?;
        let mut actions = Vec::new();
        while let Some(batch) = batches.try_next().await? {
            let is_whole = Columns::of(&batch).is_some_and(|columns| {
                (0..batch.num_rows()).all(|row| self.take(&columns, row, &mut actions).is_some())
            });
            if !is_whole {
                return Ok(None);
            }
        }
        Ok(Some(actions))
    }

    /// Takes a row, if it is wanted. None where it is not an action.
    fn take(&self, columns: &Columns<'_>, row: usize, actions: &mut Vec<ArchivedAction>) -> Option<()> {
        let session = columns.session(row)?;
        let is_of_sessions = self.sessions.as_ref().is_none_or(|sessions| sessions.binary_search(&session).is_ok());
        if is_of_sessions && self.micros.contains(&columns.timestamp(row)) {
            actions.push(ArchivedAction { session, stored: columns.action(row)? });
        }
        Some(())
    }

    /// The rows that may be wanted, as far as the statistics tell. Without them, all.
    fn find_stretches(&self) -> Result<VecDeque<Stretch>> {
        let metadata = self.footer.metadata();
        if metadata.file_metadata().schema_descr().num_columns() < OF_ACTIONS.len() {
            tracing::error!(path = self.file.path, "a segment has other columns than segments have");
            return Err(Error::SegmentDamaged);
        }
        let mut stretches = VecDeque::new();
        for (group, columns) in metadata.row_groups().iter().enumerate() {
            let rows = usize::try_from(columns.num_rows()).unwrap_or(0);
            let index = metadata.page_index_for_row_group(group);
            let (sessions, times) = (index.column_index(SESSION_ID), index.column_index(TIMESTAMP));
            let locations = index.page_locations(SESSION_ID);
            let (Some(ColumnIndexMetaData::BYTE_ARRAY(sessions)), Some(locations)) = (sessions, locations) else {
                stretches.push_back(Stretch { group, rows: 0..rows });
                continue;
            };
            // The pages of both columns are of the same rows: they are full by their number of rows.
            let has_same_pages = index.page_locations(TIMESTAMP).is_some_and(|others| {
                others.len() == locations.len()
                    && others.iter().zip(locations).all(|(one, other)| one.first_row_index == other.first_row_index)
            });
            for (page, location) in locations.iter().enumerate() {
                let first = usize::try_from(location.first_row_index).unwrap_or(0);
                let end =
                    locations.get(page + 1).map_or(rows, |next| usize::try_from(next.first_row_index).unwrap_or(0));
                let may_have_sessions = self.may_have(sessions.min_value(page), sessions.max_value(page));
                let may_have_times = match times {
                    Some(ColumnIndexMetaData::INT64(times)) if has_same_pages => {
                        times.max_value(page).is_none_or(|max| *max >= self.micros.start)
                            && times.min_value(page).is_none_or(|min| *min < self.micros.end)
                    }
                    _ => true,
                };
                if may_have_sessions && may_have_times && first < end {
                    stretches.push_back(Stretch { group, rows: first..end });
                }
            }
        }
        Ok(stretches)
    }

    /// Whether there may be wanted sessions from the one to the other.
    fn may_have(&self, least: Option<&[u8]>, greatest: Option<&[u8]>) -> bool {
        let uuid = |text: Option<&[u8]>| text.and_then(|text| Uuid::try_parse_ascii(text).ok());
        let (Some(sessions), Some(least), Some(greatest)) = (&self.sessions, uuid(least), uuid(greatest)) else {
            return true;
        };
        let next = sessions.partition_point(|session| *session < least);
        sessions.get(next).is_some_and(|session| *session <= greatest)
    }
}

/// A segment, for the parser of its footer.
struct Fetch<'a> {
    archive: &'a Archive,
    file: &'a SegmentFile,
}

impl MetadataFetch for Fetch<'_> {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        one_range(self.archive, self.file, range).boxed()
    }
}

/// A segment, for the parser of its pages.
struct Source {
    archive: Archive,
    file: SegmentFile,
    dictionaries: Dictionaries,
}

impl AsyncFileReader for Source {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        one_range(&self.archive, &self.file, range).boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        async move {
            let known: Vec<_> = ranges.iter().map(|range| self.dictionaries.get(range)).collect();
            let missing = ranges.iter().zip(&known).filter(|(_, known)| known.is_none());
            let missing: Vec<_> = missing.map(|(range, _)| range.clone()).collect();
            let read = self.archive.ranges(&self.file.path, &missing).await;
            let read = read.map_err(|error| ParquetError::External(Box::new(error)))?;
            missing.iter().zip(&read).for_each(|(range, bytes)| self.dictionaries.put(range, bytes));
            let mut read = read.into_iter();
            let all: Option<Vec<_>> = known.into_iter().map(|known| known.or_else(|| read.next())).collect();
            all.ok_or_else(|| ParquetError::EOF("less was read than was asked for".to_owned()))
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        async move {
            let footer = self.archive.load_footer(&self.file).await;
            footer.map_err(|error| ParquetError::External(Box::new(error)))
        }
        .boxed()
    }
}

async fn one_range(archive: &Archive, file: &SegmentFile, range: Range<u64>) -> Result<Bytes, ParquetError> {
    let read = archive.ranges(&file.path, &[range]).await;
    let read = read.map_err(|error| ParquetError::External(Box::new(error)))?;
    read.into_iter().next().ok_or_else(|| ParquetError::EOF("nothing was read".to_owned()))
}
