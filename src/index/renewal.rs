//! Has everything indexed anew where the definitions have changed, in the background.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::store::Store;

/// How often some sessions are marked, while there are any.
const STEP_EVERY: Duration = Duration::from_millis(500);

/// Marks the sessions that older definitions have indexed. Ends when there are none any more.
pub async fn renew(store: &Store) {
    let mut ticks = interval(STEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match store.unless_away(store.definitions_renew()).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "sessions not marked to be indexed anew, trying again"),
        }
    }
}
