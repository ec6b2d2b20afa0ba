//! Finding, changing and erasing sessions.

use reel::proto::{
    DeleteSessionRequest, GetSessionRequest, ListSessionsRequest, ListSessionsResponse, SessionFilter, SessionStart,
    UpdateSessionRequest,
};
use tonic::{Code, Status};

use crate::{
    harness::{Backend, NOON_MS, Reel, action, batch, clicks, reason, session_id, start, timestamp, user},
    on_both_databases,
};

on_both_databases!(
    a_session_says_what_is_known_of_it,
    sessions_are_listed_newest_first_page_by_page,
    sessions_are_found_by_user_email_and_time,
    a_page_token_is_good_for_its_list_only,
    attributes_are_set_and_removed,
    erasing_a_session_leaves_the_others_alone,
);

/// Sessions a minute apart, oldest first, of two users in turn.
async fn minutes(reel: &Reel, count: i64) -> Vec<String> {
    let mut ids = Vec::new();
    for minute in 0..count {
        let id = session_id(NOON_MS + minute * 60_000);
        let of = if minute % 2 == 0 { user("ada", "ada@example.com") } else { user("bob", "bob@example.com") };
        reel.send(start(&id, SessionStart { user: Some(of), ..Default::default() })).await.unwrap();
        ids.push(id);
    }
    ids
}

async fn list(reel: &Reel, request: ListSessionsRequest) -> Result<ListSessionsResponse, Status> {
    Ok(reel.sessions().list_sessions(request).await?.into_inner())
}

async fn found(reel: &Reel, filter: SessionFilter) -> Vec<String> {
    let request = ListSessionsRequest { filter: Some(filter), ..Default::default() };
    list(reel, request).await.unwrap().sessions.into_iter().map(|session| session.id).collect()
}

async fn a_session_says_what_is_known_of_it(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = session_id(NOON_MS);
    let started = SessionStart {
        user: Some(user("ada", "")),
        attributes: [("release".to_owned(), "7".to_owned())].into(),
        ..Default::default()
    };
    let web = vec![action(0, "click", "a"), action(5_000, "error", "b"), action(1_000, "error", "c")];
    reel.record(vec![
        start(&id, started),
        batch("", "web", 1, web),
        batch("", "api", 1, vec![action(2_000, "error", "d")]),
    ])
    .await
    .unwrap();
    let session = reel.get(&id).await.unwrap();
    assert_eq!((session.action_count, session.error_count, session.user_id.as_str()), (4, 3, "ada"));
    assert_eq!(session.start_time, Some(timestamp(NOON_MS)));
    assert_eq!(session.last_action_time, Some(timestamp(NOON_MS + 5_000)));
    assert_eq!((session.end_time, session.end_reason.as_str()), (None, ""));
    assert_eq!(session.attributes["release"], "7");
    let tracks: Vec<_> = session.tracks.iter().map(|track| (track.source.as_str(), track.committed_seq)).collect();
    assert_eq!(tracks, [("web", 3), ("api", 1)]);

    let request = GetSessionRequest { session_id: session_id(NOON_MS) };
    let unknown = reel.sessions().get_session(request).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "SESSION_NOT_FOUND"));
}

