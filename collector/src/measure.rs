//! The metrics of the collector: the only place where metric names stand.
//!
//! Two kinds. Calls are counted from rows that were really new, so that repeats and several collectors do not count twice; a
//! collector that restarts begins at zero, as Prometheus expects. The collector itself is measured where things happen.
//! Every label is bounded: see [`labels`].

pub mod feeds;
pub mod labels;
pub mod limits;
pub mod nodes;
pub mod queues;
mod state;
pub mod upkeep;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::call::{Call, Unread};
use crate::store::state::State;
use feeds::Feeds;
use labels::{Bounded, OTHER};
use limits::Limits;
use nodes::Nodes;
use state::StateGauges;
use upkeep::Upkeep;

/// Consumers that get series of their own. Each costs about 20 series; a company has hundreds of users, not thousands.
pub const MAX_CONSUMERS: usize = 1_000;
/// Models that get series of their own. A host serves a handful; LoRA adapters are models too.
const MAX_MODELS: usize = 100;
/// Workers of Kong that get series of their own. Every restart of Kong brings new ones; only those that lost entries count.
const MAX_WORKERS: usize = 200;
/// What stands for the model of a call that failed: its name was made up by the client, or never checked.
const UNKNOWN: &str = "unknown";

/// What `doctor` looks for on the page of a running collector, as the names stand there.
pub mod page {
    /// Bytes that wait on disk.
    pub const SPOOL_BYTES: &str = "llm_collector_spool_bytes";
    /// Age of the oldest of them.
    pub const SPOOL_OLDEST_SECONDS: &str = "llm_collector_spool_oldest_seconds";
    /// Calls without token counts.
    pub const USAGE_MISSING: &str = "llm_usage_missing_total";
}

