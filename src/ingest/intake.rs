//! Bounds the bytes of all messages together: before a message's bytes are let through to be buffered and decoded, a permit
//! for all of them is taken. Not reading is what holds a sender back: its HTTP/2 window closes.
//!
//! A message is let in whole or not at all, so that uploads that have begun can always be finished, and a sender that has
//! nothing to say holds nothing. Whoever begins a message and does not go on is given up, soon where others wait for its
//! room; and small messages have room of their own, so that large ones that come slowly do not hold them up. So have
//! requests that are no uploads, which are smaller still, and must be complete in time.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Sleep, sleep},
};
use tonic::Status;

use super::room::{Arriving, Entering, Room};
use crate::error::Error;

/// Messages of up to this many bytes have room of their own.
const SMALL_BYTES: usize = 64 << 10;

/// The same of requests that are no uploads: nearly all of them.
const SMALL_REQUEST_BYTES: usize = 16 << 10;

/// The part of all room that is for small messages.
const SMALL_SHARE: u32 = 4;

/// The part that requests have which are no uploads, half of it for small ones.
const REQUEST_SHARE: u32 = 16;

/// Bytes of the gRPC header before each message: a flag that says whether it is compressed, and its length.
/// See <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.
const HEADER_BYTES: usize = 5;

/// The bytes that all requests of the process share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Intake {
    small: Arc<Room>,
    large: Arc<Room>,
    /// Of requests that are no uploads.
    small_requests: Arc<Room>,
    large_requests: Arc<Room>,
    max_message_bytes: usize,
    stall_timeout: Duration,
}

impl Intake {
    /// Bytes that the message of a request may have which is no upload.
    pub const REQUEST_BYTES: usize = 256 << 10;

    /// Permits are counted in units of this many bytes.
    pub const UNIT_BYTES: usize = 1024;

    /// Makes an intake for this many MiB of messages at once. `stall_timeout` is how long a message may take to arrive
    /// once it has been let in.
    #[must_use]
    pub fn new(capacity_mib: u32, max_message_bytes: usize, stall_timeout: Duration) -> Self {
        let capacity_units = capacity_mib.saturating_mul(1024);
        let small_units = capacity_units / SMALL_SHARE;
        let request_units = capacity_units / REQUEST_SHARE;
        let large_units = capacity_units - small_units - request_units;
        let (small, large) = (Room::new(small_units), Room::new(large_units));
        let (small_requests, large_requests) = (Room::new(request_units / 2), Room::new(request_units / 2));
        Self { small, large, small_requests, large_requests, max_message_bytes, stall_timeout }
    }

    fn room_for(&self, is_upload: bool, bytes: usize) -> &Arc<Room> {
        match (is_upload, bytes) {
            (true, ..=SMALL_BYTES) => &self.small,
            (true, _) => &self.large,
            (false, ..=SMALL_REQUEST_BYTES) => &self.small_requests,
            (false, _) => &self.large_requests,
        }
    }

    /// Bytes that a message may have.
    #[must_use]
    pub fn limit_bytes(&self, is_upload: bool) -> usize {
        if is_upload { self.max_message_bytes } else { self.max_message_bytes.min(Self::REQUEST_BYTES) }
    }

    /// Puts the intake before the body of an upload. Its handler takes the permits from the second part.
    pub fn admit<B>(&self, body: B) -> (IntakeBody<B>, MessagePermits) {
        self.put_before(body, true, None)
    }

    /// The same for a request that is no upload. Whoever answers it keeps the permits until then. With `is_limited`, all of it
    /// must be there in time, and not only what has begun.
    pub fn admit_request<B>(&self, body: B, is_limited: bool) -> (IntakeBody<B>, MessagePermits) {
        self.put_before(body, false, is_limited.then(|| Box::pin(sleep(self.stall_timeout))))
    }

    fn put_before<B>(
        &self,
        body: B,
        is_upload: bool,
        deadline: Option<Pin<Box<Sleep>>>,
    ) -> (IntakeBody<B>, MessagePermits) {
        let permits = MessagePermits::default();
        let body = IntakeBody {
            inner: body,
            held: Bytes::new(),
            phase: Phase::Header { bytes: [0; HEADER_BYTES], have: 0 },
            entering: None,
            arriving: None,
            intake: self.clone(),
            is_upload,
            deadline,
            permits: permits.clone(),
        };
        (body, permits)
    }
}

/// The permits of the messages that were let in and not taken out yet, oldest first.
#[derive(Clone, Debug, Default)]
pub struct MessagePermits(Arc<Admissions>);

#[derive(Debug, Default)]
struct Admissions {
    admitted: Mutex<VecDeque<Admitted>>,
    /// Whether a message has begun and is not complete.
    is_arriving: AtomicBool,
}

/// The permit of one message.
#[derive(Debug)]
struct Admitted {
    permit: OwnedSemaphorePermit,
    /// It was let in at the largest size that it might have.
    is_compressed: bool,
}

impl MessagePermits {
    /// Takes the permit of the oldest message. `bytes` says how many it has turned out to have, where it was compressed.
    #[must_use]
    pub fn take(&self, bytes: impl FnOnce() -> usize) -> Option<OwnedSemaphorePermit> {
        let Admitted { mut permit, is_compressed } =
            self.0.admitted.lock().unwrap_or_else(PoisonError::into_inner).pop_front()?;
        if is_compressed {
            let surplus = permit.num_permits().saturating_sub(bytes() / Intake::UNIT_BYTES + 1);
            drop(permit.split(surplus));
        }
        Some(permit)
    }

    /// Whether a message has begun and is not complete. It has taken room, or waits for it, and is given up in time only
    /// while somebody reads on.
    #[must_use]
    pub fn is_arriving(&self) -> bool {
        self.0.is_arriving.load(Ordering::Relaxed)
    }

