//! Fair shares, as the nodes of Kong tell once a second: how many calls wait, whose, and who has most of the places.
//!
//! Kept in memory only, as it was told last: of a node that is silent nothing is known.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::labels::{self, Bounded, Shown};

/// Models that get series of their own, of all nodes together. Further ones count as one.
const MAX_MODELS: usize = 100;
/// What a node told longer ago does not hold any more. It tells every second.
const FRESH: Duration = Duration::from_secs(15);

/// What a node told of its queues.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Queues {
    /// By model.
    pub models: HashMap<String, Places>,
    /// How many calls of a user wait, for all models together.
    pub waiting: HashMap<String, u64>,
}

/// The places of a model at a node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Places {
    /// Calls that hold one.
    pub in_flight: u64,
    /// Calls that wait for one.
    pub waiting: u64,
    /// Who holds most of them, and how many those are.
    pub largest: Option<(String, u64)>,
}

impl Places {
    fn add(&mut self, other: &Places) {
        self.in_flight = self.in_flight.saturating_add(other.in_flight);
        self.waiting = self.waiting.saturating_add(other.waiting);
        let count = |largest: &Option<(String, u64)>| largest.as_ref().map_or(0, |(_, places)| *places);
        if count(&other.largest) > count(&self.largest) {
            self.largest.clone_from(&other.largest);
        }
    }

    /// Who holds most of the places, and what part of them.
    fn share(&self) -> Option<(&str, f64)> {
        let (user, places) = self.largest.as_ref()?;
        (self.in_flight > 0).then(|| (user.as_str(), (*places as f64 / self.in_flight as f64).min(1.0)))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabel {
    node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    node: String,
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShareLabels {
    node: String,
    model: String,
    consumer: String,
}

type Ratio = Gauge<f64, AtomicU64>;

/// The queues of all nodes, and their series.
#[derive(Debug)]
pub struct AllQueues {
    told: Mutex<HashMap<String, (Instant, Queues)>>,
    models: Bounded,
    waiting: Family<QueueLabels, Gauge>,
    waiting_shown: Shown<QueueLabels>,
    users: Family<NodeLabel, Gauge>,
    users_shown: Shown<NodeLabel>,
    largest: Family<ShareLabels, Ratio>,
    largest_shown: Shown<ShareLabels>,
}

impl AllQueues {
    /// Registers the series.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let queues = Self {
            told: Mutex::default(),
            models: Bounded::new(MAX_MODELS),
            waiting: Family::default(),
            waiting_shown: Shown::default(),
            users: Family::default(),
            users_shown: Shown::default(),
            largest: Family::default(),
            largest_shown: Shown::default(),
        };
        registry.register("gateway_waiting", "Calls that wait for a place of a model server", queues.waiting.clone());
        registry.register("gateway_waiting_users", "Users with calls that wait", queues.users.clone());
        registry.register(
            "gateway_largest_share",
            "Part of a model server's places that the user with most of them holds, and who that is",
            queues.largest.clone(),
        );
        queues
    }

    /// Notes what a node told; `None`: it has no queue.
    pub(super) fn observe(&self, node: &str, queues: Option<Queues>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match queues {
            Some(queues) => told.insert(node.to_owned(), (Instant::now(), queues)),
            None => told.remove(node),
        };
    }

    /// How many calls of a user wait; `None` where no node that reports here has a queue.
    pub fn waiting_of(&self, consumer: &str) -> Option<u64> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = told.values().filter(|(at, _)| at.elapsed() < FRESH);
        fresh.map(|(_, queues)| queues.waiting.get(consumer).copied().unwrap_or(0)).reduce(u64::saturating_add)
    }

    /// Brings the series up to date. Returns the calls that hold a place, by node and model.
    pub(super) fn show(&self, consumer: impl Fn(&str) -> String) -> HashMap<String, HashMap<String, u64>> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, (at, _)| at.elapsed() < FRESH);
        let (mut waiting, mut users) = (HashMap::new(), HashMap::new());
        let (mut largest, mut in_flight) = (HashMap::new(), HashMap::new());
        for (node, (_, queues)) in told.iter() {
            let mut models: HashMap<String, Places> = HashMap::new();
            for (model, places) in &queues.models {
                models.entry(self.models.label(model)).or_default().add(places);
            }
            for (model, places) in &models {
                let labels = QueueLabels { node: node.clone(), model: model.clone() };
                waiting.insert(labels, i64::try_from(places.waiting).unwrap_or(i64::MAX));
                if let Some((user, ratio)) = places.share() {
                    let labels = ShareLabels { node: node.clone(), model: model.clone(), consumer: consumer(user) };
                    largest.insert(labels, ratio);
                }
            }
            let people = queues.waiting.values().filter(|calls| **calls > 0).count();
            users.insert(NodeLabel { node: node.clone() }, i64::try_from(people).unwrap_or(i64::MAX));
            let of_node = models.into_iter().map(|(model, places)| (model, places.in_flight));
            in_flight.insert(node.clone(), of_node.collect());
        }
        drop(told);
        labels::show(&self.waiting, &self.waiting_shown, waiting);
        labels::show(&self.users, &self.users_shown, users);
        labels::show(&self.largest, &self.largest_shown, largest);
        in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(in_flight: u64, waiting: u64, largest: Option<(&str, u64)>) -> Places {
        Places { in_flight, waiting, largest: largest.map(|(user, places)| (user.to_owned(), places)) }
    }

    #[test]
    fn waiting_calls_of_a_user_add_up_over_nodes() {
        let queues = AllQueues::register(&mut Registry::default());
        assert_eq!(queues.waiting_of("alice"), None);
        let told = |count| Queues { waiting: HashMap::from([("alice".to_owned(), count)]), ..Queues::default() };
        queues.observe("a", Some(told(2)));
        queues.observe("b", Some(told(3)));
        assert_eq!((queues.waiting_of("alice"), queues.waiting_of("bob")), (Some(5), Some(0)));
        queues.observe("a", None);
        assert_eq!(queues.waiting_of("alice"), Some(3));
    }

    #[test]
    fn a_share_is_a_part_of_the_places_that_are_held() {
        assert_eq!(places(8, 0, Some(("bob", 6))).share(), Some(("bob", 0.75)));
        // Two numbers that were not taken at the same moment.
        assert_eq!(places(4, 0, Some(("bob", 6))).share(), Some(("bob", 1.0)));
        assert_eq!(places(0, 3, Some(("bob", 6))).share(), None);
        assert_eq!(places(8, 0, None).share(), None);
    }

    #[test]
    fn thousands_of_models_are_a_hundred_series() {
        let queues = AllQueues::register(&mut Registry::default());
        let models = (0..5_000).map(|number| (format!("m{number}"), places(1, 1, Some(("bob", 1)))));
        queues.observe("n", Some(Queues { models: models.collect(), ..Queues::default() }));
        let in_flight = queues.show(str::to_owned);
        let of_node = in_flight.get("n").unwrap();
        assert_eq!((of_node.len(), of_node.values().sum::<u64>()), (MAX_MODELS + 1, 5_000));
    }
}
