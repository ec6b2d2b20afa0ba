//! Where a playback stands, and the opaque text that takes it up again.
//!
//! A playback goes over the session in passes. A pass plays, in order of time, the actions that were committed when it began
//! and not when the pass before began: for each track, the seqs above `low` up to `high`. Seqs have no gaps, so nothing is
//! played twice and nothing is left out, however late it arrives and whatever its timestamp.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use prost::Message;
use sha2::{Digest as _, Sha256};

use crate::{
    error::{Error, Result},
    model::{LATEST_TIME, Position, SessionId, Track},
    store::SeqWindow,
};

/// The seqs of each track, by its number, that a pass plays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Played by the passes before.
    pub low: BTreeMap<i16, i64>,
    /// The last ones of this pass.
    pub high: BTreeMap<i16, i64>,
}

impl Pass {
    /// The pass over everything that is committed now.
    #[must_use]
    pub fn first(tracks: &[Track]) -> Self {
        Self { low: BTreeMap::new(), high: last_seqs(tracks) }
    }

    /// The pass over what has been committed since this one began.
    #[must_use]
    pub fn next(self, tracks: &[Track]) -> Self {
        Self { low: self.high, high: last_seqs(tracks) }
    }

    /// The pass as far as the session has these tracks: what comes from outside may name any number of others.
    #[must_use]
    pub fn within(self, tracks: &[Track]) -> Self {
        let last_seqs = last_seqs(tracks);
        let clip = |seqs: BTreeMap<i16, i64>| {
            let known = seqs.into_iter().filter_map(|(track, seq)| Some((track, seq.min(*last_seqs.get(&track)?))));
            known.collect()
        };
        Self { low: clip(self.low), high: clip(self.high) }
    }

    /// The pass with nothing left to play.
    #[must_use]
    pub fn over(self) -> Self {
        Self { low: self.high.clone(), high: self.high }
    }

    /// How many actions it plays, all filters aside.
    #[must_use]
    pub fn action_count(&self) -> i64 {
        let counts = self.high.iter().map(|(track, high)| high.saturating_sub(self.low_of(*track)));
        counts.fold(0, i64::saturating_add)
    }

    /// What it reads of the tracks that `wanted` accepts.
    #[must_use]
    pub fn windows(&self, wanted: impl Fn(i16) -> bool) -> Vec<SeqWindow> {
        let windows =
            self.high.iter().map(|(track, high)| SeqWindow { track: *track, above: self.low_of(*track), up_to: *high });
        windows.filter(|window| window.above < window.up_to && wanted(window.track)).collect()
    }

    fn low_of(&self, track: i16) -> i64 {
        self.low.get(&track).copied().unwrap_or(0)
    }
}

fn last_seqs(tracks: &[Track]) -> BTreeMap<i16, i64> {
    tracks.iter().map(|track| (track.number, track.last_seq)).collect()
}

/// Where a playback stands: in which pass, and after which action of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The session.
    pub session: SessionId,
    /// The pass.
    pub pass: Pass,
    /// The last action played in it. None before its first.
    pub position: Option<Position>,
    /// The time before which nothing is played, in this pass and in later ones.
    pub from: Option<DateTime<Utc>>,
}

impl Cursor {
    /// Before the first action at this time, in a playback of what is committed now.
    #[must_use]
    pub fn at(session: SessionId, tracks: &[Track], time: DateTime<Utc>) -> Self {
        Self { session, pass: Pass::first(tracks), position: None, from: Some(time) }
    }
}

