//! Retention: content leaves after some days, rows after some more, and the disk space comes back.
//!
//! A day without content is the day's partition written anew and swapped in; a day that goes is its partition dropped. The SQL
//! and its locks are in `sql/V4__retention.sql`. What is left are single rows: late ones of a day that was done, those of the
//! default partition, and rejected entries, whose raw bytes are content too.
//!
//! Invariants: one collector at a time (see [`Session`]); a crash at any point leaves every row where it was or done, and at
//! most a table `llm_logs_YYYYMMDD_rewrite` that the next round removes; a day that cannot be done now holds up no other.
//! Deliberately absent: any clock but PostgreSQL's. Because that may be wrong, and a setting may be, too, [`brake`] stops what goes far
//! beyond what was ever removed.

mod brake;

use chrono::NaiveDate;
use log::{error, info, warn};

use super::pool::StoreError;
use super::session::{Session, Work};
use super::{erase, migrate};
use crate::counted::counted;
use crate::measure::Metrics;

/// What takes content out of rows.
pub(super) const WITHOUT_CONTENT: &str = "SET prompt = NULL, response = NULL, reasoning = NULL, tool_calls = NULL,
    error = llm_error_without_content(error), raw_log = llm_without_bodies(raw_log), contents = NULL";

/// Whether a row has content.
pub(super) const HAS_CONTENT: &str =
    "(llm_has_content(prompt, response, reasoning, tool_calls, raw_log) OR llm_error_has_content(error))";

/// Where a day begins that is to stay, `$1` days back.
const CUTOFF: &str = "(((now() AT TIME ZONE 'UTC')::date - $1::int)::timestamp AT TIME ZONE 'UTC')";

/// How long what is kept. Days count from the end of the day (UTC) that a row belongs to; 0 is for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clocks {
    /// Days until content goes.
    pub content_days: i32,
    /// Days until rows go.
    pub rows_days: i32,
    /// The feed that rows wait for: a day goes when that has all of it as it is.
    pub rows_after_feed: Option<String>,
}

impl Clocks {
    /// Whether anything is ever to go.
    pub fn are_set(&self) -> bool {
        self.content_days > 0 || self.rows_days > 0
    }

    /// Days until rejected entries go: they are content, and they are rows.
    fn rejected_days(&self) -> i32 {
        [self.content_days, self.rows_days].into_iter().filter(|days| *days > 0).min().unwrap_or(0)
    }
}

/// What is done with a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The partition is written anew without content.
    RemoveContent,
    /// The partition is dropped.
    Drop,
    /// The partition would be dropped, and is not in the feed as it is.
    WaitForFeed,
    /// Single rows lose their content.
    RemoveContentOfRows,
    /// Single rows are deleted.
    DeleteRows,
}

impl Action {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Action::RemoveContent => "remove content",
            Action::Drop => "drop",
            Action::WaitForFeed => "wait for the feed",
            Action::RemoveContentOfRows => "remove content of single rows",
            Action::DeleteRows => "delete single rows",
        }
    }
}

/// Something that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The table.
    pub table: String,
    /// The day of a partition.
    pub day: Option<NaiveDate>,
    /// Rows that it is about; PostgreSQL's estimate for whole partitions.
    pub rows: i64,
    /// Bytes of the partition, or of what is to be deleted where that is known.
    pub bytes: Option<i64>,
    /// What is to be done.
    pub action: Action,
}

/// What a round did.
#[derive(Debug, Default)]
pub struct Round {
    /// Steps that are done, with the bytes that came back.
    pub done: Vec<(Step, i64)>,
    /// Steps that failed; the next round tries them again.
    pub failed: usize,
    /// Why nothing was done although something is due: until somebody confirms it.
    pub held: Option<String>,
}

