//! The day partitions of `llm_logs`.
//!
//! Invariants: no row waits for a partition longer than a moment, and a reader finds each row once at any time. Making one locks the
//! default partition, and a reader that holds that for hours would hold up whoever waits behind us. So rows of a day without a
//! partition go to the default partition, and the partition is made beside, with short waits for locks, tried again until it succeeds;
//! it takes the day's rows along, some thousand at a time. Until then the default partition's unique key tells what is a duplicate, from
//! then on the day's, and in between nobody can insert: a move is one transaction that locks both. The SQL is in
//! `sql/V12__pieces.sql`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, Utc};
use log::debug;
use tokio::sync::Notify;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::pool::{Database, PooledConnection, StoreError};

/// Days for which partitions are made ahead. A collector that cannot reach the database for a week has other worries; more
/// only makes planning slower.
const DAYS_AHEAD: i32 = 7;

/// Days back for which a partition is made when a row of that day comes: a spool that drains, or recorded entries. Older rows
/// go to the default partition, so that a wrong clock cannot litter the schema with tables.
const DAYS_BACK: i32 = 400;

/// Longest wait for a lock: whoever wants the default partition queues up behind us for as long.
const LOCK_WAIT: &str = "150ms";

/// Rows that are moved at a time: some tenths of a second, in which nobody can read or write.
const MOVED_ROWS: i32 = 5_000;

/// Longest time for that. It takes so long only beside tens of millions of rows in the default partition.
const MOVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Makes partitions of `llm_content` for days that have one of `llm_logs`: some at a time, because each takes locks, and the newest first. No
/// row waits for them: until then it is stored whole.
const MAKE_CONTENT: &str = "SELECT llm_create_content(day) FROM (SELECT day FROM llm_partition_days
    WHERE NOT content_removed AND day NOT IN (SELECT day FROM llm_content_days) ORDER BY day DESC LIMIT 50) days";

/// What is known of days, between those who write rows and those who make partitions.
#[derive(Debug, Default)]
pub struct KnownDays {
    with_partition: Mutex<HashSet<NaiveDate>>,
    with_content: Mutex<Option<Arc<HashSet<NaiveDate>>>>,
    wanted: Notify,
}

impl KnownDays {
    /// Notes that rows of these days were written. `true` when one may have no partition yet.
    pub fn written(&self, mut days: impl Iterator<Item = DateTime<Utc>>) -> bool {
        let today = Utc::now().date_naive();
        let known = self.with_partition.lock().unwrap_or_else(PoisonError::into_inner);
        let is_missing = days.any(|day| day_of(day, today).is_some_and(|day| !known.contains(&day)));
        if is_missing {
            self.wanted.notify_one();
        }
        is_missing
    }

    /// Days whose parts of bodies may be stored apart: `llm_content` has a partition of them. Asked for where that is not known.
    pub async fn with_content(&self, connection: &PooledConnection<'_>) -> Result<Arc<HashSet<NaiveDate>>, StoreError> {
        let known = self.with_content.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(days) => Ok(days),
            None => Ok(self.ask_for_content(connection).await?),
        }
    }

    async fn ask_for_content(&self, connection: &PooledConnection<'_>) -> Result<Arc<HashSet<NaiveDate>>, StoreError> {
        let days = Arc::new(connection.bounded(days(connection.client(), "SELECT day FROM llm_content_days")).await?);
        *self.with_content.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&days));
        Ok(days)
    }

    /// Forgets which days have a place for content: some day's may be gone.
    pub fn forget_content(&self) {
        *self.with_content.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Waits until a partition may be missing.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    async fn refresh(&self, connection: &PooledConnection<'_>) -> Result<(), StoreError> {
        let query = "SELECT day FROM llm_partition_days WHERE day IS NOT NULL";
        let with_partition = connection.bounded(days(connection.client(), query)).await?;
        *self.with_partition.lock().unwrap_or_else(PoisonError::into_inner) = with_partition;
        self.ask_for_content(connection).await.map(drop)
    }
}

async fn days(client: &Client, query: &str) -> Result<HashSet<NaiveDate>, tokio_postgres::Error> {
    client.query(query, &[]).await?.iter().map(|row| row.try_get(0)).collect()
}

/// What a round did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Partitions that were made.
    pub made: usize,
    /// Days whose partition could not be made now, because somebody uses the default partition.
    pub put_off: usize,
    /// Days of which some rows were moved and others are left, for the next round.
    pub unfinished: usize,
}

/// Makes the partitions of today and the coming days, and of days whose rows are in the default partition; of one of these a piece.
pub async fn make_missing(client: &Client) -> Result<Round, tokio_postgres::Error> {
    let mut round = Round::default();
    for row in client.query("SELECT llm_missing_partitions($1, $2)", &[&DAYS_BACK, &DAYS_AHEAD]).await? {
        let day: NaiveDate = row.try_get(0)?;
        // One transaction, because it is one message.
        let fill = format!("SET LOCAL lock_timeout = '{LOCK_WAIT}'; SELECT llm_fill_partition('{day}', {MOVED_ROWS})");
        match client.simple_query(&fill).await {
            Ok(answers) if is_whole(&answers) => round.made += 1,
            Ok(_) => {
                debug!("moved some rows of {day} to its partition");
                round.unfinished += 1;
                break;
            }
            // The next day would have to wait for the same lock.
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                debug!("the partition of {day} has to wait: the default partition is in use");
                round.put_off += 1;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    client.query(MAKE_CONTENT, &[]).await?;
    Ok(round)
}

fn is_whole(answers: &[SimpleQueryMessage]) -> bool {
    answers.iter().any(|answer| matches!(answer, SimpleQueryMessage::Row(row) if row.get(0) == Some("t")))
}

/// The same, and notes which days have a partition now.
pub async fn make_and_note(database: &Database, known: &KnownDays) -> Result<Round, StoreError> {
    let connection = database.connection().await?.with_timeout(MOVE_TIMEOUT);
    let round = connection.bounded(make_missing(connection.client())).await?;
    known.refresh(&connection).await?;
    Ok(round)
}

/// The day (UTC) whose partition a row needs; `None` when it belongs into the default partition.
fn day_of(started_at: DateTime<Utc>, today: NaiveDate) -> Option<NaiveDate> {
    let day = started_at.date_naive();
    let earliest = today.checked_sub_days(Days::new(DAYS_BACK.unsigned_abs().into()))?;
    let latest = today.checked_add_days(Days::new(DAYS_AHEAD.unsigned_abs().into()))?;
    (earliest..=latest).contains(&day).then_some(day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_days_have_no_partition() {
        let today = NaiveDate::from_ymd_opt(2026, 11, 24).unwrap();
        let day = |text: &str| day_of(text.parse().unwrap(), today).map(|day| day.to_string());
        assert_eq!(day("2026-11-23T23:59:59Z").as_deref(), Some("2026-11-23"));
        assert_eq!(day("2026-11-24T01:00:00+08:00").as_deref(), Some("2026-11-23"));
        assert_eq!(day("1970-01-01T00:00:00Z"), None);
        assert_eq!(day("2027-11-24T00:00:00Z"), None);
    }
}
