//! From protobuf to the model and back, and all validation of requests: every violation names its field.

mod action;
mod json;
mod playback;
mod reply;
mod request;
mod token;
mod upload;

pub use playback::{PlaybackMessage, PlayedPage};
pub use reply::{cursors_to_proto, receipt_to_proto, session_to_proto, user_to_proto};
pub use request::{
    AttributeChanges, page_size, parse_cursor_request, parse_event, parse_play, parse_session_filter, parse_session_id,
    parse_update_session, parse_user, parse_user_email, parse_user_id,
};
pub use token::{PageToken, Scope};
pub use upload::{UploadAction, UploadBatch, UploadEvent, UploadMessage};
