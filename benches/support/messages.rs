//! Requests, made from a workload.

use reel::{
    model::SessionId,
    proto::{
        ActionBatch, RecordActionsRequest, SessionStart, StreamActionsRequest, User, record_actions_request,
        stream_actions_request,
    },
};

use super::workload::{Batch, Workload};

/// Starts a session, as a web application would.
pub fn start(id: SessionId, number: usize) -> RecordActionsRequest {
    let id_of_user = format!("user-{}", number % 5_000);
    let user = User { email: format!("{id_of_user}@example.com"), id: id_of_user, ..Default::default() };
    let attributes = [("browser", "Firefox 145".to_owned()), ("release", format!("2026.11.{}", number % 40))];
    let attributes = attributes.map(|(key, value)| (key.to_owned(), value));
    let start = SessionStart { user: Some(user), start_time: None, attributes: attributes.into() };
    RecordActionsRequest { session_id: id.to_string(), event: Some(record_actions_request::Event::Start(start)) }
}

fn batch(batch: &Batch) -> ActionBatch {
    ActionBatch { source: String::new(), first_seq: batch.first_seq, actions: batch.actions.clone() }
}

/// For each sender its messages for RecordActions.
pub fn recorded(workload: &Workload, ids: &[SessionId]) -> Vec<Vec<RecordActionsRequest>> {
    of_each_sender(workload, |sent| RecordActionsRequest {
        session_id: ids[sent.session].to_string(),
        event: Some(record_actions_request::Event::Batch(batch(sent))),
    })
}

/// For each sender its messages for StreamActions.
pub fn streamed(workload: &Workload, ids: &[SessionId]) -> Vec<Vec<StreamActionsRequest>> {
    of_each_sender(workload, |sent| StreamActionsRequest {
        session_id: ids[sent.session].to_string(),
        event: Some(stream_actions_request::Event::Batch(batch(sent))),
    })
}

fn of_each_sender<T>(workload: &Workload, message: impl Fn(&Batch) -> T) -> Vec<Vec<T>> {
    workload.senders.iter().map(|sent| sent.iter().map(&message).collect()).collect()
}
