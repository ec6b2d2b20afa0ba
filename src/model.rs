//! What Reel is about, as plain types: users, sessions, tracks, actions and receipts.
//!
//! Nothing in here knows protobuf, SQL or gRPC.

mod action;
mod analytics;
mod data_condition;
mod evaluation;
mod facets;
mod filter;
mod ingest_event;
mod rage;
mod receipt;
mod retention;
mod search;
mod session;
mod session_id;
mod summary;
mod window;

pub use action::{
    Action, Batch, BatchAction, ContentDigest, DEFAULT_SOURCE, ERROR_TYPE, LATEST_TIME, Position, REJECTED_TYPE,
    RejectedAction, RejectionReason, StoredAction,
};
pub use analytics::{
    ActionCounting, ActionCounts, Dimension, ErrorFrequency, FunnelCounting, FunnelStep, GroupKey, Transition,
    TransitionCounting, Transitions,
};
pub use data_condition::{DataCondition, DataPath, DataStep, DataTest, NotAPath, Scalar};
pub use evaluation::{Evaluation, Verdict};
pub use facets::{FacetCount, FacetDetail, Facets};
pub use filter::{
    ActionMatch, ActionView, AttributeMatch, Between, SequenceStep, SessionFilter, SessionOrder, TargetMatch,
};
pub use ingest_event::IngestEvent;
pub use receipt::{Rejection, SessionReceipt, TrackReceipt};
pub use retention::{
    ArchivePolicy, ArchiveStats, Doubt, ExpiredDay, ExpiryReason, RetentionPolicy, RetentionReport, StorageStats,
    StoredDay, TableBytes,
};
pub use search::{ActionSearch, FoundAction, FoundSession, FoundSessions, SessionPlace, SessionSearch};
pub use session::{
    Attributes, DEFAULT_END_REASON, Erasure, IDLE_END_REASON, Pin, Session, SessionEnd, SessionStart, SessionUpdate,
    Track, User,
};
pub use session_id::{NotASessionId, SessionId};
pub use summary::{DEFINITIONS, LONGEST_PAUSE, Summary, Summing, duration_ms};
pub use window::Window;
