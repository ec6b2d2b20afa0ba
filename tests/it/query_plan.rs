//! Every question that searches or counts uses the index that it was promised, on data large enough that the database could
//! prefer to read everything. What is looked at is EXPLAIN of the very statements that the service runs.

use reel::{
    proto::{
        ActionDimension, ActionMatch, AttributeMatch, CountActionsRequest, DataCondition, DataOperator,
        GetErrorFrequencyRequest, GetFunnelRequest, GetSessionDurationsRequest, ListActionsRequest,
        ListSessionsRequest, ListTransitionsRequest, SequenceStep, SessionFilter, SessionOrder, SessionStart,
        action_match::TargetMatch, analytics_service_client::AnalyticsServiceClient,
    },
    store::QueryPlan,
};

use crate::{
    harness::{Backend, NOON_MS, Reel, TestDatabase, insert_facet, session_id, start, timestamp},
    on_both_databases,
};

on_both_databases!(every_question_uses_the_index_that_it_was_promised);

/// Sessions, over ten days.
const SESSIONS: i64 = 20_000;

/// Milliseconds from the start of one to the start of the next.
const STEP_MS: i64 = 10 * 86_400_000 / SESSIONS;

/// Sessions of ten actions each, of 500 users. Every session has the facet 1, every second the facet 2, and so on; the facet
/// 3 is in twenty sessions only. One in 50 has an error.
fn data(backend: Backend) -> Vec<String> {
    let numbers = |from: i64, to: i64| match backend {
        Backend::Postgres => format!("generate_series({from}, {to}) AS numbers (n)"),
        Backend::Sqlite => {
            format!(
                "(WITH RECURSIVE c(n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM c WHERE n < {to}) SELECT n FROM c)"
            )
        }
    };
    let ms = format!("({NOON_MS} + n * {STEP_MS})");
    let (id, time, true_text) = match backend {
        Backend::Postgres => (
            format!("(lpad(to_hex({ms}), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid"),
            format!("to_timestamp({ms} / 1000.0)"),
            ("true", "false"),
        ),
        Backend::Sqlite => (
            format!("unhex(printf('%012x70008000%012x', {ms}, n))"),
            format!("strftime('%Y-%m-%dT%H:%M:%f+00:00', {ms} / 1000.0, 'unixepoch')"),
            ("1", "0"),
        ),
    };
    let no = true_text.1;
    let release = "'{\"release\": \"' || (n % 400) || '\"}'";
    let attributes = match backend {
        Backend::Postgres => format!("({release})::jsonb"),
        Backend::Sqlite => release.to_owned(),
    };
    let sessions = numbers(1, SESSIONS);
    let mut statements: Vec<String> =
        (1..=2_000).map(|number| insert_facet(backend, number, "click", &format!("target {number}"))).collect();
    statements.extend([
        format!(
            "INSERT INTO users (id, email, attributes, created_at) SELECT 'user ' || n, 'user' || n || '@example.com', '{{}}', {time} FROM {}",
            numbers(0, 499)
        ),
        format!(
            "INSERT INTO sessions (id, user_id, started_at, ended_at, end_reason, attributes, created_at, action_count, \
                 error_count, duration_ms, active_ms, rage_click_count, is_dead_end, first_action_at, last_action_at, index_version) \
             SELECT {id}, 'user ' || (n % 500), {time}, CASE WHEN n % 100 > 0 THEN {time} END, 'ended', \
                 {attributes}, {time}, 10 + n % 7, CASE WHEN n % 50 = 0 THEN 1 ELSE 0 END, n * 7 % 100000, \
                 n * 3 % 10000, CASE WHEN n % 200 = 0 THEN 1 ELSE 0 END, {no}, {time}, {time}, 1 FROM {sessions}"
        ),
        format!(
            "INSERT INTO tracks (session_id, number, source, last_seq, accepted_count, duplicate_count, rejected_count, \
                 error_count, last_action_at, last_received_at, dirty) \
             SELECT {id}, 0, 'main', 10 + n % 7, 10 + n % 7, 0, 0, 0, {time}, {time}, {no} FROM {sessions}"
        ),
        format!(
            "INSERT INTO session_facets (facet_id, session_id, count, first_at) \
             SELECT facet, {id}, 2, {time} FROM {sessions}, (SELECT 1 AS facet UNION ALL SELECT 2 UNION ALL SELECT 3) AS three \
             WHERE (facet = 1) OR (facet = 2 AND n % 2 = 0) OR (facet = 3 AND n % 1000 = 0)"
        ),
        format!(
            "INSERT INTO session_facets (facet_id, session_id, count, first_at) SELECT 4 + n % 1990, {id}, 1, {time} FROM {sessions}"
        ),
        format!(
            "INSERT INTO facet_days (day, facet_id, action_count, session_count) SELECT {}, n, 10, 5 FROM {}, {}",
            match backend {
                Backend::Postgres => "date '2026-11-01' + day",
                Backend::Sqlite => "date('2026-11-01', day || ' days')",
            },
            numbers(1, 2_000),
            format_args!("(SELECT n AS day FROM {}) AS days", numbers(0, 12)),
        ),
    ]);
    for seq in 0..10 {
        let kind = if seq == 9 { "CASE WHEN n % 50 = 0 THEN 'error' ELSE 'click' END" } else { "'click'" };
        statements.push(format!(
            "INSERT INTO actions (session_id, timestamp, track, seq, type, target, data) \
             SELECT {id}, {time}, 0, {seq} + 1, {kind}, 'target ' || (1 + {seq}), '{{\"x\": 1}}' FROM {sessions}"
        ));
    }
    // A few are not in the index as they are.
    let some = "SELECT session_id FROM tracks ORDER BY session_id LIMIT 3";
    let yes = if backend == Backend::Postgres { "true" } else { "1" };
    statements.push(format!("UPDATE tracks SET dirty = {yes} WHERE session_id IN ({some})"));
    statements.push("ANALYZE".to_owned());
    statements
}

