//! Bytes that are no requests, or not whole ones: below the messages of this service.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use http::StatusCode;
use prost::Message as _;
use reel::proto::{
    GetSessionRequest, PlaySessionRequest, PlaySessionResponse, RecordActionsRequest, UpsertUserRequest,
    play_session_response::Event,
};
use sea_orm::{ConnectionTrait as _, TransactionTrait as _};
use tonic::{Code, Status};

use super::{
    still_works,
    table::{ACCEPTED, Expected, fault, refused},
    wire::{Answer, Head, Wire, frame, frame_header},
    world::World,
};
use crate::{
    harness::{
        Backend, NOON_MS, Reel, TestDatabase, batch, click, metadata, play, reason, rpc_paths, session_id, user,
    },
    on_both_databases,
};

on_both_databases!(
    bytes_that_are_no_request_get_their_documented_status_from_every_rpc,
    a_message_may_have_4_mib_and_no_more,
    a_call_ends_when_its_deadline_has_passed,
    headers_over_16_kib_break_their_call_and_nothing_else,
    what_is_not_grpc_is_refused,
    a_message_that_stops_coming_is_given_up,
    a_request_that_is_no_upload_may_have_256_kib_and_is_complete_in_time,
);

/// The largest message.
const LIMIT: usize = 4 << 20;

/// Bytes that the messages of other RPCs may have.
const REQUEST_LIMIT: usize = 256 << 10;

const GET_SESSION: &str = "/reel.v1.SessionService/GetSession";
const RECORD: &str = "/reel.v1.IngestService/RecordActions";

fn malformed() -> Expected {
    refused(Code::InvalidArgument, "MALFORMED_MESSAGE")
}

fn too_large() -> Expected {
    refused(Code::ResourceExhausted, "MESSAGE_TOO_LARGE")
}

fn broken() -> Expected {
    refused(Code::Internal, "PROTOCOL_ERROR")
}

