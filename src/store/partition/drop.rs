//! Taking partitions out of their tables, which needs the tables alone for a moment.

use std::time::Duration;

use sea_orm::{ConnectionTrait as _, DatabaseTransaction, DbErr};
use tokio::time::sleep;

use super::{Store, TABLES};
use crate::{
    error::{Error, Result},
    store::failure::{Cause, Failure},
};

/// How long everybody else may have to wait for a table that is being waited for.
const LOCK_FOR: &str = "SET LOCAL lock_timeout = '100ms'";

/// How often that is tried, and how long others have the tables to themselves in between. Somebody who reads for longer is left
/// alone until the next run: what would be done before, and taken back, is work for nothing, and indexers wait for its end.
const LOCK_ATTEMPTS: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(300);

/// Notes that a partition is dropped, or that rows are moved from one into another, for questions that are being answered.
/// To be done before the tables are locked, in all transactions in this order.
pub(in crate::store) async fn count_drop(tx: &DatabaseTransaction) -> Result<(), DbErr> {
    tx.execute_unprepared("UPDATE partition_drops SET count = count + 1").await.map(|_| ())
}

impl Store {
    /// Fails where somebody has tables with partitions for longer than a moment, as a dump has. Asked before anything is
    /// done that has to have them alone in the end. Holds nothing afterwards.
    pub(in crate::store) async fn partitions_are_free(&self) -> Result<(), Failure> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let tx = self.begin().await?;
            // The tables alone: whoever reads a partition through its table has both.
            let lock = format!("{LOCK_FOR}; LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE", TABLES.join(", ONLY "));
            let locked = tx.execute_unprepared(&lock).await;
            tx.rollback().await?;
            match locked {
                Ok(_) => return Ok(()),
                Err(error) if Cause::of(&error) != Cause::Contention => return Err(error.into()),
                Err(_) if attempt >= LOCK_ATTEMPTS => {
                    tracing::info!(
                        "somebody is at the tables of actions for long: their days are dropped another time"
                    );
                    // Not to be tried again at once.
                    return Err(Error::Contention.into());
                }
                Err(_) => sleep(LOCK_PAUSE).await,
            }
        }
    }
}

/// Takes partitions out of their tables as soon as nobody uses these, without making others wait for more than a moment.
pub(in crate::store) async fn detach(tx: &DatabaseTransaction, partitions: &[(&str, String)]) -> Result<(), DbErr> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        tx.execute_unprepared(&format!("SAVEPOINT detaching; {LOCK_FOR}")).await?;
        let detached = async {
            for (table, name) in partitions {
                tx.execute_unprepared(&format!("ALTER TABLE {table} DETACH PARTITION {name}")).await?;
            }
            Ok(())
        };
        match detached.await {
            Ok(()) => {
                tx.execute_unprepared("SET LOCAL lock_timeout = '2s'").await?;
                return Ok(());
            }
            Err(error) if Cause::of(&error) == Cause::Contention && attempt < LOCK_ATTEMPTS => {
                tx.execute_unprepared("ROLLBACK TO SAVEPOINT detaching").await?;
                sleep(LOCK_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}
