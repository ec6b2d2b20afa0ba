//! Makes a database fit for use: checks that what it commits is durable, asks what time it is, and has its schema brought up to
//! date.

use sea_orm::{DbErr, FromQueryResult, RuntimeErr, Statement, sqlx};

use super::{
    Store,
    failure::{Cause, Obstacle, text_of},
};
use crate::error::Error;

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The database would lose what it has acknowledged.
    #[error("the database has {setting} = {value}: what it acknowledges may be lost, so it is not used")]
    NotDurable {
        /// Name of the setting.
        setting: &'static str,
        /// Its value.
        value: String,
    },
    /// The server, or a pooler before it, does not keep a setting of a connection.
    #[error("{0}")]
    NotKept(String),
    /// The server's certificate, or ours, is not accepted.
    #[error("no secure connection to the database: {0}")]
    Certificate(String),
    /// A file that the database's URL names, or the environment, cannot be read.
    #[error("the file that {name} names cannot be read: {error}")]
    File {
        /// What names it.
        name: &'static str,
        /// Why it cannot be read.
        error: std::io::Error,
    },
    /// There is no such host.
    #[error("the database's host has no address: {0}")]
    Name(String),
    /// The server turns us away, or the file cannot be opened.
    #[error("the database denies access: check its URL and its rights")]
    Denied,
    /// The schema was made by a newer version, which says that this one cannot use it.
    #[error(
        "a newer version of reel has been here, and this one is too old for its schema (it does not know {version})"
    )]
    Newer {
        /// The newest migration that is not known.
        version: String,
    },
    /// The migrations failed.
    #[error("the schema cannot be brought up to date")]
    Migration,
    /// The clock of this process cannot be relied on.
    #[error("the clock of this process is {seconds} s ahead of the database's: it has to be right within a minute")]
    ClockWrong {
        /// Seconds that it is ahead; negative where it is behind.
        seconds: i64,
    },
    /// The database cannot be reached now. It may be later.
    #[error("the database is unavailable")]
    Unavailable,
}

impl Unfit {
    /// Whether waiting may help.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable | Self::ClockWrong { .. })
    }
}

impl From<sqlx::Error> for Unfit {
    fn from(error: sqlx::Error) -> Self {
        DbErr::Conn(RuntimeErr::SqlxError(error.into())).into()
    }
}

impl From<DbErr> for Unfit {
    fn from(error: DbErr) -> Self {
        if let DbErr::Conn(RuntimeErr::SqlxError(inner)) = &error {
            let text = text_of(inner);
            match Obstacle::of(inner) {
                Some(Obstacle::Setting) => return Self::NotKept(text),
                Some(Obstacle::Certificate) => return Self::Certificate(text),
                Some(Obstacle::Name) => return Self::Name(text),
                None => {}
            }
        }
        let cause = Cause::of(&error);
        // Logs it.
        let _: Error = error.into();
        match cause {
            Cause::Denied => Self::Denied,
            Cause::Unexpected => Self::Migration,
            _ => Self::Unavailable,
        }
    }
}

#[derive(FromQueryResult)]
struct Setting {
    value: String,
}

impl Store {
    /// Checks the database's settings, asks for its time and brings its schema up to date. May be called by several processes at once, and
    /// again.
    pub async fn prepare(&self) -> Result<(), Unfit> {
        match self.prepare_now().await {
            // The pool says only that there was no connection in time.
            Err(Unfit::Unavailable) => match self.why_not_connected().await {
                Some(error) => Err(error.into()),
                None => Err(Unfit::Unavailable),
            },
            outcome => outcome,
        }
    }

    async fn prepare_now(&self) -> Result<(), Unfit> {
        self.check_durability().await?;
        self.clock_measure().await?;
        self.migrate().await?;
        // Nothing depends on them: there is the default one.
        if let Err(error) = self.partitions_make_ahead(self.now()).await {
            tracing::warn!(%error, "partitions not made, trying again later");
        }
        Ok(())
    }

    /// Fails where the clock of this process is more than a minute off the database's. What is stamped is stamped by the
    /// database's all the same; but whoever runs a process with such a clock should know.
    pub fn check_clock(&self) -> Result<(), Unfit> {
        match self.clock_error() {
            Some(error) => Err(Unfit::ClockWrong { seconds: error.num_seconds() }),
            None => Ok(()),
        }
    }

    async fn check_durability(&self) -> Result<(), Unfit> {
        if self.is_postgres() {
            for setting in ["fsync", "full_page_writes", "synchronous_commit"] {
                // What the server, the database or the role says; our own connections have set it.
                let sql = format!("SELECT reset_val AS value FROM pg_settings WHERE name = '{setting}'");
                let value = self.setting(&sql).await?;
                if value == "off" {
                    return Err(Unfit::NotDurable { setting, value });
                }
            }
            let in_recovery = self.setting("SELECT pg_is_in_recovery()::text AS value").await?;
            return if in_recovery == "true" { Err(Unfit::Unavailable) } else { Ok(()) };
        }
        let journal_mode = self.setting("SELECT journal_mode AS value FROM pragma_journal_mode").await?;
        if journal_mode != "wal" {
            return Err(Unfit::NotDurable { setting: "journal_mode", value: journal_mode });
        }
        // 2 is FULL, 3 is EXTRA.
        let synchronous = self.setting("SELECT CAST(synchronous AS text) AS value FROM pragma_synchronous").await?;
        if !matches!(synchronous.as_str(), "2" | "3") {
            return Err(Unfit::NotDurable { setting: "synchronous", value: synchronous });
        }
        Ok(())
    }

    async fn setting(&self, sql: &str) -> Result<String, Unfit> {
        let statement = Statement::from_string(self.backend, sql);
        let setting = Setting::find_by_statement(statement).one(&self.write).await?;
        Ok(setting.map(|setting| setting.value).unwrap_or_default())
    }
}
