//! How long sessions are kept.

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};

use super::Window;

/// How long sessions are kept, and how much room they may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// How long after the end of the day (UTC) on which they started. None for ever.
    pub keep_for: Option<TimeDelta>,
    /// Bytes that all of it may take; the oldest days go first. None for any number.
    pub max_bytes: Option<i64>,
    /// Where sessions are archived rather than lost.
    pub archive: Option<ArchivePolicy>,
}

/// When sessions are archived, and for how long. Both times count from the end of the day (UTC) on which they started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchivePolicy {
    /// When their actions go to the archive. None for never, but for want of room.
    pub after: Option<TimeDelta>,
    /// How long they are kept in all. None for ever.
    pub keep_for: Option<TimeDelta>,
}

impl RetentionPolicy {
    /// The first day whose sessions are kept. None where all are.
    ///
    /// Sessions go by days, on both databases: a day is what PostgreSQL can drop at next to no cost. The sessions of a day
    /// are expired from the second on in which the whole day is as old as the retention; where a partition has several days,
    /// they go when the last of these is.
    #[must_use]
    pub fn first_kept_day(&self, now: DateTime<Utc>) -> Option<NaiveDate> {
        first_day(self.forgets_after(), now)
    }

    /// The first day whose sessions are not archived for their age. None where none are.
    #[must_use]
    pub fn first_hot_day(&self, now: DateTime<Utc>) -> Option<NaiveDate> {
        first_day(self.archive?.after, now)
    }

    /// How long sessions are kept, archived or not. None for ever.
    #[must_use]
    pub fn forgets_after(&self) -> Option<TimeDelta> {
        self.archive.map_or(self.keep_for, |archive| archive.keep_for)
    }

    /// Bytes beyond which sessions are forgotten. None for any number, and where they go to an archive instead.
    #[must_use]
    pub fn budget(&self) -> Option<i64> {
        self.max_bytes.filter(|_| self.archive.is_none())
    }

    /// Whether a session that started then would be expired already.
    #[must_use]
    pub fn is_expired(&self, started_at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        self.first_kept_day(now).is_some_and(|first| started_at.date_naive() < first)
    }
}

/// The first day that is not as old as this.
fn first_day(age: Option<TimeDelta>, now: DateTime<Utc>) -> Option<NaiveDate> {
    // Before the calendar begins, nothing is.
    Some(now.checked_sub_signed(age?)?.date_naive())
}

/// Why the sessions of a day go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExpiryReason {
    /// They are older than the retention.
    Age,
    /// There are more bytes than there may be, and no older sessions.
    Bytes,
    /// They have an expiry of their own.
    Own,
    /// Only their actions go, and to the archive.
    Archive,
}

/// Why retention asks before it forgets any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// The clock has moved on by more than has passed since retention was last applied.
    #[error("the clock is {days} days further on than has passed since retention was last applied")]
    Clock {
        /// How many days more.
        days: i64,
    },
    /// Nothing would be left of what was there when retention was last applied, and it cannot be told whether the clock is right.
    #[error("retention was not applied for {days} days, and now all {sessions} sessions of before would go")]
    Everything {
        /// How many days it was not applied for, by the clock.
        days: i64,
        /// Number of sessions.
        sessions: i64,
    },
    /// Sessions with an expiry of their own would go, and it cannot be told whether the clock is right.
    #[error("retention was not applied for {days} days, and now {sessions} sessions would go for their own expiry")]
    Own {
        /// How many days it was not applied for, by the clock.
        days: i64,
        /// Number of sessions.
        sessions: i64,
    },
    /// More days would go at once than have become too old since retention was last applied, and two.
    #[error("{sessions} sessions of {first} to {last} would go at once, which is more than two days")]
    Days {
        /// The first of the days.
        first: NaiveDate,
        /// The last.
        last: NaiveDate,
        /// Number of sessions.
        sessions: i64,
    },
}

/// What goes of a day, or of the days of a wider partition, or has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpiredDay {
    /// The days on which the sessions started.
    pub window: Window,
    /// Why.
    pub reason: ExpiryReason,
    /// Number of sessions.
    pub sessions: i64,
    /// Number of their actions.
    pub actions: i64,
    /// Bytes that come back: on PostgreSQL those of the partitions, on SQLite an estimate by the number of actions.
    pub bytes: i64,
    /// Number of sessions of these days that stay, because they are pinned or their own time has not come.
    pub kept: i64,
}

/// What retention would do, or has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionReport {
    /// By day, the oldest first.
    pub days: Vec<ExpiredDay>,
    /// Bytes of the database before.
    pub bytes_before: i64,
    /// Bytes of the database afterwards. In a preview, what is expected.
    pub bytes_after: i64,
    /// Users that went because none of their sessions is left.
    pub users: i64,
}

/// What is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageStats {
    /// By the day on which sessions started, the oldest first.
    pub days: Vec<StoredDay>,
    /// Number of users.
    pub users: i64,
    /// Bytes of tables, by name; on SQLite one entry for the file.
    pub tables: Vec<TableBytes>,
    /// Bytes of the file that hold nothing, and are not given back yet. SQLite only.
    pub free_bytes: i64,
    /// The start of the oldest session.
    pub oldest: Option<DateTime<Utc>>,
    /// The start of the newest.
    pub newest: Option<DateTime<Utc>>,
    /// What is in the archive.
    pub archive: ArchiveStats,
}

/// What is in the archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArchiveStats {
    /// Number of segments.
    pub segments: i64,
    /// Bytes of their files.
    pub bytes: i64,
    /// Number of sessions.
    pub sessions: i64,
    /// Number of their actions.
    pub actions: i64,
}

/// What is stored of a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredDay {
    /// The day.
    pub day: NaiveDate,
    /// The days that it goes with.
    pub window: Window,
    /// Number of sessions.
    pub sessions: i64,
    /// Number of sessions that no retention lets go, because they are pinned or their own time has not come.
    pub kept: i64,
    /// Number of actions.
    pub actions: i64,
    /// Bytes of the day's partitions; of wider ones its share by the number of actions. 0 on SQLite.
    pub bytes: i64,
}

/// The size of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableBytes {
    /// Its name.
    pub name: String,
    /// Bytes of its rows.
    pub table_bytes: i64,
    /// Bytes of its indexes.
    pub index_bytes: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_expires_in_the_second_in_which_all_of_it_is_old_enough() {
        let policy = RetentionPolicy { keep_for: Some(TimeDelta::hours(36)), max_bytes: None, archive: None };
        let at = |text: &str| text.parse::<DateTime<Utc>>().expect("a time");
        let started = at("2026-11-20T00:00:00Z");
        assert!(!policy.is_expired(started, at("2026-11-22T11:59:59.999999Z")));
        assert!(policy.is_expired(started, at("2026-11-22T12:00:00Z")));
        assert!(policy.is_expired(at("2026-11-20T23:59:59.999Z"), at("2026-11-22T12:00:00Z")));
        assert!(!policy.is_expired(at("2026-11-21T00:00:00Z"), at("2026-11-22T12:00:00Z")));
        assert!(!RetentionPolicy::default().is_expired(started, at("2999-01-01T00:00:00Z")));
        let for_ages = RetentionPolicy { keep_for: Some(TimeDelta::MAX), max_bytes: None, archive: None };
        assert_eq!(for_ages.first_kept_day(started), None);
    }
}