/// The plans of a question.
struct Plans(Backend, &'static str, Vec<QueryPlan>);

impl Plans {
    /// Checks that a statement uses one of these indexes, as each database calls them.
    fn use_index(&self, name: &str, postgres: &[&str], sqlite: &[&str]) -> &Self {
        let wanted = if self.0 == Backend::Postgres { postgres } else { sqlite };
        let plans: Vec<_> = self.2.iter().filter(|plan| plan.name == name).collect();
        let names: Vec<_> = self.2.iter().map(|plan| plan.name).collect();
        assert!(!plans.is_empty(), "{}: there is no `{name}` among {names:?}", self.1);
        for plan in plans {
            let uses = wanted.iter().any(|index| plan.plan.contains(index));
            assert!(uses, "{}: `{name}` uses none of {wanted:?}:\n{}", self.1, plan.plan);
        }
        self
    }

    /// Checks that nothing reads a whole table of these.
    fn never_scan(&self, tables: &[&str]) -> &Self {
        for plan in &self.2 {
            for line in plan.plan.lines() {
                let scanned = |table: &&&str| match self.0 {
                    // Partitions with next to nothing in them are read as they are.
                    Backend::Postgres => line.contains(&format!("Seq Scan on {table}")) && rows(line) > 50,
                    Backend::Sqlite => line.starts_with(&format!("SCAN {table}")) && !line.contains("INDEX"),
                };
                let table = tables.iter().find(scanned);
                assert!(table.is_none(), "{}: `{}` reads all of {table:?}:\n{}", self.1, plan.name, plan.plan);
            }
        }
        self
    }
}

/// How many rows the database expects.
fn rows(line: &str) -> u64 {
    let digits = line.split("rows=").nth(1).and_then(|rest| rest.split(' ').next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

async fn every_question_uses_the_index_that_it_was_promised(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &["--indexer", "off"]).await;
    // Partitions for the days.
    for day in 0..11 {
        let id = session_id(NOON_MS - 43_200_000 + day * 86_400_000 + 1);
        reel.record(vec![start(&id, SessionStart::default())]).await.unwrap();
    }
    database.execute(&data(backend).join(";\n")).await;
    searches(&reel, backend).await;
    orders(&reel, backend).await;
    deep_searches(&reel, backend).await;
    counts(&reel, backend).await;
    others(&reel, backend).await;
    reel.stop().await;
}

fn of(kind: &str, target: &str) -> ActionMatch {
    ActionMatch {
        r#type: kind.to_owned(),
        target_match: Some(TargetMatch::Target(target.to_owned())),
        ..ActionMatch::default()
    }
}

async fn list(reel: &Reel, backend: Backend, name: &'static str, request: ListSessionsRequest) -> Plans {
    reel.store.plans_record();
    let answer = reel.sessions().list_sessions(request).await.unwrap().into_inner();
    assert!(!answer.sessions.is_empty(), "{name} finds something");
    Plans(backend, name, reel.store.plans_record())
}

async fn find(reel: &Reel, backend: Backend, name: &'static str, filter: SessionFilter) -> Plans {
    list(reel, backend, name, ListSessionsRequest { filter: Some(filter), ..ListSessionsRequest::default() }).await
}

const READ_BY_PART: [&str; 4] = ["actions", "sessions", "tracks", "session_facets"];

async fn searches(reel: &Reel, backend: Backend) {
    let facets: (&[&str], &[&str]) = (&["facet_id_session_id", "_pkey"], &["SEARCH facet_0 USING PRIMARY KEY"]);
    for (name, all_of) in [
        ("a common facet", vec![of("click", "target 2")]),
        ("a rare facet", vec![of("click", "target 3")]),
        ("two facets", vec![of("click", "target 1"), of("click", "target 3")]),
    ] {
        let filter = SessionFilter { all_of, ..SessionFilter::default() };
        let plans = find(reel, backend, name, filter).await;
        plans.never_scan(&READ_BY_PART).use_index("sessions", facets.0, &["PRIMARY KEY"]);
        plans.use_index("survey", &["facets_type_target_sha256_key"], &["sqlite_autoindex_facets_1"]);
        plans.use_index("survey", &["tracks_dirty"], &["tracks_dirty"]);
        plans.use_index("dirty sessions", &["tracks_dirty"], &["tracks_dirty"]);
        plans.use_index(
            "sessions",
            &["tracks_pkey", "tracks_source"],
            &["SEARCH tracks USING INDEX sqlite_autoindex_tracks_1", "SEARCH tracks USING INDEX tracks_source"],
        );
    }
    let user = SessionFilter { user_id: "user 7".to_owned(), ..SessionFilter::default() };
    find(reel, backend, "a user", user).await.never_scan(&READ_BY_PART).use_index(
        "sessions",
        &["sessions_user"],
        &["sessions_user"],
    );
    for (name, filter) in [
        ("an e-mail", SessionFilter { email: "user7@example.com".to_owned(), ..SessionFilter::default() }),
        ("the beginning of an e-mail", SessionFilter { email_prefix: "user77".to_owned(), ..SessionFilter::default() }),
    ] {
        let plans = find(reel, backend, name, filter).await;
        plans.never_scan(&READ_BY_PART).use_index("sessions", &["sessions_user"], &["sessions_user"]);
        plans.use_index("users with an e-mail", &["users_email"], &["users_email"]);
    }
    let errors = SessionFilter { min_error_count: Some(1), ..SessionFilter::default() };
    find(reel, backend, "errors", errors).await.never_scan(&READ_BY_PART).use_index(
        "sessions",
        &["sessions_error"],
        &["sessions_error"],
    );
    let rage = SessionFilter { min_rage_click_count: Some(1), ..SessionFilter::default() };
    find(reel, backend, "rage clicks", rage).await.never_scan(&READ_BY_PART).use_index(
        "sessions",
        &["sessions_rage"],
        &["sessions_rage"],
    );
    let attributes = vec![AttributeMatch { key: "release".to_owned(), values: vec!["7".to_owned()] }];
    let attribute = SessionFilter { attributes, ..SessionFilter::default() };
    // On SQLite the sessions are looked through, newest first.
    find(reel, backend, "an attribute", attribute).await.use_index(
        "sessions",
        &["sessions_attributes"],
        &["sqlite_autoindex_sessions_1"],
    );
    find(reel, backend, "everything", SessionFilter::default()).await.never_scan(&READ_BY_PART).use_index(
        "sessions",
        &["sessions_pkey"],
        &["sqlite_autoindex_sessions_1"],
    );
}

async fn orders(reel: &Reel, backend: Backend) {
    for (order, index) in [
        (SessionOrder::Duration, "sessions_duration"),
        (SessionOrder::ActionCount, "sessions_action_count"),
        (SessionOrder::ErrorCount, "sessions_error_count"),
        (SessionOrder::LastActionTime, "sessions_last_action"),
    ] {
        for ascending in [false, true] {
            let request = ListSessionsRequest { order_by: order.into(), ascending, ..ListSessionsRequest::default() };
            let plans = list(reel, backend, index, request).await;
            plans.never_scan(&READ_BY_PART).use_index("sessions", &[index], &[index]);
        }
    }
}

/// What only actions can tell reads the actions of the sessions that the facets leave.
async fn deep_searches(reel: &Reel, backend: Backend) {
    let step = |wanted: ActionMatch| SequenceStep { r#match: Some(wanted), within: None };
    let exists = DataCondition { path: "$.x".to_owned(), operator: DataOperator::Exists.into(), value: None };
    let data = ActionMatch { data: vec![exists], ..of("click", "target 3") };
    for (name, filter) in [
        (
            "a sequence",
            SessionFilter {
                sequence: vec![step(of("click", "target 1")), step(of("click", "target 3"))],
                ..SessionFilter::default()
            },
        ),
        ("data", SessionFilter { all_of: vec![data], ..SessionFilter::default() }),
    ] {
        let plans = find(reel, backend, name, filter).await;
        plans.never_scan(&["actions", "tracks"]);
        plans.use_index("candidates", &["_facet_id_session_id", "_pkey"], &["PRIMARY KEY"]);
        plans.use_index("actions of sessions", &["_pkey"], &["SEARCH actions USING PRIMARY KEY"]);
    }
    reel.store.plans_record();
    let request = ListActionsRequest { r#match: Some(of("click", "target 3")), ..ListActionsRequest::default() };
    let answer = reel.sessions().list_actions(request).await.unwrap().into_inner();
    // 20 by the index, and the three that are not in it.
    assert_eq!(answer.actions.len(), 23);
    let plans = Plans(backend, "actions of a facet", reel.store.plans_record());
    plans.never_scan(&READ_BY_PART);
    plans.use_index("actions of sessions", &["_pkey"], &["SEARCH actions USING PRIMARY KEY"]);
}

async fn counts(reel: &Reel, backend: Backend) {
    let mut analytics = AnalyticsServiceClient::new(reel.channel.clone());
    let days = SessionFilter {
        started_after: Some(timestamp(NOON_MS + 43_200_000)),
        started_before: Some(timestamp(NOON_MS + 43_200_000 + 3 * 86_400_000)),
        ..SessionFilter::default()
    };
    let facets = vec![ActionDimension::Type.into(), ActionDimension::Target.into()];
    let by_hour = vec![ActionDimension::Hour.into()];
    let of_type = |kind: &str| ActionMatch { r#type: kind.to_owned(), ..ActionMatch::default() };
    for (name, filter, group_by, wanted, statement, postgres, sqlite) in [
        (
            "most common actions",
            days.clone(),
            facets,
            None,
            "roll-up",
            "facet_days",
            "SEARCH facet_days USING PRIMARY KEY",
        ),
        (
            "errors by hour",
            days,
            by_hour,
            Some(of_type("error")),
            "actions by group",
            "_session_id_timestamp_idx",
            "actions_error",
        ),
    ] {
        reel.store.plans_record();
        let request =
            CountActionsRequest { filter: Some(filter), group_by, r#match: wanted, ..CountActionsRequest::default() };
        let answer = analytics.count_actions(request).await.unwrap().into_inner();
        assert!(answer.total_action_count > 0, "{name}");
        let plans = Plans(backend, name, reel.store.plans_record());
        plans.never_scan(&["actions", "session_facets", "tracks"]).use_index(statement, &[postgres], &[sqlite]);
    }
    // What the roll-up has of the three that are not in the index as they are is found by the sessions.
    let group_by = vec![ActionDimension::Type.into()];
    analytics.count_actions(CountActionsRequest { group_by, ..CountActionsRequest::default() }).await.unwrap();
    let plans = Plans(backend, "actions by type", reel.store.plans_record());
    plans.never_scan(&["actions", "session_facets", "tracks"]).use_index(
        "roll-up of dirty sessions",
        &["session_facets_default_session", "_session_id_idx"],
        &["session_facets_session"],
    );
}

async fn others(reel: &Reel, backend: Backend) {
    let mut analytics = AnalyticsServiceClient::new(reel.channel.clone());
    let day = SessionFilter {
        started_after: Some(timestamp(NOON_MS)),
        started_before: Some(timestamp(NOON_MS + 3_600_000)),
        ..SessionFilter::default()
    };
    reel.store.plans_record();
    analytics.get_error_frequency(GetErrorFrequencyRequest::default()).await.unwrap();
    let plans = Plans(backend, "error frequency", reel.store.plans_record());
    plans.never_scan(&["actions"]).use_index("errors", &["_session_id_timestamp_idx"], &["actions_error"]);

    analytics.list_transitions(ListTransitionsRequest { filter: Some(day), ..Default::default() }).await.unwrap();
    let plans = Plans(backend, "transitions of an hour", reel.store.plans_record());
    plans.never_scan(&READ_BY_PART).use_index("actions in order", &["_pkey"], &["SEARCH actions USING PRIMARY KEY"]);

    let step = |wanted: ActionMatch| SequenceStep { r#match: Some(wanted), within: None };
    let steps = vec![step(of("click", "target 3")), step(of("click", "target 5"))];
    analytics.get_funnel(GetFunnelRequest { steps, ..GetFunnelRequest::default() }).await.unwrap();
    let plans = Plans(backend, "a funnel", reel.store.plans_record());
    plans.never_scan(&["actions", "tracks", "session_facets"]);

    // All sessions are asked for, so they are all read, but not their actions.
    analytics.get_session_durations(GetSessionDurationsRequest::default()).await.unwrap();
    let by_user = CountActionsRequest { group_by: vec![ActionDimension::User.into()], ..Default::default() };
    analytics.count_actions(by_user).await.unwrap();
    let plans = Plans(backend, "durations, actions per user", reel.store.plans_record());
    plans.never_scan(&["actions", "session_facets", "tracks"]);
}