/// Seconds; a chat takes from 50 ms (one token) to the 300 s after which Kong gives up.
const DURATION_BUCKETS: [f64; 14] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// Seconds; a warm model answers within tens of milliseconds, a full one queues for minutes.
const TTFT_BUCKETS: [f64; 14] = [0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0, 60.0, 120.0];
/// Seconds; between 1,000 and 1 tokens a second.
const TOKEN_BUCKETS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0];
/// Seconds; beyond 5 s the statement is given up.
const STORE_BUCKETS: [f64; 11] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Entries; Kong sends at most `queue.max_batch_size` of them.
const BATCH_BUCKETS: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    consumer: String,
    model: String,
    endpoint: &'static str,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    consumer: String,
    model: String,
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    model: String,
    endpoint: &'static str,
    stream: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PatternLabel {
    pattern: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabel {
    worker: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabel {
    action: &'static str,
}

/// Makes histograms with fixed buckets.
#[derive(Debug, Clone, Copy)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// What became of entries, counted by `llm_collector_entries_total`.
#[derive(Debug, Clone)]
pub struct EntryCounters {
    /// Now a row of `llm_logs`.
    pub stored: Counter,
    /// A row already.
    pub duplicate: Counter,
    /// In the spool.
    pub spooled: Counter,
    /// On record in `llm_rejected`.
    pub rejected: Counter,
    /// Counted in `llm_refused_calls`.
    pub counted: Counter,
}

/// Partitions that retention was done with, counted by `llm_collector_retention_partitions_total`.
#[derive(Debug, Clone)]
pub struct RetentionCounters {
    /// Without content from now on.
    pub content_removed: Counter,
    /// Gone.
    pub dropped: Counter,
}

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    tokens: Family<TokenLabels, Counter>,
    duration: Family<DurationLabels, Histogram, Buckets>,
    ttft: Family<ModelLabel, Histogram, Buckets>,
    per_token: Family<ModelLabel, Histogram, Buckets>,
    queue: Family<ModelLabel, Histogram, Buckets>,
    usage_missing: Family<ModelLabel, Counter>,
    masked: Family<PatternLabel, Counter>,
    unread: Family<KindLabel, Counter>,
    consumers: Bounded,
    models: Bounded,
    /// What became of entries.
    pub entries: EntryCounters,
    /// What retention did.
    pub retention: RetentionCounters,
    state: StateGauges,
    /// What Kong's nodes tell.
    pub nodes: Nodes,
    /// How far feeds are.
    pub feeds: Feeds,
    /// How far limits are used.
    pub limits: Limits,
    /// What PostgreSQL knows of upkeep.
    pub upkeep: Arc<Upkeep>,
    store_duration: Histogram,
    batch_entries: Histogram,
    queue_bytes: Gauge,
    spool_bytes: Gauge,
    spool_oldest: Gauge<f64, AtomicU64>,
    spool_refusals: Counter,
    lost: Family<WorkerLabel, Counter>,
    missing: Gauge,
    workers: Bounded,
    database_up: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers every metric, once.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("llm");
        let requests = Family::default();
        registry.register("requests", "Calls by outcome", requests.clone());
        let tokens = Family::default();
        registry.register("tokens", "Tokens as reported by the model server", tokens.clone());
        let duration = Family::new_with_constructor(Buckets(&DURATION_BUCKETS));
        registry.register_with_unit(
            "request_duration",
            "Time from request to the end of the answer",
            Unit::Seconds,
            duration.clone(),
        );
        let ttft = Family::new_with_constructor(Buckets(&TTFT_BUCKETS));
        registry.register_with_unit(
            "time_to_first_token",
            "Time from request to the first byte of a streamed answer",
            Unit::Seconds,
            ttft.clone(),
        );
        let per_token = Family::new_with_constructor(Buckets(&TOKEN_BUCKETS));
        registry.register_with_unit(
            "time_per_output_token",
            "Time between two tokens of a streamed answer, on average over the call",
            Unit::Seconds,
            per_token.clone(),
        );
        let queue = Family::new_with_constructor(Buckets(&TTFT_BUCKETS));
        registry.register_with_unit("queue", "Time that the gateway held calls that had to wait", Unit::Seconds, queue.clone());
        let usage_missing = Family::default();
        registry.register("usage_missing", "Successful calls without reported usage", usage_missing.clone());
        let masked = Family::default();
        registry.register("masked", "Occurrences that were masked in bodies before they were stored", masked.clone());
        // All kinds from the start: of a series that begins at 1, nobody sees the first increase.
        let unread: Family<KindLabel, Counter> = Family::default();
        for kind in Unread::ALL {
            unread.get_or_create_owned(&KindLabel { kind: kind.label() });
        }
        registry.register("unread", "Calls of which something was not understood, by what", unread.clone());

        let results: Family<ResultLabel, Counter> = Family::default();
        let result = |result| results.get_or_create_owned(&ResultLabel { result });
        let entries = EntryCounters {
            stored: result("stored"),
            duplicate: result("duplicate"),
            spooled: result("spooled"),
            rejected: result("rejected"),
            counted: result("counted"),
        };
        registry.register("collector_entries", "Log entries by what became of them", results);
        let store_duration = Buckets(&STORE_BUCKETS).new_metric();
        registry.register_with_unit(
            "collector_store_duration",
            "Time PostgreSQL took for one statement",
            Unit::Seconds,
            store_duration.clone(),
        );
        let batch_entries = Buckets(&BATCH_BUCKETS).new_metric();
        registry.register("collector_batch_entries", "Entries in one request", batch_entries.clone());
        let queue_bytes = Gauge::default();
        registry.register_with_unit(
            "collector_queue",
            "Bytes of entries that are neither stored nor spooled yet",
            Unit::Bytes,
            queue_bytes.clone(),
        );
        let spool_bytes = Gauge::default();
        registry.register_with_unit(
            "collector_spool",
            "Bytes of entries on disk that PostgreSQL could not take yet",
            Unit::Bytes,
            spool_bytes.clone(),
        );
        let spool_oldest = Gauge::default();
        registry.register_with_unit(
            "collector_spool_oldest",
            "Age of the oldest entry on disk",
            Unit::Seconds,
            spool_oldest.clone(),
        );
        let spool_refusals = Counter::default();
        registry.register(
            "collector_spool_refusals",
            "Times that neither PostgreSQL nor the spool took entries",
            spool_refusals.clone(),
        );
        let lost = Family::default();
        registry.register(
            "collector_entries_lost",
            "Entries that Kong numbered and that did not arrive in time, also those that came later",
            lost.clone(),
        );
        let missing = Gauge::default();
        registry.register(
            "collector_entries_missing",
            "Entries that were found to be lost within the last hour, by any collector, and have not come since",
            missing.clone(),
        );
        let database_up = Gauge::default();
        registry.register("collector_database_up", "Whether PostgreSQL took the last statement", database_up.clone());
        let actions: Family<ActionLabel, Counter> = Family::default();
        let action = |action| actions.get_or_create_owned(&ActionLabel { action });
        let retention = RetentionCounters { content_removed: action("content_removed"), dropped: action("dropped") };
        registry.register("collector_retention_partitions", "Day partitions that retention was done with", actions);
        let state = StateGauges::register(&mut registry);
        let nodes = Nodes::register(&mut registry);
        let feeds = Feeds::register(&mut registry);
        let limits = Limits::register(&mut registry);
        let upkeep = Arc::new(Upkeep::default());
        registry.register_collector(Box::new(Arc::clone(&upkeep)));
        registry.register("collector_build", "Version of the collector", Info::new([("version", env!("CARGO_PKG_VERSION"))]));

        Self {
            registry,
            requests,
            tokens,
            duration,
            ttft,
            per_token,
            queue,
            usage_missing,
            masked,
            unread,
            consumers: Bounded::new(MAX_CONSUMERS),
            models: Bounded::new(MAX_MODELS),
            entries,
            retention,
            state,
            nodes,
            feeds,
            limits,
            upkeep,
            store_duration,
            batch_entries,
            queue_bytes,
            spool_bytes,
            spool_oldest,
            spool_refusals,
            lost,
            missing,
            workers: Bounded::new(MAX_WORKERS),
            database_up,
        }
    }

    /// Counts a call whose row is new.
    pub fn observe_call(&self, call: &Call) {
        let consumer = self.consumers.label(&call.consumer_username);
        let model = call.served_model.as_deref().map_or_else(|| UNKNOWN.to_owned(), |model| self.models.label(model));
        let endpoint = call.api.label();
        let code = match call.status {
            Some(status @ 100..=599) => status.to_string(),
            Some(_) => OTHER.to_owned(),
            None => UNKNOWN.to_owned(),
        };
        for (r#type, count) in [
            ("prompt", call.usage.prompt_tokens),
            ("completion", call.usage.completion_tokens),
            ("cached", call.usage.cached_tokens),
            ("reasoning", call.usage.reasoning_tokens),
        ] {
            if let Some(count) = count.and_then(|count| u64::try_from(count).ok()) {
                let labels = TokenLabels { consumer: consumer.clone(), model: model.clone(), r#type };
                self.tokens.get_or_create_owned(&labels).inc_by(count);
            }
        }
        for (pattern, count) in &call.masked {
            self.masked.get_or_create_owned(&PatternLabel { pattern: pattern.to_string() }).inc_by(u64::from(*count));
        }
        if let Some(by) = &call.refused_by {
            self.limits.observe_refused(by, &model);
        }
        for kind in &call.unread {
            self.unread.get_or_create_owned(&KindLabel { kind: kind.label() }).inc();
        }
        self.requests.get_or_create_owned(&RequestLabels { consumer, model: model.clone(), endpoint, code }).inc();
        if let Some(latency_ms) = call.latency_ms {
            let stream = if call.stream { "true" } else { "false" };
            let labels = DurationLabels { model: model.clone(), endpoint, stream };
            self.duration.get_or_create_owned(&labels).observe(seconds(latency_ms));
        }
        let of_model = ModelLabel { model };
        if call.succeeded() && call.api.reports_usage() && !call.usage.is_reported() && !call.is_repeat {
            self.usage_missing.get_or_create_owned(&of_model).inc();
        }
        if let Some(queue_ms) = call.queue_ms {
            self.queue.get_or_create_owned(&of_model).observe(seconds(queue_ms));
        }
        if let (true, Some(ttft_ms)) = (call.stream, call.ttft_ms) {
            self.ttft.get_or_create_owned(&of_model).observe(seconds(ttft_ms));
            if let (Some(latency_ms), Some(tokens @ 2..)) = (call.latency_ms, call.usage.completion_tokens) {
                let per_token = seconds(latency_ms - ttft_ms).max(0.0) / f64::from(tokens - 1);
                self.per_token.get_or_create_owned(&of_model).observe(per_token);
            }
        }
    }

    /// Notes the size of a request.
    pub fn observe_batch(&self, entries: usize) {
        self.batch_entries.observe(entries as f64);
    }

    /// Notes how long a statement took, and that the database answered.
    pub fn observe_store(&self, duration: Duration) {
        self.store_duration.observe(duration.as_secs_f64());
    }

    /// Notes whether the database took the last statement.
    pub fn set_database_up(&self, up: bool) {
        self.database_up.set(i64::from(up));
    }

    /// Notes what is on disk.
    pub fn set_spool(&self, bytes: u64, oldest: Duration) {
        self.spool_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.spool_oldest.set(oldest.as_secs_f64());
    }

    /// Counts entries that could be made safe nowhere.
    pub fn observe_spool_refusal(&self) {
        self.spool_refusals.inc();
    }

    /// Counts entries of a Kong worker that never arrived.
    pub fn observe_lost(&self, worker: &str, entries: u64) {
        self.lost.get_or_create_owned(&WorkerLabel { worker: self.workers.label(worker) }).inc_by(entries);
    }

    /// Notes how many entries are missing of those that were found to be lost within the last hour.
    pub fn set_missing(&self, entries: i64) {
        self.missing.set(entries);
    }

    /// Notes how many bytes are in flight.
    pub fn set_queue_bytes(&self, bytes: usize) {
        self.queue_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Notes what the database looks like.
    pub fn set_state(&self, state: &State) {
        self.state.set(state, |consumer| self.consumers.label(consumer));
    }

    /// Notes the size of the disk with the data folder, and what is free on it.
    pub fn set_disk(&self, free: u64, size: u64) {
        self.state.set_disk(free, size);
    }

    /// All metrics as OpenMetrics text.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        self.nodes.refresh(|consumer| self.consumers.label(consumer));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn seconds(milliseconds: i32) -> f64 {
    f64::from(milliseconds) / 1000.0
}
