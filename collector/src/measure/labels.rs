//! Label values that cannot grow without bound.

use std::collections::HashSet;
use std::sync::{PoisonError, RwLock};

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
