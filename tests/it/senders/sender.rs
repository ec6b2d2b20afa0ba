//! One sender: sends its sessions one after the other, goes on from the cursors after a break, and holds every receipt
//! against what it sent.

use std::{collections::VecDeque, future::Future, net::SocketAddr, ops::RangeInclusive, time::Duration};

use rand::{RngExt as _, rngs::StdRng, seq::SliceRandom as _};
use reel::proto::{
    GetIngestCursorRequest, RecordActionsRequest, SessionEnd, TrackReceipt, ingest_service_client::IngestServiceClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::{Acknowledged, Place, Progress, Script, TRACKS, Trouble};
use crate::harness::{batch, end, in_time, start, streamed};

/// The most actions that a batch has.
const BATCH: i64 = 40;

pub(super) struct Sender {
    address: SocketAddr,
    trouble: Trouble,
    script: Script,
    /// The session it is in.
    place: Place,
    /// How many sessions it sends. None where it goes on until it is stopped.
    sessions: Option<usize>,
    progress: Progress,
    rng: StdRng,
}

/// Some of a session: consecutive actions of one track.
#[derive(Clone, Debug)]
struct Piece {
    track: usize,
    seqs: RangeInclusive<i64>,
}

impl Piece {
    fn count(&self) -> i64 {
        self.seqs.end() - self.seqs.start() + 1
    }
}

/// How to send batches.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// By StreamActions, with this many batches on their way at once.
    Stream { window: usize },
    /// By RecordActions: one answer to all of them.
    Record,
}

impl Sender {
    pub(super) fn new(
        number: usize,
        address: SocketAddr,
        trouble: Trouble,
        script: Script,
        sessions: Option<usize>,
        progress: Progress,
    ) -> Self {
        let place = Place { sender: number, number: 0 };
        Self { address, trouble, script, place, sessions, progress, rng: script.chances(number) }
    }