fn is_upload(path: &str) -> bool {
    path.ends_with("/RecordActions") || path.ends_with("/StreamActions")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// Name, headers of the request, its body, and what has to come back.
type Row = (&'static str, Vec<(&'static str, &'static str)>, Vec<u8>, Expected);

/// What an RPC is sent whose messages may have so many bytes.
fn rows(limit: usize) -> Vec<Row> {
    let groups = |depth: usize| [vec![0x7b; depth], vec![0x7c; depth]].concat();
    let bomb = vec![0; 32 << 20];
    let unimplemented = || refused(Code::Unimplemented, "UNIMPLEMENTED");
    vec![
        ("half a field", vec![], frame(0, &[0x0a, 5, b'x']), malformed()),
        ("no field", vec![], frame(0, &[0xff; 11]), malformed()),
        ("groups nested 101 deep", vec![], frame(0, &groups(101)), malformed()),
        ("a message of the limit and a byte", vec![], frame_header(0, limit + 1), too_large()),
        ("a message of 4 GiB", vec![], frame_header(0, 0xffff_ffff), too_large()),
        ("half a header", vec![], vec![0, 0], broken()),
        ("a header alone", vec![], frame_header(0, 10), broken()),
        ("half a message", vec![], [frame_header(0, 10), vec![b'x'; 5]].concat(), broken()),
        ("compressed, without saying how", vec![], frame(1, &gzip(b"")), broken()),
        ("flag 2", vec![], frame(2, b""), broken()),
        ("flag 255", vec![("grpc-encoding", "gzip")], frame(255, b""), broken()),
        ("an encoding that nobody knows", vec![("grpc-encoding", "snappy")], frame(0, b""), unimplemented()),
        ("an encoding that is not offered", vec![("grpc-encoding", "deflate")], frame(1, b""), unimplemented()),
        ("gzip that is none", vec![("grpc-encoding", "gzip")], frame(1, b"xxxxxxxxxxxxxxxxxxxx"), broken()),
        ("zstd that is none", vec![("grpc-encoding", "zstd")], frame(1, b"xxxxxxxxxxxxxxxxxxxx"), broken()),
        ("a gzip bomb", vec![("grpc-encoding", "gzip")], frame(1, &gzip(&bomb)), too_large()),
        ("a zstd bomb", vec![("grpc-encoding", "zstd")], frame(1, &zstd(&bomb)), too_large()),
        ("gzip of the limit", vec![("grpc-encoding", "gzip")], frame(1, &gzip(&bomb[..limit])), malformed()),
        (
            "gzip of the limit and a byte",
            vec![("grpc-encoding", "gzip")],
            frame(1, &gzip(&bomb[..=limit])),
            too_large(),
        ),
        ("zstd of the limit", vec![("grpc-encoding", "zstd")], frame(1, &zstd(&bomb[..limit])), malformed()),
        (
            "zstd of the limit and a byte",
            vec![("grpc-encoding", "zstd")],
            frame(1, &zstd(&bomb[..=limit])),
            too_large(),
        ),
    ]
}

async fn bytes_that_are_no_request_get_their_documented_status_from_every_rpc(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let world = World::make(&reel).await;
    let wire = Wire::connect(reel.address).await;
    let mut faults = Vec::new();
    let mut check = async |name: &str, head: Head, body: Vec<u8>, expected: Expected| {
        let path = head.path.clone();
        let fault = match wire.call(head, body).await {
            Ok(answer) => fault(&answer, expected),
            Err(error) => Some(error.to_string()),
        };
        faults.extend(fault.map(|fault| format!("{path} of {name}: {fault}")));
    };
    let (of_ingest, of_others) = (rows(LIMIT), rows(REQUEST_LIMIT));
    for path in rpc_paths() {
        let rows = if path.starts_with("/reel.v1.IngestService/") { &of_ingest } else { &of_others };
        for (name, headers, body, expected) in rows {
            let head = headers.iter().fold(Head::of(&path), |head, (name, value)| head.with(name, *value));
            check(name, head, body.clone(), *expected).await;
        }
        let nothing = if is_upload(&path) { ACCEPTED } else { broken() };
        check("no message at all", Head::of(&path), Vec::new(), nothing).await;
    }
    for (path, body) in invalid_utf8() {
        check("text that is not UTF-8", Head::of(path), frame(0, &body), malformed()).await;
    }
    for path in
        ["/reel.v1.SessionService/Nothing", "/reel.v1.NoService/GetSession", "/reel.v2.X/Y", "/", "/x", "/a/b/c"]
    {
        check("a path that there is not", Head::of(path), frame(0, b""), refused(Code::Unimplemented, "UNIMPLEMENTED"))
            .await;
    }
    let good = GetSessionRequest { session_id: world.session.clone() }.encode_to_vec();
    for (encoding, compressed) in [("gzip", gzip(&good)), ("zstd", zstd(&good))] {
        check(
            "a compressed message",
            Head::of(GET_SESSION).with("grpc-encoding", encoding),
            frame(1, &compressed),
            ACCEPTED,
        )
        .await;
    }
    for timeout in ["", "1", "S", "1x", "-1S", "123456789S", "\u{a0}"] {
        check(
            "a deadline that is none",
            Head::of(GET_SESSION).with("grpc-timeout", timeout),
            frame(0, &good),
            ACCEPTED,
        )
        .await;
    }
    assert!(faults.is_empty(), "{} wrong answers:\n{}", faults.len(), faults.join("\n"));

    let head = Head::of(GET_SESSION).with("grpc-encoding", "snappy");
    let answer = wire.call(head, frame(0, &good)).await.unwrap();
    assert_eq!(answer.headers["grpc-accept-encoding"], "gzip,zstd,identity");
    still_works(&reel, &world).await;
}

/// For each RPC, a message whose first text is the byte 0xff.
fn invalid_utf8() -> Vec<(&'static str, Vec<u8>)> {
    let first = vec![0x0a, 1, 0xff];
    let second = vec![0x12, 1, 0xff];
    let in_user = vec![0x0a, 3, 0x0a, 1, 0xff];
    // In a batch (field 3), in an action (field 3), the data (field 4).
    let in_action = vec![0x1a, 5, 0x1a, 3, 0x22, 1, 0xff];
    vec![
        (RECORD, first.clone()),
        (RECORD, in_action.clone()),
        ("/reel.v1.IngestService/StreamActions", in_action),
        ("/reel.v1.IngestService/GetIngestCursor", first.clone()),
        ("/reel.v1.PlaybackService/PlaySession", first.clone()),
        (GET_SESSION, first.clone()),
        ("/reel.v1.SessionService/ListSessions", second.clone()),
        ("/reel.v1.SessionService/UpdateSession", first.clone()),
        ("/reel.v1.SessionService/DeleteSession", first.clone()),
        ("/reel.v1.UserService/UpsertUser", in_user),
        ("/reel.v1.UserService/GetUser", first.clone()),
        ("/reel.v1.UserService/ListUsers", second),
        ("/reel.v1.UserService/DeleteUser", first),
    ]
}

/// A batch whose message has exactly this many bytes.
fn batch_of(session: &str, bytes: usize) -> RecordActionsRequest {
    let json = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
    let mut actions: Vec<_> = (0..5).map(|_| click(0, "")).collect();
    for action in &mut actions {
        action.data = json(800 << 10);
    }
    let missing = bytes - batch(session, "", 1, actions.clone()).encoded_len();
    actions[0].data = json((800 << 10) + missing);
    let request = batch(session, "", 1, actions);
    assert_eq!(request.encoded_len(), bytes);
    request
}

async fn a_message_may_have_4_mib_and_no_more(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let session = reel.start_session().await;
    let refused = reel.record(vec![batch_of(&session, LIMIT + 1)]).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    assert_eq!(metadata(&refused, "limit_bytes"), LIMIT.to_string());
    assert_eq!(reel.play_all(&session).await.len(), 0);
    let receipt = reel.send(batch_of(&session, LIMIT)).await.unwrap();
    assert_eq!(receipt.tracks[0].accepted_count, 5);

    // What came before a message that is too large stays, also in the same stream.
    let small = batch(&session, "small", 1, vec![click(0, "")]);
    let refused = reel.record(vec![small, batch_of(&session, LIMIT + 1)]).await.unwrap_err();
    assert_eq!(reason(&refused), "MESSAGE_TOO_LARGE");
    assert_eq!(reel.play_all(&session).await.len(), 6);
}

async fn a_call_ends_when_its_deadline_has_passed(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let world = World::make(&reel).await;
    let wire = Wire::connect(reel.address).await;
    let late = |answer: &Answer| fault(answer, refused(Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));

    // A unary call that has to wait for somebody else's transaction.
    let connection = database.connect().await;
    let blocking = connection.begin().await.unwrap();
    blocking.execute_unprepared("UPDATE users SET name = 'blocked'").await.unwrap();
    let body = frame(0, &UpsertUserRequest { user: Some(user("ada", "")) }.encode_to_vec());
    for timeout in ["0n", "1n", "100m"] {
        let head = Head::of("/reel.v1.UserService/UpsertUser").with("grpc-timeout", timeout);
        assert_eq!(late(&wire.call(head, body.clone()).await.unwrap()), None, "{timeout}");
    }
    blocking.rollback().await.unwrap();
    let head = Head::of("/reel.v1.UserService/UpsertUser").with("grpc-timeout", "99999999H");
    assert_eq!(fault(&wire.call(head, body).await.unwrap(), ACCEPTED), None);

    // A playback that has begun says in its trailers why it ends.
    let live = reel.start_session().await;
    reel.append(&live, "", 1, vec![click(0, "")]).await.unwrap();
    let following = PlaySessionRequest { follow: true, ..play(&live) };
    let head = Head::of("/reel.v1.PlaybackService/PlaySession").with("grpc-timeout", "2S");
    let answer = wire.call(head, frame(0, &following.encode_to_vec())).await.unwrap();
    assert_eq!(late(&answer), None);
    let events: Vec<_> = answer
        .messages
        .iter()
        .map(|bytes| PlaySessionResponse::decode(bytes.clone()).unwrap().event.unwrap())
        .collect();
    assert!(matches!(events.as_slice(), [Event::Start(_), Event::Actions(_)]), "{} messages", events.len());

    // An upload that is open when its deadline passes.
    let head = Head::of(RECORD).with("grpc-timeout", "200m");
    let (response, mut sending) = wire.begin(head).await.unwrap();
    let message = batch(&live, "", 2, vec![click(0, "")]).encode_to_vec();
    sending.send_data(frame(0, &message).into(), false).unwrap();
    let response = response.await.unwrap();
    let status = Status::from_header_map(response.headers()).unwrap();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    still_works(&reel, &world).await;
}

async fn headers_over_16_kib_break_their_call_and_nothing_else(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let world = World::make(&reel).await;
    let body = frame(0, &GetSessionRequest { session_id: world.session.clone() }.encode_to_vec());
    let with_header = |bytes: usize| Head::of(GET_SESSION).with("x-filler", "x".repeat(bytes));
    let below = Wire::connect(reel.address).await.call(with_header(15 << 10), body.clone()).await.unwrap();
    assert_eq!(fault(&below, ACCEPTED), None);
    for bytes in [16 << 10, 64 << 10, 1 << 20] {
        let wire = Wire::connect(reel.address).await;
        match wire.call(with_header(bytes), body.clone()).await {
            Ok(answer) => assert_eq!(answer.http_status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "{bytes} bytes"),
            Err(error) => assert!(error.is_remote() || error.is_io(), "{bytes} bytes: {error}"),
        }
    }
    still_works(&reel, &world).await;
}

async fn what_is_not_grpc_is_refused(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let wire = Wire::connect(reel.address).await;
    let body = frame(0, &GetSessionRequest { session_id: session_id(NOON_MS) }.encode_to_vec());
    for content_type in ["", "application/json", "text/plain", "application/grp"] {
        let head = Head { content_type, ..Head::of(GET_SESSION) };
        let answer = wire.call(head, body.clone()).await.unwrap();
        assert_eq!(answer.http_status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
    }
    for content_type in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
        let head = Head { content_type, ..Head::of(GET_SESSION) };
        let answer = wire.call(head, body.clone()).await.unwrap();
        assert_eq!(answer.status.unwrap().code(), Code::NotFound, "{content_type}");
    }
}

async fn a_message_that_stops_coming_is_given_up(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &["--upload-stall-timeout", "1s"]).await;
    let wire = Wire::connect(reel.address).await;
    for path in [RECORD, "/reel.v1.IngestService/StreamActions"] {
        let (response, mut sending) = wire.begin(Head::of(path)).await.unwrap();
        sending.send_data([frame_header(0, 10), vec![0x0a; 5]].concat().into(), false).unwrap();
        let status = status_of(response).await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "UPLOAD_STALLED"), "{path}");
        assert_eq!(metadata(&status, "limit_seconds"), "1");
    }
}