async fn sessions_are_listed_newest_first_page_by_page(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let mut expected = minutes(&reel, 7).await;
    // Two of the same millisecond.
    for _ in 0..2 {
        let id = session_id(NOON_MS);
        reel.send(start(&id, SessionStart::default())).await.unwrap();
        expected.push(id);
    }
    expected.sort_unstable_by(|one, other| other.cmp(one));
    for page_size in [1, 2, 3, 8, 9, 10, 0] {
        let (mut seen, mut page_token) = (Vec::new(), String::new());
        loop {
            let page = list(&reel, ListSessionsRequest { page_size, page_token, ..ListSessionsRequest::default() })
                .await
                .unwrap();
            assert!(page_size == 0 || page.sessions.len() <= usize::try_from(page_size).unwrap());
            seen.extend(page.sessions.into_iter().map(|session| session.id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, expected, "pages of {page_size}");
    }
}

async fn sessions_are_found_by_user_email_and_time(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let ids = minutes(&reel, 6).await;
    let at = |minute: i64| Some(timestamp(NOON_MS + minute * 60_000));
    let picked = |minutes: &[usize]| minutes.iter().map(|minute| ids[*minute].clone()).collect::<Vec<_>>();
    let everything = SessionFilter::default();
    for (filter, expected) in [
        (SessionFilter { user_id: "ada".to_owned(), ..everything.clone() }, picked(&[4, 2, 0])),
        (SessionFilter { user_id: "eve".to_owned(), ..everything.clone() }, vec![]),
        (SessionFilter { email: "BOB@example.com".to_owned(), ..everything.clone() }, picked(&[5, 3, 1])),
        (SessionFilter { started_after: at(4), ..everything.clone() }, picked(&[5, 4])),
        (SessionFilter { started_before: at(1), ..everything.clone() }, picked(&[0])),
        (SessionFilter { started_after: at(1), started_before: at(4), ..everything.clone() }, picked(&[3, 2, 1])),
        (
            SessionFilter {
                user_id: "bob".to_owned(),
                email: "bob@example.com".to_owned(),
                started_after: at(2),
                ..everything.clone()
            },
            picked(&[5, 3]),
        ),
        (
            SessionFilter { user_id: "bob".to_owned(), email: "ada@example.com".to_owned(), ..everything.clone() },
            vec![],
        ),
    ] {
        assert_eq!(found(&reel, filter.clone()).await, expected, "{filter:?}");
    }
}

async fn a_page_token_is_good_for_its_list_only(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    minutes(&reel, 4).await;
    let of = |user_id: &str| Some(SessionFilter { user_id: user_id.to_owned(), ..Default::default() });
    let first = ListSessionsRequest { page_size: 1, filter: of("ada"), ..ListSessionsRequest::default() };
    let token = list(&reel, first.clone()).await.unwrap().next_page_token;
    // The size of the page may change.
    let next = ListSessionsRequest { page_size: 5, page_token: token.clone(), ..first.clone() };
    assert_eq!(list(&reel, next).await.unwrap().sessions.len(), 1);
    let other_filter = ListSessionsRequest { page_token: token.clone(), filter: of("bob"), ..first.clone() };
    let forged = ListSessionsRequest { page_token: token[1..].to_owned(), ..first.clone() };
    let junk = ListSessionsRequest { page_token: "junk".to_owned(), ..first };
    for request in [other_filter, forged, junk] {
        let refused = list(&reel, request).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_FIELD"));
    }
    let request = reel::proto::ListUsersRequest { page_token: token, ..Default::default() };
    assert_eq!(reel.users().list_users(request).await.unwrap_err().code(), Code::InvalidArgument);
}

async fn attributes_are_set_and_removed(backend: Backend) {
    let (reel, _database) = Reel::start(backend).await;
    let id = reel.start_session().await;
    let update = async |set: &[(&str, &str)], removed: &[&str]| {
        let request = UpdateSessionRequest {
            session_id: id.clone(),
            attributes: set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            removed_attributes: removed.iter().map(|key| (*key).to_owned()).collect(),
            ..UpdateSessionRequest::default()
        };
        let response = reel.sessions().update_session(request).await.map(tonic::Response::into_inner);
        response.map(|response| {
            let mut attributes: Vec<_> = response.session.unwrap().attributes.into_iter().collect();
            attributes.sort();
            attributes.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
        })
    };
    assert_eq!(update(&[("a", "1"), ("b", "2")], &[]).await.unwrap(), ["a=1", "b=2"]);
    assert_eq!(update(&[("b", "3"), ("c", "é\"'")], &["a", "nothing"]).await.unwrap(), ["b=3", "c=é\"'"]);
    assert_eq!(update(&[], &["b"]).await.unwrap(), ["c=é\"'"]);
    assert_eq!(update(&[], &[]).await.unwrap(), ["c=é\"'"]);

    let request = UpdateSessionRequest { session_id: session_id(NOON_MS), ..Default::default() };
    assert_eq!(reel.sessions().update_session(request).await.unwrap_err().code(), Code::NotFound);
}

async fn erasing_a_session_leaves_the_others_alone(backend: Backend) {
    let (reel, database) = Reel::start(backend).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let id = reel.start_session().await;
        reel.append(&id, "a", 1, clicks(0..10)).await.unwrap();
        reel.append(&id, "b", 1, clicks(0..5)).await.unwrap();
        ids.push(id);
    }
    let request = DeleteSessionRequest { session_id: ids[1].clone() };
    let erased = reel.sessions().delete_session(request).await.unwrap().into_inner();
    assert_eq!(erased.erased_action_count, 15);
    assert_eq!(reel.get(&ids[1]).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(database.number("SELECT count(*) FROM actions").await, 30);
    assert_eq!(database.number("SELECT count(*) FROM tracks").await, 4);
    for id in [&ids[0], &ids[2]] {
        assert_eq!(reel.play_all(id).await.len(), 15);
    }
}
