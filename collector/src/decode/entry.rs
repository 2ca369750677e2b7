//! One log entry of Kong: `kong.log.serialize()` plus what the `llm-audit` plugin adds.
//!
//! Leniently typed: Kong's cjson writes empty lists as `{}`, header values as a string or a list, numbers as integers, floats
//! or strings, and any field may be missing. Only `started_at` is required, because the table is partitioned by it.

use std::borrow::Cow;

use chrono::{DateTime, Utc};

use super::body::{self, Body, Headers};
use super::digest::sha256_hex;
use super::json::Json;
use super::{EntryError, Limits};

/// Longest `request.id` that is kept as it is, in bytes. Kong's are 32 characters; an index row of PostgreSQL holds 2,700
/// bytes, so a longer one would make the row impossible to store.
const MAX_REQUEST_ID_BYTES: usize = 256;

/// The member of an entry that is kept to be read again (spool, `llm_rejected`) which holds the hash that it was given at its arrival.
const KEPT_ID: &str = "llm_request_id";

/// What a hash that stands for a missing `request.id` begins with.
const HASH_PREFIX: &str = "sha256:";

/// A decoded entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<'a> {
    /// `request.id`, or a hash of the entry where it has none, so that a repeat stays a repeat.
    pub request_id: String,
    /// When Kong received the request.
    pub started_at: DateTime<Utc>,
    /// What the client sent, when it was captured.
    pub request_body: Option<Body<'a>>,
    /// What the client was sent, when it was captured.
    pub response_body: Option<Body<'a>>,
    /// Everything else: the entry without the two bodies.
    pub fields: Json<'a>,
}

impl Entry<'_> {
    /// `request.uri` without its query.
    pub fn endpoint(&self) -> Option<&str> {
        let uri = self.fields.at(&["request", "uri"])?.as_str()?;
        uri.split(['?', '#']).next()
    }

    /// The status that the client got.
    pub fn status(&self) -> Option<i32> {
        self.fields.at(&["response", "status"])?.as_i32()
    }

    /// Whether the answer was an event stream.
    pub fn is_stream(&self) -> bool {
        match self.fields.at(&["llm", "stream"]).and_then(Json::as_bool) {
            Some(stream) => stream,
            None => header(&self.fields, "response", "content-type")
                .is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream")),
        }
    }

    /// Whether the end of the answer was not seen by the plugin.
    pub fn is_aborted(&self) -> bool {
        self.llm_flag("aborted")
    }

    /// Whether the captured request body is not all of it.
    pub fn is_request_truncated(&self) -> bool {
        self.llm_flag("request_truncated") || self.request_body.as_ref().is_some_and(|body| body.cut)
    }

    /// Whether the captured response body is not all of it.
    pub fn is_response_truncated(&self) -> bool {
        self.llm_flag("response_truncated") || self.response_body.as_ref().is_some_and(|body| body.cut)
    }

    /// Whether Kong's queue was full and the bodies were left out.
    pub fn is_shed(&self) -> bool {
        self.llm_flag("shed")
    }

    /// Whether the usage in the answer is that of a stored response whose tokens another call has counted.
    pub fn is_repeat(&self) -> bool {
        self.llm_flag("repeat")
    }

    fn llm_flag(&self, name: &str) -> bool {
        self.fields.at(&["llm", name]).and_then(Json::as_bool).unwrap_or(false)
    }
}

/// Decodes one element of a batch.
pub fn decode<'a>(raw: &'a str, limits: Limits) -> Result<Entry<'a>, EntryError> {
    let mut fields = Json::parse(raw).map_err(|error| EntryError::NotJson(error.to_string()))?;
    if !matches!(fields, Json::Object(_)) {
        return Err(EntryError::NotAnObject);
    }
    let started_at = started_at(&fields).ok_or(EntryError::NoStartedAt)?;
    let request_id = request_id(raw, &fields);
    if kept_id(&fields).is_some() {
        fields.take(KEPT_ID);
    }
    let mut request_body = take_body(&mut fields, "request", limits);
    let mut response_body = take_body(&mut fields, "response", limits);
    share(limits.decoded_bytes, &mut request_body, &mut response_body);
    Ok(Entry { request_id, started_at, request_body, response_body, fields })
}

/// What identifies an entry: `request.id`, else the hash that it was given when it arrived, else the hash of `raw`, which arrives now.
pub fn request_id(raw: &str, fields: &Json<'_>) -> String {
    match fields.at(&["request", "id"]).and_then(Json::as_str) {
        Some(id) if !id.is_empty() && id.len() <= MAX_REQUEST_ID_BYTES => id.to_owned(),
        _ => kept_id(fields).map_or_else(|| format!("{HASH_PREFIX}{}", sha256_hex(raw.as_bytes())), str::to_owned),
    }
}

