//! Kong itself: its version, its process, where it sends calls.

use gateway_tests::process::free_port;
use serde_json::{Value, json};

use super::pretend::Pretend;
use super::{Said, Site};

impl Site {
    /// What doctor says when a page of the Admin API says something else.
    async fn with_page(&mut self, path: &str, change: Value) -> Said {
        let real = self.session.gateway.admin_url.clone();
        let kong = Pretend::before(&real).await;
        kong.says_changed(path, &change).await;
        self.set("KONG_ADMIN_URL", &kong.url);
        let said = self.doctor().await;
        self.set("KONG_ADMIN_URL", real);
        said
    }

    async fn with_configuration(&mut self, change: Value) -> Said {
        self.with_page("/", json!({ "configuration": change })).await
    }
}

#[tokio::test]
async fn a_kong_with_known_holes_is_a_problem() {
    let mut site = Site::healthy().await;
    for version in ["3.9.3", "3.9.3-ubuntu", "3.9.0.4", "3.8.9", "2.8.1"] {
        site.with_page("/", json!({ "version": version })).await.assert_problem("kong.version", &[version]);
    }
    for version in ["3.9.4", "3.9.5-ubuntu", "3.10.0"] {
        site.with_page("/", json!({ "version": version })).await.assert_quiet("kong.version");
    }
}

#[tokio::test]
async fn a_kong_that_phones_home_is_a_problem() {
    let mut site = Site::healthy().await;
    site.with_configuration(json!({ "anonymous_reports": true })).await.assert_problem("kong.reports", &["anonymous_reports"]);
}

#[tokio::test]
async fn an_admin_api_that_wants_no_password_is_a_warning_and_one_that_does_is_asked_with_it() {
    let mut site = Site::healthy().await;
    site.doctor().await.assert_warning("kong.admin", &["no password"]);
    let real = site.session.gateway.admin_url.clone();
    let kong = Pretend::before(&real).await;
    // admin:of-the-admin
    let login = "Basic YWRtaW46b2YtdGhlLWFkbWlu";
    let pages = ["/", "/status", "/services?size=1000", "/routes?size=1000", "/plugins?size=1000", "/upstreams?size=1000"];
    for path in pages {
        kong.says(path, 401, "");
        kong.says_to(login, path, 200, kong.behind(path).await);
    }
    site.set("KONG_ADMIN_URL", &kong.url);
    site.doctor().await.assert_problem("kong", &["wants a password"]);
    site.set("KONG_ADMIN_PASSWORD", "of-the-admin");
    let said = site.doctor().await;
    said.assert_quiet("kong.admin");
    assert_eq!(said.status, Some(0), "{said:?}");
    assert!(!said.stdout.contains("of-the-admin"), "{}", said.stdout);
}

#[tokio::test]
async fn whoever_trusts_everybody_about_addresses_is_told() {
    let mut site = Site::healthy().await;
    let said = site.with_configuration(json!({ "trusted_ips": ["10.0.0.1", "0.0.0.0/0"] })).await;
    said.assert_problem("kong.trusted", &["0.0.0.0/0"]);
    site.with_configuration(json!({ "trusted_ips": ["10.0.0.1"] })).await.assert_quiet("kong.trusted");
}

#[tokio::test]
async fn more_workers_than_postgresql_has_connections_for_are_a_problem() {
    let mut site = Site::healthy().await;
    // The server of the tests allows 60 or 100.
    let pool = |workers: &str| json!({ "nginx_worker_processes": workers, "pg_max_concurrent_queries": 8 });
    let said = site.with_configuration(pool("384")).await;
    said.assert_problem("kong.connections", &["384 workers with 8 connections", "max_connections"]);
    site.with_configuration(pool("4")).await.assert_quiet("kong.connections");
    let said = site.with_configuration(json!({ "nginx_worker_processes": "auto" })).await;
    said.assert_warning("kong.workers", &["every core"]);
}

#[tokio::test]
async fn what_costs_calls_now_and_then_is_a_warning() {
    let mut site = Site::healthy().await;
    let said = site.with_configuration(json!({ "upstream_keepalive_idle_timeout": 60 })).await;
    said.assert_warning("kong.keepalive", &["60 s"]);
    let said = site.with_configuration(json!({ "nginx_http_client_body_buffer_size": "8k" })).await;
    said.assert_warning("kong.body-buffer", &["8192"]);
    let good = json!({ "upstream_keepalive_idle_timeout": 4, "nginx_http_client_body_buffer_size": "1m" });
    let said = site.with_configuration(good).await;
    said.assert_quiet("kong.keepalive");
    said.assert_quiet("kong.body-buffer");
}

#[tokio::test]
async fn a_kong_without_its_database_is_a_problem() {
    let mut site = Site::healthy().await;
    let said = site.with_page("/status", json!({ "database": { "reachable": false } })).await;
    said.assert_problem("kong.database", &["does not reach"]);
}

#[tokio::test]
async fn a_service_that_gives_up_early_repeats_calls_or_leads_elsewhere_is_found() {
    let site = Site::healthy().await;
    // Kong's own default.
    let said = site.with_changed("services", "vllm", json!({ "read_timeout": 60_000 })).await;
    said.assert_problem("kong.timeouts", &["vllm", "60000 ms"]);
    let said = site.with_changed("services", "vllm", json!({ "retries": 5 })).await;
    said.assert_warning("kong.retries", &["vllm"]);
    let said = site.with_changed("services", "vllm", json!({ "port": 9 })).await;
    said.assert_problem("kong.service", &[&site.session.gateway.vllm.url()]);
}

#[tokio::test]
async fn an_admin_api_that_does_not_answer_or_is_none_is_said_once() {
    let mut site = Site::healthy().await;
    let nobody = format!("http://127.0.0.1:{}", free_port());
    site.set("KONG_ADMIN_URL", &nobody);
    let said = site.doctor().await;
    said.assert_problem("kong", &[&nobody]);
    let of_kong = said.complaints().into_iter().filter(|(_, check, _)| check.starts_with("kong")).count();
    assert_eq!(of_kong, 1, "{said:?}");
    let other = Pretend::new().await;
    for (status, body) in [(200, "<html>"), (401, "{}"), (500, "")] {
        other.says("/", status, body);
        site.set("KONG_ADMIN_URL", &other.url);
        site.doctor().await.assert_problem("kong", &[&other.url]);
    }
}

#[tokio::test]
async fn what_listens_beyond_this_host_is_found() {
    let mut site = Site::healthy().await;
    let real = site.session.gateway.admin_url.clone();
    let open = Pretend::listening_on("0.0.0.0", Some(&real)).await;
    site.set("KONG_ADMIN_URL", &open.url);
    let port = open.url.rsplit(':').next().unwrap();
    site.doctor().await.assert_problem("network", &["Admin API", port]);
}

#[tokio::test]
async fn a_kong_without_a_database_is_not_configured_but_told_of_a_file() {
    let site = Site::healthy().await;
    let kong = Pretend::before(&site.session.gateway.admin_url).await;
    kong.says_changed("/", &json!({ "configuration": { "database": "off" } })).await;
    let command = tokio::process::Command::new(gateway_tests::collector::binary())
        .args(["kong", "apply"])
        .env_clear()
        .env("KONG_ADMIN_URL", &kong.url)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8(command.stderr).unwrap();
    assert!(said.contains("runs without a database") && said.contains("kong export"), "{said}");
    assert_eq!((command.status.code(), command.stdout), (Some(1), Vec::new()));
}
