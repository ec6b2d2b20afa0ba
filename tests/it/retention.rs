//! Retention: what goes, what stays, and what comes back to the disk. The clock is the test's own.

mod alongside;
mod caution;
mod clock;
mod erased;
mod service;
pub mod traces;
mod unseen;
mod windows;

use std::collections::BTreeMap;

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use reel::{
    model::{ExpiryReason, RetentionPolicy, RetentionReport},
    proto::{
        CountActionsRequest, Expiry, ListSessionsRequest, Pin, SessionFilter, SessionStart, UpdateSessionRequest,
        analytics_service_client::AnalyticsServiceClient,
    },
};
use tonic::Code;

use crate::{
    exact::{check_index, wait_until_indexed},
    harness::{
        Backend, Reel, TestDatabase, action, batch, clicks, metadata, reason, session_id, start, timestamp, user,
    },
    on_both_databases,
};

on_both_databases!(
    a_day_goes_in_the_second_in_which_it_is_old_enough,
    a_pinned_session_stays_whole_until_its_pin_ends,
    a_session_goes_when_its_own_time_has_come,
    the_oldest_days_go_where_there_are_too_many_bytes,
    a_session_that_would_be_expired_is_not_started,
    the_indexer_learns_that_a_facet_has_gone,
);

/// Midnight before the first sessions.
const DAY_0: &str = "2026-11-02";

const DAY_MS: i64 = 86_400_000;

fn day(number: u64) -> NaiveDate {
    DAY_0.parse::<NaiveDate>().unwrap().checked_add_days(Days::new(number)).unwrap()
}

fn midnight(number: u64) -> DateTime<Utc> {
    day(number).and_hms_opt(0, 0, 0).unwrap().and_utc()
}

fn keep_days(days: i64) -> RetentionPolicy {
    RetentionPolicy { keep_for: Some(TimeDelta::days(days)), ..RetentionPolicy::default() }
}

/// Records so many sessions of 10 actions on a day, the first in its first millisecond and the last in its last.
async fn record_day(reel: &Reel, number: u64, sessions: i64) -> Vec<String> {
    let mut ids = Vec::new();
    for session in 0..sessions {
        let start_ms = midnight(number).timestamp_millis() + session * (DAY_MS - 1) / (sessions - 1).max(1);
        let id = session_id(start_ms);
        let of = user(&format!("user {number}"), "");
        let mut actions = clicks(0..9);
        actions.push(action(9_000, "error", &format!("day {number}")));
        let requests =
            vec![start(&id, SessionStart { user: Some(of), ..Default::default() }), batch("", "", 1, actions)];
        reel.record(requests).await.unwrap();
        ids.push(id);
    }
    ids
}

async fn listed(reel: &Reel) -> Vec<String> {
    let request = ListSessionsRequest { page_size: 1_000, ..Default::default() };
    reel.sessions().list_sessions(request).await.unwrap().into_inner().sessions.into_iter().map(|s| s.id).collect()
}

/// The number of sessions with an error, and of all actions, as search and analysis count them.
async fn counted(reel: &Reel) -> (i64, i64) {
    let errors = SessionFilter { min_error_count: Some(1), ..Default::default() };
    let request = ListSessionsRequest { filter: Some(errors), count_total: true, page_size: 1, ..Default::default() };
    let sessions = reel.sessions().list_sessions(request).await.unwrap().into_inner().total_count.unwrap();
    let mut analytics = AnalyticsServiceClient::new(reel.channel.clone());
    let actions =
        analytics.count_actions(CountActionsRequest::default()).await.unwrap().into_inner().total_action_count;
    (sessions, actions)
}

/// What a preview and the deed must have in common. Partitions that were made ahead go with their days too.
fn gist(report: &RetentionReport) -> BTreeMap<NaiveDate, (ExpiryReason, i64, i64, i64)> {
    let days = report.days.iter().filter(|day| day.sessions > 0);
    days.map(|day| (day.window.first, (day.reason, day.sessions, day.actions, day.kept))).collect()
}

