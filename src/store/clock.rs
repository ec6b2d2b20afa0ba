//! What time it is: the database's time, which all processes have in common. The probe measures it; in between it goes on by
//! this machine's monotonic clock, which nobody sets. The process's own clock is only compared with it.
//!
//! SQLite has no clock but the machine's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Instant,
};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{DbErr, FromQueryResult, Statement};

use super::Store;
use crate::failpoint;

/// How far the clock of a process may be off the database's.
pub(super) const MAX_CLOCK_ERROR: TimeDelta = TimeDelta::minutes(1);

/// The database's time before it was measured.
const UNKNOWN: i64 = i64::MIN;

/// A clock that goes as the database's does. All handles of a process share it.
#[derive(Clone, Debug)]
pub(super) struct Clock(Arc<Hands>);

#[derive(Debug)]
struct Hands {
    /// When the process began to count, in monotonic time.
    zero: Instant,
    /// The database's time at `zero`, in microseconds since 1970.
    database_us: AtomicI64,
    /// How far the process's clock was ahead of the database's when that was last measured, in microseconds.
    ahead_us: AtomicI64,
    /// How wrong the process's clock is made by tests, in microseconds.
    shift_us: AtomicI64,
}

impl Default for Clock {
    fn default() -> Self {
        Self(Arc::new(Hands {
            zero: Instant::now(),
            database_us: AtomicI64::new(UNKNOWN),
            ahead_us: AtomicI64::new(0),
            shift_us: AtomicI64::new(micros(failpoint::clock_ahead())),
        }))
    }
}

impl Clock {
    fn now(&self) -> DateTime<Utc> {
        let at_zero = self.0.database_us.load(Ordering::Acquire);
        let now = (at_zero != UNKNOWN).then(|| at_zero.saturating_add(self.elapsed_us(Instant::now())));
        now.and_then(DateTime::from_timestamp_micros).unwrap_or_else(|| self.of_process())
    }

    /// What this process's own clock says.
    fn of_process(&self) -> DateTime<Utc> {
        let shift = TimeDelta::microseconds(self.0.shift_us.load(Ordering::Acquire));
        Utc::now().checked_add_signed(shift).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }

    /// Takes in what the database's clock said between `asked` and now.
    pub(super) fn set(&self, database: DateTime<Utc>, asked: Instant) {
        let answered = Instant::now();
        let half = answered.saturating_duration_since(asked) / 2;
        let said_us = self.elapsed_us(asked + half);
        let ahead = self.of_process() - database - TimeDelta::from_std(half).unwrap_or_default();
        self.0.ahead_us.store(micros(ahead), Ordering::Release);
        self.0.database_us.store(database.timestamp_micros().saturating_sub(said_us), Ordering::Release);
    }

    fn elapsed_us(&self, at: Instant) -> i64 {
        i64::try_from(at.saturating_duration_since(self.0.zero).as_micros()).unwrap_or(i64::MAX)
    }
}

fn micros(delta: TimeDelta) -> i64 {
    delta.num_microseconds().unwrap_or(if delta < TimeDelta::zero() { i64::MIN } else { i64::MAX })
}

#[derive(FromQueryResult)]
struct Time {
    clock: DateTime<Utc>,
}

impl Store {
    /// The time by which everything is stamped, ended and forgotten: the database's. Asks nobody. Until it was measured once,
    /// which [`Store::prepare`] does, it is this process's own.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// How far this process's clock is ahead of the database's, or behind it if that is negative, where this is more than a
    /// minute.
    #[must_use]
    pub fn clock_error(&self) -> Option<TimeDelta> {
        let ahead = TimeDelta::microseconds(self.clock.0.ahead_us.load(Ordering::Acquire));
        (ahead.abs() > MAX_CLOCK_ERROR).then_some(ahead)
    }

    /// Asks the database for its time.
    pub(super) async fn clock_measure(&self) -> Result<(), DbErr> {
        if !self.is_postgres() {
            return Ok(());
        }
        let asked = Instant::now();
        let statement = Statement::from_string(self.backend, "SELECT clock_timestamp() AS clock");
        if let Some(time) = Time::find_by_statement(statement).one(&self.write).await? {
            self.clock.set(time.clock, asked);
        }
        Ok(())
    }

    /// Makes the process's clock wrong by so much. For tests; in a release build it is not there.
    #[cfg(debug_assertions)]
    #[doc(hidden)]
    pub fn clock_shift(&self, ahead: TimeDelta) {
        self.clock.0.shift_us.store(micros(ahead), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_the_databases_however_wrong_the_process_is() {
        let clock = Clock::default();
        assert!((clock.now() - Utc::now()).abs() < TimeDelta::minutes(1), "before it was measured");
        let database = "2001-02-03T04:05:06Z".parse::<DateTime<Utc>>().expect("a time");
        clock.set(database, Instant::now());
        let now = clock.now();
        assert!(now >= database && now < database + TimeDelta::minutes(1), "{now}");
        clock.0.shift_us.store(micros(TimeDelta::days(60)), Ordering::Release);
        assert!(clock.now() < database + TimeDelta::minutes(1));
        assert!(clock.now() >= now);
    }
}
