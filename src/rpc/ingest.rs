//! `reel.v1.IngestService`.

use std::pin::Pin;

use chrono::Utc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::Services;
use crate::{
    convert::{cursors_to_proto, parse_cursor_request, parse_event, receipt_to_proto},
    error::{Error, Result},
    ingest::{MessagePermits, Receipts},
    model::{IngestEvent, SessionId, SessionReceipt},
    proto::{
        GetIngestCursorRequest, GetIngestCursorResponse, RecordActionsRequest, RecordActionsResponse,
        StreamActionsRequest, StreamActionsResponse, ingest_service_server::IngestService, record_actions_request,
        stream_actions_request,
    },
};

#[tonic::async_trait]
impl IngestService for Services {
    async fn record_actions(
        &self,
        request: Request<Streaming<RecordActionsRequest>>,
    ) -> Result<Response<RecordActionsResponse>, Status> {
        let mut upload = Upload::new(self, request);
        let mut receipts = Receipts::default();
        while let Some(receipt) = upload.next().await? {
            receipts.add(receipt)?;
        }
        let receipts = receipts.into_vec().into_iter().map(receipt_to_proto).collect();
        Ok(Response::new(RecordActionsResponse { receipts }))
    }

    type StreamActionsStream = Pin<Box<dyn Stream<Item = Result<StreamActionsResponse, Status>> + Send>>;

    async fn stream_actions(
        &self,
        request: Request<Streaming<StreamActionsRequest>>,
    ) -> Result<Response<Self::StreamActionsStream>, Status> {
        let upload = Upload::new(self, request);
        let receipts = futures_util::stream::try_unfold(upload, async |mut upload| {
            let receipt = upload.next().await?;
            Ok(receipt.map(|receipt| (StreamActionsResponse { receipt: Some(receipt_to_proto(receipt)) }, upload)))
        });
        Ok(Response::new(Box::pin(receipts)))
    }

    async fn get_ingest_cursor(
        &self,
        request: Request<GetIngestCursorRequest>,
    ) -> Result<Response<GetIngestCursorResponse>, Status> {
        let (session, source) = parse_cursor_request(request.into_inner(), &self.limits)?;
        let (tracks, ended) = self.store.track_list(session).await?;
        Ok(Response::new(GetIngestCursorResponse { cursors: cursors_to_proto(tracks, source), ended }))
    }
}

/// One upload: takes its messages one after the other, each when the one before is committed.
struct Upload<M> {
    services: Services,
    messages: Streaming<M>,
    permits: Option<MessagePermits>,
    /// The session that this stream started last.
    current: Option<SessionId>,
}

impl<M: Into<StreamActionsRequest> + prost::Message> Upload<M> {
    fn new(services: &Services, request: Request<Streaming<M>>) -> Self {
        let permits = request.extensions().get::<MessagePermits>().cloned();
        Self { services: services.clone(), messages: request.into_inner(), permits, current: None }
    }

    /// Takes the next message and gives its receipt once it is committed. None at the end of the stream, which says nothing
    /// about the end of a session.
    async fn next(&mut self) -> Result<Option<SessionReceipt>, Status> {
        let message = tokio::select! {
            biased;
            () = self.services.drain.cancelled() => return Err(Error::Draining.into()),
            message = self.messages.message() => message?,
        };
        let Some(message) = message else { return Ok(None) };
        let permit = self.permits.as_ref().and_then(|permits| permits.take(message.encoded_len()));
        let event = parse_event(message.into(), self.current, &self.services.limits, Utc::now())?;
        if let IngestEvent::Start(start) = &event {
            self.current = Some(start.id);
        }
        Ok(Some(self.services.writer.write(event, permit).await?))
    }
}

impl From<RecordActionsRequest> for StreamActionsRequest {
    fn from(request: RecordActionsRequest) -> Self {
        use record_actions_request::Event as Recorded;
        use stream_actions_request::Event as Streamed;

        let event = request.event.map(|event| match event {
            Recorded::Start(start) => Streamed::Start(start),
            Recorded::Batch(batch) => Streamed::Batch(batch),
            Recorded::End(end) => Streamed::End(end),
        });
        Self { session_id: request.session_id, event }
    }
}
