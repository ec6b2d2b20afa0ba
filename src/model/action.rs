//! Actions, and batches of them on their way into the database.

use std::fmt;

use bytestring::ByteString;
use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};

use super::SessionId;

/// The type of the action that stands in the place of one that could not be stored.
pub const REJECTED_TYPE: &str = "reel.rejected";

/// The type of actions that count as errors.
pub const ERROR_TYPE: &str = "error";

/// The track of senders that do not name one.
pub const DEFAULT_SOURCE: &str = "main";

/// The latest time that there is: the last microsecond of the year 9999, as in protobuf's timestamps. SQLite compares times
/// as text, which holds for years of four digits.
pub const LATEST_TIME: DateTime<Utc> = match DateTime::from_timestamp(253_402_300_799, 999_999_000) {
    Some(time) => time,
    None => DateTime::<Utc>::MAX_UTC,
};

/// One thing that happened. Its texts may be parts of the message that they came in, which stays in memory as long as they.
#[derive(Clone, PartialEq, Eq)]
pub struct Action {
    /// When, with microsecond precision.
    pub timestamp: DateTime<Utc>,
    /// What kind of thing.
    pub kind: ByteString,
    /// What it was done to.
    pub target: ByteString,
    /// JSON text, byte for byte as it was sent. May be empty.
    pub data: ByteString,
}

impl Action {
    /// What tells this action's content from another's.
    #[must_use]
    pub fn digest(&self) -> ContentDigest {
        let micros = self.timestamp.timestamp_micros().to_be_bytes();
        ContentDigest::of_refused(&self.kind, &self.target, &self.data)
            .unwrap_or_else(|| ContentDigest::of(&micros, &self.kind, &self.target, &self.data))
    }

    /// Whether it stands in the place of an action that could not be stored.
    #[must_use]
    pub fn is_placeholder(&self) -> bool {
        ContentDigest::of_refused(&self.kind, &self.target, &self.data).is_some()
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
    /// About the bytes that it takes in memory and in a message.
    #[must_use]
    pub fn size(&self) -> usize {
        const FIELDS: usize = 64;
        self.action.kind.len() + self.action.target.len() + self.action.data.len() + FIELDS
    }

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

/// SHA-256 over the content of an action as it was sent, but for what was redacted. Tells a resent action from a different one under the same seq,
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

    /// Of the action that was refused, where these are the parts of what stands in its place. So it can be told from others
    /// when what was exported is imported.
    #[must_use]
    pub fn of_refused(kind: &str, target: &str, data: &str) -> Option<Self> {
        #[derive(serde::Deserialize)]
        struct Placeholder<'a> {
            #[serde(rename = "reason")]
            _reason: &'a str,
            #[serde(rename = "description")]
            _description: serde::de::IgnoredAny,
            sha256: &'a str,
        }
        if kind != REJECTED_TYPE || !target.is_empty() {
            return None;
        }
        let placeholder: Placeholder<'_> = serde_json::from_str(data).ok()?;
        Self::from_hex(placeholder.sha256)
    }

    /// Reads what [`fmt::Display`] writes.
    fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
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

impl BatchAction {
    /// What is stored of it.
    #[must_use]
    pub fn to_store(&self) -> &Action {
        match self {
            Self::Valid(action) => action,
            Self::Rejected(rejected) => &rejected.placeholder,
        }
    }

    /// Whether this is the digest of the same action, stored or refused.
    #[must_use]
    pub fn is_digested_to(&self, digest: ContentDigest) -> bool {
        match self {
            Self::Valid(action) => action.digest() == digest,
            Self::Rejected(rejected) => rejected.digest == digest || rejected.digest_as_sent == Some(digest),
        }
    }
}

/// An action that cannot be stored as it was sent.
pub struct RejectedAction {
    /// Why.
    pub reason: RejectionReason,
    /// The field at fault and what is wrong with it, without its value.
    pub description: String,
    /// Tells it from others when it is sent again: taken after redaction, as of actions that are stored.
    pub digest: ContentDigest,
    /// Taken before redaction, where that is another. Placeholders of earlier versions have it.
    pub digest_as_sent: Option<ContentDigest>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_tell_apart_what_is_split_differently() {
        let one = ContentDigest::of(b"t", "ab", "c", "");
        let two = ContentDigest::of(b"t", "a", "bc", "");
        assert!(one != two);
    }
}
