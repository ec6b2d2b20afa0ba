//! Which session a recording becomes: ids that come out the same whenever the same recording is imported.

use sha2::{Digest as _, Sha256};

use crate::{cli::time, model::SessionId};

/// Makes an id out of texts. Where one ends and the next begins makes a difference.
pub(super) struct Minting(Sha256);

impl Minting {
    /// `domain` keeps ids of different kinds of recordings apart.
    pub(super) fn new(domain: &str) -> Self {
        Self(Sha256::new()).part(domain)
    }

    /// Takes one more text.
    pub(super) fn part(mut self, text: &str) -> Self {
        self.add(text);
        self
    }

    fn add(&mut self, text: &str) {
        self.0.update((text.len() as u64).to_be_bytes());
        self.0.update(text);
    }

    /// The id of a session that starts at this time, in microseconds since 1970.
    pub(super) fn finish(self, micros: i64) -> SessionId {
        let mut random = [0; 10];
        random.iter_mut().zip(self.0.finalize()).for_each(|(byte, digit)| *byte = digit);
        SessionId::from_parts(time::time(micros), random)
    }
}

/// What an rrweb recording is known by. It names no session, and its first events may be those of many recordings, so that all
/// of it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Identity {
    /// Made of all events.
    pub(in crate::cli) id: SessionId,
    /// Made of the first event alone, as up to version 0.1.0.
    pub(in crate::cli) first_event_id: SessionId,
    /// How many events there are.
    pub(in crate::cli) event_count: i64,
}

/// Finds out what an rrweb recording is known by while its events go by.
pub(super) struct Identifying {
    events: Minting,
    /// The first event's time, in microseconds since 1970, and the id made of it alone.
    first: Option<(i64, SessionId)>,
    count: i64,
}

impl Identifying {
    pub(super) fn new() -> Self {
        Self { events: Minting::new("reel import of an rrweb recording"), first: None, count: 0 }
    }

    /// Takes the next event, as it stands in the recording, and its time in microseconds since 1970.
    pub(super) fn take(&mut self, event: &str, micros: i64) {
        self.first.get_or_insert_with(|| (micros, Minting::new("reel import").part(event).finish(micros)));
        self.events.add(event);
        self.count += 1;
    }

    /// None where there were no events.
    pub(super) fn finish(self) -> Option<Identity> {
        let (micros, first_event_id) = self.first?;
        Some(Identity { id: self.events.finish(micros), first_event_id, event_count: self.count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(events: &[&str]) -> Option<Identity> {
        let mut identifying = Identifying::new();
        events.iter().for_each(|event| identifying.take(event, 1_793_491_200_000_000));
        identifying.finish()
    }

    #[test]
    fn every_event_counts_and_where_it_ends() {
        let one = identity(&["{}", "{\"a\":1}"]).expect("an identity");
        assert_eq!(Some(one), identity(&["{}", "{\"a\":1}"]));
        assert_eq!(one.id.started_at().timestamp_millis(), 1_793_491_200_000);
        for other in [&["{}", "{\"a\":2}"][..], &["{}"], &["{}{", "\"a\":1}"], &["{}", "{\"a\":1}", "{}"]] {
            assert_ne!(identity(other).map(|other| other.id), Some(one.id), "{other:?}");
        }
        assert_eq!(identity(&["{}", "{}"]).map(|other| other.first_event_id), Some(one.first_event_id));
        assert_eq!(identity(&[]), None);
    }

    /// Sessions that release 0.1.0 imported are found by it.
    #[test]
    fn the_id_of_the_first_event_stays_as_it_was() {
        let event = r#"{"type":0,"data":{},"timestamp":1795600000000}"#;
        let mut identifying = Identifying::new();
        identifying.take(event, 1_795_600_000_000_000);
        let id = identifying.finish().map(|identity| identity.first_event_id.to_string());
        assert_eq!(id.as_deref(), Some("01a21219-a400-7801-b2e2-5ec8a9f634e8"));
    }
}
