//! Forgetting: what has become too old, or too much, goes by days. On PostgreSQL a day is dropped with its partitions, or with
//! the other days of these; what lies in no partition of its own, and everything on SQLite, is erased session by session, in
//! small transactions.
//!
//! What would go is decided by the same query for a preview and for the deed.

mod apply;
mod caution;
mod clean;
mod drop;
mod horizon;
mod size;

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use sea_orm::{ConnectionTrait as _, DatabaseTransaction, FromQueryResult, Statement};
use uuid::Uuid;

pub(super) use self::{caution::Caution, horizon::too_old};
use super::{Store, failure::Failure, track::ACTIONS_OF_TRACK};
use crate::{
    error::{Error, Result},
    model::{ExpiredDay, ExpiryReason, RetentionPolicy, RetentionReport, SessionId, Window},
};

/// Key of the advisory lock of the process that forgets, and archives: "reel" in ASCII, and 4.
const RETENTION_LOCK: i64 = 0x7265_656c_0000_0004;

/// Sessions that are erased between two looks at what is left.
const SESSIONS_A_STEP: u64 = 100;

/// Whether a session may go with its day: a condition on `sessions`, with the time as its first parameter.
const MAY_GO: &str = "((sessions.pinned_until IS NULL OR sessions.pinned_until <= $1) \
    AND (sessions.expires_at IS NULL OR sessions.expires_at <= $1))";

/// Whether a session's own time has come. Uses `sessions_expiry`.
const HAS_EXPIRED: &str =
    "(sessions.expires_at <= $1 AND (sessions.pinned_until IS NULL OR sessions.pinned_until <= $1))";

#[derive(FromQueryResult)]
struct DayRow {
    day: String,
    sessions: i64,
    actions: i64,
    kept: i64,
}

/// What there is of a window.
#[derive(Clone, Copy, Debug, Default)]
struct Content {
    sessions: i64,
    actions: i64,
    kept: i64,
    /// Bytes of its partitions. None where it has none.
    bytes: Option<i64>,
}

impl Store {
    /// What [`Store::retention_apply`] would do now.
    pub async fn retention_preview(&self, policy: &RetentionPolicy, now: DateTime<Utc>) -> Result<RetentionReport> {
        let apart = self.apart().await?;
        let report = apart.store.retention_preview_here(policy, now).await;
        apart.end();
        report
    }

    async fn retention_preview_here(&self, policy: &RetentionPolicy, now: DateTime<Utc>) -> Result<RetentionReport> {
        let bytes_before = self.bytes_in_use().await?;
        let days = self.expired_days(policy, now, bytes_before).await?;
        let freed: i64 = days.iter().map(|day| day.bytes).sum();
        Ok(RetentionReport { days, bytes_before, bytes_after: bytes_before - freed, ..RetentionReport::default() })
    }

    /// The days that a policy does not keep, and what would go of them, the oldest first.
    async fn expired_days(
        &self,
        policy: &RetentionPolicy,
        now: DateTime<Utc>,
        bytes_in_use: i64,
    ) -> Result<Vec<ExpiredDay>> {
        let first_kept = policy.first_kept_day(now);
        let today = now.date_naive();
        // Beyond what is too old, all days count only where bytes do. Where there is an archive, they go there.
        let max_bytes = policy.max_bytes.filter(|_| policy.archive.is_none());
        let until = if max_bytes.is_some() { Some(today) } else { first_kept };
        let mut windows = match until {
            Some(until) => self.windows_before(until, now).await?,
            None => BTreeMap::new(),
        };
        if !self.is_postgres() {
            let actions = self.action_total().await?;
            windows
                .values_mut()
                .for_each(|content| content.bytes = Some(share(bytes_in_use, content.actions, actions)));
        }
        let mut bytes = bytes_in_use;
        let mut expired = Vec::new();
        for (window, Content { sessions, actions, kept, bytes: of_window }) in windows {
            // A partition that has only kept sessions stays as it is.
            if sessions == 0 && (kept > 0 || of_window.is_none()) {
                continue;
            }
            let is_old = first_kept.is_some_and(|first| window.last < first);
            let is_too_much = max_bytes.is_some_and(|max| bytes > max) && window.last < today;
            if !is_old && (!is_too_much || sessions == 0) {
                continue;
            }
            let reason = if is_old { ExpiryReason::Age } else { ExpiryReason::Bytes };
            let of_window = of_window.unwrap_or(0);
            bytes -= of_window;
            expired.push(ExpiredDay { window, reason, sessions, actions, bytes: of_window, kept });
        }
        self.add_days_to_archive(policy, now, bytes, &mut expired).await?;
        for day in self.own_days(now).await? {
            let goes_whole =
                |whole: &ExpiredDay| whole.reason != ExpiryReason::Archive && whole.window.contains(day.window.first);
            if !expired.iter().any(goes_whole) {
                expired.push(day);
            }
        }
        expired.sort_by_key(|day| day.window);
        Ok(expired)
    }

