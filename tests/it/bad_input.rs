//! Everything that a client can get wrong, and what it is told: the documented code, a reason, the field at fault, and
//! never the value.

mod actions;
mod playbacks;
mod queries;
mod questions;
mod table;
mod transport;
mod uploads;
mod values;
pub mod wire;
mod world;

use std::collections::BTreeSet;

use reel::proto::{ListUsersRequest, PlaySessionRequest, SessionEnd, SessionStart, play_session_request::Begin};
use tonic_types::StatusExt as _;

use self::{table::Table, wire::Wire, world::World};
use crate::{
    harness::{Backend, Reel, batch, clicks, end, play, rpc_paths, seconds, start},
    on_both_databases,
};

on_both_databases!(
    every_bad_request_gets_its_documented_status_and_harms_nothing,
    errors_say_the_limit_or_where_to_go_on_in_their_metadata,
    offsets_beyond_all_times_are_the_end_of_time,
    a_page_has_50_entries_where_nothing_is_said_and_1000_at_most,
);

fn table(world: &World) -> Table {
    let mut table = Table::default();
    uploads::rows(&mut table, world);
    queries::rows(&mut table, world);
    questions::rows(&mut table, world);
    playbacks::rows(&mut table, world);
    table
}

async fn every_bad_request_gets_its_documented_status_and_harms_nothing(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let world = World::make(&reel).await;
    let wire = Wire::connect(reel.address).await;
    let mut faults = Vec::new();
    for row in table(&world).rows {
        faults.extend(row.check(&wire).await);
    }
    assert!(faults.is_empty(), "{} wrong answers:\n{}", faults.len(), faults.join("\n"));
    still_works(&reel, &world).await;
}

/// After whatever was sent, what was there is there, and a session can be recorded and played.
async fn still_works(reel: &Reel, world: &World) {
    assert_eq!(reel.play_all(&world.session).await.len(), 3);
    let session = reel.start_session().await;
    assert_eq!(reel.append(&session, "", 1, clicks(0..3)).await.unwrap().accepted_count, 3);
    assert_eq!(reel.play_all(&session).await.len(), 3);
}

async fn errors_say_the_limit_or_where_to_go_on_in_their_metadata(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let world = World::make(&reel).await;
    let with_one_more = SessionStart { attributes: [("64".to_owned(), String::new())].into(), ..Default::default() };
    let incomplete = SessionEnd { last_seqs: [("main".to_owned(), 5)].into(), ..Default::default() };
    let session = world.session.as_str();
    for (request, reason, metadata) in [
        (
            batch(session, "", 5, vec![]),
            "SEQUENCE_GAP",
            vec![("session_id", session), ("source", "main"), ("expected_seq", "4"), ("received_seq", "5")],
        ),
        (
            end(session, incomplete),
            "TRACK_INCOMPLETE",
            vec![("session_id", session), ("source", "main"), ("committed_seq", "3"), ("last_seq", "5")],
        ),
        (batch(&world.full, "64", 1, clicks(0..1)), "TOO_MANY_TRACKS", vec![("limit", "64")]),
        (start(&world.full, with_one_more), "TOO_MANY_ATTRIBUTES", vec![("count", "65"), ("limit", "64")]),
    ] {
        let status = reel.send(request).await.unwrap_err();
        let info = status.get_error_details().error_info().cloned().unwrap();
        let expected = metadata.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        assert_eq!((info.reason.as_str(), info.metadata), (reason, expected));
    }
}

async fn offsets_beyond_all_times_are_the_end_of_time(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let world = World::make(&reel).await;
    for longest in [playbacks::LONGEST, playbacks::LONGEST / 10 * 9] {
        let from = PlaySessionRequest { begin: Some(Begin::From(seconds(longest))), ..play(&world.session) };
        assert_eq!(reel.play(from).await.unwrap().actions.len(), 0);
        let until = PlaySessionRequest { until: Some(seconds(longest)), ..play(&world.session) };
        assert_eq!(reel.play(until).await.unwrap().actions.len(), 3);
    }
}

async fn a_page_has_50_entries_where_nothing_is_said_and_1000_at_most(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let json = if backend == Backend::Sqlite { "'{}'" } else { "'{}'::json" };
    let numbers =
        "WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < 1001)";
    let columns = format!("'user-' || number, {json}, CURRENT_TIMESTAMP");
    let sql = format!("{numbers} INSERT INTO users (id, attributes, created_at) SELECT {columns} FROM numbers");
    database.execute(&sql).await;
    for (page_size, expected) in [(0, 50), (1, 1), (999, 999), (1_000, 1_000), (1_001, 1_000), (i32::MAX, 1_000)] {
        let request = ListUsersRequest { page_size, ..Default::default() };
        let page = reel.users().list_users(request).await.unwrap().into_inner();
        assert_eq!(page.users.len(), expected, "page size {page_size}");
        assert!(!page.next_page_token.is_empty());
    }
}

#[tokio::test]
async fn every_rpc_has_a_row_of_bad_input() {
    let (reel, _database) = Reel::start(Backend::Sqlite).await;
    let table = table(&World::make(&reel).await);
    let tried: BTreeSet<_> = table.rows.iter().map(|row| row.call.path).collect();
    let without: Vec<_> = rpc_paths().into_iter().filter(|path| !tried.contains(path.as_str())).collect();
    assert!(without.is_empty(), "no bad input for {without:?}");
}
