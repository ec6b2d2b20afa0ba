//! Whoever expires a whole day says so: the sessions' actions go with the day's partition, and are not to be deleted one by one.

use sea_orm_migration::{prelude::*, sea_orm::DatabaseBackend};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

const UP: &str = "
DROP TRIGGER sessions_erase ON sessions;
CREATE TRIGGER sessions_erase AFTER DELETE ON sessions
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    WHEN (current_setting('reel.expiring', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION reel_erase_sessions();
";

const DOWN: &str = "
DROP TRIGGER sessions_erase ON sessions;
CREATE TRIGGER sessions_erase AFTER DELETE ON sessions
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION reel_erase_sessions();
";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, UP).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, DOWN).await
    }
}

async fn run(manager: &SchemaManager<'_>, sql: &str) -> Result<(), DbErr> {
    match manager.get_database_backend() {
        DatabaseBackend::Postgres => manager.get_connection().execute_unprepared(sql).await.map(|_| ()),
        _ => Ok(()),
    }
}
