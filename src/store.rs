//! The one handle on the database, PostgreSQL or SQLite. Its methods are split by resource into the files of `store/`:
//! resource first, verb second; `_in_txn` runs inside the caller's transaction.
//!
//! Only this module knows sea-orm. Nothing here knows protobuf or gRPC.

use std::sync::{Arc, atomic::AtomicBool};

use sea_orm::{
    DatabaseBackend, DatabaseConnection, DatabaseTransaction, DbErr, SqliteTransactionMode, TransactionOptions,
    TransactionTrait as _,
};
use tokio::sync::watch;

use self::connect::Outage;
use crate::{archive::Archive, config::DatabaseUrl, error::Result};

#[macro_use]
mod question;

mod action;
mod analytics;
mod append;
mod archive;

mod changes;
mod claim;
mod connect;
mod entity;
mod erasure;
mod failure;
mod index;
mod partition;
mod prepare;
mod probe;
mod relay;
mod retention;
mod search;
mod segment;
mod session;
mod track;
mod user;

pub use action::{ActionQuery, ActionRows, KnownSegment, SeqWindow};
pub use append::{Arrived, KnownSessions};
pub use archive::SegmentCheck;
pub use changes::ChangeListener;
pub use claim::Claim;
pub use index::{Difference, Due, DueSession, DueSessions, FacetIds, IndexedSessions};
pub use partition::PARTITION_DAYS_AHEAD;
pub use prepare::Unfit;
pub use question::QueryPlan;

/// A handle on the database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    /// For what changes the database. On SQLite this is one connection: it has one writer at a time anyway, and waiting in
    /// our own queue is fairer than its busy handler.
    write: DatabaseConnection,
    /// For the write of actions on PostgreSQL.
    copy: Option<connect::CopyPool>,
    /// For what only reads, so that playback cannot starve ingest of connections.
    read: DatabaseConnection,
    /// For asking whether the database is there, however busy the other connections are.
    probe: DatabaseConnection,
    /// For what reads more than a row or a page.
    desk: question::Desk,
    /// Where old sessions' actions are.
    archive: Option<Archive>,
    backend: DatabaseBackend,
    known_partitions: Arc<partition::KnownPartitions>,
    /// How many days of session starts a new partition is for.
    partition_days: u16,
    /// Whether a write has failed, and none has gone through since that was to find out.
    writes_in_doubt: Arc<AtomicBool>,
    /// Whether the database has answered when it was last asked whether it is there.
    answers: watch::Sender<bool>,
    /// When it has last not answered.
    outage: Outage,
    /// Whether anything was erased behind which has not been cleared up: facets that no session has, texts in SQLite's log.
    has_erased: Arc<AtomicBool>,
}

impl Store {
    /// Opens the database without connecting to it yet: connections are made when they are needed, so that a service may
    /// start before its database.
    pub async fn open(url: &DatabaseUrl, connections: u32) -> Result<Self, Unfit> {
        let outage = Outage::default();
        let (write, read, probe) = if url.is_sqlite() {
            (
                connect::sqlite(url, 1, false, None).await?,
                connect::sqlite(url, connections.max(1), true, None).await?,
                connect::sqlite(url, 1, true, None).await?,
            )
        } else {
            // One more reader for good: it listens to other processes. Two more writers: while this process indexes or forgets,
            // it has a lock, on a connection that does nothing else.
            let connections = connections.max(2);
            let open = |connections| connect::postgres(url, connections, &outage);
            (open(connections + 2)?, open(connections + 1)?, open(1)?)
        };
        let counters = connect::counters(url, (connections / 2).max(2), &outage).await?;
        let desk = question::Desk::new(counters, connect::STATEMENT_TIMEOUT);
        let copy = if url.is_sqlite() { None } else { Some(connect::copy(url, &outage)?) };
        let backend = write.get_database_backend();
        let answers = watch::Sender::new(true);
        let (known_partitions, writes_in_doubt) = (Arc::default(), Arc::default());
        // Who knows what was erased before.
        let has_erased = Arc::new(AtomicBool::new(true));
        Ok(Self {
            write,
            copy,
            read,
            probe,
            desk,
            archive: None,
            backend,
            known_partitions,
            partition_days: 1,
            writes_in_doubt,
            answers,
            outage,
            has_erased,
        })
    }

    /// The same with an archive.
    #[must_use]
    pub fn with_archive(mut self, archive: Option<Archive>) -> Self {
        self.desk.keep_archive(archive.clone());
        self.archive = archive;
        self
    }

    /// The same, but new partitions are for so many days of session starts, not for one. Means nothing to SQLite.
    #[must_use]
    pub fn with_partition_days(mut self, days: u16) -> Self {
        self.partition_days = days;
        self
    }

    /// How many transactions can write at once to some purpose, where so many are asked for. On PostgreSQL a second one
    /// works while the first waits for the disk; SQLite has one writer.
    #[must_use]
    pub fn writers(&self, asked: Option<u8>) -> usize {
        if self.is_postgres() { asked.map_or(2, usize::from) } else { 1 }
    }

    /// Closes the connections to PostgreSQL that nobody uses now.
    pub async fn connections_close_idle(&self) {
        if self.is_postgres() {
            let counters = self.desk.connection();
            for connection in [&self.write, &self.read, &self.probe].into_iter().chain(&counters) {
                connect::close_idle(connection.get_postgres_connection_pool()).await;
            }
        }
        if let Some(copy) = &self.copy {
            connect::close_idle(&copy.pool).await;
        }
    }

    /// Closes all connections, when what runs on them has ended.
    pub async fn close(&self) {
        for connection in [&self.write, &self.read, &self.probe] {
            if let Err(error) = connection.clone().close().await {
                tracing::warn!(%error, "a connection pool did not close");
            }
        }
        self.desk.close().await;
        if let Some(copy) = &self.copy {
            copy.pool.close().await;
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
