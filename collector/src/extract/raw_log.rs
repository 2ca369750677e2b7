//! The column `raw_log`: the entry as Kong sent it, without credentials, its bodies as JSON instead of base64.
//!
//! Recordings, pictures and vectors stay out of it: see [`super::blobs`]. What nobody understood of an answer is the last member of its body: whatever
//! takes content out takes it along.

use std::borrow::Cow;

use crate::decode::json::{Json, write_list, write_string, write_text};

use super::blobs::{blob, without_blobs, write_vector};
use super::redact::{self, Mask, Secrets};
use super::unread::Pieces;

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
    /// The answer holds vectors, of which only the dimensions are kept; where they are base64, a number has so many bytes.
    pub vectors: Option<usize>,
    /// What of the answer was not understood.
    pub unread: &'a Pieces,
}

/// Hides what is not to be stored of a text of the user's or the model's.
pub struct Hide<'h> {
    /// Whether in JSON text something may be to hide. Rarely is there, so that it is asked once of all that was written; who cannot
    /// tell says so of an empty text, too.
    pub may: &'h dyn Fn(&str) -> bool,
    /// A text without it.
    pub text: &'h mut dyn for<'t> FnMut(&'t str) -> Cow<'t, str>,
}

impl std::fmt::Debug for Hide<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hide").finish_non_exhaustive()
    }
}

/// Appends the entry `fields` with its bodies put back to `out`. `mask` is for texts of the client's outside of the bodies.
pub fn write(out: &mut String, fields: &Json<'_>, bodies: Bodies<'_>, secrets: &Secrets, mask: &Mask<'_>, hide: &mut Hide<'_>) {
    let head = Head::of(fields, secrets, mask);
    let mut done = 0;
    for place in head.bodies {
        out.push_str(head.text.get(done..place.at).unwrap_or_default());
        done = place.at;
        let document = if place.is_response { bodies.response } else { bodies.request };
        write_body(out, document, bodies.vectors.filter(|_| place.is_response), place.is_first, hide);
        if place.is_response && matches!(document, Document::Json(Json::Object(_))) && out.ends_with('}') {
            bodies.unread.write(out, hide);
        }
    }
    out.push_str(head.text.get(done..).unwrap_or_default());
}

/// An entry without its bodies, and where they belong.
#[derive(Debug, Default)]
struct Head {
    text: String,
    bodies: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    at: usize,
    is_response: bool,
    /// Nothing stands before it in its object.
    is_first: bool,
}

impl Head {
    fn of(fields: &Json<'_>, secrets: &Secrets, mask: &Mask<'_>) -> Self {
        let head = Self::written(fields, secrets, |out, name, value| secrets.write_member(out, name, value, mask));
        // Rarely is anything found, and then each member is asked.
        if !redact::may_hold_credential(&head.text) {
            return head;
        }
        Self::written(fields, secrets, |out, name, value| secrets.write_asked_member(out, name, value, mask))
    }

    fn written(fields: &Json<'_>, secrets: &Secrets, write: impl Fn(&mut String, &str, &Json<'_>)) -> Self {
        // An entry without bodies has three to four kilobytes.
        let mut head = Self { text: String::with_capacity(4096), bodies: Vec::with_capacity(2) };
        let out = &mut head.text;
        let mut separator = '{';
        for (name, value) in fields.members() {
            if secrets.is_secret_header(name) {
                continue;
            }
            out.push(separator);
            separator = ',';
            write_text(out, name);
            out.push(':');
            let start = out.len();
            write(out, name, value);
            let is_response = name == "response";
            let is_message = (is_response || name == "request") && matches!(value, Json::Object(_)) && out.ends_with('}');
            // Of a repeated member the first one has the body.
            if is_message && head.bodies.iter().all(|place| place.is_response != is_response) {
                let at = out.len() - 1;
                head.bodies.push(Place { at, is_response, is_first: at == start + 1 });
            }
        }
        if separator == '{' {
            out.push('{');
        }
        out.push('}');
        head
    }
}

