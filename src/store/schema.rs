//! Brings the schema up to date under a lock, however many processes start at once, and decides whether one that a newer
//! version has made may be used.

use std::collections::{BTreeMap, BTreeSet};

use migration::{Migrator, MigratorTrait as _, OLDEST_USABLE};
use sea_orm::{ConnectionTrait as _, DatabaseTransaction, DbErr, EntityTrait as _, Set};

use super::{Store, entity::compatibility, prepare::Unfit};

/// Key of the advisory lock under which schemas are migrated: "reel" in ASCII, and 1.
const MIGRATION_LOCK: i64 = 0x7265_656c_0000_0001;

impl Store {
    /// One transaction holds the lock and the migrations: a process that dies in the middle leaves nothing behind. On SQLite
    /// the transaction itself is the lock.
    pub(super) async fn migrate(&self) -> Result<(), Unfit> {
        let tx = self.begin().await?;
        if self.is_postgres() {
            // Others may be migrating; they may take their time.
            tx.execute_unprepared("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0").await?;
            tx.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")).await?;
        }
        let known = known_migrations();
        let applied = Migrator::get_migration_models(&tx).await?;
        let applied: BTreeSet<String> = applied.into_iter().map(|migration| migration.version).collect();
        let unknown: Vec<&String> = applied.iter().filter(|version| !known.contains(version)).collect();
        if let Some(newest) = unknown.last() {
            let is_complete = known.iter().all(|version| applied.contains(version));
            if !is_complete || !may_use(&known, &unknown, &compatibility_of(&tx).await?) {
                return Err(Unfit::Newer { version: (*newest).clone() });
            }
            tracing::info!(schema.version = %newest, "a newer version has been here, which this one can work beside");
        } else {
            let pending_count = known.iter().filter(|version| !applied.contains(*version)).count();
            if pending_count > 0 {
                Migrator::up(&tx, u32::try_from(pending_count).ok()).await?;
            }
            compatibility_note(&tx, &known).await?;
        }
        tx.commit().await?;
        Ok(())
    }
}

/// The migrations that this process knows, oldest first. In builds for tests the variable `REEL_TEST_FEWER_MIGRATIONS` makes it
/// so many fewer, as an older version would be.
fn known_migrations() -> Vec<String> {
    let mut known: Vec<_> = Migrator::migrations().iter().map(|migration| migration.name().to_owned()).collect();
    #[cfg(debug_assertions)]
    if let Some(fewer) = std::env::var("REEL_TEST_FEWER_MIGRATIONS").ok().and_then(|count| count.parse().ok()) {
        known.truncate(known.len().saturating_sub(fewer));
    }
    known
}

/// Whether a process that knows these migrations may use a schema with others beside them. `compatibility` has for each of these
/// which one the process must know instead; without it, it must know them.
fn may_use(known: &[String], unknown: &[&String], compatibility: &BTreeMap<String, String>) -> bool {
    unknown.iter().all(|version| compatibility.get(*version).is_some_and(|oldest| known.contains(oldest)))
}

async fn compatibility_of(tx: &DatabaseTransaction) -> Result<BTreeMap<String, String>, DbErr> {
    let rows = compatibility::Entity::find().all(tx).await?;
    Ok(rows.into_iter().map(|row| (row.version, row.oldest)).collect())
}

/// Writes down which older versions may use the schema that this one has just made.
async fn compatibility_note(tx: &DatabaseTransaction, known: &[String]) -> Result<(), DbErr> {
    let optional = known.iter().skip_while(|version| *version != OLDEST_USABLE).skip(1);
    let wanted: BTreeMap<String, String> =
        optional.map(|version| (version.clone(), OLDEST_USABLE.to_owned())).collect();
    if compatibility_of(tx).await? == wanted {
        return Ok(());
    }
    compatibility::Entity::delete_many().exec(tx).await?;
    if wanted.is_empty() {
        return Ok(());
    }
    let rows = wanted
        .into_iter()
        .map(|(version, oldest)| compatibility::ActiveModel { version: Set(version), oldest: Set(oldest) });
    compatibility::Entity::insert_many(rows).exec_without_returning(tx).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_schema_is_used_only_where_it_says_so_of_each_unknown_migration() {
        let texts = |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        let (known, unknown) = (texts(&["1", "2", "3"]), texts(&["4", "5"]));
        let unknown: Vec<_> = unknown.iter().collect();
        for (rows, expected) in [
            (&[("4", "2"), ("5", "3")][..], true),
            (&[("4", "2"), ("5", "4")], false),
            (&[("5", "2")], false),
            (&[], false),
        ] {
            let rows = rows.iter().map(|(version, oldest)| ((*version).to_owned(), (*oldest).to_owned())).collect();
            assert_eq!(may_use(&known, &unknown, &rows), expected, "{rows:?}");
        }
    }

    #[test]
    fn the_oldest_usable_migration_is_one() {
        assert!(Migrator::migrations().iter().any(|migration| migration.name() == OLDEST_USABLE));
    }
}
