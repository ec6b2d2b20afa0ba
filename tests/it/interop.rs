//! Clients that know nothing of this service but its address: grpcurl, which reads the older reflection, and buf, which
//! reads the newer. Neither shares a line of code with the server.

use std::{collections::BTreeSet, env, net::SocketAddr, process::Stdio};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::harness::{Backend, Reel, TestDatabase, eventually, proto_files, rpc_paths};

#[derive(Clone, Copy, Debug)]
enum Tool {
    Grpcurl,
    Buf,
}

/// What a tool printed, and how it ended.
struct Output {
    stdout: String,
    stderr: String,
    exit_code: i32,
}

impl Tool {
    /// The tool with what it has to be told of every server.
    fn command(self) -> Command {
        let (variable, arguments): (_, &[&str]) = match self {
            Self::Grpcurl => ("REEL_TEST_GRPCURL", &["-plaintext"]),
            Self::Buf => ("REEL_TEST_BUF", &["curl", "--http2-prior-knowledge", "--protocol", "grpc", "--reflect"]),
        };
        let program = env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run tests/run"));
        let mut command = Command::new(program);
        command.args(arguments);
        command
    }

    /// Calls an RPC with these messages as JSON, one a line, on standard input.
    async fn call(self, address: SocketAddr, method: &str, messages: &str) -> Output {
        let mut command = self.command();
        match self {
            Self::Grpcurl => command.args(["-d", "@", &address.to_string(), method]),
            Self::Buf => command.args(["-d", "@-", &format!("http://{address}/{method}")]),
        };
        run(command, messages).await
    }

    /// Calls an RPC that has to succeed, and gives all messages of its answer.
    async fn ask(self, address: SocketAddr, method: &str, messages: &str) -> Vec<Value> {
        let output = self.call(address, method, messages).await;
        assert_eq!(output.exit_code, 0, "{self:?} {method}: {}", output.stderr);
        let values = serde_json::Deserializer::from_str(&output.stdout).into_iter();
        values.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{self:?} {method}: {error}: {}", output.stdout))
    }

    /// Lists the server's services, or the methods of one of them. buf can only list the methods of all.
    async fn list(self, address: SocketAddr, service: Option<&str>) -> BTreeSet<String> {
        let mut command = self.command();
        match (self, service) {
            (Self::Grpcurl, None) => command.args([&address.to_string(), "list"]),
            (Self::Grpcurl, Some(service)) => command.args([&address.to_string(), "list", service]),
            (Self::Buf, None) => command.args(["--list-services", &format!("http://{address}")]),
            (Self::Buf, Some(_)) => command.args(["--list-methods", &format!("http://{address}")]),
        };
        let output = run(command, "").await;
        assert_eq!(output.exit_code, 0, "{self:?}: {}", output.stderr);
        output.stdout.lines().map(str::to_owned).collect()
    }
}

async fn run(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    Output {
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        exit_code: output.status.code().unwrap(),
    }
}

async fn start_reel() -> (Reel, TestDatabase) {
    Reel::start(Backend::Sqlite).await
}

/// Typed by hand: a session that begins, two actions, and its end. The text of `data` has a number that no JSON library
/// keeps.
const UPLOAD: &str = r#"
{"start": {"user": {"id": "ada", "email": "ada@example.com"}, "start_time": "2026-11-01T12:00:00Z"}}
{"batch": {"source": "by-hand", "first_seq": 1, "actions": [
    {"timestamp": "2026-11-01T12:00:01.5Z", "type": "click", "target": "Create Post", "data": "{ \"x\":1e400 }"},
    {"timestamp": "2026-11-01T12:00:02Z", "type": "navigation", "target": "/posts/new"}]}}
{"end": {"reason": "logout", "last_seqs": {"by-hand": 2}}}
"#;

#[tokio::test]
async fn grpcurl_lists_all_services_and_methods() {
    lists_all_services_and_methods(Tool::Grpcurl, "grpc.reflection.v1alpha.ServerReflection").await;
}

#[tokio::test]
async fn buf_lists_all_services_and_methods() {
    lists_all_services_and_methods(Tool::Buf, "grpc.reflection.v1.ServerReflection").await;
}

async fn lists_all_services_and_methods(tool: Tool, reflection: &str) {
    let (reel, _database) = start_reel().await;
    let paths: Vec<_> = rpc_paths().iter().map(|path| path[1..].to_owned()).collect();
    let own: BTreeSet<_> = paths.iter().map(|path| path.split_once('/').unwrap().0.to_owned()).collect();
    let standard = ["grpc.health.v1.Health", reflection].map(str::to_owned);
    assert_eq!(tool.list(reel.address, None).await, own.iter().cloned().chain(standard).collect());
    for service in own {
        let listed = tool.list(reel.address, Some(&service)).await;
        // grpcurl writes a dot between service and method, buf a slash.
        let listed = listed.iter().map(|method| method.replace('/', "."));
        let listed: BTreeSet<_> = listed.filter(|method| method.starts_with(&format!("{service}."))).collect();
        let expected = paths.iter().filter(|path| path.starts_with(&format!("{service}/")));
        assert_eq!(listed, expected.map(|path| path.replace('/', ".")).collect());
    }
}

