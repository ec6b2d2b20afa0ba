//! Values of fields that occur in more than one request: good ones up to the limit, and bad ones.

use std::collections::HashMap;

use prost_types::Timestamp;
use reel::proto::User;

use super::table::text;
use crate::harness::user;

/// Texts that are no session ids, although some of them mean one.
pub fn bad_session_ids(good: &str) -> Vec<(&'static str, String)> {
    let with_digit = |at: usize, digit: &str| format!("{}{digit}{}", &good[..at], &good[at + 1..]);
    vec![
        ("not a uuid", text(36)),
        ("one character", "x".to_owned()),
        ("a v4 uuid", with_digit(14, "4")),
        ("a v6 uuid", with_digit(14, "6")),
        ("a uuid of another variant", with_digit(19, "c")),
        ("nil", "00000000-0000-0000-0000-000000000000".to_owned()),
        ("max", "ffffffff-ffff-ffff-ffff-ffffffffffff".to_owned()),
        ("upper case", good.to_uppercase()),
        ("without hyphens", good.replace('-', "")),
        ("in braces", format!("{{{good}}}")),
        ("as a urn", format!("urn:uuid:{good}")),
        ("trailing space", format!("{good} ")),
        ("leading space", format!(" {good}")),
        ("trailing newline", format!("{good}\n")),
        ("with NUL", with_digit(0, "\0")),
        ("one character short", good[..35].to_owned()),
        ("one character more", format!("{good}0")),
        ("full-width digits", good.replace('0', "\u{ff10}")),
        ("200 KiB", text(200 << 10)),
    ]
}

/// Texts that break the rules for names: sources and reasons.
pub fn bad_names() -> Vec<(&'static str, String)> {
    vec![
        ("65 bytes", text(65)),
        ("with a space", format!("{} x", text(6))),
        ("with NUL", format!("{}\0", text(6))),
        ("with a newline", format!("{}\n", text(6))),
        ("with a letter outside ASCII", "\u{e9}".to_owned()),
        ("with a quote", "'".to_owned()),
        ("with a backslash", "\\".to_owned()),
        ("with a percent sign", "%".to_owned()),
        ("with an at sign", "@".to_owned()),
        ("with a comma", ",".to_owned()),
    ]
}

/// All names that are just about right.
pub fn good_names() -> Vec<String> {
    vec!["0".to_owned(), text(64), "aZ09_.:/-".to_owned(), "--".to_owned()]
}

/// Control characters: of ASCII, DEL, and of the rest of Unicode.
pub const CONTROLS: [char; 6] = ['\0', '\n', '\u{1b}', '\u{7f}', '\u{80}', '\u{9f}'];

/// This many attributes, with keys `0`, `1`, ….
pub fn attributes(count: usize) -> HashMap<String, String> {
    (0..count).map(|key| (key.to_string(), String::new())).collect()
}

/// Attributes, and whether they are good.
pub fn attributes_around_the_limits() -> Vec<(&'static str, HashMap<String, String>, bool)> {
    let one = |key: String, value: String| HashMap::from([(key, value)]);
    vec![
        ("none", attributes(0), true),
        ("1", attributes(1), true),
        ("64", attributes(64), true),
        ("65", attributes(65), false),
        ("a key of 0 bytes", one(String::new(), text(9)), false),
        ("a key of 1 byte", one("k".to_owned(), text(9)), true),
        ("a key of 64 bytes", one(text(64), text(9)), true),
        ("a key of 65 bytes", one(text(65), text(9)), false),
        ("a key of 64 bytes in 32 characters", one("\u{e9}".repeat(32), text(9)), true),
        ("a key of 66 bytes in 33 characters", one("\u{e9}".repeat(33), text(9)), false),
        ("a key with NUL", one(format!("{}\0", text(6)), text(9)), false),
        ("a key of any other characters", one("$.\"\\'\u{7f}\n\u{1f600}".to_owned(), text(9)), true),
        ("a value of 0 bytes", one("k".to_owned(), String::new()), true),
        ("a value of 1 byte", one("k".to_owned(), "v".to_owned()), true),
        ("a value of 1,024 bytes", one("k".to_owned(), text(1_024)), true),
        ("a value of 1,025 bytes", one("k".to_owned(), text(1_025)), false),
        ("a value with NUL", one("k".to_owned(), format!("{}\0", text(6))), false),
        ("a value of any other characters", one("k".to_owned(), "\\u0000\"\u{1}\n\u{ffff}".to_owned()), true),
    ]
}

