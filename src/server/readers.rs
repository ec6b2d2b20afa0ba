//! Who plays a session and does not read: what is ready for such a client takes memory until it comes back. It is bounded, and
//! given up in time. The connection goes on, and the playback can be taken up again by its last cursor.
//!
//! The transport does not poll a body for as long as its peer lets nothing be sent, so that no body can tell by itself that it
//! is not read. It notes when it has given something away and was not asked for more since; somebody else looks.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::{Status, body::Body, codegen::StdError};

use crate::error::Error;

/// Bytes that are given away at once. The transport keeps what its peer does not let it send, whatever its size.
const FRAME_BYTES: usize = 32 << 10;

/// How often somebody looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whoever has not read for this long may be given up, where there are many.
const UNREAD_AFTER: Duration = Duration::from_secs(2);

/// Playbacks that may be unread at once. Each has two pages, of some 256 KiB, and one that was made a message.
const MAX_UNREAD: usize = 128;

/// All playbacks under way.
#[derive(Debug)]
pub(super) struct Readers {
    all: Mutex<Vec<Weak<Reading>>>,
    /// How long a client may read nothing.
    patience: Duration,
}

impl Readers {
    pub(super) fn new(patience: Duration) -> Arc<Self> {
        Arc::new(Self { all: Mutex::default(), patience })
    }

    /// Puts itself between a playback and its reader.
    pub(super) fn watch(&self, body: Body) -> ReadBody {
        let state = State { inner: Some(body), held: Bytes::new(), given_at: None, is_given_up: false };
        let reading = Arc::new(Reading { state: Mutex::new(state), patience: self.patience });
        lock(&self.all).push(Arc::downgrade(&reading));
        ReadBody(reading)
    }

    /// Gives up on those that are not read, for ever.
    pub(super) async fn keep_watch(&self) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.look();
        }
    }

    fn look(&self) {
        let now = Instant::now();
        let mut unread = Vec::new();
        lock(&self.all).retain(|reading| {
            let Some(reading) = reading.upgrade() else { return false };
            let since = lock(&reading.state).unread_since();
            unread.extend(
                since.filter(|since| now - *since >= UNREAD_AFTER.min(self.patience)).map(|since| (since, reading)),
            );
            true
        });
        // The longest first.
        unread.sort_by_key(|(since, _)| *since);
        let surplus = unread.len().saturating_sub(MAX_UNREAD);
        let mut given_up = 0;
        for (place, (since, reading)) in unread.into_iter().enumerate() {
            if place < surplus || now - since >= self.patience {
                given_up += usize::from(reading.give_up(since));
            }
        }
        if given_up > 0 {
            tracing::info!(playbacks = given_up, "playbacks that nobody reads were given up");
        }
    }
}

/// A playback and its reader.
#[derive(Debug)]
struct Reading {
    state: Mutex<State>,
    patience: Duration,
}

#[derive(Debug)]
struct State {
    /// None when it is over, or given up.
    inner: Option<Body>,
    /// Ready, and not given away yet.
    held: Bytes,
    /// When something was given away, if no more was asked for since.
    given_at: Option<Instant>,
    is_given_up: bool,
}

impl State {
    fn unread_since(&self) -> Option<Instant> {
        self.given_at.filter(|_| self.inner.is_some())
    }
}

impl Reading {
    /// Lets go of all that is ready, unless something was read meanwhile. Gives whether it has.
    fn give_up(&self, since: Instant) -> bool {
        let mut state = lock(&self.state);
        if state.unread_since() != Some(since) {
            return false;
        }
        state.is_given_up = true;
        state.held = Bytes::new();
        let inner = state.inner.take();
        drop(state);
        drop(inner);
        true
    }
}

/// The body of a playback.
#[derive(Debug)]
pub(super) struct ReadBody(Arc<Reading>);

