//! Playing back.

mod follow;

use std::time::Instant;

use reel::proto::{
    Action, DeleteSessionRequest, PlaySessionRequest, SessionStart, play_session_request::Begin,
    play_session_response::Event,
};
use reel::store::{ActionQuery, SeqWindow};
use tonic::Code;

use crate::{
    harness::{Backend, NOON_MS, Reel, action, batch, click, clicks, play, reason, seconds, session_id, start},
    on_both_databases,
};

on_both_databases!(
    actions_come_in_order_of_timestamp_then_track_then_seq,
    a_playback_begins_at_an_offset_and_stops_at_another,
    only_wanted_types_and_sources_are_played,
    a_playback_resumes_after_any_page,
    a_resumed_playback_brings_what_came_meanwhile,
    a_resumed_playback_keeps_its_beginning_and_goes_on_after_its_stop,
    pages_are_small_enough_for_any_client,
    a_page_is_bounded_by_bytes_and_by_rows,
    players_that_do_not_read_hold_no_connection,
    what_was_read_before_the_database_fails_is_played,
    a_paced_playback_goes_on_over_many_pages,
    speed_paces_the_playback_and_max_idle_cuts_pauses,
    small_actions_before_large_ones_do_not_fill_the_memory,
    a_playback_shows_what_was_committed_when_it_began,
    an_unknown_session_is_not_found_and_an_erased_one_ends_the_playback,
    an_empty_session_has_a_start_and_an_end,
    a_playback_ends_when_the_service_does,
);

/// A session that starts at noon, with these actions on these tracks.
async fn recorded(reel: &Reel, tracks: &[(&str, Vec<Action>)]) -> String {
    let id = session_id(NOON_MS);
    let mut requests = vec![start(&id, SessionStart::default())];
    requests.extend(tracks.iter().map(|(source, actions)| batch(&id, source, 1, actions.clone())));
    reel.record(requests).await.unwrap();
    id
}

fn from(session: &str, offset: prost_types::Duration) -> PlaySessionRequest {
    PlaySessionRequest { begin: Some(Begin::From(offset)), ..play(session) }
}

fn resume(session: &str, cursor: &str) -> PlaySessionRequest {
    PlaySessionRequest { begin: Some(Begin::Cursor(cursor.to_owned())), ..play(session) }
}

async fn actions_come_in_order_of_timestamp_then_track_then_seq(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let web = vec![click(5, "w1"), click(1, "w2"), click(5, "w3"), click(9, "w4")];
    let api = vec![click(5, "a1"), click(5, "a2"), click(0, "a3"), click(-50, "a4")];
    let id = recorded(&reel, &[("web", web), ("api", api)]).await;
    let played = reel.play(play(&id)).await.unwrap();
    assert_eq!(played.targets(), ["a4", "a3", "w2", "w1", "w3", "a1", "a2", "w4"]);
    let session = played.session.unwrap();
    assert_eq!((session.action_count, session.tracks.len()), (8, 2));
}

async fn a_playback_begins_at_an_offset_and_stops_at_another(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = recorded(&reel, &[("", clicks(0..10))]).await;
    for (begin, until, expected) in [
        (None, None, 0..10),
        (Some(0), None, 0..10),
        (Some(1), None, 1..10),
        (Some(9), None, 9..10),
        (Some(10), None, 10..10),
        (None, Some(1), 0..1),
        (Some(3), Some(5), 3..5),
        (Some(3), Some(1_000_000_000), 3..10),
        (Some(300_000_000_000), None, 10..10),
    ] {
        let request = PlaySessionRequest {
            begin: begin.map(|from| Begin::From(seconds(from))),
            until: until.map(seconds),
            ..play(&id)
        };
        let expected: Vec<_> = expected.map(|number| number.to_string()).collect();
        assert_eq!(reel.play(request).await.unwrap().targets(), expected, "{begin:?} {until:?}");
    }
    let just_after = prost_types::Duration { seconds: 3, nanos: 1_000 };
    assert_eq!(reel.play(from(&id, just_after)).await.unwrap().targets()[0], "4");
}

async fn only_wanted_types_and_sources_are_played(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let web = vec![click(0, "a"), action(1, "input", "b"), action(2, "error", "c")];
    let api = vec![action(0, "request", "d"), action(3, "error", "e")];
    let id = recorded(&reel, &[("web", web), ("api", api)]).await;
    for (types, sources, expected) in [
        (vec![], vec![], vec!["a", "d", "b", "c", "e"]),
        (vec!["error"], vec![], vec!["c", "e"]),
        (vec!["error", "click", "nothing"], vec!["web"], vec!["a", "c"]),
        (vec![], vec!["api", "nobody"], vec!["d", "e"]),
        (vec![], vec!["nobody"], vec![]),
        (vec!["nothing"], vec![], vec![]),
    ] {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let request = PlaySessionRequest { types: owned(&types), sources: owned(&sources), ..play(&id) };
        assert_eq!(reel.play(request).await.unwrap().targets(), expected, "{types:?} {sources:?}");
    }
}

