//! What PostgreSQL knows of feeds ([`crate::feed`]): which slices of `llm_logs` are over and not copied as they are, their rows, and the
//! notes about what was copied (`sql/V25__feed.sql`).
//!
//! Invariant: a hint is read before the snapshot that a slice is copied from, so that what is committed in between changes it.
//! Deliberately absent: what becomes of the rows.

pub mod columns;
pub mod known;
mod prices;

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio_postgres::{Row, RowStream};

use super::pool::StoreError;
use super::session::Session;
use columns::expressions;
pub use prices::PricePeriod;
use prices::UNCACHED_TOKENS;

/// How long after its end a slice is copied, as PostgreSQL reads it: a call is logged when its answer has ended, and Kong may hold the entry
/// for a moment. What comes later is no harm: then the slice is copied once more.
const SETTLED_AFTER: &str = "15 minutes";

/// What is copied, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feed {
    /// Its name.
    pub name: String,
    /// What it fills: `parquet`.
    pub kind: &'static str,
    /// Identity of what it fills.
    pub target: String,
    /// Hours of a slice: 1 or 24.
    pub slice_hours: i32,
    /// Whether what people wrote is copied, too.
    pub has_content: bool,
}

/// A stretch of time that is copied at once.
#[derive(Debug, Clone)]
pub struct Slice {
    /// Its beginning.
    pub since: DateTime<Utc>,
    /// Its end, which does not belong to it.
    pub until: DateTime<Utc>,
    /// 1, or more where rows came after earlier ones had been dropped.
    pub part: i32,
    /// What `llm_feed_days` said of its rows.
    pub hint: String,
    /// What was copied before.
    pub before: Option<Copied>,
}

/// What was copied of a slice.
#[derive(Debug, Clone)]
pub struct Copied {
    /// `llm_feed_state` of the rows.
    pub state: String,
    /// The manifest.
    pub manifest: Value,
}

/// What the rows of a slice add up to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// `llm_feed_state` of the rows.
    pub state: String,
    /// How many there are.
    pub rows: i64,
    /// How many of them have what people wrote in a column of its own.
    pub rows_with_content: i64,
    /// The highest `id`; 0 without rows.
    pub last_id: i64,
    /// How many rows have a higher `id` than the one given.
    pub later_rows: i64,
    /// Tokens, each with its name, as `report` has them.
    pub tokens: [(&'static str, i64); 6],
    /// Currency, cost of tokens that were reported, and of those that were estimated; as decimal text.
    pub costs: Vec<(String, String, String)>,
}

/// Takes the lock of a feed, which ends with the session; `false` when another worker has it.
pub async fn try_lock(session: &Session, name: &str) -> Result<bool, StoreError> {
    let query = "SELECT pg_try_advisory_lock(hashtext('llm_logs'), hashtext('feed ' || $1::text))";
    Ok(session.client().query_one(query, &[&name]).await?.try_get(0)?)
}

/// Slices that are over and that the feed has not, or not as they are; the oldest first.
pub async fn due(session: &Session, feed: &Feed) -> Result<Vec<Slice>, StoreError> {
    const QUERY: &str = "WITH over AS (
            SELECT starts_at, starts_at + make_interval(hours => $2) AS ends_at, hint
            FROM llm_feed_days CROSS JOIN generate_series(0, 23, $2) AS hour
            CROSS JOIN LATERAL (SELECT (day + make_interval(hours => hour)) AT TIME ZONE 'UTC' AS starts_at) slice
            WHERE starts_at + make_interval(hours => $2) + $3::text::interval <= now()
        ), copied AS (
            SELECT DISTINCT ON (starts_at) starts_at, part, is_sealed, state, hint, manifest FROM llm_feed_slices
            WHERE feed = $1 ORDER BY starts_at, part DESC
        )
        SELECT over.starts_at, over.ends_at, over.hint, part + is_sealed::integer, state, manifest, is_sealed
        FROM over LEFT JOIN copied USING (starts_at)
        WHERE CASE WHEN is_sealed
            THEN EXISTS (SELECT FROM llm_logs WHERE started_at >= over.starts_at AND started_at < over.ends_at)
            ELSE copied.hint IS DISTINCT FROM over.hint END
        ORDER BY over.starts_at";
    let rows = session.client().query(QUERY, &[&feed.name, &feed.slice_hours, &SETTLED_AFTER]).await?;
    rows.iter().map(slice).collect()
}

fn slice(row: &Row) -> Result<Slice, StoreError> {
    let is_sealed: Option<bool> = row.try_get(6)?;
    // A sealed part stays as it is: what is in the table now is another one.
    let before = if is_sealed == Some(false) { Some(Copied { state: row.try_get(4)?, manifest: row.try_get(5)? }) } else { None };
    Ok(Slice {
        since: row.try_get(0)?,
        until: row.try_get(1)?,
        hint: row.try_get(2)?,
        part: row.try_get::<_, Option<i32>>(3)?.unwrap_or(1),
        before,
    })
}

/// Notes which slices are no longer in the table: a hand dropped their partition. Their files stay.
pub async fn seal_gone(session: &Session, feed: &Feed) -> Result<u64, StoreError> {
    const SEAL: &str = "UPDATE llm_feed_slices SET is_sealed = true WHERE feed = $1 AND NOT is_sealed
        AND (starts_at AT TIME ZONE 'UTC')::date NOT IN (SELECT day FROM llm_feed_days)";
    Ok(session.client().execute(SEAL, &[&feed.name]).await?)
}

