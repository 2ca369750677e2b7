//! `/metrics`.

use std::time::Duration;

use gateway_tests::collector::TestApp;
use gateway_tests::fixtures;
use gateway_tests::process::wait_until;
use llm_collector::measure::Metrics;
use llm_collector::store::state::State;

/// Lines of `/metrics` that differ from run to run.
fn is_steady(line: &&str) -> bool {
    let differ = ["_database_bytes ", "_disk_free_bytes ", "_disk_size_bytes ", "llm_collector_build_info{"];
    !line.contains("_store_duration_seconds_") && !differ.iter().any(|name| line.contains(name))
}

#[tokio::test]
async fn only_new_rows_are_counted_and_the_page_is_as_reviewed() {
    let app = TestApp::start().await;
    for _ in 0..3 {
        assert_eq!(app.log(fixtures::batch("mixed-50")).await.status, 200);
    }
    wait_until("the state of the database was seen", Duration::from_secs(10), || async {
        app.metric("llm_collector_partitions_ahead").await > 0.0
    })
    .await;
    let page = app.get("/metrics").await;
    assert_eq!(page.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    // The order of the series of a metric is not defined.
    let mut lines: Vec<&str> = page.text.lines().filter(is_steady).collect();
    lines.sort_unstable();
    let lines = lines.join("\n") + "\n";
    let golden = fixtures::kong().join("expected/metrics-of-mixed-50-three-times.txt");
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    if lines != expected {
        let seen = std::env::temp_dir().join("metrics-seen.txt");
        std::fs::write(&seen, &lines).unwrap();
        panic!("/metrics differs from {}; what was seen is in {}", golden.display(), seen.display());
    }
    app.stop().await;
}

#[tokio::test]
async fn what_a_client_makes_up_does_not_become_a_label() {
    let app = TestApp::start().await;
    let entry = |id: &str, status: u16| {
        format!(
            r#"{{"started_at":1795400000000,"request":{{"id":"{id}","uri":"/made/up/{id}","body":"{{\"model\":\"made-up-{id}\"}}"}},"response":{{"status":{status},"headers":{{}},"body":"{{\"error\":{{\"message\":\"no such model\"}},\"model\":\"made-up-{id}\"}}"}}}}"#
        )
    };
    let entries: Vec<String> = (0..20).map(|n| entry(&n.to_string(), 404)).chain([entry("odd", 7)]).collect();
    assert_eq!(app.log(format!("[{}]", entries.join(","))).await.count("stored"), 21);
    let page = app.get("/metrics").await.text;
    assert!(!page.contains("made"), "{page}");
    let refused = r#"llm_requests_total{consumer="anonymous",model="unknown",endpoint="other",code="404"}"#;
    assert_eq!(app.metric(refused).await, 20.0);
    app.stop().await;
}

#[tokio::test]
async fn time_per_token_comes_from_streamed_calls_and_missing_usage_is_counted() {
    let app = TestApp::start().await;
    // 536 ms in all, 1 ms to the first byte, 151 tokens.
    app.log(fixtures::entry("chat-count-stream-usage")).await;
    let sum = app.metric(r#"llm_time_per_output_token_seconds_sum{model="qwen-tiny"}"#).await;
    assert!((sum - 0.535 / 150.0).abs() < 1e-9, "{sum}");
    assert_eq!(app.metric(r#"llm_time_to_first_token_seconds_sum{model="qwen-tiny"}"#).await, 0.001);
    // Streamed without usage, not streamed with usage, refused.
    for name in ["chat-en-stream", "chat-en", "err-bad-model"] {
        app.log(fixtures::entry(name)).await;
    }
    assert_eq!(app.metric(r#"llm_usage_missing_total{model="qwen-tiny"}"#).await, 1.0);
    assert_eq!(app.metric(r#"llm_time_per_output_token_seconds_count{model="qwen-tiny"}"#).await, 1.0);
    app.stop().await;
}

#[tokio::test]
async fn the_state_of_database_and_disk_is_shown() {
    let app = TestApp::start().await;
    let now = chrono::Utc::now().timestamp_millis();
    let entry = |n: i64, age_minutes: i64, ip: &str| {
        fixtures::small_entry(&format!("a{n}"), now - age_minutes * 60_000).replace("10.0.0.7", ip)
    };
    let entries =
        [entry(1, 1, "10.0.0.1"), entry(2, 2, "10.0.0.2"), entry(3, 3, "10.0.0.2"), entry(4, 90, "10.0.0.4"), "17".to_owned()];
    assert_eq!(app.log(format!("[{}]", entries.join(","))).await.count("stored"), 4);
    // Gauges are brought up to date several times a minute. Each collector tells what all of them saw.
    let second = TestApp::start_on(app.database.clone(), &[]).await;
    wait_until("the state was seen", Duration::from_secs(90), || async {
        second.metric(r#"llm_consumer_addresses{consumer="z1"}"#).await == 2.0
            && second.metric("llm_collector_partitions_ahead").await == 7.0
    })
    .await;
    assert_eq!(second.metric("llm_collector_rejected_entries").await, 1.0);
    let bytes = app.database.number("SELECT pg_database_size(current_database())").await as f64;
    let shown = second.metric("llm_collector_database_bytes").await;
    assert!((shown / bytes - 1.0).abs() < 0.2, "{shown} of {bytes}");
    let (free, size) =
        (second.metric("llm_collector_disk_free_bytes").await, second.metric("llm_collector_disk_size_bytes").await);
    assert!(1e6 < free && free < size, "{free} of {size}");
    app.stop().await;
    second.stop().await;
}

#[test]
fn addresses_of_consumers_that_do_not_call_any_more_vanish() {
    let state = |addresses: &[(&str, i64)]| State {
        partitions_ahead: 7,
        database_bytes: 1,
        rejected_entries: 0,
        addresses: addresses.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
    };
    let metrics = Metrics::new();
    let shown = || {
        let page = metrics.render().unwrap();
        let mut lines: Vec<_> =
            page.lines().filter(|line| line.starts_with("llm_consumer_addresses{")).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    metrics.set_state(&state(&[("ann", 3), ("bob", 1)]));
    assert_eq!(shown(), [r#"llm_consumer_addresses{consumer="ann"} 3"#, r#"llm_consumer_addresses{consumer="bob"} 1"#]);
    metrics.set_state(&state(&[("bob", 2)]));
    assert_eq!(shown(), [r#"llm_consumer_addresses{consumer="bob"} 2"#]);
    let many: Vec<(String, i64)> = (0..3_000).map(|n| (format!("c{n}"), 1)).collect();
    metrics.set_state(&state(&many.iter().map(|(name, count)| (name.as_str(), *count)).collect::<Vec<_>>()));
    assert!(shown().len() <= 1_001, "{}", shown().len());
}

#[tokio::test]
async fn how_long_calls_were_held_is_a_histogram_and_a_column() {
    let app = TestApp::start().await;
    let entry = |id: &str, status: u16, llm: &str| {
        format!(
            r#"{{"started_at":1795400000000,"upstream_uri":"/v1/chat/completions","request":{{"id":"{id}","uri":"/v1/chat/completions","method":"POST"}},"response":{{"status":{status},"headers":{{}}}},"llm":{{"v":1,"model":"Qwen",{llm}}}}}"#
        )
    };
    let held = entry("held", 200, r#""queue_ms":1250"#);
    let refused = entry("refused", 429, r#""queue_ms":120000,"refused_by":"queue""#);
    let answer = app.log(format!("[{held},{refused},{}]", entry("straight", 200, r#""stream":false"#))).await;
    assert_eq!(answer.count("stored"), 3);
    assert_eq!(app.metric(r#"llm_queue_seconds_count{model="Qwen"}"#).await, 1.0);
    assert_eq!(app.metric(r#"llm_queue_seconds_sum{model="Qwen"}"#).await, 1.25);
    assert_eq!(app.metric(r#"llm_queue_seconds_sum{model="unknown"}"#).await, 120.0);
    assert_eq!(app.metric(r#"llm_refused_total{by="queue",model="unknown"}"#).await, 1.0);
    let held = "SELECT count(*) FROM llm_logs WHERE (request_id, queue_ms) IN (('held', 1250), ('refused', 120000))";
    assert_eq!(app.database.number(held).await, 2);
    app.stop().await;
}
