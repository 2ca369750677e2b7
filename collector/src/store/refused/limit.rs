//! Which refused calls become rows: the first ones of an address and minute, so that an operator sees what they were.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};

use super::{Entry, OTHER};

/// Rows of an address in a minute, unless a setting says otherwise.
pub const ROWS_OF_ADDRESS: usize = 20;

/// Rows of all addresses in a minute (or what one may have, if that is more), and addresses that are told apart: whoever has a network
/// of addresses has all of them.
const ROWS: usize = 1_000;
const ADDRESSES: usize = 1_000;

/// Minutes that are remembered: entries come late when Kong or the spool had to keep them.
const MINUTES: usize = 10;

/// What was decided in the last minutes.
#[derive(Debug)]
pub struct Limit {
    rows_of_address: AtomicUsize,
    minutes: Mutex<BTreeMap<DateTime<Utc>, Minute>>,
}

impl Default for Limit {
    fn default() -> Self {
        Self { rows_of_address: AtomicUsize::new(ROWS_OF_ADDRESS), minutes: Mutex::default() }
    }
}

#[derive(Debug, Default)]
struct Minute {
    /// The calls of each address that became rows.
    rows: HashMap<String, HashSet<i64>>,
    all: usize,
}

impl Limit {
    /// From now on so many calls of an address and minute become rows.
    pub fn set_rows_of_address(&self, rows: usize) {
        self.rows_of_address.store(rows, Ordering::Relaxed);
    }

    /// Whether a call is to become a row. If not, `entry` says afterwards where to count it. Asked again for the same call, the
    /// answer is the same while its minute is remembered; after that the database knows.
    pub fn is_row(&self, entry: &mut Entry) -> bool {
        let most = self.rows_of_address.load(Ordering::Relaxed);
        let mut minutes = self.minutes.lock().unwrap_or_else(PoisonError::into_inner);
        if !minutes.contains_key(&entry.refused.minute) && minutes.len() >= MINUTES {
            minutes.pop_first();
        }
        let minute = minutes.entry(entry.refused.minute).or_default();
        if !minute.rows.contains_key(&entry.refused.address) {
            if minute.rows.len() >= ADDRESSES {
                OTHER.clone_into(&mut entry.refused.address);
                return false;
            }
            minute.rows.insert(entry.refused.address.clone(), HashSet::new());
        }
        let Some(rows) = minute.rows.get_mut(&entry.refused.address) else { return false };
        let id = entry.id();
        if rows.contains(&id) {
            return true;
        }
        if rows.len() >= most || minute.all >= ROWS.max(most) {
            return false;
        }
        minute.all += 1;
        rows.insert(id)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Refused;
    use super::*;

    fn entry(minute: i64, address: &str, name: &str) -> Entry {
        let minute = DateTime::from_timestamp(minute * 60, 0).unwrap();
        let refused = Refused { minute, address: address.to_owned(), status: 401 };
        Entry { refused, request_id: name.to_owned(), started_at: minute }
    }

    #[test]
    fn the_first_ones_of_an_address_and_minute_are_rows_also_when_they_come_again() {
        let limit = Limit::default();
        let ask = |minute, address: &str, n: usize| limit.is_row(&mut entry(minute, address, &n.to_string()));
        assert_eq!((0..100).filter(|n| ask(0, "a", *n)).count(), ROWS_OF_ADDRESS);
        assert_eq!((0..100).filter(|n| ask(0, "a", *n)).count(), ROWS_OF_ADDRESS);
        assert_eq!((0..100).filter(|n| ask(0, "b", *n)).count(), ROWS_OF_ADDRESS);
        assert_eq!((0..100).filter(|n| ask(1, "a", *n)).count(), ROWS_OF_ADDRESS);
    }

    #[test]
    fn a_setting_says_how_many_rows_there_are_of_an_address() {
        let limit = Limit::default();
        let rows = |minute| (0..3_000).filter(|n| limit.is_row(&mut entry(minute, "a", &n.to_string()))).count();
        limit.set_rows_of_address(2_500);
        assert_eq!(rows(0), 2_500);
        limit.set_rows_of_address(0);
        assert_eq!(rows(1), 0);
    }

    #[test]
    fn a_network_of_addresses_gets_no_more_than_a_share() {
        let limit = Limit::default();
        let mut rows = 0;
        let mut addresses = HashSet::new();
        for n in 0..5_000 {
            for call in 0..2 {
                let mut entry = entry(0, &format!("10.0.{}.{}", n / 256, n % 256), &format!("{n}-{call}"));
                rows += usize::from(limit.is_row(&mut entry));
                addresses.insert(entry.refused.address);
            }
        }
        assert_eq!((rows, addresses.len()), (ROWS, ADDRESSES + 1));
        for minute in 0..1_000 {
            limit.is_row(&mut entry(minute, "a", "x"));
        }
        assert_eq!(limit.minutes.lock().unwrap().len(), MINUTES);
    }
}
