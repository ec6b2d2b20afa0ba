//! Whether the service can do its work: once the database is migrated, while it answers, and until the end is asked for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService as Reporter},
};

use crate::{
    model::RetentionPolicy,
    proto::{DESCRIPTORS, retention_service_server},
    store::{Store, Unfit},
};

/// The standard health service.
pub(super) type HealthService = HealthServer<Reporter>;

/// How often the database is asked whether it can do its work.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What health is told of: "" is the service as a whole, and then everything that the descriptors describe.
fn names() -> Vec<String> {
    let descriptors =
        FileDescriptorSet::decode(DESCRIPTORS).unwrap_or_else(|error| unreachable!("our own descriptors: {error}"));
    let mut names = vec![String::new()];
    for file in descriptors.file.iter().filter(|file| file.package().starts_with("reel.")) {
        names.extend(file.service.iter().map(|service| format!("{}.{}", file.package(), service.name())));
    }
    names
}

/// Watches the database and tells health.
pub(super) struct Health {
    store: Store,
    reporter: HealthReporter,
    prepared: Arc<AtomicBool>,
}

impl Health {
    /// Says NOT_SERVING from the first request on; the reporter by itself begins with SERVING.
    pub(super) async fn new(store: Store) -> (Self, HealthService) {
        let reporter = HealthReporter::new();
        let service = HealthServer::new(Reporter::from_health_reporter(reporter.clone()));
        let health = Self { store, reporter, prepared: Arc::default() };
        health.set_not_serving().await;
        (health, service)
    }

    /// Becomes true once the database is migrated, and stays so.
    pub(super) fn readiness(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.prepared)
    }

    pub(super) async fn set_not_serving(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    async fn set(&self, status: ServingStatus) {
        let forgets = !self.store.retention_has_stopped();
        for name in names() {
            let does = forgets || name != retention_service_server::SERVICE_NAME;
            let status = if does { status } else { ServingStatus::NotServing };
            self.reporter.set_service_status(name, status).await;
        }
    }

    /// Makes the database ready, for as long as that takes, and says in it what the retention is. Fails if waiting cannot help.
    pub(super) async fn prepare(&self, policy: &RetentionPolicy) -> Result<(), Unfit> {
        loop {
            match self.store.prepare().await.and_then(|()| self.store.check_clock()) {
                Ok(()) => break,
                Err(unfit) if unfit.is_passing() => {
                    tracing::warn!(error = %unfit, "the database is not ready, trying again");
                    sleep(ASK_EVERY).await;
                }
                Err(unfit) => return Err(unfit),
            }
        }
        // Before any session is taken that others would not.
        while let Err(error) = self.store.retention_announce(policy).await {
            tracing::warn!(%error, "the database does not take the retention, trying again");
            sleep(ASK_EVERY).await;
        }
        self.prepared.store(true, Ordering::Release);
        self.set(ServingStatus::Serving).await;
        tracing::info!("serving");
        Ok(())
    }

    /// Tells health whether the database answers and takes what is written, and whether retention has stopped, for ever. That the clock has come to differ from
    /// the database's is only said: nothing goes by it, and when it is the database's that is wrong, recording must go on.
    pub(super) async fn watch(&self) {
        let mut ticks = interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut answered, mut had_stopped, mut was_right) = (true, false, true);
        loop {
            ticks.tick().await;
            let answers = self.store.probe().await.is_ok();
            let has_stopped = self.store.retention_has_stopped();
            let status = if answers { ServingStatus::Serving } else { ServingStatus::NotServing };
            if answers != answered {
                tracing::warn!(%status, "the database has come or gone");
            }
            if (answers, has_stopped) != (answered, had_stopped) {
                (answered, had_stopped) = (answers, has_stopped);
                self.set(status).await;
            }
            let clock = self.store.check_clock();
            if clock.is_ok() != was_right {
                was_right = clock.is_ok();
                match clock {
                    Ok(()) => tracing::info!("the clock of this process agrees with the database's again"),
                    Err(error) => tracing::warn!(%error, "the clocks do not agree"),
                }
            }
        }
    }
}
