//! Erasures of users: what was asked for, and how far it is. An erasure that was broken off goes on from here.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let erasures = Table::create()
            .table("erasures")
            // SHA-256 of the user's id, by which it is asked for. The id itself is there as long as it is needed.
            .col(ColumnDef::new("user_digest").text().not_null().primary_key())
            .col(ColumnDef::new("user_id").text())
            .col(ColumnDef::new("requested_at").timestamp_with_time_zone().not_null())
            .col(ColumnDef::new("finished_at").timestamp_with_time_zone())
            .col(ColumnDef::new("session_total").big_integer().not_null())
            .col(ColumnDef::new("session_count").big_integer().not_null().default(0))
            .col(ColumnDef::new("action_count").big_integer().not_null().default(0))
            .to_owned();
        manager.create_table(erasures).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("erasures").to_owned()).await
    }
}
