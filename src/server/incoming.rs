//! Connections: as many as may be open at once, and none that never says anything.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// How long a peer may take to say its preface. Nothing else guards against peers that connect and say nothing: HTTP/2
/// keepalive begins only after the handshake, and shutting down waits for it.
const PREFACE_WITHIN: Duration = Duration::from_secs(10);

/// Bytes of the preface (RFC 9113 §3.4).
const PREFACE_BYTES: usize = 24;

/// How long to go on reading, after the last word, from a peer that is still sending: a socket that is closed with unread
/// bytes in it resets the connection, and the peer never sees the status that it was sent.
const LINGER_FOR: Duration = Duration::from_secs(1);

/// How long to wait when no connection can be accepted, for want of file descriptors for example.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Accepts connections, `limit` at once; more wait in the listener's queue.
pub(super) fn accept(listener: TcpListener, limit: usize) -> impl Stream<Item = io::Result<Connection>> {
    let permits = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
    futures_util::stream::unfold((listener, permits), async |(listener, permits)| {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return None };
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Receipts are small and must not wait for more.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "nodelay not set");
                    }
                    let silent = Some(Box::pin(sleep(PREFACE_WITHIN)));
                    let connection = Connection { stream, silent, received: 0, lingering: None, _permit: permit };
                    return Some((Ok(connection), (listener, permits)));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    sleep(ACCEPT_AGAIN_AFTER).await;
                }
            }
        }
    })
}

/// One connection.
pub(super) struct Connection {
    stream: TcpStream,
    /// Runs until the preface is here.
    silent: Option<Pin<Box<Sleep>>>,
    /// Bytes of the preface that are here.
    received: usize,
    /// Runs from the last word on.
    lingering: Option<Pin<Box<Sleep>>>,
    /// Given back when the connection ends.
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Ready(read) => {
                this.received = (this.received + buffer.filled().len() - before).min(PREFACE_BYTES);
                if this.received == PREFACE_BYTES {
                    this.silent = None;
                }
                Poll::Ready(read)
            }
            Poll::Pending => {
                let Some(silent) = &mut this.silent else { return Poll::Pending };
                ready!(silent.as_mut().poll(cx));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer said nothing")))
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        let lingering = this.lingering.get_or_insert_with(|| Box::pin(sleep(LINGER_FOR)));
        let mut bytes = [0; 8 << 10];
        loop {
            if lingering.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                // The peer has said its last word too, or is gone.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
