//! Two processes at once, one of which takes the other for dead: no file that is being put in use is removed.

use chrono::TimeDelta;
use reel::{
    error::Error,
    model::{Pin, RetentionPolicy, RetentionReport},
    proto::{
        Action, ActionDimension, ActionMatch, CountActionsRequest, DeleteSessionRequest, SessionFilter,
        analytics_service_client::AnalyticsServiceClient,
    },
};
use tokio::task::JoinHandle;

use super::{
    apply, archive_after, archive_all, end_lease,
    gate::{Gate, Stop},
    later, play_each, record_sessions, tidy,
};
use crate::{
    harness::{Backend, Reel, TestDatabase},
    on_both_databases,
};

on_both_databases!(
    who_tidies_up_does_not_touch_what_another_is_writing,
    a_writer_that_was_taken_for_dead_loses_nothing,
    what_is_in_use_is_not_removed_by_whoever_has_lost_the_lease,
    a_question_whose_file_has_gone_looks_again,
    a_file_stays_for_questions_from_when_it_is_not_used_any_more,
);

/// How many reads it takes to archive these sessions, the first of which are archived for that.
async fn reads_to_archive(gate: &Gate, reel: &Reel) -> usize {
    let before = gate.reads();
    archive_all(reel).await;
    gate.reads() - before
}

/// Brings sessions back, to be archived again.
async fn restore_all(reel: &Reel) {
    for id in reel.store.sessions_archived(chrono::DateTime::UNIX_EPOCH, later()).await.unwrap() {
        let pin = Pin { until: chrono::DateTime::UNIX_EPOCH, reason: String::new() };
        reel.store.session_restore(id, &pin).await.unwrap();
    }
}

/// Three sessions that are being archived by a service that waits.
struct Archiving {
    database: TestDatabase,
    gate: Gate,
    reel: Reel,
    ids: Vec<String>,
    /// What was played of each before.
    before: Vec<Vec<Action>>,
    archiving: JoinHandle<Result<RetentionReport, Error>>,
}

impl Archiving {
    /// The file is whole, and not in use yet: its last part was read back.
    async fn begin(backend: Backend) -> Self {
        let (database, gate) = (TestDatabase::new(backend).await, Gate::default());
        let reel = gate.serve(&database).await;
        let ids = record_sessions(&reel, &database, 3).await;
        let before = play_each(&reel, &ids).await;
        let reads = reads_to_archive(&gate, &reel).await;
        restore_all(&reel).await;
        tidy(&reel).await;
        gate.close(Stop::AfterRead(reads - 1));
        let store = reel.store.clone();
        let archiving = tokio::spawn(async move { store.retention_apply(&archive_after(0), later()).await });
        gate.somebody_waits().await;
        Self { database, gate, reel, ids, before, archiving }
    }
}

async fn who_tidies_up_does_not_touch_what_another_is_writing(backend: Backend) {
    let Archiving { database, gate, reel, ids, before, archiving } = Archiving::begin(backend).await;
    let other = gate.open(&database).await;
    for hours in 1..=3 {
        let tidied = other.retention_apply(&RetentionPolicy::default(), later() + TimeDelta::hours(hours)).await;
        assert_eq!(tidied.err(), Some(Error::RetentionRunning));
    }
    gate.open_up();
    assert_eq!(archiving.await.unwrap().unwrap().days.iter().map(|day| day.sessions).sum::<i64>(), 3);
    tidy(&reel).await;
    assert_eq!(play_each(&reel, &ids).await, before);
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 0);
    assert_eq!(gate.files().await, 1);
    other.close().await;
    reel.stop().await;
}

/// Removes the file of a writer that waits, unless it may not be, and stops there; then the writer goes on.
async fn a_writer_that_was_taken_for_dead_loses_nothing(backend: Backend) {
    let Archiving { database, gate, reel, ids, before, archiving } = Archiving::begin(backend).await;
    end_lease(&database).await;
    // Whoever removes something stops then.
    gate.close(Stop::AfterRemoval);
    let other = gate.open(&database).await;
    let tidying = async {
        for hours in 1..=3 {
            apply(&other, &RetentionPolicy::default(), later() + TimeDelta::hours(hours)).await;
        }
    };
    let going_on = async {
        gate.somebody_waits().await;
        gate.open_up();
        // It does not put in use what was removed.
        assert!(archiving.await.unwrap().is_err());
    };
    tokio::join!(tidying, going_on);
    assert_eq!(play_each(&reel, &ids).await, before);
    // By the next run, all is as if it had not been.
    archive_all(&reel).await;
    tidy(&reel).await;
    assert_eq!(play_each(&reel, &ids).await, before);
    assert_eq!(gate.files().await, 1);
    assert_eq!(database.texts("SELECT state FROM segment_files").await, ["in_use"]);
    other.close().await;
    reel.stop().await;
}

