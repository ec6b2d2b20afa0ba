//! The background indexer: keeps the index up with what is written. Every process has one; on PostgreSQL one at a time works.
//!
//! Answers do not wait for it: what is not in the index yet is read directly. It decides when a session is worth indexing,
//! and sees to it that no session holds up others: a failing one is left alone for a while, a slow one is indexed beside them.
//! How it is done is in `store/index.rs`.

mod delays;
mod renewal;

use std::{
    collections::HashSet,
    ops::ControlFlow,
    sync::{Arc, Weak},
    time::Duration,
};

use chrono::TimeDelta;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use self::delays::Delays;
pub use self::renewal::renew;
use crate::{
    error::{Error, Result},
    model::SessionId,
    store::{Claim, Due, DueSession, FacetIds, Store},
};

/// How often it looks for sessions that are due.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A session is indexed when nothing has arrived for this long: often enough it goes on right after.
const QUIET_FOR: TimeDelta = TimeDelta::seconds(2);

/// A session that goes on is indexed again when it has grown by half, and by so many actions: fewer are quickly read.
const GROWN_BY: i64 = 1_000;

/// Dirty sessions that are looked at by one statement, however many there are.
const SESSIONS_A_LOOK: u64 = 1_000;

/// Looks with the same lock before it is given up, and others may have it: it is kept while slow sessions are under way, and
/// after so many looks none is begun.
const LOOKS_A_TURN: usize = 20;

/// Slow sessions that are indexed at once beside the others.
const SESSIONS_ASIDE: usize = 2;

/// How long one of them may take: 200M actions at what was measured.
const ASIDE_TIMEOUT: Duration = Duration::from_mins(10);

/// Indexes what is due, for ever.
pub async fn keep(store: &Store) {
    let mut indexer = Indexer::new(store.clone());
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        loop {
            match store.unless_away(indexer.turn()).await {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => break,
                Err(error) => {
                    tracing::warn!(%error, "sessions not indexed, trying again");
                    break;
                }
            }
        }
    }
}

/// What is remembered from one turn to the next.
struct Indexer {
    store: Store,
    ids: FacetIds,
    delays: Delays,
    /// Slow sessions that are being indexed.
    aside: JoinSet<(SessionId, Result<()>)>,
    /// Which they are.
    slow: HashSet<SessionId>,
    /// The lock of the process that indexes, while it is needed here or for a slow session.
    claim: Weak<Claim>,
    /// How many looks it was needed for.
    looks: usize,
    /// Up to where dirty sessions were looked at.
    after: Option<SessionId>,
}

impl Indexer {
    fn new(store: Store) -> Self {
        Self {
            store,
            ids: FacetIds::default(),
            delays: Delays::default(),
            aside: JoinSet::new(),
            slow: HashSet::new(),
            claim: Weak::new(),
            looks: 0,
            after: None,
        }
    }

    /// Goes on through the dirty sessions for a bounded time. Breaks where all were looked at.
    async fn turn(&mut self) -> Result<ControlFlow<()>> {
        for _ in 0..LOOKS_A_TURN {
            self.take_back();
            let due = Due { quiet_since: self.store.now() - QUIET_FOR, grown_by: GROWN_BY };
            let look = self.store.index_due(due, self.after, SESSIONS_A_LOOK).await?;
            self.after = look.last;
            self.index(look.due).await?;
            if look.last.is_none() {
                self.delays.forget_old();
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Indexes sessions that are due, unless another process does.
    async fn index(&mut self, mut due: Vec<DueSession>) -> Result<()> {
        due.retain(|session| !self.delays.is_waiting(session.id()) && !self.slow.contains(&session.id()));
        if due.is_empty() {
            return Ok(());
        }
        let claim = match self.claim.upgrade() {
            Some(claim) => claim,
            None => match self.store.index_claim().await? {
                Some(claim) => {
                    self.looks = 0;
                    Arc::new(claim)
                }
                None => return Ok(()),
            },
        };
        self.claim = Arc::downgrade(&claim);
        self.looks += 1;
        let (slow, others): (Vec<_>, Vec<_>) = due.into_iter().partition(DueSession::is_slow);
        for session in slow {
            self.begin_aside(session, &claim);
        }
        let indexed = self.store.index_sessions(&others, &mut self.ids).await;
        release(claim).await;
        let indexed = indexed?;
        tracing::debug!(sessions = indexed.sessions.len(), actions = indexed.actions, "sessions indexed");
        indexed.sessions.iter().for_each(|session| self.delays.succeeded(*session));
        indexed.failed.iter().for_each(|(session, error)| self.delays.failed(*session, error));
        Ok(())
    }

    /// Begins to index a slow session, if there is room, and time until the lock is given up. If not, it is found again.
    fn begin_aside(&mut self, due: DueSession, claim: &Arc<Claim>) {
        if self.looks > LOOKS_A_TURN || self.slow.len() >= SESSIONS_ASIDE || !self.slow.insert(due.id()) {
            return;
        }
        let (store, claim) = (self.store.clone(), Arc::clone(claim));
        self.aside.spawn(async move {
            let mut ids = FacetIds::default();
            let indexed = timeout(ASIDE_TIMEOUT, store.index_sessions(&[due], &mut ids)).await;
            release(claim).await;
            let result = match indexed {
                Ok(Ok(indexed)) => indexed.failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error)),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(Error::StatementTimeout),
            };
            (due.id(), result)
        });
    }

    /// Notes what has become of slow sessions.
    fn take_back(&mut self) {
        while let Some(ended) = self.aside.try_join_next() {
            match ended {
                Ok((session, result)) => {
                    self.slow.remove(&session);
                    match result {
                        Ok(()) => self.delays.succeeded(session),
                        Err(error) => self.delays.failed(session, &error),
                    }
                }
                Err(error) => tracing::error!(%error, "indexing a session ended in a panic"),
            }
        }
        if self.aside.is_empty() {
            self.slow.clear();
        }
    }
}

/// Gives the lock up, if nobody else here needs it.
async fn release(claim: Arc<Claim>) {
    if let Some(claim) = Arc::into_inner(claim) {
        claim.release().await;
    }
}
