//! Rows about sessions, users and cursors.

use reel::{
    convert::{PageToken, Scope},
    proto::{
        DeleteSessionRequest, DeleteUserRequest, GetErasureRequest, GetIngestCursorRequest, GetSessionRequest,
        GetUserRequest, ListSessionsRequest, ListUsersRequest, SessionFilter, UpdateSessionRequest, UpsertUserRequest,
        User,
    },
};
use tonic::Code;

use super::{
    table::{ACCEPTED, Expected, Table, invalid, invalid_in, refused, text},
    values::{
        EXTREME_TIMESTAMPS, attributes, attributes_around_the_limits, bad_emails, bad_names, bad_session_ids,
        bad_timestamps, bad_user_ids, good_names, users_around_the_limits,
    },
    world::World,
};
use crate::harness::{NOON_MS, timestamp, user};

pub fn rows(table: &mut Table, world: &World) {
    session_ids(table, world);
    ingest_cursors(table, world);
    session_updates(table, world);
    session_lists(table, world);
    users(table, world);
    user_lists(table, world);
    page_sizes(table);
}

fn get_session(session_id: &str) -> GetSessionRequest {
    GetSessionRequest { session_id: session_id.to_owned() }
}

fn delete_session(session_id: &str) -> DeleteSessionRequest {
    DeleteSessionRequest { session_id: session_id.to_owned() }
}

fn update_session(session_id: &str) -> UpdateSessionRequest {
    UpdateSessionRequest { session_id: session_id.to_owned(), ..Default::default() }
}

fn ingest_cursor(session_id: &str, source: &str) -> GetIngestCursorRequest {
    GetIngestCursorRequest { session_id: session_id.to_owned(), source: source.to_owned() }
}

fn session_ids(table: &mut Table, world: &World) {
    let bad = bad_session_ids(&world.session).into_iter().chain([("empty", String::new())]);
    for (name, id) in bad {
        let name = format!("session id: {name}");
        table.row(&name, get_session(&id), invalid("session_id"));
        table.row(&name, delete_session(&id), invalid("session_id"));
        table.row(&name, update_session(&id), invalid("session_id"));
        table.row(&name, ingest_cursor(&id, ""), invalid("session_id"));
    }
    for (name, id) in [("nobody has", &world.unknown), ("of an erased session", &world.erased)] {
        let name = format!("a session id that {name}");
        let missing = refused(Code::NotFound, "SESSION_NOT_FOUND");
        table.row(&name, get_session(id), missing);
        table.row(&name, delete_session(id), missing);
        table.row(&name, update_session(id), missing);
        table.row(&name, ingest_cursor(id, ""), missing);
    }
    table.row("a session that exists", get_session(&world.session), ACCEPTED);
}

fn ingest_cursors(table: &mut Table, world: &World) {
    for source in good_names().into_iter().chain([String::new()]) {
        table.row(format!("source: {source:?}"), ingest_cursor(&world.session, &source), ACCEPTED);
    }
    for (name, source) in bad_names() {
        table.row(format!("source: {name}"), ingest_cursor(&world.session, &source), invalid("source"));
    }
}

