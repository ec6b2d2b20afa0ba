//! Outages: the database is there and does not work. Within 5 s health says so, senders are told to come back with
//! UNAVAILABLE and RetryInfo; within 10 s after the cause has ended writing goes on by itself; and nothing that was
//! acknowledged is lost. The service is a real process, PostgreSQL a server of the test's own.

mod full_disk;
mod sender;

use std::time::{Duration, Instant};

use tonic::Code;
use tonic_health::ServingStatus;

use self::sender::{Senders, ask_for_cursor, check_content, session};
use crate::{
    crash::{postgres::Postgres, process::Process},
    harness::{Reel, TestDatabase, eventually, reason},
};

/// How soon after its cause health has to fall.
const HEALTH_FALLS_WITHIN: Duration = Duration::from_secs(5);

/// How soon after the end of its cause writing has to go on, and health has to say so.
const RESUMES_WITHIN: Duration = Duration::from_secs(10);

/// A service under load.
struct Disturbed {
    database: TestDatabase,
    server: Process,
    senders: Senders,
}

impl Disturbed {
    async fn start(database: TestDatabase) -> Self {
        let server = Process::serve(&database.url, &[]).await;
        let senders = Senders::start(server.address);
        senders.all_get_on().await;
        Self { database, server, senders }
    }

    /// Waits until health has fallen, which has to be soon after this moment.
    async fn health_falls(&self, cause_began: Instant) {
        eventually("health falls", async || self.server.health().await == Some(ServingStatus::NotServing)).await;
        let fell_after = cause_began.elapsed();
        assert!(fell_after <= HEALTH_FALLS_WITHIN, "health fell after {fell_after:?}");
    }

    /// Waits until everybody can write again, which has to be soon after this moment.
    async fn resumes(&self, cause_ended: Instant) {
        self.senders.all_get_on().await;
        let wrote_after = cause_ended.elapsed();
        eventually("health rises", async || self.server.health().await == Some(ServingStatus::Serving)).await;
        let served_after = cause_ended.elapsed();
        assert!(wrote_after <= RESUMES_WITHIN, "writing went on after {wrote_after:?}");
        assert!(served_after <= RESUMES_WITHIN, "health rose after {served_after:?}");
    }

    /// Nothing can be read either, and whoever asks is told so.
    async fn reads_are_refused_too(&self) {
        let refused = ask_for_cursor(self.server.address).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "DATABASE_UNAVAILABLE"));
    }

    /// Ends the senders, and checks that what is stored is what they have sent: everything has a receipt by now.
    async fn check(mut self) {
        assert!(self.server.is_running());
        let acknowledged = self.senders.finish().await;
        self.server.kill().await;
        let reel = Reel::start_on(&self.database, &[]).await;
        for (number, acknowledged) in acknowledged.into_iter().enumerate() {
            let stored = reel.play_all(&session(number)).await;
            assert_eq!(i64::try_from(stored.len()).unwrap(), acknowledged, "session {number}");
            check_content(number, &stored);
        }
        reel.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_is_paused_is_waited_for() {
    let postgres = Postgres::start().await;
    let disturbed = Disturbed::start(postgres.database("reel").await).await;
    for _ in 0..2 {
        let began = Instant::now();
        postgres.pause();
        disturbed.health_falls(began).await;
        disturbed.senders.all_are_refused().await;
        disturbed.reads_are_refused_too().await;
        let ended = Instant::now();
        postgres.resume();
        disturbed.resumes(ended).await;
    }
    disturbed.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_is_restarted_is_waited_for() {
    let mut postgres = Postgres::start().await;
    let disturbed = Disturbed::start(postgres.database("reel").await).await;
    for _ in 0..2 {
        let began = Instant::now();
        postgres.stop();
        disturbed.health_falls(began).await;
        disturbed.senders.all_are_refused().await;
        disturbed.reads_are_refused_too().await;
        postgres.start_again().await;
        disturbed.resumes(Instant::now()).await;
    }
    disturbed.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_is_read_only_takes_no_senders_and_goes_on_answering() {
    let postgres = Postgres::start().await;
    let disturbed = Disturbed::start(postgres.database("reel").await).await;
    for _ in 0..2 {
        let began = Instant::now();
        postgres.set("default_transaction_read_only", "on").await;
        disturbed.health_falls(began).await;
        disturbed.senders.all_are_refused().await;
        assert!(ask_for_cursor(disturbed.server.address).await.unwrap() > 0);
        let ended = Instant::now();
        postgres.set("default_transaction_read_only", "off").await;
        disturbed.resumes(ended).await;
    }
    disturbed.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_has_no_connection_to_give_is_waited_for() {
    let mut postgres = Postgres::start().await;
    postgres.set_and_restart("max_connections", "40").await;
    let disturbed = Disturbed::start(postgres.database("reel").await).await;
    for _ in 0..2 {
        let taken = postgres.take_all_connections().await;
        let began = Instant::now();
        disturbed.health_falls(began).await;
        disturbed.senders.all_are_refused().await;
        disturbed.reads_are_refused_too().await;
        drop(taken);
        disturbed.resumes(Instant::now()).await;
    }
    disturbed.check().await;
}