    fn put(&self, permit: OwnedSemaphorePermit, is_compressed: bool) {
        self.0.admitted.lock().unwrap_or_else(PoisonError::into_inner).push_back(Admitted { permit, is_compressed });
    }

    /// Gives all of them back.
    pub fn release(&self) {
        self.0.admitted.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// What the next bytes of the body are.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Of a header, of which so many are known.
    Header { bytes: [u8; HEADER_BYTES], have: usize },
    /// Of a message, of which so many are missing.
    Message { missing: usize },
}

/// The body of a request behind the intake.
#[derive(Debug)]
pub struct IntakeBody<B> {
    inner: B,
    /// Received, and not let through yet.
    held: Bytes,
    phase: Phase,
    entering: Option<Entering>,
    arriving: Option<Arriving>,
    intake: Intake,
    is_upload: bool,
    /// When all of it must be there.
    deadline: Option<Pin<Box<Sleep>>>,
    permits: MessagePermits,
}

impl<B: Body<Data = Bytes> + Unpin> IntakeBody<B> {
    /// Lets through what it may of the bytes held, which are at least one.
    fn poll_admit(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Error>> {
        let missing = match &mut self.phase {
            Phase::Message { missing } => missing,
            Phase::Header { bytes, have } => {
                let taken = (HEADER_BYTES - *have).min(self.held.len());
                let mut header = *bytes;
                header[*have..*have + taken].copy_from_slice(&self.held[..taken]);
                if *have + taken < HEADER_BYTES {
                    self.phase = Phase::Header { bytes: header, have: *have + taken };
                    return Poll::Ready(Ok(self.held.split_to(taken)));
                }
                let [flag, length @ ..] = header;
                let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                let limit_bytes = self.intake.limit_bytes(self.is_upload);
                let reserved = if length > limit_bytes {
                    if !self.is_upload {
                        return Poll::Ready(Err(Error::MessageTooLarge { limit_bytes }));
                    }
                    // Refused by its header.
                    0
                } else if flag == 0 {
                    length
                } else {
                    limit_bytes
                };
                let room = self.intake.room_for(self.is_upload, reserved);
                if !self.is_upload {
                    // Of a stream of requests, which are answered one after the other.
                    self.permits.release();
                }
                let entering = self.entering.get_or_insert_with(|| Entering::new(room));
                let permit = ready!(entering.poll_enter(cx, reserved));
                let room = self.entering.take().map(|entering| Arc::clone(&entering.room));
                if let Some(permit) = permit {
                    self.permits.put(permit, flag != 0);
                }
                let data = self.let_through(taken, length);
                let is_incomplete = matches!(self.phase, Phase::Message { .. });
                self.arriving =
                    room.filter(|_| is_incomplete).map(|room| Arriving::new(&room, self.intake.stall_timeout));
                return Poll::Ready(Ok(data));
            }
        };
        let missing = *missing;
        Poll::Ready(Ok(self.let_through(0, missing)))
    }

    /// Lets through these bytes of a header and what is there of the message.
    fn let_through(&mut self, header: usize, missing: usize) -> Bytes {
        let of_message = missing.min(self.held.len() - header);
        if of_message == missing {
            self.phase = Phase::Header { bytes: [0; HEADER_BYTES], have: 0 };
            self.arriving = None;
        } else {
            self.phase = Phase::Message { missing: missing - of_message };
            if let Some(arriving) = &mut self.arriving {
                arriving.bytes += of_message;
            }
        }
        self.held.split_to(header + of_message)
    }
}

impl<B> Body for IntakeBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let polled = this.poll_admitted(cx);
        let is_arriving = this.entering.is_some() || this.arriving.is_some();
        this.permits.0.is_arriving.store(is_arriving, Ordering::Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        let is_between_messages = matches!(self.phase, Phase::Header { .. });
        self.held.is_empty() && is_between_messages && self.inner.is_end_stream()
    }
}

impl<B> IntakeBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<tonic::codegen::StdError>,
{
    fn poll_admitted(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::codegen::StdError>>> {
        let this = self;
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            this.deadline = None;
            return Poll::Ready(Some(Err(this.stalled())));
        }
        loop {
            if !this.held.is_empty() {
                let admitted = ready!(this.poll_admit(cx));
                let frame = admitted.map(Frame::data).map_err(refusal);
                return Poll::Ready(Some(frame));
            }
            match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => this.held = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(None) => {
                    // tonic takes a header without any of its message for the end.
                    if let Phase::Message { .. } = this.phase {
                        this.phase = Phase::Header { bytes: [0; HEADER_BYTES], have: 0 };
                        return Poll::Ready(Some(Err(Box::new(Status::internal("the stream ends inside a message")))));
                    }
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    // Between two requests of a stream that may stay open. Whoever asks for the next one is done with the last.
                    if !this.is_upload && this.deadline.is_none() && matches!(this.phase, Phase::Header { have: 0, .. })
                    {
                        this.permits.release();
                    }
                    if let Some(arriving) = &mut this.arriving {
                        ready!(arriving.poll_stalled(cx));
                        this.arriving = None;
                        return Poll::Ready(Some(Err(this.stalled())));
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

impl<B> IntakeBody<B> {
    fn stalled(&self) -> tonic::codegen::StdError {
        refusal(Error::UploadStalled { limit_seconds: self.intake.stall_timeout.as_secs() })
    }
}

/// An error of a body that tonic takes for the status that it is: it looks for one in the box, and not in a box in it.
fn refusal(error: Error) -> tonic::codegen::StdError {
    Box::new(Status::from(error))
}

#[cfg(test)]
mod tests;
