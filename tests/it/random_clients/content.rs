//! What the clients send. The content of an action follows from the seed and the action's place, so that any client may send
//! any of them, and whatever is stored can be told to be right without a record of who sent it.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use reel::proto::{Action, RejectionReason};

use crate::harness::{NOON_MS, timestamp};

/// The type of what stands in the place of an action that was rejected.
pub const REJECTED: &str = "reel.rejected";

/// An action as it is sent, and why it has to be rejected, if it has to.
pub struct Content {
    pub action: Action,
    pub fault: Option<RejectionReason>,
}

impl Content {
    /// The action at this place: `place` is its seq, or what else tells it from the others of the track.
    pub fn new(seed: u64, session: usize, source: usize, place: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ mix(session as u64 + 1, source as u64 + 1, place));
        let step = i64::try_from(place % 10_000).unwrap();
        let mut action = Action {
            timestamp: Some(timestamp(NOON_MS + time_ms(&mut rng, step))),
            r#type: ["click", "input", "navigation", "error", "rrweb"][rng.random_range(0..5)].to_owned(),
            target: ["Create Post", "", "/posts/new", "Grüße 🎬", "a\tb\n'\"\\"][rng.random_range(0..5)].to_owned(),
            data: data(&mut rng, place),
            ..Default::default()
        };
        // Finer than what is stored.
        action.timestamp.as_mut().unwrap().nanos += rng.random_range(0..1_000_000);
        let fault = rng.random_bool(0.08).then(|| spoil(&mut action, &mut rng));
        Self { action, fault }
    }

    /// Another action for the same place.
    pub fn conflicting(mut self) -> Self {
        self.action.target.push('!');
        self
    }

    /// Whether this is what is stored after it was sent.
    pub fn is_stored_as(&self, stored: &Action) -> bool {
        let Some(fault) = self.fault else {
            let mut sent = self.action.clone();
            let nanos = &mut sent.timestamp.as_mut().unwrap().nanos;
            *nanos -= *nanos % 1_000;
            return (sent.timestamp, &sent.r#type, &sent.target, &sent.data)
                == (stored.timestamp, &stored.r#type, &stored.target, &stored.data);
        };
        let reason = fault.as_str_name().trim_start_matches("REJECTION_REASON_");
        stored.r#type == REJECTED && stored.data.contains(&format!("\"reason\":\"{reason}\""))
    }
}

/// Mostly forward, in steps of a second, often out of step and sometimes far back.
fn time_ms(rng: &mut StdRng, step: i64) -> i64 {
    let off = match rng.random_range(0..20) {
        0 => -600_000,
        1..6 => -3_000,
        _ => 0,
    };
    // Some share their time with their neighbours.
    (step - step % rng.random_range(1..3)) * 1_000 + off
}

fn data(rng: &mut StdRng, place: u64) -> String {
    match rng.random_range(0..6) {
        0 => String::new(),
        1 => format!(r#"{{ "a":1, "a" : {place},  "nul":"\u0000", "lone":"\ud800" }}"#),
        2 => format!("[1e400, -0.0, {place}]"),
        3 => format!(r#"{{"text":"{}"}}"#, "ö".repeat(rng.random_range(0..2_000))),
        _ => format!(r#"{{"place":{place}}}"#),
    }
}

/// Makes an action one that cannot be stored, and says why it cannot.
fn spoil(action: &mut Action, rng: &mut StdRng) -> RejectionReason {
    match rng.random_range(0..7) {
        0 => {
            action.timestamp = None;
            RejectionReason::InvalidTimestamp
        }
        1 => {
            action.timestamp = Some(prost_types::Timestamp { seconds: -1, nanos: 0 });
            RejectionReason::InvalidTimestamp
        }
        2 => {
            action.timestamp = Some(prost_types::Timestamp { seconds: 1, nanos: -1 });
            RejectionReason::InvalidTimestamp
        }
        3 => {
            "reel.mine".clone_into(&mut action.r#type);
            RejectionReason::InvalidType
        }
        4 => {
            action.r#type.clear();
            RejectionReason::InvalidType
        }
        5 => {
            action.target.push('\0');
            RejectionReason::InvalidTarget
        }
        _ => {
            action.data.push_str("{,");
            RejectionReason::InvalidData
        }
    }
}

/// Spreads three small numbers over 64 bits (the finalizer of splitmix64).
fn mix(one: u64, two: u64, three: u64) -> u64 {
    let mut bits = one.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ two.rotate_left(24) ^ three.rotate_left(40);
    for _ in 0..2 {
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
    }
    bits
}
