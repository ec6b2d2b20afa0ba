//! Whether a service may forget now, or asks first: what a wrong clock or a mistyped argument forgets is gone for good.
//!
//! Each time that retention is applied and nothing is in doubt, that is written down with the first day that it kept. Next time,
//! no more days may go than have passed since, and two; and time has passed where the stored time is not older than two days, or
//! where this process's monotonic clock says so. Where neither is the case, as after a restart, the clock may be wrong: then not
//! everything may go that was there, and on PostgreSQL no more than two days. (SQLite's file is often on machines that are off for
//! weeks.)

mod before;

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait as _, Condition, EntityTrait as _, FromQueryResult, QueryFilter as _, Set, Statement,
    sea_query::OnConflict,
};

use self::before::{Before, Moved, SLACK, due_days};
use super::{
    MAY_GO, Store,
    horizon::{NO_LIMIT, keep_s},
};
use crate::{
    error::{Error, Result},
    model::{Doubt, ExpiredDay, ExpiryReason, RetentionPolicy, SessionId},
    store::entity::retention,
};

/// How far ahead of the clock sessions start at the most, as a rule.
const LEAD: TimeDelta = TimeDelta::days(1);

/// What a process knows by itself.
#[derive(Debug, Default)]
pub(in crate::store) struct Caution {
    /// When it last applied retention: by the database's clock and by its own monotonic one.
    applied: Mutex<Option<(DateTime<Utc>, Instant)>>,
    /// Whether it has stopped.
    has_stopped: AtomicBool,
}

impl Caution {
    /// How far the clock has moved on since this process last applied retention, beyond what has passed by its monotonic clock.
    fn ahead(&self, now: DateTime<Utc>) -> Option<TimeDelta> {
        let (at, then) = (*self.applied.lock().unwrap_or_else(PoisonError::into_inner))?;
        let passed = TimeDelta::from_std(then.elapsed()).unwrap_or(TimeDelta::MAX);
        Some((now - at).checked_sub(&passed).unwrap_or(TimeDelta::zero()))
    }
}

/// Whether sessions would be lost.
fn is_lost(day: &ExpiredDay) -> bool {
    day.reason != ExpiryReason::Archive && day.sessions > 0
}

impl Store {
    /// Whether this process's retention has stopped, and waits for [`Store::retention_confirm`].
    #[must_use]
    pub fn retention_has_stopped(&self) -> bool {
        self.caution.has_stopped.load(Ordering::Acquire)
    }

    /// Whether the clock may not be believed for now: what it says to be old may be of today, and nothing is forgotten meanwhile.
    #[must_use]
    pub fn retention_doubts(&self, now: DateTime<Utc>) -> bool {
        self.retention_has_stopped() || self.caution.ahead(now).is_some_and(|ahead| ahead > SLACK)
    }

    /// Fails where a service must not forget what it would. Where it may, notes that it does, and says whether anything else may
    /// be concluded from what time it is.
    pub(super) async fn caution_check(
        &self,
        policy: &RetentionPolicy,
        now: DateTime<Utc>,
        days: &[ExpiredDay],
    ) -> Result<bool> {
        let before = self.applied_before(policy, now).await?;
        let moved = before.moved(self.caution.ahead(now), now);
        let doubt = self.doubt(&before, moved, policy, now, days).await?;
        self.caution.has_stopped.store(doubt.is_some(), Ordering::Release);
        if let Some(doubt) = doubt {
            return Err(Error::RetentionUnconfirmed(doubt));
        }
        // Where it cannot be told whether the clock is right, and nothing depends on it now, it stays so: others believe what is
        // noted. Some sessions may well have an expiry of their own that a wrong clock has passed.
        let is_sure = match moved {
            Moved::Never | Moved::Rightly(_) => true,
            Moved::Unseen(_) => days.iter().any(|day| is_lost(day) && day.reason != ExpiryReason::Own),
            Moved::Wrongly(_) | Moved::Back => false,
        };
        if is_sure {
            self.applied_note(policy, now).await?;
        }
        // From a time that is earlier than was believed before, nothing follows that did not then.
        Ok(is_sure || moved == Moved::Back)
    }

    /// Fails where no service has applied retention for so long that the clock may as well be wrong, and much would go. What is
    /// too much by the policy alone is not asked about: whoever gives it by hand means it.
    pub async fn retention_check_clock(&self, policy: &RetentionPolicy, now: DateTime<Utc>) -> Result<()> {
        let before = self.applied_before(policy, now).await?;
        let moved = before.moved(None, now);
        if !matches!(moved, Moved::Unseen(_)) {
            return Ok(());
        }
        let days = self.retention_preview(policy, now).await?.days;
        match self.doubt(&before, moved, policy, now, &days).await? {
            Some(doubt) => Err(Error::RetentionUnconfirmed(doubt)),
            None => Ok(()),
        }
    }

    async fn applied_before(&self, policy: &RetentionPolicy, now: DateTime<Utc>) -> Result<Before> {
        let rows = retention::Entity::find().all(&self.write).await?;
        Ok(Before::of(&rows, policy, now))
    }

