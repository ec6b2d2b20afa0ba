//! Playing back: from the database, page by page, at the speed that was asked for.

mod cursor;
mod pacer;
mod pages;
mod player;
mod request;

pub use cursor::{Cursor, Pass};
pub use player::{PlayEvent, Player};
pub use request::{Begin, PlayRequest};
