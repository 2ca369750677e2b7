//! The collector of the vLLM gateway kit: receives what Kong's `http-log` sends and keeps every conversation.
//!
//! The modules stand in the order in which an entry passes them:
//! [`decode`] (bytes to entries) → [`extract`] (what an entry means: a [`call::Call`]).
//! A later stage never calls an earlier one.

pub mod call;
pub mod decode;
pub mod extract;
