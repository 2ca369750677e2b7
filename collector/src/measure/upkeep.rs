//! What PostgreSQL knows of the upkeep that a process of its own does, which Prometheus cannot ask. Shown where there is something to
//! show: no age where this process does the upkeep itself.

use std::sync::{Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::store::state::UpkeepState;

/// What was seen last.
#[derive(Debug, Default)]
pub struct Upkeep(Mutex<Option<UpkeepState>>);

impl Upkeep {
    /// Notes it.
    pub fn set(&self, state: UpkeepState) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }
}

impl Collector for Upkeep {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(state) = *self.0.lock().unwrap_or_else(PoisonError::into_inner) else { return Ok(()) };
        if let Some(seconds) = state.seconds {
            let age = ConstGauge::new(seconds);
            let help = "Time since the upkeep that needs the rights of the owner was last at work";
            age.encode(encoder.encode_descriptor("collector_upkeep_age", help, Some(&Unit::Seconds), age.metric_type())?)?;
        }
        if state.retention_is_held {
            let held = ConstGauge::new(1_i64);
            let help = "Retention removes nothing until somebody confirms it";
            held.encode(encoder.encode_descriptor("collector_retention_held", help, None, held.metric_type())?)?;
        }
        Ok(())
    }
}
