//! Searches, as a user meets them: from what was found to its playback, and what happens to a question that nobody waits for.
//! That answers are right is tested in `exact`.

use std::time::Duration;

use chrono::Utc;
use reel::{
    model::RetentionPolicy,
    proto::{
        ActionMatch, ListSessionsRequest, PlaySessionRequest, SessionFilter, SessionStart, action_match::TargetMatch,
        play_session_request::Begin,
    },
};
use tonic::{Code, Request};

use crate::{
    exact::wait_until_indexed,
    harness::{
        Backend, NOON_MS, Reel, action, batch, click, eventually, insert_facet, play, session_id, start, timestamp,
    },
    on_both_databases,
};

on_both_databases!(
    a_playback_begins_where_a_session_matched,
    a_question_that_nobody_waits_for_ends_in_the_database,
    searches_that_begin_with_the_newest_days_find_the_older_ones_too,
);

fn clicked(target: &str) -> ListSessionsRequest {
    let target_match = Some(TargetMatch::Target(target.to_owned()));
    let wanted = ActionMatch { r#type: "click".to_owned(), target_match, ..ActionMatch::default() };
    let filter = SessionFilter { all_of: vec![wanted], ..SessionFilter::default() };
    ListSessionsRequest { filter: Some(filter), ..ListSessionsRequest::default() }
}

async fn a_playback_begins_where_a_session_matched(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = session_id(NOON_MS);
    reel.record(vec![start(&id, SessionStart::default())]).await.unwrap();
    let actions = vec![click(0, "Cancel"), click(1_000, "Create Post"), action(2_000, "error", "PostFailed")];
    reel.append(&id, "", 1, actions).await.unwrap();
    let found = reel.sessions().list_sessions(clicked("Create Post")).await.unwrap().into_inner().sessions;
    let place = found[0].first_match.clone().unwrap();
    for begin in [Begin::Cursor(place.cursor), Begin::From(place.offset.unwrap())] {
        let played = reel.play(PlaySessionRequest { begin: Some(begin), ..play(&id) }).await.unwrap();
        assert_eq!(played.targets(), ["Create Post", "PostFailed"]);
    }
}

async fn a_question_that_nobody_waits_for_ends_in_the_database(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    // A new service looks for facets that nothing has: not later.
    let has_looked = async || reel.store.retention_apply(&RetentionPolicy::default(), Utc::now()).await.is_ok();
    eventually("facets have been looked through", has_looked).await;
    // Whoever looks a facet up now never comes to an end.
    database.execute(&insert_facet(backend, 1, "click", "Create Post")).await;
    database.execute("ALTER TABLE facets RENAME TO real_facets").await;
    database
        .execute(match backend {
            Backend::Postgres => "CREATE VIEW facets AS SELECT real_facets.* FROM real_facets, pg_sleep(100000)",
            Backend::Sqlite => {
                "CREATE VIEW facets AS SELECT real_facets.* FROM (WITH RECURSIVE numbers (n) AS \
                 (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 100000000000) SELECT max(n) AS n FROM numbers) \
                 AS long CROSS JOIN real_facets ON real_facets.id <> long.n"
            }
        })
        .await;
    // More of them than are answered at once.
    for _ in 0..5 {
        let mut request = Request::new(clicked("Create Post"));
        request.set_timeout(Duration::from_millis(300));
        let status = reel.sessions().list_sessions(request).await.unwrap_err();
        // Who says it first: the service or the client's own clock.
        assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    }
    if backend == Backend::Postgres {
        let busy = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' \
                    AND query LIKE '%facets%' AND pid <> pg_backend_pid()";
        eventually("the server has given up", async || database.number(busy).await == 0).await;
    }
    let everything = ListSessionsRequest::default();
    reel.sessions().list_sessions(everything).await.expect("there is somebody to answer other questions");
}

/// Where there are enough sessions of each facet among the newest days, but not of both, or not before some time.
async fn searches_that_begin_with_the_newest_days_find_the_older_ones_too(backend: Backend) {
    const TARGETS: [&str; 3] = ["often", "seldom", "long ago"];
    let (reel, database) = Reel::start(backend).await;
    let now = Utc::now().timestamp_millis();
    // Newest first: their starts, and which targets they have.
    let mut sessions: Vec<(String, [bool; 3])> = Vec::new();
    for number in 0..72_i64 {
        let id = session_id(now - number * 4 * 3_600_000);
        let has = [number % 7 != 3, number % 3 == 0, number > 50 || number % 9 == 1];
        let clicks: Vec<_> =
            TARGETS.iter().zip(has).filter(|(_, has)| *has).map(|(target, _)| click(0, target)).collect();
        reel.record(vec![start(&id, SessionStart::default()), batch(&id, "", 1, clicks)]).await.unwrap();
        sessions.push((id, has));
    }
    wait_until_indexed(&database).await;
    for wanted in [vec![0], vec![1], vec![2], vec![0, 1], vec![1, 2], vec![0, 1, 2], vec![1, 1]] {
        let all_of = wanted.iter().map(|target| ActionMatch {
            r#type: "click".to_owned(),
            target_match: Some(TargetMatch::Target(TARGETS[*target].to_owned())),
            ..ActionMatch::default()
        });
        for (page_size, newest) in [(1, 0), (2, 0), (3, 30), (8, 5), (30, 0)] {
            let before =
                sessions[newest].0.parse::<reel::model::SessionId>().unwrap().started_at().timestamp_millis() + 1;
            let filter = SessionFilter {
                all_of: all_of.clone().collect(),
                started_before: Some(timestamp(before)),
                ..SessionFilter::default()
            };
            let mut request = ListSessionsRequest { filter: Some(filter), page_size, ..ListSessionsRequest::default() };
            let mut found = Vec::new();
            loop {
                let page = reel.sessions().list_sessions(request.clone()).await.unwrap().into_inner();
                found.extend(page.sessions.into_iter().map(|session| session.id));
                request.page_token = page.next_page_token;
                if request.page_token.is_empty() {
                    break;
                }
            }
            let matching = sessions[newest..].iter().filter(|(_, has)| wanted.iter().all(|target| has[*target]));
            let expected: Vec<_> = matching.map(|(id, _)| id.clone()).collect();
            assert_eq!(found, expected, "{wanted:?}, {page_size} a page, from number {newest}");
        }
    }
    reel.stop().await;
}
