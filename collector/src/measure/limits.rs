//! Limits: how far they are used, and what the gateway refused.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::labels::{self, OTHER};

/// Limits that get series of their own, those that are used most.
const MAX_LIMITS: usize = 200;

/// What may refuse a call in place of a model.
const REFUSERS: [&str; 3] = ["router", "quota", "queue"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    limit: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    by: &'static str,
    model: String,
}

/// What became of a notice that a limit is nearly used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The webhook took it.
    Sent,
    /// It did not, and is asked again.
    Failed,
    /// It did not while the window was open.
    GivenUp,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::GivenUp => "given_up",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NoticeLabels {
    outcome: &'static str,
}

/// The series about limits.
#[derive(Debug, Default)]
pub struct Limits {
    used: Family<LimitLabel, Gauge<f64, AtomicU64>>,
    refused: Family<RefusedLabels, Counter>,
    notices: Family<NoticeLabels, Counter>,
    /// Those that `used` has series of.
    shown: labels::Shown<LimitLabel>,
}

impl Limits {
    /// Registers the series.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let limits = Self::default();
        let help = "Part of a limit that is used in its window of now; of a limit for each user by whom most of it is";
        registry.register("quota_used_ratio", help, limits.used.clone());
        registry.register(
            "refused",
            "Calls that the gateway answered in place of a model, by what refused them",
            limits.refused.clone(),
        );
        let help = "Notices about limits that were posted to the webhook, by what became of them";
        registry.register("quota_notices", help, limits.notices.clone());
        limits
    }

    /// Counts a call that was refused. `model` is a bounded label.
    pub(super) fn observe_refused(&self, by: &str, model: &str) {
        let by = REFUSERS.into_iter().find(|refuser| *refuser == by).unwrap_or(OTHER);
        self.refused.get_or_create_owned(&RefusedLabels { by, model: model.to_owned() }).inc();
    }

    /// Counts calls of which a node of Kong tells that it refused them, and no more.
    pub fn observe_refused_unseen(&self, by: &str, calls: u64) {
        // What Kong's own plugins refuse is not among the calls of this series.
        if let Some(by) = REFUSERS.into_iter().find(|refuser| *refuser == by)
            && calls > 0
        {
            let labels = RefusedLabels { by, model: super::UNKNOWN.to_owned() };
            self.refused.get_or_create_owned(&labels).inc_by(calls);
        }
    }

    /// Counts notices.
    pub fn observe_notices(&self, outcome: Outcome, number: usize) {
        if number > 0 {
            let labels = NoticeLabels { outcome: outcome.word() };
            self.notices.get_or_create_owned(&labels).inc_by(u64::try_from(number).unwrap_or(u64::MAX));
        }
    }

    /// Notes how far limits are used, the fullest first; of one name the first counts. What is not there any more is shown no longer.
    pub fn set_used(&self, ratios: impl IntoIterator<Item = (String, f64)>) {
        let mut now = HashMap::new();
        for (limit, ratio) in ratios {
            let limit = LimitLabel { limit };
            if now.len() < MAX_LIMITS || now.contains_key(&limit) {
                now.entry(limit).or_insert(ratio);
            }
        }
        labels::show(&self.used, &self.shown, now);
    }
}
