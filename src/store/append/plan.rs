//! Plans one transaction for many batches: which seqs each batch gets, what of it is new, and how each track stands
//! afterwards. Decides from what is known of the tracks; whether that is still so, the transaction finds out.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};

use super::{
    compare::Comparison,
    known::{KnownSession, KnownTrack},
};
use crate::{
    error::Error,
    model::{Action, Batch, BatchAction, ERROR_TYPE, Rejection, RejectionReason, SessionId, TrackReceipt},
};

/// What one transaction writes.
#[derive(Default)]
pub(super) struct Plan<'a> {
    /// In the order of their keys: all processes take the locks in this order.
    pub(super) tracks: BTreeMap<(SessionId, &'a str), TrackWrite>,
    /// In the order in which they came.
    pub(super) batches: Vec<BatchWrite<'a>>,
    /// Batches that are refused once the others are written.
    pub(super) refused: Vec<(usize, Error)>,
    /// Tracks of which a batch was put off: those after it must not overtake it.
    held_up: HashSet<(SessionId, &'a str)>,
}

/// What becomes of a track.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TrackWrite {
    pub(super) number: i16,
    /// Whether it is not there yet.
    pub(super) is_new: bool,
    /// How far it must be for this plan to be right.
    pub(super) expected_seq: i64,
    pub(super) last_seq: i64,
    pub(super) accepted_count: i64,
    pub(super) duplicate_count: i64,
    /// Stored as placeholders, less those that are replaced.
    pub(super) rejected_count: i64,
    /// Rejected, and nothing stored.
    pub(super) conflict_count: i64,
    pub(super) error_count: i64,
    pub(super) last_action_at: Option<DateTime<Utc>>,
}

/// What becomes of a batch.
pub(super) struct BatchWrite<'a> {
    /// Which of the batches it is.
    pub(super) index: usize,
    pub(super) batch: &'a Batch,
    pub(super) track: i16,
    /// The seq of its first action.
    pub(super) first_seq: i64,
    /// How many of its actions are stored already.
    pub(super) known: usize,
    /// The seqs of those that take the place of placeholders, in order.
    pub(super) replaces: Vec<i64>,
    pub(super) receipt: TrackReceipt,
}

impl BatchWrite<'_> {
    /// The actions to store, with their seqs.
    pub(super) fn rows(&self) -> impl Iterator<Item = (i64, &Action)> {
        let first = self.first_seq + count(self.known);
        (first..).zip(self.batch.actions[self.known..].iter().map(BatchAction::to_store))
    }

    /// The actions that take the place of placeholders, with their seqs.
    pub(super) fn replacements(&self) -> impl Iterator<Item = (i64, &Action)> {
        let known = (self.first_seq..).zip(self.batch.actions[..self.known].iter().map(BatchAction::to_store));
        known.filter(|(seq, _)| self.replaces.binary_search(seq).is_ok())
    }

    /// Takes note of how what is stored already compares.
    pub(super) fn compared(&mut self, comparison: Comparison) {
        let others = comparison.conflicts.len() + comparison.replaceable.len();
        self.receipt.duplicate_count = count(self.known - others.min(self.known));
        self.receipt.replaced_count = count(comparison.replaceable.len());
        self.receipt.accepted_count += self.receipt.replaced_count;
        self.replaces = comparison.replaceable;
        comparison.conflicts.into_iter().for_each(|seq| self.receipt.reject(Batch::conflict(seq)));
        comparison.placeholders.into_iter().for_each(|stays| self.receipt.keep_placeholder(stays));
    }
}

/// What a plan does with a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes in, after so many actions that are stored already were compared.
    Taken,
    /// It waits for the next transaction: what it repeats, or follows on, is in this one or was put off too.
    PutOff,
    /// It cannot be stored.
    Refused(Error),
    /// It does not fit, but what is known may be out of date.
    Doubtful,
}

