//! Clearing up behind what has gone: users without sessions, facets that nothing has, pages of the file that hold nothing.

use std::sync::atomic::Ordering;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait as _, FromQueryResult, Statement};

use super::Store;
use crate::{
    error::Result,
    failpoint,
    model::RetentionPolicy,
    store::{
        connect::SQLITE_BUSY_TIMEOUT,
        failure::{Attempts, Failure},
        index::FACETS_LOCK,
    },
};

/// Users that are looked at between two statements.
const USERS_A_STEP: usize = 500;

/// Facets, and days of facets, that are looked at by one transaction.
const FACETS_A_STEP: u32 = 2_000;

/// Pages of the file that are given back by one transaction: 4 MiB.
const PAGES_A_STEP: u32 = 1_024;

/// What is swept by a step.
#[derive(Clone, Copy)]
enum Sweep {
    /// Days on which no session has a facet.
    Days,
    /// Facets with a greater number.
    Facets { after: i64 },
}

#[derive(FromQueryResult)]
struct Step {
    last: Option<i64>,
}

impl Store {
    /// Removes users who have no sessions any more, and had none lately.
    pub(super) async fn users_expire(&self, policy: &RetentionPolicy, now: DateTime<Utc>) -> Result<i64> {
        #[derive(FromQueryResult)]
        struct Row {
            id: String,
        }
        let Some(before) = policy.forgets_after().and_then(|keep_for| now.checked_sub_signed(keep_for)) else {
            return Ok(0);
        };
        let (mut after, mut gone) = (String::new(), 0);
        loop {
            let sql = format!(
                "SELECT users.id FROM users LEFT JOIN sessions ON sessions.user_id = users.id \
                 WHERE sessions.id IS NULL AND users.created_at < $1 AND users.id > $2 ORDER BY users.id LIMIT {USERS_A_STEP}"
            );
            let values = [before.into(), after.clone().into()];
            let rows = Row::find_by_statement(Statement::from_sql_and_values(self.backend, sql, values));
            let rows = rows.all(&self.read).await?;
            let Some(last) = rows.last() else { return Ok(gone) };
            after.clone_from(&last.id);
            for row in rows {
                // Looks again under the user's lock.
                gone += i64::from(self.user_delete(&row.id).await?);
            }
        }
    }

    /// Removes what nothing refers to, and gives the disk back what is free.
    pub(super) async fn clean_up(&self) -> Result<()> {
        let sweeps = self.has_erased.swap(false, Ordering::AcqRel) || self.has_empty_days().await?;
        let mut outcome = Ok(());
        if sweeps {
            outcome = self.facets_sweep().await;
            if outcome.is_err() {
                self.has_erased.store(true, Ordering::Release);
            }
        }
        outcome = outcome.and(self.give_back().await);
        // Something was erased.
        if sweeps { outcome.and(self.log_write_back().await.map(|_| ())) } else { outcome }
    }

    /// Whether the roll-up says anything of no session: somebody has deleted sessions by hand. Uses `facet_days_empty`.
    async fn has_empty_days(&self) -> Result<bool> {
        let sql = "SELECT day FROM facet_days WHERE session_count <= 0 LIMIT 1";
        Ok(self.read.query_one_raw(Statement::from_string(self.backend, sql)).await?.is_some())
    }

    /// Removes what the roll-up says of no session, and facets that are in no session. In steps, each a transaction of its own:
    /// whoever else writes waits for a moment only. Indexers wait meanwhile, and see before they write that a facet has gone
    /// which they remember.
    pub async fn facets_sweep(&self) -> Result<()> {
        while self.sweep_step(Sweep::Days).await?.is_some() {}
        let mut after = 0;
        while let Some(last) = self.sweep_step(Sweep::Facets { after }).await? {
            after = last;
            failpoint::reach("facets swept for a step");
        }
        Ok(())
    }

