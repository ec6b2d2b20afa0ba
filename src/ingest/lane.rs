//! Group commit: what is waiting when a transaction ends goes into the next one together. With nothing waiting, a batch is
//! written as soon as it comes.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use chrono::{SubsecRound as _, Utc};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    intake::Intake,
    writer::{Shared, Tell},
};
use crate::{
    error::Error,
    model::{Batch, SessionReceipt},
    store::{Arrived, KnownSessions},
};

/// A transaction takes no more batches once it has this many actions. Larger ones are no faster
/// (PostgreSQL 15, two writers), and everybody in them waits longer.
const GROUP_ACTIONS: usize = 2_000;

/// Nor once it has this many bytes: they are copied on their way out.
const GROUP_BYTES: usize = 4 << 20;

/// An upload: its batches in their order, and whether one was refused, after which none is to be written.
#[derive(Clone, Debug, Default)]
pub struct UploadState(Arc<Batches>);

#[derive(Debug)]
struct Batches {
    taken: AtomicU64,
    /// The first that was refused.
    refused: AtomicU64,
}

impl Default for Batches {
    fn default() -> Self {
        Self { taken: AtomicU64::new(0), refused: AtomicU64::new(u64::MAX) }
    }
}

impl UploadState {
    /// Tells it from all others there are.
    fn id(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// The place of the next batch.
    pub(super) fn next_place(&self) -> u64 {
        self.0.taken.fetch_add(1, Ordering::Relaxed)
    }

    fn is_over_before(&self, place: u64) -> bool {
        self.0.refused.load(Ordering::Acquire) < place
    }

    fn refuse(&self, place: u64) {
        self.0.refused.fetch_min(place, Ordering::AcqRel);
    }
}

/// A batch that waits to be written.
pub(super) struct Waiting {
    pub(super) batch: Batch,
    /// Given back when the batch is written.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    pub(super) upload: UploadState,
    /// The batch's place in the upload.
    pub(super) place: u64,
    pub(super) tell: Tell,
}

/// Writes batches, one transaction after the other.
pub(super) struct Lane {
    shared: Arc<Shared>,
    queue: Mutex<Queue>,
    /// In use by the task that writes; there is never more than one.
    known: tokio::sync::Mutex<KnownSessions>,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").finish_non_exhaustive()
    }
}

/// Bounded by the permits of what waits in it.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Whether a task is writing, which will look here again before it ends.
    is_written: bool,
}

impl Lane {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let known = tokio::sync::Mutex::new(shared.store.known_sessions());
        Self { shared, queue: Mutex::default(), known }
    }

    /// Puts a batch into the queue, and begins to write if nobody does.
    pub(super) fn push(self: &Arc<Self>, waiting: Waiting) {
        let mut queue = self.queue();
        queue.waiting.push_back(waiting);
        if !std::mem::replace(&mut queue.is_written, true) {
            let run = Run { lane: Arc::clone(self) };
            self.shared.writes.spawn(run.write_all());
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what goes into one transaction. None, and the end of writing, when nothing waits.
    fn next_group(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.queue();
        let (mut group, mut actions, mut bytes) = (Vec::new(), 0, 0);
        while let Some(waiting) = queue.waiting.pop_front() {
            actions += waiting.batch.actions.len();
            bytes += waiting.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) * Intake::UNIT_BYTES;
            group.push(waiting);
            let next = queue.waiting.front().map_or(0, |next| next.batch.actions.len());
            if actions + next > GROUP_ACTIONS || bytes >= GROUP_BYTES {
                break;
            }
        }
        queue.is_written = !group.is_empty();
        queue.is_written.then_some(group)
    }
}

/// The task that writes. Should it break down, those who wait are told so, and the next batch begins anew.
struct Run {
    lane: Arc<Lane>,
}

impl Run {
    async fn write_all(self) {
        let mut known = self.lane.known.lock().await;
        while let Some(group) = self.lane.next_group() {
            let is_away = self.lane.write(group, &mut known).await;
            if is_away {
                self.lane.shared.store.doubt_writes();
                self.lane.turn_away();
            }
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut queue = self.lane.queue();
            queue.is_written = false;
            queue.waiting.clear();
        }
    }
}

impl Lane {
    /// Writes a group. Returns whether the database is away.
    async fn write(&self, mut group: Vec<Waiting>, known: &mut KnownSessions) -> bool {
        // Nobody waits for them: the upload has ended with the refusal.
        group.retain(|waiting| !waiting.upload.is_over_before(waiting.place));
        let now = Utc::now().trunc_subsecs(6);
        let batches: Vec<_> =
            group.iter().map(|waiting| Arrived { batch: &waiting.batch, upload: waiting.upload.id() }).collect();
        let outcomes = self.shared.store.batches_append(&batches, known, now, self.shared.limits.max_tracks).await;
        let mut is_away = false;
        let mut changed = HashSet::new();
        for (waiting, outcome) in group.into_iter().zip(outcomes) {
            let session = waiting.batch.session;
            let outcome = outcome.map(|track| SessionReceipt { tracks: vec![track], ..SessionReceipt::new(session) });
            match &outcome {
                Ok(_) => {
                    changed.insert(session);
                }
                Err(error) => {
                    is_away |= *error == Error::DatabaseUnavailable;
                    waiting.upload.refuse(waiting.place);
                }
            }
            drop((waiting.batch, waiting.permit));
            // Nobody may be waiting any more.
            let _ = waiting.tell.send(outcome);
        }
        changed.into_iter().for_each(|session| self.shared.changes.announce(session));
        is_away
    }

    /// Refuses what waits while the database is away, instead of letting each group find out for itself.
    fn turn_away(&self) {
        let waiting = std::mem::take(&mut self.queue().waiting);
        for waiting in waiting {
            waiting.upload.refuse(waiting.place);
            let _ = waiting.tell.send(Err(Error::DatabaseUnavailable));
        }
    }
}
