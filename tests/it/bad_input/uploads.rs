//! Rows about uploads. Each goes through both RPCs for uploads.

use prost_types::Timestamp;
use reel::proto::{Action, RecordActionsRequest, SessionEnd, SessionStart, User};
use tonic::Code;

use super::{
    table::{ACCEPTED, Table, invalid, invalid_in, refused, text},
    values::{
        attributes, attributes_around_the_limits, bad_names, bad_session_ids, good_names, users_around_the_limits,
    },
    world::World,
};
use crate::harness::{NOON_MS, batch, click, clicks, end, session_id, start, timestamp, user};

pub fn rows(table: &mut Table, world: &World) {
    events(table, world);
    starts(table, world);
    start_times(table);
    batches(table, world);
    ends(table, world);
}

fn begun() -> RecordActionsRequest {
    start("", SessionStart::default())
}

fn events(table: &mut Table, world: &World) {
    table.row("an empty stream", vec![], ACCEPTED);
    table.row("a message without an event", vec![RecordActionsRequest::default()], invalid("event"));
    let empty = RecordActionsRequest { session_id: world.session.clone(), event: None };
    table.row("a message with a session and without an event", vec![empty], invalid("event"));
    table.row("a batch on a stream that has started no session", vec![batch("", "", 1, vec![])], invalid("session_id"));
    table.row(
        "an end on a stream that has started no session",
        vec![end("", SessionEnd::default())],
        invalid("session_id"),
    );
    let of_known = batch(&world.session, "", 4, vec![]);
    let messages = vec![of_known, batch("", "", 4, vec![])];
    table.row("a batch without a session after one for a session not started here", messages, invalid("session_id"));

    for (name, id) in bad_session_ids(&world.session) {
        table.row(
            format!("start: session id: {name}"),
            vec![start(&id, SessionStart::default())],
            invalid("session_id"),
        );
        table.row(
            format!("batch: session id: {name}"),
            vec![begun(), batch(&id, "", 1, vec![])],
            invalid("session_id"),
        );
        table.row(
            format!("end: session id: {name}"),
            vec![begun(), end(&id, SessionEnd::default())],
            invalid("session_id"),
        );
    }
    let unknown = refused(Code::NotFound, "SESSION_NOT_FOUND");
    table.row(
        "a batch for a session that was never started",
        vec![batch(&world.unknown, "", 1, clicks(0..1))],
        unknown,
    );
    table.row(
        "an empty batch for a session that was never started",
        vec![batch(&world.unknown, "", 1, vec![])],
        unknown,
    );
    table.row("an end of a session that was never started", vec![end(&world.unknown, SessionEnd::default())], unknown);
    let erased = refused(Code::FailedPrecondition, "SESSION_ERASED");
    table.row("a start of an erased session", vec![start(&world.erased, SessionStart::default())], erased);
    table.row("a batch for an erased session", vec![batch(&world.erased, "", 1, clicks(0..1))], erased);
    table.row("an end of an erased session", vec![end(&world.erased, SessionEnd::default())], erased);
}

fn starts(table: &mut Table, world: &World) {
    let of_user = |id: &str| SessionStart { user: Some(user(id, "")), ..Default::default() };
    table.row("a start of a session that exists", vec![start(&world.session, SessionStart::default())], ACCEPTED);
    table.row("a start of a session that has ended", vec![start(&world.ended, of_user("ada"))], ACCEPTED);
    let taken = refused(Code::FailedPrecondition, "SESSION_OF_ANOTHER_USER");
    table.row("a start of another user's session", vec![start(&world.session, of_user("bob"))], taken);

    for (name, user, fault) in users_around_the_limits() {
        let start = start("", SessionStart { user: Some(user), ..Default::default() });
        let expected = fault.map_or(ACCEPTED, |field| invalid_in("start.user", field));
        table.row(format!("start: user: {name}"), vec![start], expected);
    }
    for (name, attributes, is_good) in attributes_around_the_limits() {
        let start = start("", SessionStart { attributes, ..Default::default() });
        let expected = if is_good { ACCEPTED } else { invalid("start.attributes") };
        table.row(format!("start: attributes: {name}"), vec![start], expected);
    }
    let too_many = refused(Code::FailedPrecondition, "TOO_MANY_ATTRIBUTES");
    let with = |key: &str| SessionStart { attributes: [(key.to_owned(), text(9))].into(), ..Default::default() };
    table.row("a start with the 65th attribute of a session", vec![start(&world.full, with("64"))], too_many);
    table.row("a start with one of a session's 64 attributes", vec![start(&world.full, with("63"))], ACCEPTED);
    let of_full = |key: &str| SessionStart {
        user: Some(User { attributes: [(key.to_owned(), text(9))].into(), ..user("full", "") }),
        ..Default::default()
    };
    table.row("a start with the 65th attribute of a user", vec![start("", of_full("64"))], too_many);
    table.row("a start with one of a user's 64 attributes", vec![start("", of_full("63"))], ACCEPTED);
}

