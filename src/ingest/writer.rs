//! The seam between uploads and the database: takes one event, and gives a receipt when it is committed.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, SubsecRound as _, Utc};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};
use tokio_util::task::TaskTracker;

use super::lane::{Lane, UploadState, Waiting};
use crate::{
    changes::Changes,
    config::Limits,
    error::{Error, Result},
    model::{Batch, IngestEvent, RetentionPolicy, SessionEnd, SessionId, SessionReceipt, SessionStart},
    store::{ArchivedDigests, Store},
};

/// How many batches are compared with the archive at once.
const MAX_COMPARISONS: usize = 32;

/// How long one waits for its turn.
const COMPARISON_TURN: Duration = Duration::from_secs(10);

/// Writes what arrives. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    /// A session's batches always go to the same one.
    lanes: Arc<[Arc<Lane>]>,
}

/// What all writes need.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) changes: Arc<Changes>,
    pub(super) limits: Limits,
    retention: RetentionPolicy,
    /// For who asks the archive, which may not answer.
    comparisons: Arc<Semaphore>,
    /// The writes under way, so that shutting down can wait for them.
    pub(super) writes: TaskTracker,
}

/// Where a receipt is sent to.
pub(super) type Tell = oneshot::Sender<Result<SessionReceipt>>;

/// Comes when an event is committed, or refused.
pub type Receipt = oneshot::Receiver<Result<SessionReceipt>>;

impl Writer {
    /// Makes a writer of so many lanes, that is of so many transactions at once. Shutting down waits for `writes`.
    #[must_use]
    pub fn new(
        store: Store,
        changes: Arc<Changes>,
        limits: Limits,
        retention: RetentionPolicy,
        lanes: usize,
        writes: TaskTracker,
    ) -> Self {
        let shared = Arc::new(Shared {
            store,
            changes,
            limits,
            retention,
            comparisons: Arc::new(Semaphore::new(MAX_COMPARISONS)),
            writes,
        });
        let lanes = (0..lanes.max(1)).map(|_| Arc::new(Lane::new(Arc::clone(&shared)))).collect();
        Self { shared, lanes }
    }

    /// Takes an event in. Batches of a session are written in the order in which they were taken; a start or an end is not
    /// ordered with them. A receipt speaks only of what is committed.
    ///
    /// The write runs in a task of its own: whoever stops waiting, because its client went away, cannot cut it in half.
    /// `permit` is held until the write is done. Of an upload of which a batch was refused,
    /// nothing later is written by the same lane; another lane may have been faster.
    #[must_use]
    pub fn submit(&self, event: IngestEvent, permit: Option<OwnedSemaphorePermit>, upload: &UploadState) -> Receipt {
        let (tell, receipt) = oneshot::channel();
        match event {
            IngestEvent::Batch(batch) => {
                let (upload, place) = (upload.clone(), upload.next_place());
                self.lane(batch.session).push(Waiting { batch, permit, upload, place, tell, archived: None, looks: 0 });
            }
            IngestEvent::Start(start) => self.spawn(Boundary::Start(start), permit, tell),
            IngestEvent::End(end) => self.spawn(Boundary::End(end), permit, tell),
        }
        receipt
    }

    fn spawn(&self, boundary: Boundary, permit: Option<OwnedSemaphorePermit>, tell: Tell) {
        let shared = Arc::clone(&self.shared);
        self.shared.writes.spawn(async move {
            let writer = Arc::clone(&shared);
            let receipt = shared.store.ask(|_| async move { writer.write(&boundary).await }).await;
            match &receipt {
                Ok(_) => shared.store.note_commit(),
                Err(Error::DatabaseUnavailable) => shared.store.doubt_writes(),
                Err(_) => {}
            }
            drop(permit);
            // Nobody may be waiting any more.
            let _ = tell.send(receipt);
        });
    }

    fn lane(&self, session: SessionId) -> &Arc<Lane> {
        // The last byte of an id is random.
        let byte = usize::from(session.as_uuid().as_bytes()[15]);
        &self.lanes[byte % self.lanes.len()]
    }
}

/// The start or the end of a session.
enum Boundary {
    Start(SessionStart),
    End(SessionEnd),
}

impl Shared {
    /// What the archive has of a batch that repeats what is there. Where the batch replaces a placeholder in it, the session is
    /// brought back first.
    pub(super) async fn ask_archive(&self, batch: &Batch, track: i16) -> Result<ArchivedDigests> {
        let archived = self.archived_digests(batch, track).await?;
        if !archived.gives_way_to(batch) {
            return Ok(archived);
        }
        let session = batch.session;
        self.store.ask(|store| async move { store.session_make_hot(session).await }).await?;
        self.archived_digests(batch, track).await
    }

    async fn archived_digests(&self, batch: &Batch, track: i16) -> Result<ArchivedDigests> {
        let (session, first_seq) = (batch.session, batch.first_seq.unwrap_or(1));
        let last_seq = first_seq.saturating_add(i64::try_from(batch.actions.len()).unwrap_or(i64::MAX) - 1);
        let comparisons = Arc::clone(&self.comparisons);
        let asked = self.store.ask(|store| async move {
            let turn = timeout(COMPARISON_TURN, comparisons.acquire_owned()).await;
            let _turn = turn.map_err(|_| Error::ArchiveUnavailable)?.map_err(|_| Error::Internal)?;
            store.archived_digests(session, track, first_seq..=last_seq).await
        });
        asked.await
    }

    async fn write(&self, boundary: &Boundary) -> Result<SessionReceipt> {
        let receipt = match boundary {
            Boundary::Start(start) => {
                let now = self.store.now().trunc_subsecs(6);
                self.check_age(start, now).await?;
                self.store.session_start(start, now, self.limits.max_attributes).await?;
                SessionReceipt { started: true, ..SessionReceipt::new(start.id) }
            }
            Boundary::End(end) => {
                self.store.session_end(end).await?;
                SessionReceipt { ended: true, ..SessionReceipt::new(end.id) }
            }
        };
        self.changes.announce(receipt.session);
        Ok(receipt)
    }

    /// Fails if a session would be expired from its start. One that is there, because it is pinned, may be started again; and
    /// while retention does not believe the clock, none would be expired.
    async fn check_age(&self, start: &SessionStart, now: DateTime<Utc>) -> Result<()> {
        let Some(keep_for) = self.retention.forgets_after() else { return Ok(()) };
        let is_expired = self.retention.is_expired(start.id.started_at(), now) && !self.store.retention_doubts(now);
        if !is_expired || self.store.session_exists(start.id).await? {
            return Ok(());
        }
        Err(Error::OlderThanRetention { limit_seconds: keep_for.num_seconds().unsigned_abs() })
    }
}
