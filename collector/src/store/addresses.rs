//! From which addresses each consumer called within the last hour: many of them mean a key that went round.
//!
//! Counting them in `llm_logs` reads an hour of rows, seconds on a busy gateway. So writers note what they see in memory, and from time to
//! time it is added to `llm_addresses`, where all collectors add theirs. A collector that crashes forgets what it saw in the seconds
//! since. Bounded: beyond [`MAX_PAIRS`] in that time nothing is noted, so that a flood of addresses makes the gauge too low and not
//! the database too large.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use tokio_postgres::types::Type;

use super::pool::{PooledConnection, StoreError};
use crate::call::Call;

/// Pairs of consumer and address that are noted between two flushes: two statements of a few milliseconds.
const MAX_PAIRS: usize = 1_000;

/// Longest name of a consumer that is kept, in characters, as in `llm_usage`.
const MAX_NAME: usize = 200;

/// How far back calls count.
const WINDOW: TimeDelta = TimeDelta::hours(1);

/// What was seen and is not in PostgreSQL yet.
#[derive(Debug, Default)]
pub struct Addresses {
    seen: Mutex<BTreeMap<(String, IpAddr), DateTime<Utc>>>,
}

impl Addresses {
    /// Notes a call whose row is new.
    pub fn note(&self, call: &Call) {
        let Some(address) = call.client_ip else { return };
        if call.started_at < Utc::now() - WINDOW {
            return;
        }
        let key = (call.consumer_username.chars().take(MAX_NAME).collect(), address);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = seen.len() >= MAX_PAIRS;
        match seen.get_mut(&key) {
            Some(last) => *last = (*last).max(call.started_at),
            None if is_full => {}
            None => {
                seen.insert(key, call.started_at);
            }
        }
    }

    /// Adds what was seen to what PostgreSQL has, and removes there what is too old. What fails is lost: it is about the last hour.
    pub async fn flush(&self, connection: &PooledConnection<'_>) -> Result<(), StoreError> {
        // In the order of the key, so that two collectors wait for each other in one direction only.
        const ADD: &str = "INSERT INTO llm_addresses AS a (consumer_username, client_ip, seen_at)
            SELECT consumer_username, client_ip::inet, seen_at
            FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS new (consumer_username, client_ip, seen_at)
            ON CONFLICT (consumer_username, client_ip) DO UPDATE SET seen_at = excluded.seen_at WHERE excluded.seen_at > a.seen_at
            RETURNING 1";
        // Whoever else removes the same rows does it for us.
        const REMOVE: &str = "DELETE FROM llm_addresses WHERE (consumer_username, client_ip) IN (
            SELECT consumer_username, client_ip FROM llm_addresses WHERE seen_at < now() - interval '1 hour'
            ORDER BY consumer_username, client_ip FOR UPDATE SKIP LOCKED)";
        let seen = std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        if !seen.is_empty() {
            let consumers: Vec<&str> = seen.keys().map(|(consumer, _)| consumer.as_str()).collect();
            let addresses: Vec<String> = seen.keys().map(|(_, address)| address.to_string()).collect();
            let times: Vec<DateTime<Utc>> = seen.values().copied().collect();
            let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
                [(&consumers, Type::TEXT_ARRAY), (&addresses, Type::TEXT_ARRAY), (&times, Type::TIMESTAMPTZ_ARRAY)];
            connection.bounded(connection.client().query_typed(ADD, &parameters)).await?;
        }
        connection.bounded(connection.client().batch_execute(REMOVE)).await
    }
}
