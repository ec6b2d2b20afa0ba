//! Leases: what one process at a time does, and must not do once another has begun to.
//!
//! Whoever has a lease renews it, and checks it in the transactions that matter: there its row is locked, so that nobody can
//! take it before they end. A lock of PostgreSQL, on a connection of its own, says besides at once when a process has died; but
//! such a connection may break unnoticed, and its process goes on. Whoever gets the lock takes the lease from it, and it finds
//! out at its next check. On SQLite a dead process's lease ends by time, and at once where that is further off than any can be.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait as _, DatabaseTransaction, DbErr, EntityTrait as _, ExprTrait as _, QueryFilter as _, Set,
    sea_query::{Expr, OnConflict},
};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::{
    Store,
    claim::Claim,
    entity::lease,
    failure::{Cause, Failure},
};
use crate::error::{Error, Result};

/// How long a lease lasts that is not renewed, and how often it is.
const LASTS: TimeDelta = TimeDelta::seconds(20);
const RENEWED_EVERY: Duration = Duration::from_secs(5);

/// How far a lease may end beyond what it lasts. If it does by more, it was taken by a clock that was wrong: who has it renews it
/// by the right one.
const SLACK: TimeDelta = TimeDelta::seconds(10);

/// A lease that this process has, as long as it can be checked.
pub(super) struct Lease {
    store: Store,
    name: &'static str,
    holder: Uuid,
    /// The time that it was asked for at, and when that was.
    began: (DateTime<Utc>, Instant),
    claim: Option<Claim>,
    _renewing: AbortOnDropHandle<()>,
}

impl Store {
    /// Takes a lease, and the lock that goes with it on PostgreSQL. None if another has it. `now` is the time for what is done
    /// under it.
    pub(super) async fn lease(&self, name: &'static str, lock: i64, now: DateTime<Utc>) -> Result<Option<Lease>> {
        let Some(claim) = self.claim(lock).await? else { return Ok(None) };
        let holder = Uuid::now_v7();
        let taken = match self.lease_take(name, holder).await {
            Ok(taken) => Ok(taken),
            // Whoever has it is in a transaction that needs it.
            Err(error) if Cause::of(&error) == Cause::Contention => Ok(false),
            Err(error) => Err(error),
        };
        if !matches!(taken, Ok(true)) {
            claim.release().await;
            taken?;
            return Ok(None);
        }
        let renewing = AbortOnDropHandle::new(tokio::spawn(self.clone().lease_renew(name, holder)));
        let (store, began) = (self.clone(), (now, Instant::now()));
        Ok(Some(Lease { store, name, holder, began, claim: Some(claim), _renewing: renewing }))
    }

    async fn lease_take(&self, name: &'static str, holder: Uuid) -> Result<bool, DbErr> {
        let now = self.now();
        let row = lease::ActiveModel { name: Set(name.to_owned()), holder: Set(holder), until: Set(now + LASTS) };
        let mut taken = OnConflict::column(lease::Column::Name);
        taken.update_columns([lease::Column::Holder, lease::Column::Until]);
        if !self.is_postgres() {
            let until = || Expr::col((lease::Entity, lease::Column::Until));
            taken.action_and_where(until().lt(now).or(until().gt(now + LASTS + SLACK)));
        }
        let inserted = lease::Entity::insert(row).on_conflict(taken).exec_without_returning(&self.write).await?;
        Ok(inserted == 1)
    }

    /// Renews a lease until another has it.
    async fn lease_renew(self, name: &'static str, holder: Uuid) {
        loop {
            tokio::time::sleep(RENEWED_EVERY).await;
            let renewed = lease::Entity::update_many()
                .col_expr(lease::Column::Until, Expr::value(self.now() + LASTS))
                .filter(lease::Column::Name.eq(name))
                .filter(lease::Column::Holder.eq(holder))
                .exec(&self.write)
                .await;
            match renewed {
                Ok(renewed) if renewed.rows_affected == 0 => return tracing::warn!(lease = name, "a lease was lost"),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, lease = name, "a lease is not renewed, trying again"),
            }
        }
    }

    async fn lease_give_back(&self, name: &'static str, holder: Uuid) {
        let held = lease::Entity::delete_many().filter(lease::Column::Name.eq(name));
        if let Err(error) = held.filter(lease::Column::Holder.eq(holder)).exec(&self.write).await {
            tracing::debug!(%error, lease = name, "a lease is not given back, and ends by itself");
        }
    }
}

impl Lease {
    /// What time it is for what is done under the lease: that which it was taken at, and what has passed since.
    pub(super) fn now(&self) -> DateTime<Utc> {
        let (now, then) = self.began;
        let passed = TimeDelta::from_std(then.elapsed()).unwrap_or(TimeDelta::MAX);
        now.checked_add_signed(passed).unwrap_or(now)
    }

    /// Fails if another has taken the lease. Nobody can, until the transaction ends.
    pub(super) async fn check_in_txn(&self, tx: &DatabaseTransaction) -> Result<(), Failure> {
        let held = lease::Entity::update_many()
            .col_expr(lease::Column::Until, Expr::value(self.store.now() + LASTS))
            .filter(lease::Column::Name.eq(self.name))
            .filter(lease::Column::Holder.eq(self.holder));
        let is_held = held.exec(tx).await?.rows_affected == 1;
        if is_held { Ok(()) } else { Err(Error::RetentionRunning.into()) }
    }

    /// Gives it up.
    pub(super) async fn release(mut self) {
        if let Some(claim) = self.claim.take() {
            self.store.lease_give_back(self.name, self.holder).await;
            claim.release().await;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Broken off: others need not wait for its end.
        let (Some(claim), Ok(runtime)) = (self.claim.take(), tokio::runtime::Handle::try_current()) else { return };
        let (store, name, holder) = (self.store.clone(), self.name, self.holder);
        runtime.spawn(async move {
            store.lease_give_back(name, holder).await;
            claim.release().await;
        });
    }
}
