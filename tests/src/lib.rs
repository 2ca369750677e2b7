//! Equipment of the end-to-end tests: a real PostgreSQL, the collector as a process or in this one, recorded traffic.
//!
//! Test equipment fails by panicking: there is nobody else to report to.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

pub mod collector;
pub mod dice;
pub mod fixtures;
pub mod postgres;
pub mod process;