async fn a_playback_resumes_after_any_page(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    // Of one timestamp in threes, on two tracks.
    let actions = |name: &str| (0..1_500).map(|number| click(number / 3, &format!("{name}{number}"))).collect();
    let id = recorded(&reel, &[("web", actions("w")), ("api", actions("a"))]).await;
    let whole = reel.play(play(&id)).await.unwrap();
    assert!(whole.pages.len() > 2);
    for (count, cursor) in &whole.pages {
        let rest = reel.play(resume(&id, cursor)).await.unwrap();
        assert_eq!(rest.actions, whole.actions[*count..]);
    }
    assert!(reel.play(resume(&id, whole.end_cursor.as_ref().unwrap())).await.unwrap().actions.is_empty());
    let foreign = reel.play(resume(&session_id(NOON_MS), &whole.pages[0].1)).await.err().unwrap();
    assert_eq!((foreign.code(), reason(&foreign).as_str()), (Code::InvalidArgument, "INVALID_FIELD"));
}

async fn a_resumed_playback_keeps_its_beginning_and_goes_on_after_its_stop(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = recorded(&reel, &[("", clicks(0..10))]).await;
    let request = PlaySessionRequest { until: Some(seconds(6)), ..from(&id, seconds(3)) };
    let played = reel.play(request).await.unwrap();
    assert_eq!(played.targets(), ["3", "4", "5"]);
    reel.append(&id, "other", 1, vec![click(0, "before"), click(99_000, "after")]).await.unwrap();
    for cursor in [&played.pages.last().unwrap().1, played.end_cursor.as_ref().unwrap()] {
        assert_eq!(reel.play(resume(&id, cursor)).await.unwrap().targets(), ["6", "7", "8", "9", "after"]);
    }
    // Window by window, while more arrives, nothing gets lost.
    let mut cursor = played.end_cursor.unwrap();
    for (until, expected) in [(8, vec!["6", "7"]), (9, vec!["8"]), (10, vec!["9"])] {
        let request = PlaySessionRequest { until: Some(seconds(until)), ..resume(&id, &cursor) };
        let played = reel.play(request).await.unwrap();
        assert_eq!(played.targets(), expected);
        cursor = played.end_cursor.unwrap();
        reel.append(&id, "", 0, vec![click(4_000, "late")]).await.unwrap();
    }
    assert_eq!(reel.play(resume(&id, &cursor)).await.unwrap().targets(), ["late", "late", "late", "after"]);
}

async fn a_resumed_playback_brings_what_came_meanwhile(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = recorded(&reel, &[("web", (0..600).map(|number| click(number, "early")).collect())]).await;
    let first = reel.play(play(&id)).await.unwrap();
    let (count, cursor) = first.pages[0].clone();
    reel.append(&id, "api", 1, vec![click(0, "late")]).await.unwrap();
    reel.append(&id, "web", 601, vec![click(9_999, "new")]).await.unwrap();
    for (cursor, left) in [(&cursor, 600 - count), (first.end_cursor.as_ref().unwrap(), 0)] {
        let rest = reel.play(resume(&id, cursor)).await.unwrap();
        assert_eq!(rest.actions.len(), left + 2);
        assert_eq!(rest.targets()[left..], ["late", "new"]);
    }
}

async fn pages_are_small_enough_for_any_client(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = reel.start_session().await;
    let large = format!("\"{}\"", "x".repeat((1 << 20) - 100));
    for number in 0..12_i64 {
        let actions = vec![Action { data: large.clone(), ..click(number, "large") }, click(number, "small")];
        reel.append(&id, "", number * 2 + 1, actions).await.unwrap();
    }
    // This client takes the 4 MiB that clients take unless told otherwise.
    let mut client = reel::proto::playback_service_client::PlaybackServiceClient::new(reel.channel.clone());
    let mut stream = client.play_session(play(&id)).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(response) = stream.message().await.unwrap() {
        if let Some(Event::Actions(page)) = response.event {
            count += page.actions.iter().filter(|action| action.data == large).count();
        }
    }
    assert_eq!(count, 12);
}

