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
        "error": {"message": format!("error {text}"), "type": "PartialError"}, "usage": {"prompt_tokens": 5, "completion_tokens": 7}});
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
    // On a busy machine an entry may take the way over the spool.
    let query = "SELECT to_jsonb(l) || jsonb_build_object('raw_log', llm_raw_log(l)) FROM llm_logs l WHERE request_id = $1";
    for _ in 0..600 {
        if let Some(row) = client.query_opt(query, &[&request_id]).await.unwrap() {
            return row.get(0);
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("no row {request_id}")
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
    // In the message of an error a key goes by its form, whatever is masked.
    assert_eq!(row["error"], format!("error {expected}").replace("[key]", "[redacted]"));
    assert_eq!(row["prompt"], format!("user {expected}"));
    assert_eq!(row["response"], format!("model {expected}"));
    assert_eq!(row["reasoning"], format!("thought {expected}"));
    assert_eq!(row["tool_calls"][0]["arguments"], json!({"a": expected}).to_string());
    assert_eq!(row["raw_log"]["request"]["body"]["messages"][0]["content"], format!("system {expected}"));
    for hidden in [KEY, MOBILE, "z123456"] {
        assert!(!row.to_string().contains(hidden), "{hidden} in {row}");
    }
    // Six texts in the bodies, one of them the error; the repeat is no new row.
    for (pattern, count) in [("key", 5.0), ("mobile", 6.0), ("staff", 6.0)] {
        assert_eq!(app.metric(&format!("llm_masked_total{{pattern=\"{pattern}\"}}")).await, count, "{pattern}");
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
        // How it failed, without the message.
        assert_eq!(row["error"], "[PartialError]");
    }
    assert_eq!(row(&app, "of-others").await["prompt"], "user confidential");
}

#[tokio::test]
async fn names_of_models_and_members_are_masked_like_text() {
    let app = TestApp::start_with(&["--mask", "key,mobile"]).await;
    let encoded = |body: Value| STANDARD.encode(body.to_string());
    let name = format!("m-{MOBILE}");
    let request = json!({"model": name, "messages": [{"role": "user", "content": "a"}], "metadata": {MOBILE: {KEY: 1}}});
    let answer = json!({"model": name, "choices": [{"index": 0, "finish_reason": MOBILE, "message": {"content": "b",
        "tool_calls": [{"id": MOBILE, "function": {"name": MOBILE, "arguments": json!({MOBILE: 1}).to_string()}}]}}]});
    let entry = json!({"started_at": 1_795_402_800_000_i64, "request": {"id": "names", "uri": format!("/v1/chat/completions?model={MOBILE}"),
        "body": encoded(request)}, "response": {"status": 200, "body": encoded(answer)},
        "llm": {"model": name, "model_asked": name}});
    app.log(entry.to_string()).await;
    let row = row(&app, "names").await;
    assert!(!row.to_string().contains(MOBILE) && !row.to_string().contains(KEY), "{row}");
    assert_eq!(row["model"], "m-[mobile]");
    assert_eq!(row["raw_log"]["request"]["body"]["metadata"], json!({"[mobile]": {"[key]": 1}}));
    assert!(!app.get("/metrics").await.text.contains(MOBILE));
    app.stop().await;
}

#[tokio::test]
async fn the_message_of_an_error_is_bounded_and_whole_in_raw_log() {
    let app = TestApp::start().await;
    let message = format!("1 validation error: {}", "长".repeat(70_000));
    let body = STANDARD.encode(json!({"error": {"message": message, "type": "BadRequestError", "code": 400}}).to_string());
    let entry = json!({"started_at": 1_795_402_800_000_i64, "request": {"id": "long", "uri": "/v1/chat/completions"},
        "response": {"status": 400, "body": body}});
    app.log(entry.to_string()).await;
    let row = row(&app, "long").await;
    let error = row["error"].as_str().unwrap();
    assert!(
        error.len() < 4_200 && error.starts_with("1 validation error: 长") && error.ends_with("[cut, 210020 bytes in all]"),
        "{error}"
    );
    assert_eq!(row["raw_log"]["response"]["body"]["error"]["message"], message);
    app.stop().await;
}

/// Whatever is to be nowhere has this in it.
const SECRET: &str = "zzSECRETzz";

#[tokio::test]
async fn no_credential_in_a_header_an_address_or_a_query_is_stored() {
    let app = TestApp::start_with(&["--keep-headers", "x-unit-*", "--secret-headers", "x-unit-key"]).await;
    let mut headers = json!({"user-agent": "openai/3", "accept": "*/*", "x-stainless-lang": "python", "x-request-id": "r-1",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "anthropic-version": "2023-06-01",
        "x-forwarded-for": "10.0.0.9", "x-unit-name": "lab", "x-kong-proxy-latency": "3"});
    let kept = headers.clone();
    for name in [
        "x-auth-token",
        "x-goog-api-key",
        "x-amz-security-token",
        "x-forwarded-authorization",
        "x-unit-key",
        "x-stainless-token",
        "ocp-apim-subscription-key",
        "x-vault-token",
        "cf-access-client-secret",
        "x-anything",
    ] {
        headers[name] = json!(format!("Basic {SECRET}"));
    }
    headers["x-many"] = json!([SECRET, SECRET]);
    headers["referer"] = json!(format!("https://u:{SECRET}@chat.example/?token={SECRET}"));
    headers[format!("sk-{SECRET}").as_str()] = json!("1");
    let query = ["jwt", "sig", "X-Amz-Signature", "x%2Dapi%2Dkey", "code"].map(|name| format!("{name}={SECRET}")).join("&");
    let uri = format!("/v1/messages?beta=true&{query}");
    let entry = json!({"started_at": 1_795_402_800_000_i64, "upstream_uri": uri,
        "request": {"id": "secrets", "uri": uri, "url": format!("http://u:{SECRET}@gw:8111{uri}"), "headers": headers,
            "querystring": {"beta": "true", "jwt": SECRET, "sig": [SECRET, SECRET], SECRET.repeat(9): "1"}},
        "response": {"status": 200, "headers": {"set-cookie": SECRET, "x-token": SECRET, "content-type": "text/plain",
            "location": format!("/v1?sig={SECRET}")}}});
    // What is no entry keeps none either.
    let mut rejected = entry.clone();
    rejected.as_object_mut().unwrap().remove("started_at");
    assert_eq!(app.log(Value::from(vec![entry, rejected.clone()]).to_string()).await.count("rejected"), 1);
    let broken = format!("[{},{}]", fixtures_entry("good"), rejected.to_string().replace("\"secrets\"", "\"secrets\\x\""));
    assert_eq!(app.log(broken).await.count("rejected"), 1);

    let row = row(&app, "secrets").await;
    assert!(!row.to_string().contains(SECRET), "{row}");
    let stored = &row["raw_log"]["request"]["headers"];
    for (name, value) in kept.as_object().unwrap() {
        assert_eq!(&stored[name], value, "{name}");
    }
    for name in ["x-auth-token", "x-goog-api-key", "x-anything", "x-many"] {
        assert_eq!(stored[name], "[redacted]", "{name}");
    }
    assert_eq!(stored.get("x-unit-key"), None);
    assert_eq!(row["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(row["raw_log"]["request"]["querystring"]["beta"], "true");
    assert!(row["raw_log"]["request"]["uri"].as_str().unwrap().starts_with("/v1/messages?beta=true&jwt=[redacted]"), "{row}");
    let records = app.database.connect().await.query("SELECT convert_from(raw, 'UTF8') FROM llm_rejected", &[]).await.unwrap();
    let records: Vec<String> = records.iter().map(|record| record.get(0)).collect();
    assert_eq!(records.len(), 2);
    assert!(records.iter().all(|record| !record.contains(SECRET) && record.contains("openai/3")), "{records:?}");
    app.stop().await;
}

fn fixtures_entry(id: &str) -> String {
    gateway_tests::fixtures::small_entry(id, 1_795_400_000_000)
}

#[tokio::test]
async fn credentials_that_a_request_hands_to_tools_are_stored_nowhere() {
    let app = TestApp::start().await;
    let tools = json!([{"type": "mcp", "server_label": "cal", "server_url": format!("https://u:{SECRET}@cal.example/mcp?key={SECRET}"),
        "authorization": format!("ya29.{SECRET}"), "headers": {"Authorization": format!("Bearer {SECRET}-2"), "X-Key": [format!("{SECRET}-3")]}},
        {"type": "function", "name": "f", "parameters": {"properties": {"authorization": {"type": "string", "default": "anonymous"}}}}]);
    let servers =
        json!([{"type": "url", "name": "erp", "url": "https://erp.example", "authorization_token": format!("{SECRET}-4")}]);
    let said = format!("is ya29.{SECRET} right?");
    let events = |tools: &Value| {
        let response = json!({"id": "r", "object": "response", "model": "m", "status": "completed", "tools": tools,
            "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": said}]}]});
        format!(
            "event: response.created\ndata: {}\n\nevent: response.completed\ndata: {}\n\n",
            json!({"type": "response.created", "response": {"tools": tools, "status": "in_progress"}}),
            json!({"type": "response.completed", "response": response})
        )
    };
    let whole = json!({"object": "response", "model": "m", "tools": tools, "output": [{"type": "message", "content": [{"type": "output_text", "text": said}]}]});
    let refused = json!({"error": {"type": "BadRequestError", "message": format!("1 error: [{{'input': {{'authorization': 'ya29.{SECRET}'}}}}]")}});
    let asked = json!({"model": "m", "input": said, "tools": tools});
    for (id, path, request, status, answer) in [
        ("whole", "/v1/responses", asked.to_string(), 200, whole.to_string()),
        ("events", "/v1/responses", asked.to_string(), 200, events(&tools)),
        (
            "cut",
            "/v1/responses",
            asked.to_string(),
            200,
            events(&tools).split_once("event: response.completed").unwrap().0.to_owned(),
        ),
        ("refused", "/v1/responses", asked.to_string(), 400, refused.to_string()),
        ("unread", "/v1/responses", format!("{asked} {asked}"), 400, refused.to_string()),
        ("other", "/elsewhere", asked.to_string(), 200, events(&tools)),
        (
            "chat",
            "/v1/chat/completions",
            json!({"model": "m", "messages": [{"role": "user", "content": said}], "tools": tools}).to_string(),
            200,
            json!({"choices": [{"message": {"content": said}}]}).to_string(),
        ),
        (
            "messages",
            "/v1/messages",
            json!({"model": "m", "mcp_servers": servers, "messages": [{"role": "user", "content": "a"}]}).to_string(),
            200,
            json!({"content": [{"type": "text", "text": format!("{SECRET}-4")}]}).to_string(),
        ),
    ] {
        let entry = json!({"started_at": 1_795_402_800_000_i64, "request": {"id": id, "uri": path, "body": STANDARD.encode(&request)},
            "response": {"status": status, "body": STANDARD.encode(&answer)}, "llm": {"stream": answer.starts_with("event")}});
        assert_eq!(app.log(entry.to_string()).await.count("stored"), 1, "{id}");
        let row = row(&app, id).await;
        assert!(!row.to_string().contains(SECRET), "{id}: {row}");
        if !matches!(id, "messages" | "unread" | "other") {
            assert_eq!(row["raw_log"]["request"]["body"]["tools"][1], tools[1], "{id}: a schema stays");
        }
    }
    assert_eq!(row(&app, "whole").await["response"], "is [redacted] right?");
    app.stop().await;
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