impl http_body::Body for ReadBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let mut state = lock(&self.0.state);
        state.given_at = None;
        if std::mem::take(&mut state.is_given_up) {
            let mut trailers = HeaderMap::new();
            let limit_seconds = self.0.patience.as_secs();
            Status::from(Error::PlaybackStalled { limit_seconds }).add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if state.held.is_empty() {
            let Some(inner) = &mut state.inner else { return Poll::Ready(None) };
            match std::task::ready!(Pin::new(inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => state.held = data,
                    Err(trailers) => {
                        state.inner = None;
                        return Poll::Ready(Some(Ok(trailers)));
                    }
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => {
                    state.inner = None;
                    return Poll::Ready(None);
                }
            }
        }
        let length = state.held.len().min(FRAME_BYTES);
        let data = state.held.split_to(length);
        state.given_at = Some(Instant::now());
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        let state = lock(&self.0.state);
        let is_over = state.inner.as_ref().is_none_or(http_body::Body::is_end_stream);
        is_over && state.held.is_empty() && !state.is_given_up
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::sync::mpsc;

    use http_body::Body as _;

    use super::*;

    const PATIENCE: Duration = Duration::from_mins(1);

    /// A body of what is sent to it.
    struct Sent(mpsc::UnboundedReceiver<Bytes>);

    impl http_body::Body for Sent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(cx).map(|data| data.map(|data| Ok(Frame::data(data))))
        }
    }

    fn playback(readers: &Readers) -> (mpsc::UnboundedSender<Bytes>, ReadBody) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (sender, readers.watch(Body::new(Sent(receiver))))
    }

    async fn read(body: &mut ReadBody) -> Option<Frame<Bytes>> {
        poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await.map(|frame| frame.expect("no error"))
    }

    fn bytes(frame: Option<Frame<Bytes>>) -> usize {
        frame.and_then(|frame| frame.into_data().ok()).map_or(0, |data| data.len())
    }

    #[tokio::test(start_paused = true)]
    async fn a_playback_that_nobody_reads_is_let_go_and_says_so_when_somebody_does() {
        let readers = Readers::new(PATIENCE);
        let (sender, mut body) = playback(&readers);
        sender.send(Bytes::from(vec![7; FRAME_BYTES + 1])).expect("it is read");
        assert_eq!(bytes(read(&mut body).await), FRAME_BYTES);
        tokio::time::advance(PATIENCE.saturating_sub(Duration::from_millis(1))).await;
        readers.look();
        assert!(!sender.is_closed());
        assert_eq!(bytes(read(&mut body).await), 1, "the rest is there");
        tokio::time::advance(PATIENCE).await;
        readers.look();
        assert!(sender.is_closed(), "what makes it is gone");
        assert!(!body.is_end_stream());
        let trailers = read(&mut body).await.and_then(|frame| frame.into_trailers().ok()).expect("trailers");
        let status = Status::from_header_map(&trailers).expect("a status");
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        assert!(read(&mut body).await.is_none() && body.is_end_stream());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_waits_for_more_is_not_given_up() {
        let readers = Readers::new(PATIENCE);
        let (sender, mut body) = playback(&readers);
        sender.send(Bytes::from_static(b"page")).expect("it is read");
        assert_eq!(bytes(read(&mut body).await), 4);
        let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx).is_pending())).await;
        assert!(polled);
        tokio::time::advance(10 * PATIENCE).await;
        readers.look();
        sender.send(Bytes::from_static(b"page")).expect("it is there still");
        assert_eq!(bytes(read(&mut body).await), 4);
        drop(body);
        readers.look();
        assert!(lock(&readers.all).is_empty(), "nothing is left of it");
    }

    #[tokio::test(start_paused = true)]
    async fn of_too_many_that_nobody_reads_those_that_were_read_last_stay() {
        let readers = Readers::new(PATIENCE);
        let mut playbacks = Vec::new();
        for _ in 0..MAX_UNREAD + 3 {
            let (sender, mut body) = playback(&readers);
            sender.send(Bytes::from_static(b"page")).expect("it is read");
            assert_eq!(bytes(read(&mut body).await), 4);
            playbacks.push((sender, body));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        readers.look();
        assert!(playbacks.iter().all(|(sender, _)| !sender.is_closed()), "they may be read any moment");
        tokio::time::advance(UNREAD_AFTER).await;
        readers.look();
        let gone: Vec<_> = playbacks.iter().map(|(sender, _)| sender.is_closed()).collect();
        assert!(gone[..3].iter().all(|gone| *gone) && gone[3..].iter().all(|gone| !gone));
    }
}