async fn a_page_is_bounded_by_bytes_and_by_rows(backend: Backend) {
    const PAGE_BYTES: usize = 256 << 10;
    let (reel, _database) = Reel::start(backend).await;
    let sized = |len: usize| Action { data: format!("\"{}\"", "x".repeat(len)), ..click(0, "") };
    for (count, len, rows) in [(4_000, 1, 1_000), (1_500, 2_000, 100)] {
        let id = recorded(&reel, &[("", vec![sized(len); count])]).await;
        let played = reel.play(play(&id)).await.unwrap();
        assert_eq!(played.actions.len(), count);
        let mut ends: Vec<_> = played.pages.iter().map(|(end, _)| *end).collect();
        ends.insert(0, 0);
        let counts = ends.windows(2).map(|ends| ends[1] - ends[0]);
        let most = counts.max().unwrap();
        assert!(most <= 1_000 && (most - 1) * len < PAGE_BYTES, "{most} actions of {len} bytes");
        assert!(most >= rows, "a page has {most} actions only");
    }
}

/// A session of more than its client's buffers, the server's and those in between take.
async fn recorded_large(reel: &Reel) -> (String, i64) {
    let id = reel.start_session().await;
    let data = format!("\"{}\"", "x".repeat(8_000));
    let count = 2_500;
    for first_seq in (1..=count).step_by(250) {
        let actions = (0..250).map(|number| Action { data: data.clone(), ..click(first_seq + number, "large") });
        reel.append(&id, "", first_seq, actions.collect()).await.unwrap();
    }
    (id, count)
}

async fn players_that_do_not_read_hold_no_connection(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let (id, count) = recorded_large(&reel).await;
    let mut silent = Vec::new();
    // The service has 4 or 5 connections for reading.
    for _ in 0..12 {
        let channel = crate::harness::connect(reel.address).await;
        let mut client = reel::proto::playback_service_client::PlaybackServiceClient::new(channel);
        let mut stream = client.play_session(play(&id)).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        silent.push(stream);
    }
    assert_eq!(i64::try_from(reel.play_all(&id).await.len()).unwrap(), count);
    for mut stream in silent {
        let mut seen = 0;
        while let Some(response) = stream.message().await.unwrap() {
            if let Some(Event::Actions(page)) = response.event {
                seen += i64::try_from(page.actions.len()).unwrap();
            }
        }
        assert_eq!(seen, count, "it goes on when it is read");
    }
}

async fn what_was_read_before_the_database_fails_is_played(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let (id, count) = recorded_large(&reel).await;
    let mut stream = reel.playback().play_session(play(&id)).await.unwrap().into_inner();
    let mut last_seq = 0;
    let mut is_broken = false;
    let status = loop {
        match stream.message().await {
            Ok(response) => match response.expect("a playback that is broken off has no proper end").event.unwrap() {
                Event::Start(_) => {}
                Event::Actions(page) => {
                    for action in page.actions {
                        assert_eq!(action.seq, last_seq + 1);
                        last_seq = action.seq;
                    }
                    if !is_broken {
                        database.execute("ALTER TABLE actions RENAME TO elsewhere").await;
                        is_broken = true;
                    }
                }
                Event::End(_) => panic!("it has ended, at {last_seq} of {count}"),
            },
            Err(status) => break status,
        }
    };
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Internal, "INTERNAL"));
    assert!(0 < last_seq && last_seq < count);
}

async fn a_paced_playback_goes_on_over_many_pages(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    // 5 s in bursts, on several pages, of which the last begins with a long pause.
    let mut actions: Vec<_> = (0..1_000).map(|number| click(number / 10 * 50, &number.to_string())).collect();
    actions.push(click(3_600_000, "last"));
    let id = recorded(&reel, &[("", actions)]).await;
    let begun = Instant::now();
    let request = PlaySessionRequest { speed: 10.0, max_idle: Some(seconds(1)), ..play(&id) };
    let played = reel.play(request).await.unwrap();
    let expected = (0..1_000).map(|number| number.to_string()).chain(["last".to_owned()]);
    assert_eq!(played.targets(), expected.collect::<Vec<_>>());
    assert!(played.pages.len() > 7, "{} pages", played.pages.len());
    assert!(begun.elapsed().as_millis() >= 495 + 100);
}

