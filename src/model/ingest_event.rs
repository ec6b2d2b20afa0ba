//! The messages of uploads.

use super::{Batch, SessionEnd, SessionStart};

/// One message of an upload.
pub enum IngestEvent {
    /// A session begins.
    Start(SessionStart),
    /// Actions of a session.
    Batch(Batch),
    /// A session is over.
    End(SessionEnd),
}
