//! What an operator wants of Kong, checked.

use regex::Regex;

use super::admin::secret;
use super::failure::{Failure, Outcome};
use super::queue::Queue;
use super::server::Server;
use crate::certificates::server::Fingerprint;
use crate::config::KongSettings;

/// The code that brings a key from `Authorization` to key-auth. It is part of this program, so that the two fit each other.
const BEARER: &str = include_str!("../../../kong-plugins/pre-function/bearer.lua");
/// The code that brings a key from a form there.
const USAGE_FORM: &str = include_str!("../../../kong-plugins/pre-function/usage_form.lua");

/// The plugin takes no longer one.
const LONGEST_CONTACT: usize = 200;

/// Whether this Kong serves other things, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// Audit and metrics belong to the service of the model server.
    Yes,
    /// They belong to all calls.
    No,
    /// The first if Kong has a service that does not lead to the model server.
    Auto,
}

/// The settings, each one possible.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each is one of `KongSettings`, where it is described")]
pub struct Settings {
    pub proxy_url: String,
    /// What the gateway is believed by at an `https` address.
    pub certificate: Option<Fingerprint>,
    pub vllm: Server,
    pub vllm_key: Option<String>,
    pub extra_paths: Vec<String>,
    pub connect_timeout_ms: u64,
    pub write_timeout_ms: u64,
    pub read_timeout_ms: u64,
    pub rate_limit_per_hour: u64,
    pub collector: Server,
    /// Where http-log sends entries.
    pub collector_endpoint: String,
    pub collector_token: Option<String>,
    pub collector_max_body_bytes: u64,
    pub capture: String,
    pub max_request_bytes: u64,
    pub max_response_bytes: u64,
    pub include_usage: bool,
    pub strict_requests: bool,
    pub openai_errors: bool,
    pub anonymous_per_minute: u64,
    pub refused_per_minute: u64,
    pub quotas: bool,
    pub quota_fail_closed: bool,
    pub quota_default_max_tokens: u64,
    pub quota_contact: Option<String>,
    /// `None`: no call waits.
    pub queue: Option<Queue>,
    pub upload_room_mb: u64,
    pub body_seconds: u64,
    pub batch_seconds: f64,
    pub queue_bytes: u64,
    pub retry_seconds: u64,
    pub shared: Shared,
    pub accept_old: bool,
    /// The code of the pre-function.
    pub bearer: String,
    pub usage_page: bool,
    /// The code of the pre-function of its form.
    pub usage_form: String,
}

