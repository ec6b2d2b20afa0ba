//! `reel.v1.PlaybackService`.

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::Services;
use crate::{
    convert::{action_to_proto, parse_play, session_to_proto},
    error::Result,
    playback::{PlayEvent, Player},
    proto::{
        ActionPage, PlaySessionRequest, PlaySessionResponse, PlaybackEnd, PlaybackStart, play_session_response::Event,
        playback_service_server::PlaybackService,
    },
};

#[tonic::async_trait]
impl PlaybackService for Services {
    type PlaySessionStream = Pin<Box<dyn Stream<Item = Result<PlaySessionResponse, Status>> + Send>>;

    async fn play_session(
        &self,
        request: Request<PlaySessionRequest>,
    ) -> Result<Response<Self::PlaySessionStream>, Status> {
        let request = parse_play(request.into_inner())?;
        let player = Player::begin(self.store.clone(), &self.changes, self.drain.clone(), request).await?;
        let responses = futures_util::stream::try_unfold(player, async |mut player| {
            let event = player.next().await?;
            Ok(event.map(|event| (response(event, &player), player)))
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

fn response(event: PlayEvent, player: &Player) -> PlaySessionResponse {
    let event = match event {
        PlayEvent::Start(session) => Event::Start(PlaybackStart { session: Some(session_to_proto(*session)) }),
        PlayEvent::Page { actions, cursor } => {
            let actions = actions.into_iter().map(|stored| action_to_proto(stored, player.sources())).collect();
            Event::Actions(ActionPage { actions, cursor })
        }
        PlayEvent::End { action_count, cursor } => Event::End(PlaybackEnd { action_count, cursor }),
    };
    PlaySessionResponse { event: Some(event) }
}
