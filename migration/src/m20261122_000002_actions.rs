//! Actions: the one big table. On PostgreSQL it is partitioned by the day of the session's start, which a session's id
//! carries; `reel::store` makes the partitions. What finds none lies in the DEFAULT one until it is moved.

use sea_orm_migration::{prelude::*, sea_orm::DatabaseBackend};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// No surrogate id, no foreign key per row: the primary key serves replay, seeking and integrity; the track's row, which
/// has the foreign key, is locked by every write. The columns are in an order that leaves no gaps between them.
const POSTGRES: &str = "
CREATE TABLE actions (
    session_id uuid NOT NULL,
    timestamp timestamptz NOT NULL,
    seq bigint NOT NULL,
    track smallint NOT NULL,
    type text NOT NULL,
    target text NOT NULL,
    data json,
    PRIMARY KEY (session_id, timestamp, track, seq)
) PARTITION BY RANGE (session_id);
CREATE INDEX actions_error ON actions (session_id, timestamp) WHERE type = 'error';
CREATE TABLE actions_default PARTITION OF actions DEFAULT;
";

const SQLITE: &str = "
CREATE TABLE actions (
    session_id uuid_text NOT NULL,
    timestamp timestamp_with_timezone_text NOT NULL,
    track smallint NOT NULL,
    seq bigint NOT NULL,
    type text NOT NULL,
    target text NOT NULL,
    data text,
    PRIMARY KEY (session_id, timestamp, track, seq)
) WITHOUT ROWID;
CREATE INDEX actions_error ON actions (session_id, timestamp) WHERE type = 'error';
";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let sql = match manager.get_database_backend() {
            DatabaseBackend::Postgres => POSTGRES,
            _ => SQLITE,
        };
        manager.get_connection().execute_unprepared(sql).await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("actions").to_owned()).await
    }
}
