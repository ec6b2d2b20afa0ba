//! Five hundred playbacks at once, in real time: how late their actions come.
//!
//! An action is due as long after the playback's beginning as it happened after its session's. The beginning is when the
//! playback's start came, or what the first action says of it, if that is earlier. The calls are made over a second, as viewers
//! do not all press the button at the same moment.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::try_join_all;
use reel::{model::SessionId, proto::PlaySessionRequest};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use super::library::{Library, Playback, all_of};
use crate::support::{
    Result, arguments::Arguments, figure::Figure, progress, statistics::percentile_ms, workload::from_proto,
};

/// Playbacks at once.
const PLAYBACKS: usize = 500;

/// How long it takes until all have begun.
const WITHIN: Duration = Duration::from_secs(1);

pub async fn measure(arguments: &Arguments, library: &Library) -> Result<Vec<Figure>> {
    progress(format_args!("paced, {}", library.name));
    let playbacks = arguments.scale(50, PLAYBACKS, PLAYBACKS);
    let until = prost_types::Duration { seconds: arguments.scale(1, 10, 60), nanos: 0 };
    let watching: Vec<_> = library
        .small
        .iter()
        .cycle()
        .take(playbacks)
        .zip(library.channels.iter().cycle().cloned())
        .enumerate()
        .map(|(number, (session, channel))| {
            let request = PlaySessionRequest { speed: 1.0, until: Some(until), ..all_of(*session) };
            let pause = WITHIN * u32::try_from(number)? / u32::try_from(playbacks)?;
            Ok(tokio::spawn(watch(channel, *session, request, pause)))
        })
        .collect::<Result<_>>()?;
    let mut late = Vec::new();
    for watched in try_join_all(watching).await? {
        late.extend(watched?);
    }
    let name = format!("{}: {playbacks} at speed 1, lateness", library.name);
    Ok(vec![
        Figure::new(format!("{name} p50"), percentile_ms(&mut late, 0.5), "ms"),
        Figure::new(format!("{name} p99"), percentile_ms(&mut late, 0.99), "ms"),
        Figure::new(format!("{name} at most"), percentile_ms(&mut late, 1.0), "ms"),
    ])
}

/// Plays a session. Gives how late each action came.
async fn watch(
    channel: Channel,
    session: SessionId,
    request: PlaySessionRequest,
    pause: Duration,
) -> Result<Vec<Duration>> {
    sleep(pause).await;
    let mut playback = Playback::begin(&channel, request).await?;
    let mut beginning = Instant::now();
    let mut arrived: Vec<(Duration, Instant)> = Vec::new();
    while let Some(actions) = playback.next_page().await? {
        let now = Instant::now();
        for action in actions {
            let time: DateTime<Utc> = action.timestamp.map(from_proto).ok_or("an action has no time")?;
            arrived.push(((time - session.started_at()).to_std()?, now));
        }
    }
    if let Some((offset, at)) = arrived.first() {
        beginning = at.checked_sub(*offset).map_or(beginning, |first| first.min(beginning));
    }
    Ok(arrived.into_iter().map(|(offset, at)| at.saturating_duration_since(beginning + offset)).collect())
}