fn kept_id<'j>(fields: &'j Json<'_>) -> Option<&'j str> {
    fields.get(KEPT_ID)?.as_str().filter(|id| is_hash(id))
}

fn is_hash(id: &str) -> bool {
    let digits = id.strip_prefix(HASH_PREFIX).unwrap_or_default();
    digits.len() == 64 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// An entry as it is kept to be read again: `kept` is its JSON text without credentials. That hashes to something else than what
/// arrived, so the hash that stands for a missing `request.id` goes along: one entry stays one row, whichever way it takes.
pub fn with_identity(kept: String, request_id: &str) -> String {
    let start = format!("{{\"{KEPT_ID}\":\"");
    let Some(rest) = kept.strip_prefix('{').filter(|_| is_hash(request_id) && !kept.starts_with(&start)) else { return kept };
    let separator = if rest.trim_start().starts_with('}') { "" } else { "," };
    format!("{start}{request_id}\"{separator}{rest}")
}

/// Cuts bodies that are over the limit together. Half of it is for each; what one does not need the other may have.
fn share<'a>(limit: usize, one: &mut Option<Body<'a>>, two: &mut Option<Body<'a>>) {
    let length = |body: &Option<Body<'_>>| body.as_ref().map_or(0, |body| body.text.len());
    let (of_one, of_two) = (length(one), length(two));
    if of_one + of_two <= limit {
        return;
    }
    for (body, other) in [(one, of_two), (two, of_one)] {
        if let Some(Body { text, cut }) = body.take() {
            *body = Some(body::fit(text, cut, limit.saturating_sub(other).max(limit / 2)));
        }
    }
}

/// `started_at` in milliseconds since 1970; else the start of the first upstream try, which Kong notes in the same unit.
fn started_at(fields: &Json<'_>) -> Option<DateTime<Utc>> {
    let tried_at = || fields.get("tries")?.elements().first()?.get("balancer_start");
    let milliseconds = fields.get("started_at").and_then(Json::as_i64).or_else(|| tried_at()?.as_i64())?;
    // PostgreSQL's timestamps begin in 4713 BC and end in 294276; chrono's range is narrower at the end, wider at the start.
    DateTime::from_timestamp_millis(milliseconds).filter(|time| time.timestamp() > -210_000_000_000)
}

fn take_body<'a>(fields: &mut Json<'a>, side: &str, limits: Limits) -> Option<Body<'a>> {
    let content_type = header(fields, side, "content-type").map(str::to_owned);
    let content_encoding = header(fields, side, "content-encoding").map(str::to_owned);
    let Json::Object(members) = fields else { return None };
    let (_, message) = members.iter_mut().rev().find(|(name, _)| name == side)?;
    let headers = Headers { content_type: content_type.as_deref(), content_encoding: content_encoding.as_deref() };
    match message.take("body")? {
        Json::String(Cow::Borrowed(captured)) => Some(body::decode(captured, headers, limits.decoded_bytes)),
        Json::String(Cow::Owned(captured)) => {
            let body = body::decode(&captured, headers, limits.decoded_bytes);
            Some(Body { text: Cow::Owned(body.text.into_owned()), cut: body.cut })
        }
        Json::Null => None,
        // Other plugins log JSON bodies as JSON.
        other => Some(body::fit(Cow::Owned(other.to_string()), false, limits.decoded_bytes)),
    }
}

/// The first value of a header, whatever the case of its name.
pub fn header<'j>(fields: &'j Json<'_>, side: &str, name: &str) -> Option<&'j str> {
    header_value(fields, side, name)?.as_str()
}

