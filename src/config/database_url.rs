//! The URL of a database: what it may say, and what is shown of it.

use std::{env, fmt, fs::File, io, str::FromStr};

use sea_orm::sqlx::{postgres::PgConnectOptions, sqlite::SqliteConnectOptions};

/// What the driver knows beside `options[NAME]`.
const POSTGRES_PARAMETERS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

const SQLITE_PARAMETERS: [&str; 4] = ["mode", "cache", "immutable", "vfs"];

/// Parameters that name files, and the variables that do where they are missing.
const FILES: [(&[&str], &str); 3] = [
    (&["sslrootcert", "ssl-root-cert", "ssl-ca"], "PGSSLROOTCERT"),
    (&["sslcert", "ssl-cert"], "PGSSLCERT"),
    (&["sslkey", "ssl-key"], "PGSSLKEY"),
];

/// The parameters as they are written, which is how the known ones have to be.
fn parameters(url: &str) -> impl Iterator<Item = (&str, &str)> {
    let without_fragment = url.split('#').next().unwrap_or_default();
    let query = without_fragment.split_once('?').map_or("", |(_, query)| query);
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// The driver ignores what it does not know, and says it in the log, value and all.
fn check_parameters(url: &str) -> Result<(), InvalidDatabaseUrl> {
    let is_sqlite = url.starts_with("sqlite:");
    let known: &[&str] = if is_sqlite { &SQLITE_PARAMETERS } else { &POSTGRES_PARAMETERS };
    let is_known = |key: &str| {
        let is_option = !is_sqlite && key.strip_prefix("options[").is_some_and(|name| name.ends_with(']'));
        known.contains(&key) || is_option
    };
    match parameters(url).position(|(key, _)| !is_known(key)) {
        Some(index) => Err(InvalidDatabaseUrl::UnknownParameter { place: index + 1, known: known.join(", ") }),
        None => Ok(()),
    }
}

/// Percent-encoded bytes, and spaces as forms write them, as they are meant.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = hex.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        rest = if byte.is_some() { &after[2..] } else { after };
        bytes.push(byte.unwrap_or(if *first == b'+' { b' ' } else { *first }));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Where the sessions are kept. Shows no password when printed.
#[derive(Clone)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The URL with its password, for the driver only.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Fails with the first parameter, or variable of the environment, that names a file which cannot be read. The driver
    /// would say so only when it needs it, and not say which.
    pub fn check_files(&self) -> Result<(), (&'static str, io::Error)> {
        if self.is_sqlite() {
            return Ok(());
        }
        for (names, variable) in FILES {
            let given = parameters(&self.0).find(|(key, _)| names.contains(key));
            let (name, path) = match given {
                Some((_, path)) => (names[0], decode(path)),
                None => match env::var(variable) {
                    // The variable may have a certificate itself.
                    Ok(path) if !path.trim_start().starts_with("-----BEGIN") => (variable, path),
                    _ => continue,
                },
            };
            File::open(path).map_err(|error| (name, error))?;
        }
        Ok(())
    }

    /// Whether it names an embedded database file.
    #[must_use]
    pub fn is_sqlite(&self) -> bool {
        self.0.starts_with("sqlite:")
    }
}

/// The text is not the URL of a database that Reel can use.
#[derive(Debug, thiserror::Error)]
pub enum InvalidDatabaseUrl {
    /// Neither PostgreSQL nor SQLite.
    #[error("the database URL must begin with postgres:// or sqlite://")]
    UnknownScheme,
    /// Sessions would be lost with the process, and every connection would have a database of its own.
    #[error("an in-memory database cannot keep sessions; name a file, as in sqlite://reel.db")]
    InMemory,
    /// A parameter that neither Reel nor the driver knows: what was meant would not be so. It is not shown, for it may be a
    /// password that was meant for another place.
    #[error("parameter {place} of the database URL is none that is known; there are {known}")]
    UnknownParameter {
        /// Which of the parameters, from 1 on.
        place: usize,
        /// Those that there are.
        known: String,
    },
    /// The driver does not understand it.
    #[error("the database URL is malformed; expected postgres://user:password@host:port/database or sqlite://path")]
    Malformed,
}

impl FromStr for DatabaseUrl {
    type Err = InvalidDatabaseUrl;

