//! What Kong should have: a function of the settings and of nothing else.

use serde_json::{Value, json};

use super::batch::Batch;
use super::entities::{
    Kind, LLM_AUDIT, LLM_QUEUE, LLM_QUOTA, MODELS_ROUTE, Plugin, Reference, Route, SERVICE, Service, VLLM_KEY, own_id,
};
use super::queue::QUEUE_PLUGIN;
use super::settings::Settings;
use super::usage_page;

/// The plugins that are set up here, by name.
pub const OWN_PLUGINS: [&str; 9] = [
    "pre-function",
    "key-auth",
    "rate-limiting",
    "request-transformer",
    "llm-audit",
    "http-log",
    "prometheus",
    QUOTA_PLUGIN,
    QUEUE_PLUGIN,
];
/// Without it no limits are kept, and all else is as before.
pub const QUOTA_PLUGIN: &str = "llm-quota";
/// Those of them that a Kong of an earlier version does not have.
pub const NEWER_PLUGINS: [&str; 2] = [QUOTA_PLUGIN, QUEUE_PLUGIN];

/// vLLM's model APIs, by its documentation (Online Serving, 0.32): a number that never changes, the name in logs and metrics,
/// regular expressions of whole paths.
///
/// Left out on purpose, so 404: what operates the server (/metrics, /health, /load, /ping, /version, /pause, /resume, /sleep,
/// /collective_rpc, /v1/load_lora_adapter …), what repeats these APIs without their checks (/invocations), and what the audit log
/// cannot follow (/v1/realtime is a WebSocket, /v1/chat/completions/batch many conversations).
const MODEL_APIS: [(u64, &str, &[&str]); 12] = [
    (1, "chat-completions", &["/v1/chat/completions"]),
    (2, "completions", &["/v1/completions"]),
    (3, "responses", &["/v1/responses(/[A-Za-z0-9_-]+(/cancel)?)?"]),
    (4, "messages", &["/v1/messages(/count_tokens)?"]),
    (5, "models", &["/v1/models"]),
    (6, "embeddings", &["/v1/embeddings", "/v2/embed"]),
    (7, "rerank", &["/v1/rerank", "/v2/rerank", "/rerank"]),
    (8, "score", &["/v1/score", "/score"]),
    (9, "classify", &["/classify"]),
    (10, "pooling", &["/pooling"]),
    (11, "tokenize", &["/tokenize", "/detokenize"]),
    (12, "audio", &["/v1/audio/(transcriptions|translations)"]),
];
const EXTRA_ROUTE: u64 = 99;
/// One model of the list, whose name may hold slashes. The plugin answers it; without the plugin it is closed.
const ONE_MODEL: &str = "/v1/models/.+";

/// The paths of the list of models, in Kong's notation.
pub fn models_paths(has_models: bool) -> Vec<String> {
    let one = has_models.then_some(ONE_MODEL);
    ["/v1/models"].into_iter().chain(one).map(in_kongs_notation).collect()
}

/// ~ for a regular expression, anchored at both ends.
pub(super) fn in_kongs_notation(path: &str) -> String {
    format!("~{path}$")
}

/// A part of the configuration.
#[derive(Debug, Clone)]
pub struct Part {
    /// What it is.
    pub kind: Kind,
    /// Its id.
    pub id: String,
    /// As a line of the report names it.
    pub label: String,
    /// What it should be; `None` when it should not be there.
    pub body: Option<Value>,
}

impl Part {
    pub(super) fn new(kind: Kind, number: u64, name: &str, body: Option<Value>) -> Self {
        Self { kind, id: own_id(number), label: format!("{} {name}", kind.word()), body }
    }

    /// Where the Admin API has it.
    pub fn path(&self) -> String {
        format!("/{}/{}", self.kind.list(), self.id)
    }
}

/// All parts, in the order in which they are made: no path is open for a moment without its key check.
///
/// `is_shared`: audit and metrics belong to the model server's service only. Calls of other services are nobody's conversation with a
/// model: unless it is asked for, nothing of them is kept. `has_models`: llm-router answers what is asked of single models.
pub fn wanted(settings: &Settings, batch: &Batch, is_shared: bool, has_models: bool) -> Vec<Part> {
    let mut parts = vec![Part::new(Kind::Service, SERVICE, "vllm", Some(entity(&service(settings))))];
    parts.extend(plugins(settings, batch, is_shared));
    let routes = MODEL_APIS.iter().map(|(number, name, paths)| {
        let mut paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        if has_models && own_id(100 + number) == own_id(MODELS_ROUTE) {
            paths.push(ONE_MODEL.to_owned());
        }
        route(*number, name, &paths)
    });
    parts.extend(routes);
    if !settings.extra_paths.is_empty() {
        parts.push(route(EXTRA_ROUTE, "extra", &settings.extra_paths));
    }
    parts.extend(usage_page::parts(settings, is_shared));
    parts
}

/// An entity as the Admin API takes it. Ours are plain data, which always becomes JSON.
pub(super) fn entity(entity: &impl serde::Serialize) -> Value {
    serde_json::to_value(entity).unwrap_or_default()
}

