//! A session's facets are found by the session, and a facet's days by the facet: an erasure reads what it removes, and
//! nothing of the rest of its day.

use sea_orm_migration::{prelude::*, sea_orm::DatabaseBackend};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// The default partition has had this index before: it becomes a part of the whole.
///
/// Which facets are in no session is asked of the roll-up: partitions of `session_facets` are many.
const POSTGRES: &str = "
CREATE INDEX session_facets_session ON session_facets (session_id);
CREATE INDEX facet_days_facet ON facet_days (facet_id);
";

/// What goes with sessions, between these statements.
pub(crate) fn erase_sessions(before: &str, after: &str) -> String {
    format!(
        "CREATE OR REPLACE FUNCTION reel_erase_sessions() RETURNS trigger LANGUAGE plpgsql AS $$
         DECLARE
             erased record;
             own text := current_setting('reel.own_delete', true);
         BEGIN
             {before}
             INSERT INTO tombstones (session_id, erased_at) SELECT id, now() FROM gone ON CONFLICT DO NOTHING;
             FOR erased IN SELECT id, segment_id, (started_at AT TIME ZONE 'UTC')::date AS day FROM gone ORDER BY id LOOP
                 EXECUTE 'WITH removed AS (
                         DELETE FROM session_facets WHERE session_id = $1 RETURNING facet_id, count
                     )
                     UPDATE facet_days SET action_count = action_count - removed.count, session_count = session_count - 1
                     FROM removed WHERE facet_days.facet_id = removed.facet_id AND facet_days.day = $2'
                     USING erased.id, erased.day;
                 EXECUTE 'DELETE FROM actions WHERE session_id = $1' USING erased.id;
                 UPDATE segments SET stale = stale + 1 WHERE id = erased.segment_id;
             END LOOP;
             {after}
             RETURN NULL;
         END $$"
    )
}

const SQLITE: &str = "
CREATE INDEX session_facets_session ON session_facets (session_id);
DROP TRIGGER sessions_erase;
CREATE TRIGGER sessions_erase AFTER DELETE ON sessions BEGIN
    INSERT OR IGNORE INTO tombstones (session_id, erased_at)
        VALUES (OLD.id, strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now'));
    UPDATE segments SET stale = stale + 1 WHERE id = OLD.segment_id;
    UPDATE facet_days SET
        session_count = session_count - 1,
        action_count = action_count - (SELECT count FROM session_facets
            WHERE session_facets.facet_id = facet_days.facet_id AND session_id = OLD.id)
        WHERE day = substr(OLD.started_at, 1, 10)
            AND facet_id IN (SELECT facet_id FROM session_facets WHERE session_id = OLD.id);
    DELETE FROM session_facets WHERE session_id = OLD.id;
    DELETE FROM tracks WHERE session_id = OLD.id;
    DELETE FROM actions WHERE session_id = OLD.id;
END;
";

/// As it was before.
const POSTGRES_BEFORE: &str = "
CREATE OR REPLACE FUNCTION reel_erase_sessions() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    erased record;
BEGIN
    INSERT INTO tombstones (session_id, erased_at) SELECT id, now() FROM gone ON CONFLICT DO NOTHING;
    FOR erased IN SELECT id, segment_id, (started_at AT TIME ZONE 'UTC')::date AS day FROM gone ORDER BY id LOOP
        EXECUTE 'WITH of_session AS (
                SELECT DISTINCT facets.id FROM actions JOIN facets
                ON facets.type = actions.type COLLATE \"C\" AND facets.target = actions.target COLLATE \"C\"
                WHERE actions.session_id = $1
                UNION SELECT facet_id FROM facet_days WHERE $3 IS NOT NULL AND day = $2
            ), removed AS (
                DELETE FROM session_facets USING of_session
                WHERE session_facets.facet_id = of_session.id AND session_facets.session_id = $1
                RETURNING session_facets.facet_id, session_facets.count
            )
            UPDATE facet_days SET action_count = action_count - removed.count, session_count = session_count - 1
            FROM removed WHERE facet_days.facet_id = removed.facet_id AND facet_days.day = $2'
            USING erased.id, erased.day, erased.segment_id;
        EXECUTE 'DELETE FROM actions WHERE session_id = $1' USING erased.id;
        UPDATE segments SET stale = stale + 1 WHERE id = erased.segment_id;
    END LOOP;
    RETURN NULL;
END $$;
";

const SQLITE_BEFORE: &str = "
DROP TRIGGER sessions_erase;
CREATE TRIGGER sessions_erase AFTER DELETE ON sessions BEGIN
    INSERT OR IGNORE INTO tombstones (session_id, erased_at)
        VALUES (OLD.id, strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now'));
    UPDATE segments SET stale = stale + 1 WHERE id = OLD.segment_id;
    UPDATE facet_days SET
        session_count = session_count - 1,
        action_count = action_count - (SELECT count FROM session_facets
            WHERE session_facets.facet_id = facet_days.facet_id AND session_id = OLD.id)
        WHERE day = substr(OLD.started_at, 1, 10) AND facet_id IN (SELECT facet_id FROM session_facets
            WHERE session_id = OLD.id AND facet_id IN (
                SELECT facets.id FROM actions
                JOIN facets ON facets.type = actions.type AND facets.target = actions.target
                WHERE actions.session_id = OLD.id
                UNION SELECT facet_id FROM facet_days
                WHERE OLD.segment_id IS NOT NULL AND day = substr(OLD.started_at, 1, 10)));
    DELETE FROM session_facets WHERE session_id = OLD.id AND facet_id IN (
        SELECT facets.id FROM actions JOIN facets ON facets.type = actions.type AND facets.target = actions.target
        WHERE actions.session_id = OLD.id
        UNION SELECT facet_id FROM facet_days
        WHERE OLD.segment_id IS NOT NULL AND day = substr(OLD.started_at, 1, 10));
    DELETE FROM tracks WHERE session_id = OLD.id;
    DELETE FROM actions WHERE session_id = OLD.id;
END;
";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let sql = match manager.get_database_backend() {
            DatabaseBackend::Postgres => format!("{POSTGRES}{}", erase_sessions("", "")),
            _ => SQLITE.to_owned(),
        };
        manager.get_connection().execute_unprepared(&sql).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let (erase, indexes) = match manager.get_database_backend() {
            DatabaseBackend::Postgres => (
                POSTGRES_BEFORE,
                "DROP INDEX facet_days_facet; DROP INDEX session_facets_session; \
                 CREATE INDEX session_facets_default_session ON session_facets_default (session_id)",
            ),
            _ => (SQLITE_BEFORE, "DROP INDEX session_facets_session"),
        };
        manager.get_connection().execute_unprepared(erase).await?;
        manager.get_connection().execute_unprepared(indexes).await.map(|_| ())
    }
}