/// The layout of the text, as a private protobuf message.
#[derive(Clone, PartialEq, Message)]
struct Layout {
    #[prost(btree_map = "int32, int64", tag = "1")]
    low: BTreeMap<i32, i64>,
    #[prost(btree_map = "int32, int64", tag = "2")]
    high: BTreeMap<i32, i64>,
    #[prost(message, optional, tag = "3")]
    position: Option<PositionLayout>,
    #[prost(int64, optional, tag = "4")]
    from_micros: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct PositionLayout {
    #[prost(int64, tag = "1")]
    timestamp_micros: i64,
    #[prost(int32, tag = "2")]
    track: i32,
    #[prost(int64, tag = "3")]
    seq: i64,
}

/// Bytes of the digest that binds the text to its session.
const BINDING_BYTES: usize = 8;

impl Cursor {
    /// The text that stands for this cursor.
    #[must_use]
    pub fn encode(&self) -> String {
        let widen = |seqs: &BTreeMap<i16, i64>| seqs.iter().map(|(track, seq)| (i32::from(*track), *seq)).collect();
        let layout = Layout {
            low: widen(&self.pass.low),
            high: widen(&self.pass.high),
            position: self.position.map(|position| PositionLayout {
                timestamp_micros: position.timestamp.timestamp_micros(),
                track: i32::from(position.track),
                seq: position.seq,
            }),
            from_micros: self.from.map(|from| from.timestamp_micros()),
        };
        let body = layout.encode_to_vec();
        BASE64_URL_SAFE_NO_PAD.encode([binding(self.session, &body).as_slice(), &body].concat())
    }

    /// The cursor that a text stands for, if it is one of this session.
    pub fn decode(text: &str, session: SessionId) -> Result<Self> {
        Self::try_decode(text, session).ok_or_else(|| Error::invalid("cursor", "not a cursor of this session"))
    }

    fn try_decode(text: &str, session: SessionId) -> Option<Self> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let (bound, body) = bytes.split_at_checked(BINDING_BYTES)?;
        if bound != binding(session, body) {
            return None;
        }
        let layout = Layout::decode(body).ok()?;
        if !is_possible(&layout) {
            return None;
        }
        let narrow = |seqs: BTreeMap<i32, i64>| {
            seqs.into_iter().map(|(track, seq)| Some((i16::try_from(track).ok()?, seq))).collect::<Option<_>>()
        };
        let position = match layout.position {
            None => None,
            Some(position) => Some(Position {
                timestamp: DateTime::from_timestamp_micros(position.timestamp_micros)?,
                track: i16::try_from(position.track).ok()?,
                seq: position.seq,
            }),
        };
        let from = match layout.from_micros {
            None => None,
            Some(micros) => Some(DateTime::from_timestamp_micros(micros)?),
        };
        Some(Self { session, pass: Pass { low: narrow(layout.low)?, high: narrow(layout.high)? }, position, from })
    }
}

/// Whether a playback can stand there. The binding keeps accidents out; whoever reads this file can make one up.
fn is_possible(layout: &Layout) -> bool {
    let is_counted = layout.low.values().chain(layout.high.values()).all(|seq| *seq >= 0);
    let is_numbered = layout.low.keys().chain(layout.high.keys()).all(|track| *track >= 0);
    let times = DateTime::UNIX_EPOCH.timestamp_micros()..=LATEST_TIME.timestamp_micros();
    let mut micros = layout.position.iter().map(|position| position.timestamp_micros).chain(layout.from_micros);
    let is_in_time = micros.all(|micros| times.contains(&micros));
    is_counted && is_numbered && is_in_time
}

fn binding(session: SessionId, body: &[u8]) -> [u8; BINDING_BYTES] {
    let hash = Sha256::new().chain_update(session.as_uuid().as_bytes()).chain_update(body).finalize();
    let mut short = [0; BINDING_BYTES];
    short.copy_from_slice(&hash[..BINDING_BYTES]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_its_text_and_is_good_for_its_session_only() {
        let session = SessionId::mint(DateTime::UNIX_EPOCH);
        let timestamp = DateTime::from_timestamp_micros(1_793_491_200_000_123).expect("in range");
        let cursor = Cursor {
            session,
            pass: Pass { low: [(0, 7)].into(), high: [(0, 9), (63, 1)].into() },
            position: Some(Position { timestamp, track: 63, seq: 1 }),
            from: Some(timestamp),
        };
        let text = cursor.encode();
        assert_eq!(Cursor::decode(&text, session), Ok(cursor));
        assert!(Cursor::decode(&text, SessionId::mint(DateTime::UNIX_EPOCH)).is_err());
        for forged in ["", "x", &text[1..], &format!("{text}AAAA"), "AAAAAAAAAAAAAAAA"] {
            assert!(Cursor::decode(forged, session).is_err(), "{forged}");
        }
    }
}
