//! Gauges that need a look at the database or the disk.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::labels;
use crate::store::state::State;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConsumerLabel {
    consumer: String,
}

/// What is looked at from time to time, as gauges.
#[derive(Debug, Default)]
pub(super) struct StateGauges {
    partitions_ahead: Gauge,
    database_bytes: Gauge,
    rejected_entries: Gauge,
    disk_free: Gauge,
    disk_size: Gauge,
    addresses: Family<ConsumerLabel, Gauge>,
    /// Consumers that `addresses` has series of.
    shown: Mutex<HashSet<ConsumerLabel>>,
}

impl StateGauges {
    /// Registers the series.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        registry.register(
            "collector_partitions_ahead",
            "Days from tomorrow on that have a partition",
            gauges.partitions_ahead.clone(),
        );
        registry.register_with_unit("collector_database", "Size of the database", Unit::Bytes, gauges.database_bytes.clone());
        registry.register("collector_rejected_entries", "Entries that are kept as rejected", gauges.rejected_entries.clone());
        registry.register_with_unit(
            "collector_disk_free",
            "What is free on the disk with the data folder",
            Unit::Bytes,
            gauges.disk_free.clone(),
        );
        registry.register_with_unit(
            "collector_disk_size",
            "Size of the disk with the data folder",
            Unit::Bytes,
            gauges.disk_size.clone(),
        );
        registry.register(
            "consumer_addresses",
            "Addresses that a consumer called from in the last hour",
            gauges.addresses.clone(),
        );
        gauges
    }

    /// Notes what the database looks like; `label` bounds the names of consumers.
    pub(super) fn set(&self, state: &State, label: impl Fn(&str) -> String) {
        self.partitions_ahead.set(state.partitions_ahead);
        self.database_bytes.set(state.database_bytes);
        self.rejected_entries.set(state.rejected_entries);
        let mut now: HashMap<ConsumerLabel, i64> = HashMap::new();
        for (consumer, addresses) in &state.addresses {
            let most = now.entry(ConsumerLabel { consumer: label(consumer) }).or_default();
            *most = (*most).max(*addresses);
        }
        labels::show(&self.addresses, &self.shown, now);
    }

    /// Notes the size of the disk with the data folder, and what is free on it.
    pub(super) fn set_disk(&self, free: u64, size: u64) {
        self.disk_free.set(i64::try_from(free).unwrap_or(i64::MAX));
        self.disk_size.set(i64::try_from(size).unwrap_or(i64::MAX));
    }
}
