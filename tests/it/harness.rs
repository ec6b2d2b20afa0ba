//! Runs a whole service in the test's process, on a database of its own, and talks to it as clients do.

use std::{env, net::SocketAddr, time::Duration};

use clap::Parser;
use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto};
use reel::{
    config::ServiceArgs,
    proto::{
        self, Action, ActionBatch, RecordActionsRequest, RecordActionsResponse, SessionEnd, SessionReceipt,
        SessionStart, StreamActionsRequest, TrackReceipt, User, ingest_service_client::IngestServiceClient,
        play_session_response::Event, playback_service_client::PlaybackServiceClient, record_actions_request,
        session_service_client::SessionServiceClient, stream_actions_request, user_service_client::UserServiceClient,
    },
    server::{self, ServeError},
    store::Store,
};
use sea_orm::ConnectionTrait as _;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

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

/// Which kind of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Sqlite,
    Postgres,
}

/// An empty database, removed when it is dropped.
pub struct TestDatabase {
    pub url: String,
    /// The folder of the SQLite file.
    _folder: Option<TempDir>,
    /// The name of the PostgreSQL database.
    name: Option<String>,
}

/// The PostgreSQL server that `tests/run` has started.
pub fn postgres_server() -> String {
    env::var("REEL_TEST_POSTGRES").expect("REEL_TEST_POSTGRES is not set: run the tests by tests/run")
}

impl TestDatabase {
    pub async fn new(backend: Backend) -> Self {
        if backend == Backend::Sqlite {
            let folder = TempDir::new().unwrap();
            let url = format!("sqlite://{}/reel.db", folder.path().display());
            return Self { url, _folder: Some(folder), name: None };
        }
        let server = postgres_server();
        let name = format!("reel_{}", uuid::Uuid::now_v7().simple());
        administer(&server, &format!("CREATE DATABASE {name}")).await;
        let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
        Self { url, _folder: None, name: Some(name) }
    }

    /// A database that somebody else removes.
    pub fn at(url: String) -> Self {
        Self { url, _folder: None, name: None }
    }

    pub fn backend(&self) -> Backend {
        if self.url.starts_with("sqlite:") { Backend::Sqlite } else { Backend::Postgres }
    }

    /// A connection past the service, for looking and meddling.
    pub async fn connect(&self) -> sea_orm::DatabaseConnection {
        sea_orm::Database::connect(&self.url).await.unwrap()
    }

    /// Runs a statement past the service.
    pub async fn execute(&self, sql: &str) {
        self.connect().await.execute_unprepared(sql).await.unwrap();
    }

    /// The one number that a query gives.
    pub async fn number(&self, sql: &str) -> i64 {
        let connection = self.connect().await;
        let statement = sea_orm::Statement::from_string(connection.get_database_backend(), sql);
        let row = connection.query_one_raw(statement).await.unwrap().unwrap();
        row.try_get_by_index(0).unwrap()
    }

    /// The one text of each row that a query gives.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        let connection = self.connect().await;
        let statement = sea_orm::Statement::from_string(connection.get_database_backend(), sql);
        let rows = connection.query_all_raw(statement).await.unwrap();
        rows.into_iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
    }
}

pub async fn administer(server: &str, sql: &str) {
    let connection = sea_orm::Database::connect(server).await.unwrap();
    connection.execute_unprepared(sql).await.unwrap();
    connection.close().await.unwrap();
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let Some(name) = self.name.take() else { return };
        let drop_it = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(administer(&postgres_server(), &format!("DROP DATABASE {name} WITH (FORCE)")));
        };
        let _ = std::thread::spawn(drop_it).join();
    }
}

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    service: ServiceArgs,
}

/// The service's defaults with these arguments of its command line.
pub fn service_args(arguments: &[&str]) -> ServiceArgs {
    Arguments::parse_from(["reel"].iter().chain(arguments)).service
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
        let store = Store::open(&url.parse().unwrap(), 4).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shut_down, shutdown) = oneshot::channel();
        let args = service_args(arguments);
        let served = store.clone();
        let serving = tokio::spawn(async move {
            let shutdown = async {
                let _ = shutdown.await;
            };
            Box::pin(server::run(listener, served, &args, shutdown)).await
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
        let mut stream = self.playback().play_session(request).await?.into_inner();
        let mut played = Played::default();
        while let Some(response) = stream.message().await? {
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
        Ok(played)
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

pub async fn connect(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

pub fn play(session: &str) -> proto::PlaySessionRequest {
    proto::PlaySessionRequest { session_id: session.to_owned(), ..Default::default() }
}

pub fn start(session: &str, start: SessionStart) -> RecordActionsRequest {
    let event = Some(record_actions_request::Event::Start(start));
    RecordActionsRequest { session_id: session.to_owned(), event }
}

pub fn batch(session: &str, source: &str, first_seq: i64, actions: Vec<Action>) -> RecordActionsRequest {
    let batch = ActionBatch { source: source.to_owned(), first_seq, actions };
    let event = Some(record_actions_request::Event::Batch(batch));
    RecordActionsRequest { session_id: session.to_owned(), event }
}

pub fn end(session: &str, end: SessionEnd) -> RecordActionsRequest {
    let event = Some(record_actions_request::Event::End(end));
    RecordActionsRequest { session_id: session.to_owned(), event }
}

/// The same message for StreamActions.
pub fn streamed(request: RecordActionsRequest) -> StreamActionsRequest {
    use record_actions_request::Event as Recorded;
    use stream_actions_request::Event as Streamed;

    let event = request.event.map(|event| match event {
        Recorded::Start(start) => Streamed::Start(start),
        Recorded::Batch(batch) => Streamed::Batch(batch),
        Recorded::End(end) => Streamed::End(end),
    });
    StreamActionsRequest { session_id: request.session_id, event }
}

pub fn user(id: &str, email: &str) -> User {
    User { id: id.to_owned(), email: email.to_owned(), ..Default::default() }
}

/// A time that the tests' sessions start at: noon of a day in the past.
pub const NOON_MS: i64 = 1_793_534_400_000;

pub fn timestamp(unix_ms: i64) -> prost_types::Timestamp {
    let nanos = i32::try_from(unix_ms.rem_euclid(1_000) * 1_000_000).unwrap();
    prost_types::Timestamp { seconds: unix_ms.div_euclid(1_000), nanos }
}

pub fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// The id of a new session that starts at this time.
pub fn session_id(unix_ms: i64) -> String {
    reel::model::SessionId::mint(chrono::DateTime::from_timestamp_millis(unix_ms).unwrap()).to_string()
}

/// A click this many milliseconds after noon.
pub fn click(offset_ms: i64, target: &str) -> Action {
    action(offset_ms, "click", target)
}

pub fn action(offset_ms: i64, kind: &str, target: &str) -> Action {
    Action {
        timestamp: Some(timestamp(NOON_MS + offset_ms)),
        r#type: kind.to_owned(),
        target: target.to_owned(),
        data: format!(r#"{{"at": {offset_ms}}}"#),
        ..Default::default()
    }
}

/// Clicks a second apart, on targets `0`, `1`, ….
pub fn clicks(numbers: std::ops::Range<i64>) -> Vec<Action> {
    numbers.map(|number| click(number * 1_000, &number.to_string())).collect()
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
