//! Realistic actions, the same for the same seed: live sessions, interleaved, whose actions arrive in batches.

use std::{fmt::Write as _, io::Write as _};

use chrono::{DateTime, TimeDelta, Utc};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use reel::{model::SessionId, proto::Action};

use super::content::content;

/// How many sessions are live at once, where nothing else matters.
pub const LIVE_SESSIONS: usize = 200;

/// What to generate.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    /// How many actions about: every sender sends as many batches.
    pub actions: usize,
    pub senders: usize,
    /// Actions of a batch.
    pub batch: usize,
    /// Sessions that are live at once, over all senders.
    pub live: usize,
    /// Actions of a session, rounded up to whole batches, after which the next one begins. None: live until the end.
    pub session: Option<usize>,
    /// When the sessions begin: at any time from the first to the second.
    pub started: (DateTime<Utc>, DateTime<Utc>),
}

/// Consecutive actions of a session.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Which of the workload's sessions.
    pub session: usize,
    pub first_seq: i64,
    pub actions: Vec<Action>,
}

/// Everything that is to be sent.
#[derive(Debug, Default)]
pub struct Workload {
    /// When each session begins.
    pub starts: Vec<DateTime<Utc>>,
    /// For each sender its batches, in order.
    pub senders: Vec<Vec<Batch>>,
}

/// A session that goes on.
struct Live {
    session: usize,
    next_seq: i64,
    time: DateTime<Utc>,
}

impl Workload {
    pub fn generate(plan: &Plan) -> Self {
        let mut random = StdRng::seed_from_u64(plan.seed);
        let mut workload = Self::default();
        let batches = plan.actions.div_ceil(plan.batch * plan.senders);
        let sessions_a_sender = plan.live.div_ceil(plan.senders).min(batches);
        for _ in 0..plan.senders {
            let mut live: Vec<_> = (0..sessions_a_sender).map(|_| workload.begin(plan, &mut random)).collect();
            let mut sent = Vec::with_capacity(batches);
            for number in 0..batches {
                // Each is heard of once before one is heard of again.
                let index = if number < live.len() { number } else { random.random_range(0..live.len()) };
                if plan.session.is_some_and(|most| live[index].next_seq > most as i64) {
                    live[index] = workload.begin(plan, &mut random);
                }
                sent.push(live[index].next_batch(&mut random, plan.batch));
            }
            workload.senders.push(sent);
        }
        workload
    }

    fn begin(&mut self, plan: &Plan, random: &mut StdRng) -> Live {
        let (first, last) = plan.started;
        let later = random.random_range(0..=(last - first).num_milliseconds());
        let time = first + TimeDelta::milliseconds(later);
        self.starts.push(time);
        Live { session: self.starts.len() - 1, next_seq: 1, time }
    }

    /// How many actions there are.
    pub fn actions(&self) -> usize {
        self.senders.iter().flatten().map(|batch| batch.actions.len()).sum()
    }

    /// New ids for all sessions, so that the same workload can be recorded again.
    pub fn mint(&self) -> Vec<SessionId> {
        self.starts.iter().map(|start| SessionId::mint(*start)).collect()
    }

    /// All batches as they would arrive if all senders were equally fast.
    pub fn in_order_of_arrival(&self) -> impl Iterator<Item = &Batch> {
        let rounds = self.senders.iter().map(Vec::len).max().unwrap_or(0);
        (0..rounds).flat_map(|round| self.senders.iter().filter_map(move |sent| sent.get(round)))
    }

    /// How many bytes its actions take as plain JSON Lines, as `reel play` prints them.
    pub fn json_lines_bytes(&self) -> usize {
        let mut bytes = 0;
        self.each_json_line(|line| bytes += line.len());
        bytes
    }

    /// How many bytes these lines take compressed with gzip, all of them together.
    pub fn gzip_bytes(&self) -> usize {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        // Writing to memory cannot fail.
        self.each_json_line(|line| drop(gzip.write_all(line.as_bytes())));
        gzip.finish().map_or(0, |bytes| bytes.len())
    }

    fn each_json_line(&self, mut take: impl FnMut(&str)) {
        let id = SessionId::mint(DateTime::UNIX_EPOCH);
        let mut line = String::new();
        for batch in self.senders.iter().flatten() {
            for (action, seq) in batch.actions.iter().zip(batch.first_seq..) {
                line.clear();
                let millis = action.timestamp.map_or(0, |time| from_proto(time).timestamp_millis());
                // Writing to a text cannot fail. Nothing that is generated needs escaping.
                let _ = writeln!(
                    line,
                    r#"{{"session":"{id}","source":"main","seq":{seq},"timestamp":{millis},"type":"{}","target":"{}","data":{}}}"#,
                    action.r#type, action.target, action.data
                );
                take(&line);
            }
        }
    }
}

impl Live {
    fn next_batch(&mut self, random: &mut StdRng, count: usize) -> Batch {
        let actions = (0..count)
            .map(|_| {
                // Things happen in bursts: a click, and at once what it sets off.
                let pause = if random.random_bool(0.7) { 20..300 } else { 300..4_000 };
                self.time += TimeDelta::milliseconds(random.random_range(pause));
                let content = content(random);
                assert!((20..=400).contains(&content.data.len()), "{} bytes of data", content.data.len());
                Action {
                    timestamp: Some(proto_time(self.time)),
                    r#type: content.kind.to_owned(),
                    target: content.target,
                    data: content.data,
                    ..Default::default()
                }
            })
            .collect();
        let first_seq = self.next_seq;
        self.next_seq += count as i64;
        Batch { session: self.session, first_seq, actions }
    }
}

pub fn proto_time(time: DateTime<Utc>) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos().cast_signed() }
}

pub fn from_proto(time: prost_types::Timestamp) -> DateTime<Utc> {
    DateTime::from_timestamp(time.seconds, time.nanos.cast_unsigned()).unwrap_or_default()
}
