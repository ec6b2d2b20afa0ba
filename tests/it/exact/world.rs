//! What was recorded, as a plain model, and recording it.

use std::collections::{BTreeMap, HashMap};

use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use reel::proto::{
    self, Action, DeleteSessionRequest, DeleteUserRequest, Pin, SessionEnd, SessionStart, UpdateSessionRequest,
};

use crate::harness::{NOON_MS, Reel, end, session_id, start, user};

/// The types of actions.
pub const KINDS: [&str; 5] = ["click", "click", "error", "navigation", "input"];

/// The targets of actions, some of which are part of others, or would mean something else in SQL.
pub const TARGETS: [&str; 9] =
    ["Create Post", "Create", "create post", "100%", "100 percent", "a_b", "axb", "it's \"so\" \\ 🎬", ""];

/// Keys and values of attributes.
pub const KEYS: [&str; 3] = ["browser", "it's", "absent"];
pub const VALUES: [&str; 3] = ["Firefox", "Chrome's \"best\"", ""];

/// Users and their e-mail addresses.
pub const USERS: [(&str, &str); 6] = [
    ("ada", "ada@example.com"),
    ("bob", "bob@example.com"),
    ("bob 2", "bob@example.com"),
    ("eve_", "100%_@example.com"),
    ("odysseus", "ΟΔΥΣΣΕΥΣ@example.com"),
    ("nobody's", ""),
];

/// Sources of tracks.
pub const SOURCES: [&str; 2] = ["main", "backend"];

pub const DAY_MS: i64 = 86_400_000;

/// An action, as it is stored.
#[derive(Clone, Debug)]
pub struct Act {
    pub micros: i64,
    pub track: i16,
    pub seq: i64,
    pub source: &'static str,
    pub kind: &'static str,
    pub target: &'static str,
    pub data: String,
}

/// A session, as it is stored.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    pub id: String,
    pub start_ms: i64,
    pub user: Option<&'static str>,
    pub attributes: HashMap<String, String>,
    pub is_ended: bool,
    pub is_pinned: bool,
    /// Sources in the order of their numbers, and how many actions each has sent.
    pub sources: Vec<(&'static str, i64)>,
    /// In the order of playback.
    pub acts: Vec<Act>,
}

/// Everything that was recorded.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub sessions: BTreeMap<String, Recorded>,
}

impl World {
    /// Sessions of some days, some at their very beginning or end, without any action.
    pub fn new(rng: &mut StdRng) -> Self {
        let mut world = Self::default();
        for _ in 0..rng.random_range(40..70) {
            let day = (NOON_MS / DAY_MS + rng.random_range(0..4)) * DAY_MS;
            let start_ms = match rng.random_range(0..6) {
                0 => day,
                1 => day - 1,
                _ => day + rng.random_range(0..DAY_MS),
            };
            let id = session_id(start_ms);
            let user = if rng.random_bool(0.8) { Some(USERS.choose(rng).unwrap().0) } else { None };
            let mut attributes = HashMap::new();
            for key in &KEYS[..2] {
                if rng.random_bool(0.6) {
                    attributes.insert((*key).to_owned(), (*VALUES.choose(rng).unwrap()).to_owned());
                }
            }
            let recorded = Recorded { id: id.clone(), start_ms, user, attributes, ..Recorded::default() };
            world.sessions.insert(id, recorded);
        }
        world
    }

    /// Starts all sessions and records into most.
    pub async fn record(&mut self, reel: &Reel, rng: &mut StdRng) {
        for recorded in self.sessions.values_mut() {
            let email = |id: &str| USERS.iter().find(|(user, _)| *user == id).unwrap().1;
            let begin = SessionStart {
                user: recorded.user.map(|id| user(id, email(id))),
                attributes: recorded.attributes.clone(),
                ..SessionStart::default()
            };
            reel.record(vec![start(&recorded.id, begin)]).await.unwrap();
            if rng.random_bool(0.9) {
                recorded.go_on(reel, rng).await;
            }
            if rng.random_bool(0.3) {
                reel.record(vec![end(&recorded.id, SessionEnd::default())]).await.unwrap();
                recorded.is_ended = true;
            }
        }
    }

