//! Erase on demand: what one person asked and was answered, while rows and token counts stay for the bills.
//!
//! Rows are changed in place, partition by partition, and vacuumed afterwards, so that the space of the text is used again. Never
//! at the same time as retention, which would bring back what it copied before (see [`Session`]). Parts of bodies that somebody else's row
//! of the day has, too, stay: a system prompt of all is nobody's alone.
//! Deliberately absent: spools of collectors. Entries that wait there are erased by erasing again after they arrived.

use chrono::{DateTime, NaiveDate, Utc};
use log::info;

use super::migrate;
use super::pool::StoreError;
use super::retention::{HAS_CONTENT, WITHOUT_CONTENT};
use super::session::Session;
use crate::counted::counted;

/// Whose data, and how much of it.
#[derive(Debug, Clone)]
pub struct Erasure {
    /// The consumer.
    pub consumer: String,
    /// Calls before this time; `None` is all.
    pub before: Option<DateTime<Utc>>,
    /// The rows as well.
    pub rows: bool,
}

/// What there is of a consumer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Partitions with rows that are to be touched, and how many those are.
    pub partitions: Vec<(String, i64)>,
    /// Rows in all.
    pub rows: i64,
    /// Rows that have content.
    pub with_content: i64,
    /// Rejected entries.
    pub rejected: i64,
}

const ROWS: &str = "consumer_username = $1 AND ($2::timestamptz IS NULL OR started_at < $2)";

/// A rejected entry that is no JSON is the consumer's when it has the name as a JSON string.
const REJECTED: &str = "($2::timestamptz IS NULL OR rejected_at < $2) AND coalesce(llm_rejected_consumer(raw) = $1,
    position(convert_to(to_json($1::text)::text, 'UTF8') IN raw) > 0)";

/// Whether anything is known of a consumer: rows, usage that outlived them, or rejected entries. Usage keeps names to 200 characters.
const IS_KNOWN: &str = "SELECT EXISTS (SELECT FROM llm_logs WHERE consumer_username = $1)
    OR EXISTS (SELECT FROM llm_usage_counts WHERE consumer_username = left($1, 200))
    OR EXISTS (SELECT FROM llm_rejected WHERE coalesce(llm_rejected_consumer(raw) = $1,
        position(convert_to(to_json($1::text)::text, 'UTF8') IN raw) > 0))";

/// Whether the database knows a consumer of this name.
pub async fn is_known(session: &Session, consumer: &str) -> Result<bool, StoreError> {
    Ok(session.client().query_one(IS_KNOWN, &[&consumer]).await?.try_get(0)?)
}

