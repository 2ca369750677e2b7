//! What is removed cannot be brought back, so retention stops where it looks like an accident: the clock jumped, or a setting would
//! remove far more than was ever removed in a round.
//!
//! A round an hour removes a day at a time. Whoever was off for long, or changes a setting on purpose, confirms once.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use tokio_postgres::Client;

use super::{Action, Step};
use crate::counted::counted;
use crate::store::pool::StoreError;

/// Time since the last round beyond which the clock may have jumped. Rounds are an hour apart; a weekend without power is longer, and
/// then somebody is there to confirm.
const LONGEST_PAUSE: TimeDelta = TimeDelta::hours(48);

/// Days that may go in a round without having been confirmed ever: one by each clock, and one that was put off.
const FREE_DAYS: i64 = 3;

/// Single rows that may.
const FREE_ROWS: i64 = 100_000;

/// How many times as much as ever before is far more.
const FAR_MORE: i64 = 2;

/// How much steps are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Amount {
    days: i64,
    rows: i64,
}

impl Amount {
    pub(super) fn of(steps: &[Step]) -> Self {
        let of_days = |step: &&Step| matches!(step.action, Action::Drop | Action::RemoveContent);
        let days: BTreeSet<_> = steps.iter().filter(of_days).map(|step| step.day).collect();
        let rows = steps.iter().filter(|step| !of_days(step)).map(|step| step.rows).fold(0, i64::saturating_add);
        Self { days: i64::try_from(days.len()).unwrap_or(i64::MAX), rows }
    }

    /// Why it is too much, given the most there ever was and the time since the last round.
    fn reason(self, most: Amount, since_last: Option<TimeDelta>) -> Option<String> {
        const CONFIRM: &str =
            "look with `llm-collector retention --dry-run`, and if it is right, say `llm-collector retention --confirm`";
        if self.days == 0 && self.rows == 0 {
            return None;
        }
        if let Some(since_last) = since_last.filter(|since_last| *since_last > LONGEST_PAUSE) {
            return Some(format!(
                "by PostgreSQL's clock the last round was {} hours ago: either nobody was here for so long, or the clock jumped. {} \
                 and {} are due; {CONFIRM}",
                since_last.num_hours(),
                counted(self.days, "day", "days"),
                counted(self.rows, "single row", "single rows")
            ));
        }
        let is_far_more = |amount: i64, most: i64, free: i64| amount > free.max(most.saturating_mul(FAR_MORE));
        (is_far_more(self.days, most.days, FREE_DAYS) || is_far_more(self.rows, most.rows, FREE_ROWS)).then(|| {
            format!(
                "{} and {} are due, and never before were it more than {} and {}: is a setting wrong? {CONFIRM}",
                counted(self.days, "day", "days"),
                counted(self.rows, "single row", "single rows"),
                most.days,
                most.rows
            )
        })
    }
}

/// Why `amount` must be confirmed first, if it must.
pub(super) async fn reason(client: &Client, amount: Amount) -> Result<Option<String>, StoreError> {
    let query = "SELECT most_days, most_rows, extract(epoch FROM now() - last_round_at)::bigint FROM llm_retention_rounds";
    let (most, since_last) = match client.query_opt(query, &[]).await? {
        Some(row) => {
            let seconds: i64 = row.try_get(2)?;
            (Amount { days: row.try_get(0)?, rows: row.try_get(1)? }, TimeDelta::try_seconds(seconds))
        }
        None => (Amount { days: 0, rows: 0 }, None),
    };
    Ok(amount.reason(most, since_last))
}

/// Notes that a round was carried out.
pub(super) async fn note(client: &Client, amount: Amount) -> Result<(), StoreError> {
    let statement = "INSERT INTO llm_retention_rounds AS r (last_round_at, most_days, most_rows) VALUES (now(), $1, $2)
        ON CONFLICT (is_only) DO UPDATE SET last_round_at = now(), most_days = greatest(r.most_days, excluded.most_days),
            most_rows = greatest(r.most_rows, excluded.most_rows)";
    client.execute(statement, &[&amount.days, &amount.rows]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_usual_goes_and_what_is_not_waits() {
        let amount = |days, rows| Amount { days, rows };
        let hour = Some(TimeDelta::hours(1));
        for (due, most, since_last, held) in [
            (amount(2, 10), amount(0, 0), None, false),
            (amount(4, 0), amount(0, 0), None, true),
            (amount(4, 0), amount(2, 0), hour, false),
            (amount(5, 0), amount(2, 0), hour, true),
            (amount(60, 0), amount(1, 0), hour, true),
            (amount(0, 100_001), amount(1, 7), hour, true),
            (amount(0, 100_001), amount(1, 60_000), hour, false),
            (amount(1, 0), amount(400, 0), Some(TimeDelta::days(365)), true),
            (amount(0, 1), amount(400, 0), Some(TimeDelta::days(3)), true),
            (amount(0, 0), amount(0, 0), Some(TimeDelta::days(365)), false),
            (amount(1, 0), amount(1, 0), Some(TimeDelta::days(-365)), false),
        ] {
            assert_eq!(due.reason(most, since_last).is_some(), held, "{due:?} after {most:?} and {since_last:?}");
        }
    }
}
