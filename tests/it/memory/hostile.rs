//! A service with little memory, and peers that take without giving: it lives, and others are served as ever.

use std::{net::SocketAddr, pin::pin, time::Duration};

use bytes::Bytes;
use h2::client::{self, Connection, SendRequest};
use prost::Message as _;
use reel::proto::{
    SessionEnd, SessionStart, ingest_service_client::IngestServiceClient, play_session_response::Event,
    playback_service_client::PlaybackServiceClient,
};
use tokio::{io::AsyncReadExt as _, net::TcpStream, task::JoinSet};
use tonic::transport::Channel;

use super::{fill, memory_kib};
use crate::{
    bad_input::wire::{Head, Wire, frame, frame_header},
    crash::process::Process,
    harness::{Backend, NOON_MS, Reel, TestDatabase, batch, clicks, connect, end, play, session_id, start},
    on_both_databases,
};

on_both_databases!(
    silent_connections_stalled_uploads_and_players_that_never_read_harm_nobody_else,
    stalled_uploads_of_the_largest_messages_harm_nobody_else,
    stalled_requests_harm_nobody_else,
);

/// What the process may have of memory that is its own: heap and stacks, not the program and its files.
const MEMORY_KIB: i64 = 256 << 10;

/// Half of them say nothing at all, half greet and say nothing more.
const SILENT_CONNECTIONS: usize = 1_000;

const STALLED_UPLOADS: usize = 200;

/// A connection may have 256 streams; these are fewer, so that no connection waits for itself.
const UPLOADS_A_CONNECTION: usize = 50;

/// Bytes of a message as senders of batches have them, and of the largest one.
const USUAL_MESSAGE: usize = 64 << 10;
const LARGEST_MESSAGE: usize = 4 << 20;

/// Bytes of the largest message of a request that is no upload.
const LARGEST_REQUEST: usize = 256 << 10;

const DEAF_PLAYERS: usize = 100;

/// How long the well-behaved may take for a round. Longer than a message may stall the intake, and a silent connection the
/// listener.
const ROUND_WITHIN: Duration = Duration::from_mins(1);

/// Who has been hostile. The tasks end with it, the connections too.
#[derive(Default)]
struct Hostile {
    tasks: JoinSet<()>,
    greeted: Vec<(SendRequest<Bytes>, Connection<TcpStream>)>,
    deaf: Vec<(SendRequest<Bytes>, Connection<TcpStream>)>,
}

/// Connects and says nothing, again and again: the service breaks such connections off.
async fn never_greet(address: SocketAddr) {
    loop {
        if let Ok(mut stream) = TcpStream::connect(address).await {
            let mut said = [0; 64];
            while stream.read(&mut said).await.is_ok_and(|bytes| bytes > 0) {}
        }
    }
}

/// Sends half a message on each of some streams, and then nothing, again and again.
async fn stall(address: SocketAddr, path: &str, message_bytes: usize) {
    let half = Bytes::from(vec![0; message_bytes / 2]);
    loop {
        let wire = Wire::connect(address).await;
        let mut streams = JoinSet::new();
        for _ in 0..UPLOADS_A_CONNECTION {
            let begun = wire.begin(Head::of(path)).await;
            let Ok((response, mut sending)) = begun else { break };
            let _ = sending.send_data(frame_header(0, message_bytes).into(), false);
            let _ = sending.send_data(half.clone(), false);
            streams.spawn(async move {
                // It answers at once, and ends the stream when it has lost its patience.
                if let Ok(response) = response.await {
                    let mut answer = response.into_body();
                    while let Some(Ok(_)) = answer.data().await {}
                }
                drop(sending);
            });
        }
        streams.join_all().await;
    }
}

/// Asks for a playback, allows all of it to be sent, and reads no more than that it begins.
async fn never_read(address: SocketAddr, session: &str) -> (SendRequest<Bytes>, Connection<TcpStream>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let mut builder = client::Builder::new();
    builder.initial_window_size(1 << 30).initial_connection_window_size(1 << 30);
    let (mut sender, mut connection) = builder.handshake(stream).await.unwrap();
    let request = http::Request::post(format!("http://{address}/reel.v1.PlaybackService/PlaySession"))
        .header("te", "trailers")
        .header("content-type", "application/grpc");
    let (response, mut sending) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    sending.send_data(frame(0, &play(session).encode_to_vec()).into(), true).unwrap();
    tokio::select! {
        response = response => assert_eq!(response.unwrap().status(), http::StatusCode::OK),
        ended = pin!(&mut connection) => panic!("the connection has ended: {ended:?}"),
    }
    (sender, connection)
}

impl Hostile {
    fn stall_uploads(&mut self, address: SocketAddr, message_bytes: usize) {
        self.stall_all(address, "/reel.v1.IngestService/StreamActions", message_bytes);
    }

    fn stall_all(&mut self, address: SocketAddr, path: &'static str, message_bytes: usize) {
        for _ in 0..STALLED_UPLOADS / UPLOADS_A_CONNECTION {
            self.tasks.spawn(stall(address, path, message_bytes));
        }
    }

    async fn start_all(address: SocketAddr, session: &str) -> Self {
        let mut hostile = Self::default();
        for _ in 0..DEAF_PLAYERS {
            hostile.deaf.push(never_read(address, session).await);
        }
        hostile.stall_uploads(address, USUAL_MESSAGE);
        for _ in 0..SILENT_CONNECTIONS / 2 {
            let stream = TcpStream::connect(address).await.unwrap();
            hostile.greeted.push(client::handshake(stream).await.unwrap());
            hostile.tasks.spawn(never_greet(address));
        }
        hostile
    }
}

