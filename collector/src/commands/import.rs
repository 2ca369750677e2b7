//! `import`: the rows of a table `llm_logs` that was made by hand, through the pipeline.
//!
//! Invariant: whenever it is killed, the same command goes on, and no row is counted twice: the table is renamed together with the making of
//! the schema, what is noted as done is safe, and what was done and not noted is a duplicate. What is read at a time is bounded.

mod entry;

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, TimeDelta, Utc};
use log::{info, warn};

use super::{PROGRAM, migrate, pipeline};
use crate::config::ImportSettings;
use crate::counted::counted;
use crate::decode::Limits;
use crate::pipeline::{Pipeline, Reader};
use crate::store::migrate::move_aside;
use crate::store::original::{self, ORIGINAL, OldRow, Original, Tally};
use crate::store::session::{Session, Work};
use crate::store::{Batch, Outcome};

/// How often progress is logged where nobody looks on.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

/// Takes the rows over, or only looks; returns what to print.
pub async fn run(settings: &ImportSettings) -> Result<String> {
    let target = settings.database.target()?;
    let opened = Session::open(&target, settings.database.timeout(), ()).await;
    let session = opened.map_err(|error| {
        let advice = target.advice(&error);
        anyhow::Error::from(error).context(advice)
    })?;
    let client = session.client();
    let zone = settings.zone();
    let Some(mut found) = original::find(client, &zone).await? else {
        bail!(
            "there is nothing to import: the database has no table {ORIGINAL}, and no llm_logs that somebody else made. To bring it to the \
             current schema: {PROGRAM} migrate"
        );
    };
    if !found.shape.others.is_empty() {
        warn!("columns that are not taken over, and stay in {ORIGINAL}: {}", found.shape.others.join(", "));
    }
    if settings.dry_run {
        let tally = look(settings, &session, &found).await?;
        return told(settings, &found, &tally);
    }
    if !session.try_lock(Work::Import).await? {
        bail!("another import is at work on this database");
    }
    if found.name != ORIGINAL {
        let moved = move_aside(&target, settings.database.timeout(), found.name).await;
        moved.with_context(|| format!("{} could not be renamed, and nothing was changed", found.name))?;
        info!("{} is called {ORIGINAL} now, and the schema is made", found.name);
        found.name = ORIGINAL;
    }
    migrate(&settings.database, settings.site.zone().as_deref()).await?;
    let (pipeline, writers) = pipeline(&settings.database, &settings.pipeline).await?;
    let tally = take_over(&pipeline, &session, &found).await;
    drop(pipeline);
    writers.finish().await;
    told(settings, &found, &tally?)
}

/// Reads everything and stores nothing.
async fn look(settings: &ImportSettings, session: &Session, found: &Original) -> Result<Tally> {
    let limits = Limits { decoded_bytes: settings.pipeline.max_decoded_bytes };
    let secrets = settings.pipeline.secrets().into();
    let reader = Reader { limits, secrets, privacy: settings.pipeline.privacy()?.into() };
    let mut tally = Tally::default();
    let mut progress = Progress::of(found.rows);
    found.note_repeats(session.client()).await?;
    loop {
        let ends = found.pages(session.client(), tally.last_id).await?;
        if ends.is_empty() {
            break;
        }
        for end in ends {
            let rows = found.page(session.client(), tally.last_id, end).await?;
            let mut waiting = entries(&rows, &mut tally);
            drop(rows);
            while !waiting.is_empty() {
                let batch = reader.read(&mut waiting);
                note_oldest(&mut tally, &batch);
                tally.stored += count(batch.items.len());
                tally.rejected += count(batch.rejected.len());
            }
            tally.last_id = Some(end);
            progress.show(&tally);
        }
    }
    progress.end();
    Ok(tally)
}

/// Sends page after page through the pipeline.
async fn take_over(pipeline: &Pipeline, session: &Session, found: &Original) -> Result<Tally> {
    let client = session.client();
    let mut tally = found.tally(client).await?;
    let mut progress = Progress::of(found.rows);
    found.note_repeats(client).await?;
    loop {
        let ends = found.pages(client, tally.last_id).await?;
        if ends.is_empty() {
            break;
        }
        for end in ends {
            let rows = found.page(client, tally.last_id, end).await?;
            let mut waiting = entries(&rows, &mut tally);
            drop(rows);
            let stored = store(pipeline, &mut waiting, &mut tally).await;
            stored.with_context(|| {
                progress.end();
                format!("stopped before row {end} of {ORIGINAL} was safe; the same command goes on there")
            })?;
            tally.last_id = Some(end);
            original::note(client, &tally).await.context("cannot note how far it got; the same command goes on there")?;
            progress.show(&tally);
        }
    }
    progress.end();
    Ok(tally)
}