/// What is due now. Changes nothing.
pub async fn plan(session: &Session, clocks: &Clocks) -> Result<Vec<Step>, StoreError> {
    let client = session.client();
    let partitions = "WITH today AS (SELECT (now() AT TIME ZONE 'UTC')::date AS today)
        SELECT partition, day, rows_estimate, bytes, content_removed,
            $1 > 0 AND day < today - $1 AS without_content, $2 > 0 AND day < today - $2 AS gone,
            $2 > 0 AND day < today - $2 AND $3::text IS NOT NULL AND NOT llm_feed_has_day($3, day) AS waits
        FROM llm_partitions, today WHERE day IS NOT NULL ORDER BY day";
    let mut steps = Vec::new();
    let mut done = Vec::new();
    for row in client.query(partitions, &[&clocks.content_days, &clocks.rows_days, &clocks.rows_after_feed]).await? {
        let step = |action| -> Result<Step, StoreError> {
            let (rows, bytes) = (row.try_get(2)?, Some(row.try_get(3)?));
            Ok(Step { table: row.try_get(0)?, day: row.try_get(1)?, rows, bytes, action })
        };
        let (content_removed, without_content, gone): (bool, bool, bool) = (row.try_get(4)?, row.try_get(5)?, row.try_get(6)?);
        let waits: bool = row.try_get(7)?;
        if waits {
            steps.push(step(Action::WaitForFeed)?);
        }
        let action = match (gone && !waits, without_content) {
            (true, _) => Action::Drop,
            (false, true) if content_removed => {
                done.push((row.try_get::<_, String>(0)?, row.try_get(1)?));
                continue;
            }
            (false, true) => Action::RemoveContent,
            (false, false) => continue,
        };
        steps.push(step(action)?);
    }
    for (table, day) in done {
        // Rows that came after their day was done; the partition has an index of them.
        let query = format!("SELECT count(*) FROM {table} WHERE {HAS_CONTENT}");
        let rows = client.query_one(&query, &[]).await?.try_get(0)?;
        steps.push(Step { table, day, rows, bytes: None, action: Action::RemoveContentOfRows });
    }
    for (table, rows, bytes, action) in [
        ("llm_logs_default", rows_of_default(HAS_CONTENT), "NULL", Action::RemoveContentOfRows),
        ("llm_logs_default", rows_of_default("true"), "NULL", Action::DeleteRows),
        ("llm_rejected", rejected(), "sum(length(raw))::bigint", Action::DeleteRows),
    ] {
        let days = days_of(table, action, clocks);
        if days > 0 {
            let query = format!("SELECT count(*), {bytes}::bigint FROM {table} WHERE {rows}");
            let row = client.query_one(&query, &[&days]).await?;
            steps.push(Step { table: table.to_owned(), day: None, rows: row.try_get(0)?, bytes: row.try_get(1)?, action });
        }
    }
    steps.retain(|step| step.rows > 0 || matches!(step.action, Action::Drop | Action::RemoveContent | Action::WaitForFeed));
    Ok(steps)
}

/// Days that rows of a table without days are kept.
fn days_of(table: &str, action: Action, clocks: &Clocks) -> i32 {
    match action {
        _ if table == "llm_rejected" => clocks.rejected_days(),
        Action::RemoveContent | Action::RemoveContentOfRows => clocks.content_days,
        Action::Drop | Action::WaitForFeed | Action::DeleteRows => clocks.rows_days,
    }
}

/// Rows of the default partition that are due. A row from the future is as old as its writing.
fn rows_of_default(which: &str) -> String {
    format!("least(started_at, created_at) < {CUTOFF} AND {which}")
}

