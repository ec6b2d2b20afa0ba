//! Bad actions among good ones. They are no reason to refuse a batch.

use std::collections::{BTreeSet, HashMap};

use prost_types::Timestamp;
use reel::proto::{Action, RejectionReason};

use super::table::{CANARY, text};
use crate::{
    harness::{Backend, NOON_MS, Reel, action, click, clicks, timestamp},
    on_both_databases,
};

on_both_databases!(
    a_bad_action_is_replaced_by_one_that_says_why_and_its_neighbours_are_stored,
    a_good_action_comes_back_byte_for_byte,
    a_different_action_under_a_known_seq_is_a_conflict_and_overwrites_nothing,
    a_receipt_lists_100_rejections_and_counts_all,
);

const MIB: usize = 1 << 20;
const DAY_MS: i64 = 24 * 3_600 * 1_000;
const MINUTE_MS: i64 = 60 * 1_000;

fn of_type(kind: &str) -> Action {
    action(0, kind, CANARY)
}

fn with_target(target: impl Into<String>) -> Action {
    click(0, &target.into())
}

fn with_data(data: impl Into<String>) -> Action {
    Action { data: data.into(), ..click(0, "data") }
}

fn at(seconds: i64, nanos: i32) -> Action {
    Action { timestamp: Some(Timestamp { seconds, nanos }), data: format!("\"{CANARY}\""), ..click(0, CANARY) }
}

