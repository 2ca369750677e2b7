//! What is not stored of conversations.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gateway_tests::collector::{TestApp, run};
use serde_json::{Value, json};

const KEY: &str = "sk-abcdefghij0123456789";
const MOBILE: &str = "13812345678";
const EMAIL: &str = "li@example.cn";

/// A call of `consumer` on `route` in which user, model and a tool call say `text`.
fn entry(request_id: &str, consumer: &str, route: &str, text: &str) -> String {
    let encoded = |body: Value| STANDARD.encode(body.to_string());
    let request = json!({"model": "m", "messages": [
        {"role": "system", "content": format!("system {text}")}, {"role": "user", "content": format!("user {text}")}]});
    let answer = json!({"model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": {
            "role": "assistant", "content": format!("model {text}"), "reasoning": format!("thought {text}"),
            "tool_calls": [{"id": "t", "type": "function",
                "function": {"name": "f", "arguments": json!({"a": text}).to_string()}}]}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7}});
    json!({
        "started_at": 1_795_402_800_000_i64,
        "consumer": {"username": consumer},
        "route": {"name": route},
        "request": {"id": request_id, "uri": "/v1/chat/completions", "method": "POST", "body": encoded(request)},
        "response": {"status": 200, "body": encoded(answer)},
        "latencies": {"request": 9},
    })
    .to_string()
}

async fn row(app: &TestApp, request_id: &str) -> Value {
    let client = app.database.connect().await;
    client.query_one("SELECT to_jsonb(l) FROM llm_logs l WHERE request_id = $1", &[&request_id]).await.unwrap().get(0)
}

#[tokio::test]
async fn what_is_masked_is_nowhere_in_the_row_and_counted_once_a_row() {
    let app = TestApp::start_with(&["--mask", "key,mobile", "--mask-patterns", r"staff=\bz[0-9]{6}\b"]).await;
    let text = format!("{KEY} {MOBILE} {EMAIL} z123456 \"quoted\"");
    for _ in 0..2 {
        assert_eq!(app.log(entry("masked", "a", "r", &text)).await.status, 200);
    }
    let row = row(&app, "masked").await;
    let expected = format!("[key] [mobile] {EMAIL} [staff] \"quoted\"");
    assert_eq!(row["prompt"], format!("user {expected}"));
    assert_eq!(row["response"], format!("model {expected}"));
    assert_eq!(row["reasoning"], format!("thought {expected}"));
    assert_eq!(row["tool_calls"][0]["arguments"], json!({"a": expected}).to_string());
    assert_eq!(row["raw_log"]["request"]["body"]["messages"][0]["content"], format!("system {expected}"));
    for hidden in [KEY, MOBILE, "z123456"] {
        assert!(!row.to_string().contains(hidden), "{hidden} in {row}");
    }
    // Five texts in the bodies; the repeat is no new row.
    for pattern in ["key", "mobile", "staff"] {
        assert_eq!(app.metric(&format!("llm_masked_total{{pattern=\"{pattern}\"}}")).await, 5.0, "{pattern}");
    }
    assert_eq!(app.metric("llm_masked_total{pattern=\"email\"}").await, 0.0);
}

#[tokio::test]
async fn keys_are_masked_without_being_asked() {
    let app = TestApp::start().await;
    app.log(entry("default", "a", "r", &format!("{KEY} {MOBILE}"))).await;
    let row = row(&app, "default").await;
    assert_eq!(row["prompt"], format!("user [key] {MOBILE}"));
    assert!(!row.to_string().contains(KEY));
}

#[tokio::test]
async fn of_some_consumers_and_routes_only_metadata_is_stored() {
    let app = TestApp::start_with(&["--metadata-consumers", "council, hr", "--metadata-routes", "vllm-responses"]).await;
    for (id, consumer, route) in [("of-hr", "hr", "r"), ("of-route", "a", "vllm-responses"), ("of-others", "hrx", "r")] {
        app.log(entry(id, consumer, route, "confidential")).await;
    }
    for id in ["of-hr", "of-route"] {
        let row = row(&app, id).await;
        assert!(!row.to_string().contains("confidential"), "{row}");
        let kept = json!([row["model"], row["status"], row["prompt_tokens"], row["completion_tokens"], row["finish_reason"]]);
        assert_eq!(kept, json!(["m", 200, 5, 7, "stop"]), "{row}");
        for column in ["prompt", "response", "reasoning", "tool_calls"] {
            assert_eq!(row[column], Value::Null, "{column}");
        }
    }
    assert_eq!(row(&app, "of-others").await["prompt"], "user confidential");
}