impl Settings {
    /// Checks what was given. An error names the setting, and the value unless it is a secret.
    pub fn read(given: &KongSettings) -> Outcome<Self> {
        let collector_url = given_or(&given.collector_url, "http://127.0.0.1:5000");
        let endpoint = collector_url.trim_end_matches('/');
        let collector_base = endpoint.strip_suffix("/log").unwrap_or(endpoint);
        let endpoint = format!("{collector_base}/log");
        let collector = Server::parse(collector_base).ok_or_else(|| {
            Failure::new(format!("COLLECTOR_URL must be http://host:port, not {collector_url}"))
                .advise("The collector's token goes into COLLECTOR_TOKEN.")
        })?;
        let number = |name, value: &Option<String>, default, least, most| number(name, given_or(value, default), least, most);
        let switch_or = |name, value: &Option<String>, default| {
            one_of(name, given_or(value, default), &["true", "false"]).map(|it| it == "true")
        };
        let switch = |name, value: &Option<String>| switch_or(name, value, "true");
        const MILLISECONDS: u64 = i32::MAX as u64 - 1;
        const MOST_CAPTURED: u64 = 64 << 20;
        const MOST_QUEUED: u64 = 1 << 40;
        Ok(Self {
            proxy_url: given_or(&given.kong_proxy_url, "http://127.0.0.1:8111").trim_end_matches('/').to_owned(),
            certificate: given.certificate.fingerprint(),
            vllm: model_server(given_or(&given.vllm_url, "http://127.0.0.1:8000"))?,
            vllm_key: header_secret("VLLM_API_KEY", &given.vllm_api_key, &given.vllm_api_key_file)?,
            extra_paths: extra_paths(given.vllm_extra_paths.as_deref().unwrap_or_default())?,
            connect_timeout_ms: number("VLLM_CONNECT_TIMEOUT_MS", &given.vllm_connect_timeout_ms, "5000", 1, MILLISECONDS)?,
            write_timeout_ms: number("VLLM_WRITE_TIMEOUT_MS", &given.vllm_write_timeout_ms, "60000", 1, MILLISECONDS)?,
            read_timeout_ms: number("VLLM_READ_TIMEOUT_MS", &given.vllm_read_timeout_ms, "300000", 1, MILLISECONDS)?,
            rate_limit_per_hour: number("RATE_LIMIT_PER_HOUR", &given.rate_limit_per_hour, "100", 0, 1_000_000_000)?,
            collector,
            collector_endpoint: endpoint,
            collector_token: header_secret("COLLECTOR_TOKEN", &given.collector_token, &given.collector_token_file)?,
            collector_max_body_bytes: number(
                "COLLECTOR_MAX_BODY_BYTES",
                &given.collector_max_body_bytes,
                "67108864",
                1,
                MOST_QUEUED,
            )?,
            capture: one_of("AUDIT_CAPTURE", given_or(&given.audit_capture, "full"), &["full", "metadata"])?,
            max_request_bytes: number("AUDIT_MAX_REQUEST_BYTES", &given.audit_max_request_bytes, "1048576", 0, MOST_CAPTURED)?,
            max_response_bytes: number("AUDIT_MAX_RESPONSE_BYTES", &given.audit_max_response_bytes, "1048576", 0, MOST_CAPTURED)?,
            include_usage: switch("AUDIT_INCLUDE_USAGE", &given.audit_include_usage)?,
            strict_requests: switch("STRICT_REQUESTS", &given.strict_requests)?,
            openai_errors: switch("AUDIT_OPENAI_ERRORS", &given.audit_openai_errors)?,
            anonymous_per_minute: number("ANONYMOUS_PER_MINUTE", &given.anonymous_per_minute, "60", 0, 1_000_000)?,
            refused_per_minute: number("REFUSED_PER_MINUTE", &given.refused_per_minute, "60", 0, 1_000_000)?,
            quotas: switch("QUOTAS", &given.quotas)?,
            quota_fail_closed: switch_or("QUOTA_FAIL_CLOSED", &given.quota_fail_closed, "false")?,
            quota_default_max_tokens: number(
                "QUOTA_DEFAULT_MAX_TOKENS",
                &given.quota_default_max_tokens,
                "1024",
                0,
                i32::MAX as u64,
            )?,
            quota_contact: contact(given_or(&given.quota_contact, ""))?,
            queue: Queue::read(given)?,
            upload_room_mb: number("UPLOAD_ROOM_MB", &given.upload_room_mb, "0", 0, 1 << 20)?,
            body_seconds: number("REQUEST_BODY_SECONDS", &given.request_body_seconds, "60", 0, 86_400)?,
            batch_seconds: seconds("AUDIT_BATCH_SECONDS", given_or(&given.audit_batch_seconds, "0.5"))?,
            queue_bytes: number("AUDIT_QUEUE_BYTES", &given.audit_queue_bytes, "134217728", 1, MOST_QUEUED)?,
            retry_seconds: number("AUDIT_RETRY_SECONDS", &given.audit_retry_seconds, "86400", 1, 31_536_000)?,
            shared: match one_of("KONG_SHARED", given_or(&given.kong_shared, "auto"), &["0", "1", "auto"])?.as_str() {
                "0" => Shared::No,
                "1" => Shared::Yes,
                _ => Shared::Auto,
            },
            accept_old: one_of("KONG_ACCEPT_OLD", given_or(&given.kong_accept_old, "0"), &["0", "1"])? == "1",
            bearer: snippet("bearer.lua", BEARER, given.gateway_plugins_dir.as_deref())?,
            usage_page: switch("USAGE_PAGE", &given.usage_page)?,
            usage_form: snippet("usage_form.lua", USAGE_FORM, given.gateway_plugins_dir.as_deref())?,
        })
    }

    /// What no message may repeat.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        [&self.vllm_key, &self.collector_token].into_iter().filter_map(|secret| secret.as_deref())
    }
}