    pub(super) async fn send(mut self) {
        while let Err(status) = self.attempt().await {
            self.trouble.check(&status);
            if self.trouble == Trouble::ServerEnds {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(self.trouble != Trouble::ServerEnds, "the stream came to an end of its own");
    }

    /// Sends session after session through one connection.
    async fn attempt(&mut self) -> Result<(), Status> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let connected = endpoint.connect_timeout(self.trouble.patience()).connect().await;
        let channel = connected.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut client = IngestServiceClient::new(channel);
        while self.sessions.is_none_or(|sessions| self.place.number < sessions) {
            self.send_session(&mut client).await?;
            self.place.number += 1;
        }
        Ok(())
    }

    async fn send_session(&mut self, client: &mut IngestServiceClient<Channel>) -> Result<(), Status> {
        if self.progress.lock().unwrap().len() == self.place.number {
            self.progress.lock().unwrap().push(Acknowledged::default());
        }
        let id = self.place.session();
        self.record_one(client, start(&id, self.place.start())).await?;
        let counts = self.script.counts(self.place);
        // What is to be sent again is sent from the beginning; otherwise a few batches that are there are sent again.
        let overlap = if self.sessions.is_some() { i64::MAX } else { self.rng.random_range(0..=2 * BATCH) };
        let mut next = self.cursors(client).await?.map(|cursor| cursor.saturating_sub(overlap).max(0) + 1);
        while next.iter().zip(counts).any(|(next, count)| *next <= count) {
            let pieces = self.cut(&mut next, counts);
            match self.choose_way() {
                Way::Stream { window } => self.stream(client, pieces, window).await?,
                Way::Record => self.record(client, &pieces).await?,
            }
        }
        let last_seqs = TRACKS.iter().zip(counts).map(|(source, count)| ((*source).to_owned(), count));
        let last_seqs = last_seqs.filter(|(_, count)| *count > 0).collect();
        self.record_one(client, end(&id, SessionEnd { last_seqs, ..Default::default() })).await?;
        self.progress.lock().unwrap()[self.place.number].ended = true;
        Ok(())
    }

    fn choose_way(&mut self) -> Way {
        match self.rng.random_range(0..4) {
            // A server that ends must find it in a stream, not between two calls.
            0 if self.trouble != Trouble::ServerEnds => Way::Record,
            0 | 1 => Way::Stream { window: 1 },
            _ => Way::Stream { window: self.rng.random_range(2..=32) },
        }
    }

    /// The next batches, of all tracks in turn and in no rule, and where the tracks go on after them.
    fn cut(&mut self, next: &mut [i64; TRACKS.len()], counts: [i64; TRACKS.len()]) -> Vec<Piece> {
        let most = if self.trouble == Trouble::ServerEnds { 10_000 } else { self.rng.random_range(1..=50) };
        let mut pieces = Vec::new();
        while pieces.len() < most {
            let mut open: Vec<_> = (0..TRACKS.len()).filter(|track| next[*track] <= counts[*track]).collect();
            open.shuffle(&mut self.rng);
            let Some(track) = open.pop() else { break };
            let last = (next[track] + self.rng.random_range(0..BATCH)).min(counts[track]);
            pieces.push(Piece { track, seqs: next[track]..=last });
            next[track] = last + 1;
        }
        pieces
    }

    /// Asks up to where each track is stored.
    async fn cursors(&self, client: &mut IngestServiceClient<Channel>) -> Result<[i64; TRACKS.len()], Status> {
        let request = GetIngestCursorRequest { session_id: self.place.session(), ..Default::default() };
        let response = self.in_time(client.get_ingest_cursor(request)).await?.into_inner();
        let mut cursors = [0; TRACKS.len()];
        for cursor in response.cursors {
            cursors[track_number(&cursor.source)] = cursor.committed_seq;
        }
        let acknowledged = self.progress.lock().unwrap()[self.place.number];
        let is_kept = cursors.iter().zip(acknowledged.cursors).all(|(stored, told)| *stored >= told);
        assert!(is_kept, "{:?}: {acknowledged:?} were acknowledged, {cursors:?} are stored", self.place);
        assert!(response.ended || !acknowledged.ended, "{:?} is live again", self.place);
        Ok(cursors)
    }

    fn message(&self, piece: &Piece) -> RecordActionsRequest {
        let source = if piece.track == 0 { "" } else { TRACKS[piece.track] };
        let actions = piece.seqs.clone().map(|seq| self.script.action(self.place, piece.track, seq)).collect();
        batch(&self.place.session(), source, *piece.seqs.start(), actions)
    }

    /// By StreamActions: before a receipt is read, up to `window` batches are on their way.
    async fn stream(
        &self,
        client: &mut IngestServiceClient<Channel>,
        pieces: Vec<Piece>,
        window: usize,
    ) -> Result<(), Status> {
        let (requests, messages) = mpsc::channel(window);
        let mut receipts = self.in_time(client.stream_actions(ReceiverStream::new(messages))).await?.into_inner();
        let mut pieces = pieces.into_iter();
        let mut on_the_way = VecDeque::new();
        loop {
            while on_the_way.len() < window
                && let Some(piece) = pieces.next()
            {
                // Nobody takes it where the stream has broken; the receipts say how.
                let _ = requests.send(streamed(self.message(&piece))).await;
                on_the_way.push_back(piece);
            }
            let Some(piece) = on_the_way.pop_front() else { break };
            let response = self.in_time(receipts.message()).await?;
            let response = response.ok_or_else(|| Status::unavailable("the stream has ended too early"))?;
            let tracks = response.receipt.unwrap().tracks;
            assert_eq!(tracks.len(), 1, "one batch, one track");
            self.take(&tracks[0], &[piece]);
        }
        drop(requests);
        assert!(self.in_time(receipts.message()).await?.is_none(), "as many receipts as messages");
        Ok(())
    }

    /// By RecordActions: one receipt for all of it.
    async fn record(&self, client: &mut IngestServiceClient<Channel>, pieces: &[Piece]) -> Result<(), Status> {
        let messages: Vec<_> = pieces.iter().map(|piece| self.message(piece)).collect();
        let response = self.in_time(client.record_actions(tokio_stream::iter(messages))).await?.into_inner();
        assert_eq!(response.receipts.len(), 1, "one session, one receipt");
        for receipt in &response.receipts[0].tracks {
            let own: Vec<_> = pieces.iter().filter(|piece| TRACKS[piece.track] == receipt.source).cloned().collect();
            self.take(receipt, &own);
        }
        Ok(())
    }

    async fn record_one(
        &self,
        client: &mut IngestServiceClient<Channel>,
        message: RecordActionsRequest,
    ) -> Result<(), Status> {
        self.in_time(client.record_actions(tokio_stream::once(message))).await?;
        Ok(())
    }

    /// Takes note of a track's receipt for these batches.
    fn take(&self, receipt: &TrackReceipt, pieces: &[Piece]) {
        let sent: i64 = pieces.iter().map(Piece::count).sum();
        let last = pieces.last().expect("a track that was sent").seqs.end();
        assert_eq!(receipt.rejected_count, 0, "{:?}: {receipt:?}", self.place);
        assert_eq!(receipt.accepted_count + receipt.duplicate_count, sent, "{:?}: {receipt:?}", self.place);
        assert!(receipt.committed_seq >= *last, "{:?}: {last} has the receipt {receipt:?}", self.place);
        let mut progress = self.progress.lock().unwrap();
        let acknowledged = &mut progress[self.place.number].cursors[track_number(&receipt.source)];
        *acknowledged = receipt.committed_seq.max(*acknowledged);
    }

    async fn in_time<T>(&self, answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        in_time(self.trouble.patience(), answer).await
    }
}

fn track_number(source: &str) -> usize {
    TRACKS.iter().position(|known| *known == source).expect("a track that was sent")
}
