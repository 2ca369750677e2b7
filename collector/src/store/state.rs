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

/// The upkeep that only the owner of the tables can do, as PostgreSQL knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpkeepState {
    /// Seconds since it was last at work, where another process does it.
    pub seconds: Option<i64>,
    /// Whether retention removes nothing until somebody confirms it.
    pub retention_is_held: bool,
}

/// Looks for signs of upkeep; where this role owns the tables, it is this process that does it.
pub async fn upkeep(connection: &PooledConnection<'_>) -> Result<UpkeepState, StoreError> {
    const QUERY: &str = "SELECT CASE WHEN NOT has_table_privilege('llm_upkeep', 'UPDATE')
            THEN greatest(extract(epoch FROM now() - seen_at), 0)::bigint END, retention_held IS NOT NULL
        FROM llm_upkeep";
    let row = connection.bounded(connection.client().query_opt(QUERY, &[])).await?;
    let Some(row) = row else { return Ok(UpkeepState { seconds: None, retention_is_held: false }) };
    Ok(UpkeepState { seconds: row.try_get(0)?, retention_is_held: row.try_get(1)? })
}

/// Notes that upkeep is at work; `false` where this role is not the one that does it.
pub async fn note_upkeep(connection: &PooledConnection<'_>) -> Result<bool, StoreError> {
    const MAY: &str = "SELECT has_table_privilege('llm_upkeep', 'UPDATE')";
    let client = connection.client();
    if !connection.bounded(client.query_one(MAY, &[])).await?.try_get::<_, bool>(0)? {
        return Ok(false);
    }
    connection.bounded(client.execute("UPDATE llm_upkeep SET seen_at = now()", &[])).await?;
    Ok(true)
}
