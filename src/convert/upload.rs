//! The messages of uploads as they arrive. They are the contract's RecordActionsRequest and StreamActionsRequest, which are the
//! same on the wire, except that the texts of actions stay where they are in the message: strings and bytes look the same on
//! the wire too, and bytes need not be copied out of it.

use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, int64, message, skip_field, string},
};
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
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UploadBatch {
    /// The track.
    pub source: String,
    /// The seq of the first action; 0 for the service to number them.
    pub first_seq: i64,
    /// The actions, at most [`UploadBatch::MAX_ACTIONS`].
    pub actions: Vec<UploadAction>,
    /// How many there are in the message.
    pub action_count: usize,
}

impl UploadBatch {
    /// More actions than this are only counted: an empty one has two bytes on the wire, and sixty times that in memory.
    pub const MAX_ACTIONS: usize = 50_000;
}

impl Message for UploadBatch {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        string::encode(1, &self.source, buffer);
        int64::encode(2, &self.first_seq, buffer);
        message::encode_repeated(3, &self.actions, buffer);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => string::merge(wire_type, &mut self.source, buffer, context),
            2 => int64::merge(wire_type, &mut self.first_seq, buffer, context),
            3 => {
                self.action_count += 1;
                if self.actions.len() < Self::MAX_ACTIONS {
                    message::merge_repeated(wire_type, &mut self.actions, buffer, context)
                } else {
                    skip_field(wire_type, tag, buffer, context)
                }
            }
            _ => skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        string::encoded_len(1, &self.source)
            + int64::encoded_len(2, &self.first_seq)
            + message::encoded_len_repeated(3, &self.actions)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
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
    fn actions_beyond_the_most_there_may_be_are_counted_and_not_kept() {
        let actions = vec![proto::Action::default(); UploadBatch::MAX_ACTIONS + 3];
        let batch = proto::ActionBatch { source: "web".to_owned(), first_seq: 3, actions };
        let read = UploadBatch::decode(batch.encode_to_vec().as_slice()).expect("it is the same message");
        assert_eq!((read.action_count, read.actions.len()), (UploadBatch::MAX_ACTIONS + 3, UploadBatch::MAX_ACTIONS));
        assert_eq!((read.source.as_str(), read.first_seq), ("web", 3));
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
