//! What the database may hold: for each track what is acknowledged and what was sent, for each session what was asked for
//! and what was granted. An outcome that nobody saw leaves both possibilities open.

use std::collections::BTreeMap;

use reel::proto::{RejectionReason, TrackReceipt};
use tonic::{Code, Status};

use super::{
    content::Content,
    plan::{MINTED, NUMBERED, Place, SESSIONS, SOURCES, USERS, Upload},
};
use crate::harness::{NOON_MS, metadata, reason, session_id};

/// Everything that the clients know together.
pub struct Model {
    pub seed: u64,
    pub sessions: [Session; SESSIONS],
    /// Sessions that the service may have minted without anybody hearing of it.
    pub orphans: i64,
    /// Statuses by reason; `TRANSPORT` where the connection broke.
    pub refusals: BTreeMap<String, usize>,
    /// Whether a server was ever shut down: only then may a connection break.
    pub restarted: bool,
    next_tag: u64,
}

/// Each flag is a fact of its own: asked for and granted may both be true, or only the one.
#[allow(clippy::struct_excessive_bools)]
#[derive(Default)]
pub struct Session {
    /// None before the service has minted it.
    pub id: Option<String>,
    /// A start that is to mint the id is under way.
    pub minting: bool,
    pub start_begun: bool,
    pub started: bool,
    pub end_begun: bool,
    pub ended: bool,
    /// What was acknowledged of each track when the session was first asked to end.
    pub before_end: Option<Vec<i64>>,
    pub is_followed: bool,
    pub erasing: bool,
    pub erased: bool,
    pub tracks: [Track; SOURCES.len() + 1],
}

#[derive(Clone, Default)]
pub struct Track {
    /// The highest cursor that the service has told of.
    pub acknowledged: i64,
    /// First and last seqs of what was sent.
    sent: Vec<(i64, i64)>,
    /// What was sent for the service to number.
    pub numbered: Vec<Numbered>,
    pub accepted: i64,
    pub duplicates: i64,
    pub rejected: i64,
    /// Whether something was sent of which no receipt came.
    pub is_uncertain: bool,
}

/// A batch that the service was to number.
#[derive(Clone, Copy)]
pub struct Numbered {
    pub tag: u64,
    pub count: i64,
    /// The first seq, if a receipt told it.
    pub first: Option<i64>,
}

impl Track {
    /// The highest seq that can have been committed: seqs have no gaps.
    pub fn reach(&self) -> i64 {
        let mut reach = self.numbered.iter().map(|batch| batch.count).sum();
        while let Some((_, last)) = self.sent.iter().find(|(first, last)| *first <= reach + 1 && *last > reach) {
            reach = *last;
        }
        reach
    }
}

/// What held for sure before a call.
#[derive(Clone, Copy, Default)]
pub struct Before {
    pub started: bool,
    pub erased: bool,
    /// What was acknowledged of each track.
    pub acknowledged: [i64; SOURCES.len() + 1],
}

/// A batch as it is sent.
#[derive(Clone, Copy, Debug)]
pub struct SentBatch {
    /// 0 for the service to number it.
    pub first: i64,
    pub count: i64,
    pub is_conflicting: bool,
    tag: u64,
}

/// An upload as it is sent.
pub struct Sending {
    /// Empty where the service is to mint it.
    pub id: String,
    pub batches: Vec<SentBatch>,
    pub before: Before,
}

impl Model {
    pub fn new(seed: u64) -> Self {
        let mut sessions: [Session; SESSIONS] = Default::default();
        for (number, session) in sessions.iter_mut().enumerate().filter(|(number, _)| *number != MINTED) {
            session.id = Some(session_id(NOON_MS + i64::try_from(number).unwrap()));
        }
        Self { seed, sessions, orphans: 0, refusals: BTreeMap::new(), restarted: false, next_tag: 0 }
    }

    pub fn before(&self, session: usize) -> Before {
        let session = &self.sessions[session];
        let acknowledged = std::array::from_fn(|source| session.tracks[source].acknowledged);
        Before { started: session.started, erased: session.erased, acknowledged }
    }

