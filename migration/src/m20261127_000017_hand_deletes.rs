//! Whoever deletes actions in plain SQL takes them away from a session that goes on, and the index is to know: the tracks become
//! dirty, and how many of their actions are left is not known until they are read. And an e-mail address that is written in plain
//! SQL is one that can be found.
//!
//! Reel's own deletes say that they are, and are passed over: on PostgreSQL by the setting `reel.own_delete`, on SQLite by a row
//! in `own_deletes`.

use sea_orm_migration::{
    prelude::*,
    sea_orm::{DatabaseBackend, FromQueryResult, Statement},
};

use crate::m20261126_000013_erasure_by_session::erase_sessions;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

const COLUMNS: [&str; 2] = [
    // Seqs under which nothing is stored any more. NULL where it is not known.
    "ALTER TABLE tracks ADD COLUMN lost_count bigint DEFAULT 0",
    // Changes with everything that is deleted by hand: what was read before may be gone by now.
    "ALTER TABLE tracks ADD COLUMN cut bigint NOT NULL DEFAULT 0",
];

/// A trigger of the table sees only what is deleted from the table by its own name, and one of a partition only what is deleted
/// from it by its own: each has one. TRUNCATE has no rows to show, and reaches every partition. Where somebody has taken the
/// table's trigger away, as distributed PostgreSQL wants it, partitions get none either.
const POSTGRES: &str = "
CREATE FUNCTION reel_cut_tracks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM tracks
        WHERE (session_id, number) IN (SELECT session_id, track FROM gone) ORDER BY session_id, source COLLATE \"C\" FOR UPDATE;
    UPDATE tracks SET dirty = true, lost_count = NULL, cut = txid_current()
        WHERE (session_id, number) IN (SELECT session_id, track FROM gone);
    RETURN NULL;
END $$;
CREATE FUNCTION reel_cut_tracks_of_all() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE partition_drops SET count = count + 1;
    EXECUTE format('UPDATE tracks SET dirty = true, lost_count = NULL, cut = txid_current() \
                    WHERE session_id IN (SELECT session_id FROM %s)', TG_RELID::regclass);
    RETURN NULL;
END $$;
CREATE FUNCTION reel_watch_deletes(watched regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = 'actions'::regclass AND tgname = 'actions_delete') THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TRIGGER actions_delete AFTER DELETE ON %s REFERENCING OLD TABLE AS gone FOR EACH STATEMENT \
                    WHEN (current_setting(''reel.own_delete'', true) IS DISTINCT FROM ''on'') \
                    EXECUTE FUNCTION reel_cut_tracks()', watched);
    EXECUTE format('CREATE TRIGGER actions_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT \
                    EXECUTE FUNCTION reel_cut_tracks_of_all()', watched);
