//! Requests and actions, with as few words as a test wants to spend on them.

use reel::proto::{
    self, Action, ActionBatch, RecordActionsRequest, SessionEnd, SessionStart, StreamActionsRequest, User,
    record_actions_request, stream_actions_request,
};

pub fn play(session: &str) -> proto::PlaySessionRequest {
    proto::PlaySessionRequest { session_id: session.to_owned(), ..Default::default() }
}

pub fn start(session: &str, start: SessionStart) -> RecordActionsRequest {
    let event = Some(record_actions_request::Event::Start(start));
    RecordActionsRequest { session_id: session.to_owned(), event }
}

pub fn batch(session: &str, source: &str, first_seq: i64, actions: Vec<Action>) -> RecordActionsRequest {
    let batch = ActionBatch { source: source.to_owned(), first_seq, actions };
    let event = Some(record_actions_request::Event::Batch(batch));
    RecordActionsRequest { session_id: session.to_owned(), event }
}

pub fn end(session: &str, end: SessionEnd) -> RecordActionsRequest {
    let event = Some(record_actions_request::Event::End(end));
    RecordActionsRequest { session_id: session.to_owned(), event }
}

/// The same message for StreamActions.
pub fn streamed(request: RecordActionsRequest) -> StreamActionsRequest {
    use record_actions_request::Event as Recorded;
    use stream_actions_request::Event as Streamed;

    let event = request.event.map(|event| match event {
        Recorded::Start(start) => Streamed::Start(start),
        Recorded::Batch(batch) => Streamed::Batch(batch),
        Recorded::End(end) => Streamed::End(end),
    });
    StreamActionsRequest { session_id: request.session_id, event }
}

pub fn user(id: &str, email: &str) -> User {
    User { id: id.to_owned(), email: email.to_owned(), ..Default::default() }
}

/// A time that the tests' sessions start at: noon of a day in the past.
pub const NOON_MS: i64 = 1_793_534_400_000;

pub fn timestamp(unix_ms: i64) -> prost_types::Timestamp {
    let nanos = i32::try_from(unix_ms.rem_euclid(1_000) * 1_000_000).unwrap();
    prost_types::Timestamp { seconds: unix_ms.div_euclid(1_000), nanos }
}

pub fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// The id of a new session that starts at this time.
pub fn session_id(unix_ms: i64) -> String {
    reel::model::SessionId::mint(chrono::DateTime::from_timestamp_millis(unix_ms).unwrap()).to_string()
}

/// A click this many milliseconds after noon.
pub fn click(offset_ms: i64, target: &str) -> Action {
    action(offset_ms, "click", target)
}

pub fn action(offset_ms: i64, kind: &str, target: &str) -> Action {
    Action {
        timestamp: Some(timestamp(NOON_MS + offset_ms)),
        r#type: kind.to_owned(),
        target: target.to_owned(),
        data: format!(r#"{{"at": {offset_ms}}}"#),
        ..Default::default()
    }
}

/// Clicks a second apart, on targets `0`, `1`, ….
pub fn clicks(numbers: std::ops::Range<i64>) -> Vec<Action> {
    numbers.map(|number| click(number * 1_000, &number.to_string())).collect()
}
