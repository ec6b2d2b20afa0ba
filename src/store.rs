//! The one handle on the database, PostgreSQL or SQLite. Its methods are split by resource into the files of `store/`:
//! resource first, verb second; `_in_txn` runs inside the caller's transaction.
//!
//! Only this module knows sea-orm. Nothing here knows protobuf or gRPC.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use sea_orm::{
    DatabaseBackend, DatabaseConnection, DatabaseTransaction, DbErr, SqliteTransactionMode, TransactionOptions,
    TransactionTrait as _, sqlx,
};
use tokio::{
    sync::{Notify, broadcast, watch},
    time::Instant,
};

use self::connect::{Common, Shares};
use crate::{
    archive::Archive,
    config::DatabaseUrl,
    error::Result,
    model::{Facets, SessionId},
};

#[macro_use]
mod question;

mod action;
mod analytics;
mod append;
mod archive;
mod budget;

mod changes;
mod claim;
mod clock;
mod connect;
mod entity;
mod erasure;
mod failure;
mod hand_deletes;
mod index;
mod lease;
mod partition;
mod prepare;
mod probe;
mod relay;
mod retention;
mod schema;
mod search;
mod segment;
mod session;
mod settings;
mod track;
mod user;

pub use action::{ActionQuery, ActionRows, KnownSegment, SeqWindow};
pub use append::{Appended, ArchivedDigests, Arrived, KnownSessions};
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
    /// For what reads the rows of one session.
    lookups: question::Desk,
    /// Where old sessions' actions are.
    archive: Option<Archive>,
    backend: DatabaseBackend,
    known_partitions: Arc<partition::KnownPartitions>,
    /// How many days of session starts a new partition is for.
    partition_days: u16,
    /// Facets of a session that the index has at most.
    max_session_facets: usize,
    /// Whether a write has failed, and none has gone through since that was to find out.
    writes_in_doubt: Arc<AtomicBool>,
    /// The time, as the database has it.
    clock: clock::Clock,
    /// What has been seen of the database.
    signs: Arc<probe::Signs>,
    /// False while the database is away.
    answers: watch::Sender<bool>,
    /// When it has last not answered, and what else is known of its connections.
    common: Common,
    /// Sessions that something was stored of since that was last looked at: an end by the idle timeout is taken back.
    heard_of: Arc<Mutex<HashSet<SessionId>>>,
    /// Whether anything was erased behind which has not been cleared up: facets that no session has, texts in SQLite's log.
    has_erased: Arc<AtomicBool>,
    /// Whether it may go on forgetting.
    caution: Arc<retention::Caution>,
    /// Tells the writers of what was erased.
    erased: broadcast::Sender<changes::Erased>,
    /// Tells whoever finishes erasures that there is one.
    erasures_wake: Arc<Notify>,
    /// When SQLite's file was last written anew, and how long that took.
    file_rewritten: Arc<tokio::sync::Mutex<Option<(Instant, Duration)>>>,
    /// How many connections to PostgreSQL there may be.
    budget: Arc<budget::Budget>,
}

impl Store {
    /// Opens the database, whether it is there yet or not: connections are made when they are needed, so that a service may
    /// start before its database. A PostgreSQL that is there is asked how many connections it has left.
    pub async fn open(url: &DatabaseUrl, connections: u32) -> Result<Self, Unfit> {
        url.check_files().map_err(|(name, error)| Unfit::File { name, error })?;
        let common = Common::default();
        let left = if url.is_sqlite() { None } else { budget::slots_left_at_start(url).await };
        if let Some(left) = left.filter(|left| *left < connections) {
            let fewest = Shares::FEWEST;
            tracing::warn!(left, connections, fewest, "the server has fewer connections left than are asked for");
        }
        let shares = Shares::of(left.map_or(connections, |left| left.min(connections)));
        let (write, read, probe, copy) = if url.is_sqlite() {
            let readers = (connections - connections / 3).max(1);
            let open = |connections, read_only| connect::sqlite(url, connections, read_only, None);
            (open(1, false).await?, open(readers, true).await?, open(1, true).await?, None)
        } else {
            let open = |connections| connect::postgres(url, connections, &common);
            let copy = connect::copy(url, shares.copy, &common)?;
            // A look may still be under way, on a connection that has broken, when the next one begins.
            (open(shares.write)?, open(shares.read)?, open(2)?, Some(copy))
        };
        let questions = if url.is_sqlite() { (connections / 3).max(2) } else { shares.questions };
        let desk = question::Desk::new(connect::counters(url, questions, &common).await?, connect::STATEMENT_TIMEOUT);
        let lookups = desk.beside(connect::lookups(url, &read).await?);
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
            lookups,
            archive: None,
            backend,
            known_partitions,
            partition_days: 1,
            max_session_facets: Facets::DEFAULT_MAX,
            writes_in_doubt,
            clock: clock::Clock::default(),
            signs: Arc::default(),
            answers,
            common,
            heard_of: Arc::default(),
            has_erased,
            caution: Arc::default(),
            erased: broadcast::Sender::new(changes::ERASURES_AT_HAND),
            erasures_wake: Arc::default(),
            file_rewritten: Arc::default(),
            budget: Arc::new(budget::Budget::new(shares)),
        })
    }

    /// The same with an archive.
    #[must_use]
    pub fn with_archive(mut self, archive: Option<Archive>) -> Self {
        self.desk.keep_archive(archive.clone());
        self.lookups.keep_archive(archive.clone());
        self.archive = archive;
        self
    }

    /// The same, but new partitions are for so many days of session starts, not for one. Means nothing to SQLite.
    #[must_use]
    pub fn with_partition_days(mut self, days: u16) -> Self {
        self.partition_days = days;
        self
    }

    /// The same, but the index has so many facets of a session at most.
    #[must_use]
    pub fn with_max_session_facets(mut self, max: usize) -> Self {
        self.max_session_facets = max;
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
            connect::close_idle(self.probe.get_postgres_connection_pool()).await;
            self.make_room().await;
        }
    }

    /// The same of those by which requests are answered. Gives how many were closed.
    async fn make_room(&self) -> u32 {
        let mut closed = 0;
        for pool in self.pools() {
            closed += connect::close_idle(&pool).await;
        }
        closed
    }

    /// Closes all connections, when what runs on them has ended.
    pub async fn close(&self) {
        self.budget.end().await;
        for connection in [&self.write, &self.read, &self.probe] {
            if let Err(error) = connection.clone().close().await {
                tracing::warn!(%error, "a connection pool did not close");
            }
        }
        self.desk.close().await;
        self.lookups.close().await;
        if let Some(copy) = &self.copy {
            copy.pool.close().await;
        }
    }

    /// Why no connection to PostgreSQL can be made, if none can.
    async fn why_not_connected(&self) -> Option<sqlx::Error> {
        if !self.is_postgres() {
            return None;
        }
        connect::why_not(self.write.get_postgres_connection_pool()).await
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
