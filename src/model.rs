//! What Reel is about, as plain types: users, sessions, tracks, actions and receipts.
//!
//! Nothing in here knows protobuf, SQL or gRPC.

use std::{collections::BTreeMap, fmt, str::FromStr};

use chrono::{DateTime, Utc};
use rand::Rng as _;
use sha2::{Digest as _, Sha256};
use uuid::{Uuid, Variant};

/// The type of the action that stands in the place of one that could not be stored.
pub const REJECTED_TYPE: &str = "reel.rejected";

/// The type of actions that count as errors.
pub const ERROR_TYPE: &str = "error";

/// Why a session ended, where the sender gave no reason.
pub const DEFAULT_END_REASON: &str = "ended";

/// Why a session ended, where the idle timeout ended it.
pub const IDLE_END_REASON: &str = "idle";

/// The track of senders that do not name one.
pub const DEFAULT_SOURCE: &str = "main";

/// The latest time that there is: the last microsecond of the year 9999, as in protobuf's timestamps. SQLite compares times
/// as text, which holds for years of four digits.
pub const LATEST_TIME: DateTime<Utc> = match DateTime::from_timestamp(253_402_300_799, 999_999_000) {
    Some(time) => time,
    None => DateTime::<Utc>::MAX_UTC,
};

/// A UUIDv7 whose time part is the session's start in milliseconds since 1970 (RFC 9562 §5.7).
///
/// Ids sort by session start, byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(Uuid);

impl SessionId {
    /// Makes a new id for a session that starts at this time, which must lie between 1970 and the year 10889.
    #[must_use]
    pub fn mint(started_at: DateTime<Utc>) -> Self {
        let mut random = [0; 10];
        rand::rng().fill_bytes(&mut random);
        Self::from_parts(started_at, random)
    }

    /// Makes the id from its two parts. Of the ten bytes, 74 bits are used.
    #[must_use]
    pub fn from_parts(started_at: DateTime<Utc>, random: [u8; 10]) -> Self {
        let millis = u64::try_from(started_at.timestamp_millis()).unwrap_or(0);
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    /// Takes a UUID as it came from the database.
    #[must_use]
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The id as a UUID.
    #[must_use]
    pub fn as_uuid(self) -> Uuid {
        self.0
    }

    /// When the session started, with millisecond precision.
    #[must_use]
    pub fn started_at(self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.unix_millis()).unwrap_or(DateTime::UNIX_EPOCH)
    }

    fn unix_millis(self) -> i64 {
        let [a, b, c, d, e, f, ..] = *self.0.as_bytes();
        i64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// The text is not a UUIDv7 in its canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a UUIDv7 in its canonical form, 36 lower-case characters")]
pub struct NotASessionId;

impl FromStr for SessionId {
    type Err = NotASessionId;

    /// Takes the canonical form only, so that no session has two spellings.
    fn from_str(text: &str) -> Result<Self, NotASessionId> {
        let uuid = Uuid::try_parse(text).map_err(|_| NotASessionId)?;
        let id = Self(uuid);
        let is_v7 = uuid.get_version_num() == 7 && uuid.get_variant() == Variant::RFC4122;
        let has_time = DateTime::from_timestamp_millis(id.unix_millis()).is_some();
        if is_v7 && has_time && id.to_string() == text { Ok(id) } else { Err(NotASessionId) }
    }
}

/// What a session or a user is described with.
pub type Attributes = BTreeMap<String, String>;

/// Whoever sessions belong to. Empty texts mean unknown.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// The caller's own id.
    pub id: String,
    /// E-mail address in lower case.
    pub email: String,
    /// Name for people to read.
    pub name: String,
    /// What else is known.
    pub attributes: Attributes,
    /// When the service first heard of the user.
    pub created_at: DateTime<Utc>,
}

/// What a sender says at the beginning of a session.
pub struct SessionStart {
    /// The session's id, brought or minted.
    pub id: SessionId,
    /// Whoever it belongs to.
    pub user: Option<User>,
    /// What else is known of it.
    pub attributes: Attributes,
}

/// What a sender says at the end of a session.
pub struct SessionEnd {
    /// The session.
    pub id: SessionId,
    /// When it ended; the time of its last action where the sender leaves it open.
    pub ended_at: Option<DateTime<Utc>>,
    /// Why.
    pub reason: String,
    /// The last seq sent, by source.
    pub last_seqs: BTreeMap<String, i64>,
}

/// One user's visit, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its id, which carries its start.
    pub id: SessionId,
    /// Whoever it belongs to.
    pub user_id: Option<String>,
    /// When it ended. None while it is live.
    pub ended_at: Option<DateTime<Utc>>,
    /// Why it ended. None while it is live.
    pub end_reason: Option<String>,
    /// What else is known of it.
    pub attributes: Attributes,
    /// Its tracks by number.
    pub tracks: Vec<Track>,
}

