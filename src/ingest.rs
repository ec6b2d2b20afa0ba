//! Recording: what happens to the messages of an upload between the stream and the database.

mod intake;
mod receipts;
mod writer;

pub use intake::{Intake, IntakeBody, MessagePermits};
pub use receipts::Receipts;
pub use writer::Writer;
