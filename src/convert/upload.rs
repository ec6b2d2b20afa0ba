//! The messages of uploads as they arrive. They are the contract's RecordActionsRequest and StreamActionsRequest, which are the
//! same on the wire, except that the texts of actions stay where they are in the message: strings and bytes look the same on
//! the wire too, and bytes need not be copied out of it.

use bytes::Bytes;
use prost::Message;
use prost_types::Timestamp;

use crate::proto::{SessionEnd, SessionStart};

/// One message of an upload.
#[derive(Clone, PartialEq, Message)]
pub struct UploadMessage {
    /// Empty for the session that the stream started last.
    #[prost(string, tag = "1")]
    pub session_id: String,
    /// What happens to it.
    #[prost(oneof = "UploadEvent", tags = "2, 3, 4")]
    pub event: Option<UploadEvent>,
}

/// What a message is about.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum UploadEvent {
    /// A session begins.
    #[prost(message, tag = "2")]
    Start(SessionStart),
    /// Actions of a session.
    #[prost(message, tag = "3")]
    Batch(UploadBatch),
    /// A session is over.
    #[prost(message, tag = "4")]
    End(SessionEnd),
}

/// ActionBatch.
#[derive(Clone, PartialEq, Message)]
pub struct UploadBatch {
    /// The track.
    #[prost(string, tag = "1")]
    pub source: String,
    /// The seq of the first action; 0 for the service to number them.
    #[prost(int64, tag = "2")]
    pub first_seq: i64,
    /// The actions.
    #[prost(message, repeated, tag = "3")]
    pub actions: Vec<UploadAction>,
}

/// Action, without what is output only. The bytes must be UTF-8, which is for the reader to check.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct UploadAction {
    /// When it happened.
    #[prost(message, optional, tag = "1")]
    pub timestamp: Option<Timestamp>,
    /// What kind of thing.
    #[prost(bytes = "bytes", tag = "2")]
    pub kind: Bytes,
    /// What it was done to.
    #[prost(bytes = "bytes", tag = "3")]
    pub target: Bytes,
    /// JSON text.
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
}

/// Says nothing of what is in it: messages are printed into logs.
impl std::fmt::Debug for UploadAction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UploadAction").field("data_bytes", &self.data.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{self, record_actions_request, stream_actions_request};

    fn batch() -> proto::ActionBatch {
        let action = proto::Action {
            timestamp: Some(Timestamp { seconds: 1, nanos: 2 }),
            r#type: "click".to_owned(),
            target: "Grüße".to_owned(),
            data: r#"{"x": 1}"#.to_owned(),
            seq: 7,
            source: "output only".to_owned(),
        };
        proto::ActionBatch { source: "web".to_owned(), first_seq: 3, actions: vec![action] }
    }

    #[test]
    fn both_requests_of_the_contract_are_read() {
        let recorded = proto::RecordActionsRequest {
            session_id: "id".to_owned(),
            event: Some(record_actions_request::Event::Batch(batch())),
        };
        let streamed = proto::StreamActionsRequest {
            session_id: "id".to_owned(),
            event: Some(stream_actions_request::Event::Batch(batch())),
        };
        for bytes in [recorded.encode_to_vec(), streamed.encode_to_vec()] {
            let message = UploadMessage::decode(bytes.as_slice()).expect("it is the same message");
            assert_eq!(message.session_id, "id");
            let Some(UploadEvent::Batch(batch)) = message.event else { panic!("it is a batch") };
            assert_eq!((batch.source.as_str(), batch.first_seq, batch.actions.len()), ("web", 3, 1));
            let action = &batch.actions[0];
            assert_eq!(action.timestamp, Some(Timestamp { seconds: 1, nanos: 2 }));
            assert_eq!((&*action.kind, &*action.target), (&b"click"[..], "Grüße".as_bytes()));
            assert_eq!(&*action.data, br#"{"x": 1}"#);
        }
        let events = [
            record_actions_request::Event::Start(SessionStart::default()),
            record_actions_request::Event::End(SessionEnd { reason: "logout".to_owned(), ..Default::default() }),
        ];
        let read = events.map(|event| {
            let request = proto::RecordActionsRequest { session_id: String::new(), event: Some(event) };
            UploadMessage::decode(request.encode_to_vec().as_slice()).expect("it is the same message").event
        });
        assert!(matches!(&read[0], Some(UploadEvent::Start(_))));
        assert!(matches!(&read[1], Some(UploadEvent::End(end)) if end.reason == "logout"));
    }
}