async fn speed_paces_the_playback_and_max_idle_cuts_pauses(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    // 0 s, 1 s, and an hour later.
    let id = recorded(&reel, &[("", vec![click(0, "a"), click(1_000, "b"), click(3_600_000, "c")])]).await;
    let paced = PlaySessionRequest { speed: 10.0, max_idle: Some(seconds(2)), ..play(&id) };
    let begun = Instant::now();
    let played = reel.play(paced.clone()).await.unwrap();
    // 0.1 s and, the hour being cut to two seconds, 0.2 s. It may take longer, never less.
    assert!(begun.elapsed().as_millis() >= 300);
    assert_eq!(played.pages.len(), 3, "each comes when it is due");

    // The clock starts at the offset asked for.
    let begun = Instant::now();
    let request = PlaySessionRequest { begin: Some(Begin::From(seconds(3_599))), max_idle: None, ..paced };
    assert_eq!(reel.play(request).await.unwrap().targets(), ["c"]);
    assert!(begun.elapsed().as_millis() >= 100);
}

async fn small_actions_before_large_ones_do_not_fill_the_memory(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = recorded(&reel, &[("", (0..2_000).map(|number| click(number, "small")).collect())]).await;
    let data = format!("\"{}\"", "x".repeat(1_000_000));
    for number in 0..20 {
        let actions = (0..3).map(|_| Action { data: data.clone(), ..click(3_000 + number, "large") }).collect();
        reel.append(&id, "", 2_001 + number * 3, actions).await.unwrap();
    }
    let session = id.parse().unwrap();
    let windows = [SeqWindow { track: 0, above: 0, up_to: i64::MAX }];
    let query =
        ActionQuery { session, windows: &windows, after: None, from: None, until: None, types: &["click".to_owned()] };
    let rows = reel.store.action_page(&query, 5_000, 3 << 20, &mut None).await.unwrap();
    assert!(rows.bytes < 5 << 20 && !rows.is_last, "{} bytes", rows.bytes);
    let played = reel.play_all(&id).await;
    assert_eq!(played.iter().filter(|action| action.data == data).count(), 60);
    assert_eq!(played.len(), 2_060);
}

async fn a_playback_shows_what_was_committed_when_it_began(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = recorded(&reel, &[("", clicks(0..2_000))]).await;
    let mut stream = reel.playback().play_session(play(&id)).await.unwrap().into_inner();
    assert!(matches!(stream.message().await.unwrap().unwrap().event, Some(Event::Start(_))));
    reel.append(&id, "", 2_001, vec![click(1, "late"), click(99_999_999, "later")]).await.unwrap();
    let mut count = 0;
    while let Some(response) = stream.message().await.unwrap() {
        if let Some(Event::Actions(page)) = response.event {
            count += page.actions.len();
        }
    }
    assert_eq!(count, 2_000);
}

async fn an_unknown_session_is_not_found_and_an_erased_one_ends_the_playback(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let unknown = reel.play(play(&session_id(NOON_MS))).await.err().unwrap();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "SESSION_NOT_FOUND"));

    let id = recorded(&reel, &[("", clicks(0..3))]).await;
    let request = PlaySessionRequest { follow: true, ..play(&id) };
    let mut stream = reel.playback().play_session(request).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    assert!(stream.message().await.unwrap().is_some());
    let delete = DeleteSessionRequest { session_id: id.clone() };
    reel.sessions().delete_session(delete).await.unwrap();
    let erased = stream.message().await.unwrap_err();
    assert_eq!((erased.code(), reason(&erased).as_str()), (Code::NotFound, "SESSION_NOT_FOUND"));
}

async fn an_empty_session_has_a_start_and_an_end(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = reel.start_session().await;
    let played = reel.play(play(&id)).await.unwrap();
    assert!(played.actions.is_empty() && played.pages.is_empty());
    reel.append(&id, "", 1, clicks(0..2)).await.unwrap();
    let rest = reel.play(resume(&id, &played.end_cursor.unwrap())).await.unwrap();
    assert_eq!(rest.actions.len(), 2);
}

async fn a_playback_ends_when_the_service_does(backend: Backend) {
    let (mut reel, _database) = Reel::start(backend).await;
    let id = recorded(&reel, &[("", vec![click(0, "a"), click(3_600_000, "an hour later")])]).await;
    let follower = PlaySessionRequest { follow: true, ..play(&reel.start_session().await) };
    let paced = PlaySessionRequest { speed: 1.0, ..play(&id) };
    let mut streams = Vec::new();
    for request in [follower, paced] {
        let mut stream = reel.playback().play_session(request).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        streams.push(stream);
    }
    reel.begin_shutdown();
    for mut stream in streams {
        let status = loop {
            match stream.message().await {
                Ok(message) => assert!(message.is_some(), "a playback that is broken off has no proper end"),
                Err(status) => break status,
            }
        };
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "DRAINING"));
    }
    reel.ended().await.unwrap();
}
