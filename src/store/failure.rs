//! What the database's errors mean. The only place that looks into them; what leaves it is [`Error`], and the log gets the
//! database's own code, never its text, which may quote values.

use std::time::Duration;

use rand::RngExt as _;
use sea_orm::{DbErr, RuntimeErr, sqlx};

use crate::error::Error;

/// How often a transaction is tried when others get in its way.
const MAX_ATTEMPTS: u32 = 6;

/// A transaction that did not go through.
#[derive(Debug)]
pub(super) enum Failure {
    /// The database said so.
    Database(DbErr),
    /// The request cannot be granted.
    Refused(Error),
    /// What it was planned from is no longer so.
    Outdated,
}

impl From<DbErr> for Failure {
    fn from(error: DbErr) -> Self {
        Self::Database(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Database(error) => error.into(),
            Failure::Refused(error) => error,
            Failure::Outdated => Error::Contention,
        }
    }
}

/// Counts the attempts of one transaction and spaces them out.
#[derive(Default)]
pub(super) struct Attempts {
    failed: u32,
    /// How many more broken connections may be got over.
    breaks: u32,
}

impl Attempts {
    /// For a transaction that may be tried again although nobody knows whether it went through: a connection may break once.
    pub(super) fn over_a_break() -> Self {
        Self { failed: 0, breaks: 1 }
    }

    /// Returns after a random pause if the transaction is worth another attempt, else gives the error to answer with.
    pub(super) async fn again_after(&mut self, failure: Failure) -> Result<(), Error> {
        self.failed += 1;
        let retryable = match &failure {
            Failure::Outdated => true,
            Failure::Refused(_) => false,
            Failure::Database(error) => Cause::of(error).is_passing() || self.gets_over(error),
        };
        if !retryable || self.failed >= MAX_ATTEMPTS {
            return Err(failure.into());
        }
        let longest_ms = 5 << self.failed;
        let pause_ms = rand::rng().random_range(1..=longest_ms);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        Ok(())
    }

    /// How many have failed.
    pub(super) fn failed(&self) -> u32 {
        self.failed
    }

    fn gets_over(&mut self, error: &DbErr) -> bool {
        // Whoever got no connection has waited for one already.
        let is_break = Cause::of(error) == Cause::Unavailable
            && !matches!(error, DbErr::ConnectionAcquire(_))
            && !matches!(error, DbErr::Conn(RuntimeErr::SqlxError(error)) if matches!(**error, sqlx::Error::PoolTimedOut));
        let gets_over = is_break && self.breaks > 0;
        self.breaks = self.breaks.saturating_sub(1);
        gets_over
    }
}

/// Why a statement failed, by SQLSTATE or SQLite's result code: messages and constraint names differ between servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Somebody else changed the same rows; nothing was done.
    Contention,
    /// A row with this key exists: somebody else was faster.
    UniqueViolation,
    /// The row referred to does not exist (any more).
    ForeignKeyViolation,
    /// The statement was cancelled for taking too long.
    Timeout,
    /// The server cannot be reached, or cannot write now.
    Unavailable,
    /// The server refuses us, or the file cannot be opened: wrong password, no such database or folder, no rights.
    Denied,
    /// None of these: a bug.
    Unexpected,
}

impl Cause {
    /// Tells what kind of failure this is.
    pub(super) fn of(error: &DbErr) -> Self {
        match error {
            DbErr::ConnectionAcquire(_) => Self::Unavailable,
            DbErr::Conn(inner) | DbErr::Exec(inner) | DbErr::Query(inner) => match inner {
                RuntimeErr::SqlxError(inner) => Self::of_sqlx(inner),
                RuntimeErr::Internal(_) => Self::Unexpected,
            },
            _ => Self::Unexpected,
        }
    }

