//! What the nodes of Kong tell about themselves (`POST /sync`).

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use serde::Deserialize;

use super::labels::{self, Shown};
use super::queues::{AllQueues, Queues};

/// Nodes that get series of their own; a site has a handful. Further ones are not shown: their gauges added up would say nothing.
const MAX_NODES: usize = 50;

/// A node that was silent for so long is no more: its series end.
const FORGET_AFTER: Duration = Duration::from_secs(86_400);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabel {
    node: String,
}

/// What a node tells; what it does not tell is 0.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Gauges {
    /// Calls in flight.
    pub in_flight: f64,
    /// Log entries that wait or are on their way.
    pub queue_entries: f64,
    /// Their bytes.
    pub queue_bytes: f64,
    /// For how long no entry could be sent, in seconds.
    pub queue_stalled_seconds: f64,
    /// Entries that were left out since the workers' start.
    pub entries_left_out: f64,
    /// Calls whose tokens the node counts itself, until they are in the usage that it is told.
    pub quota_pending: f64,
    /// Amounts that found no room on the node.
    pub quota_lost: f64,
}

type NodeGauge = Family<NodeLabel, Gauge<f64, AtomicU64>>;

/// `node`, and `model` where the calls hold places of one.
type InFlightLabels = Vec<(&'static str, String)>;

/// What a node is remembered by.
#[derive(Debug)]
struct Heard {
    at: Instant,
    in_flight: f64,
}

/// The series of nodes.
#[derive(Debug)]
pub struct Nodes {
    sync_age: NodeGauge,
    in_flight: Family<InFlightLabels, Gauge<f64, AtomicU64>>,
    in_flight_shown: Shown<InFlightLabels>,
    queue_entries: NodeGauge,
    queue_bytes: NodeGauge,
    queue_stalled: NodeGauge,
    entries_left_out: NodeGauge,
    quota_pending: NodeGauge,
    quota_lost: NodeGauge,
    /// What waits for places of model servers.
    pub queues: AllQueues,
    heard: Mutex<HashMap<String, Heard>>,
}

impl Nodes {
    /// Registers the series.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let nodes = Self {
            sync_age: Family::default(),
            in_flight: Family::default(),
            in_flight_shown: Shown::default(),
            queue_entries: Family::default(),
            queue_bytes: Family::default(),
            queue_stalled: Family::default(),
            entries_left_out: Family::default(),
            quota_pending: Family::default(),
            quota_lost: Family::default(),
            queues: AllQueues::register(registry),
            heard: Mutex::default(),
        };
        let age = nodes.sync_age.clone();
        registry.register_with_unit("sync_age", "Time since a node of Kong reported", Unit::Seconds, age);
        let help = "Calls in flight; with a model those that hold a place of it, without one all others of the node";
        registry.register("gateway_in_flight", help, nodes.in_flight.clone());
        registry.register("gateway_queue_entries", "Log entries that wait in Kong's workers", nodes.queue_entries.clone());
        let bytes = nodes.queue_bytes.clone();
        registry.register_with_unit("gateway_queue", "Bytes of log entries that wait in Kong's workers", Unit::Bytes, bytes);
        registry.register_with_unit(
            "gateway_queue_stalled",
            "How long a worker of Kong has failed to send its log entries",
            Unit::Seconds,
            nodes.queue_stalled.clone(),
        );
        registry.register(
            "gateway_entries_left_out",
            "Log entries that the node's workers could not keep, since their start",
            nodes.entries_left_out.clone(),
        );
        let help = "Calls from the first one whose tokens only the node itself has counted";
        registry.register("quota_pending", help, nodes.quota_pending.clone());
        registry.register("quota_lost", "Amounts of limits that found no room on the node", nodes.quota_lost.clone());
        nodes
    }

    fn families(&self) -> [&NodeGauge; 7] {
        [
            &self.sync_age,
            &self.queue_entries,
            &self.queue_bytes,
            &self.queue_stalled,
            &self.entries_left_out,
            &self.quota_pending,
            &self.quota_lost,
        ]
    }

    /// Notes what a node told; without queues where it has none.
    pub fn observe(&self, node: &str, gauges: &Gauges, queues: Option<Queues>) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.len() >= MAX_NODES && !heard.contains_key(node) {
            return;
        }
        heard.insert(node.to_owned(), Heard { at: Instant::now(), in_flight: gauges.in_flight });
        self.queues.observe(node, queues);
        let label = NodeLabel { node: node.to_owned() };
        let values = [
            0.0,
            gauges.queue_entries,
            gauges.queue_bytes,
            gauges.queue_stalled_seconds,
            gauges.entries_left_out,
            gauges.quota_pending,
            gauges.quota_lost,
        ];
        for (family, value) in self.families().into_iter().zip(values) {
            family.get_or_create_owned(&label).set(value);
        }
    }

    /// Brings the ages up to date, and what follows from what was told. `consumer`: a bounded label.
    pub(super) fn refresh(&self, consumer: impl Fn(&str) -> String) {
        let places = self.queues.show(consumer);
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let mut in_flight = HashMap::new();
        heard.retain(|node, heard| {
            let label = NodeLabel { node: node.clone() };
            let age = heard.at.elapsed();
            if age > FORGET_AFTER {
                for family in self.families() {
                    family.remove(&label);
                }
                return false;
            }
            self.sync_age.get_or_create_owned(&label).set(age.as_secs_f64());
            let of_node: InFlightLabels = vec![("node", node.clone())];
            let mut others = heard.in_flight;
            for (model, calls) in places.get(node).into_iter().flatten() {
                others -= *calls as f64;
                in_flight.insert([of_node.as_slice(), &[("model", model.clone())]].concat(), *calls as f64);
            }
            // The two numbers were not taken at the same moment.
            in_flight.insert(of_node, others.max(0.0));
            true
        });
        labels::show(&self.in_flight, &self.in_flight_shown, in_flight);
    }
}
