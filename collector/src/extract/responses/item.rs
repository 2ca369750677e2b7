//! One output item of a stream.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::decode::json::Json;

use super::super::answer::{Members, object, part_text, part_texts, plain_text, replace, set_once, string, text_of};
use super::super::unread::Pieces;

/// An item so far.
#[derive(Debug, Default)]
pub(super) struct Item {
    /// Its place in the answer.
    pub(super) index: i64,
    /// The item as last announced: without content when added, whole when done.
    announced: Option<Json<'static>>,
    parts: BTreeMap<i64, Part>,
    summary: BTreeMap<i64, Part>,
    /// Arguments, input or code, by the member's name.
    text: Option<(&'static str, String)>,
    /// What events said of the item that nobody announced.
    named: Members,
    /// Some of its texts are thoughts.
    is_thought: bool,
    is_done: bool,
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

/// Members that events of items have as a rule. A text of theirs is taken where it belongs.
const MEMBERS: [&str; 21] = [
    "type",
    "sequence_number",
    "response_id",
    "event_id",
    "item_id",
    "output_index",
    "content_index",
    "summary_index",
    "annotation_index",
    "delta",
    "text",
    "refusal",
    "arguments",
    "input",
    "code",
    "part",
    "item",
    "annotation",
    "logprobs",
    "obfuscation",
    "error",
];

/// Of an item that nobody announced.
const NAMES: [&str; 2] = ["name", "call_id"];

/// Whether events of this kind speak of an item, and what they say of it is read.
pub(super) fn is_about_item(kind: &str) -> bool {
    let is_part =
        |start: &str| start.ends_with("_part") || matches!(start, "response.output_item" | "response.output_text.annotation");
    kind.rsplit_once('.').is_some_and(|(start, end)| match end {
        "added" => is_part(start),
        "done" => is_part(start) || Target::of(start).is_some(),
        "delta" => Target::of(start).is_some(),
        _ => false,
    })
}

/// Where an event of this kind, without its last word, adds its text.
#[derive(Clone, Copy)]
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

impl Target {
    /// Whether an item of this type has such texts.
    fn is_of(self, item: &str) -> bool {
        match self {
            Self::Content("reasoning_text") | Self::Summary => item == "reasoning",
            Self::Content(_) => item == "message",
            Self::Text("code") => item == "code_interpreter_call",
            Self::Text(_) => item.ends_with("_call"),
        }
    }
}

impl Item {
    pub(super) fn new(index: i64) -> Self {
        Self { index, ..Self::default() }
    }

    /// Its type, where it was told.
    fn kind(&self) -> Option<&str> {
        self.announced.as_ref()?.get("type")?.as_str()
    }

    /// Whether an event of the same index, or without one, that does not have this item's id may speak of it all the same.
    pub(super) fn takes(&self, kind: &str, id: Option<&str>, event: &Json<'_>) -> bool {
        let of_event = event.at(&["item", "type"]).and_then(Json::as_str);
        let is_same_kind = self.kind().is_none() || of_event.is_none() || self.kind() == of_event;
        let known = self.announced.as_ref().and_then(|item| text_of(item, "id"));
        let is_other_id = known.is_some() && id.is_some() && known.as_deref() != id;
        match kind {
            "response.output_item.added" => is_same_kind && !self.is_done && !is_other_id,
            "response.output_item.done" => is_same_kind && !self.is_done,
            _ => {
                let target = kind.rsplit_once('.').and_then(|(start, _)| Target::of(start));
                let is_here = |target: Target| self.kind().map_or_else(|| self.holds(target), |item| target.is_of(item));
                target.is_none_or(is_here)
            }
        }
    }

    /// Whether an item of which the type is not known may have such a text, beside those that it has.
    fn holds(&self, target: Target) -> bool {
        match target {
            Target::Content("reasoning_text") | Target::Summary => {
                self.text.is_none() && (self.is_thought || self.parts.is_empty())
            }
            Target::Content(_) => self.text.is_none() && !self.is_thought,
            Target::Text(name) => {
                self.parts.is_empty() && self.summary.is_empty() && self.text.as_ref().is_none_or(|(known, _)| *known == name)
            }
        }
    }

    /// Takes an event into account. Returns whether it was understood; what of it was not goes to `unread`.
    pub(super) fn add(&mut self, kind: &str, event: &Json<'_>, unread: &mut Pieces) -> bool {
        let is_understood = self.add_known(kind, event);
        if let (None, Some(id)) = (&self.announced, event.get("item_id")) {
            set_once(&mut self.named, "id", id);
        }
        for (name, value) in event.members().iter().filter(|(name, _)| is_understood && !MEMBERS.contains(&name.as_ref())) {
            if NAMES.contains(&name.as_ref()) {
                set_once(&mut self.named, name, value);
            } else {
                unread.member(name, value);
            }
        }
        is_understood
    }

    fn add_known(&mut self, kind: &str, event: &Json<'_>) -> bool {
        let position = |name: &str| event.get(name).and_then(Json::as_i64).unwrap_or(0);
        match kind {
            "response.output_item.added" | "response.output_item.done" => {
                self.announced = event.get("item").map(Json::to_static).or(self.announced.take());
                self.is_done |= kind.ends_with("done");
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
                    self.is_thought |= kind == "reasoning_text";
                    let known = self.parts.entry(position("content_index")).or_insert(Part { kind, text: String::new() });
                    keep_longer(&mut known.text, &part_text(part).unwrap_or_default());
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
        self.is_thought |= matches!(target, Target::Content("reasoning_text") | Target::Summary);
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
            "delta" => match event.get("delta") {
                Some(Json::String(piece)) => text.push_str(piece),
                None => {}
                Some(part) => match part_text(part) {
                    Some(piece) => text.push_str(&piece),
                    None => return false,
                },
            },
            // Says again what the deltas said; where there were none, it is all that there is.
            "done" => {
                let members = ["text", "refusal", "arguments", "input", "code"];
                if let Some(whole) = members.iter().find_map(|name| event.get(name)).map(plain_text) {
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
        self.named.iter().for_each(|(name, value)| set_once(members, name, value));
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
