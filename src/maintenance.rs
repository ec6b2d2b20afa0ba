//! What has to be done from time to time: ending idle sessions, making partitions ahead, forgetting what is not kept, going on
//! with erasures that were broken off, and closing connections that nobody uses. Every process does it; all of it is safe to do
//! at the same time.

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use tokio::time::{Instant, MissedTickBehavior, interval};

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

/// How often it is said that it has stopped.
const DOUBT_SAID_EVERY: Duration = Duration::from_hours(1);

/// How often it is said that somebody else is still at it.
const RUNNING_SAID_EVERY: Duration = Duration::from_mins(10);

/// How often the policy is told to other processes. It counts for a day.
const ANNOUNCED_EVERY: Duration = Duration::from_hours(1);

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
    let announcement = async {
        let mut ticks = interval(ANNOUNCED_EVERY);
        loop {
            ticks.tick().await;
            if let Err(error) = store.unless_away(store.retention_announce(policy)).await {
                tracing::warn!(%error, "the retention is not announced, trying again later");
                ticks.reset_after(RETENTION_EVERY);
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
    tokio::join!(partitions, idle, announcement, forget(store, policy), erasures, connections);
}

/// Applies retention for ever. Where it stops because something is in doubt, that is said once, and then from time to time.
async fn forget(store: &Store, policy: &RetentionPolicy) {
    let mut ticks = interval(RETENTION_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said: Option<Instant> = None;
    // Since when others have been at it, and when that was said.
    let mut running: Option<(Instant, Instant)> = None;
    loop {
        ticks.tick().await;
        let outcome = store.unless_away(store.retention_keep_up(policy, store.now())).await;
        running = running.filter(|_| matches!(outcome, Err(Error::RetentionRunning)));
        match outcome {
            Ok(_) => {
                if said.take().is_some() {
                    tracing::info!("retention goes on");
                }
            }
            Err(Error::RetentionUnconfirmed(doubt)) => {
                if said.is_none_or(|at| at.elapsed() >= DOUBT_SAID_EVERY) {
                    said = Some(Instant::now());
                    tracing::warn!(
                        %doubt,
                        "retention has stopped: if the clock and the policy are right, run `reel retention --confirm` with \
                         the arguments of this service"
                    );
                }
            }
            // Another process is at it, or one that has died was.
            Err(Error::RetentionRunning) => {
                ticks.reset_after(RETENTION_AGAIN_AFTER);
                let (since, said) = running.get_or_insert_with(|| (Instant::now(), Instant::now()));
                if said.elapsed() >= RUNNING_SAID_EVERY {
                    *said = Instant::now();
                    let minutes = since.elapsed().as_secs() / 60;
                    tracing::warn!(minutes, "retention waits: another process is at it, or its lease has not ended");
                }
            }
            Err(error) => tracing::warn!(%error, "retention not applied, trying again later"),
        }
    }
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
