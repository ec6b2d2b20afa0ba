//! The schema: made once however many make it, and PostgreSQL's partitions.

use std::process::Stdio;

use chrono::Utc;
use migration::{Migrator, MigratorTrait as _, OLDEST_USABLE};
use reel::{
    model::SessionId,
    proto::{
        ActionMatch, CountActionsRequest, SessionStart, action_match::TargetMatch,
        analytics_service_client::AnalyticsServiceClient, ingest_service_client::IngestServiceClient,
    },
    store::{PARTITION_DAYS_AHEAD, Unfit},
};
use sea_orm::{ConnectionTrait as _, Statement};
use tokio::process::Command;

use crate::{
    crash::process::Process,
    exact::{check_index, wait_until_indexed},
    harness::{
        Backend, NOON_MS, Reel, TestDatabase, batch, click, clicks, connect, play, play_through, session_id, start,
    },
    on_both_databases,
};

on_both_databases!(
    migrating_twice_changes_nothing,
    eight_processes_migrate_one_database_at_once,
    migrations_can_be_taken_back_and_made_again,
    a_schema_of_a_newer_version_is_refused_unless_it_says_otherwise,
    a_version_that_knows_one_migration_less_runs_beside_this_one,
    facets_are_kept_when_their_columns_change,
);

/// Everything that makes up the schema, in words.
async fn schema(database: &TestDatabase, backend: Backend) -> Vec<String> {
    let sql = match backend {
        Backend::Sqlite => "SELECT coalesce(sql, name) AS line FROM sqlite_schema ORDER BY name",
        Backend::Postgres => {
            "SELECT line FROM (
                SELECT format('%s.%s %s %s', table_name, column_name, data_type, is_nullable) AS line
                    FROM information_schema.columns WHERE table_schema = 'public'
                UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
                UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
                UNION ALL SELECT tgname FROM pg_trigger WHERE NOT tgisinternal
            ) AS lines ORDER BY line"
        }
    };
    let connection = database.connect().await;
    let statement = Statement::from_string(connection.get_database_backend(), sql);
    let rows = connection.query_all_raw(statement).await.unwrap();
    rows.iter().map(|row| row.try_get("", "line").unwrap()).collect()
}

async fn migrate(database: &TestDatabase) -> bool {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reel"));
    command.args(["migrate", "--database-url", &database.url]).stdout(Stdio::null());
    command.status().await.unwrap().success()
}

async fn migrating_twice_changes_nothing(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    assert!(migrate(&database).await);
    let first = schema(&database, backend).await;
    assert!(first.iter().any(|line| line.contains("tombstones")));
    assert!(migrate(&database).await);
    assert_eq!(schema(&database, backend).await, first);
}

async fn eight_processes_migrate_one_database_at_once(backend: Backend) {
    let alone = TestDatabase::new(backend).await;
    assert!(migrate(&alone).await);
    let shared = TestDatabase::new(backend).await;
    let all = futures_util::future::join_all((0..8).map(|_| migrate(&shared))).await;
    assert_eq!(all, [true; 8]);
    assert_eq!(schema(&shared, backend).await, schema(&alone, backend).await);
    assert_eq!(
        shared.number("SELECT count(*) FROM seaql_migrations").await,
        i64::try_from(Migrator::migrations().len()).unwrap()
    );
}

async fn migrations_can_be_taken_back_and_made_again(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    assert!(migrate(&database).await);
    let first = schema(&database, backend).await;
    let connection = database.connect().await;
    Migrator::down(&connection, None).await.unwrap();
    assert!(!schema(&database, backend).await.iter().any(|line| line.contains("session")));
    assert!(migrate(&database).await);
    assert_eq!(schema(&database, backend).await, first);
}

async fn a_schema_of_a_newer_version_is_refused_unless_it_says_otherwise(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let known = Migrator::migrations().last().unwrap().name().to_owned();
    let future = "m99990101_000001_future";
    database.execute(&format!("INSERT INTO seaql_migrations (version, applied_at) VALUES ('{future}', 0)")).await;
    let is_refused = async || {
        let outcome = reel.store.prepare().await;
        assert_eq!(outcome.is_ok(), migrate(&database).await);
        matches!(outcome, Err(Unfit::Newer { version }) if version == future)
    };
    assert!(is_refused().await, "it says nothing");
    for (oldest, refused) in [(future, true), (known.as_str(), false)] {
        database.execute(&format!("DELETE FROM schema_compatibility WHERE version = '{future}'")).await;
        database.execute(&format!("INSERT INTO schema_compatibility VALUES ('{future}', '{oldest}')")).await;
        assert_eq!(is_refused().await, refused, "it asks for {oldest}");
    }
    let said = format!("SELECT count(*) FROM schema_compatibility WHERE version = '{future}'");
    assert_eq!(database.number(&said).await, 1, "what a newer version has said stays");
    // One that does not even have what this version needs is another's.
    database.execute(&format!("DELETE FROM seaql_migrations WHERE version = '{known}'")).await;
    assert!(is_refused().await, "{known} is missing");
}