/// Deletes rows of the default partition whose days the feed `$2` has, if one is named. From then on the files of feeds are what there is of
/// them. One statement and so one snapshot: a row that comes meanwhile is neither looked at nor deleted.
fn delete_from_default() -> String {
    const DAY: &str = "(started_at AT TIME ZONE 'UTC')::date";
    format!(
        "WITH days AS (
            SELECT day FROM (SELECT DISTINCT {DAY} AS day FROM llm_logs_default WHERE {due}) due
            WHERE $2::text IS NULL OR llm_feed_has_day($2, day)
        ), sealed AS (
            UPDATE llm_feed_slices SET is_sealed = true WHERE (starts_at AT TIME ZONE 'UTC')::date IN (SELECT day FROM days)
        )
        DELETE FROM llm_logs_default WHERE {due} AND {DAY} IN (SELECT day FROM days)",
        due = rows_of_default("true")
    )
}

fn rejected() -> String {
    format!("rejected_at < {CUTOFF}")
}

/// Does what is due; `None` when another collector is at it. What looks like an accident is held until it is `confirmed`.
pub async fn run(session: &Session, clocks: &Clocks, metrics: &Metrics, confirmed: bool) -> Result<Option<Round>, StoreError> {
    if !session.try_lock(Work::Retention).await? {
        return Ok(None);
    }
    if migrate::is_pending(session.client()).await? {
        return Err(StoreError::Unavailable(
            "the usage of older rows is still being counted, and until then none may go".to_owned(),
        ));
    }
    remove_leftovers(session).await?;
    erase::remove_content(session).await.unwrap_or_else(|error| warn!("content of erased rows is still there: {error}"));
    if clocks.content_days > 0 {
        // Without them the days are read whole.
        index_errors(session).await.unwrap_or_else(|error| warn!("retention could not index what is left of days: {error}"));
    }
    let (waiting, steps): (Vec<Step>, Vec<Step>) =
        plan(session, clocks).await?.into_iter().partition(|step| step.action == Action::WaitForFeed);
    let waits = waits(&waiting, clocks);
    if let Some(waits) = &waits {
        warn!("retention leaves rows: {waits}");
    }
    let amount = brake::Amount::of(&steps);
    let held = if confirmed { None } else { brake::reason(session.client(), amount).await? };
    if let Some(reason) = &held {
        error!("retention removes nothing: {reason}");
    }
    // Told where doctor and alerts look, too: who runs this may never read its log.
    session.client().execute("UPDATE llm_upkeep SET retention_held = $1, waits_for_feed = $2", &[&held, &waits]).await?;
    if held.is_some() {
        return Ok(Some(Round { held, ..Round::default() }));
    }
    let mut round = Round::default();
    for step in steps {
        match carry_out(session, clocks, &step).await {
            Ok(freed) => {
                report(&step, freed, metrics);
                round.done.push((step, freed));
            }
            Err(cause) => {
                round.failed += 1;
                error!(table = step.table.as_str(); "retention could not {} of {}: {cause}", step.action.name(), step.table);
            }
        }
    }
    brake::note(session.client(), amount).await?;
    Ok(Some(round))
}

/// Which days are kept for the feed, in words.
fn waits(waiting: &[Step], clocks: &Clocks) -> Option<String> {
    let (oldest, feed) = (waiting.iter().find_map(|step| step.day)?, clocks.rows_after_feed.as_deref()?);
    let days = counted(waiting.len(), "day is", "days are");
    Some(format!("{days} older than rows are to be kept and not in the feed {feed} as they are, the oldest {oldest}"))
}

/// The log line and the count of a step.
fn report(step: &Step, freed: i64, metrics: &Metrics) {
    info!(
        table = step.table.as_str(), action = step.action.name(), rows = step.rows, bytes = freed;
        "retention: {} of {} ({}, {freed} bytes came back)", step.action.name(), step.table, counted(step.rows, "row", "rows")
    );
    match step.action {
        Action::RemoveContent => metrics.retention.content_removed.inc(),
        Action::Drop => metrics.retention.dropped.inc(),
        Action::RemoveContentOfRows | Action::DeleteRows | Action::WaitForFeed => 0,
    };
}

