//! The real program as a process of its own.

use std::{
    net::SocketAddr,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rand::RngExt as _;
use tokio::process::{Child, Command};
use tonic::transport::Endpoint;
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
};

use crate::harness::eventually;

/// `reel serve`. Killed when it is dropped.
pub struct Process {
    pub address: SocketAddr,
    command: Command,
    child: Child,
}

/// A port that nobody listens on. Not one that the kernel gives to outgoing connections: it must still be free when a killed
/// server is started again.
pub fn free_port() -> u16 {
    loop {
        let port = rand::rng().random_range(10_000..20_000);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The program with these arguments, and nothing of the environment that could change what it does.
pub fn reel(arguments: &[&str]) -> Command {
    reel_under(&[], arguments)
}

/// The same, started by another program, which it takes the place of.
fn reel_under(program: &[&str], arguments: &[&str]) -> Command {
    let words: Vec<_> = program.iter().copied().chain([env!("CARGO_BIN_EXE_reel")]).collect();
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .args(arguments)
        .env_clear()
        .env("RUST_LOG", "warn")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Sends a signal to a process.
pub fn signal(name: &str, pid: &str) {
    assert!(try_signal(name, pid), "SIG{name} to {pid}");
}

/// Sends a signal to a process that may be gone. By the shell: it is everywhere, and the program `kill` is not. Gives whether
/// the process was there.
pub fn try_signal(name: &str, pid: &str) -> bool {
    std::process::Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap().success()
}

impl Process {
    /// Serves this database, and waits until it does.
    pub async fn serve(database_url: &str, arguments: &[&str]) -> Self {
        Self::serve_under(&[], database_url, arguments).await
    }

    /// The same, started by another program, which it takes the place of.
    pub async fn serve_under(program: &[&str], database_url: &str, arguments: &[&str]) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command =
            reel_under(program, &["serve", "--listen", &address.to_string(), "--database-url", database_url]);
        // Tests have sessions of all ages.
        command.args(["--retention", "0"]).args(arguments);
        let child = command.spawn().unwrap();
        let mut process = Self { address, command, child };
        process.wait_until_serving().await;
        process
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    pub async fn start_again(&mut self) {
        self.begin_again();
        self.wait_until_serving().await;
    }

    /// Starts it again without waiting until it serves.
    pub fn begin_again(&mut self) {
        self.child = self.command.spawn().unwrap();
    }

    /// Starts it again to die at this place, which may be before it serves.
    pub fn begin_again_to_die_at(&mut self, place: &str) {
        self.command.env("REEL_DIE_AT", place);
        self.begin_again();
    }

    /// Starts it again, to die where it gets to this place (`failpoint::reach`), or nowhere.
    pub async fn start_again_to_die_at(&mut self, place: Option<&str>) {
        self.command.env_remove("REEL_DIE_AT").envs(place.map(|place| ("REEL_DIE_AT", place)));
        self.start_again().await;
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        signal("TERM", &self.id().to_string());
    }

    /// Waits until it has ended by itself.
    pub async fn exited(&mut self) -> ExitStatus {
        let exit = tokio::time::timeout(Duration::from_mins(1), self.child.wait()).await;
        exit.expect("the process ends").unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What it says of itself. None where it cannot be asked.
    pub async fn health(&self) -> Option<ServingStatus> {
        let channel = Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.ok()?;
        let mut client = HealthClient::new(channel);
        let response = client.check(HealthCheckRequest { service: String::new() }).await.ok()?;
        let is_serving = response.into_inner().status == ServingStatus::Serving as i32;
        Some(if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing })
    }

    pub async fn wait_until_serving(&mut self) {
        eventually("the process serves", async || {
            assert!(self.is_running(), "the server has given up");
            self.health().await == Some(ServingStatus::Serving)
        })
        .await;
    }
}
