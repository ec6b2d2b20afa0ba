//! What is deleted of actions by hand makes their tracks dirty: triggers do that. On PostgreSQL each partition has its own. Reel's
//! own deletes say that they are.

use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, DatabaseBackend, DatabaseTransaction, DbErr, EntityTrait as _,
    QueryFilter as _, Statement,
};
use uuid::Uuid;

use super::{Store, entity::action, failure::Cause, partition::PARTITION_LOCK};
use crate::error::Result;

/// Watches what is deleted from partitions of `actions` that are not watched yet: older versions have made them, or somebody by
/// hand.
const WATCH: &str = "SELECT reel_watch_deletes(inhrelid) FROM pg_inherits WHERE inhparent = 'actions'::regclass \
     AND NOT EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = inhrelid AND tgname = 'actions_truncate')";

/// Says on PostgreSQL that whoever deletes is us, for the rest of a transaction.
pub(super) const OWN_DELETE: &str = "SET LOCAL reel.own_delete = 'on'";

/// Says that what is deleted of a session's actions is deleted by us, until [`own_deletes_end`].
pub(super) async fn own_deletes_begin(tx: &DatabaseTransaction, session: Uuid) -> Result<(), DbErr> {
    if tx.get_database_backend() == DatabaseBackend::Postgres {
        return tx.execute_unprepared(OWN_DELETE).await.map(|_| ());
    }
    // While any row is there, whoever deletes is us: SQLite has one writer, and nobody else sees the row.
    let sql = "INSERT INTO own_deletes (session_id) VALUES ($1)";
    tx.execute_raw(Statement::from_sql_and_values(DatabaseBackend::Sqlite, sql, [session.into()])).await.map(|_| ())
}

/// On PostgreSQL, the end of the transaction is the end of it.
pub(super) async fn own_deletes_end(tx: &DatabaseTransaction) -> Result<(), DbErr> {
    if tx.get_database_backend() == DatabaseBackend::Sqlite {
        tx.execute_unprepared("DELETE FROM own_deletes").await?;
    }
    Ok(())
}

/// Deletes the rows of a session's actions.
pub(super) async fn delete_actions_in_txn(tx: &DatabaseTransaction, session: Uuid) -> Result<(), DbErr> {
    own_deletes_begin(tx, session).await?;
    action::Entity::delete_many().filter(action::Column::SessionId.eq(session)).exec(tx).await?;
    own_deletes_end(tx).await
}

impl Store {
    /// Watches partitions that are not watched. Where somebody is at one for long, it is done the next time.
    pub(super) async fn partitions_watch(&self) -> Result<()> {
        let tx = self.begin().await?;
        // As where partitions are made: others wait behind a lock that is waited for.
        let lock = format!("SET LOCAL lock_timeout = '1s'; SELECT pg_advisory_xact_lock({PARTITION_LOCK})");
        match tx.execute_unprepared(&format!("{lock}; {WATCH}")).await {
            Ok(_) => Ok(tx.commit().await?),
            Err(error) if Cause::of(&error) == Cause::Contention => {
                tracing::warn!("a partition of actions is in use, what is deleted from it by hand is not noticed yet");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}
