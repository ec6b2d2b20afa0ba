//! When a segment was first found damaged as it was to be written anew: what cannot be read of it is given up a day later.

use sea_orm_migration::{prelude::*, sea_orm::DatabaseBackend};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let time = match manager.get_database_backend() {
            DatabaseBackend::Postgres => "timestamptz",
            _ => "timestamp_with_timezone_text",
        };
        let damaged_at = format!("ALTER TABLE segments ADD COLUMN damaged_at {time}");
        manager.get_connection().execute_unprepared(&damaged_at).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared("ALTER TABLE segments DROP COLUMN damaged_at").await.map(|_| ())
    }
}
