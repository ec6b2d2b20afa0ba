//! The memory of a real server process does not grow with what it plays, nor with who abuses it.

mod hostile;

use reel::proto::{
    ActionMatch, ListSessionsRequest, PlaySessionRequest, SessionEnd, SessionFilter, SessionStart,
    action_match::TargetMatch, play_session_response::Event,
};

use crate::{
    crash::process::Process,
    exact::wait_until_indexed,
    harness::{Backend, NOON_MS, Reel, TestDatabase, end, play, session_id, start},
    on_both_databases,
};

on_both_databases!(
    playing_a_million_actions_takes_no_more_memory_than_playing_ten_thousand,
    indexing_a_session_of_many_targets_takes_no_more_memory_than_one_of_few,
);

/// The process's memory in KiB: now, or at its highest.
fn memory_kib(process_id: u32, field: &str) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{process_id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Makes a session of this many actions on ten targets.
async fn fill(reel: &Reel, database: &TestDatabase, backend: Backend, count: i64) -> String {
    fill_targets(reel, database, backend, (count, 10)).await
}

/// Makes a session of this many actions on so many targets past the service: sending them would take most of the time.
async fn fill_targets(reel: &Reel, database: &TestDatabase, backend: Backend, (count, targets): (i64, i64)) -> String {
    let id = session_id(NOON_MS);
    reel.send(start(&id, SessionStart::default())).await.unwrap();
    let hex = id.replace('-', "");
    let sql = match backend {
        Backend::Postgres => format!(
            "INSERT INTO actions (session_id, timestamp, track, seq, type, target, data) SELECT '{id}', '2026-11-01T12:00:00Z'::timestamptz + n * interval '1 ms', 0, n, 'click',
                'Button ' || (n % {targets}), ('{{\"x\": ' || n || ', \"padding\": \"' || repeat('x', 100) || '\"}}')::json
                FROM generate_series(1, {count}) n"
        ),
        Backend::Sqlite => format!(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})
             INSERT INTO actions (session_id, timestamp, track, seq, type, target, data) SELECT x'{hex}', strftime('%Y-%m-%dT%H:%M:%f+00:00', 1793534400.0 + n / 1000.0, 'unixepoch'),
                0, n, 'click', 'Button ' || (n % {targets}), '{{\"x\": ' || n || ', \"padding\": \"' || printf('%.100c', 'x') || '\"}}'
                FROM numbers"
        ),
    };
    database.execute(&sql).await;
    let key = if backend == Backend::Postgres { format!("'{id}'") } else { format!("x'{hex}'") };
    database
        .execute(&format!(
            "INSERT INTO tracks (session_id, number, source, last_seq, accepted_count, duplicate_count, rejected_count,
                error_count, last_received_at) VALUES ({key}, 0, 'main', {count}, {count}, 0, 0, 0, '2026-11-01T12:00:00+00:00')"
        ))
        .await;
    reel.send(end(&id, SessionEnd::default())).await.unwrap();
    id
}

async fn playing_a_million_actions_takes_no_more_memory_than_playing_ten_thousand(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &[]).await;
    let (few, many) = (10_000, 1_000_000);
    let small = fill(&reel, &database, backend, few).await;
    let large = fill(&reel, &database, backend, many).await;
    reel.stop().await;

    let server = Process::serve(&database.url, &[]).await;
    let channel = crate::harness::connect(server.address).await;
    let played = async |request: PlaySessionRequest| {
        let mut client = reel::proto::playback_service_client::PlaybackServiceClient::new(channel.clone());
        let mut stream = client.play_session(request).await.unwrap().into_inner();
        let mut last_seq = 0;
        while let Some(response) = stream.message().await.unwrap() {
            if let Some(Event::Actions(page)) = response.event {
                for action in page.actions {
                    assert_eq!(action.seq, last_seq + 1);
                    last_seq = action.seq;
                }
            }
        }
        last_seq
    };
    for _ in 0..3 {
        assert_eq!(played(play(&small)).await, few);
    }
    let before = memory_kib(server.id(), "VmHWM");
    assert_eq!(played(play(&large)).await, many);
    let grown = memory_kib(server.id(), "VmHWM") - before;
    // A million of these actions are 250 MiB in messages.
    assert!(grown < 24 << 10, "the peak has grown by {grown} KiB from {before} KiB");
}

async fn indexing_a_session_of_many_targets_takes_no_more_memory_than_one_of_few(backend: Backend) {
    const ACTIONS: i64 = 150_000;
    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &["--indexer", "off"]).await;
    let server = Process::serve(&database.url, &[]).await;
    fill(&reel, &database, backend, ACTIONS).await;
    wait_until_indexed(&database).await;
    let before = memory_kib(server.id(), "VmHWM");
    let many = fill_targets(&reel, &database, backend, (ACTIONS, ACTIONS)).await;
    wait_until_indexed(&database).await;
    let grown = memory_kib(server.id(), "VmHWM") - before;
    // Each of the targets was kept twice, in 200 bytes and more.
    assert!(grown < 16 << 10, "the peak has grown by {grown} KiB from {before} KiB");
    assert_eq!(database.number("SELECT count(*) FROM sessions WHERE facet_detail = 1").await, 1);
    assert_eq!(database.number("SELECT count(*) FROM facets").await, 11);

    let of = |target: &str| {
        let target_match = Some(TargetMatch::Target(target.to_owned()));
        let all_of = vec![ActionMatch { target_match, ..ActionMatch::default() }];
        ListSessionsRequest { filter: Some(SessionFilter { all_of, ..SessionFilter::default() }), ..Default::default() }
    };
    let found = reel.sessions().list_sessions(of("Button 149999")).await.unwrap().into_inner().sessions;
    assert_eq!(found.iter().map(|session| &session.id).collect::<Vec<_>>(), [&many]);
    assert_eq!(reel.sessions().list_sessions(of("Button 9")).await.unwrap().into_inner().sessions.len(), 2);
    reel.stop().await;
}
