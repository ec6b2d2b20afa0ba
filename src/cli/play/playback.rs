//! One playback as a client: page after page, going on from the last cursor when the stream breaks.

use std::time::{Duration, Instant};

use tonic::{Status, Streaming, transport::Channel};

use crate::{
    cli::{
        Failure,
        client::{MAX_MESSAGE_BYTES, Patience, Service},
    },
    proto::{
        Action, PlaySessionRequest, PlaySessionResponse, play_session_request::Begin, play_session_response::Event,
        playback_service_client::PlaybackServiceClient,
    },
};

/// A stream that held for this long was well, even if it had nothing to say: that of a live session in which nothing happens.
const WELL_AFTER: Duration = Duration::from_secs(10);

/// One playback.
pub(in crate::cli) struct Playback {
    client: PlaybackServiceClient<Channel>,
    patience: Patience,
    /// What is left to play.
    request: PlaySessionRequest,
    /// Whether there was a page.
    has_played: bool,
    /// None before the first page, and after the stream broke.
    stream: Option<Streaming<PlaySessionResponse>>,
    /// When the stream was opened last.
    opened_at: Instant,
}

impl Playback {
    pub(in crate::cli) fn new(service: &Service, request: PlaySessionRequest) -> Self {
        let client = PlaybackServiceClient::new(service.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Self {
            client,
            patience: service.patience(),
            request,
            has_played: false,
            stream: None,
            opened_at: Instant::now(),
        }
    }

    /// Where to resume after the last page, if there was one.
    pub(in crate::cli) fn cursor(&self) -> Option<&str> {
        match &self.request.begin {
            Some(Begin::Cursor(cursor)) if self.has_played => Some(cursor),
            _ => None,
        }
    }

    /// Waits for the next actions. None at the end. `tell` is told of trouble that may pass.
    pub(in crate::cli) async fn next_page(&mut self, tell: impl Fn(&str)) -> Result<Option<Vec<Action>>, Failure> {
        loop {
            let status = match self.try_next_page().await {
                Ok(page) => return Ok(page),
                Err(status) => status,
            };
            if self.stream.take().is_some() && self.opened_at.elapsed() > WELL_AFTER {
                self.patience.progress();
            }
            self.patience.wait(&status, &tell).await?;
        }
    }

    async fn try_next_page(&mut self) -> Result<Option<Vec<Action>>, Status> {
        if self.stream.is_none() {
            self.opened_at = Instant::now();
            self.stream = Some(self.client.play_session(self.request.clone()).await?.into_inner());
        }
        while let Some(stream) = &mut self.stream {
            let Some(response) = stream.message().await? else {
                return Err(Status::unavailable("the service closed the stream"));
            };
            match response.event {
                Some(Event::Actions(page)) => {
                    self.patience.progress();
                    self.has_played = true;
                    self.request.begin = Some(Begin::Cursor(page.cursor));
                    return Ok(Some(page.actions));
                }
                Some(Event::End(_)) => return Ok(None),
                Some(Event::Start(_)) | None => {}
            }
        }
        Ok(None)
    }
}
