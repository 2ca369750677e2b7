//! `rejected list`, `show`, `retry`.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use log::warn;

use crate::commands;
use crate::config::{DatabaseArgs, PipelineSettings, RejectedAction, RejectedSettings};
use crate::counted::counted;
use crate::pipeline::PipelineError;
use crate::store::{Outcome, rejected};

/// Records that are read at once by `retry`.
const PAGE: i64 = 1_000;

/// Entries that are named each when they are still rejected.
const MAX_NAMED: usize = 100;

/// Carries out the action; returns what to print, and how many entries are no rows although that was asked for.
pub async fn run(settings: &RejectedSettings) -> Result<(Vec<u8>, usize)> {
    let args = &settings.database;
    match &settings.action {
        RejectedAction::List { limit } => Ok((list(args, i64::from(*limit)).await?.into_bytes(), 0)),
        RejectedAction::Show { id } => Ok((show(args, *id).await?, 0)),
        RejectedAction::Retry { ids, pipeline } => {
            let (text, left) = retry(args, pipeline, ids).await?;
            Ok((text.into_bytes(), left))
        }
    }
}

async fn list(args: &DatabaseArgs, limit: i64) -> Result<String> {
    let database = commands::database(args).await?;
    let connection = database.connection().await?;
    let records = rejected::list(&connection, limit).await?;
    if records.is_empty() {
        return Ok("no rejected entries\n".to_owned());
    }
    let mut text = format!("{:>8}  {:<20}  {:>10}  reason\n", "id", "rejected at (UTC)", "bytes");
    for record in records {
        let time = record.rejected_at.format("%Y-%m-%d %H:%M:%S");
        writeln!(text, "{:>8}  {time:<20}  {:>10}  {}", record.id, record.size, record.reason)?;
    }
    Ok(text)
}

async fn show(args: &DatabaseArgs, id: i64) -> Result<Vec<u8>> {
    let database = commands::database(args).await?;
    let connection = database.connection().await?;
    let Some((mut raw, _)) = rejected::get(&connection, id).await? else {
        bail!("there is no rejected entry {id}; `rejected list` shows which there are");
    };
    raw.push(b'\n');
    Ok(raw)
}

async fn retry(args: &DatabaseArgs, settings: &PipelineSettings, ids: &[i64]) -> Result<(String, usize)> {
    let (pipeline, writers) = commands::pipeline(args, settings).await?;
    let database = pipeline.store.database().clone();
    let connection = || async { database.connection().await };
    let (mut stored, mut still, mut missing) = (0, 0, 0);
    let mut last = 0;
    let mut page = ids.to_vec();
    // What is rejected anew has a number beyond.
    let end = rejected::last_id(&connection().await?).await?;
    loop {
        if ids.is_empty() {
            page = rejected::ids_between(&connection().await?, last, end, PAGE).await?;
        }
        for id in &page {
            last = *id;
            let Some((raw, _)) = rejected::get(&connection().await?, *id).await? else {
                warn!("there is no rejected entry {id}");
                missing += 1;
                continue;
            };
            // One of which more is removed today than when it was rejected is put on record anew, without that.
            let is_changed = pipeline.reader.secrets.scrub_raw(&String::from_utf8_lossy(&raw)).as_bytes() != raw;
            // Bytes that are no JSON at all are refused before they reach the store: they stay on record.
            let outcome = match pipeline.take(raw.into()).await {
                Ok(outcome) => outcome,
                Err(PipelineError::Decode(_)) => Outcome::default(),
                Err(PipelineError::Store(error)) => return Err(error).context("the database does not answer"),
            };
            let is_row = outcome.rejected == 0 && outcome.stored + outcome.duplicates + outcome.counted > 0;
            if is_row || is_changed && outcome.rejected > 0 {
                rejected::delete(&connection().await?, *id).await?;
            }
            if is_row {
                stored += 1;
                continue;
            }
            still += 1;
            if still <= MAX_NAMED {
                warn!("entry {id} is still rejected");
            }
        }
        if !ids.is_empty() || page.is_empty() {
            break;
        }
    }
    drop(pipeline);
    writers.finish().await;
    let stored = counted(stored, "entry is a row now", "entries are rows now");
    let rejected = counted(still, "is still rejected", "are still rejected");
    Ok((format!("{stored}, {rejected}\n"), still + missing))
}
