//! What one consumer used, for that consumer (`sql/V16__usage_page.sql`): all that can be asked here belongs to one name.

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use tokio_postgres::Row;

use super::pool::{PooledConnection, StoreError};
use super::quotas::{self, Used};
use super::usage::Usage;

/// Days that are told, today among them.
pub const DAYS: i32 = 30;
/// Calls that are told.
const CALLS: i32 = 20;
/// Limits that are told, the fullest first.
const LIMITS: i64 = 20;

/// All of it, by the clock of the site.
#[derive(Debug, Clone, Default)]
pub struct OwnUsage {
    /// Whose it is.
    pub consumer: String,
    /// The time zone of the site.
    pub zone: String,
    /// When it was read.
    pub read_at: DateTime<Utc>,
    /// The same on the clock of the site.
    pub local: NaiveDateTime,
    /// Of this day.
    pub today: Usage,
    /// Of this calendar month.
    pub month: Usage,
    /// Of the last days together.
    pub days: Usage,
    /// The same by model, most first; `None`: of all other models.
    pub models: Vec<(Option<String>, Usage)>,
    /// Days that have calls, the earliest first, each with its models.
    pub by_day: Vec<Day>,
    /// The last calls, newest first.
    pub calls: Vec<OwnCall>,
    /// What holds for this consumer alone, for his team and for everybody together, the fullest first; without what refuses nobody.
    pub limits: Vec<Used>,
}

/// A day.
#[derive(Debug, Clone)]
pub struct Day {
    /// Which.
    pub date: NaiveDate,
    /// Of all models.
    pub total: Usage,
    /// By model, as [`OwnUsage::models`].
    pub models: Vec<(Option<String>, Usage)>,
}

/// A call, without what was asked and answered.
#[derive(Debug, Clone)]
pub struct OwnCall {
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// The same on the clock of the site.
    pub local: NaiveDateTime,
    /// The model, where one is known.
    pub model: Option<String>,
    /// What the caller got.
    pub status: Option<i32>,
    /// Tokens of the prompt, as reported.
    pub prompt_tokens: Option<i32>,
    /// Tokens of the answer, as reported.
    pub completion_tokens: Option<i32>,
    /// Until the last byte.
    pub latency_ms: Option<i32>,
}

/// Reads it.
pub async fn read(connection: &PooledConnection<'_>, consumer: &str) -> Result<OwnUsage, StoreError> {
    // The clock is there also for somebody who never called.
    const USAGE: &str = "SELECT zone, now(), now() AT TIME ZONE zone, used.*
        FROM (SELECT coalesce((SELECT time_zone FROM llm_site), 'UTC') AS zone) clock LEFT JOIN llm_own_usage($1, $2) used ON true";
    const OWN_CALLS: &str = "SELECT * FROM llm_own_calls($1, $2)";
    let client = connection.client();
    let mut own = OwnUsage { consumer: consumer.to_owned(), ..OwnUsage::default() };
    let mut of_days = Vec::new();
    for row in connection.bounded(client.query(USAGE, &[&consumer, &DAYS])).await? {
        (own.zone, own.read_at, own.local) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let Some(part) = row.try_get::<_, Option<String>>(3)? else { continue };
        let (day, model): (Option<NaiveDate>, Option<String>) = (row.try_get(4)?, row.try_get(5)?);
        let usage = Usage::of(&row, 6)?;
        match (part.as_str(), day) {
            ("today", _) => own.today = usage,
            ("month", _) => own.month = usage,
            ("days", _) => own.days = usage,
            ("model", _) => own.models.push((model, usage)),
            ("day", Some(date)) => own.by_day.push(Day { date, total: usage, models: Vec::new() }),
            ("day_model", Some(date)) => of_days.push((date, model, usage)),
            _ => {}
        }
    }
    own.by_day.sort_by_key(|day| day.date);
    for (date, model, usage) in of_days {
        if let Some(day) = own.by_day.iter_mut().find(|day| day.date == date) {
            day.models.push((model, usage));
        }
    }
    let calls = connection.bounded(client.query(OWN_CALLS, &[&consumer, &CALLS])).await?;
    own.calls = calls.iter().map(call).collect::<Result<_, _>>()?;
    own.limits = quotas::state(connection, Some(consumer), LIMITS).await?;
    own.limits.retain(|limit| limit.quota.mode != "shadow");
    Ok(own)
}

fn call(row: &Row) -> Result<OwnCall, StoreError> {
    Ok(OwnCall {
        started_at: row.try_get(0)?,
        local: row.try_get(1)?,
        model: row.try_get(2)?,
        status: row.try_get(3)?,
        prompt_tokens: row.try_get(4)?,
        completion_tokens: row.try_get(5)?,
        latency_ms: row.try_get(6)?,
    })
}
