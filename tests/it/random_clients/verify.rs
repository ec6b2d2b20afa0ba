//! What playbacks show while a plan is carried out, and what the database holds afterwards.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use reel::proto::{
    self, Action, GetSessionRequest, PlaySessionRequest, play_session_request::Begin, play_session_response::Event,
    playback_service_client::PlaybackServiceClient, session_service_client::SessionServiceClient,
};
use tonic::{Status, transport::Channel};

use super::{
    content::{Content, REJECTED},
    model::{Model, Numbered, Refusal, Session, source_name, source_number},
    plan::{Play, SOURCES},
    run::Run,
};
use crate::harness::{self, Reel, TestDatabase, reason};

/// What a follower has seen of a session by its end.
pub struct Seen {
    session: usize,
    actions: Vec<Action>,
    /// Not where the session was erased meanwhile.
    is_whole: bool,
}

/// The pages of a playback, up to the given number of them.
struct Pages {
    actions: Vec<Action>,
    cursor: Option<String>,
    is_over: bool,
}

async fn read(
    channel: Channel,
    request: PlaySessionRequest,
    stop_after: Option<usize>,
    seen: &mut Pages,
) -> Result<(), Status> {
    let mut client = PlaybackServiceClient::new(channel).max_decoding_message_size(16 << 20);
    let mut stream = client.play_session(request).await?.into_inner();
    let mut pages = 0;
    while stop_after.is_none_or(|limit| pages < limit) {
        let Some(response) = stream.message().await? else { break };
        match response.event.unwrap() {
            Event::Start(_) => {}
            Event::Actions(page) => {
                seen.actions.extend(page.actions);
                seen.cursor = Some(page.cursor);
                pages += 1;
            }
            Event::End(end) => {
                seen.cursor = Some(end.cursor);
                seen.is_over = true;
            }
        }
    }
    Ok(())
}

/// Plays a session, in one go or in two, and checks that it shows everything that was committed when it began.
pub async fn play(run: &Run, server: usize, session: usize, how: Play) {
    let channel = run.channel(server).await;
    let before = run.model().before(session);
    let Some(id) = run.model().sessions[session].id.clone() else { return };
    let pace = if how.paced { 1_000.0 } else { 0.0 };
    let mut request =
        PlaySessionRequest { speed: pace, max_idle: how.paced.then(|| harness::seconds(1)), ..harness::play(&id) };
    let mut seen = Pages { actions: Vec::new(), cursor: None, is_over: false };
    let mut result = read(channel.clone(), request.clone(), how.stop_after, &mut seen).await;
    let first = seen.actions.len();
    if result.is_ok() && !seen.is_over {
        request.begin = seen.cursor.clone().map(Begin::Cursor);
        result = read(channel.clone(), request, None, &mut seen).await;
    }
    if let Err(status) = result {
        let refusal = run.model().refused(session, &before, &status);
        assert!(matches!(refusal, Refusal::NotThere | Refusal::Unknown), "{refusal:?}");
        return;
    }
    assert!(seen.is_over);
    let tracks = SessionServiceClient::new(channel).get_session(GetSessionRequest { session_id: id }).await;
    let model = run.model();
    let committed = check_content(&model, session, &seen.actions);
    for (source, track) in model.sessions[session].tracks.iter().enumerate() {
        assert!((before.acknowledged[source]..=track.reach()).contains(&committed[source]), "{}", source_name(source));
    }
    if let Ok(got) = tracks {
        let got = got.into_inner().session.unwrap();
        // Once more from the beginning of time where the rest of the playback met newer actions.
        let falls = count_falls(&got, &seen.actions);
        assert!(falls == 0 || (falls == 1 && first < seen.actions.len()), "{falls} times out of order");
    }
}

/// Follows a session to its end, however often the server goes away, in a task of its own.
pub fn spawn_follower(run: &Arc<Run>, server: usize, session: usize) {
    let id = {
        let mut model = run.model();
        let state = &mut model.sessions[session];
        let Some(id) = state.id.clone().filter(|_| state.started) else { return };
        state.is_followed = true;
        id
    };
    let follower = tokio::spawn(follow(Arc::clone(run), server, session, id));
    run.followers.lock().unwrap().push(follower);
}

