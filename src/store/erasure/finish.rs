//! Finishing erasures: what no answer shows any more is still in files of the archive, in facets that no session has, in the
//! gaps of SQLite's pages and in its log, in dead rows of PostgreSQL. Each of these is noted when the sessions are gone, and
//! taken from the list when it is gone too. An erasure of which nothing is on the list is finished.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, DatabaseTransaction, DbErr, EntityTrait as _, FromQueryResult,
    QueryFilter as _, QuerySelect as _, QueryTrait as _, Set, Statement, sea_query::OnConflict,
};
use tokio::time::Instant;

use crate::{
    error::{Error, Result},
    failpoint,
    store::{
        Store,
        entity::{erasure, erasure_remain},
        failure::{Attempts, Failure},
    },
};

/// A day whose partitions have dead rows.
pub(super) const DAY: &str = "day";

/// The tables that have no partitions, facets among them; on SQLite the whole file.
const TABLES: &str = "tables";

/// SQLite's log, when the file was written anew.
const LOG: &str = "log";

/// A file of the archive that may have what was erased.
const FILE: &str = "file";

/// For so many times as long as writing SQLite's file anew took, it is not done again.
const REWRITE_PAUSE: u32 = 20;

#[derive(FromQueryResult)]
struct Key {
    user_digest: String,
}

impl Store {
    /// Finishes the erasures of which all sessions are gone, as far as that can be done now. What fails is tried again the next
    /// time.
    pub async fn erasures_finish(&self, now: DateTime<Utc>) -> Result<()> {
        let sql = "SELECT user_digest FROM erasures WHERE finished_at IS NULL AND user_id IS NULL AND gone_at IS NULL";
        let keys = Key::find_by_statement(Statement::from_string(self.backend, sql)).all(&self.write).await?;
        for Key { user_digest } in keys {
            // Its process died, or is just about to do this.
            self.erasure_gone(&user_digest, now).await?;
        }
        let removed =
            format!("DELETE FROM erasure_remains WHERE kind = '{FILE}' AND name NOT IN ({})", unclean_files());
        self.write.execute_unprepared(&removed).await?;
        let purged = self.remains_purge().await;
        let finish = "UPDATE erasures SET finished_at = $1 WHERE finished_at IS NULL AND gone_at IS NOT NULL \
             AND user_digest NOT IN (SELECT erasure FROM erasure_remains)";
        self.write.execute_raw(Statement::from_sql_and_values(self.backend, finish, [now.into()])).await?;
        purged
    }

    async fn remains_purge(&self) -> Result<()> {
        // What is noted from now on is of rows that may die after these are cleared.
        let remains = self.erasure_remains().await?;
        if remains.iter().any(|remain| remain.kind == TABLES) {
            // Whoever has read an erased session before makes no facets of it any more.
            self.facets_sweep().await?;
            if self.is_postgres() {
                let days = remains.iter().filter(|remain| remain.kind == DAY);
                self.vacuum(&days.filter_map(|remain| remain.name.parse().ok()).collect()).await?;
            } else {
                self.file_rewrite().await?;
            }
            failpoint::reach("rows purged");
            self.remains_replace(&remains, &[TABLES, DAY], (!self.is_postgres()).then_some(LOG)).await?;
        }
        let remains = self.erasure_remains().await?;
        if remains.iter().any(|remain| remain.kind == LOG) && self.log_write_back().await? {
            self.remains_replace(&remains, &[LOG], None).await?;
        }
        Ok(())
    }

    /// Writes SQLite's whole file anew, without the gaps of pages in which copies of moved rows stay. Nobody else writes
    /// meanwhile, so it may take a small part of the time only.
    async fn file_rewrite(&self) -> Result<()> {
        let mut last = self.file_rewritten.lock().await;
        if last.is_some_and(|(ended, took)| ended.elapsed() < took * REWRITE_PAUSE) {
            return Err(Error::Contention);
        }
        let began = Instant::now();
        let rewritten = self.write.execute_unprepared("VACUUM").await;
        *last = Some((Instant::now(), began.elapsed()));
        rewritten?;
        Ok(())
    }