/// The same, whatever it is.
pub fn header_value<'j, 'a>(fields: &'j Json<'a>, side: &str, name: &str) -> Option<&'j Json<'a>> {
    let headers = fields.at(&[side, "headers"])?;
    let (_, value) = headers.members().iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
    match value {
        Json::Array(values) => values.first(),
        value => Some(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { decoded_bytes: 1 << 20 };

    #[test]
    fn an_entry_needs_nothing_but_a_start() {
        let entry = decode(r#"{"started_at":1.795402e+12}"#, LIMITS).unwrap();
        assert_eq!(entry.started_at.timestamp_millis(), 1_795_402_000_000);
        assert_eq!(entry.request_id.len(), "sha256:".len() + 64);
        assert_eq!(decode(r#"{"tries":[{"balancer_start":5}]}"#, LIMITS).unwrap().started_at.timestamp_millis(), 5);
    }

    #[test]
    fn what_is_no_entry_says_why() {
        assert!(matches!(decode("{", LIMITS), Err(EntryError::NotJson(_))));
        assert_eq!(decode("17", LIMITS), Err(EntryError::NotAnObject));
        for raw in ["{}", r#"{"started_at":"soon"}"#, r#"{"started_at":9e15}"#, r#"{"tries":{}}"#] {
            assert_eq!(decode(raw, LIMITS), Err(EntryError::NoStartedAt), "{raw}");
        }
    }

    #[test]
    fn a_repeat_of_an_entry_without_an_id_keeps_its_hash() {
        let one = decode(r#"{"started_at":1,"request":{"id":""}}"#, LIMITS).unwrap();
        let two = decode(r#"{"started_at":1,"request":{"id":""}}"#, LIMITS).unwrap();
        let other = decode(r#"{"started_at":1,"request":{"id":"" }}"#, LIMITS).unwrap();
        assert_eq!(one.request_id, two.request_id);
        assert_ne!(one.request_id, other.request_id);
    }

    #[test]
    fn an_entry_that_is_kept_keeps_the_hash_it_arrived_with() {
        for (arrived, kept) in [
            (r#"{"started_at":1,"request":{"headers":{"cookie":"c"}}}"#, r#"{"started_at":1,"request":{"headers":{}}}"#),
            (r#"{ "started_at" : 1 }"#, r#"{"started_at":1}"#),
        ] {
            let first = decode(arrived, LIMITS).unwrap();
            let mut kept = kept.to_owned();
            // However often it is kept again.
            for _ in 0..3 {
                kept = with_identity(kept, &first.request_id);
                let again = decode(&kept, LIMITS).unwrap();
                assert_eq!(again.request_id, first.request_id, "{kept}");
                assert_eq!(again.fields.get(KEPT_ID), None);
            }
        }
        // Whoever has an identity needs none, and text that is no hash is none.
        let own = r#"{"started_at":1,"request":{"id":"x"}}"#.to_owned();
        assert_eq!(with_identity(own.clone(), "x"), own);
        let strange = r#"{"llm_request_id":"sha256:0","started_at":1}"#;
        assert_eq!(decode(strange, LIMITS).unwrap().request_id, format!("sha256:{}", sha256_hex(strange.as_bytes())));
        assert_eq!(with_identity("{}".to_owned(), "sha256:\",\"a\":\""), "{}");
        assert_eq!(with_identity("{}".to_owned(), &format!("sha256:{}", "0".repeat(64))).matches(',').count(), 0);
    }

    #[test]
    fn bodies_are_taken_out_of_the_fields() {
        let entry = decode(
            r#"{"started_at":1,"request":{"body":"e30=","headers":{}},"response":{"body":{"a":[]},"headers":{"Content-Type":["a/b","c"]}}}"#,
            LIMITS,
        )
        .unwrap();
        assert_eq!(entry.request_body.unwrap().text, "{}");
        assert_eq!(entry.response_body.unwrap().text, r#"{"a":[]}"#);
        assert_eq!(header(&entry.fields, "response", "content-type"), Some("a/b"));
        assert_eq!(entry.fields.at(&["request", "body"]), None);
    }

    #[test]
    fn bodies_share_what_an_entry_may_become() {
        let lengths = |request: usize, response: usize| {
            let (request, response) = ("q".repeat(request), "a".repeat(response));
            let raw = format!(r#"{{"started_at":1,"request":{{"body":"{request}"}},"response":{{"body":"{response}"}}}}"#);
            let entry = decode(&raw, Limits { decoded_bytes: 1000 }).unwrap();
            let (request, response) = (entry.request_body.unwrap(), entry.response_body.unwrap());
            [(request.text.len(), request.cut), (response.text.len(), response.cut)]
        };
        assert_eq!(lengths(600, 400), [(600, false), (400, false)]);
        assert_eq!(lengths(700, 400), [(600, true), (400, false)]);
        assert_eq!(lengths(100, 5000), [(100, false), (900, true)]);
        assert_eq!(lengths(5000, 5000), [(500, true), (500, true)]);
    }

    #[test]
    fn a_stream_is_known_by_the_plugin_or_else_by_its_content_type() {
        for (raw, stream) in [
            (r#"{"started_at":1,"llm":{"stream":true}}"#, true),
            (r#"{"started_at":1,"response":{"headers":{"content-type":"Text/Event-Stream; charset=utf-8"}}}"#, true),
            (r#"{"started_at":1,"response":{"headers":{"content-type":"application/json"}}}"#, false),
        ] {
            assert_eq!(decode(raw, LIMITS).unwrap().is_stream(), stream, "{raw}");
        }
    }
}
