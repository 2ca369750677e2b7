//! `erase`: what one consumer asked and was answered, on demand.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chrono::Utc;

use super::moment;
use crate::config::EraseSettings;
use crate::counted::counted;
use crate::store::erase::{self, Erasure, Found};
use crate::store::session::{Session, Work};

/// Longest wait for retention or another erasure.
const PATIENCE: Duration = Duration::from_secs(60);

/// Erases after asking; returns what to print.
pub async fn run(settings: &EraseSettings) -> Result<String> {
    if settings.consumer.trim().is_empty() {
        bail!("--consumer names nobody: say whose content is to be erased");
    }
    let before = settings.before.as_deref().map(|text| moment::exact(text, Utc::now())).transpose()?;
    let target = settings.database.target()?;
    let session = Session::open(&target, settings.database.timeout(), ()).await?;
    let erasure = Erasure { consumer: settings.consumer.clone(), before, rows: settings.rows };
    const SCHEMA: &str = "cannot look for rows (is the schema current? llm-collector migrate)";
    if !erase::is_known(&session, &erasure.consumer).await.context(SCHEMA)? {
        let similar = erase::similar_names(&session, &erasure.consumer).await?;
        let hint = if similar.is_empty() { String::new() } else { format!("; did you mean {}?", similar.join(", ")) };
        bail!("there is no consumer {}: no row, no usage and no rejected entry has that name{hint}", erasure.consumer);
    }
    let found = erase::find(&session, &erasure).await.context(SCHEMA)?;
    if settings.dry_run {
        return Ok(format!("{}; nothing was changed\n", described(&erasure, &found)));
    }
    if !settings.yes && !confirmed(&erasure, &found)? {
        return Ok("nothing was changed\n".to_owned());
    }
    if !session.lock_within(Work::Retention, PATIENCE).await? {
        bail!("retention or another erasure is at work: try again later");
    }
    let found = erase::carry_out(&session, &erasure).await?;
    Ok(format!(
        "erased: {}. Entries that still wait in a collector's spool arrive later: erase again when llm_collector_spool_bytes is 0\n",
        described(&erasure, &found)
    ))
}

fn described(erasure: &Erasure, found: &Found) -> String {
    let before = erasure.before.map(|before| format!(" before {}", before.format("%Y-%m-%d %H:%M:%S UTC"))).unwrap_or_default();
    let what = if erasure.rows {
        format!("{}, {} of them with content", counted(found.rows, "row", "rows"), found.with_content)
    } else {
        format!(
            "the content of {} (of {})",
            counted(found.with_content, "row", "rows"),
            counted(found.rows, "row, which stays", "rows, which stay")
        )
    };
    let rejected = counted(found.rejected, "rejected entry", "rejected entries");
    format!("{what}, and {rejected}, of consumer {}{before}", erasure.consumer)
}

/// Asks whoever sits there.
fn confirmed(erasure: &Erasure, found: &Found) -> Result<bool> {
    let mut terminal = std::io::stderr().lock();
    if !std::io::stdin().is_terminal() {
        bail!("nobody is there to be asked: say --yes to erase {}, or --dry-run to look", described(erasure, found));
    }
    write!(terminal, "Erase {} for ever? Type yes: ", described(erasure, found))?;
    terminal.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(answer.trim() == "yes")
}
