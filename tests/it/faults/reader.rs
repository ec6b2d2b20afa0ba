//! A reader that goes on, after every break, from the cursor of the last page that it got.

use std::{net::SocketAddr, time::Duration};

use reel::proto::{Action, PlaySessionRequest, play_session_request::Begin};
use tonic::{Status, transport::Endpoint};

use crate::{
    harness::{Played, Reel, play, play_into, start},
    senders::{Place, Script, TRACKS, Trouble, check_content},
};

/// How many actions each track has: more than fit in what a connection lives for.
const ACTIONS: i64 = 2_500;

/// How many actions a batch has.
const BATCH: i64 = 500;

/// Records a session, and gives its id and what a playback without trouble shows.
pub async fn record(reel: &Reel, seed: u64) -> (String, Vec<Action>) {
    let script = Script::of_endless_sessions(seed);
    let place = Place { sender: 0, number: 0 };
    let session = place.session();
    reel.send(start(&session, place.start())).await.unwrap();
    for (track, source) in TRACKS.iter().enumerate() {
        for first in (1..=ACTIONS).step_by(usize::try_from(BATCH).unwrap()) {
            let actions = (first..first + BATCH).map(|seq| script.action(place, track, seq)).collect();
            reel.append(&session, source, first, actions).await.unwrap();
        }
    }
    let played = reel.play_all(&session).await;
    assert_eq!(check_content(script, place, &played), [ACTIONS; _]);
    let order = |action: &Action| {
        let time = action.timestamp.unwrap();
        let track = TRACKS.iter().position(|source| *source == action.source);
        (time.seconds, time.nanos, track, action.seq)
    };
    assert!(played.is_sorted_by_key(order));
    (session, played)
}

/// Plays a session to its end, however often that breaks off, and checks that it shows the same. `trouble` says why it may
/// break off. Gives how often it went on from somewhere in the middle.
pub async fn play_with_breaks(server: SocketAddr, session: &str, trouble: Trouble, recorded: &[Action]) -> usize {
    let mut seen: Vec<Action> = Vec::new();
    let mut begin = None;
    let mut resumed = 0;
    loop {
        let request = PlaySessionRequest { begin: begin.clone(), ..play(session) };
        let mut played = Played::default();
        let result = attempt(server, request, trouble, &mut played).await;
        seen.append(&mut played.actions);
        if let Some((_, cursor)) = played.pages.pop() {
            begin = Some(Begin::Cursor(cursor));
        }
        match result {
            Ok(()) => break,
            Err(status) => trouble.check(&status),
        }
        resumed += usize::from(begin.is_some());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Not all of it is worth printing.
    let differing = seen.iter().zip(recorded).position(|(one, other)| one != other);
    assert_eq!((differing, seen.len()), (None, recorded.len()));
    resumed
}

/// Plays until nothing has come for as long as the trouble lets one wait.
async fn attempt(
    server: SocketAddr,
    request: PlaySessionRequest,
    trouble: Trouble,
    played: &mut Played,
) -> Result<(), Status> {
    let endpoint = Endpoint::from_shared(format!("http://{server}")).unwrap().connect_timeout(trouble.patience());
    let channel = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
    play_into(channel, request, trouble.patience(), played).await
}
