//! Indexes of prompts and answers, made of hours and days that are over.
//!
//! What is due, and how `llm_search` uses it, is in `sql/V6__search.sql`. Nothing waits for an index while it is made, and one
//! collector at a time makes them, one after the other, newest first. Deliberately absent: removing them when the setting is off, since
//! they took hours to make; they go with their partitions, or by hand.

use std::time::Instant;

use log::{debug, info};

use super::pool::StoreError;
use super::session::{Session, Work};

/// Makes the indexes that are due, unless another collector is at it.
///
/// Needs the extension `pg_trgm`, which PostgreSQL lets the owner of a database create where its files are installed.
pub async fn index(session: &Session) -> Result<(), StoreError> {
    if !session.try_lock(Work::Search).await? {
        debug!("another collector makes the indexes for searching");
        return Ok(());
    }
    let client = session.client();
    // Without the question, PostgreSQL says each time that it is there.
    if client.query_opt("SELECT FROM pg_extension WHERE extname = 'pg_trgm'", &[]).await?.is_none() {
        session.batch("CREATE EXTENSION IF NOT EXISTS pg_trgm").await?;
    }
    while let Some(due) =
        client.query_opt("SELECT partition, index, statement, whole_day FROM llm_search_due LIMIT 1", &[]).await?
    {
        let (partition, index, statement): (String, String, String) = (due.try_get(0)?, due.try_get(1)?, due.try_get(2)?);
        let started = Instant::now();
        // One that was interrupted is there, but of no use.
        session.batch(&format!("DROP INDEX CONCURRENTLY IF EXISTS {index}")).await?;
        session.batch(&statement).await?;
        info!(
            index = index.as_str(), partition = partition.as_str();
            "search: made index {index} in {:.1} s", started.elapsed().as_secs_f64()
        );
        if due.try_get(3)? {
            drop_hours(session, &partition).await?;
        }
    }
    Ok(())
}

/// Drops the indexes of single hours, when that of their day is there.
async fn drop_hours(session: &Session, partition: &str) -> Result<(), StoreError> {
    let hours = "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        WHERE indrelid = to_regclass($1) AND relname LIKE '%\\_search\\___'";
    for hour in session.client().query(hours, &[&partition]).await? {
        session.batch(&format!("DROP INDEX CONCURRENTLY IF EXISTS {}", hour.try_get::<_, String>(0)?)).await?;
    }
    Ok(())
}
