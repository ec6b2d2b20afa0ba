//! Connections to the database: nothing hangs on how the server is set, on one connection that hangs, or on guessing what is
//! wrong.

mod shares;

use std::{net::SocketAddr, process::Stdio};

use reel::proto::{
    ActionDimension, CountActionsRequest, ListSessionsRequest, SessionEnd, SessionFilter, SessionStart,
    analytics_service_client::AnalyticsServiceClient,
};
use reel::{
    server::ServeError,
    store::{Store, Unfit},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{
    crash::{
        postgres::Postgres,
        process::{reel, signal},
    },
    harness::{
        Backend, Reel, TestDatabase, clicks, end, eventually, postgres_server, proto_files, reason, start, user,
    },
    on_both_databases,
};

on_both_databases!(
    an_attribute_key_is_never_sql_however_the_server_reads_texts,
    health_knows_every_service_of_the_descriptors,
);

/// A database that is set, where it can be, to everything that would make statements mean something else.
async fn hostile(backend: Backend) -> TestDatabase {
    let database = TestDatabase::new(backend).await;
    if backend == Backend::Postgres {
        let name = database.url.rsplit_once('/').unwrap().1;
        for setting in [
            "standard_conforming_strings = off",
            "backslash_quote = on",
            "DateStyle = 'SQL, DMY'",
            "TimeZone = 'Asia/Kathmandu'",
            "IntervalStyle = 'sql_standard'",
            "transform_null_equals = on",
            "array_nulls = off",
            "default_transaction_isolation = 'serializable'",
            "default_transaction_deferrable = on",
            "plan_cache_mode = 'force_generic_plan'",
            "statement_timeout = '1h'",
            "idle_session_timeout = '1s'",
        ] {
            database.execute(&format!("ALTER DATABASE {name} SET {setting}")).await;
        }
    }
    database
}

async fn an_attribute_key_is_never_sql_however_the_server_reads_texts(backend: Backend) {
    let database = hostile(backend).await;
    let reel = Reel::start_on(&database, &[]).await;
    let keys = ["\\'", "\\' OR 1 = 1 --", "\\'||current_user||\\'", "it's", "\\", "$1", "plain"];
    let attributes = keys.iter().map(|key| ((*key).to_owned(), format!("of {key}"))).collect();
    let began = SessionStart { user: Some(user("ada", "")), attributes, ..Default::default() };
    let session = reel.send(start("", began)).await.unwrap().session_id;
    reel.append(&session, "", 1, clicks(0..3)).await.unwrap();
    reel.send(end(&session, SessionEnd::default())).await.unwrap();
    let filters = [
        // By the summaries, by the facets, by the actions.
        vec![ActionDimension::Attribute],
        vec![ActionDimension::Attribute, ActionDimension::Type, ActionDimension::User],
        vec![ActionDimension::Attribute, ActionDimension::Day],
    ];
    for key in keys {
        for group_by in &filters {
            let request = CountActionsRequest {
                filter: Some(SessionFilter { user_id: "ada".to_owned(), ..Default::default() }),
                group_by: group_by.iter().map(|dimension| (*dimension).into()).collect(),
                attribute_key: key.to_owned(),
                r#match: Some(reel::proto::ActionMatch { r#type: "click".to_owned(), ..Default::default() }),
                ..Default::default()
            };
            let mut client = AnalyticsServiceClient::new(reel.channel.clone());
            let counts = client.count_actions(request).await.unwrap().into_inner();
            assert_eq!(counts.total_action_count, 3, "{key} by {group_by:?}");
            assert_eq!(counts.groups.len(), 1, "{key} by {group_by:?}");
            assert_eq!(counts.groups[0].attribute, Some(format!("of {key}")), "{key} by {group_by:?}");
        }
    }
    let listed = reel.sessions().list_sessions(ListSessionsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.sessions.len(), 1);
    assert_eq!(reel.play_all(&session).await.len(), 3);
    reel.stop().await;
}

async fn health_knows_every_service_of_the_descriptors(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let files = proto_files();
    let services = files
        .iter()
        .flat_map(|file| file.service.iter().map(|service| format!("{}.{}", file.package(), service.name())));
    let mut known = 0;
    for service in services.chain([String::new()]) {
        let mut client = HealthClient::new(reel.channel.clone());
        let answer = client.check(HealthCheckRequest { service: service.clone() }).await;
        let status = answer.unwrap_or_else(|status| panic!("{service}: {status}")).into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
        known += 1;
    }
    assert!(known > 6, "{known} services");
    reel.stop().await;
}

/// Stands before PostgreSQL as a pooler does that takes nothing but who wants to connect to what.
async fn pooler() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let target = postgres_server().split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
    tokio::spawn(async move {
        loop {
            let (mut inside, _) = listener.accept().await.unwrap();
            let target = target.clone();
            tokio::spawn(async move {
                let mut startup = vec![0; inside.read_u32().await.unwrap() as usize - 4];
                inside.read_exact(&mut startup).await.unwrap();
                let refuses = |word: &str| startup.split(|byte| *byte == 0).any(|text| text == word.as_bytes());
                if refuses("options") || refuses("extra_float_digits") {
                    return;
                }
                let mut outside = TcpStream::connect(&target).await.unwrap();
                outside.write_u32(u32::try_from(startup.len()).unwrap() + 4).await.unwrap();
                outside.write_all(&startup).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_refuses_startup_options_is_worked_through() {
    let database = hostile(Backend::Postgres).await;
    let name = database.url.rsplit_once('/').unwrap().1;
    let url = format!("postgres://postgres@{}/{name}?sslmode=disable", pooler().await);
    let reel = Reel::start_unready(&url, &[]).await;
    reel.wait_until_serving().await;
    let session = reel.start_session().await;
    reel.append(&session, "", 1, clicks(0..3)).await.unwrap();
    assert_eq!(reel.play_all(&session).await.len(), 3);
    let listed = reel.sessions().list_sessions(ListSessionsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.sessions.len(), 1);
    reel.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_durable_whatever_the_server_is_set_to_later() {
    let (reel, database) = Reel::start(Backend::Postgres).await;
    let session = reel.start_session().await;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF current_setting('synchronous_commit') = 'off' THEN RAISE EXCEPTION 'not durable'; END IF; RETURN NULL; \
         END $$; \
         CREATE TRIGGER refuse AFTER INSERT OR UPDATE ON tracks FOR EACH STATEMENT EXECUTE FUNCTION refuse()";
    database.execute(refuse).await;
    let name = database.url.rsplit_once('/').unwrap().1;
    database.execute(&format!("ALTER DATABASE {name} SET synchronous_commit = off")).await;
    assert_eq!(database.texts("SELECT current_setting('synchronous_commit')").await, ["off"]);
    // By connections that are new.
    reel.store.connections_close_idle().await;
    assert_eq!(reel.append(&session, "", 1, clicks(0..3)).await.unwrap().committed_seq, 3);
    reel.stop().await;
}

/// A role that owns a database of its own. Gives the database's URL for it, and its name.
pub async fn role_of(database: &TestDatabase) -> (String, String) {
    let (place, name) = database.url.rsplit_once('/').unwrap();
    let role = format!("{name}_role");
    database.execute(&format!("CREATE ROLE {role} LOGIN")).await;
    database.execute(&format!("ALTER DATABASE {name} OWNER TO {role}")).await;
    let place = place.split('@').nth(1).unwrap();
    (format!("postgres://{role}@{place}/{name}"), role)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_go_on_while_the_connection_that_looks_is_held_up() {
    let (reel, database) = Reel::start(Backend::Postgres).await;
    let session = reel.start_session().await;
    let looks = async || {
        let sql = "SELECT pid::text FROM pg_stat_activity WHERE datname = current_database() \
             AND application_name = 'reel' AND (query LIKE '%transaction_read_only%' OR query LIKE '%max_connections%')";
        database.texts(sql).await
    };
    let mut held = String::new();
    eventually("there is a connection that looks", async || {
        let mut found = looks().await;
        found.pop().is_some_and(|pid| {
            held = pid;
            found.is_empty()
        })
    })
    .await;
    signal("STOP", &held);
    let mut seq = 1;
    // Until there is another one that looks, and then for as long again.
    let mut after = 0;
    while after < 20 {
        let stored = reel.append(&session, "", seq, clicks(seq..seq + 1)).await;
        let health = reel.health().await;
        if stored.is_err() || health != ServingStatus::Serving {
            signal("CONT", &held);
        }
        assert_eq!(stored.unwrap().committed_seq, seq);
        assert_eq!(health, ServingStatus::Serving);
        seq += 1;
        let goes_on = looks().await.iter().any(|pid| *pid != held);
        after += i32::from(goes_on);
    }
    signal("CONT", &held);
    assert_eq!(reel.play_all(&session).await.len(), usize::try_from(seq - 1).unwrap());
    reel.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_falls_when_every_write_of_actions_is_refused() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let (url, role) = role_of(&database).await;
    let reel = Reel::start_unready(&url, &[]).await;
    reel.wait_until_serving().await;
    let session = reel.start_session().await;
    for (refuse, allow) in [
        // Looks go on by the connections that there are. Nothing was copied before, so that this needs another.
        (format!("ALTER ROLE {role} NOLOGIN"), format!("ALTER ROLE {role} LOGIN")),
        // Of all tables only one, which looks have nothing to do with.
        ("ALTER TABLE actions OWNER TO postgres".to_owned(), format!("ALTER TABLE actions OWNER TO {role}")),
    ] {
        database.execute(&refuse).await;
        let refused = reel.append(&session, "", 1, clicks(0..3)).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::Unavailable, "DATABASE_UNAVAILABLE"),
            "{refuse}"
        );
        eventually("health falls", async || reel.health().await == ServingStatus::NotServing).await;
        database.execute(&allow).await;
        reel.wait_until_serving().await;
    }
    assert_eq!(reel.append(&session, "", 1, clicks(0..3)).await.unwrap().committed_seq, 3);
    reel.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn name_file_and_certificate_are_told_apart_and_not_waited_for() {
    let no_host = format!("postgres://postgres@{}.example/reel", "a".repeat(64));
    let refused = Reel::start_unready(&no_host, &[]).await.ended().await.unwrap_err();
    assert!(matches!(refused, ServeError::Database(Unfit::Name(_))), "{refused}");

    let server = postgres_server();
    let no_file = format!("{server}?sslmode=verify-full&sslrootcert=/no/such/file").parse().unwrap();
    let refused = Store::open(&no_file, 4).await.unwrap_err();
    assert!(matches!(refused, Unfit::File { name: "sslrootcert", .. }), "{refused}");

    let no_certificate = format!("{server}?sslmode=require");
    let refused = Reel::start_unready(&no_certificate, &[]).await.ended().await.unwrap_err();
    assert!(matches!(refused, ServeError::Database(Unfit::Certificate(_))), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_certificate_is_not_the_one_that_is_expected_ends_the_start() {
    let mut postgres = Postgres::start().await;
    let (ours, theirs) = (postgres.encrypt().await, Postgres::start().await.encrypt().await);
    let database = postgres.database("reel").await;
    let folder = tempfile::tempdir().unwrap();
    let mut outcomes = Vec::new();
    for (name, authority) in [("ours", &ours), ("theirs", &theirs)] {
        let file = folder.path().join(name);
        std::fs::write(&file, authority).unwrap();
        for host in ["127.0.0.1", "localhost"] {
            let url = database.url.replace("127.0.0.1", host);
            let url = format!("{url}?sslmode=verify-full&sslrootcert={}", file.display());
            let reel = Reel::start_unready(&url, &[]).await;
            if (name, host) == ("ours", "127.0.0.1") {
                reel.wait_until_serving().await;
                reel.stop().await;
            } else {
                outcomes.push(reel.ended().await.unwrap_err());
            }
        }
    }
    // A certificate for another name, and one by another authority.
    assert_eq!(outcomes.len(), 3);
    for outcome in outcomes {
        assert!(matches!(outcome, ServeError::Database(Unfit::Certificate(_))), "{outcome}");
    }
}

/// The first line of the log of a service on this database that has this word in it.
async fn line_with(word: &str, url: &str) -> String {
    let mut command = reel(&["serve", "--listen", "127.0.0.1:0", "--database-url", url]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let find = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(word) {
                return line;
            }
        }
        panic!("the service has ended, and never said {word}");
    };
    tokio::time::timeout(std::time::Duration::from_mins(1), find).await.expect("it says so")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_the_code_and_the_words_of_the_server() {
    let nowhere = format!("{}/reel_no_such_database", postgres_server().rsplit_once('/').unwrap().0);
    let line = line_with("3D000", &nowhere).await;
    assert!(line.contains("\\\"reel_no_such_database\\\" does not exist"), "{line}");

    let database = TestDatabase::new(Backend::Postgres).await;
    let (url, role) = role_of(&database).await;
    database.execute(&format!("ALTER ROLE {role} CONNECTION LIMIT 0")).await;
    let line = line_with("53300", &url).await;
    assert!(line.contains("too many connections for role"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_that_nobody_knows_ends_the_start_and_is_not_printed() {
    for parameter in ["pasword=hunter2", "sslmod=hunter2", "hunter2"] {
        for command in ["serve", "migrate"] {
            let url = format!("{}?sslmode=disable&{parameter}", postgres_server());
            let output = reel(&[command, "--database-url", &url]).output().await.unwrap();
            assert!(!output.status.success());
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            assert!(said.contains("parameter 2 of the database URL"), "{said}");
            assert!(!said.contains("hunter2") && !said.contains("pasword") && !said.contains("sslmod="), "{said}");
        }
    }
}
