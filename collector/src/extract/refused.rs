//! Calls that Kong refused before it knew who called: what is kept of them is small.
//!
//! Anybody who reaches the gateway can make them, with headers and paths of any length, so that they would fill the database. A reduced
//! entry says method, path, status, address, and the headers that tell what kind of client it was; it is an entry like any other, and
//! reducing it again changes nothing.

use std::borrow::Cow;

use crate::decode::Entry;
use crate::decode::entry::header_value;
use crate::decode::json::Json;

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

/// The entry reduced to what is kept, and the same as JSON text; `None` when it is not of a call that was refused before anybody knew
/// who called.
pub fn reduced<'e>(entry: &'e Entry<'_>) -> Option<(Entry<'e>, String)> {
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
    let mut request = vec![member("id", Json::text(&entry.request_id))];
    request.extend(kept_text("method", fields.at(&["request", "method"])));
    // Where a path has a query, its end is not that of a value.
    request.extend(entry.endpoint().map(|path| member("uri", Json::text(head(path, MAX_PATH_BYTES)))));
    let headers = HEADERS.into_iter().filter_map(|name| kept_text(name, header_value(fields, "request", name)));
    request.push(member("headers", Json::Object(headers.collect())));

    let content_type = kept_text("content-type", header_value(fields, "response", "content-type"));
    let mut response = vec![
        member("status", Json::integer(i64::from(status))),
        member("headers", Json::Object(content_type.into_iter().collect())),
    ];
    let body = entry.response_body.as_ref().filter(|body| body.text.len() <= MAX_ANSWER_BYTES);
    response.extend(body.map(|body| member("body", Json::text(&body.text))));

    let mut small = vec![member("request", Json::Object(request)), member("response", Json::Object(response))];
    for (group, names) in NUMBERS {
        if let Some(Json::Object(_)) = fields.get(group) {
            let members = names.iter().filter_map(|name| Some(member(name, kept(fields.at(&[group, name])?)?)));
            small.push(member(group, Json::Object(members.collect())));
        }
    }
    small.extend(kept_text("source", fields.get("source")));
    small.extend(kept_text("client_ip", fields.get("client_ip")));
    let service = kept_text("name", fields.at(&["service", "name"]));
    small.extend(service.map(|name| member("service", Json::Object(vec![name]))));
    small.push(member("started_at", Json::integer(entry.started_at.timestamp_millis())));

    let mut small = Json::Object(small);
    let mut text = String::with_capacity(1024);
    small.write(&mut text);
    if let Json::Object(members) = &mut small
        && let Some((_, response)) = members.iter_mut().find(|(name, _)| name == "response")
    {
        response.take("body");
    }
    let small = Entry {
        request_id: entry.request_id.clone(),
        started_at: entry.started_at,
        request_body: None,
        response_body: body.cloned(),
        fields: small,
    };
    Some((small, text))
}

fn member<'e>(name: &'static str, value: Json<'e>) -> (Cow<'e, str>, Json<'e>) {
    (Cow::Borrowed(name), value)
}

/// A member whose value is kept where it is a text.
fn kept_text<'e>(name: &'static str, value: Option<&'e Json<'_>>) -> Option<(Cow<'e, str>, Json<'e>)> {
    Some(member(name, kept(value?).filter(|value| value.as_str().is_some())?))
}

/// The beginning of a text, a number or a flag. Borrowed where the entry's own is: it is part of JSON text, so its beginning is.
fn kept<'e>(value: &'e Json<'_>) -> Option<Json<'e>> {
    match value {
        Json::String(Cow::Borrowed(text)) => Some(Json::String(Cow::Borrowed(head(text, MAX_VALUE_BYTES)))),
        Json::String(Cow::Owned(text)) => Some(Json::text(head(text, MAX_VALUE_BYTES))),
        Json::Number(number) => Some(Json::Number(Cow::Borrowed(number))),
        Json::Bool(flag) => Some(Json::Bool(*flag)),
        _ => None,
    }
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
        let entry = entry::decode(raw, LIMITS).unwrap();
        let (small, text) = reduced(&entry)?;
        assert_eq!(small, entry::decode(&text, LIMITS).unwrap(), "whoever reads the text reads the same");
        Some(text)
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
        assert_eq!(reduced_raw(&small).unwrap(), small, "reducing it again changes nothing");
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
