//! `llm_refused_users`: how often the gateway refused a user with a valid key, beyond the few calls that are rows.
//!
//! Invariant: nodes report totals of minutes that are over, so that a report that comes twice, or late, changes nothing.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use tokio_postgres::types::{ToSql, Type};

use super::kept_source;
use crate::store::pool::{PooledConnection, StoreError};

/// Calls of a user that were refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RefusedUser {
    /// The minute in which they began.
    pub minute: DateTime<Utc>,
    /// Whose they were; empty where there were too many to be told apart.
    pub username: String,
    /// What answered in place of the model server: `router`, `quota`, `queue`, or `kong` for all else.
    pub refused_by: String,
    /// What they were answered.
    pub status: i32,
}

/// Notes what a node of Kong counted. `count` is its total for that user, minute, status and refusal so far: the greatest that was ever
/// reported stands. Returns, by what refused them, how many calls are reported for the first time.
pub async fn report(
    connection: &PooledConnection<'_>,
    node: &str,
    totals: &[(RefusedUser, i64)],
) -> Result<Vec<(String, u64)>, StoreError> {
    // A row that was there has an xmax.
    const REPORT: &str = "INSERT INTO llm_refused_users AS known (minute, username, refused_by, status, source, count)
        SELECT minute, username, refused_by, status, $6::text, total
        FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::int[], $5::bigint[])
            AS new (minute, username, refused_by, status, total)
        ON CONFLICT (minute, username, refused_by, status, source)
            DO UPDATE SET count = excluded.count WHERE known.count < excluded.count
        RETURNING refused_by, CASE WHEN xmax = 0 THEN count ELSE 0 END";
    // In the order of the key, each once: reports of several nodes at a time cannot wait for each other in a circle.
    let mut sorted: BTreeMap<&RefusedUser, i64> = BTreeMap::new();
    for (refused, total) in totals.iter().filter(|(_, total)| *total > 0) {
        let known = sorted.entry(refused).or_default();
        *known = (*known).max(*total);
    }
    if sorted.is_empty() {
        return Ok(Vec::new());
    }
    let source = kept_source(node);
    let minutes: Vec<DateTime<Utc>> = sorted.keys().map(|refused| refused.minute).collect();
    let usernames: Vec<&str> = sorted.keys().map(|refused| refused.username.as_str()).collect();
    let refusers: Vec<&str> = sorted.keys().map(|refused| refused.refused_by.as_str()).collect();
    let statuses: Vec<i32> = sorted.keys().map(|refused| refused.status).collect();
    let totals: Vec<i64> = sorted.into_values().collect();
    let parameters: [(&(dyn ToSql + Sync), Type); 6] = [
        (&minutes, Type::TIMESTAMPTZ_ARRAY),
        (&usernames, Type::TEXT_ARRAY),
        (&refusers, Type::TEXT_ARRAY),
        (&statuses, Type::INT4_ARRAY),
        (&totals, Type::INT8_ARRAY),
        (&source, Type::TEXT),
    ];
    let rows = connection.bounded(connection.client().query_typed(REPORT, &parameters)).await?;
    let new = rows.iter().map(|row| Ok((row.try_get(0)?, u64::try_from(row.try_get::<_, i64>(1)?).unwrap_or_default())));
    new.collect()
}
