//! Bounds the bytes of all uploads together: before a message's bytes are let through to be buffered and decoded, a permit
//! for all of them is taken. Not reading is what holds a sender back: its HTTP/2 window closes.
//!
//! A message is let in whole or not at all, so that uploads that have begun can always be finished, and a sender that has
//! nothing to say holds nothing. Whoever begins a message and does not go on is given up, soon where others wait for its
//! room; and small messages have room of their own, so that large ones that come slowly do not hold them up.

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
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::room::{Arriving, Entering, Room};
use crate::error::Error;

/// Messages of up to this many bytes have room of their own.
const SMALL_BYTES: usize = 64 << 10;

/// The part of all room that is theirs.
const SMALL_SHARE: u32 = 4;

/// Bytes of the gRPC header before each message: a flag that says whether it is compressed, and its length.
/// See <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.
const HEADER_BYTES: usize = 5;

/// The bytes that all uploads of the process share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Intake {
    small: Arc<Room>,
    large: Arc<Room>,
    max_message_bytes: usize,
    stall_timeout: Duration,
}

impl Intake {
    /// Permits are counted in units of this many bytes.
    pub const UNIT_BYTES: usize = 1024;

    /// Makes an intake for this many MiB of messages at once. `stall_timeout` is how long a message may take to arrive
    /// once it has been let in.
    #[must_use]
    pub fn new(capacity_mib: u32, max_message_bytes: usize, stall_timeout: Duration) -> Self {
        let capacity_units = capacity_mib.saturating_mul(1024);
        let small_units = capacity_units / SMALL_SHARE;
        let (small, large) = (Room::new(small_units), Room::new(capacity_units - small_units));
        Self { small, large, max_message_bytes, stall_timeout }
    }

