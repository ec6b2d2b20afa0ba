//! From protobuf to the model and back, and all validation of requests: every violation names its field.

mod action;
mod analytics;
mod filter;
mod playback;
mod redact;
mod reply;
mod request;
mod retention;
mod token;
mod upload;

pub use analytics::{
    action_counts_to_proto, error_frequency_to_proto, funnel_to_proto, parse_count_actions, parse_error_frequency,
    parse_funnel, parse_list_transitions, parse_session_durations, session_durations_to_proto, transitions_to_proto,
};
pub use filter::{MAX_TARGET_BYTES, parse_session_filter};
pub use playback::{PlaybackMessage, PlayedPage};
pub use redact::{InvalidRule, Redaction, RedactionRule};
pub use reply::{
    cursors_to_proto, erasure_to_proto, found_action_to_proto, found_session_to_proto, receipt_to_proto,
    session_to_proto, user_to_proto,
};
pub use request::{
    SessionChanges, action_place_to_text, page_size, parse_cursor_request, parse_event, parse_list_actions,
    parse_list_sessions, parse_play, parse_session_id, parse_update_session, parse_user, parse_user_email,
    parse_user_id, place_to_text,
};
pub use retention::{retention_report_to_proto, storage_stats_to_proto};
pub use token::{PageToken, Scope};
pub use upload::{UploadAction, UploadBatch, UploadEvent, UploadMessage};