impl Session {
    /// Number of stored actions, rejected ones included: seqs have no gaps, so the cursors say it.
    #[must_use]
    pub fn action_count(&self) -> i64 {
        self.tracks.iter().map(|track| track.last_seq).sum()
    }

    /// Number of actions of type `error`.
    #[must_use]
    pub fn error_count(&self) -> i64 {
        self.tracks.iter().map(|track| track.error_count).sum()
    }

    /// The latest timestamp of its actions.
    #[must_use]
    pub fn last_action_at(&self) -> Option<DateTime<Utc>> {
        self.tracks.iter().filter_map(|track| track.last_action_at).max()
    }
}

/// One sender's numbered line of actions inside a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Track {
    /// Its number in the session: 0, 1, 2, … in the order of first batches.
    pub number: i16,
    /// Who sends it.
    pub source: String,
    /// The cursor: every seq ≤ this is committed.
    pub last_seq: i64,
    /// Number of actions stored as they were sent.
    pub accepted_count: i64,
    /// Number of actions that arrived again.
    pub duplicate_count: i64,
    /// Number of actions that were rejected.
    pub rejected_count: i64,
    /// Number of actions of type `error`.
    pub error_count: i64,
    /// The latest timestamp of its actions.
    pub last_action_at: Option<DateTime<Utc>>,
}

/// One thing that happened.
#[derive(Clone, PartialEq, Eq)]
pub struct Action {
    /// When, with microsecond precision.
    pub timestamp: DateTime<Utc>,
    /// What kind of thing.
    pub kind: String,
    /// What it was done to.
    pub target: String,
    /// JSON text, byte for byte as it was sent. May be empty.
    pub data: String,
}

impl Action {
    /// What tells this action's content from another's.
    #[must_use]
    pub fn digest(&self) -> ContentDigest {
        ContentDigest::of(&self.timestamp.timestamp_micros().to_be_bytes(), &self.kind, &self.target, &self.data)
    }
}

/// A stored action with its place.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredAction {
    /// Its track's number.
    pub track: i16,
    /// Its number on the track.
    pub seq: i64,
    /// What happened.
    pub action: Action,
}

impl StoredAction {
    /// The action's place in the session's playback.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { timestamp: self.action.timestamp, track: self.track, seq: self.seq }
    }
}

/// A place in a session's playback: actions are played in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The action's timestamp.
    pub timestamp: DateTime<Utc>,
    /// Its track's number.
    pub track: i16,
    /// Its number on the track.
    pub seq: i64,
}

/// SHA-256 over the content of an action as it was sent. Tells a resent action from a different one under the same seq,
/// also where the action itself could not be stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ContentDigest([u8; 32]);

impl ContentDigest {
    /// Digests an action's parts, each preceded by its length.
    #[must_use]
    pub fn of(timestamp: &[u8], kind: &str, target: &str, data: &str) -> Self {
        let mut hash = Sha256::new();
        for part in [timestamp, kind.as_bytes(), target.as_bytes(), data.as_bytes()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Consecutive actions of one track, on their way into the database.
pub struct Batch {
    /// The session.
    pub session: SessionId,
    /// The track.
    pub source: String,
    /// The seq of the first action; None asks the service to number the batch.
    pub first_seq: Option<i64>,
    /// The actions, each as it can be stored or as it was refused.
    pub actions: Vec<BatchAction>,
}

/// An action on its way into the database.
pub enum BatchAction {
    /// It can be stored.
    Valid(Action),
    /// It cannot; this stands in its place.
    Rejected(RejectedAction),
}

/// An action that cannot be stored as it was sent.
pub struct RejectedAction {
    /// Why.
    pub reason: RejectionReason,
    /// The field at fault and what is wrong with it, without its value.
    pub description: String,
    /// Tells it from others when it is sent again.
    pub digest: ContentDigest,
    /// What is stored in its place: an action of type `reel.rejected` that says why.
    pub placeholder: Action,
}

/// Why an action was not stored as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectionReason {
    /// Another action is stored under its seq.
    Conflict,
    /// Its timestamp is missing, malformed or out of range.
    InvalidTimestamp,
    /// Its type breaks the rules for types.
    InvalidType,
    /// Its target is too long or contains NUL.
    InvalidTarget,
    /// Its data is not JSON, or nested too deep.
    InvalidData,
    /// It is larger than an action may be.
    TooLarge,
}

impl RejectionReason {
    /// The name that is stored in the data of the `reel.rejected` action.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Conflict => "CONFLICT",
            Self::InvalidTimestamp => "INVALID_TIMESTAMP",
            Self::InvalidType => "INVALID_TYPE",
            Self::InvalidTarget => "INVALID_TARGET",
            Self::InvalidData => "INVALID_DATA",
            Self::TooLarge => "TOO_LARGE",
        }
    }
}