    /// The days whose sessions go to the archive: for their age, and the oldest where there are too many bytes.
    async fn add_days_to_archive(
        &self,
        policy: &RetentionPolicy,
        now: DateTime<Utc>,
        mut bytes_in_use: i64,
        expired: &mut Vec<ExpiredDay>,
    ) -> Result<()> {
        if policy.archive.is_none() {
            return Ok(());
        }
        let first_hot = policy.first_hot_day(now);
        let until = if policy.max_bytes.is_some() { Some(now.date_naive()) } else { first_hot };
        let Some(until) = until else { return Ok(()) };
        let mut days = self.windows_to_archive(until, now).await?;
        days.retain(|day| !expired.iter().any(|gone| gone.window == day.window));
        if !self.is_postgres() {
            // About a third of what a session takes stays, to find it by.
            let rows = self.action_row_total().await?;
            days.iter_mut().for_each(|day| day.bytes = share(bytes_in_use / 3 * 2, day.actions, rows));
        }
        for day in days {
            let is_old = first_hot.is_some_and(|first| day.window.last < first);
            if is_old || policy.max_bytes.is_some_and(|max| bytes_in_use > max) {
                bytes_in_use -= day.bytes;
                expired.push(day);
            }
        }
        Ok(())
    }

    /// The days of sessions whose own time has come.
    async fn own_days(&self, now: DateTime<Utc>) -> Result<Vec<ExpiredDay>> {
        let day = self.day_of_session();
        let sql = format!(
            "SELECT day, count(*) AS sessions, CAST(sum(actions) AS bigint) AS actions, CAST(0 AS bigint) AS kept \
             FROM (SELECT {day} AS day, (SELECT CAST(coalesce(sum({ACTIONS_OF_TRACK}), 0) AS bigint) FROM tracks \
                     WHERE tracks.session_id = sessions.id) AS actions \
                 FROM sessions WHERE {HAS_EXPIRED}) AS sized GROUP BY day"
        );
        let rows = DayRow::find_by_statement(Statement::from_sql_and_values(self.backend, sql, [now.into()]));
        let day = |row: DayRow| {
            Some(ExpiredDay {
                window: Window::of_day(row.day.parse().ok()?),
                reason: ExpiryReason::Own,
                sessions: row.sessions,
                actions: row.actions,
                bytes: 0,
                kept: 0,
            })
        };
        Ok(rows.all(&self.read).await?.into_iter().filter_map(day).collect())
    }

