//! Tells other processes on the same PostgreSQL which sessions have changed, by NOTIFY and LISTEN. With SQLite, processes do
//! not hear of each other.

use sea_orm::{ConnectionTrait as _, Statement, sqlx::postgres::PgListener};

use super::Store;
use crate::{error::Result, model::SessionId};

/// The channel of the notifications.
const CHANNEL: &str = "reel_changes";

/// How many session ids fit into one notification: PostgreSQL takes 7,999 bytes, an id and a comma are 37.
const SESSIONS_A_NOTIFICATION: usize = 200;

/// Hears of changes.
pub struct ChangeListener(PgListener);

impl Store {
    /// Tells all processes that these sessions have changed.
    pub async fn changes_notify(&self, sessions: &[SessionId]) -> Result<()> {
        if !self.is_postgres() {
            return Ok(());
        }
        for sessions in sessions.chunks(SESSIONS_A_NOTIFICATION) {
            let ids: Vec<_> = sessions.iter().map(SessionId::to_string).collect();
            let notify = Statement::from_sql_and_values(
                self.backend,
                "SELECT pg_notify($1, $2)",
                [CHANNEL.into(), ids.join(",").into()],
            );
            self.in_time(async { Ok(self.write.execute_raw(notify).await?) }).await?;
        }
        Ok(())
    }

    /// Begins to hear of changes. None with SQLite.
    pub async fn changes_listen(&self) -> Result<Option<ChangeListener>> {
        if !self.is_postgres() {
            return Ok(None);
        }
        let mut listener = PgListener::connect_with(self.read.get_postgres_connection_pool()).await?;
        listener.listen(CHANNEL).await?;
        Ok(Some(ChangeListener(listener)))
    }
}

impl ChangeListener {
    /// Waits for the next changes. None means that some may have been missed.
    pub async fn next(&mut self) -> Result<Option<Vec<SessionId>>> {
        let notification = self.0.try_recv().await?;
        Ok(notification
            .map(|notification| notification.payload().split(',').filter_map(|id| id.parse().ok()).collect()))
    }
}
