//! What the senders send: it all follows from a seed, so that whatever is stored can be told to be right.

use std::collections::HashMap;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use reel::{
    model::SessionId,
    proto::{Action, SessionStart},
};

use crate::{
    harness::{NOON_MS, user},
    random_clients::content::Content,
};

/// The sources of a session's tracks. The first is the one that need not be named.
pub const TRACKS: [&str; 2] = ["main", "worker"];

/// The most actions that a track has.
const LONGEST: i64 = 400;

const DAY_MS: i64 = 24 * 3_600_000;

/// Which session: whose, and the how-manieth of that sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub sender: usize,
    pub number: usize,
}

impl Place {
    /// The session's id. They lie in several days, and so in several partitions.
    pub fn session(self) -> String {
        let started_ms = NOON_MS - i64::try_from(self.number % 3).unwrap() * DAY_MS;
        let mut own = [0; 10];
        own[8] = u8::try_from(self.sender).unwrap();
        own[4..8].copy_from_slice(&u32::try_from(self.number).unwrap().to_be_bytes());
        SessionId::from_parts(chrono::DateTime::from_timestamp_millis(started_ms).unwrap(), own).to_string()
    }

    pub fn start(self) -> SessionStart {
        let attributes = [("number".to_owned(), self.number.to_string())].into();
        SessionStart { user: Some(user(&format!("user-{}", self.sender), "")), attributes, ..Default::default() }
    }

    fn content_number(self) -> usize {
        self.sender * 1_000_000 + self.number
    }
}

/// Everything that is sent, the same at every run with the same seed.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    seed: u64,
    sessions_end: bool,
}

impl Script {
    pub fn new(seed: u64) -> Self {
        Self { seed, sessions_end: true }
    }

    /// With sessions that go on for ever.
    pub fn of_endless_sessions(seed: u64) -> Self {
        Self { seed, sessions_end: false }
    }

    /// What chance decides about a sender, of which the content does not depend.
    pub fn chances(self, sender: usize) -> StdRng {
        StdRng::seed_from_u64(self.seed.rotate_left(32) ^ sender as u64)
    }

    /// How many actions each track has in the end.
    pub fn counts(self, place: Place) -> [i64; TRACKS.len()] {
        if !self.sessions_end {
            return [i64::MAX; _];
        }
        let mut rng = StdRng::seed_from_u64(self.seed ^ place.content_number() as u64);
        // Most sessions are short.
        [(); TRACKS.len()]
            .map(|()| if rng.random_bool(0.7) { rng.random_range(0..40) } else { rng.random_range(0..=LONGEST) })
    }

    /// An action as it is sent.
    pub fn action(self, place: Place, track: usize, seq: i64) -> Action {
        self.content(place, track, seq).action
    }

    /// What is sent under this seq. Never something that has to be rejected.
    fn content(self, place: Place, track: usize, seq: i64) -> Content {
        let seq = u64::try_from(seq).unwrap();
        (seq..)
            .step_by(1_000_000_000)
            .map(|number| Content::new(self.seed, place.content_number(), track, number))
            .find(|content| content.fault.is_none())
            .unwrap()
    }
}

/// Checks that these are the first actions of each track, each once and as it was sent. Gives how many of each track.
pub fn check_content(script: Script, place: Place, played: &[Action]) -> [i64; TRACKS.len()] {
    let mut seqs: HashMap<usize, Vec<i64>> = HashMap::new();
    for action in played {
        let track = TRACKS.iter().position(|source| *source == action.source).expect("a track that was sent");
        seqs.entry(track).or_default().push(action.seq);
        assert!(script.content(place, track, action.seq).is_stored_as(action), "{place:?}, {action:?}");
    }
    let mut counts = [0; TRACKS.len()];
    for (track, mut seqs) in seqs {
        counts[track] = i64::try_from(seqs.len()).unwrap();
        seqs.sort_unstable();
        assert_eq!(seqs, (1..=counts[track]).collect::<Vec<_>>(), "{place:?}, {}", TRACKS[track]);
    }
    counts
}
