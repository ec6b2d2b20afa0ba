//! What a writer remembers of the tracks that it has written to, so that it need not ask for every batch. It may be out of
//! date: others write too. The write itself finds out.

use std::collections::HashMap;

use tokio::sync::broadcast::{Receiver, error::TryRecvError};

use crate::{
    model::SessionId,
    store::{Store, changes::Erased},
};

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
#[derive(Debug)]
pub struct KnownSessions {
    recent: HashMap<SessionId, KnownSession>,
    /// Forgotten as a whole when `recent` is full.
    before: HashMap<SessionId, KnownSession>,
    erased: Receiver<Erased>,
}

impl Store {
    /// The memory of a writer to this database. It hears of what is erased, here and, on PostgreSQL, by other processes.
    #[must_use]
    pub fn known_sessions(&self) -> KnownSessions {
        KnownSessions { recent: HashMap::new(), before: HashMap::new(), erased: self.erased.subscribe() }
    }
}

impl KnownSessions {
    /// Forgets what was erased since this was called last.
    pub(super) fn forget_erased(&mut self) {
        loop {
            match self.erased.try_recv() {
                Ok(Erased::Session(session)) => self.forget(session),
                Ok(Erased::Any) | Err(TryRecvError::Lagged(_)) => {
                    self.recent.clear();
                    self.before.clear();
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

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
    use tokio::sync::broadcast;

    use super::*;

    fn memory() -> (KnownSessions, broadcast::Sender<Erased>) {
        let (tell, erased) = broadcast::channel(2);
        (KnownSessions { recent: HashMap::new(), before: HashMap::new(), erased }, tell)
    }

    #[test]
    fn what_is_erased_is_forgotten_and_everything_where_that_was_not_heard() {
        let (mut known, tell) = memory();
        let [erased, kept] = [(); 2].map(|()| SessionId::mint(chrono::Utc::now()));
        let remember = |known: &mut KnownSessions| {
            [erased, kept].into_iter().for_each(|session| known.put(session, KnownSession::default()));
        };
        remember(&mut known);
        tell.send(Erased::Session(erased)).expect("somebody listens");
        known.forget_erased();
        assert!(known.get(erased).is_none() && known.get(kept).is_some());
        tell.send(Erased::Any).expect("somebody listens");
        known.forget_erased();
        assert!(known.get(kept).is_none());
        remember(&mut known);
        for _ in 0..3 {
            tell.send(Erased::Session(erased)).expect("somebody listens");
        }
        known.forget_erased();
        assert!(known.get(kept).is_none(), "some of what was erased was not heard");
    }

    #[test]
    fn the_sessions_in_use_are_remembered_and_others_forgotten() {
        let (mut known, _tell) = memory();
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
