//! The state of the database as gauges show it: a handful of queries, several times a minute, none of which reads `llm_logs`.

use super::pool::{PooledConnection, StoreError};

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Days from tomorrow on that have a partition.
    pub partitions_ahead: i64,
    /// Bytes of the database.
    pub database_bytes: i64,
    /// Rows of `llm_rejected`, 100,000 at most.
    pub rejected_entries: i64,
    /// Addresses that each consumer called from in the last hour.
    pub addresses: Vec<(String, i64)>,
}

/// Looks at the database. Of consumers at most `max_consumers`, those with the most addresses.
pub async fn read(connection: &PooledConnection<'_>, max_consumers: i64) -> Result<State, StoreError> {
    // Of rejected entries somebody has to look at a hundred thousand as soon as at more of them.
    const SIZES: &str = "SELECT (SELECT count(*) FROM llm_partition_days WHERE day > (now() AT TIME ZONE 'UTC')::date),
        pg_database_size(current_database()), (SELECT count(*) FROM (SELECT FROM llm_rejected LIMIT 100000) kept)";
    const ADDRESSES: &str = "SELECT consumer_username, count(*) FROM llm_addresses
        WHERE seen_at > now() - interval '1 hour' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT $1";
    let row = connection.bounded(connection.client().query_one(SIZES, &[])).await?;
    let addresses = connection.bounded(connection.client().query(ADDRESSES, &[&max_consumers])).await?;
    Ok(State {
        partitions_ahead: row.try_get(0)?,
        database_bytes: row.try_get(1)?,
        rejected_entries: row.try_get(2)?,
        addresses: addresses.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, StoreError>>()?,
    })
}
