//! Usage and cost by hour, which `sql/V3__usage.sql` counts when rows are inserted.
//!
//! Reads nothing of `llm_logs`: what was used stays known when the rows are gone.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::{Map, Value, json};
use tokio_postgres::Row;

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

/// A point in time as somebody says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// It says itself when it is.
    At(DateTime<Utc>),
    /// A time on the clock that is asked for.
    Local(NaiveDateTime),
}

/// Whole hours on a clock.
#[derive(Debug)]
pub struct Hours {
    /// The clock: a time zone as PostgreSQL knows it.
    pub zone: String,
    /// From this hour on.
    pub since: DateTime<Utc>,
    /// Up to this hour, without it.
    pub until: DateTime<Utc>,
    /// The two on that clock, for a person.
    pub texts: [String; 2],
}

/// The hours from the one in which `since` lies to the one in which `until` lies, on the clock of a zone or, without, of the site.
/// PostgreSQL computes them, because it counted by its knowledge of zones.
pub async fn hours(
    connection: &PooledConnection<'_>,
    zone: Option<&str>,
    since: Moment,
    until: Moment,
) -> Result<Hours, StoreError> {
    // An hour on a clock need not begin with one in UTC.
    const QUERY: &str = "WITH clock AS (SELECT coalesce($1, (SELECT time_zone FROM llm_site), 'UTC') AS zone), moments AS (
            SELECT zone, coalesce($2::timestamptz, $3::timestamp AT TIME ZONE zone) AS since,
                coalesce($4::timestamptz, $5::timestamp AT TIME ZONE zone) AS until FROM clock
        ), hours AS (
            SELECT zone, date_trunc('hour', since, zone) AS since, date_trunc('hour', until, zone)
                + CASE WHEN until > date_trunc('hour', until, zone) THEN interval '1 hour' ELSE '0' END AS until FROM moments
        )
        SELECT zone, since, until, to_char(since AT TIME ZONE zone, 'YYYY-MM-DD HH24:MI'),
            to_char(until AT TIME ZONE zone, 'YYYY-MM-DD HH24:MI') FROM hours";
    let split = |moment| match moment {
        Moment::At(moment) => (Some(moment), None),
        Moment::Local(local) => (None, Some(local)),
    };
    let ((since, local_since), (until, local_until)) = (split(since), split(until));
    let client = connection.client();
    let row = connection.bounded(client.query_one(QUERY, &[&zone, &since, &local_since, &until, &local_until])).await?;
    Ok(Hours { zone: row.try_get(0)?, since: row.try_get(1)?, until: row.try_get(2)?, texts: [row.try_get(3)?, row.try_get(4)?] })
}

/// What to add up.
#[derive(Debug)]
pub struct Question<'q> {
    /// By what.
    pub by: &'q [Dimension],
    /// When, and on which clock days and months are.
    pub hours: &'q Hours,
    /// Only this team.
    pub team: Option<&'q str>,
    /// Only this consumer.
    pub consumer: Option<&'q str>,
    /// Only this model.
    pub model: Option<&'q str>,
    /// Conversations, too: they are counted from the rows that are there.
    pub has_conversations: bool,
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
    /// Tokens of prompts of which the model server reported nothing, as the gateway estimated them.
    pub estimated_prompt_tokens: i64,
    /// The same of answers.
    pub estimated_completion_tokens: i64,
    /// Currency and amount, as decimal text: different currencies do not add up. Of tokens that were reported.
    pub costs: Vec<(String, String)>,
    /// The same of tokens that were estimated.
    pub estimated_costs: Vec<(String, String)>,
    /// p50, p95 and p99 in milliseconds; `None` where no call has a latency.
    pub latency_percentiles_ms: Option<[i32; 3]>,
    /// Calls that the gateway held until they got a place.
    pub waited_calls: i64,
    /// How long it held them together, in milliseconds.
    pub queue_ms: i64,
    /// Conversations that the calls belong to, where they were asked for.
    pub conversations: Option<i64>,
}

