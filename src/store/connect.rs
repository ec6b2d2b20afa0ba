//! Connections: how many, with which settings, and when one is given up.

use std::{
    str::FromStr as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sea_orm::{
    AccessMode, ConnectOptions, Database, DatabaseConnection, DbErr, IsolationLevel, RuntimeErr, SqlxPostgresConnector,
    TransactionOptions,
    sqlx::{
        self, ConnectOptions as _, Connection as _, PgConnection, PgPool, Postgres,
        pool::PoolConnection,
        postgres::{PgConnectOptions, PgPoolOptions},
        sqlite::{SqliteAutoVacuum, SqliteJournalMode, SqliteSynchronous},
    },
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout},
};

use super::{budget::Backends, question::Counter, relay::Relay, settings::Settings};
use crate::config::DatabaseUrl;

/// How long a request waits for a connection before it is told that the database is unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// The same for SQLite's one writer, whose queue everybody is in. Nothing but the disk makes it wait.
const SQLITE_WRITER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a statement of a request may run. PostgreSQL is told so by [`Settings`].
pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long SQLite waits for another process's write lock.
pub(super) const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection that is given back may take to show that it still works. One whose statement was broken off first
/// has to come to its end.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that is given back at this age is closed: servers, and what is between, may forget those that live long.
const MAX_AGE: Duration = Duration::from_mins(10);

/// A connection that was not used for this long is tried before it is used.
const TRY_WHEN_IDLE_FOR: Duration = Duration::from_secs(10);

/// When the database has last not answered. The connections of that time are not used again: they may be broken without
/// showing it, and what was begun on them was broken off.
#[derive(Clone, Debug, Default)]
pub(super) struct Outage(Arc<Mutex<Option<Instant>>>);

impl Outage {
    pub(super) fn begin_now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether a connection of this age has been through it.
    fn has_seen(&self, age: Duration) -> bool {
        let began = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        began.is_some_and(|began| began.elapsed() <= age)
    }
}

/// What all connections to PostgreSQL of a process have in common.
#[derive(Clone, Debug, Default)]
pub(super) struct Common {
    pub(super) outage: Outage,
    pub(super) backends: Backends,
}

/// Connections to PostgreSQL, made when they are needed.
pub(super) fn postgres(url: &DatabaseUrl, connections: u32, common: &Common) -> Result<DatabaseConnection, DbErr> {
    let pool = postgres_pool(connections, common, Settings::of_rows()).connect_lazy_with(postgres_options(url)?);
    Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
}

/// Where questions are asked, so many at once.
pub(super) async fn counters(url: &DatabaseUrl, count: u32, common: &Common) -> Result<Vec<Counter>, DbErr> {
    let mut counters = Vec::new();
    if !url.is_sqlite() {
        let pool = postgres_pool(count, common, Settings::of_questions()).connect_lazy_with(postgres_options(url)?);
        for _ in 0..count {
            let connection = SqlxPostgresConnector::from_sqlx_postgres_pool(pool.clone());
            counters.push(Counter { connection, begin: None, is_given_up: Arc::default() });
        }
        return Ok(counters);
    }
    for _ in 0..count {
        let is_given_up = Arc::new(AtomicBool::new(false));
        let connection = sqlite(url, 1, true, Some(Arc::clone(&is_given_up))).await?;
        counters.push(Counter { connection, begin: None, is_given_up });
    }
    Ok(counters)
}

/// How many questions about one session are answered at once.
const LOOKUPS: u32 = 2;

/// Where questions about one session are asked: on PostgreSQL by the connections for reading, which are quickly free.
pub(super) async fn lookups(url: &DatabaseUrl, read: &DatabaseConnection) -> Result<Vec<Counter>, DbErr> {
    if url.is_sqlite() {
        return counters(url, LOOKUPS, &Common::default()).await;
    }
    let begin = TransactionOptions {
        isolation_level: Some(IsolationLevel::RepeatableRead),
        access_mode: Some(AccessMode::ReadOnly),
        sqlite_transaction_mode: None,
    };
    let counter = || Counter { connection: read.clone(), begin: Some(begin), is_given_up: Arc::default() };
    Ok((0..LOOKUPS).map(|_| counter()).collect())
}

/// How the connections to PostgreSQL of a process are shared out: none of these waits for a connection of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    pub(super) write: u32,
    pub(super) read: u32,
    pub(super) questions: u32,
    /// No more are made than there are writers, who are two by default.
    pub(super) copy: u32,
}

impl Shares {
    /// With fewer than these in all, something would not work.
    pub(super) const FEWEST: u32 = 9;

