//! The same questions of sessions that are archived, that go on after that, and that are brought back.

use chrono::{DateTime, TimeDelta, Utc};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use reel::{
    model::{Pin, RetentionPolicy},
    proto::SessionEnd,
};

use super::{Asker, FEW_FACETS, PLANS, World, check_index_with, wait_until_indexed};
use crate::{
    archive::{apply, archive_all, later},
    harness::{Backend, Reel, TestDatabase, end, say_seed, seeds},
    on_both_databases,
};

/// How many questions are asked at each stage.
const QUESTIONS: usize = 120;

on_both_databases!(
    every_answer_is_exact_of_what_is_archived,
    every_answer_is_exact_of_archived_sessions_with_more_facets_than_the_index_keeps,
);

async fn every_answer_is_exact_of_what_is_archived(backend: Backend) {
    answers_are_exact(backend, PLANS, &[]).await;
}

async fn every_answer_is_exact_of_archived_sessions_with_more_facets_than_the_index_keeps(backend: Backend) {
    answers_are_exact(backend, 1, &FEW_FACETS).await;
}

async fn answers_are_exact(backend: Backend, plans: u64, arguments: &[&str]) {
    for seed in seeds(plans) {
        say_seed(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let database = TestDatabase::new(backend).await;
        let folder = tempfile::tempdir().unwrap();
        let archive = ["--archive", folder.path().to_str().unwrap()];
        let arguments = [&archive, arguments].concat();
        let reel = Reel::start_on(&database, &arguments).await;
        let mut world = World::new(&mut rng);
        world.record(&reel, &mut rng).await;
        end_most(&mut world, &reel, &mut rng).await;
        wait_until_indexed(&database).await;
        let report = archive_all(&reel).await;
        assert!(report.days.iter().map(|day| day.sessions).sum::<i64>() > 10, "{report:?}");
        let rows = database.number("SELECT count(*) FROM actions").await;
        let archived = database.number("SELECT CAST(sum(archived_count) AS bigint) FROM sessions").await;
        let acts: usize = world.sessions.values().map(|session| session.acts.len()).sum();
        assert_eq!(rows + archived, i64::try_from(acts).unwrap());
        let mut asker = Asker::default();
        asker.ask_many(&reel, &world, &mut rng, QUESTIONS).await;
        check_playbacks(&reel, &world).await;
        check_index_with(&database, &archive).await;
        reel.stop().await;

        // Archived sessions go on, are changed and erased; nobody indexes it.
        let unindexed = Reel::start_on(&database, &[&["--indexer", "off"], &*arguments].concat()).await;
        world.change(&unindexed, &mut rng).await;
        asker.ask_many(&unindexed, &world, &mut rng, QUESTIONS).await;
        check_playbacks(&unindexed, &world).await;
        unindexed.stop().await;

        // Indexed again, part in segments and part in rows.
        let reel = Reel::start_on(&database, &arguments).await;
        wait_until_indexed(&database).await;
        check_index_with(&database, &archive).await;
        asker.ask_many(&reel, &world, &mut rng, QUESTIONS).await;

        // All in segments again, what is of no use in them gone.
        archive_all(&reel).await;
        archive_all(&reel).await;
        asker.ask_many(&reel, &world, &mut rng, QUESTIONS).await;
        check_playbacks(&reel, &world).await;
        check_index_with(&database, &archive).await;

        // Back.
        let pin = Pin { until: DateTime::<Utc>::UNIX_EPOCH, reason: String::new() };
        for session in reel.store.sessions_archived(DateTime::UNIX_EPOCH, Utc::now()).await.unwrap() {
            assert!(reel.store.session_restore(session, &pin).await.unwrap() > 0);
        }
        let acts: usize = world.sessions.values().map(|session| session.acts.len()).sum();
        assert_eq!(database.number("SELECT count(*) FROM actions").await, i64::try_from(acts).unwrap());
        asker.ask_many(&reel, &world, &mut rng, QUESTIONS / 2).await;
        check_playbacks(&reel, &world).await;
        check_index_with(&database, &archive).await;
        // Nothing is in a segment any more.
        let nothing = RetentionPolicy::default();
        for hours in [1, 2, 4] {
            apply(&reel.store, &nothing, later() + TimeDelta::hours(hours)).await;
        }
        assert_eq!(database.number("SELECT count(*) FROM segments").await, 0);
        assert_eq!(crate::archive::files(folder.path()), Vec::<String>::new());
        asker.check_enough_was_found();
        reel.stop().await;
    }
}

/// Only sessions that have ended are archived.
async fn end_most(world: &mut World, reel: &Reel, rng: &mut StdRng) {
    for recorded in world.sessions.values_mut() {
        if !recorded.is_ended && rng.random_bool(0.7) {
            reel.record(vec![end(&recorded.id, SessionEnd::default())]).await.unwrap();
            recorded.is_ended = true;
        }
    }
}

async fn check_playbacks(reel: &Reel, world: &World) {
    for recorded in world.sessions.values() {
        let played = reel.play_all(&recorded.id).await;
        let played: Vec<_> =
            played.iter().map(|action| (action.seq, &*action.source, &*action.target, &*action.data)).collect();
        let acts: Vec<_> = recorded.acts.iter().map(|act| (act.seq, act.source, act.target, &*act.data)).collect();
        assert_eq!(played, acts, "{}", recorded.id);
    }
}
