//! The messages of a playback. Pages are most of what this service ever sends, so they are not turned into the generated
//! types first: they are written straight from the rows, in one buffer of the right size. To clients it is the same.

use std::{collections::BTreeMap, sync::Arc};

use bytes::BufMut;
use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, int64, message},
};

use super::reply::timestamp;
use crate::{model::StoredAction, proto};

/// One message of `PlaySession`.
pub enum PlaybackMessage {
    /// Actions.
    Page(PlayedPage),
    /// What else there is.
    Other(Box<proto::PlaySessionResponse>),
}

/// Consecutive actions of a playback.
pub struct PlayedPage {
    actions: Vec<StoredAction>,
    /// The encoded length of each.
    action_lens: Vec<usize>,
    /// The encoded length of all of it.
    len: usize,
    sources: Arc<BTreeMap<i16, String>>,
    cursor: String,
}

/// The numbers of the fields, as in `playback.proto` and `action.proto`. The test compares with the generated types.
mod field {
    pub(super) const RESPONSE_ACTIONS: u32 = 2;
    pub(super) const PAGE_ACTIONS: u32 = 1;
    pub(super) const PAGE_CURSOR: u32 = 2;
    pub(super) const ACTION_TIMESTAMP: u32 = 1;
    pub(super) const ACTION_TYPE: u32 = 2;
    pub(super) const ACTION_TARGET: u32 = 3;
    pub(super) const ACTION_DATA: u32 = 4;
    pub(super) const ACTION_SEQ: u32 = 5;
    pub(super) const ACTION_SOURCE: u32 = 6;
}

impl PlaybackMessage {
    /// The bytes that `encode` writes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        match self {
            Self::Page(page) => nested_len(page.len),
            Self::Other(response) => response.encoded_len(),
        }
    }

    /// Writes the message as a `PlaySessionResponse`.
    pub fn encode(&self, buffer: &mut impl BufMut) {
        match self {
            Self::Page(page) => {
                put_head(field::RESPONSE_ACTIONS, page.len, buffer);
                page.put(buffer);
            }
            Self::Other(response) => response.encode_raw(buffer),
        }
    }
}

impl PlayedPage {
    /// A page of at least one action. `sources` has the names of the tracks by their numbers; `cursor` is where to resume
    /// after the page.
    #[must_use]
    pub fn new(actions: Vec<StoredAction>, sources: Arc<BTreeMap<i16, String>>, cursor: String) -> Self {
        let lens = actions.iter().map(|stored| action_len(stored, source_of(stored, &sources)));
        let action_lens: Vec<_> = lens.collect();
        let len = action_lens.iter().copied().map(nested_len).sum::<usize>() + text_len(&cursor);
        Self { actions, action_lens, len, sources, cursor }
    }

    fn put(&self, buffer: &mut impl BufMut) {
        for (stored, len) in self.actions.iter().zip(&self.action_lens) {
            put_head(field::PAGE_ACTIONS, *len, buffer);
            let action = &stored.action;
            message::encode(field::ACTION_TIMESTAMP, &timestamp(action.timestamp), buffer);
            put_text(field::ACTION_TYPE, &action.kind, buffer);
            put_text(field::ACTION_TARGET, &action.target, buffer);
            put_text(field::ACTION_DATA, &action.data, buffer);
            // Never 0, which would be left out.
            int64::encode(field::ACTION_SEQ, &stored.seq, buffer);
            put_text(field::ACTION_SOURCE, source_of(stored, &self.sources), buffer);
        }
        put_text(field::PAGE_CURSOR, &self.cursor, buffer);
    }
}

fn action_len(stored: &StoredAction, source: &str) -> usize {
    let action = &stored.action;
    message::encoded_len(field::ACTION_TIMESTAMP, &timestamp(action.timestamp))
        + text_len(&action.kind)
        + text_len(&action.target)
        + text_len(&action.data)
        + int64::encoded_len(field::ACTION_SEQ, &stored.seq)
        + text_len(source)
}

fn source_of<'a>(stored: &StoredAction, sources: &'a BTreeMap<i16, String>) -> &'a str {
    sources.get(&stored.track).map_or("", String::as_str)
}

/// The length of a field of this many bytes with its head; the numbers of all fields here take one byte.
fn nested_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

/// Empty texts are left out.
fn text_len(text: &str) -> usize {
    if text.is_empty() { 0 } else { nested_len(text.len()) }
}

fn put_head(field: u32, len: usize, buffer: &mut impl BufMut) {
    encode_key(field, WireType::LengthDelimited, buffer);
    encode_varint(len as u64, buffer);
}

fn put_text(field: u32, text: &str, buffer: &mut impl BufMut) {
    if !text.is_empty() {
        put_head(field, text.len(), buffer);
        buffer.put_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::{
        model::Action,
        proto::{ActionPage, PlaySessionResponse, play_session_response::Event},
    };

    #[test]
    fn a_page_is_encoded_as_the_generated_types_encode_it() {
        let texts = ["", "x", &"y".repeat(127), &"z".repeat(128), &"é".repeat(20_000)].map(str::to_owned);
        let sources: BTreeMap<_, _> = [(0, "main".to_owned()), (63, "web".to_owned())].into();
        let mut actions = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            for micros in [0, 1, 999_999, 1_793_491_200_000_000, 253_402_300_799_999_999] {
                let action = Action {
                    timestamp: DateTime::from_timestamp_micros(micros).unwrap(),
                    kind: texts[(index + 1) % 5].clone().into(),
                    target: texts[(index + 2) % 5].clone().into(),
                    data: text.clone().into(),
                };
                let track = [0, 63, 7][actions.len() % 3];
                actions.push(StoredAction { track, seq: [1, 127, 128, i64::MAX][actions.len() % 4], action });
            }
        }
        for count in [1, 2, actions.len()] {
            for cursor in ["", "cursor"] {
                let actions = &actions[..count];
                let generated = actions.iter().map(|stored| proto::Action {
                    timestamp: Some(timestamp(stored.action.timestamp)),
                    r#type: stored.action.kind.to_string(),
                    target: stored.action.target.to_string(),
                    data: stored.action.data.to_string(),
                    seq: stored.seq,
                    source: sources.get(&stored.track).cloned().unwrap_or_default(),
                });
                let generated = ActionPage { actions: generated.collect(), cursor: cursor.to_owned() };
                let generated = PlaySessionResponse { event: Some(Event::Actions(generated)) }.encode_to_vec();
                let page = PlayedPage::new(actions.to_vec(), Arc::new(sources.clone()), cursor.to_owned());
                let message = PlaybackMessage::Page(page);
                let mut written = Vec::new();
                message.encode(&mut written);
                assert!(written == generated, "{count} actions");
                assert_eq!(message.encoded_len(), generated.len());
            }
        }
    }
}
