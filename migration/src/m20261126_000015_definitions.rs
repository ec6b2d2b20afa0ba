//! By which version of its definitions the index was made: one row. What was made by an older one is made anew, from the newest
//! session to the oldest, and the row says how far that is. And e-mail addresses with their sigmas all alike.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let definitions = Table::create()
            .table("index_definitions")
            .col(ColumnDef::new("version").integer().not_null())
            // Sessions with lesser ids were indexed by an older version. NULL where there are none.
            .col(ColumnDef::new("outdated_below").uuid())
            .to_owned();
        manager.create_table(definitions).await?;
        let connection = manager.get_connection();
        connection
            .execute_unprepared(
                "INSERT INTO index_definitions (version) SELECT CASE WHEN EXISTS (SELECT 1 FROM sessions) THEN 1 ELSE 2 END",
            )
            .await?;
        // All of a table that has a row a user, once.
        connection
            .execute_unprepared("UPDATE users SET email = replace(email, 'ς', 'σ') WHERE email LIKE '%ς%'")
            .await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("index_definitions").to_owned()).await
    }
}
