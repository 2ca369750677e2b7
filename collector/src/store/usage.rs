//! Usage and cost by hour, which `sql/V3__usage.sql` counts when rows are inserted.
//!
//! Reads nothing of `llm_logs`: what was used stays known when the rows are gone.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::pool::{PooledConnection, StoreError};
use crate::config::Dimension;

/// What statements counted, and is added up at once: some tens of milliseconds.
const PIECE: i32 = 2_000;

/// Longest wait for a report over years.
const REPORT_TIMEOUT: Duration = Duration::from_secs(120);

/// Adds some of what was counted since the last time to `llm_usage`. `true` when there may be more.
pub async fn compact_piece(connection: &PooledConnection<'_>) -> Result<bool, StoreError> {
    let row = connection.bounded(connection.client().query_one("SELECT llm_compact_usage_piece($1)", &[&PIECE])).await?;
    Ok(row.try_get::<_, i64>(0)? >= i64::from(PIECE))
}

/// What to add up.
#[derive(Debug)]
pub struct Question<'q> {
    /// By what.
    pub by: &'q [Dimension],
    /// From this hour on.
    pub since: DateTime<Utc>,
    /// Up to this hour, without it.
    pub until: DateTime<Utc>,
    /// Hours that days and months are ahead of UTC.
    pub offset_hours: i32,
    /// Only this consumer.
    pub consumer: Option<&'q str>,
    /// Only this model.
    pub model: Option<&'q str>,
}

/// Calls, added up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Calls.
    pub calls: i64,
    /// Calls that failed.
    pub errors: i64,
    /// Tokens of prompts, as reported.
    pub prompt_tokens: i64,
    /// Tokens of prompts that came from the cache.
    pub cached_tokens: i64,
    /// Tokens of answers, reasoning among them.
    pub completion_tokens: i64,
    /// Tokens of answers that were reasoning.
    pub reasoning_tokens: i64,
    /// Currency and amount, as decimal text: different currencies do not add up.
    pub costs: Vec<(String, String)>,
    /// p50, p95 and p99 in milliseconds; `None` where no call has a latency.
    pub latency_percentiles_ms: Option<[i32; 3]>,
}

/// Usage by the dimensions asked for, in their order, and all of it together.
#[derive(Debug, Default)]
pub struct Answer {
    /// For each combination of values that occurs.
    pub rows: Vec<(Vec<String>, Usage)>,
    /// Of all rows.
    pub total: Usage,
}

/// The value of a dimension as text; `local` is the hour on the clock asked for.
fn expression(dimension: Dimension) -> &'static str {
    match dimension {
        Dimension::Consumer => "consumer_username",
        Dimension::Model => "model",
        Dimension::Month => "to_char(local, 'YYYY-MM')",
        Dimension::Day => "to_char(local, 'YYYY-MM-DD')",
        Dimension::Hour => "to_char(local, 'YYYY-MM-DD HH24:00')",
    }
}

/// Adds up. Names are compared as far as they are kept.
pub async fn ask(connection: PooledConnection<'_>, question: &Question<'_>) -> Result<Answer, StoreError> {
    let keys: Vec<&str> = question.by.iter().copied().map(expression).collect();
    // Rows of each combination and currency first, and of everything (keys is null there); then currencies side by side.
    let query = format!(
        "SELECT keys, sum(calls)::bigint, sum(errors)::bigint, sum(prompt_tokens)::bigint, sum(cached_tokens)::bigint,
            sum(completion_tokens)::bigint, sum(reasoning_tokens)::bigint,
            llm_latency_percentiles(sum(latencies), sum(timed_calls)::bigint),
            coalesce(array_agg(currency ORDER BY currency) FILTER (WHERE currency <> ''), '{{}}'),
            coalesce(array_agg(trim_scale(cost)::text ORDER BY currency) FILTER (WHERE currency <> ''), '{{}}')
        FROM (
            SELECT keys, currency, sum(calls) AS calls, sum(errors) AS errors, sum(prompt_tokens) AS prompt_tokens,
                sum(cached_tokens) AS cached_tokens, sum(completion_tokens) AS completion_tokens,
                sum(reasoning_tokens) AS reasoning_tokens, sum(latencies) AS latencies, sum(timed_calls) AS timed_calls,
                sum(cost) AS cost
            FROM (
                SELECT ARRAY[{}] AS keys, used.*
                FROM (SELECT *, hour AT TIME ZONE 'UTC' + make_interval(hours => $5) AS local FROM llm_usage_costs) used
                WHERE hour >= $1 AND hour < $2
                    AND ($3::text IS NULL OR consumer_username = left($3, 200)) AND ($4::text IS NULL OR model = left($4, 200))
            ) keyed
            GROUP BY GROUPING SETS ((keys, currency), (currency))
        ) summed
        GROUP BY keys ORDER BY keys COLLATE \"C\"",
        keys.join(", ")
    );
    let connection = connection.with_timeout(REPORT_TIMEOUT);
    let Question { since, until, offset_hours, consumer, model, .. } = question;
    let client = connection.client();
    let rows = connection.bounded(client.query(&query, &[since, until, consumer, model, offset_hours])).await?;
    let mut answer = Answer::default();
    for row in rows {
        let currencies: Vec<String> = row.try_get(8)?;
        let amounts: Vec<String> = row.try_get(9)?;
        let percentiles: Option<Vec<i32>> = row.try_get(7)?;
        let usage = Usage {
            calls: row.try_get(1)?,
            errors: row.try_get(2)?,
            prompt_tokens: row.try_get(3)?,
            cached_tokens: row.try_get(4)?,
            completion_tokens: row.try_get(5)?,
            reasoning_tokens: row.try_get(6)?,
            costs: currencies.into_iter().zip(amounts).collect(),
            latency_percentiles_ms: percentiles.and_then(|percentiles| percentiles.try_into().ok()),
        };
        match row.try_get(0)? {
            Some(keys) => answer.rows.push((keys, usage)),
            None => answer.total = usage,
        }
    }
    Ok(answer)
}

/// The hour of the last call of everybody whose calls were counted.
pub async fn last_hours(connection: PooledConnection<'_>) -> Result<Vec<(String, DateTime<Utc>)>, StoreError> {
    // What is not added up yet counts as well.
    const QUERY: &str = "SELECT consumer_username, max(hour) FROM (
            SELECT consumer_username, hour FROM llm_usage UNION ALL SELECT consumer_username, hour FROM llm_usage_deltas
        ) used GROUP BY 1";
    let connection = connection.with_timeout(REPORT_TIMEOUT);
    let client = connection.client();
    let rows = connection.bounded(client.query(QUERY, &[])).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}
