//! Applying a policy: by a service, or by hand.

use std::sync::atomic::Ordering;

use chrono::{DateTime, Utc};

use super::{RETENTION_LOCK, Store, share};
use crate::{
    error::{Error, Result},
    model::{ExpiredDay, ExpiryReason, RetentionPolicy, RetentionReport},
    store::lease::Lease,
};

/// Who applies a policy.
#[derive(Clone, Copy, Debug)]
enum Who {
    /// A service that has it.
    Service,
    /// Somebody, once.
    Hand,
    /// Somebody who has looked after services have stopped.
    Confirmation,
}

impl Store {
    /// Forgets what a policy does not keep, once, and says what went. Broken off, it leaves whole days or whole sessions. What
    /// services may take stays as it is.
    pub async fn retention_apply(&self, policy: &RetentionPolicy, now: DateTime<Utc>) -> Result<RetentionReport> {
        self.retention_apply_by(Who::Hand, policy, now).await
    }

    /// The same, where a service has stopped: somebody has looked, and the clock and the policy are right. All services go on
    /// from here.
    pub async fn retention_confirm(&self, policy: &RetentionPolicy, now: DateTime<Utc>) -> Result<RetentionReport> {
        self.retention_apply_by(Who::Confirmation, policy, now).await
    }

    /// The same, as a service does that has this policy: it stops where something is in doubt, and what it may not take
    /// any more follows.
    pub async fn retention_keep_up(&self, policy: &RetentionPolicy, now: DateTime<Utc>) -> Result<RetentionReport> {
        self.retention_apply_by(Who::Service, policy, now).await
    }

    async fn retention_apply_by(
        &self,
        who: Who,
        policy: &RetentionPolicy,
        now: DateTime<Utc>,
    ) -> Result<RetentionReport> {
        let lease = self.lease("retention", RETENTION_LOCK, now).await?;
        let Some(lease) = lease else { return Err(Error::RetentionRunning) };
        let report = Box::pin(self.retention_apply_claimed(who, policy, now, &lease)).await;
        lease.release().await;
        report
    }

    async fn retention_apply_claimed(
        &self,
        who: Who,
        policy: &RetentionPolicy,
        now: DateTime<Utc>,
        lease: &Lease,
    ) -> Result<RetentionReport> {
        let bytes_before = self.bytes_in_use().await?;
        let mut report = RetentionReport { bytes_before, ..RetentionReport::default() };
        // Whatever the archive says, what is to be forgotten is.
        let (mut archived, mut forgotten) = (Ok(()), Ok(()));
        let (days, is_sure) = self.days_to_go(who, policy, now, bytes_before).await.unwrap_or_else(|error| {
            forgotten = Err(error);
            (Vec::new(), false)
        });
        let mut is_in_use = false;
        for day in days {
            if day.reason == ExpiryReason::Archive {
                if archived.is_ok() {
                    archived = self.window_archive(day.window, lease).await.map(|gone| {
                        tracing::info!(days = %gone.window, sessions = gone.sessions, actions = gone.actions, bytes = gone.bytes, "sessions archived");
                        report.days.push(gone);
                    });
                }
                continue;
            }
            // Whoever has the tables for long has them for the other days, too: everybody would queue behind each try.
            if is_in_use && day.reason != ExpiryReason::Own {
                continue;
            }
            match self.day_forget(day, now).await {
                Ok(gone) => report.days.push(gone),
                Err(error) => {
                    is_in_use |= error == Error::Contention;
                    tracing::warn!(%error, days = %day.window, "sessions not expired, trying again later");
                    forgotten = forgotten.and(Err(error));
                }
            }
        }
        if report.days.iter().any(|day| day.reason != ExpiryReason::Archive) {
            match self.users_expire(policy, now).await {
                Ok(users) => report.users = users,
                Err(error) => forgotten = forgotten.and(Err(error)),
            }
        }
        // Whatever failed before: what is gone already must not stay where nobody looks.
        let cleaned = self.clean_up().await;
        let expired = if is_sure { self.tombstones_expire(now).await } else { Ok(()) };
        let tidied = self.segments_tidy(lease).await;
        forgotten.and(cleaned).and(expired).and(archived).and(tidied)?;
        report.bytes_after = self.bytes_in_use().await?;
        if !self.is_postgres() {
            // What came back is known of all days together only.
            let actions: i64 = report.days.iter().map(|day| day.actions).sum();
            let freed = (report.bytes_before - report.bytes_after).max(0);
            for day in &mut report.days {
                day.bytes = share(freed, day.actions, actions);
            }
        }
        Ok(report)
    }

    /// The days that a policy does not keep, after whoever applies it may do so, and what follows for others is written down; and
    /// whether the time may be believed in whatever else depends on it.
    async fn days_to_go(
        &self,
        who: Who,
        policy: &RetentionPolicy,
        now: DateTime<Utc>,
        bytes_in_use: i64,
    ) -> Result<(Vec<ExpiredDay>, bool)> {
        let days = self.expired_days(policy, now, bytes_in_use).await?;
        let mut is_sure = true;
        match who {
            Who::Hand => {}
            Who::Confirmation => self.applied_note(policy, now).await?,
            Who::Service => {
                is_sure = self.caution_check(policy, now, &days).await?;
                if is_sure {
                    self.horizon_move(policy, now).await?;
                }
            }
        }
        Ok((days, is_sure))
    }

    async fn day_forget(&self, day: ExpiredDay, now: DateTime<Utc>) -> Result<ExpiredDay> {
        let mut gone = ExpiredDay { sessions: 0, actions: 0, bytes: 0, ..day };
        if day.reason != ExpiryReason::Own && self.has_partitions(day.window).await? {
            gone = self.window_drop(day, now).await?;
        } else {
            self.window_erase(&mut gone, now).await?;
        }
        self.has_erased.store(true, Ordering::Release);
        tracing::info!(days = %gone.window, sessions = gone.sessions, actions = gone.actions, bytes = gone.bytes, "sessions expired");
        Ok(gone)
    }
}
