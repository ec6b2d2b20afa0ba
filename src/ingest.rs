//! Recording: what happens to the messages of an upload between the stream and the database.

mod intake;
mod lane;
mod receipts;
mod room;
mod writer;

pub use intake::{Intake, IntakeBody, MessagePermits};
pub use lane::UploadState;
pub use receipts::Receipts;
pub use writer::{Receipt, Writer};
