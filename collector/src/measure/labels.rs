//! Label values that cannot grow without bound.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Mutex, PoisonError, RwLock};

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{Atomic, Gauge};

/// What stands for every value that came after the limit was reached.
pub const OTHER: &str = "other";

/// The values of one label: the first ones keep their names, all others are [`OTHER`].
///
/// Nothing is ever evicted: a series that disappears and comes back starts at zero, and `rate()` takes that for a reset.
#[derive(Debug)]
pub struct Bounded {
    known: RwLock<HashSet<String>>,
    limit: usize,
}

impl Bounded {
    /// A label with at most `limit` values besides [`OTHER`].
    pub fn new(limit: usize) -> Self {
        Self { known: RwLock::default(), limit }
    }

    /// The label value for `value`.
    pub fn label(&self, value: &str) -> String {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if known.contains(value) {
            return value.to_owned();
        }
        if known.len() >= self.limit {
            return OTHER.to_owned();
        }
        drop(known);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() < self.limit || known.contains(value) {
            known.insert(value.to_owned());
            value.to_owned()
        } else {
            OTHER.to_owned()
        }
    }
}

/// The labels that a family has gauges of.
pub(super) type Shown<L> = Mutex<HashSet<L>>;

/// Brings the gauges of a family to what there is now. Those that were `shown` and are no more vanish: they would stay as they were.
pub(super) fn show<L, N, A>(family: &Family<L, Gauge<N, A>>, shown: &Shown<L>, now: HashMap<L, N>)
where
    L: Clone + Eq + Hash,
    A: Atomic<N> + Default,
{
    let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
    for label in shown.iter().filter(|label| !now.contains_key(*label)) {
        family.remove(label);
    }
    *shown = now.keys().cloned().collect();
    for (label, value) in now {
        family.get_or_create_owned(&label).set(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_values_keep_their_names() {
        let label = Bounded::new(2);
        let labels: Vec<_> = ["a", "b", "c", "a", "d"].into_iter().map(|value| label.label(value)).collect();
        assert_eq!(labels, ["a", "b", OTHER, "a", OTHER]);
    }
}
