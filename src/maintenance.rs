//! What has to be done from time to time: ending idle sessions, making partitions ahead, forgetting what is not kept, going on
//! with erasures that were broken off, and closing connections that nobody uses. Every process does it; all of it is safe to do
//! at the same time.

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    changes::Changes,
    error::{Error, Result},
    model::RetentionPolicy,
    store::Store,
};

/// How often partitions are looked after. They are made days ahead.
const PARTITIONS_EVERY: Duration = Duration::from_mins(10);

/// How often idle sessions are looked for, at the least.
const IDLE_EVERY: Duration = Duration::from_secs(30);

/// How many sessions are ended at once.
const IDLE_STEP: u64 = 500;

/// How often retention is applied.
const RETENTION_EVERY: Duration = Duration::from_mins(1);

/// When it is tried again where somebody else was at it: a lease of SQLite outlives its process by some seconds.
const RETENTION_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// How often erasures are gone on with, where there are any.
const ERASURES_EVERY: Duration = Duration::from_secs(10);

/// How often connections that nobody uses are closed.
const CONNECTIONS_EVERY: Duration = Duration::from_mins(10);

/// Does all of it, for ever.
pub async fn maintain(store: &Store, changes: &Arc<Changes>, idle_timeout: Duration, policy: &RetentionPolicy) {
    let partitions = async {
        let mut ticks = interval(PARTITIONS_EVERY);
        loop {
            ticks.tick().await;
            if let Err(error) = store.unless_away(store.partitions_maintain(store.now())).await {
                tracing::warn!(%error, "partitions not maintained, trying again later");
            }
        }
    };
    let idle = async {
        let mut ticks = interval(IDLE_EVERY.min(idle_timeout / 2).max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = store.unless_away(end_idle(store, changes, idle_timeout)).await {
                tracing::warn!(%error, "idle sessions not ended, trying again later");
            }
        }
    };
    let retention = async {
        let mut ticks = interval(RETENTION_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match store.unless_away(store.retention_apply(policy, store.now())).await {
                Ok(_) => {}
                // Another process is at it, or one that has died was.
                Err(Error::RetentionRunning) => ticks.reset_after(RETENTION_AGAIN_AFTER),
                Err(error) => tracing::warn!(%error, "retention not applied, trying again later"),
            }
        }
    };
    let erasures = async {
        let mut ticks = interval(ERASURES_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = store.erasures_wake() => {}
            }
            let resume = store.erasures_resume(store.now(), |session| changes.announce(session));
            match store.unless_away(resume).await {
                // Somebody still reads what is to go.
                Ok(()) | Err(Error::Contention) => {}
                Err(error) => tracing::warn!(%error, "erasures not finished, trying again later"),
            }
        }
    };
    let connections = async {
        let mut ticks = interval(CONNECTIONS_EVERY);
        loop {
            ticks.tick().await;
            store.connections_close_idle().await;
        }
    };
    tokio::join!(partitions, idle, retention, erasures, connections);
}

/// Takes back the ends of idle sessions that go on, and ends those of which nothing has arrived for the timeout.
async fn end_idle(store: &Store, changes: &Arc<Changes>, idle_timeout: Duration) -> Result<()> {
    let timeout = TimeDelta::from_std(idle_timeout).unwrap_or(TimeDelta::MAX);
    let Some(silent_since) = store.now().checked_sub_signed(timeout) else { return Ok(()) };
    let revived = store.session_revive().await?;
    if !revived.is_empty() {
        tracing::info!(sessions = revived.len(), "idle sessions are live again");
    }
    revived.into_iter().for_each(|session| changes.announce(session));
    loop {
        let ended = store.session_end_idle(silent_since, IDLE_STEP).await?;
        if ended.is_empty() {
            return Ok(());
        }
        tracing::info!(sessions = ended.len(), "idle sessions ended");
        ended.into_iter().for_each(|session| changes.announce(session));
    }
}
