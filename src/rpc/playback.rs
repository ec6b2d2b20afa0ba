//! `reel.v1.PlaybackService`.

use std::{pin::Pin, sync::Arc};

use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::Services;
use crate::{
    convert::{PlaybackMessage, PlayedPage, parse_play, session_to_proto},
    error::Result,
    playback::{PlayEvent, Player},
    proto::{PlaySessionRequest, PlaySessionResponse, PlaybackEnd, PlaybackStart, play_session_response::Event},
};

/// The generated service with a codec of its own, see `build.rs`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
mod service {
    tonic::include_proto!("reel.v1.PlaybackService");
}

use service::playback_service_server::PlaybackService;
pub(crate) use service::playback_service_server::PlaybackServiceServer;

#[tonic::async_trait]
impl PlaybackService for Services {
    type PlaySessionStream = Pin<Box<dyn Stream<Item = Result<PlaybackMessage, Status>> + Send>>;

    async fn play_session(
        &self,
        request: Request<PlaySessionRequest>,
    ) -> Result<Response<Self::PlaySessionStream>, Status> {
        let request = parse_play(request.into_inner())?;
        let player = {
            let (changes, drain) = (Arc::clone(&self.changes), self.drain.clone());
            self.store.ask(|store| async move { Player::begin(store, &changes, drain, request).await }).await?
        };
        let messages = futures_util::stream::try_unfold(player, async |mut player| {
            let event = player.next().await?;
            Ok(event.map(|event| (message(event, &player), player)))
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

fn message(event: PlayEvent, player: &Player) -> PlaybackMessage {
    let event = match event {
        PlayEvent::Page { actions, cursor } => {
            let sources = Arc::clone(player.sources());
            return PlaybackMessage::Page(PlayedPage::new(actions, sources, cursor));
        }
        PlayEvent::Start(session) => Event::Start(PlaybackStart { session: Some(session_to_proto(*session)) }),
        PlayEvent::End { action_count, cursor } => Event::End(PlaybackEnd { action_count, cursor }),
    };
    PlaybackMessage::Other(Box::new(PlaySessionResponse { event: Some(event) }))
}