async fn follow(run: Arc<Run>, server: usize, session: usize, id: String) -> Seen {
    let mut seen = Pages { actions: Vec::new(), cursor: None, is_over: false };
    let before = run.model().before(session);
    while !seen.is_over {
        let begin = seen.cursor.clone().map(Begin::Cursor);
        let request = PlaySessionRequest { follow: true, begin, ..harness::play(&id) };
        let channel = run.channel(server).await;
        if let Err(status) = read(channel, request, None, &mut seen).await {
            match run.model().refused(session, &before, &status) {
                Refusal::NotThere => return Seen { session, actions: seen.actions, is_whole: false },
                Refusal::Unknown => {}
                other => panic!("a playback cannot be answered with {other:?}"),
            }
            // The next answer comes from the server after its restart.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    Seen { session, actions: seen.actions, is_whole: true }
}

/// Checks that these are, of each track, the first actions without gaps and each once, with the content that was sent. Gives
/// how many of each track.
fn check_content(model: &Model, session: usize, actions: &[Action]) -> Vec<i64> {
    let mut tracks: BTreeMap<usize, BTreeMap<i64, &Action>> = BTreeMap::new();
    for action in actions {
        let twice = tracks.entry(source_number(&action.source)).or_default().insert(action.seq, action);
        assert!(twice.is_none(), "{} {} came twice", action.source, action.seq);
    }
    let mut committed = vec![0; SOURCES.len() + 1];
    for (source, actions) in tracks {
        let count = i64::try_from(actions.len()).unwrap();
        assert_eq!(actions.keys().copied().collect::<Vec<_>>(), (1..=count).collect::<Vec<_>>(), "seqs have no gaps");
        committed[source] = count;
        if source == SOURCES.len() {
            check_numbered(model, session, &actions);
            continue;
        }
        for (seq, action) in actions {
            let sent = Content::new(model.seed, session, source, u64::try_from(seq).unwrap());
            assert!(sent.is_stored_as(action), "{} {seq}: sent {:?}, stored {action:?}", action.source, sent.fault);
        }
    }
    committed
}

/// Every batch that the service numbered stands in one piece where its receipt says, and those without a receipt fill the
/// places between them, each at most once.
fn check_numbered(model: &Model, session: usize, actions: &BTreeMap<i64, &Action>) {
    let is_at = |batch: &Numbered, first: i64| {
        (0..batch.count).all(|index| {
            let place = Numbered::place(batch.tag, u64::try_from(index).unwrap());
            let sent = Content::new(model.seed, session, SOURCES.len(), place);
            actions.get(&(first + index)).is_some_and(|stored| sent.is_stored_as(stored))
        })
    };
    let mut left = model.sessions[session].tracks[SOURCES.len()].numbered.clone();
    left.retain(|batch| batch.count > 0);
    for batch in &left {
        let is_there = batch.first.is_none_or(|first| !actions.contains_key(&first) || is_at(batch, first));
        assert!(is_there, "{} acknowledged actions are lost", batch.count);
    }
    let mut furthest = 1;
    let is_filled = fill(1, &mut left, &is_at, &|seq| actions.contains_key(&seq), &mut furthest);
    assert!(is_filled, "nobody sent what is at seq {furthest}");
}

/// Finds batches that fill a track from this seq on, each at most once. What was refused looks the same in several batches, so
/// that one that has no receipt may seem to be where another is.
fn fill(
    next: i64,
    left: &mut Vec<Numbered>,
    is_at: &impl Fn(&Numbered, i64) -> bool,
    is_there: &impl Fn(i64) -> bool,
    furthest: &mut i64,
) -> bool {
    if !is_there(next) {
        return left.iter().all(|batch| batch.first.is_none_or(|first| first >= next));
    }
    *furthest = next.max(*furthest);
    let known = left.iter().position(|batch| batch.first == Some(next));
    let possible: Vec<usize> = match known {
        Some(known) => vec![known],
        None => (0..left.len()).filter(|index| left[*index].first.is_none() && is_at(&left[*index], next)).collect(),
    };
    for index in possible {
        let batch = left.remove(index);
        if fill(next + batch.count, left, is_at, is_there, furthest) {
            return true;
        }
        left.insert(index, batch);
    }
    false
}

/// How often an action comes that belongs before the one before it.
fn count_falls(session: &proto::Session, actions: &[Action]) -> usize {
    let number = |source: &str| session.tracks.iter().position(|track| track.source == source);
    let place = |action: &Action| {
        let time = action.timestamp.unwrap();
        (time.seconds, time.nanos, number(&action.source), action.seq)
    };
    actions.windows(2).filter(|pair| place(&pair[0]) > place(&pair[1])).count()
}

/// Checks what the database holds when all is over. Gives the number of actions.
pub async fn database(reel: &Reel, database: &TestDatabase, model: &Model, seen: &[Seen]) -> i64 {
    let mut known = 0;
    for number in 0..model.sessions.len() {
        known += i64::from(session(reel, model, number, seen).await);
    }
    for (what, sql) in [
        (
            "actions of no track",
            "SELECT count(*) FROM actions WHERE NOT EXISTS (SELECT 1 FROM tracks \
            WHERE tracks.session_id = actions.session_id AND tracks.number = actions.track)",
        ),
        (
            "cursors that are not the number of actions",
            "SELECT count(*) FROM tracks WHERE last_seq <> (SELECT count(*) \
            FROM actions WHERE actions.session_id = tracks.session_id AND actions.track = tracks.number)",
        ),
        ("tracks of no session", "SELECT count(*) FROM tracks WHERE session_id NOT IN (SELECT id FROM sessions)"),
        ("erased sessions", "SELECT count(*) FROM sessions WHERE id IN (SELECT session_id FROM tombstones)"),
        (
            // NULL is not in an empty set.
            "sessions of users that are not there",
            "SELECT count(*) FROM sessions WHERE user_id IS NOT NULL AND user_id NOT IN (SELECT id FROM users)",
        ),
    ] {
        assert_eq!(database.number(sql).await, 0, "{what}");
    }
    let sessions = database.number("SELECT count(*) FROM sessions").await;
    assert!((known..=known + model.orphans).contains(&sessions), "{sessions} sessions, {known} are known");
    database.number("SELECT count(*) FROM actions").await
}

/// Checks one session. Says whether it is there.
async fn session(reel: &Reel, model: &Model, number: usize, seen: &[Seen]) -> bool {
    let state = &model.sessions[number];
    let Some(id) = &state.id else { return false };
    let got = match reel.get(id).await {
        Ok(got) => got,
        Err(status) => {
            assert_eq!(reason(&status), "SESSION_NOT_FOUND");
            assert!(state.erasing || !state.started, "session {number} is lost");
            let late = reel.append(id, "main", 1, harness::clicks(0..1)).await.unwrap_err();
            let expected =
                if state.erased { &["SESSION_ERASED"][..] } else { &["SESSION_ERASED", "SESSION_NOT_FOUND"] };
            assert!(expected.contains(&reason(&late).as_str()), "{late:?}");
            return false;
        }
    };
    assert!(!state.erased, "session {number} is there again");
    assert!(state.start_begun);
    assert_eq!(got.end_time.is_some(), !got.end_reason.is_empty());
    assert!(state.end_begun || got.end_time.is_none(), "session {number} was ended by nobody");
    assert!(!state.ended || got.end_time.is_some(), "session {number} goes on after its end");
    let actions = reel.play_all(id).await;
    let committed = check_content(model, number, &actions);
    assert_eq!(count_falls(&got, &actions), 0, "out of order");
    assert_eq!(got.action_count, committed.iter().sum::<i64>());
    for (source, committed) in committed.iter().enumerate() {
        let track = got.tracks.iter().find(|track| track.source == source_name(source));
        check_track(state, source, *committed, track.unwrap_or(&proto::Track::default()), &actions);
    }
    for seen in seen.iter().filter(|seen| seen.session == number) {
        assert!(seen.is_whole, "a follower was told that a session is not there which is");
        let followed = check_content(model, number, &seen.actions);
        for (source, followed) in followed.into_iter().enumerate() {
            let low = state.before_end.as_ref().map_or(0, |before| before[source]);
            assert!((low..=committed[source]).contains(&followed), "a follower saw {followed}, {low} were there");
        }
    }
    true
}

/// Checks a track's cursor and counts.
fn check_track(state: &Session, source: usize, committed: i64, track: &proto::Track, actions: &[Action]) {
    let known = &state.tracks[source];
    let name = source_name(source);
    let own: Vec<_> = actions.iter().filter(|action| action.source == name).collect();
    let count = |kind: &str| i64::try_from(own.iter().filter(|action| action.r#type == kind).count()).unwrap();
    assert_eq!(track.committed_seq, committed, "{name}");
    assert!((known.acknowledged..=known.reach()).contains(&committed), "{name}");
    assert_eq!((track.accepted_count, track.error_count), (committed - count(REJECTED), count("error")), "{name}");
    let latest = own.iter().filter_map(|action| action.timestamp).max_by_key(|time| (time.seconds, time.nanos));
    assert_eq!(track.last_action_time, latest, "{name}");
    let counts = [track.accepted_count, track.duplicate_count, track.rejected_count];
    let receipts = [known.accepted, known.duplicates, known.rejected];
    if known.is_uncertain {
        assert!(counts.iter().zip(receipts).all(|(count, told)| *count >= told), "{name}: {counts:?}, {receipts:?}");
    } else {
        assert_eq!(counts, receipts, "{name}");
    }
}