/// Goes into an error message that every client shows: one short line.
fn contact(text: &str) -> Outcome<Option<String>> {
    let text = text.trim();
    if text.chars().any(char::is_control) || text.len() > LONGEST_CONTACT {
        return Err(Failure::new(format!("QUOTA_CONTACT must be one line of at most {LONGEST_CONTACT} bytes")));
    }
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// A setting that is empty is not given: so the files of Compose and of systemd hand on what nobody set.
pub(super) fn given_or<'v>(value: &'v Option<String>, default: &'v str) -> &'v str {
    value.as_deref().filter(|value| !value.is_empty()).unwrap_or(default)
}

pub(super) fn number(name: &str, text: &str, least: u64, most: u64) -> Outcome<u64> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let number = text.parse::<u64>().ok().filter(|_| is_plain && text.len() <= 15);
    let number = number.ok_or_else(|| Failure::new(format!("{name} is not a whole number: '{text}'")))?;
    if (least..=most).contains(&number) {
        return Ok(number);
    }
    Err(Failure::new(format!("{name} must be from {least} to {most}, not {number}")))
}

fn seconds(name: &str, text: &str) -> Outcome<f64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let are_digits = |digits: &str| (1..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_plain = are_digits(whole) && are_digits(part) && (whole == "0" || !whole.starts_with('0'));
    let number = text.parse::<f64>().ok().filter(|_| is_plain);
    number.ok_or_else(|| Failure::new(format!("{name} is not a number of seconds: '{text}'")))
}

pub(super) fn one_of(name: &str, text: &str, choices: &[&str]) -> Outcome<String> {
    if choices.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(Failure::new(format!("{name} must be one of: {}; not '{text}'", choices.join(" "))))
}

/// A secret that is sent in a header.
fn header_secret(name: &str, value: &Option<String>, file: &Option<String>) -> Outcome<Option<String>> {
    let Some(secret) = secret(name, value.as_deref(), file.as_deref())? else { return Ok(None) };
    if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::new(format!("{name} holds blanks or characters outside ASCII")));
    }
    // Kong would evaluate them.
    if secret.contains("$(") || secret.starts_with("{vault://") {
        return Err(Failure::new(format!("{name} must not contain $( or begin with {{vault://")));
    }
    Ok(Some(secret))
}

fn model_server(url: &str) -> Outcome<Server> {
    let server = Server::parse(url).ok_or_else(|| {
        Failure::new(format!("VLLM_URL must be http://host:port, not {url}")).advise("A key for vLLM goes into VLLM_API_KEY.")
    })?;
    if server.path.is_empty() {
        return Ok(server);
    }
    Err(Failure::new(format!("VLLM_URL must be http://host:port without a path, not {url}"))
        .advise("Clients' paths are passed on as they are (/v1/chat/completions), so a path here would come in front of them")
        .advise(format!("and vLLM would know none of them. Leave {} out.", server.path)))
}

/// Further paths as regular expressions.
fn extra_paths(text: &str) -> Outcome<Vec<String>> {
    const PLAIN: &str = "^(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$";
    let plain = Regex::new(PLAIN).map_err(|error| Failure::new(error.to_string()))?;
    text.split_whitespace()
        .map(|path| match plain.is_match(path) {
            true => Ok(path.replace('.', r"\.")),
            false => Err(Failure::new(format!("VLLM_EXTRA_PATHS: '{path}' is not a plain path beginning with /"))),
        })
        .collect()
}

/// The code of a pre-function: ours, or that of a folder.
fn snippet(name: &str, own: &str, folder: Option<&str>) -> Outcome<String> {
    let code = match folder.filter(|folder| !folder.is_empty()) {
        None => own.to_owned(),
        Some(folder) => {
            let file = std::path::Path::new(folder).join("pre-function").join(name);
            std::fs::read_to_string(&file).map_err(|error| {
                Failure::new(format!("cannot read {}", file.display()))
                    .advise(error.to_string())
                    .advise("GATEWAY_PLUGINS_DIR must be the project's kong-plugins folder.")
            })?
        }
    };
    Ok(code.trim_end_matches('\n').to_owned())
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
