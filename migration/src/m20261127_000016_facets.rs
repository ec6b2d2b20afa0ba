//! Facets without limits of their own: numbers of 8 bytes, targets of any length, and no more facets a session than are of use.
//!
//! A facet is known by its type and the SHA-256 of its target; the beginnings of targets are found by their first 512
//! characters. A facet without a target is of all targets of its type together: of a session with too many targets that is
//! what the index has, and `facet_detail` says so.
//!
//! On PostgreSQL the tables of facets are written anew, with their indexes, and nobody else reads or writes them meanwhile.

use sea_orm_migration::{
    prelude::*,
    sea_orm::{DatabaseBackend, FromQueryResult, Statement, Value},
};
use sha2::{Digest as _, Sha256};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// Facets that are copied by one statement on SQLite.
const FACETS_A_STEP: usize = 500;

/// What the index has of the facets of a session: 2 all of them, 1 how often each type occurs, 0 nothing. And where it has less.
const DETAIL: [&str; 2] = [
    "ALTER TABLE sessions ADD COLUMN facet_detail smallint NOT NULL DEFAULT 2",
    "CREATE INDEX sessions_facet_detail ON sessions (id) WHERE facet_detail < 2",
];

/// The digests are made where the rows are written anyway. What the planner knew of a column goes with its type.
const POSTGRES: &str = "
ALTER TABLE facets DROP CONSTRAINT facets_type_target_key;
DROP INDEX facets_target;
ALTER TABLE facets ADD COLUMN target_sha256 bytea;
ALTER TABLE facets
    ALTER COLUMN id TYPE bigint,
    ALTER COLUMN target DROP NOT NULL,
    ALTER COLUMN target_sha256 TYPE bytea USING sha256(convert_to(target, 'UTF8')),
    ALTER COLUMN target_sha256 SET NOT NULL;
ALTER TABLE facets ADD UNIQUE (type, target_sha256);
CREATE INDEX facets_target ON facets (substr(target, 1, 512), type);
ALTER TABLE facet_days ALTER COLUMN facet_id TYPE bigint;
ALTER TABLE session_facets ALTER COLUMN facet_id TYPE bigint;
ANALYZE facets;
ANALYZE facet_days;
ANALYZE session_facets;
";

/// SQLite's numbers have 8 bytes anyway. It cannot make digests, and takes no constraint from a table.
const SQLITE_TABLE: &str = "
CREATE TABLE facets_anew (
    id integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    type text NOT NULL,
    target text,
    target_sha256 blob NOT NULL,
    UNIQUE (type, target_sha256)
)";

/// A number that was given once is not given again.
const SQLITE_SWAP: &str = "
DELETE FROM sqlite_sequence WHERE name = 'facets_anew';
INSERT INTO sqlite_sequence (name, seq) SELECT 'facets_anew', seq FROM sqlite_sequence WHERE name = 'facets';
DROP TABLE facets;
ALTER TABLE facets_anew RENAME TO facets;
CREATE INDEX facets_target ON facets (substr(target, 1, 512), type);
";

/// The index is emptied: what it holds now, versions before do not know. They make it anew, for all tracks are dirty.
const EMPTY: [&str; 6] = [
    "DELETE FROM session_facets",
    "DELETE FROM facet_days",
    "DELETE FROM facets",
    "UPDATE tracks SET dirty = true WHERE NOT dirty",
    "DROP INDEX sessions_facet_detail",
    "ALTER TABLE sessions DROP COLUMN facet_detail",
];

const POSTGRES_BEFORE: &str = "
DROP INDEX facets_target;
ALTER TABLE facets DROP COLUMN target_sha256, ALTER COLUMN id TYPE integer, ALTER COLUMN target SET NOT NULL;
ALTER TABLE facets ADD UNIQUE (type, target);
CREATE INDEX facets_target ON facets (target, type);
ALTER TABLE facet_days ALTER COLUMN facet_id TYPE integer;
ALTER TABLE session_facets ALTER COLUMN facet_id TYPE integer;
";

const SQLITE_BEFORE: &str = "
DROP TABLE facets;
CREATE TABLE facets (
    id integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    type text NOT NULL,
    target text NOT NULL,
    UNIQUE (type, target)
);
CREATE INDEX facets_target ON facets (target, type);
";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        for sql in DETAIL {
            connection.execute_unprepared(sql).await?;
        }
        if manager.get_database_backend() == DatabaseBackend::Postgres {
            connection.execute_unprepared(POSTGRES).await?;
            return Ok(());
        }
        connection.execute_unprepared(SQLITE_TABLE).await?;
        copy(connection).await?;
        connection.execute_unprepared(SQLITE_SWAP).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        let before = match manager.get_database_backend() {
            DatabaseBackend::Postgres => POSTGRES_BEFORE,
            _ => SQLITE_BEFORE,
        };
        for sql in EMPTY.iter().chain([&before]) {
            connection.execute_unprepared(sql).await?;
        }
        Ok(())
    }
}

#[derive(FromQueryResult)]
struct Facet {
    id: i64,
    kind: String,
    target: String,
}

/// Copies the facets into their new table, with their digests.
async fn copy(connection: &impl ConnectionTrait) -> Result<(), DbErr> {
    let backend = connection.get_database_backend();
    let mut after = i64::MIN;
    loop {
        let sql = format!("SELECT id, type AS kind, target FROM facets WHERE id > ? ORDER BY id LIMIT {FACETS_A_STEP}");
        let facets = Statement::from_sql_and_values(backend, sql, [after.into()]);
        let facets = Facet::find_by_statement(facets).all(connection).await?;
        let Some(last) = facets.last() else { return Ok(()) };
        after = last.id;
        let rows = vec!["(?, ?, ?, ?)"; facets.len()].join(", ");
        let sql = format!("INSERT INTO facets_anew (id, type, target, target_sha256) VALUES {rows}");
        let values = facets.into_iter().flat_map(|Facet { id, kind, target }| -> [Value; 4] {
            let digest = Sha256::digest(&target).to_vec();
            [id.into(), kind.into(), target.into(), digest.into()]
        });
        connection.execute_raw(Statement::from_sql_and_values(backend, sql, values)).await?;
    }
}
