//! Calls that Kong refused before it knew who called: what is kept of them is small.
//!
//! Anybody who reaches the gateway can make them, with headers and paths of any length, so that they would fill the database. A reduced
//! entry says method, path, status, address, and the headers that tell what kind of client it was; it is an entry like any other, and
//! reducing it again changes nothing.

use crate::decode::Entry;
use crate::decode::json::{Json, write_string};

/// Headers that are kept.
const HEADERS: [&str; 6] = ["user-agent", "host", "content-type", "content-length", "x-forwarded-for", "traceparent"];

/// Bytes that are kept of a value, and of a path.
const MAX_VALUE_BYTES: usize = 256;
const MAX_PATH_BYTES: usize = 512;

/// Longest body of Kong's own answer that is kept, in bytes: it says why.
const MAX_ANSWER_BYTES: usize = 1_000;

/// Members of the entry that are kept where they are short: by them the row is what it would have been otherwise.
const NUMBERS: [(&str, &[&str]); 3] = [
    ("latencies", &["request", "proxy", "kong"]),
    ("llm", &["v", "seq", "worker", "api", "stream", "ttft_ms", "request_bytes", "response_bytes", "aborted"]),
    ("route", &["name"]),
];

/// The entry reduced to what is kept; `None` when it is not of a call that was refused before anybody knew who called.
pub fn reduced(entry: &Entry<'_>) -> Option<String> {
    let fields = &entry.fields;
    let is_known = ["username", "custom_id", "id"].iter().any(|name| fields.at(&["consumer", name]).is_some());
    let status = entry.status().filter(|status| *status >= 400)?;
    // Kong notes -1 where it asked no upstream, and whether an answer was its own. Who says neither may be somebody's entry made by hand;
    // a missing key is still what 401 says.
    let waited = fields.at(&["latencies", "proxy"]).and_then(Json::as_i64);
    let was_asked =
        waited.is_some_and(|waited| waited >= 0) || fields.get("tries").is_some_and(|tries| !tries.elements().is_empty());
    let is_own =
        waited.is_some() || matches!(fields.get("source").and_then(Json::as_str), Some("exit" | "error")) || status == 401;
    if is_known || was_asked || !is_own {
        return None;
    }
    let mut out = String::with_capacity(1024);
    out.push_str("{\"request\":{\"id\":");
    write_string(&mut out, &entry.request_id);
    if let Some(method) = fields.at(&["request", "method"]).and_then(Json::as_str) {
        member(&mut out, "method", method, MAX_VALUE_BYTES);
    }
    if let Some(path) = entry.endpoint() {
        member(&mut out, "uri", path, MAX_PATH_BYTES);
    }
    out.push_str(",\"headers\":{");
    let mut separator = "";
    for name in HEADERS {
        if let Some(value) = crate::decode::entry::header(fields, "request", name) {
            out.push_str(separator);
            write_string(&mut out, name);
            out.push(':');
            write_string(&mut out, head(value, MAX_VALUE_BYTES));
            separator = ",";
        }
    }
    out.push_str("}},\"response\":{\"status\":");
    out.push_str(&status.to_string());
    out.push_str(",\"headers\":{");
    if let Some(value) = crate::decode::entry::header(fields, "response", "content-type") {
        out.push_str("\"content-type\":");
        write_string(&mut out, head(value, MAX_VALUE_BYTES));
    }
    out.push('}');
    if let Some(body) = entry.response_body.as_ref().filter(|body| body.text.len() <= MAX_ANSWER_BYTES) {
        out.push_str(",\"body\":");
        write_string(&mut out, &body.text);
    }
    out.push('}');
    for (group, names) in NUMBERS {
        write_group(&mut out, fields, group, names);
    }
    if let Some(source) = fields.get("source").and_then(Json::as_str) {
        member(&mut out, "source", source, MAX_VALUE_BYTES);
    }
    if let Some(address) = fields.get("client_ip").and_then(Json::as_str) {
        member(&mut out, "client_ip", address, MAX_VALUE_BYTES);
    }
    if let Some(name) = fields.at(&["service", "name"]).and_then(Json::as_str) {
        out.push_str(",\"service\":{\"name\":");
        write_string(&mut out, head(name, MAX_VALUE_BYTES));
        out.push('}');
    }
    out.push_str(",\"started_at\":");
    out.push_str(&entry.started_at.timestamp_millis().to_string());
    out.push('}');
    Some(out)
}

