//! PostgreSQL's partitions of several days: what shares one goes together.

use chrono::{DateTime, TimeDelta, Utc};
use reel::{
    model::{ArchivePolicy, ExpiryReason, RetentionPolicy, Window},
    proto::{GetStorageStatsRequest, SessionEnd, retention_service_client::RetentionServiceClient},
    store::Store,
};
use tempfile::TempDir;

use super::{apply, counted, day, gist, keep_days, listed, midnight, pin, record_day};
use crate::{
    crash::process::reel as reel_command,
    exact::{check_index, check_index_with, wait_until_indexed},
    harness::{Backend, Reel, TestDatabase, clicks, end, service_args, timestamp},
};

/// Starts the service with partitions of so many days.
async fn start_with_partitions(database: &TestDatabase, days: u16, arguments: &[&str]) -> Reel {
    let args = service_args(arguments);
    let store = Store::open(&database.url.parse().unwrap(), 4).await.unwrap();
    let store = store.with_partition_days(days).with_archive(args.retention.open_archive().unwrap());
    let reel = Reel::start_with(store, args).await;
    reel.wait_until_serving().await;
    reel
}

/// The partitions of a table whose sessions started in November 2026 or earlier, without the default one.
async fn partitions(database: &TestDatabase, table: &str) -> Vec<String> {
    let sql = format!(
        "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
         WHERE i.inhparent = '{table}'::regclass AND c.relname < '{table}_20261116' ORDER BY 1"
    );
    database.texts(&sql).await
}

