//! `feed`: copies calls out, and says how far that is.

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::{PROGRAM, table};
use crate::commands;
use crate::config::{DatabaseArgs, FeedAction, FeedSettings, ParquetSettings};
use crate::counted::counted;
use crate::feed::folder::Folder;
use crate::feed::{self, Sink};
use crate::store::feed::known::{self, Known};
use crate::store::feed::{Feed, try_lock};
use crate::store::session::Session;

const SCHEMA: &str = "cannot read what is known of feeds (is the schema current? llm-collector migrate)";

/// Does what was asked; returns what to print.
pub async fn run(settings: &FeedSettings) -> Result<String> {
    match &settings.action {
        FeedAction::Parquet(parquet) => copy(&settings.database, parquet).await,
        FeedAction::Status { json } => status(&settings.database, *json).await,
        FeedAction::Forget { name, yes } => forget(&settings.database, name, *yes).await,
    }
}

async fn session(database: &DatabaseArgs) -> Result<Session> {
    let target = database.target()?;
    let opened = Session::open(&target, database.timeout(), ()).await;
    opened.map_err(|error| {
        let advice = target.advice(&error);
        anyhow::Error::from(error).context(advice)
    })
}

async fn copy(database: &DatabaseArgs, settings: &ParquetSettings) -> Result<String> {
    let session = session(database).await?;
    if !try_lock(&session, &settings.name).await? {
        return Ok("another worker is at it\n".to_owned());
    }
    let known = known::find(&session, &settings.name).await.context(SCHEMA)?;
    let feed = Feed {
        name: settings.name.clone(),
        kind: "parquet",
        target: known.as_ref().map_or_else(|| Folder::begin(&settings.to, &settings.name), |known| Ok(known.target.clone()))?,
        slice_hours: if settings.hourly { 1 } else { 24 },
        has_content: settings.content,
    };
    match &known {
        None => known::begin(&session, &feed).await?,
        Some(known) => same(&feed, known)?,
    }
    let sink: Arc<dyn Sink> = Arc::new(Folder::open(&settings.to, &feed.name, &feed.target)?);
    let is_terminal = std::io::stderr().is_terminal();
    let tell = |position: usize, all: usize| {
        if is_terminal {
            // If nobody can be told, there is nobody to tell that.
            let _ = write!(std::io::stderr().lock(), "\r{} of {all}\x1b[K", position + 1);
        }
    };
    let round = feed::round(&session, &feed, &sink, tell).await?;
    if is_terminal {
        let _ = writeln!(std::io::stderr().lock());
    }
    let written = counted(round.written, "file", "files");
    let told = format!(
        "{written} written, {} written again, {} as before; {}",
        round.replaced,
        round.unchanged,
        counted(round.rows, "row", "rows")
    );
    ensure!(round.failed == 0, "{told}; {} failed, see above", round.failed);
    Ok(format!("{told}\n"))
}

/// A feed stays as it was begun, or half of its files would be of another kind than the other half.
fn same(feed: &Feed, known: &Known) -> Result<()> {
    let words = |hours: i32, has_content: bool| {
        format!(
            "{}, {} content",
            if hours == 1 { "a file an hour" } else { "a file a day" },
            if has_content { "with" } else { "without" }
        )
    };
    ensure!(
        (feed.kind, feed.slice_hours, feed.has_content) == (known.kind.as_str(), known.slice_hours, known.has_content),
        "the feed {} was begun with {}, and now you ask for {}: give another --name, or {PROGRAM} feed forget {}",
        feed.name,
        words(known.slice_hours, known.has_content),
        words(feed.slice_hours, feed.has_content),
        feed.name
    );
    Ok(())
}

async fn status(database: &DatabaseArgs, as_json: bool) -> Result<String> {
    let database = commands::database(database).await?;
    let feeds = known::all(&database.connection().await?).await.context(SCHEMA)?;
    if as_json {
        return Ok(serde_json::to_string_pretty(&feeds.iter().map(object).collect::<Vec<_>>())? + "\n");
    }
    if feeds.is_empty() {
        return Ok("there is no feed\n".to_owned());
    }
    let heading =
        ["feed", "kind", "files", "content", "copied until (UTC)", "last round (UTC)", "files", "rows", "bytes", "last round"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(feeds.iter().map(|feed| {
        let time = |at: Option<DateTime<Utc>>| at.map_or_else(|| "-".to_owned(), |at| at.format("%Y-%m-%d %H:%M").to_string());
        vec![
            feed.name.clone(),
            feed.kind.clone(),
            if feed.slice_hours == 1 { "hourly" } else { "daily" }.to_owned(),
            if feed.has_content { "yes" } else { "no" }.to_owned(),
            time(feed.covered_until),
            time(feed.looked_at),
            feed.files.to_string(),
            feed.rows.to_string(),
            feed.bytes.to_string(),
            feed.failure.as_deref().map_or_else(|| "good".to_owned(), |failure| table::visible(failure).into_owned()),
        ]
    }));
    Ok(table::aligned(&rows, 6))
}

fn object(feed: &Known) -> Value {
    let time = |at: Option<DateTime<Utc>>| at.map(|at| at.to_rfc3339_opts(SecondsFormat::Secs, true));
    json!({
        "name": feed.name,
        "kind": feed.kind,
        "target": feed.target,
        "slice_hours": feed.slice_hours,
        "content": feed.has_content,
        "looked_at": time(feed.looked_at),
        "covered_until": time(feed.covered_until),
        "lag_seconds": feed.lag_seconds,
        "failure": feed.failure,
        "files": feed.files,
        "rows": feed.rows,
        "bytes": feed.bytes,
    })
}

async fn forget(database: &DatabaseArgs, name: &str, yes: bool) -> Result<String> {
    let session = session(database).await?;
    if !try_lock(&session, name).await? {
        bail!("a worker of the feed {name} is at it: end it first");
    }
    ensure!(known::find(&session, name).await.context(SCHEMA)?.is_some(), "there is no feed {name}");
    ensure!(yes, "what the feed {name} has copied would be copied anew, to another folder: say --yes if you mean it");
    known::forget(&session, name).await?;
    Ok(format!("forgotten: {name}; its files are where they were\n"))
}
