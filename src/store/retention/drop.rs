//! Dropping the partitions of a day, or of a wider window.
//!
//! One transaction, so that a crash leaves all of it or nothing. Its sessions are deleted first, which locks nothing
//! but them; then the partitions are detached, for which nobody else may be using the tables, and which is therefore tried
//! for moments only; whatever session is still there by then is moved aside; then the partitions are dropped.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait as _, DatabaseTransaction, DbErr, FromQueryResult, Statement};

use super::{MAY_GO, Store, horizon::first_day};
use crate::{
    error::Result,
    model::{ExpiredDay, Window},
    store::{
        changes::{Erased, notify_erased_in_txn},
        failure::{Attempts, Failure},
        hand_deletes::OWN_DELETE,
        index::FACETS_LOCK,
        partition::{TABLES, count_drop, detach, partition_bytes_of_table, partition_name, windows_of_table},
        track::ACTIONS_OF_TRACK,
    },
};

#[derive(FromQueryResult)]
struct Gone {
    sessions: i64,
    actions: i64,
}

impl Store {
    /// Drops a window with all of its sessions, but for those that are pinned.
    pub(super) async fn window_drop(&self, day: ExpiredDay, now: DateTime<Utc>) -> Result<ExpiredDay> {
        let mut attempts = Attempts::default();
        loop {
            match self.window_drop_once(day, now).await {
                Ok(gone) => return Ok(gone),
                Err(failure) => attempts.again_after(failure).await?,
            }
        }
    }

    async fn window_drop_once(&self, day: ExpiredDay, now: DateTime<Utc>) -> Result<ExpiredDay, Failure> {
        self.partitions_are_free().await?;
        let tx = self.begin_long().await?;
        let (from, to) = day.window.bounds();
        tx.execute_unprepared(&format!("SET LOCAL reel.expiring = 'on'; {OWN_DELETE}")).await?;
        // Indexers write to the tables and to the roll-up of these days: not meanwhile.
        tx.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({FACETS_LOCK})")).await?;
        let mut bytes = 0;
        for table in TABLES {
            bytes += partition_bytes_of_table(&tx, table, day.window).await?;
        }
        // Before the horizon nothing can be started again.
        let horizon = Window::of_day(first_day(&tx).await?);
        let (mut values, mut tombstones) = (vec![now.into(), from.into(), to.into()], "");
        if horizon.first <= day.window.last {
            values.push(horizon.bounds().0.into());
            tombstones = ", kept AS (INSERT INTO tombstones (session_id, erased_at) \
                 SELECT id, $1 FROM gone WHERE id >= $4 ON CONFLICT DO NOTHING)";
        }
        let sql = format!(
            "WITH gone AS (DELETE FROM sessions WHERE id >= $2 AND id < $3 AND {MAY_GO} RETURNING id, segment_id), \
             left_behind AS (UPDATE segments SET stale = stale + 1 WHERE id IN (SELECT segment_id FROM gone)){tombstones} \
             SELECT (SELECT count(*) FROM gone) AS sessions, CAST(coalesce(sum({ACTIONS_OF_TRACK}), 0) AS bigint) AS actions FROM tracks \
             WHERE session_id >= $2 AND session_id < $3 AND session_id IN (SELECT id FROM gone)"
        );
        let statement = Statement::from_sql_and_values(self.backend, sql, values);
        let gone = Gone::find_by_statement(statement).one(&tx).await?.unwrap_or(Gone { sessions: 0, actions: 0 });
        count_drop(&tx).await?;
        let (mut partitions, mut without) = (Vec::new(), Vec::new());
        for table in TABLES {
            if windows_of_table(&tx, table).await?.contains(&day.window) {
                partitions.push((table, partition_name(table, day.window)));
            } else {
                without.push(table);
            }
        }
        detach(&tx, &partitions).await?;
        // Nothing new comes into the tables now.
        let Window { first, last } = day.window;
        tx.execute_unprepared(&format!("DELETE FROM facet_days WHERE day BETWEEN '{first}' AND '{last}'")).await?;
        if is_any_left(&tx, day.window).await? {
            keep(&tx, &partitions, day.window).await?;
        }
        // One of them may have had no partition.
        for table in without {
            tx.execute_unprepared(&format!(
                "DELETE FROM {table} WHERE {} AND session_id NOT IN ({})",
                is_within("session_id", day.window),
                sessions_of(day.window)
            ))
            .await?;
        }
        for (_, name) in &partitions {
            tx.execute_unprepared(&format!("DROP TABLE {name}")).await?;
        }
        notify_erased_in_txn(&tx, Erased::Any).await?;
        tx.commit().await?;
        self.tell_erased(Erased::Any);
        Ok(ExpiredDay { sessions: gone.sessions, actions: gone.actions, bytes, ..day })
    }
}

/// A condition on a session id.
fn is_within(id: &str, window: Window) -> String {
    let (from, to) = window.bounds();
    format!("{id} >= '{from}' AND {id} < '{to}'")
}

/// A query for the sessions that are left of a window.
fn sessions_of(window: Window) -> String {
    format!("SELECT id FROM sessions WHERE {}", is_within("id", window))
}

async fn is_any_left(tx: &DatabaseTransaction, window: Window) -> Result<bool, DbErr> {
    let sql = format!("{} LIMIT 1", sessions_of(window));
    Ok(tx.query_one_raw(Statement::from_string(tx.get_database_backend(), sql)).await?.is_some())
}

/// Moves the rows of whoever is left from detached partitions to where there is no partition, and counts them by day again.
async fn keep(tx: &DatabaseTransaction, partitions: &[(&str, String)], window: Window) -> Result<(), DbErr> {
    for (table, name) in partitions {
        let kept = sessions_of(window);
        tx.execute_unprepared(&format!("INSERT INTO {table} SELECT * FROM {name} WHERE session_id IN ({kept})"))
            .await?;
    }
    tx.execute_unprepared(&format!(
        "INSERT INTO facet_days (day, facet_id, action_count, session_count) \
         SELECT (sessions.started_at AT TIME ZONE 'UTC')::date, facet_id, sum(count), count(*) \
         FROM session_facets JOIN sessions ON sessions.id = session_id WHERE {} GROUP BY 1, 2",
        is_within("session_id", window)
    ))
    .await?;
    Ok(())
}