fn start_times(table: &mut Table) {
    const DAY_MS: i64 = 24 * 3_600 * 1_000;
    const MINUTE_MS: i64 = 60 * 1_000;
    let at = |start_time| SessionStart { start_time: Some(start_time), ..Default::default() };
    let id = session_id(NOON_MS);
    for (name, off_ms, expected) in [
        ("agrees with the session id", 0, ACCEPTED),
        ("a millisecond before the session id's", -1, invalid("start.start_time")),
        ("a millisecond after the session id's", 1, invalid("start.start_time")),
    ] {
        table.row(format!("start_time: {name}"), vec![start(&id, at(timestamp(NOON_MS + off_ms)))], expected);
    }
    let finer = Timestamp { nanos: 999_999, ..timestamp(NOON_MS) };
    table.row("start_time: finer than the session id's", vec![start(&id, at(finer))], ACCEPTED);

    let now_ms = chrono::Utc::now().timestamp_millis();
    for (name, start_time, expected) in [
        ("1970", Timestamp { seconds: 0, nanos: 0 }, ACCEPTED),
        ("a nanosecond before 1970", Timestamp { seconds: -1, nanos: 999_999_999 }, invalid("start.start_time")),
        ("most nanos", Timestamp { seconds: 1, nanos: 999_999_999 }, ACCEPTED),
        ("a nano too many", Timestamp { seconds: 1, nanos: 1_000_000_000 }, invalid("start.start_time")),
        ("negative nanos", Timestamp { seconds: 1, nanos: -1 }, invalid("start.start_time")),
        ("least seconds", Timestamp { seconds: i64::MIN, nanos: 0 }, invalid("start.start_time")),
        ("most seconds", Timestamp { seconds: i64::MAX, nanos: 0 }, invalid("start.start_time")),
        ("year 9999", Timestamp { seconds: 253_402_300_799, nanos: 0 }, invalid("start.start_time")),
        ("year 10000", Timestamp { seconds: 253_402_300_800, nanos: 0 }, invalid("start.start_time")),
        ("almost a day ahead", timestamp(now_ms + DAY_MS - MINUTE_MS), ACCEPTED),
        ("more than a day ahead", timestamp(now_ms + DAY_MS + MINUTE_MS), invalid("start.start_time")),
    ] {
        table.row(format!("start_time: {name}"), vec![start("", at(start_time))], expected);
    }
    for (name, id_ms, expected) in [
        ("of 1970", 0, ACCEPTED),
        ("almost a day ahead", now_ms + DAY_MS - MINUTE_MS, ACCEPTED),
        ("more than a day ahead", now_ms + DAY_MS + MINUTE_MS, invalid("session_id")),
        ("of the last time that an id can say", (1 << 48) - 1, invalid("session_id")),
    ] {
        table.row(format!("session id: {name}"), vec![start(&session_id(id_ms), SessionStart::default())], expected);
    }
}

fn batches(table: &mut Table, world: &World) {
    table.row("source: left out", vec![begun(), batch("", "", 1, clicks(0..1))], ACCEPTED);
    for name in good_names() {
        table.row(format!("source: {name}"), vec![begun(), batch("", &name, 1, clicks(0..1))], ACCEPTED);
    }
    for (name, source) in bad_names() {
        let messages = vec![begun(), batch("", &source, 1, clicks(0..1))];
        table.row(format!("source: {name}"), messages, invalid("batch.source"));
    }
    let gap = refused(Code::Aborted, "SEQUENCE_GAP");
    for (first_seq, expected) in [
        (i64::MIN, invalid("batch.first_seq")),
        (-1, invalid("batch.first_seq")),
        (0, ACCEPTED),
        (1, ACCEPTED),
        (2, gap),
        (i64::MAX, gap),
    ] {
        for actions in [vec![], clicks(0..1)] {
            let name = format!("first_seq: {first_seq} of a new track, with {} actions", actions.len());
            table.row(name, vec![begun(), batch("", "", first_seq, actions)], expected);
        }
    }
    for (first_seq, expected) in [(1, ACCEPTED), (3, ACCEPTED), (4, ACCEPTED), (5, gap), (i64::MAX, gap)] {
        let name = format!("first_seq: {first_seq} of a track with cursor 3");
        table.row(name, vec![batch(&world.session, "", first_seq, vec![])], expected);
    }
    for (count, expected) in [(0, ACCEPTED), (1, ACCEPTED), (5_000, ACCEPTED), (5_001, invalid("batch.actions"))] {
        let messages = vec![begun(), batch("", "", 1, clicks(0..count))];
        table.row(format!("a batch of {count} actions"), messages, expected);
    }
    let output_only = Action { seq: -7, source: text(65), ..click(0, "") };
    table.row(
        "output-only fields of an action are not looked at",
        vec![begun(), batch("", "", 1, vec![output_only])],
        ACCEPTED,
    );

    let full = |source: &str, actions| vec![batch(&world.full, source, 1, actions)];
    let too_many = refused(Code::FailedPrecondition, "TOO_MANY_TRACKS");
    table.row("the 64th track of a session", full("63", clicks(0..1)), ACCEPTED);
    table.row("the 65th track of a session", full("64", clicks(0..1)), too_many);
    table.row("late data for a session that has ended", vec![batch(&world.ended, "late", 1, clicks(0..1))], ACCEPTED);
}

