//! The tables as sea-orm entities: columns and nothing else.

// The derive wants `pub`; the module keeps them in.
#![allow(unreachable_pub)]

pub(super) mod action;
pub(super) mod compatibility;
pub(super) mod erasure;
pub(super) mod erasure_remain;
pub(super) mod facet;
pub(super) mod facet_day;
pub(super) mod lease;
pub(super) mod retention;
pub(super) mod segment;
pub(super) mod segment_file;
pub(super) mod session;
pub(super) mod session_facet;
pub(super) mod tombstone;
pub(super) mod track;
pub(super) mod user;
