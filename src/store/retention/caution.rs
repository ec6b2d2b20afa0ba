//! Whether a service may forget now, or asks first: what a wrong clock or a mistyped argument forgets is gone for good.
//!
//! Each time that retention is applied and nothing is in doubt, that is written down with the first day that it kept. Next time,
//! no more days may go than have passed since, and two; and time has passed where the stored time is not older than two days, or
//! where this process's monotonic clock says so. Where neither is the case, as after a restart, the clock may be wrong: then not
//! everything may go that was there, and on PostgreSQL no more than two days. (SQLite's file is often on machines that are off for
//! weeks.)

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait as _, Condition, EntityTrait as _, FromQueryResult, QueryFilter as _, Set, Statement,
    sea_query::OnConflict,
};

use super::{
    MAY_GO, Store,
    horizon::{NO_LIMIT, keep_s},
};
use crate::{
    error::{Error, Result},
    model::{Doubt, ExpiredDay, ExpiryReason, RetentionPolicy, SessionId},
    store::entity::retention,
};

/// How far the clock may be ahead of the time that has passed, and how much more than has become too old may go at once.
const SLACK: TimeDelta = TimeDelta::days(2);

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

/// What is written down of the times before.
#[derive(Clone, Copy, Debug, Default)]
struct Before {
    /// When retention was last applied, by whatever service.
    applied_at: Option<DateTime<Utc>>,
    /// The first day that was kept then. None where all were.
    first_kept: Option<NaiveDate>,
    /// Whether as few bytes were allowed before.
    knows_budget: bool,
}

/// How far time has moved since retention was last applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    /// It was never applied.
    Never,
    /// So far, and as much has passed.
    Rightly(TimeDelta),
    /// So much further than has passed.
    Wrongly(TimeDelta),
    /// So far, and nobody was there to say how much has passed.
    Unseen(TimeDelta),
    /// To before what this process has seen: it was wrong then, or is now.
    Back,
}

impl Caution {
    /// How far the clock has moved on since this process last applied retention, beyond what has passed by its monotonic clock.
    fn ahead(&self, now: DateTime<Utc>) -> Option<TimeDelta> {
        let (at, then) = (*self.applied.lock().unwrap_or_else(PoisonError::into_inner))?;
        let passed = TimeDelta::from_std(then.elapsed()).unwrap_or(TimeDelta::MAX);
        Some((now - at).checked_sub(&passed).unwrap_or(TimeDelta::zero()))
    }
}

impl Before {
    /// Rows from a future that is none say nothing: the clock was wrong then.
    fn of(rows: &[retention::Model], policy: &RetentionPolicy, now: DateTime<Utc>) -> Self {
        let is_past = |at: DateTime<Utc>| at - now <= SLACK;
        let applied = || rows.iter().filter(|row| row.applied_at.is_some_and(is_past));
        let budget = policy.budget().unwrap_or(NO_LIMIT);
        Self {
            applied_at: applied().filter_map(|row| row.applied_at).max(),
            first_kept: applied().filter_map(|row| row.first_kept).max(),
            knows_budget: applied().any(|row| row.max_bytes <= budget),
        }
    }

    /// How far time has moved, where the clock is so far ahead of what this process has seen pass.
    fn moved(&self, ahead: Option<TimeDelta>, now: DateTime<Utc>) -> Moved {
        if ahead.is_some_and(|ahead| ahead < -SLACK) {
            return Moved::Back;
        }
        let Some(applied_at) = self.applied_at else { return Moved::Never };
        let moved = now - applied_at;
        match ahead {
            _ if moved <= SLACK => Moved::Rightly(moved.max(TimeDelta::zero())),
            None => Moved::Unseen(moved),
            Some(ahead) if ahead > SLACK => Moved::Wrongly(ahead),
            Some(_) => Moved::Rightly(moved),
        }
    }

