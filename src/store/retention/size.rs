//! How much room it all takes.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use sea_orm::{FromQueryResult, Statement};

use super::{DayRow, MAY_GO, Store, share};
use crate::{
    error::Result,
    model::{ArchiveStats, StorageStats, StoredDay, TableBytes, Window},
    store::{
        partition::{TABLES, partition_window},
        track::ACTIONS_OF_TRACK,
    },
};

/// Everything that is ours. A test compares it with what migrations make: others' tables in the same schema must not make
/// Reel forget.
const ALL_TABLES: &[&str] = &[
    "users",
    "sessions",
    "tracks",
    "tombstones",
    "erasures",
    "erasure_remains",
    "segments",
    "segment_files",
    "leases",
    "facets",
    "facet_days",
    "actions",
    "session_facets",
    "partition_drops",
    "index_definitions",
    "schema_compatibility",
    "retentions",
    "retention_horizon",
    "seaql_migrations",
];

#[derive(FromQueryResult)]
struct Bytes {
    bytes: i64,
}

#[derive(FromQueryResult)]
struct NamedBytes {
    name: String,
    table_bytes: i64,
    index_bytes: i64,
}

impl Store {
    /// Bytes of all tables with their indexes; on SQLite, of the file without what is free in it.
    pub(super) async fn bytes_in_use(&self) -> Result<i64> {
        if self.is_postgres() {
            let tables = self.table_bytes().await?;
            return Ok(tables.iter().map(|table| table.table_bytes + table.index_bytes).sum());
        }
        let (file, free) = self.file_bytes().await?;
        Ok(file - free)
    }

    /// Bytes of the file, and of what is free in it.
    async fn file_bytes(&self) -> Result<(i64, i64)> {
        let page = self.pragma("page_size").await?;
        Ok((self.pragma("page_count").await? * page, self.pragma("freelist_count").await? * page))
    }

    pub(super) async fn pragma(&self, name: &str) -> Result<i64> {
        // On the connection that writes: a reader may see the file as it was.
        let sql = format!("SELECT {name} AS bytes FROM pragma_{name}");
        let row = Bytes::find_by_statement(Statement::from_string(self.backend, sql)).one(&self.write).await?;
        Ok(row.map_or(0, |row| row.bytes))
    }

    /// The tree of partitions of a table that has none is empty: the table itself is counted beside it.
    async fn table_bytes(&self) -> Result<Vec<TableBytes>> {
        let names: Vec<_> = ALL_TABLES.iter().map(|name| format!("('{name}')")).collect();
        let sql = format!(
            "SELECT given.name, CAST(sum(pg_table_size(part.id)) AS bigint) AS table_bytes, \
                 CAST(sum(pg_indexes_size(part.id)) AS bigint) AS index_bytes \
             FROM (VALUES {}) AS given (name), LATERAL ( \
                 SELECT given.name::regclass AS id \
                 UNION SELECT relid FROM pg_partition_tree(given.name::regclass)) AS part \
             GROUP BY given.name ORDER BY 1",
            names.join(", ")
        );
        let rows = NamedBytes::find_by_statement(Statement::from_string(self.backend, sql)).all(&self.read).await?;
        let table =
            |row: NamedBytes| TableBytes { name: row.name, table_bytes: row.table_bytes, index_bytes: row.index_bytes };
        Ok(rows.into_iter().map(table).collect())
    }

    /// Bytes of the partitions of each window that has any.
    pub(super) async fn partition_bytes(&self) -> Result<BTreeMap<Window, i64>> {
        let mut windows = BTreeMap::new();
        if !self.is_postgres() {
            return Ok(windows);
        }
        for table in TABLES {
            let sql = format!(
                "SELECT c.relname::text AS name, pg_total_relation_size(c.oid) AS table_bytes, 0::bigint AS index_bytes \
                 FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = '{table}'::regclass"
            );
            let rows = NamedBytes::find_by_statement(Statement::from_string(self.backend, sql)).all(&self.read).await?;
            for row in rows {
                if let Some(window) = partition_window(table, &row.name) {
                    *windows.entry(window).or_default() += row.table_bytes;
                }
            }
        }
        Ok(windows)
    }

    /// Whether a window has partitions of its own.
    pub(super) async fn has_partitions(&self, window: Window) -> Result<bool> {
        Ok(self.partition_bytes().await?.contains_key(&window))
    }

