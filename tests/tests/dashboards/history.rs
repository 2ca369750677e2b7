//! What Prometheus would remember of two scrapes that were recorded, or made by a collector just now.
//!
//! Each page is repeated at every scrape, as if nothing had happened in between: the first for twenty minutes, the second for
//! twenty minutes after it. Nothing is interpolated.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gateway_tests::collector::TestApp;
use gateway_tests::{fixtures, grafana};

/// Scrapes of each of the two pages.
const SCRAPES: i64 = 80;

/// Two scrapes of one target.
struct Target {
    job: &'static str,
    instance: &'static str,
    pages: [String; 2],
}

/// The end of the history, in milliseconds: about now, but never so soon after midnight that "today" holds too little of it.
pub(crate) fn end_ms() -> i64 {
    const DAY: u64 = 86_400;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs() - 60;
    let end = if now % DAY < 7_200 { now - now % DAY - 60 } else { now };
    i64::try_from(end / 15 * 15).unwrap() * 1_000
}

/// The begin of the history.
pub(crate) fn begin_ms(end_ms: i64) -> i64 {
    end_ms - (2 * SCRAPES - 1) * grafana::SCRAPE_SECONDS * 1_000
}

/// The history as OpenMetrics text with time stamps, for `promtool tsdb create-blocks-from openmetrics`.
pub(crate) async fn open_metrics(end_ms: i64) -> String {
    let file = |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let kong = |number| file(&fixtures::kong().join(format!("metrics-{number}.txt")));
    let vllm = |name| file(&fixtures::vllm().join(name).join("response.bin"));
    let old = |number| file(&fixtures::kong().join(format!("../prometheus/vllm-old-names-{number}.txt")));
    let targets = [
        Target { job: "kong", instance: "127.0.0.1:8100", pages: [kong(1), kong(2)] },
        Target { job: "llm-collector", instance: "127.0.0.1:5000", pages: collector_pages().await },
        Target { job: "vllm", instance: "127.0.0.1:8000", pages: [vllm("get-metrics"), vllm("get-metrics-after")] },
        Target { job: "vllm", instance: "127.0.0.1:8010", pages: [old(1), old(2)] },
    ];
    let mut text = String::new();
    for target in &targets {
        let up = format!("up{{job=\"{}\",instance=\"{}\"}} 1", target.job, target.instance);
        for (number, page) in (0..).zip(&target.pages) {
            let first_ms = begin_ms(end_ms) + number * SCRAPES * grafana::SCRAPE_SECONDS * 1_000;
            for scrape in 0..SCRAPES {
                let seconds = first_ms / 1_000 + scrape * grafana::SCRAPE_SECONDS;
                writeln!(text, "{up} {seconds}").unwrap();
                for sample in page.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
                    writeln!(text, "{} {seconds}", labelled(sample, target)).unwrap();
                }
            }
        }
    }
    text + "# EOF\n"
}

/// The sample with the labels that Prometheus gives it.
fn labelled(sample: &str, target: &Target) -> String {
    let (series, value) = sample.rsplit_once(' ').expect("a value");
    let labels = format!("job=\"{}\",instance=\"{}\"", target.job, target.instance);
    match series.strip_suffix('}') {
        Some(open) => format!("{open},{labels}}} {value}"),
        None => format!("{series}{{{labels}}} {value}"),
    }
}

/// `/metrics` of a collector after every other recorded entry, and after all of them.
async fn collector_pages() -> [String; 2] {
    let app = TestApp::start().await;
    let names = fixtures::entry_names();
    for name in names.iter().step_by(2) {
        app.log(fixtures::entry(name)).await;
    }
    // What a node of Kong tells, as its plugin does once a second.
    let told = r#"{"v":1,"queue":{"models":{"Qwen":{"in_flight":8,"waiting":9,"share":{"user":"bob","places":6}}},"waiting":{"bob":9}},"node":"gateway:8111","workers":[],"gauges":{"in_flight":1,"queue_entries":2,"queue_bytes":4096,"queue_stalled_seconds":0,"entries_left_out":3,"quota_pending":4,"quota_lost":0}}"#;
    assert_eq!(app.post("/sync", told, &[]).await.status, 200);
    app.log(held("first")).await;
    let first = app.get("/metrics").await.text;
    for name in names.iter().skip(1).step_by(2) {
        app.log(fixtures::entry(name)).await;
    }
    app.log(held("second")).await;
    assert_eq!(app.post("/sync", told, &[]).await.status, 200);
    let second = app.get("/metrics").await.text;
    app.stop().await;
    [first, second]
}

/// A call that was held and then refused, as no recording has one.
fn held(id: &str) -> String {
    format!(
        r#"{{"started_at":1795716662376,"request":{{"id":"held-{id}","uri":"/v1/chat/completions","method":"POST"}},"response":{{"status":429}},"llm":{{"v":1,"queue_ms":1250,"refused_by":"queue"}}}}"#
    )
}