/// The first two weeks of the test's days; 2026-11-02 is a Monday.
fn week(number: u64) -> Window {
    Window { first: day(7 * number), last: day(7 * number + 6) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_week_goes_with_its_last_day() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let reel = start_with_partitions(&database, 7, &[]).await;
    let mut ids = Vec::new();
    for number in 0..8 {
        ids.push(record_day(&reel, number, 2).await);
    }
    wait_until_indexed(&database).await;
    let names = ["actions_20261102_20261108", "actions_20261109_20261115"];
    assert_eq!(partitions(&database, "actions").await, names);
    assert_eq!(database.number("SELECT count(*) FROM actions_20261102_20261108").await, 140);
    assert_eq!(database.number("SELECT count(*) FROM actions_default").await, 0);
    let pinned = &ids[3][1];
    let before = reel.play_all(pinned).await;
    pin(&reel, pinned, Some(midnight(90))).await;
    let mut retention = RetentionServiceClient::new(reel.channel.clone());
    let stats = retention.get_storage_stats(GetStorageStatsRequest {}).await.unwrap().into_inner();
    let days: Vec<_> = stats.days.iter().map(|day| (day.day.clone(), day.session_count, day.action_count)).collect();
    assert_eq!(days, (0..8).map(|number| (day(number).to_string(), 2, 20)).collect::<Vec<_>>());
    let of_partitions = "SELECT sum(pg_total_relation_size(p))::bigint FROM unnest(ARRAY[\
         'actions_20261102_20261108', 'session_facets_20261102_20261108']) AS p";
    let of_days: i64 = stats.days[..7].iter().map(|day| day.bytes).sum();
    assert!((0..7).contains(&(database.number(of_partitions).await - of_days)), "{stats:?}");

    // Six of the days are old enough, but not the seventh.
    let due = midnight(7) + TimeDelta::days(7);
    for max_bytes in [None, Some(i64::MAX)] {
        let policy = RetentionPolicy { max_bytes, ..keep_days(7) };
        assert!(apply(&reel, &policy, due - TimeDelta::microseconds(1)).await.days.is_empty());
    }
    let report = apply(&reel, &keep_days(7), due).await;
    let [gone] = report.days.as_slice() else { panic!("{report:?}") };
    assert_eq!((gone.window, gone.reason, gone.sessions, gone.actions), (week(0), ExpiryReason::Age, 13, 130));
    assert_eq!(gone.kept, 1);
    assert_eq!(partitions(&database, "actions").await, names[1..]);
    assert_eq!(partitions(&database, "session_facets").await, ["session_facets_20261109_20261115"]);
    assert_eq!(listed(&reel).await, [&ids[7][1], &ids[7][0], pinned].map(Clone::clone));
    assert_eq!(reel.play_all(pinned).await, before);
    assert_eq!(counted(&reel).await, (3, 30));
    check_index(&database).await;
    reel.stop().await;

    // The service says when the next will go, and what.
    let keeper = start_with_partitions(&database, 1, &["--retention", "10000days"]).await;
    let mut retention = RetentionServiceClient::new(keeper.channel.clone());
    let stats = retention.get_storage_stats(GetStorageStatsRequest {}).await.unwrap().into_inner();
    let next = midnight(14) + TimeDelta::days(10_000);
    assert_eq!(stats.next_expiry_time, Some(timestamp(next.timestamp_millis())));
    assert_eq!(stats.next_expiry.unwrap().session_count, 2);
    keeper.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_of_another_width_keep_clear_of_those_that_are_there() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let reel = start_with_partitions(&database, 1, &[]).await;
    for number in [2, 3] {
        record_day(&reel, number, 1).await;
    }
    reel.stop().await;
    let reel = start_with_partitions(&database, 7, &[]).await;
    for number in [0, 1, 3, 5, 6, 7] {
        record_day(&reel, number, 1).await;
    }
    reel.stop().await;
    let reel = start_with_partitions(&database, 2, &[]).await;
    for number in 0..8 {
        record_day(&reel, number, 1).await;
    }
    let names = ["20261102_20261103", "20261104", "20261105", "20261106_20261108", "20261109_20261115"];
    for table in ["actions", "session_facets"] {
        assert_eq!(partitions(&database, table).await, names.map(|days| format!("{table}_{days}")));
        assert_eq!(database.number(&format!("SELECT count(*) FROM {table}_default")).await, 0);
    }
    wait_until_indexed(&database).await;
    // Each goes by itself, however wide they are made now.
    let report = apply(&reel, &keep_days(0), midnight(6)).await;
    let windows: Vec<_> = report.days.iter().filter(|day| day.sessions > 0).map(|day| day.window).collect();
    let two = Window { first: day(0), last: day(1) };
    assert_eq!(windows, [two, Window::of_day(day(2)), Window::of_day(day(3))]);
    assert_eq!(counted(&reel).await, (7, 70));
    check_index(&database).await;
    reel.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_week_is_archived_together_and_forgotten_together() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let folder = TempDir::new().unwrap();
    let archive = folder.path().to_str().unwrap();
    let reel = start_with_partitions(&database, 7, &["--retention", "0", "--archive", archive]).await;
    let mut ids = Vec::new();
    for number in 0..8 {
        ids.extend(record_day(&reel, number, 2).await);
    }
    for id in &ids {
        reel.record(vec![end(id, SessionEnd::default())]).await.unwrap();
    }
    let late = &ids[5];
    wait_until_indexed(&database).await;
    let before = (reel.play_all(&ids[0]).await, listed(&reel).await, counted(&reel).await);
    let policy = |keep_for| RetentionPolicy {
        archive: Some(ArchivePolicy { after: Some(TimeDelta::days(2)), keep_for }),
        ..RetentionPolicy::default()
    };
    let due: DateTime<Utc> = midnight(7) + TimeDelta::days(2);
    assert!(apply(&reel, &policy(None), due - TimeDelta::microseconds(1)).await.days.is_empty());
    let report = apply(&reel, &policy(None), due).await;
    let [gone] = report.days.as_slice() else { panic!("{report:?}") };
    assert_eq!((gone.window, gone.reason, gone.sessions, gone.actions), (week(0), ExpiryReason::Archive, 14, 140));
    assert!(gone.bytes > 0);
    assert_eq!(partitions(&database, "actions").await, ["actions_20261109_20261115"]);
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 20);
    assert_eq!((reel.play_all(&ids[0]).await, listed(&reel).await, counted(&reel).await), before);

    // What comes late is archived too, and all of it goes with the week, out of the files as well.
    reel.append(late, "", 11, clicks(0..3)).await.unwrap();
    wait_until_indexed(&database).await;
    let report = apply(&reel, &policy(None), due).await;
    assert_eq!(gist(&report), [(week(0).first, (ExpiryReason::Archive, 1, 3, 0))].into());
    let twenty = policy(Some(TimeDelta::days(20)));
    let report = apply(&reel, &twenty, midnight(27)).await;
    let next = (week(1).first, (ExpiryReason::Archive, 2, 20, 0));
    assert_eq!(gist(&report), [(week(0).first, (ExpiryReason::Age, 14, 143, 0)), next].into());
    assert_eq!(counted(&reel).await, (2, 20));
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 0);
    check_index_with(&database, &["--archive", archive]).await;
    // The files go when no question can be reading them any more.
    for hour in 1..3 {
        crate::archive::apply(&reel.store, &twenty, midnight(27) + TimeDelta::hours(hour)).await;
    }
    let [file] = <[String; 1]>::try_from(crate::archive::files(folder.path())).unwrap();
    assert!(file.contains(&day(7).to_string()), "{file}");
    reel.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_says_how_wide_partitions_are() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let migrate =
        |days: &str| reel_command(&["migrate", "--partition-days", days, "--database-url", &database.url]).status();
    for wrong in ["0", "367", "-1", "a week"] {
        assert!(!migrate(wrong).await.unwrap().success(), "{wrong}");
    }
    assert!(migrate("7").await.unwrap().success());
    let sql = "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
        WHERE i.inhparent = 'actions'::regclass AND c.relname <> 'actions_default'";
    let made = database.texts(sql).await;
    // From yesterday to seven days ahead it is two weeks, or three on a Monday.
    assert!((2..=3).contains(&made.len()), "{made:?}");
    assert!(made.iter().all(|name| name.len() == "actions_20261102_20261108".len()), "{made:?}");
    // Nothing is left to be made for days, unless one has begun meanwhile.
    assert!(migrate("1").await.unwrap().success());
    assert!(database.texts(sql).await.len() <= made.len() + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_in_no_partition_goes_with_its_day() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let reel = start_with_partitions(&database, 1, &[]).await;
    for number in 0..2 {
        record_day(&reel, number, 2).await;
    }
    wait_until_indexed(&database).await;
    // Of the first day the actions, of the second one the facets have no partition.
    for (table, number) in [("actions", 0), ("session_facets", 1)] {
        let name = day(number).format(&format!("{table}_%Y%m%d")).to_string();
        for sql in [
            format!("ALTER TABLE {table} DETACH PARTITION {name}"),
            format!("INSERT INTO {table} SELECT * FROM {name}"),
            format!("DROP TABLE {name}"),
        ] {
            database.execute(&sql).await;
        }
        assert!(database.number(&format!("SELECT count(*) FROM {table}_default")).await > 0);
    }
    let report = apply(&reel, &keep_days(1), midnight(9)).await;
    let expected = (0..2).map(|number| (day(number), (ExpiryReason::Age, 2, 20, 0)));
    assert_eq!(gist(&report), expected.collect());
    for table in ["sessions", "tracks", "actions", "session_facets", "facets", "facet_days"] {
        assert_eq!(database.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    reel.stop().await;
}
