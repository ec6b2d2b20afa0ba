//! The server: takes a listener, a database and any future as its end, and serves until the end has come and what was under
//! way is done.

mod health;
mod incoming;
mod layer;
mod readers;

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{codec::CompressionEncoding, service::Routes, transport::Server};

use self::{health::Health, layer::RpcLayer, readers::Readers};
use crate::{
    changes::Changes,
    config::{ServiceArgs, Switch},
    index,
    ingest::{Intake, Writer},
    maintenance::maintain,
    proto::{
        DESCRIPTORS, analytics_service_server::AnalyticsServiceServer,
        retention_service_server::RetentionServiceServer, session_service_server::SessionServiceServer,
        user_service_server::UserServiceServer,
    },
    rpc::{IngestServiceServer, PlaybackServiceServer, Services},
    store::{Store, Unfit},
};

/// Why the server gave up.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The database cannot be used.
    #[error(transparent)]
    Database(#[from] Unfit),
    /// The network failed.
    #[error("cannot serve: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// Streams and writes went on for too long after the end was asked for, and were cut off.
    #[error("not everything was done within the drain timeout; what was not acknowledged may not be stored")]
    DrainTimeout,
}

/// Serves until `shutdown` completes, then drains. Before the database is ready, and whenever it is away, health says
/// NOT_SERVING and requests are answered with UNAVAILABLE.
///
/// Boxed, like its end: what is generic or async is compiled where it is used, and the service once is enough.
pub fn run<'a>(
    listener: TcpListener,
    store: Store,
    args: &'a ServiceArgs,
    shutdown: impl Future<Output = ()> + Send + 'a,
) -> BoxFuture<'a, Result<(), ServeError>> {
    boxed(listener, store, args, Box::pin(shutdown))
}

fn boxed<'a>(
    listener: TcpListener,
    store: Store,
    args: &'a ServiceArgs,
    shutdown: BoxFuture<'a, ()>,
) -> BoxFuture<'a, Result<(), ServeError>> {
    Box::pin(serve(listener, store, args, shutdown))
}

async fn serve(
    listener: TcpListener,
    store: Store,
    args: &ServiceArgs,
    shutdown: BoxFuture<'_, ()>,
) -> Result<(), ServeError> {
    let store = store.with_max_session_facets(args.index.max_session_facets);
    let drain = CancellationToken::new();
    let stop = drain.clone().drop_guard();
    let writes = TaskTracker::new();
    let changes = Arc::new(Changes::default());
    let (health, health_service) = Health::new(store.clone()).await;
    let (writers, retention) = (store.writers(args.writers), args.retention.policy());
    let writer = Writer::new(store.clone(), Arc::clone(&changes), args.limits, retention, writers, writes.clone());
    let services = Services {
        store: store.clone(),
        writer,
        changes: Arc::clone(&changes),
        tasks: writes.clone(),
        limits: args.limits,
        redaction: Arc::new(args.redact.iter().cloned().collect()),
        retention,
        drain: drain.clone(),
    };
    let intake = Intake::new(args.ingest_buffer_mib, args.limits.max_message_bytes, args.upload_stall_timeout);
    // Whoever did not know it should read it before it is too late.
    let keep_for = humantime::format_duration(args.retention.retention);
    match &args.retention.archive {
        None => tracing::info!(retention = %keep_for, "sessions are forgotten when they are older; 0s is never"),
        Some(archive) => {
            let after = humantime::format_duration(args.retention.archive_after.unwrap_or(args.retention.retention));
            tracing::info!(%archive, %after, "sessions are archived when they are older");
        }
    }
    let readers = Readers::new(args.playback_stall_timeout);
    let layer = RpcLayer::new(intake, Arc::clone(&readers), health.readiness(), drain.clone());
    let router = builder().layer(layer).add_routes(routes(&services, health_service));
    let incoming = incoming::accept(listener, args.max_connections);
    let serving = router.serve_with_incoming_shutdown(incoming, drain.clone().cancelled_owned());

    let background = async {
        health.prepare(&retention).await?;
        tokio::select! {
            () = health.watch() => {}
            () = readers.keep_watch() => {}
            () = changes.exchange(&store) => {}
            () = maintain(&store, &changes, args.idle_timeout, &retention) => {}
            ((), ()) = async { tokio::join!(index::keep(&store), index::renew(&store)) }, if args.indexer == Switch::On => {}
        }
        std::future::pending().await
    };
    let until_shutdown = async {
        tokio::select! {
            () = shutdown => Ok(()),
            unfit = background => unfit,
        }
    };

    tokio::pin!(serving);
    let outcome: Result<(), Unfit> = tokio::select! {
        served = &mut serving => return Ok(served?),
        outcome = until_shutdown => outcome,
    };
    tracing::info!(timeout_s = args.drain_timeout.as_secs(), "draining");
    health.set_not_serving().await;
    drop(stop);
    writes.close();
    let drained = timeout(args.drain_timeout, async {
        serving.await?;
        writes.wait().await;
        Ok::<_, tonic::transport::Error>(())
    });
    let drained = drained.await;
    outcome?;
    match drained {
        Ok(served) => served?,
        Err(_) => return Err(ServeError::DrainTimeout),
    }
    store.close().await;
    Ok(())
}

/// Streams of a connection at once.
const MAX_STREAMS: u32 = 256;

/// Bytes of a stream that may be on their way, or here and not read.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;

/// The limits of HTTP/2. tonic's own defaults leave the first two open.
fn builder() -> Server {
    Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_local_error_reset_streams(Some(1_024))
        .http2_max_pending_accept_reset_streams(Some(20))
        .http2_max_header_list_size(16 << 10)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        // Room for all of them: uploads that wait to be let in must not shut the window of those that are in.
        .initial_connection_window_size(MAX_STREAMS * STREAM_WINDOW_BYTES)
        .http2_keepalive_interval(Some(Duration::from_mins(1)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
}

fn routes(services: &Services, health: health::HealthService) -> Routes {
    let limit = services.limits.max_message_bytes;
    let request_limit = limit.min(Intake::REQUEST_BYTES);
    macro_rules! configured {
        ($server:ident, $limit:expr) => {
            $server::new(services.clone())
                .max_decoding_message_size($limit)
                .accept_compressed(CompressionEncoding::Zstd)
                .accept_compressed(CompressionEncoding::Gzip)
                .send_compressed(CompressionEncoding::Zstd)
                .send_compressed(CompressionEncoding::Gzip)
        };
    }
    let mut routes = Routes::builder();
    routes
        .add_service(configured!(IngestServiceServer, limit))
        .add_service(configured!(PlaybackServiceServer, request_limit))
        .add_service(configured!(SessionServiceServer, request_limit))
        .add_service(configured!(UserServiceServer, request_limit))
        .add_service(configured!(AnalyticsServiceServer, request_limit))
        .add_service(configured!(RetentionServiceServer, request_limit))
        .add_service(health)
        .add_service(reflection().build_v1().unwrap_or_else(|error| unreachable!("our own descriptors: {error}")))
        .add_service(reflection().build_v1alpha().unwrap_or_else(|error| unreachable!("our own descriptors: {error}")));
    routes.routes()
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // The details of errors, for clients that show them.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}
