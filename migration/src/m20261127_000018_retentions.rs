//! The retentions of the services on this database, when each was last applied, and the first day on which sessions may start.
//!
//! Versions that do not know these tables say nothing of their own retention. So a database that has sessions begins with one
//! that keeps them for ever: for a day, in which such versions may run beside this one, no erased session is forgotten to be.

use sea_orm_migration::{prelude::*, sea_orm::DatabaseBackend};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let retentions = Table::create()
            .table("retentions")
            // The greatest of all numbers is for ever, and any number of bytes.
            .col(ColumnDef::new("keep_s").big_integer().not_null())
            .col(ColumnDef::new("max_bytes").big_integer().not_null())
            .col(ColumnDef::new("seen_at").timestamp_with_time_zone().not_null())
            // NULL where it was not applied yet.
            .col(ColumnDef::new("applied_at").timestamp_with_time_zone())
            // The first day that it kept then. NULL where it keeps all.
            .col(ColumnDef::new("first_kept").date())
            .primary_key(Index::create().col("keep_s").col("max_bytes"))
            .to_owned();
        manager.create_table(retentions).await?;
        let horizon =
            Table::create().table("retention_horizon").col(ColumnDef::new("first_day").date().not_null()).to_owned();
        manager.create_table(horizon).await?;
        let now = match manager.get_database_backend() {
            DatabaseBackend::Postgres => "now()",
            _ => "strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')",
        };
        let (ever, connection) = (i64::MAX, manager.get_connection());
        connection
            .execute_unprepared(&format!(
                "INSERT INTO retentions (keep_s, max_bytes, seen_at) SELECT {ever}, {ever}, {now} \
                 WHERE EXISTS (SELECT 1 FROM sessions) OR EXISTS (SELECT 1 FROM tombstones)"
            ))
            .await?;
        connection.execute_unprepared("INSERT INTO retention_horizon VALUES ('1970-01-01')").await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["retention_horizon", "retentions"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}
