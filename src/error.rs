//! The closed set of everything that can go wrong, and the one place where it becomes a gRPC status.
//!
//! No variant carries driver text, values of users, or secrets: what is in here may be shown and logged. Every status has
//! a `google.rpc.ErrorInfo` (reason, domain `reel`), a `BadRequest` where fields are at fault, and a `RetryInfo` exactly
//! where sending the same again may help.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::model::{Doubt, SessionId};

/// The `domain` of every `google.rpc.ErrorInfo` of this service.
pub const DOMAIN: &str = "reel";

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A field of a request that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field in the request, for example `batch.first_seq`.
    pub field: String,
    /// What is wrong with it, with the limit, without its value.
    pub description: String,
}

/// Everything that can go wrong while serving a request.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Fields of the request break the contract. Sending it again does not help.
    #[error("invalid request: {}", describe(.0))]
    Invalid(Vec<Violation>),
    /// The bytes of the message are no protobuf of the expected type.
    #[error("the message cannot be decoded")]
    Undecodable,
    /// A message, after decompression, is larger than a message may be.
    #[error("the message is larger than {limit_bytes} bytes")]
    MessageTooLarge {
        /// The limit in force.
        limit_bytes: usize,
    },
    /// No such session.
    #[error("there is no such session")]
    SessionNotFound,
    /// The session was erased; nothing can be stored under its id again.
    #[error("the session was erased")]
    SessionErased,
    /// The session would begin before what is kept begins.
    #[error("sessions are kept for {limit_seconds} s after the day on which they start; this one would be expired")]
    OlderThanRetention {
        /// The retention in force.
        limit_seconds: u64,
    },
    /// Retention is being applied already.
    #[error("retention is being applied by another process, or another request")]
    RetentionRunning,
    /// Retention has stopped, and goes on when somebody says so.
    #[error("{0}: nothing is forgotten until `reel retention --confirm` says that this is right")]
    RetentionUnconfirmed(Doubt),
    /// The storage of archived sessions does not answer, or refuses.
    #[error("the archive is unavailable")]
    ArchiveUnavailable,
    /// A session is archived, and the service was not told where.
    #[error("the session is archived, and this service runs without --archive")]
    ArchiveNotConfigured,
    /// A segment is not where it should be. The log says which.
    #[error("a segment of the archive is missing")]
    SegmentMissing,
    /// A segment is not what was written. The log says which.
    #[error("a segment of the archive is damaged")]
    SegmentDamaged,
    /// The session belongs to another user already.
    #[error("the session belongs to another user")]
    SessionOfAnotherUser,
    /// The session, or user, would have more attributes than it may have.
    #[error("there would be {count} attributes, {limit} are allowed")]
    TooManyAttributes {
        /// How many the session would have.
        count: usize,
        /// How many it may have.
        limit: usize,
    },
    /// The session has all the tracks it may have.
    #[error("the session has {limit} tracks already, which is the limit")]
    TooManyTracks {
        /// How many a session may have.
        limit: usize,
    },
    /// No such user.
    #[error("there is no such user")]
    UserNotFound,
    /// No erasure of such a user was asked for, or not lately.
    #[error("no erasure of such a user was asked for")]
    ErasureNotFound,
    /// A batch leaves out a seq.
    #[error("the batch begins at seq {received_seq}, the track goes on at {expected_seq}")]
    SequenceGap {
        /// The session.
        session: SessionId,
        /// The track.
        source_name: String,
        /// The seq to go on with: the track's cursor plus 1.
        expected_seq: i64,
        /// The seq that the batch began with.
        received_seq: i64,
    },
    /// A session was to be ended before all of its actions were there.
    #[error("the track is committed up to seq {committed_seq}, the sender's last is {last_seq}")]
    TrackIncomplete {
        /// The session.
        session: SessionId,
        /// The track.
        source_name: String,
        /// The track's cursor.
        committed_seq: i64,
        /// What the sender says was its last seq.
        last_seq: i64,
    },
    /// An upload stopped in the middle of a message, or another request was not complete in time.
    #[error("the message was not completed within {limit_seconds} s")]
    UploadStalled {
        /// How long a message may take once it has begun.
        limit_seconds: u64,
    },
    /// A playback was not read.
    #[error("nothing was read of the playback for up to {limit_seconds} s; go on by the cursor of the last page")]
    PlaybackStalled {
        /// How long a client may read nothing. Where many do, it is shorter.
        limit_seconds: u64,
    },
    /// An upload has mentioned more sessions and tracks than one answer can list. All of it is committed.
    #[error("the upload has more than {limit} sessions and tracks; go on with another, or with StreamActions")]
    UploadTooLong {
        /// How many it may mention.
        limit: usize,
    },
    /// The caller's deadline has passed.
    #[error("the deadline has passed")]
    DeadlineExceeded,
    /// A statement took longer than statements may take.
    #[error("the database took too long to answer")]
    StatementTimeout,
    /// More questions are being answered than can be at once.
    #[error("too many questions are being answered")]
    TooManyQuestions,
    /// The service is shutting down.
    #[error("the service is shutting down")]
    Draining,
    /// The service is not ready: the database is not connected or not migrated yet.
    #[error("the service is not ready")]
    NotReady,
    /// The database cannot be reached, is full, read-only, or out of connections.
    #[error("the database is unavailable")]
    DatabaseUnavailable,
    /// Others changed the same rows at the same time, more often than was tried again.
    #[error("others changed the same at the same time")]
    Contention,
    /// A bug. The log has more.
    #[error("internal error")]
    Internal,
}