/// Applies a policy, and checks that the dry run had said just that.
async fn apply(reel: &Reel, policy: &RetentionPolicy, now: DateTime<Utc>) -> RetentionReport {
    let preview = reel.store.retention_preview(policy, now).await.unwrap();
    let report = crate::archive::apply(&reel.store, policy, now).await;
    assert_eq!(gist(&preview), gist(&report));
    report
}

async fn a_day_goes_in_the_second_in_which_it_is_old_enough(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let first = record_day(&reel, 0, 3).await;
    let second = record_day(&reel, 1, 2).await;
    wait_until_indexed(&database).await;
    // One that is not in the index when it goes.
    let dirty = record_day(&reel, 0, 1).await;
    let due = midnight(1) + TimeDelta::days(7);

    let early = apply(&reel, &keep_days(7), due - TimeDelta::microseconds(1)).await;
    assert_eq!((early.days.as_slice(), listed(&reel).await.len()), (&[][..], 6));

    let report = apply(&reel, &keep_days(7), due).await;
    assert_eq!(gist(&report), [(day(0), (ExpiryReason::Age, 4, 40, 0))].into());
    assert!(report.bytes_after < report.bytes_before, "{report:?}");
    assert_eq!(report.users, 0, "they were heard of just now");
    assert_eq!(listed(&reel).await, second.iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(counted(&reel).await, (2, 20));
    for id in first.iter().chain(&dirty) {
        assert_eq!(reel.get(id).await.unwrap_err().code(), Code::NotFound);
        let late = reel.record(vec![batch(id, "", 11, clicks(0..1))]).await.unwrap_err();
        assert!(matches!(reason(&late).as_str(), "SESSION_NOT_FOUND" | "SESSION_ERASED"), "{late:?}");
    }
    assert_eq!(reel.play_all(&second[0]).await.len(), 10);
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 20);
    assert_eq!(database.number("SELECT count(*) FROM tracks").await, 2);
    if backend == Backend::Postgres {
        let name = day(0).format("actions_%Y%m%d");
        assert_eq!(database.number(&format!("SELECT count(*) FROM pg_class WHERE relname = '{name}'")).await, 0);
    }
    check_index(&database).await;

    let much_later = Utc::now() + TimeDelta::days(60);
    let all = apply(&reel, &keep_days(7), much_later).await;
    assert_eq!(gist(&all), [(day(1), (ExpiryReason::Age, 2, 20, 0))].into());
    assert_eq!(all.users, 2);
    for table in ["sessions", "tracks", "actions", "session_facets", "facets", "facet_days", "users"] {
        assert_eq!(database.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    assert!(apply(&reel, &keep_days(7), much_later).await.days.is_empty());
    let for_ever = RetentionPolicy::default();
    assert!(apply(&reel, &for_ever, due + TimeDelta::days(9_999)).await.days.is_empty());
    reel.stop().await;
}

async fn pin(reel: &Reel, id: &str, until: Option<DateTime<Utc>>) {
    let expire_time = until.map(|until| timestamp(until.timestamp_millis()));
    let pin = Pin { expire_time, reason: if until.is_some() { "a bug".to_owned() } else { String::new() } };
    let request = UpdateSessionRequest { session_id: id.to_owned(), pin: Some(pin), ..Default::default() };
    reel.sessions().update_session(request).await.unwrap();
}

async fn a_pinned_session_stays_whole_until_its_pin_ends(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let ids = record_day(&reel, 0, 4).await;
    wait_until_indexed(&database).await;
    let dirty = record_day(&reel, 0, 1).await.remove(0);
    let before = reel.play_all(&ids[1]).await;
    let now = midnight(30);
    for id in [&ids[1], &dirty] {
        pin(&reel, id, Some(now + TimeDelta::days(5))).await;
    }
    pin(&reel, &ids[2], Some(now)).await;

    let report = apply(&reel, &keep_days(7), now).await;
    assert_eq!(gist(&report), [(day(0), (ExpiryReason::Age, 3, 30, 2))].into());
    let mut kept = vec![ids[1].clone(), dirty.clone()];
    kept.sort_unstable_by(|one, other| other.cmp(one));
    assert_eq!(listed(&reel).await, kept);
    assert_eq!(reel.play_all(&ids[1]).await, before);
    assert_eq!(counted(&reel).await, (2, 20));
    // It goes on, although its day has gone.
    reel.record(vec![batch(&ids[1], "", 11, vec![action(20_000, "error", "late")])]).await.unwrap();
    assert_eq!(counted(&reel).await, (2, 21));
    wait_until_indexed(&database).await;
    assert_eq!(counted(&reel).await, (2, 21));
    check_index(&database).await;
    // Where rows lie does not matter: maintenance may move them.
    reel.store.partitions_maintain(now).await.unwrap();
    assert!(gist(&apply(&reel, &keep_days(7), now).await).is_empty());
    assert_eq!(reel.play_all(&ids[1]).await.len(), 11);

    pin(&reel, &dirty, None).await;
    let report = apply(&reel, &keep_days(7), now).await;
    assert_eq!(gist(&report), [(day(0), (ExpiryReason::Age, 1, 10, 1))].into());
    let report = apply(&reel, &keep_days(7), now + TimeDelta::days(5)).await;
    assert_eq!(gist(&report), [(day(0), (ExpiryReason::Age, 1, 11, 0))].into());
    assert_eq!((listed(&reel).await.len(), counted(&reel).await), (0, (0, 0)));
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 0);
    check_index(&database).await;
    reel.stop().await;
}

async fn set_expiry(reel: &Reel, id: &str, expires_at: Option<DateTime<Utc>>) {
    let expire_time = expires_at.map(|time| timestamp(time.timestamp_millis()));
    let expiry = Some(Expiry { expire_time });
    let request = UpdateSessionRequest { session_id: id.to_owned(), expiry, ..Default::default() };
    let session = reel.sessions().update_session(request).await.unwrap().into_inner().session.unwrap();
    assert_eq!(session.expire_time, expire_time);
}

async fn a_session_goes_when_its_own_time_has_come(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let ids = record_day(&reel, 0, 5).await;
    wait_until_indexed(&database).await;
    let [early, late, pinned, plain, _] = [0, 1, 2, 3, 4].map(|number: usize| ids[number].clone());
    let second = TimeDelta::seconds(1);
    let soon = midnight(2);
    set_expiry(&reel, &early, Some(soon)).await;
    set_expiry(&reel, &pinned, Some(soon)).await;
    set_expiry(&reel, &late, Some(midnight(40))).await;
    set_expiry(&reel, &plain, Some(soon)).await;
    set_expiry(&reel, &plain, None).await;
    pin(&reel, &pinned, Some(midnight(30))).await;

    let for_ever = RetentionPolicy::default();
    assert!(apply(&reel, &for_ever, soon - second).await.days.is_empty());
    let report = apply(&reel, &for_ever, soon).await;
    assert_eq!(gist(&report), [(day(0), (ExpiryReason::Own, 1, 10, 0))].into());
    assert_eq!(reel.get(&early).await.unwrap_err().code(), Code::NotFound);
    let again = reel.record(vec![start(&early, SessionStart::default())]).await.unwrap_err();
    assert_eq!(reason(&again), "SESSION_ERASED");
    assert_eq!(counted(&reel).await, (4, 40));

    // Its day has gone, and it stays; so does the pinned one.
    let report = apply(&reel, &keep_days(7), midnight(20)).await;
    assert_eq!(gist(&report), [(day(0), (ExpiryReason::Age, 2, 20, 2))].into());
    assert_eq!(reel.play_all(&late).await.len(), 10);
    let report = apply(&reel, &for_ever, midnight(30)).await;
    assert_eq!(gist(&report), [(day(0), (ExpiryReason::Own, 1, 10, 0))].into());
    let report = apply(&reel, &keep_days(7), midnight(40)).await;
    assert_eq!(gist(&report), [(day(0), (ExpiryReason::Age, 1, 10, 0))].into());
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 0);
    check_index(&database).await;
    reel.stop().await;
}

