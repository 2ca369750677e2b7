//! What an answer says, whichever API it came from, and how the events of a stream become one.

use std::borrow::Cow;

use crate::call::{ToolCall, Usage};
use crate::decode::json::Json;
use crate::decode::sse;

/// The parts of an answer that have columns of their own.
#[derive(Debug, Default)]
pub struct Answer {
    /// The model that answered.
    pub model: Option<String>,
    /// The text of each choice, output item or block.
    pub texts: Vec<String>,
    /// The reasoning of each.
    pub reasoning: Vec<String>,
    /// The tools called, in order.
    pub tool_calls: Vec<ToolCall>,
    /// Why the first choice ended.
    pub finish_reason: Option<String>,
    /// Tokens as reported.
    pub usage: Usage,
}

/// Several texts as one: joined by an empty line, empty ones left out; `None` where nothing is left.
pub fn joined(mut texts: Vec<String>) -> Option<String> {
    texts.retain(|text| !text.is_empty());
    match texts.len() {
        0 => None,
        1 => texts.pop(),
        _ => Some(texts.join("\n\n")),
    }
}

/// Adds up the events of a stream to the object that the API would have answered with, had it not streamed.
pub trait Merge: Default {
    /// Takes one event into account; what it does not understand it leaves out.
    fn add(&mut self, event: &Json<'_>);
    /// The object.
    fn finish(self) -> Json<'static>;
}

/// A stream, added up.
#[derive(Debug)]
pub struct Merged {
    /// The completion object; an error event is its member `error`.
    pub completion: Json<'static>,
    /// The event was seen after which nothing comes.
    pub ended: bool,
}

/// Adds up the event stream `text`. An event that breaks off or is no JSON is left out.
pub fn merge<M: Merge>(text: &str) -> Merged {
    let mut merger = M::default();
    let mut error = None;
    let mut ended = false;
    for event in sse::events(text) {
        if event.data == "[DONE]" {
            ended = true;
            continue;
        }
        let Ok(data) = Json::parse(&event.data) else { continue };
        match data.get("type").and_then(Json::as_str) {
            Some("response.completed" | "response.incomplete" | "response.failed" | "message_stop") => ended = true,
            // `/v1/responses` has the message beside the type, the others have an object.
            Some("error") if data.get("error").is_none() => error = Some(data.to_static()),
            _ => {}
        }
        if let Some(found) = data.get("error") {
            error = Some(found.to_static());
        }
        merger.add(&data);
    }
    let mut completion = merger.finish();
    if let (Json::Object(members), Some(error)) = (&mut completion, error) {
        members.push((Cow::Borrowed("error"), error));
    }
    Merged { completion, ended }
}

/// An API whose streams are not known: only whether they ended is of interest.
#[derive(Debug, Default)]
pub struct Unknown;

impl Merge for Unknown {
    fn add(&mut self, _event: &Json<'_>) {}
    fn finish(self) -> Json<'static> {
        Json::Object(Vec::new())
    }
}

/// Appends the text of the member `name`, if there is one.
pub fn append(text: &mut Option<String>, object: &Json<'_>, name: &str) {
    if let Some(piece) = object.get(name).and_then(Json::as_str) {
        text.get_or_insert_default().push_str(piece);
    }
}

/// The text of the member `name`, if there is one.
pub fn text_of(object: &Json<'_>, name: &str) -> Option<String> {
    object.get(name).and_then(Json::as_str).map(str::to_owned)
}

/// An object out of names and values, members without a value left out.
pub fn object<const N: usize>(members: [(&'static str, Option<Json<'static>>); N]) -> Json<'static> {
    Json::Object(members.into_iter().filter_map(|(name, value)| Some((Cow::Borrowed(name), value?))).collect())
}

/// A text as a JSON string.
pub fn string(text: String) -> Json<'static> {
    Json::String(Cow::Owned(text))
}