    /// Puts the intake before the body of an upload. Its handler takes the permits from the second part.
    pub fn admit<B>(&self, body: B) -> (IntakeBody<B>, MessagePermits) {
        let permits = MessagePermits::default();
        let body = IntakeBody {
            inner: body,
            held: Bytes::new(),
            phase: Phase::Header { bytes: [0; HEADER_BYTES], have: 0 },
            entering: None,
            arriving: None,
            intake: self.clone(),
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
}

/// What the next bytes of the body are.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Of a header, of which so many are known.
    Header { bytes: [u8; HEADER_BYTES], have: usize },
    /// Of a message, of which so many are missing.
    Message { missing: usize },
}

/// The body of an upload behind the intake.
#[derive(Debug)]
pub struct IntakeBody<B> {
    inner: B,
    /// Received, and not let through yet.
    held: Bytes,
    phase: Phase,
    entering: Option<Entering>,
    arriving: Option<Arriving>,
    intake: Intake,
    permits: MessagePermits,
}

impl<B: Body<Data = Bytes> + Unpin> IntakeBody<B> {
    /// Lets through what it may of the bytes held, which are at least one.
    fn poll_admit(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let missing = match &mut self.phase {
            Phase::Message { missing } => missing,
            Phase::Header { bytes, have } => {
                let taken = (HEADER_BYTES - *have).min(self.held.len());
                let mut header = *bytes;
                header[*have..*have + taken].copy_from_slice(&self.held[..taken]);
                if *have + taken < HEADER_BYTES {
                    self.phase = Phase::Header { bytes: header, have: *have + taken };
                    return Poll::Ready(self.held.split_to(taken));
                }
                let [flag, length @ ..] = header;
                let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                let reserved = if length > self.intake.max_message_bytes {
                    // Refused by its header.
                    0
                } else if flag == 0 {
                    length
                } else {
                    self.intake.max_message_bytes
                };
                let room = if reserved <= SMALL_BYTES { &self.intake.small } else { &self.intake.large };
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
                return Poll::Ready(data);
            }
        };
        let missing = *missing;
        Poll::Ready(self.let_through(0, missing))
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
        loop {
            if !this.held.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(ready!(this.poll_admit(cx))))));
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
                    if let Some(arriving) = &mut this.arriving {
                        ready!(arriving.poll_stalled(cx));
                        this.arriving = None;
                        let limit_seconds = this.intake.stall_timeout.as_secs();
                        let status = Status::from(Error::UploadStalled { limit_seconds });
                        return Poll::Ready(Some(Err(Box::new(status))));
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::{super::room::TICK, *};

    /// A body of these chunks that then says nothing more.
    struct Chunks(VecDeque<Bytes>);

    impl Body for Chunks {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            self.0.pop_front().map_or(Poll::Pending, |chunk| Poll::Ready(Some(Ok(Frame::data(chunk)))))
        }
    }

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(length).expect("short").to_be_bytes());
        bytes.extend(vec![7; length]);
        bytes
    }

    async fn read(body: &mut IntakeBody<Chunks>) -> Option<Bytes> {
        let frame = poll_fn(|cx| Poll::Ready(Pin::new(&mut *body).poll_frame(cx))).await;
        match frame {
            Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
            _ => None,
        }
    }

    #[tokio::test]
    async fn all_bytes_come_through_however_they_are_cut_and_each_message_has_a_permit() {
        let whole: Vec<u8> = [0, 1, 3_000, 5].into_iter().flat_map(message).collect();
        for size in [1, 2, 4, 5, 6, 7, 100, whole.len()] {
            let intake = Intake::new(1, 4_000, Duration::from_mins(1));
            let chunks = whole.chunks(size).map(Bytes::copy_from_slice).collect();
            let (mut body, permits) = intake.admit(Chunks(chunks));
            let mut seen = Vec::new();
            while let Some(data) = read(&mut body).await {
                seen.extend_from_slice(&data);
            }
            assert_eq!(seen, whole, "chunks of {size}");
            let taken: Vec<_> = std::iter::from_fn(|| permits.take(|| usize::MAX)).map(|p| p.num_permits()).collect();
            assert_eq!(taken, [1, 1, 3, 1], "chunks of {size}");
        }
    }

    #[tokio::test]
    async fn a_message_waits_until_those_before_it_are_done_with() {
        // Three quarters of it are for messages of this size.
        let intake = Intake::new(1, 1 << 20, Duration::from_mins(1));
        let chunks = || Chunks([Bytes::from(message(600 << 10))].into());
        let (mut first, first_permits) = intake.admit(chunks());
        let (mut second, second_permits) = intake.admit(chunks());
        assert!(read(&mut first).await.is_some());
        assert!(read(&mut second).await.is_none());
        assert!(!first_permits.is_arriving() && second_permits.is_arriving());
        let permit = first_permits.take(|| 600 << 10);
        assert!(read(&mut second).await.is_none());
        drop(permit);
        assert!(read(&mut second).await.is_some());
        assert!(!second_permits.is_arriving());
        assert!(second_permits.take(|| 600 << 10).is_some());
    }

    #[tokio::test]
    async fn small_messages_do_not_wait_for_large_ones() {
        let intake = Intake::new(1, 1 << 20, Duration::from_mins(1));
        let (mut large, _held) = intake.admit(Chunks([Bytes::from(message(768 << 10))].into()));
        assert!(read(&mut large).await.is_some());
        let (mut small, permits) = intake.admit(Chunks([Bytes::from(message(SMALL_BYTES))].into()));
        assert!(read(&mut small).await.is_some());
        assert!(permits.take(|| 0).is_some());
        let (mut larger, _) = intake.admit(Chunks([Bytes::from(message(SMALL_BYTES + 1))].into()));
        assert!(read(&mut larger).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_stalls_in_the_way_of_others_is_given_up_soon() {
        let intake = Intake::new(1, 1 << 20, Duration::from_mins(10));
        let whole = message(700 << 10);
        let half = || Chunks([Bytes::copy_from_slice(&whole[..350 << 10])].into());
        let (mut stalled, permits) = intake.admit(half());
        assert!(read(&mut stalled).await.is_some());
        tokio::time::timeout(Duration::from_mins(1), poll_fn(|cx| Pin::new(&mut stalled).poll_frame(cx)))
            .await
            .expect_err("it is in nobody's way");
        let (mut waiting, _permits) = intake.admit(half());
        assert!(read(&mut waiting).await.is_none());
        let given_up = tokio::time::timeout(2 * TICK, poll_fn(|cx| Pin::new(&mut stalled).poll_frame(cx))).await;
        given_up.expect("soon").expect("a frame").expect_err("stalled");
        drop((stalled, permits));
        assert!(read(&mut waiting).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_stalls_is_given_up_and_silence_between_messages_is_not() {
        let intake = Intake::new(1, 1 << 20, Duration::from_secs(30));
        let whole = message(100);
        let (mut quiet, _permits) = intake.admit(Chunks([Bytes::from(whole.clone())].into()));
        assert!(read(&mut quiet).await.is_some());
        let (mut stalled, _permits) = intake.admit(Chunks([Bytes::copy_from_slice(&whole[..50])].into()));
        assert!(read(&mut stalled).await.is_some());
        tokio::time::timeout(Duration::from_hours(1), poll_fn(|cx| Pin::new(&mut quiet).poll_frame(cx)))
            .await
            .expect_err("silence is no fault");
        let error = poll_fn(|cx| Pin::new(&mut stalled).poll_frame(cx)).await.expect("a frame").expect_err("stalled");
        let status = error.downcast_ref::<Status>().expect("a status");
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    }
}