fn describe(violations: &[Violation]) -> String {
    let parts: Vec<_> =
        violations.iter().map(|violation| format!("{}: {}", violation.field, violation.description)).collect();
    parts.join("; ")
}

impl Error {
    /// A request with one field at fault.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation { field: field.into(), description: description.into() }])
    }

    /// The code of the status, the reason of its `ErrorInfo`, and after how long a retry may help.
    fn classify(&self) -> (Code, &'static str, Option<Duration>) {
        let second = Some(Duration::from_secs(1));
        match self {
            Self::Invalid(_) => (Code::InvalidArgument, "INVALID_FIELD", None),
            Self::Undecodable => (Code::InvalidArgument, "MALFORMED_MESSAGE", None),
            Self::MessageTooLarge { .. } => (Code::ResourceExhausted, "MESSAGE_TOO_LARGE", None),
            Self::SessionNotFound => (Code::NotFound, "SESSION_NOT_FOUND", None),
            Self::SessionErased => (Code::FailedPrecondition, "SESSION_ERASED", None),
            Self::OlderThanRetention { .. } => (Code::FailedPrecondition, "OLDER_THAN_RETENTION", None),
            Self::RetentionRunning => (Code::Unavailable, "RETENTION_RUNNING", second),
            Self::RetentionUnconfirmed(_) => (Code::FailedPrecondition, "RETENTION_UNCONFIRMED", None),
            Self::ArchiveUnavailable => (Code::Unavailable, "ARCHIVE_UNAVAILABLE", second),
            Self::ArchiveNotConfigured => (Code::FailedPrecondition, "ARCHIVE_NOT_CONFIGURED", None),
            Self::SegmentMissing => (Code::DataLoss, "SEGMENT_MISSING", None),
            Self::SegmentDamaged => (Code::DataLoss, "SEGMENT_DAMAGED", None),
            Self::SessionOfAnotherUser => (Code::FailedPrecondition, "SESSION_OF_ANOTHER_USER", None),
            Self::TooManyAttributes { .. } => (Code::FailedPrecondition, "TOO_MANY_ATTRIBUTES", None),
            Self::TooManyTracks { .. } => (Code::FailedPrecondition, "TOO_MANY_TRACKS", None),
            Self::UserNotFound => (Code::NotFound, "USER_NOT_FOUND", None),
            Self::ErasureNotFound => (Code::NotFound, "ERASURE_NOT_FOUND", None),
            Self::SequenceGap { .. } => (Code::Aborted, "SEQUENCE_GAP", None),
            Self::TrackIncomplete { .. } => (Code::FailedPrecondition, "TRACK_INCOMPLETE", None),
            Self::UploadStalled { .. } => (Code::DeadlineExceeded, "UPLOAD_STALLED", None),
            Self::PlaybackStalled { .. } => (Code::DeadlineExceeded, "PLAYBACK_STALLED", None),
            Self::UploadTooLong { .. } => (Code::ResourceExhausted, "UPLOAD_TOO_LONG", None),
            Self::DeadlineExceeded => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED", None),
            Self::StatementTimeout => (Code::DeadlineExceeded, "STATEMENT_TIMEOUT", None),
            Self::TooManyQuestions => (Code::Unavailable, "TOO_MANY_QUESTIONS", second),
            Self::Draining => (Code::Unavailable, "DRAINING", second),
            Self::NotReady => (Code::Unavailable, "NOT_READY", second),
            Self::DatabaseUnavailable => (Code::Unavailable, "DATABASE_UNAVAILABLE", second),
            Self::Contention => (Code::Unavailable, "CONTENTION", second),
            Self::Internal => (Code::Internal, "INTERNAL", None),
        }
    }

    /// Every part of the message that is not fixed, for programs.
    fn metadata(&self) -> HashMap<String, String> {
        let pairs: Vec<(&str, String)> = match self {
            Self::MessageTooLarge { limit_bytes } => vec![("limit_bytes", limit_bytes.to_string())],
            Self::TooManyAttributes { count, limit } => {
                vec![("count", count.to_string()), ("limit", limit.to_string())]
            }
            Self::TooManyTracks { limit } | Self::UploadTooLong { limit } => vec![("limit", limit.to_string())],
            Self::SequenceGap { session, source_name, expected_seq, received_seq } => vec![
                ("session_id", session.to_string()),
                ("source", source_name.clone()),
                ("expected_seq", expected_seq.to_string()),
                ("received_seq", received_seq.to_string()),
            ],
            Self::TrackIncomplete { session, source_name, committed_seq, last_seq } => vec![
                ("session_id", session.to_string()),
                ("source", source_name.clone()),
                ("committed_seq", committed_seq.to_string()),
                ("last_seq", last_seq.to_string()),
            ],
            Self::UploadStalled { limit_seconds }
            | Self::PlaybackStalled { limit_seconds }
            | Self::OlderThanRetention { limit_seconds } => {
                vec![("limit_seconds", limit_seconds.to_string())]
            }
            _ => Vec::new(),
        };
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let (code, reason, retry_after) = error.classify();
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, error.metadata());
        if let Error::Invalid(violations) = &error {
            let violations: Vec<_> = violations
                .iter()
                .map(|violation| FieldViolation::new(&violation.field, &violation.description))
                .collect();
            details.set_bad_request(violations);
        }
        if retry_after.is_some() {
            details.set_retry_info(retry_after);
        }
        Self::with_error_details(code, error.to_string(), details)
    }
}

