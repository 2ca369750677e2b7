//! `llm-collector doctor` on an installation with one thing broken at a time.
//!
//! The gateway of [`gateway_tests::gateway`], a real PostgreSQL, the real collector and a real Prometheus. Grafana is a pretended
//! one, and so are the pages on which Kong tells of its version and its process, where they have to be wrong.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod certificates;
mod database;
mod kong;
mod models;
mod plugins;
mod pretend;
mod quotas;
mod services;
mod ways;

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gateway_tests::collector::{binary, get};
use gateway_tests::gateway::Session;
use gateway_tests::process::{Reaper, free_port, wait_until};
use pretend::Pretend;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::OnceCell;

const GRAFANA_PASSWORD: &str = "a-password-of-24-digits!";
/// `admin` and the password above, as a browser sends them.
const GRAFANA_LOGIN: &str = "Basic YWRtaW46YS1wYXNzd29yZC1vZi0yNC1kaWdpdHMh";

/// Kong is not as it should be: so at the beginning, and when a test failed before it had put right what it broke.
static BROKEN: AtomicBool = AtomicBool::new(true);
static PROMETHEUS: OnceCell<Prometheus> = OnceCell::const_new();

/// A healthy installation, until a test breaks it.
struct Site {
    session: Session,
    grafana: Pretend,
    variables: BTreeMap<String, String>,
    data: tempfile::TempDir,
}

