//! Runs a whole service in the test's process, on a database of its own, and talks to it as clients do.

mod contents;
mod database;
mod messages;
mod seeds;

use std::{net::SocketAddr, time::Duration};

use clap::Parser;
use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto};
use reel::{
    config::ServiceArgs,
    proto::{
        self, Action, RecordActionsRequest, RecordActionsResponse, SessionReceipt, SessionStart, TrackReceipt,
        ingest_service_client::IngestServiceClient, play_session_response::Event,
        playback_service_client::PlaybackServiceClient, session_service_client::SessionServiceClient,
        user_service_client::UserServiceClient,
    },
    server::{self, ServeError},
    store::Store,
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

pub use self::{contents::*, database::*, messages::*, seeds::*};

/// Makes two tests of each function: one on SQLite, one on PostgreSQL.
#[macro_export]
macro_rules! on_both_databases {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            use $crate::harness::Backend;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                super::$name(Backend::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                super::$name(Backend::Postgres).await;
            }
        }
    )* };
}

#[derive(Parser)]
#[command(args_override_self = true)]
struct Arguments {
    #[command(flatten)]
    service: ServiceArgs,
}

/// The service's defaults with these arguments of its command line.
pub fn service_args(arguments: &[&str]) -> ServiceArgs {
    // Tests have days of their own, and sessions of all ages. Of an argument that is given twice, the last counts.
    Arguments::parse_from(["reel", "--retention", "0"].iter().chain(arguments)).service
}

/// Prints what services say of failures: a client is not told the cause. nextest shows it of tests that fail.
fn log_failures() {
    // Where a test starts several, the first call counts.
    let lines = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_ansi(false);
    let _ = lines.with_writer(std::io::stderr).try_init();
}

/// A running service.
pub struct Reel {
    pub address: SocketAddr,
    pub channel: Channel,
    pub store: Store,
    shut_down: Option<oneshot::Sender<()>>,
    serving: JoinHandle<Result<(), ServeError>>,
}

impl Reel {
    /// Starts the service on an empty database, and waits until it is ready.
    pub async fn start(backend: Backend) -> (Self, TestDatabase) {
        let database = TestDatabase::new(backend).await;
        (Self::start_on(&database, &[]).await, database)
    }

    /// Starts the service on this database with these arguments of its command line.
    pub async fn start_on(database: &TestDatabase, arguments: &[&str]) -> Self {
        let reel = Self::start_unready(&database.url, arguments).await;
        reel.wait_until_serving().await;
        reel
    }

    /// Starts the service without waiting for its database.
    pub async fn start_unready(url: &str, arguments: &[&str]) -> Self {
        let args = service_args(arguments);
        let store = Store::open(&url.parse().unwrap(), 12).await.unwrap();
        let store = store.with_archive(args.retention.open_archive().unwrap());
        Self::start_with(store, args).await
    }

    /// The same with a handle on the database of the test's own.
    pub async fn start_with(store: Store, args: ServiceArgs) -> Self {
        log_failures();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shut_down, shutdown) = oneshot::channel();
        let served = store.clone();
        let serving = tokio::spawn(async move {
            let shutdown = async {
                let _ = shutdown.await;
            };
            server::run(listener, served, &args, shutdown).await
        });
        let channel = connect(address).await;
        Self { address, channel, store, shut_down: Some(shut_down), serving }
    }

    pub async fn wait_until_serving(&self) {
        // Not by `eventually`: tests wait for this in tasks of their own, and futures of async closures are not Send.
        let wait = async {
            while self.health().await != tonic_health::pb::health_check_response::ServingStatus::Serving {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), wait).await.expect("the service is ready");
    }

    pub async fn health(&self) -> tonic_health::pb::health_check_response::ServingStatus {
        let mut client = tonic_health::pb::health_client::HealthClient::new(self.channel.clone());
        let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
        client.check(request).await.unwrap().into_inner().status()
    }

    /// Asks the service to end, without waiting for it.
    pub fn begin_shutdown(&mut self) {
        let _ = self.shut_down.take().unwrap().send(());
    }

    /// Waits for the end of the service.
    pub async fn ended(self) -> Result<(), ServeError> {
        drop(self.channel);
        self.serving.await.unwrap()
    }

    /// Ends the service in good order.
    pub async fn stop(mut self) {
        self.begin_shutdown();
        self.ended().await.unwrap();
    }

    pub fn ingest(&self) -> IngestServiceClient<Channel> {
        IngestServiceClient::new(self.channel.clone())
    }

    pub fn playback(&self) -> PlaybackServiceClient<Channel> {
        PlaybackServiceClient::new(self.channel.clone()).max_decoding_message_size(16 << 20)
    }

    pub fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel.clone())
    }

    pub fn users(&self) -> UserServiceClient<Channel> {
        UserServiceClient::new(self.channel.clone())
    }

    /// Sends these messages by RecordActions.
    pub async fn record(&self, requests: Vec<RecordActionsRequest>) -> Result<RecordActionsResponse, Status> {
        let response = self.ingest().record_actions(tokio_stream::iter(requests)).await?;
        Ok(response.into_inner())
    }

    /// Sends one message, and gives its receipt.
    pub async fn send(&self, request: RecordActionsRequest) -> Result<SessionReceipt, Status> {
        let response = self.record(vec![request]).await?;
        Ok(response.receipts.into_iter().next().unwrap())
    }

    /// Sends one batch to a track of a session, and gives what was done.
    pub async fn append(
        &self,
        session: &str,
        source: &str,
        first_seq: i64,
        actions: Vec<Action>,
    ) -> Result<TrackReceipt, Status> {
        let receipt = self.send(batch(session, source, first_seq, actions)).await?;
        Ok(receipt.tracks.into_iter().next().unwrap())
    }

    /// Starts a session and gives its id.
    pub async fn start_session(&self) -> String {
        self.send(start("", SessionStart::default())).await.unwrap().session_id
    }

    pub async fn get(&self, session: &str) -> Result<proto::Session, Status> {
        let request = proto::GetSessionRequest { session_id: session.to_owned() };
        Ok(self.sessions().get_session(request).await?.into_inner().session.unwrap())
    }

    /// Plays a session to its end.
    pub async fn play(&self, request: proto::PlaySessionRequest) -> Result<Played, Status> {
        play_through(self.channel.clone(), request).await
    }

    /// Plays all of a session at once.
    pub async fn play_all(&self, session: &str) -> Vec<Action> {
        self.play(play(session)).await.unwrap().actions
    }
}

