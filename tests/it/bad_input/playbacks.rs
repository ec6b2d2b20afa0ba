//! Rows about playbacks.

use chrono::DateTime;
use prost_types::Duration;
use reel::{
    model::Position,
    playback::{Cursor, Pass},
    proto::{PlaySessionRequest, play_session_request::Begin},
};
use tonic::Code;

use super::{
    table::{ACCEPTED, Expected, Table, invalid, refused, text},
    values::bad_session_ids,
    world::World,
};
use crate::harness::play;

/// The longest duration that protobuf has: 10,000 years.
pub const LONGEST: i64 = 315_576_000_000;

pub fn rows(table: &mut Table, world: &World) {
    let bad = bad_session_ids(&world.session).into_iter().chain([("empty", String::new())]);
    for (name, id) in bad {
        table.row(format!("session id: {name}"), play(&id), invalid("session_id"));
    }
    let missing = refused(Code::NotFound, "SESSION_NOT_FOUND");
    table.row("a session that was never started", play(&world.unknown), missing);
    table.row("a session that was erased", play(&world.erased), missing);
    table.row("a session", play(&world.session), ACCEPTED);
    speeds(table, world);
    offsets(table, world);
    lists(table, world);
    cursors(table, world);
}

fn speeds(table: &mut Table, world: &World) {
    let at = |speed| PlaySessionRequest { speed, ..play(&world.session) };
    for speed in [0.0, -0.0, f64::MIN_POSITIVE, 1_000.0] {
        // From the end on, so that nobody waits.
        let begin = Some(Begin::Cursor(world.cursor.clone()));
        table.row(format!("speed {speed}"), PlaySessionRequest { begin, ..at(speed) }, ACCEPTED);
    }
    for speed in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, -f64::MIN_POSITIVE, 1_000.0_f64.next_up(), 1_001.0]
    {
        table.row(format!("speed {speed}"), at(speed), invalid("speed"));
    }
}

fn offsets(table: &mut Table, world: &World) {
    let begin = |from| Some(Begin::From(from));
    for (seconds, nanos, fault) in [
        (0, 0, None),
        (0, 1, None),
        (0, 999_999_999, None),
        (1, 0, None),
        (LONGEST, 0, None),
        (LONGEST, 999_999_999, None),
        (LONGEST + 1, 0, Some(())),
        (-1, 0, Some(())),
        (0, -1, Some(())),
        (1, -1, Some(())),
        (0, 1_000_000_000, Some(())),
        (i64::MAX, 0, Some(())),
        (i64::MIN, 0, Some(())),
        (i64::MIN, i32::MIN, Some(())),
    ] {
        let duration = Duration { seconds, nanos };
        let expected = |field| if fault.is_none() { ACCEPTED } else { invalid(field) };
        let from = PlaySessionRequest { begin: begin(duration), ..play(&world.session) };
        table.row(format!("from {seconds} s {nanos} ns"), from, expected("from"));
        let until = PlaySessionRequest { until: Some(duration), ..play(&world.session) };
        table.row(format!("until {seconds} s {nanos} ns"), until, expected("until"));
        let max_idle = PlaySessionRequest { max_idle: Some(duration), ..play(&world.session) };
        let expected: Expected =
            if duration == Duration::default() { invalid("max_idle") } else { expected("max_idle") };
        table.row(format!("max_idle {seconds} s {nanos} ns"), max_idle, expected);
    }
    for (until_nanos, expected) in [(4, invalid("until")), (5, invalid("until")), (6, ACCEPTED)] {
        let until = Some(Duration { seconds: 1, nanos: until_nanos });
        let begin = begin(Duration { seconds: 1, nanos: 5 });
        let request = PlaySessionRequest { begin, until, ..play(&world.session) };
        table.row(format!("from 1 s 5 ns until 1 s {until_nanos} ns"), request, expected);
    }
}

