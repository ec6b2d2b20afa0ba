//! What to play, and how fast.

use std::time::Duration;

use super::Cursor;
use crate::model::SessionId;

/// A playback that was asked for, checked.
#[derive(Clone, Debug)]
pub struct PlayRequest {
    /// The session.
    pub session: SessionId,
    /// Where to begin.
    pub begin: Begin,
    /// Offset from the session's start at which to stop.
    pub until: Option<Duration>,
    /// Only actions of these types. Empty means all.
    pub types: Vec<String>,
    /// Only actions of these tracks. Empty means all.
    pub sources: Vec<String>,
    /// 1 is real time, 0 is as fast as the client reads. Finite, not negative.
    pub speed: f64,
    /// The longest pause, in the session's time.
    pub max_idle: Option<Duration>,
    /// Whether to go on with what is committed later.
    pub follow: bool,
}

/// Where a playback begins.
#[derive(Clone, Debug)]
pub enum Begin {
    /// With the first action.
    FirstAction,
    /// At this offset from the session's start.
    Offset(Duration),
    /// After a page of an earlier playback.
    Cursor(Cursor),
}