    async fn doubt(
        &self,
        before: &Before,
        moved: Moved,
        policy: &RetentionPolicy,
        now: DateTime<Utc>,
        days: &[ExpiredDay],
    ) -> Result<Option<Doubt>> {
        let keeps_all = policy.forgets_after().is_none() && policy.budget().is_none() && !days.iter().any(is_lost);
        let passed = match moved {
            Moved::Never | Moved::Back => TimeDelta::zero(),
            Moved::Rightly(passed) => passed,
            Moved::Wrongly(_) if keeps_all => return Ok(None),
            Moved::Wrongly(ahead) => return Ok(Some(Doubt::Clock { days: ahead.num_days() })),
            Moved::Unseen(passed) => {
                let doubt = self.doubt_unseen(passed, now, days).await?;
                if doubt.is_some() {
                    return Ok(doubt);
                }
                if self.is_postgres() { TimeDelta::zero() } else { passed }
            }
        };
        Ok(before.too_many_days(days, due_days(policy, now, passed)))
    }

    /// Whether too much would go where so much time has passed, or none has.
    async fn doubt_unseen(&self, passed: TimeDelta, now: DateTime<Utc>, days: &[ExpiredDay]) -> Result<Option<Doubt>> {
        let applied_at = now - passed;
        // What started later did so by this clock, and says nothing of it: neither by being there, nor by an expiry of its own.
        let until = applied_at.checked_add_signed(LEAD).unwrap_or(applied_at);
        let is_own = |day: &ExpiredDay| day.reason == ExpiryReason::Own;
        let started_before = |day: &ExpiredDay| day.window.first <= until.date_naive();
        let in_doubt = || days.iter().filter(|day| is_lost(day) && (!is_own(day) || started_before(day)));
        let passed_days = passed.num_days();
        let sessions = in_doubt().map(|day| day.sessions).sum();
        if sessions > 0 && sessions >= self.sessions_that_may_go(now, until).await? {
            return Ok(Some(Doubt::Everything { days: passed_days, sessions }));
        }
        if !self.is_postgres() {
            return Ok(None);
        }
        // As with days, what has had its time soon after may go.
        let soon = self.own_days(applied_at.checked_add_signed(SLACK).unwrap_or(applied_at)).await?;
        let went_soon =
            |day: &ExpiredDay| soon.iter().find(|soon| soon.window == day.window).map_or(0, |soon| soon.sessions);
        let sessions = in_doubt().filter(|day| is_own(day)).map(|day| (day.sessions - went_soon(day)).max(0)).sum();
        Ok((sessions > 0).then_some(Doubt::Own { days: passed_days, sessions }))
    }

    /// Of the sessions that started before this time, those that may go with their days.
    async fn sessions_that_may_go(&self, now: DateTime<Utc>, started_before: DateTime<Utc>) -> Result<i64> {
        #[derive(FromQueryResult)]
        struct Count {
            sessions: i64,
        }
        let sql = format!("SELECT count(*) AS sessions FROM sessions WHERE {MAY_GO} AND sessions.id < $2");
        let values = [now.into(), SessionId::least_at(started_before).into()];
        let count = Count::find_by_statement(Statement::from_sql_and_values(self.backend, sql, values));
        Ok(count.one(&self.read).await?.map_or(0, |count| count.sessions))
    }

    /// Writes down that a policy is applied, and that nothing is in doubt. What other policies have written down goes when no
    /// service has them any more.
    pub(super) async fn applied_note(&self, policy: &RetentionPolicy, now: DateTime<Utc>) -> Result<()> {
        let row = retention::ActiveModel {
            keep_s: Set(keep_s(policy)),
            max_bytes: Set(policy.budget().unwrap_or(NO_LIMIT)),
            seen_at: Set(now),
            applied_at: Set(Some(now)),
            first_kept: Set(policy.first_kept_day(now)),
        };
        let (seen_at, others) = (retention::Column::SeenAt, [retention::Column::KeepS, retention::Column::MaxBytes]);
        let applied = OnConflict::columns(others)
            .update_columns([seen_at, retention::Column::AppliedAt, retention::Column::FirstKept])
            .to_owned();
        retention::Entity::insert(row).on_conflict(applied).exec_without_returning(&self.write).await?;
        if let Some((lately, soon)) = now.checked_sub_signed(SLACK).zip(now.checked_add_signed(SLACK)) {
            let is_over = Condition::any().add(seen_at.lt(lately)).add(seen_at.gt(soon));
            retention::Entity::delete_many().filter(is_over).exec(&self.write).await?;
        }
        *self.caution.applied.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, Instant::now()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_is_ahead_by_what_has_not_passed() {
        let caution = Caution::default();
        let now = "2026-11-20T00:00:00Z".parse::<DateTime<Utc>>().expect("a time");
        assert_eq!(caution.ahead(now), None);
        let then = Instant::now().checked_sub(Duration::from_secs(2)).expect("the machine has not just been started");
        *caution.applied.lock().expect("nobody else has it") = Some((now, then));
        for ahead in [TimeDelta::zero(), TimeDelta::days(3), TimeDelta::days(-3)] {
            let found = caution.ahead(now + TimeDelta::seconds(2) + ahead).expect("it was applied");
            // Time goes on meanwhile.
            assert!(found <= ahead && found > ahead - TimeDelta::hours(1), "{ahead} {found}");
        }
    }
}
