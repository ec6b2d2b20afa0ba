//! Clocks that jump and policies that are mistyped: what services do not forget before somebody says that it is right.

use std::process::Output;

use chrono::{DateTime, TimeDelta, Utc};
use reel::{
    error::Error,
    model::{Doubt, RetentionPolicy},
    proto::{
        ApplyRetentionRequest, GetStorageStatsRequest, PreviewRetentionRequest, SessionStart,
        retention_service_client::RetentionServiceClient,
    },
    store::Store,
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{DAY_MS, erased::midnight_of, keep_days, listed};
use crate::{
    crash::process::reel as reel_command,
    harness::{Backend, Reel, TestDatabase, eventually, reason, service_args, session_id, start},
    on_both_databases,
};

on_both_databases!(
    a_service_whose_clock_jumps_forgets_nothing_until_somebody_confirms_it,
    a_service_that_keeps_everything_does_not_stop_and_vouches_for_no_clock,
    a_policy_that_forgets_more_than_two_days_at_once_is_asked_about,
    a_service_that_was_away_for_long_goes_on_unless_the_clock_may_be_wrong,
    a_budget_that_forgets_more_than_two_days_at_once_is_asked_about,
);

/// A clock of a database that tests can set: on PostgreSQL the server's for this database, on SQLite the processes'.
struct Clock<'a> {
    database: &'a TestDatabase,
    ahead: TimeDelta,
    /// When the test began.
    began: DateTime<Utc>,
}

impl<'a> Clock<'a> {
    async fn new(database: &'a TestDatabase) -> Self {
        if database.backend() == Backend::Postgres {
            // Looked for before the server's own function.
            for sql in [
                "CREATE SCHEMA test_clock",
                "CREATE TABLE test_clock.shift (ahead interval NOT NULL)",
                "INSERT INTO test_clock.shift VALUES ('0')",
                "CREATE FUNCTION test_clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS \
                 'SELECT pg_catalog.clock_timestamp() + ahead FROM test_clock.shift'",
                "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, test_clock, pg_catalog', \
                 current_database()); END $$",
            ] {
                database.execute(sql).await;
            }
        }
        Self { database, ahead: TimeDelta::zero(), began: Utc::now() }
    }

    /// The argument of a retention that keeps today and so many days before, and will for half a day.
    fn keep(&self, days: i64) -> String {
        let noon = midnight_of(self.began) + TimeDelta::hours(12);
        format!("{}s", (self.began - noon + TimeDelta::days(days)).num_seconds())
    }

    /// Moves it by so much, for these processes that are running, too.
    async fn shift(&mut self, services: &[&Reel], ahead: TimeDelta) {
        self.ahead = ahead;
        if self.database.backend() == Backend::Postgres {
            let sql = format!("UPDATE test_clock.shift SET ahead = interval '{} s'", ahead.num_seconds());
            self.database.execute(&sql).await;
        }
        let is_near = |time: DateTime<Utc>| (time - Utc::now() - ahead).abs() < TimeDelta::minutes(1);
        for reel in services {
            reel.store.clock_shift(ahead);
            eventually("the process knows", async || is_near(reel.store.now())).await;
        }
    }

    async fn start(&self, arguments: &[&str]) -> Reel {
        let store = Store::open(&self.database.url.parse().unwrap(), 12).await.unwrap();
        store.clock_shift(self.ahead);
        let reel = Reel::start_with(store, service_args(arguments)).await;
        reel.wait_until_serving().await;
        reel
    }

    /// `reel retention` with these arguments, once the service is not at it.
    async fn by_hand(&self, arguments: &[&str]) -> Output {
        let mut output = None;
        eventually("no service is at it by itself", async || {
            let mut command = reel_command(&["retention", "--database-url", &self.database.url]);
            command.args(arguments).env("REEL_CLOCK_AHEAD", self.ahead.num_seconds().to_string());
            let ended = output.insert(command.output().await.unwrap());
            !String::from_utf8_lossy(&ended.stderr).contains("being applied")
        })
        .await;
        output.unwrap()
    }
}

async fn apply(reel: &Reel) -> Result<i64, (Code, String)> {
    let mut retention = RetentionServiceClient::new(reel.channel.clone());
    let mut outcome = None;
    eventually("no service is at it by itself", async || {
        outcome = Some(retention.apply_retention(ApplyRetentionRequest {}).await);
        !matches!(&outcome, Some(Err(status)) if status.code() == Code::Unavailable)
    })
    .await;
    match outcome.unwrap() {
        Ok(response) => Ok(response.into_inner().report.unwrap().session_count),
        Err(status) => Err((status.code(), reason(&status))),
    }
}

async fn health_of(reel: &Reel, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(reel.channel.clone()).check(request).await.unwrap().into_inner().status()
}

/// Whether health says that retention has stopped, and nothing else has.
async fn has_stopped(reel: &Reel) -> bool {
    assert_eq!(health_of(reel, "").await, ServingStatus::Serving);
    assert_eq!(health_of(reel, "reel.v1.IngestService").await, ServingStatus::Serving);
    health_of(reel, "reel.v1.RetentionService").await != ServingStatus::Serving
}

