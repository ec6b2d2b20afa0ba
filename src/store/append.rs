//! The write: batches of many tracks, merged into one transaction. What is stored already is compared and not written again;
//! what would leave a gap is refused; what cannot be stored harms nobody else's batch. The archive is not read here: a batch that
//! repeats what is archived is given back, to come again with what the archive says.
//!
//! A transaction is planned from what is known of the tracks. Its first statement moves all their cursors, each only from
//! where the plan expects it; that takes the locks, proves that the sessions are there, and shows if the plan is out of date.
//! Then the rows go in.

mod compare;
mod copy;
mod known;
mod plan;
mod sqlite;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sea_orm::DbErr;
use uuid::Uuid;

pub use self::{compare::ArchivedDigests, known::KnownSessions};
use self::{
    known::{KnownSession, KnownTrack},
    plan::{Plan, Verdict, count},
};
use super::{
    Store,
    connect::CopyPool,
    failure::{Attempts, Cause, Failure, is_lock_timeout},
    session::{absent, existing},
    track::tracks_of,
};
use crate::{
    error::{Error, Result},
    model::{Batch, SessionId, TrackReceipt},
};

/// A transaction that did not go through, or may not have.
#[derive(Debug)]
enum AppendError {
    /// The tracks are not where the plan expects them. Nothing was done.
    Outdated,
    /// The database refused. Nothing was done.
    Failed(DbErr),
    /// The connection broke during COMMIT: nobody knows whether it was done.
    Unknown(DbErr),
}

impl From<DbErr> for AppendError {
    fn from(error: DbErr) -> Self {
        Self::Failed(error)
    }
}

/// What a transaction of unknown outcome was to do with a batch.
struct Doubt {
    track: i16,
    first_seq: i64,
    receipt: TrackReceipt,
}

/// A batch and the upload that it came with.
#[derive(Clone, Copy)]
pub struct Arrived<'a> {
    /// The batch.
    pub batch: &'a Batch,
    /// Tells the upload from others.
    pub upload: usize,
    /// What the archive says of its actions, where it was asked.
    pub archived: Option<&'a ArchivedDigests>,
}

/// What became of a batch.
#[derive(Debug)]
pub enum Appended {
    /// It is committed, or refused.
    Settled(Result<TrackReceipt>),
    /// It repeats what is archived, and nothing was done with it. It is to come again with [`Store::archived_digests`].
    NeedsArchive {
        /// The number of its track.
        track: i16,
    },
    /// It comes after such a one in its upload, and nothing was done with it either.
    Behind,
}

/// Goes the way of a write on PostgreSQL within this time, and runs these statements on it.
pub(super) async fn rehearse(copy: &CopyPool, statements: String, within: Duration) -> std::result::Result<(), DbErr> {
    copy::rehearse(copy, statements, within).await
}

impl Store {
    /// Stores what is new of these batches, those of a track in their order. Where this gives a receipt, everything it speaks
    /// of is committed. After a batch that is refused, nothing of its upload is stored. `known` is the caller's memory of the
    /// tracks that it has written to.
    pub async fn batches_append(
        &self,
        batches: &[Arrived<'_>],
        known: &mut KnownSessions,
        now: DateTime<Utc>,
        max_tracks: usize,
    ) -> Vec<Appended> {
        known.forget_erased();
        let mut append = Append {
            store: self,
            batches,
            known,
            now,
            max_tracks,
            outcomes: batches.iter().map(|_| None).collect(),
            refused: HashMap::new(),
            doubts: HashMap::new(),
            one_by_one: false,
        };
        append.run().await;
        let missing = || Appended::Settled(Err(Error::Internal));
        append.outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(missing)).collect()
    }
}

/// Batches on their way into the database.
struct Append<'a> {
    store: &'a Store,
    batches: &'a [Arrived<'a>],
    known: &'a mut KnownSessions,
    now: DateTime<Utc>,
    max_tracks: usize,
    outcomes: Vec<Option<Appended>>,
    /// Uploads of which a batch was refused: the first of them, and why.
    refused: HashMap<usize, (usize, Error)>,
    doubts: HashMap<usize, Doubt>,
    /// Once a merged transaction has failed for reasons of its own: to find out whose.
    one_by_one: bool,
}

impl<'a> Append<'a> {
    async fn run(&mut self) {
        let mut attempts = Attempts::over_a_break();
        loop {
            let round = self.next_round();
            if round.is_empty() {
                return;
            }
            if self.store.is_away() {
                return self
                    .indices()
                    .into_iter()
                    .for_each(|index| self.settle(index, Err(Error::DatabaseUnavailable)));
            }
            let before = self.unsettled();
            match self.write(&round).await {
                Ok(()) => self.store.note_commit(),
                Err(failure) => {
                    round.iter().for_each(|index| self.known.forget(self.batches[*index].batch.session));
                    if round.len() > 1 && failure.may_be_of_one(attempts.failed()) {
                        self.one_by_one = true;
                    } else if failure.is_lock_timeout() && attempts.failed() > 0 {
                        // Whoever holds it has it for long; the others do not wait for that.
                        round.into_iter().for_each(|index| self.settle(index, Err(Error::Contention)));
                    } else if let Err(error) = attempts.again_after(failure).await {
                        let hopeless = if error == Error::DatabaseUnavailable { self.indices() } else { round };
                        hopeless.into_iter().for_each(|index| self.settle(index, Err(error.clone())));
                    }
                }
            }
            if self.unsettled() < before {
                attempts = Attempts::over_a_break();
            }
        }
    }

