//! Following a live session.

use std::{sync::Arc, time::Duration};

use reel::{
    changes::Changes,
    proto::{PlaySessionRequest, SessionEnd, play_session_response::Event},
};
use tokio::time::timeout;

use super::recorded;
use crate::{
    harness::{Backend, NOON_MS, Reel, TestDatabase, action, click, clicks, end, play, session_id},
    on_both_databases,
};

on_both_databases!(
    a_follower_gets_everything_once_and_ends_with_the_session,
    a_follower_gets_late_actions_of_any_time_and_new_tracks,
    a_follower_on_another_process_hears_of_changes,
);

async fn a_follower_gets_everything_once_and_ends_with_the_session(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = recorded(&reel, &[("", clicks(0..3))]).await;
    let request = PlaySessionRequest { follow: true, ..play(&id) };
    let mut stream = reel.playback().play_session(request).await.unwrap().into_inner();
    let mut seen = Vec::new();
    for number in 3..20 {
        while i64::try_from(seen.len()).unwrap() < number {
            match stream.message().await.unwrap().unwrap().event.unwrap() {
                Event::Actions(page) => seen.extend(page.actions.into_iter().map(|action| action.target)),
                Event::Start(_) => {}
                Event::End(_) => panic!("ended while the session is live"),
            }
        }
        reel.append(&id, "", number + 1, clicks(number..number + 1)).await.unwrap();
    }
    reel.send(end(&id, SessionEnd::default())).await.unwrap();
    let mut ended = false;
    while let Some(response) = stream.message().await.unwrap() {
        match response.event.unwrap() {
            Event::Actions(page) => seen.extend(page.actions.into_iter().map(|action| action.target)),
            Event::End(end) => ended = end.action_count == 20,
            Event::Start(_) => panic!("started twice"),
        }
    }
    assert!(ended);
    assert_eq!(seen, (0..20).map(|number| number.to_string()).collect::<Vec<_>>());
}

async fn a_follower_gets_late_actions_of_any_time_and_new_tracks(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = recorded(&reel, &[("", vec![click(3_600_000, "first")])]).await;
    let request = PlaySessionRequest { follow: true, types: vec!["click".to_owned()], ..play(&id) };
    let mut stream = reel.playback().play_session(request).await.unwrap().into_inner();
    let mut next = async || loop {
        if let Some(Event::Actions(page)) = stream.message().await.unwrap().unwrap().event {
            return page.actions.into_iter().map(|action| action.target).collect::<Vec<_>>();
        }
    };
    assert_eq!(next().await, ["first"]);
    reel.append(&id, "", 2, vec![click(0, "an hour late")]).await.unwrap();
    assert_eq!(next().await, ["an hour late"]);
    reel.append(&id, "other", 1, vec![action(0, "input", "unwanted"), click(1, "new track")]).await.unwrap();
    assert_eq!(next().await, ["new track"]);
    reel.append(&id, "", 3, vec![click(3_600_001, "on time")]).await.unwrap();
    assert_eq!(next().await, ["on time"]);
}

async fn a_follower_on_another_process_hears_of_changes(backend: Backend) {
    let database = TestDatabase::new(backend).await;
    let (writing, reading) = (Reel::start_on(&database, &[]).await, Reel::start_on(&database, &[]).await);
    let id = recorded(&writing, &[("", clicks(0..1))]).await;
    let request = PlaySessionRequest { follow: true, ..play(&id) };
    let mut stream = reading.playback().play_session(request).await.unwrap().into_inner();
    let mut seen = 0;
    for number in 1..4 {
        while seen < number {
            if let Some(Event::Actions(page)) = stream.message().await.unwrap().unwrap().event {
                seen += i64::try_from(page.actions.len()).unwrap();
            }
        }
        writing.append(&id, "", number + 1, clicks(number..number + 1)).await.unwrap();
    }
    writing.send(end(&id, SessionEnd::default())).await.unwrap();
    while let Some(response) = stream.message().await.unwrap() {
        if let Some(Event::Actions(page)) = response.event {
            seen += i64::try_from(page.actions.len()).unwrap();
        }
    }
    assert_eq!(seen, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_tell_each_other_of_changes() {
    let database = TestDatabase::new(Backend::Postgres).await;
    let (one, other) = (Reel::start_on(&database, &[]).await, Reel::start_on(&database, &[]).await);
    let id = session_id(NOON_MS).parse().unwrap();
    let (telling, hearing) = (Arc::new(Changes::default()), Arc::new(Changes::default()));
    let mut following = hearing.follow(id);
    // It does not look at the database, so only the word of the other ends the second wait. The first ends when it has
    // begun to listen: whatever came before may have been missed.
    let told = async {
        following.changed().await;
        telling.announce(id);
        following.changed().await;
    };
    tokio::select! {
        () = telling.exchange(&one.store) => unreachable!("it goes on for ever"),
        () = hearing.exchange(&other.store) => unreachable!("it goes on for ever"),
        told = timeout(Duration::from_mins(1), told) => told.expect("never heard of the change"),
    }
}
