//! What erasing a session leaves behind (its id, so that late actions are refused), and what makes a DELETE by hand
//! complete: whoever deletes sessions or users in plain SQL also removes the actions.
//!
//! The service does not rely on the triggers: it deletes by itself, and distributed PostgreSQL has no such triggers.

use sea_orm_migration::{prelude::*, sea_orm::DatabaseBackend};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// One session after the other, each planned for itself: a statement for all would lock every partition.
pub(crate) const POSTGRES: &str = "
CREATE FUNCTION reel_erase_sessions() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    erased uuid;
BEGIN
    INSERT INTO tombstones (session_id, erased_at) SELECT id, now() FROM gone ON CONFLICT DO NOTHING;
    FOR erased IN SELECT id FROM gone LOOP
        EXECUTE 'DELETE FROM actions WHERE session_id = $1' USING erased;
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER sessions_erase AFTER DELETE ON sessions
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION reel_erase_sessions();
";

/// Tracks and sessions too: foreign keys are off in SQLite's own shell.
pub(crate) const SQLITE: &str = "
CREATE TRIGGER users_erase AFTER DELETE ON users BEGIN
    DELETE FROM sessions WHERE user_id = OLD.id;
END;
CREATE TRIGGER sessions_erase AFTER DELETE ON sessions BEGIN
    INSERT OR IGNORE INTO tombstones (session_id, erased_at)
        VALUES (OLD.id, strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now'));
    DELETE FROM tracks WHERE session_id = OLD.id;
    DELETE FROM actions WHERE session_id = OLD.id;
END;
";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let tombstones = Table::create()
            .table("tombstones")
            .col(ColumnDef::new("session_id").uuid().not_null().primary_key())
            .col(ColumnDef::new("erased_at").timestamp_with_time_zone().not_null())
            .to_owned();
        manager.create_table(tombstones).await?;
        let sql = match manager.get_database_backend() {
            DatabaseBackend::Postgres => POSTGRES,
            _ => SQLITE,
        };
        manager.get_connection().execute_unprepared(sql).await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let drop_trigger = match manager.get_database_backend() {
            DatabaseBackend::Postgres => "DROP FUNCTION reel_erase_sessions() CASCADE",
            _ => "DROP TRIGGER sessions_erase; DROP TRIGGER users_erase",
        };
        manager.get_connection().execute_unprepared(drop_trigger).await?;
        manager.drop_table(Table::drop().table("tombstones").to_owned()).await
    }
}
