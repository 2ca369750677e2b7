//! Every situation that operators reported in public gives the row that a careful auditor expects.
//!
//! `tests/fixtures/cases/NAME.json` is an entry, `NAME.expected.json` says what of its row matters; the README beside them says where
//! they come from and what was decided. `CASE=NAME cargo test --test cases` looks at one.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use llm_collector::call::Call;
use llm_collector::decode::json::Json;
use serde_json::{Value, json};

use common::call_of_entry;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/cases")
}

/// The names of all cases, or the one that is asked for.
fn names() -> Vec<String> {
    let only = std::env::var("CASE").ok();
    let files = std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = files.filter_map(|file| file.strip_suffix(".expected.json").map(str::to_owned)).collect();
    names.retain(|name| only.as_ref().is_none_or(|only| name == only));
    names.sort();
    names
}

fn columns(call: &Call) -> Value {
    json!({
        "consumer_username": call.consumer_username,
        "latency_ms": call.latency_ms,
        "status": call.status,
        "model": call.model,
        "stream": call.stream,
        "aborted": call.aborted,
        "truncated": call.truncated,
        "unread": call.is_unread(),
        "prompt": call.prompt,
        "response": call.response,
        "reasoning": call.reasoning,
        "tool_calls": call.tool_calls_json().map(|calls| serde_json::from_str::<Value>(&calls).unwrap()),
        "finish_reason": call.finish_reason,
        "error": call.error,
        "prompt_tokens": call.usage.prompt_tokens,
        "completion_tokens": call.usage.completion_tokens,
        "cached_tokens": call.usage.cached_tokens,
        "reasoning_tokens": call.usage.reasoning_tokens,
        "estimated_prompt_tokens": call.estimated.0,
        "estimated_completion_tokens": call.estimated.1,
        "ttft_ms": call.ttft_ms,
        "upstream_latency_ms": call.upstream_latency_ms,
        "gateway_latency_ms": call.gateway_latency_ms,
        "queue_ms": call.queue_ms,
        "engine_queue_ms": call.engine.queue_ms,
        "prefill_ms": call.engine.prefill_ms,
        "decode_ms": call.engine.decode_ms,
        "team": call.team,
        "backend": call.backend,
    })
}

/// Arguments that servers sent as an object are written anew, without blanks.
fn without_blanks(calls: &Value) -> Value {
    let mut calls = calls.clone();
    for call in calls.as_array_mut().into_iter().flatten() {
        call["arguments"] = json!(call["arguments"].as_str().unwrap_or_default().replace(' ', ""));
    }
    calls
}

/// What of a call is not as the sidecar says.
fn differences(expected: &Value, call: &Call) -> Vec<String> {
    let row = columns(call);
    let raw_log = call.raw_log.as_str();
    let limit = |value: &Value| value.as_u64().unwrap() as usize;
    let mut found = Vec::new();
    for (column, wanted) in expected["columns"].as_object().unwrap() {
        let stored = row.get(column).unwrap_or_else(|| panic!("no column {column}"));
        let is_equal = stored == wanted || column == "tool_calls" && without_blanks(stored) == without_blanks(wanted);
        if !is_equal {
            found.push(format!("{column}: expected {wanted}, got {stored}"));
        }
    }
    let texts = |name: &str| expected["raw_log"][name].as_array().cloned().unwrap_or_default();
    for text in texts("contains") {
        let text = text.as_str().unwrap();
        let escaped = json!(text).to_string();
        // PostgreSQL writes jsonb with a blank behind each colon.
        let spellings = [text.to_owned(), escaped[1..escaped.len() - 1].to_owned(), text.replace("\": ", "\":")];
        if !spellings.iter().any(|spelling| raw_log.contains(spelling)) {
            found.push(format!("raw_log: does not hold {text}"));
        }
    }
    for text in texts("lacks") {
        if raw_log.contains(text.as_str().unwrap()) {
            found.push(format!("raw_log: holds {text}"));
        }
    }
    if let Some(most) = expected["raw_log"].get("max_chars")
        && raw_log.chars().count() > limit(most)
    {
        found.push(format!("raw_log: {} characters", raw_log.chars().count()));
    }
    for (column, most) in expected["column_max"].as_object().into_iter().flatten() {
        if row[column].as_str().is_some_and(|text| text.chars().count() > limit(most)) {
            found.push(format!("{column}: too long"));
        }
    }
    found
}

