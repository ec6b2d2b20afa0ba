//! How far back sessions may start, and how long it is known of an erased one that it was.
//!
//! Each service says what its retention is, before it takes anything and every hour. When one forgets, the longest retention of
//! the last day decides which day is the first on which sessions may still start, the horizon; it is written down, and only
//! moves on. Whatever the configuration of a service, it takes no new session that starts before, and what was erased
//! is known for as long as its own start does not lie before. So no erased session can come back, whoever forgets how much.

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, DbErr, EntityTrait as _, FromQueryResult, QueryFilter as _, Set, Statement,
    sea_query::OnConflict,
};

use super::Store;
use crate::{
    error::{Error, Result},
    model::{RetentionPolicy, SessionId, Window},
    store::entity::retention,
};

/// How long a retention counts after a service has last said that it has it.
const COUNTS_FOR: TimeDelta = TimeDelta::days(1);

/// How long it is remembered what was erased, at the least.
const REMEMBERED_AT_LEAST: TimeDelta = TimeDelta::days(1);

/// Stands for a retention that keeps sessions for ever, and for any number of bytes.
pub(super) const NO_LIMIT: i64 = i64::MAX;

#[derive(FromQueryResult)]
struct Horizon {
    first_day: NaiveDate,
}

/// The seconds that a policy keeps sessions for. A fraction of one counts as a whole one.
pub(super) fn keep_s(policy: &RetentionPolicy) -> i64 {
    policy
        .forgets_after()
        .map_or(NO_LIMIT, |keep_for| keep_for.num_seconds().saturating_add(i64::from(keep_for.subsec_nanos() > 0)))
}

impl Store {
    /// Says that a service has this retention. What was erased is remembered for as long as any service would take it again.
    pub async fn retention_announce(&self, policy: &RetentionPolicy) -> Result<()> {
        let row = retention::ActiveModel {
            keep_s: Set(keep_s(policy)),
            max_bytes: Set(policy.budget().unwrap_or(NO_LIMIT)),
            seen_at: Set(self.now()),
            ..Default::default()
        };
        let seen = OnConflict::columns([retention::Column::KeepS, retention::Column::MaxBytes])
            .update_column(retention::Column::SeenAt)
            .to_owned();
        retention::Entity::insert(row).on_conflict(seen).exec_without_returning(&self.write).await?;
        Ok(())
    }

    /// Moves the horizon on to the first day that the longest retention keeps: this one, or one that a service had within the
    /// last day.
    pub(super) async fn horizon_move(&self, policy: &RetentionPolicy, now: DateTime<Utc>) -> Result<()> {
        let counted = now.checked_sub_signed(COUNTS_FOR).unwrap_or(DateTime::<Utc>::MIN_UTC);
        let rows = retention::Entity::find().filter(retention::Column::SeenAt.gt(counted)).all(&self.write).await?;
        let longest = rows.iter().map(|row| row.keep_s).chain([keep_s(policy)]).max().unwrap_or(NO_LIMIT);
        let keep_for = TimeDelta::try_seconds(longest);
        let longest = RetentionPolicy { keep_for, ..RetentionPolicy::default() };
        let (before, today) = (first_day(&self.write).await?, now.date_naive());
        // A clock that was wrong must not keep everybody out for longer than it was.
        let after = longest.first_kept_day(now).map_or(before, |first| first.max(before)).min(today);
        if after != before {
            let sql = "UPDATE retention_horizon SET first_day = $1 WHERE first_day = $2";
            let values = [after.into(), before.into()];
            self.write.execute_raw(Statement::from_sql_and_values(self.backend, sql, values)).await?;
        }
        Ok(())
    }

    /// Forgets of what was erased that it was, where it cannot come back: it started before the horizon.
    pub(super) async fn tombstones_expire(&self, now: DateTime<Utc>) -> Result<()> {
        let horizon = first_day(&self.write).await?;
        let Some(lately) = now.checked_sub_signed(REMEMBERED_AT_LEAST) else { return Ok(()) };
        let tombstones = "DELETE FROM tombstones WHERE session_id < $1 AND erased_at < $2";
        let erasures = "DELETE FROM erasures WHERE finished_at < $1";
        let horizon = Window::of_day(horizon).start();
        let values = vec![SessionId::least_at(horizon).into(), lately.into()];
        let finished_before = vec![horizon.min(lately).into()];
        for (sql, values) in [(tombstones, values), (erasures, finished_before)] {
            self.write.execute_raw(Statement::from_sql_and_values(self.backend, sql, values)).await?;
        }
        Ok(())
    }
}

/// The first day on which sessions may start.
pub(super) async fn first_day(connection: &impl ConnectionTrait) -> Result<NaiveDate, DbErr> {
    let sql = "SELECT first_day FROM retention_horizon";
    let row = Horizon::find_by_statement(Statement::from_string(connection.get_database_backend(), sql));
    Ok(row.one(connection).await?.map_or(NaiveDate::default(), |horizon| horizon.first_day))
}

/// Why a new session may not be started, where it would start before the horizon.
///
/// To be asked after it was looked whether the session was erased: the horizon is moved before anything is forgotten of that.
pub(in crate::store) async fn too_old(
    connection: &impl ConnectionTrait,
    session: SessionId,
    now: DateTime<Utc>,
) -> Result<Option<Error>, DbErr> {
    let (started_on, today) = (session.started_at().date_naive(), now.date_naive());
    if started_on >= today {
        return Ok(None);
    }
    let horizon = first_day(connection).await?.min(today);
    let limit = (now - Window::of_day(horizon).start()).num_seconds().unsigned_abs();
    Ok((started_on < horizon).then_some(Error::OlderThanRetention { limit_seconds: limit }))
}