#[tokio::test]
async fn grpcurl_describes_every_symbol_with_its_comment() {
    let (reel, _database) = start_reel().await;
    for file in proto_files() {
        let messages = file.message_type.iter().map(|message| (message.name(), "a message"));
        let enums = file.enum_type.iter().map(|one| (one.name(), "an enum"));
        let services = file.service.iter().map(|service| (service.name(), "a service"));
        for (name, kind) in messages.chain(enums).chain(services) {
            let symbol = format!("{}.{name}", file.package());
            let mut command = Tool::Grpcurl.command();
            command.args([&reel.address.to_string(), "describe", &symbol]);
            let output = run(command, "").await;
            let expected = format!("{symbol} is {kind}:\n// ");
            assert!(output.stdout.starts_with(&expected), "{symbol}: {}{}", output.stdout, output.stderr);
        }
    }
}

#[tokio::test]
async fn grpcurl_calls_every_rpc() {
    calls_every_rpc(Tool::Grpcurl).await;
}

#[tokio::test]
async fn buf_calls_every_rpc() {
    calls_every_rpc(Tool::Buf).await;
}

async fn calls_every_rpc(tool: Tool) {
    let (reel, _database) = start_reel().await;
    let mut called = BTreeSet::new();
    let mut ask = async |method: &str, request: &str| {
        called.insert(format!("/reel.v1.{method}"));
        tool.ask(reel.address, &format!("reel.v1.{method}"), request).await
    };

    let recorded = ask("IngestService/RecordActions", UPLOAD).await;
    let [recorded] = recorded.as_slice() else { panic!("one answer: {recorded:?}") };
    let session = recorded["receipts"][0]["sessionId"].as_str().unwrap();
    let track = json!({"source": "by-hand", "committedSeq": "2", "acceptedCount": "2"});
    let receipt = json!({"sessionId": session, "tracks": [track], "started": true, "ended": true});
    assert_eq!(*recorded, json!({"receipts": [receipt]}));

    let streamed = ask("IngestService/StreamActions", UPLOAD).await;
    let other = streamed[0]["receipt"]["sessionId"].as_str().unwrap();
    let receipts = [
        json!({"receipt": {"sessionId": other, "started": true}}),
        json!({"receipt": {"sessionId": other, "tracks": [track]}}),
        json!({"receipt": {"sessionId": other, "ended": true}}),
    ];
    assert_eq!(streamed, receipts);

    let of_session = json!({"session_id": session}).to_string();
    let cursor = ask("IngestService/GetIngestCursor", &of_session).await;
    assert_eq!(cursor, [json!({"cursors": [{"source": "by-hand", "committedSeq": "2"}], "ended": true})]);

    let played = ask("PlaybackService/PlaySession", &of_session).await;
    let [start, page, end] = played.as_slice() else { panic!("three messages: {played:?}") };
    assert_eq!(start["start"]["session"]["userId"], "ada");
    let first = json!({
        "timestamp": "2026-11-01T12:00:01.500Z", "type": "click", "target": "Create Post", "data": "{ \"x\":1e400 }",
        "seq": "1", "source": "by-hand",
    });
    let second = json!({
        "timestamp": "2026-11-01T12:00:02Z", "type": "navigation", "target": "/posts/new",
        "seq": "2", "source": "by-hand",
    });
    assert_eq!(page["actions"]["actions"], json!([first, second]));
    assert_eq!(end["end"]["actionCount"], "2");

    let got = ask("SessionService/GetSession", &of_session).await;
    assert_eq!(got[0]["session"]["endReason"], "logout");
    let listed = ask("SessionService/ListSessions", r#"{"filter": {"email": "ADA@example.com"}}"#).await;
    assert_eq!(listed[0]["sessions"].as_array().unwrap().len(), 2);
    asks_and_counts(&mut ask).await;
    let change = json!({"session_id": session, "attributes": {"browser": "none"}}).to_string();
    let updated = ask("SessionService/UpdateSession", &change).await;
    assert_eq!(updated[0]["session"]["attributes"], json!({"browser": "none"}));

    let upserted = ask("UserService/UpsertUser", r#"{"user": {"id": "ada", "name": "Ada"}}"#).await;
    assert_eq!(upserted[0]["user"]["email"], "ada@example.com");
    let user = ask("UserService/GetUser", r#"{"user_id": "ada"}"#).await;
    assert_eq!(user, upserted);
    let users = ask("UserService/ListUsers", "{}").await;
    assert_eq!(users, [json!({"users": [user[0]["user"]]})]);

    let erased = ask("SessionService/DeleteSession", &of_session).await;
    assert_eq!(erased, [json!({"erasedActionCount": "2"})]);
    let erased = ask("UserService/DeleteUser", r#"{"user_id": "ada"}"#).await;
    assert_eq!(erased, [json!({"erasedSessionCount": "1", "erasedActionCount": "2"})]);

    let erasure = ask("UserService/GetErasure", r#"{"user_id": "ada"}"#).await;
    assert_eq!(erasure[0]["erasedSessionCount"], "1");
    eventually("nothing is left of it anywhere", async || {
        ask("UserService/GetErasure", r#"{"user_id": "ada"}"#).await[0]["finishTime"].is_string()
    })
    .await;

    assert_eq!(called, rpc_paths().into_iter().collect(), "every RPC was called");
    let health = tool.ask(reel.address, "grpc.health.v1.Health/Check", "{}").await;
    assert_eq!(health, [json!({"status": "SERVING"})]);
}

/// The questions of README.md.
async fn asks_and_counts(ask: &mut impl AsyncFnMut(&str, &str) -> Vec<Value>) {
    let found = ask("SessionService/ListActions", r#"{"match": {"type": "navigation"}}"#).await;
    assert_eq!(found[0]["actions"][0]["action"]["target"], "/posts/new");
    let by = r#"{"group_by": ["ACTION_DIMENSION_TYPE"]}"#;
    let counted = ask("AnalyticsService/CountActions", by).await;
    assert_eq!(counted[0]["totalActionCount"], "4");
    let durations = ask("AnalyticsService/GetSessionDurations", "{}").await;
    assert_eq!(durations[0]["total"]["p50"], "2s");
    let errors = ask("AnalyticsService/GetErrorFrequency", "{}").await;
    assert_eq!(errors, [json!({"total": {}})]);
    let transitions = ask("AnalyticsService/ListTransitions", r#"{"filter": {"all_of": [{"type": "click"}]}}"#).await;
    assert_eq!(transitions[0]["transitions"][0]["medianTime"], "0.500s");
    let stored = ask("RetentionService/GetStorageStats", "{}").await;
    assert_eq!(stored[0]["actionCount"], "4");
    let nothing = ask("RetentionService/PreviewRetention", "{}").await;
    assert_eq!(nothing[0]["report"]["days"], Value::Null);
    let nothing = ask("RetentionService/ApplyRetention", "{}").await;
    assert_eq!(nothing[0]["report"]["sessionCount"], Value::Null);
    let steps = r#"{"steps": [{"match": {"type": "click"}}, {"match": {"type": "navigation"}}]}"#;
    let funnel = ask("AnalyticsService/GetFunnel", steps).await;
    assert_eq!(funnel[0]["steps"][1], json!({"sessionCount": "2", "userCount": "1"}));
}

#[tokio::test]
async fn grpcurl_reads_the_details_of_errors() {
    let (reel, _database) = start_reel().await;
    let bad = r#"{"session_id": "none"}"#;
    let output = Tool::Grpcurl.call(reel.address, "reel.v1.SessionService/GetSession", bad).await;
    // 64 and the code: INVALID_ARGUMENT is 3.
    assert_eq!(output.exit_code, 67, "{}", output.stderr);
    let [info, bad_request] = details(&output.stderr).try_into().unwrap();
    let expected =
        json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "INVALID_FIELD", "domain": "reel"});
    assert_eq!(info, expected);
    assert_eq!(bad_request["@type"], "type.googleapis.com/google.rpc.BadRequest");
    assert_eq!(bad_request["fieldViolations"][0]["field"], "session_id");

    let gap = format!("{} {}", r#"{"start": {}}"#, r#"{"batch": {"first_seq": 7, "actions": [{}]}}"#);
    let output = Tool::Grpcurl.call(reel.address, "reel.v1.IngestService/RecordActions", &gap).await;
    // ABORTED is 10.
    assert_eq!(output.exit_code, 74, "{}", output.stderr);
    let details = details(&output.stderr);
    assert_eq!(details[0]["reason"], "SEQUENCE_GAP");
    assert_eq!(details[0]["metadata"]["expected_seq"], "1");
}

/// The details that grpcurl prints, numbered, one a line.
fn details(stderr: &str) -> Vec<Value> {
    let lines = stderr.lines().filter_map(|line| line.split_once(")\t"));
    lines.map(|(_, json)| serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {stderr}"))).collect()
}

#[tokio::test]
async fn buf_names_the_code_and_the_details_of_errors() {
    let (reel, _database) = start_reel().await;
    let bad = r#"{"session_id": "none"}"#;
    let output = Tool::Buf.call(reel.address, "reel.v1.SessionService/GetSession", bad).await;
    // The code times 8.
    assert_eq!(output.exit_code, 24, "{}", output.stderr);
    let error: Value = serde_json::from_str(&output.stderr).unwrap();
    assert_eq!(error["code"], "invalid_argument");
    let types: Vec<_> = error["details"].as_array().unwrap().iter().map(|one| &one["type"]).collect();
    assert_eq!(types, ["google.rpc.ErrorInfo", "google.rpc.BadRequest"]);
}