    /// Goes on with some sessions, changes some, and erases some and a user.
    pub async fn change(&mut self, reel: &Reel, rng: &mut StdRng) {
        let ids: Vec<_> = self.sessions.keys().cloned().collect();
        for id in ids {
            let recorded = self.sessions.get_mut(&id).unwrap();
            match rng.random_range(0..6) {
                0 | 1 => recorded.go_on(reel, rng).await,
                2 => recorded.update(reel, rng).await,
                3 => {
                    self.sessions.remove(&id);
                    let request = DeleteSessionRequest { session_id: id };
                    reel.sessions().delete_session(request).await.unwrap();
                }
                _ => {}
            }
        }
        let (gone, _) = USERS.choose(rng).unwrap();
        let request = DeleteUserRequest { user_id: (*gone).to_owned() };
        let known = self.sessions.values().any(|recorded| recorded.user == Some(gone));
        let erased = reel.users().delete_user(request).await;
        assert!(erased.is_ok() || !known, "{erased:?}");
        self.sessions.retain(|_, recorded| recorded.user != Some(gone));
    }
}

impl Recorded {
    /// Records some more actions, on one or two tracks.
    pub async fn go_on(&mut self, reel: &Reel, rng: &mut StdRng) {
        for (source, actions) in self.more(rng) {
            let sent = self.sources.iter().find(|(known, _)| *known == source).map_or(0, |(_, sent)| *sent);
            let receipt = reel.append(&self.id, source, sent + 1, actions.clone()).await.unwrap();
            assert_eq!(usize::try_from(receipt.accepted_count).unwrap(), actions.len());
            self.store(source, actions);
        }
    }

    /// What might be recorded next.
    pub fn more(&self, rng: &mut StdRng) -> Vec<(&'static str, Vec<Action>)> {
        let mut sources: Vec<_> = SOURCES.into_iter().filter(|_| rng.random_bool(0.7)).collect();
        if sources.is_empty() {
            sources.push(SOURCES[0]);
        }
        sources.into_iter().map(|source| (source, self.actions(rng))).collect()
    }

    fn actions(&self, rng: &mut StdRng) -> Vec<Action> {
        let mut at_ms = self.start_ms + rng.random_range(-2_000..60_000);
        let mut actions = Vec::new();
        for _ in 0..rng.random_range(1..12) {
            at_ms += match rng.random_range(0..8) {
                0 => 0,
                1 => -5_000,
                2 => 10_000,
                3 => 10_001,
                4 => rng.random_range(0..100_000),
                _ => rng.random_range(0..700),
            };
            let kind = KINDS.choose(rng).unwrap();
            let target = TARGETS.choose(rng).unwrap();
            let times = if *kind == "click" && rng.random_bool(0.2) { rng.random_range(2..5) } else { 1 };
            for _ in 0..times {
                at_ms += if times > 1 { rng.random_range(0..600) } else { 0 };
                let mut time = crate::harness::timestamp(at_ms);
                time.nanos += rng.random_range(0..3) * 1_000;
                actions.push(Action {
                    timestamp: Some(time),
                    r#type: (*kind).to_owned(),
                    target: (*target).to_owned(),
                    data: data(rng),
                    ..Action::default()
                });
            }
        }
        actions
    }

