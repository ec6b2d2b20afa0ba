//! Finds the session that version 0.1.0 made of an rrweb recording, which knew one by its first event alone.

use indicatif::ProgressBar;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{identity::Identity, recording::Recording};
use crate::{
    cli::{Failure, client::Service},
    model::{DEFAULT_SOURCE, SessionId},
    proto::{
        ActionBatch, GetSessionRequest, Session, StreamActionsRequest, ingest_service_client::IngestServiceClient,
        session_service_client::SessionServiceClient, stream_actions_request::Event,
    },
};

/// The session in which an earlier version may have stored this recording. Whether it did, comparing the actions says.
///
/// Fails where there was one that has been erased: whose it was cannot be told any more, and it must not come back.
pub(super) async fn earlier_session(
    service: &Service,
    recording: &Recording,
    identity: Identity,
    progress: &ProgressBar,
) -> Result<Option<SessionId>, Failure> {
    let id = identity.first_event_id;
    let mut patience = service.patience();
    loop {
        let status = match stored(service, id).await {
            Ok(Stored::Session(session)) => return Ok(may_be(&session, recording, identity).then_some(id)),
            Ok(Stored::Nothing) => return Ok(None),
            Ok(Stored::Erased) => {
                let label = &recording.label;
                return Err(format!(
                    "{label}: not imported: session {id}, which an earlier version made of a recording with this first \
                     event, was erased"
                )
                .into());
            }
            Err(status) => status,
        };
        let tell = |trouble: &str| progress.suspend(|| eprintln!("reel: {trouble}"));
        patience.wait(&status, tell).await?;
    }
}

enum Stored {
    Session(Box<Session>),
    Nothing,
    Erased,
}

async fn stored(service: &Service, id: SessionId) -> Result<Stored, Status> {
    let request = GetSessionRequest { session_id: id.to_string() };
    match SessionServiceClient::new(service.channel.clone()).get_session(request).await {
        Ok(response) => return Ok(Stored::Session(Box::new(response.into_inner().session.unwrap_or_default()))),
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => return Err(status),
    }
    // No actions: if it is there after all, they change nothing, and if it is not, this says why.
    let event = Event::Batch(ActionBatch { source: DEFAULT_SOURCE.to_owned(), first_seq: 1, actions: Vec::new() });
    let messages = [StreamActionsRequest { session_id: id.to_string(), event: Some(event) }];
    let mut client = IngestServiceClient::new(service.channel.clone());
    let refused = match client.stream_actions(tokio_stream::iter(messages)).await {
        Ok(receipts) => receipts.into_inner().message().await.err(),
        Err(status) => Some(status),
    };
    let Some(status) = refused else { return Err(Status::unavailable("the session has just been made")) };
    let is_erased = status.get_details_error_info().is_some_and(|info| info.reason == "SESSION_ERASED");
    match status.code() {
        Code::NotFound => Ok(Stored::Nothing),
        _ if is_erased => Ok(Stored::Erased),
        _ => Err(status),
    }
}

/// Whether all that is stored may be the beginning of this recording: all of it, or as much of a recording of the same name as
/// an import that was broken off has left.
fn may_be(session: &Session, recording: &Recording, identity: Identity) -> bool {
    let stored =
        session.tracks.iter().find(|track| track.source == DEFAULT_SOURCE).map_or(0, |track| track.committed_seq);
    let has_its_name = session.attributes.get("name").is_some_and(|name| *name == recording.session);
    stored == identity.event_count || (0 < stored && stored < identity.event_count && has_its_name)
}
