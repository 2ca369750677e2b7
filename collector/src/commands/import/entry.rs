//! A row of a table made by hand as a log entry of Kong's, so that it goes the way of live entries.

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::decode::json::Json;
use crate::store::original::{ORIGINAL, OldRow};

/// An entry, and where it is from.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Made {
    /// The entry as JSON.
    pub(super) text: String,
    /// It was put together from the columns, because `raw_log` is no entry.
    pub(super) from_columns: bool,
}

/// The entry of a row; `None` where it is a copy of a row before it.
///
/// `raw_log` counts where it is an entry; what it lacks is taken from the columns. An entry with an identity and a start of its own is
/// what Kong sent: whether it is a repeat is decided as for live entries. Of all others the columns decide.
pub(super) fn of(row: &OldRow) -> Option<Made> {
    let raw = row.raw_log.as_deref().map(Json::parse).and_then(Result::ok);
    // Some wrote the text of the entry as a JSON string.
    let inside = raw.as_ref().and_then(Json::as_str).map(str::to_owned);
    let kongs = match &inside {
        Some(text) => Json::parse(text).ok(),
        None => raw,
    };
    let kongs = kongs.filter(|entry| matches!(entry.get("request"), Some(Json::Object(_))));
    let from_columns = kongs.is_none();
    let mut entry = kongs.unwrap_or_else(|| Json::Object(Vec::new()));

    let has_id = entry.at(&["request", "id"]).and_then(Json::as_str).is_some_and(|id| !id.is_empty());
    let is_started = entry.get("started_at").and_then(Json::as_i64).is_some() || entry.get("tries").is_some();
    if !(has_id && is_started) && row.is_copy {
        return None;
    }
    if !has_id {
        fill(&mut entry, &["request", "id"], Json::text(&identity(row)));
    }
    if !is_started && let Some(created_ms) = row.created_ms {
        entry.take("started_at");
        fill(&mut entry, &["started_at"], Json::integer(created_ms));
    }
    fill_in_who_and_how(&mut entry, row);
    fill_in_bodies(&mut entry, row);
    Some(Made { text: entry.to_string(), from_columns })
}

/// What stands for the identity that the entry lacks. Always the same for the same row, so that a repeat is one.
fn identity(row: &OldRow) -> String {
    match row.request_id.as_deref().map(str::trim).filter(|id| !id.is_empty()) {
        Some(id) if row.is_other => format!("{id}/{ORIGINAL}/{}", row.id),
        Some(id) => id.to_owned(),
        None => format!("{ORIGINAL}/{}", row.id),
    }
}

fn fill_in_who_and_how(entry: &mut Json<'_>, row: &OldRow) {
    let is_named = ["username", "custom_id"].iter().any(|name| entry.at(&["consumer", name]).is_some());
    if let Some(consumer) = row.consumer_username.as_deref().filter(|name| !name.is_empty() && *name != "anonymous" && !is_named)
    {
        fill(entry, &["consumer", "username"], Json::text(consumer));
    }
    for (path, column) in [(["response", "status"], &row.status), (["latencies", "request"], &row.latency_ms)] {
        let number = column.as_deref().and_then(|text| text.trim().parse::<f64>().ok()).filter(|number| number.abs() < 1e9);
        if let Some(number) = number {
            fill(entry, &path, Json::integer(number.round() as i64));
        }
    }
}

/// Bodies that say what the columns do. What a failed call was answered is no answer of a model's, and stays text.
fn fill_in_bodies(entry: &mut Json<'_>, row: &OldRow) {
    let lacks = |side: &str| entry.at(&[side, "body"]).is_none_or(|body| body.as_str() == Some(""));
    let prompt = row.prompt.as_deref().filter(|text| !text.is_empty() && lacks("request"));
    let response = row.response.as_deref().filter(|text| !text.is_empty() && lacks("response"));
    if prompt.is_none() && response.is_none() {
        return;
    }
    let failed = entry.at(&["response", "status"]).and_then(Json::as_i32).is_some_and(|status| status >= 400);
    if let Some(text) = prompt {
        let message = object([("role", Json::text("user")), ("content", Json::text(text))]);
        put(entry, "request", object([("messages", Json::Array(vec![message]))]));
    }
    match response {
        // Text that looks like base64 would be taken for it.
        Some(text) if failed => put(entry, "response", Json::text(&BASE64_STANDARD.encode(text))),
        Some(text) => {
            let message = object([("role", Json::text("assistant")), ("content", Json::text(text))]);
            let choice = object([("index", Json::integer(0)), ("message", message)]);
            put(entry, "response", object([("choices", Json::Array(vec![choice]))]));
        }
        None => {}
    }
    // The form in which they are put here, whatever the path of the call was.
    if let Some(Json::Object(_)) = entry.get("llm")
        && let Json::Object(members) = entry
    {
        members.iter_mut().filter(|(name, _)| name == "llm").for_each(|(_, llm)| drop(llm.take("api")));
    }
    fill(entry, &["llm", "api"], Json::text("chat"));
}

/// Puts a body where none is.
fn put(entry: &mut Json<'_>, side: &str, body: Json<'static>) {
    if let Json::Object(members) = entry {
        members.iter_mut().filter(|(name, _)| name == side).for_each(|(_, message)| drop(message.take("body")));
    }
    fill(entry, &[side, "body"], body);
}

fn object<const N: usize>(members: [(&'static str, Json<'static>); N]) -> Json<'static> {
    Json::Object(members.into_iter().map(|(name, value)| (Cow::Owned(name.to_owned()), value)).collect())
}

