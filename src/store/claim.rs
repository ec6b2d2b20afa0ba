//! Locks of a whole process: what one of several processes should do at a time. They save work; that nothing is done twice does
//! not depend on them.

use sea_orm::{ConnectionTrait as _, DatabaseTransaction, Statement};

use super::Store;
use crate::error::Result;

impl Store {
    /// Takes a lock, for as long as the claim lasts. None if another has it. On SQLite everybody gets it: it has one writer.
    pub(super) async fn claim(&self, lock: i64) -> Result<Option<Claim>> {
        if !self.is_postgres() {
            return Ok(Some(Claim(None)));
        }
        let tx = self.begin().await?;
        // However long it is needed.
        tx.execute_unprepared("SET LOCAL idle_in_transaction_session_timeout = 0").await?;
        let sql = format!("SELECT pg_try_advisory_xact_lock({lock}) AS is_ours");
        let row = tx.query_one_raw(Statement::from_string(self.backend, sql)).await?;
        let is_ours = row.map(|row| row.try_get("", "is_ours")).transpose()?.unwrap_or(false);
        Ok(is_ours.then_some(Claim(Some(tx))))
    }
}

/// A lock that this process has.
#[derive(Debug)]
pub struct Claim(Option<DatabaseTransaction>);

impl Claim {
    /// Gives it up.
    pub async fn release(self) {
        if let Some(tx) = self.0
            && let Err(error) = tx.rollback().await
        {
            tracing::debug!(%error, "a lock was lost before it was given up");
        }
    }
}
