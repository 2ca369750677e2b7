//! The collector, vLLM, Prometheus and Grafana, over HTTP.

use std::time::Duration;

use serde_json::Value;
use ureq::config::ConfigBuilder;
use ureq::typestate::AgentScope;

use super::{Level, Report};
use crate::certificates::pinned;
use crate::config::DoctorSettings;
use crate::counted::counted;
use crate::kong::admin::administrator;
use crate::measure::page;
use crate::webhook;

/// Longest wait for an answer: everything is on this host.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The spool of a collector that drains is empty after seconds; what is older waits for something to be mended.
const OLD_SPOOL_SECONDS: f64 = 300.0;

/// An answer: status and body.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
}

fn config() -> ConfigBuilder<AgentScope> {
    ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).proxy(None)
}

/// `GET`, in bounded time; an error says why there is no answer.
pub(super) fn get(url: &str, authorization: Option<&str>) -> Result<Answer, String> {
    ask(&config().build().into(), url, authorization)
}

fn ask(agent: &ureq::Agent, url: &str, authorization: Option<&str>) -> Result<Answer, String> {
    let mut request = agent.get(url);
    if let Some(authorization) = authorization {
        request = request.header("Authorization", authorization);
    }
    let mut response = request.call().map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let body = response.body_mut().read_to_string().map_err(|error| error.to_string())?;
    Ok(Answer { status, body })
}

pub(super) fn examine(settings: &DoctorSettings, report: &mut Report) {
    collector(settings, report);
    vllm(settings, report);
    prometheus(settings, report);
    grafana(settings, report);
}

/// A value of an OpenMetrics page, added up over its series.
fn sum_of(page: &str, name: &str) -> f64 {
    let of_series = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.chars().next()? {
            '{' => rest.rsplit_once('}')?.1,
            ' ' => rest,
            _ => return None,
        };
        value.split_whitespace().next()?.parse::<f64>().ok()
    };
    page.lines().filter_map(of_series).sum()
}

fn collector(settings: &DoctorSettings, report: &mut Report) {
    let url = &settings.collector_url;
    let ready = match get(&format!("{url}/readyz"), None) {
        Ok(ready) => ready,
        Err(error) => {
            report.problem(
                "collector",
                format!("no collector answers at {url}: {error}"),
                "Kong keeps entries in memory for a while and then drops them: the audit log gets holes",
                "gateway up; gateway logs collector",
            );
            return;
        }
    };
    match (ready.status, ready.json()["takes"].as_str()) {
        (200, Some("postgresql")) => report.good("collector", format!("takes entries at {url} and stores them")),
        (200, _) => report.warning(
            "collector",
            "takes entries, but PostgreSQL does not: they wait on disk",
            "they are safe, but not visible, and the disk fills",
            "gateway status; gateway logs postgresql",
        ),
        _ => report.problem(
            "collector",
            "takes no entries: neither PostgreSQL nor the spool does",
            "Kong keeps entries in memory for a while and then drops them",
            "gateway logs collector; free space on the disk of the data folder",
        ),
    }
    let Ok(metrics) = get(&format!("{url}/metrics"), None) else { return };
    let spooled = sum_of(&metrics.body, page::SPOOL_BYTES);
    let oldest = sum_of(&metrics.body, page::SPOOL_OLDEST_SECONDS);
    if spooled > 0.0 {
        let level = if oldest > OLD_SPOOL_SECONDS { Level::Problem } else { Level::Warning };
        report.add(
            level,
            "collector.spool",
            format!("{spooled} bytes wait on disk, the oldest for {oldest:.0} s"),
            "entries in the spool are safe, but not visible yet; it should be empty while PostgreSQL is up",
            "gateway status; gateway logs collector",
        );
    } else {
        report.good("collector.spool", "is empty");
    }
    let missing = sum_of(&metrics.body, page::USAGE_MISSING);
    if missing > 0.0 {
        report.warning(
            "collector.usage",
            format!(
                "{} came without token counts since the collector started",
                counted(missing, "successful call", "successful calls")
            ),
            "usage and cost of these calls are unknown",
            "switch include_usage of the llm-audit plugin on (AUDIT_INCLUDE_USAGE=true; gateway apply)",
        );
    }
}