    /// Takes what is stored into the model.
    pub fn store(&mut self, source: &'static str, actions: Vec<Action>) {
        let track = self.sources.iter().position(|(known, _)| *known == source).unwrap_or_else(|| {
            self.sources.push((source, 0));
            self.sources.len() - 1
        });
        let sent = &mut self.sources[track].1;
        let first_seq = *sent + 1;
        *sent += i64::try_from(actions.len()).unwrap();
        let track = i16::try_from(track).unwrap();
        for (seq, action) in (first_seq..).zip(actions) {
            let time = action.timestamp.unwrap();
            let known = |all: &[&'static str], text: &str| *all.iter().find(|known| **known == text).unwrap();
            self.acts.push(Act {
                micros: time.seconds * 1_000_000 + i64::from(time.nanos) / 1_000,
                track,
                seq,
                source,
                kind: known(&KINDS, &action.r#type),
                target: known(&TARGETS, &action.target),
                data: action.data,
            });
        }
        self.acts.sort_by_key(|act| (act.micros, act.track, act.seq));
    }

    async fn update(&mut self, reel: &Reel, rng: &mut StdRng) {
        let (key, value) = (KEYS[0].to_owned(), (*VALUES.choose(rng).unwrap()).to_owned());
        self.attributes.insert(key.clone(), value.clone());
        let until = rng.random_bool(0.7).then(|| {
            // Long past, or a day ahead of the test's clock.
            let past = rng.random_bool(0.3);
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            let seconds = if past { 1_000_000 } else { i64::try_from(now).unwrap() + 86_400 };
            (past, prost_types::Timestamp { seconds, nanos: 0 })
        });
        self.is_pinned = until.as_ref().is_some_and(|(past, _)| !past);
        let pin = Pin { expire_time: until.map(|(_, until)| until), reason: String::new() };
        let request = UpdateSessionRequest {
            session_id: self.id.clone(),
            attributes: [(key, value)].into(),
            pin: Some(pin),
            ..UpdateSessionRequest::default()
        };
        reel.sessions().update_session(request).await.unwrap();
    }

    pub fn email(&self) -> &'static str {
        let user = self.user.and_then(|id| USERS.iter().find(|(user, _)| *user == id));
        user.map_or("", |(_, email)| *email)
    }

    pub fn duration_ms(&self) -> i64 {
        self.acts.last().map_or(0, |act| (act.micros - self.start_ms * 1_000).div_euclid(1_000).max(0))
    }

    pub fn errors(&self) -> i64 {
        i64::try_from(self.acts.iter().filter(|act| act.kind == "error").count()).unwrap()
    }

    pub fn active_ms(&self) -> i64 {
        let pauses = self.acts.windows(2).map(|pair| pair[1].micros - pair[0].micros);
        pauses.filter(|pause| *pause <= 10_000_000).sum::<i64>() / 1_000
    }

    /// Clicks on one target of which each is the third within a second, where the one before is not.
    pub fn rage_clicks(&self) -> i64 {
        let mut rage = 0;
        for target in TARGETS.into_iter().filter(|target| !target.is_empty()) {
            let clicks: Vec<i64> = self
                .acts
                .iter()
                .filter(|act| act.kind == "click" && act.target == target)
                .map(|act| act.micros)
                .collect();
            let is_third = |click: usize| click >= 2 && clicks[click] - clicks[click - 2] <= 1_000_000;
            let begins = (0..clicks.len()).filter(|click| is_third(*click) && !(*click > 0 && is_third(*click - 1)));
            rage += i64::try_from(begins.count()).unwrap();
        }
        rage
    }

    pub fn is_dead_end(&self) -> bool {
        self.acts.last().is_some_and(|act| act.kind == "error")
    }

    pub fn last_micros(&self) -> Option<i64> {
        self.acts.last().map(|act| act.micros)
    }
}

/// Half of a surrogate pair, escaped.
pub const LONE: &str = r"\ud83d";

fn data(rng: &mut StdRng) -> String {
    match rng.random_range(0..7) {
        0 => String::new(),
        // What JSON allows and no Rust text or number holds.
        1 => format!(
            r#"{{"n": {}, "s": "abc{LONE} \u0062{LONE}", "deep": {{"list": [1e999]}}}}"#,
            ["1e309", "-2e400", "1E-999"].choose(rng).unwrap()
        ),
        2 => format!("[{}, \"x\", {{\"n\": 1}}]", rng.random_range(0..3)),
        _ => format!(
            r#"{{"n": {}, "s": "{}", "deep": {{"list": [{}, "a_b"]}}, "none": null, "n": {}, "is": {}}}"#,
            rng.random_range(0..3),
            ["abc", "b", "100%"].choose(rng).unwrap(),
            rng.random_range(0..3),
            ["0", "1", "1.5", "\"1\""].choose(rng).unwrap(),
            rng.random_bool(0.5),
        ),
    }
}

/// A duration of so many milliseconds.
pub fn millis(millis: i64) -> prost_types::Duration {
    let nanos = i32::try_from(millis % 1_000 * 1_000_000).unwrap();
    prost_types::Duration { seconds: millis / 1_000, nanos }
}

pub fn duration_ms(duration: &prost_types::Duration) -> i64 {
    duration.seconds * 1_000 + i64::from(duration.nanos) / 1_000_000
}

/// The microseconds of a time.
pub fn micros(time: &prost_types::Timestamp) -> i64 {
    time.seconds * 1_000_000 + i64::from(time.nanos) / 1_000
}

/// The summary that a session must be given with.
pub fn summary(recorded: &Recorded) -> proto::SessionSummary {
    let first = recorded.acts.first().map(|act| prost_types::Timestamp {
        seconds: act.micros.div_euclid(1_000_000),
        nanos: i32::try_from(act.micros.rem_euclid(1_000_000) * 1_000).unwrap(),
    });
    proto::SessionSummary {
        first_action_time: first,
        duration: Some(millis(recorded.duration_ms())),
        active_time: Some(millis(recorded.active_ms())),
        rage_click_count: recorded.rage_clicks(),
        is_dead_end: recorded.is_dead_end(),
    }
}
