//! The gRPC services, one file each: parse, call, reply, and nothing else.

mod analytics;
mod codec;
mod ingest;
mod playback;
mod retention;
mod session;
mod user;

pub(crate) use ingest::IngestServiceServer;
pub(crate) use playback::PlaybackServiceServer;

use std::sync::Arc;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    changes::Changes, config::Limits, convert::Redaction, ingest::Writer, model::RetentionPolicy, store::Store,
};

/// What the services work with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) store: Store,
    pub(crate) writer: Writer,
    pub(crate) changes: Arc<Changes>,
    pub(crate) limits: Limits,
    pub(crate) redaction: Arc<Redaction>,
    pub(crate) retention: RetentionPolicy,
    /// What is under way and must not be cut in half: shutting down waits for it.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the service shuts down: streams end.
    pub(crate) drain: CancellationToken,
}
