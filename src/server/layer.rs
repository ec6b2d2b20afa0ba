//! What every RPC gets: the intake before its uploads, a refusal while the service is not ready, the caller's deadline, a
//! status with details whoever made it, and one line in the log.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Status, body::Body, codegen::StdError};
use tower::{Layer, Service};

use super::readers::Readers;
use crate::{
    error::{Error, complete_status},
    ingest::{Intake, MessagePermits},
};

/// Paths of this service's own RPCs; health and reflection are others'.
const OWN_PATHS: &str = "/reel.v1.";

/// Paths of health and reflection, whose streams would go on for ever.
const STANDARD_PATHS: &str = "/grpc.";

/// Paths of uploads, and of the request that belongs to them.
const INGEST_PATHS: &str = "/reel.v1.IngestService/";

/// Paths of playbacks.
const PLAYBACK_PATHS: &str = "/reel.v1.PlaybackService/";

/// Path of reflection, which has streams of requests that may be left open.
const REFLECTION_PATHS: &str = "/grpc.reflection.";

/// tonic also ends calls at their deadline, with another status. Ours comes this much earlier.
const AHEAD_OF_TONIC: Duration = Duration::from_millis(2);

/// How long a call may go without an answer once the service shuts down: its request may never come.
const ANSWER_AFTER_DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// Makes the layer.
#[derive(Clone)]
pub(super) struct RpcLayer {
    intake: Intake,
    readers: Arc<Readers>,
    ready: Arc<AtomicBool>,
    drain: CancellationToken,
}

impl RpcLayer {
    pub(super) fn new(intake: Intake, readers: Arc<Readers>, ready: Arc<AtomicBool>, drain: CancellationToken) -> Self {
        Self { intake, readers, ready, drain }
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = RpcService<S>;

    fn layer(&self, inner: S) -> RpcService<S> {
        RpcService { inner, layer: self.clone() }
    }
}

/// The layer around a service.
#[derive(Clone)]
pub(super) struct RpcService<S> {
    inner: S,
    layer: RpcLayer,
}

impl<S> Service<Request<Body>> for RpcService<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if path.starts_with(OWN_PATHS) && !is_grpc(request.headers()) {
            let mut refused = Response::new(Body::empty());
            *refused.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Box::pin(async { Ok(refused) });
        }
        let mut line = Line { method: path.to_owned(), begun: Instant::now(), code: None };
        if path.starts_with(OWN_PATHS) && !self.layer.ready.load(Ordering::Acquire) {
            let refused = Status::from(Error::NotReady);
            line.code = Some(refused.code());
            return Box::pin(async { Ok(refused.into_http()) });
        }
        let is_upload = path.starts_with(INGEST_PATHS);
        let limit_bytes = self.layer.intake.limit_bytes(is_upload);
        let readers = path.starts_with(PLAYBACK_PATHS).then(|| Arc::clone(&self.layer.readers));
        let deadline = deadline(request.headers()).and_then(|timeout| line.begun.checked_add(timeout));
        let drained = path.starts_with(STANDARD_PATHS).then(|| Box::pin(self.layer.drain.clone().cancelled_owned()));
        let is_limited = !path.starts_with(REFLECTION_PATHS);
        let (request, permits) = self.admit(request, is_upload, is_limited);
        let responding = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        let drain = self.layer.drain.clone();
        let left_behind = async move {
            drain.cancelled().await;
            sleep(ANSWER_AFTER_DRAIN_WITHIN).await;
        };
        let responding = async {
            responding.await.unwrap_or_else(|_| {
                tracing::error!("a handler broke down");
                Ok(Status::from(Error::Internal).into_http())
            })
        };
        Box::pin(async move {
            let passed = async {
                match deadline {
                    None => std::future::pending().await,
                    Some(deadline) => sleep_until(deadline).await,
                }
            };
            let response = tokio::select! {
                biased;
                response = responding => response,
                () = passed => Ok(Status::from(Error::DeadlineExceeded).into_http()),
                () = left_behind => Ok(Status::from(Error::Draining).into_http()),
            };
            if let Some(permits) = permits.filter(|_| is_limited) {
                permits.release();
            }
            let (mut parts, body) = response?.into_parts();
            let body = match readers {
                Some(readers) => Body::new(readers.watch(body)),
                None => body,
            };
            complete(&mut parts.headers, limit_bytes, &mut line);
            let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
            let body = RpcBody { inner: body, deadline, drained, limit_bytes, line, over: false };
            Ok(Response::from_parts(parts, Body::new(body)))
        })
    }
}

