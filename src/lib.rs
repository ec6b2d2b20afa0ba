//! Reel records what users do and plays it back. Internal services stream batches of actions to it over gRPC; it keeps
//! them as plain rows in PostgreSQL, or in one embedded SQLite file, finds any session, and streams it back at any speed.
//!
//! Data flows one way: `rpc` → `ingest` / `playback` → `store`.

pub mod archive;
pub mod changes;
pub mod cli;
pub mod config;
pub mod convert;
pub mod error;
pub mod failpoint;
pub mod index;
pub mod ingest;
mod json;
pub mod maintenance;
pub mod model;
pub mod playback;
mod rpc;
pub mod server;
pub mod store;

/// The generated protobuf and gRPC types of `reel.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod proto {
    tonic::include_proto!("reel.v1");

    /// The descriptors of all of it, for reflection.
    pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("reel_descriptor");
}
