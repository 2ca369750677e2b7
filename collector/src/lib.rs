//! The collector of the vLLM gateway kit: receives what Kong's `http-log` sends and keeps every conversation.
//!
//! The modules stand in the order in which an entry passes them: [`receive`] (HTTP, token, limits) → [`decode`] (bytes to
//! entries) → [`extract`] (what an entry means: a [`call::Call`]) → [`store`] (PostgreSQL, the spool) → [`measure`] (metrics).
//! A later stage never calls an earlier one. [`pipeline`] ties them together, [`drain`] brings back what
//! went to disk, [`feed`] copies rows out for years, [`upkeep`] does what is due from time to time, [`notices`] tells a [`webhook`] that limits are nearly used up, [`start`] brings the database up to date, [`page`]
//! shows people what they used, [`server`] starts and stops everything. Beside that way stands [`kong`], which configures Kong for [`commands`].

pub mod config;
pub mod server;
pub mod start;

pub mod receive;

pub mod pipeline;

pub mod decode;

pub mod extract;

pub mod call;

pub mod store;

pub mod page;

pub mod feed;

pub mod drain;
pub mod notices;
pub mod upkeep;

pub mod measure;

pub mod kong;

pub mod certificates;
pub mod webhook;

pub mod commands;
pub mod counted;
pub mod logging;
pub mod panics;
