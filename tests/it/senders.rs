//! Senders that never give up, for tests in which everything else does: what has no receipt is sent again until it has one.
//! Each sends session after session, of which each has two tracks, in every way there is to send.

mod outcome;
mod script;
mod sender;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use reel::proto::{GetIngestCursorRequest, ingest_service_client::IngestServiceClient};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use self::sender::Sender;
pub use self::{
    outcome::Sent,
    script::{Place, Script, TRACKS, check_content},
};
use crate::harness::{connect, reason};

/// How many senders there are.
pub const SENDERS: usize = 5;

/// What the senders have to put up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    None,
    /// Connections break, and what comes back may not be ready yet.
    ServerMayGoAway,
    /// The stream is drained, and that is that.
    ServerEnds,
    /// Calls fail with UNAVAILABLE, connections never do.
    DatabaseMayGoAway,
    /// Connections break, or nothing comes any more.
    NetworkMayFail,
    /// The same between the server and its database: calls fail with UNAVAILABLE.
    DatabaseNetworkMayFail,
}

impl Trouble {
    /// The reasons for which calls may fail.
    fn reasons(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::ServerMayGoAway => &["TRANSPORT", "NOT_READY"],
            Self::ServerEnds => &["DRAINING"],
            Self::DatabaseMayGoAway => &["DATABASE_UNAVAILABLE"],
            Self::NetworkMayFail => &["TRANSPORT"],
            Self::DatabaseNetworkMayFail => &["DATABASE_UNAVAILABLE", "CONTENTION"],
        }
    }

    /// How long to wait for an answer before it is taken for lost.
    pub fn patience(self) -> Duration {
        if self == Self::NetworkMayFail { Duration::from_secs(3) } else { Duration::from_mins(1) }
    }

    /// Checks that a call may fail like this.
    pub fn check(self, status: &Status) {
        let reason = if status.details().is_empty() { "TRANSPORT".to_owned() } else { reason(status) };
        assert!(self.reasons().contains(&reason.as_str()), "{status:?}");
        assert!(reason == "TRANSPORT" || status.code() == Code::Unavailable, "{status:?}");
    }
}

/// What has come back of one session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Acknowledged {
    /// The cursors that receipts have told.
    pub cursors: [i64; TRACKS.len()],
    /// Whether its end has a receipt.
    pub ended: bool,
}

/// What has come back of each session that a sender has begun.
type Progress = Arc<Mutex<Vec<Acknowledged>>>;

/// How many actions are acknowledged to a sender.
fn count(progress: &Progress) -> i64 {
    progress.lock().unwrap().iter().flat_map(|session| session.cursors).sum()
}

/// All senders of a test.
pub struct Senders {
    script: Script,
    progress: Vec<Progress>,
    sending: Vec<JoinHandle<()>>,
}

impl Drop for Senders {
    fn drop(&mut self) {
        self.sending.iter().for_each(JoinHandle::abort);
    }
}

impl Senders {
    /// Starts senders that send sessions until they are stopped.
    pub fn start(address: SocketAddr, trouble: Trouble, script: Script) -> Self {
        Self::send(address, trouble, script, [None; SENDERS])
    }

    /// Sends these sessions from their beginnings to their ends, whatever is stored of them already.
    pub async fn send_again(address: SocketAddr, trouble: Trouble, sent: &Sent) {
        let sessions: Vec<_> = sent.sessions.iter().map(|sessions| Some(sessions.len())).collect();
        Self::send(address, trouble, sent.script, sessions).all_done().await;
    }

    fn send(
        address: SocketAddr,
        trouble: Trouble,
        script: Script,
        sessions: impl IntoIterator<Item = Option<usize>>,
    ) -> Self {
        let mut senders = Self { script, progress: Vec::new(), sending: Vec::new() };
        for (number, sessions) in sessions.into_iter().enumerate() {
            let progress = Progress::default();
            let sender = Sender::new(number, address, trouble, script, sessions, Arc::clone(&progress));
            senders.progress.push(progress);
            senders.sending.push(tokio::spawn(sender.send()));
        }
        senders
    }

    /// Waits until something more is acknowledged.
    pub async fn get_on(&self) {
        let before = self.acknowledged();
        self.wait_until(|| self.acknowledged() > before).await;
    }

    /// Waits until every sender has something more acknowledged.
    pub async fn all_get_on(&self) {
        let each = || self.progress.iter().map(count);
        let before: Vec<_> = each().collect();
        self.wait_until(|| each().zip(&before).all(|(now, before)| now > *before)).await;
    }

    async fn wait_until(&self, is_so: impl Fn() -> bool) {
        let wait = async {
            while !is_so() {
                assert!(!self.sending.iter().any(JoinHandle::is_finished), "a sender has given up");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), wait).await.expect("the senders get on");
    }

    /// How many actions are acknowledged.
    fn acknowledged(&self) -> i64 {
        self.progress.iter().map(count).sum()
    }

    /// Stops the senders in the middle of what they are doing.
    pub async fn stop(mut self) -> Sent {
        for sending in self.sending.drain(..) {
            sending.abort();
            match sending.await {
                Ok(()) => panic!("a sender was done"),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            }
        }
        self.sent()
    }

    /// Waits until every sender was told that the server ends.
    pub async fn broken_off(mut self) -> Sent {
        self.all_done().await;
        self.sent()
    }

    async fn all_done(&mut self) {
        for sending in self.sending.drain(..) {
            sending.await.unwrap();
        }
    }

    fn sent(&self) -> Sent {
        let sessions = self.progress.iter().map(|progress| progress.lock().unwrap().clone()).collect();
        Sent { script: self.script, sessions }
    }
}

/// Asks for the cursors of the first session.
pub async fn ask_for_cursor(address: SocketAddr) -> Result<(), Status> {
    let request = GetIngestCursorRequest { session_id: Place { sender: 0, number: 0 }.session(), ..Default::default() };
    IngestServiceClient::new(connect(address).await).get_ingest_cursor(request).await?;
    Ok(())
}
