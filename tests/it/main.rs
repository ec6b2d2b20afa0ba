//! Everything the service promises, tested from outside through gRPC, each behaviour on SQLite and on PostgreSQL.
//!
//! `tests/run` starts the PostgreSQL and says where it is; without it these tests fail.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::print_stderr
)]
// A test reads top to bottom.
#![allow(clippy::too_many_lines)]

mod group_commit;
mod harness;

mod archive;
mod bad_input;
mod cli;
mod connections;
mod crash;
mod durability;
mod exact;
mod export;
mod faults;
mod import;
mod index;
mod interop;
mod lifecycle;
mod memory;
mod migrations;
mod outage;
mod play;
mod query_plan;
mod random_clients;
mod record;
mod redact;
mod retention;
mod search;
mod senders;
mod serve;
mod sessions;
mod users;