    /// What is stored.
    pub async fn storage_stats(&self, now: DateTime<Utc>) -> Result<StorageStats> {
        let apart = self.apart().await?;
        let stats = apart.store.storage_stats_here(now).await;
        apart.end();
        stats
    }

    async fn storage_stats_here(&self, now: DateTime<Utc>) -> Result<StorageStats> {
        #[derive(FromQueryResult)]
        struct Range {
            users: i64,
            oldest: Option<DateTime<Utc>>,
            newest: Option<DateTime<Utc>>,
        }
        let sql = "SELECT (SELECT count(*) FROM users) AS users, (SELECT min(started_at) FROM sessions) AS oldest, \
             (SELECT max(started_at) FROM sessions) AS newest";
        let range = Range::find_by_statement(Statement::from_string(self.backend, sql)).one(&self.read).await?;
        let range = range.unwrap_or(Range { users: 0, oldest: None, newest: None });
        let day = self.day_of_session();
        let sql = format!(
            "SELECT day, count(*) AS sessions, CAST(sum(actions) AS bigint) AS actions, CAST(sum(kept) AS bigint) AS kept \
             FROM (SELECT {day} AS day, CASE WHEN {MAY_GO} THEN 0 ELSE 1 END AS kept, \
                     coalesce(recorded.actions, 0) AS actions \
                 FROM sessions LEFT JOIN ( \
                     SELECT session_id, sum({ACTIONS_OF_TRACK}) AS actions FROM tracks GROUP BY session_id \
                 ) AS recorded ON recorded.session_id = sessions.id) AS sized GROUP BY day ORDER BY day"
        );
        let statement = Statement::from_sql_and_values(self.backend, sql, [now.into()]);
        let rows = DayRow::find_by_statement(statement).all(&self.read).await?;
        let days = self.stored_days(rows).await?;
        let (tables, free_bytes) = if self.is_postgres() {
            (self.table_bytes().await?, 0)
        } else {
            let (file, free) = self.file_bytes().await?;
            (vec![TableBytes { name: "file".to_owned(), table_bytes: file, index_bytes: 0 }], free)
        };
        let archive = self.archive_stats().await?;
        let (oldest, newest) = (range.oldest, range.newest);
        Ok(StorageStats { days, users: range.users, tables, free_bytes, oldest, newest, archive })
    }

    async fn stored_days(&self, rows: Vec<DayRow>) -> Result<Vec<StoredDay>> {
        let finder = self.window_finder().await?;
        let day = |row: DayRow| {
            let day: NaiveDate = row.day.parse().ok()?;
            let (sessions, kept, actions) = (row.sessions, row.kept, row.actions);
            Some(StoredDay { day, window: finder.window_of(day), sessions, kept, actions, bytes: 0 })
        };
        let mut days: Vec<StoredDay> = rows.into_iter().filter_map(day).collect();
        let bytes = self.partition_bytes().await?;
        for days in days.chunk_by_mut(|day, next| day.window == next.window) {
            let actions = days.iter().map(|day| day.actions).sum();
            for day in days {
                let of_window = bytes.get(&day.window).copied().unwrap_or(0);
                let is_alone = day.window == Window::of_day(day.day);
                day.bytes = if is_alone { of_window } else { share(of_window, day.actions, actions) };
            }
        }
        Ok(days)
    }

    pub(super) async fn archive_stats(&self) -> Result<ArchiveStats> {
        #[derive(FromQueryResult)]
        struct Row {
            segments: i64,
            bytes: i64,
            sessions: i64,
            actions: i64,
        }
        let sql = "SELECT (SELECT count(*) FROM segments WHERE path IS NOT NULL) AS segments, \
             CAST((SELECT coalesce(sum(bytes), 0) FROM segments WHERE path IS NOT NULL) AS bigint) AS bytes, \
             (SELECT count(*) FROM sessions WHERE segment_id IS NOT NULL) AS sessions, \
             CAST((SELECT coalesce(sum(archived_count), 0) FROM sessions WHERE segment_id IS NOT NULL) AS bigint) AS actions";
        let row = Row::find_by_statement(Statement::from_string(self.backend, sql)).one(&self.read).await?;
        let stats = |row: Row| ArchiveStats {
            segments: row.segments,
            bytes: row.bytes,
            sessions: row.sessions,
            actions: row.actions,
        };
        Ok(row.map(stats).unwrap_or_default())
    }
}