fn session_updates(table: &mut Table, world: &World) {
    let set = |session_id: &str, attributes, removed: &[&str]| UpdateSessionRequest {
        session_id: session_id.to_owned(),
        attributes,
        removed_attributes: removed.iter().map(|key| (*key).to_owned()).collect(),
        ..UpdateSessionRequest::default()
    };
    for (name, given, is_good) in attributes_around_the_limits() {
        // What was set before is removed, so that only what is in the row counts.
        let before = attributes_around_the_limits().into_iter().flat_map(|(_, given, _)| given.into_keys());
        let before: Vec<_> =
            before.filter(|key| key.parse::<u8>().is_err()).chain(attributes(50).into_keys()).collect();
        let removed: Vec<_> = before.iter().map(String::as_str).take(64).collect();
        let expected = if is_good { ACCEPTED } else { invalid("attributes") };
        table.row(format!("attributes: {name}"), set(&world.ended, given, &removed), expected);
    }
    let too_many = refused(Code::FailedPrecondition, "TOO_MANY_ATTRIBUTES");
    let (new, known) = ([("64".to_owned(), text(9))], [("63".to_owned(), text(9))]);
    table.row("a session's 65th attribute", set(&world.full, new.clone().into(), &[]), too_many);
    table.row("a session's 65th attribute, another removed", set(&world.full, new.clone().into(), &["0"]), ACCEPTED);
    table.row("the same once more", set(&world.full, new.into(), &[]), ACCEPTED);
    table.row("one of a session's 64 attributes", set(&world.full, known.into(), &[]), ACCEPTED);
    table.row("the removed attribute", set(&world.full, [("0".to_owned(), text(9))].into(), &[]), too_many);
    for (count, expected) in [(0, ACCEPTED), (1, ACCEPTED), (64, ACCEPTED), (65, invalid("removed_attributes"))] {
        let keys: Vec<_> = (0..count).map(|key| format!("none-{key}")).collect();
        let removed: Vec<_> = keys.iter().map(String::as_str).collect();
        table.row(format!("{count} removed attributes"), set(&world.session, attributes(0), &removed), expected);
    }
    let strange = set(&world.session, attributes(0), &["", "\0", "nobody has this"]);
    table.row("removed attributes that cannot be there", strange, ACCEPTED);
}

fn session_lists(table: &mut Table, world: &World) {
    let list = |filter| ListSessionsRequest { filter: Some(filter), ..Default::default() };
    table.row("an empty filter", list(SessionFilter::default()), ACCEPTED);
    for user_id in ["u".to_owned(), text(256)] {
        table.row("a user id", list(SessionFilter { user_id, ..Default::default() }), ACCEPTED);
    }
    for user_id in bad_user_ids().into_iter().filter(|id| !id.is_empty()) {
        let name = format!("user id: {user_id:?}");
        table.row(name, list(SessionFilter { user_id, ..Default::default() }), invalid("filter.user_id"));
    }
    for email in ["@".to_owned(), text(320)] {
        table.row("an e-mail address", list(SessionFilter { email, ..Default::default() }), ACCEPTED);
    }
    for email in bad_emails() {
        let name = format!("e-mail: {email:?}");
        table.row(name, list(SessionFilter { email, ..Default::default() }), invalid("filter.email"));
    }
    for time in EXTREME_TIMESTAMPS {
        table.row(
            format!("after {time:?}"),
            list(SessionFilter { started_after: Some(time), ..Default::default() }),
            ACCEPTED,
        );
        table.row(
            format!("before {time:?}"),
            list(SessionFilter { started_before: Some(time), ..Default::default() }),
            ACCEPTED,
        );
    }
    for time in bad_timestamps() {
        let after = SessionFilter { started_after: Some(time), ..Default::default() };
        table.row(format!("after {time:?}"), list(after), invalid("filter.started_after"));
        let before = SessionFilter { started_before: Some(time), ..Default::default() };
        table.row(format!("before {time:?}"), list(before), invalid("filter.started_before"));
    }
    for (later_ms, expected) in [(-1, false), (0, false), (1, true)] {
        let (started_after, started_before) = (Some(timestamp(NOON_MS)), Some(timestamp(NOON_MS + later_ms)));
        let filter = SessionFilter { started_after, started_before, ..Default::default() };
        let expected = if expected { ACCEPTED } else { invalid("filter.started_before") };
        table.row(format!("before is {later_ms} ms after after"), list(filter), expected);
    }

    let page = |token: &str, user_id: &str| ListSessionsRequest {
        page_token: token.to_owned(),
        filter: Some(SessionFilter { user_id: user_id.to_owned(), ..Default::default() }),
        ..Default::default()
    };
    table.row("a page token", page(&world.session_token, ""), ACCEPTED);
    table.row("a page token of another filter", page(&world.session_token, "ada"), invalid("page_token"));
    table.row("a page token of another list", page(&world.user_token, ""), invalid("page_token"));
    let scope = Scope::of_sessions(&ListSessionsRequest::default());
    for (name, token) in forged_tokens(&world.session_token, &scope) {
        table.row(format!("page token: {name}"), page(&token, ""), invalid("page_token"));
    }
}

