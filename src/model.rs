//! What Reel is about, as plain types: users, sessions, tracks, actions and receipts.
//!
//! Nothing in here knows protobuf, SQL or gRPC.

mod action;
mod ingest_event;
mod receipt;
mod session;
mod session_id;

pub use action::{
    Action, Batch, BatchAction, ContentDigest, DEFAULT_SOURCE, ERROR_TYPE, LATEST_TIME, Position, REJECTED_TYPE,
    RejectedAction, RejectionReason, StoredAction,
};
pub use ingest_event::IngestEvent;
pub use receipt::{Rejection, SessionReceipt, TrackReceipt};
pub use session::{
    Attributes, DEFAULT_END_REASON, Erased, IDLE_END_REASON, Session, SessionEnd, SessionFilter, SessionStart, Track,
    User,
};
pub use session_id::{NotASessionId, SessionId};
