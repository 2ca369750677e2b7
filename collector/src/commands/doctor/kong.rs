//! Kong, through its Admin API: what makes 401, 500 and 504, and what makes holes in the audit log.

use serde_json::Value;

use super::database::Facts;
use super::services::get;
use super::{Level, Report};
use crate::config::DoctorSettings;

/// Shorter and long prompts on a busy GPU run into 504.
const SHORT_READ_TIMEOUT_MS: i64 = 60_000;
/// Shorter and a collector that is restarted costs entries.
const SHORT_RETRY_SECONDS: f64 = 3_600.0;
/// Connections that PostgreSQL keeps for superusers, and some for people.
const SPARE_CONNECTIONS: i64 = 10;
const CONFIGURE: &str = "gateway apply, or deploy/kong/configure.sh";

pub(super) fn examine(settings: &DoctorSettings, token: Option<&str>, facts: &Facts, report: &mut Report) {
    let url = &settings.kong_admin_url;
    let about = match get(url, None) {
        Ok(answer) if answer.status == 200 => answer.json(),
        Ok(answer) => {
            report.problem(
                "kong",
                format!("the Admin API at {url} answers with status {}", answer.status),
                WHY_UNKNOWN,
                "gateway logs kong",
            );
            return;
        }
        Err(error) => {
            report.problem(
                "kong",
                format!("no Admin API answers at {url}: {error}"),
                WHY_UNKNOWN,
                "gateway up; gateway logs kong",
            );
            return;
        }
    };
    version(&about, report);
    process(&about, settings, facts, report);
    let list = |path: &str| -> Vec<Value> {
        let answer = get(&format!("{}/{path}?size=1000", url.trim_end_matches('/')), None);
        answer.ok().and_then(|answer| answer.json()["data"].as_array().cloned()).unwrap_or_default()
    };
    let plugins = list("plugins");
    let plugin = |name: &str| {
        plugins.iter().find(|plugin| plugin["name"] == name && plugin["enabled"] != false).map(|plugin| &plugin["config"])
    };
    keys(plugin("pre-function"), plugin("key-auth"), report);
    audit(plugin("llm-audit"), plugin("http-log"), settings, token, report);
    prometheus(plugin("prometheus"), report);
    services(&list("services"), settings, report);
}

const WHY_UNKNOWN: &str = "users cannot be served or changed, and nothing about Kong could be checked";

fn version(about: &Value, report: &mut Report) {
    let version = about["version"].as_str().unwrap_or("?");
    let mut numbers = version.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    let numbers = [numbers.next(), numbers.next(), numbers.next()].map(|number| number.unwrap_or(0));
    if numbers < [3, 9, 2] {
        report.problem(
            "kong.version",
            format!("Kong {version} has known holes in its nginx"),
            "they were closed in 3.9.2 (June 2026)",
            "gateway upgrade NEWBUNDLE, with a Kong image of 3.9.2 or newer",
        );
    } else {
        report.good("kong.version", format!("Kong {version}"));
    }
}

fn process(about: &Value, settings: &DoctorSettings, facts: &Facts, report: &mut Report) {
    let configuration = &about["configuration"];
    if configuration["anonymous_reports"] == true {
        report.warning(
            "kong.reports",
            "anonymous_reports is on",
            "Kong tries to reach the internet",
            "KONG_ANONYMOUS_REPORTS=off; gateway apply",
        );
    }
    // "auto" or nothing is one a core, whatever KONG_WORKER_PROCESSES says: that is no property of Kong.
    let workers = configuration["nginx_worker_processes"].as_str().and_then(|text| text.parse::<i64>().ok());
    let workers = workers.or_else(|| configuration["nginx_worker_processes"].as_i64());
    let Some(workers) = workers else {
        report.warning(
            "kong.workers",
            "nginx_worker_processes is not set: there is a worker for every core",
            "each has its own connections to PostgreSQL and its own log queue; on a large host Kong answers 500",
            "KONG_NGINX_WORKER_PROCESSES=4 (KONG_WORKERS in gateway.env); gateway apply",
        );
        return;
    };
    let pool = configuration["pg_max_concurrent_queries"]
        .as_i64()
        .filter(|pool| *pool > 0)
        .or_else(|| configuration["pg_pool_size"].as_i64());
    let (Some(pool), Some(max_connections)) = (pool, facts.max_connections) else {
        report.good("kong.workers", format!("{workers} workers"));
        return;
    };
    let wanted = workers * pool + i64::from(settings.database.database_connections) + SPARE_CONNECTIONS;
    if wanted > max_connections {
        report.problem(
            "kong.connections",
            format!(
                "{workers} workers with {pool} connections each want more than PostgreSQL's max_connections ({max_connections})"
            ),
            "under load Kong cannot look up keys and answers 500",
            "lower KONG_WORKERS in gateway.env; gateway apply",
        );
    } else {
        report.good("kong.connections", format!("{workers} workers with {pool} connections each fit into {max_connections}"));
    }
}

