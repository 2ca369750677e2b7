//! Kong's plugins on each way to vLLM: what makes 401, what leads past the key check, and what makes holes in the audit log or in
//! the dashboards.

use std::collections::BTreeMap;

use serde_json::Value;

use super::mend::Mend;
use super::{Level, Report};
use crate::config::DoctorSettings;
use crate::counted::counted;
use crate::kong::apply::is_available;
use crate::kong::entities::is_own;
use crate::kong::wanted::QUOTA_PLUGIN;
use crate::kong::ways::Way;

/// Shorter, and a collector that is down over lunch costs entries.
const SHORT_RETRY_SECONDS: f64 = 3_600.0;
/// Kong's other plugins that ask who calls.
const OTHER_KEYS: [&str; 8] =
    ["basic-auth", "jwt", "hmac-auth", "oauth2", "ldap-auth", "mtls-auth", "openid-connect", "key-auth-enc"];
/// Ways that a finding names; of more it says how many.
const MOST_NAMES: usize = 3;

/// All plugins, as the Admin API lists them.
pub(super) struct Plugins<'p> {
    pub(super) list: &'p [Value],
    pub(super) mend: Mend<'p>,
}

/// How a plugin stands on a way.
enum State<'p> {
    On(&'p Value),
    Off(&'p Value),
    Missing,
}

/// What was found on one way; the same on several ways is said once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    level: Level,
    check: &'static str,
    what: String,
    why: &'static str,
    mend: String,
}

/// What was found on the way that is looked at.
struct Notes<'n> {
    found: &'n mut Vec<Found>,
    mend: String,
}

impl Notes<'_> {
    fn good(&mut self, check: &'static str, what: impl Into<String>) {
        self.found.push(Found { level: Level::Good, check, what: what.into(), why: "", mend: String::new() });
    }

    fn add(&mut self, level: Level, check: &'static str, what: impl Into<String>, why: &'static str) {
        self.found.push(Found { level, check, what: what.into(), why, mend: self.mend.clone() });
    }

    fn problem(&mut self, check: &'static str, what: impl Into<String>, why: &'static str) {
        self.add(Level::Problem, check, what, why);
    }
}

