//! Every recorded entry of a real Kong gives the row that was worked out from its bodies by hand, beforehand.
//!
//! The expected rows (`tests/fixtures/kong/expected`) were written without this code; its README says how.
//! `GOLDEN=NAME cargo test --test golden` looks at one.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use llm_collector::call::{Call, Usage};
use llm_collector::decode;
use llm_collector::measure::Metrics;
use serde_json::{Value, json};

use common::{call_of_entry, text};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/kong")
}

fn names() -> Vec<String> {
    let only = std::env::var("GOLDEN").ok();
    let mut names: Vec<String> = std::fs::read_dir(fixtures().join("entries"))
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| only.as_ref().is_none_or(|only| name == only))
        .collect();
    names.sort();
    names
}

fn entry(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join("entries").join(format!("{name}.json"))).unwrap()
}

fn call_of(name: &str) -> Call {
    call_of_entry(&entry(name))
}

fn row(call: &Call) -> Value {
    json!({
        "request_id": call.request_id,
        "consumer_username": call.consumer_username,
        "started_at": call.started_at.timestamp_millis(),
        "latency_ms": call.latency_ms,
        "status": call.status,
        "model": call.model,
        "endpoint": call.endpoint,
        "service": call.service,
        "route": call.route,
        "client_ip": call.client_ip,
        "stream": call.stream,
        "aborted": call.aborted,
        "truncated": call.truncated,
        "prompt": text(call.prompt.as_deref()),
        "response": text(call.response.as_deref()),
        "reasoning": text(call.reasoning.as_deref()),
        "tool_calls": call.tool_calls_json().map(|calls| serde_json::from_str::<Value>(&calls).unwrap()),
        "finish_reason": call.finish_reason,
        "error": text(call.error.as_deref()),
        "prompt_tokens": call.usage.prompt_tokens,
        "completion_tokens": call.usage.completion_tokens,
        "cached_tokens": call.usage.cached_tokens,
        "reasoning_tokens": call.usage.reasoning_tokens,
        "ttft_ms": call.ttft_ms,
        "upstream_latency_ms": call.upstream_latency_ms,
        "gateway_latency_ms": call.gateway_latency_ms,
    })
}

