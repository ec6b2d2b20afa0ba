//! Users.

use chrono::Utc;
use migration::{Migrator, MigratorTrait as _};
use reel::proto::{
    DeleteUserRequest, GetErasureRequest, GetUserRequest, ListUsersRequest, SessionStart, UpsertUserRequest, User,
    ingest_service_client::IngestServiceClient, user_service_client::UserServiceClient,
};
use sea_orm::ConnectionTrait as _;
use sha2::{Digest as _, Sha256};
use tonic::{Code, transport::Endpoint};

use crate::{
    crash::process::Process,
    harness::{Backend, NOON_MS, Reel, TestDatabase, batch, clicks, eventually, reason, session_id, start, user},
    on_both_databases,
};

on_both_databases!(
    a_user_is_created_then_brought_up_to_date_field_by_field,
    users_are_listed_by_id_page_by_page_and_by_email,
    deleting_a_user_erases_its_sessions_and_nothing_else,
    an_erasure_whose_process_is_killed_goes_on_and_says_how_far_it_is,
    an_erasure_that_fails_stops_no_other,
    a_user_row_deleted_in_plain_sql_takes_its_sessions_and_actions_along,
    an_address_that_is_written_in_plain_sql_is_found_or_refused,
    addresses_that_were_written_in_plain_sql_before_are_found,
);

async fn a_user_is_created_then_brought_up_to_date_field_by_field(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let first = User { attributes: [("plan".to_owned(), "free".to_owned())].into(), ..user("ada", "Ada@Example.com") };
    let request = UpsertUserRequest { user: Some(first) };
    let created = reel.users().upsert_user(request).await.unwrap().into_inner().user.unwrap();
    assert_eq!(created.email, "ada@example.com");
    let second =
        User { name: "Ada".to_owned(), attributes: [("team".to_owned(), "x".to_owned())].into(), ..user("ada", "") };
    reel.users().upsert_user(UpsertUserRequest { user: Some(second) }).await.unwrap();
    let got = reel.users().get_user(GetUserRequest { user_id: "ada".to_owned() }).await.unwrap();
    let got = got.into_inner().user.unwrap();
    assert_eq!((got.email.as_str(), got.name.as_str()), ("ada@example.com", "Ada"));
    assert_eq!(got.attributes.len(), 2);
    assert_eq!(got.create_time, created.create_time);

    let unknown = reel.users().get_user(GetUserRequest { user_id: "bob".to_owned() }).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "USER_NOT_FOUND"));
}

