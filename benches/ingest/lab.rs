//! A PostgreSQL database, a service on it, and the same workload brought in by either way.

use std::{future::Future, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use reel::model::SessionId;
use sea_orm::sqlx::{Connection as _, Executor as _, PgConnection, query, query_scalar};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::support::{
    Result,
    accounting::{Cpu, cpu},
    copy::Copiers,
    postgres::Postgres,
    reel::Reel,
    sender::{Rpc, Upload, check_stored, start_sessions},
    workload::{LIVE_SESSIONS, Plan, Workload},
};

/// Connections of all senders together.
const CONNECTIONS: usize = 8;

/// A database and the service on it.
pub struct Lab {
    pub reel: Reel,
    pub url: String,
    pub channels: Vec<Channel>,
    /// For what belongs to neither way.
    pub connection: PgConnection,
    copiers: Copiers,
    postmaster: u32,
}

/// What one way of bringing in a workload took.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub actions: f64,
    took: Duration,
    cpu: Cpu,
    wal_bytes: f64,
}

impl Measured {
    pub fn rate(&self) -> f64 {
        self.actions / self.took.as_secs_f64()
    }

    pub fn cpu_us_an_action(&self, side: impl Fn(&Cpu) -> f64) -> f64 {
        side(&self.cpu) * 1e6 / self.actions
    }

    pub fn wal_bytes_an_action(&self) -> f64 {
        self.wal_bytes / self.actions
    }
}

/// A workload of sessions that began a little while ago.
pub fn workload(seed: u64, senders: usize, batch: usize, actions: usize) -> Arc<Workload> {
    let started = an_hour_ago();
    Arc::new(Workload::generate(&Plan { seed, actions, senders, batch, live: LIVE_SESSIONS, session: None, started }))
}

/// When the sessions that are live now began.
pub fn an_hour_ago() -> (DateTime<Utc>, DateTime<Utc>) {
    let now = Utc::now();
    (now - TimeDelta::minutes(60), now - TimeDelta::minutes(30))
}

impl Lab {
    pub async fn open(postgres: &Postgres, database: &str) -> Result<Self> {
        let url = postgres.database(database).await?;
        let reel = Reel::serve(&url).await?;
        let channels = reel.connect(CONNECTIONS).await?;
        let connection = PgConnection::connect(&url).await?;
        let copiers = Copiers::connect(&url).await?;
        Ok(Self { reel, url, channels, connection, copiers, postmaster: postgres.pid() })
    }

    /// By the service. Starting the sessions is not part of what is measured.
    pub async fn send(&mut self, rpc: Rpc, workload: &Arc<Workload>) -> Result<(Measured, Vec<SessionId>)> {
        let ids = workload.mint();
        let upload = Upload::new(rpc, workload, &ids);
        start_sessions(&self.channels, &ids).await?;
        let channels = self.channels.clone();
        let measured = self.measure(workload, upload.send(&channels)).await?;
        check_stored(&mut self.connection, &ids, workload.actions()).await?;
        Ok((measured, ids))
    }

    /// By COPY alone. There is no session: nothing refers to one.
    pub async fn copy(&mut self, workload: &Arc<Workload>) -> Result<Measured> {
        let ids = workload.mint();
        let mut copiers = std::mem::take(&mut self.copiers);
        let measured = self.measure(workload, copiers.copy(workload, &ids)).await?;
        self.copiers = copiers;
        check_stored(&mut self.connection, &ids, workload.actions()).await?;
        Ok(measured)
    }

    async fn measure(&mut self, workload: &Workload, way: impl Future<Output = Result<Duration>>) -> Result<Measured> {
        let server = self.reel.pid()?;
        let (wal_before, cpu_before) = (self.wal_bytes().await?, cpu(server, Some(self.postmaster))?);
        let took = way.await?;
        let (cpu, wal) = (cpu(server, Some(self.postmaster))? - cpu_before, self.wal_bytes().await? - wal_before);
        Ok(Measured { actions: workload.actions() as f64, took, cpu, wal_bytes: wal })
    }

    async fn wal_bytes(&mut self) -> Result<f64> {
        let sql = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8";
        Ok(query_scalar(sql).fetch_one(&mut self.connection).await?)
    }

    /// Makes every measurement begin alike: with an empty table and no dirty pages.
    pub async fn empty(&mut self) -> Result<()> {
        self.connection.execute("TRUNCATE actions").await?;
        self.connection.execute("CHECKPOINT").await?;
        Ok(())
    }

    /// The same where much is stored already: removes what was measured with, and leaves no room where it was.
    pub async fn forget(&mut self, ids: &[SessionId]) -> Result<()> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
        query("DELETE FROM actions WHERE session_id = ANY($1)").bind(&ids).execute(&mut self.connection).await?;
        self.connection.execute("VACUUM actions").await?;
        self.connection.execute("CHECKPOINT").await?;
        Ok(())
    }
}
