//! Tells other processes on the same PostgreSQL which sessions have changed, or were erased, by NOTIFY and LISTEN. With SQLite,
//! processes do not hear of each other.

use sea_orm::{
    ConnectionTrait as _, DatabaseBackend, DatabaseTransaction, DbErr, Statement, sqlx::postgres::PgListener,
};
use tokio::sync::broadcast;

use super::Store;
use crate::{error::Result, model::SessionId};

/// The channel of the notifications.
const CHANNEL: &str = "reel_changes";

/// The channel of what is erased: a session's id, or nothing for sessions that nobody has counted.
const ERASED_CHANNEL: &str = "reel_erased";

/// Erasures that a writer may be behind before it forgets everything.
pub(super) const ERASURES_AT_HAND: usize = 1_024;

/// What was erased.
#[derive(Clone, Copy, Debug)]
pub(super) enum Erased {
    /// This session.
    Session(SessionId),
    /// Any number of sessions.
    Any,
}

/// How many session ids fit into one notification: PostgreSQL takes 7,999 bytes, an id and a comma are 37.
const SESSIONS_A_NOTIFICATION: usize = 200;

/// Hears of changes.
pub struct ChangeListener {
    listener: PgListener,
    erased: broadcast::Sender<Erased>,
}

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
        listener.listen_all([CHANNEL, ERASED_CHANNEL]).await?;
        let listener = ChangeListener { listener, erased: self.erased.clone() };
        // Something may have been missed before.
        listener.tell_erased(Erased::Any);
        Ok(Some(listener))
    }

    /// Tells this process's writers what was erased, once that is committed.
    pub(super) fn tell_erased(&self, erased: Erased) {
        // Where nothing writes, nobody listens.
        let _ = self.erased.send(erased);
    }
}

/// Tells the writers of other processes what the transaction erases, when it is committed.
pub(super) async fn notify_erased_in_txn(tx: &DatabaseTransaction, erased: Erased) -> Result<(), DbErr> {
    if tx.get_database_backend() != DatabaseBackend::Postgres {
        return Ok(());
    }
    let text = match erased {
        Erased::Session(session) => session.to_string(),
        Erased::Any => String::new(),
    };
    let values = [ERASED_CHANNEL.into(), text.into()];
    let notify = Statement::from_sql_and_values(DatabaseBackend::Postgres, "SELECT pg_notify($1, $2)", values);
    tx.execute_raw(notify).await?;
    Ok(())
}

impl ChangeListener {
    /// Waits for the next changes. None means that some may have been missed.
    pub async fn next(&mut self) -> Result<Option<Vec<SessionId>>> {
        let Some(notification) = self.listener.try_recv().await? else { return Ok(None) };
        let sessions: Vec<SessionId> = notification.payload().split(',').filter_map(|id| id.parse().ok()).collect();
        if notification.channel() == ERASED_CHANNEL {
            self.tell_erased(sessions.first().map_or(Erased::Any, |session| Erased::Session(*session)));
        }
        Ok(Some(sessions))
    }

    fn tell_erased(&self, erased: Erased) {
        // Where nothing writes, nobody listens.
        let _ = self.erased.send(erased);
    }
}
