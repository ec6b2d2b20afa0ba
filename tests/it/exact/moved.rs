//! Answers while a day is dropped, or while rows are moved out of the DEFAULT partition. A question that has begun sees
//! everything as it was, but for the partitions. Here each is held up right after its moment, until the rows are elsewhere.

use chrono::Utc;
use reel::{
    model::{SessionId, Window},
    proto::{
        ActionDimension, ActionMatch, CountActionsRequest, ListActionsRequest, ListSessionsRequest, SessionFilter,
        SessionStart, analytics_service_client::AnalyticsServiceClient,
    },
    store::Store,
};
use sea_orm::{ConnectionTrait as _, DatabaseTransaction, TransactionTrait as _};

use super::wait_until_indexed;
use crate::harness::{
    Backend, NOON_MS, Reel, TestDatabase, action, batch, clicks, eventually, service_args, session_id, start, timestamp,
};

const DAY_MS: i64 = 86_400_000;

/// How many of [`answers`] look for facets first. As many questions must be answered at once.
const WAITING: i64 = 6;

/// What sessions of two days say: on each there are three with 10 clicks, and one without.
#[derive(Debug, PartialEq, Eq)]
struct Answers {
    with_clicks: usize,
    without_clicks: usize,
    listed: usize,
    by_type: i64,
    by_user: i64,
    by_hour: i64,
}

fn of_days(days: i64) -> Answers {
    let (number, clicks) = (usize::try_from(days).unwrap(), 30 * days);
    Answers {
        with_clicks: 3 * number,
        without_clicks: number,
        listed: 30 * number,
        by_type: clicks,
        by_user: clicks,
        by_hour: clicks,
    }
}

