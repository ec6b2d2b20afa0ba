//! What is in a segment, as columns.

use std::sync::{Arc, LazyLock};

use arrow_array::{
    Array as _, ArrayRef, Int16Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    builder::{Int16Builder, Int64Builder, StringBuilder, TimestampMicrosecondBuilder},
};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef, TimeUnit};
use chrono::DateTime;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::model::{Action, StoredAction};

/// The columns, in this order.
pub(super) const SESSION_ID: usize = 0;
pub(super) const TIMESTAMP: usize = 1;
const TRACK: usize = 2;
const SEQ: usize = 3;
const TYPE: usize = 4;
const TARGET: usize = 5;
pub(super) const DATA: usize = 6;

/// The columns that playback needs: all but what only other readers of the file want to know.
pub(super) const OF_ACTIONS: [usize; 7] = [SESSION_ID, TIMESTAMP, TRACK, SEQ, TYPE, TARGET, DATA];

/// The columns of a segment. The last two are for whoever reads the file without the database.
pub(super) static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("session_id", DataType::Utf8, false),
        Field::new("timestamp", time, false),
        Field::new("track", DataType::Int16, false),
        Field::new("seq", DataType::Int64, false),
        Field::new("type", DataType::Utf8, false),
        Field::new("target", DataType::Utf8, false),
        Field::new("data", DataType::Utf8, true),
        Field::new("source", DataType::Utf8, false),
        Field::new("user_id", DataType::Utf8, true),
    ]))
});

/// An action in a segment.
pub struct ArchivedAction {
    /// Its session.
    pub session: Uuid,
    /// The action.
    pub stored: StoredAction,
}

/// Rows on their way into a file.
pub(super) struct Rows {
    session: StringBuilder,
    timestamp: TimestampMicrosecondBuilder,
    track: Int16Builder,
    seq: Int64Builder,
    kind: StringBuilder,
    target: StringBuilder,
    data: StringBuilder,
    source: StringBuilder,
    user: StringBuilder,
}

impl Rows {
    pub(super) fn new() -> Self {
        Self {
            session: StringBuilder::new(),
            timestamp: TimestampMicrosecondBuilder::new().with_timezone("UTC"),
            track: Int16Builder::new(),
            seq: Int64Builder::new(),
            kind: StringBuilder::new(),
            target: StringBuilder::new(),
            data: StringBuilder::new(),
            source: StringBuilder::new(),
            user: StringBuilder::new(),
        }
    }

    pub(super) fn push(&mut self, session: Uuid, user: Option<&str>, source: &str, row: &StoredAction) {
        self.session.append_value(session.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
        self.timestamp.append_value(row.action.timestamp.timestamp_micros());
        self.track.append_value(row.track);
        self.seq.append_value(row.seq);
        self.kind.append_value(&*row.action.kind);
        self.target.append_value(&*row.action.target);
        self.data.append_option((!row.action.data.is_empty()).then_some(&*row.action.data));
        self.source.append_value(source);
        self.user.append_option(user);
    }

    /// What was pushed since the last time.
    pub(super) fn take(&mut self) -> Result<RecordBatch, ArrowError> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.session.finish()),
            Arc::new(self.timestamp.finish()),
            Arc::new(self.track.finish()),
            Arc::new(self.seq.finish()),
            Arc::new(self.kind.finish()),
            Arc::new(self.target.finish()),
            Arc::new(self.data.finish()),
            Arc::new(self.source.finish()),
            Arc::new(self.user.finish()),
        ];
        RecordBatch::try_new(Arc::clone(&SCHEMA), columns)
    }
}

/// The columns of rows that were read.
pub(super) struct Columns<'a> {
    session: &'a StringArray,
    timestamp: &'a TimestampMicrosecondArray,
    track: &'a Int16Array,
    seq: &'a Int64Array,
    kind: &'a StringArray,
    target: &'a StringArray,
    /// None where they were not asked for.
    data: Option<&'a StringArray>,
}

impl<'a> Columns<'a> {
    /// None where these are not the columns of a segment.
    pub(super) fn of(batch: &'a RecordBatch) -> Option<Self> {
        fn column<T: 'static>(batch: &RecordBatch, index: usize) -> Option<&T> {
            batch.columns().get(index)?.as_any().downcast_ref()
        }
        let columns = Self {
            session: column(batch, SESSION_ID)?,
            timestamp: column(batch, TIMESTAMP)?,
            track: column(batch, TRACK)?,
            seq: column(batch, SEQ)?,
            kind: column(batch, TYPE)?,
            target: column(batch, TARGET)?,
            data: if batch.num_columns() > DATA { Some(column(batch, DATA)?) } else { None },
        };
        let has_nulls = (0..DATA).any(|index| batch.column(index).null_count() > 0);
        (!has_nulls).then_some(columns)
    }

    pub(super) fn session(&self, row: usize) -> Option<Uuid> {
        Uuid::try_parse(self.session.value(row)).ok()
    }

    pub(super) fn timestamp(&self, row: usize) -> i64 {
        self.timestamp.value(row)
    }

    /// None where it is not an action.
    pub(super) fn action(&self, row: usize) -> Option<StoredAction> {
        let data = self.data.filter(|data| data.is_valid(row)).map_or("", |data| data.value(row));
        Some(StoredAction {
            track: self.track.value(row),
            seq: self.seq.value(row),
            action: Action {
                timestamp: DateTime::from_timestamp_micros(self.timestamp.value(row))?,
                kind: self.kind.value(row).into(),
                target: self.target.value(row).into(),
                data: data.into(),
            },
        })
    }
}

/// The digest of rows in their order: what is read back from a segment is what was to be written if theirs are the same.
#[derive(Clone, Default)]
pub struct RowDigest(Sha256);

impl RowDigest {
    /// Takes a row.
    pub fn push(&mut self, session: Uuid, row: &StoredAction) {
        self.0.update(session.as_bytes());
        self.0.update(row.action.timestamp.timestamp_micros().to_le_bytes());
        self.0.update(row.track.to_le_bytes());
        self.0.update(row.seq.to_le_bytes());
        for text in [&row.action.kind, &row.action.target, &row.action.data] {
            self.0.update((text.len() as u64).to_le_bytes());
            self.0.update(text.as_bytes());
        }
    }

    /// The digest of all rows so far, in hexadecimal digits.
    #[must_use]
    pub fn finish(self) -> String {
        use std::fmt::Write as _;
        self.0.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}
