//! What `doctor` asks PostgreSQL about limits: facts, no judgement.
//!
//! Invariant: reads only, and of rows only those of the last minutes, at most [`RECENT_ROWS`].

use tokio_postgres::Client;

use super::inspect::{RECENT_ROWS, bounded};
use super::pool::StoreError;
use super::quotas::{COLUMNS, Quota, quota};

/// A limit, and what PostgreSQL knows of what it is for.
#[derive(Debug, Clone)]
pub struct Limit {
    /// The limit itself.
    pub quota: Quota,
    /// Whether its user or team, where it has one, was ever in a call.
    pub has_called: bool,
    /// Whether a model of its pattern ever was.
    pub has_model: bool,
    /// Of a cost: whether any price of now is in its currency.
    pub has_price: bool,
    /// Of a cost: models of its pattern, called in the last week, that have no price.
    pub unpriced: Vec<String>,
    /// Of a cost: currencies in which the others of these have theirs.
    pub currencies: Vec<String>,
}

/// Calls whose numbers are higher than what their node told when it last asked for limits.
#[derive(Debug, Clone)]
pub struct Silent {
    /// The node; `None` where the workers of these calls never were in any node's report.
    pub node: Option<String>,
    /// How many of the newest rows they are.
    pub calls: i64,
    /// Seconds since the node told something, a minute too many where it had nothing new; `None` where it never did.
    pub seconds: Option<i64>,
}

/// Notices that are due for longer than a webhook may be away unnoticed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Untold {
    /// How many.
    pub notices: i64,
    /// For how long the oldest waits.
    pub seconds: i64,
    /// How often the one was tried that was tried most often.
    pub tries: i32,
    /// Whether others were taken meanwhile.
    pub others_taken: bool,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// All limits; where there are none, nothing else is known.
    pub limits: Vec<Limit>,
    /// Models that were ever called, the first twenty by name.
    pub models: Vec<String>,
    /// Nodes that send entries and do not ask for limits.
    pub silent: Vec<Silent>,
    /// Notices that nobody took.
    pub untold: Untold,
}

/// Looks at limits. An error where the schema has no place for them.
pub async fn facts(client: &Client) -> Result<Facts, StoreError> {
    let limits = limits(client).await?;
    if limits.is_empty() {
        return Ok(Facts::default());
    }
    const MODELS: &str = "SELECT ARRAY(SELECT model FROM llm_usage_models UNION SELECT model FROM llm_usage_deltas
        WHERE forwarded_calls > 0 ORDER BY 1 LIMIT 20)";
    let models = bounded(client.query_one(MODELS, &[])).await?.try_get(0)?;
    Ok(Facts { limits, models, silent: silent(client).await?, untold: untold(client).await? })
}

async fn limits(client: &Client) -> Result<Vec<Limit>, StoreError> {
    // Prices are found as `llm_quota_used` finds them. Deltas are what is not in the other tables yet.
    let query = format!(
        "WITH callers AS MATERIALIZED (
            SELECT u.consumer_username, u.team FROM (
                SELECT consumer_username, team FROM llm_usage_days UNION SELECT consumer_username, team FROM llm_usage_deltas) u
            WHERE EXISTS (SELECT FROM llm_quotas n WHERE n.subject_kind IN ('user', 'team'))
        ), week AS MATERIALIZED (
            SELECT u.model, sum(u.tokens) > 0 AS has_tokens FROM (
                SELECT d.model, d.forwarded_calls, d.prompt_tokens + d.completion_tokens + d.estimated_prompt_tokens
                    + d.estimated_completion_tokens AS tokens FROM llm_usage_days d WHERE d.day > now() - interval '7 days'
                UNION ALL
                SELECT d.model, d.forwarded_calls, d.prompt_tokens + d.completion_tokens + d.estimated_prompt_tokens
                    + d.estimated_completion_tokens FROM llm_usage_deltas d WHERE d.hour > now() - interval '7 days') u
            WHERE u.forwarded_calls > 0 GROUP BY 1
        ), priced AS MATERIALIZED (
            SELECT w.model, (SELECT p.currency FROM llm_model_prices p WHERE w.model LIKE p.model_pattern AND p.valid_from <= now()
                ORDER BY length(p.model_pattern) DESC, p.valid_from DESC, p.model_pattern LIMIT 1) AS currency
            FROM week w WHERE w.has_tokens AND w.model <> 'unknown'
        )
        SELECT {COLUMNS},
            q.subject_kind NOT IN ('user', 'team') OR EXISTS (SELECT FROM callers c
                WHERE CASE q.subject_kind WHEN 'user' THEN c.consumer_username ELSE c.team END = q.subject_name),
            EXISTS (SELECT FROM llm_usage_models m WHERE m.model LIKE q.models) OR EXISTS (SELECT FROM week w WHERE w.model LIKE q.models),
            EXISTS (SELECT FROM llm_model_prices p WHERE p.currency = q.currency AND p.valid_from <= now()),
            ARRAY(SELECT p.model FROM priced p WHERE q.unit = 'cost' AND p.model LIKE q.models AND p.currency IS NULL ORDER BY 1),
            ARRAY(SELECT DISTINCT p.currency FROM priced p WHERE q.unit = 'cost' AND p.model LIKE q.models AND p.currency IS NOT NULL
                ORDER BY 1)
        FROM llm_quotas q ORDER BY q.id"
    );
    let rows = bounded(client.query(&query, &[])).await?;
    let limit = |row: &tokio_postgres::Row| {
        Ok(Limit {
            quota: quota(row)?,
            has_called: row.try_get(9)?,
            has_model: row.try_get(10)?,
            has_price: row.try_get(11)?,
            unpriced: row.try_get(12)?,
            currencies: row.try_get(13)?,
        })
    };
    rows.iter().map(limit).collect()
}