    /// What goes into the next transaction: everything, unless the batches are tried one by one.
    fn next_round(&self) -> Vec<usize> {
        let limit = if self.one_by_one { 1 } else { usize::MAX };
        self.indices().into_iter().take(limit).collect()
    }

    fn indices(&self) -> Vec<usize> {
        (0..self.batches.len()).filter(|index| self.outcomes[*index].is_none()).collect()
    }

    fn unsettled(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.is_none()).count()
    }

    fn settle(&mut self, index: usize, outcome: Result<TrackReceipt>) {
        if let Err(error) = &outcome {
            let refused = self.refused.entry(self.batches[index].upload).or_insert_with(|| (index, error.clone()));
            if index < refused.0 {
                *refused = (index, error.clone());
            }
        }
        self.outcomes[index] = Some(Appended::Settled(outcome));
    }

    /// Gives a batch back, and what comes after it in its upload.
    fn set_aside(&mut self, index: usize, track: i16) {
        let upload = self.batches[index].upload;
        for behind in self.indices().into_iter().filter(|behind| *behind > index) {
            if self.batches[behind].upload == upload {
                self.outcomes[behind] = Some(Appended::Behind);
            }
        }
        self.outcomes[index] = Some(Appended::NeedsArchive { track });
    }

    /// One transaction. Settles what it can; what it leaves is for the next.
    async fn write(&mut self, round: &[usize]) -> Result<(), Failure> {
        let store = self.store;
        let fresh = in_time(store, Box::pin(self.read_unknown(round))).await?;
        in_time(store, Box::pin(self.resolve_doubts())).await?;
        let mut plan = self.plan(round, &fresh);
        let to_archive = in_time(store, Box::pin(self.compare(&mut plan))).await?;
        if let Some((index, track)) = to_archive {
            // The others are planned without it.
            self.set_aside(index, track);
            return Ok(());
        }
        plan.count();
        if !plan.tracks.is_empty() {
            match self.store.append(&plan, self.now).await {
                Ok(()) => {}
                Err(AppendError::Outdated) => return Err(Failure::Outdated),
                Err(AppendError::Failed(error)) => return Err(error.into()),
                Err(AppendError::Unknown(error)) => {
                    tracing::warn!("the connection broke during COMMIT: looking whether it was done");
                    self.doubt(plan);
                    return Err(error.into());
                }
            }
        }
        self.store.session_hear_of(plan.tracks_after().map(|(session, _)| session));
        plan.tracks_after().for_each(|(session, track)| self.known.advance(session, track));
        plan.batches.into_iter().for_each(|write| self.settle(write.index, Ok(write.receipt)));
        plan.refused.into_iter().for_each(|(index, error)| self.settle(index, Err(error)));
        Ok(())
    }

    /// Reads the tracks of the sessions of which nothing is known, and refuses the batches of those that are not there.
    /// Returns which were read.
    async fn read_unknown(&mut self, round: &[usize]) -> Result<HashSet<SessionId>, Failure> {
        let sessions: BTreeSet<SessionId> = round.iter().map(|index| self.batches[*index].batch.session).collect();
        let unknown: Vec<Uuid> =
            sessions.into_iter().filter(|session| self.known.get(*session).is_none()).map(SessionId::as_uuid).collect();
        if unknown.is_empty() {
            return Ok(HashSet::new());
        }
        // The tracks first: of a session that is there afterwards, none was taken away before.
        let mut tracks = tracks_of(&self.store.write, &unknown).await?;
        let there = existing(&self.store.write, &unknown).await?;
        for session in unknown.iter().filter(|session| !there.contains(session)) {
            let session = SessionId::from_uuid(*session);
            let error = absent(&self.store.write, session).await?;
            for index in self.indices() {
                if self.batches[index].batch.session == session {
                    self.settle(index, Err(error.clone()));
                }
            }
        }
        for session in &there {
            let known = |track: crate::model::Track| KnownTrack {
                number: track.number,
                source: track.source,
                last_seq: track.last_seq,
            };
            let tracks = tracks.remove(session).unwrap_or_default().into_iter().map(known).collect();
            self.known.put(SessionId::from_uuid(*session), KnownSession { tracks });
        }
        Ok(there.into_iter().map(SessionId::from_uuid).collect())
    }

    fn plan(&mut self, round: &[usize], fresh: &HashSet<SessionId>) -> Plan<'a> {
        let mut plan = Plan::default();
        // Of these uploads, a batch was put off, or refused.
        let (mut held_up, mut refused) = (HashSet::new(), self.refused.clone());
        for &index in round {
            if self.outcomes[index].is_some() {
                continue;
            }
            let Arrived { batch, upload, .. } = self.batches[index];
            if let Some((_, error)) = refused.get(&upload).filter(|(from, _)| *from < index) {
                plan.refused.push((index, error.clone()));
                continue;
            }
            if held_up.contains(&upload) {
                plan.hold_up(batch);
                continue;
            }
            let Some(session) = self.known.get(batch.session) else {
                plan.hold_up(batch);
                held_up.insert(upload);
                continue;
            };
            match plan.take(index, batch, session, fresh.contains(&batch.session), self.max_tracks) {
                Verdict::Taken => {}
                Verdict::PutOff => {
                    held_up.insert(upload);
                }
                Verdict::Refused(error) => {
                    refused.insert(upload, (index, error.clone()));
                    plan.refused.push((index, error));
                }
                Verdict::Doubtful => {
                    self.known.forget(batch.session);
                    plan.hold_up(batch);
                    held_up.insert(upload);
                }
            }
        }
        plan
    }

    /// Compares what has arrived again with what is stored. Gives the first batch that only the archive can tell of, and its
    /// track, if there is one.
    async fn compare(&self, plan: &mut Plan<'a>) -> Result<Option<(usize, i16)>, Failure> {
        for write in plan.batches.iter_mut().filter(|write| write.known > 0) {
            let known = &write.batch.actions[..write.known];
            let (session, archived) = (write.batch.session, self.batches[write.index].archived);
            let compared = compare::compare(self.store, session, write.track, write.first_seq, known, archived).await?;
            // Segments are never changed: where a placeholder in one gives way, the session is brought back first.
            match compared.filter(|comparison| !comparison.is_archived) {
                Some(comparison) => write.compared(comparison),
                None => return Ok(Some((write.index, write.track))),
            }
        }
        Ok(None)
    }

    fn doubt(&mut self, plan: Plan<'a>) {
        for write in plan.batches {
            let (track, first_seq, receipt) = (write.track, write.first_seq, write.receipt);
            self.doubts.insert(write.index, Doubt { track, first_seq, receipt });
        }
    }

    /// Settles the batches of a transaction of unknown outcome that turn out to be stored.
    async fn resolve_doubts(&mut self) -> Result<(), Failure> {
        let known: Vec<usize> = self.doubts.keys().copied().collect();
        for index in known {
            let batch = self.batches[index].batch;
            if self.known.get(batch.session).is_none() {
                continue;
            }
            let Some(doubt) = self.doubts.get(&index) else { continue };
            let last_seq = doubt.first_seq - 1 + count(batch.actions.len());
            let tracks = self.known.get(batch.session).map(|session| session.tracks.as_slice()).unwrap_or_default();
            let is_stored = tracks
                .iter()
                .any(|track| track.number == doubt.track && track.source == batch.source && track.last_seq >= last_seq);
            if self.outcomes[index].is_some() || !is_stored {
                continue;
            }
            let (session, track, first_seq) = (batch.session, doubt.track, doubt.first_seq);
            let compared = compare::compare(self.store, session, track, first_seq, &batch.actions, None).await?;
            // Archived already: it counts as what has arrived again.
            let Some(comparison) = compared else { continue };
            let Some(doubt) = self.doubts.remove(&index) else { continue };
            // What is replaceable still was not replaced. Where it had conflicts before, it has them still: they are in the
            // receipt.
            let is_done = comparison.replaceable.is_empty();
            if is_done
                && comparison.conflicts.iter().all(|seq| doubt.receipt.rejections.iter().any(|known| known.seq == *seq))
            {
                self.settle(index, Ok(doubt.receipt));
            }
        }
        Ok(())
    }
}

