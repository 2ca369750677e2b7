//! Dashboards, recording rules and alerts: every query runs against a real Prometheus or a real PostgreSQL.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod alerts;
mod expansion;
mod form;
mod history;
mod prometheus;
mod promql;
mod provisioning;
mod rows;