/// The status of an answer without messages.
async fn status_of(response: h2::client::ResponseFuture) -> Status {
    let (head, mut body) = response.await.unwrap().into_parts();
    let trailers = if head.headers.contains_key("grpc-status") {
        head.headers
    } else {
        assert!(body.data().await.is_none());
        body.trailers().await.unwrap().unwrap()
    };
    Status::from_header_map(&trailers).unwrap()
}

async fn a_request_that_is_no_upload_may_have_256_kib_and_is_complete_in_time(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &["--upload-stall-timeout", "1s"]).await;
    let wire = Wire::connect(reel.address).await;
    let list = || Head::of("/reel.v1.SessionService/ListSessions");
    // Field 2 is a text: the page token.
    let of_size = |bytes: usize| frame(0, &[vec![0x12, 0xfc, 0xff, 0x0f], vec![b'x'; bytes - 4]].concat());
    let answer = wire.call(list(), of_size(REQUEST_LIMIT)).await.unwrap();
    assert_eq!(answer.status.unwrap().code(), Code::InvalidArgument, "it is read, and no token");
    for path in ["/reel.v1.SessionService/ListSessions", "/reel.v1.PlaybackService/PlaySession"] {
        // Refused by its header, before anything of it is kept.
        let (response, mut sending) = wire.begin(Head::of(path)).await.unwrap();
        sending.send_data(frame_header(0, REQUEST_LIMIT + 1).into(), false).unwrap();
        let status = status_of(response).await;
        assert_eq!(reason(&status), "MESSAGE_TOO_LARGE", "{path}");
        assert_eq!(metadata(&status, "limit_bytes"), REQUEST_LIMIT.to_string());
        for begun in [Vec::new(), frame_header(0, 10), [frame_header(0, 10), vec![0x0a; 5]].concat()] {
            let (response, mut sending) = wire.begin(Head::of(path)).await.unwrap();
            sending.send_data(begun.into(), false).unwrap();
            let status = status_of(response).await;
            assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "UPLOAD_STALLED"), "{path}");
        }
    }
}
