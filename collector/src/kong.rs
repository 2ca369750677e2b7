//! Kong, through its Admin API.
//!
//! [`settings`] are what an operator wants, [`wanted`] makes the entities of Kong of them, [`state`] reads those that are there,
//! [`plan`] compares the two and says the smallest change, [`apply`] carries it out. [`ways`] knows what leads to the model server
//! besides, [`batch`] how many log entries fit into a request, [`people`] keeps users and their keys, [`models`] model servers,
//! [`queue`] is about fair shares. All of it talks through
//! [`admin`]. Secrets reach Kong in bodies of requests only, and no message repeats them.

#![allow(clippy::indexing_slicing, reason = "only JSON values are indexed here, by name, which gives null where there is none")]

pub mod admin;
pub mod apply;
pub mod batch;
pub mod entities;
pub mod export;
pub mod failure;
pub mod models;
pub mod people;
pub mod plan;
pub mod queue;
pub mod server;
pub mod settings;
pub mod state;
mod usage_page;
pub mod wanted;
pub mod ways;
