//! Kong, through its Admin API: version, workers, where calls go and what is measured. Its plugins are in [`super::plugins`].

use serde_json::Value;

use super::Report;
use super::database::Facts;
use super::mend::Mend;
use super::plugins::Plugins;
use crate::config::DoctorSettings;
use crate::counted::counted;
use crate::kong::admin::{Admin, Trouble};
use crate::kong::apply::{OLDEST_KONG, numbers_of};
use crate::kong::entities::{is_own, name_of};
use crate::kong::state::State;
use crate::kong::ways::Way;

/// Kong's own default, 60 s, is too short: a long prompt that waits behind others on a busy GPU takes longer.
const SHORT_READ_TIMEOUT_MS: i64 = 60_000;
/// vLLM's server closes idle connections after 5 s.
const VLLM_KEEPALIVE_SECONDS: f64 = 5.0;
/// Kong's default of 8 KiB sends most prompts over a file.
const SMALL_BODY_BUFFER_BYTES: u64 = 64 << 10;
/// Connections that PostgreSQL keeps for superusers, and some for people.
const SPARE_CONNECTIONS: i64 = 10;

const WHY_UNKNOWN: &str = "users cannot be served or changed, and nothing about Kong could be checked";

pub(super) fn examine(settings: &DoctorSettings, token: Option<&str>, facts: &Facts, report: &mut Report) {
    let kong = match Admin::new(&settings.admin) {
        Ok(kong) => kong,
        Err(error) => return report.problem("kong", error.what, WHY_UNKNOWN, "KONG_ADMIN_PASSWORD_FILE"),
    };
    let (about, status, entities) = match everything(&kong) {
        Ok(all) => all,
        Err(error) => {
            let what = format!("the Admin API at {} {error}", kong.url());
            report.problem("kong", what, WHY_UNKNOWN, "gateway up; gateway logs kong");
            return;
        }
    };
    report.good("kong", format!("its Admin API answers at {}", kong.url()));
    password(&kong, report);
    version(&about, report);
    reach(&status, report);
    let configuration = &about["configuration"];
    outside(configuration, report);
    trusted(configuration, report);
    buffers(configuration, report);
    process(configuration, settings, facts, report);
    let mend = Mend::of(settings);
    let services = to_vllm(&entities, settings, mend, report);
    let ways = match entities.ways(&services) {
        ways if ways.is_empty() => vec![Way::default()],
        ways => ways,
    };
    routes(&ways, mend, report);
    let plugins = Plugins { list: &entities.plugins, mend };
    let limits = facts.quotas.limits.len();
    plugins.examine(&ways, &about["plugins"]["available_on_server"], limits, settings, token, report);
    plugins.numbers(&entities, settings, report);
    plugins.others(&entities, &services, report);
    super::models::examine(&kong, &entities, mend, report);
    super::quotas::in_kong(&kong, (&entities, &status), (&plugins, &ways), &facts.quotas, report);
}

fn everything(kong: &Admin) -> Result<(Value, Value, State), Trouble> {
    Ok((kong.page("/")?, kong.page("/status")?, State::read(kong)?))
}

/// Whoever reaches the Admin API reads all keys there, and every account of its host does.
fn password(kong: &Admin, report: &mut Report) {
    if kong.is_open("/") {
        report.warning(
            "kong.admin",
            "the Admin API wants no password",
            "every account of this host reads all keys through it, and makes itself one",
            "KONG_MANAGER=off in gateway.env; gateway apply (a Kong of your own: KONG_NGINX_ADMIN_AUTH_BASIC and …_USER_FILE)",
        );
    } else {
        report.good("kong.admin", "the Admin API wants a password");
    }
}

fn version(about: &Value, report: &mut Report) {
    let version = about["version"].as_str().unwrap_or("?");
    if numbers_of(version) < OLDEST_KONG {
        report.problem(
            "kong.version",
            format!("Kong {version} has known holes"),
            "behind a proxy that reuses connections one client can slip a request into that of another (CVE-2026-6338)",
            "gateway upgrade NEWBUNDLE, made with a Kong image of 3.9.4 or newer",
        );
    } else {
        report.good("kong.version", format!("Kong {version}"));
    }
}

fn reach(status: &Value, report: &mut Report) {
    if status["database"]["reachable"] == false {
        report.problem(
            "kong.database",
            "Kong does not reach its database",
            "keys that it has not looked up yet get 500, and changes have no effect",
            "gateway status; gateway logs postgresql; gateway apply",
        );
    }
}

fn outside(configuration: &Value, report: &mut Report) {
    if configuration["anonymous_reports"] == true {
        report.problem(
            "kong.reports",
            "anonymous_reports is on",
            "Kong reports to its makers over the internet, or waits in vain for a way there",
            "KONG_ANONYMOUS_REPORTS=off in Kong's environment; gateway apply",
        );
    } else {
        report.good("kong.reports", "Kong does not phone home");
    }
}

/// Whose word counts for the address that a call comes from.
fn trusted(configuration: &Value, report: &mut Report) {
    let empty = Vec::new();
    let trusted = configuration["trusted_ips"].as_array().unwrap_or(&empty);
    if let Some(everybody) = trusted.iter().filter_map(Value::as_str).find(|network| network.ends_with("/0")) {
        report.problem(
            "kong.trusted",
            format!("everybody is trusted to name the client's address ({everybody})"),
            "the audit log has whatever address a client claims, and limits by address do not hold",
            "TRUSTED_PROXIES in gateway.env (KONG_TRUSTED_IPS): the addresses of your proxies; gateway apply",
        );
    } else {
        report.good(
            "kong.trusted",
            counted(
                trusted.len(),
                "proxy is believed in what it says of clients' addresses",
                "proxies are believed in what they say of clients' addresses",
            ),
        );
    }
}

