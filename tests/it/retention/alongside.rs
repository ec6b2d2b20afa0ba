//! Forgetting beside everything else that goes on: writers and players, another process, a kill.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use reel::error::Error;
use sea_orm::{ConnectionTrait as _, TransactionTrait as _};

use super::{counted, keep_days, listed, midnight, pin, record_day};
use crate::{
    exact::{check_index, wait_until_indexed},
    harness::{Backend, Reel, TestDatabase, batch, clicks, eventually},
    on_both_databases,
};

on_both_databases!(
    days_go_while_others_write_and_play,
    two_processes_forget_each_session_once,
    a_process_that_is_killed_leaves_whole_sessions,
);

async fn days_go_while_others_write_and_play(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    for number in 0..6 {
        record_day(&reel, number, 5).await;
    }
    wait_until_indexed(&database).await;
    let live = record_day(&reel, 6, 1).await.remove(0);
    let writing = async {
        let mut seq = 11;
        for _ in 0..150 {
            reel.record(vec![batch(&live, "", seq, clicks(seq..seq + 5))]).await.unwrap();
            seq += 5;
        }
        seq - 1
    };
    let playing = async {
        for _ in 0..60 {
            assert!(reel.play_all(&live).await.len() >= 10);
            assert!(counted(&reel).await.1 >= 10);
        }
    };
    let forgetting = async {
        for number in 1..=6 {
            let policy = keep_days(1);
            loop {
                match reel.store.retention_apply(&policy, midnight(number + 1)).await {
                    Ok(_) => break,
                    // Others were at the tables all the time; next time.
                    Err(Error::Contention | Error::RetentionRunning) => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    let (last_seq, (), ()) = tokio::join!(writing, playing, forgetting);
    assert_eq!(listed(&reel).await, [live.as_str()]);
    assert_eq!(i64::try_from(reel.play_all(&live).await.len()).unwrap(), last_seq);
    assert_eq!(counted(&reel).await, (1, last_seq));
    wait_until_indexed(&database).await;
    assert_eq!(counted(&reel).await, (1, last_seq));
    check_index(&database).await;
    reel.stop().await;
}

async fn two_processes_forget_each_session_once(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let (one, other) = (Reel::start_on(&database, &[]).await, Reel::start_on(&database, &[]).await);
    for number in 0..5 {
        record_day(&one, number, 8).await;
    }
    wait_until_indexed(&database).await;
    let forget = async |reel: &Reel| {
        let (mut sessions, mut actions) = (0, 0);
        for _ in 0..20 {
            match reel.store.retention_apply(&keep_days(1), midnight(9)).await {
                Ok(report) => {
                    sessions += report.days.iter().map(|day| day.sessions).sum::<i64>();
                    actions += report.days.iter().map(|day| day.actions).sum::<i64>();
                }
                Err(Error::RetentionRunning | Error::Contention) => tokio::time::sleep(Duration::from_millis(30)).await,
                Err(error) => panic!("{error}"),
            }
        }
        (sessions, actions)
    };
    let (by_one, by_other) = tokio::join!(forget(&one), forget(&other));
    assert_eq!((by_one.0 + by_other.0, by_one.1 + by_other.1), (40, 400));
    assert!(listed(&one).await.is_empty());
    check_index(&database).await;
    one.stop().await;
    other.stop().await;
}

async fn a_process_that_is_killed_leaves_whole_sessions(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    for number in 0..10 {
        record_day(&reel, number, 6).await;
    }
    let pinned = record_day(&reel, 4, 1).await.remove(0);
    pin(&reel, &pinned, Some(Utc::now() + TimeDelta::days(9))).await;
    wait_until_indexed(&database).await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_reel"));
    command.args(["retention", "--retention", "1day", "--database-url", &database.url]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let (mut kills, mut left) = (0, Vec::new());
    for round in 0_u64.. {
        let mut process = command.spawn().unwrap();
        // Sooner or later than what it does, and always later in the end.
        let patience = Duration::from_millis(20 + round * 11 % 150 + round);
        match tokio::time::timeout(patience, process.wait()).await {
            Ok(status) if status.as_ref().unwrap().success() => break,
            Ok(_) => {}
            Err(_) => {
                process.kill().await.unwrap();
                kills += 1;
            }
        }
        // PostgreSQL may still commit what it was asked to before the kill.
        let (sessions, count) = loop {
            let (sessions, count) = (listed(&reel).await, counted(&reel).await);
            if listed(&reel).await == sessions {
                break (sessions, count);
            }
        };
        let expected = i64::try_from(sessions.len()).unwrap();
        assert_eq!(count, (expected, 10 * expected));
        if sessions.len() != left.len() {
            for id in &sessions {
                assert_eq!(reel.play_all(id).await.len(), 10, "{id} is whole");
            }
            left = sessions;
        }
    }
    assert!(kills > 0, "none was killed");
    assert_eq!(listed(&reel).await, [pinned.as_str()]);
    assert_eq!(reel.play_all(&pinned).await.len(), 10);
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 10);
    check_index(&database).await;
    reel.stop().await;
}

/// A dump reads all tables for as long as it takes. What cannot be carried through meanwhile is not begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_reader_is_left_alone_and_costs_no_work_that_is_taken_back() {
    let (reel, database) = Reel::start(Backend::Postgres).await;
    record_day(&reel, 0, 4).await;
    wait_until_indexed(&database).await;
    // A DELETE that was taken back leaves its mark in the rows.
    let marks = async || database.texts("SELECT xmin::text || ' ' || xmax::text FROM sessions ORDER BY id").await;
    let before = marks().await;
    let connection = database.connect().await;
    let reading = connection.begin().await.unwrap();
    reading.execute_unprepared("LOCK TABLE actions IN ACCESS SHARE MODE").await.unwrap();
    eventually("the service's own run is over", async || {
        let outcome = reel.store.retention_apply(&keep_days(1), midnight(9)).await;
        assert!(matches!(outcome, Err(Error::Contention | Error::RetentionRunning)), "{outcome:?}");
        outcome == Err(Error::Contention)
    })
    .await;
    assert_eq!(marks().await, before);
    assert_eq!(listed(&reel).await.len(), 4);
    reading.rollback().await.unwrap();
    crate::archive::apply(&reel.store, &keep_days(1), midnight(9)).await;
    assert!(listed(&reel).await.is_empty());
    reel.stop().await;
}
