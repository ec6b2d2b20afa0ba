//! Replies.

use chrono::{DateTime, Utc};
use prost_types::Timestamp;

use crate::{
    model::{Rejection, RejectionReason, Session, SessionReceipt, Track, TrackReceipt, User},
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
        last_action_time: session.last_action_at().map(timestamp),
        action_count: session.action_count(),
        error_count: session.error_count(),
        user_id: session.user_id.unwrap_or_default(),
        end_reason: session.end_reason.unwrap_or_default(),
        attributes: session.attributes.into_iter().collect(),
        tracks: session.tracks.into_iter().map(track_to_proto).collect(),
    }
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
