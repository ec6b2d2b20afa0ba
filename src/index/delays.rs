//! Sessions that could not be indexed wait before they are tried again, each for itself, and longer each time.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::{error::Error, model::SessionId};

/// How long after the first failure.
const SHORTEST: Duration = Duration::from_secs(1);

/// How long at most.
const LONGEST: Duration = Duration::from_mins(5);

/// A failure is forgotten when nothing was heard of its session for so long after it might have been tried again: it may have
/// been erased, or another process may have indexed it.
const REMEMBER_FOR: Duration = Duration::from_hours(1);

/// Who waits until when.
#[derive(Debug, Default)]
pub(super) struct Delays(HashMap<SessionId, Delay>);

#[derive(Debug)]
struct Delay {
    failures: u32,
    until: Instant,
}

impl Delays {
    /// Whether a session is not to be tried yet.
    pub(super) fn is_waiting(&self, session: SessionId) -> bool {
        self.0.get(&session).is_some_and(|delay| Instant::now() < delay.until)
    }

    /// A session was indexed.
    pub(super) fn succeeded(&mut self, session: SessionId) {
        if self.0.remove(&session).is_some() {
            tracing::info!(session.id = %session, "a session that could not be indexed is indexed");
        }
    }

    /// A session could not be indexed.
    pub(super) fn failed(&mut self, session: SessionId, error: &Error) {
        let failures = self.0.get(&session).map_or(0, |delay| delay.failures);
        let wait = SHORTEST.saturating_mul(1 << failures.min(16)).min(LONGEST);
        self.0.insert(session, Delay { failures: failures + 1, until: Instant::now() + wait });
        let wait_s = wait.as_secs();
        tracing::warn!(session.id = %session, %error, wait_s, "a session could not be indexed; others go on without it");
    }

    /// Forgets whom nobody has tried again for long.
    pub(super) fn forget_old(&mut self) {
        let now = Instant::now();
        self.0.retain(|_, delay| now < delay.until + REMEMBER_FOR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_session_that_fails_again_and_again_waits_longer_each_time_up_to_a_limit() {
        let session = SessionId::from_uuid(uuid::Uuid::nil());
        let mut delays = Delays::default();
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert!(!delays.is_waiting(session));
            delays.failed(session, &Error::Internal);
            let since = Instant::now();
            while delays.is_waiting(session) {
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            waits.push(since.elapsed().as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        delays.succeeded(session);
        delays.failed(session, &Error::Internal);
        tokio::time::advance(SHORTEST).await;
        assert!(!delays.is_waiting(session));
        tokio::time::advance(REMEMBER_FOR).await;
        delays.forget_old();
        assert!(delays.0.is_empty());
    }
}
