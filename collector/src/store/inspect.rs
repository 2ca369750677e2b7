//! What `doctor` asks PostgreSQL: facts, no judgement.
//!
//! Invariant: reads only, and of rows only the newest [`RECENT_ROWS`]: the table may hold hundreds of millions. Deliberately
//! absent: what a number means and how to mend it; that is `commands/doctor`.

use std::time::Duration;

use tokio_postgres::{Client, Row};

use super::pool::StoreError;

/// Rows that are looked at one by one. More would take seconds where bodies are large, fewer might miss what happens now and then.
pub const RECENT_ROWS: i64 = 1_000;
/// Statements read sizes of all partitions and the newest rows; a database that needs longer has a problem of its own.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server as a whole.
#[derive(Debug, Clone, Copy)]
pub struct Server {
    /// `max_connections`.
    pub max_connections: i64,
    /// Connections of clients right now, ours among them.
    pub connections: i64,
}

/// The newest rows.
#[derive(Debug, Clone, Copy)]
pub struct Recent {
    /// How many there are, at most [`RECENT_ROWS`].
    pub rows: i64,
    /// With a key in a header, in the URL or in what else Kong logs beside the bodies.
    pub with_key: i64,
    /// Answered calls of which the `llm-audit` plugin knows nothing.
    pub without_audit: i64,
    /// With a body that was cut.
    pub cut: i64,
}

/// What is in the database.
#[derive(Debug, Clone, Copy)]
pub struct Contents {
    /// Age of the newest row; `None` when there is none.
    pub newest_seconds: Option<i64>,
    /// Days after today (UTC) that have a partition.
    pub days_ahead: i64,
    /// Rows that are in no day's partition.
    pub rows_without_day: i64,
    /// Entries that could not become rows.
    pub rejected: i64,
    /// Entries that Kong lost in the last 7 days.
    pub lost: i64,
    /// The newest rows.
    pub recent: Recent,
    /// Size of the database in bytes.
    pub database_bytes: i64,
    /// Size of the largest day in bytes, indexes included.
    pub largest_day_bytes: i64,
}

/// Looks at the server.
pub async fn server(client: &Client) -> Result<Server, StoreError> {
    const QUERY: &str = "SELECT current_setting('max_connections')::bigint,
        (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')";
    let row = one(client, QUERY).await?;
    Ok(Server { max_connections: row.try_get(0)?, connections: row.try_get(1)? })
}

/// The upkeep that only the owner of the tables can do.
#[derive(Debug, Clone)]
pub struct Upkeep {
    /// Seconds since it was last at work.
    pub seconds: i64,
    /// Why retention removes nothing until somebody confirms it.
    pub retention_held: Option<String>,
    /// Which days it keeps because they are not in a feed.
    pub waits_for_feed: Option<String>,
}

/// Looks for signs of upkeep. `None` where a schema has no place for them.
pub async fn upkeep(client: &Client) -> Option<Upkeep> {
    const QUERY: &str = "SELECT extract(epoch FROM now() - seen_at)::bigint, retention_held, waits_for_feed FROM llm_upkeep";
    let row = one(client, QUERY).await.ok()?;
    Some(Upkeep { seconds: row.try_get(0).ok()?, retention_held: row.try_get(1).ok()?, waits_for_feed: row.try_get(2).ok()? })
}

/// The site's time zone, and whether this server knows it. `None` where a schema has no place for it.
pub async fn zone(client: &Client) -> Option<(String, bool)> {
    const QUERY: &str = "SELECT time_zone, llm_is_time_zone(time_zone) FROM llm_site";
    let row = one(client, QUERY).await.ok()?;
    Some((row.try_get(0).ok()?, row.try_get(1).ok()?))
}

/// Sessions of the role with which the collector logs in where it may only add rows.
pub async fn writers(client: &Client) -> Option<i64> {
    const QUERY: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'llm_writer'";
    one(client, QUERY).await.ok()?.try_get(0).ok()
}

/// Looks at what the collector wrote. An error when its schema is not there.
pub async fn contents(client: &Client) -> Result<Contents, StoreError> {
    const COUNTS: &str = "SELECT
        (SELECT extract(epoch FROM now() - max(started_at))::bigint FROM llm_logs),
        (SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'llm_logs'::regclass AND c.relname ~ '^llm_logs_[0-9]{8}$'
           AND to_date(right(c.relname, 8), 'YYYYMMDD') > (now() AT TIME ZONE 'UTC')::date),
        (SELECT count(*) FROM llm_logs_default),
        (SELECT count(*) FROM llm_rejected),
        (SELECT coalesce(sum(last_seq - first_seq + 1), 0)::bigint FROM llm_sequence_gaps WHERE found_at > now() - interval '7 days')";
    const SIZES: &str = "SELECT pg_database_size(current_database()), coalesce(max(pg_total_relation_size(inhrelid)), 0)::bigint
        FROM pg_inherits WHERE inhparent = 'llm_logs'::regclass";
    let counts = one(client, COUNTS).await?;
    let sizes = one(client, SIZES).await?;
    Ok(Contents {
        newest_seconds: counts.try_get(0)?,
        days_ahead: counts.try_get(1)?,
        rows_without_day: counts.try_get(2)?,
        rejected: counts.try_get(3)?,
        lost: counts.try_get(4)?,
        recent: recent(client).await?,
        database_bytes: sizes.try_get(0)?,
        largest_day_bytes: sizes.try_get(1)?,
    })
}

async fn recent(client: &Client) -> Result<Recent, StoreError> {
    // Bodies are left out: what people write is theirs, keys in it are a matter of masking.
    const QUERY: &str = "SELECT count(*),
            count(*) FILTER (WHERE entry->'request'->'headers' ?| array['authorization', 'x-api-key', 'apikey', 'api-key', 'cookie']
                OR entry::text ~ '\\msk-[A-Za-z0-9_-]{16,}'),
            count(*) FILTER (WHERE status = 200 AND entry ? 'service' AND NOT entry ? 'llm'),
            count(*) FILTER (WHERE truncated)
        FROM (SELECT status, truncated, raw_log #- '{request,body}' #- '{response,body}' AS entry
              FROM llm_logs ORDER BY started_at DESC LIMIT $1) newest";
    let row = bounded(client.query_one(QUERY, &[&RECENT_ROWS])).await?;
    Ok(Recent { rows: row.try_get(0)?, with_key: row.try_get(1)?, without_audit: row.try_get(2)?, cut: row.try_get(3)? })
}

async fn one(client: &Client, query: &str) -> Result<Row, StoreError> {
    bounded(client.query_one(query, &[])).await
}

pub(super) async fn bounded<T>(statement: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, StoreError> {
    Ok(tokio::time::timeout(PATIENCE, statement).await.map_err(|_| StoreError::NoAnswer(PATIENCE))??)
}
