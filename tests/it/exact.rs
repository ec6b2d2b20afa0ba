//! Every kind of question, asked at random, against a plain model of what was acknowledged before it was asked: while nothing of
//! the sessions is in the index, when all of it is, after changes, and while others write and the service is killed.
//!
//! A failure prints its seed; `REEL_TEST_SEED` runs that seed alone, `REEL_TEST_PLANS` says how many are tried.

mod answers;
mod archived;
mod ask;
pub mod by_hand;
mod matching;
mod moved;
mod questions;
mod turmoil;
mod unusual;
mod world;

use rand::{SeedableRng as _, rngs::StdRng};

use self::{ask::Asker, world::World};
use crate::{
    harness::{Backend, Reel, TestDatabase, eventually, say_seed, seeds},
    on_both_databases,
};

/// How many worlds are tried on each database, unless `REEL_TEST_PLANS` says otherwise.
const PLANS: u64 = 2;

/// How many questions are asked at each stage.
const QUESTIONS: usize = 150;

/// So few facets of a session are kept that the index has all of those of few sessions, and none of those of some.
pub const FEW_FACETS: [&str; 2] = ["--max-session-facets", "3"];

on_both_databases!(
    every_answer_is_exact_whatever_the_index_has_got_to,
    every_answer_is_exact_where_sessions_have_more_facets_than_the_index_keeps,
);

async fn every_answer_is_exact_whatever_the_index_has_got_to(backend: Backend) {
    answers_are_exact(backend, PLANS, [&[], &[]]).await;
}

/// The limit is raised on the way.
async fn every_answer_is_exact_where_sessions_have_more_facets_than_the_index_keeps(backend: Backend) {
    answers_are_exact(backend, 1, [&FEW_FACETS, &["--max-session-facets", "6"]]).await;
}

/// Tries so many worlds. The service that indexes is started twice, each time with arguments of its own.
async fn answers_are_exact(backend: Backend, plans: u64, arguments: [&[&str]; 2]) {
    for seed in seeds(plans) {
        say_seed(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let database = TestDatabase::new(backend).await;
        // Not in the index at all.
        let unindexed = Reel::start_on(&database, &[&["--indexer", "off"], arguments[0]].concat()).await;
        let mut world = World::new(&mut rng);
        world.record(&unindexed, &mut rng).await;
        let mut asker = Asker::default();
        asker.ask_many(&unindexed, &world, &mut rng, QUESTIONS).await;

        // All of it.
        let reel = Reel::start_on(&database, arguments[0]).await;
        wait_until_indexed(&database).await;
        check_index(&database).await;
        if arguments[0] == FEW_FACETS {
            check_each_detail_is_there(&database).await;
        }
        asker.ask_many(&unindexed, &world, &mut rng, QUESTIONS).await;

        // What was indexed goes on, is changed, and is erased; nobody indexes it.
        reel.stop().await;
        world.change(&unindexed, &mut rng).await;
        asker.ask_many(&unindexed, &world, &mut rng, QUESTIONS).await;
        let reel = Reel::start_on(&database, arguments[1]).await;
        wait_until_indexed(&database).await;
        check_index(&database).await;
        asker.ask_many(&reel, &world, &mut rng, QUESTIONS / 2).await;
        asker.check_enough_was_found();
        unindexed.stop().await;
        reel.stop().await;
    }
}

/// Checks that there are sessions of which the index has all facets, types only, and nothing.
pub async fn check_each_detail_is_there(database: &TestDatabase) {
    let counts = (0..3).map(async |detail| {
        database.number(&format!("SELECT count(*) FROM sessions WHERE facet_detail = {detail}")).await
    });
    let counts = futures_util::future::join_all(counts).await;
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

pub async fn wait_until_indexed(database: &TestDatabase) {
    let count = async || database.number("SELECT count(*) FROM tracks WHERE dirty").await;
    eventually("everything is in the index", async || count().await == 0).await;
}

/// Runs `reel index --verify`.
pub async fn check_index(database: &TestDatabase) {
    check_index_with(database, &[]).await;
}

/// The same with an archive.
pub async fn check_index_with(database: &TestDatabase, arguments: &[&str]) {
    let (is_right, said) = run_index(database, &[arguments, &["--verify"]].concat()).await;
    assert!(is_right && said.contains(" 0 differences"), "{said}");
}

/// Runs `reel index`. Gives whether it found everything right, and what it said.
pub async fn run_index(database: &TestDatabase, arguments: &[&str]) -> (bool, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_reel"));
    command.args(["index", "--database-url", &database.url]).args(arguments);
    let output = command.output().await.unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.success(), said)
}