/// 401: the pre-function writes the key into a header, and key-auth has to read that very one.
fn keys(pre_function: Option<&Value>, key_auth: Option<&Value>, report: &mut Report) {
    let code = pre_function
        .and_then(|config| config["access"].as_array())
        .map(|parts| parts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n"));
    let Some(key_auth) = key_auth else {
        report.problem(
            "kong.key-auth",
            "the plugin is not there",
            "everybody may call the model, without a name in the log",
            CONFIGURE,
        );
        return;
    };
    let empty = Vec::new();
    let names: Vec<&str> = key_auth["key_names"].as_array().unwrap_or(&empty).iter().filter_map(Value::as_str).collect();
    match code.filter(|code| !code.is_empty()) {
        None => report.problem(
            "kong.pre-function",
            "the plugin is not there or has no code for the access phase",
            "OpenAI SDKs send the key as Authorization: Bearer, which key-auth does not know: 401",
            CONFIGURE,
        ),
        Some(code) if !names.iter().any(|name| code.to_ascii_lowercase().contains(&name.to_ascii_lowercase())) => report.problem(
            "kong.pre-function",
            format!("it does not write the header that key-auth reads ({})", names.join(", ")),
            "right keys get 401",
            CONFIGURE,
        ),
        Some(_) => report.good("kong.keys", format!("the pre-function hands keys to key-auth in {}", names.join(", "))),
    }
    if key_auth["hide_credentials"] != true {
        report.problem(
            "kong.key-auth",
            "hide_credentials is off",
            "keys reach vLLM, and every log entry in clear text",
            CONFIGURE,
        );
    }
    if key_auth["key_in_query"] != false {
        report.problem("kong.key-auth", "key_in_query is on", "keys in URLs end up in logs and browser histories", CONFIGURE);
    }
}

fn audit(
    llm_audit: Option<&Value>,
    http_log: Option<&Value>,
    settings: &DoctorSettings,
    token: Option<&str>,
    report: &mut Report,
) {
    match llm_audit {
        None => report.problem(
            "kong.llm-audit",
            "the plugin is not there",
            "rows have neither prompts nor answers nor tokens",
            CONFIGURE,
        ),
        Some(config) if config["capture"] == "metadata" => {
            report.good("kong.llm-audit", "is there; by its settings it keeps no prompts and answers");
        }
        Some(_) => report.good("kong.llm-audit", "is there and keeps prompts and answers"),
    }
    let Some(config) = http_log else {
        report.problem("kong.http-log", "the plugin is not there", "no call reaches the audit log", CONFIGURE);
        return;
    };
    let endpoint = config["http_endpoint"].as_str().unwrap_or_default();
    let wanted = format!("{}/log", settings.collector_url.trim_end_matches('/'));
    if endpoint.replace("localhost", "127.0.0.1") == wanted.replace("localhost", "127.0.0.1") {
        report.good("kong.http-log", format!("sends entries to {endpoint}"));
    } else {
        report.problem(
            "kong.http-log",
            format!("it sends to {endpoint}, the collector is at {wanted}"),
            "entries do not arrive",
            CONFIGURE,
        );
    }
    let headers = config["headers"].as_object();
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
    let queue = &config["queue"];
    let mut weak = |condition: bool, level: Level, what: String, why: &'static str| {
        if condition {
            report.add(level, "kong.queue", what, why, CONFIGURE);
        }
    };
    let batch = queue["max_batch_size"].as_i64().unwrap_or(1);
    weak(
        batch <= 1,
        Level::Warning,
        "every entry is sent alone (queue.max_batch_size is 1)".to_owned(),
        "costs Kong and the collector a request for each call",
    );
    let retry = queue["max_retry_time"].as_f64().unwrap_or(60.0);
    weak(
        retry < SHORT_RETRY_SECONDS,
        Level::Warning,
        format!("a batch is given up after {retry} s"),
        "a collector that is away longer costs entries",
    );
    weak(
        queue["max_bytes"].as_i64().is_none(),
        Level::Warning,
        "the queue has no limit in bytes (queue.max_bytes)".to_owned(),
        "a collector that is away long fills Kong's memory",
    );
}

fn prometheus(config: Option<&Value>, report: &mut Report) {
    let Some(config) = config else {
        report.problem("kong.prometheus", "the plugin is not there", "the gateway's dashboards stay empty", CONFIGURE);
        return;
    };
    let flags = ["status_code_metrics", "latency_metrics", "bandwidth_metrics", "upstream_health_metrics", "per_consumer"];
    let off: Vec<&str> = flags.into_iter().filter(|flag| config[*flag] != true).collect();
    if off.is_empty() {
        report.good("kong.prometheus", "exports all groups of metrics, per consumer");
    } else {
        report.problem(
            "kong.prometheus",
            format!("off: {}", off.join(", ")),
            "each is off by default, and dashboards need it",
            CONFIGURE,
        );
    }
}

/// 504, and answers that are generated twice.
fn services(services: &[Value], settings: &DoctorSettings, report: &mut Report) {
    let port = settings.vllm_url.rsplit_once(':').and_then(|(_, port)| port.trim_end_matches('/').parse::<i64>().ok());
    let to_vllm = services.iter().filter(|service| port.is_none() || service["port"].as_i64() == port);
    let mut any = false;
    for service in to_vllm {
        any = true;
        let name = service["name"].as_str().unwrap_or("?");
        let read = service["read_timeout"].as_i64().unwrap_or(0);
        if read < SHORT_READ_TIMEOUT_MS {
            report.warning(
                "kong.timeouts",
                format!("service {name} waits {read} ms for an answer"),
                "long prompts on a busy GPU get 504",
                "VLLM_READ_TIMEOUT_SECONDS in gateway.env; gateway apply",
            );
        } else {
            report.good("kong.timeouts", format!("service {name} waits {} s for an answer", read / 1_000));
        }
        if service["retries"].as_i64().unwrap_or(0) > 0 {
            report.warning(
                "kong.retries",
                format!("service {name} repeats failed calls"),
                "an answer may be generated twice on a GPU that is already busy",
                CONFIGURE,
            );
        }
    }
    if !any {
        report.problem(
            "kong.service",
            format!("no service of Kong leads to {}", settings.vllm_url),
            "every call gets 404",
            CONFIGURE,
        );
    }
}