fn write_body(out: &mut String, document: &Document<'_>, vectors: Option<usize>, is_first: bool, hide: &mut Hide<'_>) {
    if matches!(document, Document::Absent) {
        return;
    }
    out.push_str(if is_first { "\"body\":" } else { ",\"body\":" });
    match document {
        Document::Absent => {}
        Document::Json(json) => {
            let start = out.len();
            let is_told_by_json = !(hide.may)("");
            if is_told_by_json {
                Writer { vectors, hide: None }.write(out, json, "");
            }
            if !is_told_by_json || (hide.may)(out.get(start..).unwrap_or_default()) {
                out.truncate(start);
                Writer { vectors, hide: Some(hide) }.write(out, json, "");
            }
        }
        Document::Text(text) => write_string(out, &(hide.text)(&without_blobs(text))),
    }
}

struct Writer<'w, 'h> {
    vectors: Option<usize>,
    hide: Option<&'w mut Hide<'h>>,
}

impl Writer<'_, '_> {
    /// Appends `json`, which is the member `name` of an object, with blobs and vectors replaced by what they were.
    fn write(&mut self, out: &mut String, json: &Json<'_>, name: &str) {
        if let Some(width) = self.vectors
            && is_place_of_vectors(json, name)
            && write_vector(out, json, width)
        {
            return;
        }
        match json {
            Json::String(text) => self.write_text(out, text),
            Json::Array(elements) => write_list(out, '[', elements, ']', |out, element| self.write(out, element, name)),
            Json::Object(members) => write_list(out, '{', members, '}', |out, (member, value)| {
                match self.hidden(member) {
                    Cow::Borrowed(_) => write_text(out, member),
                    Cow::Owned(hidden) => write_string(out, &hidden),
                }
                out.push(':');
                self.write_member(out, json, name, member, value);
            }),
            Json::Raw(text) => match Json::parse(text) {
                Ok(parsed) => self.write(out, &parsed, name),
                Err(_) => write_string(out, &self.hidden(&without_blobs(text))),
            },
            other => other.write(out),
        }
    }

    /// Appends the member `name` of `object`, which is the member `parent` of another one.
    fn write_member(&mut self, out: &mut String, object: &Json<'_>, parent: &str, name: &str, value: &Json<'_>) {
        let text_blob = |value: &Json<'_>| value.as_str().and_then(|text| blob(object, parent, name, text));
        match value {
            Json::String(_) => match text_blob(value) {
                Some(blob) => write_string(out, &blob),
                None => self.write(out, value, name),
            },
            // Several prompts that are embeddings.
            Json::Array(values) if values.iter().any(|value| matches!(value, Json::String(_))) => {
                write_list(out, '[', values, ']', |out, value| match text_blob(value) {
                    Some(blob) => write_string(out, &blob),
                    None => self.write(out, value, name),
                });
            }
            value => self.write(out, value, name),
        }
    }

    fn hidden<'t>(&mut self, text: &'t str) -> Cow<'t, str> {
        match &mut self.hide {
            Some(hide) => (hide.text)(text),
            None => Cow::Borrowed(text),
        }
    }

    #[expect(clippy::ptr_arg, reason = "whether the text is borrowed decides how it is written")]
    fn write_text(&mut self, out: &mut String, text: &Cow<'_, str>) {
        match without_blobs(text) {
            Cow::Borrowed(_) => match self.hidden(text) {
                Cow::Borrowed(_) => write_text(out, text),
                Cow::Owned(hidden) => write_string(out, &hidden),
            },
            Cow::Owned(replaced) => write_string(out, &self.hidden(&replaced)),
        }
    }
}

