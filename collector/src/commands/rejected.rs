//! `rejected list`, `show`, `retry`.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use log::warn;

use crate::commands;
use crate::config::{DatabaseArgs, PipelineSettings, RejectedAction, RejectedSettings};
use crate::store::rejected;

/// Records that are read at once by `retry`.
const PAGE: i64 = 1_000;

/// Carries out the action; returns what to print.
pub async fn run(settings: &RejectedSettings) -> Result<Vec<u8>> {
    let args = &settings.database;
    match &settings.action {
        RejectedAction::List { limit } => list(args, i64::from(*limit)).await.map(String::into_bytes),
        RejectedAction::Show { id } => show(args, *id).await,
        RejectedAction::Retry { ids, pipeline } => retry(args, pipeline, ids).await.map(String::into_bytes),
    }
}

async fn list(args: &DatabaseArgs, limit: i64) -> Result<String> {
    let database = commands::database(args)?;
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
    let database = commands::database(args)?;
    let connection = database.connection().await?;
    let Some((mut raw, _)) = rejected::get(&connection, id).await? else {
        bail!("there is no rejected entry {id}; `rejected list` shows which there are");
    };
    raw.push(b'\n');
    Ok(raw)
}

async fn retry(args: &DatabaseArgs, settings: &PipelineSettings, ids: &[i64]) -> Result<String> {
    let (pipeline, writers) = commands::pipeline(args, settings).await?;
    let database = pipeline.store.database().clone();
    let connection = || async { database.connection().await };
    let (mut stored, mut still) = (0, 0);
    let mut last = 0;
    let mut page = ids.to_vec();
    loop {
        if ids.is_empty() {
            page = rejected::ids_after(&connection().await?, last, PAGE).await?;
        }
        for id in &page {
            last = *id;
            let Some((raw, _)) = rejected::get(&connection().await?, *id).await? else {
                warn!("there is no rejected entry {id}");
                continue;
            };
            // Bytes that are no JSON at all are refused before they reach the store: they stay on record.
            let is_row = match pipeline.take(raw.into()).await {
                Ok(outcome) => outcome.rejected == 0 && outcome.stored + outcome.duplicates > 0,
                Err(commands_error) => match commands_error {
                    crate::pipeline::PipelineError::Decode(_) => false,
                    crate::pipeline::PipelineError::Store(error) => return Err(error).context("the database does not answer"),
                },
            };
            if is_row {
                rejected::delete(&connection().await?, *id).await?;
                stored += 1;
            } else {
                still += 1;
            }
        }
        if !ids.is_empty() || page.is_empty() {
            break;
        }
    }
    drop(pipeline);
    writers.finish().await;
    Ok(format!("{stored} entries are rows now, {still} are still rejected\n"))
}
