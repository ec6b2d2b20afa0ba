//! What somebody has done to the tables by hand: what the index notices by itself, and what `reel index` finds and mends.

use chrono::{DateTime, Utc};
use reel::proto::SessionStart;

use crate::{
    archive::apply,
    exact::{by_hand::id_in_sql, check_index, run_index, wait_until_indexed},
    harness::{Backend, NOON_MS, Reel, TestDatabase, action, batch, click, insert_facet, session_id, start},
    on_both_databases,
};

on_both_databases!(
    what_is_deleted_while_a_session_is_indexed_is_not_in_the_index,
    what_the_index_has_of_nothing_is_found_out_and_mended,
    nothing_is_left_of_sessions_that_were_deleted_by_hand,
    reel_takes_none_of_its_own_deletes_for_deletes_by_hand,
);

/// Records sessions of two clicks and an error each, and gives their ids.
async fn record(reel: &Reel, count: i64) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..count {
        let id = session_id(NOON_MS + number);
        let actions = vec![click(number, "Create Post"), click(number + 1, "Save"), action(number + 2, "error", "E")];
        reel.record(vec![start(&id, SessionStart::default()), batch("", "", 1, actions)]).await.unwrap();
        ids.push(id);
    }
    ids
}

async fn what_is_deleted_while_a_session_is_indexed_is_not_in_the_index(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let unindexed = Reel::start_on(&database, &["--indexer", "off"]).await;
    let ids = record(&unindexed, 2).await;
    // The actions have been read by then, and the track is not clean yet.
    let id = id_in_sql(backend, &ids[0]);
    let delete = format!("DELETE FROM actions WHERE session_id = {id} AND type = 'error'");
    let meddle = match backend {
        Backend::Sqlite => format!(
            "CREATE TRIGGER meddle AFTER UPDATE OF index_version ON sessions \
             WHEN OLD.id = {id} AND OLD.index_version = 0 BEGIN {delete}; END"
        ),
        Backend::Postgres => format!(
            "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {delete}; RETURN NULL; END $$; \
             CREATE TRIGGER meddle AFTER UPDATE OF index_version ON sessions FOR EACH ROW \
             WHEN (OLD.id = {id} AND OLD.index_version = 0) EXECUTE FUNCTION meddle()"
        ),
    };
    database.execute(&meddle).await;
    let reel = Reel::start_on(&database, &[]).await;
    wait_until_indexed(&database).await;
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 5, "one was deleted");
    check_index(&database).await;
    assert_eq!(reel.get(&ids[0]).await.unwrap().error_count, 0);
    assert_eq!(reel.get(&ids[1]).await.unwrap().error_count, 1);
    unindexed.stop().await;
    reel.stop().await;
}