async fn store(pipeline: &Pipeline, waiting: &mut VecDeque<bytestring::ByteString>, tally: &mut Tally) -> Result<()> {
    while !waiting.is_empty() {
        let mut portion = pipeline.next_portion(waiting, None).await.context("there is no memory for it")?;
        // Numbers that a worker gave long ago would make all that followed them look lost.
        portion.batch.items.iter_mut().for_each(|item| item.sequence = None);
        portion.batch.rejected.iter_mut().for_each(|rejected| rejected.sequence = None);
        note_oldest(tally, &portion.batch);
        let Outcome { stored, duplicates, rejected, counted, .. } = pipeline.store.store(portion.batch, None).await?;
        tally.stored += count(stored);
        tally.duplicates += count(duplicates);
        tally.rejected += count(rejected);
        tally.counted += count(counted);
    }
    Ok(())
}

/// Rows as entries; copies are counted.
fn entries(rows: &[OldRow], tally: &mut Tally) -> VecDeque<bytestring::ByteString> {
    let mut waiting = VecDeque::with_capacity(rows.len());
    for row in rows {
        match entry::of(row) {
            Some(made) => {
                tally.from_columns += i64::from(made.from_columns);
                waiting.push_back(made.text.into());
            }
            None => tally.duplicates += 1,
        }
    }
    waiting
}

fn note_oldest(tally: &mut Tally, batch: &Batch) {
    let oldest = batch.items.iter().map(|item| item.call.started_at.timestamp_millis()).min();
    tally.oldest_ms = [tally.oldest_ms, oldest].into_iter().flatten().min();
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The result, for a person or a program.
fn told(settings: &ImportSettings, found: &Original, tally: &Tally) -> Result<String> {
    let oldest = tally.oldest_ms.and_then(DateTime::from_timestamp_millis);
    let due = settings.clocks.clocks().are_set().then(|| due(settings, oldest)).flatten();
    if settings.json {
        let summary = serde_json::json!({
            "table": found.name,
            "dry_run": settings.dry_run,
            "rows": found.rows,
            "stored": tally.stored,
            "duplicates": tally.duplicates,
            "rejected": tally.rejected,
            "counted": tally.counted,
            "from_columns": tally.from_columns,
            "oldest": oldest.map(|oldest| oldest.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)),
            "due_for_retention": due.is_some(),
        });
        return Ok(format!("{summary}\n"));
    }
    let Tally { stored, duplicates, rejected, counted: refused, from_columns, .. } = tally;
    let came = if settings.dry_run { "would come over" } else { "came over" };
    let (rows, duplicates) = (counted(found.rows, "row", "rows"), counted(duplicates, "duplicate", "duplicates"));
    let mut text = format!("{}: {rows}; {stored} {came}, {duplicates}, {rejected} rejected", found.name);
    if *refused > 0 {
        text.push_str(&format!(", {refused} counted as refused calls"));
    }
    text.push('\n');
    if *from_columns > 0 {
        text.push_str(&format!(
            "{from_columns} of them have no log entry of Kong's in raw_log: of these only what the columns say is known, neither model nor \
             tokens\n"
        ));
    }
    if *rejected > 0 && !settings.dry_run {
        text.push_str(&format!("What was rejected, and why: {PROGRAM} rejected list\n"));
    }
    if let Some(due) = due {
        text.push_str(&due);
    }
    text.push_str(&if settings.dry_run {
        "Nothing was changed.\n".to_owned()
    } else {
        format!("{ORIGINAL} is as it was, keys and all. When you have looked: DROP TABLE {ORIGINAL}, llm_import;\n")
    });
    Ok(text)
}

/// What retention makes of the oldest rows.
fn due(settings: &ImportSettings, oldest: Option<DateTime<Utc>>) -> Option<String> {
    let days = [settings.clocks.keep_content_days, settings.clocks.keep_rows_days].into_iter().filter(|days| *days > 0).min()?;
    let end = Utc::now().checked_sub_signed(TimeDelta::try_days(days.into())?)?;
    (oldest? < end).then(|| {
        format!(
            "The oldest call is of {}: retention ({days} days) is due for it at once. It waits for you where that is much: {PROGRAM} \
             retention --dry-run\n",
            oldest.map(|oldest| oldest.format("%Y-%m-%d").to_string()).unwrap_or_default()
        )
    })
}

/// How far it is, on a terminal or in the log.
struct Progress {
    rows: i64,
    is_terminal: bool,
    logged: Instant,
}

impl Progress {
    fn of(rows: i64) -> Self {
        info!("reading {}", counted(rows, "row", "rows"));
        Self { rows, is_terminal: std::io::stderr().is_terminal(), logged: Instant::now() }
    }

    fn show(&mut self, tally: &Tally) {
        let done = tally.stored + tally.duplicates + tally.rejected + tally.counted;
        let line = format!("{done} of {} rows, {} rejected", self.rows, tally.rejected);
        if self.is_terminal {
            // If nobody can be told, there is nobody to tell that.
            let _ = write!(std::io::stderr().lock(), "\r{line}\x1b[K");
        } else if self.logged.elapsed() >= LOGGED_EVERY {
            info!("{line}");
            self.logged = Instant::now();
        }
    }

    fn end(&self) {
        if self.is_terminal {
            let _ = writeln!(std::io::stderr().lock());
        }
    }
}
