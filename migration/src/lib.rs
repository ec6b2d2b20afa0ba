//! Reel's database schema: one set of migrations for PostgreSQL and SQLite.
//!
//! Whoever runs them holds a lock and a transaction (`reel::store` does): they take no lock themselves, and a migration
//! that fails leaves nothing behind. A migration that has been released is never changed; the next one mends it.
//!
//! Versions run beside each other while a service is brought up to date, and may be taken back. So a migration only adds what the
//! versions before can work with without knowing it; what they need is taken away in a later release, when no version needs it,
//! and that migration becomes [`OLDEST_USABLE`] or moves it on.

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
mod m20261126_000011_compatibility;
mod m20261126_000013_erasure_by_session;
mod m20261126_000013_erasure_remains;
mod m20261126_000015_definitions;
mod m20261127_000014_damaged_segments;
mod m20261127_000016_facets;
mod m20261127_000017_hand_deletes;
mod m20261127_000018_retentions;

/// The oldest migration that a process must know to use the schema with all migrations of this version. The schema says so to
/// processes of older versions. This one changes the columns of facets, which all versions before read and write; the only one
/// that was released, 0.1.0, refuses whatever it does not know anyway.
pub const OLDEST_USABLE: &str = "m20261127_000016_facets";

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
            Box::new(m20261126_000011_compatibility::Migration),
            Box::new(m20261126_000013_erasure_by_session::Migration),
            Box::new(m20261126_000013_erasure_remains::Migration),
            Box::new(m20261126_000015_definitions::Migration),
            Box::new(m20261127_000014_damaged_segments::Migration),
            Box::new(m20261127_000016_facets::Migration),
            Box::new(m20261127_000017_hand_deletes::Migration),
            Box::new(m20261127_000018_retentions::Migration),
        ]
    }
}
