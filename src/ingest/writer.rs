//! The seam between uploads and the database: takes one event, and gives a receipt when it is committed.

use std::sync::Arc;

use chrono::{SubsecRound as _, Utc};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::TaskTracker;

use crate::{
    changes::Changes,
    config::Limits,
    error::{Error, Result},
    model::{IngestEvent, SessionReceipt},
    store::Store,
};

/// Writes what arrives. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Writer {
    store: Store,
    changes: Arc<Changes>,
    limits: Limits,
    /// The writes under way, so that shutting down can wait for them.
    writes: TaskTracker,
}

impl Writer {
    /// Makes a writer. Shutting down waits for `writes`.
    #[must_use]
    pub fn new(store: Store, changes: Arc<Changes>, limits: Limits, writes: TaskTracker) -> Self {
        Self { store, changes, limits, writes }
    }

    /// Writes one event. When this returns a receipt, everything it speaks of is committed.
    ///
    /// The write runs in a task of its own: whoever stops waiting, because its client went away, cannot cut it in half.
    /// `permit` is held until the write is done.
    pub async fn write(&self, event: IngestEvent, permit: Option<OwnedSemaphorePermit>) -> Result<SessionReceipt> {
        let writer = self.clone();
        let write = self.writes.spawn(async move {
            let receipt = writer.commit(&event).await;
            if matches!(receipt, Err(Error::DatabaseUnavailable)) {
                writer.store.doubt_writes();
            }
            drop((event, permit));
            receipt
        });
        write.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a write broke down");
            Err(Error::Internal)
        })
    }

    async fn commit(&self, event: &IngestEvent) -> Result<SessionReceipt> {
        let now = Utc::now().trunc_subsecs(6);
        let receipt = match event {
            IngestEvent::Start(start) => {
                self.store.session_start(start, now, self.limits.max_attributes).await?;
                SessionReceipt { started: true, ..SessionReceipt::new(start.id) }
            }
            IngestEvent::Batch(batch) => {
                let track = self.store.batch_append(batch, now, self.limits.max_tracks).await?;
                SessionReceipt { tracks: vec![track], ..SessionReceipt::new(batch.session) }
            }
            IngestEvent::End(end) => {
                self.store.session_end(end).await?;
                SessionReceipt { ended: true, ..SessionReceipt::new(end.id) }
            }
        };
        self.changes.announce(receipt.session);
        Ok(receipt)
    }
}
