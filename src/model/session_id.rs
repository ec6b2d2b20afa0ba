//! The ids of sessions.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use rand::Rng as _;
use uuid::{Uuid, Variant};

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

    /// The least of all ids, of whatever version, whose time part is this time or later, to the millisecond that ids have.
    #[must_use]
    pub fn least_at(time: DateTime<Utc>) -> Uuid {
        let micros = time.timestamp_micros();
        let millis = micros.div_euclid(1_000) + i64::from(micros.rem_euclid(1_000) > 0);
        Uuid::from_u128(u128::from(millis.max(0).cast_unsigned()) << 80)
    }

    /// The least id that is greater, of whatever version. None after the last.
    #[must_use]
    pub fn successor(self) -> Option<Self> {
        self.0.as_u128().checked_add(1).map(|next| Self(Uuid::from_u128(next)))
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
    fn the_least_id_at_a_time_is_between_the_sessions_before_and_those_from_then_on() {
        let millis = |millis| DateTime::from_timestamp_millis(millis).expect("in range");
        let before = SessionId::from_parts(millis(999), [255; 10]).as_uuid();
        let from_then_on = SessionId::from_parts(millis(1_000), [0; 10]).as_uuid();
        let least = SessionId::least_at(millis(1_000));
        assert!(before < least && least <= from_then_on);
        // A session that starts at 1.000 s does not start at 1.000001 s or later.
        assert!(from_then_on < SessionId::least_at(millis(1_000) + chrono::TimeDelta::microseconds(1)));
        assert_eq!(SessionId::least_at(millis(-1)), Uuid::nil());
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
}
