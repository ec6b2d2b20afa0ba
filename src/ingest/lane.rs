//! Group commit: what is waiting when a transaction ends goes into the next one together. With nothing waiting, a batch is
//! written as soon as it comes. A batch that repeats what is archived is set aside while the archive is asked, and nobody but its
//! own upload waits for that.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use chrono::SubsecRound as _;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    intake::Intake,
    writer::{Shared, Tell},
};
use crate::{
    error::{Error, Result},
    model::{Batch, SessionReceipt, TrackReceipt},
    store::{Appended, ArchivedDigests, Arrived, KnownSessions},
};

/// A transaction takes no more batches once it has this many actions. Larger ones are no faster
/// (PostgreSQL 15, two writers), and everybody in them waits longer.
const GROUP_ACTIONS: usize = 2_000;

/// Nor once it has this many bytes: they are copied on their way out.
const GROUP_BYTES: usize = 4 << 20;

/// How often the archive is asked for the same batch, whose session is moved meanwhile.
const MAX_LOOKS: u8 = 3;

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
    /// What the archive says of it, where it was asked, and how often it was.
    pub(super) archived: Option<ArchivedDigests>,
    pub(super) looks: u8,
}

/// A batch that the archive has to be asked for, and what was behind it.
struct SetAside {
    waiting: Waiting,
    track: i16,
    behind: VecDeque<Waiting>,
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
    /// Uploads of which a batch is being compared with the archive, and what has come after it.
    aside: HashMap<usize, VecDeque<Waiting>>,
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
        self.begin(&mut queue);
    }

    fn begin(self: &Arc<Self>, queue: &mut Queue) {
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
            if let Some(behind) = queue.aside.get_mut(&waiting.upload.id()) {
                behind.push_back(waiting);
                continue;
            }
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
    async fn write(self: &Arc<Self>, mut group: Vec<Waiting>, known: &mut KnownSessions) -> bool {
        // Nobody waits for them: the upload has ended with the refusal.
        group.retain(|waiting| !waiting.upload.is_over_before(waiting.place));
        let now = self.shared.store.now().trunc_subsecs(6);
        let arrived = |waiting| {
            let Waiting { batch, upload, archived, .. }: &Waiting = waiting;
            Arrived { batch, upload: upload.id(), archived: archived.as_ref() }
        };
        let batches: Vec<_> = group.iter().map(arrived).collect();
        let outcomes = self.shared.store.batches_append(&batches, known, now, self.shared.limits.max_tracks).await;
        let mut is_away = false;
        let mut changed = HashSet::new();
        let mut aside: HashMap<usize, SetAside> = HashMap::new();
        for (waiting, outcome) in group.into_iter().zip(outcomes) {
            let upload = waiting.upload.id();
            match outcome {
                Appended::Settled(outcome) => {
                    match &outcome {
                        Ok(_) => {
                            changed.insert(waiting.batch.session);
                        }
                        Err(error) => is_away |= *error == Error::DatabaseUnavailable,
                    }
                    waiting.settle(outcome);
                }
                Appended::NeedsArchive { .. } if waiting.looks >= MAX_LOOKS => waiting.settle(Err(Error::Contention)),
                Appended::NeedsArchive { track } => {
                    aside.insert(upload, SetAside { waiting, track, behind: VecDeque::new() });
                }
                Appended::Behind => match aside.get_mut(&upload) {
                    Some(aside) => aside.behind.push_back(waiting),
                    // The upload has ended with what it is behind.
                    None => waiting.settle(Err(Error::Contention)),
                },
            }
        }
        aside.into_values().for_each(|aside| self.ask_archive(aside));
        changed.into_iter().for_each(|session| self.shared.changes.announce(session));
        is_away
    }

    /// Asks the archive for a batch, and lets its upload go on afterwards.
    fn ask_archive(self: &Arc<Self>, aside: SetAside) {
        let SetAside { mut waiting, track, behind } = aside;
        let upload = waiting.upload.id();
        self.queue().aside.insert(upload, behind);
        let lane = Arc::clone(self);
        self.shared.writes.spawn(async move {
            let asked = lane.shared.ask_archive(&waiting.batch, track).await;
            let mut again = VecDeque::new();
            match asked {
                Ok(archived) => {
                    (waiting.archived, waiting.looks) = (Some(archived), waiting.looks + 1);
                    again.push_back(waiting);
                }
                Err(error) => waiting.settle(Err(error)),
            }
            let mut queue = lane.queue();
            again.extend(queue.aside.remove(&upload).unwrap_or_default());
            again.append(&mut queue.waiting);
            queue.waiting = again;
            lane.begin(&mut queue);
        });
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

impl Waiting {
    fn settle(self, outcome: Result<TrackReceipt>) {
        let session = self.batch.session;
        if outcome.is_err() {
            self.upload.refuse(self.place);
        }
        drop((self.batch, self.permit));
        // Nobody may be waiting any more.
        let outcome = outcome.map(|track| SessionReceipt { tracks: vec![track], ..SessionReceipt::new(session) });
        let _ = self.tell.send(outcome);
    }
}
