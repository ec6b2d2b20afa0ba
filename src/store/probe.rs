//! Whether the database can do its work now, writing included. Asked every second, so it writes nothing as long as writes
//! go through by themselves.

use std::{io::Write as _, path::PathBuf, sync::atomic::Ordering};

use sea_orm::{ConnectionTrait as _, DbErr, FromQueryResult, Statement, TransactionTrait as _};

use super::Store;
use crate::error::{Error, Result};

/// As much as a merged transaction may need: room for less than that is a full disk.
const PROBE_BYTES: usize = 1 << 20;

#[derive(FromQueryResult)]
struct ReadOnly {
    read_only: bool,
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
        if self.is_postgres() {
            self.check_writable().await?;
        } else {
            self.ping().await?;
        }
        if self.writes_in_doubt.load(Ordering::Acquire) {
            if self.is_postgres() {
                self.write_to_postgres().await?;
            } else {
                self.write_to_sqlite().await?;
            }
            self.writes_in_doubt.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// A standby, or a server whose operator has made it read-only, answers and is of no use.
    async fn check_writable(&self) -> Result<()> {
        let sql = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean AS read_only";
        let statement = Statement::from_string(self.backend, sql);
        match ReadOnly::find_by_statement(statement).one(&self.probe).await? {
            Some(ReadOnly { read_only: false }) => Ok(()),
            _ => Err(Error::DatabaseUnavailable),
        }
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