async fn what_is_in_use_is_not_removed_by_whoever_has_lost_the_lease(backend: Backend) {
    let (database, gate) = (TestDatabase::new(backend).await, Gate::default());
    let reel = gate.serve(&database).await;
    let mut ids = record_sessions(&reel, &database, 3).await;
    archive_all(&reel).await;
    let request = DeleteSessionRequest { session_id: ids.remove(1) };
    reel.sessions().delete_session(request).await.unwrap();
    let before = play_each(&reel, &ids).await;

    // Both write the segment anew: the first is taken for dead, and goes on when the second has finished.
    gate.close(Stop::AfterRead(0));
    let nothing = RetentionPolicy::default();
    let (first, policy) = (reel.store.clone(), nothing);
    let first = tokio::spawn(async move { first.retention_apply(&policy, later()).await });
    gate.somebody_waits().await;
    end_lease(&database).await;
    let other = gate.open(&database).await;
    gate.close(Stop::Nowhere);
    apply(&other, &nothing, later() + TimeDelta::hours(1)).await;
    gate.open_up();
    assert!(first.await.unwrap().is_err());
    assert_eq!(play_each(&reel, &ids).await, before);
    tidy(&reel).await;
    tidy(&reel).await;
    assert_eq!(play_each(&reel, &ids).await, before);
    assert_eq!(gate.files().await, 1);
    assert_eq!(database.number("SELECT CAST(sum(action_count) AS bigint) FROM segments").await, 342);
    other.close().await;
    reel.stop().await;
}

async fn a_question_whose_file_has_gone_looks_again(backend: Backend) {
    let (database, gate) = (TestDatabase::new(backend).await, Gate::default());
    let reel = gate.serve(&database).await;
    let mut ids = record_sessions(&reel, &database, 3).await;
    archive_all(&reel).await;
    let request = DeleteSessionRequest { session_id: ids.remove(1) };
    reel.sessions().delete_session(request).await.unwrap();
    let rest: usize = play_each(&reel, &ids).await.iter().map(Vec::len).sum();

    gate.close(Stop::BeforeRead(0));
    let channel = reel.channel.clone();
    let asking = tokio::spawn(async move {
        // What only actions tell.
        let filter = SessionFilter { user_id: "ada".to_owned(), ..Default::default() };
        let clicks = ActionMatch { r#type: "click".to_owned(), ..Default::default() };
        let group_by = vec![ActionDimension::Hour.into()];
        let request =
            CountActionsRequest { filter: Some(filter), r#match: Some(clicks), group_by, ..Default::default() };
        AnalyticsServiceClient::new(channel).count_actions(request).await
    });
    gate.somebody_waits().await;
    // Meanwhile the segment is written anew, and the old file goes.
    gate.close(Stop::Nowhere);
    tidy(&reel).await;
    gate.open_up();
    let counted = asking.await.unwrap().unwrap().into_inner();
    assert_eq!(usize::try_from(counted.total_action_count).unwrap(), rest);
    reel.stop().await;
}

async fn a_file_stays_for_questions_from_when_it_is_not_used_any_more(backend: Backend) {
    let (database, gate) = (TestDatabase::new(backend).await, Gate::default());
    let reel = gate.serve(&database).await;
    let mut ids = record_sessions(&reel, &database, 3).await;
    archive_all(&reel).await;
    let request = DeleteSessionRequest { session_id: ids.remove(1) };
    reel.sessions().delete_session(request).await.unwrap();
    // A run that takes long: what it does last was not done when it began.
    apply(&reel.store, &RetentionPolicy::default(), later()).await;
    assert_eq!(
        database.number("SELECT count(*) FROM segment_files WHERE state = 'removing' AND since > '2027-01-01'").await,
        1
    );
    let in_order = "SELECT count(*) FROM segment_files AS old JOIN segment_files AS fresh ON old.since >= fresh.since \
                    WHERE old.state = 'removing' AND fresh.state = 'in_use'";
    assert_eq!(database.number(in_order).await, 1);
    assert_eq!(gate.files().await, 2);
    tidy(&reel).await;
    assert_eq!(gate.files().await, 1);
    reel.stop().await;
}