/// A node tells how far its workers have counted when it asks for limits, in the same second in which they count. So what stands above
/// that for half a minute was logged without asking. What came longer ago tells nothing of now: a Kong that stops sends its last entries
/// and asks no more, and one that was started again asks with its first entry.
async fn silent(client: &Client) -> Result<Vec<Silent>, StoreError> {
    const QUERY: &str = "WITH newest AS MATERIALIZED (
            SELECT raw_log->'llm'->>'worker' AS worker, created_at,
                CASE jsonb_typeof(raw_log->'llm'->'seq') WHEN 'number' THEN (raw_log->'llm'->>'seq')::numeric END AS seq
            FROM llm_logs WHERE started_at > now() - interval '1 hour' ORDER BY started_at DESC LIMIT $1
        ), nodes AS (
            SELECT node, max(seen_at) AS seen_at FROM llm_workers GROUP BY node
        )
        SELECT w.node, count(*), extract(epoch FROM now() - max(o.seen_at))::bigint
        FROM newest n LEFT JOIN llm_workers w ON w.worker = n.worker LEFT JOIN nodes o ON o.node = w.node
        WHERE n.worker IS NOT NULL AND n.created_at > now() - interval '10 minutes'
            AND CASE WHEN w.worker IS NULL THEN n.created_at < now() - interval '1 minute'
                ELSE NOT w.ended AND n.seq > w.given AND n.created_at < now() - interval '30 seconds'
                    AND o.seen_at < now() - interval '30 seconds' END
        GROUP BY w.node ORDER BY 2 DESC LIMIT 10";
    let rows = bounded(client.query(QUERY, &[&RECENT_ROWS])).await?;
    rows.iter().map(|row| Ok(Silent { node: row.try_get(0)?, calls: row.try_get(1)?, seconds: row.try_get(2)? })).collect()
}

async fn untold(client: &Client) -> Result<Untold, StoreError> {
    // Whoever posts tries again after 15 minutes at most: what was tried and then left for longer is of a webhook that is set no more.
    const QUERY: &str =
        "SELECT count(*), coalesce(extract(epoch FROM now() - min(noted_at)), 0)::bigint, coalesce(max(tries), 0),
            EXISTS (SELECT FROM llm_quota_notices s WHERE s.sent_at > now() - interval '10 minutes')
        FROM llm_quota_notices WHERE sent_at IS NULL AND ends_at > now() AND noted_at < now() - interval '10 minutes'
            AND (tried_at IS NULL OR tried_at > now() - interval '1 hour')";
    let row = bounded(client.query_one(QUERY, &[])).await?;
    Ok(Untold { notices: row.try_get(0)?, seconds: row.try_get(1)?, tries: row.try_get(2)?, others_taken: row.try_get(3)? })
}