async fn the_oldest_days_go_where_there_are_too_many_bytes(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let mut ids = Vec::new();
    for number in 0..4 {
        let id = session_id(midnight(number).timestamp_millis());
        let large: Vec<_> = (0..40)
            .map(|offset| {
                let mut large = action(offset, "click", "large");
                large.data = format!("{{\"text\": \"{offset}{}\"}}", "x".repeat(20_000));
                large
            })
            .collect();
        reel.record(vec![start(&id, SessionStart::default()), batch("", "", 1, large)]).await.unwrap();
        ids.push(id);
    }
    let policy = |max_bytes| RetentionPolicy { max_bytes: Some(max_bytes), ..RetentionPolicy::default() };
    let (now, plenty) = (midnight(3) + TimeDelta::hours(1), policy(i64::MAX));
    let bytes = apply(&reel, &plenty, now).await.bytes_before;
    let report = apply(&reel, &policy(bytes - 1), now).await;
    assert_eq!(gist(&report), [(day(0), (ExpiryReason::Bytes, 1, 40, 0))].into());
    assert_eq!(listed(&reel).await.len(), 3);
    // It could be started again by its age, but must not be.
    let late = reel.record(vec![start(&ids[0], SessionStart::default())]).await.unwrap_err();
    assert_eq!((late.code(), reason(&late).as_str()), (Code::FailedPrecondition, "SESSION_ERASED"));
    // Whatever it takes, today stays.
    let report = apply(&reel, &policy(1), now).await;
    assert_eq!(report.days.iter().map(|day| day.window.first).collect::<Vec<_>>(), [day(1), day(2)]);
    assert_eq!(listed(&reel).await, ids[3..]);
    reel.stop().await;
}

