//! Which definitions ([`DEFINITIONS`]) the index was made by. Where they have changed, all sessions are marked as dirty, some at a
//! time from the newest on, so that the indexer makes them anew; a mark says how far that is. Of the sessions below it, questions
//! do not believe what has changed.

use std::sync::atomic::Ordering;

use sea_orm::{ConnectionTrait, FromQueryResult, Statement, sea_query::Query};
use uuid::Uuid;

use super::INDEX_LOCK;
use crate::{
    error::Result,
    model::{Between, DEFINITIONS, SessionFilter},
    store::{
        Store,
        failure::{Attempts, Failure},
        question::Question,
    },
};

/// Sessions that are marked at once.
const SESSIONS_A_STEP: i64 = 500;

/// While there are as many dirty tracks, no more are marked: questions read all of them.
const MAX_DIRTY: i64 = 1_000;

/// The one row of its table.
#[derive(Clone, Copy, Debug, FromQueryResult)]
struct Definitions {
    version: i32,
    outdated_below: Option<Uuid>,
}

impl Definitions {
    async fn read(connection: &impl ConnectionTrait) -> Result<Self, sea_orm::DbErr> {
        let sql = "SELECT version, outdated_below FROM index_definitions";
        let row = Self::find_by_statement(Statement::from_string(connection.get_database_backend(), sql));
        Ok(row.one(connection).await?.unwrap_or(Self { version: 0, outdated_below: None }))
    }

    /// Sessions with lesser ids may have been indexed by older definitions than ours.
    fn outdated_below(self) -> Option<Uuid> {
        if self.version < DEFINITIONS { Some(Uuid::max()) } else { self.outdated_below }
    }
}

#[derive(FromQueryResult)]
struct IsOurs {
    is_ours: bool,
}

#[derive(FromQueryResult)]
struct Count {
    count: i64,
}

#[derive(FromQueryResult)]
struct Id {
    id: Uuid,
}

impl Store {
    /// Marks some of the sessions that older definitions have indexed, if the indexer has little to do. Gives whether there are
    /// none any more.
    pub async fn definitions_renew(&self) -> Result<bool> {
        let mut attempts = Attempts::default();
        loop {
            match self.definitions_renew_once().await {
                Ok(is_done) => return Ok(is_done),
                Err(failure) => attempts.again_after(failure).await?,
            }
        }
    }

    async fn definitions_renew_once(&self) -> Result<bool, Failure> {
        if Definitions::read(&self.read).await?.outdated_below().is_none() {
            return Ok(true);
        }
        let tx = self.begin().await?;
        let statement =
            |sql: &str, values: Vec<sea_orm::Value>| Statement::from_sql_and_values(self.backend, sql, values);
        if self.is_postgres() {
            // What another process is about to write was read by its own definitions, which may be older.
            let sql = format!("SELECT pg_try_advisory_xact_lock({INDEX_LOCK}) AS is_ours");
            let row = IsOurs::find_by_statement(statement(&sql, vec![])).one(&tx).await?;
            if !row.is_some_and(|row| row.is_ours) {
                return Ok(false);
            }
        }
        let known = Definitions::read(&tx).await?;
        let Some(below) = known.outdated_below() else { return Ok(true) };
        if known.version < DEFINITIONS {
            tracing::info!(version = DEFINITIONS, "definitions have changed: all sessions are indexed anew");
            let sql = "UPDATE index_definitions SET version = $1, outdated_below = $2";
            tx.execute_raw(statement(sql, vec![DEFINITIONS.into(), below.into()])).await?;
        }
        let sql = "SELECT count(*) AS count FROM (SELECT 1 AS one FROM tracks WHERE dirty LIMIT $1) AS dirty";
        let dirty = Count::find_by_statement(statement(sql, vec![MAX_DIRTY.into()])).one(&tx).await?;
        if dirty.is_none_or(|dirty| dirty.count >= MAX_DIRTY) {
            tx.commit().await?;
            return Ok(false);
        }
        let sql = "SELECT id FROM sessions WHERE id < $1 ORDER BY id DESC LIMIT $2";
        let ids = Id::find_by_statement(statement(sql, vec![below.into(), SESSIONS_A_STEP.into()])).all(&tx).await?;
        let lowest = ids.last().map(|row| row.id);
        if let Some(lowest) = lowest {
            // What was given up of the archive cannot be read by any definitions: it keeps what it has.
            let sql = "UPDATE tracks SET dirty = true WHERE session_id >= $1 AND session_id < $2 AND NOT dirty \
                 AND NOT EXISTS (SELECT 1 FROM sessions JOIN segments ON segments.id = sessions.segment_id \
                     WHERE sessions.id = tracks.session_id AND segments.path IS NULL)";
            tx.execute_raw(statement(sql, vec![lowest.into(), below.into()])).await?;
        }
        let sql = "UPDATE index_definitions SET outdated_below = $1";
        tx.execute_raw(statement(sql, vec![lowest.into()])).await?;
        tx.commit().await?;
        if lowest.is_none() {
            tracing::info!(version = DEFINITIONS, "all sessions are marked to be indexed anew");
        }
        Ok(lowest.is_none())
    }

    /// Sessions with lesser ids may have been indexed by older definitions.
    pub(super) async fn definitions_outdated_below(&self) -> Result<Option<Uuid>> {
        Ok(Definitions::read(&self.read).await?.outdated_below())
    }
}

impl Question {
    /// Sessions with lesser ids may have been indexed by older definitions. None where there are none, for good: only a newer
    /// release marks more.
    ///
    /// Query `definitions`. Reads the one row, once a question, until it is None.
    pub(in crate::store) async fn outdated_below(&self) -> Result<Option<Uuid>> {
        if self.definitions_are_ours.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let below = self.outdated_below.get_or_try_init(async || {
            let mut query = Query::select();
            query.columns(["version", "outdated_below"]).from("index_definitions");
            let rows: Vec<(i32, Option<Uuid>)> = self.rows("definitions", &query).await?;
            let (version, outdated_below) = rows.first().copied().unwrap_or((0, None));
            Ok::<_, sea_orm::DbErr>(Definitions { version, outdated_below }.outdated_below())
        });
        let below = *below.await?;
        self.definitions_are_ours.store(below.is_none(), Ordering::Relaxed);
        Ok(below)
    }

    /// The same, where a filter asks for what has changed.
    pub(in crate::store) async fn outdated_for(&self, filter: &SessionFilter) -> Result<Option<Uuid>> {
        if filter.rage_click_count == Between::default() { Ok(None) } else { self.outdated_below().await }
    }
}
