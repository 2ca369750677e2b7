//! The gateway from outside: what a client gets, what becomes a row, what vLLM sees. See `gateway_tests::gateway` for what it
//! runs against.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod broken;
mod calls;
mod closed;
mod events;
mod fair_shares;
mod kong;
mod many;
mod metadata;
mod model_commands;
mod models;
mod odd;
mod own_usage;
mod queue;
mod quotas;
mod reading;
mod recordings;
mod refused;
mod sdk;
mod sizes;
mod stored;
mod tls;
mod usage_page;
// Runs last: tests start in alphabetical order, and it waits for all others.
mod zz_secrets;