    fn from_str(text: &str) -> Result<Self, InvalidDatabaseUrl> {
        let is_well_formed = match text.split_once(':') {
            Some(("postgres" | "postgresql", _)) => {
                check_parameters(text)?;
                PgConnectOptions::from_str(text).is_ok()
            }
            Some(("sqlite", path)) => {
                if path.contains(":memory:") || path.contains("mode=memory") || path.trim_matches('/').is_empty() {
                    return Err(InvalidDatabaseUrl::InMemory);
                }
                check_parameters(text)?;
                SqliteConnectOptions::from_str(text).is_ok()
            }
            _ => return Err(InvalidDatabaseUrl::UnknownScheme),
        };
        if is_well_formed { Ok(Self(text.to_owned())) } else { Err(InvalidDatabaseUrl::Malformed) }
    }
}

impl fmt::Display for DatabaseUrl {
    /// Says which kind of database and where, without user, password and parameters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let without_parameters = self.0.split(['?', '#']).next().unwrap_or_default();
        match without_parameters.rsplit_once('@') {
            Some((_, place)) if !self.is_sqlite() => write!(f, "postgres://{place}"),
            _ => f.write_str(without_parameters),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A database's URL as it was given. It is checked only when it is used: the parser of arguments would print a wrong one,
/// password and all.
#[derive(Clone)]
pub struct GivenUrl(String);

impl GivenUrl {
    /// Checks it.
    pub fn check(&self) -> Result<DatabaseUrl, InvalidDatabaseUrl> {
        self.0.parse()
    }
}

impl From<String> for GivenUrl {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for GivenUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GivenUrl")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_url_shows_no_password() {
        let url: DatabaseUrl = "postgres://reel:s3cr3t@db.example:5432/reel?sslmode=require".parse().expect("a URL");
        assert_eq!(url.to_string(), "postgres://db.example:5432/reel");
        assert!(!format!("{url:?}").contains("s3cr3t"));
    }

    #[test]
    fn parameters_that_nobody_knows_are_refused_and_not_shown() {
        for (wrong, place) in [
            ("postgres://reel@db/reel?pasword=hunter2", 1),
            ("postgres://reel@db/reel?sslmod=verify-full", 1),
            ("postgres://reel@db/reel?sslmode=require&hunter2", 2),
            ("postgres://reel@db/reel?sslmode=require&options[x=hunter2", 2),
            ("postgres://reel@db/reel?SSLMODE=hunter2", 1),
            ("sqlite://reel.db?hunter2=1", 1),
        ] {
            let refused = wrong.parse::<DatabaseUrl>().expect_err(wrong);
            assert!(
                matches!(refused, InvalidDatabaseUrl::UnknownParameter { place: at, .. } if at == place),
                "{wrong}"
            );
            let shown = format!("{refused} {refused:?}");
            assert!(!shown.contains("hunter2") && !shown.contains("pasword") && !shown.contains("sslmod="), "{shown}");
        }
        for right in [
            "postgres://reel@db/reel?sslmode=disable&application_name=x&options[search_path]=reel",
            "postgres://db/reel?user=reel&password=hunter2&host=/run/postgresql&port=5433",
            "postgres://db/reel?",
            "sqlite://reel.db?mode=rwc",
        ] {
            assert!(right.parse::<DatabaseUrl>().is_ok(), "{right}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_by_its_parameter() {
        let missing: DatabaseUrl = "postgres://db/reel?sslmode=verify-full&ssl-ca=%2Fno%2Fsuch".parse().expect("a URL");
        let (name, error) = missing.check_files().expect_err("there is no such file");
        assert_eq!((name, error.kind()), ("sslrootcert", io::ErrorKind::NotFound));
        let there = tempfile::NamedTempFile::new().expect("a file");
        let url = format!("postgres://db/reel?sslrootcert={}", there.path().display());
        assert!(url.parse::<DatabaseUrl>().expect("a URL").check_files().is_ok());
    }

    #[test]
    fn urls_that_are_no_databases_are_refused() {
        for wrong in ["", "reel.db", "mysql://x", "http://x", "sqlite::memory:", "sqlite://", "postgres://x:port"] {
            assert!(wrong.parse::<DatabaseUrl>().is_err(), "{wrong}");
        }
        for right in ["sqlite://reel.db", "sqlite:reel.db", "sqlite:///var/lib/reel.db", "postgresql://localhost/reel"]
        {
            assert!(right.parse::<DatabaseUrl>().is_ok(), "{right}");
        }
    }
}
