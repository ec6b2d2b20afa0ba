//! After a restart nobody has seen time pass: what is not forgotten, and not concluded, by a clock that may be wrong.

use chrono::{DateTime, TimeDelta, Utc};
use reel::{
    error::Error,
    model::{Attributes, Doubt, Pin, RetentionPolicy, RetentionReport, SessionId, SessionUpdate},
    store::Store,
};

use super::{
    erased::{begin, midnight_of, open},
    keep_days,
};
use crate::{
    harness::{Backend, TestDatabase},
    on_both_databases,
};

on_both_databases!(
    what_is_recorded_by_a_wrong_clock_does_not_vouch_for_it,
    a_horizon_follows_no_clock_that_nothing_is_lost_by,
    the_own_time_of_sessions_vouches_for_no_clock_and_comes_by_none,
    a_lease_from_a_future_that_is_none_holds_nobody_up,
);

/// How far the clock is ahead while it is wrong.
const WRONG: TimeDelta = TimeDelta::days(60);

/// Applies a policy as a service does that has just been started.
async fn keep_up(database: &TestDatabase, policy: &RetentionPolicy, now: DateTime<Utc>) -> Result<i64, Error> {
    let store = open(database).await;
    let report = store.retention_keep_up(policy, now).await;
    store.close().await;
    report.map(|report| gone(&report))
}

fn gone(report: &RetentionReport) -> i64 {
    report.days.iter().map(|day| day.sessions).sum()
}

async fn count(database: &TestDatabase, table: &str) -> i64 {
    database.number(&format!("SELECT count(*) FROM {table}")).await
}

async fn update(store: &Store, id: SessionId, pin: Option<DateTime<Utc>>, expires_at: Option<DateTime<Utc>>) {
    let update = SessionUpdate {
        removed: Vec::new(),
        set: Attributes::default(),
        pin: pin.map(|until| Some(Pin { until, reason: String::new() })),
        expires_at: expires_at.map(Some),
    };
    store.session_update(id, &update, 64).await.unwrap();
}

async fn what_is_recorded_by_a_wrong_clock_does_not_vouch_for_it(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let policy = keep_days(14);
    let store = open(&database).await;
    let now = store.now();
    let wrong = now + WRONG;
    // Two days: that they are many is not what it stops for.
    for days_ago in [1, 0] {
        begin(&store, SessionId::mint(now - TimeDelta::days(days_ago)), now).await.unwrap();
    }
    store.retention_keep_up(&policy, now).await.unwrap();
    let everything = |outcome: Result<i64, Error>| {
        assert!(
            matches!(outcome, Err(Error::RetentionUnconfirmed(Doubt::Everything { sessions: 2, .. }))),
            "{outcome:?}"
        );
    };
    // The machine comes up with the wrong clock, and records.
    everything(keep_up(&database, &policy, wrong).await);
    begin(&store, SessionId::mint(wrong), wrong).await.unwrap();
    everything(keep_up(&database, &policy, wrong).await);
    // One that was running goes on recording, and is started again later.
    let stopped = store.retention_keep_up(&policy, wrong).await;
    assert!(matches!(stopped, Err(Error::RetentionUnconfirmed(Doubt::Clock { .. }))), "{stopped:?}");
    for hour in 1..=3 {
        let later = wrong + TimeDelta::hours(hour);
        begin(&store, SessionId::mint(later), later).await.unwrap();
        everything(keep_up(&database, &policy, later).await);
    }
    let by_hand = open(&database).await;
    everything(by_hand.retention_check_clock(&policy, wrong).await.map(|()| 0));
    assert_eq!(count(&database, "sessions").await, 6);
    for store in [store, by_hand] {
        store.close().await;
    }
}

