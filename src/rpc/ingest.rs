//! `reel.v1.IngestService`.

use std::{collections::VecDeque, pin::Pin};

use tokio::sync::{OwnedSemaphorePermit, oneshot::error::RecvError};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::Services;
use crate::{
    convert::{UploadMessage, cursors_to_proto, parse_cursor_request, parse_event, receipt_to_proto},
    error::{Error, Result},
    ingest::{Intake, MessagePermits, Receipt, Receipts, UploadState},
    model::{IngestEvent, SessionId, SessionReceipt},
    proto::{GetIngestCursorRequest, GetIngestCursorResponse, RecordActionsResponse, StreamActionsResponse},
};

mod service {
    #![allow(missing_docs, unreachable_pub, clippy::pedantic)]
    tonic::include_proto!("reel.v1.IngestService");
}
use service::ingest_service_server::IngestService;
pub(crate) use service::ingest_service_server::IngestServiceServer;

#[tonic::async_trait]
impl IngestService for Services {
    async fn record_actions(
        &self,
        request: Request<Streaming<UploadMessage>>,
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
        request: Request<Streaming<UploadMessage>>,
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
        let listed = self.store.ask(|store| async move { store.track_list(session).await });
        let (tracks, ended) = listed.await?;
        Ok(Response::new(GetIngestCursorResponse { cursors: cursors_to_proto(tracks, source), ended }))
    }
}

/// Messages of an upload that are on their way into the database at once. The next ones are let in meanwhile, so that one
/// sender alone can fill a transaction.
const MAX_IN_FLIGHT: usize = 16;

/// Their bytes, so that one upload does not take the room of all.
const MAX_IN_FLIGHT_BYTES: usize = 4 << 20;

/// One upload: takes its messages one after the other and gives their receipts in the same order.
struct Upload {
    services: Services,
    messages: Streaming<UploadMessage>,
    permits: Option<MessagePermits>,
    /// The session that this stream started last.
    current: Option<SessionId>,
    state: UploadState,
    /// The receipt to give next, once no message is half here: whoever takes it may not come back for long, and until then
    /// nothing is read.
    ready: Option<Result<SessionReceipt>>,
    /// The receipts to come, with the bytes of their messages.
    in_flight: VecDeque<(Receipt, usize)>,
    /// A start or an end, which waits until what came before is committed, and whose receipt what comes after waits for.
    boundary: Option<(IngestEvent, Option<OwnedSemaphorePermit>)>,
    is_at_boundary: bool,
    /// How the upload ends once all receipts are given.
    end: Option<Result<(), Status>>,
}

impl Upload {
    fn new(services: &Services, request: Request<Streaming<UploadMessage>>) -> Self {
        let permits = request.extensions().get::<MessagePermits>().cloned();
        Self {
            services: services.clone(),
            messages: request.into_inner(),
            permits,
            current: None,
            state: UploadState::default(),
            ready: None,
            in_flight: VecDeque::new(),
            boundary: None,
            is_at_boundary: false,
            end: None,
        }
    }

    /// Gives the next receipt once its message is committed. None at the end of the stream, which says nothing about the end
    /// of a session.
    async fn next(&mut self) -> Result<Option<SessionReceipt>, Status> {
        loop {
            let is_arriving = self.is_arriving();
            if !is_arriving && let Some(receipt) = self.ready.take() {
                return Ok(Some(receipt?));
            }
            if self.in_flight.is_empty() && self.ready.is_none() {
                self.is_at_boundary = false;
                if let Some((event, permit)) = self.boundary.take() {
                    self.is_at_boundary = true;
                    self.submit(event, permit);
                } else if let Some(end) = self.end.take() {
                    return end.map(|()| None);
                }
            }
            let takes_more = self.takes_more();
            let drain = self.services.drain.clone();
            tokio::select! {
                biased;
                receipt = oldest(&mut self.in_flight), if self.ready.is_none() => {
                    self.in_flight.pop_front();
                    // Its writer is gone only if it broke down.
                    self.ready = Some(receipt.unwrap_or(Err(Error::Internal)));
                }
                () = drain.cancelled(), if takes_more => self.end = Some(Err(Error::Draining.into())),
                message = self.messages.message(), if takes_more || is_arriving => self.take(message),
            }
        }
    }

    fn is_arriving(&self) -> bool {
        self.end.is_none() && self.permits.as_ref().is_some_and(MessagePermits::is_arriving)
    }

    fn takes_more(&self) -> bool {
        let bytes: usize = self.in_flight.iter().map(|(_, bytes)| bytes).sum();
        let is_full = self.in_flight.len() >= MAX_IN_FLIGHT || bytes >= MAX_IN_FLIGHT_BYTES;
        !is_full && !self.is_at_boundary && self.boundary.is_none() && self.end.is_none()
    }

    fn take(&mut self, message: Result<Option<UploadMessage>, Status>) {
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return self.end = Some(Ok(())),
            Err(status) => return self.end = Some(Err(status)),
        };
        let permit = self.permits.as_ref().and_then(|permits| permits.take(|| prost::Message::encoded_len(&message)));
        match parse_event(
            message,
            self.current,
            (&self.services.limits, &self.services.redaction),
            self.services.store.now(),
        ) {
            Err(error) => self.end = Some(Err(error.into())),
            Ok(event @ IngestEvent::Batch(_)) => self.submit(event, permit),
            Ok(event) => {
                if let IngestEvent::Start(start) = &event {
                    self.current = Some(start.id);
                }
                self.boundary = Some((event, permit));
            }
        }
    }

    fn submit(&mut self, event: IngestEvent, permit: Option<OwnedSemaphorePermit>) {
        let bytes = permit.as_ref().map_or(0, |permit| permit.num_permits() * Intake::UNIT_BYTES);
        let receipt = self.services.writer.submit(event, permit, &self.state);
        self.in_flight.push_back((receipt, bytes));
    }
}

/// The receipt that is due first. Never comes where none is.
async fn oldest(in_flight: &mut VecDeque<(Receipt, usize)>) -> Result<Result<SessionReceipt>, RecvError> {
    match in_flight.front_mut() {
        Some((receipt, _)) => receipt.await,
        None => std::future::pending().await,
    }
}
