//! Reel's database schema: one set of migrations for PostgreSQL and SQLite.
//!
//! Whoever runs them holds a lock and a transaction (`reel::store` does): they take no lock themselves, and a migration
//! that fails leaves nothing behind. A migration that has been released is never changed; the next one mends it.

use sea_orm_migration::{MigrationTrait, async_trait};
pub use sea_orm_migration::{MigratorTrait, prelude};

mod m20261122_000001_sessions;
mod m20261122_000002_actions;
mod m20261122_000003_erasure;
mod m20261124_000004_index;
mod m20261125_000005_retention;
mod m20261125_000006_archive;
mod m20261125_000007_erasures;
mod m20261126_000008_segment_files;

/// All migrations, oldest first.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261122_000001_sessions::Migration),
            Box::new(m20261122_000002_actions::Migration),
            Box::new(m20261122_000003_erasure::Migration),
            Box::new(m20261124_000004_index::Migration),
            Box::new(m20261125_000005_retention::Migration),
            Box::new(m20261125_000006_archive::Migration),
            Box::new(m20261125_000007_erasures::Migration),
            Box::new(m20261126_000008_segment_files::Migration),
        ]
    }
}
