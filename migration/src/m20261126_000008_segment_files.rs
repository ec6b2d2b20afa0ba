//! What becomes of each file of the archive, as rows: a file is removed only after a commit has said that nobody will use it.
//! And leases: who may do what one process at a time does, until when, on both databases.
//!
//! A row a file, and an index of those that are not in use: a few hundred bytes for 300,000 actions.

use sea_orm_migration::{prelude::*, sea_orm::DatabaseBackend};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// What a file without a digest was, nobody knows any more; it is in nobody's use, and so are those that were spare.
const FILES: &[&str] = &[
    "CREATE INDEX segment_files_unused ON segment_files (state) WHERE state <> 'in_use'",
    "INSERT INTO segment_files (path, segment_id, state, since) \
     SELECT path, id, 'in_use', {now} FROM segments WHERE path IS NOT NULL",
    "INSERT INTO segment_files (path, segment_id, state, since) \
     SELECT spare_path, id, 'removing', {now} FROM segments WHERE spare_path IS NOT NULL",
    "DELETE FROM segments WHERE path IS NULL",
    "ALTER TABLE segments DROP COLUMN spare_path",
    "ALTER TABLE segments DROP COLUMN spare_since",
];

const SPARES: &[&str] = &[
    "ALTER TABLE segments ADD COLUMN spare_path text",
    "ALTER TABLE segments ADD COLUMN spare_since {time}",
    "INSERT INTO segments (day, spare_path, spare_since) \
     SELECT {today}, path, since FROM segment_files WHERE state <> 'in_use'",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let is_state = "state IN ('planned', 'written', 'in_use', 'removing', 'gone')";
        let files = Table::create()
            .table("segment_files")
            .col(ColumnDef::new("path").text().not_null().primary_key())
            .col(ColumnDef::new("segment_id").big_integer().not_null())
            .col(ColumnDef::new("state").text().not_null().check(Expr::cust(is_state)))
            // When it came into this state.
            .col(ColumnDef::new("since").timestamp_with_time_zone().not_null())
            .to_owned();
        manager.create_table(files).await?;
        let leases = Table::create()
            .table("leases")
            .col(ColumnDef::new("name").text().not_null().primary_key())
            .col(ColumnDef::new("holder").uuid().not_null())
            .col(ColumnDef::new("until").timestamp_with_time_zone().not_null())
            .to_owned();
        manager.create_table(leases).await?;
        run(manager, FILES).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, SPARES).await?;
        for table in ["segment_files", "leases"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

async fn run(manager: &SchemaManager<'_>, statements: &[&str]) -> Result<(), DbErr> {
    let (now, today, time) = match manager.get_database_backend() {
        DatabaseBackend::Postgres => ("now()", "current_date", "timestamptz"),
        _ => ("strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')", "date('now')", "timestamp_with_timezone_text"),
    };
    for sql in statements {
        let sql = sql.replace("{now}", now).replace("{today}", today).replace("{time}", time);
        manager.get_connection().execute_unprepared(&sql).await?;
    }
    Ok(())
}
