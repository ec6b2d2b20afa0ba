//! The server around the services: readiness, the database coming and going, limits, and its end.

use std::sync::Arc;

use reel::{
    proto::{
        Action, ListSessionsRequest, SessionEnd, SessionStart, ingest_service_client::IngestServiceClient,
        playback_service_client::PlaybackServiceClient, session_service_client::SessionServiceClient,
    },
    server::ServeError,
    store::{Store, Unfit},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Mutex,
    task::AbortHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, codec::CompressionEncoding};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    harness::{
        Backend, Reel, TestDatabase, batch, click, clicks, connect, end, eventually, play, postgres_server, reason,
        start, streamed,
    },
    on_both_databases,
};

on_both_databases!(
    compressed_uploads_and_playbacks_are_the_same,
    uploads_end_with_receipts_given_and_no_half_batch_when_the_service_ends,
    an_upload_that_is_larger_than_the_buffer_gets_through,
    a_stalled_upload_is_given_up,
    more_connections_than_allowed_wait,
    what_was_recorded_is_there_after_a_restart,
);

/// A door to PostgreSQL that can be shut, connections and all.
struct Door {
    port: u16,
    open: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Door {
    async fn shut() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        Self { port, open: Arc::default() }
    }

    async fn open(&self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let target = postgres_server().split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
        let open = Arc::clone(&self.open);
        let accepting = tokio::spawn(async move {
            loop {
                let (mut inside, _) = listener.accept().await.unwrap();
                let mut outside = TcpStream::connect(&target).await.unwrap();
                let copying = tokio::spawn(async move {
                    let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
                });
                open.lock().await.push(copying.abort_handle());
            }
        });
        self.open.lock().await.push(accepting.abort_handle());
    }

    async fn close(&self) {
        self.open.lock().await.drain(..).for_each(|task| task.abort());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_the_database() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let door = Door::shut().await;
    let url = format!("postgres://postgres@127.0.0.1:{}/{}", door.port, database.url.rsplit_once('/').unwrap().1);
    let reel = Reel::start_unready(&url, &[]).await;
    assert_eq!(reel.health().await, ServingStatus::NotServing);
    let refused = reel.send(start("", SessionStart::default())).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "NOT_READY"));

    door.open().await;
    reel.wait_until_serving().await;
    let id = reel.start_session().await;
    reel.append(&id, "", 1, clicks(0..3)).await.unwrap();

    door.close().await;
    eventually("the lost database is noticed", async || reel.health().await == ServingStatus::NotServing).await;
    let refused = reel.append(&id, "", 4, clicks(3..6)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "DATABASE_UNAVAILABLE"));

    door.open().await;
    reel.wait_until_serving().await;
    assert_eq!(reel.append(&id, "", 4, clicks(3..6)).await.unwrap().committed_seq, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_may_lose_commits_is_refused() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let name = database.url.rsplit_once('/').unwrap().1;
    database.execute(&format!("ALTER DATABASE {name} SET synchronous_commit = off")).await;
    let reel = Reel::start_unready(&database.url, &[]).await;
    let refused = reel.ended().await.unwrap_err();
    assert!(
        matches!(&refused, ServeError::Database(Unfit::NotDurable { setting: "synchronous_commit", .. })),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_denies_access_is_not_waited_for() {
    let nowhere = format!("{}/reel_no_such_database", postgres_server().rsplit_once('/').unwrap().0);
    let refused = Reel::start_unready(&nowhere, &[]).await.ended().await.unwrap_err();
    assert!(matches!(refused, ServeError::Database(Unfit::Denied)), "{refused}");
}

async fn compressed_uploads_and_playbacks_are_the_same(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let requests = vec![start("", SessionStart::default()), batch("", "", 1, clicks(0..500))];
        let mut client = IngestServiceClient::new(reel.channel.clone()).send_compressed(encoding);
        let response = client.record_actions(tokio_stream::iter(requests)).await.unwrap().into_inner();
        let id = &response.receipts[0].session_id;
        let mut client = PlaybackServiceClient::new(reel.channel.clone()).accept_compressed(encoding);
        let response = client.play_session(play(id)).await.unwrap();
        assert_eq!(response.metadata().get("grpc-encoding").unwrap().to_str().unwrap(), encoding.to_string());
        let mut stream = response.into_inner();
        let mut count = 0;
        while let Some(response) = stream.message().await.unwrap() {
            if let Some(reel::proto::play_session_response::Event::Actions(page)) = response.event {
                count += page.actions.len();
            }
        }
        assert_eq!(count, 500);
    }
}

async fn uploads_end_with_receipts_given_and_no_half_batch_when_the_service_ends(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let mut reel = Reel::start_on(&database, &[]).await;
    let id = reel.start_session().await;
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let mut receipts = reel.ingest().stream_actions(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let sending = tokio::spawn({
        let id = id.clone();
        async move { while sender.send(streamed(batch(&id, "", 0, clicks(0..10)))).await.is_ok() {} }
    });
    let (mut acknowledged, mut asked) = (0, false);
    let status = loop {
        match receipts.message().await {
            Ok(response) => acknowledged = response.unwrap().receipt.unwrap().tracks[0].committed_seq,
            Err(status) => break status,
        }
        if acknowledged >= 50 && !asked {
            asked = true;
            reel.begin_shutdown();
        }
    };
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "DRAINING"));
    sending.abort();
    drop(receipts);
    reel.ended().await.unwrap();
    let stored = database.number("SELECT count(*) FROM actions").await;
    assert!(stored >= acknowledged && stored % 10 == 0, "{stored} stored, {acknowledged} acknowledged");
}