/// Reads in time: a lane that waited for ever would keep all who wait for it.
async fn in_time<T>(store: &Store, reading: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    store.in_time(async { Ok(reading.await) }).await.unwrap_or_else(|error| Err(Failure::Refused(error)))
}

impl Failure {
    fn is_lock_timeout(&self) -> bool {
        matches!(self, Self::Database(error) if is_lock_timeout(error))
    }

    /// Whether one batch may be at fault, or one session in use elsewhere, so that the others go through without it. What may
    /// pass by itself is given a second chance first.
    fn may_be_of_one(&self, failed_before: u32) -> bool {
        match self {
            Self::Database(error) => match Cause::of(error) {
                Cause::Unavailable | Cause::Denied => false,
                cause => failed_before > 0 || !cause.is_passing() || self.is_lock_timeout(),
            },
            Self::Outdated => failed_before > 0,
            Self::Refused(error) => *error != Error::DatabaseUnavailable,
        }
    }
}

impl Store {
    async fn append(&self, plan: &Plan<'_>, now: DateTime<Utc>) -> Result<(), AppendError> {
        if let Some(copy) = &self.copy {
            return copy::append(copy, plan, now).await;
        }
        let tx = self.begin().await?;
        sqlite::append_in_txn(&tx, plan, now).await?;
        tx.commit().await?;
        Ok(())
    }
}
