//! A session may have an expiry of its own. Whoever expires a whole day says so: the sessions' actions go with the day's partition, and are not to be deleted one by one.

use sea_orm_migration::{prelude::*, sea_orm::DatabaseBackend};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

const EXPIRY_INDEX: &str = "CREATE INDEX sessions_expiry ON sessions (expires_at) WHERE expires_at IS NOT NULL";

const UP: &str = "
ALTER TABLE sessions ADD COLUMN expires_at timestamptz;
DROP TRIGGER sessions_erase ON sessions;
CREATE TRIGGER sessions_erase AFTER DELETE ON sessions
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    WHEN (current_setting('reel.expiring', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION reel_erase_sessions();
";

const SQLITE_UP: &str = "ALTER TABLE sessions ADD COLUMN expires_at timestamp_with_timezone_text";

const DOWN: &str = "
DROP INDEX sessions_expiry;
ALTER TABLE sessions DROP COLUMN expires_at;
DROP TRIGGER sessions_erase ON sessions;
CREATE TRIGGER sessions_erase AFTER DELETE ON sessions
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION reel_erase_sessions();
";

const SQLITE_DOWN: &str = "DROP INDEX sessions_expiry; ALTER TABLE sessions DROP COLUMN expires_at";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, UP, SQLITE_UP).await?;
        manager.get_connection().execute_unprepared(EXPIRY_INDEX).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, DOWN, SQLITE_DOWN).await
    }
}

async fn run(manager: &SchemaManager<'_>, postgres: &str, sqlite: &str) -> Result<(), DbErr> {
    let sql = if manager.get_database_backend() == DatabaseBackend::Postgres { postgres } else { sqlite };
    manager.get_connection().execute_unprepared(sql).await.map(|_| ())
}