    /// Takes note of a start that is about to be sent, and gives the id to send. None where another client is waiting for
    /// the id.
    pub fn begin_start(&mut self, number: usize) -> Option<String> {
        let session = &mut self.sessions[number];
        if session.id.is_none() && std::mem::replace(&mut session.minting, true) {
            return None;
        }
        session.start_begun = true;
        Some(session.id.clone().unwrap_or_default())
    }

    pub fn started(&mut self, number: usize, before: &Before, id: &str) {
        assert!(!before.erased, "an erased session was started again");
        let session = &mut self.sessions[number];
        let known = session.id.get_or_insert_with(|| id.to_owned());
        assert_eq!(known, id);
        (session.started, session.minting) = (true, false);
    }

    /// A start of which nobody knows whether it went through. If it was to mint the id, all that was sent with it is lost to
    /// the model.
    pub fn start_unknown(&mut self, number: usize) {
        if self.sessions[number].minting {
            self.sessions[number] = Session::default();
            self.orphans += 1;
        }
    }

    /// Works out what an upload sends, and takes note of it. None if there is nothing to send it to yet.
    pub fn begin_upload(&mut self, number: usize, upload: &Upload, asked: Option<i64>) -> Option<Sending> {
        let id = if upload.start_first { self.begin_start(number)? } else { self.sessions[number].id.clone()? };
        let before = self.before(number);
        let track = &mut self.sessions[number].tracks[upload.source];
        let mut next = asked.unwrap_or(track.acknowledged) + 1;
        let mut batches = Vec::new();
        for batch in &upload.batches {
            let (mut count, mut is_conflicting) = (batch.count, false);
            let mut first = match batch.place {
                Place::Conflicting if track.acknowledged > 0 => {
                    is_conflicting = true;
                    count = count.min(track.acknowledged);
                    track.acknowledged - count + 1
                }
                Place::Next | Place::Conflicting => next,
                Place::Back(by) => (next - by).max(1),
                Place::Ahead(by) => next + by,
            };
            self.next_tag += 1;
            if upload.source == SOURCES.len() {
                (first, is_conflicting) = (0, false);
                track.numbered.push(Numbered { tag: self.next_tag, count, first: None });
            } else if !is_conflicting {
                track.sent.push((first, first + count - 1));
                next = next.max(first + count);
            }
            batches.push(SentBatch { first, count, is_conflicting, tag: self.next_tag });
        }
        Some(Sending { id, batches, before })
    }

    /// The content of a sent batch.
    pub fn contents(&self, session: usize, source: usize, batch: &SentBatch) -> Vec<Content> {
        let first = if batch.first == 0 { Numbered::place(batch.tag, 0) } else { u64::try_from(batch.first).unwrap() };
        let places = first..first + u64::try_from(batch.count).unwrap();
        let contents = places.map(|place| Content::new(self.seed, session, source, place));
        contents.map(|content| if batch.is_conflicting { content.conflicting() } else { content }).collect()
    }

    /// Checks the receipt of one batch and takes note of it. `low` is what had been committed for sure before.
    pub fn settle(&mut self, number: usize, source: usize, batch: &SentBatch, low: i64, receipt: &TrackReceipt) {
        let contents = self.contents(number, source, batch);
        let track = &mut self.sessions[number].tracks[source];
        let committed = receipt.committed_seq;
        let what = format!("{batch:?}, low {low}, reach {}: {receipt:?}", track.reach());
        assert_eq!(receipt.accepted_count + receipt.duplicate_count + receipt.rejected_count, batch.count, "{what}");
        assert!(committed >= low && committed <= track.reach(), "{what}");
        let first = if batch.first == 0 { committed - batch.count + 1 } else { batch.first };
        let last = first + batch.count - 1;
        let known = receipt.duplicate_count;
        let expected: Vec<_> = if batch.is_conflicting {
            assert_eq!(known, 0, "{what}");
            (first..=last).map(|seq| (seq, RejectionReason::Conflict)).collect()
        } else {
            assert!(known >= (low + 1 - first).clamp(0, batch.count), "{what}");
            assert!(committed == last || (committed > last && known == batch.count), "{what}");
            let new = contents.iter().zip(first..).skip(usize::try_from(known).unwrap());
            new.filter_map(|(content, seq)| Some((seq, content.fault?))).collect()
        };
        let rejections: Vec<_> =
            receipt.rejections.iter().map(|rejection| (rejection.seq, rejection.reason())).collect();
        assert_eq!(rejections, expected, "{what}");
        assert_eq!(receipt.rejected_count, i64::try_from(expected.len()).unwrap(), "{what}");
        if let Some(numbered) = track.numbered.iter_mut().find(|numbered| numbered.tag == batch.tag) {
            assert_eq!(known, 0, "{what}");
            numbered.first = Some(first);
        }
        track.add(receipt);
    }