async fn a_horizon_follows_no_clock_that_nothing_is_lost_by(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let policy = keep_days(14);
    let store = open(&database).await;
    let now = store.now();
    let [erased, pinned] = [1, 2].map(|days_ago| SessionId::mint(now - TimeDelta::days(days_ago)));
    for id in [erased, pinned] {
        begin(&store, id, now).await.unwrap();
    }
    update(&store, pinned, Some(now + TimeDelta::days(99)), None).await;
    store.session_erase(erased, now).await.unwrap();
    store.retention_keep_up(&policy, now).await.unwrap();
    let horizon = async || database.texts("SELECT CAST(first_day AS text) FROM retention_horizon").await;
    let before = horizon().await;

    assert_eq!(keep_up(&database, &policy, now + WRONG).await, Ok(0), "there is nothing to ask about");
    assert_eq!(horizon().await, before);
    assert_eq!(count(&database, "tombstones").await, 1);
    assert_eq!(begin(&store, erased, now).await, Err(Error::SessionErased));
    begin(&store, SessionId::mint(now - TimeDelta::days(13)), now).await.unwrap();
    // For one that has seen the clock, too, and stops.
    let stopped = store.retention_keep_up(&policy, now + WRONG).await;
    assert!(matches!(stopped, Err(Error::RetentionUnconfirmed(_))), "{stopped:?}");
    assert_eq!((horizon().await, count(&database, "tombstones").await), (before, 1));

    // Once somebody says that it is right, it follows.
    store.retention_confirm(&policy, now + WRONG).await.unwrap();
    // What went by that is remembered for a day.
    let later = now + WRONG + TimeDelta::hours(36);
    assert_eq!(keep_up(&database, &policy, later).await, Ok(0));
    let first_kept = (midnight_of(later) - TimeDelta::days(14)).date_naive();
    assert_eq!(horizon().await, [first_kept.to_string()]);
    assert_eq!(count(&database, "tombstones").await, 0);
    store.close().await;
}

async fn the_own_time_of_sessions_vouches_for_no_clock_and_comes_by_none(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let (all, policy) = (RetentionPolicy::default(), keep_days(14));
    let store = open(&database).await;
    let now = store.now();
    let expire = async |days: i64| {
        let id = SessionId::mint(now - TimeDelta::hours(1));
        begin(&store, id, now).await.unwrap();
        update(&store, id, None, Some(now + TimeDelta::days(days))).await;
    };
    begin(&store, SessionId::mint(now), now).await.unwrap();
    for days in [1, 1, 30] {
        expire(days).await;
    }
    store.retention_keep_up(&policy, now).await.unwrap();
    // What has had its time within two days goes, as days do.
    assert_eq!(keep_up(&database, &all, now + TimeDelta::days(4)).await, Ok(2));
    for _ in 0..2 {
        // Nothing is concluded from that.
        let outcome = keep_up(&database, &all, now + WRONG).await;
        match backend {
            Backend::Sqlite => assert!(matches!(outcome, Ok(0 | 1)), "{outcome:?}"),
            Backend::Postgres => assert_eq!(
                outcome,
                Err(Error::RetentionUnconfirmed(Doubt::Own { days: WRONG.num_days(), sessions: 1 }))
            ),
        }
    }
    let outcome = keep_up(&database, &policy, now + WRONG).await;
    assert!(matches!(outcome, Err(Error::RetentionUnconfirmed(Doubt::Everything { .. }))), "{outcome:?}");
    assert_eq!(
        store.retention_confirm(&all, now + WRONG).await.map(|report| gone(&report)),
        Ok(i64::from(backend == Backend::Postgres))
    );
    assert_eq!(count(&database, "sessions").await, 1);
    // Where they are all that there is, SQLite asks, too.
    database.execute("DELETE FROM sessions").await;
    expire(70).await;
    let outcome = keep_up(&database, &all, now + WRONG * 2).await;
    assert!(matches!(outcome, Err(Error::RetentionUnconfirmed(_))), "{outcome:?}");
    assert_eq!(count(&database, "sessions").await, 1);
    store.close().await;
}

async fn a_lease_from_a_future_that_is_none_holds_nobody_up(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let store = open(&database).await;
    let now = store.now();
    // A process that died while the clock was wrong has left it behind.
    let lease = |until: DateTime<Utc>| {
        let holder = match backend {
            Backend::Sqlite => "x'00112233445566778899aabbccddeeff'",
            Backend::Postgres => "'00112233-4455-6677-8899-aabbccddeeff'",
        };
        let until = until.format("%Y-%m-%dT%H:%M:%S%.6f+00:00");
        format!("INSERT INTO leases (name, holder, until) VALUES ('retention', {holder}, '{until}')")
    };
    for ahead in [TimeDelta::minutes(1), WRONG] {
        database.execute(&lease(now + ahead)).await;
        store.retention_apply(&RetentionPolicy::default(), now).await.unwrap();
        assert_eq!(count(&database, "leases").await, 0);
    }
    // One that may be somebody's is left to them, where no lock says that it is nobody's.
    database.execute(&lease(store.now() + TimeDelta::seconds(20))).await;
    let outcome = store.retention_apply(&RetentionPolicy::default(), now).await;
    match backend {
        Backend::Sqlite => assert_eq!(outcome, Err(Error::RetentionRunning)),
        Backend::Postgres => assert!(outcome.is_ok(), "{outcome:?}"),
    }
    store.close().await;
}
