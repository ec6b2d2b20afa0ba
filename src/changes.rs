//! Wakes whoever follows a session when it changes: at once in this process, and a moment later in others on the same
//! PostgreSQL. Ingest never waits for it, and a change that gets lost is only noticed later, by the follower's own look.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use crate::{model::SessionId, store::Store};

/// Changes are collected for this long before other processes are told: NOTIFY takes a lock that all committing
/// transactions with notifications share, so it must not be taken once a batch.
const COLLECT_FOR: Duration = Duration::from_millis(50);

/// How long to wait before listening again after the connection was lost.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Changed sessions that wait to be told of. Beyond this they are forgotten: followers elsewhere look for themselves.
const MAX_OUTBOX: usize = 10_000;

/// Who follows what, and what is to be told.
#[derive(Debug, Default)]
pub struct Changes {
    followed: Mutex<HashMap<SessionId, watch::Sender<()>>>,
    outbox: Mutex<HashSet<SessionId>>,
    filled: Notify,
}

impl Changes {
    /// Tells that a session has changed.
    pub fn announce(&self, session: SessionId) {
        self.wake(session);
        let mut outbox = lock(&self.outbox);
        if outbox.len() < MAX_OUTBOX {
            outbox.insert(session);
        }
        drop(outbox);
        self.filled.notify_one();
    }

    /// Begins to follow a session.
    pub fn follow(self: &Arc<Self>, session: SessionId) -> Following {
        let receiver = lock(&self.followed).entry(session).or_insert_with(|| watch::channel(()).0).subscribe();
        Following { session, receiver: Some(receiver), changes: Arc::clone(self) }
    }

    fn wake(&self, session: SessionId) {
        if let Some(sender) = lock(&self.followed).get(&session) {
            sender.send_replace(());
        }
    }

    fn wake_all(&self) {
        lock(&self.followed).values().for_each(|sender| {
            sender.send_replace(());
        });
    }

    /// Tells other processes, and listens to them, for ever.
    pub async fn exchange(&self, store: &Store) {
        tokio::join!(self.tell(store), self.listen(store));
    }

    async fn tell(&self, store: &Store) {
        loop {
            self.filled.notified().await;
            sleep(COLLECT_FOR).await;
            let changed: Vec<_> = lock(&self.outbox).drain().collect();
            if let Err(error) = store.changes_notify(&changed).await {
                tracing::warn!(%error, sessions = changed.len(), "other processes were not told of changes");
            }
        }
    }

    async fn listen(&self, store: &Store) {
        loop {
            match store.changes_listen().await {
                Ok(None) => return,
                Ok(Some(mut listener)) => {
                    // Something may have been missed before.
                    self.wake_all();
                    while let Ok(Some(changed)) = store.unless_away(listener.next()).await {
                        changed.into_iter().for_each(|session| self.wake(session));
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot listen to other processes"),
            }
            sleep(LISTEN_AGAIN_AFTER).await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Follows a session until it is dropped.
#[derive(Debug)]
pub struct Following {
    session: SessionId,
    /// Taken when this is dropped, before the followers left are counted.
    receiver: Option<watch::Receiver<()>>,
    changes: Arc<Changes>,
}

impl Following {
    /// Waits until the session changes, or has changed since the last call.
    pub async fn changed(&mut self) {
        if let Some(receiver) = &mut self.receiver {
            // The sender lives as long as there is a receiver.
            let _ = receiver.changed().await;
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut followed = lock(&self.changes.followed);
        self.receiver = None;
        if followed.get(&self.session).is_some_and(|sender| sender.receiver_count() == 0) {
            followed.remove(&self.session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_follower_hears_of_its_session_and_leaves_nothing_behind() {
        let changes = Arc::new(Changes::default());
        let [mine, other] = [(); 2].map(|()| SessionId::mint(chrono::Utc::now()));
        let mut following = changes.follow(mine);
        changes.announce(other);
        assert!(!following.receiver.as_ref().expect("a receiver").has_changed().expect("a sender"));
        changes.announce(mine);
        following.changed().await;
        drop(following);
        assert!(lock(&changes.followed).is_empty());
    }
}
