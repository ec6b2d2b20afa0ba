//! Senders that never give up: what has no receipt is sent again until it has one.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use reel::proto::{
    Action, GetIngestCursorRequest, SessionEnd, SessionStart, ingest_service_client::IngestServiceClient,
};
use tokio::task::JoinHandle;
use tonic::{Code, Status, transport::Endpoint};

use crate::harness::{NOON_MS, action, batch, end, reason, start, streamed, user};

/// How many senders there are, each with a session of its own.
pub const SENDERS: usize = 4;

/// How many actions each has to send.
const ACTIONS: i64 = 1_500;

/// How many actions a batch has.
const BATCH: i64 = 10;

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
}

/// All senders of a test.
pub struct Senders {
    senders: Vec<Sender>,
    sending: Vec<JoinHandle<()>>,
}

#[derive(Clone)]
struct Sender {
    number: usize,
    address: SocketAddr,
    trouble: Trouble,
    /// Up to where receipts have come.
    acknowledged: Arc<AtomicI64>,
}

/// The session of a sender: the same at every run.
pub fn session(number: usize) -> String {
    let started_at = chrono::DateTime::from_timestamp_millis(NOON_MS).unwrap();
    reel::model::SessionId::from_parts(started_at, [u8::try_from(number).unwrap(); 10]).to_string()
}

/// What a sender sends as this seq: the same at every run.
pub fn recorded(number: usize, seq: i64) -> Action {
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
    cursor(&mut IngestServiceClient::connect(format!("http://{address}")).await.unwrap(), 0).await
}

async fn cursor(client: &mut IngestServiceClient<tonic::transport::Channel>, number: usize) -> Result<i64, Status> {
    let request = GetIngestCursorRequest { session_id: session(number), source: "main".to_owned() };
    Ok(client.get_ingest_cursor(request).await?.into_inner().cursors[0].committed_seq)
}

impl Senders {
    pub fn start(address: SocketAddr, trouble: Trouble) -> Self {
        let senders: Vec<_> =
            (0..SENDERS).map(|number| Sender { number, address, trouble, acknowledged: Arc::default() }).collect();
        let sending = senders.iter().cloned().map(|sender| tokio::spawn(sender.send())).collect();
        Self { senders, sending }
    }

    /// Waits until so many parts of so many are acknowledged.
    pub async fn reach_share(&self, part: i64, parts: i64) {
        let wanted = i64::try_from(SENDERS).unwrap() * ACTIONS * part / parts;
        self.wait_until(|acknowledged| acknowledged.iter().sum::<i64>() >= wanted).await;
    }

    pub async fn all_have_begun(&self) {
        self.wait_until(|acknowledged| acknowledged.iter().all(|acknowledged| *acknowledged > 0)).await;
    }

    async fn wait_until(&self, is_so: impl Fn(&[i64]) -> bool) {
        let wait = async {
            loop {
                let load = |sender: &Sender| sender.acknowledged.load(Ordering::Relaxed);
                if is_so(&self.senders.iter().map(load).collect::<Vec<_>>()) {
                    return;
                }
                assert!(
                    !self.sending.iter().any(JoinHandle::is_finished),
                    "a sender has given up, or was done too early"
                );
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), wait).await.expect("the senders get on");
    }

    /// Waits until everything is acknowledged.
    pub async fn finish(self) {
        for sending in self.sending {
            sending.await.unwrap();
        }
    }

    /// Waits until every sender was broken off. Gives how many actions were acknowledged to each.
    pub async fn broken_off(self) -> Vec<usize> {
        for sending in self.sending {
            sending.await.unwrap();
        }
        let load = |sender: &Sender| usize::try_from(sender.acknowledged.load(Ordering::Relaxed)).unwrap();
        self.senders.iter().map(load).collect()
    }
}

impl Sender {
    async fn send(self) {
        while let Err(status) = self.attempt().await {
            let reason = if status.details().is_empty() { "TRANSPORT".to_owned() } else { reason(&status) };
            let expected: &[&str] = match self.trouble {
                Trouble::None => &[],
                Trouble::ServerMayGoAway => &["TRANSPORT", "NOT_READY"],
                Trouble::ServerEnds => &["DRAINING"],
                Trouble::DatabaseMayGoAway => &["DATABASE_UNAVAILABLE"],
            };
            assert!(expected.contains(&reason.as_str()), "{status:?}");
            assert!(reason == "TRANSPORT" || status.code() == Code::Unavailable, "{status:?}");
            if self.trouble == Trouble::ServerEnds {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(self.trouble != Trouble::ServerEnds, "the stream came to an end of its own");
    }

    /// Sends what is not stored yet, and a few batches that are.
    async fn attempt(&self) -> Result<(), Status> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let channel = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut client = IngestServiceClient::new(channel);
        let id = session(self.number);
        let started = SessionStart { user: Some(user(&format!("user-{}", self.number), "")), ..Default::default() };
        client.record_actions(tokio_stream::once(start(&id, started))).await?;
        let stored = cursor(&mut client, self.number).await?;
        let acknowledged = self.acknowledged.load(Ordering::Relaxed);
        assert!(stored >= acknowledged, "{acknowledged} actions were acknowledged, {stored} are stored");

        let number = self.number;
        let first = (stored - 3 * BATCH).max(0) / BATCH;
        let batches = (first..ACTIONS / BATCH).map(move |index| {
            let seqs = index * BATCH + 1..=(index + 1) * BATCH;
            let actions = seqs.clone().map(|seq| recorded(number, seq)).collect();
            streamed(batch(&session(number), "", *seqs.start(), actions))
        });
        let never_ends = futures_util::stream::pending().take(usize::from(self.trouble == Trouble::ServerEnds));
        let batches = tokio_stream::iter(batches).chain(never_ends);
        let mut receipts = client.stream_actions(batches).await?.into_inner();
        while let Some(response) = receipts.message().await? {
            let track = response.receipt.unwrap().tracks.remove(0);
            assert_eq!(track.rejected_count, 0, "{track:?}");
            self.acknowledged.fetch_max(track.committed_seq, Ordering::Relaxed);
        }
        let last_seqs = [("main".to_owned(), ACTIONS)].into();
        client.record_actions(tokio_stream::once(end(&id, SessionEnd { last_seqs, ..Default::default() }))).await?;
        Ok(())
    }
}
