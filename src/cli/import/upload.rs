//! Sends messages over StreamActions with many under way at once, keeps each until its receipt has come, and sends again what
//! has none when the stream breaks. That is safe: the service knows what it has stored.

use std::collections::VecDeque;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

use crate::{
    cli::{
        Failure,
        client::{Patience, Service},
    },
    proto::{
        SessionReceipt, StreamActionsRequest, ingest_service_client::IngestServiceClient, stream_actions_request::Event,
    },
};

/// How many messages may be without a receipt, so that the way there and back does not limit the speed.
const WINDOW: usize = 32;

/// One upload.
pub(super) struct Upload {
    client: IngestServiceClient<Channel>,
    patience: Patience,
    /// What is to be sent.
    messages: mpsc::Receiver<StreamActionsRequest>,
    /// Whether there is no more to be sent.
    over: bool,
    /// Sent, oldest first, and without a receipt.
    unacknowledged: VecDeque<StreamActionsRequest>,
}

impl Upload {
    pub(super) fn new(service: &Service, messages: mpsc::Receiver<StreamActionsRequest>) -> Self {
        Self {
            client: IngestServiceClient::new(service.channel.clone()),
            patience: service.patience(),
            messages,
            over: false,
            unacknowledged: VecDeque::new(),
        }
    }

    /// Sends all messages, until each has its receipt. `tell` is told of trouble that may pass.
    pub(super) async fn run(
        mut self,
        mut take: impl FnMut(SessionReceipt),
        tell: impl Fn(&str),
    ) -> Result<(), Failure> {
        loop {
            let Err(status) = self.stream(&mut take).await else { return Ok(()) };
            if let Err(reason) = self.patience.wait(&status, &tell).await {
                return Err(self.failure(&reason));
            }
        }
    }

    /// Sends over one stream, first what was sent before and has no receipt.
    async fn stream(&mut self, take: &mut impl FnMut(SessionReceipt)) -> Result<(), Status> {
        let (sender, outgoing) = mpsc::channel(WINDOW);
        for message in &self.unacknowledged {
            // There is room: no more than the window is unacknowledged. Whether it arrives, the receipts say.
            let _ = sender.try_send(message.clone());
        }
        let mut receipts = self.client.stream_actions(ReceiverStream::new(outgoing)).await?.into_inner();
        while !(self.over && self.unacknowledged.is_empty()) {
            let has_room = !self.over && self.unacknowledged.len() < WINDOW;
            tokio::select! {
                biased;
                response = receipts.message() => {
                    let Some(response) = response? else {
                        return Err(Status::unavailable("the service closed the stream"));
                    };
                    self.unacknowledged.pop_front();
                    self.patience.progress();
                    response.receipt.into_iter().for_each(&mut *take);
                }
                message = self.messages.recv(), if has_room => match message {
                    Some(message) => {
                        let _ = sender.try_send(message.clone());
                        self.unacknowledged.push_back(message);
                    }
                    None => self.over = true,
                },
            }
        }
        drop(sender);
        // Everything is stored. This only lets the stream end as streams should.
        let _ = receipts.message().await;
        Ok(())
    }

    /// Says which message could not be stored: receipts come in order, so it is the oldest without one.
    fn failure(&self, reason: &str) -> Failure {
        let Some(message) = self.unacknowledged.front() else { return reason.into() };
        let session = &message.session_id;
        match &message.event {
            Some(Event::Batch(batch)) => {
                let (source, first_seq) = (&batch.source, batch.first_seq);
                format!("session {session}, source {source}, from seq {first_seq}: {reason}").into()
            }
            Some(Event::Start(_)) => format!("start of session {session}: {reason}").into(),
            _ => format!("end of session {session}: {reason}").into(),
        }
    }
}
