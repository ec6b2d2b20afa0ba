//! Users, their sessions, and the tracks of the sessions.

use sea_orm_migration::{prelude::*, sea_orm::DatabaseBackend};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_users(manager).await?;
        create_sessions(manager).await?;
        create_tracks(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["tracks", "sessions", "users"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

async fn create_users(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let users = Table::create()
        .table("users")
        .col(ColumnDef::new("id").text().not_null().primary_key())
        .col(ColumnDef::new("email").text())
        .col(ColumnDef::new("name").text())
        .col(ColumnDef::new("attributes").json().not_null())
        .col(ColumnDef::new("created_at").timestamp_with_time_zone().not_null())
        .to_owned();
    manager.create_table(users).await?;
    let email = Index::create().name("users_email").table("users").col("email").col("id").to_owned();
    manager.create_index(email).await
}

async fn create_sessions(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let sessions = Table::create()
        .table("sessions")
        .col(ColumnDef::new("id").uuid().not_null().primary_key())
        .col(ColumnDef::new("user_id").text())
        .col(ColumnDef::new("started_at").timestamp_with_time_zone().not_null())
        .col(ColumnDef::new("ended_at").timestamp_with_time_zone())
        .col(ColumnDef::new("end_reason").text())
        .col(ColumnDef::new("attributes").json_binary().not_null())
        .col(ColumnDef::new("created_at").timestamp_with_time_zone().not_null())
        .foreign_key(
            ForeignKey::create()
                .name("sessions_user")
                .from("sessions", "user_id")
                .to("users", "id")
                .on_delete(ForeignKeyAction::Cascade),
        )
        .to_owned();
    manager.create_table(sessions).await?;

    let of_user =
        Index::create().name("sessions_user").table("sessions").col("user_id").col("started_at").col("id").to_owned();
    manager.create_index(of_user).await?;
    let by_start = Index::create().name("sessions_start").table("sessions").col("started_at").col("id").to_owned();
    manager.create_index(by_start).await?;
    // The few live sessions, for the task that ends the idle ones.
    manager
        .get_connection()
        .execute_unprepared("CREATE INDEX sessions_live ON sessions (created_at) WHERE ended_at IS NULL")
        .await?;
    Ok(())
}

async fn create_tracks(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let tracks = Table::create()
        .table("tracks")
        .col(ColumnDef::new("session_id").uuid().not_null())
        .col(ColumnDef::new("number").small_integer().not_null())
        .col(ColumnDef::new("source").text().not_null())
        .col(ColumnDef::new("last_seq").big_integer().not_null())
        .col(ColumnDef::new("accepted_count").big_integer().not_null())
        .col(ColumnDef::new("duplicate_count").big_integer().not_null())
        .col(ColumnDef::new("rejected_count").big_integer().not_null())
        .col(ColumnDef::new("error_count").big_integer().not_null())
        .col(ColumnDef::new("last_action_at").timestamp_with_time_zone())
        .col(ColumnDef::new("last_received_at").timestamp_with_time_zone().not_null())
        .primary_key(Index::create().col("session_id").col("number"))
        .foreign_key(
            ForeignKey::create()
                .name("tracks_session")
                .from("tracks", "session_id")
                .to("sessions", "id")
                .on_delete(ForeignKeyAction::Cascade),
        )
        .to_owned();
    manager.create_table(tracks).await?;
    let by_source =
        Index::create().name("tracks_source").table("tracks").col("session_id").col("source").unique().to_owned();
    manager.create_index(by_source).await?;
    if manager.get_database_backend() == DatabaseBackend::Postgres {
        // A track's counters change with every batch; room on the page keeps these updates heap-only.
        manager.get_connection().execute_unprepared("ALTER TABLE tracks SET (fillfactor = 70)").await?;
    }
    Ok(())
}
