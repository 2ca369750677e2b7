//! The column `raw_log`: the entry as Kong sent it, without credentials, its bodies as JSON instead of base64.
//!
//! Recordings, pictures and vectors stay out of it: see [`super::blobs`]. What nobody understood of an answer is the last member of its body: whatever
//! takes content out takes it along.

use std::borrow::Cow;
use std::ops::Range;

use crate::call::Part;
use crate::decode::digest::sha256;
use crate::decode::json::{Json, write_list, write_string, write_text};

use super::blobs::{blob, without_blobs, write_vector};
use super::redact::{self, Mask, Secrets};
use super::unread::Pieces;

/// Parts of bodies that are at least so long, in bytes of JSON text, are stored apart from the entry. A part has some 130 bytes more than its
/// text in the database.
const MIN_PART_BYTES: usize = 256;

/// The member of an object that stands for a part in the database.
const REFERENCE: &str = "llm_content";

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

/// Appends the entry `fields` with its bodies put back to `out`. `mask` is for texts of the client's outside of the bodies. Returns the parts
/// of the bodies that may be stored apart, in the order in which they stand there.
pub fn write(
    out: &mut String,
    fields: &Json<'_>,
    bodies: Bodies<'_>,
    secrets: &Secrets,
    mask: &Mask<'_>,
    hide: &mut Hide<'_>,
) -> Vec<Part> {
    let head = Head::of(fields, secrets, mask);
    let mut places = Vec::new();
    let mut done = 0;
    for place in head.bodies {
        out.push_str(head.text.get(done..place.at).unwrap_or_default());
        done = place.at;
        let document = if place.is_response { bodies.response } else { bodies.request };
        let vectors = bodies.vectors.filter(|_| place.is_response);
        places.append(&mut write_body(out, document, vectors, place.is_first, hide));
        if place.is_response && matches!(document, Document::Json(Json::Object(_))) && out.ends_with('}') {
            let end = out.len();
            bodies.unread.write(out, hide);
            // All of a body that looks like a reference.
            if let Some((range, _)) = places.last_mut().filter(|(range, _)| range.end == end) {
                range.end = out.len();
            }
        }
    }
    out.push_str(head.text.get(done..).unwrap_or_default());
    let part = |(range, is_element): (Range<usize>, bool)| {
        let sha256 = sha256(out.get(range.clone()).unwrap_or_default().as_bytes());
        Part { range, is_element, sha256 }
    };
    places.into_iter().map(part).collect()
}

/// Where a part stands in the text, and whether it is an element of a list.
type PartPlace = (Range<usize>, bool);

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

/// Appends a body as a member and returns its parts.
fn write_body(
    out: &mut String,
    document: &Document<'_>,
    vectors: Option<usize>,
    is_first: bool,
    hide: &mut Hide<'_>,
) -> Vec<PartPlace> {
    if matches!(document, Document::Absent) {
        return Vec::new();
    }
    out.push_str(if is_first { "\"body\":" } else { ",\"body\":" });
    let start = out.len();
    let parts = match document {
        Document::Absent => Vec::new(),
        Document::Json(json) => {
            let is_told_by_json = !(hide.may)("");
            let mut parts = Vec::new();
            if is_told_by_json {
                parts = Writer::new(vectors, None).write_whole(out, json);
            }
            if !is_told_by_json || (hide.may)(out.get(start..).unwrap_or_default()) {
                out.truncate(start);
                parts = Writer::new(vectors, Some(hide)).write_whole(out, json);
            }
            parts
        }
        Document::Text(text) => {
            write_string(out, &(hide.text)(&without_blobs(text)));
            Vec::new()
        }
    };
    let body = out.get(start..).unwrap_or_default();
    if !body.starts_with('{') && body.len() >= MIN_PART_BYTES {
        return vec![(start..out.len(), false)];
    }
    parts
}

struct Writer<'w, 'h> {
    vectors: Option<usize>,
    hide: Option<&'w mut Hide<'h>>,
    /// How many objects and lists are around what is being written. The body's members have one, elements of lists among them two.
    depth: usize,
    parts: Vec<PartPlace>,
    /// The body's member that is being written is a list which grows from call to call: its elements are parts. Others are one each, because
    /// they stay as they are: the tools of an agent.
    is_history: bool,
    /// The body itself looks like a reference.
    is_odd: bool,
}

impl<'w, 'h> Writer<'w, 'h> {
    fn new(vectors: Option<usize>, hide: Option<&'w mut Hide<'h>>) -> Self {
        Self { vectors, hide, depth: 0, parts: Vec::new(), is_history: false, is_odd: false }
    }

    /// Appends a body and returns its parts: members, and elements of those that are histories. None is inside another.
    fn write_whole(mut self, out: &mut String, body: &Json<'_>) -> Vec<PartPlace> {
        let start = out.len();
        self.write(out, body, "");
        let is_object = out.get(start..).is_some_and(|body| body.starts_with('{'));
        match (is_object, self.is_odd) {
            (true, false) => self.parts,
            (true, true) => vec![(start..out.len(), false)],
            (false, _) => Vec::new(),
        }
    }

    /// Notes what was written from `start` on, if it is worth it, or if it or an element of it could be taken for a reference.
    fn note(&mut self, out: &str, start: usize, is_element: bool) {
        let text = out.get(start..).unwrap_or_default();
        if text.len() >= MIN_PART_BYTES || text.contains(REFERENCE) {
            self.parts.push((start..out.len(), is_element));
        }
    }

    /// Appends a list.
    fn write_elements(
        &mut self,
        out: &mut String,
        elements: &[Json<'_>],
        mut write: impl FnMut(&mut Self, &mut String, &Json<'_>),
    ) {
        self.depth += 1;
        write_list(out, '[', elements, ']', |out, element| {
            let start = out.len();
            write(self, out, element);
            if self.depth == 2 && self.is_history {
                self.note(out, start, true);
            }
        });
        self.depth -= 1;
    }

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
            Json::Array(elements) => {
                self.write_elements(out, elements, |writer, out, element| writer.write(out, element, name));
            }
            Json::Object(members) => {
                self.depth += 1;
                write_list(out, '{', members, '}', |out, (member, value)| {
                    let hidden = self.hidden(member);
                    if self.depth == 1 {
                        self.is_odd |= hidden == REFERENCE;
                        self.is_history = matches!(hidden.as_ref(), "messages" | "input");
                    }
                    match hidden {
                        Cow::Borrowed(_) => write_text(out, member),
                        Cow::Owned(hidden) => write_string(out, &hidden),
                    }
                    out.push(':');
                    let (start, before) = (out.len(), self.parts.len());
                    self.write_member(out, json, name, member, value);
                    if self.depth == 1 && self.parts.len() == before {
                        self.note(out, start, false);
                    }
                });
                self.depth -= 1;
            }
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
                self.write_elements(out, values, |writer, out, value| match text_blob(value) {
                    Some(blob) => write_string(out, &blob),
                    None => writer.write(out, value, name),
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
