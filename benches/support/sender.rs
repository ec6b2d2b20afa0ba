//! Senders: each has a stream of its own, and several share a connection.
//!
//! The messages are made before the clock starts; encoding them is what a client does while it runs. Every receipt is checked:
//! that all was accepted, nothing was a duplicate or rejected, and the cursor is where it should be.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{future::try_join_all, stream};
use reel::{
    model::SessionId,
    proto::{
        RecordActionsRequest, StreamActionsRequest, StreamActionsResponse, TrackReceipt,
        ingest_service_client::IngestServiceClient,
    },
};
use sea_orm::sqlx::{PgConnection, query_scalar};
use tokio::{sync::Semaphore, task::JoinHandle};
use tonic::transport::Channel;
use uuid::Uuid;

use super::{
    Failure, Result,
    messages::{recorded, start, streamed},
    workload::Workload,
};

/// Messages of a stream that may wait for their receipts at once. With RecordActions, whose only receipt comes at the end,
/// HTTP/2 is what bounds them.
const WINDOW: usize = 8;

/// Streams that start sessions at once.
const STARTERS: usize = 8;

/// Which of the two RPCs that record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rpc {
    RecordActions,
    StreamActions,
}

enum Messages {
    Recorded(Vec<Vec<RecordActionsRequest>>),
    Streamed(Vec<Vec<StreamActionsRequest>>),
}

/// A workload, ready to be sent.
pub struct Upload {
    messages: Messages,
    /// For each sender what its receipts must say.
    expected: Vec<Vec<Expected>>,
}

/// What the receipt of a batch must say.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    committed_seq: i64,
    accepted: i64,
}

impl Upload {
    pub fn new(rpc: Rpc, workload: &Workload, ids: &[SessionId]) -> Self {
        let messages = match rpc {
            Rpc::RecordActions => Messages::Recorded(recorded(workload, ids)),
            Rpc::StreamActions => Messages::Streamed(streamed(workload, ids)),
        };
        Self { messages, expected: expected(workload) }
    }

    /// Sends everything, all senders at once. Gives how long it took until the last receipt.
    pub async fn send(self, channels: &[Channel]) -> Result<Duration> {
        let channels = channels.iter().cycle().cloned();
        let expected = self.expected.into_iter();
        let begun = Instant::now();
        let sending: Vec<JoinHandle<Result<()>>> = match self.messages {
            Messages::Recorded(messages) => messages
                .into_iter()
                .zip(expected.zip(channels))
                .map(|(messages, (expected, channel))| tokio::spawn(record(channel, messages, expected)))
                .collect(),
            Messages::Streamed(messages) => messages
                .into_iter()
                .zip(expected.zip(channels))
                .map(|(messages, (expected, channel))| tokio::spawn(stream(channel, messages, expected)))
                .collect(),
        };
        for sender in sending {
            sender.await??;
        }
        Ok(begun.elapsed())
    }
}

/// For each sender what its receipts must say.
pub fn expected(workload: &Workload) -> Vec<Vec<Expected>> {
    let of_sender = |sent: &Vec<super::workload::Batch>| {
        sent.iter()
            .map(|batch| {
                let accepted = batch.actions.len() as i64;
                Expected { committed_seq: batch.first_seq - 1 + accepted, accepted }
            })
            .collect()
    };
    workload.senders.iter().map(of_sender).collect()
}

async fn stream(channel: Channel, messages: Vec<StreamActionsRequest>, expected: Vec<Expected>) -> Result<()> {
    let window = Arc::new(Semaphore::new(WINDOW));
    let free = Arc::clone(&window);
    let requests = stream::unfold((messages.into_iter(), free), async |(mut messages, free)| {
        let message = messages.next()?;
        free.acquire().await.ok()?.forget();
        Some((message, (messages, free)))
    });
    let mut receipts = IngestServiceClient::new(channel).stream_actions(requests).await?.into_inner();
    for expected in expected {
        expected.check(receipts.message().await?)?;
        window.add_permits(1);
    }
    match receipts.message().await? {
        None => Ok(()),
        Some(_) => Err("there are more receipts than messages".into()),
    }
}

impl Expected {
    /// Checks the receipt of a batch.
    pub fn check(self, response: Option<StreamActionsResponse>) -> Result<()> {
        let receipt = response.and_then(|response| response.receipt).ok_or("a message has no receipt")?;
        let [track] = receipt.tracks.as_slice() else { return Err("a receipt does not speak of one track".into()) };
        if track.committed_seq != self.committed_seq {
            return Err(format!("the cursor is at {}, not {}", track.committed_seq, self.committed_seq).into());
        }
        check_accepted(track, self.accepted)
    }
}

fn check_accepted(track: &TrackReceipt, accepted: i64) -> Result<()> {
    if track.accepted_count == accepted && track.duplicate_count == 0 && track.rejected_count == 0 {
        return Ok(());
    }
    Err(format!("of {accepted} actions not all were accepted: {track:?}").into())
}

async fn record(channel: Channel, messages: Vec<RecordActionsRequest>, expected: Vec<Expected>) -> Result<()> {
    let response = IngestServiceClient::new(channel).record_actions(tokio_stream::iter(messages)).await?;
    let receipts = response.into_inner().receipts;
    let accepted: i64 = receipts.iter().flat_map(|receipt| &receipt.tracks).map(|track| track.accepted_count).sum();
    let expected: i64 = expected.iter().map(|expected| expected.accepted).sum();
    if accepted == expected {
        return Ok(());
    }
    Err(format!("of {expected} actions {accepted} were accepted").into())
}

/// Starts sessions, so that this is not part of what is measured.
pub async fn start_sessions(channels: &[Channel], ids: &[SessionId]) -> Result<()> {
    let starting =
        ids.chunks(ids.len().div_ceil(STARTERS).max(1)).zip(channels.iter().cycle()).map(|(ids, channel)| {
            let starts: Vec<_> = ids.iter().enumerate().map(|(number, id)| start(*id, number)).collect();
            let mut client = IngestServiceClient::new(channel.clone());
            async move {
                let receipts = client.record_actions(tokio_stream::iter(starts)).await?.into_inner().receipts;
                if receipts.len() == ids.len() && receipts.iter().all(|receipt| receipt.started) {
                    return Ok(());
                }
                Err(Failure::from("not all sessions were started"))
            }
        });
    try_join_all(starting).await.map(|_| ())
}

/// Checks that PostgreSQL has so many actions of these sessions.
pub async fn check_stored(connection: &mut PgConnection, ids: &[SessionId], expected: usize) -> Result<()> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
    let stored: i64 =
        query_scalar("SELECT count(*) FROM actions WHERE session_id = ANY($1)").bind(ids).fetch_one(connection).await?;
    if usize::try_from(stored).is_ok_and(|stored| stored == expected) {
        return Ok(());
    }
    Err(format!("{stored} actions are stored, not {expected}").into())
}