    /// Takes note of a status, and says what it means. Fails if nothing that happened explains it.
    pub fn refused(&mut self, number: usize, before: &Before, status: &Status) -> Refusal {
        let reason = if status.details().is_empty() { "TRANSPORT".to_owned() } else { reason(status) };
        *self.refusals.entry(reason.clone()).or_default() += 1;
        let session = &self.sessions[number];
        match reason.as_str() {
            "SESSION_NOT_FOUND" => {
                assert_eq!(status.code(), Code::NotFound);
                assert!(!before.started || session.erasing, "a session that was started is not there: {status:?}");
                Refusal::NotThere
            }
            "SESSION_ERASED" => {
                assert_eq!(status.code(), Code::FailedPrecondition);
                assert!(session.erasing, "nobody has asked for the erasure: {status:?}");
                Refusal::NotThere
            }
            "SEQUENCE_GAP" => {
                assert_eq!(status.code(), Code::Aborted);
                let seq = |key| metadata(status, key).parse().unwrap();
                Refusal::Gap { expected: seq("expected_seq"), received: seq("received_seq") }
            }
            "TRACK_INCOMPLETE" => {
                assert_eq!(status.code(), Code::FailedPrecondition);
                let seq = |key| metadata(status, key).parse().unwrap();
                let source = metadata(status, "source");
                Refusal::Incomplete { source, committed: seq("committed_seq"), claimed: seq("last_seq") }
            }
            "CONTENTION" => Refusal::Unknown,
            "DRAINING" | "TRANSPORT" => {
                assert!(self.restarted, "nobody has shut down a server: {status:?}");
                Refusal::Unknown
            }
            _ => panic!("unexpected: {status:?}"),
        }
    }

    /// Checks what a gap says of the cursor.
    pub fn gap(&mut self, number: usize, source: usize, low: i64, expected: i64) {
        let track = &mut self.sessions[number].tracks[source];
        assert!(expected > low && expected <= track.reach() + 1, "expected_seq {expected}, low {low}");
        track.acknowledged = track.acknowledged.max(expected - 1);
    }
}

impl Track {
    /// Takes note of what a receipt says.
    pub fn add(&mut self, receipt: &TrackReceipt) {
        self.acknowledged = self.acknowledged.max(receipt.committed_seq);
        self.accepted += receipt.accepted_count;
        self.duplicates += receipt.duplicate_count;
        self.rejected += receipt.rejected_count;
    }
}

impl Numbered {
    /// What tells the action at this index of the batch from the track's others.
    pub fn place(tag: u64, index: u64) -> u64 {
        tag * 1_000 + index
    }
}

/// What a status means.
#[derive(Debug)]
pub enum Refusal {
    /// The session is not there: nothing was done.
    NotThere,
    /// A batch left out seqs.
    Gap { expected: i64, received: i64 },
    /// A session was not ended.
    Incomplete { source: String, committed: i64, claimed: i64 },
    /// What was asked for may have been done or not.
    Unknown,
}

/// The name of a track by its number in the plan.
pub fn source_name(source: usize) -> &'static str {
    SOURCES.get(source).copied().unwrap_or(NUMBERED)
}

/// The number of a track in the plan by its name.
pub fn source_number(name: &str) -> usize {
    SOURCES.iter().position(|known| *known == name).unwrap_or_else(|| {
        assert_eq!(name, NUMBERED);
        SOURCES.len()
    })
}

/// The other sessions of the user that this one belongs to, and itself; none where it has no user.
pub fn sessions_of_same_user(session: usize) -> impl Iterator<Item = usize> {
    (0..SESSIONS).filter(move |other| USERS[session].is_some() && USERS[*other] == USERS[session])
}
