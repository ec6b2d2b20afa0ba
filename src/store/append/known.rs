//! What a writer remembers of the tracks that it has written to, so that it need not ask for every batch. It may be out of
//! date: others write too. The write itself finds out.

use std::collections::HashMap;

use crate::model::SessionId;

/// Sessions that are remembered in full; as many of those before are kept at hand.
const GENERATION: usize = 5_000;

/// A track as far as writing to it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownTrack {
    pub(super) number: i16,
    pub(super) source: String,
    pub(super) last_seq: i64,
}

/// All tracks of a session.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownSession {
    pub(super) tracks: Vec<KnownTrack>,
}

impl KnownSession {
    pub(super) fn track(&self, source: &str) -> Option<&KnownTrack> {
        self.tracks.iter().find(|track| track.source == source)
    }
}

/// The sessions that were written to last.
#[derive(Debug, Default)]
pub struct KnownSessions {
    recent: HashMap<SessionId, KnownSession>,
    /// Forgotten as a whole when `recent` is full.
    before: HashMap<SessionId, KnownSession>,
}

impl KnownSessions {
    pub(super) fn get(&mut self, session: SessionId) -> Option<&KnownSession> {
        if let Some(known) = self.before.remove(&session) {
            self.put(session, known);
        }
        self.recent.get(&session)
    }

    pub(super) fn put(&mut self, session: SessionId, known: KnownSession) {
        if self.recent.len() >= GENERATION {
            self.before = std::mem::take(&mut self.recent);
        }
        self.recent.insert(session, known);
    }

    pub(super) fn forget(&mut self, session: SessionId) {
        self.recent.remove(&session);
        self.before.remove(&session);
    }

    /// Takes note of how far a track is now.
    pub(super) fn advance(&mut self, session: SessionId, track: KnownTrack) {
        let Some(known) = self.recent.get_mut(&session) else { return };
        match known.tracks.iter_mut().find(|known| known.number == track.number) {
            Some(known) => known.last_seq = track.last_seq,
            None => known.tracks.push(track),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sessions_in_use_are_remembered_and_others_forgotten() {
        let mut known = KnownSessions::default();
        let session = || SessionId::mint(chrono::Utc::now());
        let used = session();
        known.put(used, KnownSession::default());
        let unused = session();
        known.put(unused, KnownSession::default());
        for _ in 0..2 * GENERATION {
            known.put(session(), KnownSession::default());
            assert!(known.get(used).is_some());
        }
        assert!(known.get(unused).is_none());
        assert!(known.recent.len() + known.before.len() <= 2 * GENERATION);
        known.forget(used);
        assert!(known.get(used).is_none());
    }
}
