//! The column `raw_log`: the entry as Kong sent it, without credentials, its bodies as JSON instead of base64.
//!
//! Recordings, pictures and vectors stay out of it: a database of conversations must not become a store of blobs. What stands
//! in their place says what it was, how large, and its SHA-256, so that an auditor can still tell whether two calls had the same
//! picture.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use memchr::memmem;

use crate::decode::body::describe_binary;
use crate::decode::json::{Json, write_list, write_string, write_text};

use super::redact::{Mask, Secrets};

/// Base64 of fewer letters than this stays as it is: it may just as well be a word.
const MIN_BLOB_LETTERS: usize = 64;

/// A body on its way into `raw_log`.
#[derive(Debug)]
pub enum Document<'a> {
    /// Not captured.
    Absent,
    /// JSON, or the object that the events of a stream add up to.
    Json(Json<'a>),
    /// Anything else.
    Text(Cow<'a, str>),
}

impl<'a> Document<'a> {
    /// The JSON that it is.
    pub fn json(&self) -> Option<&Json<'a>> {
        match self {
            Document::Json(json) => Some(json),
            _ => None,
        }
    }
}

/// The bodies of a call.
#[derive(Debug, Clone, Copy)]
pub struct Bodies<'a> {
    /// What was asked.
    pub request: &'a Document<'a>,
    /// What was answered.
    pub response: &'a Document<'a>,
    /// The answer holds vectors, of which only the dimensions are kept.
    pub vectors: bool,
}

