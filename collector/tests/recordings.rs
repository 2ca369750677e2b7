//! Exchanges with vLLM 0.33 give the rows that were worked out from their bodies beforehand.
//!
//! The entry is made here as Kong and the `llm-audit` plugin would make it; `tests/fixtures/README.md` says where the expected rows
//! come from. `GOLDEN=NAME cargo test --test recordings` looks at one.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use llm_collector::decode::json::Json;
use serde_json::{Map, Value, json};

use common::{call_of_entry, text};

fn exchanges() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/vllm-0.33");
    let only = std::env::var("GOLDEN").ok();
    let mut exchanges: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    exchanges.retain(|path| only.as_ref().is_none_or(|only| path.ends_with(only)));
    exchanges.sort();
    exchanges
}

fn json_of(exchange: &Path, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(exchange.join(name)).unwrap()).unwrap()
}

/// Headers as Kong logs them: names in small letters, no credentials.
fn headers(recorded: &Value) -> Map<String, Value> {
    let pairs = recorded["headers"].as_array().unwrap().iter();
    let named = pairs.map(|pair| (pair[0].as_str().unwrap().to_ascii_lowercase(), pair[1].clone()));
    named.filter(|(name, _)| name != "authorization" && name != "x-api-key").collect()
}

/// The log entry of an exchange.
fn entry(exchange: &Path) -> Value {
    let (request, response) = (json_of(exchange, "request_headers.json"), json_of(exchange, "response_headers.json"));
    let chunks = json_of(exchange, "chunks.json");
    let mut line = request["request_line"].as_str().unwrap().split(' ');
    let (method, uri) = (line.next().unwrap(), line.next().unwrap());
    let body = |name: &str| std::fs::read(exchange.join(name)).unwrap();
    let (asked, answered) = (body("request.json"), body("response.bin"));
    let response_headers = headers(&response);
    let kind = response_headers.get("content-type").and_then(Value::as_str).unwrap_or_default();
    let sent = chunks["http_chunks"].as_array().unwrap();
    // A chunked body is whole when its terminating chunk, which is empty, was seen.
    let is_whole = chunks["framing"] == "content-length" || sent.last().is_some_and(|chunk| chunk[1] == 0);
    // Where no answer came, Kong makes one.
    let status = String::from_utf8(body("status.txt")).unwrap().trim().parse::<u16>().ok();
    let mut entry = json!({
        "started_at": 1_795_712_000_000_u64,
        "request": {"id": exchange.file_name().unwrap().to_str(), "method": method, "uri": uri, "headers": headers(&request)},
        "upstream_uri": uri.replace("%63", "c"),
        "response": {"status": status.unwrap_or(502), "headers": response_headers},
        "latencies": {"request": 300, "proxy": 20, "kong": 1},
        "llm": {
            "v": 1, "stream": kind.starts_with("text/event-stream"), "ttft_ms": sent.first().map(|chunk| chunk[0].clone()),
            "request_bytes": asked.len(), "response_bytes": answered.len(), "request_truncated": false,
            "response_truncated": false, "aborted": status.is_some() && !is_whole, "seq": 1, "worker": "1-1",
        },
    });
    for (side, bytes) in [("request", asked), ("response", answered)] {
        if !bytes.is_empty() {
            entry[side]["body"] = json!(STANDARD.encode(bytes));
        }
    }
    entry
}

#[test]
fn every_recorded_exchange_gives_the_expected_row() {
    let mut wrong = Vec::new();
    for exchange in exchanges() {
        let call = call_of_entry(entry(&exchange).to_string().as_bytes());
        let row = json!({
            "status": call.status,
            "endpoint": call.endpoint,
            "stream": call.stream,
            "aborted": call.aborted,
            "unread": call.is_unread(),
            "model": call.model,
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
            "engine_queue_ms": call.engine.queue_ms,
            "prefill_ms": call.engine.prefill_ms,
            "decode_ms": call.engine.decode_ms,
        });
        let expected = json_of(&exchange, "expected.json");
        assert_eq!(row.as_object().unwrap().len(), expected.as_object().unwrap().len());
        for (column, expected) in expected.as_object().unwrap() {
            if row[column] != *expected {
                wrong.push(format!("{}.{column}:\n  expected {expected}\n  got      {}", exchange.display(), row[column]));
            }
        }
        // Nothing of a server that is known is a riddle.
        assert_eq!(call.unread, [], "{}", exchange.display());
        assert!(Json::parse(&call.raw_log).is_ok_and(|raw| raw.get("llm").is_some()), "{}", exchange.display());
    }
    assert!(wrong.is_empty(), "{} columns differ\n{}", wrong.len(), wrong.join("\n"));
    assert!(exchanges().len() > 40 || std::env::var("GOLDEN").is_ok());
}

#[test]
fn the_path_that_kong_forwarded_counts_and_before_it_what_the_plugin_says() {
    let exchange = exchanges().into_iter().find(|exchange| exchange.ends_with("v33-path-percent-63"));
    let Some(exchange) = exchange else { return };
    for (uri, forwarded, named, is_read) in [
        ("/v1/%63hat/completions", json!("/v1/chat/completions"), Value::Null, true),
        ("/v1/%63hat/completions", Value::Null, Value::Null, true),
        ("/anything", json!("/v1//chat/./completions?x=1"), Value::Null, true),
        ("/anything", json!("/anything"), json!("chat"), true),
        ("/v1/chat/completions", json!("/v1/chat/completions"), json!("other"), false),
        ("/v1/chat/completions", json!("/v1/chat/completions"), json!("made up"), true),
        ("/v1/chat/completions", json!("/elsewhere"), Value::Null, false),
        ("/v1/chat/completions", json!(""), Value::Null, true),
    ] {
        let mut entry = entry(&exchange);
        entry["request"]["uri"] = json!(uri);
        entry["upstream_uri"] = forwarded;
        entry["llm"]["api"] = named;
        let call = call_of_entry(entry.to_string().as_bytes());
        assert_eq!(call.prompt.as_deref() == Some("What is 17 plus 25?"), is_read, "{uri}");
        assert_eq!(call.endpoint.as_deref(), Some(uri));
    }
}
