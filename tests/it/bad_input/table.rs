//! The table: rows of a name, a request and what has to come back.

use bytes::Bytes;
use prost::Message;
use reel::proto::{
    ApplyRetentionRequest, CountActionsRequest, DeleteSessionRequest, DeleteUserRequest, GetErasureRequest,
    GetErrorFrequencyRequest, GetFunnelRequest, GetIngestCursorRequest, GetSessionDurationsRequest, GetSessionRequest,
    GetStorageStatsRequest, GetUserRequest, ListActionsRequest, ListSessionsRequest, ListTransitionsRequest,
    ListUsersRequest, PlaySessionRequest, PreviewRetentionRequest, RecordActionsRequest, UpdateSessionRequest,
    UpsertUserRequest,
};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::wire::{Answer, Head, Wire, frame};
use crate::harness::{reason, streamed};

/// What the values of bad requests are made of. No error may repeat it.
pub const CANARY: &str = "s3cr3t";

/// Text of this many bytes.
pub fn text(bytes: usize) -> String {
    CANARY.chars().cycle().take(bytes).collect()
}

/// One call: a path, and the messages to send there.
pub struct Call {
    pub path: &'static str,
    pub messages: Vec<Vec<u8>>,
}

/// A request, as the calls that it makes.
pub trait Request {
    fn calls(self) -> Vec<Call>;
}

macro_rules! unary {
    ($($request:ident => $path:literal),* $(,)?) => { $(
        impl Request for $request {
            fn calls(self) -> Vec<Call> {
                vec![Call { path: concat!("/reel.v1.", $path), messages: vec![self.encode_to_vec()] }]
            }
        }
    )* };
}

unary! {
    GetIngestCursorRequest => "IngestService/GetIngestCursor",
    PlaySessionRequest => "PlaybackService/PlaySession",
    GetSessionRequest => "SessionService/GetSession",
    ListSessionsRequest => "SessionService/ListSessions",
    ListActionsRequest => "SessionService/ListActions",
    UpdateSessionRequest => "SessionService/UpdateSession",
    DeleteSessionRequest => "SessionService/DeleteSession",
    CountActionsRequest => "AnalyticsService/CountActions",
    GetSessionDurationsRequest => "AnalyticsService/GetSessionDurations",
    GetErrorFrequencyRequest => "AnalyticsService/GetErrorFrequency",
    ListTransitionsRequest => "AnalyticsService/ListTransitions",
    GetFunnelRequest => "AnalyticsService/GetFunnel",
    UpsertUserRequest => "UserService/UpsertUser",
    GetUserRequest => "UserService/GetUser",
    ListUsersRequest => "UserService/ListUsers",
    DeleteUserRequest => "UserService/DeleteUser",
    GetErasureRequest => "UserService/GetErasure",
    PreviewRetentionRequest => "RetentionService/PreviewRetention",
    ApplyRetentionRequest => "RetentionService/ApplyRetention",
    GetStorageStatsRequest => "RetentionService/GetStorageStats",
}

/// An upload goes through both RPCs for uploads.
impl Request for Vec<RecordActionsRequest> {
    fn calls(self) -> Vec<Call> {
        let recorded = self.iter().map(Message::encode_to_vec).collect();
        let streamed = self.into_iter().map(|message| streamed(message).encode_to_vec()).collect();
        vec![
            Call { path: "/reel.v1.IngestService/RecordActions", messages: recorded },
            Call { path: "/reel.v1.IngestService/StreamActions", messages: streamed },
        ]
    }
}

/// What has to come back.
#[derive(Clone, Copy, Debug)]
pub enum Expected {
    Accepted,
    /// The field is given as the path of its message and its name in it, or empty where no field is at fault.
    Refused {
        code: Code,
        reason: &'static str,
        message: &'static str,
        field: &'static str,
    },
}

/// The request is as the contract wants it.
pub const ACCEPTED: Expected = Expected::Accepted;

/// The request is refused because of this field.
pub fn invalid(field: &'static str) -> Expected {
    invalid_in("", field)
}

/// The request is refused because of this field of the message at this path.
pub fn invalid_in(message: &'static str, field: &'static str) -> Expected {
    Expected::Refused { code: Code::InvalidArgument, reason: "INVALID_FIELD", message, field }
}

/// The request is refused for another reason.
pub fn refused(code: Code, reason: &'static str) -> Expected {
    Expected::Refused { code, reason, message: "", field: "" }
}

pub struct Row {
    pub name: String,
    pub call: Call,
    expected: Expected,
}

#[derive(Default)]
pub struct Table {
    pub rows: Vec<Row>,
}

impl Table {
    pub fn row(&mut self, name: impl Into<String>, request: impl Request, expected: Expected) {
        let name = name.into();
        let calls = request.calls().into_iter();
        self.rows.extend(calls.map(|call| Row { name: name.clone(), call, expected }));
    }
}

impl Row {
    /// Sends the request. Gives what is wrong with the answer, if something is.
    pub async fn check(&self, wire: &Wire) -> Option<String> {
        let body: Bytes = self.call.messages.iter().flat_map(|message| frame(0, message)).collect();
        let fault = match wire.call(Head::of(self.call.path), body).await {
            Ok(answer) => fault(&answer, self.expected),
            Err(error) => Some(format!("{error}")),
        };
        fault.map(|fault| format!("{} of {}: {fault}", self.call.path, self.name))
    }
}

/// What is wrong with an answer, if something is.
pub fn fault(answer: &Answer, expected: Expected) -> Option<String> {
    let Some(status) = &answer.status else { return Some(format!("no status: {answer:?}")) };
    if matches!(expected, Expected::Accepted) && status.code() == Code::Ok {
        return None;
    }
    if status.code() == Code::Ok {
        return Some("it was accepted".to_owned());
    }
    // Also checks what all statuses have.
    let reason = reason(status);
    let details = status.get_error_details();
    let fields: Vec<_> =
        details.bad_request().into_iter().flat_map(|bad| &bad.field_violations).map(|one| one.field.as_str()).collect();
    let was = format!("{:?} {reason} {fields:?}: {}", status.code(), status.message());
    if was.contains(CANARY) || String::from_utf8_lossy(status.details()).contains(CANARY) {
        return Some(format!("it repeats the value: {was}"));
    }
    let is_expected = match expected {
        Expected::Accepted => false,
        Expected::Refused { code, reason: expected, message, field } => {
            let path = [message, field].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".");
            let is_field = if path.is_empty() { fields.is_empty() } else { fields == [path] };
            status.code() == code && reason == expected && is_field
        }
    };
    (!is_expected).then(|| format!("expected {expected:?}, got {was}"))
}
