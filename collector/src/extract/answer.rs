//! What an answer says, whichever API it came from.

use std::borrow::Cow;

use crate::call::{ToolCall, Usage};
use crate::decode::json::Json;

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
    /// Every choice says why it ended.
    pub is_finished: bool,
    /// Tokens as reported.
    pub usage: Usage,
}

/// Members of an object that is put together.
pub type Members = Vec<(Cow<'static, str>, Json<'static>)>;

/// Several texts as one: joined by an empty line, empty ones left out; `None` where nothing is left.
pub fn joined(mut texts: Vec<String>) -> Option<String> {
    texts.retain(|text| !text.is_empty());
    match texts.len() {
        0 => None,
        1 => texts.pop(),
        _ => Some(texts.join("\n\n")),
    }
}

/// Appends the text of the member `name`, if there is one.
pub fn append(text: &mut Option<String>, object: &Json<'_>, name: &str) {
    if let Some(piece) = object.get(name).and_then(Json::as_str) {
        text.get_or_insert_default().push_str(piece);
    }
}

/// The text of the member `name`, if there is one: an empty string is none.
pub fn text_of(object: &Json<'_>, name: &str) -> Option<String> {
    object.get(name).and_then(Json::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// A string's text; anything else as JSON.
pub fn plain_text(json: &Json<'_>) -> String {
    json.as_str().map_or_else(|| json.to_string(), str::to_owned)
}

/// The texts of parts: a string, a list of strings and of objects with a `text` (or a `refusal`, which is text, too).
pub fn part_texts(parts: &Json<'_>) -> Vec<String> {
    match parts {
        Json::String(text) => vec![text.to_string()],
        Json::Array(parts) => parts.iter().filter_map(part_text).collect(),
        _ => Vec::new(),
    }
}

/// The text of a part.
pub fn part_text(part: &Json<'_>) -> Option<String> {
    match part {
        Json::String(text) => Some(text.to_string()),
        part => ["text", "refusal", "transcript"].iter().find_map(|name| text_of(part, name)),
    }
}

/// Whether a value says nothing: chunks repeat their head, and some servers begin with a blank one.
pub fn is_blank(value: &Json<'_>) -> bool {
    match value {
        Json::Null => true,
        Json::String(text) => text.is_empty(),
        Json::Number(number) => number == "0",
        _ => false,
    }
}

/// Whether a value and all that is in it says nothing, as in `{"code":0,"message":""}`.
pub fn says_nothing(value: &Json<'_>) -> bool {
    match value {
        Json::Bool(value) => !value,
        Json::Array(elements) => elements.iter().all(says_nothing),
        Json::Object(members) => members.iter().all(|(_, value)| says_nothing(value)),
        value => is_blank(value),
    }
}

/// Names that are put together from all events of a stream, at most: each new one is looked for among those that are known. Servers
/// have some dozens.
pub const MAX_NAMES: usize = 256;

/// Keeps the first value that says something.
pub fn set_once(members: &mut Members, name: &str, value: &Json<'_>) {
    if matches!(value, Json::Null) {
        return;
    }
    let is_full = members.len() >= MAX_NAMES;
    match members.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) if is_blank(known) && !is_blank(value) => *known = value.to_static(),
        Some(_) => {}
        None if is_full => {}
        None => members.push((Cow::Owned(name.to_owned()), value.to_static())),
    }
}

/// Puts a value in the place of the one that is known.
pub fn replace(members: &mut Members, name: &'static str, value: Json<'static>) {
    members.retain(|(known, _)| known != name);
    members.push((Cow::Borrowed(name), value));
}

/// An object out of names and values, members without a value left out.
pub fn object<const N: usize>(members: [(&'static str, Option<Json<'static>>); N]) -> Json<'static> {
    Json::Object(members.into_iter().filter_map(|(name, value)| Some((Cow::Borrowed(name), value?))).collect())
}

/// A text as a JSON string.
pub fn string(text: String) -> Json<'static> {
    Json::String(Cow::Owned(text))
}
