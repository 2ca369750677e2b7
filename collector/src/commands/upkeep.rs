//! `upkeep`: what needs the rights of the owner of the tables, in a process that nobody sends anything to.
//!
//! With a role of its own (`llm_writer`, see `store/rights.sql`) `serve` can neither migrate nor remove what it stored. This
//! process can, and has no address that it listens on.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use log::info;
use tokio::signal::unix::{SignalKind, signal};

use crate::commands;
use crate::config::UpkeepSettings;
use crate::counted::counted;
use crate::measure::Metrics;
use crate::store::Health;
use crate::upkeep::Upkeep;

/// Migrates, then works until SIGTERM or SIGINT.
pub async fn run(settings: &UpkeepSettings) -> Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // What a process left that was killed says nothing of this one.
    settings.ready_file.as_deref().map_or(Ok(()), remove)?;
    commands::migrate(&settings.database, settings.site.zone().as_deref()).await?;
    let metrics = Arc::new(Metrics::new());
    let upkeep = Upkeep {
        database: commands::database(&settings.database).await?,
        health: Arc::new(Health::new(true, Arc::clone(&metrics))),
        metrics,
        data_dir: PathBuf::new(),
        gap_grace: Duration::ZERO,
        clocks: settings.clocks.clocks(),
        search_index: settings.search_index,
        days: Arc::default(),
        addresses: Arc::default(),
        limits_interval: Duration::MAX,
        webhook: None,
    };
    let tasks = upkeep.start_owners();
    info!("the schema is current; {} at work", counted(tasks.len(), "kind of upkeep is", "kinds of upkeep are"));
    if let Some(file) = &settings.ready_file {
        fs::write(file, "").with_context(|| format!("cannot write {}", file.display()))?;
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    settings.ready_file.as_deref().map_or(Ok(()), remove)
}

/// Removes a file that may not be there.
fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}