async fn a_session_that_would_be_expired_is_not_started(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &["--retention", "3days"]).await;
    let start_of = |days_ago: i64| {
        let midnight = Utc::now().date_naive().and_hms_opt(0, 0, 0).unwrap().and_utc();
        session_id(midnight.timestamp_millis() - days_ago * DAY_MS)
    };
    let young = start_of(3);
    reel.record(vec![start(&young, SessionStart::default())]).await.unwrap();
    let old = start_of(5);
    let of = SessionStart { user: Some(user("nobody", "")), ..Default::default() };
    let refused = reel.record(vec![start(&old, of)]).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "OLDER_THAN_RETENTION"));
    assert_eq!(metadata(&refused, "limit_seconds"), "259200");
    assert_eq!(database.number("SELECT count(*) FROM users").await, 0, "nothing is left of its user");
    // One that is pinned is there whatever its age, and its sender may begin anew.
    pin(&reel, &young, Some(Utc::now() + TimeDelta::days(99))).await;
    crate::archive::apply(&reel.store, &keep_days(3), Utc::now() + TimeDelta::days(9)).await;
    reel.record(vec![start(&young, SessionStart::default()), batch("", "", 1, clicks(0..2))]).await.unwrap();
    reel.stop().await;
}

async fn the_indexer_learns_that_a_facet_has_gone(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    for round in 0..3 {
        // The same targets each time; the indexer remembers them.
        record_day(&reel, 0, 2).await;
        wait_until_indexed(&database).await;
        assert_eq!(counted(&reel).await, (2, 20), "round {round}");
        check_index(&database).await;
        crate::archive::apply(&reel.store, &keep_days(1), midnight(9)).await;
        assert_eq!(database.number("SELECT count(*) FROM facets").await, 0);
    }
    reel.stop().await;
}