/// Tells the sender of an action that was not stored as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The action's seq.
    pub seq: i64,
    /// Why.
    pub reason: RejectionReason,
    /// The field at fault and what is wrong with it, without its value.
    pub description: String,
}

/// What was done with the actions sent to one track.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrackReceipt {
    /// The track.
    pub source: String,
    /// The cursor: every seq ≤ this is durable.
    pub committed_seq: i64,
    /// Newly stored as they were sent.
    pub accepted_count: i64,
    /// Stored before with the same content.
    pub duplicate_count: i64,
    /// Not stored as they were sent.
    pub rejected_count: i64,
    /// The first rejections, at most [`TrackReceipt::MAX_REJECTIONS`].
    pub rejections: Vec<Rejection>,
}

impl TrackReceipt {
    /// How many rejections a receipt lists; the rest is only counted.
    pub const MAX_REJECTIONS: usize = 100;

    /// Counts a rejection, and lists it where there is room.
    pub fn reject(&mut self, rejection: Rejection) {
        self.rejected_count += 1;
        if self.rejections.len() < Self::MAX_REJECTIONS {
            self.rejections.push(rejection);
        }
    }

    /// Adds what was done with a later batch of the same track.
    pub fn absorb(&mut self, later: Self) {
        self.committed_seq = self.committed_seq.max(later.committed_seq);
        self.accepted_count += later.accepted_count;
        self.duplicate_count += later.duplicate_count;
        self.rejected_count += later.rejected_count;
        let room = Self::MAX_REJECTIONS - self.rejections.len();
        self.rejections.extend(later.rejections.into_iter().take(room));
    }
}

/// What was done for one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionReceipt {
    /// The session.
    pub session: SessionId,
    /// What was done on each track that was written to.
    pub tracks: Vec<TrackReceipt>,
    /// Whether the session was started, or found started.
    pub started: bool,
    /// Whether the session was ended, or found ended.
    pub ended: bool,
}

impl SessionReceipt {
    /// A receipt that says nothing yet.
    #[must_use]
    pub fn new(session: SessionId) -> Self {
        Self { session, tracks: Vec::new(), started: false, ended: false }
    }

    /// Adds what was done later for the same session.
    pub fn absorb(&mut self, later: Self) {
        self.started |= later.started;
        self.ended |= later.ended;
        for track in later.tracks {
            match self.tracks.iter_mut().find(|known| known.source == track.source) {
                Some(known) => known.absorb(track),
                None => self.tracks.push(track),
            }
        }
    }
}

/// Which sessions to list. All parts are combined with AND.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionFilter {
    /// Only sessions of this user.
    pub user_id: Option<String>,
    /// Only sessions of users with this e-mail address, in lower case.
    pub email: Option<String>,
    /// Only sessions that started at this time or later.
    pub started_after: Option<DateTime<Utc>>,
    /// Only sessions that started before this time.
    pub started_before: Option<DateTime<Utc>>,
}

/// What an erasure removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Number of sessions.
    pub sessions: i64,
    /// Number of actions.
    pub actions: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_carries_its_start_and_sorts_by_it() {
        let early = DateTime::from_timestamp_millis(1_793_491_200_000).expect("in range");
        let late = DateTime::from_timestamp_millis(1_793_491_200_001).expect("in range");
        let (first, second) = (SessionId::mint(early), SessionId::mint(late));
        assert_eq!((first.started_at(), second.started_at()), (early, late));
        assert!(first < second);
        assert_eq!(first.to_string().parse(), Ok(first));
    }

    #[test]
    fn only_the_canonical_form_of_a_version_7_uuid_is_a_session_id() {
        let id = SessionId::mint(DateTime::UNIX_EPOCH).to_string();
        let v4 = "4fd8ae04-9ad3-4f19-a5ae-2f5a4a1b9d0e";
        for wrong in ["", "x", v4, &id.to_uppercase(), &id.replace('-', ""), &format!("{{{id}}}"), &format!("{id} ")] {
            if wrong != id {
                assert_eq!(wrong.parse::<SessionId>(), Err(NotASessionId), "{wrong}");
            }
        }
    }

    #[test]
    fn digests_tell_apart_what_is_split_differently() {
        let one = ContentDigest::of(b"t", "ab", "c", "");
        let two = ContentDigest::of(b"t", "a", "bc", "");
        assert!(one != two);
    }
}
