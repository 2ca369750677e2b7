//! Entries that Kong lost before they reached a collector.
//!
//! The plugin numbers the entries of each Kong worker from 1. Which numbers arrived is kept in PostgreSQL, because several
//! collectors each see a part of them; a hole that does not close in time is found by whichever collector looks first, counted
//! once, and kept in `llm_sequence_gaps`. Reordering, repeats, and restarts of Kong or collectors make no holes, and what comes after
//! all is taken back. The SQL is in `sql/V8__gaps_that_close.sql`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::pool::{PooledConnection, StoreError};

/// How long numbers are taken in at a time: what is left is taken in the next time, and until then no holes are looked for.
const MAX_CLOSING: Duration = Duration::from_secs(2);

/// The rest between two pieces of that, in which somebody else may want the server, or another collector is at it.
const PIECE_PAUSE: Duration = Duration::from_millis(20);

/// Numbers that never arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Identity of the worker of Kong.
    pub worker: String,
    /// First missing number.
    pub first: i64,
    /// Last missing number.
    pub last: i64,
}

impl Gap {
    /// How many entries are missing.
    pub fn entries(&self) -> u64 {
        u64::try_from(self.last - self.first + 1).unwrap_or(0)
    }
}

/// The holes that are older than `grace` and were not found before.
pub async fn find(connection: &PooledConnection<'_>, grace: Duration) -> Result<Vec<Gap>, StoreError> {
    let query = "SELECT gap_worker, gap_first, gap_last FROM llm_find_sequence_gaps(make_interval(secs => $1))
        UNION ALL SELECT gap_worker, gap_first, gap_last FROM llm_find_tail_gaps(make_interval(secs => $1))";
    let rows = connection.bounded(connection.client().query(query, &[&grace.as_secs_f64()])).await?;
    let gap = |row: &tokio_postgres::Row| Ok(Gap { worker: row.try_get(0)?, first: row.try_get(1)?, last: row.try_get(2)? });
    rows.iter().map(gap).collect()
}

/// Takes back holes whose numbers came after all. Returns the worker and how many of its numbers came.
pub async fn close(connection: &PooledConnection<'_>) -> Result<Vec<(String, u64)>, StoreError> {
    const CLOSE: &str = "SELECT gap_worker, arrived FROM llm_close_sequence_gaps()";
    const LEFT: &str = "SELECT EXISTS (SELECT FROM llm_sequences
        WHERE NOT merged AND place > (SELECT place FROM llm_sequences_merged_to) AND place <= $1)";
    const LAST: &str = "SELECT coalesce(max(place), 0) FROM llm_sequences
        WHERE NOT merged AND place > (SELECT place FROM llm_sequences_merged_to)";
    let client = connection.client();
    let last: i64 = connection.bounded(client.query_one(LAST, &[])).await?.try_get(0)?;
    let (began, mut closed) = (Instant::now(), BTreeMap::<String, u64>::new());
    loop {
        for row in connection.bounded(client.query(CLOSE, &[])).await? {
            *closed.entry(row.try_get(0)?).or_default() += u64::try_from(row.try_get::<_, i64>(1)?).unwrap_or(0);
        }
        let is_left: bool = connection.bounded(client.query_one(LEFT, &[&last])).await?.try_get(0)?;
        if !is_left || began.elapsed() > MAX_CLOSING {
            return Ok(closed.into_iter().collect());
        }
        tokio::time::sleep(PIECE_PAUSE).await;
    }
}

/// Entries that are missing of those holes that were found within the last hour.
pub async fn missing(connection: &PooledConnection<'_>) -> Result<i64, StoreError> {
    let query = "SELECT coalesce(sum(last_seq - first_seq + 1), 0)::bigint FROM llm_sequence_gaps WHERE found_at > now() - interval '1 hour'";
    Ok(connection.bounded(connection.client().query_one(query, &[])).await?.try_get(0)?)
}

/// Forgets the numbers of workers that ended long ago.
pub async fn forget(connection: &PooledConnection<'_>) -> Result<(), StoreError> {
    connection.bounded(connection.client().execute("SELECT llm_forget_sequences()", &[])).await.map(drop)
}