fn vllm(settings: &DoctorSettings, report: &mut Report) {
    let url = settings.vllm_url.trim_end_matches('/');
    match get(&format!("{url}/health"), None) {
        Ok(answer) if answer.status == 200 => {
            report.good("vllm", format!("is healthy at {url}"));
            vllm_key(url, settings, report);
        }
        Ok(answer) => report.problem(
            "vllm",
            format!("answers its health check with status {}", answer.status),
            "calls fail with 500 or 503 until its engine runs again",
            "look at vLLM's log and start it again",
        ),
        Err(error) => report.problem(
            "vllm",
            format!("does not answer at {url}: {error}"),
            "every call fails with 502",
            "start vLLM (vllm serve … --host 127.0.0.1), or set VLLM_URL in gateway.env; gateway apply",
        ),
    }
}

/// Whether whoever reaches vLLM may call it. Every account of the host does.
fn vllm_key(url: &str, settings: &DoctorSettings, report: &mut Report) {
    match get(&format!("{url}/v1/models"), None) {
        Ok(answer) if answer.status == 200 => report.warning(
            "vllm.key",
            format!("vLLM answers at {url} without a key"),
            "whoever reaches it, as every account of its host does, calls it past keys, limits and the audit log",
            settings.vllm_key_file.as_deref().map_or_else(
                || {
                    "start vLLM with VLLM_API_KEY set, and give llm-collector kong apply the same key in VLLM_API_KEY_FILE"
                        .to_owned()
                },
                |file| format!("start vLLM with the gateway's key: VLLM_API_KEY=\"$(sudo cat {file})\" vllm serve …"),
            ),
        ),
        _ => report.good("vllm.key", "vLLM wants a key"),
    }
}

fn prometheus(settings: &DoctorSettings, report: &mut Report) {
    let url = &settings.prometheus_url;
    let targets = match get(&format!("{url}/api/v1/targets?state=active"), None) {
        Ok(answer) if answer.status == 200 => answer.json(),
        Ok(answer) => {
            report.problem(
                "prometheus",
                format!("answers with status {}", answer.status),
                "no metrics, no alerts",
                "gateway logs prometheus",
            );
            return;
        }
        Err(error) => {
            report.problem(
                "prometheus",
                format!("does not answer at {url}: {error}"),
                "no metrics, no alerts",
                "gateway up; gateway logs prometheus",
            );
            return;
        }
    };
    let empty = Vec::new();
    let targets = targets["data"]["activeTargets"].as_array().unwrap_or(&empty);
    let down: Vec<String> = targets
        .iter()
        .filter(|target| target["health"] != "up")
        .map(|target| {
            format!("{} ({})", target["labels"]["job"].as_str().unwrap_or("?"), target["lastError"].as_str().unwrap_or(""))
        })
        .collect();
    if targets.is_empty() {
        report.problem("prometheus.targets", "there are none", "dashboards stay empty", "gateway apply");
    } else if down.is_empty() {
        report.good("prometheus.targets", format!("all {} are up", targets.len()));
    } else {
        report.problem(
            "prometheus.targets",
            format!("down: {}", down.join(", ")),
            "panels of these targets stay empty, and alerts cannot fire",
            "gateway status; gateway logs NAME",
        );
    }
}

/// What asks Grafana, which is told a password.
fn for_grafana(settings: &DoctorSettings) -> Result<ureq::Agent, String> {
    if !settings.grafana_url.starts_with("https://") {
        return Ok(config().build().into());
    }
    match settings.certificate.fingerprint() {
        Some(wanted) => pinned::agent(config().build(), wanted).map_err(|error| error.to_string()),
        None => webhook::tls(None).map(|tls| config().tls_config(tls).build().into()).map_err(|error| error.to_string()),
    }
}

