//! `llm_refused_calls`: how often an address was refused, beyond the few calls that are rows.
//!
//! Invariant: what is counted once stays counted once. An entry that comes again is known by `llm_refused_seen`, whichever collector
//! counted it; a node of Kong reports totals, so that a report that comes twice, or late, changes nothing.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use tokio_postgres::types::{ToSql, Type};

use super::pool::{PooledConnection, StoreError};
use crate::call::Call;

pub mod limit;
pub mod users;

/// What stands for the address where there are too many, or none is known.
pub const OTHER: &str = "other";

/// Longest name of a node that is kept, in characters: it is part of an index.
const MAX_SOURCE_CHARS: usize = 128;

/// Calls that were refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refused {
    /// The minute in which they began.
    pub minute: DateTime<Utc>,
    /// Whose they were: see [`network`].
    pub address: String,
    /// What they were answered.
    pub status: i32,
}

/// A call that is to be counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Under which it is counted.
    pub refused: Refused,
    /// Identity of the call.
    pub request_id: String,
    /// When it began.
    pub started_at: DateTime<Utc>,
}

impl Entry {
    /// The call, to be counted under its address.
    pub fn of(call: &Call) -> Self {
        let refused = Refused {
            minute: minute_of(call.started_at),
            address: network(call.client_ip),
            status: call.status.unwrap_or_default(),
        };
        Self { refused, request_id: call.request_id.clone(), started_at: call.started_at }
    }

    /// By what a call that comes again is known.
    pub fn id(&self) -> i64 {
        let mut hash = Sha256::new();
        hash.update(self.started_at.timestamp_millis().to_be_bytes());
        hash.update(self.request_id.as_bytes());
        hash.finalize().first_chunk::<8>().map_or(0, |bytes| i64::from_be_bytes(*bytes))
    }
}

