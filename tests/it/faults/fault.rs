//! What can go wrong on a connection, and when: drawn from a seed.

use std::time::Duration;

use rand::{Rng, RngExt as _, SeedableRng as _, rngs::StdRng};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The connection is ended in good order (FIN), to both sides.
    Cut,
    /// The connection is reset (RST), to both sides.
    Reset,
    /// Whatever is sent, in any direction, is swallowed. After this long, or when the proxy heals, both sides get an RST.
    BlackHole(Duration),
    /// Nothing goes in this direction for this long.
    Stall(Duration),
    /// So many bytes go a few at a time, a millisecond apart.
    Drip { bytes: u64, at_once: usize },
}

impl Kind {
    /// Whether it is the end of the connection.
    pub fn is_fatal(self) -> bool {
        matches!(self, Self::Cut | Self::Reset | Self::BlackHole(_))
    }
}

/// Something that happens after so many bytes have gone in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub direction: Direction,
    pub after: u64,
    pub kind: Kind,
}

/// The end of a connection at the worst moment that there is: the outcome of a COMMIT is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtCommit {
    /// How many go well before.
    pub well: u32,
    /// Whether the server still gets it.
    pub is_delivered: bool,
    pub kind: Kind,
}

/// What happens on a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of their bytes.
    pub faults: Vec<Fault>,
    pub at_commit: Option<AtCommit>,
}

/// How bad it gets.
#[derive(Clone, Copy, Debug)]
pub struct Hazards {
    pub seed: u64,
    /// The share of connections that end in a black hole.
    pub black_holes: f64,
    /// The share of connections that end at a COMMIT, if they come to that.
    pub at_commits: f64,
    /// The bytes after which every connection has gone wrong, in either direction.
    pub longest: u64,
}

impl Hazards {
    /// The faults of the how-manieth connection: some that pass, and at the latest after [`Self::longest`] bytes one that does
    /// not.
    pub fn of_connection(self, number: u64) -> Plan {
        let mut rng = StdRng::seed_from_u64(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut faults = Vec::new();
        while rng.random_bool(0.3) {
            faults.push(Fault { direction: direction(&mut rng), after: self.place(&mut rng), kind: passing(&mut rng) });
        }
        let kind = self.fatal(&mut rng);
        faults.push(Fault { direction: direction(&mut rng), after: self.place(&mut rng), kind });
        for direction in [Direction::Up, Direction::Down] {
            faults.push(Fault { direction, after: self.longest, kind: Kind::Reset });
        }
        faults.sort_by_key(|fault| fault.after);
        let at_commit = rng.random_bool(self.at_commits).then(|| AtCommit {
            well: rng.random_range(0..10),
            is_delivered: rng.random(),
            kind: self.fatal(&mut rng),
        });
        Plan { faults, at_commit }
    }

    fn fatal(self, rng: &mut impl Rng) -> Kind {
        if rng.random_bool(self.black_holes) {
            Kind::BlackHole(Duration::from_millis(rng.random_range(200..3_000)))
        } else {
            [Kind::Cut, Kind::Reset][rng.random_range(0..2)]
        }
    }

    /// Anywhere, or early, where any order of magnitude is as likely as any other.
    fn place(self, rng: &mut impl Rng) -> u64 {
        // A hello has some hundred bytes.
        let below = if rng.random_bool(0.5) { 1 << rng.random_range(8..=self.longest.ilog2()) } else { self.longest };
        rng.random_range(0..below)
    }
}

fn direction(rng: &mut impl Rng) -> Direction {
    [Direction::Up, Direction::Down][rng.random_range(0..2)]
}

fn passing(rng: &mut impl Rng) -> Kind {
    if rng.random_bool(0.5) {
        Kind::Stall(Duration::from_millis(rng.random_range(10..1_000)))
    } else {
        Kind::Drip { bytes: rng.random_range(1..1_000), at_once: rng.random_range(1..8) }
    }
}
