//! One output item of a stream.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::decode::json::Json;

use super::super::answer::{Members, object, part_texts, replace, string, text_of};

/// An item so far.
#[derive(Debug, Default)]
pub(super) struct Item {
    /// The item as last announced: without content when added, whole when done.
    announced: Option<Json<'static>>,
    parts: BTreeMap<i64, Part>,
    summary: BTreeMap<i64, Part>,
    /// Arguments, input or code, by the member's name.
    text: Option<(&'static str, String)>,
    annotations: Vec<Json<'static>>,
}

/// A part of an item's content.
#[derive(Debug, Default)]
struct Part {
    kind: &'static str,
    text: String,
}

impl Part {
    /// The member that holds the text.
    fn member(&self) -> &'static str {
        if self.kind == "refusal" { "refusal" } else { "text" }
    }

    fn finish(self) -> Json<'static> {
        object([("type", Some(Json::text(self.kind))), (self.member(), Some(string(self.text)))])
    }
}

/// Where an event of this kind, without its last word, adds its text.
enum Target {
    Content(&'static str),
    Summary,
    Text(&'static str),
}

impl Target {
    fn of(kind: &str) -> Option<Self> {
        Some(match kind {
            "response.output_text" => Self::Content("output_text"),
            "response.refusal" => Self::Content("refusal"),
            "response.reasoning_text" | "response.reasoning" => Self::Content("reasoning_text"),
            "response.reasoning_summary_text" | "response.reasoning_summary" => Self::Summary,
            "response.function_call_arguments" | "response.mcp_call_arguments" => Self::Text("arguments"),
            "response.custom_tool_call_input" => Self::Text("input"),
            "response.code_interpreter_call_code" => Self::Text("code"),
            _ => return None,
        })
    }
}

impl Item {
    /// Whether the item has this id.
    pub(super) fn is(&self, id: &str) -> bool {
        self.announced.as_ref().and_then(|item| item.get("id")).and_then(Json::as_str) == Some(id)
    }

    /// Takes an event into account. Returns whether it was understood.
    pub(super) fn add(&mut self, kind: &str, event: &Json<'_>) -> bool {
        let position = |name: &str| event.get(name).and_then(Json::as_i64).unwrap_or(0);
        match kind {
            "response.output_item.added" | "response.output_item.done" => {
                self.announced = event.get("item").map(Json::to_static).or(self.announced.take());
                return true;
            }
            "response.content_part.added"
            | "response.content_part.done"
            | "response.reasoning_part.added"
            | "response.reasoning_part.done" => {
                if let Some(part) = event.get("part") {
                    let kind = match part.get("type").and_then(Json::as_str) {
                        Some("refusal") => "refusal",
                        Some("reasoning_text") => "reasoning_text",
                        _ => "output_text",
                    };
                    let known = self.parts.entry(position("content_index")).or_insert(Part { kind, text: String::new() });
                    keep_longer(&mut known.text, &part_texts(&Json::Array(vec![part.clone()])).concat());
                }
                return true;
            }
            "response.reasoning_summary_part.added" | "response.reasoning_summary_part.done" => {
                if let Some(text) = event.get("part").and_then(|part| text_of(part, "text")) {
                    let known = self
                        .summary
                        .entry(position("summary_index"))
                        .or_insert(Part { kind: "summary_text", text: String::new() });
                    keep_longer(&mut known.text, &text);
                }
                return true;
            }
            "response.output_text.annotation.added" => {
                self.annotations.extend(event.get("annotation").map(Json::to_static));
                return true;
            }
            _ => {}
        }
        let Some((start, end)) = kind.rsplit_once('.') else { return false };
        let Some(target) = Target::of(start) else { return false };
        let text = match target {
            Target::Content(kind) => {
                &mut self.parts.entry(position("content_index")).or_insert(Part { kind, text: String::new() }).text
            }
            Target::Summary => {
                let part = Part { kind: "summary_text", text: String::new() };
                &mut self.summary.entry(position("summary_index")).or_insert(part).text
            }
            Target::Text(name) => &mut self.text.get_or_insert((name, String::new())).1,
        };
        match end {
            "delta" => text.push_str(event.get("delta").and_then(Json::as_str).unwrap_or_default()),
            // Says again what the deltas said; where there were none, it is all that there is.
            "done" => {
                let members = ["text", "refusal", "arguments", "input", "code"];
                if let Some(whole) = members.iter().find_map(|name| text_of(event, name)) {
                    keep_longer(text, &whole);
                }
            }
            _ => return false,
        }
        true
    }

    /// The item as a whole answer has it: as it was announced, and what the pieces say beyond that.
    pub(super) fn finish(self) -> Option<Json<'static>> {
        let mut item = self.announced.unwrap_or_else(|| Json::Object(Vec::new()));
        let Json::Object(members) = &mut item else { return None };
        if !members.iter().any(|(name, _)| name == "type") {
            let kind = match &self.text {
                Some(("code", _)) => "code_interpreter_call",
                Some(("input", _)) => "custom_tool_call",
                Some(_) => "function_call",
                None if self.parts.values().any(|part| part.kind == "reasoning_text")
                    || self.parts.is_empty() && !self.summary.is_empty() =>
                {
                    "reasoning"
                }
                None => "message",
            };
            members.insert(0, (Cow::Borrowed("type"), Json::text(kind)));
        }
        complete(members, "content", self.parts);
        complete(members, "summary", self.summary);
        if let Some((name, text)) = self.text {
            let known = members.iter().find(|(known, _)| known == name).map_or(0, |(_, value)| match value {
                Json::String(known) => known.len(),
                Json::Null => 0,
                _ => usize::MAX,
            });
            if text.len() > known {
                replace(members, name, string(text));
            }
        }
        if !self.annotations.is_empty() {
            let first = members.iter_mut().find(|(name, _)| name == "content").and_then(|(_, content)| match content {
                Json::Array(parts) => parts.first_mut(),
                _ => None,
            });
            if let Some(Json::Object(part)) = first
                && part.iter().all(|(name, value)| name != "annotations" || value.elements().is_empty())
            {
                replace(part, "annotations", Json::Array(self.annotations));
            }
        }
        Some(item)
    }
}

fn keep_longer(known: &mut String, new: &str) {
    if new.len() > known.len() {
        new.clone_into(known);
    }
}

/// Completes a list of parts with what the pieces say beyond it.
fn complete(members: &mut Members, name: &'static str, pieces: BTreeMap<i64, Part>) {
    if pieces.is_empty() {
        return;
    }
    let known = members.iter_mut().find(|(known, _)| known == name).map(|(_, value)| std::mem::replace(value, Json::Null));
    let mut parts = match known {
        Some(Json::Array(parts)) => parts,
        // A content that is no list is all of it.
        Some(Json::String(text)) if !text.is_empty() => return replace(members, name, Json::String(text)),
        _ => Vec::new(),
    };
    for (index, piece) in pieces {
        let known = usize::try_from(index).ok().and_then(|index| parts.get_mut(index));
        match known {
            Some(Json::Object(part)) => {
                let said =
                    part.iter().find(|(name, _)| name == piece.member()).and_then(|(_, text)| text.as_str()).map_or(0, str::len);
                if piece.text.len() > said {
                    replace(part, piece.member(), string(piece.text));
                }
            }
            _ => parts.push(piece.finish()),
        }
    }
    replace(members, name, Json::Array(parts));
}

/// How much an item says: the letters of its texts, arguments and code.
pub(super) fn length(item: &Json<'_>) -> usize {
    let parts = ["content", "summary"].iter().filter_map(|name| item.get(name)).flat_map(part_texts).map(|text| text.len());
    let texts = ["arguments", "input", "code"].iter().filter_map(|name| item.get(name)).map(|value| match value {
        Json::String(text) => text.len(),
        value => value.to_string().len(),
    });
    parts.chain(texts).sum()
}
