//! What of an erasure may still be somewhere when no answer shows it any more: files of the archive, dead rows, SQLite's log.
//! An erasure is finished when nothing is left of it here. A few short rows an erasure, which go when it is finished.

use sea_orm_migration::{prelude::*, sea_orm::DatabaseBackend};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let remains = Table::create()
            .table("erasure_remains")
            // Key of the erasure: a digest of a user's id, or a session's id.
            .col(ColumnDef::new("erasure").text().not_null())
            .col(ColumnDef::new("kind").text().not_null())
            .col(ColumnDef::new("name").text().not_null())
            .primary_key(Index::create().col("erasure").col("kind").col("name"))
            .to_owned();
        manager.create_table(remains).await?;
        let time = match manager.get_database_backend() {
            DatabaseBackend::Postgres => "timestamptz",
            _ => "timestamp_with_timezone_text",
        };
        // When no answer showed it any more.
        let gone_at = format!("ALTER TABLE erasures ADD COLUMN gone_at {time}");
        let unfinished = "CREATE INDEX erasures_unfinished ON erasures (user_digest) WHERE finished_at IS NULL";
        manager.get_connection().execute_unprepared(&gone_at).await?;
        manager.get_connection().execute_unprepared(unfinished).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared("DROP INDEX erasures_unfinished").await?;
        manager.get_connection().execute_unprepared("ALTER TABLE erasures DROP COLUMN gone_at").await?;
        manager.drop_table(Table::drop().table("erasure_remains").to_owned()).await
    }
}