    /// One looks whether the database is there. Two write actions; more only where more writers are asked for. While this
    /// process indexes or forgets, it has a lock, on a connection that does nothing else; another listens to other processes.
    pub(super) fn of(connections: u32) -> Self {
        let connections = connections.max(Self::FEWEST);
        let is_scarce = connections < 12;
        let copy = if is_scarce { 1 } else { 2 };
        let questions = (connections / 6).max(1);
        let write = (connections / 4).max(4);
        let read = connections - 1 - copy - questions - write;
        Self { write, read, questions, copy: if is_scarce { copy } else { MAX_WRITERS } }
    }

    /// How many connections these are in all, with the one that looks whether the database is there.
    pub(super) fn total(self) -> u32 {
        1 + self.write + self.read + self.questions + self.copy.min(2)
    }
}

/// SQLite looks whether anybody still waits for the answer after so many instructions of its machine: about every
/// millisecond.
const LOOK_EVERY: i32 = 10_000;

/// Connections for COPY, and what they need.
#[derive(Clone, Debug)]
pub(super) struct CopyPool {
    pub(super) pool: PgPool,
    /// As many as may be used at once.
    pub(super) permits: Arc<Semaphore>,
    /// None where the server has a Unix socket itself, or we can have none.
    _relay: Option<Arc<Relay>>,
}

impl CopyPool {
    /// A connection, and what says that it is in use.
    pub(super) async fn acquire(&self) -> Result<(SemaphorePermit<'_>, PoolConnection<Postgres>), DbErr> {
        let timed_out = |_| sqlx::Error::PoolTimedOut;
        let acquiring = async {
            let permit = timeout(ACQUIRE_TIMEOUT, self.permits.acquire()).await.map_err(timed_out)?;
            Ok((permit.map_err(|_| sqlx::Error::PoolClosed)?, self.pool.acquire().await?))
        };
        acquiring.await.map_err(|error: sqlx::Error| DbErr::Conn(RuntimeErr::SqlxError(error.into())))
    }
}

/// How many writers there may be. Each has a connection while it writes, and no more are made than are used.
const MAX_WRITERS: u32 = 64;

/// Connections for COPY, made when they are needed.
pub(super) fn copy(url: &DatabaseUrl, connections: u32, common: &Common) -> Result<CopyPool, DbErr> {
    let mut options = postgres_options(url)?;
    let mut relay = None;
    if options.get_socket().is_none() && !options.get_host().starts_with('/') {
        match Relay::start(options.get_host().to_owned(), options.get_port()) {
            Ok(started) => {
                options = options.socket(started.folder());
                relay = Some(Arc::new(started));
            }
            Err(error) => {
                tracing::warn!(%error, "no Unix socket in the folder for temporary files: writing will be slower");
            }
        }
    }
    let pool = postgres_pool(connections, common, Settings::of_rows()).connect_lazy_with(options);
    let permits = Arc::new(Semaphore::new(usize::try_from(connections).unwrap_or(usize::MAX)));
    Ok(CopyPool { pool, permits, _relay: relay })
}

pub(super) fn postgres_options(url: &DatabaseUrl) -> Result<PgConnectOptions, DbErr> {
    let options =
        PgConnectOptions::from_str(url.expose()).map_err(|error| DbErr::Conn(RuntimeErr::SqlxError(error.into())))?;
    Ok(options
        .application_name("reel")
        // Asked for as the connection is made, it is refused by poolers. See [`Settings`].
        .extra_float_digits(None)
        // Statements quote nothing, but they are many.
        .disable_statement_logging())
}

