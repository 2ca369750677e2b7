//! A real Prometheus with a history and the recording rules of the kit. It scrapes nothing.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gateway_tests::collector::{get, post};
use gateway_tests::grafana::Moment;
use gateway_tests::process::{free_port, wait_until};
use serde_json::Value;

use crate::history;

/// A running Prometheus.
pub(crate) struct Prometheus {
    url: String,
    server: Child,
    /// The last moment of its history.
    pub(crate) end_ms: i64,
    _folder: tempfile::TempDir,
}

/// The folder `deploy/prometheus`.
pub(crate) fn configuration() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus")
}

/// Runs promtool; returns what it printed.
pub(crate) fn promtool(arguments: &[&str]) -> String {
    let output = Command::new("promtool").args(arguments).output().expect("promtool, see tests/tools.sh");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}:\n{printed}");
    printed
}

impl Prometheus {
    /// Makes the history, starts the server, and computes what the recording rules would have recorded.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).to_str().expect("a path").to_owned();
        let (history, data, config) = (path("history.txt"), path("data"), path("prometheus.yml"));
        let rules = configuration().join("rules");
        let recording = rules.join("recording.yml");
        std::fs::write(&config, format!("rule_files: ['{}/*.yml']\n", rules.display())).unwrap();
        let end_ms = history::end_ms();
        std::fs::write(&history, history::open_metrics(end_ms).await).unwrap();
        promtool(&["tsdb", "create-blocks-from", "openmetrics", "--quiet", &history, &data]);

        let mut this = Self { url: String::new(), server: serve(&config, &data, 0), end_ms, _folder: folder };
        this.restart(&config, &data).await;
        let (start, end) = ((history::begin_ms(end_ms) / 1_000).to_string(), (end_ms / 1_000).to_string());
        let (url, rules) = (this.url.clone(), recording.display().to_string());
        let backfill = ["tsdb", "create-blocks-from", "rules", "--start", &start, "--end", &end, "--eval-interval", "30s"];
        promtool(&[&backfill[..], &["--url", &url, "--output-dir", &data, &rules]].concat());
        // New blocks are seen at a start, or after a minute.
        this.restart(&config, &data).await;
        this
    }

    async fn restart(&mut self, config: &str, data: &str) {
        self.server.kill().expect("it can be killed");
        self.server.wait().expect("it ends");
        let port = free_port();
        self.server = serve(config, data, port);
        self.url = format!("http://127.0.0.1:{port}");
        let ready = format!("{}/-/ready", self.url);
        wait_until("Prometheus is ready", Duration::from_secs(60), || async {
            get(&ready).await.is_some_and(|answer| answer.status == 200)
        })
        .await;
    }

    /// The rules that it has loaded: name and expression.
    pub(crate) async fn rules(&self) -> Vec<(String, String)> {
        let groups = self.ask("/api/v1/rules", &[]).await.expect("rules");
        let of_group = |group: &Value| group["rules"].as_array().cloned().unwrap_or_default();
        let rules: Vec<Value> = groups["groups"].as_array().expect("groups").iter().flat_map(of_group).collect();
        let text = |rule: &Value, key: &str| rule[key].as_str().expect("a text").to_owned();
        rules.iter().map(|rule| (text(rule, "name"), text(rule, "query"))).collect()
    }

    /// The series that a query gives, each with its values.
    pub(crate) async fn query(
        &self,
        expression: &str,
        instant: bool,
        moment: Moment,
        step_seconds: i64,
    ) -> Result<Vec<Series>, String> {
        let seconds = |ms: i64| (ms / 1_000).to_string();
        let answer = if instant {
            self.ask("/api/v1/query", &[("query", expression), ("time", &seconds(moment.to_ms))]).await?
        } else {
            let (start, end, step) = (seconds(moment.from_ms), seconds(moment.to_ms), step_seconds.to_string());
            self.ask("/api/v1/query_range", &[("query", expression), ("start", &start), ("end", &end), ("step", &step)]).await?
        };
        Ok(answer["result"].as_array().expect("a result").iter().map(Series::read).collect())
    }

    /// The label sets of all series with a name.
    pub(crate) async fn series(&self, name: &str) -> Vec<Value> {
        let begin = (history::begin_ms(self.end_ms) / 1_000).to_string();
        let found = self.ask("/api/v1/series", &[("match[]", name), ("start", &begin)]).await;
        found.expect("series").as_array().cloned().unwrap_or_default()
    }

    async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let encoded: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        let url = format!("{}{path}?{}", self.url, encoded.join("&"));
        let answer = if path.ends_with("/series") || path.ends_with("/rules") { get(&url).await } else { post(&url, "").await };
        let answer = answer.ok_or("no answer")?.json();
        if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(answer["error"].to_string()) }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A series of a result.
#[derive(Debug)]
pub(crate) struct Series {
    /// Its labels.
    pub(crate) labels: Value,
    /// Its values that are numbers.
    pub(crate) values: Vec<f64>,
}

impl Series {
    fn read(json: &Value) -> Self {
        let points = json["values"].as_array().cloned().unwrap_or_else(|| vec![json["value"].clone()]);
        let value = |point: &Value| point[1].as_str().and_then(|text| text.parse::<f64>().ok()).filter(|value| !value.is_nan());
        Self { labels: json["metric"].clone(), values: points.iter().filter_map(value).collect() }
    }
}

fn serve(config: &str, data: &str, port: u16) -> Child {
    Command::new("prometheus")
        .arg(format!("--config.file={config}"))
        .arg(format!("--storage.tsdb.path={data}"))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("prometheus, see tests/tools.sh")
}

fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