async fn what_the_index_has_of_nothing_is_found_out_and_mended(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    record(&reel, 2).await;
    wait_until_indexed(&database).await;
    reel.stop().await;
    let (is_right, said) = run_index(&database, &["--verify"]).await;
    assert!(is_right && said == "2 sessions checked, 0 differences\n", "{said}");

    // Days on which there are no sessions, facets of a session that is not there, tracks that count what is not, and facets of
    // nothing.
    let gone = id_in_sql(backend, &session_id(NOON_MS - 3 * 86_400_000));
    let day = DateTime::from_timestamp_millis(NOON_MS).unwrap().date_naive();
    let time = if backend == Backend::Sqlite { "'2026-11-01T12:00:00+00:00'" } else { "now()" };
    for sql in [
        format!(
            "INSERT INTO session_facets (facet_id, session_id, count, first_at) SELECT max(id), {gone}, 7, {time} FROM facets"
        ),
        format!(
            "INSERT INTO facet_days (day, facet_id, action_count, session_count) SELECT '{}', id, 2, 1 FROM facets",
            day + chrono::Days::new(2)
        ),
        insert_facet(backend, 4_711, "nothing", "has this"),
        "UPDATE tracks SET lost_count = 1 WHERE session_id = (SELECT id FROM sessions ORDER BY id DESC LIMIT 1)"
            .to_owned(),
    ] {
        database.execute(&sql).await;
    }
    let (is_right, said) = run_index(&database, &["--verify"]).await;
    assert!(!is_right, "{said}");
    for wanted in [
        format!("{}: facets of 1 sessions that are not there", day - chrono::Days::new(3)),
        format!("{}: the roll-up is wrong for 1 facets", day - chrono::Days::new(3)),
        format!("{}: the roll-up is wrong for 3 facets", day + chrono::Days::new(2)),
        "its tracks count actions that are not there".to_owned(),
        "1 facets are in no session any more".to_owned(),
        "2 sessions checked, 4 differences".to_owned(),
    ] {
        assert!(said.contains(&wanted), "{wanted}\n{said}");
    }
    let (is_right, said) = run_index(&database, &["--rebuild"]).await;
    assert!(is_right, "{said}");
    let (is_right, said) = run_index(&database, &["--verify"]).await;
    assert!(is_right && said == "2 sessions checked, 0 differences\n", "{said}");

    // It makes nothing.
    database.execute("DELETE FROM facets").await;
    let (is_right, said) = run_index(&database, &["--verify"]).await;
    assert!(!is_right && said.contains("its facets are wrong"), "{said}");
    assert_eq!(database.number("SELECT count(*) FROM facets").await, 0);

    // And where there are no sessions at all.
    database.execute("DELETE FROM sessions").await;
    database
        .execute("INSERT INTO facet_days (day, facet_id, action_count, session_count) VALUES ('2031-02-03', 1, 1, 1)")
        .await;
    let (is_right, said) = run_index(&database, &["--verify"]).await;
    assert!(!is_right && said.contains("2031-02-03: the roll-up is wrong for 1 facets"), "{said}");
    run_index(&database, &["--rebuild"]).await;
    check_index(&database).await;
    for table in ["session_facets", "facet_days", "facets"] {
        assert_eq!(database.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
}

async fn nothing_is_left_of_sessions_that_were_deleted_by_hand(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let ids = record(&reel, 3).await;
    wait_until_indexed(&database).await;
    let [first, second, third] = [&ids[0], &ids[1], &ids[2]].map(|id| id_in_sql(backend, id));
    for sql in [
        format!("DELETE FROM sessions WHERE id = {first}"),
        // Without its actions nothing else says what it had.
        format!("DELETE FROM actions WHERE session_id = {second}"),
        format!("DELETE FROM sessions WHERE id = {second}"),
    ] {
        database.execute(&sql).await;
    }
    let of_session = |id: &str| format!("SELECT count(*) FROM session_facets WHERE session_id = {id}");
    for (id, count) in [(&first, 0), (&second, 0), (&third, 3)] {
        assert_eq!(database.number(&of_session(id)).await, count);
    }
    let days = "SELECT CAST(sum(session_count) AS bigint) FROM facet_days";
    assert_eq!(database.number(days).await, 3, "three facets of one session");
    // Those of whose sessions only actions are deleted go when that is indexed, and then no row and no name of them is left.
    database.execute(&format!("DELETE FROM actions WHERE session_id = {third}")).await;
    wait_until_indexed(&database).await;
    apply(&reel.store, &reel::model::RetentionPolicy::default(), Utc::now()).await;
    for table in ["session_facets", "facet_days", "facets", "actions"] {
        assert_eq!(database.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    check_index(&database).await;
    assert_eq!(reel.get(&ids[2]).await.unwrap().tracks[0].committed_seq, 3, "the cursor stays");
    reel.stop().await;
}

async fn reel_takes_none_of_its_own_deletes_for_deletes_by_hand(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let database = TestDatabase::new(backend).await;
    let archive = ["--archive", folder.path().to_str().unwrap()];
    let reel = Reel::start_on(&database, &archive).await;
    let ids = record(&reel, 3).await;
    for id in &ids[..2] {
        reel.record(vec![crate::harness::end(id, reel::proto::SessionEnd::default())]).await.unwrap();
    }
    wait_until_indexed(&database).await;
    if backend == Backend::Postgres {
        // Without a partition of their own they are deleted, and not dropped; before that they are moved.
        let day = DateTime::from_timestamp_millis(NOON_MS).unwrap().format("%Y%m%d");
        for sql in [
            "CREATE TABLE aside AS SELECT * FROM actions".to_owned(),
            format!("DROP TABLE actions_{day}"),
            "INSERT INTO actions SELECT * FROM aside".to_owned(),
        ] {
            database.execute(&sql).await;
        }
    }
    let report = crate::archive::archive_all(&reel).await;
    assert_eq!(report.days.iter().map(|day| day.sessions).sum::<i64>(), 2, "{report:?}");
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 3);
    if backend == Backend::Postgres {
        reel.store.partitions_maintain(Utc::now()).await.unwrap();
        assert_eq!(database.number("SELECT count(*) FROM actions_default").await, 0, "they were moved");
    }
    let noticed = "SELECT count(*) FROM tracks WHERE dirty OR cut <> 0 OR lost_count IS NULL OR lost_count <> 0";
    assert_eq!(database.number(noticed).await, 0);
    reel.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_from_a_partition_that_somebody_else_has_made_is_noticed() {
    let (reel, database) = Reel::start(Backend::Postgres).await;
    record(&reel, 1).await;
    wait_until_indexed(&database).await;
    let day = DateTime::from_timestamp_millis(NOON_MS).unwrap().format("%Y%m%d");
    for trigger in ["actions_delete", "actions_truncate"] {
        database.execute(&format!("DROP TRIGGER {trigger} ON actions_{day}")).await;
    }
    reel.store.partitions_maintain(Utc::now()).await.unwrap();
    database.execute(&format!("DELETE FROM actions_{day} WHERE seq = 1")).await;
    assert_eq!(database.number("SELECT count(*) FROM tracks WHERE cut <> 0").await, 1);
    wait_until_indexed(&database).await;
    check_index(&database).await;
    reel.stop().await;
}