/// The pool looks after nothing by itself. What it would do about old connections may, in the sqlx that there is now, count for
/// ever instead: it burns a core, and the process does not end (launchbadge/sqlx#3645). See [`close_idle`].
fn postgres_pool(connections: u32, common: &Common, settings: Settings) -> PgPoolOptions {
    let Common { outage, backends } = common.clone();
    let settings = Arc::new(settings);
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .max_lifetime(None)
        .idle_timeout(None)
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            let (settings, backends) = (Arc::clone(&settings), backends.clone());
            Box::pin(async move {
                settings.apply(connection).await?;
                backends.note(connection).await
            })
        })
        .before_acquire(move |connection, meta| {
            let is_suspect = outage.has_seen(meta.age);
            Box::pin(async move {
                if is_suspect {
                    // Not closed in good order, for which it would have to work.
                    return Err(sqlx::Error::Io(std::io::ErrorKind::ConnectionAborted.into()));
                }
                if meta.idle_for >= TRY_WHEN_IDLE_FOR {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .after_release(|connection, meta| {
            let is_young = meta.age < MAX_AGE;
            Box::pin(async move { Ok(is_young && still_works(connection).await?) })
        })
}

/// How long it may take to find out why there is no connection, or how many there may be.
pub(super) const FIND_OUT_WITHIN: Duration = Duration::from_secs(3);

/// Why a connection of this pool cannot be made, if it cannot. The pool itself says only that there was none in time.
pub(super) async fn why_not(pool: &PgPool) -> Option<sqlx::Error> {
    let connecting = async {
        let mut connection = PgConnection::connect_with(&pool.connect_options()).await?;
        Settings::of_rows().apply(&mut connection).await?;
        connection.close().await
    };
    match timeout(FIND_OUT_WITHIN, connecting).await {
        Ok(outcome) => outcome.err(),
        Err(_) => Some(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

/// Closes the connections that nobody uses, and gives how many. To be done now and then: after a rush there would be many of
/// them for ever.
pub(super) async fn close_idle(pool: &PgPool) -> u32 {
    for closed in 0..pool.options().get_max_connections() {
        let Some(connection) = pool.try_acquire() else { return closed };
        if timeout(RELEASE_TIMEOUT, connection.close()).await.is_err() {
            tracing::debug!("a connection did not close in good order");
        }
    }
    pool.options().get_max_connections()
}

/// The pool would wait for ever, and be a connection short for as long, where the network has swallowed one.
async fn still_works(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    match timeout(RELEASE_TIMEOUT, connection.ping()).await {
        Ok(outcome) => outcome.map(|()| true),
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

/// Connections to SQLite.
/// Statements that are under way end when `is_given_up` is set.
pub(super) async fn sqlite(
    url: &DatabaseUrl,
    connections: u32,
    read_only: bool,
    is_given_up: Option<Arc<AtomicBool>>,
) -> Result<DatabaseConnection, DbErr> {
    let mut options = ConnectOptions::new(url.expose());
    if let Some(is_given_up) = is_given_up {
        options.map_sqlx_sqlite_pool_opts(move |options| {
            let is_given_up = Arc::clone(&is_given_up);
            options.after_connect(move |connection, _| {
                let is_given_up = Arc::clone(&is_given_up);
                Box::pin(async move {
                    let goes_on = move || !is_given_up.load(Ordering::Acquire);
                    connection.lock_handle().await?.set_progress_handler(LOOK_EVERY, goes_on);
                    Ok(())
                })
            })
        });
    }
    options
        .max_connections(connections)
        .acquire_timeout(if read_only { ACQUIRE_TIMEOUT } else { SQLITE_WRITER_TIMEOUT })
        .connect_lazy(true)
        .sqlx_logging(false)
        .test_before_acquire_if_idle_for(TRY_WHEN_IDLE_FOR)
        .max_lifetime(None)
        .idle_timeout(None)
        // When a full disk makes SQLite end a transaction by itself, the driver goes on counting it. What it then takes for
        // nested transactions would be acknowledged, and never committed.
        .map_sqlx_sqlite_before_acquire(|connection, _| {
            let has_lost_count = connection.is_in_transaction();
            Box::pin(std::future::ready(Ok(!has_lost_count)))
        })
        .map_sqlx_sqlite_opts(move |options| {
            let options = options
                .create_if_missing(true)
                .foreign_keys(true)
                .busy_timeout(SQLITE_BUSY_TIMEOUT)
                // Rows are read ahead of who takes them; they may have a MiB each.
                .row_buffer_size(8)
                .synchronous(SqliteSynchronous::Full);
            if read_only {
                options.pragma("query_only", "ON")
            } else {
                // Both are written into the file; auto_vacuum must be chosen before the first table is made.
                options
                    .auto_vacuum(SqliteAutoVacuum::Incremental)
                    .journal_mode(SqliteJournalMode::Wal)
                    // What is erased is overwritten where its page is written anyway.
                    .pragma("secure_delete", "FAST")
            }
        });
    Database::connect(options).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shares_together_are_no_more_than_there_are_and_everything_has_one() {
        for connections in Shares::FEWEST..=200 {
            let shares = Shares::of(connections);
            assert_eq!(shares.total(), connections);
            // One of the readers listens.
            assert!(shares.questions >= 1 && shares.write >= 4 && shares.read >= 2, "{connections}: {shares:?}");
        }
        assert_eq!(Shares::of(0), Shares::of(Shares::FEWEST));
    }
}