fn unconfirmed<T>() -> Result<T, (Code, String)> {
    Err((Code::FailedPrecondition, "RETENTION_UNCONFIRMED".to_owned()))
}

/// Starts sessions as many days before this time, the latest last.
async fn record(reel: &Reel, now: DateTime<Utc>, days_ago: impl IntoIterator<Item = i64>) -> Vec<String> {
    let midnight = midnight_of(now).timestamp_millis();
    let mut ids = Vec::new();
    for days_ago in days_ago {
        let id = session_id(midnight - days_ago * DAY_MS);
        reel.send(start(&id, SessionStart::default())).await.unwrap();
        ids.push(id);
    }
    ids
}

async fn a_service_whose_clock_jumps_forgets_nothing_until_somebody_confirms_it(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let mut clock = Clock::new(&database).await;
    let policy = ["--retention", &clock.keep(14)];
    let reel = clock.start(&policy).await;
    record(&reel, clock.began, [9, 5, 0]).await;
    assert_eq!(apply(&reel).await, Ok(0));

    let wrong = TimeDelta::days(60);
    clock.shift(&[&reel], wrong).await;
    // Everything else goes on, before and after it is noticed: senders whose clocks are right are not told that they are late.
    record(&reel, clock.began, [0]).await;
    assert_eq!(apply(&reel).await, unconfirmed());
    eventually("health says so", async || has_stopped(&reel).await).await;
    record(&reel, clock.began, [0]).await;
    let mut retention = RetentionServiceClient::new(reel.channel.clone());
    let preview = retention.preview_retention(PreviewRetentionRequest {}).await.unwrap().into_inner().report.unwrap();
    assert_eq!(preview.session_count, 5, "a dry run says what it would be");
    let stats = retention.get_storage_stats(GetStorageStatsRequest {}).await.unwrap().into_inner();
    assert_eq!(stats.session_count, 5);
    assert_eq!(apply(&reel).await, unconfirmed());
    // So it is for a process that did not see the clock jump: nothing would be left.
    let second = clock.start(&policy).await;
    assert_eq!(apply(&second).await, unconfirmed());
    let by_hand = clock.by_hand(&policy).await;
    assert!(!by_hand.status.success() && String::from_utf8_lossy(&by_hand.stderr).contains("--confirm"), "{by_hand:?}");
    let dry_run = [&policy[..], &["--dry-run"]].concat();
    assert!(clock.by_hand(&dry_run).await.status.success(), "nothing goes by that");
    assert_eq!(listed(&reel).await.len(), 5);

    // Set right again, they go on by themselves.
    clock.shift(&[&reel, &second], TimeDelta::zero()).await;
    for service in [&reel, &second] {
        assert_eq!(apply(service).await, Ok(0));
        eventually("health says so", async || !has_stopped(service).await).await;
    }
    clock.shift(&[&reel, &second], wrong).await;
    assert_eq!(apply(&reel).await, unconfirmed());
    assert_eq!(apply(&second).await, unconfirmed());

    let confirmed = clock.by_hand(&[&policy[..], &["--confirm"]].concat()).await;
    assert!(confirmed.status.success(), "{confirmed:?}");
    assert_eq!(listed(&reel).await.len(), 0);
    for service in [reel, second] {
        assert_eq!(apply(&service).await, Ok(0));
        eventually("health says so", async || !has_stopped(&service).await).await;
        service.stop().await;
    }
}

async fn a_service_that_keeps_everything_does_not_stop_and_vouches_for_no_clock(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let mut clock = Clock::new(&database).await;
    let keeper = clock.start(&[]).await;
    // Two days are not too many.
    record(&keeper, clock.began, [1, 0]).await;
    assert_eq!(apply(&keeper).await, Ok(0));
    clock.shift(&[&keeper], TimeDelta::days(60)).await;
    assert_eq!(apply(&keeper).await, Ok(0));
    assert!(!has_stopped(&keeper).await);
    let other = clock.start(&["--retention", &clock.keep(14)]).await;
    assert_eq!(apply(&other).await, unconfirmed());
    assert_eq!(listed(&other).await.len(), 2);
    for service in [keeper, other] {
        service.stop().await;
    }
}