/// As an older version would that is started beside a newer one, ends and comes back; or is refused, where it must be.
async fn a_version_that_knows_one_migration_less_runs_beside_this_one(backend: Backend) {
    const OLDER: [&str; 2] = ["/usr/bin/env", "REEL_TEST_FEWER_MIGRATIONS=1"];
    let database = TestDatabase::new(backend).await;
    let migrations = i64::try_from(Migrator::migrations().len()).unwrap();
    let migrated = || database.number("SELECT count(*) FROM seaql_migrations");
    let migrate_older = async || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reel"));
        command.args(["migrate", "--database-url", &database.url]).env("REEL_TEST_FEWER_MIGRATIONS", "1");
        command.status().await.unwrap().success()
    };
    let reel = Reel::start_on(&database, &[]).await;
    assert_eq!(migrated().await, migrations);
    if Migrator::migrations().last().unwrap().name() == OLDEST_USABLE {
        // The last migration is one that a process must know.
        assert!(!migrate_older().await);
        assert_eq!(migrated().await, migrations, "whoever is refused changes nothing");
        return reel.stop().await;
    }
    let mut older = Process::serve_under(&OLDER, &database.url, &[]).await;
    let channel = connect(older.address).await;
    let id = session_id(NOON_MS);
    let first = vec![start(&id, SessionStart::default()), batch(&id, "", 1, clicks(0..3))];
    IngestServiceClient::new(channel.clone()).record_actions(tokio_stream::iter(first)).await.unwrap();
    reel.append(&id, "", 4, clicks(3..5)).await.unwrap();
    let played = play_through(channel, play(&id)).await.unwrap().actions;
    assert_eq!(played.len(), 5);
    assert_eq!(reel.play_all(&id).await, played);

    older.terminate();
    assert!(older.exited().await.success());
    older.start_again().await;
    older.kill().await;
    assert!(migrate_older().await);
    assert_eq!(migrated().await, migrations, "the way back takes nothing away");
    reel.stop().await;
}

/// A session in the index, as the version before the migration of facets has it: two clicks on one target, one on another.
async fn record_before_facets_changed(database: &TestDatabase, target: &str) {
    assert!(migrate(database).await);
    let later = Migrator::migrations()
        .into_iter()
        .skip_while(|migration| migration.name() != "m20261127_000016_facets")
        .count();
    let connection = database.connect().await;
    Migrator::down(&connection, Some(u32::try_from(later).unwrap())).await.unwrap();
    let id = session_id(NOON_MS);
    let (id, no) = match database.backend() {
        Backend::Postgres => (format!("'{id}'::uuid"), "false"),
        Backend::Sqlite => (format!("x'{}'", id.replace('-', "")), "0"),
    };
    let at = |second: u8| format!("'2026-11-01T12:00:0{second}.000+00:00'");
    for sql in [
        format!(
            "INSERT INTO sessions (id, started_at, attributes, created_at, action_count, duration_ms, active_ms, \
                 first_action_at, last_action_at, index_version) \
             VALUES ({id}, {}, '{{}}', {}, 3, 2000, 2000, {}, {}, 1)",
            at(0),
            at(0),
            at(0),
            at(2)
        ),
        format!(
            "INSERT INTO tracks (session_id, number, source, last_seq, accepted_count, duplicate_count, rejected_count, \
                 error_count, last_action_at, last_received_at, dirty) \
             VALUES ({id}, 0, 'main', 3, 3, 0, 0, 0, {}, {}, {no})",
            at(2),
            at(2)
        ),
        format!(
            "INSERT INTO actions (session_id, timestamp, track, seq, type, target) VALUES \
             ({id}, {}, 0, 1, 'click', '{target}'), ({id}, {}, 0, 2, 'click', ''), ({id}, {}, 0, 3, 'click', '{target}')",
            at(0),
            at(1),
            at(2)
        ),
        format!("INSERT INTO facets (id, type, target) VALUES (7, 'click', '{target}'), (9, 'click', '')"),
        format!(
            "INSERT INTO session_facets (session_id, first_at, facet_id, count) VALUES ({id}, {}, 7, 2), ({id}, {}, 9, 1)",
            at(0),
            at(1)
        ),
        "INSERT INTO facet_days (day, facet_id, action_count, session_count) VALUES ('2026-11-01', 7, 2, 1), ('2026-11-01', 9, 1, 1)"
            .to_owned(),
    ] {
        connection.execute_unprepared(&sql).await.unwrap();
    }
    if database.backend() == Backend::Postgres {
        database.execute("ALTER SEQUENCE facets_id_seq RESTART WITH 12").await;
    } else {
        database.execute("UPDATE sqlite_sequence SET seq = 11 WHERE name = 'facets'").await;
    }
}

