//! What is seldom recorded, and must be found all the same.

use std::collections::BTreeSet;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use reel::proto::{
    Action, ActionDimension, ActionMatch, CountActionsRequest, DataCondition, DataOperator, DeleteSessionRequest,
    ListSessionsRequest, SessionFilter, SessionStart, action_match::TargetMatch, data_condition::Value,
};

use super::{Asker, World, ask::analytics, check_index, wait_until_indexed};
use crate::{
    harness::{
        Backend, NOON_MS, Reel, TestDatabase, action, batch, click, eventually, say_seed, seeds, session_id, start,
        user,
    },
    on_both_databases,
};

on_both_databases!(
    conditions_find_all_data_that_was_taken,
    the_beginning_of_an_email_address_is_found_in_either_case,
    what_older_definitions_have_indexed_is_not_believed_and_is_made_anew,
    long_targets_are_told_apart_and_found_by_long_beginnings,
    facets_may_have_numbers_of_more_than_4_bytes,
    what_the_roll_up_has_of_no_session_needs_no_name,
);

async fn number_found(reel: &Reel, filter: SessionFilter) -> usize {
    let request = ListSessionsRequest { filter: Some(filter), ..ListSessionsRequest::default() };
    reel.sessions().list_sessions(request).await.unwrap().into_inner().sessions.len()
}

