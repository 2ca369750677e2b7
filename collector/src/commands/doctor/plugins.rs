//! Kong's plugins: what makes 401, and what makes holes in the audit log or in the dashboards.

use serde_json::Value;

use super::{CONFIGURE, Level, Report};
use crate::config::DoctorSettings;

/// Shorter, and a collector that is down over lunch costs entries.
const SHORT_RETRY_SECONDS: f64 = 3_600.0;

/// All plugins, and which of them a call to vLLM passes.
pub(super) struct Plugins<'p> {
    /// As the Admin API lists them.
    pub(super) list: &'p [Value],
    /// Id of the service that leads to vLLM.
    pub(super) service: Option<&'p str>,
}

impl<'p> Plugins<'p> {
    /// The instance that counts for calls of everybody to vLLM: that of the service before the global one.
    fn instance(&self, name: &str) -> Option<&'p Value> {
        let for_all = |plugin: &&Value| plugin["name"] == name && plugin["consumer"].is_null() && plugin["route"].is_null();
        let mut of_all = self.list.iter().filter(for_all);
        let of_service = of_all.clone().find(|plugin| plugin["service"]["id"].as_str() == self.service);
        of_service.or_else(|| of_all.find(|plugin| plugin["service"].is_null()))
    }

    /// The settings of a plugin that is there and on; else a problem is reported.
    fn config(&self, name: &str, check: &'static str, why: &'static str, report: &mut Report) -> Option<&'p Value> {
        let found = match self.instance(name) {
            None => "the plugin is not there",
            Some(plugin) if plugin["enabled"] == false => "the plugin is switched off",
            Some(plugin) => return Some(&plugin["config"]),
        };
        report.problem(check, found, why, CONFIGURE);
        None
    }

    /// 401: the pre-function writes the key into a header, before key-auth, which has to read that very one.
    pub(super) fn keys(&self, available: &Value, report: &mut Report) {
        const WHY_401: &str = "OpenAI SDKs send the key as Authorization: Bearer, which key-auth does not know: 401";
        let why = "everybody may call the model, without a name in the log";
        let key_auth = self.config("key-auth", "kong.key-auth", why, report);
        let pre_function = self.config("pre-function", "kong.pre-function", WHY_401, report);
        let Some(key_auth) = key_auth else { return };
        let empty = Vec::new();
        let names: Vec<&str> = key_auth["key_names"].as_array().unwrap_or(&empty).iter().filter_map(Value::as_str).collect();
        if let Some(pre_function) = pre_function {
            let code = pre_function["access"].as_array().unwrap_or(&empty);
            let code: String = code.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n").to_ascii_lowercase();
            let priority = |name: &str| available[name]["priority"].as_f64();
            let is_later = priority("pre-function").zip(priority("key-auth")).is_some_and(|(pre, key)| pre <= key);
            if code.is_empty() {
                report.problem("kong.pre-function", "it has no code for the access phase", WHY_401, CONFIGURE);
            } else if is_later {
                report.problem(
                    "kong.pre-function",
                    "it runs after key-auth",
                    WHY_401,
                    "gateway apply, with a Kong of the 3.9 line",
                );
            } else if !names.iter().any(|name| code.contains(&name.to_ascii_lowercase())) {
                let what = format!("it does not write the header that key-auth reads ({})", names.join(", "));
                report.problem("kong.pre-function", what, "right keys get 401", CONFIGURE);
            } else {
                report.good("kong.keys", format!("the pre-function hands keys to key-auth in {}", names.join(", ")));
            }
        }
        let mut wrong = |condition: bool, what: &str, why: &'static str| {
            if condition {
                report.problem("kong.key-auth", what, why, CONFIGURE);
            }
        };
        let leak = "keys reach vLLM, and every log entry in clear text";
        wrong(key_auth["hide_credentials"] != true, "hide_credentials is off", leak);
        wrong(key_auth["key_in_query"] != false, "key_in_query is on", "keys in URLs end up in logs and browser histories");
        let open = "whoever has no key, or a wrong one, may call the model";
        wrong(!key_auth["anonymous"].is_null(), "anonymous is set", open);
    }

    /// Calls that do not become rows, or rows without what was said.
    pub(super) fn audit(&self, settings: &DoctorSettings, token: Option<&str>, report: &mut Report) {
        let why = "rows have neither prompts nor answers nor tokens";
        let llm_audit = self.config("llm-audit", "kong.llm-audit", why, report);
        let captures = llm_audit.is_some_and(|config| config["capture"] != "metadata");
        if llm_audit.is_some() {
            let what = if captures { "keeps prompts and answers" } else { "by its settings keeps no prompts and answers" };
            report.good("kong.llm-audit", what);
        }
        let why = "no call reaches the audit log";
        let Some(http_log) = self.config("http-log", "kong.http-log", why, report) else { return };
        endpoint(http_log, settings, report);
        sent_token(http_log, token, report);
        let longest = llm_audit.filter(|_| captures).map_or(0, longest_entry);
        queue(&http_log["queue"], longest, settings.max_body_bytes, report);
    }

    /// Dashboards without data.
    pub(super) fn prometheus(&self, report: &mut Report) {
        let why = "the gateway's dashboards stay empty";
        let Some(config) = self.config("prometheus", "kong.prometheus", why, report) else { return };
        let flags = ["status_code_metrics", "latency_metrics", "bandwidth_metrics", "upstream_health_metrics", "per_consumer"];
        let off: Vec<&str> = flags.into_iter().filter(|flag| config[*flag] != true).collect();
        if off.is_empty() {
            report.good("kong.prometheus", "exports all groups of metrics, per consumer");
        } else {
            let what = format!("off: {}", off.join(", "));
            report.problem("kong.prometheus", what, "each is off by default, and dashboards need it", CONFIGURE);
        }
    }
}

