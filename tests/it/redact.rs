//! Redaction at the door: what must not be stored is not.

use reel::proto::{ActionMatch, ListSessionsRequest, SessionFilter, SessionStart, action_match::TargetMatch};

use crate::{
    exact::wait_until_indexed,
    harness::{Backend, NOON_MS, Reel, TestDatabase, action, batch, session_id, start},
    on_both_databases,
    retention::traces::everything,
};

on_both_databases!(what_must_not_be_stored_is_replaced_before_it_is);

const RULES: [&str; 6] = ["--redact", "password", "--redact", "$.card.number", "--redact", r"/[\w.]+@[\w.]+/"];

async fn what_must_not_be_stored_is_replaced_before_it_is(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &RULES).await;
    let with = |offset, target: &str, data: &str| {
        let mut action = action(offset, "input", target);
        data.clone_into(&mut action.data);
        action
    };
    let sent = vec![
        with(1, "Sign in as canary@example.com", r#"{ "Password" : "canary-1", "kept": 1.50 }"#),
        with(2, "Pay", r#"{"card":{"number":"canary-2","holder":"Ada"},"password":{"old":"canary-3"}}"#),
        with(3, "Pay", r#"["to canary@example.com", "number"]"#),
        // It is refused, and says nothing of what it had.
        with(4, "Pay", r#"{"password": "canary-4""#),
        with(5, "Pay", r#"{"a":  [1, 2]}"#),
        // Only what matches changes, however the rest is written, and however what matches is.
        with(
            6,
            "Pay",
            r#"["caf\u00e9 \/ canary@example.com \ud83d \u0041", "not canar\u0079\u0040example.com \udfac"]"#,
        ),
    ];
    let id = session_id(NOON_MS);
    let requests = vec![start(&id, SessionStart::default()), batch(&id, "", 1, sent.clone())];
    let receipt = reel.record(requests).await.unwrap().receipts.remove(0).tracks.remove(0);
    assert_eq!((receipt.accepted_count, receipt.rejected_count), (5, 1));
    let stored = reel.play_all(&id).await;
    let data: Vec<_> = stored.iter().map(|action| action.data.as_str()).collect();
    assert_eq!(data[0], r#"{ "Password" : "[redacted]", "kept": 1.50 }"#);
    assert_eq!(data[1], r#"{"card":{"number":"[redacted]","holder":"Ada"},"password":"[redacted]"}"#);
    assert_eq!(data[2], r#"["to [redacted]", "number"]"#);
    assert_eq!((data[4], stored[0].target.as_str()), (r#"{"a":  [1, 2]}"#, "Sign in as [redacted]"));

    assert_eq!(data[5], r#"["caf\u00e9 \/ [redacted] \ud83d \u0041", "not [redacted] \udfac"]"#);

    // Sent again, it is the same.
    let again = reel.append(&id, "", 1, sent).await.unwrap();
    assert_eq!((again.duplicate_count, again.accepted_count), (6, 0), "{again:?}");
    wait_until_indexed(&database).await;
    let target = TargetMatch::Target("Sign in as [redacted]".to_owned());
    let wanted = ActionMatch { target_match: Some(target), ..Default::default() };
    let filter = SessionFilter { all_of: vec![wanted], ..Default::default() };
    let request = ListSessionsRequest { filter: Some(filter), ..Default::default() };
    assert_eq!(reel.sessions().list_sessions(request).await.unwrap().into_inner().sessions.len(), 1);
    assert!(!everything(&database).await.contains("canary"));
    reel.stop().await;
}

#[tokio::test]
async fn what_is_no_rule_is_refused_at_once() {
    for (rule, why) in
        [("/(/", "not a pattern"), ("$.a[", "not a path"), ("/.*/", "must be a name"), ("", "must be a name")]
    {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_reel"));
        let output = command.args(["serve", "--redact", rule]).output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(why), "{rule}: {text}");
    }
}