impl<'p> Plugins<'p> {
    /// Looks at every way, and says once what several have in common.
    pub(super) fn examine(
        &self,
        ways: &[Way<'_>],
        available: &Value,
        limits: usize,
        settings: &DoctorSettings,
        token: Option<&str>,
        report: &mut Report,
    ) {
        let mut on_ways: BTreeMap<Found, Vec<String>> = BTreeMap::new();
        let past: Vec<&Way<'_>> = ways.iter().filter(|way| !self.checks_keys(way)).collect();
        let ways: Vec<&Way<'_>> = ways.iter().filter(|way| !self.is_closed(way)).collect();
        let is_open_everywhere = ways.iter().all(|way| past.iter().any(|other| std::ptr::eq(*other, *way)));
        for way in &ways {
            let mut found = Vec::new();
            if !is_open_everywhere && past.iter().any(|other| std::ptr::eq(*other, *way)) {
                self.past_keys(way, &mut found);
            } else {
                self.keys(way, available, &mut found);
                self.audit(way, settings, token, &mut found);
                self.prometheus(way, &mut found);
                if limits > 0 {
                    self.quota(way, available, limits, &mut found);
                }
            }
            for found in found {
                on_ways.entry(found).or_default().push(way.name());
            }
        }
        let complained: Vec<&'static str> =
            on_ways.keys().filter(|found| found.level != Level::Good).map(|found| found.check).collect();
        for (found, names) in on_ways {
            if found.level == Level::Good && complained.contains(&found.check) {
                continue;
            }
            let what = if names.len() == ways.len() { found.what } else { format!("{}: {}", in_short(&names), found.what) };
            report.add(found.level, found.check, what, found.why, found.mend);
        }
    }

    /// The instance that counts for calls of everybody on a way: Kong takes the first that is switched on of the one for route and
    /// service, for the route, for the service, for all.
    fn state(&self, name: &str, way: &Way<'_>) -> State<'p> {
        let (service, route) = (way.service_id(), way.route_id());
        let mut off = None;
        for scope in [(route, service), (route, None), (None, service), (None, None)] {
            let is_it = |plugin: &&Value| {
                plugin["name"] == name
                    && plugin["consumer"].is_null()
                    && (plugin["route"]["id"].as_str(), plugin["service"]["id"].as_str()) == scope
            };
            for plugin in self.list.iter().filter(is_it) {
                if plugin["enabled"] != false {
                    return State::On(plugin);
                }
                off = off.or(Some(plugin));
            }
        }
        off.map_or(State::Missing, State::Off)
    }

    pub(super) fn on(&self, name: &str, way: &Way<'_>) -> Option<&'p Value> {
        match self.state(name, way) {
            State::On(plugin) => Some(plugin),
            State::Off(_) | State::Missing => None,
        }
    }

    fn checks_keys(&self, way: &Way<'_>) -> bool {
        self.on("key-auth", way).is_some()
    }

    /// Whether nothing gets through on a way.
    fn is_closed(&self, way: &Way<'_>) -> bool {
        self.on("request-termination", way).is_some_and(|plugin| plugin["config"]["trigger"].is_null())
    }

    /// Whose the plugin, or what it belongs to, is decides how it is mended.
    fn notes<'n>(&self, way: &Way<'_>, plugin: Option<&Value>, found: &'n mut Vec<Found>) -> Notes<'n> {
        let is_own = way.is_own() && plugin.is_none_or(is_own);
        Notes { found, mend: self.mend.for_owner(is_own) }
    }

    /// The settings of a plugin that is on; else a problem is noted.
    fn config(
        &self,
        name: &str,
        check: &'static str,
        why: &'static str,
        way: &Way<'_>,
        found: &mut Vec<Found>,
    ) -> Option<&'p Value> {
        match self.state(name, way) {
            State::On(plugin) => return Some(plugin),
            State::Missing => self.notes(way, None, found).problem(check, "the plugin is not there", why),
            State::Off(plugin) => self.notes(way, Some(plugin), found).problem(check, "the plugin is switched off", why),
        }
        None
    }

    /// A way that leads past the keys that others ask for.
    fn past_keys(&self, way: &Way<'_>, found: &mut Vec<Found>) {
        let paths = way.route.map(|route| route["paths"].to_string()).filter(|paths| paths != "null").unwrap_or_default();
        let mut notes = self.notes(way, None, found);
        let other =
            OTHER_KEYS.iter().find(|name| self.on(name, way).is_some_and(|plugin| plugin["config"]["anonymous"].is_null()));
        match other {
            Some(name) => notes.add(
                Level::Warning,
                "kong.ways",
                format!("it asks callers by {name}, not for this gateway's keys {paths}"),
                "users, limits and what is logged are others than on the other ways to vLLM",
            ),
            None => notes.problem(
                "kong.ways",
                format!("it leads to vLLM past the key check {paths}"),
                "whoever reaches the gateway may call the model there, without a name in the log",
            ),
        }
    }

    /// 401: the pre-function writes the key into a header, before key-auth, which has to read that very one.
    fn keys(&self, way: &Way<'_>, available: &Value, found: &mut Vec<Found>) {
        const WHY_401: &str = "OpenAI SDKs send the key as Authorization: Bearer, which key-auth does not know: 401";
        let why = "everybody may call the model, without a name in the log";
        let key_auth = self.config("key-auth", "kong.key-auth", why, way, found);
        let pre_function = self.config("pre-function", "kong.pre-function", WHY_401, way, found);
        let Some(key_auth) = key_auth else { return };
        let config = &key_auth["config"];
        let empty = Vec::new();
        let names: Vec<&str> = config["key_names"].as_array().unwrap_or(&empty).iter().filter_map(Value::as_str).collect();
        if let Some(pre_function) = pre_function {
            let code = pre_function["config"]["access"].as_array().unwrap_or(&empty);
            let code: String = code.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n").to_ascii_lowercase();
            let priority = |name: &str| available[name]["priority"].as_f64();
            let is_later = priority("pre-function").zip(priority("key-auth")).is_some_and(|(pre, key)| pre <= key);
            let reads = names.join(", ");
            let mut notes = self.notes(way, Some(pre_function), found);
            if code.is_empty() {
                notes.problem("kong.pre-function", "it has no code for the access phase", WHY_401);
            } else if is_later {
                notes.mend = "gateway upgrade NEWBUNDLE, with a Kong of the 3.9 line".to_owned();
                notes.problem("kong.pre-function", "it runs after key-auth", WHY_401);
            } else if !names.iter().any(|name| code.contains(&name.to_ascii_lowercase())) {
                // Which of the two is wrong cannot be known: both are brought back.
                notes.mend = self.mend.for_owner(way.is_own() && is_own(pre_function) && is_own(key_auth));
                let what = format!("it does not write the header that key-auth reads ({reads})");
                notes.problem("kong.pre-function", what, "right keys get 401");
            } else {
                notes.good("kong.keys", format!("the pre-function hands keys to key-auth in {reads}"));
            }
        }
        let mut notes = self.notes(way, Some(key_auth), found);
        let mut wrong = |condition: bool, what: &str, why: &'static str| {
            if condition {
                notes.problem("kong.key-auth", what, why);
            }
        };
        let leak = "keys reach vLLM, and every log entry in clear text";
        wrong(config["hide_credentials"] != true, "hide_credentials is off", leak);
        wrong(config["key_in_query"] != false, "key_in_query is on", "keys in URLs end up in logs and browser histories");
        let open = "whoever has no key, or a wrong one, may call the model";
        wrong(!config["anonymous"].is_null(), "anonymous is set", open);
    }

    /// Calls that do not become rows, or rows without what was said.
    fn audit(&self, way: &Way<'_>, settings: &DoctorSettings, token: Option<&str>, found: &mut Vec<Found>) {
        let why = "rows have neither prompts nor answers nor tokens";
        let llm_audit = self.config("llm-audit", "kong.llm-audit", why, way, found);
        let captures = llm_audit.is_some_and(|plugin| plugin["config"]["capture"] != "metadata");
        if let Some(plugin) = llm_audit {
            let what = if captures { "keeps prompts and answers" } else { "by its settings keeps no prompts and answers" };
            self.notes(way, Some(plugin), found).good("kong.llm-audit", what);
        }
        let why = "no call reaches the audit log";
        let Some(http_log) = self.config("http-log", "kong.http-log", why, way, found) else { return };
        let mut notes = self.notes(way, Some(http_log), found);
        endpoint(&http_log["config"], settings, &mut notes);
        sent_token(&http_log["config"], token, &mut notes);
        let longest = llm_audit.filter(|_| captures).map_or(0, |plugin| longest_entry(&plugin["config"]));
        queue(&http_log["config"]["queue"], longest, settings.max_body_bytes, &mut notes);
    }

    /// Limits that nobody is held to.
    fn quota(&self, way: &Way<'_>, available: &Value, limits: usize, found: &mut Vec<Found>) {
        const CHECK: &str = "quotas.plugin";
        const WHY: &str = "they hold nobody back: whoever has used them up goes on";
        let state = self.state(QUOTA_PLUGIN, way);
        let instance = match state {
            State::On(plugin) | State::Off(plugin) => Some(plugin),
            State::Missing => None,
        };
        let mut notes = self.notes(way, instance, found);
        if way.is_own() && instance.is_none_or(is_own) {
            notes.mend = self.mend.with("QUOTAS=true", "QUOTAS=true");
        }
        let are_set = counted(limits, "limit is set", "limits are set");
        match state {
            State::Missing if !is_available(available, QUOTA_PLUGIN) => {
                notes.mend = self.mend.plugins();
                notes.problem(CHECK, format!("{are_set}, and Kong does not have the plugin {QUOTA_PLUGIN}"), WHY);
            }
            State::Missing => notes.problem(CHECK, format!("{are_set}, and the plugin {QUOTA_PLUGIN} is not there"), WHY),
            State::Off(_) => notes.problem(CHECK, format!("{are_set}, and the plugin {QUOTA_PLUGIN} is switched off"), WHY),
            State::On(_) => {
                let priority = |name: &str| available[name]["priority"].as_f64();
                let is_early = |name: &&str| {
                    let runs = self.on(name, way).and_then(|_| priority(name)).zip(priority(QUOTA_PLUGIN));
                    runs.is_some_and(|(other, quota)| other <= quota)
                };
                match ["key-auth", "llm-router"].iter().find(|name| is_early(name)) {
                    Some(other) => {
                        notes.mend = self.mend.plugins();
                        let what = format!("{QUOTA_PLUGIN} runs before {other}");
                        notes.problem(CHECK, what, "it does not know yet who calls or which model, so the wrong limits are held");
                    }
                    None => notes.good(CHECK, format!("{QUOTA_PLUGIN} holds calls to {}", counted(limits, "limit", "limits"))),
                }
            }
        }
    }

    /// Dashboards without data.
    fn prometheus(&self, way: &Way<'_>, found: &mut Vec<Found>) {
        let why = "the gateway's dashboards stay empty";
        let Some(plugin) = self.config("prometheus", "kong.prometheus", why, way, found) else { return };
        let flags = ["status_code_metrics", "latency_metrics", "bandwidth_metrics", "upstream_health_metrics", "per_consumer"];
        let off: Vec<&str> = flags.into_iter().filter(|flag| plugin["config"][*flag] != true).collect();
        let mut notes = self.notes(way, Some(plugin), found);
        if off.is_empty() {
            notes.good("kong.prometheus", "exports all groups of metrics, per consumer");
        } else {
            let what = format!("off: {}", off.join(", "));
            notes.problem("kong.prometheus", what, "each is off by default, and dashboards need it");
        }
    }
}

/// The names of ways, the first few of them.
pub(super) fn in_short(names: &[String]) -> String {
    let shown = names.iter().take(MOST_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(MOST_NAMES).filter(|more| *more > 0) {
        Some(more) => format!("{shown} and {more} more"),
        None => shown,
    }
}

fn wanted_endpoint(settings: &DoctorSettings) -> String {
    format!("{}/log", settings.collector_url.trim_end_matches('/'))
}

pub(super) fn is_collector(endpoint: &str, settings: &DoctorSettings) -> bool {
    endpoint.replace("localhost", "127.0.0.1") == wanted_endpoint(settings).replace("localhost", "127.0.0.1")
}

fn endpoint(http_log: &Value, settings: &DoctorSettings, notes: &mut Notes<'_>) {
    let (endpoint, wanted) = (http_log["http_endpoint"].as_str().unwrap_or_default(), wanted_endpoint(settings));
    if is_collector(endpoint, settings) {
        notes.good("kong.http-log", format!("sends entries to {endpoint}"));
    } else {
        let what = format!("it sends to {endpoint}, the collector is at {wanted}");
        notes.problem("kong.http-log", what, "entries do not arrive");
    }
}

fn sent_token(http_log: &Value, token: Option<&str>, notes: &mut Notes<'_>) {
    let headers = http_log["headers"].as_object();
    let sent = headers
        .and_then(|headers| headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("x-collector-token")))
        .and_then(|(_, value)| value.as_str());
    match (token, sent) {
        (Some(token), Some(sent)) if token == sent => notes.good("kong.token", "Kong sends the token that the collector wants"),
        (Some(_), _) => notes.problem(
            "kong.token",
            "Kong does not send the token that the collector wants",
            "the collector answers 401, and entries are dropped after the retries",
        ),
        (None, _) => {}
    }
}

/// Bytes that the two bodies of one entry can have, in base64.
fn longest_entry(llm_audit: &Value) -> u64 {
    let sizes = ["max_request_body_size", "max_response_body_size"].map(|name| llm_audit[name].as_u64().unwrap_or(1 << 20));
    sizes.into_iter().map(|size| size.div_ceil(3).saturating_mul(4)).sum()
}

fn queue(queue: &Value, longest_entry: u64, most_body: usize, notes: &mut Notes<'_>) {
    let mut weak = |condition: bool, level: Level, what: String, why: &'static str| {
        if condition {
            notes.add(level, "kong.queue", what, why);
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
