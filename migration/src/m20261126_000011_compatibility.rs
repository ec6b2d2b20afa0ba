//! Which older versions may go on using the schema as later migrations have left it. A handful of rows, read only when a
//! process starts.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let compatibility = Table::create()
            .table("schema_compatibility")
            // The name of a migration, and of the one that a process must know to use the schema without knowing it. A migration
            // without a row must be known.
            .col(ColumnDef::new("version").text().not_null().primary_key())
            .col(ColumnDef::new("oldest").text().not_null())
            .to_owned();
        manager.create_table(compatibility).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("schema_compatibility").to_owned()).await
    }
}
