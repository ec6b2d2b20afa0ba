//! What is seldom recorded, and must be found all the same.

use reel::proto::{
    Action, ActionMatch, DataCondition, DataOperator, ListSessionsRequest, SessionFilter, data_condition::Value,
};

use crate::{
    harness::{Backend, Reel, action},
    on_both_databases,
};

on_both_databases!(conditions_find_all_data_that_was_taken);

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
        let wanted = ActionMatch { data: vec![condition], ..ActionMatch::default() };
        let filter = SessionFilter { all_of: vec![wanted], ..SessionFilter::default() };
        assert_eq!(number_found(&reel, filter).await, usize::from(is_found), "{path} {operator:?} {value:?}");
    }
    reel.stop().await;
}