    /// The days that would go and were kept until now, from the first to the last, and their sessions. Those that have an end of
    /// their own are not asked about, nor what is too much where no less was allowed before.
    fn newly_gone(&self, days: &[ExpiredDay]) -> Option<(NaiveDate, NaiveDate, i64)> {
        let counts = |day: &&ExpiredDay| match day.reason {
            ExpiryReason::Age => true,
            ExpiryReason::Bytes => !self.knows_budget,
            ExpiryReason::Own | ExpiryReason::Archive => false,
        };
        let first_kept = self.first_kept.unwrap_or(NaiveDate::MIN);
        let newly = || days.iter().filter(counts).filter(|day| day.sessions > 0 && day.window.last >= first_kept);
        let first = newly().map(|day| day.window.first).min()?.max(first_kept);
        let last = newly().map(|day| day.window.last).max()?;
        Some((first, last, newly().map(|day| day.sessions).sum()))
    }

    /// Whether too much would go, where so many days have become too old since.
    fn too_many_days(&self, days: &[ExpiredDay], due_days: i64) -> Option<Doubt> {
        let (first, last, sessions) = self.newly_gone(days)?;
        let is_too_much = (last - first).num_days() + 1 > SLACK.num_days() + due_days;
        is_too_much.then_some(Doubt::Days { first, last, sessions })
    }
}