/// Records a session and plays it, and another.
async fn behave_well(channel: &Channel, large: &str, large_count: usize) {
    let id = session_id(NOON_MS);
    let sent: i64 = 200;
    let mut upload = vec![start(&id, SessionStart::default())];
    upload.extend((0..sent / 20).map(|number| {
        let seqs = number * 20..(number + 1) * 20;
        batch(&id, "", seqs.start + 1, clicks(seqs))
    }));
    upload.push(end(&id, SessionEnd { last_seqs: [("main".to_owned(), sent)].into(), ..Default::default() }));
    let mut ingest = IngestServiceClient::new(channel.clone());
    let recorded = ingest.record_actions(tokio_stream::iter(upload)).await.unwrap().into_inner();
    assert_eq!(recorded.receipts[0].tracks[0].accepted_count, sent);
    for (session, count) in [(id.as_str(), usize::try_from(sent).unwrap()), (large, large_count)] {
        let mut playback = PlaybackServiceClient::new(channel.clone()).max_decoding_message_size(16 << 20);
        let mut stream = playback.play_session(play(session)).await.unwrap().into_inner();
        let mut played = 0;
        while let Some(response) = stream.message().await.unwrap() {
            if let Some(Event::Actions(page)) = response.event {
                played += page.actions.len();
            }
        }
        assert_eq!(played, count);
    }
}

/// A service with little memory, and a large session in it.
struct Limited {
    server: Process,
    large: String,
    count: usize,
    _database: TestDatabase,
}

impl Limited {
    async fn start(backend: Backend) -> Self {
        let database = TestDatabase::new(backend).await;
        let count = 50_000;
        let reel = Reel::start_on(&database, &[]).await;
        let large = fill(&reel, &database, backend, count).await;
        reel.stop().await;
        let limited = format!(r#"ulimit -d {MEMORY_KIB} && ulimit -n 4096 && exec "$@""#);
        let server = Process::serve_under(&["sh", "-c", &limited, "sh"], &database.url, &[]).await;
        Self { server, large, count: usize::try_from(count).unwrap(), _database: database }
    }

    /// Checks that the well-behaved are served, again and again, and that the process has lived through it all.
    async fn check(&mut self) {
        let address = self.server.address;
        let channel = tokio::time::timeout(ROUND_WITHIN, connect(address)).await.expect("the server takes connections");
        for round in 0..3 {
            let behaved = behave_well(&channel, &self.large, self.count);
            let behaved = tokio::time::timeout(ROUND_WITHIN, behaved).await;
            assert!(self.server.is_running(), "the server has died in round {round}");
            assert!(behaved.is_ok(), "round {round} did not end in time");
        }
        let memory = |field| memory_kib(self.server.id(), field);
        eprintln!("memory: {} KiB of data, {} KiB at its peak", memory("VmData"), memory("VmHWM"));
        assert!(memory("VmHWM") < MEMORY_KIB);
    }
}

async fn silent_connections_stalled_uploads_and_players_that_never_read_harm_nobody_else(backend: Backend) {
    let mut limited = Limited::start(backend).await;
    let hostile = Hostile::start_all(limited.server.address, &limited.large).await;
    limited.check().await;
    assert_eq!((hostile.greeted.len(), hostile.deaf.len()), (SILENT_CONNECTIONS / 2, DEAF_PLAYERS));
}

async fn stalled_uploads_of_the_largest_messages_harm_nobody_else(backend: Backend) {
    let mut limited = Limited::start(backend).await;
    let mut hostile = Hostile::default();
    hostile.stall_uploads(limited.server.address, LARGEST_MESSAGE);
    limited.check().await;
}

async fn stalled_requests_harm_nobody_else(backend: Backend) {
    let mut limited = Limited::start(backend).await;
    let mut hostile = Hostile::default();
    for path in ["/reel.v1.SessionService/ListSessions", "/reel.v1.PlaybackService/PlaySession"] {
        for message_bytes in [LARGEST_REQUEST, 1_000] {
            hostile.stall_all(limited.server.address, path, message_bytes);
        }
    }
    limited.check().await;
}

/// Streams of reflection may stay open between requests. Those that were answered have no room any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflections_that_stay_open_harm_nobody_else() {
    const STREAMS: usize = 40;
    let database = TestDatabase::new(Backend::Sqlite).await;
    let reel = Reel::start_on(&database, &["--ingest-buffer-mib", "8"]).await;
    // The fields `host`, of as many bytes as a small request may have, and `list_services`.
    let host_bytes = (16_u32 << 10) - 16;
    let mut request = vec![0x0a];
    prost::encoding::encode_varint(u64::from(host_bytes), &mut request);
    request.extend(std::iter::repeat_n(b'x', usize::try_from(host_bytes).unwrap()));
    request.extend([0x3a, 0]);
    let mut open = Vec::new();
    for _ in 0..STREAMS {
        // One each: the answers repeat the requests, and nobody reads all of them.
        let wire = Wire::connect(reel.address).await;
        let path = Head::of("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
        let (response, mut sending) = wire.begin(path).await.unwrap();
        sending.send_data(frame(0, &request).into(), false).unwrap();
        let answered = async {
            let mut answer = response.await.unwrap().into_body();
            assert!(answer.data().await.unwrap().is_ok_and(|bytes| !bytes.is_empty()));
            answer
        };
        let answer = tokio::time::timeout(ROUND_WITHIN, answered).await;
        let answer = answer.unwrap_or_else(|_| panic!("the one after {} is not answered", open.len()));
        open.push((wire, sending, answer));
    }
    let session = tokio::time::timeout(ROUND_WITHIN, reel.start_session()).await.expect("others are served");
    let found = tokio::time::timeout(ROUND_WITHIN, reel.get(&session)).await.expect("others are served");
    assert_eq!((found.unwrap().id, open.len()), (session, STREAMS));
    drop(open);
    reel.stop().await;
}
