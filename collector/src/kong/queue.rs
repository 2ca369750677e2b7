//! What the plugin `llm-queue` is told: how many calls a model server takes, and who has which share of them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::failure::{Failure, Outcome};
use super::people::{check_name, check_team, team_in, weight};
use super::settings::{given_or, number, one_of};
use crate::config::KongSettings;

/// The plugin's name.
pub const QUEUE_PLUGIN: &str = "llm-queue";

/// More places are no model server's.
const MOST_IN_FLIGHT: u64 = 100_000;
/// A call that waits holds a connection.
const MOST_WAITING: u64 = 1_000_000;
const LONGEST_WAIT_SECONDS: u64 = 86_400;
const MOST_NODES: u64 = 1_000;
/// Entries of `QUEUE_WEIGHTS`; more have weights of their own (`users weight`).
const MOST_WEIGHTS: usize = 1_000;

/// The settings of fair shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    in_flight: u64,
    nodes: u64,
    max_waiting: u64,
    max_waiting_per_user: u64,
    max_wait_seconds: u64,
    others_wait_percent: u64,
    weights: BTreeMap<String, u32>,
    priority: bool,
}

impl Queue {
    /// Checks what was given; `None` where no call is to wait.
    pub(super) fn read(given: &KongSettings) -> Outcome<Option<Self>> {
        let number = |name, value: &Option<String>, default, most| number(name, given_or(value, default), 1, most);
        // Checked even where they are not used: what is wrong must not come to light on the day that the queue is switched on.
        let mut queue = Self {
            in_flight: 0,
            nodes: number("GATEWAY_HOSTS", &given.gateway_hosts, "1", MOST_NODES)?,
            max_waiting: number("QUEUE_MAX_WAITING", &given.queue_max_waiting, "1000", MOST_WAITING)?,
            max_waiting_per_user: number("QUEUE_MAX_WAITING_PER_USER", &given.queue_max_waiting_per_user, "200", MOST_WAITING)?,
            max_wait_seconds: number("QUEUE_MAX_WAIT_SECONDS", &given.queue_max_wait_seconds, "120", LONGEST_WAIT_SECONDS)?,
            others_wait_percent: number("QUEUE_OTHERS_WAIT_PERCENT", &given.queue_others_wait_percent, "5", 100)?,
            weights: weights(given_or(&given.queue_weights, ""))?,
            priority: one_of("VLLM_PRIORITY", given_or(&given.vllm_priority, "false"), &["true", "false"])? == "true",
        };
        if given_or(&given.queue_in_flight, "").is_empty() {
            return Ok(None);
        }
        queue.in_flight = number("QUEUE_IN_FLIGHT", &given.queue_in_flight, "", MOST_IN_FLIGHT)?;
        if queue.in_flight < queue.nodes {
            return Err(Failure::new(format!(
                "QUEUE_IN_FLIGHT must be at least GATEWAY_HOSTS, {}: each node of Kong gets its part",
                queue.nodes
            )));
        }
        Ok(Some(queue))
    }

    /// As the plugin takes it. `contact`: whom an answer names to who is refused.
    pub(super) fn config(&self, contact: Option<&str>) -> Value {
        json!({
            "in_flight": self.in_flight, "nodes": self.nodes, "max_waiting": self.max_waiting,
            "max_waiting_per_user": self.max_waiting_per_user, "max_wait_seconds": self.max_wait_seconds,
            "others_wait_percent": self.others_wait_percent, "weights": self.weights, "priority": self.priority, "contact": contact,
        })
    }
}

/// Reads `team:ml=2,alice=3`.
fn weights(text: &str) -> Outcome<BTreeMap<String, u32>> {
    let mut weights = BTreeMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let wrong = |why: &str| Failure::new(format!("QUEUE_WEIGHTS: '{pair}' {why}"));
        let Some((name, weight)) = pair.rsplit_once('=') else { return Err(wrong("is not NAME=WEIGHT or team:NAME=WEIGHT")) };
        let (name, weight) = (name.trim(), weight.trim());
        match team_in(name) {
            Some(team) => check_team(team),
            None => check_name(name),
        }
        .map_err(|failure| wrong(&failure.what))?;
        let weight = self::weight(weight).map_err(|what| wrong(&what))?;
        if weights.insert(name.to_owned(), weight).is_some() {
            return Err(wrong("stands there twice"));
        }
        if weights.len() > MOST_WEIGHTS {
            return Err(Failure::new(format!("QUEUE_WEIGHTS may name {MOST_WEIGHTS} at most")));
        }
    }
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(in_flight: &str) -> KongSettings {
        KongSettings { queue_in_flight: Some(in_flight.to_owned()), ..KongSettings::default() }
    }

    #[test]
    fn without_a_number_of_places_nobody_waits() {
        assert_eq!(Queue::read(&KongSettings::default()).unwrap(), None);
        assert_eq!(Queue::read(&given("")).unwrap(), None);
        for bad in ["0", "-1", "many", "1.5", "100001"] {
            assert!(Queue::read(&given(bad)).unwrap_err().what.contains("QUEUE_IN_FLIGHT"), "{bad}");
        }
        let wrong = KongSettings { queue_max_waiting: Some("x".to_owned()), ..KongSettings::default() };
        assert!(Queue::read(&wrong).unwrap_err().what.contains("QUEUE_MAX_WAITING"));
    }

    #[test]
    fn the_plugin_is_told_what_was_set() {
        let mut settings = given("8");
        settings.queue_weights = Some(" team:ml=2, alice=3,张伟=1".to_owned());
        settings.vllm_priority = Some("true".to_owned());
        settings.gateway_hosts = Some("2".to_owned());
        let queue = Queue::read(&settings).unwrap().unwrap();
        let expected = json!({
            "in_flight": 8, "nodes": 2, "max_waiting": 1000, "max_waiting_per_user": 200, "max_wait_seconds": 120,
            "others_wait_percent": 5, "weights": {"team:ml": 2, "alice": 3, "张伟": 1}, "priority": true, "contact": "ops@example.org",
        });
        assert_eq!(queue.config(Some("ops@example.org")), expected);
        settings.gateway_hosts = Some("9".to_owned());
        assert!(Queue::read(&settings).unwrap_err().what.contains("GATEWAY_HOSTS"));
    }

    #[test]
    fn weights_are_read_or_refused_by_name() {
        for bad in ["alice", "alice=", "=2", "alice=0", "alice=1001", "alice=2.5", "team:=2", "team:a b=2", "a=1,a=2", "a/b=1"] {
            let failure = weights(bad).unwrap_err();
            assert!(failure.what.contains("QUEUE_WEIGHTS"), "{bad}: {failure}");
        }
        let many = (0..=MOST_WEIGHTS).map(|number| format!("user-{number}=2")).collect::<Vec<_>>().join(",");
        assert!(weights(&many).is_err());
        assert_eq!(weights(",").unwrap(), BTreeMap::new());
    }
}
