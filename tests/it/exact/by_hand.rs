//! The same questions after somebody has deleted actions, sessions and users in plain SQL: at once, when it is indexed, and when the
//! sessions go on.

use chrono::DateTime;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    Asker, PLANS, World, check_index, wait_until_indexed,
    world::{DAY_MS, Recorded, USERS},
};
use crate::{
    harness::{Backend, NOON_MS, Reel, TestDatabase, play, say_seed, seeds},
    on_both_databases,
};

/// How many questions are asked at each stage.
const QUESTIONS: usize = 48;

on_both_databases!(every_answer_is_exact_after_deletes_by_hand);

/// A session's id in SQL.
pub fn id_in_sql(backend: Backend, id: &str) -> String {
    match backend {
        Backend::Sqlite => format!("X'{}'", id.replace('-', "")),
        Backend::Postgres => format!("'{id}'"),
    }
}

async fn every_answer_is_exact_after_deletes_by_hand(backend: Backend) {
    for seed in seeds(PLANS) {
        say_seed(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let database = TestDatabase::new(backend).await;
        let unindexed = Reel::start_on(&database, &["--indexer", "off"]).await;
        let mut world = World::new(&mut rng);
        world.record(&unindexed, &mut rng).await;
        let mut asker = Asker::default();
        for meddle in [0, 1] {
            index(&database).await;
            if meddle == 0 {
                delete_here_and_there(&mut world, &database, &mut rng).await;
            } else {
                delete_days(&mut world, &database).await;
            }
            check(&unindexed, &world, &mut asker, &mut rng).await;
            index(&database).await;
            check(&unindexed, &world, &mut asker, &mut rng).await;
            // Each goes on where its cursor is, whatever has gone.
            for recorded in world.sessions.values_mut().filter(|_| rng.random_bool(0.5)) {
                recorded.go_on(&unindexed, &mut StdRng::seed_from_u64(seed)).await;
            }
            check(&unindexed, &world, &mut asker, &mut rng).await;
        }
        index(&database).await;
        check(&unindexed, &world, &mut asker, &mut rng).await;
        asker.check_enough_was_found();
        unindexed.stop().await;
    }
}

/// Indexes everything, and compares it with the actions.
async fn index(database: &TestDatabase) {
    let reel = Reel::start_on(database, &[]).await;
    wait_until_indexed(database).await;
    check_index(database).await;
    reel.stop().await;
}

async fn check(reel: &Reel, world: &World, asker: &mut Asker, rng: &mut StdRng) {
    asker.ask_many(reel, world, rng, QUESTIONS).await;
    for recorded in world.sessions.values().take(20) {
        let known = reel.get(&recorded.id).await.unwrap();
        let played = reel.play(play(&recorded.id)).await.unwrap();
        let count = i64::try_from(recorded.acts.len()).unwrap();
        let started = played.session.unwrap();
        assert_eq!(known.action_count, count, "{recorded:?}");
        assert_eq!(started.action_count, count, "{recorded:?}");
        assert_eq!(started.error_count, recorded.errors(), "{recorded:?}");
        assert_eq!(started.last_action_time, known.last_action_time, "{recorded:?}");
        let seqs: Vec<_> = played.actions.iter().map(|action| action.seq).collect();
        assert_eq!(seqs, recorded.acts.iter().map(|act| act.seq).collect::<Vec<_>>());
    }
}

/// Some or all actions of sessions, sessions with or without their actions before, and a user.
async fn delete_here_and_there(world: &mut World, database: &TestDatabase, rng: &mut StdRng) {
    let ids: Vec<_> = world.sessions.keys().cloned().collect();
    for id in ids {
        let sql_id = id_in_sql(database.backend(), &id);
        let acts = &mut world.sessions.get_mut(&id).unwrap().acts;
        let (actions, sessions) = ("DELETE FROM actions WHERE session_id", "DELETE FROM sessions WHERE id");
        match rng.random_range(0..8) {
            0 => {
                acts.retain(|act| act.seq % 3 > 0);
                database.execute(&format!("{actions} = {sql_id} AND seq % 3 = 0")).await;
            }
            1 => {
                acts.retain(|act| act.kind != "click");
                database.execute(&format!("{actions} = {sql_id} AND type = 'click'")).await;
            }
            2 => {
                acts.clear();
                database.execute(&format!("{actions} = {sql_id}")).await;
            }
            3 => {
                world.sessions.remove(&id);
                database.execute(&format!("{sessions} = {sql_id}")).await;
            }
            4 => {
                world.sessions.remove(&id);
                database.execute(&format!("{actions} = {sql_id}; {sessions} = {sql_id}")).await;
            }
            _ => {}
        }
    }
    let gone = USERS[rng.random_range(0..USERS.len())].0;
    world.sessions.retain(|_, recorded| recorded.user != Some(gone));
    database.execute(&format!("DELETE FROM users WHERE id = '{}'", gone.replace('\'', "''"))).await;
}

/// What the retention of somebody who knows nothing of the index would do: half of a day's actions, all of the actions of another
/// day, and a third day's actions and sessions.
async fn delete_days(world: &mut World, database: &TestDatabase) {
    let day = |number: i64| (NOON_MS / DAY_MS + number) * DAY_MS;
    let of_day = |recorded: &Recorded, number| (day(number)..day(number + 1)).contains(&recorded.start_ms);
    for recorded in world.sessions.values_mut() {
        if of_day(recorded, 0) {
            recorded.acts.retain(|act| act.seq % 2 > 0);
        } else if of_day(recorded, 1) {
            recorded.acts.clear();
        }
    }
    world.sessions.retain(|_, recorded| !of_day(recorded, 2));
    let bound = |number| id_in_sql(database.backend(), &format!("{}-0000-0000-000000000000", time_of_id(day(number))));
    let within = |id: &str, number| format!("{id} >= {} AND {id} < {}", bound(number), bound(number + 1));
    let (half, whole) = match database.backend() {
        Backend::Sqlite => (
            format!("DELETE FROM actions WHERE seq % 2 = 0 AND {}", within("session_id", 0)),
            format!("DELETE FROM actions WHERE {}", within("session_id", 1)),
        ),
        Backend::Postgres => {
            (format!("DELETE FROM {} WHERE seq % 2 = 0", partition(day(0))), format!("TRUNCATE {}", partition(day(1))))
        }
    };
    for sql in [
        half,
        whole,
        format!("DELETE FROM actions WHERE {}", within("session_id", 2)),
        format!("DELETE FROM sessions WHERE {}", within("id", 2)),
    ] {
        database.execute(&sql).await;
    }
}

/// The beginning of the ids of a time, as 019a3f00-0000.
fn time_of_id(ms: i64) -> String {
    let hex = format!("{ms:012x}");
    format!("{}-{}", &hex[..8], &hex[8..])
}

fn partition(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms).unwrap().format("actions_%Y%m%d").to_string()
}

/// Which has no trigger: nobody notices, but whoever compares.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_dropped_by_hand_is_found_out_and_mended() {
    let mut rng = StdRng::seed_from_u64(1);
    let (reel, database) = Reel::start(Backend::Postgres).await;
    let mut world = World::new(&mut rng);
    world.record(&reel, &mut rng).await;
    wait_until_indexed(&database).await;
    reel.stop().await;
    let day = NOON_MS / DAY_MS * DAY_MS;
    for recorded in world.sessions.values_mut().filter(|recorded| (day..day + DAY_MS).contains(&recorded.start_ms)) {
        recorded.acts.clear();
    }
    database.execute(&format!("DROP TABLE {}", partition(day))).await;
    let (is_right, said) = super::run_index(&database, &["--verify"]).await;
    assert!(!is_right && said.contains("its summary is wrong"), "{said}");
    let (is_right, said) = super::run_index(&database, &["--rebuild", "--verify"]).await;
    assert!(is_right, "{said}");
    let unindexed = Reel::start_on(&database, &["--indexer", "off"]).await;
    check(&unindexed, &world, &mut Asker::default(), &mut rng).await;
    unindexed.stop().await;
}