/// Tables that a crash left behind.
async fn remove_leftovers(session: &Session) -> Result<(), StoreError> {
    let query = "SELECT relname::text FROM pg_class WHERE relname ~ '^llm_logs_[0-9]{8}_rewrite$' AND NOT relispartition
        AND relkind = 'r' AND pg_table_is_visible(oid)";
    for row in session.client().query(query, &[]).await? {
        let table: String = row.try_get(0)?;
        warn!(table = table.as_str(); "removing {table}, which an interrupted round of retention left");
        session.batch(&format!("DROP TABLE {table}")).await?;
    }
    Ok(())
}

/// Makes the index of what is left to do in days whose content was removed before messages of errors were content.
async fn index_errors(session: &Session) -> Result<(), StoreError> {
    let query = "SELECT partition FROM llm_partition_days WHERE content_removed
        AND NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(partition || '_error') AND indisvalid)";
    for row in session.client().query(query, &[]).await? {
        let table: String = row.try_get(0)?;
        // One that was interrupted is there, but of no use.
        session.batch(&format!("DROP INDEX CONCURRENTLY IF EXISTS {table}_error")).await?;
        session
            .batch(&format!("CREATE INDEX CONCURRENTLY {table}_error ON {table} (started_at) WHERE llm_error_has_content(error)"))
            .await?;
    }
    Ok(())
}

/// Does a step; returns the bytes that came back.
async fn carry_out(session: &Session, clocks: &Clocks, step: &Step) -> Result<i64, StoreError> {
    let table = &step.table;
    match (step.action, step.day) {
        (Action::RemoveContent, Some(day)) => {
            let result = rewrite(session, table, day).await;
            if result.is_err() {
                session.batch(&format!("DROP TABLE IF EXISTS {table}_rewrite")).await?;
            }
            result
        }
        (Action::Drop, Some(day)) => {
            let freed =
                session.with_short_waits("SELECT llm_drop_day_after_feed($1, $2)", &[&day, &clocks.rows_after_feed]).await?;
            freed.ok_or_else(|| StoreError::Unavailable("rows came that the feed has not".to_owned()))
        }
        (Action::RemoveContentOfRows, day) => {
            let statement = format!("UPDATE {table} {WITHOUT_CONTENT} WHERE ");
            match day {
                Some(_) => session.client().execute(&(statement + HAS_CONTENT), &[]).await?,
                None => session.client().execute(&(statement + &rows_of_default(HAS_CONTENT)), &[&clocks.content_days]).await?,
            };
            // So that its space is used again.
            session.batch(&format!("VACUUM {table}")).await?;
            Ok(0)
        }
        (Action::DeleteRows, _) => {
            let days = days_of(table, step.action, clocks);
            if table == "llm_rejected" {
                session.client().execute(&format!("DELETE FROM {table} WHERE {}", rejected()), &[&days]).await?;
            } else {
                session.client().execute(&delete_from_default(), &[&days, &clocks.rows_after_feed]).await?;
            }
            session.batch(&format!("VACUUM {table}")).await?;
            Ok(0)
        }
        (Action::RemoveContent | Action::Drop, None) | (Action::WaitForFeed, _) => Ok(0),
    }
}

async fn rewrite(session: &Session, table: &str, day: NaiveDate) -> Result<i64, StoreError> {
    let size = async || -> Result<i64, StoreError> {
        let row = session.client().query_one("SELECT bytes FROM llm_partitions WHERE partition = $1", &[&table]).await?;
        Ok(row.try_get(0)?)
    };
    session.client().query_one("SELECT llm_rewrite_day($1)", &[&day]).await?;
    // Then llm_swap_day, which makes late rows wait, compares keys in indexes alone.
    session.batch(&format!("VACUUM (ANALYZE) {table}_rewrite")).await?;
    let before = size().await?;
    session.with_short_waits("SELECT llm_swap_day($1)", &[&day]).await?;
    Ok(before - size().await?)
}