/// Gives a status that the transport made, and not this service, the code and the details that this service's
/// statuses have.
///
/// The transport says OUT_OF_RANGE for a message over the limit, INTERNAL for one that is no protobuf and CANCELLED for a
/// deadline that has passed; senders that follow the OpenTelemetry rules would send the first again for ever.
#[must_use]
pub fn complete_status(status: Status, limit_bytes: usize) -> Status {
    if status.code() == Code::Ok || !status.details().is_empty() {
        return status;
    }
    let message = status.message();
    match status.code() {
        Code::OutOfRange => Error::MessageTooLarge { limit_bytes }.into(),
        Code::ResourceExhausted if message.starts_with("Error decompressing") => {
            Error::MessageTooLarge { limit_bytes }.into()
        }
        Code::Internal if message.starts_with("failed to decode Protobuf message") => Error::Undecodable.into(),
        Code::Cancelled if message == "Timeout expired" => Error::DeadlineExceeded.into(),
        code => {
            let info = ErrorDetails::with_error_info(transport_reason(code), DOMAIN, HashMap::new());
            Status::with_error_details(code, message.to_owned(), info)
        }
    }
}

/// The reason in the `ErrorInfo` of a status that the transport made.
fn transport_reason(code: Code) -> &'static str {
    match code {
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Cancelled => "CANCELLED",
        Code::Internal => "PROTOCOL_ERROR",
        Code::Unknown => "STREAM_BROKEN",
        _ => "TRANSPORT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_carries_an_error_info_and_retry_info_only_where_a_retry_helps() {
        let gap = Error::SequenceGap {
            session: SessionId::mint(chrono::DateTime::UNIX_EPOCH),
            source_name: "main".into(),
            expected_seq: 4,
            received_seq: 9,
        };
        let status = Status::from(gap);
        let details = status.get_error_details();
        let info = details.error_info().expect("an ErrorInfo");
        assert_eq!(
            (status.code(), info.reason.as_str(), info.domain.as_str()),
            (Code::Aborted, "SEQUENCE_GAP", "reel")
        );
        assert_eq!(info.metadata["expected_seq"], "4");
        assert!(details.retry_info().is_none());

        let status = Status::from(Error::DatabaseUnavailable);
        assert!(status.get_error_details().retry_info().is_some());
    }

    #[test]
    fn statuses_of_the_transport_get_the_codes_of_the_contract() {
        let too_large = complete_status(Status::out_of_range("Error, decoded message length too large"), 7);
        assert_eq!(too_large.code(), Code::ResourceExhausted);
        let info = too_large.get_error_details().error_info().cloned().expect("an ErrorInfo");
        assert_eq!((info.reason.as_str(), info.metadata["limit_bytes"].as_str()), ("MESSAGE_TOO_LARGE", "7"));

        let undecodable = complete_status(Status::internal("failed to decode Protobuf message: x"), 7);
        assert_eq!(undecodable.code(), Code::InvalidArgument);
        let late = complete_status(Status::cancelled("Timeout expired"), 7);
        assert_eq!(late.code(), Code::DeadlineExceeded);
    }
}
