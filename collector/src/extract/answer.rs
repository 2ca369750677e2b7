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
