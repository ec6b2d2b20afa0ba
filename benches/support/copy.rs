//! The limit of ingest on PostgreSQL: the same rows, in the same order, by two connections with COPY BINARY and nothing else.
//!
//! Each transaction is one COPY of about 2,000 rows. Like the senders, the writers hold protobuf actions in memory and encode
//! them while the clock runs, as any program that COPYs must.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::SinkExt as _;
use reel::{model::SessionId, proto::Action};
use tokio_postgres::{Client, NoTls};

use super::{
    Result,
    workload::{Batch, Workload, from_proto},
};

/// Rows of a transaction, rounded up to whole batches.
pub const ROWS_A_TRANSACTION: usize = 2_000;

/// Connections that copy at once.
const CONNECTIONS: usize = 2;

const COPY: &str = "COPY actions (session_id, timestamp, track, seq, type, target, data) FROM STDIN (FORMAT binary)";

/// Microseconds from 1970 to 2000, where PostgreSQL's time begins.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// Connections that stay open between measurements. Of another driver than the service's: that one leaves Nagle's algorithm
/// on, which holds up the end of each COPY.
#[derive(Default)]
pub struct Copiers(Vec<Client>);

impl Copiers {
    pub async fn connect(url: &str) -> Result<Self> {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
            tokio::spawn(connection);
            connections.push(client);
        }
        Ok(Self(connections))
    }

    /// Stores all actions of the workload under these session ids. Gives how long it took.
    pub async fn copy(&mut self, workload: &Arc<Workload>, ids: &[SessionId]) -> Result<Duration> {
        let transactions = Arc::new(transactions(workload));
        let ids: Arc<[SessionId]> = ids.into();
        let next = Arc::new(AtomicUsize::new(0));
        let begun = Instant::now();
        let mut copying = Vec::new();
        for connection in self.0.drain(..) {
            let (workload, transactions) = (Arc::clone(workload), Arc::clone(&transactions));
            let (ids, next) = (Arc::clone(&ids), Arc::clone(&next));
            copying.push(tokio::spawn(async move {
                let mut buffer = Vec::new();
                while let Some(batches) = transactions.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let batches = batches.iter().map(|(sender, index)| &workload.senders[*sender][*index]);
                    encode(&mut buffer, batches, &ids);
                    let mut copy = pin!(connection.copy_in::<_, Bytes>(COPY).await?);
                    copy.send(Bytes::copy_from_slice(&buffer)).await?;
                    copy.finish().await?;
                }
                Ok::<_, super::Failure>(connection)
            }));
        }
        for copying in copying {
            self.0.push(copying.await??);
        }
        Ok(begun.elapsed())
    }
}

/// Where a batch is: the sender, and which of its batches.
type Place = (usize, usize);

/// The batches of each transaction.
fn transactions(workload: &Workload) -> Vec<Vec<Place>> {
    let rounds = workload.senders.iter().map(Vec::len).max().unwrap_or(0);
    let places = (0..rounds).flat_map(|index| (0..workload.senders.len()).map(move |sender| (sender, index)));
    let mut transactions = vec![Vec::new()];
    let mut rows = 0;
    for (sender, index) in places {
        let Some(batch) = workload.senders[sender].get(index) else { continue };
        if rows >= ROWS_A_TRANSACTION {
            transactions.push(Vec::new());
            rows = 0;
        }
        rows += batch.actions.len();
        if let Some(last) = transactions.last_mut() {
            last.push((sender, index));
        }
    }
    transactions
}

/// Writes rows in the binary format of COPY: <https://www.postgresql.org/docs/current/sql-copy.html>.
fn encode<'a>(buffer: &mut Vec<u8>, batches: impl Iterator<Item = &'a Batch>, ids: &[SessionId]) {
    buffer.clear();
    buffer.extend_from_slice(b"PGCOPY\n\xff\r\n\0");
    // Neither flags nor an extension of the header.
    buffer.extend_from_slice(&[0; 8]);
    for batch in batches {
        let id = ids[batch.session].as_uuid();
        for (action, seq) in batch.actions.iter().zip(batch.first_seq..) {
            buffer.extend_from_slice(&7_i16.to_be_bytes());
            field(buffer, id.as_bytes());
            field(buffer, &postgres_time(action).to_be_bytes());
            field(buffer, &0_i16.to_be_bytes());
            field(buffer, &seq.to_be_bytes());
            field(buffer, action.r#type.as_bytes());
            field(buffer, action.target.as_bytes());
            field(buffer, action.data.as_bytes());
        }
    }
    buffer.extend_from_slice(&(-1_i16).to_be_bytes());
}

fn field(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.extend_from_slice(&i32::try_from(bytes.len()).unwrap_or(i32::MAX).to_be_bytes());
    buffer.extend_from_slice(bytes);
}

fn postgres_time(action: &Action) -> i64 {
    action.timestamp.map_or(0, |time| from_proto(time).timestamp_micros() - POSTGRES_EPOCH_US)
}
