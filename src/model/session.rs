//! Users, sessions and their tracks.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::{SessionId, SessionOrder, SessionPlace};

/// Why a session ended, where the sender gave no reason.
pub const DEFAULT_END_REASON: &str = "ended";

/// Why a session ended, where the idle timeout ended it.
pub const IDLE_END_REASON: &str = "idle";

/// What a session or a user is described with.
pub type Attributes = BTreeMap<String, String>;

/// Whoever sessions belong to. Empty texts mean unknown.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// The caller's own id.
    pub id: String,
    /// E-mail address in lower case.
    pub email: String,
    /// Name for people to read.
    pub name: String,
    /// What else is known.
    pub attributes: Attributes,
    /// When the service first heard of the user.
    pub created_at: DateTime<Utc>,
}

/// What a sender says at the beginning of a session.
pub struct SessionStart {
    /// The session's id, brought or minted.
    pub id: SessionId,
    /// Whoever it belongs to.
    pub user: Option<User>,
    /// What else is known of it.
    pub attributes: Attributes,
}

/// What a sender says at the end of a session.
pub struct SessionEnd {
    /// The session.
    pub id: SessionId,
    /// When it ended; the time of its last action where the sender leaves it open.
    pub ended_at: Option<DateTime<Utc>>,
    /// Why.
    pub reason: String,
    /// The last seq sent, by source.
    pub last_seqs: BTreeMap<String, i64>,
}

/// One user's visit, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its id, which carries its start.
    pub id: SessionId,
    /// Whoever it belongs to.
    pub user_id: Option<String>,
    /// When it ended. None while it is live.
    pub ended_at: Option<DateTime<Utc>>,
    /// Why it ended. None while it is live.
    pub end_reason: Option<String>,
    /// What else is known of it.
    pub attributes: Attributes,
    /// Whether it is kept, whatever its age.
    pub pin: Option<Pin>,
    /// When it goes, whatever the retention, unless it is pinned then. None where the retention decides.
    pub expires_at: Option<DateTime<Utc>>,
    /// Its tracks by number.
    pub tracks: Vec<Track>,
    /// Number of its actions, rejected ones included.
    pub action_count: i64,
    /// Number of its actions of type `error`.
    pub error_count: i64,
    /// The latest timestamp of its actions.
    pub last_action_at: Option<DateTime<Utc>>,
}

/// That a session is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Until when.
    pub until: DateTime<Utc>,
    /// Why. May be empty.
    pub reason: String,
}

/// What is to change of a session.
#[derive(Clone, Debug)]
pub struct SessionUpdate {
    /// Keys of attributes to remove, first.
    pub removed: Vec<String>,
    /// Attributes to set, then.
    pub set: Attributes,
    /// The pin to set, or that there is none any more. None leaves it as it is.
    pub pin: Option<Option<Pin>>,
    /// The expiry to set, or that the retention decides again. None leaves it as it is.
    pub expires_at: Option<Option<DateTime<Utc>>>,
}

impl Session {
    /// Its place in an order.
    #[must_use]
    pub fn place(&self, order: SessionOrder) -> SessionPlace {
        SessionPlace::of(self.id, order, self.action_count, self.error_count, self.last_action_at)
    }

    /// Whether somebody has deleted actions of it by hand. What its tracks count is what it has got, then, and not what it has.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.tracks.iter().any(Track::is_cut)
    }
}

/// One sender's numbered line of actions inside a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Track {
    /// Its number in the session: 0, 1, 2, … in the order of first batches.
    pub number: i16,
    /// Who sends it.
    pub source: String,
    /// The cursor: every seq ≤ this is committed.
    pub last_seq: i64,
    /// Number of actions stored as they were sent.
    pub accepted_count: i64,
    /// Number of actions that arrived again.
    pub duplicate_count: i64,
    /// Number of actions that were rejected.
    pub rejected_count: i64,
    /// Number of actions of type `error`.
    pub error_count: i64,
    /// The latest timestamp of its actions.
    pub last_action_at: Option<DateTime<Utc>>,
    /// Whether the index does not have it as it is.
    pub is_dirty: bool,
    /// Number of seqs under which nothing is stored any more, because somebody has deleted it by hand. None where that is not
    /// known.
    pub lost_count: Option<i64>,
    /// Changes with everything that is deleted by hand.
    pub cut: i64,
}

impl Track {
    /// Whether somebody has deleted actions of it by hand.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.lost_count != Some(0)
    }

    /// Number of its actions, as far as is known what was deleted by hand. Otherwise seqs have no gaps.
    #[must_use]
    pub fn action_count(&self) -> i64 {
        self.last_seq - self.lost_count.unwrap_or(0)
    }
}

/// How far the erasure of a user is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// When it was asked for.
    pub requested_at: DateTime<Utc>,
    /// When nothing was left. None while it goes on.
    pub finished_at: Option<DateTime<Utc>>,
    /// How many sessions there were when it was asked for.
    pub session_total: i64,
    /// How many sessions are erased.
    pub sessions: i64,
    /// How many actions they had.
    pub actions: i64,
}
