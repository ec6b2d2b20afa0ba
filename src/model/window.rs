//! Days that go together.

use std::fmt;

use chrono::{DateTime, Datelike as _, Days, NaiveDate, NaiveTime, Utc};
use uuid::Uuid;

use super::SessionId;

/// The days (UTC) of session starts that PostgreSQL keeps in one partition, and that go together therefore. Where there are no
/// partitions it is one day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Window {
    /// The first of the days.
    pub first: NaiveDate,
    /// The last of them.
    pub last: NaiveDate,
}

impl Window {
    /// A single day.
    #[must_use]
    pub fn of_day(day: NaiveDate) -> Self {
        Self { first: day, last: day }
    }

    /// The window of so many days that has this one. Those of 7 days begin on Mondays.
    #[must_use]
    pub fn around(day: NaiveDate, days: u16) -> Self {
        let days = i32::from(days.max(1));
        let first = (day.num_days_from_ce() - 1).div_euclid(days) * days + 1;
        let at = NaiveDate::from_num_days_from_ce_opt;
        // Where the calendar ends, so does the window.
        Self { first: at(first).unwrap_or(day), last: at(first + days - 1).unwrap_or(day) }
    }

    /// What is left of it around one of its days, without what others have.
    #[must_use]
    pub fn without(self, day: NaiveDate, others: impl IntoIterator<Item = Self>) -> Self {
        others.into_iter().fold(self, |rest, other| {
            if other.last < day {
                let after = other.last.succ_opt().unwrap_or(day);
                Self { first: rest.first.max(after), ..rest }
            } else if other.first > day {
                let before = other.first.pred_opt().unwrap_or(day);
                Self { last: rest.last.min(before), ..rest }
            } else {
                rest
            }
        })
    }

    /// Whether it has a day.
    #[must_use]
    pub fn contains(self, day: NaiveDate) -> bool {
        (self.first..=self.last).contains(&day)
    }

    /// The range of ids of sessions that started in it: from the first, up to and without the second.
    #[must_use]
    pub fn bounds(self) -> (Uuid, Uuid) {
        (SessionId::least_at(self.start()), SessionId::least_at(self.end()))
    }

    /// The first moment of it.
    #[must_use]
    pub fn start(self) -> DateTime<Utc> {
        midnight(self.first)
    }

    /// The first moment after it.
    #[must_use]
    pub fn end(self) -> DateTime<Utc> {
        midnight(self.last.checked_add_days(Days::new(1)).unwrap_or(NaiveDate::MAX))
    }
}

impl fmt::Display for Window {
    /// Writes `2026-11-25`, or `2026-11-23..2026-11-29`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}..{}", self.first, self.last) }
    }
}

fn midnight(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(NaiveTime::MIN).and_utc()
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn day(text: &str) -> NaiveDate {
        text.parse().expect("a date")
    }

    fn window(first: &str, last: &str) -> Window {
        Window { first: day(first), last: day(last) }
    }

    #[test]
    fn a_windows_bounds_hold_exactly_the_sessions_of_its_days() {
        for window in [window("2026-11-22", "2026-11-22"), window("2026-11-16", "2026-11-22")] {
            let (from, to) = window.bounds();
            let first = midnight(window.first);
            let last = midnight(window.last) + TimeDelta::days(1) - TimeDelta::milliseconds(1);
            for (time, inside) in [
                (first - TimeDelta::milliseconds(1), false),
                (first, true),
                (last, true),
                (last + TimeDelta::milliseconds(1), false),
            ] {
                for random in [[0; 10], [255; 10]] {
                    let id = SessionId::from_parts(time, random).as_uuid();
                    assert_eq!(id >= from && id < to, inside, "{time}");
                }
            }
        }
    }

    #[test]
    fn every_day_is_in_one_window_of_a_width() {
        assert_eq!(Window::around(day("2026-11-25"), 1), window("2026-11-25", "2026-11-25"));
        for (first, last, days) in [("2026-11-23", "2026-11-29", 7), ("2026-11-25", "2026-11-26", 2)] {
            let window = window(first, last);
            for day in window.first.iter_days().take_while(|day| *day <= window.last) {
                assert_eq!(Window::around(day, days), window, "{day}");
            }
        }
        for days in [2, 7, 30, 366] {
            let mut at = Window::around(day("2026-11-25"), days);
            for _ in 0..20 {
                let next = Window::around(at.last.succ_opt().expect("a date"), days);
                assert_eq!(at.last.succ_opt(), Some(next.first), "{days}");
                at = next;
            }
        }
        assert!(Window::around(NaiveDate::MAX, 366).contains(NaiveDate::MAX));
    }

    #[test]
    fn a_window_leaves_to_others_what_they_have() {
        let week = window("2026-11-23", "2026-11-29");
        let others = [
            window("2026-11-16", "2026-11-22"),
            window("2026-11-24", "2026-11-24"),
            window("2026-11-20", "2026-11-23"),
            window("2026-11-29", "2026-12-05"),
        ];
        assert_eq!(week.without(day("2026-11-26"), others), window("2026-11-25", "2026-11-28"));
        assert_eq!(week.without(day("2026-11-26"), []), week);
    }
}