    async fn sweep_step(&self, sweep: Sweep) -> Result<Option<i64>> {
        let mut attempts = Attempts::default();
        loop {
            match self.sweep_step_once(sweep).await {
                Ok(last) => return Ok(last),
                Err(failure) => attempts.again_after(failure).await?,
            }
        }
    }

    /// Gives where the next step begins. None where there is nothing left.
    async fn sweep_step_once(&self, sweep: Sweep) -> Result<Option<i64>, Failure> {
        let tx = self.begin_long().await?;
        if self.is_postgres() {
            tx.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({FACETS_LOCK})")).await?;
        }
        let next = match sweep {
            Sweep::Days => {
                // Uses `facet_days_empty`.
                let empty = format!(
                    "DELETE FROM facet_days WHERE session_count <= 0 AND (day, facet_id) IN ( \
                         SELECT day, facet_id FROM facet_days WHERE session_count <= 0 LIMIT {FACETS_A_STEP})"
                );
                let gone = tx.execute_unprepared(&empty).await?.rows_affected();
                (gone > 0).then_some(0)
            }
            Sweep::Facets { after } => {
                let step = format!(
                    "SELECT CAST(max(id) AS bigint) AS last FROM ( \
                         SELECT id FROM facets WHERE id > $1 ORDER BY id LIMIT {FACETS_A_STEP}) AS step"
                );
                let step = Statement::from_sql_and_values(self.backend, step, [after.into()]);
                let last = Step::find_by_statement(step).one(&tx).await?.and_then(|step| step.last);
                if let Some(last) = last {
                    let sql = format!("DELETE FROM facets WHERE id > $1 AND id <= $2 AND {}", self.is_loose());
                    let values = [after.into(), last.into()];
                    tx.execute_raw(Statement::from_sql_and_values(self.backend, sql, values)).await?;
                }
                last
            }
        };
        tx.commit().await?;
        Ok(next)
    }

    /// Whether a facet is in no session: on PostgreSQL the roll-up knows without a look into each partition (and has an index
    /// for it), on SQLite the sessions' facets are in the order of facets.
    pub(in crate::store) fn is_loose(&self) -> &'static str {
        if self.is_postgres() {
            "NOT EXISTS (SELECT 1 FROM facet_days WHERE facet_days.facet_id = facets.id)"
        } else {
            "NOT EXISTS (SELECT 1 FROM session_facets WHERE session_facets.facet_id = facets.id)"
        }
    }

    /// Gives pages that hold nothing back to the file system. PostgreSQL does so by itself when a table is dropped.
    pub(in crate::store) async fn give_back(&self) -> Result<()> {
        if self.is_postgres() {
            return Ok(());
        }
        let mut free = self.pragma("freelist_count").await?;
        if free == 0 {
            return Ok(());
        }
        loop {
            // In steps: nobody else writes meanwhile.
            self.write.execute_unprepared(&format!("PRAGMA incremental_vacuum({PAGES_A_STEP})")).await?;
            let left = self.pragma("freelist_count").await?;
            if left == 0 || left >= free {
                break;
            }
            free = left;
        }
        Ok(())
    }

    /// Writes SQLite's log back into the file, which shrinks then, and has nothing of what was erased any more. Gives whether
    /// that was done: where somebody reads from the log it comes later, for writers would have to wait.
    pub(in crate::store) async fn log_write_back(&self) -> Result<bool> {
        #[derive(FromQueryResult)]
        struct Row {
            busy: i64,
        }
        if self.is_postgres() {
            return Ok(true);
        }
        self.write.execute_unprepared("PRAGMA busy_timeout = 0").await?;
        let write_back = Statement::from_string(self.backend, "PRAGMA wal_checkpoint(TRUNCATE)");
        let row = Row::find_by_statement(write_back).one(&self.write).await;
        let wait_again = format!("PRAGMA busy_timeout = {}", SQLITE_BUSY_TIMEOUT.as_millis());
        self.write.execute_unprepared(&wait_again).await?;
        Ok(row?.is_some_and(|row| row.busy == 0))
    }
}