    /// What is left of erasures whose sessions are gone: of others there may be more to come.
    async fn erasure_remains(&self) -> Result<Vec<erasure_remain::Model>> {
        let gone = erasure::Entity::find()
            .select_only()
            .column(erasure::Column::UserDigest)
            .filter(erasure::Column::GoneAt.is_not_null())
            .into_query();
        let remains = erasure_remain::Entity::find().filter(erasure_remain::Column::Erasure.in_subquery(gone));
        Ok(remains.all(&self.write).await?)
    }

    /// Takes some kinds of what was noted of erasures from the list, and puts another one there.
    async fn remains_replace(
        &self,
        remains: &[erasure_remain::Model],
        kinds: &[&str],
        with: Option<&str>,
    ) -> Result<(), Failure> {
        let keys: BTreeSet<_> = remains.iter().map(|remain| remain.erasure.as_str()).collect();
        let tx = self.begin().await?;
        for key in keys {
            erasure_remain::Entity::delete_many()
                .filter(erasure_remain::Column::Erasure.eq(key))
                .filter(erasure_remain::Column::Kind.is_in(kinds.iter().copied()))
                .exec(&tx)
                .await?;
            if let Some(kind) = with {
                note(&tx, key, kind, "").await?;
            }
        }
        tx.commit().await?;
        Ok(())
    }

    /// Notes, when no answer shows anything of an erasure any more, where else something may be. After the last session's
    /// transaction: whatever file is begun from then on does not have it.
    pub(in crate::store) async fn erasure_gone(&self, key: &str, now: DateTime<Utc>) -> Result<()> {
        failpoint::reach("erasure gone from answers");
        let mut attempts = Attempts::default();
        loop {
            match self.erasure_gone_once(key, now).await {
                Ok(()) => break,
                Err(failure) => attempts.again_after(failure).await?,
            }
        }
        self.erasures_wake.notify_one();
        Ok(())
    }

    async fn erasure_gone_once(&self, key: &str, now: DateTime<Utc>) -> Result<(), Failure> {
        let tx = self.begin().await?;
        let gone = "UPDATE erasures SET gone_at = $1, user_id = NULL WHERE user_digest = $2 AND gone_at IS NULL";
        let gone = Statement::from_sql_and_values(self.backend, gone, [now.into(), key.into()]);
        if tx.execute_raw(gone).await?.rows_affected() > 0 {
            let files = format!(
                "INSERT INTO erasure_remains (erasure, kind, name) SELECT $1, '{FILE}', path FROM ({}) AS files \
                 WHERE true ON CONFLICT DO NOTHING",
                unclean_files()
            );
            tx.execute_raw(Statement::from_sql_and_values(self.backend, files, [key.into()])).await?;
            note(&tx, key, TABLES, "").await?;
        }
        tx.commit().await?;
        Ok(())
    }
}

/// A query for the files of the archive that may have what is no session's any more: those of which that is known, and all that
/// are being written, or are not used any more and not removed yet.
fn unclean_files() -> &'static str {
    "SELECT path FROM segments WHERE path IS NOT NULL AND stale <> 0 \
     UNION SELECT path FROM segment_files WHERE state IN ('planned', 'written', 'removing')"
}

/// Notes where something of an erasure may be.
pub(super) async fn note(tx: &DatabaseTransaction, key: &str, kind: &str, name: &str) -> Result<(), DbErr> {
    let row = erasure_remain::ActiveModel {
        erasure: Set(key.to_owned()),
        kind: Set(kind.to_owned()),
        name: Set(name.to_owned()),
    };
    let key = [erasure_remain::Column::Erasure, erasure_remain::Column::Kind, erasure_remain::Column::Name];
    erasure_remain::Entity::insert(row)
        .on_conflict(OnConflict::columns(key).do_nothing().to_owned())
        .exec_without_returning(tx)
        .await?;
    Ok(())
}