fn buffers(configuration: &Value, report: &mut Report) {
    let idle = &configuration["upstream_keepalive_idle_timeout"];
    if idle.as_f64().is_some_and(|seconds| seconds >= VLLM_KEEPALIVE_SECONDS) {
        report.warning(
            "kong.keepalive",
            format!("Kong keeps idle connections to vLLM for {idle} s, vLLM closes them after 5"),
            "a call that goes out just then gets 502",
            "KONG_UPSTREAM_KEEPALIVE_IDLE_TIMEOUT=4 in Kong's environment; gateway apply",
        );
    }
    let buffer = &configuration["nginx_http_client_body_buffer_size"];
    if let Some(bytes) = buffer.as_str().and_then(nginx_size).filter(|bytes| *bytes < SMALL_BODY_BUFFER_BYTES) {
        report.warning(
            "kong.body-buffer",
            format!("request bodies over {bytes} bytes go through a file"),
            "llm-audit reads them there, but each costs a write; other plugins find no body at all",
            "KONG_NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE=1m in Kong's environment; gateway apply",
        );
    }
}

/// A size as nginx writes it: `8k`, `1m`, `100`.
fn nginx_size(text: &str) -> Option<u64> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text.strip_prefix(number)?.to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// 500: the workers' connections against PostgreSQL's.
fn process(configuration: &Value, settings: &DoctorSettings, facts: &Facts, report: &mut Report) {
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
        report.good("kong.workers", counted(workers, "worker", "workers"));
        return;
    };
    let wanted = workers * pool + i64::from(settings.database.database_connections) + SPARE_CONNECTIONS;
    if wanted > max_connections {
        report.problem(
            "kong.connections",
            format!(
                "{} with {pool} connections each: more than PostgreSQL's max_connections ({max_connections}) leave room for",
                counted(workers, "worker", "workers")
            ),
            "under load Kong cannot look up keys and answers 500",
            "lower KONG_WORKERS in gateway.env; gateway apply",
        );
    } else {
        report.good(
            "kong.connections",
            format!("{} with {pool} connections each: room is for {max_connections}", counted(workers, "worker", "workers")),
        );
    }
}

/// 404 and 504, and answers that are generated twice. Returns the services that lead to vLLM.
fn to_vllm<'e>(entities: &'e State, settings: &DoctorSettings, mend: Mend<'_>, report: &mut Report) -> Vec<&'e Value> {
    let Some((host, port)) = super::network::host_and_port(&settings.vllm_url) else {
        report.problem("kong.service", format!("{} is no URL", settings.vllm_url), "where vLLM is, is unknown", "set VLLM_URL");
        return Vec::new();
    };
    let mut services = entities.leading_to(host, port);
    services.retain(|service| service["enabled"] != false);
    if services.is_empty() {
        let what = format!("no service of Kong leads to {}", settings.vllm_url);
        report.problem("kong.service", what, "every call gets 404, or goes elsewhere", mend.configure());
    }
    for service in &services {
        let (name, mend_it) = (name_of(service), mend.for_owner(is_own(service)));
        let read = service["read_timeout"].as_i64().unwrap_or(0);
        if read <= SHORT_READ_TIMEOUT_MS {
            let mend = if is_own(service) {
                mend.with("VLLM_READ_TIMEOUT_SECONDS=300", "VLLM_READ_TIMEOUT_MS=300000")
            } else {
                mend_it.clone()
            };
            let what = format!("service {name} waits {read} ms for an answer");
            report.problem("kong.timeouts", what, "long prompts on a busy GPU get 504", mend);
        } else {
            report.good("kong.timeouts", format!("service {name} waits {} s for an answer", read / 1_000));
        }
        if service["retries"].as_i64().unwrap_or(0) > 0 {
            report.warning(
                "kong.retries",
                format!("service {name} repeats failed calls"),
                "an answer may be generated twice on a GPU that is already busy",
                mend_it,
            );
        }
    }
    services
}

/// Services that no call reaches, and streams that are held back.
fn routes(ways: &[Way<'_>], mend: Mend<'_>, report: &mut Report) {
    let routed: Vec<&Way<'_>> = ways.iter().filter(|way| way.route.is_some()).collect();
    if routed.is_empty() && ways.iter().any(|way| way.service.is_some()) {
        report.problem("kong.routes", "no route leads to vLLM", "every call gets 404", mend.configure());
    }
    for way in routed {
        if way.route.is_some_and(|route| route["response_buffering"] == true) {
            report.warning(
                "kong.buffering",
                format!("{} has response_buffering=true", way.name()),
                "the last events of a stream wait in Kong for those that follow",
                mend.for_owner(way.is_own()),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_nginx_reads_them() {
        assert_eq!(["8k", "1M", "100", "2g"].map(nginx_size), [Some(8192), Some(1_048_576), Some(100), Some(2_147_483_648)]);
        assert_eq!(["", "k", "8x", "-1k"].map(nginx_size), [None; 4]);
    }
}