#[test]
fn every_recorded_entry_gives_the_expected_row() {
    let mut wrong = Vec::new();
    for name in names() {
        let expected = std::fs::read(fixtures().join("expected").join(format!("{name}.json"))).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        let row = row(&call_of(&name));
        for (column, expected) in expected.as_object().unwrap() {
            if row[column] != *expected {
                wrong.push(format!("{name}.{column}:\n  expected {expected}\n  got      {}", row[column]));
            }
        }
        assert_eq!(row.as_object().unwrap().len(), expected.as_object().unwrap().len());
    }
    assert!(wrong.is_empty(), "{} columns differ\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn raw_log_is_json_without_credentials_base64_or_vectors() {
    for name in names() {
        let call = call_of(&name);
        let raw: Value = serde_json::from_str(&call.raw_log).unwrap_or_else(|error| panic!("{name}: {error}"));
        let lower = call.raw_log.to_ascii_lowercase();
        for secret in ["sk-z123456", "sk-cookie-secret", "x-api-key", "\"cookie\":", "\"authorization\":", "apikey"] {
            assert!(!lower.contains(secret), "{name}: {secret}");
        }
        for side in ["request", "response"] {
            if let Some(Value::String(body)) = raw[side].get("body") {
                assert!(!body.starts_with("eyJ") && !body.starts_with("ZGF0"), "{name}: {side} body is still base64");
            }
        }
        if name.starts_with("emb-") && raw["response"]["body"]["data"][0].get("embedding").is_some() {
            assert!(raw["response"]["body"]["data"][0]["embedding"]["dimensions"].as_u64().unwrap() > 0, "{name}");
        }
        assert!(!call.raw_log.contains("data:image"), "{name}");
    }
}

#[test]
fn an_entry_without_bodies_has_the_model_and_the_tokens_that_the_plugin_reports() {
    let mut with_usage = 0;
    for name in names() {
        let with_bodies = call_of(&name);
        let answer = &serde_json::from_str::<Value>(&with_bodies.raw_log).unwrap()["response"]["body"];
        let mut fields: Value = serde_json::from_str(&decode::text(&entry(&name))).unwrap();
        for side in ["request", "response"] {
            fields[side].as_object_mut().unwrap().remove("body");
        }
        let succeeded = with_bodies.status.is_some_and(|status| (200..300).contains(&status));
        for field in ["model", "usage"] {
            if succeeded && !answer[field].is_null() {
                fields["llm"][field] = answer[field].clone();
            }
        }

        let call = call_of_entry(fields.to_string().as_bytes());
        assert_eq!((&call.model, &call.served_model), (&with_bodies.served_model, &with_bodies.served_model), "{name}");
        assert_eq!(call.usage, with_bodies.usage, "{name}");
        assert_eq!((&call.prompt, &call.response, &call.reasoning), (&None, &None, &None), "{name}");
        let raw: Value = serde_json::from_str(&call.raw_log).unwrap();
        assert_eq!(raw["llm"], fields["llm"], "{name}");
        assert_eq!((raw["request"].get("body"), raw["response"].get("body")), (None, None), "{name}");
        with_usage += usize::from(call.usage.is_reported());
    }
    assert!(with_usage > 90 || std::env::var("GOLDEN").is_ok(), "only {with_usage} entries have a usage");
}

#[test]
fn what_a_body_says_counts_before_what_the_plugin_reports() {
    let mut fields: Value = serde_json::from_slice(&entry("chat-en")).unwrap();
    fields["llm"]["model"] = json!("other");
    fields["llm"]["usage"] = json!({"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}});
    let call = call_of_entry(fields.to_string().as_bytes());
    assert_eq!((call.model.as_deref(), call.served_model.as_deref()), (Some("qwen-tiny"), Some("qwen-tiny")));
    assert_eq!(call.usage, call_of("chat-en").usage);
    // A stream without usage has a model of its own and no counts.
    let mut fields: Value = serde_json::from_slice(&entry("chat-en-stream")).unwrap();
    fields["llm"]["usage"] = json!({"prompt_tokens": 1, "completion_tokens": 2});
    assert_eq!(call_of_entry(fields.to_string().as_bytes()).usage.completion_tokens, Some(2));
}

#[test]
fn a_reported_model_of_a_failed_call_is_no_served_one() {
    let mut fields: Value = serde_json::from_slice(&entry("err-bad-model")).unwrap();
    fields["llm"]["model"] = json!("made-up");
    assert_eq!(call_of_entry(fields.to_string().as_bytes()).served_model, None);
}

#[test]
fn a_stream_adds_up_to_the_object_that_its_twin_answered_with() {
    for (stream, whole) in
        [("chat-en-stream-usage", "chat-en"), ("tools-auto-stream-usage", "tools-auto"), ("responses-stream", "responses")]
    {
        let [stream, whole] = [stream, whole].map(|name| {
            let raw: Value = serde_json::from_str(&call_of(name).raw_log).unwrap();
            raw["response"]["body"].clone()
        });
        assert_eq!(stream["object"], whole["object"]);
        // Before tool calls a stream sends `""` where the whole answer has null.
        let content = |body: &Value| body["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
        assert_eq!(content(&stream), content(&whole));
        assert_eq!(stream["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
        assert_eq!(stream["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
        assert_eq!(stream["output"][0]["content"][0]["text"], whole["output"][0]["content"][0]["text"]);
        let function = |body: &Value| body["choices"][0]["message"]["tool_calls"][0]["function"].clone();
        assert_eq!(function(&stream), function(&whole));
    }
}

#[test]
fn a_repeated_answer_has_its_content_and_no_tokens() {
    for name in ["responses", "responses-stream"] {
        let first = call_of(name);
        assert!(first.usage.is_reported(), "{name}");
        let mut entry: Value = serde_json::from_slice(&entry(name)).unwrap();
        entry["llm"]["repeat"] = json!(true);
        entry["llm"]["usage"] = json!({"input_tokens": 12, "output_tokens": 10});
        entry["llm"]["estimated"] = json!({"prompt_tokens": 9, "completion_tokens": 9});
        let repeat = call_of_entry(entry.to_string().as_bytes());
        assert_eq!(repeat.usage, Usage::default(), "{name}");
        assert_eq!(repeat.estimated, (None, None), "{name}");
        assert_eq!((&repeat.model, &repeat.response, repeat.status), (&first.model, &first.response, first.status), "{name}");
        let raw: Value = serde_json::from_str(&repeat.raw_log).unwrap();
        assert_eq!(raw["llm"]["repeat"], json!(true), "{name}");
        assert!(raw["response"]["body"]["usage"]["output_tokens"].is_u64(), "{name}");

        let metrics = Metrics::new();
        metrics.observe_call(&repeat);
        let page = metrics.render().unwrap();
        assert!(page.contains("llm_requests_total{"), "{page}");
        assert!(!page.contains("llm_tokens_total{") && !page.contains("llm_usage_missing_total{"), "{page}");

        entry["llm"]["repeat"] = json!(false);
        assert_eq!(call_of_entry(entry.to_string().as_bytes()).usage, first.usage, "{name}");
    }
}
