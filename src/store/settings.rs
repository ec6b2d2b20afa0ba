//! The settings of a connection to PostgreSQL that Reel relies on, whatever the server, the database and the role are set to.
//! They are set once the connection is there, and read back: poolers refuse, or forget, what is asked for while it is made.

use sea_orm::sqlx::{self, AssertSqlSafe, Executor as _, PgConnection, Row as _};

/// The settings of one kind of connection.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Names and values as `current_setting` gives them.
    wanted: Vec<(&'static str, &'static str)>,
    /// The statement that sets them.
    set: String,
    /// The statement that reads them.
    read: String,
}

/// What statements mean, and what rows look like.
const MEANING: [(&str, &str); 9] = [
    // With `off`, a backslash in a text of a statement begins an escape.
    ("standard_conforming_strings", "on"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
    ("transform_null_equals", "off"),
    ("array_nulls", "on"),
    ("default_transaction_deferrable", "off"),
];

/// How long anything may take: a statement of a request; a statement that waits for others, which is less than requests wait for
/// a connection, so that those who wait for one session are not taken for a database that is away.
const LIMITS: [(&str, &str); 4] = [
    ("statement_timeout", "30s"),
    ("lock_timeout", "2s"),
    ("idle_in_transaction_session_timeout", "10s"),
    // A server that is busy with a statement looks so often whether its client is still there.
    ("client_connection_check_interval", "500ms"),
];

/// Without it a server that crashes may lose what it has acknowledged. Other values than `off` are the operator's choice. Set
/// in any case: what is only the default would change under connections that are there.
const DURABLE: &str = "synchronous_commit";

/// What only a superuser may set: with another value neither triggers nor foreign keys work.
const ONLY_READ: (&str, &str) = ("session_replication_role", "origin");

/// Would close connections that wait for their next use, or are a lock. Not every server has both.
const WHERE_THERE_IS: [(&str, &str); 2] = [("idle_session_timeout", "0"), ("transaction_timeout", "0")];

/// The server, or a pooler before it, does not keep a setting.
#[derive(Debug, thiserror::Error)]
#[error("the connection has {setting} = {value}, and reel relies on {wanted}")]
pub(super) struct NotKept {
    /// Its name.
    setting: String,
    /// What it is.
    value: String,
    /// What it has to be.
    wanted: &'static str,
}

impl Settings {
    /// For connections that write, or read rows and pages.
    pub(super) fn of_rows() -> Self {
        let mut settings = Vec::from(MEANING);
        settings.extend(LIMITS);
        settings.extend([
            ("default_transaction_isolation", "read committed"),
            // A generic plan locks every partition and every index of it, even where it reads one.
            ("plan_cache_mode", "force_custom_plan"),
        ]);
        Self::new(settings)
    }

    /// For connections on which questions are asked.
    pub(super) fn of_questions() -> Self {
        let mut settings = Vec::from(MEANING);
        settings.extend(LIMITS);
        settings.extend([
            // Here and not by a statement of each question.
            ("default_transaction_isolation", "repeatable read"),
            ("default_transaction_read_only", "on"),
            // Searches are many and alike, and have no more use for a plan of their own than for the time it takes.
            ("plan_cache_mode", "auto"),
            // Compiling takes longer than most questions.
            ("jit", "off"),
            ("work_mem", "64MB"),
        ]);
        Self::new(settings)
    }

    /// The statements are texts, sent as they are: each costs one round trip, and nothing is prepared for its one use. None of the
    /// names and values has anything in it that would have to be escaped.
    fn new(mut wanted: Vec<(&'static str, &'static str)>) -> Self {
        wanted.extend(WHERE_THERE_IS);
        let pairs: Vec<_> = wanted.iter().map(|(name, value)| format!("('{name}', '{value}')")).collect();
        let set = format!(
            "SELECT set_config(name, value, false) FROM (VALUES {}) AS given (name, value) \
             WHERE current_setting(name, true) IS NOT NULL; \
             SELECT set_config('{DURABLE}', coalesce(nullif(current_setting('{DURABLE}'), 'off'), 'on'), false)",
            pairs.join(", ")
        );
        wanted.push(ONLY_READ);
        let names = wanted.iter().map(|(name, _)| *name).chain([DURABLE]);
        let names: Vec<_> = names.map(|name| format!("('{name}')")).collect();
        let read = format!(
            "SELECT name, current_setting(name, true) FROM (VALUES {}) AS given (name) \
             WHERE current_setting(name, true) IS NOT NULL",
            names.join(", ")
        );
        Self { wanted, set, read }
    }

    /// Makes them so, and looks whether they are.
    pub(super) async fn apply(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        connection.execute(sqlx::raw_sql(AssertSqlSafe(self.set.as_str()))).await?;
        for row in connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(self.read.as_str()))).await? {
            let (setting, value): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let other = self.wanted.iter().find(|(name, wanted)| *name == setting && *wanted != value);
            if let Some((_, wanted)) = other {
                return Err(sqlx::Error::Configuration(Box::new(NotKept { setting, value, wanted })));
            }
            if setting == DURABLE && value == "off" {
                return Err(sqlx::Error::Configuration(Box::new(NotKept { setting, value, wanted: "on" })));
            }
        }
        Ok(())
    }
}
