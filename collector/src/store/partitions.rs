//! The day partitions of `llm_logs`.

use chrono::{DateTime, Days, NaiveDate, Utc};
use tokio_postgres::Client;

/// Days for which partitions are made ahead. A collector that cannot reach the database for a week has other worries; more
/// only makes planning slower.
const DAYS_AHEAD: u64 = 7;

/// Days back for which a partition is made when a row of that day comes: a spool that drains, or recorded entries. Older rows
/// go to the default partition, so that a wrong clock cannot litter the schema with tables.
const DAYS_BACK: u64 = 400;

/// Makes the partitions from today to [`DAYS_AHEAD`]. Returns how many were missing.
pub async fn create_ahead(client: &Client) -> Result<u64, tokio_postgres::Error> {
    let today = Utc::now().date_naive();
    let mut created = 0;
    for ahead in 0..=DAYS_AHEAD {
        if let Some(day) = today.checked_add_days(Days::new(ahead)) {
            created += u64::from(create(client, day).await?);
        }
    }
    Ok(created)
}

/// The day (UTC) whose partition a row needs; `None` when it belongs into the default partition.
pub fn day_of(started_at: DateTime<Utc>, today: NaiveDate) -> Option<NaiveDate> {
    let day = started_at.date_naive();
    let earliest = today.checked_sub_days(Days::new(DAYS_BACK))?;
    let latest = today.checked_add_days(Days::new(DAYS_AHEAD))?;
    (earliest..=latest).contains(&day).then_some(day)
}

/// Makes the partition of a day; `false` when it was there.
pub async fn create(client: &Client, day: NaiveDate) -> Result<bool, tokio_postgres::Error> {
    client.query_one("SELECT llm_create_partition($1)", &[&day]).await?.try_get(0)
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
