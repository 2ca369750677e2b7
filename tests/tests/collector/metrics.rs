//! `/metrics`.

use gateway_tests::collector::TestApp;
use gateway_tests::fixtures;

/// Lines of `/metrics` that differ from run to run.
fn is_steady(line: &&str) -> bool {
    !line.contains("_store_duration_seconds_") && !line.starts_with("llm_collector_build_info")
}

#[tokio::test]
async fn only_new_rows_are_counted_and_the_page_is_as_reviewed() {
    let app = TestApp::start().await;
    for _ in 0..3 {
        assert_eq!(app.log(fixtures::batch("mixed-50")).await.status, 200);
    }
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
