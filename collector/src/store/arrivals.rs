//! Numbers of entries that arrived and wait in the spool, until PostgreSQL knows of them.
//!
//! Kong lost an entry when its number never arrived at any collector. One that waits on a disk has arrived, so its number is noted in
//! `llm_sequences` as soon as PostgreSQL is back, before anything of the spool is stored: draining may take longer than a hole may
//! stay open. Ranges are merged as they come, so that a week of numbers takes a few bytes.

use std::collections::BTreeMap;

use super::Sequence;
use super::insert::MAX_WORKER_BYTES;

/// Ranges at most. Beyond them a number is not remembered, and may be taken for lost until its entry leaves the spool.
const MAX_RANGES: usize = 100_000;

/// Numbers by worker of Kong, as ranges that neither touch nor overlap: first number to last number.
#[derive(Debug, Default)]
pub struct Arrivals {
    workers: BTreeMap<String, BTreeMap<i64, i64>>,
    ranges: usize,
}

impl Arrivals {
    /// Adds a number.
    pub fn add(&mut self, sequence: &Sequence) {
        if sequence.worker.len() <= MAX_WORKER_BYTES {
            self.add_range(&sequence.worker, sequence.number, sequence.number);
        }
    }

    /// Adds everything that `other` has.
    pub fn append(&mut self, other: &Arrivals) {
        for (worker, first, last) in other.ranges() {
            self.add_range(worker, first, last);
        }
    }

    /// Worker, first and last number of each range, in order.
    pub fn ranges(&self) -> impl Iterator<Item = (&str, i64, i64)> {
        self.workers.iter().flat_map(|(worker, ranges)| ranges.iter().map(|(first, last)| (worker.as_str(), *first, *last)))
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.ranges == 0
    }

    fn add_range(&mut self, worker: &str, mut first: i64, mut last: i64) {
        if self.ranges >= MAX_RANGES {
            return;
        }
        if !self.workers.contains_key(worker) {
            self.workers.insert(worker.to_owned(), BTreeMap::new());
        }
        let Some(ranges) = self.workers.get_mut(worker) else { return };
        // From the last range that begins no later than behind the new one, backwards, as long as they touch it.
        while let Some((&begin, &end)) = ranges.range(..=last.saturating_add(1)).next_back() {
            if end < first.saturating_sub(1) {
                break;
            }
            ranges.remove(&begin);
            self.ranges -= 1;
            (first, last) = (first.min(begin), last.max(end));
        }
        ranges.insert(first, last);
        self.ranges += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(numbers: &[(&str, i64)]) -> Arrivals {
        let mut arrivals = Arrivals::default();
        for (worker, number) in numbers {
            arrivals.add(&Sequence { worker: (*worker).to_owned(), number: *number });
        }
        arrivals
    }

    #[test]
    fn numbers_in_any_order_become_ranges() {
        let mut arrivals = of(&[("b", 2), ("a", 5), ("a", 1), ("a", 3), ("a", 2), ("a", 2), ("b", i64::MAX), ("b", 1)]);
        assert_eq!(arrivals.ranges().collect::<Vec<_>>(), [("a", 1, 3), ("a", 5, 5), ("b", 1, 2), ("b", i64::MAX, i64::MAX)]);
        arrivals.append(&of(&[("a", 4), ("c", 7)]));
        let merged = [("a", 1, 5), ("b", 1, 2), ("b", i64::MAX, i64::MAX), ("c", 7, 7)];
        assert_eq!(arrivals.ranges().collect::<Vec<_>>(), merged);
        assert_eq!(arrivals.ranges, merged.len());
        assert!(Arrivals::default().is_empty() && !arrivals.is_empty());
    }

    #[test]
    fn what_a_hostile_sender_makes_up_is_bounded() {
        let mut arrivals = Arrivals::default();
        for number in 0..150_000 {
            arrivals.add(&Sequence { worker: format!("w{}", number % 7), number: number * 2 + 1 });
        }
        arrivals.add(&Sequence { worker: "x".repeat(MAX_WORKER_BYTES + 1), number: 1 });
        assert_eq!(arrivals.ranges().count(), MAX_RANGES);
    }
}
