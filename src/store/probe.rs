//! Whether the database can do its work now, writing included. Asked every second, so it writes nothing as long as writes
//! go through by themselves.

use std::{
    io::Write as _,
    path::PathBuf,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait as _, DbErr, FromQueryResult, Statement, TransactionTrait as _};
use tokio::time::timeout;

use super::{Store, connect::STATEMENT_TIMEOUT};
use crate::error::{Error, Result};

/// As much as a merged transaction may need: room for less than that is a full disk.
const PROBE_BYTES: usize = 1 << 20;

/// How long the database may take to say that it is there. Asked every second, it is found away within 4 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// How long a question may take: longer than the database lets a statement run.
const ASK_TIMEOUT: Duration = STATEMENT_TIMEOUT.saturating_add(Duration::from_secs(5));

#[derive(FromQueryResult)]
struct State {
    read_only: bool,
    clock: DateTime<Utc>,
}

#[derive(FromQueryResult)]
struct DatabaseFile {
    file: String,
}

impl Store {
    /// Notes that a write did not go through, for want of a database that takes it. From now on [`Store::probe`] writes
    /// too, until that goes through: a full disk answers queries as ever.
    pub fn doubt_writes(&self) {
        self.writes_in_doubt.store(true, Ordering::Release);
    }

    /// Whether the database answers, and takes what is written.
    pub async fn probe(&self) -> Result<()> {
        let asked = timeout(ANSWER_WITHIN, self.is_writable()).await;
        let answer = asked.unwrap_or(Err(Error::DatabaseUnavailable));
        if answer.is_err() {
            self.outage.begin_now();
        }
        self.answers.send_if_modified(|answers| std::mem::replace(answers, answer.is_ok()) != answer.is_ok());
        if !answer? {
            return Err(Error::DatabaseUnavailable);
        }
        if self.writes_in_doubt.load(Ordering::Acquire) {
            let write = async {
                if self.is_postgres() { self.write_to_postgres().await } else { self.write_to_sqlite().await }
            };
            timeout(ANSWER_WITHIN, write).await.unwrap_or(Err(Error::DatabaseUnavailable))?;
            self.writes_in_doubt.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Whether the database has not answered when it was last asked whether it is there.
    #[must_use]
    pub fn is_away(&self) -> bool {
        !*self.answers.borrow()
    }

    /// Asks the database for something in a task of its own, which a client that goes away does not break off in the middle.
    /// See [`Store::in_time`].
    pub async fn ask<T, F>(&self, question: impl FnOnce(Self) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (store, question) = (self.clone(), question(self.clone()));
        let answer = tokio::spawn(async move { store.in_time(question).await });
        answer.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a question to the database broke down");
            Err(Error::Internal)
        })
    }

    /// Waits no longer once the database turns out to be away, or for much longer than it lets any statement run.
    pub(super) async fn in_time<T>(&self, asking: impl Future<Output = Result<T>>) -> Result<T> {
        let asking = async { timeout(ASK_TIMEOUT, asking).await.unwrap_or(Err(Error::DatabaseUnavailable)) };
        self.unless_away(asking).await
    }

    /// Waits no longer once the database turns out to be away. What was begun is broken off; its connection is not used
    /// again.
    pub async fn unless_away<T>(&self, asking: impl Future<Output = Result<T>>) -> Result<T> {
        let mut answers = self.answers.subscribe();
        tokio::select! {
            biased;
            answer = asking => answer,
            // The sender lives as long as this.
            _ = answers.wait_for(|answers| !answers) => Err(Error::DatabaseUnavailable),
        }
    }

    /// A standby, or a server whose operator has made it read-only, answers and is of no use. Says what time it is, too.
    async fn is_writable(&self) -> Result<bool> {
        if !self.is_postgres() {
            return Ok(self.probe.ping().await.map(|()| true)?);
        }
        let sql = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean AS read_only, \
                       clock_timestamp() AS clock";
        let asked = Instant::now();
        let state = State::find_by_statement(Statement::from_string(self.backend, sql)).one(&self.probe).await?;
        let Some(state) = state else { return Ok(false) };
        self.clock.set(state.clock, asked);
        Ok(!state.read_only)
    }

    /// A transaction that needs room where the tables are, and leaves nothing behind. Not in a table that exists: that may
    /// have room of its own. Unlogged, so that the write-ahead log gets no more than the commit.
    async fn write_to_postgres(&self) -> Result<()> {
        let row_bytes = 1_900; // Below the size from which rows are compressed.
        let rows = PROBE_BYTES / row_bytes;
        let tx = self.probe.begin().await?;
        tx.execute_unprepared(&format!(
            "CREATE UNLOGGED TABLE reel_probe (filler text);
             INSERT INTO reel_probe SELECT repeat('x', {row_bytes}) FROM generate_series(1, {rows});
             DROP TABLE reel_probe"
        ))
        .await?;
        Ok(tx.commit().await?)
    }

    /// A file beside the database, since what is taken back in the same transaction never reaches the disk, and a commit
    /// that changes nothing.
    async fn write_to_sqlite(&self) -> Result<()> {
        let statement =
            Statement::from_string(self.backend, "SELECT file FROM pragma_database_list WHERE name = 'main'");
        let file = DatabaseFile::find_by_statement(statement).one(&self.probe).await?;
        let file = file.ok_or_else(|| DbErr::RecordNotFound("the main database".to_owned()))?.file;
        let written = tokio::task::spawn_blocking(move || {
            let folder = PathBuf::from(file).parent().map(PathBuf::from).unwrap_or_default();
            let mut filler = tempfile::tempfile_in(folder)?;
            filler.write_all(&vec![0; PROBE_BYTES])?;
            filler.sync_all()
        });
        if let Ok(Err(error)) = written.await {
            tracing::warn!(%error, "there is no room beside the database");
            return Err(Error::DatabaseUnavailable);
        }
        let tx = self.begin().await?;
        tx.execute_unprepared("UPDATE seaql_migrations SET applied_at = applied_at").await?;
        Ok(tx.commit().await?)
    }
}