/// Sets the value at the end of a path of members where there is nothing, or an empty text. Where the path leads through something
/// else than objects, nothing is changed.
fn fill(json: &mut Json<'_>, path: &[&str], value: Json<'static>) {
    let is_nothing = matches!(json, Json::Null) || json.as_str() == Some("");
    let Some((name, rest)) = path.split_first() else {
        if is_nothing {
            *json = value;
        }
        return;
    };
    if is_nothing {
        *json = Json::Object(Vec::new());
    }
    let Json::Object(members) = json else { return };
    match members.iter_mut().rev().find(|(known, _)| known == name) {
        Some((_, member)) => fill(member, rest, value),
        None => {
            let mut member = Json::Null;
            fill(&mut member, rest, value);
            members.push((Cow::Owned((*name).to_owned()), member));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(raw_log: Option<&str>) -> OldRow {
        let text = |text: &str| Some(text.to_owned());
        OldRow {
            id: 7,
            request_id: text("r1"),
            consumer_username: text("ann"),
            created_ms: Some(5_000),
            latency_ms: text("12.6"),
            status: text("200"),
            prompt: text("hi"),
            response: text("ho"),
            raw_log: raw_log.map(str::to_owned),
            ..OldRow::default()
        }
    }

    fn made(row: &OldRow) -> String {
        of(row).unwrap().text
    }

    const COLUMNS: &str = concat!(
        r#"{"request":{"id":"r1","body":{"messages":[{"role":"user","content":"hi"}]}},"started_at":5000,"#,
        r#""consumer":{"username":"ann"},"response":{"status":200,"body":{"choices":[{"index":0,"message":"#,
        r#"{"role":"assistant","content":"ho"}}]}},"latencies":{"request":13},"llm":{"api":"chat"}}"#
    );

    #[test]
    fn a_row_without_an_entry_says_what_its_columns_say() {
        for raw in [None, Some("no json"), Some("17"), Some("[]"), Some(r#"{"a":1}"#), Some(r#"{"request":"x"}"#), Some("\"x\"")]
        {
            assert_eq!(of(&row(raw)), Some(Made { text: COLUMNS.to_owned(), from_columns: true }), "{raw:?}");
        }
    }

    #[test]
    fn an_entry_stays_as_it_is_and_gets_what_it_lacks() {
        let whole = concat!(
            r#"{"request":{"id":"k","body":"eA=="},"response":{"status":201,"body":{}},"started_at":1,"#,
            r#""consumer":{"username":"bob"},"latencies":{"request":3}}"#
        );
        let kept = of(&row(Some(whole))).unwrap();
        assert_eq!((kept.text.as_str(), kept.from_columns), (whole, false));
        let quoted = serde_json::Value::from(whole).to_string();
        assert_eq!(made(&row(Some(&quoted))), whole);
        let bare = r#"{"request":{"id":"","body":""},"response":null,"llm":{"api":"score","seq":1},"started_at":"soon"}"#;
        let filled = concat!(
            r#"{"request":{"id":"r1","body":{"messages":[{"role":"user","content":"hi"}]}},"response":{"status":200,"#,
            r#""body":{"choices":[{"index":0,"message":{"role":"assistant","content":"ho"}}]}},"llm":{"seq":1,"api":"chat"},"#,
            r#""started_at":5000,"consumer":{"username":"ann"},"latencies":{"request":13}}"#
        );
        assert_eq!(made(&row(Some(bare))), filled);
        // A list stands where an object should: what it would hold is left out, nothing else is.
        assert_eq!(
            made(&row(Some(r#"{"request":{"id":"k","body":1},"started_at":1,"response":[],"consumer":{"username":"b"}}"#))),
            concat!(
                r#"{"request":{"id":"k","body":1},"started_at":1,"response":[],"consumer":{"username":"b"},"#,
                r#""latencies":{"request":13},"llm":{"api":"chat"}}"#
            )
        );
    }

    #[test]
    fn an_error_stays_text_even_if_it_looks_like_base64() {
        let failed = OldRow { status: Some("500".to_owned()), response: Some("abcd".to_owned()), ..row(None) };
        assert!(made(&failed).contains(r#""status":500,"body":"YWJjZA==""#), "{}", made(&failed));
    }

    #[test]
    fn rows_are_told_apart_by_what_does_not_change() {
        let id = |row: &OldRow| {
            let text = made(row);
            Json::parse(&text).unwrap().at(&["request", "id"]).and_then(Json::as_str).map(str::to_owned)
        };
        let nobody = OldRow { request_id: Some("  ".to_owned()), ..row(None) };
        assert_eq!(id(&nobody).as_deref(), Some("llm_logs_original/7"));
        assert_eq!(id(&OldRow { is_other: true, ..row(None) }).as_deref(), Some("r1/llm_logs_original/7"));
        let copy = OldRow { is_copy: true, ..row(None) };
        assert_eq!(of(&copy), None);
        // The unique key decides.
        let raw = Some(r#"{"request":{"id":"k"},"started_at":1}"#.to_owned());
        assert_eq!(id(&OldRow { raw_log: raw, ..copy }).as_deref(), Some("k"));
    }

    #[test]
    fn a_row_without_a_time_gets_none() {
        let timeless = made(&OldRow { created_ms: None, ..row(None) });
        assert!(!timeless.contains("started_at"), "{timeless}");
    }
}