fn ends(table: &mut Table, world: &World) {
    let at = |end_time| SessionEnd { end_time: Some(end_time), ..Default::default() };
    let id = session_id(NOON_MS);
    let one_before = Timestamp { seconds: NOON_MS / 1_000 - 1, nanos: 999_999_999 };
    for (name, end_time, expected) in [
        ("the session's start", timestamp(NOON_MS), ACCEPTED),
        ("a nanosecond before the session's start", one_before, invalid("end.end_time")),
        ("1970", Timestamp { seconds: 0, nanos: 0 }, invalid("end.end_time")),
        ("before 1970", Timestamp { seconds: -1, nanos: 0 }, invalid("end.end_time")),
        ("most nanos", Timestamp { nanos: 999_999_999, ..timestamp(NOON_MS) }, ACCEPTED),
        ("a nano too many", Timestamp { nanos: 1_000_000_000, ..timestamp(NOON_MS) }, invalid("end.end_time")),
        ("negative nanos", Timestamp { nanos: -1, ..timestamp(NOON_MS + 1_000) }, invalid("end.end_time")),
        ("year 9999", Timestamp { seconds: 253_402_300_799, nanos: 999_999_999 }, ACCEPTED),
        ("year 10000", Timestamp { seconds: 253_402_300_800, nanos: 0 }, invalid("end.end_time")),
        ("most seconds", Timestamp { seconds: i64::MAX, nanos: 0 }, invalid("end.end_time")),
    ] {
        let messages = vec![start(&id, SessionStart::default()), end("", at(end_time))];
        table.row(format!("end_time: {name}"), messages, expected);
    }
    for reason in good_names().into_iter().chain([String::new()]) {
        let ending = SessionEnd { reason: reason.clone(), ..Default::default() };
        table.row(format!("reason: {reason:?}"), vec![begun(), end("", ending)], ACCEPTED);
    }
    for (name, reason) in bad_names() {
        let ending = SessionEnd { reason, ..Default::default() };
        table.row(format!("reason: {name}"), vec![begun(), end("", ending)], invalid("end.reason"));
    }
    let twice = vec![begun(), end("", SessionEnd::default()), end("", SessionEnd::default())];
    table.row("a session is ended twice", twice, ACCEPTED);
    last_seqs(table, world);
}

fn last_seqs(table: &mut Table, world: &World) {
    let ending = |source: &str, last_seq| {
        end(&world.ended, SessionEnd { last_seqs: [(source.to_owned(), last_seq)].into(), ..Default::default() })
    };
    let incomplete = refused(Code::FailedPrecondition, "TRACK_INCOMPLETE");
    for (source, last_seq, expected) in [
        ("main", i64::MIN, invalid("end.last_seqs")),
        ("main", -1, invalid("end.last_seqs")),
        ("main", 0, incomplete),
        ("main", 2, incomplete),
        ("main", 3, ACCEPTED),
        ("main", 4, incomplete),
        ("main", i64::MAX, incomplete),
        ("unknown", 0, ACCEPTED),
        ("unknown", 1, incomplete),
        ("", 0, invalid("end.last_seqs")),
    ] {
        table.row(format!("last_seqs: {source:?} {last_seq}"), vec![ending(source, last_seq)], expected);
    }
    for (name, source) in bad_names() {
        table.row(format!("last_seqs: source: {name}"), vec![ending(&source, 0)], invalid("end.last_seqs"));
    }
    for (count, expected) in [(0, ACCEPTED), (1, ACCEPTED), (64, ACCEPTED), (65, invalid("end.last_seqs"))] {
        let last_seqs = attributes(count).into_keys().map(|source| (source, 0)).collect();
        let ending = SessionEnd { last_seqs, ..Default::default() };
        table.row(format!("last_seqs: {count} of them"), vec![end(&world.ended, ending)], expected);
    }
}