async fn users_are_listed_by_id_page_by_page_and_by_email(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    for number in 0..7 {
        let email = if number % 2 == 0 { "even@example.com" } else { "odd@example.com" };
        let request = UpsertUserRequest { user: Some(user(&format!("user-{number}"), email)) };
        reel.users().upsert_user(request).await.unwrap();
    }
    for page_size in [1, 2, 6, 7, 8] {
        let mut seen = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListUsersRequest { page_size, page_token, email: String::new() };
            let page = reel.users().list_users(request).await.unwrap().into_inner();
            seen.extend(page.users.into_iter().map(|user| user.id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        let expected: Vec<_> = (0..7).map(|number| format!("user-{number}")).collect();
        assert_eq!(seen, expected, "pages of {page_size}");
    }
    let request = ListUsersRequest { email: "EVEN@example.com".to_owned(), ..Default::default() };
    assert_eq!(reel.users().list_users(request).await.unwrap().into_inner().users.len(), 4);
}

async fn deleting_a_user_erases_its_sessions_and_nothing_else(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let mut ids = Vec::new();
    for id in ["ada", "ada", "bob"] {
        let started = SessionStart { user: Some(user(id, "")), ..Default::default() };
        let receipts = reel.record(vec![start("", started), batch("", "", 1, clicks(0..3))]).await.unwrap().receipts;
        ids.push(receipts[0].session_id.clone());
    }
    let request = DeleteUserRequest { user_id: "ada".to_owned() };
    let erased = reel.users().delete_user(request.clone()).await.unwrap().into_inner();
    assert_eq!((erased.erased_session_count, erased.erased_action_count), (2, 6));
    for id in &ids[..2] {
        assert_eq!(reel.get(id).await.unwrap_err().code(), Code::NotFound);
        let late = reel.append(id, "", 4, clicks(3..4)).await.unwrap_err();
        assert_eq!((late.code(), reason(&late).as_str()), (Code::FailedPrecondition, "SESSION_ERASED"));
    }
    assert_eq!(reel.play_all(&ids[2]).await.len(), 3);
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 3);
    assert_eq!(database.number("SELECT count(*) FROM users").await, 1);
    let again = reel.users().delete_user(request).await.unwrap_err();
    assert_eq!(reason(&again), "USER_NOT_FOUND");
}

async fn an_erasure_whose_process_is_killed_goes_on_and_says_how_far_it_is(backend: Backend) {
    const SESSIONS: i64 = 40;
    let database = TestDatabase::new(backend).await;
    let mut process = Process::serve(&database.url, &[]).await;
    let connect = async |process: &Process| {
        Endpoint::from_shared(format!("http://{}", process.address)).unwrap().connect().await.unwrap()
    };
    let channel = connect(&process).await;
    let requests = (0..SESSIONS).flat_map(|number| {
        let started = SessionStart { user: Some(user("ada", "")), ..Default::default() };
        let id = session_id(NOON_MS + number);
        [start(&id, started), batch("", "", 1, clicks(0..3))]
    });
    let requests: Vec<_> = requests.collect();
    IngestServiceClient::new(channel.clone()).record_actions(tokio_stream::iter(requests)).await.unwrap();
    let request = DeleteUserRequest { user_id: "ada".to_owned() };
    process.kill().await;
    // It erases a session, dies, goes on with it as soon as it runs again, and dies again.
    process.start_again_to_die_at(Some("session of a user erased")).await;
    let mut users = UserServiceClient::new(connect(&process).await);
    assert!(users.delete_user(request).await.is_err());
    assert_eq!(process.exited().await.code(), None, "it died");
    let erased = async || database.number("SELECT CAST(coalesce(sum(session_count), 0) AS bigint) FROM erasures").await;
    let left = async || database.number("SELECT count(*) FROM sessions").await;
    assert_eq!((erased().await, left().await), (1, SESSIONS - 1));
    process.begin_again();
    assert_eq!(process.exited().await.code(), None, "it died again");
    assert_eq!((erased().await, left().await), (2, SESSIONS - 2));
    process.start_again_to_die_at(None).await;
    let request = GetErasureRequest { user_id: "ada".to_owned(), ..Default::default() };
    let mut users = UserServiceClient::new(connect(&process).await);
    let mut progress = users.get_erasure(request.clone()).await.unwrap().into_inner();
    eventually("it is finished", async || {
        let next = users.get_erasure(request.clone()).await.unwrap().into_inner();
        assert!(next.erased_session_count >= progress.erased_session_count);
        progress = next;
        progress.finish_time.is_some()
    })
    .await;
    let counts = (progress.session_count, progress.erased_session_count, progress.erased_action_count);
    assert_eq!(counts, (SESSIONS, SESSIONS, 3 * SESSIONS));
    for table in ["users", "sessions", "tracks", "actions"] {
        assert_eq!(database.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    assert_eq!(database.number("SELECT count(*) FROM erasures WHERE user_id IS NOT NULL").await, 0);
}

/// Makes the database refuse to delete the sessions of a user.
pub fn refuse_to_erase(backend: Backend, user_id: &str) -> String {
    match backend {
        Backend::Sqlite => format!(
            "CREATE TRIGGER refuse BEFORE DELETE ON sessions WHEN OLD.user_id = '{user_id}' \
             BEGIN SELECT raise(ABORT, 'refused'); END"
        ),
        Backend::Postgres => format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$; \
             CREATE TRIGGER refuse BEFORE DELETE ON sessions FOR EACH ROW WHEN (OLD.user_id = '{user_id}') \
             EXECUTE FUNCTION refuse()"
        ),
    }
}

async fn an_erasure_that_fails_stops_no_other(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let users = ["ada", "bob", "eve"];
    for id in users {
        let started = SessionStart { user: Some(user(id, "")), ..Default::default() };
        reel.record(vec![start("", started), batch("", "", 1, clicks(0..3))]).await.unwrap();
    }
    database.execute(&refuse_to_erase(backend, "bob")).await;
    let erase = async |id: &str| reel.users().delete_user(DeleteUserRequest { user_id: id.to_owned() }).await;
    assert!(erase("bob").await.is_err());
    // As if their process had died at once.
    for id in ["ada", "eve"] {
        let digest = Sha256::digest(id.as_bytes());
        let key = digest.iter().fold(String::new(), |key, byte| format!("{key}{byte:02x}"));
        let times = "'2026-11-26T20:00:00.000000+00:00', 1";
        let columns = "user_digest, user_id, requested_at, session_total";
        database.execute(&format!("INSERT INTO erasures ({columns}) VALUES ('{key}', '{id}', {times})")).await;
    }
    let left = async || database.texts("SELECT user_id FROM sessions").await;
    assert!(reel.store.erasures_resume(Utc::now(), |_| {}).await.is_err());
    assert_eq!(left().await, ["bob"]);
    let drop = if backend == Backend::Postgres { "DROP TRIGGER refuse ON sessions" } else { "DROP TRIGGER refuse" };
    database.execute(drop).await;
    for id in users {
        let request = GetErasureRequest { user_id: id.to_owned(), ..Default::default() };
        eventually("it is finished", async || {
            let _ = reel.store.erasures_resume(Utc::now(), |_| {}).await;
            let erasure = reel.users().get_erasure(request.clone()).await.unwrap().into_inner();
            erasure.finish_time.is_some()
        })
        .await;
    }
    assert_eq!(left().await, Vec::<String>::new());
    reel.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlites_own_shell_which_knows_no_foreign_keys_erases_all_the_same() {
    let (reel, database) = Reel::start(Backend::Sqlite).await;
    let started = SessionStart { user: Some(user("ada", "")), ..Default::default() };
    let receipts = reel.record(vec![start("", started), batch("", "", 1, clicks(0..3))]).await.unwrap().receipts;
    let id = &receipts[0].session_id;
    database.execute("PRAGMA foreign_keys = OFF; DELETE FROM users").await;
    for table in ["sessions", "tracks", "actions"] {
        assert_eq!(database.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    assert_eq!(reason(&reel.append(id, "", 4, clicks(3..4)).await.unwrap_err()), "SESSION_ERASED");
}

async fn a_user_row_deleted_in_plain_sql_takes_its_sessions_and_actions_along(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let mut ids = Vec::new();
    for id in ["ada", "bob"] {
        let started = SessionStart { user: Some(user(id, "")), ..Default::default() };
        let receipts = reel.record(vec![start("", started), batch("", "", 1, clicks(0..3))]).await.unwrap().receipts;
        ids.push(receipts[0].session_id.clone());
    }
    database.execute("DELETE FROM users WHERE id = 'ada'").await;
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 3);
    assert_eq!(database.number("SELECT count(*) FROM tracks").await, 1);
    let late = reel.append(&ids[0], "", 4, clicks(3..4)).await.unwrap_err();
    assert_eq!(reason(&late), "SESSION_ERASED");
    assert_eq!(reel.play_all(&ids[1]).await.len(), 3);
}

async fn number_of_email(reel: &Reel, email: &str) -> usize {
    let request = ListUsersRequest { email: email.to_owned(), ..ListUsersRequest::default() };
    reel.users().list_users(request).await.unwrap().into_inner().users.len()
}

async fn an_address_that_is_written_in_plain_sql_is_found_or_refused(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let request = UpsertUserRequest { user: Some(user("grace", "grace@example.com")) };
    reel.users().upsert_user(request).await.unwrap();
    let connection = database.connect().await;
    for email in ["Grace@X.com", "grace@x.coM", "ÉVA@x.com", "οδυςσεύς@x.com", "Ǆ@x.com", "𐐀@x.com", "İ@x.com"]
    {
        for sql in [
            format!("UPDATE users SET email = '{email}' WHERE id = 'grace'"),
            format!(
                "INSERT INTO users (id, email, attributes, created_at) SELECT 'new', '{email}', attributes, created_at FROM users"
            ),
        ] {
            let refused = connection.execute_unprepared(&sql).await.unwrap_err().to_string();
            assert!(refused.contains("write the address in lower case, with σ for ς"), "{sql}: {refused}");
        }
    }
    for (email, asked) in [
        ("grace@x.com", "Grace@X.com"),
        ("éva.ß-_[1]^@x.com", "Éva.ß-_[1]^@x.com"),
        ("οδυσσεύσ@x.com", "ΟΔΥΣΣΕΎΣ@X.com"),
        ("i\u{307}@x.com", "İ@x.com"),
        ("名@x.com", "名@X.com"),
    ] {
        database.execute(&format!("UPDATE users SET email = '{email}' WHERE id = 'grace'")).await;
        assert_eq!((number_of_email(&reel, email).await, number_of_email(&reel, asked).await), (1, 1), "{email}");
    }
    database.execute("UPDATE users SET email = NULL").await;
    reel.stop().await;
}

async fn addresses_that_were_written_in_plain_sql_before_are_found(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &[]).await;
    let request = UpsertUserRequest { user: Some(user("grace", "grace@example.com")) };
    reel.users().upsert_user(request).await.unwrap();
    reel.stop().await;
    let connection = database.connect().await;
    let mut later = Migrator::migrations().into_iter().rev();
    let later = later.position(|migration| migration.name().contains("hand_deletes")).unwrap();
    Migrator::down(&connection, Some(u32::try_from(later).unwrap() + 1)).await.unwrap();
    database.execute("UPDATE users SET email = 'É.Σς@x.com'").await;
    let reel = Reel::start_on(&database, &[]).await;
    assert_eq!(database.texts("SELECT email FROM users").await, ["é.σσ@x.com"]);
    assert_eq!(number_of_email(&reel, "É.ΣΣ@X.com").await, 1);
    reel.stop().await;
}
