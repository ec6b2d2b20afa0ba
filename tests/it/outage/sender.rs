//! Senders that send until they are told that it is enough, one batch after the other, and try again when they are told to.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use reel::proto::{Action, GetIngestCursorRequest, SessionStart, ingest_service_client::IngestServiceClient};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};

use crate::harness::{NOON_MS, action, batch, connect, eventually, reason, start, streamed};

/// How many senders there are, each with a session of its own.
const SENDERS: usize = 4;

/// How many actions a batch has.
const BATCH: i64 = 20;

/// How a sender fares.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// Up to where receipts have come.
    acknowledged: i64,
    refusals: i64,
    last_refusal: Option<Instant>,
    enough: bool,
}

/// All senders of a test, each with a session of its own.
pub struct Senders {
    progress: Vec<Arc<Mutex<Progress>>>,
    sending: Vec<JoinHandle<()>>,
}

struct Sender {
    number: usize,
    progress: Arc<Mutex<Progress>>,
}

/// The session of a sender: the same at every run.
pub fn session(number: usize) -> String {
    let started_at = chrono::DateTime::from_timestamp_millis(NOON_MS).unwrap();
    reel::model::SessionId::from_parts(started_at, [u8::try_from(number).unwrap(); 10]).to_string()
}

/// What a sender sends as this seq: the same at every run.
fn recorded(number: usize, seq: i64) -> Action {
    let kind = ["click", "input", "error"][usize::try_from(seq % 3).unwrap()];
    // Out of step now and then.
    action(seq * 100 - seq % 7 * 1_000, kind, &format!("{number}/{seq}"))
}

/// Checks that these are a sender's first actions.
pub fn check_content(number: usize, played: &[Action]) {
    let mut seqs: Vec<_> = played.iter().map(|action| action.seq).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=i64::try_from(played.len()).unwrap()).collect::<Vec<_>>());
    for action in played {
        let sent = Action { seq: action.seq, source: "main".to_owned(), ..recorded(number, action.seq) };
        assert!(*action == sent, "session {number}, {action:?}");
    }
}

/// Asks for the first sender's cursor.
pub async fn ask_for_cursor(address: SocketAddr) -> Result<i64, Status> {
    let request = GetIngestCursorRequest { session_id: session(0), source: "main".to_owned() };
    let mut client = IngestServiceClient::new(connect(address).await);
    Ok(client.get_ingest_cursor(request).await?.into_inner().cursors[0].committed_seq)
}

impl Senders {
    pub fn start(address: SocketAddr) -> Self {
        let progress: Vec<Arc<Mutex<Progress>>> = (0..SENDERS).map(|_| Arc::default()).collect();
        let sending = progress.iter().cloned().enumerate().map(|(number, progress)| {
            let sender = Sender { number, progress };
            tokio::spawn(async move { sender.send(connect(address).await).await })
        });
        Self { sending: sending.collect(), progress }
    }

    /// Waits until every sender has got another receipt.
    pub async fn all_get_on(&self) {
        self.all_have_more("every sender gets on", |progress| progress.acknowledged).await;
    }

    /// Waits until every sender has been refused again.
    pub async fn all_are_refused(&self) {
        self.all_have_more("every sender is refused", |progress| progress.refusals).await;
    }

    /// Waits until any sender has been refused since then. Gives when that was.
    pub async fn one_is_refused(&self, since: Instant) -> Instant {
        let first = || self.now().iter().filter_map(|progress| progress.last_refusal).filter(|at| *at >= since).min();
        eventually("a sender is refused", async || first().is_some()).await;
        first().unwrap()
    }

    /// Waits until everything that was sent has its receipt. Gives how many actions that are of each sender.
    pub async fn finish(&mut self) -> Vec<i64> {
        self.progress.iter().for_each(|progress| progress.lock().unwrap().enough = true);
        for sending in self.sending.drain(..) {
            sending.await.unwrap();
        }
        self.now().iter().map(|progress| progress.acknowledged).collect()
    }

    async fn all_have_more(&self, what: &str, of_what: impl Fn(&Progress) -> i64) {
        let before = self.now();
        eventually(what, async || {
            assert!(!self.sending.iter().any(JoinHandle::is_finished), "a sender has given up");
            before.iter().zip(self.now()).all(|(before, now)| of_what(&now) > of_what(before))
        })
        .await;
    }

    fn now(&self) -> Vec<Progress> {
        self.progress.iter().map(|progress| *progress.lock().unwrap()).collect()
    }
}

impl Sender {
    async fn send(self, channel: Channel) {
        let mut client = IngestServiceClient::new(channel);
        while let Err(status) = self.attempt(&mut client).await {
            // The connection never breaks, so every status is the service's own. `reason` wants its RetryInfo.
            let reason = reason(&status);
            assert!(["DATABASE_UNAVAILABLE", "CONTENTION"].contains(&reason.as_str()), "{status:?}");
            assert_eq!(status.code(), Code::Unavailable);
            {
                let mut progress = self.progress.lock().unwrap();
                progress.refusals += 1;
                progress.last_refusal = Some(Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends from the last receipt on: what is stored without one comes twice.
    async fn attempt(&self, client: &mut IngestServiceClient<Channel>) -> Result<(), Status> {
        let id = session(self.number);
        client.record_actions(tokio_stream::once(start(&id, SessionStart::default()))).await?;
        let (batches, to_send) = mpsc::channel(1);
        let mut receipts = client.stream_actions(ReceiverStream::new(to_send)).await?.into_inner();
        loop {
            let Progress { acknowledged, enough, .. } = *self.progress.lock().unwrap();
            if enough {
                return Ok(());
            }
            let seqs = acknowledged + 1..=acknowledged + BATCH;
            let actions = seqs.clone().map(|seq| recorded(self.number, seq)).collect();
            // Where the service has ended the stream, its receipts say why.
            let _ = batches.send(streamed(batch(&id, "", *seqs.start(), actions))).await;
            let response = receipts.message().await?.expect("only the sender ends the stream");
            let track = response.receipt.unwrap().tracks.remove(0);
            assert_eq!((track.rejected_count, track.committed_seq), (0, *seqs.end()), "{track:?}");
            self.progress.lock().unwrap().acknowledged = track.committed_seq;
        }
    }
}
