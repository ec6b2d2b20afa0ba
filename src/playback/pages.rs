//! Reads what a pass plays, page by page, and the next page while the one before is being played.
//!
//! Each page is read in a task of its own that ends by itself, so that the database never waits for whoever plays.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    error::{Error, Result},
    model::{Position, SessionId, StoredAction},
    store::{ActionQuery, ActionRows, KnownSegment, SeqWindow, Store},
};

/// A page is full when it has this many bytes. Of each playback, two pages may be in memory and one in a message; a client
/// takes messages of 4 MiB unless told otherwise, and an action has at most 1 MiB unless that was configured otherwise.
const PAGE_BYTES: usize = 256 << 10;

/// The most rows of a page, of a playback as fast as the client reads.
const MAX_ROWS: u64 = 1_000;

/// The most rows of a page where time is paced: it lasts longer, and there may be many such playbacks.
const MAX_ROWS_PACED: u64 = 128;

/// The rows that are read before anything is known of their size.
const FIRST_ROWS: u64 = 64;

/// What to read.
pub(super) struct Selection {
    pub(super) session: SessionId,
    pub(super) windows: Vec<SeqWindow>,
    pub(super) from: Option<DateTime<Utc>>,
    pub(super) until: Option<DateTime<Utc>>,
    pub(super) types: Vec<String>,
}

/// A page that was read, and where.
type Read = Result<(ActionRows, Option<KnownSegment>)>;

/// The pages of one pass.
pub(super) struct Pages {
    store: Store,
    selection: Arc<Selection>,
    /// The last action read.
    after: Option<Position>,
    next_rows: u64,
    max_rows: u64,
    /// The next page, on its way. Dropping it ends the reading.
    reading: Option<AbortOnDropHandle<Read>>,
    /// Where the session is archived, as far as is known.
    segment: Option<KnownSegment>,
    is_read: bool,
}

impl Pages {
    /// The pages of what comes after this place.
    pub(super) fn new(store: Store, selection: Selection, after: Option<Position>, is_paced: bool) -> Self {
        Self {
            store,
            is_read: selection.windows.is_empty(),
            selection: selection.into(),
            after,
            next_rows: FIRST_ROWS,
            max_rows: if is_paced { MAX_ROWS_PACED } else { MAX_ROWS },
            reading: None,
            segment: None,
        }
    }

    /// Begins to read the next page, unless there is none or it is being read.
    pub(super) fn read_ahead(&mut self) {
        if self.is_read || self.reading.is_some() {
            return;
        }
        let (store, selection) = (self.store.clone(), Arc::clone(&self.selection));
        let (after, rows, mut segment) = (self.after, self.next_rows, self.segment.take());
        self.reading = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let query = ActionQuery {
                session: selection.session,
                windows: &selection.windows,
                after,
                from: selection.from,
                until: selection.until,
                types: &selection.types,
            };
            let page = store.action_page(&query, rows, PAGE_BYTES, &mut segment).await?;
            Ok((page, segment))
        })));
    }

    /// The next page, with at least one action. None after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<StoredAction>>> {
        self.read_ahead();
        let Some(reading) = &mut self.reading else { return Ok(None) };
        let read = reading.await;
        self.reading = None;
        // It is not aborted while this is here, so it has panicked: a bug, which is in the log.
        let (rows, segment) = read.unwrap_or(Err(Error::Internal))?;
        self.segment = segment;
        self.is_read = rows.is_last;
        let Some(last) = rows.actions.last() else {
            self.is_read = true;
            return Ok(None);
        };
        self.after = Some(last.position());
        // Rows beyond the page's bytes would be read by the database for nothing.
        let bytes_a_row = (rows.bytes / rows.actions.len()).max(1);
        let fitting = u64::try_from(PAGE_BYTES / bytes_a_row).unwrap_or(u64::MAX);
        // Slowly up, for large ones may follow on small ones.
        self.next_rows = fitting.clamp(1, self.max_rows).min(self.next_rows * 4);
        Ok(Some(rows.actions))
    }
}