impl<'a> Plan<'a> {
    /// Takes a batch into the plan, if it fits. `is_fresh` says that the session was read just now.
    pub(super) fn take(
        &mut self,
        index: usize,
        batch: &'a Batch,
        session: &KnownSession,
        is_fresh: bool,
        max_tracks: usize,
    ) -> Verdict {
        let key = (batch.session, batch.source.as_str());
        if self.held_up.contains(&key) {
            return Verdict::PutOff;
        }
        let stored = session.track(&batch.source);
        let stored_seq = stored.map_or(0, |track| track.last_seq);
        let planned_seq = self.tracks.get(&key).map_or(stored_seq, |track| track.last_seq);
        let first_seq = batch.first_seq.unwrap_or(planned_seq + 1);
        if !is_fresh && (first_seq != planned_seq + 1 || batch.actions.is_empty()) {
            return Verdict::Doubtful;
        }
        if first_seq > planned_seq + 1 {
            return Verdict::Refused(Error::SequenceGap {
                session: batch.session,
                source_name: batch.source.clone(),
                expected_seq: planned_seq + 1,
                received_seq: first_seq,
            });
        }
        let length = count(batch.actions.len());
        if first_seq <= planned_seq && planned_seq > stored_seq {
            self.held_up.insert(key);
            return Verdict::PutOff;
        }
        let known = length.min(planned_seq + 1 - first_seq);
        let number = match (stored, self.tracks.get(&key)) {
            (Some(track), _) => track.number,
            (None, Some(track)) => track.number,
            (None, None) => {
                let tracks = session.tracks.len() + self.new_tracks(batch.session);
                if tracks >= max_tracks {
                    let refused = Verdict::Refused(Error::TooManyTracks { limit: max_tracks });
                    return if is_fresh { refused } else { Verdict::Doubtful };
                }
                i16::try_from(tracks).unwrap_or(i16::MAX)
            }
        };
        let mut receipt = TrackReceipt { source: batch.source.clone(), ..Default::default() };
        receipt.committed_seq = planned_seq.max(first_seq - 1 + length);
        self.batches.push(BatchWrite {
            index,
            batch,
            track: number,
            first_seq,
            known: usize::try_from(known).unwrap_or(0),
            replaces: Vec::new(),
            receipt,
        });
        if length > 0 {
            let track = self.tracks.entry(key).or_insert_with(|| TrackWrite {
                number,
                is_new: stored.is_none(),
                expected_seq: stored_seq,
                last_seq: stored_seq,
                ..TrackWrite::default()
            });
            track.last_seq = track.last_seq.max(first_seq - 1 + length);
        }
        Verdict::Taken
    }

    /// Puts a batch off, because its session is to be read again first.
    pub(super) fn hold_up(&mut self, batch: &'a Batch) {
        self.held_up.insert((batch.session, batch.source.as_str()));
    }

    fn new_tracks(&self, session: SessionId) -> usize {
        let of_session = self.tracks.iter().filter(|((of, _), _)| *of == session);
        of_session.filter(|(_, track)| track.is_new).count()
    }

    /// Counts what the transaction is to store, and what the comparison of the others has shown.
    pub(super) fn count(&mut self) {
        for write in &mut self.batches {
            let Some(track) = self.tracks.get_mut(&(write.batch.session, write.batch.source.as_str())) else {
                continue;
            };
            track.duplicate_count += write.receipt.duplicate_count;
            track.conflict_count += write.receipt.rejected_count;
            track.rejected_count -= write.receipt.replaced_count;
            let errors = write.replacements().filter(|(_, action)| action.kind == ERROR_TYPE).count();
            track.error_count += count(errors);
            let first_new = write.first_seq + count(write.known);
            for (action, seq) in write.batch.actions[write.known..].iter().zip(first_new..) {
                let stored = action.to_store();
                track.error_count += i64::from(stored.kind == ERROR_TYPE);
                track.last_action_at = track.last_action_at.max(Some(stored.timestamp));
                match action {
                    BatchAction::Valid(_) => write.receipt.accepted_count += 1,
                    BatchAction::Rejected(rejected) => {
                        track.rejected_count += 1;
                        write.receipt.reject(Rejection {
                            seq,
                            reason: rejected.reason,
                            description: rejected.description.clone(),
                        });
                    }
                }
            }
            track.accepted_count += write.receipt.accepted_count;
        }
    }

