//! Equipment of the end-to-end tests: a real PostgreSQL, the collector as a process or in this one, recorded traffic, a
//! gateway with a simulated vLLM behind it.
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

#[cfg(feature = "suite")]
pub mod browser;
#[cfg(feature = "suite")]
pub mod collector;
pub mod dice;
pub mod fixtures;
#[cfg(feature = "suite")]
pub mod gateway;
#[cfg(feature = "demo")]
pub mod generator;
#[cfg(feature = "suite")]
pub mod grafana;
#[cfg(feature = "suite")]
pub mod nodes;
#[cfg(feature = "suite")]
pub mod postgres;
#[cfg(feature = "suite")]
pub mod process;
pub mod vllm;
#[cfg(feature = "demo")]
pub mod week;

#[cfg(all(test, feature = "suite"))]
#[path = "generator/tests.rs"]
mod generator_tests;
