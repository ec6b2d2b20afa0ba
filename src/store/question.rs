//! Questions: what reads more than a row or a page, and must not run for ever. Each sees the database as it was at one moment,
//! writes nothing, runs for a limited time, and is given up by the database too when nobody waits for its answer any more.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt as _};
use sea_orm::{
    ConnectionTrait as _, DatabaseBackend, DatabaseConnection, DatabaseTransaction, DbErr, FromQueryResult,
    QueryResult, Statement, StatementBuilder, StreamTrait as _, TransactionOptions, TransactionTrait as _,
    TryGetableMany,
};
use tokio::{
    sync::{OnceCell, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use uuid::Uuid;

use super::{Store, partition};
use crate::{
    archive::Archive,
    error::{Error, Result},
};

/// How long a question waits for others to be answered before it is told to come again.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);

const PARTITION_DROPS: &str = "SELECT count FROM partition_drops";

/// How often a question is asked when rows are dropped or moved while it is answered, or a file that it saw in use has gone.
pub(super) const ATTEMPTS: u32 = 5;

/// Asks a question, and again where rows were dropped or moved meanwhile, or a file is not where it was.
macro_rules! asked {
    ($store:expr, $ask:expr) => {
        asked!($store, question, $ask)
    };
    ($store:expr, $way:ident, $ask:expr) => {{
        let mut attempt = 0;
        loop {
            attempt += 1;
            match $store.$way($ask).await {
                Err($crate::error::Error::Contention | $crate::error::Error::SegmentMissing)
                    if attempt < $crate::store::question::ATTEMPTS => {}
                answer => break answer,
            }
        }
    }};
}

/// The connections for questions. They are apart from those of playback, so that analysis cannot hold playback up.
#[derive(Clone, Debug)]
pub(super) struct Desk {
    /// As many as may be asked at once.
    permits: Arc<Semaphore>,
    counters: Arc<Mutex<Vec<Counter>>>,
    time_limit: Duration,
    archive: Option<Archive>,
    /// How many drops and moves there had been when that was last looked at.
    drops: Arc<AtomicI64>,
    /// Whether all of the index was made by our definitions, as far as is known.
    definitions_are_ours: Arc<AtomicBool>,
    /// Where the plans of all statements go, while somebody wants to see them.
    plans: Arc<Mutex<Option<Vec<QueryPlan>>>>,
}

/// Where one question at a time is answered.
#[derive(Clone, Debug)]
pub(super) struct Counter {
    /// On SQLite, a connection of its own.
    pub(super) connection: DatabaseConnection,
    /// How a question has to begin on it. On others it is read-only and sees one moment by the connection's own settings.
    pub(super) begin: Option<TransactionOptions>,
    /// Set when nobody waits for the answer any more: SQLite looks at it, PostgreSQL sees that the connection is closed.
    pub(super) is_given_up: Arc<AtomicBool>,
}

/// How the database has carried out a statement.
#[derive(Clone, Debug)]
pub struct QueryPlan {
    /// The query's name.
    pub name: &'static str,
    /// What EXPLAIN says, line by line.
    pub plan: String,
}

impl Desk {
    pub(super) fn new(counters: Vec<Counter>, time_limit: Duration) -> Self {
        let permits = Arc::new(Semaphore::new(counters.len()));
        let (counters, drops) = (Arc::new(Mutex::new(counters)), Arc::new(AtomicI64::new(-1)));
        Self {
            permits,
            counters,
            time_limit,
            archive: None,
            drops,
            definitions_are_ours: Arc::default(),
            plans: Arc::default(),
        }
    }

    /// Another desk, which knows what this one knows, and whose plans go where those of this one go.
    pub(super) fn beside(&self, counters: Vec<Counter>) -> Self {
        Self {
            plans: Arc::clone(&self.plans),
            drops: Arc::clone(&self.drops),
            definitions_are_ours: Arc::clone(&self.definitions_are_ours),
            ..Self::new(counters, self.time_limit)
        }
    }

    /// Waits for a connection.
    async fn turn(&self) -> Result<Turn> {
        let permit = timeout(QUEUE_TIMEOUT, Arc::clone(&self.permits).acquire_owned()).await;
        let permit = permit.map_err(|_| Error::TooManyQuestions)?.map_err(|_| Error::DatabaseUnavailable)?;
        let counter = self.counters.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let counter = counter.ok_or(Error::DatabaseUnavailable)?;
        Ok(Turn { counter, counters: Arc::clone(&self.counters), _permit: permit })
    }

    /// As many as may be asked at once.
    pub(super) fn permits(&self) -> &Semaphore {
        &self.permits
    }

    /// Where to look for what is archived.
    pub(super) fn keep_archive(&mut self, archive: Option<Archive>) {
        self.archive = archive;
    }

    /// One of the connections, if not all are in use. On PostgreSQL they all are of one pool.
    pub(super) fn connection(&self) -> Option<DatabaseConnection> {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.last().map(|counter| counter.connection.clone())
    }

    pub(super) async fn close(&self) {
        let counters = std::mem::take(&mut *self.counters.lock().unwrap_or_else(PoisonError::into_inner));
        for counter in counters {
            if let Err(error) = counter.connection.close().await {
                tracing::warn!(%error, "a connection pool did not close");
            }
        }
    }
}

/// A question that is being answered: a view of the database at one moment.
pub(super) struct Question {
    transaction: Option<DatabaseTransaction>,
    backend: DatabaseBackend,
    /// Gives the connection back when this is dropped.
    turn: Option<Turn>,
    /// Whether it has read tables that have partitions.
    reads_partitions: AtomicBool,
    pub(super) definitions_are_ours: Arc<AtomicBool>,
    /// What it has read of them.
    pub(super) outdated_below: OnceCell<Option<Uuid>>,
    pub(super) archive: Option<Archive>,
    /// Facets of a session that are kept at most.
    pub(super) max_session_facets: usize,
    plans: Arc<Mutex<Option<Vec<QueryPlan>>>>,
}

struct Turn {
    counter: Counter,
    counters: Arc<Mutex<Vec<Counter>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.counter.is_given_up.store(false, Ordering::Release);
        self.counters.lock().unwrap_or_else(PoisonError::into_inner).push(self.counter.clone());
    }
}

/// A handle on the database whose reads go by a connection for questions.
pub(super) struct Apart {
    pub(super) store: Store,
    /// Gives the connection back.
    turn: Option<Turn>,
}

impl Apart {
    /// Nothing is under way on it any more.
    pub(super) fn end(mut self) {
        drop(self.turn.take());
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // Broken off, as questions are.
        let Some(turn) = self.turn.take() else { return };
        turn.counter.is_given_up.store(true, Ordering::Release);
        if !self.store.is_postgres() {
            tokio::spawn(async move {
                drop(turn.counter.connection.ping().await);
                drop(turn);
            });
        }
    }
}

impl Store {
    /// Asks a question, and waits no longer for its answer than questions may take.
    pub(super) async fn question<T>(&self, ask: impl AsyncFnOnce(&Question) -> Result<T>) -> Result<T> {
        self.question_at(&self.desk, ask).await
    }

    /// The same about one session: it does not wait until questions about many are answered.
    pub(super) async fn lookup<T>(&self, ask: impl AsyncFnOnce(&Question) -> Result<T>) -> Result<T> {
        self.question_at(&self.lookups, ask).await
    }

    async fn question_at<T>(&self, desk: &Desk, ask: impl AsyncFnOnce(&Question) -> Result<T>) -> Result<T> {
        let asking = async {
            let known_drops = desk.drops.load(Ordering::Acquire);
            let question = Question::begin(self, desk).await?;
            // Questions are large, and many of their callers are small.
            let answer = Box::pin(ask(&question)).await;
            let is_of_the_caller = answer.as_ref().is_err_and(|error| !matches!(error, Error::Internal));
            let needs_looking = question.reads_partitions.load(Ordering::Relaxed) && !is_of_the_caller;
            question.end();
            if self.is_postgres() && needs_looking && self.partitions_have_changed(known_drops).await? {
                return Err(Error::Contention);
            }
            answer
        };
        let asking = async { timeout(desk.time_limit, asking).await.unwrap_or(Err(Error::StatementTimeout)) };
        self.unless_away(asking).await
    }

    /// A handle that reads where questions are asked: for what reads much, and must not hold playback up.
    pub(super) async fn apart(&self) -> Result<Apart> {
        let turn = self.desk.turn().await?;
        let read = turn.counter.connection.clone();
        Ok(Apart { store: Self { read, ..self.clone() }, turn: Some(turn) })
    }

    /// Whether rows were dropped or moved since somebody has read this number of drops and moves. A partition that is dropped, or
    /// that rows are moved out of or into, is so for a question too, although it sees everything else as it was: an answer that
    /// was begun before may not be good, and an error may be of a table that is gone.
    ///
    /// Asked when the question has given its connection back: those that hold one and wait for another would wait for each
    /// other. So nobody asks which number the question itself would have seen, and the first one after a drop is asked twice.
    async fn partitions_have_changed(&self, known_drops: i64) -> Result<bool, DbErr> {
        let row = self.read.query_one_raw(Statement::from_string(self.backend, PARTITION_DROPS)).await?;
        let drops: i64 = row.map_or(Ok(0), |row| row.try_get("", "count"))?;
        self.desk.drops.store(drops, Ordering::Release);
        Ok(drops != known_drops)
    }

    /// Keeps the plans of all questions from now on, instead of those that were kept before, which it gives.
    pub fn plans_record(&self) -> Vec<QueryPlan> {
        self.desk.plans.lock().unwrap_or_else(PoisonError::into_inner).replace(Vec::new()).unwrap_or_default()
    }
}

impl Question {
    async fn begin(store: &Store, desk: &Desk) -> Result<Self> {
        let turn = desk.turn().await?;
        let connection = &turn.counter.connection;
        let transaction = match turn.counter.begin {
            Some(options) => connection.begin_with_options(options).await?,
            None => connection.begin().await?,
        };
        let (archive, plans) = (desk.archive.clone(), Arc::clone(&desk.plans));
        Ok(Self {
            transaction: Some(transaction),
            backend: store.backend,
            turn: Some(turn),
            reads_partitions: AtomicBool::new(false),
            definitions_are_ours: Arc::clone(&desk.definitions_are_ours),
            outdated_below: OnceCell::new(),
            archive,
            max_session_facets: store.max_session_facets,
            plans,
        })
    }

    /// Ends the transaction, which nobody has to wait for.
    fn end(mut self) {
        let (Some(transaction), Some(turn)) = (self.transaction.take(), self.turn.take()) else { return };
        tokio::spawn(async move {
            // There is nothing to lose in it.
            if let Err(error) = transaction.commit().await {
                tracing::debug!(%error, "the transaction of a question did not end");
            }
            drop(turn);
        });
    }

    pub(super) fn backend(&self) -> DatabaseBackend {
        self.backend
    }

    pub(super) fn is_postgres(&self) -> bool {
        self.backend == DatabaseBackend::Postgres
    }

    fn transaction(&self) -> Result<&DatabaseTransaction, DbErr> {
        self.transaction.as_ref().ok_or_else(|| DbErr::Custom("the question has ended".to_owned()))
    }

    /// The rows of a query, all at once, each as a tuple. Everything that a question reads goes through here or through
    /// [`Question::stream`], under a name, so that the plan of each can be looked at.
    pub(super) async fn rows<T: TryGetableMany>(
        &self,
        name: &'static str,
        query: &impl StatementBuilder,
    ) -> Result<Vec<T>, DbErr> {
        let statement = self.backend.build(query);
        self.record_plan(name, &statement).await?;
        let rows = self.transaction()?.query_all_raw(statement).await?;
        rows.iter().map(|row| Ok(T::try_get_many_by_index(row)?)).collect()
    }

    /// The rows of a query, all at once, each as an entity or another type with names.
    pub(super) async fn models<M: FromQueryResult>(
        &self,
        name: &'static str,
        query: &impl StatementBuilder,
    ) -> Result<Vec<M>, DbErr> {
        let statement = self.backend.build(query);
        self.record_plan(name, &statement).await?;
        let rows = self.transaction()?.query_all_raw(statement).await?;
        rows.iter().map(|row| M::from_query_result(row, "")).collect()
    }

    /// The rows of a query as they come.
    pub(super) async fn stream<'a, T: TryGetableMany>(
        &'a self,
        name: &'static str,
        query: &impl StatementBuilder,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<T, DbErr>> + Send + 'a>>, DbErr> {
        let statement = self.backend.build(query);
        self.record_plan(name, &statement).await?;
        let rows = self.transaction()?.stream_raw(statement).await?;
        Ok(Box::pin(rows.map(|row| Ok(T::try_get_many_by_index(&row?)?))))
    }

    async fn record_plan(&self, name: &'static str, statement: &Statement) -> Result<(), DbErr> {
        if partition::TABLES.iter().any(|table| statement.sql.contains(table)) {
            self.reads_partitions.store(true, Ordering::Relaxed);
        }
        if self.plans.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Ok(());
        }
        let (explain, column) =
            if self.is_postgres() { ("EXPLAIN", "QUERY PLAN") } else { ("EXPLAIN QUERY PLAN", "detail") };
        let explained = Statement { sql: format!("{explain} {}", statement.sql), ..statement.clone() };
        let lines = self.transaction()?.query_all_raw(explained).await?;
        let lines: Result<Vec<String>, DbErr> =
            lines.iter().map(|line: &QueryResult| line.try_get("", column)).collect();
        let plan = QueryPlan { name, plan: lines?.join("\n") };
        if let Some(plans) = &mut *self.plans.lock().unwrap_or_else(PoisonError::into_inner) {
            plans.push(plan);
        }
        Ok(())
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        // Broken off: the database is told before anybody else gets the connection.
        let (Some(transaction), Some(turn)) = (self.transaction.take(), self.turn.take()) else { return };
        turn.counter.is_given_up.store(true, Ordering::Release);
        if self.is_postgres() {
            // The pool closes a connection that is still at work, and the server looks at it while it works.
            drop(transaction);
            return drop(turn);
        }
        tokio::spawn(async move {
            // Waits until the statement has seen it.
            drop(transaction.rollback().await);
            drop(turn);
        });
    }
}
