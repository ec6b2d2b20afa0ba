//! Sessions as one Parquet table, for export and import: a row an action, with what is known of its session beside it.

use std::{fs::File, sync::Arc};

use arrow_array::{
    Array as _, ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    builder::{Int64Builder, StringBuilder, TimestampMicrosecondBuilder},
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use parquet::{
    arrow::{
        ArrowWriter,
        arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
    },
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::properties::WriterProperties,
};

/// Rows that are passed to the writer at once, and bytes.
const BATCH_ROWS: usize = 1_024;
const BATCH_BYTES: usize = 1 << 20;

/// Rows of a row group at most, and bytes.
const GROUP_ROWS: usize = 65_536;
const GROUP_BYTES: usize = 32 << 20;

/// The columns that are texts, by name and by their place in [`TableRow::texts`].
const TEXTS: [&str; 11] = [
    "session_id",
    "source",
    "type",
    "target",
    "data",
    "user_id",
    "user_email",
    "user_name",
    "user_attributes",
    "session_attributes",
    "end_reason",
];
const TIMES: [&str; 2] = ["timestamp", "ended_at"];

/// A row: an action of a session; or a session without actions, which has no type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableRow {
    /// The session's id.
    pub session: String,
    /// Microseconds since 1970.
    pub timestamp: Option<i64>,
    /// The action's number on its track.
    pub seq: Option<i64>,
    /// The track.
    pub source: Option<String>,
    /// What kind of thing happened. None where nothing did.
    pub kind: Option<String>,
    /// What it was done to.
    pub target: Option<String>,
    /// JSON text.
    pub data: Option<String>,
    /// Whoever the session belongs to.
    pub user_id: Option<String>,
    /// The user's e-mail address.
    pub user_email: Option<String>,
    /// The user's name.
    pub user_name: Option<String>,
    /// A JSON object of texts.
    pub user_attributes: Option<String>,
    /// A JSON object of texts.
    pub session_attributes: Option<String>,
    /// Microseconds since 1970. None where the session goes on.
    pub ended_at: Option<i64>,
    /// Why it ended.
    pub end_reason: Option<String>,
}

impl TableRow {
    fn texts(&self) -> [Option<&str>; TEXTS.len()] {
        [
            Some(self.session.as_str()),
            self.source.as_deref(),
            self.kind.as_deref(),
            self.target.as_deref(),
            self.data.as_deref(),
            self.user_id.as_deref(),
            self.user_email.as_deref(),
            self.user_name.as_deref(),
            self.user_attributes.as_deref(),
            self.session_attributes.as_deref(),
            self.end_reason.as_deref(),
        ]
    }
}

/// Writes a table.
pub struct TableWriter {
    writer: ArrowWriter<File>,
    schema: SchemaRef,
    texts: Vec<StringBuilder>,
    times: Vec<TimestampMicrosecondBuilder>,
    seq: Int64Builder,
    waiting: (usize, usize),
    group: (usize, usize),
}

