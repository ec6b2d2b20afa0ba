//! The receipts of a whole upload, of limited size however long the upload.

use std::collections::HashMap;

use crate::{
    error::{Error, Result},
    model::{SessionId, SessionReceipt},
};

/// How many sessions and tracks the answer to an upload may list: more would not fit into a message.
const MAX_ENTRIES: usize = 10_000;

/// How many rejections and placeholders the answer to an upload lists in all; the others are only counted.
const MAX_REJECTIONS: usize = 1_000;

/// Collects the receipts of an upload.
#[derive(Debug, Default)]
pub struct Receipts {
    /// In the order of first mention.
    receipts: Vec<SessionReceipt>,
    places: HashMap<SessionId, usize>,
    entries: usize,
    rejections: usize,
}

impl Receipts {
    /// Adds the receipt of one message. Fails when the upload has become too long for one answer.
    pub fn add(&mut self, mut receipt: SessionReceipt) -> Result<()> {
        for track in &mut receipt.tracks {
            for listed in [&mut track.rejections, &mut track.placeholders] {
                listed.truncate(MAX_REJECTIONS - self.rejections);
                self.rejections += listed.len();
            }
        }
        let place = *self.places.entry(receipt.session).or_insert_with(|| {
            self.receipts.push(SessionReceipt::new(receipt.session));
            self.entries += 1;
            self.receipts.len() - 1
        });
        let known = &mut self.receipts[place];
        let before = known.tracks.len();
        known.absorb(receipt);
        self.entries += known.tracks.len() - before;
        if self.entries > MAX_ENTRIES { Err(Error::UploadTooLong { limit: MAX_ENTRIES }) } else { Ok(()) }
    }

    /// All of them, in the order of first mention.
    #[must_use]
    pub fn into_vec(self) -> Vec<SessionReceipt> {
        self.receipts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Rejection, RejectionReason, TrackReceipt};

    fn receipt(session: SessionId, source: &str, rejections: usize) -> SessionReceipt {
        let mut track = TrackReceipt { source: source.to_owned(), accepted_count: 1, ..Default::default() };
        for seq in 1..=i64::try_from(rejections).expect("few") {
            track.reject(Rejection { seq, reason: RejectionReason::Conflict, description: String::new() });
        }
        SessionReceipt { tracks: vec![track], ..SessionReceipt::new(session) }
    }

    #[test]
    fn receipts_of_a_track_add_up_and_their_number_is_limited() {
        let mut receipts = Receipts::default();
        let session = SessionId::mint(chrono::Utc::now());
        for _ in 0..20 {
            receipts.add(receipt(session, "main", 100)).expect("few");
        }
        for track in 1..MAX_ENTRIES - 1 {
            receipts.add(receipt(session, &track.to_string(), 0)).expect("at the limit");
        }
        assert_eq!(receipts.add(receipt(session, "one more", 0)), Err(Error::UploadTooLong { limit: MAX_ENTRIES }));
        let all = receipts.into_vec();
        assert_eq!((all.len(), all[0].tracks[0].accepted_count, all[0].tracks[0].rejected_count), (1, 20, 2_000));
        assert_eq!(all[0].tracks[0].rejections.len(), TrackReceipt::MAX_REJECTIONS);
    }
}