/// Whether a vector may stand here: lists anywhere, base64 under the names that OpenAI (`embedding`), vLLM's pooling (`data`) and Cohere
/// (`base64`) give it.
fn is_place_of_vectors(json: &Json<'_>, name: &str) -> bool {
    match json {
        Json::Array(_) => true,
        _ => matches!(name, "embedding" | "data" | "base64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing_to_hide<'h>(text: &'h mut dyn for<'t> FnMut(&'t str) -> Cow<'t, str>) -> Hide<'h> {
        Hide { may: &|_| false, text }
    }

    fn written(fields: &str, request: Document<'_>, response: Document<'_>, vectors: Option<usize>) -> String {
        let mut out = String::new();
        let bodies = Bodies { request: &request, response: &response, vectors, unread: &Pieces::default() };
        write(
            &mut out,
            &Json::parse(fields).unwrap(),
            bodies,
            &Secrets::default(),
            &|text| text.into(),
            &mut nothing_to_hide(&mut |text| text.into()),
        );
        out
    }

    #[test]
    fn bodies_are_put_back_as_json_or_text() {
        let request = || Document::Json(Json::parse(r#"{"a":[1]}"#).unwrap());
        let response = || Document::Text(Cow::Borrowed("x\n"));
        assert_eq!(
            written(r#"{"request":{"id":"1"},"response":{},"b":{}}"#, request(), response(), None),
            r#"{"request":{"id":"1","body":{"a":[1]}},"response":{"body":"x\n"},"b":{}}"#
        );
        assert_eq!(written("{}", request(), response(), None), "{}");
        assert_eq!(written(r#"{"cookie":"a"}"#, Document::Absent, Document::Absent, None), "{}");
    }

    #[test]
    fn blobs_are_replaced_wherever_they_stand() {
        let letters = format!("{}{}", "AbCdEf0123456789".repeat(4), "=");
        let body = format!(
            r#"{{"input_audio":{{"data":"{letters}","format":"wav"}},"data":"short","prompt_embeds":["{letters}","x"],"in":["data:image/png;base64,YWJj"]}}"#
        );
        let out = written(r#"{"request":{}}"#, Document::Json(Json::parse(&body).unwrap()), Document::Absent, None);
        assert!(!out.contains(&letters) && !out.contains("YWJj"), "{out}");
        for kept in ["[wav 48 bytes sha256:", "\"short\"", "[\"[prompt_embeds 48 bytes sha256:", "[image/png 3 bytes sha256:"] {
            assert!(out.contains(kept), "{out}");
        }
    }

    #[test]
    fn what_was_not_understood_is_part_of_the_body() {
        let mut unread = Pieces::default();
        unread.note(crate::call::Unread::Line, "x: data:image/png;base64,YWJj");
        for (body, expected) in [
            (r#"{"id":"1"}"#, r#"{"response":{"body":{"id":"1","unread":[{"kind":"line","text":"x: [image/png"#),
            ("{}", r#"{"response":{"body":{"unread":[{"kind":"line""#),
        ] {
            let mut out = String::new();
            let response = Document::Json(Json::parse(body).unwrap());
            let bodies = Bodies { request: &Document::Absent, response: &response, vectors: None, unread: &unread };
            let fields = Json::parse(r#"{"response":{}}"#).unwrap();
            write(
                &mut out,
                &fields,
                bodies,
                &Secrets::default(),
                &|text| text.into(),
                &mut nothing_to_hide(&mut |text| text.into()),
            );
            assert!(out.starts_with(expected), "{out}");
            assert!(Json::parse(&out).is_ok(), "{out}");
        }
    }

    #[test]
    fn of_vectors_only_their_dimensions_are_kept() {
        let body = r#"{"data":[{"index":0,"embedding":[0.5,1]},{"index":1,"embedding":"AACAPwAAgD8AAIA/"}]}"#;
        let response = || Document::Json(Json::parse(body).unwrap());
        assert_eq!(
            written(r#"{"response":{}}"#, Document::Absent, response(), Some(4)),
            r#"{"response":{"body":{"data":[{"index":0,"embedding":{"dimensions":2}},{"index":1,"embedding":{"dimensions":3}}]}}}"#
        );
        assert!(written(r#"{"response":{}}"#, Document::Absent, response(), None).contains("[0.5,1]"));
    }
}
