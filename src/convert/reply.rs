//! Replies.

use chrono::{DateTime, TimeDelta, Utc};
use prost_types::{Duration, Timestamp};

use crate::{
    model::{
        Erasure, FoundAction, FoundSession, Rejection, RejectionReason, Session, SessionId, SessionReceipt, Track,
        TrackReceipt, User, duration_ms,
    },
    playback::Cursor,
    proto,
};

pub(super) fn timestamp(time: DateTime<Utc>) -> Timestamp {
    Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos().cast_signed() }
}

/// A session with its tracks.
#[must_use]
pub fn session_to_proto(session: Session) -> proto::Session {
    proto::Session {
        id: session.id.to_string(),
        start_time: Some(timestamp(session.id.started_at())),
        end_time: session.ended_at.map(timestamp),
        last_action_time: session.last_action_at.map(timestamp),
        action_count: session.action_count,
        error_count: session.error_count,
        user_id: session.user_id.unwrap_or_default(),
        end_reason: session.end_reason.unwrap_or_default(),
        attributes: session.attributes.into_iter().collect(),
        tracks: session.tracks.into_iter().map(track_to_proto).collect(),
        summary: None,
        pin_expire_time: session.pin.as_ref().map(|pin| timestamp(pin.until)),
        pin_reason: session.pin.map(|pin| pin.reason).unwrap_or_default(),
        first_match: None,
        expire_time: session.expires_at.map(timestamp),
    }
}

/// A session with what its actions say, and where it matched.
#[must_use]
pub fn found_session_to_proto(found: FoundSession) -> proto::Session {
    let (id, summary) = (found.session.id, found.summary);
    let first_match = found.first_match.map(|time| proto::FirstMatch {
        time: Some(timestamp(time)),
        offset: Some(offset(id, time)),
        cursor: Cursor::at(id, &found.session.tracks, time).encode(),
    });
    let summary = proto::SessionSummary {
        first_action_time: summary.first_action_at.map(timestamp),
        duration: Some(millis(duration_ms(id, summary.last_action_at))),
        active_time: Some(millis(summary.active_ms)),
        rage_click_count: summary.rage_click_count,
        is_dead_end: summary.is_dead_end,
    };
    proto::Session { summary: Some(summary), first_match, ..session_to_proto(found.session) }
}

/// An action and where it is.
#[must_use]
pub fn found_action_to_proto(found: FoundAction) -> proto::FoundAction {
    let FoundAction { session, source, tracks, stored } = found;
    let (time, seq, action) = (stored.action.timestamp, stored.seq, stored.action);
    proto::FoundAction {
        session_id: session.to_string(),
        offset: Some(offset(session, time)),
        cursor: Cursor::at(session, &tracks, time).encode(),
        action: Some(proto::Action {
            timestamp: Some(timestamp(time)),
            r#type: action.kind.to_string(),
            target: action.target.to_string(),
            data: action.data.to_string(),
            seq,
            source,
        }),
    }
}

/// The offset from a session's start, and 0 before it.
fn offset(session: SessionId, time: DateTime<Utc>) -> Duration {
    let offset = (time - session.started_at()).max(TimeDelta::zero());
    Duration { seconds: offset.num_seconds(), nanos: offset.subsec_nanos() }
}

/// A number of milliseconds.
pub(super) fn millis(millis: i64) -> Duration {
    let nanos = i32::try_from(millis % 1_000 * 1_000_000).unwrap_or(0);
    Duration { seconds: millis / 1_000, nanos }
}

fn track_to_proto(track: Track) -> proto::Track {
    proto::Track {
        source: track.source,
        committed_seq: track.last_seq,
        accepted_count: track.accepted_count,
        duplicate_count: track.duplicate_count,
        rejected_count: track.rejected_count,
        error_count: track.error_count,
        last_action_time: track.last_action_at.map(timestamp),
    }
}

/// A user.
#[must_use]
pub fn user_to_proto(user: User) -> proto::User {
    proto::User {
        id: user.id,
        email: user.email,
        name: user.name,
        attributes: user.attributes.into_iter().collect(),
        create_time: Some(timestamp(user.created_at)),
    }
}

/// How far an erasure is.
#[must_use]
pub fn erasure_to_proto(erasure: &Erasure) -> proto::GetErasureResponse {
    proto::GetErasureResponse {
        request_time: Some(timestamp(erasure.requested_at)),
        finish_time: erasure.finished_at.map(timestamp),
        session_count: erasure.session_total,
        erased_session_count: erasure.sessions,
        erased_action_count: erasure.actions,
    }
}

/// What was done for a session.
#[must_use]
pub fn receipt_to_proto(receipt: SessionReceipt) -> proto::SessionReceipt {
    proto::SessionReceipt {
        session_id: receipt.session.to_string(),
        tracks: receipt.tracks.into_iter().map(track_receipt_to_proto).collect(),
        started: receipt.started,
        ended: receipt.ended,
    }
}

fn track_receipt_to_proto(receipt: TrackReceipt) -> proto::TrackReceipt {
    proto::TrackReceipt {
        source: receipt.source,
        committed_seq: receipt.committed_seq,
        accepted_count: receipt.accepted_count,
        duplicate_count: receipt.duplicate_count,
        rejected_count: receipt.rejected_count,
        rejections: receipt.rejections.into_iter().map(rejection_to_proto).collect(),
        placeholder_count: receipt.placeholder_count,
        placeholders: receipt.placeholders.into_iter().map(rejection_to_proto).collect(),
        replaced_count: receipt.replaced_count,
    }
}

fn rejection_to_proto(rejection: Rejection) -> proto::Rejection {
    let reason = match rejection.reason {
        RejectionReason::Conflict => proto::RejectionReason::Conflict,
        RejectionReason::InvalidTimestamp => proto::RejectionReason::InvalidTimestamp,
        RejectionReason::InvalidType => proto::RejectionReason::InvalidType,
        RejectionReason::InvalidTarget => proto::RejectionReason::InvalidTarget,
        RejectionReason::InvalidData => proto::RejectionReason::InvalidData,
        RejectionReason::TooLarge => proto::RejectionReason::TooLarge,
    };
    proto::Rejection { seq: rejection.seq, reason: reason.into(), description: rejection.description }
}

/// The cursors of a session's tracks, of all or of one source.
#[must_use]
pub fn cursors_to_proto(tracks: Vec<Track>, source: Option<String>) -> Vec<proto::IngestCursor> {
    let cursors = tracks
        .into_iter()
        .filter(|track| source.as_ref().is_none_or(|source| *source == track.source))
        .map(|track| proto::IngestCursor { source: track.source, committed_seq: track.last_seq });
    let mut cursors: Vec<_> = cursors.collect();
    if let (Some(source), true) = (source, cursors.is_empty()) {
        cursors.push(proto::IngestCursor { source, committed_seq: 0 });
    }
    cursors
}

/// Says which action, and nothing of what is in it: messages are printed into logs.
impl std::fmt::Debug for proto::Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Action").field("seq", &self.seq).field("data_bytes", &self.data.len()).finish_non_exhaustive()
    }
}

/// Says that there is a user, and nothing of who.
impl std::fmt::Debug for proto::User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").finish_non_exhaustive()
    }
}
