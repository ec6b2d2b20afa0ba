//! Whether the database can do its work now, writing included. Asked every second, so it writes nothing as long as writes
//! go through by themselves.

use std::{
    io::Write as _,
    path::PathBuf,
    sync::{Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait as _, DbErr, FromQueryResult, Statement, sqlx};
use tokio::time::{Instant, timeout};

use super::{Store, append, budget::Slots, connect::STATEMENT_TIMEOUT};
use crate::error::{Error, Result};

/// As much as a merged transaction may need: room for less than that is a full disk.
const PROBE_BYTES: usize = 1 << 20;

/// How long the database may take to say that it is there. It is found away within 5 s, by the third look at the latest: something
/// may have been committed while the first that fails was under way.
const ANSWER_WITHIN: Duration = Duration::from_millis(1_250);

/// The same while it is away: then a look needs a new connection, which a server that comes back may take long to make.
const ANSWER_WHILE_AWAY_WITHIN: Duration = Duration::from_secs(3);

/// How long a write that is only to find out whether writes go through may take.
const WRITE_WITHIN: Duration = Duration::from_secs(3);

/// How long a question may take: longer than the database lets a statement run.
const ASK_TIMEOUT: Duration = STATEMENT_TIMEOUT.saturating_add(Duration::from_secs(5));

/// What one look has seen.
struct Look {
    is_writable: bool,
    /// None where nobody could say, and on SQLite.
    slots: Option<Slots>,
}

#[derive(FromQueryResult)]
struct DatabaseFile {
    file: String,
}

/// What has been seen of the database: one look that fails may be the fault of its own connection.
#[derive(Debug, Default)]
pub(super) struct Signs(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// When the last look began, if it failed.
    failed: Option<Instant>,
    /// When something was last committed.
    committed: Option<Instant>,
    /// Whether the last write that was only to find out did not go through.
    writes_fail: bool,
}

impl Signs {
    /// Something was committed now.
    pub(super) fn note_commit(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).committed = Some(Instant::now());
    }

    fn note_write(&self, is_written: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).writes_fail = !is_written;
    }

    fn writes_fail(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).writes_fail
    }

    /// Notes how a look went, and gives whether the database is away: whether this one failed, and the one before, and nothing
    /// was committed since that began.
    fn note_look(&self, began: Instant, is_answered: bool) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut seen.failed, (!is_answered).then_some(began));
        let nothing_since = |moment: Instant| seen.committed.is_none_or(|committed| committed < moment);
        !is_answered && before.is_some_and(nothing_since)
    }
}

impl Store {
    /// Notes that something was committed: the database is there, whatever looks at it say.
    pub fn note_commit(&self) {
        self.signs.note_commit();
    }

    /// Notes that a write did not go through, for want of a database that takes it. From now on [`Store::probe`] writes
    /// too, until that goes through: a full disk answers queries as ever.
    pub fn doubt_writes(&self) {
        self.writes_in_doubt.store(true, Ordering::Release);
    }

    /// Whether the database answers, and takes what is written. It is away when two looks have failed, one after the other, and
    /// nothing was committed since the first of the two began.
    pub async fn probe(&self) -> Result<()> {
        let began = Instant::now();
        let within = if self.is_away() { ANSWER_WHILE_AWAY_WITHIN } else { ANSWER_WITHIN };
        let asked = timeout(within, self.look()).await;
        let answer = asked.unwrap_or(Err(Error::DatabaseUnavailable));
        let (was_away, is_away) = (self.is_away(), self.signs.note_look(began, answer.is_ok()));
        if is_away {
            self.common.outage.begin_now();
        }
        self.answers.send_if_modified(|answers| std::mem::replace(answers, !is_away) == is_away);
        if is_away && !was_away {
            // Apart: it may take long, and nothing depends on it.
            let store = self.clone();
            tokio::spawn(async move { store.log_why_away().await });
        }
        match answer {
            Ok(Look { is_writable: true, slots }) => {
                if let Some(slots) = slots {
                    // Apart: connections that hang are closed slowly, and the next look must not wait for that.
                    let store = self.clone();
                    tokio::spawn(async move { store.budget_look(slots).await });
                }
            }
            // As it was: of writes it says nothing.
            Err(_) if !is_away && !self.signs.writes_fail() => return Ok(()),
            Ok(_) | Err(_) => return Err(Error::DatabaseUnavailable),
        }
        if self.writes_in_doubt.load(Ordering::Acquire) {
            let written = if let Some(copy) = &self.copy {
                // The way that what is recorded goes: other connections may be of better times.
                append::rehearse(copy, filling(), WRITE_WITHIN).await.map_err(Error::from)
            } else {
                timeout(WRITE_WITHIN, self.write_to_sqlite()).await.unwrap_or(Err(Error::DatabaseUnavailable))
            };
            self.signs.note_write(written.is_ok());
            written?;
            self.writes_in_doubt.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Says in the log why no connection to the database can be made, if none can.
    async fn log_why_away(&self) {
        if let Some(error) = self.why_not_connected().await {
            // Logs it.
            let _: Error = error.into();
        }
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

    /// A standby, or a server whose operator has made it read-only, answers and is of no use. Says what time it is, too. By one
    /// connection: where the server has no more left, a second one would not come.
    async fn look(&self) -> Result<Look> {
        if !self.is_postgres() {
            self.probe.ping().await?;
            return Ok(Look { is_writable: true, slots: None });
        }
        let mut connection = self.probe.get_postgres_connection_pool().acquire().await?;
        let sql = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean, clock_timestamp()";
        let asked = std::time::Instant::now();
        let (is_read_only, clock): (bool, DateTime<Utc>) = sqlx::query_as(sql).fetch_one(&mut *connection).await?;
        self.clock.set(clock, asked);
        let slots = self.common.backends.count(&mut connection).await.ok();
        Ok(Look { is_writable: !is_read_only, slots })
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

/// Needs room where the tables are, and leaves nothing behind. Not in a table that exists: that may have room of its own.
/// Unlogged, so that the write-ahead log gets no more than the commit.
fn filling() -> String {
    let row_bytes = 1_900; // Below the size from which rows are compressed.
    let rows = PROBE_BYTES / row_bytes;
    format!(
        "CREATE UNLOGGED TABLE reel_probe (filler text);
         INSERT INTO reel_probe SELECT repeat('x', {row_bytes}) FROM generate_series(1, {rows});
         DROP TABLE reel_probe"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_database_is_away_when_two_looks_fail_and_nothing_was_committed_meanwhile() {
        let signs = Signs::default();
        let look = async |is_answered| {
            tokio::time::advance(Duration::from_secs(1)).await;
            signs.note_look(Instant::now(), is_answered)
        };
        assert!(!look(false).await);
        assert!(look(false).await);
        signs.note_commit();
        assert!(!look(false).await, "something was committed since the look before began");
        // A commit speaks for its own time only, not for ever.
        assert!(look(false).await);
        assert!(look(false).await);
        assert!(!look(true).await);
        assert!(!look(false).await);
        assert!(look(false).await);
    }
}
