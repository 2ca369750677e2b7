//! The collector from outside: over HTTP, on a real PostgreSQL, with what a real Kong sent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod commands;
mod connect;
mod content;
mod conversations;
mod erase;
mod feed;
mod import;
mod metrics;
mod privacy;
mod quota_command;
mod quota_windows;
mod quotas;
mod reasons;
mod receive;
mod refused;
mod report;
mod retention;
mod roles;
mod rows;
mod search;
mod sync;
mod teams;
mod upkeep;
mod usage;
mod webhook;