/// Tokens that nobody was given. The seal keeps accidents out and not those who read the source.
fn forged_tokens(good: &str, scope: &Scope) -> Vec<(&'static str, String)> {
    vec![
        ("one character", "x".to_owned()),
        ("not base64", "====".to_owned()),
        ("text", text(40)),
        ("cut at the front", good[1..].to_owned()),
        ("cut at the end", good[..good.len() - 1].to_owned()),
        ("cut to the seal", good[..12].to_owned()),
        ("made longer", format!("{good}AAAA")),
        ("another version", format!("B{}", &good[1..])),
        ("with NUL", format!("{good}\0")),
        ("twice", format!("{good}{good}")),
        ("200 KiB", text(200 << 10)),
        ("a sealed nothing", PageToken::seal("", scope)),
        ("a sealed NUL", PageToken::seal("\0", scope)),
        ("a sealed text that is too long", PageToken::seal(&text(257), scope)),
    ]
}

fn users(table: &mut Table, world: &World) {
    let upsert = |user| UpsertUserRequest { user: Some(user) };
    table.row("no user", UpsertUserRequest::default(), invalid("user"));
    for (name, user, fault) in users_around_the_limits() {
        let expected = fault.map_or(ACCEPTED, |field| invalid_in("user", field));
        table.row(name, upsert(user), expected);
    }
    let one = |key: &str| User { attributes: [(key.to_owned(), text(9))].into(), ..user("full", "") };
    let too_many = refused(Code::FailedPrecondition, "TOO_MANY_ATTRIBUTES");
    table.row("a user's 65th attribute", upsert(one("64")), too_many);
    table.row("one of a user's 64 attributes", upsert(one("63")), ACCEPTED);

    let get = |user_id: &str| GetUserRequest { user_id: user_id.to_owned() };
    let delete = |user_id: &str| DeleteUserRequest { user_id: user_id.to_owned() };
    let erasure = |user_id: &str| GetErasureRequest { user_id: user_id.to_owned(), ..Default::default() };
    for id in bad_user_ids() {
        let name = format!("user id: {id:?}");
        table.row(&name, get(&id), invalid("user_id"));
        table.row(&name, delete(&id), invalid("user_id"));
        table.row(&name, erasure(&id), invalid("user_id"));
    }
    table.row("no erasure", erasure("ada"), refused(Code::NotFound, "ERASURE_NOT_FOUND"));
    let missing = refused(Code::NotFound, "USER_NOT_FOUND");
    for id in ["nobody", &world.session, &text(255)] {
        table.row("a user that there is not", get(id), missing);
        table.row("a user that there is not", delete(id), missing);
    }
    table.row("a user", get("ada"), ACCEPTED);
}

fn user_lists(table: &mut Table, world: &World) {
    let list = |token: &str, email: &str| ListUsersRequest {
        page_token: token.to_owned(),
        email: email.to_owned(),
        ..Default::default()
    };
    for email in ["", "@", &text(320)] {
        table.row("an e-mail address", list("", email), ACCEPTED);
    }
    for email in bad_emails() {
        table.row(format!("e-mail: {email:?}"), list("", &email), invalid("email"));
    }
    table.row("a page token", list(&world.user_token, ""), ACCEPTED);
    table.row("a page token of another filter", list(&world.user_token, "a@example.com"), invalid("page_token"));
    table.row("a page token of another list", list(&world.session_token, ""), invalid("page_token"));
    for (name, token) in forged_tokens(&world.user_token, &Scope::of_users(&ListUsersRequest::default())) {
        table.row(format!("page token: {name}"), list(&token, ""), invalid("page_token"));
    }
}

fn page_sizes(table: &mut Table) {
    for (page_size, is_good) in
        [(i32::MIN, false), (-1, false), (0, true), (1, true), (1_000, true), (1_001, true), (i32::MAX, true)]
    {
        let expected: Expected = if is_good { ACCEPTED } else { invalid("page_size") };
        let name = format!("page size {page_size}");
        table.row(&name, ListSessionsRequest { page_size, ..Default::default() }, expected);
        table.row(&name, ListUsersRequest { page_size, ..Default::default() }, expected);
    }
}