async fn an_upload_that_is_larger_than_the_buffer_gets_through(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &["--ingest-buffer-mib", "8"]).await;
    let large = format!("\"{}\"", "x".repeat(900 << 10));
    let uploads = (0..24).map(|upload| {
        let actions: Vec<_> = (0..4).map(|_| Action { data: large.clone(), ..click(0, "large") }).collect();
        let requests =
            vec![start("", SessionStart::default()), batch("", "", 1, actions.clone()), batch("", "", 5, actions)];
        // Half of them compressed, which are let in as if they were of the largest size.
        let mut client = IngestServiceClient::new(reel.channel.clone());
        if upload % 2 == 0 {
            client = client.send_compressed(CompressionEncoding::Zstd);
        }
        async move { client.record_actions(tokio_stream::iter(requests)).await }
    });
    for response in futures_util::future::join_all(uploads).await {
        assert_eq!(response.unwrap().into_inner().receipts[0].tracks[0].committed_seq, 8);
    }
}

async fn a_stalled_upload_is_given_up(backend: Backend) {
    use tonic::codegen::Body as _;

    /// Half a message, and then nothing.
    struct Half(Option<bytes::Bytes>);
    impl tonic::codegen::Body for Half {
        type Data = bytes::Bytes;
        type Error = std::convert::Infallible;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
            let half = self.0.take().map(http_body::Frame::data).map(Ok);
            if half.is_some() { std::task::Poll::Ready(half) } else { std::task::Poll::Pending }
        }
    }

    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &["--upload-stall-timeout", "200ms"]).await;
    let half = Half(Some(bytes::Bytes::from_static(&[0, 0, 0, 1, 0, 10, 1])));
    assert!(!half.is_end_stream());
    let request = http::Request::post(format!("http://{}/reel.v1.IngestService/RecordActions", reel.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(half))
        .unwrap();
    let mut channel = reel.channel.clone();
    std::future::poll_fn(|cx| tower::Service::poll_ready(&mut channel, cx)).await.unwrap();
    let response = tower::Service::call(&mut channel, request).await.unwrap();
    let status = tonic::Status::from_header_map(response.headers()).unwrap();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "UPLOAD_STALLED"));
    reel.start_session().await;
}

async fn more_connections_than_allowed_wait(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    // The harness's own connection is one of the two.
    let reel = Reel::start_on(&database, &["--max-connections", "2"]).await;
    let second = connect(reel.address).await;
    let list = async |channel| {
        SessionServiceClient::new(channel).list_sessions(ListSessionsRequest::default()).await.map(|_| ())
    };
    list(second.clone()).await.unwrap();
    let third = connect(reel.address).await;
    let mut waiting = tokio::spawn(list(third));
    let early = tokio::time::timeout(std::time::Duration::from_millis(200), &mut waiting).await;
    assert!(early.is_err(), "a third connection is not served");
    drop(second);
    waiting.await.unwrap().unwrap();
}

async fn what_was_recorded_is_there_after_a_restart(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &[]).await;
    let id = reel.start_session().await;
    reel.append(&id, "", 1, clicks(0..100)).await.unwrap();
    let before = reel.play_all(&id).await;
    reel.stop().await;
    let reel = Reel::start_on(&database, &[]).await;
    assert_eq!(reel.play_all(&id).await, before);
    reel.append(&id, "", 101, clicks(100..101)).await.unwrap();
    assert!(reel.send(end(&id, SessionEnd::default())).await.unwrap().ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_health_is_told_of_the_end_and_does_not_hold_it_up() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let mut reel = Reel::start_on(&database, &[]).await;
    let mut client = tonic_health::pb::health_client::HealthClient::new(reel.channel.clone());
    let request = tonic_health::pb::HealthCheckRequest { service: "reel.v1.IngestService".to_owned() };
    let mut watch = client.watch(request).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    reel.begin_shutdown();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(reason(&watch.message().await.unwrap_err()), "DRAINING");
    drop((watch, client));
    reel.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_file_that_cannot_be_made_is_not_waited_for() {
    let url = "sqlite:///no/such/folder/reel.db".parse().unwrap();
    let opened = Store::open(&url, 4).await;
    let refused = match opened {
        Ok(store) => store.prepare().await.unwrap_err(),
        Err(refused) => refused,
    };
    assert!(matches!(refused, Unfit::Denied), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_waits_for_nobody_longer_than_the_drain_timeout() {
    let database = TestDatabase::new(Backend::Sqlite).await;
    let mut reel = Reel::start_on(&database, &["--drain-timeout", "300ms"]).await;
    // HTTP/2 cannot say goodbye to a peer that has not said hello.
    let silent = TcpStream::connect(reel.address).await.unwrap();
    // Accepted after the silent one, which is therefore in.
    SessionServiceClient::new(connect(reel.address).await).list_sessions(ListSessionsRequest::default()).await.unwrap();
    reel.begin_shutdown();
    assert!(matches!(reel.ended().await, Err(ServeError::DrainTimeout)));
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_nobody_uses_are_closed_and_made_again() {
    let (reel, database) = Reel::start(Backend::Postgres).await;
    let count = async |state: &str| {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'reel'";
        database.number(&format!("{sql} AND {state}")).await
    };
    let session = reel.start_session().await;
    reel.append(&session, "", 1, clicks(0..3)).await.unwrap();
    let rush = (0..8).map(|_| async { assert_eq!(reel.play_all(&session).await.len(), 3) });
    futures_util::future::join_all(rush).await;
    let all = count("true").await;
    // What is in use listens for others, or has a lock that this process keeps: indexing.
    eventually("idle connections are closed", async || {
        reel.store.connections_close_idle().await;
        count("true").await <= 3
    })
    .await;
    assert!(all > 3, "{all} before");
    reel.append(&session, "", 4, clicks(3..5)).await.unwrap();
    assert_eq!(reel.play_all(&session).await.len(), 5);
    reel.stop().await;
}