/// How many days have become too old within the time that has passed.
fn due_days(policy: &RetentionPolicy, now: DateTime<Utc>, passed: TimeDelta) -> i64 {
    let first_kept = |at: DateTime<Utc>| policy.first_kept_day(at).unwrap_or(at.date_naive());
    now.checked_sub_signed(passed).map_or(0, |then| (first_kept(now) - first_kept(then)).num_days())
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
    use crate::model::Window;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    fn day(number: u32) -> NaiveDate {
        NaiveDate::from_ymd_opt(2026, 11, number).expect("a date")
    }

    fn going(days: std::ops::RangeInclusive<u32>, reason: ExpiryReason) -> Vec<ExpiredDay> {
        let going = |number| ExpiredDay {
            window: Window::of_day(day(number)),
            reason,
            sessions: 1,
            actions: 1,
            bytes: 1,
            kept: 0,
        };
        days.map(going).collect()
    }

    #[test]
    fn time_has_passed_where_the_stored_time_or_the_monotonic_clock_says_so() {
        let applied_at = at("2026-11-20T00:00:00Z");
        let before = Before { applied_at: Some(applied_at), ..Before::default() };
        let microsecond = TimeDelta::microseconds(1);
        let (near, far) = (applied_at + SLACK, applied_at + SLACK + microsecond);
        assert_eq!(Before::default().moved(None, far), Moved::Never);
        assert_eq!(before.moved(None, near), Moved::Rightly(SLACK));
        assert_eq!(before.moved(None, applied_at - TimeDelta::hours(1)), Moved::Rightly(TimeDelta::zero()));
        assert_eq!(before.moved(None, far), Moved::Unseen(SLACK + microsecond));
        // Another process has applied it, and time has passed for that one.
        assert_eq!(before.moved(Some(TimeDelta::days(9)), near), Moved::Rightly(SLACK));
        assert_eq!(before.moved(Some(SLACK), far), Moved::Rightly(SLACK + microsecond));
        assert_eq!(before.moved(Some(SLACK + microsecond), far), Moved::Wrongly(SLACK + microsecond));
        assert_eq!(before.moved(Some(-SLACK), near), Moved::Rightly(SLACK));
        assert_eq!(before.moved(Some(-SLACK - microsecond), near), Moved::Back);
    }

    #[test]
    fn a_clock_is_ahead_by_what_has_not_passed() {
        let caution = Caution::default();
        let now = at("2026-11-20T00:00:00Z");
        assert_eq!(caution.ahead(now), None);
        let then = Instant::now().checked_sub(Duration::from_secs(2)).expect("the machine has not just been started");
        *caution.applied.lock().expect("nobody else has it") = Some((now, then));
        for ahead in [TimeDelta::zero(), TimeDelta::days(3), TimeDelta::days(-3)] {
            let found = caution.ahead(now + TimeDelta::seconds(2) + ahead).expect("it was applied");
            // Time goes on meanwhile.
            assert!(found <= ahead && found > ahead - TimeDelta::hours(1), "{ahead} {found}");
        }
    }

    #[test]
    fn no_more_days_go_at_once_than_have_passed_and_two() {
        let first_kept = |first_kept| Before { first_kept, ..Before::default() };
        let too_many = |before: Before, days: &[ExpiredDay], due_days| {
            before.too_many_days(days, due_days).map(|doubt| match doubt {
                Doubt::Days { first, last, sessions } => (first, last, sessions),
                other => panic!("{other}"),
            })
        };
        let age = |days| going(days, ExpiryReason::Age);
        for (before, days, due_days, expected) in [
            (None, age(3..=4), 0, None),
            (None, age(3..=5), 0, Some((day(3), day(5), 3))),
            // What was not kept before does not count.
            (Some(day(5)), age(1..=6), 0, None),
            (Some(day(4)), age(1..=6), 0, Some((day(4), day(6), 3))),
            (Some(day(4)), age(1..=6), 1, None),
            (Some(day(4)), age(1..=7), 1, Some((day(4), day(7), 4))),
            (Some(day(4)), age(1..=7), 2, None),
            (Some(day(7)), age(1..=6), 0, None),
        ] {
            assert_eq!(too_many(first_kept(before), &days, due_days), expected, "{before:?} {days:?} {due_days}");
        }
        for (reason, knows_budget, asks) in [
            (ExpiryReason::Bytes, false, true),
            (ExpiryReason::Bytes, true, false),
            (ExpiryReason::Own, false, false),
            (ExpiryReason::Archive, false, false),
        ] {
            let before = Before { knows_budget, ..Before::default() };
            assert_eq!(too_many(before, &going(1..=9, reason), 0).is_some(), asks, "{reason:?}");
        }
        // Days that share a partition go when the last of them does; those before it were too old before.
        let week = ExpiredDay { window: Window { first: day(2), last: day(8) }, ..age(2..=2)[0] };
        assert_eq!(too_many(first_kept(Some(day(8))), &[week], 0), None);
    }

    #[test]
    fn a_day_is_due_in_the_moment_in_which_all_of_it_is_old_enough() {
        let keep = |keep_for| RetentionPolicy { keep_for, ..RetentionPolicy::default() };
        let second = TimeDelta::seconds(1);
        for (policy, moment) in [
            (keep(None), at("2026-11-20T00:00:00Z")),
            (keep(Some(TimeDelta::days(14))), at("2026-11-20T00:00:00Z")),
            (keep(Some(TimeDelta::hours(36))), at("2026-11-20T12:00:00Z")),
        ] {
            assert_eq!(due_days(&policy, moment, second), 1, "{policy:?}");
            assert_eq!(due_days(&policy, moment - second, TimeDelta::days(1) - second), 0, "{policy:?}");
            assert_eq!(due_days(&policy, moment, TimeDelta::days(3)), 3, "{policy:?}");
        }
    }

    #[test]
    fn what_was_applied_under_any_policy_counts_but_not_what_is_yet_to_come() {
        let now = at("2026-11-20T00:00:00Z");
        let row = |applied_at, first_kept, max_bytes| retention::Model {
            keep_s: 1,
            max_bytes,
            seen_at: now,
            applied_at,
            first_kept,
        };
        let rows = [
            row(None, Some(day(19)), 1),
            row(Some(now), Some(day(6)), 500),
            row(Some(now - TimeDelta::days(9)), Some(day(9)), NO_LIMIT),
            row(Some(now + SLACK + TimeDelta::seconds(1)), Some(day(30)), 2),
        ];
        let budget = |max_bytes| RetentionPolicy { max_bytes, ..RetentionPolicy::default() };
        let before = Before::of(&rows, &budget(Some(500)), now);
        assert_eq!((before.applied_at, before.first_kept, before.knows_budget), (Some(now), Some(day(9)), true));
        assert!(!Before::of(&rows, &budget(Some(499)), now).knows_budget);
    }
}
