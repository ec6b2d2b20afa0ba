//! What the database's errors mean. The only place that looks into them; what leaves it is [`Error`], and the log gets the
//! database's own code, and its text where that quotes no values.

use std::time::Duration;

use rand::RngExt as _;
use sea_orm::{
    DbErr, RuntimeErr,
    sqlx::{self, postgres::PgDatabaseError},
};

use super::settings::NotKept;
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
                Some(code) if inner.try_downcast_ref::<PgDatabaseError>().is_some() => Self::of_sqlstate(&code),
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
        let text = sqlx_error_of(&error).map(text_of).unwrap_or_default();
        Cause::of(&error).report(code_of(&error), &text)
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Cause::of_sqlx(&error).report(code_of_sqlx(&error), &text_of(&error))
    }
}

impl Cause {
    /// Logs the failure and gives the error to answer with.
    fn report(self, code: &str, text: &str) -> Error {
        let error = match self {
            Self::Timeout => Error::StatementTimeout,
            Self::Unavailable | Self::Denied => Error::DatabaseUnavailable,
            Self::Contention | Self::UniqueViolation | Self::ForeignKeyViolation => Error::Contention,
            Self::Unexpected => Error::Internal,
        };
        if error == Error::Internal {
            tracing::error!(db.code = code, db.message = text, "the database refused a statement");
        } else {
            tracing::warn!(db.code = code, db.message = text, cause = ?self, "the database failed");
        }
        error
    }
}

/// What keeps a connection from being made, and will do so until somebody mends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// A setting is not kept.
    Setting,
    /// A certificate, or a key, is not accepted.
    Certificate,
    /// The host has no address.
    Name,
}

impl Obstacle {
    /// None where waiting may help, or the cause is another.
    pub(super) fn of(error: &sqlx::Error) -> Option<Self> {
        match error {
            sqlx::Error::Configuration(inner) if inner.is::<NotKept>() => Some(Self::Setting),
            sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => Some(Self::Certificate),
            sqlx::Error::Io(inner) => Self::of_io(inner),
            _ => None,
        }
    }

    fn of_io(error: &std::io::Error) -> Option<Self> {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(
                rustls::Error::InvalidCertificate(_)
                | rustls::Error::NoCertificatesPresented
                | rustls::Error::PeerIncompatible(_)
                | rustls::Error::UnsupportedNameType
                | rustls::Error::AlertReceived(_),
            ) => return Some(Self::Certificate),
            Some(_) => return None,
            None => {}
        }
        // The standard library gives the system's words, not its code. EAI_AGAIN is the one that may pass.
        let text = error.to_string();
        let is_name = text.starts_with("failed to lookup address information");
        (is_name && !text.contains("Temporary failure")).then_some(Self::Name)
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
        DbErr::Type(_) | DbErr::Json(_) | DbErr::TryIntoErr { .. } => "decode",
        _ => sqlx_error_of(error).map_or("orm", code_of_sqlx),
    }
}

fn sqlx_error_of(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(inner))
        | DbErr::Exec(RuntimeErr::SqlxError(inner))
        | DbErr::Query(RuntimeErr::SqlxError(inner)) => Some(&**inner),
        _ => None,
    }
}

fn code_of_sqlx(error: &sqlx::Error) -> &str {
    match error {
        sqlx::Error::Database(inner) => match inner.try_downcast_ref::<PgDatabaseError>() {
            Some(inner) => inner.code(),
            None => "sqlite",
        },
        sqlx::Error::PoolTimedOut => "no connection in time",
        sqlx::Error::Io(_) => "io",
        sqlx::Error::Tls(_) => "tls",
        sqlx::Error::Configuration(_) => "configuration",
        sqlx::Error::Protocol(_) => "protocol",
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => "decode",
        _ => "driver",
    }
}

/// The error's own text, unless that may quote what somebody has recorded or asked for. PostgreSQL's details and hints, which
/// say rows, are never in it.
pub(super) fn text_of(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(inner) => match inner.try_downcast_ref::<PgDatabaseError>() {
            Some(inner) if is_of_server(inner.code()) => inner.message().to_owned(),
            // SQLite names columns, and nothing that is in them.
            None if inner.code().is_some_and(|code| code != "1") => inner.message().to_owned(),
            _ => String::new(),
        },
        sqlx::Error::Io(inner) => inner.to_string(),
        sqlx::Error::Tls(inner) => inner.to_string(),
        sqlx::Error::Configuration(inner) if inner.is::<NotKept>() => inner.to_string(),
        sqlx::Error::Configuration(_) => "the client's key or certificate cannot be used".to_owned(),
        _ => String::new(),
    }
}

/// Whether errors of this class are about the server, its files, roles, tables and connections, and not about data: their texts
/// name those, and never values. <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn is_of_server(code: &str) -> bool {
    matches!(code.get(..2), Some("08" | "25" | "28" | "3D" | "40" | "53" | "54" | "55" | "57" | "58"))
        || matches!(code, "42501" | "42P01" | "42703" | "42883")
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
