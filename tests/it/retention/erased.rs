//! What was erased, or forgotten, does not come back: whoever sends it again, whenever, and however long services keep sessions.

use chrono::{DateTime, Days, NaiveTime, TimeDelta, Utc};
use migration::{Migrator, MigratorTrait as _};
use reel::{
    error::{Error, Result},
    model::{self, Pin, RetentionPolicy, SessionId, SessionUpdate},
    proto::{DeleteSessionRequest, GetErasureRequest, SessionStart},
    store::Store,
};
use tonic::Code;

use super::{DAY_MS, keep_days};
use crate::{
    crash::process::reel as reel_command,
    harness::{Backend, Reel, TestDatabase, eventually, reason, session_id, start, user},
    on_both_databases,
};

on_both_databases!(
    an_erased_session_stays_erased_for_whoever_keeps_sessions_longest,
    a_service_takes_nothing_from_before_what_others_have_forgotten_to_be_erased,
    a_shorter_retention_by_hand_lets_nothing_come_back,
    a_database_of_an_earlier_version_forgets_no_erasure_for_a_day,
);

pub async fn open(database: &TestDatabase) -> Store {
    let store = Store::open(&database.url.parse().unwrap(), 9).await.unwrap();
    store.prepare().await.unwrap();
    store
}

pub async fn begin(store: &Store, id: SessionId, now: DateTime<Utc>) -> Result<()> {
    let start = model::SessionStart { id, user: None, attributes: model::Attributes::default() };
    store.session_start(&start, now, 64).await
}

/// Applies what a service keeps, as it does.
async fn keep_up(store: &Store, policy: &RetentionPolicy, now: DateTime<Utc>) {
    store.retention_keep_up(policy, now).await.unwrap();
}

/// The beginning of a day.
pub fn midnight_of(time: DateTime<Utc>) -> DateTime<Utc> {
    time.date_naive().and_time(NaiveTime::MIN).and_utc()
}

/// Makes what was erased have been so four days ago.
async fn erase_earlier(database: &TestDatabase) {
    let erased_at = (Utc::now() - Days::new(4)).to_rfc3339();
    database.execute(&format!("UPDATE tombstones SET erased_at = '{erased_at}'")).await;
    database.execute(&format!("UPDATE erasures SET finished_at = '{erased_at}'")).await;
}

async fn an_erased_session_stays_erased_for_whoever_keeps_sessions_longest(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let (one, other) = (open(&database).await, open(&database).await);
    let (short, long) = (keep_days(2), keep_days(14));
    let midnight = midnight_of(one.now());
    let noon = midnight + TimeDelta::hours(12);
    // The first and the last moment of days, the oldest that may start, and as far ahead as clocks may be.
    let starts = [
        midnight - TimeDelta::days(14),
        midnight - TimeDelta::days(5),
        midnight - TimeDelta::milliseconds(1),
        midnight,
        noon + TimeDelta::days(1),
    ];
    for policy in [&short, &long] {
        one.retention_announce(policy).await.unwrap();
    }
    let ids = starts.map(SessionId::mint);
    for id in ids {
        begin(&one, id, noon).await.unwrap();
        one.session_erase(id, noon).await.unwrap();
    }
    let mut now = noon;
    for step in 0..54 {
        // Whoever is first; and right before and after the ends of days.
        let [first, second] = if step % 2 == 0 { [&short, &long] } else { [&long, &short] };
        keep_up(&one, first, now).await;
        keep_up(&other, second, now).await;
        for (id, started_at) in ids.into_iter().zip(starts) {
            let outcome = begin(&other, id, now).await;
            if !long.is_expired(started_at, now) {
                assert_eq!(outcome, Err(Error::SessionErased), "{started_at} at {now}");
            }
            assert!(
                matches!(outcome, Err(Error::SessionErased | Error::OlderThanRetention { .. })),
                "{started_at} at {now}: {outcome:?}"
            );
        }
        let next = midnight_of(now) + TimeDelta::days(1);
        now = match step % 3 {
            0 => next - TimeDelta::microseconds(1),
            1 => next,
            _ => now + TimeDelta::hours(12),
        };
    }
    assert!(now > starts[4] + TimeDelta::days(16), "{now}");
    assert_eq!(
        database.number("SELECT count(*) FROM tombstones").await,
        0,
        "they are kept for as long as they are needed"
    );
    for store in [one, other] {
        store.close().await;
    }
}