/// Begins to look at the rows as they are now; until [`end`] nothing of them changes for this session.
pub async fn begin(session: &Session) -> Result<(), StoreError> {
    // By the index of times, and sorted as far as that leaves open: a sort of all rows would write texts to temporary files.
    session.batch("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL enable_sort = off; SET LOCAL jit = off").await
}

/// Ends that look.
pub async fn end(session: &Session) -> Result<(), StoreError> {
    session.batch("COMMIT").await
}

/// Adds up the rows of a slice. Reads no texts. `last_id` is that of an earlier copy.
pub async fn summary(session: &Session, slice: &Slice, last_id: i64) -> Result<Summary, StoreError> {
    const NAMES: [&str; 6] = ["prompt", "cached", "completion", "reasoning", "estimated_prompt", "estimated_completion"];
    const SUMS: &str = "SELECT llm_feed_state($1, $2), count(*),
            count(*) FILTER (WHERE prompt IS NOT NULL OR response IS NOT NULL OR reasoning IS NOT NULL OR tool_calls IS NOT NULL),
            coalesce(max(id), 0), count(*) FILTER (WHERE id > $3),
            coalesce(sum(prompt_tokens), 0)::bigint, coalesce(sum(cached_tokens), 0)::bigint,
            coalesce(sum(completion_tokens), 0)::bigint, coalesce(sum(reasoning_tokens), 0)::bigint,
            coalesce(sum(estimated_prompt_tokens) FILTER (WHERE prompt_tokens IS NULL), 0)::bigint,
            coalesce(sum(estimated_completion_tokens) FILTER (WHERE completion_tokens IS NULL), 0)::bigint
        FROM llm_logs WHERE started_at >= $1 AND started_at < $2";
    let row = session.client().query_one(SUMS, &[&slice.since, &slice.until, &last_id]).await?;
    let mut tokens = NAMES.map(|name| (name, 0));
    for (position, (_, sum)) in tokens.iter_mut().enumerate() {
        *sum = row.try_get(5 + position)?;
    }
    Ok(Summary {
        state: row.try_get(0)?,
        rows: row.try_get(1)?,
        rows_with_content: row.try_get(2)?,
        last_id: row.try_get(3)?,
        later_rows: row.try_get(4)?,
        tokens,
        costs: prices::costs(session, slice).await?,
    })
}

/// What came before the columns that are computed of it: see [`rows`].
#[derive(Debug, Clone, Copy)]
pub struct Computed {
    /// Where the beginning of the hour is, in microseconds since 1970; behind it the model as usage knows it, and the prompt tokens that did
    /// not come from the cache.
    pub first: usize,
}

/// The rows of a slice in the order of their times: the columns of [`columns::COLUMNS`] that are not computed, then what is [`Computed`] of.
pub async fn rows(session: &Session, feed: &Feed, slice: &Slice) -> Result<(RowStream, Computed), StoreError> {
    let expressions = expressions(feed.has_content);
    let query = format!(
        "SELECT {}, (extract(epoch FROM date_trunc('hour', l.started_at, $3)) * 1000000)::bigint,
            left(coalesce(l.model, 'unknown'), 200), ({UNCACHED_TOKENS})::bigint
        FROM llm_logs l WHERE l.started_at >= $1 AND l.started_at < $2 ORDER BY l.started_at, l.request_id",
        expressions.join(", ")
    );
    let zone: String = session.client().query_one("SELECT llm_site_zone()", &[]).await?.try_get(0)?;
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&slice.since, &slice.until, &zone];
    let stream = session.client().query_raw(&query, parameters).await?;
    Ok((stream, Computed { first: expressions.len() }))
}

/// The prices that rows of a slice may have.
pub async fn price_periods(session: &Session) -> Result<Vec<PricePeriod>, StoreError> {
    prices::periods(session).await
}

/// Notes that a slice is copied.
pub async fn note(session: &Session, feed: &Feed, slice: &Slice, state: &str, manifest: &Value) -> Result<(), StoreError> {
    const NOTE: &str = "INSERT INTO llm_feed_slices (feed, starts_at, ends_at, part, state, hint, manifest)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        ON CONFLICT (feed, starts_at, part) DO UPDATE SET
            state = excluded.state, hint = excluded.hint, manifest = excluded.manifest";
    let Slice { since, until, part, hint, .. } = slice;
    session.client().execute(NOTE, &[&feed.name, since, until, part, &state, hint, manifest]).await?;
    Ok(())
}

/// Notes what a round left: up to where everything is copied, how much there is, and why it failed, if it did.
pub async fn note_round(session: &Session, feed: &Feed, failure: Option<&str>) -> Result<(), StoreError> {
    // Before the first slice that is due nothing is missing; without one, up to the newest slice that is over.
    const NOTE: &str = "UPDATE llm_feeds SET looked_at = now(), failure = $3,
            covered_until = coalesce($4, date_bin(make_interval(hours => $2), now() - $5::text::interval, '2001-01-01 00:00:00+00')),
            (files, rows, bytes) = (SELECT count(*), coalesce(sum((manifest ->> 'rows')::bigint), 0)::bigint,
                coalesce(sum((manifest ->> 'bytes')::bigint), 0)::bigint FROM llm_feed_slices WHERE feed = $1)
        WHERE name = $1";
    let oldest = due(session, feed).await?.first().map(|slice| slice.since);
    session.client().execute(NOTE, &[&feed.name, &feed.slice_hours, &failure, &oldest, &SETTLED_AFTER]).await?;
    Ok(())
}
