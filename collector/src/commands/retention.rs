//! `retention`: one round of it by hand, or what it would do.

use std::fmt::Write;

use anyhow::{Context, Result, bail};

use crate::config::RetentionSettings;
use crate::counted::counted;
use crate::measure::Metrics;
use crate::store::retention::{self, Step};
use crate::store::session::Session;

/// Carries out what is due, or only tells it; returns what to print.
pub async fn run(settings: &RetentionSettings) -> Result<String> {
    let clocks = settings.clocks.clocks();
    if !clocks.are_set() {
        bail!("everything is kept for ever: set COLLECTOR_KEEP_CONTENT_DAYS or COLLECTOR_KEEP_ROWS_DAYS");
    }
    let target = settings.database.target()?;
    let session = Session::open(&target, settings.database.timeout(), ()).await?;
    const ADVICE: &str = "cannot carry out retention (is the schema current? llm-collector migrate)";
    if settings.dry_run {
        let steps = retention::plan(&session, &clocks).await.context(ADVICE)?;
        return Ok(if steps.is_empty() { "nothing is due\n".to_owned() } else { table(&steps)? });
    }
    let Some(round) = retention::run(&session, &clocks, &Metrics::new(), settings.confirm).await.context(ADVICE)? else {
        return Ok("another collector is at it\n".to_owned());
    };
    if let Some(reason) = round.held {
        bail!("nothing was removed: {reason}");
    }
    let freed: i64 = round.done.iter().map(|(_, freed)| freed).sum();
    let steps: Vec<Step> = round.done.into_iter().map(|(step, _)| step).collect();
    if round.failed > 0 {
        bail!("{}, {} failed: see the log, and try again", counted(steps.len(), "step is done", "steps are done"), round.failed);
    }
    Ok(if steps.is_empty() { "nothing was due\n".to_owned() } else { format!("{}{freed} bytes came back\n", table(&steps)?) })
}

fn table(steps: &[Step]) -> Result<String> {
    let mut text = format!("{:<20}  {:<10}  {:>12}  {:>16}  action\n", "partition", "day", "rows", "bytes");
    for step in steps {
        let day = step.day.map_or_else(|| "-".to_owned(), |day| day.to_string());
        let bytes = step.bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
        writeln!(text, "{:<20}  {day:<10}  {:>12}  {bytes:>16}  {}", step.table, step.rows, step.action.name())?;
    }
    Ok(text)
}