fn lists(table: &mut Table, world: &World) {
    let types = |types| PlaySessionRequest { types, ..play(&world.session) };
    let sources = |sources| PlaySessionRequest { sources, ..play(&world.session) };
    for (count, is_good) in [(0, true), (1, true), (64, true), (65, false)] {
        let names: Vec<_> = (0..count).map(|number| number.to_string()).collect();
        let expected = |field| if is_good { ACCEPTED } else { invalid(field) };
        table.row(format!("{count} types"), types(names.clone()), expected("types"));
        table.row(format!("{count} sources"), sources(names), expected("sources"));
    }
    for name in ["", "\0"] {
        let names = vec!["click".to_owned(), name.to_owned()];
        table.row(format!("type {name:?}"), types(names.clone()), invalid("types"));
        table.row(format!("source {name:?}"), sources(names), invalid("sources"));
    }
    // They cannot be there, and nobody is harmed by looking for them.
    for name in [text(65), text(200 << 10), "' OR 1=1 --".to_owned(), "%".to_owned()] {
        table.row("a type that no action has", types(vec![name.clone()]), ACCEPTED);
        table.row("a source that no track has", sources(vec![name]), ACCEPTED);
    }
}

fn cursors(table: &mut Table, world: &World) {
    let from =
        |cursor: &str| PlaySessionRequest { begin: Some(Begin::Cursor(cursor.to_owned())), ..play(&world.session) };
    let good = &world.cursor;
    table.row("a cursor", from(good), ACCEPTED);
    table.row(
        "a cursor, until before it",
        PlaySessionRequest { until: Some(Duration::default()), ..from(good) },
        ACCEPTED,
    );
    for (name, cursor) in [
        ("empty", ""),
        ("one character", "x"),
        ("not base64", "===="),
        ("text", &text(40)),
        ("of another session", &world.foreign_cursor),
        ("a page token", &world.session_token),
        ("cut at the front", &good[1..]),
        ("cut at the end", &good[..good.len() - 1]),
        ("made longer", &format!("{good}AAAA")),
        ("with NUL", &format!("{good}\0")),
        ("200 KiB", &text(200 << 10)),
    ] {
        table.row(format!("cursor: {name}"), from(cursor), invalid("cursor"));
    }
    // The seal keeps accidents out and not those who read the source.
    let session = world.session.parse().unwrap();
    let sealed = |low: &[(i16, i64)], high: &[(i16, i64)], micros: Option<i64>| {
        let pass = Pass { low: low.iter().copied().collect(), high: high.iter().copied().collect() };
        let position = micros.map(|micros| Position {
            timestamp: DateTime::from_timestamp_micros(micros).unwrap(),
            track: 0,
            seq: 1,
        });
        Cursor { session, pass, position, from: None }.encode()
    };
    let latest = DateTime::<chrono::Utc>::MAX_UTC.timestamp_micros();
    let earliest = DateTime::<chrono::Utc>::MIN_UTC.timestamp_micros();
    let every_track: Vec<_> = (0..10_000).map(|track| (track, 7)).collect();
    for (name, cursor, expected) in [
        ("of tracks that are not there", sealed(&[], &[(1, 7), (i16::MAX, 7)], None), ACCEPTED),
        ("of more tracks than any session has", sealed(&[], &every_track, None), ACCEPTED),
        ("beyond the end", sealed(&[], &[(0, i64::MAX)], None), ACCEPTED),
        ("of the last year", sealed(&[], &[(0, 3)], Some(latest)), invalid("cursor")),
        ("of the first year", sealed(&[], &[(0, 3)], Some(earliest)), invalid("cursor")),
        ("with a negative track", sealed(&[], &[(-1, 3)], None), invalid("cursor")),
        ("with the least seq", sealed(&[], &[(0, i64::MIN)], None), invalid("cursor")),
        ("that begins with the least seq", sealed(&[(0, i64::MIN)], &[(0, 3)], None), invalid("cursor")),
        ("that begins after its end", sealed(&[(0, 3)], &[(0, 1)], None), ACCEPTED),
        ("that has begun at the most seqs", sealed(&[(0, i64::MAX), (1, i64::MAX)], &[(0, 0), (1, 0)], None), ACCEPTED),
    ] {
        table.row(format!("a sealed cursor {name}"), from(&cursor), expected);
    }
}
