//! PostgreSQL's partitions of `actions` and `session_facets`: one for each day of session starts, or for some days, made ahead
//! of time, and a DEFAULT one, so that nothing is refused for want of a partition. SQLite has none of this.
//!
//! A partition's name says its days. How wide partitions are made may change: those that are there stay as they are, and new
//! ones take the days that these leave. Both tables have the same.

mod drop;

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Mutex, PoisonError},
};

use chrono::{DateTime, NaiveDate, Utc};
use sea_orm::{ConnectionTrait as _, DbErr, FromQueryResult, Statement, Value};
use uuid::Uuid;

pub(super) use self::drop::{count_drop, detach};
use super::{Store, failure::Cause, hand_deletes::OWN_DELETE};
use crate::{
    error::Result,
    model::{SessionId, Window},
};

/// How many days ahead partitions are made.
pub const PARTITION_DAYS_AHEAD: u64 = 7;

/// No partitions of past days are made beyond this number: every one of them costs every query that cannot tell the day.
/// Sessions of further days lie in the DEFAULT partition and work just the same, until they expire: then they go one by one.
const MAX_PARTITIONS: usize = 400;

/// Rows that are moved at once: nobody reads or writes any of the table meanwhile.
const MAX_MOVED: i64 = 200_000;

/// The tables that have partitions, all of the same days.
pub(super) const TABLES: [&str; 2] = ["actions", "session_facets"];

/// The one of them of whose partitions it is told when somebody deletes from them by hand.
const WATCHED: &str = "actions";

/// What to do with a day's rows that lie in the DEFAULT partition.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strays {
    /// Make no partition, then.
    Leave,
    /// Move them into it, if they are not too many.
    Move,
}

/// A day in the name of a partition.
const DAY_IN_NAME: &str = "%Y%m%d";

/// Key of the advisory lock under which partitions are made: "reel" in ASCII, and 2.
pub(super) const PARTITION_LOCK: i64 = 0x7265_656c_0000_0002;

/// Days whose partition was seen to, so that not every session start asks the catalogue.
#[derive(Debug, Default)]
pub(super) struct KnownPartitions(Mutex<HashSet<NaiveDate>>);

impl KnownPartitions {
    fn contains(&self, day: NaiveDate) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&day)
    }

    fn insert(&self, day: NaiveDate) {
        let mut days = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if days.len() > 2 * MAX_PARTITIONS {
            days.clear();
        }
        days.insert(day);
    }
}

/// Finds the days that go with a day.
#[derive(Debug, Default)]
pub(super) struct WindowFinder(BTreeSet<Window>);

impl WindowFinder {
    pub(super) fn window_of(&self, day: NaiveDate) -> Window {
        // They are in order, and none overlaps another.
        let earlier = self.0.range(..=Window { first: day, last: NaiveDate::MAX }).next_back();
        earlier.copied().filter(|window| window.contains(day)).unwrap_or(Window::of_day(day))
    }
}

#[derive(FromQueryResult)]
struct Name {
    name: String,
}

#[derive(FromQueryResult)]
struct SessionOfRow {
    session_id: Uuid,
}

impl Store {
    /// Makes the partitions of the days from yesterday to [`PARTITION_DAYS_AHEAD`].
    pub async fn partitions_make_ahead(&self, now: DateTime<Utc>) -> Result<()> {
        if !self.is_postgres() {
            return Ok(());
        }
        let today = now.date_naive();
        let yesterday = today.pred_opt().unwrap_or(today);
        for day in yesterday.iter_days().take(2 + usize::try_from(PARTITION_DAYS_AHEAD).unwrap_or(0)) {
            self.partition_ensure(day, usize::MAX, Strays::Leave).await?;
        }
        Ok(())
    }

    /// Makes partitions ahead, and moves what lies in the DEFAULT partition to where it belongs. Safe to run in several
    /// processes at once, and while others write. What cannot be done now is done the next time.
    pub async fn partitions_maintain(&self, now: DateTime<Utc>) -> Result<()> {
        if !self.is_postgres() {
            return Ok(());
        }
        let mut outcome = self.partitions_make_ahead(now).await.and(self.partitions_watch().await);
        for table in TABLES {
            let mut after = Uuid::nil();
            while let Some(session) = self.first_session_in_default(table, after).await? {
                let day = session.started_at().date_naive();
                outcome = outcome.and(self.partition_ensure(day, MAX_PARTITIONS, Strays::Move).await);
                after = Window::of_day(day).bounds().1;
            }
        }
        outcome
    }

