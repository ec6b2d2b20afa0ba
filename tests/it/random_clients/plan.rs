//! What the clients of one run are to do. A plan follows from its seed alone. Where it says "next" or "back", the client
//! works out the seqs from what is acknowledged when it gets there.

use std::fmt;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// How many operations a plan has.
const OPERATIONS: usize = 150;

/// The sessions of a plan. Those of one user are erased together.
pub const SESSIONS: usize = 5;

/// Who a plan's sessions belong to, by number of the session: two have no user, two share one.
pub const USERS: [Option<&str>; SESSIONS] = [None, Some("ada"), Some("ada"), Some("bob"), None];

/// The session whose id the service mints; the senders bring the others'.
pub const MINTED: usize = 4;

/// The tracks whose seqs the senders give.
pub const SOURCES: [&str; 3] = ["main", "web", "worker/1"];

/// The track whose seqs the service gives.
pub const NUMBERED: &str = "numbered";

/// How many clients carry out a plan at once.
pub const CLIENTS: usize = 4;

/// What to do, in which order each client does it, and where.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// How many servers share the database.
    pub servers: usize,
    pub operations: Vec<Operation>,
}

/// One step of one client.
#[derive(Clone, Debug)]
pub struct Operation {
    pub client: usize,
    pub server: usize,
    pub session: usize,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Start,
    Upload(Upload),
    End { last_seqs: LastSeqs },
    DeleteSession,
    DeleteUser,
    Play(Play),
    Follow,
    Restart,
}

/// Batches sent on one stream.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Index into [`SOURCES`]; one more is [`NUMBERED`].
    pub source: usize,
    pub batches: Vec<Batch>,
    /// Starts the session on the same stream first, and names it no more.
    pub start_first: bool,
    /// Asks for the cursor first, and goes on from there instead of from the last receipt seen.
    pub ask: bool,
    /// By StreamActions; otherwise by RecordActions.
    pub streaming: bool,
    pub cut: Option<Cut>,
}

#[derive(Clone, Copy, Debug)]
pub struct Batch {
    pub place: Place,
    pub count: i64,
}

/// Where a batch begins.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// After the batch before it on the stream, or after the cursor.
    Next,
    /// So many seqs before that: some or all of it is stored already.
    Back(i64),
    /// So many seqs after that: leaves a gap, or is out of order.
    Ahead(i64),
    /// Where something is stored already for sure, with other content.
    Conflicting,
}

/// How an upload is broken off.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// After so many receipts.
    pub after: usize,
    /// The connection with the stream, not the stream alone.
    pub connection: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum LastSeqs {
    Absent,
    AsAcknowledged,
    Wrong,
}

#[derive(Clone, Copy, Debug)]
pub struct Play {
    /// Stops after so many pages, and goes on from the cursor.
    pub stop_after: Option<usize>,
    /// At speed 1,000 with pauses cut to a millisecond; otherwise as fast as it is read.
    pub paced: bool,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let servers = rng.random_range(1..=2);
        let mut operations: Vec<_> = (0..SESSIONS)
            .filter(|_| rng.random_bool(0.8))
            .map(|session| Operation { client: session % CLIENTS, server: 0, session, kind: Kind::Start })
            .collect();
        while operations.len() < OPERATIONS {
            // What is erased stays erased: not before there is something to lose.
            let may_erase = operations.len() > OPERATIONS / 3;
            operations.push(Operation {
                client: rng.random_range(0..CLIENTS),
                server: rng.random_range(0..servers),
                session: rng.random_range(0..SESSIONS),
                kind: kind(&mut rng, may_erase),
            });
        }
        Self { seed, servers, operations }
    }
}

fn kind(rng: &mut StdRng, may_erase: bool) -> Kind {
    match rng.random_range(0..200) {
        140..165 => Kind::Play(Play {
            stop_after: rng.random_bool(0.6).then(|| rng.random_range(0..4)),
            paced: rng.random_bool(0.2),
        }),
        165..177 => Kind::Start,
        177..187 => Kind::End {
            last_seqs: [LastSeqs::Absent, LastSeqs::AsAcknowledged, LastSeqs::Wrong, LastSeqs::Wrong]
                [rng.random_range(0..4)],
        },
        187..193 => Kind::Follow,
        193..196 => Kind::Restart,
        196..199 if may_erase => Kind::DeleteSession,
        199 if may_erase => Kind::DeleteUser,
        _ => Kind::Upload(upload(rng)),
    }
}

fn upload(rng: &mut StdRng) -> Upload {
    let batches = (0..rng.random_range(1..=4)).map(|_| Batch {
        place: match rng.random_range(0..20) {
            0..12 => Place::Next,
            12..16 => Place::Back(rng.random_range(1..60)),
            16..18 => Place::Ahead(rng.random_range(1..30)),
            _ => Place::Conflicting,
        },
        count: if rng.random_bool(0.1) { 0 } else { rng.random_range(1..=40) },
    });
    Upload {
        batches: batches.collect(),
        source: rng.random_range(0..=SOURCES.len()),
        start_first: rng.random_bool(0.2),
        ask: rng.random_bool(0.3),
        streaming: rng.random_bool(0.7),
        cut: rng.random_bool(0.15).then(|| Cut { after: rng.random_range(0..4), connection: rng.random_bool(0.4) }),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan of seed {} with {} server(s):", self.seed, self.servers)?;
        for Operation { client, server, session, kind } in &self.operations {
            match kind {
                Kind::Upload(upload) => writeln!(f, "client {client}, server {server}, session {session}: {upload}")?,
                other => writeln!(f, "client {client}, server {server}, session {session}: {other:?}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upload to {}", SOURCES.get(self.source).unwrap_or(&NUMBERED))?;
        for (is_so, word) in [(self.start_first, "start"), (self.ask, "ask"), (self.streaming, "stream")] {
            write!(f, "{}", if is_so { format!(", {word}") } else { String::new() })?;
        }
        for Batch { place, count } in &self.batches {
            write!(f, ", {count} {place:?}")?;
        }
        self.cut.map_or(Ok(()), |cut| write!(f, ", {cut:?}"))
    }
}