impl<S> RpcService<S> {
    /// Puts the intake before the body of a request. An upload's handler takes the permits itself; of other requests they are
    /// to be kept until they are answered.
    fn admit(
        &self,
        request: Request<Body>,
        is_upload: bool,
        is_limited: bool,
    ) -> (Request<Body>, Option<MessagePermits>) {
        let (mut parts, body) = request.into_parts();
        let (body, permits) = if is_upload {
            let (body, permits) = self.layer.intake.admit(body);
            parts.extensions.insert(permits);
            (body, None)
        } else {
            let (body, permits) = self.layer.intake.admit_request(body, is_limited);
            (body, Some(permits))
        };
        (Request::from_parts(parts, Body::new(body)), permits)
    }
}

/// Whether a request says that it is gRPC's. Others get HTTP's 415, which gRPC asks for and tonic leaves out.
/// See <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.
fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(http::header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    content_type.is_some_and(|content_type| content_type.starts_with(b"application/grpc"))
}

/// The caller's deadline, from its header: up to eight digits and a unit.
/// See <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    };
    Some(timeout.saturating_sub(AHEAD_OF_TONIC))
}

/// Completes the status in headers or trailers, if there is one, and notes its code.
fn complete(headers: &mut HeaderMap<HeaderValue>, limit_bytes: usize, line: &mut Line) {
    let Some(status) = Status::from_header_map(headers) else { return };
    let status = complete_status(status, limit_bytes);
    line.code = Some(status.code());
    if status.code() != Code::Ok {
        for name in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
            headers.remove(name);
        }
        if let Err(error) = status.add_header(headers) {
            tracing::error!(%error, "a status does not fit into headers");
        }
    }
}

/// The body of a response, up to the deadline, with a status that is complete.
struct RpcBody {
    inner: Body,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Completes when the service shuts down, for streams that do not end by themselves then.
    drained: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    limit_bytes: usize,
    line: Line,
    over: bool,
}

impl RpcBody {
    /// Ends the body here, with this error.
    fn cut_off(&mut self, error: Error) -> Frame<Bytes> {
        self.over = true;
        let mut trailers = HeaderMap::new();
        if let Err(error) = Status::from(error).add_header(&mut trailers) {
            tracing::error!(%error, "a status does not fit into headers");
        }
        complete(&mut trailers, self.limit_bytes, &mut self.line);
        Frame::trailers(trailers)
    }
}

impl http_body::Body for RpcBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(cx).is_ready()
            && this.line.code.is_none()
        {
            return Poll::Ready(Some(Ok(this.cut_off(Error::DeadlineExceeded))));
        }
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut this.inner).poll_frame(cx)));
        let Ok(polled) = polled else {
            tracing::error!("a stream broke down");
            return Poll::Ready(Some(Ok(this.cut_off(Error::Internal))));
        };
        let Poll::Ready(frame) = polled else {
            return match &mut this.drained {
                Some(drained) => drained.as_mut().poll(cx).map(|()| Some(Ok(this.cut_off(Error::Draining)))),
                None => Poll::Pending,
            };
        };
        match frame {
            Some(Ok(frame)) => match frame.into_trailers() {
                Ok(mut trailers) => {
                    complete(&mut trailers, this.limit_bytes, &mut this.line);
                    Poll::Ready(Some(Ok(Frame::trailers(trailers))))
                }
                Err(data) => Poll::Ready(Some(Ok(data))),
            },
            Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.inner.is_end_stream()
    }
}

/// The RPC's line in the log, written when everything of it is over.
struct Line {
    method: String,
    begun: Instant,
    code: Option<Code>,
}

impl Drop for Line {
    fn drop(&mut self) {
        // Whoever goes away before the end does not wait for a status.
        let code = self.code.unwrap_or(Code::Cancelled);
        let duration_ms = (self.begun.elapsed().as_secs_f64() * 1e6).round() / 1e3;
        let method = self.method.as_str();
        match code {
            Code::Internal | Code::Unknown | Code::DataLoss => {
                tracing::error!(rpc.method = method, rpc.code = ?code, duration_ms, "rpc");
            }
            // Probes and tools, which come all the time.
            _ if method.starts_with(STANDARD_PATHS) => {
                tracing::debug!(rpc.method = method, rpc.code = ?code, duration_ms, "rpc");
            }
            _ => tracing::info!(rpc.method = method, rpc.code = ?code, duration_ms, "rpc"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        let read = |text: &'static str| {
            deadline(&HeaderMap::from_iter([(
                http::header::HeaderName::from_static("grpc-timeout"),
                HeaderValue::from_static(text),
            )]))
        };
        assert_eq!(read("1S"), Some(Duration::from_millis(998)));
        assert_eq!(read("1n"), Some(Duration::ZERO));
        assert_eq!(read("99999999H"), Some(Duration::from_hours(99_999_999).saturating_sub(AHEAD_OF_TONIC)));
        for wrong in ["", "S", "1", "1x", "-1S", "123456789S", "1.5S"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