async fn a_policy_that_forgets_more_than_two_days_at_once_is_asked_about(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let clock = Clock::new(&database).await;
    let [one, four, six, fourteen] = [1, 4, 6, 14].map(|days| clock.keep(days));
    let reel = clock.start(&["--retention", &fourteen]).await;
    let ids = record(&reel, clock.began, (0..=9).rev()).await;
    assert_eq!(apply(&reel).await, Ok(0));
    reel.stop().await;

    // Three days go that would have been kept: one too many.
    let hasty = clock.start(&["--retention", &six]).await;
    let announced = "SELECT count(*) FROM retentions WHERE applied_at IS NULL";
    assert_eq!(database.number(announced).await, 1, "others know of it before it takes anything");
    assert_eq!(apply(&hasty).await, unconfirmed());
    eventually("health says so", async || has_stopped(&hasty).await).await;
    assert_eq!(listed(&hasty).await.len(), 10);
    // Others go on as they were, and do not speak for it.
    let patient = clock.start(&["--retention", &fourteen]).await;
    assert_eq!(apply(&patient).await, Ok(0));
    assert_eq!(apply(&hasty).await, unconfirmed());
    // The clock is right, but that is not what it asked.
    assert!(clock.by_hand(&["--retention", &fourteen, "--confirm"]).await.status.success());
    assert_eq!(apply(&hasty).await, unconfirmed());
    assert_eq!(listed(&hasty).await.len(), 10);

    assert!(clock.by_hand(&["--retention", &six, "--confirm"]).await.status.success());
    assert_eq!(listed(&hasty).await, ids[3..].iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(apply(&hasty).await, Ok(0));
    eventually("health says so", async || !has_stopped(&hasty).await).await;
    hasty.stop().await;
    // Two days less are not too many.
    let less = clock.start(&["--retention", &four]).await;
    eventually("they have gone", async || listed(&less).await.len() == 5).await;
    // By hand, a policy is meant as it is given.
    assert!(clock.by_hand(&["--retention", &one]).await.status.success());
    assert_eq!(listed(&less).await.len(), 2);
    less.stop().await;
    patient.stop().await;
}

/// As a process that has just been started has it: nothing but the database tells how much time has passed.
async fn restarted(database: &TestDatabase) -> Store {
    let store = Store::open(&database.url.parse().unwrap(), 9).await.unwrap();
    store.prepare().await.unwrap();
    store
}

async fn a_service_that_was_away_for_long_goes_on_unless_the_clock_may_be_wrong(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &[]).await;
    let policy = keep_days(14);
    let now = Utc::now();
    record(&reel, now, [13, 12, 11, 10, 9]).await;
    reel.stop().await;
    let keep_up = async |days| restarted(&database).await.retention_keep_up(&policy, now + TimeDelta::days(days)).await;
    let gone = |report: reel::model::RetentionReport| report.days.iter().map(|day| day.sessions).sum::<i64>();
    assert_eq!(keep_up(0).await.map(gone), Ok(0));
    // Four days later three are too old. Where the machine may have been off, that is believed.
    let report = keep_up(4).await;
    match backend {
        Backend::Sqlite => assert_eq!(report.map(gone), Ok(3)),
        Backend::Postgres => {
            let Err(Error::RetentionUnconfirmed(Doubt::Days { first, last, sessions })) = report else {
                panic!("{report:?}")
            };
            assert_eq!(((last - first).num_days(), sessions), (2, 3));
            assert_eq!(keep_up(3).await.map(gone), Ok(2), "no more than two");
            assert_eq!(keep_up(4).await.map(gone), Ok(1), "a day later, as always");
        }
    }
    // All that there is.
    for _ in 0..2 {
        let report = keep_up(40).await;
        assert!(
            matches!(report, Err(Error::RetentionUnconfirmed(Doubt::Everything { sessions: 2, .. }))),
            "{report:?}"
        );
    }
    assert_eq!(database.number("SELECT count(*) FROM sessions").await, 2);
    // A process that does not forget does not tell others that time has passed.
    let all = RetentionPolicy::default();
    restarted(&database).await.retention_keep_up(&all, now + TimeDelta::days(40)).await.unwrap();
    assert!(keep_up(40).await.is_err());
    let store = restarted(&database).await;
    let confirmed = store.retention_confirm(&policy, now + TimeDelta::days(40)).await.unwrap();
    assert_eq!(gone(confirmed), 2);
    assert_eq!(keep_up(41).await.map(gone), Ok(0));
}

async fn a_budget_that_forgets_more_than_two_days_at_once_is_asked_about(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &[]).await;
    let now = Utc::now();
    record(&reel, now, [5, 4, 3, 0]).await;
    assert_eq!(apply(&reel).await, Ok(0));
    reel.stop().await;
    let store = restarted(&database).await;
    let tight = RetentionPolicy { max_bytes: Some(1), ..RetentionPolicy::default() };
    for _ in 0..2 {
        let report = store.retention_keep_up(&tight, now).await;
        assert!(matches!(report, Err(Error::RetentionUnconfirmed(Doubt::Days { sessions: 3, .. }))), "{report:?}");
        assert!(store.retention_has_stopped());
    }
    store.retention_confirm(&tight, now).await.unwrap();
    assert_eq!(database.number("SELECT count(*) FROM sessions").await, 1);
    let reel = Reel::start_on(&database, &[]).await;
    record(&reel, now, [5, 4, 3]).await;
    reel.stop().await;
    // What is too much goes by itself where no more was allowed before.
    store.retention_keep_up(&tight, now).await.unwrap();
    assert!(!store.retention_has_stopped());
    assert_eq!(database.number("SELECT count(*) FROM sessions").await, 1);
}