impl Site {
    async fn healthy() -> Self {
        let session = Session::alone().await;
        let grafana = healthy_grafana().await;
        let gateway = session.gateway;
        let prometheus = PROMETHEUS.get_or_init(|| async { Prometheus::start(&[&gateway.collector_url]).await }).await;
        let data = tempfile::tempdir().unwrap();
        let variables = [
            ("KONG_ADMIN_URL", gateway.admin_url.clone()),
            ("COLLECTOR_URL", gateway.collector_url.clone()),
            ("COLLECTOR_TOKEN", gateway.own_keys()[0].clone()),
            ("VLLM_URL", gateway.vllm.url()),
            ("DATABASE_URL", with_password(&gateway.database.url, "a-long-and-random-one")),
            ("PROMETHEUS_URL", prometheus.url.clone()),
            ("GRAFANA_URL", grafana.url.clone()),
            ("GRAFANA_ADMIN_PASSWORD", GRAFANA_PASSWORD.to_owned()),
            ("COLLECTOR_DATA_DIR", data.path().to_str().unwrap().to_owned()),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value)).into();
        let site = Self { session, grafana, variables, data };
        if BROKEN.swap(false, Ordering::SeqCst) {
            site.session.configure_again(&[]).await;
            // The suite's own time-out is short, so that its tests are.
            site.patch("services", "vllm", &json!({ "read_timeout": 300_000 })).await;
        }
        site
    }

    /// What doctor is told about where something is.
    fn set(&mut self, name: &str, value: impl Into<String>) {
        self.variables.insert(name.to_owned(), value.into());
    }

    async fn doctor(&self) -> Said {
        self.run(&["--json"], "").await
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Said {
        let mut child = tokio::process::Command::new(binary())
            .arg("doctor")
            .args(arguments)
            .env_clear()
            .envs(&self.variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A doctor that was not asked to read does not.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await.expect("it ends").unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Said { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// The URL with a password in it; the servers of the tests take any.
fn with_password(url: &str, password: &str) -> String {
    url.replacen("postgres@", &format!("postgres:{password}@"), 1)
}

/// What doctor said.
#[derive(Debug)]
struct Said {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// How to mend what a check complains of.
    fn mend(&self, check: &str) -> String {
        let page = self.json();
        let findings = page["findings"].as_array().expect("findings");
        let finding = findings.iter().find(|finding| finding["level"] != "ok" && finding["check"] == check);
        finding.unwrap_or_else(|| panic!("no complaint of {check}: {self:?}"))["mend"].as_str().expect("a text").to_owned()
    }

    /// The findings that are not good, as level, check and what.
    fn complaints(&self) -> Vec<(String, String, String)> {
        let page = self.json();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let findings = page["findings"].as_array().expect("findings").iter();
        let bad = findings.filter(|finding| finding["level"] != "ok").inspect(|finding| {
            for part in ["what", "why", "mend"] {
                assert!(!text(&finding[part]).is_empty(), "a complaint without {part}: {finding}");
            }
        });
        bad.map(|finding| (text(&finding["level"]), text(&finding["check"]), text(&finding["what"]))).collect()
    }

    /// A problem of this check that says these words, and status 1.
    fn assert_problem(&self, check: &str, words: &[&str]) {
        self.assert_complaint("problem", check, words);
        assert_eq!(self.status, Some(1), "{self:?}");
        assert!(self.json()["problems"].as_u64() >= Some(1));
    }

    /// A warning of this check that says these words.
    fn assert_warning(&self, check: &str, words: &[&str]) {
        self.assert_complaint("warning", check, words);
    }

    fn assert_complaint(&self, level: &str, check: &str, words: &[&str]) {
        let complaints = self.complaints();
        let matches = |(its_level, its_check, what): &&(String, String, String)| {
            its_level == level && its_check == check && words.iter().all(|word| what.contains(word))
        };
        assert!(complaints.iter().any(|complaint| matches(&complaint)), "no {level} {check} with {words:?} in {complaints:#?}");
    }

    /// No complaint of this check.
    fn assert_quiet(&self, check: &str) {
        assert!(!self.complaints().iter().any(|(_, its_check, _)| its_check == check), "{self:?}");
    }
}

async fn healthy_grafana() -> Pretend {
    let grafana = Pretend::new().await;
    grafana.says("/api/health", 200, json!({"database": "ok"}));
    grafana.says("/api/org", 401, json!({"message": "Invalid username or password"}));
    grafana.says("/api/datasources", 401, json!({"message": "Invalid username or password"}));
    let sources = json!([{"uid": "prometheus", "name": "Prometheus"}, {"uid": "postgresql", "name": "PostgreSQL"}]);
    grafana.says_to(GRAFANA_LOGIN, "/api/datasources", 200, sources);
    for uid in ["prometheus", "postgresql"] {
        let path = format!("/api/datasources/uid/{uid}/health");
        grafana.says_to(GRAFANA_LOGIN, &path, 200, json!({"status": "OK", "message": "it works"}));
    }
    grafana
}

/// A real Prometheus with a folder of its own.
struct Prometheus {
    url: String,
    _process: Child,
    _reaper: Reaper,
}

impl Prometheus {
    /// Scrapes these servers, and has done so once.
    async fn start(targets: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let config = folder.join("prometheus.yml");
        let targets: Vec<&str> = targets.iter().map(|url| url.trim_start_matches("http://")).collect();
        let page = json!({
            "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
            "scrape_configs": [{"job_name": "collector", "static_configs": [{"targets": targets}]}],
        });
        // JSON is YAML.
        std::fs::write(&config, page.to_string()).unwrap();
        let port = free_port();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Prometheus (tests/tools.sh test)");
        let reaper = Reaper::new(&format!("kill {}; rm -rf {}", process.id(), folder.display()));
        let url = format!("http://127.0.0.1:{port}");
        let asked = format!("{url}/api/v1/targets?state=active");
        wait_until("Prometheus has scraped", Duration::from_secs(30), || async {
            let Some(answer) = get(&asked).await.filter(|answer| answer.status == 200) else { return false };
            let page = answer.json();
            let found = page["data"]["activeTargets"].as_array().cloned().unwrap_or_default();
            found.len() == targets.len() && found.iter().all(|target| target["health"] != "unknown")
        })
        .await;
        Self { url, _process: process, _reaper: reaper }
    }
}

#[tokio::test]
async fn a_healthy_installation_has_no_problem() {
    let site = Site::healthy().await;
    let said = site.doctor().await;
    assert_eq!(said.json()["problems"], 0, "{:#?}", said.complaints());
    assert_eq!(said.status, Some(0), "{said:?}");
    // Everything was looked at.
    let page = said.json();
    let checks: Vec<&str> =
        page["findings"].as_array().unwrap().iter().map(|finding| finding["check"].as_str().unwrap()).collect();
    for check in [
        "collector",
        "collector.spool",
        "disk",
        "grafana",
        "grafana.datasources",
        "keys",
        "kong.http-log",
        "kong.keys",
        "kong.llm-audit",
        "kong.numbers",
        "kong.prometheus",
        "kong.reports",
        "kong.timeouts",
        "kong.token",
        "kong.version",
        "lost",
        "network",
        "partitions",
        "postgresql",
        "postgresql.connections",
        "prometheus.targets",
        "rejected",
        "rows",
        "vllm",
    ] {
        assert!(checks.contains(&check), "{check} is not in {checks:?}");
    }
}

#[tokio::test]
async fn findings_are_for_people_unless_json_is_asked_for_and_hold_no_secret() {
    let mut site = Site::healthy().await;
    let nobody = format!("http://127.0.0.1:{}", free_port());
    site.set("GRAFANA_URL", &nobody);
    let (text, json) = (site.run(&[], "").await, site.doctor().await);
    let lines: Vec<&str> = text.stdout.lines().collect();
    // The worst comes first, with the reason and the remedy.
    assert!(lines[0].starts_with("problem  grafana ") && lines[0].contains(&nobody), "{}", text.stdout);
    assert!(lines[1].trim().starts_with("why ") && lines[2].trim().starts_with("mend "), "{}", text.stdout);
    assert!(text.stdout.contains(" 1 problem, "), "{}", text.stdout);
    assert_eq!(text.status, Some(1));
    let secrets = [site.session.gateway.own_keys()[0].clone(), GRAFANA_PASSWORD.to_owned(), "a-long-and-random-one".to_owned()];
    for said in [&text, &json] {
        for secret in &secrets {
            assert!(!said.stdout.contains(secret) && !said.stderr.contains(secret), "{secret} in {said:?}");
        }
    }
}

#[tokio::test]
async fn warnings_alone_end_with_status_1_only_when_asked_to_be_strict() {
    let site = Site::healthy().await;
    let log = site.data.path().join("kong.log");
    std::fs::write(&log, "2026/11/24 10:00:00 [warn] [http-log] queue a1: queue at 80% capacity\n").unwrap();
    let log = log.to_str().unwrap();
    let said = site.run(&["--json", "--kong-log", log], "").await;
    said.assert_warning("kong.log.queue", &["1 time of entries"]);
    assert_eq!(said.status, Some(0), "{said:?}");
    assert_eq!(site.run(&["--strict", "--kong-log", log], "").await.status, Some(1));
}