impl Usage {
    /// From the columns of a row, `first` and those behind it: the counts and estimates in the order above, currencies, and what was spent
    /// and estimated in each. Without times.
    pub(super) fn of(row: &Row, first: usize) -> Result<Self, StoreError> {
        let count = |at: usize| row.try_get(first + at);
        let currencies: Vec<String> = row.try_get(first + 8)?;
        let (amounts, estimates): (Vec<String>, Vec<String>) = (row.try_get(first + 9)?, row.try_get(first + 10)?);
        Ok(Self {
            calls: count(0)?,
            errors: count(1)?,
            prompt_tokens: count(2)?,
            cached_tokens: count(3)?,
            completion_tokens: count(4)?,
            reasoning_tokens: count(5)?,
            estimated_prompt_tokens: count(6)?,
            estimated_completion_tokens: count(7)?,
            estimated_costs: currencies.iter().cloned().zip(estimates).collect(),
            costs: currencies.into_iter().zip(amounts).collect(),
            ..Self::default()
        })
    }

    /// What was counted, each with its name.
    pub fn counts(&self) -> [(&'static str, i64); 6] {
        [
            ("calls", self.calls),
            ("errors", self.errors),
            ("prompt_tokens", self.prompt_tokens),
            ("cached_tokens", self.cached_tokens),
            ("completion_tokens", self.completion_tokens),
            ("reasoning_tokens", self.reasoning_tokens),
        ]
    }

    /// What the gateway estimated, behind all others: columns that spreadsheets know stay where they are.
    pub fn estimated(&self) -> [(&'static str, i64); 2] {
        [
            ("estimated_prompt_tokens", self.estimated_prompt_tokens),
            ("estimated_completion_tokens", self.estimated_completion_tokens),
        ]
    }

    /// What was waited, behind the estimates for the same reason.
    pub fn waits(&self) -> [(&'static str, i64); 2] {
        [("waited_calls", self.waited_calls), ("queue_ms", self.queue_ms)]
    }

    /// All of it but times, as members of an object.
    pub fn json(&self) -> Map<String, Value> {
        let amount = |text: &str| text.parse::<f64>().map_or_else(|_| json!(text), |value| json!(value));
        let amounts = |costs: &[(String, String)]| -> Map<String, Value> {
            costs.iter().map(|(currency, text)| (currency.clone(), amount(text))).collect()
        };
        let costs = [("cost", &self.costs), ("estimated_cost", &self.estimated_costs)];
        let costs = costs.map(|(name, costs)| (name.to_owned(), Value::Object(amounts(costs))));
        let counts = self.counts().into_iter().chain(self.estimated());
        counts.map(|(name, count)| (name.to_owned(), json!(count))).chain(costs).collect()
    }
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
        Dimension::Team => "team",
        Dimension::Model => "model",
        Dimension::Month => "to_char(local, 'YYYY-MM')",
        Dimension::Day => "to_char(local, 'YYYY-MM-DD')",
        Dimension::Hour => "to_char(local, 'YYYY-MM-DD HH24:MI')",
    }
}

/// Adds up. Names are compared as far as they are kept.
pub async fn ask(connection: PooledConnection<'_>, question: &Question<'_>) -> Result<Answer, StoreError> {
    let keys: Vec<&str> = question.by.iter().copied().map(expression).collect();
    // Rows of each combination and currency first, and of everything (keys is null there); then currencies side by side.
    let query = format!(
        "SELECT keys, sum(calls)::bigint, sum(errors)::bigint, sum(prompt_tokens)::bigint, sum(cached_tokens)::bigint,
            sum(completion_tokens)::bigint, sum(reasoning_tokens)::bigint,
            sum(estimated_prompt_tokens)::bigint, sum(estimated_completion_tokens)::bigint,
            coalesce(array_agg(currency ORDER BY currency) FILTER (WHERE currency <> ''), '{{}}'),
            coalesce(array_agg(trim_scale(cost)::text ORDER BY currency) FILTER (WHERE currency <> ''), '{{}}'),
            coalesce(array_agg(trim_scale(estimated_cost)::text ORDER BY currency) FILTER (WHERE currency <> ''), '{{}}'),
            llm_latency_percentiles(sum(latencies), sum(timed_calls)::bigint), sum(waited_calls)::bigint, sum(queue_ms)::bigint
        FROM (
            SELECT keys, currency, sum(calls) AS calls, sum(errors) AS errors, sum(prompt_tokens) AS prompt_tokens,
                sum(cached_tokens) AS cached_tokens, sum(completion_tokens) AS completion_tokens,
                sum(reasoning_tokens) AS reasoning_tokens, sum(estimated_prompt_tokens) AS estimated_prompt_tokens,
                sum(estimated_completion_tokens) AS estimated_completion_tokens, sum(latencies) AS latencies, sum(timed_calls) AS timed_calls,
                sum(cost) AS cost, sum(estimated_cost) AS estimated_cost, sum(waited_calls) AS waited_calls, sum(queue_ms) AS queue_ms
            FROM (
                SELECT ARRAY[{}] AS keys, used.*
                FROM (SELECT *, hour AT TIME ZONE $5 AS local FROM llm_usage_costs) used
                WHERE hour >= $1 AND hour < $2
                    AND ($3::text IS NULL OR consumer_username = left($3, 200)) AND ($4::text IS NULL OR model = left($4, 200))
                    AND ($6::text IS NULL OR team = left($6, 200))
            ) keyed
            GROUP BY GROUPING SETS ((keys, currency), (currency))
        ) summed
        GROUP BY keys ORDER BY keys COLLATE \"C\"",
        keys.join(", ")
    );
    let connection = connection.with_timeout(REPORT_TIMEOUT);
    let Question { hours: Hours { zone, since, until, .. }, team, consumer, model, .. } = question;
    let client = connection.client();
    let rows = connection.bounded(client.query(&query, &[since, until, consumer, model, zone, team])).await?;
    let mut answer = Answer::default();
    for row in rows {
        let percentiles: Option<Vec<i32>> = row.try_get(12)?;
        let latency_percentiles_ms = percentiles.and_then(|percentiles| percentiles.try_into().ok());
        // Without rows there is no sum.
        let sum = |at| row.try_get::<_, Option<i64>>(at).map(Option::unwrap_or_default);
        let usage = Usage { latency_percentiles_ms, waited_calls: sum(13)?, queue_ms: sum(14)?, ..Usage::of(&row, 1)? };
        match row.try_get(0)? {
            Some(keys) => answer.rows.push((keys, usage)),
            None => answer.total = usage,
        }
    }
    if question.has_conversations {
        count_conversations(&connection, question, &mut answer).await?;
    }
    Ok(answer)
}

/// Adds conversations to an answer. One that goes on in several of its rows counts in each, and once in the total.
async fn count_conversations(
    connection: &PooledConnection<'_>,
    question: &Question<'_>,
    answer: &mut Answer,
) -> Result<(), StoreError> {
    let keys: Vec<&str> = question.by.iter().copied().map(expression).collect();
    // Names as usage has them, and its hours.
    let query = format!(
        "SELECT keys, count(DISTINCT conversation) FROM (
            SELECT ARRAY[{}] AS keys, conversation FROM (
                SELECT left(consumer_username, 200) AS consumer_username, left(coalesce(model, 'unknown'), 200) AS model,
                    left(coalesce(team, ''), 200) AS team, date_trunc('hour', started_at, $5) AT TIME ZONE $5 AS local, conversation
                FROM llm_logs WHERE started_at >= $1 AND started_at < $2 AND conversation IS NOT NULL
            ) calls
            WHERE ($3::text IS NULL OR consumer_username = left($3, 200)) AND ($4::text IS NULL OR model = left($4, 200))
                AND ($6::text IS NULL OR team = left($6, 200))
        ) keyed GROUP BY GROUPING SETS ((keys), ())",
        keys.join(", ")
    );
    let Question { hours: Hours { zone, since, until, .. }, team, consumer, model, .. } = question;
    let client = connection.client();
    let mut counts: HashMap<Option<Vec<String>>, i64> = HashMap::new();
    for row in connection.bounded(client.query(&query, &[since, until, consumer, model, zone, team])).await? {
        counts.insert(row.try_get(0)?, row.try_get(1)?);
    }
    answer.total.conversations = Some(counts.remove(&None).unwrap_or(0));
    for (keys, usage) in &mut answer.rows {
        usage.conversations = Some(counts.remove(&Some(keys.clone())).unwrap_or(0));
    }
    Ok(())
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
