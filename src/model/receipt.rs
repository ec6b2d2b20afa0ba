//! What is told to senders.

use super::{RejectionReason, SessionId};

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
    /// Of the duplicates, those of which only a placeholder is stored.
    pub placeholder_count: i64,
    /// The first of them, at most [`TrackReceipt::MAX_REJECTIONS`], and why the placeholder stays.
    pub placeholders: Vec<Rejection>,
    /// Of the accepted, those that took the place of a placeholder.
    pub replaced_count: i64,
}

impl TrackReceipt {
    /// How many rejections, and how many placeholders, a receipt lists; the rest is only counted.
    pub const MAX_REJECTIONS: usize = 100;

    /// Counts a rejection, and lists it where there is room.
    pub fn reject(&mut self, rejection: Rejection) {
        self.rejected_count += 1;
        if self.rejections.len() < Self::MAX_REJECTIONS {
            self.rejections.push(rejection);
        }
    }

    /// Counts a placeholder that stays, and lists it where there is room.
    pub fn keep_placeholder(&mut self, reason: Rejection) {
        self.placeholder_count += 1;
        if self.placeholders.len() < Self::MAX_REJECTIONS {
            self.placeholders.push(reason);
        }
    }

    /// Adds what was done with a later batch of the same track.
    pub fn absorb(&mut self, later: Self) {
        self.committed_seq = self.committed_seq.max(later.committed_seq);
        self.accepted_count += later.accepted_count;
        self.duplicate_count += later.duplicate_count;
        self.rejected_count += later.rejected_count;
        self.placeholder_count += later.placeholder_count;
        self.replaced_count += later.replaced_count;
        for (listed, later) in [(&mut self.rejections, later.rejections), (&mut self.placeholders, later.placeholders)]
        {
            let room = Self::MAX_REJECTIONS - listed.len();
            listed.extend(later.into_iter().take(room));
        }
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
