//! What a receipt promises, seen from below: on SQLite, the write-ahead log is on the disk before the receipt is sent. The
//! order of the server's system calls, as `strace` records it, is the proof that does not need a power cut.

mod trace;

use std::{env, fs, path::Path, process::Command};

use reel::proto::{SessionStart, ingest_service_client::IngestServiceClient};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use self::trace::Trace;
use crate::{
    crash::process::Process,
    harness::{NOON_MS, TestDatabase, batch, clicks, connect, eventually, session_id, start, streamed},
};

/// Set to 1, lets the test pass where the machine forbids to trace.
const MAY_SKIP: &str = "REEL_TEST_MAY_SKIP_STRACE";

/// How many batches are sent with nobody else sending.
const ALONE: usize = 20;

/// How many senders send at once after that, and how many batches each.
const SENDERS: usize = 8;
const BATCHES: usize = 20;

/// Whether processes can be traced here. Fails where they cannot be and have to be.
fn may_trace() -> bool {
    let error = match Command::new("strace").args(["-o", "/dev/null", "true"]).output() {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => format!("{error}\n"),
    };
    assert!(
        env::var(MAY_SKIP).is_ok_and(|value| value == "1"),
        "strace does not work here, so that it cannot be tested whether receipts come after fsync: {error}\
         Allow processes to be traced, or set {MAY_SKIP}=1 to do without this test"
    );
    eprintln!("NOT TESTED, as {MAY_SKIP} allows: strace does not work here: {error}");
    false
}

/// The source of a batch: a name that is in its message, in the row of its track and in its receipt, and nowhere else.
fn mark(sender: usize, number: usize) -> String {
    format!("mark-{sender:03}-{number:03}.")
}

/// Sends batches to a session of its own, each when the one before has its receipt.
async fn send(channel: Channel, sender: usize, batches: usize) {
    let mut client = IngestServiceClient::new(channel);
    let id = session_id(NOON_MS);
    client.record_actions(tokio_stream::once(start(&id, SessionStart::default()))).await.unwrap();
    let (sent, to_send) = mpsc::channel(1);
    let mut receipts = client.stream_actions(ReceiverStream::new(to_send)).await.unwrap().into_inner();
    for number in 0..batches {
        sent.send(streamed(batch(&id, &mark(sender, number), 1, clicks(0..20)))).await.unwrap();
        let receipt = receipts.message().await.unwrap().unwrap().receipt.unwrap();
        assert_eq!((receipt.tracks[0].source.clone(), receipt.tracks[0].accepted_count), (mark(sender, number), 20));
    }
}

fn traced(output: &Path) -> [&str; 9] {
    [
        "strace",
        // The traced process is the one that was started, not a child of strace.
        "--daemonize",
        "--follow-forks",
        "--decode-fds",
        "--string-limit=100000",
        "--signal=none",
        "--trace=read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,pwrite64,pwritev,fsync,fdatasync",
        "--output",
        output.to_str().unwrap(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_a_receipt_is_sent_after_the_log_that_has_its_actions_was_synced() {
    if !may_trace() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("trace");
    let url = format!("sqlite://{}/reel.db", folder.path().display());
    // More than one track a batch is not what sessions are for, but what tells batches apart here.
    let mut server = Process::serve_under(&traced(&output), &url, &[]).await;
    let channel = connect(server.address).await;
    // What the service writes by itself as it starts is written.
    let database = TestDatabase::at(url.clone());
    let own = "SELECT (SELECT count(*) FROM retentions WHERE applied_at IS NOT NULL) - (SELECT count(*) FROM leases)";
    eventually("retention was applied", async || database.number(own).await == 1).await;
    send(channel.clone(), 0, ALONE).await;
    let senders: Vec<_> = (1..=SENDERS).map(|sender| tokio::spawn(send(channel.clone(), sender, BATCHES))).collect();
    for sender in senders {
        sender.await.unwrap();
    }
    drop(channel);
    server.terminate();
    assert!(server.exited().await.success());

    let trace = Trace::parse(&fs::read_to_string(&output).unwrap(), "reel.db-wal");
    for number in 0..ALONE {
        trace.check_alone(&mark(0, number));
    }
    for sender in 1..=SENDERS {
        (0..BATCHES).for_each(|number| trace.check(&mark(sender, number)));
    }
}
