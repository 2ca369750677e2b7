//! Notices that a limit is nearly used up (`sql/V17__quota_notices.sql`): who is to be told, and who was.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio_postgres::types::ToSql;

use super::pool::{PooledConnection, StoreError};
use super::quotas::{self, Used};

/// Percent of a limit at which somebody is told.
pub const THRESHOLDS: [i32; 3] = [80, 95, 100];

/// Notices that are posted in a minute at most, by all collectors together.
pub const MAX_A_MINUTE: i64 = 200;

/// Notes which limits have passed a threshold that was not noted in this window, beside what reads `state`: of several the highest, and
/// none that is below one that was noted. The order keeps two collectors from waiting for each other.
pub(super) const NOTING: &str = ", noted AS (
    INSERT INTO llm_quota_notices (quota_id, subject, starts_at, threshold, subject_kind, models, unit, currency, per, amount, mode, used, ends_at)
    SELECT s.quota_id, s.subject, s.starts_at, passed.threshold, s.subject_kind, s.models, s.unit, s.currency, s.per, s.amount, s.mode,
        s.used, s.ends_at
    FROM state s
    CROSS JOIN LATERAL (SELECT max(t) AS threshold FROM unnest($3::integer[]) AS t WHERE s.used * 100 >= s.amount * t) passed
    WHERE s.amount > 0 AND passed.threshold IS NOT NULL AND NOT EXISTS (
        SELECT FROM llm_quota_notices n WHERE n.quota_id = s.quota_id AND n.subject = s.subject AND n.starts_at = s.starts_at
            AND n.threshold >= passed.threshold)
    ORDER BY s.quota_id, s.subject COLLATE \"C\"
    ON CONFLICT DO NOTHING
)";

/// A notice that is to be posted.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// Percent that were passed.
    pub threshold: i32,
    /// The limit, and how far it was used then.
    pub used: Used,
    /// When that was seen.
    pub noted_at: DateTime<Utc>,
    /// How often it was tried, this time included.
    pub tries: i32,
}

impl Notice {
    fn key(&self) -> [&(dyn ToSql + Sync); 4] {
        [&self.used.quota.id, &self.used.quota.name, &self.used.starts_at, &self.threshold]
    }
}

/// A notice that nobody took while its window was open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    /// Number of the limit.
    pub quota: i64,
    /// Percent that were passed.
    pub threshold: i32,
    /// How often it was tried.
    pub tries: i32,
}

/// Takes a notice that is due, if there is one and the minute has room for it. Nobody else takes it for `lease`.
pub async fn take(connection: &PooledConnection<'_>, lease: Duration) -> Result<Option<Notice>, StoreError> {
    let statement = format!(
        "WITH due AS (
            SELECT quota_id, subject, starts_at, threshold FROM llm_quota_notices
            WHERE sent_at IS NULL AND next_try_at <= now() AND ends_at > now()
                AND (SELECT count(*) FROM llm_quota_notices WHERE tried_at > now() - interval '1 minute') < $1
            ORDER BY next_try_at, threshold LIMIT 1 FOR UPDATE SKIP LOCKED
        )
        UPDATE llm_quota_notices n SET tries = n.tries + 1, tried_at = now(), next_try_at = now() + $2 * interval '1 second'
        FROM due CROSS JOIN (SELECT llm_site_zone() AS zone) site
        WHERE (n.quota_id, n.subject, n.starts_at, n.threshold) = (due.quota_id, due.subject, due.starts_at, due.threshold)
        RETURNING {}, n.threshold, n.noted_at, n.tries",
        quotas::USED_COLUMNS.replace("s.", "n.")
    );
    let (client, seconds) = (connection.client(), lease.as_secs_f64());
    let row = connection.bounded(client.query_opt(&statement, &[&MAX_A_MINUTE, &seconds])).await?;
    row.map(|row| {
        Ok(Notice { used: quotas::used(&row)?, threshold: row.try_get(15)?, noted_at: row.try_get(16)?, tries: row.try_get(17)? })
    })
    .transpose()
}

/// Notes that a notice was taken.
pub async fn sent(connection: &PooledConnection<'_>, notice: &Notice) -> Result<(), StoreError> {
    let statement = "UPDATE llm_quota_notices SET sent_at = now()
        WHERE quota_id = $1 AND subject = $2 AND starts_at = $3 AND threshold = $4";
    connection.bounded(connection.client().execute(statement, &notice.key())).await.map(drop)
}

/// Notes that a notice was not taken, and is to be posted again after a pause.
pub async fn put_off(connection: &PooledConnection<'_>, notice: &Notice, pause: Duration) -> Result<(), StoreError> {
    let statement = "UPDATE llm_quota_notices SET next_try_at = now() + $5 * interval '1 second'
        WHERE quota_id = $1 AND subject = $2 AND starts_at = $3 AND threshold = $4 AND sent_at IS NULL";
    let ([id, subject, starts_at, threshold], seconds) = (notice.key(), pause.as_secs_f64());
    let parameters = [id, subject, starts_at, threshold, &seconds];
    connection.bounded(connection.client().execute(statement, &parameters)).await.map(drop)
}

/// Gives up what nobody took while its window was open, unless somebody is at it at this moment.
pub async fn give_up(connection: &PooledConnection<'_>, lease: Duration) -> Result<Vec<Missed>, StoreError> {
    let statement = "DELETE FROM llm_quota_notices WHERE sent_at IS NULL AND ends_at <= now()
            AND (tried_at IS NULL OR tried_at < now() - $1 * interval '1 second')
        RETURNING quota_id, threshold, tries";
    let rows = connection.bounded(connection.client().query(statement, &[&lease.as_secs_f64()])).await?;
    rows.iter().map(|row| Ok(Missed { quota: row.try_get(0)?, threshold: row.try_get(1)?, tries: row.try_get(2)? })).collect()
}

/// Forgets notices of windows that are long over.
pub async fn forget(connection: &PooledConnection<'_>) -> Result<(), StoreError> {
    let statement = "DELETE FROM llm_quota_notices WHERE ends_at < now() - interval '1 day'";
    connection.bounded(connection.client().execute(statement, &[])).await.map(drop)
}
