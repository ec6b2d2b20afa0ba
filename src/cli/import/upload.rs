//! Sends messages over StreamActions with many under way at once, keeps each until its receipt has come, and sends again what
//! has none when the stream breaks. That is safe: the service knows what it has stored.

use std::{
    collections::{HashSet, VecDeque},
    pin::Pin,
};

use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};

use super::stored::{Conflict, Cursors, Piece, Sorting};
use crate::{
    cli::{
        Failure,
        client::{Patience, Service},
    },
    proto::{
        GetIngestCursorRequest, SessionReceipt, StreamActionsRequest, ingest_service_client::IngestServiceClient,
        stream_actions_request::Event,
    },
};

/// How many messages may be without a receipt, so that the way there and back does not limit the speed.
const WINDOW: usize = 32;

/// A message, and where it is its session's first, how far the session's tracks are stored.
type LookedUp = Result<(StreamActionsRequest, Option<Cursors>), String>;

/// One upload.
pub(super) struct Upload {
    client: IngestServiceClient<Channel>,
    patience: Patience,
    /// What is to be sent.
    messages: Pin<Box<dyn Stream<Item = LookedUp> + Send>>,
    /// Whether there is no more to be sent.
    over: bool,
    /// What may be sent when.
    sorting: Sorting,
    /// Sent, oldest first, and without a receipt.
    unacknowledged: VecDeque<Piece>,
}

/// Why a stream ended early.
enum Broken {
    /// It may pass.
    Stream(Status),
    /// It does not.
    ForGood(String),
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Self::Stream(status)
    }
}

impl Upload {
    pub(super) fn new(service: &Service, messages: mpsc::Receiver<StreamActionsRequest>) -> Self {
        let client = IngestServiceClient::new(service.channel.clone());
        Self {
            client: client.clone(),
            patience: service.patience(),
            messages: look_up_ahead(service.clone(), client, messages),
            over: false,
            sorting: Sorting::default(),
            unacknowledged: VecDeque::new(),
        }
    }

    /// Sends all messages, until each has its receipt. `tell` is told of trouble that may pass. Gives the sessions that were
    /// given up, because something else is stored of them.
    pub(super) async fn run(
        mut self,
        mut take: impl FnMut(SessionReceipt),
        tell: impl Fn(&str),
    ) -> Result<Vec<Conflict>, Failure> {
        loop {
            let reason = match self.stream(&mut take).await {
                Ok(()) => return Ok(self.sorting.into_conflicts()),
                Err(Broken::ForGood(reason)) => reason,
                Err(Broken::Stream(status)) => match self.patience.wait(&status, &tell).await {
                    Ok(()) => continue,
                    Err(reason) => reason,
                },
            };
            return Err(self.failure(&reason));
        }
    }

    /// Sends over one stream, first what was sent before and has no receipt.
    async fn stream(&mut self, take: &mut impl FnMut(SessionReceipt)) -> Result<(), Broken> {
        let (sender, outgoing) = mpsc::channel(WINDOW);
        let sorting = &self.sorting;
        self.unacknowledged.retain(|piece| !sorting.is_given_up(&piece.message.session_id));
        for piece in &self.unacknowledged {
            // There is room: no more than the window is unacknowledged. Whether it arrives, the receipts say.
            let _ = sender.try_send(piece.message.clone());
        }
        let mut receipts = self.client.stream_actions(ReceiverStream::new(outgoing)).await?.into_inner();
        loop {
            while self.unacknowledged.len() < WINDOW
                && let Some(piece) = self.sorting.next()
            {
                let _ = sender.try_send(piece.message.clone());
                self.unacknowledged.push_back(piece);
            }
            let waits = !self.sorting.is_empty();
            if self.over && !waits && self.unacknowledged.is_empty() {
                break;
            }
            let has_room = !self.over && !waits && self.unacknowledged.len() < WINDOW;
            tokio::select! {
                biased;
                response = receipts.message() => {
                    let Some(response) = response? else {
                        return Err(Status::unavailable("the service closed the stream").into());
                    };
                    self.patience.progress();
                    let receipt = response.receipt.unwrap_or_default();
                    if let Some(piece) = self.unacknowledged.pop_front() {
                        self.sorting.receive(&piece, &receipt);
                    }
                    take(receipt);
                }
                looked_up = self.messages.next(), if has_room => match looked_up {
                    Some(Ok((message, stored))) => self.sorting.take(message, stored),
                    Some(Err(reason)) => return Err(Broken::ForGood(reason)),
                    None => {
                        self.over = true;
                        self.sorting.finish();
                    }
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
        let Some(Piece { message, .. }) = self.unacknowledged.front() else { return reason.into() };
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

/// Asks of each session, when its first message comes, what is stored of it. Many are asked for at once, so that recordings of
/// many short sessions do not wait for each.
fn look_up_ahead(
    service: Service,
    client: IngestServiceClient<Channel>,
    messages: mpsc::Receiver<StreamActionsRequest>,
) -> Pin<Box<dyn Stream<Item = LookedUp> + Send>> {
    let mut seen = HashSet::new();
    let look_up = move |message: StreamActionsRequest| {
        let is_first = seen.insert(message.session_id.clone());
        let (client, patience) = (client.clone(), service.patience());
        async move {
            if !is_first {
                return Ok((message, None));
            }
            let cursors = look_up(client, patience, &message.session_id).await?;
            Ok((message, Some(cursors)))
        }
    };
    ReceiverStream::new(messages).map(look_up).buffered(WINDOW).boxed()
}

/// How far the session's tracks are stored. Nothing where there is no such session.
async fn look_up(
    mut client: IngestServiceClient<Channel>,
    mut patience: Patience,
    session_id: &str,
) -> Result<Cursors, String> {
    loop {
        let request = GetIngestCursorRequest { session_id: session_id.to_owned(), source: String::new() };
        match client.get_ingest_cursor(request).await {
            Ok(response) => {
                let cursors = response.into_inner().cursors.into_iter();
                return Ok(cursors.map(|cursor| (cursor.source, cursor.committed_seq)).collect());
            }
            // An erased one is refused when its messages come.
            Err(status) if status.code() == Code::NotFound => return Ok(Cursors::new()),
            // The upload tells of it: it uses the same connection.
            Err(status) => {
                patience.wait(&status, |_| {}).await.map_err(|reason| format!("session {session_id}: {reason}"))?;
            }
        }
    }
}