/// JSON arrays in each other.
fn nested(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

/// An action of this many bytes.
fn of_size(bytes: usize) -> Action {
    let (kind, target) = ("click", "large");
    let data = format!("\"{}\"", text(bytes - kind.len() - target.len() - 2));
    Action { data, ..action(0, kind, target) }
}

fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

fn bad_actions() -> Vec<(&'static str, Action, RejectionReason)> {
    use RejectionReason::{InvalidData, InvalidTarget, InvalidTimestamp, InvalidType, TooLarge};

    let secret = |json: &str| with_data(json.replace('$', CANARY));
    vec![
        ("no timestamp", Action { timestamp: None, ..click(0, CANARY) }, InvalidTimestamp),
        ("negative nanos", at(NOON_MS / 1_000, -1), InvalidTimestamp),
        ("a nano too many", at(NOON_MS / 1_000, 1_000_000_000), InvalidTimestamp),
        ("a nanosecond before 1970", at(-1, 999_999_999), InvalidTimestamp),
        ("year 1", at(-62_135_596_800, 0), InvalidTimestamp),
        ("before year 1", at(-62_135_596_801, 0), InvalidTimestamp),
        ("year 9999", at(253_402_300_799, 999_999_999), InvalidTimestamp),
        ("year 10000", at(253_402_300_800, 0), InvalidTimestamp),
        ("least seconds", at(i64::MIN, i32::MIN), InvalidTimestamp),
        ("most seconds", at(i64::MAX, i32::MAX), InvalidTimestamp),
        ("more than a day ahead", at((now_ms() + DAY_MS + MINUTE_MS) / 1_000, 0), InvalidTimestamp),
        ("no type", of_type(""), InvalidType),
        ("a type of 65 bytes", of_type(&text(65)), InvalidType),
        ("a type with a space", of_type("s3cr3t x"), InvalidType),
        ("a type with NUL", of_type("s3cr3t\0"), InvalidType),
        ("a type with a letter outside ASCII", of_type("s3cr3t\u{e9}"), InvalidType),
        ("a reserved type", of_type("reel.s3cr3t"), InvalidType),
        ("the service's own type", of_type("reel.rejected"), InvalidType),
        ("a target of 1,025 bytes", with_target(text(1_025)), InvalidTarget),
        ("a target with NUL", with_target("s3cr3t\0"), InvalidTarget),
        ("a target of NUL", with_target("\0"), InvalidTarget),
        ("text", secret("$"), InvalidData),
        ("half an object", secret("{\"$\":"), InvalidData),
        ("a comma too many", secret("[\"$\",]"), InvalidData),
        ("two values", secret("\"$\" \"$\""), InvalidData),
        ("single quotes", secret("{'$':1}"), InvalidData),
        ("a comment", secret("1 // $"), InvalidData),
        ("spaces alone", with_data(" \n"), InvalidData),
        ("NaN", with_data("NaN"), InvalidData),
        ("Infinity", with_data("-Infinity"), InvalidData),
        ("a leading zero", with_data("01"), InvalidData),
        ("a byte order mark", secret("\u{feff}\"$\""), InvalidData),
        ("NUL in a string", secret("\"$\0\""), InvalidData),
        ("NUL at the end", secret("\"$\"\0"), InvalidData),
        ("a line break in a string", secret("\"$\n\""), InvalidData),
        ("an unknown escape", secret("\"$\\x41\""), InvalidData),
        ("half a unicode escape", secret("\"$\\ud80\""), InvalidData),
        ("nested 129 deep", with_data(nested(129)), InvalidData),
        ("opened 100,000 times", with_data("[".repeat(100_000)), InvalidData),
        ("1 MiB and a byte", of_size(MIB + 1), TooLarge),
    ]
}

async fn a_bad_action_is_replaced_by_one_that_says_why_and_its_neighbours_are_stored(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let session = reel.start_session().await;
    let bad = bad_actions();
    let mut actions = clicks(0..1);
    for (number, (_, action, _)) in (1..).zip(&bad) {
        actions.extend([action.clone(), click(number * 1_000, &number.to_string())]);
    }
    let sent = i64::try_from(actions.len()).unwrap();
    let receipt = reel.append(&session, "", 1, actions.clone()).await.unwrap();
    let rejected = i64::try_from(bad.len()).unwrap();
    assert_eq!((receipt.accepted_count, receipt.rejected_count), (sent - rejected, rejected));
    assert_eq!(receipt.committed_seq, sent);
    assert_eq!(receipt.rejections.len(), bad.len());

    let played: HashMap<_, _> = reel.play_all(&session).await.into_iter().map(|action| (action.seq, action)).collect();
    let mut digests = BTreeSet::new();
    for (((name, action, reason), rejection), seq) in bad.iter().zip(&receipt.rejections).zip((2..).step_by(2)) {
        assert_eq!((rejection.seq, rejection.reason()), (seq, *reason), "{name}");
        let placeholder = &played[&seq];
        assert_eq!((placeholder.r#type.as_str(), placeholder.target.as_str()), ("reel.rejected", ""), "{name}");
        let data: serde_json::Value = serde_json::from_str(&placeholder.data).unwrap();
        let prefixed = format!("REJECTION_REASON_{}", data["reason"].as_str().unwrap());
        assert_eq!(prefixed, reason.as_str_name(), "{name}");
        assert_eq!(data["description"], rejection.description.as_str(), "{name}");
        assert_eq!(data["size_bytes"], action.r#type.len() + action.target.len() + action.data.len(), "{name}");
        let sha256 = data["sha256"].as_str().unwrap();
        assert!(sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}: {sha256}");
        digests.insert(sha256.to_owned());
        let said = format!("{} {}", rejection.description, placeholder.data);
        assert!(!said.contains(CANARY), "{name}: it repeats the content: {said}");
    }
    assert_eq!(digests.len(), bad.len(), "digests tell contents apart");
    for (number, seq) in (0..=rejected).zip((1..).step_by(2)) {
        assert_eq!(played[&seq].target, number.to_string());
    }

    let again = reel.append(&session, "", 1, actions).await.unwrap();
    assert_eq!((again.duplicate_count, again.rejected_count, again.committed_seq), (sent, 0, sent));
    let different = reel.append(&session, "", 2, clicks(7..8)).await.unwrap();
    assert_eq!(different.rejections[0].reason(), RejectionReason::Conflict);
    assert_eq!(i64::try_from(reel.play_all(&session).await.len()).unwrap(), sent);
}

fn good_actions() -> Vec<(&'static str, Action)> {
    let json = [
        ("empty", ""),
        ("null", "null"),
        ("a number", "1"),
        ("a number with a fraction of nothing", "1.0"),
        ("minus nothing", "-0"),
        ("an exponent", "1E+2"),
        ("2^63", "9223372036854775808"),
        ("-2^63 - 1", "-9223372036854775809"),
        ("1e400", "1e400"),
        ("1e-400", "1e-400"),
        ("many digits", "3.14159265358979323846264338327950288419716939937510"),
        ("duplicate keys", r#"{"a":1,"a":2,"a":1}"#),
        ("keys out of order", r#"{"b":1,"a":2,"":3}"#),
        ("spaces everywhere", " \t\r\n{ \"a\" :\t[ 1 , 2 ]\r\n} \n"),
        ("escaped NUL", r#""a\u0000b""#),
        ("escaped NUL as a key", r#"{"\u0000":"\u0000"}"#),
        ("a lone high surrogate", r#""\ud800""#),
        ("a lone low surrogate", r#"{"\udfff":"\uDFFF\uD800"}"#),
        ("an escaped pair", r#""\ud83d\ude00""#),
        ("escapes that are not needed", r#""\/\u0041""#),
        ("all escapes", r#""\"\\\/\b\f\n\r\t""#),
        ("unicode", "\"\u{e9}\u{65e5}\u{1f600}\u{202e}\u{feff}\u{ffff}\u{10ffff}\u{7f}\u{2028}\""),
        ("not normalized", "\"e\u{301}\u{e9}\""),
        ("SQL", r#""'); DROP TABLE actions; --""#),
        ("what COPY would take for its own", r#""\\.\\N""#),
        ("a string that looks like JSON", r#""{\"a\":[[[""#),
    ];
    let mut actions: Vec<_> = json.into_iter().map(|(name, data)| (name, with_data(data))).collect();
    actions.extend([
        ("nested 128 deep", with_data(nested(128))),
        ("1 MiB", of_size(MIB)),
        ("a type of 1 byte", of_type("t")),
        ("a type of 64 bytes", of_type(&text(64))),
        ("a type of all characters", of_type("aZ09_.:/-")),
        ("a type that is almost reserved", of_type("reel")),
        ("another type that is almost reserved", of_type("Reel.rejected")),
        ("no target", with_target("")),
        ("a target of 1,024 bytes", with_target(text(1_024))),
        ("a target of 1,024 bytes in 512 characters", with_target("\u{e9}".repeat(512))),
        ("a target of controls", with_target("\t\r\n\u{1}\u{7f}\u{feff}")),
        ("a target like a COPY end", with_target("\\.\n\\N\\\\")),
        ("1970", at(0, 0)),
        ("most nanos", at(1, 999_999_000)),
        ("a microsecond", at(1, 1_000)),
        ("almost a day ahead", at((now_ms() + DAY_MS - MINUTE_MS) / 1_000, 0)),
    ]);
    actions
}

async fn a_good_action_comes_back_byte_for_byte(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let session = reel.start_session().await;
    let good = good_actions();
    let actions: Vec<_> = good.iter().map(|(_, action)| action.clone()).collect();
    let receipt = reel.append(&session, "", 1, actions.clone()).await.unwrap();
    let refused: Vec<_> = receipt.rejections.iter().map(|one| (one.seq, one.description.as_str())).collect();
    assert_eq!(refused, []);
    let played: HashMap<_, _> = reel.play_all(&session).await.into_iter().map(|action| (action.seq, action)).collect();
    assert_eq!(played.len(), good.len());
    for ((name, action), seq) in good.iter().zip(1..) {
        let expected = Action { seq, source: "main".to_owned(), ..action.clone() };
        let got = &played[&seq];
        assert_eq!(got.data, expected.data, "{name}");
        assert!(*got == expected, "{name}: {:?} {:?}", got.timestamp, got.target);
    }
    let again = reel.append(&session, "", 1, actions).await.unwrap();
    assert_eq!((usize::try_from(again.duplicate_count).unwrap(), again.rejected_count), (good.len(), 0));

    // Finer digits than those of a microsecond are cut off, and do not make an action another one.
    let finer = Timestamp { nanos: 999_999_999, ..timestamp(1_000) };
    let first_seq = receipt.committed_seq + 1;
    let fine = vec![Action { timestamp: Some(finer), ..click(0, "fine") }];
    reel.append(&session, "", first_seq, fine.clone()).await.unwrap();
    assert_eq!(reel.append(&session, "", first_seq, fine).await.unwrap().duplicate_count, 1);
    let played = reel.play_all(&session).await;
    let fine = played.iter().find(|action| action.target == "fine").unwrap();
    assert_eq!(fine.timestamp, Some(Timestamp { nanos: 999_999_000, ..finer }));
}

async fn a_different_action_under_a_known_seq_is_a_conflict_and_overwrites_nothing(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let session = reel.start_session().await;
    let original = click(1_000, "original");
    reel.append(&session, "", 1, vec![original.clone()]).await.unwrap();
    for (name, different) in [
        ("timestamp", Action { timestamp: Some(timestamp(NOON_MS)), ..original.clone() }),
        ("type", Action { r#type: "input".to_owned(), ..original.clone() }),
        ("target", Action { target: text(9), ..original.clone() }),
        ("data", Action { data: format!("{} ", original.data), ..original.clone() }),
        ("a type that is bad", Action { r#type: String::new(), ..original.clone() }),
    ] {
        let receipt = reel.append(&session, "", 1, vec![different, click(2_000, "next")]).await.unwrap();
        let [rejection] = receipt.rejections.as_slice() else { panic!("{name}: {:?}", receipt.rejections) };
        assert_eq!((rejection.seq, rejection.reason()), (1, RejectionReason::Conflict), "{name}");
        assert!(!rejection.description.contains(CANARY));
        assert_eq!((receipt.accepted_count + receipt.duplicate_count, receipt.committed_seq), (1, 2), "{name}");
    }
    let played = reel.play_all(&session).await;
    assert_eq!(played.len(), 2);
    assert!(played[0] == Action { seq: 1, source: "main".to_owned(), ..original });
}

async fn a_receipt_lists_100_rejections_and_counts_all(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    for count in [0, 1, 100, 101] {
        let session = reel.start_session().await;
        let receipt = reel.append(&session, "", 1, vec![of_type(""); count]).await.unwrap();
        assert_eq!(usize::try_from(receipt.rejected_count).unwrap(), count);
        assert_eq!(receipt.rejections.len(), count.min(100));
        let session = reel.get(&session).await.unwrap();
        assert_eq!(usize::try_from(session.action_count).unwrap(), count);
    }
}
