//! Clearing PostgreSQL's tables of dead rows, at a time when nobody can see these any more.

use std::{collections::BTreeSet, time::Duration};

use chrono::NaiveDate;
use sea_orm::{
    DbErr, FromQueryResult, RuntimeErr, Statement,
    sqlx::{self, Connection as _, PgConnection},
};
use tokio::time::sleep;

use crate::{
    error::{Error, Result},
    store::{
        Store,
        partition::{TABLES as PARTITIONED, partition_name, windows_of_table},
    },
};

/// The tables without partitions that have something of a user or a session.
const TABLES: [&str; 6] = ["users", "sessions", "tracks", "facets", "facet_days", "erasures"];

/// Indexes too, however few rows are dead; the end of a table stays, for which everybody would have to wait. And the statistics,
/// which show values of columns.
const VACUUM: &str = "VACUUM (ANALYZE, INDEX_CLEANUP ON, TRUNCATE OFF)";

/// Tables with partitions whose own statistics somebody has made: nothing else makes them.
const ANALYZED: &str = "SELECT DISTINCT tablename::text FROM pg_stats \
     WHERE schemaname = current_schema() AND inherited AND tablename IN ('actions', 'session_facets')";

/// How often it is looked whether old readers have ended, and with what pauses. Then it is tried again the next time.
const HORIZON_ATTEMPTS: u32 = 100;
const HORIZON_PAUSE: Duration = Duration::from_millis(50);

/// Whoever holds dead rows back that died before a transaction: readers and writers that are older, of this database or of a
/// standby, also those that wait for their second phase. What others' connections are is not told to everybody, and NULL then.
const OLDER: &str = "SELECT count(*) AS count FROM ( \
        SELECT horizon FROM pg_stat_activity, LATERAL (VALUES (backend_xmin), (backend_xid)) AS of_backend (horizon) \
            WHERE pid <> pg_backend_pid() AND backend_type IS DISTINCT FROM 'autovacuum worker' \
                AND (datname = current_database() OR datname IS NULL) \
        UNION ALL SELECT xmin FROM pg_replication_slots \
        UNION ALL SELECT transaction FROM pg_prepared_xacts WHERE database = current_database() \
    ) AS horizons WHERE age(horizon) > age(CAST($1 AS xid))";

#[derive(FromQueryResult)]
struct Transaction {
    id: String,
}

#[derive(FromQueryResult)]
struct Count {
    count: i64,
}

impl Store {
    /// Clears the tables, and the partitions of these days, of rows that are dead by now. Fails with CONTENTION where somebody
    /// reads who began before.
    pub(super) async fn vacuum(&self, days: &BTreeSet<NaiveDate>) -> Result<()> {
        self.horizon_passes().await?;
        let mut tables: BTreeSet<String> = TABLES.map(str::to_owned).into();
        for table in PARTITIONED {
            tables.insert(format!("{table}_default"));
            let windows = windows_of_table(&self.read, table).await?;
            let windows = windows.into_iter().filter(|window| days.iter().any(|day| window.contains(*day)));
            tables.extend(windows.map(|window| partition_name(table, window)));
        }
        let pool = self.write.get_postgres_connection_pool();
        let failed = |error: sqlx::Error| DbErr::Exec(RuntimeErr::SqlxError(error.into()));
        // A connection that is not used again: its settings are not the others'.
        let mut connection = pool.acquire().await.map_err(failed)?.detach();
        let cleared = vacuum_each(&mut connection, &tables).await;
        if let Err(error) = connection.close().await {
            tracing::debug!(%error, "a connection did not close in good order");
        }
        Ok(cleared.map_err(failed)?)
    }

    /// Waits until nobody sees any more what died before now.
    async fn horizon_passes(&self) -> Result<()> {
        let now = Statement::from_string(self.backend, "SELECT CAST(CAST(pg_current_xact_id() AS xid) AS text) AS id");
        let now = Transaction::find_by_statement(now).one(&self.write).await?.ok_or(Error::Internal)?;
        for _ in 0..HORIZON_ATTEMPTS {
            let older = Statement::from_sql_and_values(self.backend, OLDER, [now.id.clone().into()]);
            if Count::find_by_statement(older).one(&self.write).await?.is_none_or(|row| row.count == 0) {
                return Ok(());
            }
            sleep(HORIZON_PAUSE).await;
        }
        Err(Error::Contention)
    }
}

async fn vacuum_each(connection: &mut PgConnection, tables: &BTreeSet<String>) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("SET statement_timeout = 0").execute(&mut *connection).await?;
    for table in tables {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("{VACUUM} {table}"))).execute(&mut *connection).await?;
    }
    let analyzed: Vec<String> = sqlx::query_scalar(ANALYZED).fetch_all(&mut *connection).await?;
    for table in analyzed {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("ANALYZE {table}"))).execute(&mut *connection).await?;
    }
    Ok(())
}