    /// What there is of each window that ends before this day.
    async fn windows_before(&self, until: NaiveDate, now: DateTime<Utc>) -> Result<BTreeMap<Window, Content>> {
        let finder = self.window_finder().await?;
        let mut windows: BTreeMap<Window, Content> = BTreeMap::new();
        let day = self.day_of_session();
        let sql = format!(
            "SELECT day, CAST(sum(may_go) AS bigint) AS sessions, CAST(sum(may_go * actions) AS bigint) AS actions, \
                 CAST(sum(1 - may_go) AS bigint) AS kept \
             FROM (SELECT {day} AS day, CASE WHEN {MAY_GO} THEN 1 ELSE 0 END AS may_go, \
                     coalesce(recorded.actions, 0) AS actions \
                 FROM sessions LEFT JOIN ( \
                     SELECT session_id, sum({ACTIONS_OF_TRACK}) AS actions FROM tracks WHERE session_id < $2 GROUP BY session_id \
                 ) AS recorded ON recorded.session_id = sessions.id \
                 WHERE sessions.id < $2) AS sized GROUP BY day"
        );
        let values = [now.into(), Window::of_day(until).bounds().0.into()];
        let rows = DayRow::find_by_statement(Statement::from_sql_and_values(self.backend, sql, values));
        for row in rows.all(&self.read).await? {
            let Ok(day) = row.day.parse() else { continue };
            let content = windows.entry(finder.window_of(day)).or_default();
            content.sessions += row.sessions;
            content.actions += row.actions;
            content.kept += row.kept;
        }
        for (window, bytes) in self.partition_bytes().await? {
            windows.entry(window).or_default().bytes = Some(bytes);
        }
        windows.retain(|window, _| window.last < until);
        Ok(windows)
    }

    /// Erases what has no partition of its own: session by session, each whole.
    async fn window_erase(&self, gone: &mut ExpiredDay, now: DateTime<Utc>) -> Result<()> {
        #[derive(FromQueryResult)]
        struct Row {
            id: Uuid,
        }
        let (from, to) = gone.window.bounds();
        let only_own = gone.reason == ExpiryReason::Own;
        let may_go = if only_own { HAS_EXPIRED } else { MAY_GO };
        let (mut after, mut outcome) = (from, Ok(()));
        loop {
            let sql = format!(
                "SELECT id FROM sessions WHERE id >= $2 AND id < $3 AND {may_go} ORDER BY id LIMIT {SESSIONS_A_STEP}"
            );
            let values = [now.into(), after.into(), to.into()];
            let rows = Row::find_by_statement(Statement::from_sql_and_values(self.backend, sql, values));
            let rows = rows.all(&self.write).await?;
            let Some(last) = rows.last() else { return outcome };
            // The first of the next step is not the last of this one, which may still be there.
            after = Uuid::from_u128(last.id.as_u128().saturating_add(1));
            for row in rows {
                match self.session_expire(SessionId::from_uuid(row.id), only_own, now).await {
                    Ok(actions) => {
                        gone.sessions += 1;
                        gone.actions += actions;
                    }
                    // Somebody else erased or pinned it first.
                    Err(Error::SessionNotFound) => {}
                    // The others go all the same.
                    Err(error) => outcome = outcome.and(Err(error)),
                }
            }
            self.give_back().await?;
        }
    }

    /// The text of the day of a session in SQL, as 2026-11-25.
    pub(super) fn day_of_session(&self) -> &'static str {
        if self.is_postgres() {
            "to_char(sessions.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
        } else {
            "substr(sessions.started_at, 1, 10)"
        }
    }

    async fn action_total(&self) -> Result<i64> {
        #[derive(FromQueryResult)]
        struct Row {
            actions: i64,
        }
        let sql = format!("SELECT CAST(coalesce(sum({ACTIONS_OF_TRACK}), 0) AS bigint) AS actions FROM tracks");
        let row = Row::find_by_statement(Statement::from_string(self.backend, sql)).one(&self.read).await?;
        Ok(row.map_or(0, |row| row.actions))
    }

    /// The number of actions that are not archived.
    async fn action_row_total(&self) -> Result<i64> {
        Ok(self.action_total().await? - self.archive_stats().await?.actions)
    }

    /// Begins a transaction that may take as long as it needs.
    pub(super) async fn begin_long(&self) -> Result<DatabaseTransaction, Failure> {
        let tx = self.begin().await?;
        if self.is_postgres() {
            tx.execute_unprepared("SET LOCAL statement_timeout = 0").await?;
        }
        Ok(tx)
    }
}

/// The share of a whole that some of all have.
fn share(whole: i64, some: i64, all: i64) -> i64 {
    let share = i128::from(whole) * i128::from(some) / i128::from(all.max(1));
    i64::try_from(share).unwrap_or(i64::MAX)
}