    /// Makes the partition for a session of a day that has none yet, if that can be done without holding others up. Where it
    /// cannot, the DEFAULT partition takes the actions, and maintenance moves them later, unless they are too many by then.
    pub(super) async fn partition_ensure_for(&self, session: SessionId) {
        if !self.is_postgres() {
            return;
        }
        let day = session.started_at().date_naive();
        if self.known_partitions.contains(day) {
            return;
        }
        if let Err(error) = self.partition_ensure(day, MAX_PARTITIONS, Strays::Leave).await {
            tracing::warn!(%error, "no partition could be made now, the default one takes the session");
        }
        // Tried once: the rest is for maintenance.
        self.known_partitions.insert(day);
    }

    async fn partition_ensure(&self, day: NaiveDate, limit: usize, strays: Strays) -> Result<()> {
        for table in TABLES {
            let windows = windows_of_table(&self.read, table).await?;
            if windows.iter().any(|window| window.contains(day)) || windows.len() >= limit {
                continue;
            }
            match self.partition_create(table, day, strays).await {
                // Somebody holds what we need; next time.
                Err(error) if Cause::of(&error) == Cause::Contention => {
                    tracing::warn!(table, %day, "partition not made: the table is in use");
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    async fn partition_create(&self, table: &str, day: NaiveDate, strays: Strays) -> Result<(), DbErr> {
        let tx = self.begin().await?;
        // A waiting exclusive lock holds up everybody behind it, so it does not wait for long.
        tx.execute_unprepared("SET LOCAL lock_timeout = '1s'").await?;
        tx.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({PARTITION_LOCK})")).await?;
        if windows_of_table(&tx, table).await?.iter().any(|window| window.contains(day)) {
            return tx.rollback().await;
        }
        let made = windows(&tx).await?;
        // The other table may have it already.
        let window = made.iter().find(|window| window.contains(day)).copied();
        let window = window.unwrap_or_else(|| Window::around(day, self.partition_days).without(day, made));
        let name = partition_name(table, window);
        let (from, to) = window.bounds();
        let has_strays = in_default(&tx, table, from, Some(to)).await?.is_some();
        if has_strays && (strays == Strays::Leave || are_too_many(&tx, table, from, to).await?) {
            tracing::warn!(partition = name, "partition not made: its rows lie in the default one");
            return tx.rollback().await;
        }
        // Who reads the DEFAULT one as it was does not look there any more for what belongs into this one.
        if has_strays || was_used(&tx, table).await? {
            count_drop(&tx).await?;
        }
        // ATTACH, unlike CREATE … PARTITION OF, lets others go on reading and writing other partitions.
        tx.execute_unprepared(&format!("CREATE TABLE {name} (LIKE {table} INCLUDING ALL)")).await?;
        if table == WATCHED {
            tx.execute_unprepared(&format!("SELECT reel_watch_deletes('{name}')")).await?;
        }
        if has_strays {
            tx.execute_unprepared(OWN_DELETE).await?;
            tx.execute_unprepared(&format!("ALTER TABLE {table} DETACH PARTITION {table}_default")).await?;
            tx.execute_unprepared(&format!(
                "WITH moved AS (DELETE FROM {table}_default WHERE session_id >= '{from}' AND session_id < '{to}' \
                 RETURNING *) INSERT INTO {name} SELECT * FROM moved"
            ))
            .await?;
        }
        tx.execute_unprepared(&format!(
            "ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{from}') TO ('{to}')"
        ))
        .await?;
        if has_strays {
            tx.execute_unprepared(&format!("ALTER TABLE {table} ATTACH PARTITION {table}_default DEFAULT")).await?;
        }
        tx.commit().await?;
        tracing::info!(partition = name, moved = has_strays, "partition made");
        Ok(())
    }

    /// The days that are in a partition with others, or that go alone: of a day, all that go with it.
    pub(super) async fn window_finder(&self) -> Result<WindowFinder> {
        if !self.is_postgres() {
            return Ok(WindowFinder::default());
        }
        Ok(WindowFinder(windows(&self.read).await?))
    }

    async fn first_session_in_default(&self, table: &str, from: Uuid) -> Result<Option<SessionId>> {
        // With as many partitions as there may be, what lies in the default one stays there.
        if windows_of_table(&self.read, table).await?.len() >= MAX_PARTITIONS {
            return Ok(None);
        }
        Ok(in_default(&self.read, table, from, None).await?.map(SessionId::from_uuid))
    }
}

/// The windows of which a table has partitions. The DEFAULT one, and what somebody else has made, is none of them.
pub(super) async fn windows_of_table(
    connection: &impl sea_orm::ConnectionTrait,
    table: &str,
) -> Result<BTreeSet<Window>, DbErr> {
    let statement = Statement::from_string(
        connection.get_database_backend(),
        format!(
            "SELECT c.relname::text AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
             WHERE i.inhparent = '{table}'::regclass"
        ),
    );
    let names = Name::find_by_statement(statement).all(connection).await?;
    Ok(names.into_iter().filter_map(|row| partition_window(table, &row.name)).collect())
}

/// The windows of which any table has partitions. No two of them have a day in common.
async fn windows(connection: &impl sea_orm::ConnectionTrait) -> Result<BTreeSet<Window>, DbErr> {
    let mut windows = BTreeSet::new();
    for table in TABLES {
        windows.extend(windows_of_table(connection, table).await?);
    }
    Ok(windows)
}

/// Whether there are more strays than may be moved while everybody waits.
async fn are_too_many(
    connection: &impl sea_orm::ConnectionTrait,
    table: &str,
    from: Uuid,
    to: Uuid,
) -> Result<bool, DbErr> {
    let statement = Statement::from_sql_and_values(
        connection.get_database_backend(),
        format!("SELECT session_id FROM {table}_default WHERE session_id >= $1 AND session_id < $2 OFFSET $3 LIMIT 1"),
        [from.into(), to.into(), MAX_MOVED.into()],
    );
    Ok(SessionOfRow::find_by_statement(statement).one(connection).await?.is_some())
}

/// Whether there may be rows in the DEFAULT partition that anybody still sees.
async fn was_used(connection: &impl sea_orm::ConnectionTrait, table: &str) -> Result<bool, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        is_so: bool,
    }
    let sql = format!("SELECT pg_relation_size('{table}_default') > 0 AS is_so");
    let statement = Statement::from_string(connection.get_database_backend(), sql);
    Ok(Row::find_by_statement(statement).one(connection).await?.is_none_or(|row| row.is_so))
}

/// The first session in the DEFAULT partition, by id, in a range.
async fn in_default(
    connection: &impl sea_orm::ConnectionTrait,
    table: &str,
    from: Uuid,
    to: Option<Uuid>,
) -> Result<Option<Uuid>, DbErr> {
    let statement = Statement::from_sql_and_values(
        connection.get_database_backend(),
        format!(
            "SELECT session_id FROM {table}_default WHERE session_id >= $1 AND session_id <= $2 \
             ORDER BY session_id LIMIT 1"
        ),
        [from.into(), Value::from(to.unwrap_or(Uuid::max()))],
    );
    let row = SessionOfRow::find_by_statement(statement).one(connection).await?;
    Ok(row.map(|row| row.session_id).filter(|session| to.is_none_or(|to| *session < to)))
}

/// Bytes of a window's partition of a table, with its indexes. 0 where it has none.
pub(super) async fn partition_bytes_of_table(
    connection: &impl sea_orm::ConnectionTrait,
    table: &str,
    window: Window,
) -> Result<i64, DbErr> {
    let name = partition_name(table, window);
    let sql = format!("SELECT coalesce(pg_total_relation_size(to_regclass('{name}')), 0) AS bytes");
    let row = connection.query_one_raw(Statement::from_string(connection.get_database_backend(), sql)).await?;
    Ok(row.map(|row| row.try_get("", "bytes")).transpose()?.unwrap_or(0))
}

/// As `actions_20261125`, or `actions_20261123_20261129`.
pub(super) fn partition_name(table: &str, window: Window) -> String {
    let first = window.first.format(DAY_IN_NAME);
    if window.first == window.last {
        format!("{table}_{first}")
    } else {
        format!("{table}_{first}_{}", window.last.format(DAY_IN_NAME))
    }
}

/// The window of a partition of that name. None for the DEFAULT one, and for what somebody else has made.
pub(super) fn partition_window(table: &str, name: &str) -> Option<Window> {
    let days = name.strip_prefix(table)?.strip_prefix('_')?;
    let (first, last) = days.split_once('_').unwrap_or((days, days));
    let day = |text| NaiveDate::parse_from_str(text, DAY_IN_NAME).ok();
    Some(Window { first: day(first)?, last: day(last)? }).filter(|window| window.first <= window.last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partitions_name_says_its_days() {
        let day = NaiveDate::from_ymd_opt(2026, 11, 25).expect("a date");
        for (days, name) in [(1, "actions_20261125"), (7, "actions_20261123_20261129")] {
            let window = Window::around(day, days);
            assert_eq!(partition_name("actions", window), name);
            assert_eq!(partition_window("actions", name), Some(window));
        }
        for other in ["actions_default", "actions_20261125_old", "actions_20261125_20261124", "actions_", "sessions"] {
            assert_eq!(partition_window("actions", other), None, "{other}");
        }
    }

    #[test]
    fn a_day_without_a_partition_goes_alone() {
        let day = NaiveDate::from_ymd_opt(2026, 11, 25).expect("a date");
        let week = Window::around(day, 7);
        let finder = WindowFinder([week].into());
        assert_eq!(finder.window_of(day), week);
        let next = week.last.succ_opt().expect("a date");
        assert_eq!(finder.window_of(next), Window::of_day(next));
    }
}