/// Hides what is not to be stored of a text of the user's or the model's.
pub type Hide<'h> = dyn for<'t> FnMut(&'t str) -> Cow<'t, str> + 'h;

/// Appends the entry `fields` with its bodies put back to `out`. `mask` is for texts of the client's outside of the bodies.
pub fn write(out: &mut String, fields: &Json<'_>, bodies: Bodies<'_>, secrets: &Secrets, mask: &Mask<'_>, hide: &mut Hide<'_>) {
    let mut separator = '{';
    let mut bodies = [("request", bodies.request, false), ("response", bodies.response, bodies.vectors)];
    for (name, value) in fields.members() {
        if secrets.is_secret_header(name) {
            continue;
        }
        out.push(separator);
        separator = ',';
        write_text(out, name);
        out.push(':');
        let start = out.len();
        secrets.write_member(out, name, value, mask);
        for (side, document, vectors) in &mut bodies {
            if name == side && matches!(value, Json::Object(_)) && out.ends_with('}') {
                out.pop();
                let is_empty = out.len() == start + 1;
                write_body(out, std::mem::replace(document, &Document::Absent), *vectors, is_empty, hide);
                out.push('}');
            }
        }
    }
    if separator == '{' {
        out.push('{');
    }
    out.push('}');
}

fn write_body(out: &mut String, document: &Document<'_>, vectors: bool, first: bool, hide: &mut Hide<'_>) {
    let separator = if first { "" } else { "," };
    match document {
        Document::Absent => {}
        Document::Json(json) => {
            out.push_str(separator);
            out.push_str("\"body\":");
            write_without_blobs(out, json, vectors, hide);
        }
        Document::Text(text) => {
            out.push_str(separator);
            out.push_str("\"body\":");
            write_string(out, &hide(&without_data_urls(text)));
        }
    }
}

/// Appends `json` with blobs, and with `vectors` also vectors, replaced by what they were.
fn write_without_blobs(out: &mut String, json: &Json<'_>, vectors: bool, hide: &mut Hide<'_>) {
    match json {
        Json::String(text) => match without_data_urls(text) {
            Cow::Borrowed(_) => match hide(text) {
                Cow::Borrowed(_) => write_text(out, text),
                Cow::Owned(hidden) => write_string(out, &hidden),
            },
            Cow::Owned(replaced) => write_string(out, &hide(&replaced)),
        },
        Json::Array(elements) => {
            write_list(out, '[', elements, ']', |out, element| write_without_blobs(out, element, vectors, hide));
        }
        Json::Object(members) => write_list(out, '{', members, '}', |out, (name, value)| {
            match hide(name) {
                Cow::Borrowed(_) => write_text(out, name),
                Cow::Owned(hidden) => write_string(out, &hidden),
            }
            out.push(':');
            if let Some(dimensions) =
                (vectors && matches!(name.as_ref(), "embedding" | "data")).then(|| dimensions(value)).flatten()
            {
                out.push_str(&format!("{{\"dimensions\":{dimensions}}}"));
            } else if let Some(blob) = blob(json, name, value) {
                write_string(out, &blob);
            } else {
                write_without_blobs(out, value, vectors, hide);
            }
        }),
        Json::Raw(text) => match Json::parse(text) {
            Ok(parsed) => write_without_blobs(out, &parsed, vectors, hide),
            Err(_) => write_string(out, &hide(text)),
        },
        other => other.write(out),
    }
}

/// The number of dimensions of a vector: numbers, or base64 of 32-bit floats as the OpenAI SDK asks for by default.
fn dimensions(value: &Json<'_>) -> Option<usize> {
    match value {
        Json::Array(numbers) if numbers.iter().all(|number| matches!(number, Json::Number(_))) => Some(numbers.len()),
        Json::String(text) => STANDARD.decode(text.as_bytes()).ok().map(|bytes| bytes.len() / 4),
        _ => None,
    }
}

/// What stands for a member that holds a recording, picture or file as bare base64; `None` when it is none.
fn blob(object: &Json<'_>, name: &str, value: &Json<'_>) -> Option<String> {
    let text = value.as_str().filter(|text| text.len() >= MIN_BLOB_LETTERS)?;
    // OpenAI: input_audio.data with its format, file_data, b64_json; Anthropic: source.data with its media_type.
    let kind = match name {
        "data" => object.get("media_type").or_else(|| object.get("format")).and_then(Json::as_str).unwrap_or("audio"),
        "file_data" => "file",
        "b64_json" => "image",
        _ => return None,
    };
    let bytes = STANDARD.decode(text).ok()?;
    Some(describe_binary(kind, &bytes))
}

/// `text` with every `data:` URL in it replaced by its type, size and SHA-256.
pub fn without_data_urls(text: &str) -> Cow<'_, str> {
    const SCHEME: &str = "data:";
    const MARK: &str = ";base64,";
    if memmem::find(text.as_bytes(), SCHEME.as_bytes()).is_none() {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(SCHEME) {
        let (before, url) = rest.split_at(at);
        out.push_str(before);
        let after_scheme = url.get(SCHEME.len()..).unwrap_or_default();
        // A media type is short and has no blanks: whatever else follows "data:" is prose.
        let header_end = after_scheme.bytes().take(200).position(|b| b == b',' || b.is_ascii_whitespace() || b == b'"');
        let header = header_end.and_then(|end| after_scheme.get(..=end)).unwrap_or_default();
        let media_type = header.strip_suffix(',').and_then(|_| header.strip_suffix(MARK));
        let payload = after_scheme.get(header.len()..).unwrap_or_default();
        let length =
            payload.bytes().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'-' | b'_')).count();
        match (media_type, payload.get(..length)) {
            (Some(media_type), Some(letters)) if !letters.is_empty() => {
                let bytes = STANDARD.decode(letters).unwrap_or_else(|_| letters.as_bytes().to_vec());
                out.push_str(&describe_binary(if media_type.is_empty() { "text/plain" } else { media_type }, &bytes));
                rest = payload.get(length..).unwrap_or_default();
            }
            // Not in base64: a whole string that is a URL is replaced, one inside prose is left alone.
            _ if at == 0 && text.len() == rest.len() && header.ends_with(',') && header.contains('/') => {
                return Cow::Owned(describe_binary(header.trim_end_matches(','), payload.as_bytes()));
            }
            _ => {
                out.push_str(SCHEME);
                rest = after_scheme;
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(fields: &str, request: Document<'_>, response: Document<'_>, vectors: bool) -> String {
        let mut out = String::new();
        let bodies = Bodies { request: &request, response: &response, vectors };
        write(&mut out, &Json::parse(fields).unwrap(), bodies, &Secrets::default(), &|text| text.into(), &mut |text| text.into());
        out
    }

    #[test]
    fn bodies_are_put_back_as_json_or_text() {
        let request = || Document::Json(Json::parse(r#"{"a":[1]}"#).unwrap());
        let response = || Document::Text(Cow::Borrowed("x\n"));
        assert_eq!(
            written(r#"{"request":{"id":"1"},"response":{},"b":{}}"#, request(), response(), false),
            r#"{"request":{"id":"1","body":{"a":[1]}},"response":{"body":"x\n"},"b":{}}"#
        );
        assert_eq!(written("{}", request(), response(), false), "{}");
        assert_eq!(written(r#"{"cookie":"a"}"#, Document::Absent, Document::Absent, false), "{}");
    }

    #[test]
    fn data_urls_are_replaced_wherever_they_stand() {
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // of "abc"
        let blob = format!("[image/png 3 bytes sha256:{hash}]");
        for (text, expected) in [
            ("data:image/png;base64,YWJj".to_owned(), blob.clone()),
            ("see ![](data:image/png;base64,YWJj) and data: none".to_owned(), format!("see ![]({blob}) and data: none")),
            ("data:image/svg+xml,abc".to_owned(), format!("[image/svg+xml 3 bytes sha256:{hash}]")),
            ("metadata: 1, 2".to_owned(), "metadata: 1, 2".to_owned()),
            ("data:".to_owned(), "data:".to_owned()),
        ] {
            assert_eq!(without_data_urls(&text), expected, "{text}");
        }
    }

    #[test]
    fn bare_base64_of_recordings_and_files_is_replaced() {
        let letters = STANDARD.encode([7; 60]);
        let body = format!(r#"{{"input_audio":{{"data":"{letters}","format":"wav"}},"data":"short","b64_json":"{letters}"}}"#);
        let out = written(r#"{"request":{}}"#, Document::Json(Json::parse(&body).unwrap()), Document::Absent, false);
        assert!(!out.contains(&letters));
        assert!(out.contains("[wav 60 bytes sha256:") && out.contains("[image 60 bytes sha256:") && out.contains("\"short\""));
    }

    #[test]
    fn of_vectors_only_their_dimensions_are_kept() {
        let body = r#"{"data":[{"index":0,"embedding":[0.5,1]},{"index":1,"embedding":"AACAPwAAgD8AAIA/"}]}"#;
        let response = || Document::Json(Json::parse(body).unwrap());
        assert_eq!(
            written(r#"{"response":{}}"#, Document::Absent, response(), true),
            r#"{"response":{"body":{"data":[{"index":0,"embedding":{"dimensions":2}},{"index":1,"embedding":{"dimensions":3}}]}}}"#
        );
        assert!(written(r#"{"response":{}}"#, Document::Absent, response(), false).contains("[0.5,1]"));
    }
}
