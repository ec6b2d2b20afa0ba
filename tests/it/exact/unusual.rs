//! What is seldom recorded, and must be found all the same.

use reel::proto::{
    Action, ActionMatch, DataCondition, DataOperator, ListSessionsRequest, SessionFilter, SessionStart,
    data_condition::Value,
};

use crate::{
    exact::{check_index, wait_until_indexed},
    harness::{Backend, NOON_MS, Reel, TestDatabase, action, batch, click, eventually, session_id, start, user},
    on_both_databases,
};

on_both_databases!(
    conditions_find_all_data_that_was_taken,
    the_beginning_of_an_email_address_is_found_in_either_case,
    what_older_definitions_have_indexed_is_not_believed_and_is_made_anew,
);

async fn number_found(reel: &Reel, filter: SessionFilter) -> usize {
    let request = ListSessionsRequest { filter: Some(filter), ..ListSessionsRequest::default() };
    reel.sessions().list_sessions(request).await.unwrap().into_inner().sessions.len()
}

async fn conditions_find_all_data_that_was_taken(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let data = r#"{"value":"hi \ud83d","\ude00":1,"big":1e309,"list":["\ud83d",-1e400,true]}"#;
    let id = reel.start_session().await;
    let taken =
        reel.append(&id, "", 1, vec![Action { data: data.to_owned(), ..action(0, "input", "x") }]).await.unwrap();
    assert_eq!(taken.accepted_count, 1);
    let text = |text: &str| Some(Value::Text(text.to_owned()));
    for (path, operator, value, is_found) in [
        ("$.value", DataOperator::Exists, None, true),
        ("$.value", DataOperator::Contains, text("hi"), true),
        ("$.value", DataOperator::Contains, text("ho"), false),
        ("$.value", DataOperator::NotEqual, text("hi"), true),
        ("$.value", DataOperator::Equal, text("hi "), false),
        ("$.value", DataOperator::Greater, text("hi "), true),
        ("$.big", DataOperator::Exists, None, true),
        ("$.big", DataOperator::Greater, Some(Value::Number(f64::MAX)), true),
        ("$.big", DataOperator::LessOrEqual, Some(Value::Number(f64::MAX)), false),
        ("$.list[1]", DataOperator::Less, Some(Value::Number(f64::MIN)), true),
        ("$.list", DataOperator::Contains, Some(Value::Boolean(true)), true),
    ] {
        let condition = DataCondition { path: path.to_owned(), operator: operator.into(), value: value.clone() };
        let wanted = ActionMatch { r#type: "input".to_owned(), data: vec![condition], ..ActionMatch::default() };
        let filter = SessionFilter { all_of: vec![wanted], ..SessionFilter::default() };
        assert_eq!(number_found(&reel, filter).await, usize::from(is_found), "{path} {operator:?} {value:?}");
    }
    reel.stop().await;
}

async fn the_beginning_of_an_email_address_is_found_in_either_case(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    for (number, email) in ["ΟΔΥΣΣΕΥΣ@Example.com", "οδυσσευς2@example.com", "ODYSSEUS@example.com"].iter().enumerate()
    {
        let of = SessionStart { user: Some(user(&format!("user {number}"), email)), ..SessionStart::default() };
        reel.send(start("", of)).await.unwrap();
    }
    for (prefix, count) in [("ΟΔΥΣ", 2), ("οδυς", 2), ("Οδυσσευς", 2), ("ΟΔΥΣΣΕΥΣ@", 1), ("οδυσσευς2", 1), ("odys", 1)]
    {
        let filter = SessionFilter { email_prefix: prefix.to_owned(), ..SessionFilter::default() };
        assert_eq!(number_found(&reel, filter).await, count, "{prefix}");
    }
    for (email, count) in [("οδυσσευς@example.com", 1), ("ΟΔΥΣΣΕΥΣ2@EXAMPLE.COM", 1), ("οδυς", 0)] {
        let filter = SessionFilter { email: email.to_owned(), ..SessionFilter::default() };
        assert_eq!(number_found(&reel, filter).await, count, "{email}");
    }
    reel.stop().await;
}

/// Three sessions, and how many rage clicks each has: three clicks within a second, but not of the first; clicks that may have
/// been anywhere; clicks that are slow.
async fn record_rage(reel: &Reel) -> Vec<(String, i64)> {
    let mut recorded = Vec::new();
    for (times, target, count) in
        [([0, 800, 1_100, 1_200], "x", 1), ([0, 1, 2, 3], "", 0), ([0, 900, 1_800, 2_700], "x", 0)]
    {
        let id = session_id(NOON_MS);
        let clicks = times.iter().map(|at| click(*at, target)).collect();
        reel.record(vec![start(&id, SessionStart::default()), batch("", "", 1, clicks)]).await.unwrap();
        recorded.push((id, count));
    }
    recorded
}

async fn check_rage(reel: &Reel, recorded: &[(String, i64)]) {
    for (id, count) in recorded {
        assert_eq!(reel.get(id).await.unwrap().summary.unwrap().rage_click_count, *count, "{id}");
    }
    let filter = SessionFilter { min_rage_click_count: Some(1), ..SessionFilter::default() };
    let request = ListSessionsRequest { filter: Some(filter), count_total: true, ..ListSessionsRequest::default() };
    let found = reel.sessions().list_sessions(request).await.unwrap().into_inner();
    let raging = recorded.iter().filter(|(_, count)| *count > 0);
    assert_eq!(
        found.sessions.iter().map(|session| &session.id).collect::<Vec<_>>(),
        raging.map(|(id, _)| id).collect::<Vec<_>>()
    );
    assert_eq!(found.total_count, Some(1));
}

async fn what_older_definitions_have_indexed_is_not_believed_and_is_made_anew(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &[]).await;
    let recorded = record_rage(&reel).await;
    wait_until_indexed(&database).await;
    check_rage(&reel, &recorded).await;
    reel.stop().await;
    // As an older release would have said.
    database.execute("UPDATE sessions SET rage_click_count = 1 - rage_click_count").await;
    database.execute("UPDATE index_definitions SET version = 1").await;

    let unindexed = Reel::start_on(&database, &["--indexer", "off"]).await;
    check_rage(&unindexed, &recorded).await;
    let reel = Reel::start_on(&database, &[]).await;
    let sql = "SELECT count(*) FROM index_definitions WHERE version > 1 AND outdated_below IS NULL";
    eventually("all is marked", async || database.number(sql).await == 1).await;
    wait_until_indexed(&database).await;
    assert_eq!(database.number("SELECT count(*) FROM sessions WHERE rage_click_count > 0").await, 1);
    check_index(&database).await;
    for reel in [unindexed, reel] {
        check_rage(&reel, &recorded).await;
        reel.stop().await;
    }
}