    /// The same for an error of the driver.
    fn of_sqlx(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(inner) => match inner.code() {
                Some(code) if inner.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some() => {
                    Self::of_sqlstate(&code)
                }
                Some(code) => code.parse().map_or(Self::Unexpected, Self::of_sqlite),
                None => Self::Unexpected,
            },
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable,
            _ => Self::Unexpected,
        }
    }

    /// See <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
    fn of_sqlstate(code: &str) -> Self {
        match code {
            // The last: a partition was made while a row was on its way into the default one.
            "40001" | "40P01" | "55P03" | "23514" => Self::Contention,
            "23505" => Self::UniqueViolation,
            "23503" => Self::ForeignKeyViolation,
            "57014" => Self::Timeout,
            // Read-only; the transaction was given up because nothing came for too long.
            "25006" | "25P03" => Self::Unavailable,
            "3D000" | "42501" => Self::Denied,
            _ => match code.get(..2) {
                Some("08" | "53" | "57" | "58") => Self::Unavailable,
                Some("28") => Self::Denied,
                _ => Self::Unexpected,
            },
        }
    }

    /// See <https://www.sqlite.org/rescode.html>. The low byte is the primary code.
    fn of_sqlite(code: u32) -> Self {
        match (code, code & 0xff) {
            (1555 | 2067, _) => Self::UniqueViolation,
            (787, _) => Self::ForeignKeyViolation,
            (_, 5 | 6) => Self::Contention,
            (_, 8 | 10 | 13) => Self::Unavailable,
            (_, 9) => Self::Timeout,
            (_, 3 | 14 | 23 | 26) => Self::Denied,
            _ => Self::Unexpected,
        }
    }

    /// Whether the transaction was rolled back and may go through when it is tried again. Violations are among them because
    /// whoever inserts what was not there a moment ago may have been overtaken.
    pub(super) fn is_passing(self) -> bool {
        matches!(self, Self::Contention | Self::UniqueViolation | Self::ForeignKeyViolation)
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        Cause::of(&error).report(code_of(&error))
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let code = match &error {
            sqlx::Error::Database(inner) => inner.code().unwrap_or_default(),
            _ => "driver".into(),
        };
        Cause::of_sqlx(&error).report(&code)
    }
}

impl Cause {
    /// Logs the failure and gives the error to answer with.
    fn report(self, code: &str) -> Error {
        let error = match self {
            Self::Timeout => Error::StatementTimeout,
            Self::Unavailable | Self::Denied => Error::DatabaseUnavailable,
            Self::Contention | Self::UniqueViolation | Self::ForeignKeyViolation => Error::Contention,
            Self::Unexpected => Error::Internal,
        };
        if error == Error::Internal {
            tracing::error!(db.code = code, "the database refused a statement");
        } else {
            tracing::warn!(db.code = code, cause = ?self, "the database failed");
        }
        error
    }
}

/// Whether somebody held a lock for longer than a statement waits for it.
pub(super) fn is_lock_timeout(error: &DbErr) -> bool {
    code_of(error) == "55P03"
}

/// The database's own code: SQLSTATE, SQLite's result code, or the kind of the driver's error.
fn code_of(error: &DbErr) -> &str {
    match error {
        DbErr::ConnectionAcquire(_) => "no connection in time",
        DbErr::Conn(RuntimeErr::SqlxError(inner))
        | DbErr::Exec(RuntimeErr::SqlxError(inner))
        | DbErr::Query(RuntimeErr::SqlxError(inner)) => match &**inner {
            sqlx::Error::Database(inner) => match inner.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
                Some(inner) => inner.code(),
                None => "sqlite",
            },
            sqlx::Error::Io(_) => "io",
            sqlx::Error::Tls(_) => "tls",
            sqlx::Error::Protocol(_) => "protocol",
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => "decode",
            _ => "driver",
        },
        DbErr::Type(_) | DbErr::Json(_) | DbErr::TryIntoErr { .. } => "decode",
        _ => "orm",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_mean_what_the_databases_say_they_mean() {
        for (code, cause) in [
            ("40P01", Cause::Contention),
            ("23514", Cause::Contention),
            ("23505", Cause::UniqueViolation),
            ("57014", Cause::Timeout),
            ("57P01", Cause::Unavailable),
            ("53100", Cause::Unavailable),
            ("25006", Cause::Unavailable),
            ("28P01", Cause::Denied),
            ("22P02", Cause::Unexpected),
        ] {
            assert_eq!(Cause::of_sqlstate(code), cause, "{code}");
        }
        for (code, cause) in [
            (5, Cause::Contention),
            (517, Cause::Contention),
            (13, Cause::Unavailable),
            (778, Cause::Unavailable),
            (1555, Cause::UniqueViolation),
            (787, Cause::ForeignKeyViolation),
            (1, Cause::Unexpected),
        ] {
            assert_eq!(Cause::of_sqlite(code), cause, "{code}");
        }
    }
}