fn endpoint(http_log: &Value, settings: &DoctorSettings, report: &mut Report) {
    let endpoint = http_log["http_endpoint"].as_str().unwrap_or_default();
    let wanted = format!("{}/log", settings.collector_url.trim_end_matches('/'));
    if endpoint.replace("localhost", "127.0.0.1") == wanted.replace("localhost", "127.0.0.1") {
        report.good("kong.http-log", format!("sends entries to {endpoint}"));
    } else {
        let what = format!("it sends to {endpoint}, the collector is at {wanted}");
        report.problem("kong.http-log", what, "entries do not arrive", CONFIGURE);
    }
}

fn sent_token(http_log: &Value, token: Option<&str>, report: &mut Report) {
    let headers = http_log["headers"].as_object();
    let sent = headers
        .and_then(|headers| headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("x-collector-token")))
        .and_then(|(_, value)| value.as_str());
    match (token, sent) {
        (Some(token), Some(sent)) if token == sent => report.good("kong.token", "Kong sends the token that the collector wants"),
        (Some(_), _) => report.problem(
            "kong.token",
            "Kong does not send the token that the collector wants",
            "the collector answers 401, and entries are dropped after the retries",
            CONFIGURE,
        ),
        (None, _) => {}
    }
}

/// Bytes that the two bodies of one entry can have, in base64.
fn longest_entry(llm_audit: &Value) -> u64 {
    let sizes = ["max_request_body_size", "max_response_body_size"].map(|name| llm_audit[name].as_u64().unwrap_or(1 << 20));
    sizes.into_iter().map(|size| size.div_ceil(3).saturating_mul(4)).sum()
}

fn queue(queue: &Value, longest_entry: u64, most_body: usize, report: &mut Report) {
    let mut weak = |condition: bool, level: Level, what: String, why: &'static str| {
        if condition {
            report.add(level, "kong.queue", what, why, CONFIGURE);
        }
    };
    let batch = queue["max_batch_size"].as_u64().unwrap_or(1);
    weak(
        batch <= 1,
        Level::Problem,
        "every entry is sent alone (queue.max_batch_size is 1)".to_owned(),
        "each waits for the answer to the one before: under load the queue fills, and what does not fit is lost",
    );
    weak(
        batch > 1 && batch.saturating_mul(longest_entry) > most_body as u64,
        Level::Problem,
        format!("a batch of {batch} entries can be larger than the {most_body} bytes that the collector takes"),
        "it is refused again and again, holds up the others, and is lost in the end",
    );
    let retry = queue["max_retry_time"].as_f64().unwrap_or(60.0);
    weak(
        retry < SHORT_RETRY_SECONDS,
        Level::Problem,
        format!("a batch is given up after {retry} s"),
        "a collector that is away longer costs entries",
    );
    match queue["max_bytes"].as_u64() {
        None => weak(
            true,
            Level::Warning,
            "the queue has no limit in bytes (queue.max_bytes)".to_owned(),
            "a collector that is away long fills Kong's memory",
        ),
        Some(most) => weak(
            most < longest_entry,
            Level::Problem,
            format!("an entry can have {longest_entry} bytes, the queue takes {most} (queue.max_bytes)"),
            "long conversations are not logged at all",
        ),
    }
}