#[test]
fn every_situation_gives_the_expected_row() {
    let mut wrong = Vec::new();
    for name in names() {
        let read = |end: &str| std::fs::read(folder().join(format!("{name}{end}"))).unwrap();
        let expected: Value = serde_json::from_slice(&read(".expected.json")).unwrap();
        let call = call_of_entry(&read(".json"));
        assert!(Json::parse(&call.raw_log).is_ok(), "{name}: raw_log is no JSON");
        wrong.extend(differences(&expected, &call).into_iter().map(|difference| format!("{name}: {difference}")));
    }
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
    assert!(names().len() > 100 || std::env::var("CASE").is_ok());
}

#[test]
fn an_answer_reports_its_tokens_in_many_ways_and_the_plugin_reads_the_same() {
    let file = folder().join("../usage.json");
    let cases: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let usage = |call: &Call| {
        let usage = call.usage;
        let counts = json!({
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
        });
        if usage.is_reported() { counts } else { Value::Null }
    };
    for case in cases.as_array().unwrap() {
        let is_stream = case.get("ended").is_some();
        let entry = |llm: Value, body: Option<&Value>| {
            let mut entry = json!({"started_at": 1, "request": {"method": "POST"}, "response": {"status": 200}, "llm": llm});
            if let Some(body) = body {
                entry["response"]["body"] = body.clone();
            }
            call_of_entry(entry.to_string().as_bytes())
        };
        let read = entry(json!({"api": case["api"], "stream": is_stream}), Some(&case["text"]));
        assert_eq!(usage(&read), case["usage"], "{}", case["name"]);
        assert_eq!(json!(read.model), case["model"], "{}", case["name"]);
        if let Some(ended) = case.get("ended") {
            // The terminal event alone: a body that does not come to its end needs it.
            let cut = entry(json!({"api": case["api"], "stream": true, "aborted": true}), Some(&case["text"]));
            assert_eq!(json!(!cut.aborted), *ended, "{}", case["name"]);
        }
        let reported = entry(json!({"api": case["api"], "stream": is_stream, "usage": case["reported"]}), None);
        assert_eq!(usage(&reported), case["usage"], "{}: as the plugin hands it on", case["name"]);
    }
    assert!(cases.as_array().unwrap().len() > 60);
}

#[test]
fn a_thousand_levels_are_read_on_a_thread_of_usual_size() {
    let deep = |levels: usize| format!("{}1{}", "{\"a\":[".repeat(levels / 2), "]}".repeat(levels / 2));
    let request = format!(r#"{{"model":"m","metadata":{},"messages":[{{"role":"user","content":"q"}}]}}"#, deep(1_000));
    let answer =
        format!(r#"{{"model":"m","extra":{},"choices":[{{"message":{{"content":"a"}},"finish_reason":"stop"}}]}}"#, deep(1_000));
    let event =
        format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"a\",\"extra\":{}}}}}]}}\n\ndata: [DONE]\n\n", deep(1_000));
    for (body, stream) in [(answer, false), (event, true)] {
        let entry = json!({
            "started_at": 1, "llm": {"api": "chat", "stream": stream},
            "request": {"body": request}, "response": {"status": 200, "body": body},
        });
        // What a worker thread has, whatever the test runner gives.
        let read = std::thread::Builder::new().stack_size(2 << 20).spawn(move || call_of_entry(entry.to_string().as_bytes()));
        let call = read.unwrap().join().unwrap();
        assert_eq!((call.prompt.as_deref(), call.response.as_deref()), (Some("q"), Some("a")));
        assert!(call.raw_log.contains(&deep(1_000)) && !call.is_unread());
    }
}
