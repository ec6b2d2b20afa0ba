//! Processes whose clocks are wrong: what they must not do with it.

use chrono::{DateTime, TimeDelta, Utc};
use reel::{
    proto::{ApplyRetentionRequest, SessionStart, retention_service_client::RetentionServiceClient},
    store::{Store, Unfit},
};
use tonic_health::pb::health_check_response::ServingStatus;

use super::listed;
use crate::{
    exact::wait_until_indexed,
    harness::{Backend, Reel, TestDatabase, batch, clicks, eventually, service_args, start},
};

/// A service that keeps sessions for some days, on a machine whose clock is ahead by so much.
async fn start_ahead(database: &TestDatabase, arguments: &[&str], ahead: TimeDelta) -> Reel {
    let store = Store::open(&database.url.parse().unwrap(), 4).await.unwrap();
    store.clock_shift(ahead);
    Reel::start_with(store, service_args(arguments)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_clock_is_off_by_more_than_a_minute_is_not_ready() {
    let database = TestDatabase::new(Backend::Postgres).await;
    for seconds in [63, -63] {
        let reel = start_ahead(&database, &[], TimeDelta::seconds(seconds)).await;
        eventually("the clock is compared", async || reel.store.clock_error().is_some()).await;
        let Err(unfit) = reel.store.check_clock() else { panic!("{seconds} s are too many") };
        assert!(matches!(unfit, Unfit::ClockWrong { .. }) && unfit.is_passing(), "{unfit}");
        assert_eq!(reel.health().await, ServingStatus::NotServing);
        assert!(reel.send(start("", SessionStart::default())).await.is_err());
        // Somebody sets it right, or nearly so.
        reel.store.clock_shift(TimeDelta::seconds(seconds.signum() * 40));
        reel.wait_until_serving().await;
        // Later it may go wrong again: what is recorded has the database's time.
        reel.store.clock_shift(TimeDelta::seconds(seconds));
        eventually("the clock is compared again", async || reel.store.clock_error().is_some()).await;
        reel.send(start("", SessionStart::default())).await.unwrap();
        reel.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_goes_wrong_forgets_ends_and_hides_nothing() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let indexer = Reel::start_on(&database, &[]).await;
    let wrong = Reel::start_on(&database, &["--retention", "3days", "--indexer", "off"]).await;
    let mut retention = RetentionServiceClient::new(wrong.channel.clone());
    let mut ids = vec![indexer.start_session().await];
    for ahead in [TimeDelta::hours(1), TimeDelta::days(60), TimeDelta::days(-60)] {
        wrong.store.clock_shift(ahead);
        eventually("the clock is compared", async || wrong.store.clock_error().is_some()).await;
        assert!((wrong.store.now() - Utc::now()).abs() < TimeDelta::minutes(1));
        let id = wrong.start_session().await;
        wrong.record(vec![batch(&id, "", 1, clicks(0..3))]).await.unwrap();
        let session = wrong.get(&id).await.unwrap();
        let started = session.start_time.unwrap();
        let started = DateTime::from_timestamp(started.seconds, 0).unwrap();
        assert!((started - Utc::now()).abs() < TimeDelta::minutes(1), "{started}");
        ids.push(id);
        // The other process, whose clock is right, finds it quiet at once.
        wait_until_indexed(&database).await;
        let gone = retention.apply_retention(ApplyRetentionRequest {}).await.unwrap().into_inner().report.unwrap();
        assert_eq!(gone.session_count, 0);
        let idle = wrong.store.session_end_idle(wrong.store.now() - TimeDelta::minutes(30), 100).await.unwrap();
        assert!(idle.is_empty());
    }
    ids.sort_unstable_by(|one, other| other.cmp(one));
    assert_eq!(listed(&wrong).await, ids);
    wrong.stop().await;
    indexer.stop().await;
}
