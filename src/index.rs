//! The background indexer: keeps the index up with what is written. Every process has one; on PostgreSQL one at a time works.
//!
//! Answers do not wait for it: what is not in the index yet is read directly. It decides when a session is worth indexing;
//! how that is done is in `store/index.rs`.

mod renewal;

use std::time::Duration;

use chrono::TimeDelta;
use tokio::time::{MissedTickBehavior, interval};

pub use self::renewal::renew;
use crate::{
    error::Result,
    store::{Due, FacetIds, Store},
};

/// How often it looks for sessions that are due.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A session is indexed when nothing has arrived for this long: often enough it goes on right after.
const QUIET_FOR: TimeDelta = TimeDelta::seconds(2);

/// A session that goes on is indexed again when it has grown by half, and by so many actions: fewer are quickly read.
const GROWN_BY: i64 = 1_000;

/// Sessions that are looked for at once.
const SESSIONS_A_LOOK: u64 = 5_000;

/// Indexes what is due, for ever.
pub async fn keep(store: &Store) {
    let mut ids = FacetIds::default();
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = store.unless_away(catch_up(store, &mut ids)).await {
            tracing::warn!(%error, "sessions not indexed, trying again");
        }
    }
}

/// Indexes all sessions that are due.
async fn catch_up(store: &Store, ids: &mut FacetIds) -> Result<()> {
    loop {
        let due =
            store.index_due(Due { quiet_since: store.now() - QUIET_FOR, grown_by: GROWN_BY }, SESSIONS_A_LOOK).await?;
        if due.is_empty() {
            return Ok(());
        }
        let Some(claim) = store.index_claim().await? else { return Ok(()) };
        let indexed = store.index_sessions(&due, ids).await;
        claim.release().await;
        let actions = indexed?;
        tracing::debug!(sessions = due.len(), actions, "sessions indexed");
    }
}
