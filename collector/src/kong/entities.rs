//! The entities of Kong that the gateway makes, as its Admin API and its declarative files spell them.

use serde::Serialize;
use serde_json::Value;

/// Everything that the installation makes in Kong has an id of this form, so that a second run finds it again whatever happened to
/// its name.
pub const OWN_IDS: &str = "7c1ea1d0-6b1f-4000-8000-";

/// The id of the installation's own entity of a number.
pub fn own_id(number: u64) -> String {
    format!("{OWN_IDS}{number:012}")
}

/// The number of the service that leads to the model server.
pub const SERVICE: u64 = 1;
/// The number of the plugin that sends the model server's key.
pub const VLLM_KEY: u64 = 204;
/// The number of the service that tells people what they used, and wants their key.
pub const USAGE: u64 = 2;
/// The number of the service of the page that asks for it, which is open.
pub const USAGE_PAGE: u64 = 3;
/// The number of the plugin that collects conversations.
pub const LLM_AUDIT: u64 = 205;

/// The number of the plugin that knows models.
pub const LLM_ROUTER: u64 = 208;
/// Number of the plugin `llm-quota`.
pub const LLM_QUOTA: u64 = 209;
/// Number of the plugin `llm-queue`.
pub const LLM_QUEUE: u64 = 210;
/// The number of the route of the list of models.
pub const MODELS_ROUTE: u64 = 105;

/// Whether the installation made an entity.
pub fn is_own(entity: &Value) -> bool {
    id_of(entity).is_some_and(|id| id.starts_with(OWN_IDS))
}

/// The name, or the id of what has none.
pub fn name_of(entity: &Value) -> &str {
    entity["name"].as_str().or_else(|| id_of(entity)).unwrap_or("?")
}

/// The id.
pub fn id_of(entity: &Value) -> Option<&str> {
    entity["id"].as_str()
}

/// Kinds of entities that a part of the configuration can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Where calls go.
    Service,
    /// What calls match.
    Route,
    /// What happens to them.
    Plugin,
}

impl Kind {
    /// The list that holds them.
    pub fn list(self) -> &'static str {
        match self {
            Kind::Service => "services",
            Kind::Route => "routes",
            Kind::Plugin => "plugins",
        }
    }

    /// As a line of a report calls one.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Service => "service",
            Kind::Route => "route",
            Kind::Plugin => "plugin",
        }
    }
}

/// One entity that another belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reference {
    /// Its id.
    pub id: String,
}

impl Reference {
    /// The installation's own entity of a number.
    pub fn own(number: u64) -> Self {
        Self { id: own_id(number) }
    }
}

/// Where calls go.
#[derive(Debug, Clone, Serialize)]
pub struct Service {
    /// In logs and metrics.
    pub name: String,
    /// `http` or `https`.
    pub protocol: String,
    /// The server, or the name of an upstream.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// In front of the path of a call.
    pub path: Option<String>,
    /// How often a failed call is repeated.
    pub retries: u32,
    /// Whether calls are taken.
    pub enabled: bool,
    /// Longest wait for a connection, in milliseconds.
    pub connect_timeout: u64,
    /// Between two writes of a request.
    pub write_timeout: u64,
    /// Until the answer begins, and between two parts of it.
    pub read_timeout: u64,
}

/// What calls match.
#[derive(Debug, Clone, Serialize)]
pub struct Route {
    /// In logs and metrics.
    pub name: String,
    /// Where they go.
    pub service: Reference,
    /// In Kong's notation.
    pub paths: Vec<String>,
    /// Whether the path that matched is cut off.
    pub strip_path: bool,
    /// Only these methods; null: all.
    pub methods: Option<Vec<String>>,
    /// Only these hosts; null: all.
    pub hosts: Option<Vec<String>>,
    /// Only with these headers; null: all.
    pub headers: Option<Value>,
    /// Whether the server sees the host that the client named.
    pub preserve_host: bool,
    /// Whether a request is read before it goes on.
    pub request_buffering: bool,
    /// Whether an answer is.
    pub response_buffering: bool,
}

/// What happens to calls.
#[derive(Debug, Clone, Serialize)]
pub struct Plugin {
    /// Which plugin.
    pub name: String,
    /// To calls of one service only; null: of all.
    pub service: Option<Reference>,
    /// To calls of one route only.
    pub route: Option<Reference>,
    /// To calls of one user only.
    pub consumer: Option<Reference>,
    /// Whether it runs.
    pub enabled: bool,
    /// Its settings.
    pub config: Value,
}