async fn answers(reel: &Reel) -> Answers {
    let clicks = || vec![ActionMatch { r#type: "click".to_owned(), ..ActionMatch::default() }];
    let of_clicks = || SessionFilter {
        all_of: clicks(),
        started_after: Some(timestamp(NOON_MS - DAY_MS)),
        started_before: Some(timestamp(NOON_MS + 5 * DAY_MS)),
        ..SessionFilter::default()
    };
    let found = async |filter: SessionFilter| {
        let request = ListSessionsRequest { filter: Some(filter), count_total: true, ..Default::default() };
        let found = reel.sessions().list_sessions(request).await.unwrap().into_inner();
        assert_eq!(usize::try_from(found.total_count.unwrap()).unwrap(), found.sessions.len());
        found.sessions.len()
    };
    let listed = async {
        let request = ListActionsRequest { r#match: clicks().pop(), page_size: 500, ..Default::default() };
        reel.sessions().list_actions(request).await.unwrap().into_inner().actions.len()
    };
    let counted = async |filter: Option<SessionFilter>, dimension: ActionDimension| {
        let group_by = vec![i32::from(dimension)];
        let request = CountActionsRequest { filter, r#match: clicks().pop(), group_by, ..Default::default() };
        let mut analytics = AnalyticsServiceClient::new(reel.channel.clone());
        analytics.count_actions(request).await.unwrap().into_inner().total_action_count
    };
    let (with_clicks, without_clicks, listed, by_type, by_user, by_hour) = tokio::join!(
        found(of_clicks()),
        found(SessionFilter { none_of: clicks(), ..SessionFilter::default() }),
        listed,
        counted(None, ActionDimension::Type),
        counted(None, ActionDimension::User),
        counted(Some(of_clicks()), ActionDimension::Hour),
    );
    Answers { with_clicks, without_clicks, listed, by_type, by_user, by_hour }
}

/// A service that can answer all of [`answers`] at once, with the sessions of two days, all in the index.
async fn recorded() -> (Reel, TestDatabase, Vec<String>) {
    let database = TestDatabase::new(Backend::Postgres).await;
    let store = Store::open(&database.url.parse().unwrap(), 48).await.unwrap();
    let reel = Reel::start_with(store, service_args(&[])).await;
    reel.wait_until_serving().await;
    let mut ids = Vec::new();
    for number in 0..8 {
        let id = session_id(NOON_MS + number % 2 * DAY_MS);
        let actions = if number < 2 { vec![action(0, "input", "x")] } else { clicks(0..10) };
        reel.record(vec![start(&id, SessionStart::default()), batch("", "", 1, actions)]).await.unwrap();
        ids.push(id);
    }
    wait_until_indexed(&database).await;
    (reel, database, ids)
}

fn day_of(id: &str) -> String {
    id.parse::<SessionId>().unwrap().started_at().format("%Y%m%d").to_string()
}

/// Puts the rows of a session's day where there is no partition, as if it had never been made.
async fn into_default(database: &TestDatabase, id: &str) {
    for table in ["actions", "session_facets"] {
        let partition = format!("{table}_{}", day_of(id));
        let sql = format!(
            "UPDATE partition_drops SET count = count + 1; ALTER TABLE {table} DETACH PARTITION {partition}; \
             INSERT INTO {table} SELECT * FROM {partition}; DROP TABLE {partition}"
        );
        database.execute(&sql).await;
    }
}

/// Drops a session's day in one transaction, as retention does. (It looks at all tables before, so that it would be held up too.)
async fn drop_day(database: &TestDatabase, id: &str) {
    let start = id.parse::<SessionId>().unwrap().started_at();
    let (from, to) = Window::of_day(start.date_naive()).bounds();
    let mut sql = format!(
        "SET LOCAL reel.expiring = 'on'; UPDATE partition_drops SET count = count + 1; \
         DELETE FROM sessions WHERE id >= '{from}' AND id < '{to}'; \
         DELETE FROM facet_days WHERE day = '{}'",
        start.date_naive()
    );
    for table in ["actions", "session_facets"] {
        let partition = format!("{table}_{}", day_of(id));
        sql = format!("{sql}; ALTER TABLE {table} DETACH PARTITION {partition}; DROP TABLE {partition}");
    }
    database.execute(&sql).await;
}

/// Holds up whoever asks for facets right after the moment that he sees.
async fn hold_up(database: &TestDatabase) -> DatabaseTransaction {
    let tx = database.connect().await.begin().await.unwrap();
    tx.execute_unprepared("LOCK TABLE facets IN ACCESS EXCLUSIVE MODE").await.unwrap();
    tx
}

async fn wait_for_all(database: &TestDatabase) {
    let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'facets'::regclass";
    eventually("all are held up", async || database.number(sql).await >= WAITING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_exact_while_rows_are_moved_out_of_the_default_partition() {
    let (reel, database, ids) = recorded().await;
    into_default(&database, &ids[0]).await;
    assert_eq!(Box::pin(answers(&reel)).await, of_days(2));
    let held = hold_up(&database).await;
    let moving = async {
        wait_for_all(&database).await;
        reel.store.partitions_maintain(Utc::now()).await.unwrap();
        assert_eq!(database.number("SELECT count(*) FROM actions_default").await, 0);
        assert_eq!(database.number("SELECT count(*) FROM session_facets_default").await, 0);
        held.rollback().await.unwrap();
    };
    let (answered, ()) = tokio::join!(answers(&reel), moving);
    assert_eq!(answered, of_days(2));
    reel.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_exact_while_a_day_is_dropped() {
    let (reel, database, ids) = recorded().await;
    let held = hold_up(&database).await;
    let dropping = async {
        wait_for_all(&database).await;
        drop_day(&database, &ids[0]).await;
        held.rollback().await.unwrap();
    };
    let (mut answered, ()) = tokio::join!(answers(&reel), dropping);
    // The roll-up has no partitions: what it said at the moment of the question is exact.
    assert!([30, 60].contains(&answered.by_type), "{answered:?}");
    answered.by_type = 30;
    assert_eq!(answered, of_days(1));
    reel.stop().await;
}

/// Playback reads each page by a statement of its own, which sees the partitions as they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn playback_misses_nothing_while_rows_are_moved() {
    let (reel, database, ids) = recorded().await;
    let (moving, moved) = (std::sync::atomic::AtomicBool::new(true), std::sync::atomic::Ordering::SeqCst);
    let move_rows = async {
        for _ in 0..5 {
            into_default(&database, &ids[2]).await;
            let in_default = async || database.number("SELECT count(*) FROM actions_default").await;
            eventually("the rows are moved", async || {
                // Others were at the tables; next time.
                reel.store.partitions_maintain(Utc::now()).await.unwrap();
                in_default().await == 0
            })
            .await;
        }
        moving.store(false, moved);
    };
    let play = async {
        while moving.load(moved) {
            assert_eq!(reel.play_all(&ids[2]).await.len(), 10);
            assert_eq!(Box::pin(answers(&reel)).await, of_days(2));
        }
    };
    tokio::join!(move_rows, play);
    reel.stop().await;
}