async fn a_service_takes_nothing_from_before_what_others_have_forgotten_to_be_erased(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let (one, other) = (open(&database).await, open(&database).await);
    let (short, long) = (keep_days(2), keep_days(14));
    let midnight = midnight_of(one.now());
    let old = SessionId::mint(midnight - TimeDelta::days(5));
    let pinned = SessionId::mint(midnight - TimeDelta::days(5));
    for id in [old, pinned] {
        begin(&one, id, midnight).await.unwrap();
    }
    let pin = Pin { until: midnight + TimeDelta::days(99), reason: String::new() };
    let pin = SessionUpdate {
        removed: Vec::new(),
        set: model::Attributes::default(),
        pin: Some(Some(pin)),
        expires_at: None,
    };
    one.session_update(pinned, &pin, 64).await.unwrap();
    one.session_erase(old, midnight).await.unwrap();
    let mut now = midnight;
    keep_up(&one, &long, now).await;
    // The last that kept sessions for longer has gone, and counts for a day.
    for hours in [12, 24] {
        now = midnight + TimeDelta::hours(hours) - TimeDelta::microseconds(1);
        keep_up(&one, &short, now).await;
        assert_eq!(begin(&other, old, now).await, Err(Error::SessionErased));
    }
    // Triggers know of erasures, too, by the real time of day.
    now = midnight + TimeDelta::hours(49);
    keep_up(&one, &short, now).await;
    assert_eq!(database.number("SELECT count(*) FROM tombstones").await, 0);
    // Another begins that would keep them, and comes before the first time it forgets.
    for _ in 0..2 {
        let refused = begin(&other, old, now).await.unwrap_err();
        let Error::OlderThanRetention { limit_seconds } = refused else { panic!("{refused:?}") };
        assert_eq!(i64::try_from(limit_seconds).unwrap(), TimeDelta::hours(2 * 24 + 1).num_seconds());
        keep_up(&other, &long, now).await;
    }
    let first_day = midnight;
    begin(&other, SessionId::mint(first_day), now).await.unwrap();
    let day_before = SessionId::mint(first_day - TimeDelta::milliseconds(1));
    assert!(matches!(begin(&other, day_before, now).await, Err(Error::OlderThanRetention { .. })));
    let nobody = model::User {
        id: "nobody".to_owned(),
        email: String::new(),
        name: String::new(),
        attributes: model::Attributes::default(),
        created_at: now,
    };
    let of = model::SessionStart { id: day_before, user: Some(nobody), attributes: model::Attributes::default() };
    assert!(matches!(other.session_start(&of, now, 64).await, Err(Error::OlderThanRetention { .. })));
    assert_eq!(database.number("SELECT count(*) FROM users").await, 0, "nothing is left of its user");
    begin(&other, pinned, now).await.expect("what is there may be started again");
    for store in [one, other] {
        store.close().await;
    }
}

async fn a_shorter_retention_by_hand_lets_nothing_come_back(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &["--retention", "14days"]).await;
    let midnight = midnight_of(Utc::now()).timestamp_millis();
    let ids: Vec<_> = [5, 5, 3, 1].map(|days_ago| session_id(midnight - days_ago * DAY_MS)).into();
    for id in &ids {
        reel.send(start(id, SessionStart { user: Some(user(id, "")), ..Default::default() })).await.unwrap();
    }
    reel.sessions().delete_session(DeleteSessionRequest { session_id: ids[0].clone() }).await.unwrap();
    erase_earlier(&database).await;
    let by_hand = ["retention", "--retention", "2days", "--database-url", &database.url];
    // The service may be at it.
    eventually("it is forgotten by hand", async || reel_command(&by_hand).output().await.unwrap().status.success())
        .await;
    assert_eq!(super::listed(&reel).await, ids[3..]);
    for id in &ids[..3] {
        let refused = reel.send(start(id, SessionStart::default())).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "SESSION_ERASED"), "{id}");
    }
    let erasure = GetErasureRequest { session_id: ids[0].clone(), ..Default::default() };
    reel.users().get_erasure(erasure).await.expect("it is known for as long as the service keeps sessions");
    // What services take has not changed.
    reel.send(start(&session_id(midnight - 14 * DAY_MS), SessionStart::default())).await.unwrap();
    reel.stop().await;
}

async fn a_database_of_an_earlier_version_forgets_no_erasure_for_a_day(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let store = open(&database).await;
    let midnight = midnight_of(store.now());
    let old = SessionId::mint(midnight - TimeDelta::days(5));
    begin(&store, old, midnight).await.unwrap();
    store.session_erase(old, midnight).await.unwrap();
    erase_earlier(&database).await;
    store.close().await;
    Migrator::down(&database.connect().await, Some(1)).await.unwrap();
    let store = open(&database).await;
    // A service of that version may still run, and say nothing of what it takes.
    let is_erased = async |now| {
        keep_up(&store, &keep_days(2), now).await;
        begin(&store, old, now).await == Err(Error::SessionErased)
    };
    let now = store.now();
    assert!(is_erased(now).await);
    assert!(is_erased(now + TimeDelta::hours(23)).await);
    assert!(!is_erased(now + TimeDelta::hours(25)).await);
    store.close().await;
}

/// On PostgreSQL a day that nobody would take again goes without a row for each of its sessions: that is what makes it cheap.
#[tokio::test(flavor = "multi_thread")]
async fn a_day_before_the_horizon_leaves_no_tombstones_on_postgres() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let store = open(&database).await;
    let midnight = midnight_of(store.now());
    let tombstones = || database.number("SELECT count(*) FROM tombstones");
    for days in [3, 14] {
        begin(&store, SessionId::mint(midnight - TimeDelta::days(days)), midnight).await.unwrap();
    }
    keep_up(&store, &keep_days(14), midnight).await;
    keep_up(&store, &keep_days(14), midnight + TimeDelta::days(1)).await;
    assert_eq!((database.number("SELECT count(*) FROM sessions").await, tombstones().await), (1, 0));
    // Too much is not too old.
    let tight = RetentionPolicy { max_bytes: Some(1), ..keep_days(14) };
    keep_up(&store, &tight, midnight + TimeDelta::days(1)).await;
    assert_eq!((database.number("SELECT count(*) FROM sessions").await, tombstones().await), (0, 1));
    store.close().await;
}