END $$;
CREATE TRIGGER actions_delete AFTER DELETE ON actions REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    WHEN (current_setting('reel.own_delete', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION reel_cut_tracks();
SELECT reel_watch_deletes(inhrelid) FROM pg_inherits WHERE inhparent = 'actions'::regclass;
";

/// Sessions that go take their actions along. A function that has the setting of its own would do, but only superusers may make one.
const OWN_DELETES: (&str, &str) = (
    "PERFORM set_config('reel.own_delete', 'on', true);",
    "PERFORM set_config('reel.own_delete', coalesce(own, ''), true);",
);

const POSTGRES_DOWN: &str = "
DROP FUNCTION reel_watch_deletes(regclass);
DROP FUNCTION reel_cut_tracks_of_all() CASCADE;
DROP FUNCTION reel_cut_tracks() CASCADE;
DROP FUNCTION reel_refuse_email() CASCADE;
";

/// Where a session is deleted, its tracks are gone before its actions are.
const SQLITE: &str = "
CREATE TABLE own_deletes (session_id uuid_text NOT NULL PRIMARY KEY) WITHOUT ROWID;
CREATE TRIGGER actions_delete AFTER DELETE ON actions WHEN NOT EXISTS (SELECT 1 FROM own_deletes) BEGIN
    UPDATE tracks SET dirty = true, lost_count = NULL, cut = cut + 1
        WHERE session_id = OLD.session_id AND number = OLD.track;
END;
";

const SQLITE_DOWN: &str = "
DROP TRIGGER users_email_update;
DROP TRIGGER users_email_insert;
DROP TRIGGER actions_delete;
DROP TABLE own_deletes;
";

const REFUSAL: &str =
    "users.email is stored in lower case, or it is not found: write the address in lower case, with σ for ς";

/// Addresses that are mended between two looks.
const ADDRESSES_A_STEP: usize = 1_000;

#[derive(FromQueryResult)]
struct Address {
    id: String,
    email: String,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        let sql = if is_postgres(manager) { POSTGRES } else { SQLITE };
        for sql in COLUMNS.into_iter().chain([sql]) {
            connection.execute_unprepared(sql).await?;
        }
        if is_postgres(manager) {
            connection.execute_unprepared(&erase_sessions(OWN_DELETES.0, OWN_DELETES.1)).await?;
        }
        mend_addresses(manager).await?;
        connection.execute_unprepared(&refuse_addresses(manager)).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        let sql = if is_postgres(manager) { POSTGRES_DOWN } else { SQLITE_DOWN };
        if is_postgres(manager) {
            connection.execute_unprepared(&erase_sessions("", "")).await?;
        }
        for sql in [sql, "ALTER TABLE tracks DROP COLUMN cut", "ALTER TABLE tracks DROP COLUMN lost_count"] {
            connection.execute_unprepared(sql).await?;
        }
        Ok(())
    }
}

fn is_postgres(manager: &SchemaManager<'_>) -> bool {
    manager.get_database_backend() == DatabaseBackend::Postgres
}

/// Those that somebody has written in plain SQL before.
async fn mend_addresses(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let (backend, connection) = (manager.get_database_backend(), manager.get_connection());
    let select =
        format!("SELECT id, email FROM users WHERE {} LIMIT {ADDRESSES_A_STEP}", is_not_lower("email", backend));
    loop {
        let rows = Address::find_by_statement(Statement::from_string(backend, select.as_str())).all(connection).await?;
        if rows.is_empty() {
            return Ok(());
        }
        for Address { id, email } in rows {
            let lower: String = email.chars().flat_map(lower).collect();
            let sql = "UPDATE users SET email = $1 WHERE id = $2";
            connection.execute_raw(Statement::from_sql_and_values(backend, sql, [lower.into(), id.into()])).await?;
        }
    }
}

fn refuse_addresses(manager: &SchemaManager<'_>) -> String {
    let is_not_lower = is_not_lower("NEW.email", manager.get_database_backend());
    if is_postgres(manager) {
        return format!(
            "CREATE FUNCTION reel_refuse_email() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE EXCEPTION '{REFUSAL}' USING ERRCODE = 'invalid_parameter_value'; END $$;
             CREATE TRIGGER users_email BEFORE INSERT OR UPDATE OF email ON users FOR EACH ROW WHEN ({is_not_lower})
             EXECUTE FUNCTION reel_refuse_email()"
        );
    }
    let trigger = |name, event| {
        format!(
            "CREATE TRIGGER {name} BEFORE {event} ON users WHEN {is_not_lower} BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END;"
        )
    };
    trigger("users_email_insert", "INSERT") + &trigger("users_email_update", "UPDATE OF email")
}

/// Whether a text has letters that are not stored so. Neither database makes letters lower case as Reel does: SQLite only those
/// of ASCII, PostgreSQL by its locale. So the letters are named. Most addresses have none that need looking up.
fn is_not_lower(text: &str, backend: DatabaseBackend) -> String {
    let letters = ranges((char::MIN..=char::MAX).filter(|letter| !lower(*letter).eq([*letter])));
    if backend == DatabaseBackend::Postgres {
        format!("({text} ~ '[A-Z]' OR octet_length({text}) > length({text})) AND {text} ~ '[{letters}]'")
    } else {
        format!("{text} GLOB '*[^ -@_-~]*' AND {text} GLOB '*[{letters}]*'")
    }
}

/// A letter as Reel stores it in an address.
fn lower(letter: char) -> impl Iterator<Item = char> {
    letter.to_lowercase().map(|letter| if letter == 'ς' { 'σ' } else { letter })
}

/// Letters as a set in brackets has them: `A-ZÀ-Ö`.
fn ranges(letters: impl Iterator<Item = char>) -> String {
    let mut ranges: Vec<(char, char)> = Vec::new();
    for letter in letters {
        match ranges.last_mut() {
            Some((_, last)) if (*last..letter).nth(1).is_none() => *last = letter,
            _ => ranges.push((letter, letter)),
        }
    }
    let range = |(first, last): (char, char)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.into_iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_that_follow_on_each_other_are_a_range() {
        assert_eq!(ranges("ABCMXY".chars()), "A-CMX-Y");
        assert_eq!(ranges("".chars()), "");
    }

    #[test]
    fn what_is_stored_of_a_letter_is_never_refused() {
        let is_refused = |letter: char| !lower(letter).eq([letter]);
        assert!(is_refused('Σ') && is_refused('ς') && is_refused('É') && !is_refused('σ') && !is_refused('é'));
        let changed = (char::MIN..=char::MAX).filter(|letter| lower(*letter).any(is_refused));
        assert_eq!(changed.collect::<String>(), "");
    }
}
