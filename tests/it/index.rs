//! The background indexer when something stands in its way. That its answers are right is tested in `exact`.

mod by_hand;

use reel::{model::RetentionPolicy, proto::SessionStart};

use crate::{
    archive::{apply, archive_all, record_sessions},
    exact::check_index,
    harness::{Backend, NOON_MS, Reel, TestDatabase, batch, click, eventually, session_id, start},
    on_both_databases,
};

on_both_databases!(
    a_session_that_cannot_be_indexed_harms_no_other_and_is_indexed_when_it_can_be,
    a_slow_session_that_cannot_be_indexed_harms_no_other,
    more_dirty_sessions_than_one_look_takes_are_all_indexed,
);

/// Makes the database refuse what the indexer writes of a session; PostgreSQL as if a block could not be read.
async fn refuse_index_of(database: &TestDatabase, session: &str) {
    match database.backend() {
        Backend::Sqlite => {
            let hex = session.replace('-', "");
            let sql = format!(
                "CREATE TRIGGER refuse BEFORE UPDATE OF index_version ON sessions WHEN OLD.id = unhex('{hex}') \
                 BEGIN SELECT RAISE(ABORT, 'no'); END"
            );
            database.execute(&sql).await;
        }
        Backend::Postgres => {
            let sql = format!(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                     IF OLD.id = '{session}' THEN \
                         RAISE EXCEPTION 'no' USING ERRCODE = '58030'; END IF; RETURN NEW; \
                 END $$; \
                 CREATE TRIGGER refuse BEFORE UPDATE OF index_version ON sessions \
                 FOR EACH ROW EXECUTE FUNCTION refuse()"
            );
            database.execute(&sql).await;
        }
    }
}

async fn allow_index(database: &TestDatabase) {
    let sql =
        if database.backend() == Backend::Sqlite { "DROP TRIGGER refuse" } else { "DROP TRIGGER refuse ON sessions" };
    database.execute(sql).await;
}

/// Records sessions of so many actions each, and gives their ids.
async fn record(reel: &Reel, counts: &[usize]) -> Vec<String> {
    let mut sessions = Vec::new();
    for (number, count) in (0..).zip(counts) {
        let session = session_id(NOON_MS + number);
        reel.send(start(&session, SessionStart::default())).await.unwrap();
        let mut first_seq = 1;
        while first_seq <= *count {
            let last = (first_seq + 4_999).min(*count);
            let actions = (first_seq..=last)
                .map(|seq| click(i64::try_from(seq).unwrap(), &format!("button {}", seq % 7)))
                .collect();
            reel.append(&session, "main", i64::try_from(first_seq).unwrap(), actions).await.unwrap();
            first_seq = last + 1;
        }
        sessions.push(session);
    }
    sessions
}

async fn wait_for_dirty(database: &TestDatabase, wanted: i64) {
    let count = async || database.number("SELECT count(*) FROM tracks WHERE dirty").await;
    eventually("the others are in the index", async || count().await == wanted).await;
}

async fn a_session_that_cannot_be_indexed_harms_no_other_and_is_indexed_when_it_can_be(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let unindexed = Reel::start_on(&database, &["--indexer", "off"]).await;
    let sessions = record(&unindexed, &[3; 41]).await;
    refuse_index_of(&database, &sessions[17]).await;
    let reel = Reel::start_on(&database, &[]).await;
    wait_for_dirty(&database, 1).await;
    check_index(&database).await;
    allow_index(&database).await;
    wait_for_dirty(&database, 0).await;
    check_index(&database).await;
    unindexed.stop().await;
    reel.stop().await;
}

async fn a_slow_session_that_cannot_be_indexed_harms_no_other(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let unindexed = Reel::start_on(&database, &["--indexer", "off"]).await;
    let sessions = record(&unindexed, &[20_001, 1, 2]).await;
    refuse_index_of(&database, &sessions[0]).await;
    let reel = Reel::start_on(&database, &[]).await;
    wait_for_dirty(&database, 1).await;
    allow_index(&database).await;
    wait_for_dirty(&database, 0).await;
    check_index(&database).await;
    unindexed.stop().await;
    reel.stop().await;
}

async fn more_dirty_sessions_than_one_look_takes_are_all_indexed(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let unindexed = Reel::start_on(&database, &["--indexer", "off"]).await;
    let mut messages = Vec::new();
    for number in 0..1_001 {
        let session = session_id(NOON_MS + number);
        messages.push(start(&session, SessionStart::default()));
        messages.push(batch(&session, "main", 1, vec![click(number, "Create Post")]));
    }
    unindexed.record(messages).await.unwrap();
    let reel = Reel::start_on(&database, &[]).await;
    wait_for_dirty(&database, 0).await;
    check_index(&database).await;
    unindexed.stop().await;
    reel.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_sessions_do_not_keep_the_lock_from_others_however_many_there_are() {
    let (database, folder) = (TestDatabase::new(Backend::Postgres).await, tempfile::tempdir().unwrap());
    let archive = ["--archive", folder.path().to_str().unwrap()];
    let reel = Reel::start_on(&database, &archive).await;
    record_sessions(&reel, &database, 24).await;
    archive_all(&reel).await;
    // Nobody sweeps facets from now on: indexers would wait.
    apply(&reel.store, &RetentionPolicy::default(), reel.store.now()).await;
    // They end by turns, so that there is always one under way.
    for sql in [
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             PERFORM pg_sleep(CASE WHEN OLD.id = (SELECT id FROM sessions ORDER BY id LIMIT 1) THEN 2 ELSE 4 END); \
             RETURN NEW; \
         END $$",
        "CREATE TRIGGER slow BEFORE UPDATE OF index_version ON sessions FOR EACH ROW EXECUTE FUNCTION slow()",
        "UPDATE tracks SET dirty = true, lost_count = NULL",
    ] {
        database.execute(sql).await;
    }
    let dirty = async || database.number("SELECT count(DISTINCT session_id) FROM tracks WHERE dirty").await;
    eventually("it has begun", async || dirty().await < 24).await;
    let lock = 0x7265_656c_0000_0003_i64;
    database.number(&format!("SELECT count(pg_advisory_lock({lock}))")).await;
    assert!(dirty().await > 0, "somebody else had the lock before all was indexed");
    reel.stop().await;
}