/// Names that differ from this one by case or blanks alone, at most five.
pub async fn similar_names(session: &Session, consumer: &str) -> Result<Vec<String>, StoreError> {
    let query = "SELECT DISTINCT consumer_username FROM llm_usage_counts
        WHERE lower(btrim(consumer_username)) = lower(btrim($1)) ORDER BY 1 LIMIT 5";
    let rows = session.client().query(query, &[&consumer]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Counts. Changes nothing.
pub async fn find(session: &Session, erasure: &Erasure) -> Result<Found, StoreError> {
    let client = session.client();
    let mut found = Found::default();
    let query = format!(
        "SELECT tableoid::regclass::text, count(*), count(*) FILTER (WHERE {HAS_CONTENT}) FROM llm_logs WHERE {ROWS} GROUP BY 1 ORDER BY 1"
    );
    for row in client.query(&query, &[&erasure.consumer, &erasure.before]).await? {
        let (rows, with_content): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
        found.rows += rows;
        found.with_content += with_content;
        let touched = if erasure.rows { rows } else { with_content };
        if touched > 0 {
            found.partitions.push((row.try_get(0)?, touched));
        }
    }
    let query = format!("SELECT count(*) FROM llm_rejected WHERE {REJECTED}");
    found.rejected = client.query_one(&query, &[&erasure.consumer, &erasure.before]).await?.try_get(0)?;
    Ok(found)
}

/// Removes content that erased rows referred to and no other row refers to. To be called with the session's lock held. What a crash left
/// undone the next round of retention, or the next erasure, does.
///
/// Rows are looked through in two steps, so that those who write wait for a moment only: all that are there, and at the end, while
/// nobody can write, those that came since.
pub(super) async fn remove_content(session: &Session) -> Result<(), StoreError> {
    for row in session.client().query("SELECT DISTINCT day FROM llm_erased_content ORDER BY 1", &[]).await? {
        let day: NaiveDate = row.try_get(0)?;
        let boundary = session.with_short_waits("SELECT llm_content_boundary($1)", &[&day]).await?.unwrap_or_default();
        let keep_others = "DELETE FROM llm_erased_content e WHERE e.day = $1 AND e.hash IN (
            SELECT llm_content_hashes(contents) FROM llm_logs WHERE started_at >= $1::date::timestamp AT TIME ZONE 'UTC'
                AND started_at < ($1::date + 1)::timestamp AT TIME ZONE 'UTC' AND id <= $2 AND contents IS NOT NULL)";
        session.client().execute(keep_others, &[&day, &boundary]).await?;
        let removed =
            session.with_short_waits("SELECT llm_remove_erased_content($1, $2)", &[&day, &boundary]).await?.unwrap_or_default();
        if removed > 0 {
            session.batch(&format!("VACUUM llm_content_{}", day.format("%Y%m%d"))).await?;
        }
        info!("removed {} of {day} that only erased rows had", counted(removed, "part of bodies", "parts of bodies"));
    }
    Ok(())
}

/// Erases what [`find`] finds. To be called with the session's lock held.
pub async fn carry_out(session: &Session, erasure: &Erasure) -> Result<Found, StoreError> {
    if erasure.rows && migrate::is_pending(session.client()).await? {
        return Err(StoreError::Unavailable(
            "the usage of older rows is still being counted, and until then none may go".to_owned(),
        ));
    }
    let found = find(session, erasure).await?;
    // Hashes of what was said, by which later calls would be tied to these.
    let forget = format!(
        "DELETE FROM llm_turns WHERE conversation IN
            (SELECT conversation FROM llm_logs WHERE {ROWS} AND started_at > now() - interval '8 days')"
    );
    session.client().execute(&forget, &[&erasure.consumer, &erasure.before]).await?;
    for (table, rows) in &found.partitions {
        let (change, which) = if erasure.rows {
            (format!("DELETE FROM {table}"), ROWS.to_owned())
        } else {
            (format!("UPDATE {table} {WITHOUT_CONTENT}"), format!("{ROWS} AND {HAS_CONTENT}"))
        };
        // What the rows refer to is noted by the statement that takes them: it must not be forgotten, whatever happens next.
        let statement = format!(
            "WITH erased AS MATERIALIZED (SELECT ctid AS place, started_at, contents FROM {table} WHERE {which} FOR UPDATE),
            noted AS (INSERT INTO llm_erased_content (day, hash)
                SELECT DISTINCT (started_at AT TIME ZONE 'UTC')::date, llm_content_hashes(contents) FROM erased
                ON CONFLICT DO NOTHING)
            {change} WHERE ctid = ANY (ARRAY(SELECT place FROM erased))"
        );
        session.client().execute(&statement, &[&erasure.consumer, &erasure.before]).await?;
        session.batch(&format!("VACUUM {table}")).await?;
        info!(table = table.as_str(), rows = *rows; "erased {rows} rows of {table}");
    }
    remove_content(session).await?;
    if found.rejected > 0 {
        let statement = format!("DELETE FROM llm_rejected WHERE {REJECTED}");
        session.client().execute(&statement, &[&erasure.consumer, &erasure.before]).await?;
        session.batch("VACUUM llm_rejected").await?;
    }
    Ok(found)
}