fn grafana(settings: &DoctorSettings, report: &mut Report) {
    let url = &settings.grafana_url;
    let agent = for_grafana(settings);
    let get = |path: &str, authorization: Option<&str>| {
        ask(agent.as_ref().map_err(Clone::clone)?, &format!("{url}{path}"), authorization)
    };
    match get("/api/health", None) {
        Ok(answer) if answer.status == 200 => {}
        Ok(answer) => {
            report.problem("grafana", format!("answers with status {}", answer.status), "no dashboards", "gateway logs grafana");
            return;
        }
        Err(error) => {
            report.problem(
                "grafana",
                format!("does not answer at {url}: {error}"),
                "no dashboards",
                "gateway up; gateway logs grafana",
            );
            return;
        }
    }
    let answer = get("/api/org", Some(&administrator("admin")));
    match answer {
        Ok(answer) if answer.status == 200 && answer.json().get("id").is_some() => report.problem(
            "grafana.password",
            "the administrator's password is the default, admin",
            "everybody who reaches the port reads every conversation",
            "gateway compose exec grafana grafana cli admin reset-admin-password NEW",
        ),
        _ => report.good("grafana", format!("answers at {url}, and not to the default password")),
    }
    if let Some(password) = settings.grafana_password.as_deref() {
        let authorization = administrator(password);
        data_sources(|path| get(path, Some(&authorization)), report);
    }
}

/// Panels without data: Grafana itself asks each source.
fn data_sources(get: impl Fn(&str) -> Result<Answer, String>, report: &mut Report) {
    const WHY: &str = "panels stay empty";
    let list = match get("/api/datasources") {
        Ok(answer) if answer.status == 200 => answer.json(),
        Ok(Answer { status: 401, .. }) => {
            let what = "the administrator's password is another one than the installation made: data sources were not checked";
            report.warning(
                "grafana.datasources",
                what,
                "nothing is wrong with a password of your own",
                "look in Grafana: Connections → Data sources",
            );
            return;
        }
        Ok(answer) => {
            let what = format!("Grafana lists none: status {}", answer.status);
            return report.problem("grafana.datasources", what, WHY, "gateway logs grafana");
        }
        Err(error) => return report.problem("grafana.datasources", error, WHY, "gateway logs grafana"),
    };
    let empty = Vec::new();
    let sources = list.as_array().unwrap_or(&empty);
    let failure = |source: &Value| {
        let health = format!("/api/datasources/uid/{}/health", source["uid"].as_str().unwrap_or_default());
        let said = match get(&health) {
            Ok(answer) if answer.status == 200 && answer.json()["status"] == "OK" => return None,
            Ok(answer) => answer.json()["message"].as_str().map_or(format!("status {}", answer.status), str::to_owned),
            Err(error) => error,
        };
        Some(format!("{} ({said})", source["name"].as_str().unwrap_or("?")))
    };
    let failed: Vec<String> = sources.iter().filter_map(failure).collect();
    if sources.is_empty() {
        report.problem("grafana.datasources", "there are none", WHY, "gateway restart grafana; gateway logs grafana");
    } else if failed.is_empty() {
        report.good("grafana.datasources", format!("all {} answer", sources.len()));
    } else {
        let what = format!("without an answer: {}", failed.join(", "));
        report.problem("grafana.datasources", what, WHY, "gateway status; gateway apply (sets passwords on both sides)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_a_metric_are_added_up() {
        let page = "# HELP a x.\na_total{b=\"}\"} 2\na_total{b=\"c d\"} 3.5\na_total_more 7\na_total 1\n# EOF\n";
        assert_eq!(sum_of(page, "a_total"), 6.5);
        assert_eq!(sum_of(page, "b"), 0.0);
    }
}
