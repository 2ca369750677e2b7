//! The collector, vLLM, Prometheus, Grafana, and Kong's log.

use gateway_tests::collector::get;
use gateway_tests::process::free_port;
use serde_json::json;

use super::pretend::Pretend;
use super::{GRAFANA_LOGIN, Prometheus, Site};

#[tokio::test]
async fn what_does_not_run_is_named_with_its_address() {
    let mut site = Site::healthy().await;
    let nobody = format!("http://127.0.0.1:{}", free_port());
    for (variable, check) in
        [("COLLECTOR_URL", "collector"), ("VLLM_URL", "vllm"), ("PROMETHEUS_URL", "prometheus"), ("GRAFANA_URL", "grafana")]
    {
        let before = site.variables[variable].clone();
        site.set(variable, &nobody);
        site.doctor().await.assert_problem(check, &[&nobody]);
        site.set(variable, before);
    }
}

#[tokio::test]
async fn a_vllm_whose_engine_is_dead_is_a_problem() {
    let mut site = Site::healthy().await;
    let vllm = Pretend::new().await;
    vllm.says("/health", 503, "");
    site.set("VLLM_URL", &vllm.url);
    site.doctor().await.assert_problem("vllm", &["503"]);
}

#[tokio::test]
async fn a_vllm_that_wants_no_key_is_a_warning() {
    let mut site = Site::healthy().await;
    let vllm = Pretend::new().await;
    vllm.says("/health", 200, "");
    vllm.says("/v1/models", 200, json!({ "object": "list", "data": [] }));
    site.set("VLLM_URL", format!("{}/", vllm.url));
    site.set("VLLM_API_KEY_FILE", "/opt/gateway/key");
    let said = site.doctor().await;
    said.assert_warning("vllm.key", &["without a key"]);
    assert!(said.mend("vllm.key").contains("sudo cat /opt/gateway/key"), "{said:?}");
    vllm.says("/v1/models", 401, json!({ "error": "Unauthorized" }));
    site.doctor().await.assert_quiet("vllm.key");
}

#[tokio::test]
async fn the_collector_has_the_metrics_that_doctor_reads() {
    let site = Site::healthy().await;
    let page = get(&format!("{}/metrics", site.session.gateway.collector_url)).await.unwrap().text;
    // A counter is there from its first count on.
    for name in ["llm_collector_spool_bytes", "llm_collector_spool_oldest_seconds"] {
        assert!(page.contains(&format!("# TYPE {name} ")), "{name} is not in {page}");
    }
}

#[tokio::test]
async fn a_collector_that_takes_nothing_and_calls_without_usage_are_found() {
    let mut site = Site::healthy().await;
    let collector = Pretend::before(&site.session.gateway.collector_url).await;
    collector.says("/readyz", 503, json!({ "takes": null }));
    let page = "llm_usage_missing_total{model=\"m\"} 3\nllm_usage_missing_total{model=\"n\"} 4\nllm_collector_spool_bytes 4096\n\
        llm_collector_spool_oldest_seconds 900\n# EOF\n";
    collector.says("/metrics", 200, page);
    site.set("COLLECTOR_URL", &collector.url);
    let said = site.doctor().await;
    said.assert_problem("collector", &["neither PostgreSQL nor the spool"]);
    said.assert_problem("collector.spool", &["4096 bytes", "900 s"]);
    said.assert_warning("collector.usage", &["7 successful calls"]);
}

#[tokio::test]
async fn targets_that_prometheus_cannot_scrape_are_named() {
    let mut site = Site::healthy().await;
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let prometheus = Prometheus::start(&[&site.session.gateway.collector_url, &nobody]).await;
    site.set("PROMETHEUS_URL", &prometheus.url);
    site.doctor().await.assert_problem("prometheus.targets", &["collector", nobody.trim_start_matches("http://")]);
    let empty = Prometheus::start(&[]).await;
    site.set("PROMETHEUS_URL", &empty.url);
    site.doctor().await.assert_problem("prometheus.targets", &["none"]);
}

#[tokio::test]
async fn the_default_password_of_grafana_is_a_problem() {
    let site = Site::healthy().await;
    // admin:admin
    site.grafana.says_to("Basic YWRtaW46YWRtaW4=", "/api/org", 200, json!({ "id": 1, "name": "Main Org." }));
    site.doctor().await.assert_problem("grafana.password", &["default"]);
}

#[tokio::test]
async fn data_sources_that_do_not_answer_are_named_with_what_grafana_says() {
    let mut site = Site::healthy().await;
    let health = "/api/datasources/uid/postgresql/health";
    site.grafana.says_to(GRAFANA_LOGIN, health, 400, json!({ "status": "ERROR", "message": "password authentication failed" }));
    let said = site.doctor().await;
    said.assert_problem("grafana.datasources", &["PostgreSQL (password authentication failed)"]);
    assert!(!said.complaints().iter().any(|(_, _, what)| what.contains("Prometheus (")), "{said:?}");
    site.grafana.says_to(GRAFANA_LOGIN, "/api/datasources", 200, json!([]));
    site.doctor().await.assert_problem("grafana.datasources", &["none"]);
    // Somebody who changed the password is not told that something is broken.
    site.set("GRAFANA_ADMIN_PASSWORD", "an-older-one");
    let said = site.doctor().await;
    said.assert_warning("grafana.datasources", &["not checked"]);
    assert_eq!(said.status, Some(0), "{said:?}");
}

#[tokio::test]
async fn queues_that_gave_up_and_keys_are_found_in_kongs_log() {
    let site = Site::healthy().await;
    let log = "2026/11/24 10:00:00 [error] 77#0: [http-log] queue a1: could not send entries, giving up after 14 retries.  200 queue \
        entries were lost\n\
        2026/11/24 10:00:01 [warn] 77#0: a request with /v1/models?apikey=sk-0123456789abcdef0123\n";
    let said = site.run(&["--json", "--kong-log", "-"], log).await;
    said.assert_problem("kong.log.queue", &["1 time of entries"]);
    said.assert_problem("kong.log.keys", &["1 line of Kong's log holds a key"]);
    assert!(!said.stdout.contains("sk-0123"), "{}", said.stdout);
    let said = site.run(&["--json", "--kong-log", "-"], "2026/11/24 10:00:00 [notice] 77#0: start worker process 78\n").await;
    assert_eq!(said.status, Some(0), "{said:?}");
    let said = site.run(&["--json", "--kong-log", "/nowhere/kong.log"], "").await;
    said.assert_warning("kong.log", &["/nowhere/kong.log"]);
}
