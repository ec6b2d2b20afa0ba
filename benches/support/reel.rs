//! The program under test, as a process of its own, with its defaults, but that it keeps all sessions.

use std::{fs::File, path::Path, process::Stdio, time::Duration};

use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
};

use super::{Failure, Result, postgres::free_port};

/// `reel serve`. Killed when it is dropped.
pub struct Reel {
    url: String,
    child: Child,
    /// Where its log goes.
    _folder: TempDir,
}

impl Reel {
    /// Serves this database, and waits until it does.
    pub async fn serve(database_url: &str) -> Result<Self> {
        Self::serve_with(database_url, &[]).await
    }

    /// The same with further arguments.
    pub async fn serve_with(database_url: &str, arguments: &[&str]) -> Result<Self> {
        let folder = TempDir::new()?;
        let log = folder.path().join("log");
        let address = format!("127.0.0.1:{}", free_port()?);
        let child = command(&log)?
            // Sessions are of any age.
            .args(["serve", "--listen", &address, "--database-url", database_url, "--retention", "0"])
            .args(arguments)
            .kill_on_drop(true)
            .spawn()?;
        let mut reel = Self { url: format!("http://{address}"), child, _folder: folder };
        let give_up_at = Instant::now() + Duration::from_secs(30);
        while !reel.is_serving().await {
            if reel.child.try_wait()?.is_some() || Instant::now() > give_up_at {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                return Err(format!("the service does not start:\n{log}").into());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(reel)
    }

    async fn is_serving(&self) -> bool {
        let Ok(channels) = self.connect(1).await else { return false };
        let request = HealthCheckRequest { service: String::new() };
        let answer = HealthClient::new(channels[0].clone()).check(request).await;
        answer.is_ok_and(|answer| answer.into_inner().status == ServingStatus::Serving as i32)
    }

    /// Opens connections. Streams that share one are told apart by HTTP/2; its windows are what tonic takes by default (5 MB a
    /// connection, 2 MB a stream), more than any of these streams has under way.
    pub async fn connect(&self, count: usize) -> Result<Vec<Channel>> {
        let mut channels = Vec::new();
        for _ in 0..count {
            channels.push(Endpoint::from_shared(self.url.clone())?.connect().await?);
        }
        Ok(channels)
    }

    pub fn pid(&self) -> Result<u32> {
        self.child.id().ok_or_else(|| Failure::from("the service has ended"))
    }

    /// Ends it as an operator would, by SIGTERM.
    pub async fn stop(mut self) -> Result<()> {
        let pid = self.pid()?;
        Command::new("sh").args(["-c", &format!("kill -TERM {pid}")]).status().await?;
        let status = self.child.wait().await?;
        if status.success() { Ok(()) } else { Err(format!("the service ended with {status}").into()) }
    }
}

/// Brings the schema of a database up to date.
pub async fn migrate(database_url: &str) -> Result<()> {
    let folder = TempDir::new()?;
    let log = folder.path().join("log");
    let status = command(&log)?.args(["migrate", "--database-url", database_url]).status().await?;
    if status.success() { Ok(()) } else { Err(std::fs::read_to_string(log)?.into()) }
}

/// The program, and nothing of the environment that could change what it does. It writes its log as always.
fn command(log: &Path) -> Result<Command> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reel"));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(log)?);
    Ok(command)
}
