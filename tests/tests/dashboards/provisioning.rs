//! What provisioning, dashboards and deployment have to agree on.

use std::path::{Path, PathBuf};

use gateway_tests::grafana;

use crate::prometheus::configuration;

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn deploy(file: &str) -> String {
    read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file))
}

#[test]
fn data_sources_use_what_the_deployment_hands_over() {
    let sources = read(grafana::folder().join("provisioning/datasources/gateway.yaml"));
    let compose = deploy("compose.yaml");
    for variable in ["GATEWAY_PROMETHEUS_URL", "GATEWAY_POSTGRES"] {
        assert!(sources.contains(&format!("url: ${variable}\n")), "{variable}");
        assert!(compose.contains(&format!("      {variable}: ")), "{variable}");
    }
    let secret = "/run/secrets/grafana-database-password";
    assert!(sources.contains(&format!("password: $__file{{{secret}}}")));
    assert!(compose.contains(&format!(":{secret}:ro")));
    let roles = deploy("postgresql/roles.sql");
    assert!(sources.contains("user: llm_grafana") && roles.contains("'llm_grafana'"));
    assert!(sources.contains("database: llm\n") && roles.contains("('llm', 'llm_collector')"));
    let connections = sources.lines().find_map(|line| line.trim().strip_prefix("maxOpenConns: ")).expect("a limit");
    assert!(roles.contains(&format!("CONNECTION LIMIT {connections};")), "Grafana may open more connections than its role");
    let scrape = format!("{}s", grafana::SCRAPE_SECONDS);
    assert!(sources.contains(&format!("timeInterval: {scrape}\n")));
    assert!(read(configuration().join("prometheus.yml")).contains(&format!("scrape_interval: {scrape}\n")));
}

#[test]
fn dashboards_are_looked_for_where_the_deployment_puts_them() {
    let provider = read(grafana::folder().join("provisioning/dashboards/gateway.yaml"));
    let compose = deploy("compose.yaml");
    assert!(compose.contains("${RELEASE_DIR:?}/grafana:/etc/gateway/grafana:ro"));
    assert!(compose.contains("GF_PATHS_PROVISIONING: /etc/gateway/grafana/provisioning\n"));
    assert!(provider.contains("path: /etc/gateway/grafana/dashboards\n"));
    assert!(grafana::folder().join("dashboards").is_dir());
}

#[test]
fn jobs_that_dashboards_and_alerts_name_are_scraped() {
    let configuration = read(configuration().join("prometheus.yml"));
    for job in ["kong", "llm-collector", "vllm", "prometheus"] {
        assert!(configuration.contains(&format!("job_name: {job}\n")), "{job}");
    }
}