fn write_group(out: &mut String, fields: &Json<'_>, group: &str, names: &[&str]) {
    let Some(Json::Object(_)) = fields.get(group) else { return };
    out.push(',');
    write_string(out, group);
    out.push_str(":{");
    let start = out.len();
    for name in names {
        let text = match fields.at(&[group, name]) {
            Some(Json::String(text)) => {
                let mut text_out = String::new();
                write_string(&mut text_out, head(text, MAX_VALUE_BYTES));
                text_out
            }
            Some(value @ (Json::Number(_) | Json::Bool(_))) => value.to_string(),
            _ => continue,
        };
        if out.len() > start {
            out.push(',');
        }
        write_string(out, name);
        out.push(':');
        out.push_str(&text);
    }
    out.push('}');
}

fn member(out: &mut String, name: &str, value: &str, limit: usize) {
    out.push(',');
    write_string(out, name);
    out.push(':');
    write_string(out, head(value, limit));
}

fn head(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Limits, entry};

    const LIMITS: Limits = Limits { decoded_bytes: 1 << 20 };

    fn reduced_raw(raw: &str) -> Option<String> {
        reduced(&entry::decode(raw, LIMITS).unwrap())
    }

    #[test]
    fn a_refused_call_leaves_little_however_much_it_brought() {
        let long = "é".repeat(100_000);
        let raw = format!(
            r#"{{"started_at":1795400000000,"client_ip":"10.0.0.7","latencies":{{"request":2,"proxy":-1,"kong":2,"receive":{{}}}},
            "llm":{{"v":1,"seq":7,"worker":"w","more":"{long}"}},"tries":[],"route":{{"name":"r","paths":["{long}"]}},
            "service":{{"name":"vllm","host":"h"}},"upstream_uri":"/{long}",
            "request":{{"id":"1","method":"GET","uri":"/v1/{long}?{long}","url":"{long}","querystring":{{"{long}":"x"}},
            "headers":{{"user-agent":"{long}","host":"h","x-1":"{long}"}},"body":"{long}"}},
            "response":{{"status":401,"headers":{{"content-type":"a/json","x":"{long}"}},"body":"{{\"message\":\"No API key\"}}"}}}}"#
        );
        let small = reduced_raw(&raw).unwrap();
        assert!(small.len() < 2_000, "{} bytes", small.len());
        let entry = entry::decode(&small, LIMITS).unwrap();
        assert_eq!(
            (entry.request_id.as_str(), entry.status(), entry.started_at.timestamp_millis()),
            ("1", Some(401), 1795400000000)
        );
        assert!(entry.endpoint().unwrap().starts_with("/v1/éé"));
        for path in [&["llm", "seq"][..], &["llm", "worker"], &["client_ip"], &["request", "method"], &["route", "name"]] {
            assert!(entry.fields.at(path).is_some(), "{path:?} in {small}");
        }
        assert_eq!(entry.response_body.as_ref().unwrap().text, r#"{"message":"No API key"}"#);
        assert_eq!(reduced(&entry).unwrap(), small, "reducing it again changes nothing");
    }

    #[test]
    fn calls_of_somebody_and_calls_that_the_model_answered_are_left_as_they_are() {
        for raw in [
            r#"{"started_at":1,"response":{"status":401},"consumer":{"username":"a"}}"#,
            r#"{"started_at":1,"response":{"status":401},"consumer":{"id":"x"}}"#,
            r#"{"started_at":1,"response":{"status":401},"latencies":{"proxy":3}}"#,
            r#"{"started_at":1,"response":{"status":502},"tries":[{"balancer_start":1}]}"#,
            r#"{"started_at":1,"response":{"status":200},"latencies":{"proxy":-1}}"#,
            r#"{"started_at":1,"response":{"status":400}}"#,
            r#"{"started_at":1,"response":{"status":404},"source":"upstream"}"#,
            r#"{"started_at":1}"#,
        ] {
            assert_eq!(reduced_raw(raw), None, "{raw}");
        }
        for raw in [
            r#"{"started_at":1,"response":{"status":401}}"#,
            r#"{"started_at":1,"response":{"status":404},"source":"exit"}"#,
            r#"{"started_at":1,"response":{"status":400},"source":"error","tries":[]}"#,
            r#"{"started_at":1,"response":{"status":429},"tries":{},"latencies":{"proxy":-1}}"#,
        ] {
            assert!(reduced_raw(raw).is_some(), "{raw}");
        }
    }
}