/// A call on `path` of which the gateway logged no body, with what it says of it.
fn entry_without_bodies(request_id: &str, path: &str, status: u16, llm: Value) -> Value {
    json!({
        "started_at": 1_795_402_800_000_i64,
        "consumer": {"username": "hr"},
        "request": {"id": request_id, "uri": path, "method": "POST"},
        "response": {"status": status},
        "latencies": {"request": 9},
        "llm": llm,
    })
}

#[tokio::test]
async fn model_and_tokens_that_the_gateway_reports_are_stored_and_counted() {
    let app = TestApp::start().await;
    let chat = json!({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2}});
    let responses = json!({"input_tokens": 5, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 4},
        "output_tokens_details": {"reasoning_tokens": 2}});
    // Cached tokens are not among the input tokens here; they are kept as reported.
    let messages = json!({"input_tokens": 5, "output_tokens": 7, "cache_read_input_tokens": 400});
    for (id, path, usage, counts) in [
        ("chat", "/v1/chat/completions", chat, json!([5, 7, 4, 2])),
        ("responses", "/v1/responses", responses, json!([5, 7, 4, 2])),
        ("messages", "/v1/messages", messages, json!([5, 7, 400, null])),
        ("embeddings", "/v1/embeddings", json!({"prompt_tokens": 5}), json!([5, null, null, null])),
    ] {
        let entry = entry_without_bodies(id, path, 200, json!({"model": "m", "usage": usage}));
        assert_eq!(app.log(entry.to_string()).await.count("stored"), 1);
        let row = row(&app, id).await;
        let got = json!([row["prompt_tokens"], row["completion_tokens"], row["cached_tokens"], row["reasoning_tokens"]]);
        assert_eq!((&row["model"], got), (&json!("m"), counts), "{id}");
        assert_eq!(row["raw_log"], entry, "{id}: nothing is added");
        let calls = format!(r#"llm_requests_total{{consumer="hr",model="m",endpoint="{path}",code="200"}}"#);
        assert_eq!(app.metric(&calls).await, 1.0, "{id}");
    }
    for (kind, count) in [("prompt", 20.0), ("completion", 21.0), ("cached", 408.0), ("reasoning", 4.0)] {
        let series = format!(r#"llm_tokens_total{{consumer="hr",model="m",type="{kind}"}}"#);
        assert_eq!(app.metric(&series).await, count, "{kind}");
    }
    assert_eq!(app.metric(r#"llm_usage_missing_total{model="m"}"#).await, 0.0);
    app.log(entry_without_bodies("silent", "/v1/chat/completions", 200, json!({"model": "m"})).to_string()).await;
    assert_eq!(app.metric(r#"llm_usage_missing_total{model="m"}"#).await, 1.0);
    app.stop().await;
}

#[tokio::test]
async fn what_the_gateway_cannot_have_meant_costs_the_counts_and_not_the_row() {
    let app = TestApp::start().await;
    let huge = "x".repeat(100_000);
    let counts = [json!("many"), json!(-1), json!(1e300), json!(4_294_967_296_u64), json!([7]), json!({}), Value::Null];
    let mut reports: Vec<Value> =
        counts.iter().map(|count| json!({"prompt_tokens": count, "prompt_tokens_details": count})).collect();
    reports.extend([json!([]), json!("text"), json!(1), Value::Null]);
    for (n, usage) in reports.iter().enumerate() {
        for (kind, model) in [json!(7), json!(["m"]), json!(""), json!("\u{0}m"), json!(huge)].into_iter().enumerate() {
            let id = format!("odd-{n}-{kind}");
            let entry = entry_without_bodies(&id, "/v1/chat/completions", 404, json!({"model": model, "usage": usage}));
            assert_eq!(app.log(entry.to_string()).await.count("stored"), 1, "{entry}");
            let row = row(&app, &id).await;
            let kept = row["model"].as_str().map(|model| model.chars().count());
            assert_eq!(kept, [None, None, None, Some(2), Some(255)][kind], "{model}");
            assert_eq!((&row["prompt_tokens"], &row["cached_tokens"]), (&Value::Null, &Value::Null), "{usage}");
        }
    }
    for llm in [json!([]), json!("text"), Value::Null] {
        let entry = entry_without_bodies(&format!("llm-{llm}"), "/v1/responses", 200, llm);
        assert_eq!(app.log(entry.to_string()).await.count("stored"), 1, "{entry}");
    }
    // What a failed call calls its model is no label.
    let page = app.get("/metrics").await.text;
    assert!(page.contains(r#"model="unknown""#) && !page.contains("xxx"), "{page}");
    app.stop().await;
}

#[tokio::test]
async fn a_pattern_that_is_wrong_is_named_at_the_start() {
    let finished = run(&["serve", "--mask-patterns", "staff=(", "--database-url", "postgres://127.0.0.1:1/x"], &[]).await;
    assert!(!finished.status.success());
    assert!(finished.stderr.contains("mask pattern staff"), "{}", finished.stderr);
}