/// What a playback gave.
#[derive(Default)]
pub struct Played {
    pub session: Option<proto::Session>,
    pub actions: Vec<Action>,
    /// For each page, how many actions had come by its end, and its cursor.
    pub pages: Vec<(usize, String)>,
    pub end_cursor: Option<String>,
}

impl Played {
    pub fn targets(&self) -> Vec<&str> {
        self.actions.iter().map(|action| action.target.as_str()).collect()
    }
}

/// Plays a session to its end.
pub async fn play_through(channel: Channel, request: proto::PlaySessionRequest) -> Result<Played, Status> {
    let mut played = Played::default();
    play_into(channel, request, Duration::from_mins(1), &mut played).await?;
    Ok(played)
}

/// Plays a session to its end. What came before a failure stays in `played`; that nothing comes for longer than `patience` is
/// one.
pub async fn play_into(
    channel: Channel,
    request: proto::PlaySessionRequest,
    patience: Duration,
    played: &mut Played,
) -> Result<(), Status> {
    let mut client = PlaybackServiceClient::new(channel).max_decoding_message_size(16 << 20);
    let mut stream = in_time(patience, client.play_session(request)).await?.into_inner();
    while let Some(response) = in_time(patience, stream.message()).await? {
        match response.event.unwrap() {
            Event::Start(start) => {
                assert!(played.session.is_none() && played.actions.is_empty(), "the start comes first and once");
                played.session = start.session;
            }
            Event::Actions(page) => {
                assert!(!page.actions.is_empty(), "no page is empty");
                played.actions.extend(page.actions);
                played.pages.push((played.actions.len(), page.cursor));
            }
            Event::End(end) => {
                assert_eq!(usize::try_from(end.action_count).unwrap(), played.actions.len());
                played.end_cursor = Some(end.cursor);
            }
        }
    }
    assert!(played.session.is_some() && played.end_cursor.is_some(), "a playback has a start and an end");
    Ok(())
}

/// What does not come in time is taken for lost.
pub async fn in_time<T>(patience: Duration, answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let lost = |_| Err(Status::unavailable("no answer came in time"));
    tokio::time::timeout(patience, answer).await.unwrap_or_else(lost)
}

pub async fn connect(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// The reason in a status's ErrorInfo, after checking what every status of this service has.
pub fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "reel");
    let is_retryable = status.code() == Code::Unavailable;
    assert_eq!(details.retry_info().is_some(), is_retryable, "RetryInfo where a retry helps: {status:?}");
    let is_bad_request = info.reason == "INVALID_FIELD";
    assert_eq!(details.bad_request().is_some(), is_bad_request, "BadRequest where fields are at fault: {status:?}");
    info.reason.clone()
}

/// A value of the metadata of a status's ErrorInfo.
pub fn metadata(status: &Status, key: &str) -> String {
    status.get_error_details().error_info().unwrap().metadata[key].clone()
}

/// The files that describe this service: not those of what it builds on.
pub fn proto_files() -> Vec<FileDescriptorProto> {
    let descriptors = FileDescriptorSet::decode(reel::proto::DESCRIPTORS).unwrap();
    descriptors.file.into_iter().filter(|file| file.package().starts_with("reel.")).collect()
}

/// The paths of all of this service's RPCs.
pub fn rpc_paths() -> Vec<String> {
    let mut paths = Vec::new();
    for file in proto_files() {
        for service in &file.service {
            let methods = service.method.iter().map(MethodDescriptorProto::name);
            paths.extend(methods.map(|method| format!("/{}.{}/{method}", file.package(), service.name())));
        }
    }
    paths
}

/// Waits until something is so, which it has to be within a generous time.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}