/// The address under which a caller is counted: all addresses of an IPv6 network of 64 bits, which is what one host is given, are one.
pub fn network(address: Option<IpAddr>) -> String {
    match address.map(|address| address.to_canonical()) {
        None => OTHER.to_owned(),
        Some(IpAddr::V4(address)) => address.to_string(),
        Some(IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{}/64", Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// The minute of a moment.
pub fn minute_of(moment: DateTime<Utc>) -> DateTime<Utc> {
    let seconds = moment.timestamp();
    DateTime::from_timestamp(seconds - seconds.rem_euclid(60), 0).unwrap_or(moment)
}

/// The name under which the counts of a node are kept.
fn kept_source(node: &str) -> String {
    node.chars().filter(|c| *c != '\0').take(MAX_SOURCE_CHARS).collect()
}

/// Notes what a node of Kong counted by itself. `count` is the node's total for that address, minute and status so far: the greatest
/// total that was ever reported stands, so a report may come again. Addresses that stand for the same network have to be added up
/// before ([`network`]); of several totals for the same one the greatest counts.
pub async fn report(connection: &PooledConnection<'_>, node: &str, totals: &[(Refused, i64)]) -> Result<(), StoreError> {
    const REPORT: &str = "INSERT INTO llm_refused_calls AS known (minute, address, status, source, count)
        SELECT minute, address, status, $5::text, total
        FROM unnest($1::timestamptz[], $2::text[], $3::int[], $4::bigint[]) AS new (minute, address, status, total)
        ON CONFLICT (minute, address, status, source) DO UPDATE SET count = excluded.count WHERE known.count < excluded.count
        RETURNING 1";
    // In the order of the key, each once: reports of several nodes at a time cannot wait for each other in a circle.
    let mut sorted: BTreeMap<&Refused, i64> = BTreeMap::new();
    for (refused, total) in totals.iter().filter(|(_, total)| *total > 0) {
        let known = sorted.entry(refused).or_default();
        *known = (*known).max(*total);
    }
    if sorted.is_empty() {
        return Ok(());
    }
    let source = kept_source(node);
    let (minutes, addresses, statuses) = columns(sorted.keys().copied());
    let totals: Vec<i64> = sorted.into_values().collect();
    let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
        (&minutes, Type::TIMESTAMPTZ_ARRAY),
        (&addresses, Type::TEXT_ARRAY),
        (&statuses, Type::INT4_ARRAY),
        (&totals, Type::INT8_ARRAY),
        (&source, Type::TEXT),
    ];
    connection.bounded(connection.client().query_typed(REPORT, &parameters)).await.map(drop)
}

/// Counts entries. Returns for each whether it was new: one that was counted before, or is a row, is not. Of equal ones the first.
pub async fn count(connection: &PooledConnection<'_>, entries: &[&Entry]) -> Result<Vec<bool>, StoreError> {
    const COUNT: &str = "WITH given AS (
            SELECT * FROM unnest($1::timestamptz[], $2::text[], $3::int[], $4::bigint[], $5::text[], $6::timestamptz[])
                AS given (minute, address, status, id, request_id, started_at)
        ), new AS (
            INSERT INTO llm_refused_seen (minute, id)
            SELECT minute, id FROM given
            WHERE NOT EXISTS (SELECT FROM llm_logs l WHERE l.request_id = given.request_id AND l.started_at = given.started_at)
            ORDER BY minute, id
            ON CONFLICT DO NOTHING
            RETURNING minute, id
        ), counted AS (
            INSERT INTO llm_refused_calls AS known (minute, address, status, source, count)
            SELECT minute, address, status, '', count(*) FROM given JOIN new USING (minute, id)
            GROUP BY minute, address, status ORDER BY minute, address, status
            ON CONFLICT (minute, address, status, source) DO UPDATE SET count = known.count + excluded.count
        )
        SELECT id FROM new";
    let ids: Vec<i64> = entries.iter().map(|entry| entry.id()).collect();
    let mut first = HashSet::new();
    let once: Vec<(i64, &Entry)> = ids.iter().copied().zip(entries.iter().copied()).filter(|(id, _)| first.insert(*id)).collect();
    let (minutes, addresses, statuses) = columns(once.iter().map(|(_, entry)| &entry.refused));
    let once_ids: Vec<i64> = once.iter().map(|(id, _)| *id).collect();
    let request_ids: Vec<&str> = once.iter().map(|(_, entry)| entry.request_id.as_str()).collect();
    let started: Vec<DateTime<Utc>> = once.iter().map(|(_, entry)| entry.started_at).collect();
    let parameters: [(&(dyn ToSql + Sync), Type); 6] = [
        (&minutes, Type::TIMESTAMPTZ_ARRAY),
        (&addresses, Type::TEXT_ARRAY),
        (&statuses, Type::INT4_ARRAY),
        (&once_ids, Type::INT8_ARRAY),
        (&request_ids, Type::TEXT_ARRAY),
        (&started, Type::TIMESTAMPTZ_ARRAY),
    ];
    let rows = connection.bounded(connection.client().query_typed(COUNT, &parameters)).await?;
    let mut new: HashSet<i64> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    Ok(ids.into_iter().map(|id| new.remove(&id)).collect())
}

/// Which of the entries were counted before: those must not become rows as well.
pub async fn counted(connection: &PooledConnection<'_>, entries: &[&Entry]) -> Result<Vec<bool>, StoreError> {
    const SEEN: &str = "SELECT id FROM llm_refused_seen JOIN unnest($1::timestamptz[], $2::bigint[]) AS given (minute, id)
        USING (minute, id)";
    let ids: Vec<i64> = entries.iter().map(|entry| entry.id()).collect();
    let (minutes, ..) = columns(entries.iter().map(|entry| &entry.refused));
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&minutes, Type::TIMESTAMPTZ_ARRAY), (&ids, Type::INT8_ARRAY)];
    let rows = connection.bounded(connection.client().query_typed(SEEN, &parameters)).await?;
    let seen: HashSet<i64> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    Ok(ids.iter().map(|id| seen.contains(id)).collect())
}

/// Removes what is too old, a piece at a time; `true` while there is more. `keep_days` 0 keeps counts for ever.
pub async fn trim(connection: &PooledConnection<'_>, keep_days: i32) -> Result<bool, StoreError> {
    let query = "SELECT llm_trim_refused_calls($1), llm_trim_refused_users($1)";
    let row = connection.bounded(connection.client().query_one(query, &[&keep_days])).await?;
    Ok(row.try_get(0)? || row.try_get(1)?)
}

fn columns<'a>(refused: impl Iterator<Item = &'a Refused>) -> (Vec<DateTime<Utc>>, Vec<&'a str>, Vec<i32>) {
    let mut columns = (Vec::new(), Vec::new(), Vec::new());
    for refused in refused {
        columns.0.push(refused.minute);
        columns.1.push(refused.address.as_str());
        columns.2.push(refused.status);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_apart_by_address_and_in_ipv6_by_network() {
        for (address, expected) in [
            ("10.0.0.7", "10.0.0.7"),
            ("::ffff:10.0.0.7", "10.0.0.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::", "2001:db8:1:2::/64"),
            ("::1", "::/64"),
        ] {
            assert_eq!(network(address.parse().ok()), expected, "{address}");
        }
        assert_eq!(network(None), "other");
    }

    #[test]
    fn a_minute_begins_at_its_first_second_also_before_1970() {
        for (milliseconds, seconds) in [(1_795_400_059_999, 1_795_400_040), (0, 0), (-1, -60)] {
            let moment = DateTime::from_timestamp_millis(milliseconds).unwrap();
            assert_eq!(minute_of(moment).timestamp(), seconds, "{milliseconds}");
        }
    }
}
