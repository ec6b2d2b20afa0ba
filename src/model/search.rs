//! What a search asks for besides its filter, and what it finds.

use chrono::{DateTime, Utc};

use super::{Position, Session, SessionFilter, SessionId, SessionOrder, StoredAction, Summary, Track, duration_ms};

/// Which sessions to find, and in which order.
#[derive(Clone, Debug)]
pub struct SessionSearch {
    /// Which.
    pub filter: SessionFilter,
    /// What they are ordered by, then by id.
    pub order: SessionOrder,
    /// Whether the least comes first.
    pub ascending: bool,
    /// Only those that come after this place.
    pub after: Option<SessionPlace>,
    /// How many at most.
    pub limit: usize,
    /// Whether to count all that match.
    pub count_total: bool,
}

/// A session's place in the order of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionPlace {
    /// What sessions are ordered by: a count, a duration in milliseconds, microseconds since 1970, or 0 where the id says it.
    pub key: i64,
    /// The session.
    pub session: SessionId,
}

impl SessionPlace {
    /// The place of a session.
    #[must_use]
    pub fn of(
        session: SessionId,
        order: SessionOrder,
        action_count: i64,
        error_count: i64,
        last_action_at: Option<DateTime<Utc>>,
    ) -> Self {
        let key = match order {
            SessionOrder::StartTime => 0,
            SessionOrder::Duration => duration_ms(session, last_action_at),
            SessionOrder::ActionCount => action_count,
            SessionOrder::ErrorCount => error_count,
            SessionOrder::LastActionTime => last_action_at.unwrap_or_else(|| session.started_at()).timestamp_micros(),
        };
        Self { key, session }
    }
}

/// What a search found.
#[derive(Debug, Default)]
pub struct FoundSessions {
    /// In the order of the search.
    pub sessions: Vec<FoundSession>,
    /// How many match, if that was asked.
    pub total: Option<i64>,
}

/// A session with what its actions say.
#[derive(Clone, Debug)]
pub struct FoundSession {
    /// The session.
    pub session: Session,
    /// What its actions say, taken together.
    pub summary: Summary,
    /// The time of the action by which it matched.
    pub first_match: Option<DateTime<Utc>>,
}

impl FoundSession {
    /// What its actions say goes before what its tracks count: somebody may have deleted some by hand.
    #[must_use]
    pub fn new(session: Session, summary: Summary, first_match: Option<DateTime<Utc>>) -> Self {
        let session = Session {
            action_count: summary.action_count,
            error_count: summary.error_count,
            last_action_at: summary.last_action_at,
            ..session
        };
        Self { session, summary, first_match }
    }
}

/// Which actions to find: those of the sessions that started last come first.
#[derive(Clone, Debug)]
pub struct ActionSearch {
    /// Of which sessions.
    pub filter: SessionFilter,
    /// Which.
    pub action: super::ActionMatch,
    /// Only those after this place.
    pub after: Option<(SessionId, Position)>,
    /// How many at most.
    pub limit: usize,
}

/// An action and where it is.
#[derive(Clone)]
pub struct FoundAction {
    /// The session.
    pub session: SessionId,
    /// The source of its track.
    pub source: String,
    /// The tracks of the session.
    pub tracks: Vec<Track>,
    /// The action.
    pub stored: StoredAction,
}
