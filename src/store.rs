//! The one handle on the database, PostgreSQL or SQLite. Its methods are split by resource into the files of `store/`:
//! resource first, verb second; `_in_txn` runs inside the caller's transaction.
//!
//! Only this module knows sea-orm. Nothing here knows protobuf or gRPC.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use sea_orm::{
    ConnectOptions, Database, DatabaseBackend, DatabaseConnection, DatabaseTransaction, DbErr, SqliteTransactionMode,
    TransactionOptions, TransactionTrait as _,
    sqlx::{
        Connection as _,
        sqlite::{SqliteAutoVacuum, SqliteJournalMode, SqliteSynchronous},
    },
};

use crate::{config::DatabaseUrl, error::Result};

mod action;
mod append;
mod changes;
mod entity;
mod failure;
mod partition;
mod prepare;
mod probe;
mod session;
mod track;
mod user;

pub use action::{ActionQuery, ActionRows, SeqWindow};
pub use append::{Arrived, KnownSessions};
pub use changes::ChangeListener;
pub use partition::PARTITION_DAYS_AHEAD;
pub use prepare::Unfit;

/// How long a request waits for a connection before it is told that the database is unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// The same for SQLite's one writer, whose queue everybody is in. Nothing but the disk makes it wait.
const SQLITE_WRITER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a statement of a request may run.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a statement waits for others: less than requests wait for a connection, so that those who wait for one session
/// are not taken for a database that is away.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long SQLite waits for another process's write lock.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// A handle on the database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    /// For what changes the database. On SQLite this is one connection: it has one writer at a time anyway, and waiting in
    /// our own queue is fairer than its busy handler.
    write: DatabaseConnection,
    /// For what only reads, so that playback cannot starve ingest of connections.
    read: DatabaseConnection,
    /// For asking whether the database is there, however busy the other connections are.
    probe: DatabaseConnection,
    backend: DatabaseBackend,
    known_partitions: Arc<partition::KnownPartitions>,
    /// Whether a write has failed, and none has gone through since that was to find out.
    writes_in_doubt: Arc<AtomicBool>,
}

impl Store {
    /// Opens the database without connecting to it yet: connections are made when they are needed, so that a service may
    /// start before its database.
    pub async fn open(url: &DatabaseUrl, connections: u32) -> Result<Self, Unfit> {
        let (write, read, probe) = if url.is_sqlite() {
            (sqlite_options(url, 1, false), sqlite_options(url, connections.max(1), true), sqlite_options(url, 1, true))
        } else {
            // One more reader for good: it listens to other processes.
            let connections = connections.max(2);
            (postgres_options(url, connections), postgres_options(url, connections + 1), postgres_options(url, 1))
        };
        let (write, read) = (Database::connect(write).await?, Database::connect(read).await?);
        let probe = Database::connect(probe).await?;
        let backend = write.get_database_backend();
        Ok(Self { write, read, probe, backend, known_partitions: Arc::default(), writes_in_doubt: Arc::default() })
    }

    /// How many transactions can write at once to some purpose, where so many are asked for. On PostgreSQL a second one
    /// works while the first waits for the disk; SQLite has one writer.
    #[must_use]
    pub fn writers(&self, asked: Option<u8>) -> usize {
        if self.is_postgres() { asked.map_or(2, usize::from) } else { 1 }
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<()> {
        Ok(self.probe.ping().await?)
    }

    /// Closes all connections, when what runs on them has ended.
    pub async fn close(&self) {
        for connection in [&self.write, &self.read, &self.probe] {
            if let Err(error) = connection.clone().close().await {
                tracing::warn!(%error, "a connection pool did not close");
            }
        }
    }

    fn is_postgres(&self) -> bool {
        self.backend == DatabaseBackend::Postgres
    }

    /// Begins a transaction that writes. On SQLite it takes the write lock at once: a transaction that reads first and then
    /// wants to write may be refused.
    async fn begin(&self) -> Result<DatabaseTransaction, DbErr> {
        let sqlite_transaction_mode = (!self.is_postgres()).then_some(SqliteTransactionMode::Immediate);
        self.write.begin_with_options(TransactionOptions { sqlite_transaction_mode, ..Default::default() }).await
    }
}

fn common_options(url: &DatabaseUrl, connections: u32) -> ConnectOptions {
    let mut options = ConnectOptions::new(url.expose());
    options
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_lazy(true)
        // Statements quote nothing, but they are many.
        .sqlx_logging(false)
        .test_before_acquire_if_idle_for(Duration::from_secs(10));
    options
}

fn postgres_options(url: &DatabaseUrl, connections: u32) -> ConnectOptions {
    let mut options = common_options(url, connections);
    options.max_lifetime(Duration::from_mins(10)).map_sqlx_postgres_opts(|options| {
        let millis = |duration: Duration| duration.as_millis().to_string();
        options.application_name("reel").options([
            // A generic plan locks every partition and every index of it, even where it reads one.
            ("plan_cache_mode", "force_custom_plan"),
            ("statement_timeout", &millis(STATEMENT_TIMEOUT)),
            ("lock_timeout", &millis(LOCK_TIMEOUT)),
            ("idle_in_transaction_session_timeout", "10000"),
        ])
    });
    options
}

fn sqlite_options(url: &DatabaseUrl, connections: u32, read_only: bool) -> ConnectOptions {
    let mut options = common_options(url, connections);
    if !read_only {
        options.acquire_timeout(SQLITE_WRITER_TIMEOUT);
    }
    // When a full disk makes SQLite end a transaction by itself, the driver goes on counting it. What it then takes for
    // nested transactions would be acknowledged, and never committed.
    options.map_sqlx_sqlite_before_acquire(|connection, _| {
        let has_lost_count = connection.is_in_transaction();
        Box::pin(std::future::ready(Ok(!has_lost_count)))
    });
    options.max_lifetime(None).idle_timeout(None).map_sqlx_sqlite_opts(move |options| {
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
            options.auto_vacuum(SqliteAutoVacuum::Incremental).journal_mode(SqliteJournalMode::Wal)
        }
    });
    options
}