async fn conditions_find_all_data_that_was_taken(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let data = r#"{"value":"hi \ud83d","\ude00":1,"big":1e309,"list":["\ud83d",-1e400,true]}"#;
    let id = reel.start_session().await;
    let taken =
        reel.append(&id, "", 1, vec![Action { data: data.to_owned(), ..action(0, "input", "x") }]).await.unwrap();
    assert_eq!(taken.accepted_count, 1);
    let text = |text: &str| Some(Value::Text(text.to_owned()));
    for (path, operator, value, is_found) in [
        ("$.value", DataOperator::Exists, None, true),
        ("$.value", DataOperator::Contains, text("hi"), true),
        ("$.value", DataOperator::Contains, text("ho"), false),
        ("$.value", DataOperator::NotEqual, text("hi"), true),
        ("$.value", DataOperator::Equal, text("hi "), false),
        ("$.value", DataOperator::Greater, text("hi "), true),
        ("$.big", DataOperator::Exists, None, true),
        ("$.big", DataOperator::Greater, Some(Value::Number(f64::MAX)), true),
        ("$.big", DataOperator::LessOrEqual, Some(Value::Number(f64::MAX)), false),
        ("$.list[1]", DataOperator::Less, Some(Value::Number(f64::MIN)), true),
        ("$.list", DataOperator::Contains, Some(Value::Boolean(true)), true),
    ] {
        let condition = DataCondition { path: path.to_owned(), operator: operator.into(), value: value.clone() };
        let wanted = ActionMatch { r#type: "input".to_owned(), data: vec![condition], ..ActionMatch::default() };
        let filter = SessionFilter { all_of: vec![wanted], ..SessionFilter::default() };
        assert_eq!(number_found(&reel, filter).await, usize::from(is_found), "{path} {operator:?} {value:?}");
    }
    reel.stop().await;
}

async fn the_beginning_of_an_email_address_is_found_in_either_case(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    for (number, email) in ["ΟΔΥΣΣΕΥΣ@Example.com", "οδυσσευς2@example.com", "ODYSSEUS@example.com"].iter().enumerate()
    {
        let of = SessionStart { user: Some(user(&format!("user {number}"), email)), ..SessionStart::default() };
        reel.send(start("", of)).await.unwrap();
    }
    for (prefix, count) in [("ΟΔΥΣ", 2), ("οδυς", 2), ("Οδυσσευς", 2), ("ΟΔΥΣΣΕΥΣ@", 1), ("οδυσσευς2", 1), ("odys", 1)]
    {
        let filter = SessionFilter { email_prefix: prefix.to_owned(), ..SessionFilter::default() };
        assert_eq!(number_found(&reel, filter).await, count, "{prefix}");
    }
    for (email, count) in [("οδυσσευς@example.com", 1), ("ΟΔΥΣΣΕΥΣ2@EXAMPLE.COM", 1), ("οδυς", 0)] {
        let filter = SessionFilter { email: email.to_owned(), ..SessionFilter::default() };
        assert_eq!(number_found(&reel, filter).await, count, "{email}");
    }
    reel.stop().await;
}

/// Three sessions, and how many rage clicks each has: three clicks within a second, but not of the first; clicks that may have
/// been anywhere; clicks that are slow.
async fn record_rage(reel: &Reel) -> Vec<(String, i64)> {
    let mut recorded = Vec::new();
    for (times, target, count) in
        [([0, 800, 1_100, 1_200], "x", 1), ([0, 1, 2, 3], "", 0), ([0, 900, 1_800, 2_700], "x", 0)]
    {
        let id = session_id(NOON_MS);
        let clicks = times.iter().map(|at| click(*at, target)).collect();
        reel.record(vec![start(&id, SessionStart::default()), batch("", "", 1, clicks)]).await.unwrap();
        recorded.push((id, count));
    }
    recorded
}

async fn check_rage(reel: &Reel, recorded: &[(String, i64)]) {
    for (id, count) in recorded {
        assert_eq!(reel.get(id).await.unwrap().summary.unwrap().rage_click_count, *count, "{id}");
    }
    let filter = SessionFilter { min_rage_click_count: Some(1), ..SessionFilter::default() };
    let request = ListSessionsRequest { filter: Some(filter), count_total: true, ..ListSessionsRequest::default() };
    let found = reel.sessions().list_sessions(request).await.unwrap().into_inner();
    let raging = recorded.iter().filter(|(_, count)| *count > 0);
    assert_eq!(
        found.sessions.iter().map(|session| &session.id).collect::<Vec<_>>(),
        raging.map(|(id, _)| id).collect::<Vec<_>>()
    );
    assert_eq!(found.total_count, Some(1));
}

async fn what_older_definitions_have_indexed_is_not_believed_and_is_made_anew(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let reel = Reel::start_on(&database, &[]).await;
    let recorded = record_rage(&reel).await;
    wait_until_indexed(&database).await;
    check_rage(&reel, &recorded).await;
    reel.stop().await;
    // As an older release would have said.
    database.execute("UPDATE sessions SET rage_click_count = 1 - rage_click_count").await;
    database.execute("UPDATE index_definitions SET version = 1").await;

    let unindexed = Reel::start_on(&database, &["--indexer", "off"]).await;
    check_rage(&unindexed, &recorded).await;
    let reel = Reel::start_on(&database, &[]).await;
    let sql = "SELECT count(*) FROM index_definitions WHERE version > 1 AND outdated_below IS NULL";
    eventually("all is marked", async || database.number(sql).await == 1).await;
    wait_until_indexed(&database).await;
    assert_eq!(database.number("SELECT count(*) FROM sessions WHERE rage_click_count > 0").await, 1);
    check_index(&database).await;
    for reel in [unindexed, reel] {
        check_rage(&reel, &recorded).await;
        reel.stop().await;
    }
}

/// Characters of 4 bytes, which no database can make shorter.
fn characters(rng: &mut StdRng, count: usize) -> String {
    (0..count).map(|_| char::from_u32(rng.random_range(0x20000..0x2A000)).unwrap()).collect()
}

async fn long_targets_are_told_apart_and_found_by_long_beginnings(backend: Backend) {
    let mut rng = StdRng::seed_from_u64(0);
    let database = TestDatabase::new(backend).await;
    let limits = ["--max-target-bytes", "8192", "--max-type-bytes", "512"];
    let unindexed = Reel::start_on(&database, &[&["--indexer", "off"], &limits[..]].concat()).await;
    let kind: String = (0..512).map(|_| char::from(rng.random_range(b'a'..=b'z'))).collect();
    let beginning = characters(&mut rng, 700);
    let longest = format!("{beginning}bb{}", characters(&mut rng, (8_192 - 2_802) / 4));
    let longest = format!("{longest}{}", "x".repeat(8_192 - longest.len()));
    let targets =
        [format!("{beginning}a"), format!("{beginning}b"), longest.clone(), "b".to_owned(), "b\u{10ffff}x".to_owned()];
    for target in &targets {
        let actions = vec![action(0, &kind, target)];
        let recorded = vec![start("", SessionStart::default()), batch("", "", 1, actions)];
        assert_eq!(unindexed.record(recorded).await.unwrap().receipts[0].tracks[0].accepted_count, 1);
    }
    let start_of = |count: usize| beginning.chars().take(count).collect::<String>();
    let wanted: Vec<(TargetMatch, usize)> = vec![
        (TargetMatch::Target(targets[0].clone()), 1),
        (TargetMatch::Target(targets[1].clone()), 1),
        (TargetMatch::Target(longest.clone()), 1),
        (TargetMatch::Target(start_of(512)), 0),
        (TargetMatch::TargetPrefix(start_of(10)), 3),
        (TargetMatch::TargetPrefix(start_of(511)), 3),
        (TargetMatch::TargetPrefix(start_of(512)), 3),
        (TargetMatch::TargetPrefix(start_of(513)), 3),
        (TargetMatch::TargetPrefix(beginning.clone()), 3),
        (TargetMatch::TargetPrefix(format!("{beginning}b")), 2),
        (TargetMatch::TargetPrefix(longest.clone()), 1),
        (TargetMatch::TargetPrefix(format!("{}b", start_of(512))), 0),
        (TargetMatch::TargetContains(longest[6_002..].to_owned()), 1),
        (TargetMatch::TargetContains("b".to_owned()), 4),
        (TargetMatch::TargetPrefix("b".to_owned()), 2),
    ];
    let ask = async |reel: &Reel| {
        for kind in ["", &kind] {
            for (number, (target, count)) in wanted.iter().enumerate() {
                let target_match = Some(target.clone());
                let wanted = ActionMatch { r#type: kind.to_owned(), target_match, ..ActionMatch::default() };
                let filter = SessionFilter { all_of: vec![wanted], ..SessionFilter::default() };
                assert_eq!(number_found(reel, filter).await, *count, "{number}, {} bytes of type", kind.len());
            }
        }
        let group_by = vec![ActionDimension::Target.into()];
        let request = CountActionsRequest { group_by, ..CountActionsRequest::default() };
        let counted = analytics(reel).count_actions(request).await.unwrap().into_inner();
        let counted: BTreeSet<_> = counted.groups.into_iter().map(|group| group.target.unwrap()).collect();
        assert!(counted.iter().eq(targets.iter().collect::<BTreeSet<_>>()));
    };
    ask(&unindexed).await;
    let reel = Reel::start_on(&database, &limits).await;
    wait_until_indexed(&database).await;
    assert_eq!(database.number("SELECT count(*) FROM facets").await, 5);
    ask(&reel).await;
    check_index(&database).await;
    unindexed.stop().await;
    reel.stop().await;
}

async fn facets_may_have_numbers_of_more_than_4_bytes(backend: Backend) {
    for seed in seeds(1) {
        say_seed(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let (reel, database) = Reel::start(backend).await;
        let next = i64::from(i32::MAX) - 2;
        let sql = match backend {
            Backend::Postgres => format!("ALTER SEQUENCE facets_id_seq RESTART WITH {next}"),
            Backend::Sqlite => format!("INSERT INTO sqlite_sequence (name, seq) VALUES ('facets', {next} - 1)"),
        };
        database.execute(&sql).await;
        let mut world = World::new(&mut rng);
        world.record(&reel, &mut rng).await;
        wait_until_indexed(&database).await;
        assert_eq!(database.number("SELECT min(id) FROM facets").await, next);
        assert!(database.number("SELECT max(id) FROM facets").await > i64::from(i32::MAX));
        check_index(&database).await;
        let mut asker = Asker::default();
        asker.ask_many(&reel, &world, &mut rng, 50).await;
        world.change(&reel, &mut rng).await;
        asker.ask_many(&reel, &world, &mut rng, 25).await;
        // Erases all of them, and what they leave behind.
        for id in world.sessions.into_keys() {
            reel.sessions().delete_session(DeleteSessionRequest { session_id: id }).await.unwrap();
        }
        eventually("no facet is left", async || database.number("SELECT count(*) FROM facets").await == 0).await;
        assert_eq!(database.number("SELECT count(*) FROM facet_days").await, 0);
        reel.stop().await;
    }
}

/// As between two steps of a sweep, when an indexer or an erasure has taken the last session of a facet away after the first.
async fn what_the_roll_up_has_of_no_session_needs_no_name(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let id = session_id(NOON_MS);
    reel.record(vec![start(&id, SessionStart::default()), batch("", "", 1, vec![click(0, "x")])]).await.unwrap();
    wait_until_indexed(&database).await;
    let sql = "INSERT INTO facet_days (day, facet_id, action_count, session_count) VALUES ('2026-11-01', 4711, 0, 0)";
    database.execute(sql).await;
    let request = CountActionsRequest { group_by: vec![ActionDimension::Target.into()], ..Default::default() };
    let counted = analytics(&reel).count_actions(request).await.unwrap().into_inner();
    assert_eq!((counted.total_action_count, counted.groups.len()), (1, 1));
    reel.stop().await;
}
