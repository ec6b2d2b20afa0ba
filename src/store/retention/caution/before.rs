//! What is known of the times before, and what follows from it: how far time has moved since, and how many days may go now.

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};

use crate::{
    model::{Doubt, ExpiredDay, ExpiryReason, RetentionPolicy},
    store::{entity::retention, retention::horizon::NO_LIMIT},
};

/// How far the clock may be ahead of the time that has passed, and how much more than has become too old may go at once.
pub(super) const SLACK: TimeDelta = TimeDelta::days(2);

/// What is written down of the times before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Before {
    /// When retention was last applied, by whatever service.
    applied_at: Option<DateTime<Utc>>,
    /// The first day that was kept then. None where all were.
    first_kept: Option<NaiveDate>,
    /// Whether as few bytes were allowed before.
    knows_budget: bool,
}

/// How far time has moved since retention was last applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
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

impl Before {
    /// Rows from a future that is none say nothing: the clock was wrong then.
    pub(super) fn of(rows: &[retention::Model], policy: &RetentionPolicy, now: DateTime<Utc>) -> Self {
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
    pub(super) fn moved(&self, ahead: Option<TimeDelta>, now: DateTime<Utc>) -> Moved {
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
    pub(super) fn too_many_days(&self, days: &[ExpiredDay], due_days: i64) -> Option<Doubt> {
        let (first, last, sessions) = self.newly_gone(days)?;
        let is_too_much = (last - first).num_days() + 1 > SLACK.num_days() + due_days;
        is_too_much.then_some(Doubt::Days { first, last, sessions })
    }
}

/// How many days have become too old within the time that has passed.
pub(super) fn due_days(policy: &RetentionPolicy, now: DateTime<Utc>, passed: TimeDelta) -> i64 {
    let first_kept = |at: DateTime<Utc>| policy.first_kept_day(at).unwrap_or(at.date_naive());
    now.checked_sub_signed(passed).map_or(0, |then| (first_kept(now) - first_kept(then)).num_days())
}

#[cfg(test)]
mod tests {
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