impl TableWriter {
    /// Begins a table.
    pub fn new(file: File) -> Result<Self, ParquetError> {
        let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let texts = TEXTS.iter().map(|name| Field::new(*name, DataType::Utf8, *name != TEXTS[0]));
        let times = TIMES.iter().map(|name| Field::new(*name, time.clone(), true));
        let fields: Vec<_> = texts.chain(times).chain([Field::new("seq", DataType::Int64, true)]).collect();
        let schema = Arc::new(Schema::new(fields));
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(6)?))
            .set_max_row_group_row_count(None)
            .set_write_batch_size(64)
            .build();
        Ok(Self {
            writer: ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties))?,
            schema,
            texts: TEXTS.iter().map(|_| StringBuilder::new()).collect(),
            times: TIMES.iter().map(|_| TimestampMicrosecondBuilder::new().with_timezone("UTC")).collect(),
            seq: Int64Builder::new(),
            waiting: (0, 0),
            group: (0, 0),
        })
    }

    /// Adds a row.
    pub fn push(&mut self, row: &TableRow) -> Result<(), ParquetError> {
        let mut bytes = 0;
        for (builder, text) in self.texts.iter_mut().zip(row.texts()) {
            builder.append_option(text);
            bytes += text.map_or(0, str::len);
        }
        for (builder, time) in self.times.iter_mut().zip([row.timestamp, row.ended_at]) {
            builder.append_option(time);
        }
        self.seq.append_option(row.seq);
        self.waiting = (self.waiting.0 + 1, self.waiting.1 + bytes);
        self.group = (self.group.0 + 1, self.group.1 + bytes);
        let is_full = self.group.0 >= GROUP_ROWS || self.group.1 >= GROUP_BYTES;
        if is_full || self.waiting.0 >= BATCH_ROWS || self.waiting.1 >= BATCH_BYTES {
            self.pass_on(is_full)
        } else {
            Ok(())
        }
    }

    fn pass_on(&mut self, ends_group: bool) -> Result<(), ParquetError> {
        let texts = self.texts.iter_mut().map(|builder| Arc::new(builder.finish()) as ArrayRef);
        let times = self.times.iter_mut().map(|builder| Arc::new(builder.finish()) as ArrayRef);
        let seq = Arc::new(self.seq.finish()) as ArrayRef;
        let columns: Vec<_> = texts.chain(times).chain([seq]).collect();
        self.writer.write(&RecordBatch::try_new(Arc::clone(&self.schema), columns)?)?;
        self.waiting = (0, 0);
        if ends_group {
            self.writer.flush()?;
            self.group = (0, 0);
        }
        Ok(())
    }

    /// Ends the table.
    pub fn finish(mut self) -> Result<(), ParquetError> {
        self.pass_on(true)?;
        self.writer.close()?;
        Ok(())
    }
}

/// Reads a table row by row, whatever the order of its columns: one that was exported, or a segment. Says for people what is
/// wrong with it.
pub fn read_table(
    file: File,
    mut take: impl FnMut(TableRow) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // As Parquet has them, whatever the writer had.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let batches = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)?.with_batch_size(512).build()?;
    for batch in batches {
        let batch = batch?;
        let texts = TEXTS.map(|name| column::<StringArray>(&batch, name));
        let times = TIMES.map(|name| column::<TimestampMicrosecondArray>(&batch, name));
        let seqs = column::<Int64Array>(&batch, "seq");
        // What is not understood would be lost.
        let all = TEXTS.iter().zip(texts.map(|column| column.is_some()));
        let all = all.chain(TIMES.iter().zip(times.map(|column| column.is_some()))).chain([(&"seq", seqs.is_some())]);
        for (name, _) in all.filter(|(_, is_read)| !is_read) {
            if let Some(other) = batch.column_by_name(name) {
                return Err(format!("column {name} is of type {}, which is not understood", other.data_type()).into());
            }
        }
        if texts[0].is_none() {
            return Err("there is no column session_id of texts".into());
        }
        for row in 0..batch.num_rows() {
            let mut texts =
                texts.map(|column| column.filter(|column| column.is_valid(row)).map(|column| column.value(row)));
            let mut next = |index: usize| texts[index].take().map(str::to_owned);
            let time =
                |index: usize| times[index].filter(|column| column.is_valid(row)).map(|column| column.value(row));
            take(TableRow {
                session: next(0).unwrap_or_default(),
                source: next(1),
                kind: next(2),
                target: next(3),
                data: next(4),
                user_id: next(5),
                user_email: next(6),
                user_name: next(7),
                user_attributes: next(8),
                session_attributes: next(9),
                end_reason: next(10),
                timestamp: time(0),
                ended_at: time(1),
                seq: seqs.filter(|column| column.is_valid(row)).map(|column| column.value(row)),
            })?;
        }
    }
    Ok(())
}

fn column<'a, T: 'static>(batch: &'a RecordBatch, name: &str) -> Option<&'a T> {
    batch.column_by_name(name)?.as_any().downcast_ref()
}