    /// How the tracks stand once the transaction is committed.
    pub(super) fn tracks_after(&self) -> impl Iterator<Item = (SessionId, KnownTrack)> {
        self.tracks.iter().map(|((session, source), track)| {
            let source = (*source).to_owned();
            (*session, KnownTrack { number: track.number, source, last_seq: track.last_seq })
        })
    }
}

impl Batch {
    /// The receipt of what arrived again with different content.
    pub(super) fn conflict(seq: i64) -> Rejection {
        let description = "another action is stored under this seq".to_owned();
        Rejection { seq, reason: RejectionReason::Conflict, description }
    }
}

/// A number of actions as seqs count.
pub(super) fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytestring::ByteString;

    use crate::model::{Action, RejectedAction};

    fn batch(session: SessionId, source: &str, first_seq: i64, length: usize) -> Batch {
        let action = |kind: &str| Action {
            timestamp: DateTime::UNIX_EPOCH,
            kind: kind.into(),
            target: ByteString::new(),
            data: ByteString::new(),
        };
        let actions = (0..length).map(|_| BatchAction::Valid(action(ERROR_TYPE))).collect();
        Batch { session, source: source.to_owned(), first_seq: (first_seq > 0).then_some(first_seq), actions }
    }

    fn session_with(tracks: &[(&str, i64)]) -> KnownSession {
        let known = tracks.iter().enumerate().map(|(number, (source, last_seq))| KnownTrack {
            number: i16::try_from(number).expect("few"),
            source: (*source).to_owned(),
            last_seq: *last_seq,
        });
        KnownSession { tracks: known.collect() }
    }

    fn gap(batch: &Batch, expected_seq: i64, received_seq: i64) -> Verdict {
        let source_name = batch.source.clone();
        Verdict::Refused(Error::SequenceGap { session: batch.session, source_name, expected_seq, received_seq })
    }

    #[test]
    fn batches_that_follow_on_each_other_move_their_track_once() {
        let id = SessionId::mint(Utc::now());
        let session = session_with(&[("main", 10)]);
        let batches =
            [batch(id, "main", 11, 5), batch(id, "main", 16, 1), batch(id, "main", 0, 2), batch(id, "new", 1, 3)];
        let mut plan = Plan::default();
        for (index, batch) in batches.iter().enumerate() {
            assert_eq!(plan.take(index, batch, &session, index == 3, 64), Verdict::Taken, "{index}");
        }
        plan.count();
        let track = &plan.tracks[&(id, "main")];
        assert_eq!((track.number, track.expected_seq, track.last_seq), (0, 10, 18));
        assert_eq!((track.accepted_count, track.error_count), (8, 8));
        assert_eq!(track.last_action_at, Some(DateTime::UNIX_EPOCH));
        let new = &plan.tracks[&(id, "new")];
        assert_eq!((new.number, new.expected_seq, new.last_seq, new.accepted_count), (1, 0, 3, 3));
        let seqs: Vec<Vec<i64>> = plan.batches.iter().map(|write| write.rows().map(|(seq, _)| seq).collect()).collect();
        assert_eq!(seqs, [vec![11, 12, 13, 14, 15], vec![16], vec![17, 18], vec![1, 2, 3]]);
        assert_eq!(plan.batches[2].receipt.committed_seq, 18);
        let after: Vec<_> = plan.tracks_after().map(|(_, track)| (track.number, track.last_seq)).collect();
        assert_eq!(after, [(0, 18), (1, 3)]);
    }

    #[test]
    fn what_is_stored_already_is_not_written_again() {
        let id = SessionId::mint(Utc::now());
        let session = session_with(&[("main", 10)]);
        let mut plan = Plan::default();
        let (half, all) = (batch(id, "main", 8, 6), batch(id, "web", 1, 2));
        let session = KnownSession { tracks: [session.tracks, session_with(&[("", 0), ("web", 4)]).tracks].concat() };
        assert_eq!(plan.take(0, &half, &session, true, 64), Verdict::Taken);
        assert_eq!(plan.take(1, &all, &session, true, 64), Verdict::Taken);
        assert_eq!((plan.batches[0].known, plan.batches[1].known), (3, 2));
        plan.batches[0].receipt.duplicate_count = 2;
        plan.batches[0].receipt.reject(Batch::conflict(9));
        plan.batches[1].receipt.duplicate_count = 2;
        plan.count();
        let track = &plan.tracks[&(id, "main")];
        assert_eq!((track.expected_seq, track.last_seq), (10, 13));
        assert_eq!((track.accepted_count, track.duplicate_count, track.conflict_count), (3, 2, 1));
        assert_eq!(track.rejected_count, 0, "nothing is stored of a conflict");
        let track = &plan.tracks[&(id, "web")];
        assert_eq!((track.expected_seq, track.last_seq, track.duplicate_count), (4, 4, 2));
        assert_eq!(plan.batches[1].receipt.committed_seq, 4);
    }

    #[test]
    fn placeholders_move_the_track_and_are_counted_as_rejected() {
        let id = SessionId::mint(Utc::now());
        let mut bad = batch(id, "main", 1, 2);
        let BatchAction::Valid(placeholder) = bad.actions.remove(0) else { unreachable!("it is valid") };
        let digest = placeholder.digest();
        let (reason, description) = (RejectionReason::InvalidData, String::new());
        bad.actions.push(BatchAction::Rejected(RejectedAction {
            reason,
            description,
            digest,
            digest_as_sent: None,
            placeholder,
        }));
        let mut plan = Plan::default();
        assert_eq!(plan.take(0, &bad, &KnownSession::default(), true, 64), Verdict::Taken);
        plan.count();
        let track = &plan.tracks[&(id, "main")];
        assert_eq!((track.accepted_count, track.rejected_count, track.last_seq), (1, 1, 2));
        assert_eq!(plan.batches[0].receipt.rejections[0].seq, 2);
    }

    #[test]
    fn what_does_not_fit_is_refused_only_by_what_was_read_just_now() {
        let id = SessionId::mint(Utc::now());
        let session = session_with(&[("main", 10)]);
        for (first_seq, length) in [(12, 1), (10, 1), (1, 0), (0, 0)] {
            let batch = batch(id, "main", first_seq, length);
            assert_eq!(Plan::default().take(0, &batch, &session, false, 64), Verdict::Doubtful, "{first_seq}");
        }
        let ahead = batch(id, "main", 12, 1);
        assert_eq!(Plan::default().take(0, &ahead, &session, true, 64), gap(&ahead, 11, 12));
        let new = batch(id, "new", 2, 1);
        assert_eq!(Plan::default().take(0, &new, &session, true, 64), gap(&new, 1, 2));
        let one_more = batch(id, "new", 1, 1);
        let refused = Verdict::Refused(Error::TooManyTracks { limit: 1 });
        assert_eq!(Plan::default().take(0, &one_more, &session, true, 1), refused);
        assert_eq!(Plan::default().take(0, &one_more, &session, false, 1), Verdict::Doubtful);
    }

    #[test]
    fn what_repeats_a_batch_of_the_same_transaction_waits_for_it() {
        let id = SessionId::mint(Utc::now());
        let session = session_with(&[("main", 10), ("web", 0)]);
        let (first, again, next) = (batch(id, "main", 11, 5), batch(id, "main", 11, 5), batch(id, "main", 16, 1));
        let mut plan = Plan::default();
        assert_eq!(plan.take(0, &first, &session, true, 64), Verdict::Taken);
        assert_eq!(plan.take(1, &again, &session, true, 64), Verdict::PutOff);
        assert_eq!(plan.take(2, &next, &session, true, 64), Verdict::PutOff, "it must not overtake");
        assert_eq!(plan.take(3, &batch(id, "web", 0, 1), &session, true, 64), Verdict::Taken, "others go on");
    }
}