/// Users, and the field at fault.
pub fn users_around_the_limits() -> Vec<(String, User, Option<&'static str>)> {
    let id = |id: String| User { id, ..Default::default() };
    let email = |email: String| user("edge", &email);
    let name = |name: String| User { name, ..user("edge", "") };
    let mut users = vec![
        ("an id of 0 bytes".to_owned(), id(String::new()), Some("id")),
        ("an id of 1 byte".to_owned(), id("u".to_owned()), None),
        ("an id of 256 bytes".to_owned(), id(text(256)), None),
        ("an id of 257 bytes".to_owned(), id(text(257)), Some("id")),
        ("an id of 256 bytes in 128 characters".to_owned(), id("\u{e9}".repeat(128)), None),
        ("an id of 258 bytes in 129 characters".to_owned(), id("\u{e9}".repeat(129)), Some("id")),
        ("an id of any other characters".to_owned(), id(" '\"\\%_\u{feff}\u{1f600}".to_owned()), None),
        ("an e-mail address of 0 bytes".to_owned(), email(String::new()), None),
        ("an e-mail address of 1 byte".to_owned(), email("@".to_owned()), None),
        ("an e-mail address of 320 bytes".to_owned(), email(text(320)), None),
        ("an e-mail address of 321 bytes".to_owned(), email(text(321)), Some("email")),
        ("an e-mail address that grows in lower case".to_owned(), email("\u{130}".repeat(160)), None),
        ("a name of 1 byte".to_owned(), name("n".to_owned()), None),
        ("a name of 256 bytes".to_owned(), name(text(256)), None),
        ("a name of 257 bytes".to_owned(), name(text(257)), Some("name")),
    ];
    for control in CONTROLS {
        let bad = format!("{}{control}", text(6));
        users.push((format!("an id with {control:?}"), id(bad.clone()), Some("id")));
        users.push((format!("an e-mail address with {control:?}"), email(bad.clone()), Some("email")));
        users.push((format!("a name with {control:?}"), name(bad), Some("name")));
    }
    for (index, (what, attributes, is_good)) in attributes_around_the_limits().into_iter().enumerate() {
        let user = User { attributes, ..user(&format!("attributes-{index}"), "") };
        users.push((format!("attributes: {what}"), user, (!is_good).then_some("attributes")));
    }
    let create_time = Some(Timestamp { seconds: i64::MAX, nanos: -1 });
    users.push(("a create_time is not looked at".to_owned(), User { create_time, ..user("edge", "") }, None));
    users
}

/// Ids of users that are no ids.
pub fn bad_user_ids() -> Vec<String> {
    let with_controls = CONTROLS.map(|control| format!("{}{control}", text(6)));
    [String::new(), text(257)].into_iter().chain(with_controls).collect()
}

/// E-mail addresses that are none.
pub fn bad_emails() -> Vec<String> {
    let with_controls = CONTROLS.map(|control| format!("{}{control}", text(6)));
    [text(321)].into_iter().chain(with_controls).collect()
}

/// Timestamps that are none, or lie before 1970.
pub fn bad_timestamps() -> [Timestamp; 6] {
    [(-1, 999_999_999), (0, -1), (0, 1_000_000_000), (253_402_300_800, 0), (i64::MIN, 0), (i64::MAX, 0)]
        .map(|(seconds, nanos)| Timestamp { seconds, nanos })
}

/// The first timestamp of all, and the last.
pub const EXTREME_TIMESTAMPS: [Timestamp; 2] =
    [Timestamp { seconds: 0, nanos: 0 }, Timestamp { seconds: 253_402_300_799, nanos: 999_999_999 }];