async fn facets_are_kept_when_their_columns_change(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let target = "Grüße ".repeat(100);
    record_before_facets_changed(&database, &target).await;
    let reel = Reel::start_on(&database, &[]).await;
    check_index(&database).await;
    assert_eq!(database.number("SELECT index_version FROM sessions").await, 1, "nothing was indexed anew");
    let count = async |target: &str| {
        let target_match = Some(TargetMatch::Target(target.to_owned()));
        let wanted = ActionMatch { target_match, ..ActionMatch::default() };
        let request = CountActionsRequest { r#match: Some(wanted), ..CountActionsRequest::default() };
        let mut analytics = AnalyticsServiceClient::new(reel.channel.clone());
        analytics.count_actions(request).await.unwrap().into_inner().total_action_count
    };
    assert_eq!((count(&target).await, count("").await), (2, 1));

    // What goes on is told by the same facets; new ones have numbers that none had before.
    let id = session_id(NOON_MS);
    let actions = vec![click(0, &target), click(1, "new")];
    reel.record(vec![start(&id, SessionStart::default()), batch("", "", 1, actions)]).await.unwrap();
    wait_until_indexed(&database).await;
    check_index(&database).await;
    assert_eq!(count(&target).await, 3);
    assert_eq!(database.number("SELECT count(*) FROM facets").await, 3);
    assert_eq!(database.number("SELECT max(id) FROM facets").await, 12);
    reel.stop().await;
}

async fn partitions(database: &TestDatabase) -> i64 {
    database.number("SELECT count(*) FROM pg_inherits WHERE inhparent = 'actions'::regclass").await
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_made_ahead_and_for_a_past_day_when_its_first_session_arrives() {
    let (reel, database) = Reel::start(Backend::Postgres).await;
    // Yesterday, today, those ahead, and the default one.
    let made = i64::try_from(PARTITION_DAYS_AHEAD).unwrap() + 3;
    assert_eq!(partitions(&database).await, made);
    for _ in 0..2 {
        let id = session_id(NOON_MS);
        reel.record(vec![start(&id, SessionStart::default()), batch("", "", 1, clicks(0..3))]).await.unwrap();
        assert_eq!(partitions(&database).await, made + 1);
    }
    assert_eq!(database.number("SELECT count(*) FROM actions_default").await, 0);
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_without_a_partition_are_kept_and_moved_when_there_is_one() {
    let (reel, database) = Reel::start(Backend::Postgres).await;
    let today = SessionId::mint(Utc::now()).to_string();
    let past = session_id(NOON_MS);
    for id in [&today, &past] {
        reel.send(start(id, SessionStart::default())).await.unwrap();
    }
    let names =
        [Utc::now(), past.parse::<SessionId>().unwrap().started_at()].map(|day| day.format("%Y%m%d").to_string());
    for name in &names {
        database.execute(&format!("DROP TABLE actions_{name}")).await;
    }
    for id in [&today, &past] {
        reel.append(id, "", 1, clicks(0..5)).await.unwrap();
    }
    assert_eq!(database.number("SELECT count(*) FROM actions_default").await, 10);

    reel.store.partitions_maintain(Utc::now()).await.unwrap();
    assert_eq!(database.number("SELECT count(*) FROM actions_default").await, 0);
    for name in &names {
        assert_eq!(database.number(&format!("SELECT count(*) FROM actions_{name}")).await, 5);
    }
    for id in [&today, &past] {
        reel.append(id, "", 6, clicks(5..6)).await.unwrap();
        assert_eq!(reel.play_all(id).await.len(), 6);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_maintained_by_several_processes_while_others_write() {
    let (reel, database) = Reel::start(Backend::Postgres).await;
    let sessions: Vec<_> = (0..12).map(|day| session_id(NOON_MS - day * 86_400_000)).collect();
    let writes = sessions.iter().map(|id| async {
        reel.send(start(id, SessionStart::default())).await.unwrap();
        for number in 0..10 {
            reel.append(id, "", number + 1, clicks(number..number + 1)).await.unwrap();
        }
    });
    let maintain = futures_util::future::join_all((0..4).map(|_| reel.store.partitions_maintain(Utc::now())));
    let (_, maintained) = futures_util::future::join(futures_util::future::join_all(writes), maintain).await;
    for outcome in maintained {
        outcome.unwrap();
    }
    reel.store.partitions_maintain(Utc::now()).await.unwrap();
    assert_eq!(database.number("SELECT count(*) FROM actions_default").await, 0);
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 120);
}