fn service(settings: &Settings) -> Service {
    Service {
        name: "vllm".to_owned(),
        protocol: settings.vllm.protocol.clone(),
        host: settings.vllm.host.clone(),
        port: settings.vllm.port,
        path: None,
        // An answer must not be generated twice on a GPU that is busy already.
        retries: 0,
        enabled: true,
        connect_timeout: settings.connect_timeout_ms,
        write_timeout: settings.write_timeout_ms,
        read_timeout: settings.read_timeout_ms,
    }
}

/// Answers are not buffered: where the plugin takes an event out of a chunk, nginx would keep the rest of it until the next one comes
/// (50 ms were seen for the last event). The paths in Kong's notation: ~ for a regular expression, anchored at both ends, so that
/// neither a longer path nor one with /../ in it matches (Kong resolves dots first).
fn route(number: u64, name: &str, paths: &[String]) -> Part {
    let name = format!("vllm-{name}");
    let route = Route {
        name: name.clone(),
        service: Reference::own(SERVICE),
        paths: paths.iter().map(|path| in_kongs_notation(path)).collect(),
        strip_path: false,
        methods: None,
        hosts: None,
        headers: None,
        preserve_host: false,
        request_buffering: true,
        response_buffering: false,
    };
    Part::new(Kind::Route, 100 + number, &name, Some(entity(&route)))
}

/// Of key-auth: the key stands in the header that the pre-function writes, nowhere else, and goes no further.
pub(super) fn key_auth() -> Value {
    json!({
        "key_names": ["X-API-Key"], "key_in_header": true, "key_in_query": false, "key_in_body": false,
        "hide_credentials": true, "anonymous": null, "run_on_preflight": true,
    })
}

fn plugins(settings: &Settings, batch: &Batch, is_shared: bool) -> Vec<Part> {
    let of_service = || Some(Reference::own(SERVICE));
    let of_calls = || is_shared.then(|| Reference::own(SERVICE));
    let plugin = |number: u64, name: &str, service: Option<Reference>, config: Option<Value>| {
        let body = config
            .map(|config| entity(&Plugin { name: name.to_owned(), service, route: None, consumer: None, enabled: true, config }));
        Part::new(Kind::Plugin, number, name, body)
    };
    let limit = (settings.rate_limit_per_hour > 0).then(|| {
        json!({
            "second": null, "minute": null, "hour": settings.rate_limit_per_hour, "day": null, "month": null, "year": null,
            "limit_by": "consumer", "policy": "local", "fault_tolerant": true, "hide_client_headers": false,
        })
    });
    // The pre-function has taken the user's key out of Authorization by the time this runs. remove, then add: ours replaces whatever
    // else a client put there.
    let key = settings.vllm_key.as_ref().map(|key| {
        json!({
            "remove": { "headers": ["Authorization"] },
            "add": { "headers": [format!("Authorization:Bearer {key}")] },
        })
    });
    let quota = settings.quotas.then(|| {
        json!({
            "fail_closed": settings.quota_fail_closed, "default_max_tokens": settings.quota_default_max_tokens,
            "contact": settings.quota_contact,
        })
    });
    let queue = settings.queue.as_ref().map(|queue| queue.config(settings.quota_contact.as_deref()));
    let headers = settings.collector_token.as_ref().map(|token| json!({ "X-Collector-Token": token }));
    vec![
        plugin(201, "pre-function", of_service(), Some(json!({ "access": [settings.bearer] }))),
        plugin(202, "key-auth", of_service(), Some(key_auth())),
        plugin(203, "rate-limiting", of_service(), limit),
        plugin(VLLM_KEY, "request-transformer", of_service(), key),
        plugin(
            LLM_AUDIT,
            "llm-audit",
            of_calls(),
            Some(json!({
                "capture": settings.capture,
                "max_request_body_size": settings.max_request_bytes,
                "max_response_body_size": settings.max_response_bytes,
                "upload_room_mb": settings.upload_room_mb,
                "body_seconds": settings.body_seconds,
                "include_usage": settings.include_usage,
                "strict_requests": settings.strict_requests,
                "openai_errors": settings.openai_errors,
                "anonymous_per_minute": settings.anonymous_per_minute,
                "refused_per_minute": settings.refused_per_minute,
            })),
        ),
        plugin(
            206,
            "http-log",
            of_calls(),
            Some(json!({
                "http_endpoint": settings.collector_endpoint, "method": "POST", "content_type": "application/json",
                "timeout": 10_000, "keepalive": 60_000, "headers": headers,
                "queue": {
                    "max_batch_size": batch.entries, "max_coalescing_delay": settings.batch_seconds,
                    "max_bytes": settings.queue_bytes, "max_entries": 100_000, "initial_retry_delay": 0.1,
                    "max_retry_delay": 10, "max_retry_time": settings.retry_seconds,
                },
            })),
        ),
        plugin(
            207,
            "prometheus",
            of_calls(),
            Some(json!({
                "per_consumer": true, "status_code_metrics": true, "latency_metrics": true, "bandwidth_metrics": true,
                "upstream_health_metrics": true,
            })),
        ),
        plugin(LLM_QUOTA, QUOTA_PLUGIN, of_service(), quota),
        plugin(LLM_QUEUE, QUEUE_PLUGIN, of_service(), queue),
    ]
}
