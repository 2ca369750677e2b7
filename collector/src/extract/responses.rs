//! `/v1/responses`: answers made of output items.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::call::ToolCall;
use crate::decode::json::Json;

use super::answer::{Answer, append, joined, object, string, text_of};
use super::stream::Merge;
use super::usage;

/// Reads a response object.
pub fn read(response: &Json<'_>) -> Answer {
    let mut answer = Answer {
        model: text_of(response, "model"),
        usage: usage::responses(response.get("usage")),
        finish_reason: response
            .at(&["incomplete_details", "reason"])
            .and_then(Json::as_str)
            .map(str::to_owned)
            .or_else(|| text_of(response, "status")),
        ..Answer::default()
    };
    for item in response.get("output").map(Json::elements).unwrap_or_default() {
        match item.get("type").and_then(Json::as_str) {
            Some("message") => answer.texts.extend(part_texts(item, "content")),
            Some("reasoning") => {
                let content = part_texts(item, "content");
                answer.reasoning.extend(if content.is_empty() { part_texts(item, "summary") } else { content });
            }
            Some("function_call" | "custom_tool_call" | "mcp_call") => {
                let arguments = text_of(item, "arguments").or_else(|| text_of(item, "input"));
                answer.tool_calls.push(ToolCall {
                    id: text_of(item, "call_id").or_else(|| text_of(item, "id")),
                    name: text_of(item, "name"),
                    arguments: arguments.unwrap_or_default(),
                });
            }
            _ => {}
        }
    }
    answer
}

/// The texts of an item's parts; a refusal is text too.
fn part_texts(item: &Json<'_>, name: &str) -> Vec<String> {
    let parts = item.get(name).map(Json::elements).unwrap_or_default();
    let texts = parts.iter().filter_map(|part| text_of(part, "text").or_else(|| text_of(part, "refusal")));
    joined(texts.collect()).into_iter().collect()
}

/// Adds up typed events. The terminal event carries the whole response; the pieces before it count only where it is missing.
#[derive(Debug, Default)]
pub struct Events {
    response: Option<Json<'static>>,
    ended: bool,
    items: BTreeMap<i64, Item>,
}

#[derive(Debug, Default)]
struct Item {
    /// The item as last announced: without content when added, whole when done.
    announced: Option<Json<'static>>,
    done: bool,
    parts: BTreeMap<i64, String>,
    summary: BTreeMap<i64, String>,
    arguments: Option<String>,
}

impl Merge for Events {
    type Place = ();

    fn add(&mut self, event: &Json<'_>) {
        if self.ended {
            return;
        }
        let kind = event.get("type").and_then(Json::as_str).unwrap_or_default();
        if let Some(response) = event.get("response") {
            self.ended = matches!(kind, "response.completed" | "response.incomplete" | "response.failed");
            if self.ended || self.response.is_none() {
                self.response = Some(response.to_static());
            }
            return;
        }
        let position = |name: &str| event.get(name).and_then(Json::as_i64);
        let Some(index) = position("output_index") else { return };
        let item = self.items.entry(index).or_default();
        match kind {
            "response.output_item.added" => item.announced = event.get("item").map(Json::to_static),
            "response.output_item.done" => {
                item.announced = event.get("item").map(Json::to_static);
                item.done = item.announced.is_some();
            }
            "response.output_text.delta" | "response.refusal.delta" | "response.reasoning_text.delta" => {
                push_delta(item.parts.entry(position("content_index").unwrap_or(0)).or_default(), event);
            }
            "response.reasoning_summary_text.delta" => {
                push_delta(item.summary.entry(position("summary_index").unwrap_or(0)).or_default(), event);
            }
            "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta" => {
                append(&mut item.arguments, event, "delta");
            }
            _ => {}
        }
    }

    /// Events are numbered, so that no two of them fit one pattern.
    fn piece<'e>(_event: &'e Json<'_>) -> Option<((), &'e str)> {
        None
    }

    fn add_piece(&mut self, (): &(), _piece: &str) {}

    fn finish(self) -> Json<'static> {
        let mut response = self.response.unwrap_or_else(|| Json::Object(Vec::new()));
        if !self.ended
            && let Json::Object(members) = &mut response
        {
            let output = self.items.into_values().filter_map(Item::finish).collect();
            members.retain(|(name, _)| name != "output");
            members.push((Cow::Borrowed("output"), Json::Array(output)));
        }
        response
    }
}

fn push_delta(text: &mut String, event: &Json<'_>) {
    text.push_str(event.get("delta").and_then(Json::as_str).unwrap_or_default());
}

impl Item {
    fn finish(self) -> Option<Json<'static>> {
        if self.done {
            return self.announced;
        }
        let mut item = self.announced.unwrap_or_else(|| Json::Object(vec![(Cow::Borrowed("type"), Json::text("message"))]));
        let Json::Object(members) = &mut item else { return None };
        let is_reasoning = members.iter().any(|(name, value)| name == "type" && value.as_str() == Some("reasoning"));
        let kind = if is_reasoning { "reasoning_text" } else { "output_text" };
        let parts = |kind: &'static str, texts: BTreeMap<i64, String>| {
            (!texts.is_empty()).then(|| {
                let part = |text| object([("type", Some(Json::text(kind))), ("text", Some(string(text)))]);
                Json::Array(texts.into_values().map(part).collect())
            })
        };
        for (name, value) in [
            ("content", parts(kind, self.parts)),
            ("summary", parts("summary_text", self.summary)),
            ("arguments", self.arguments.map(string)),
        ] {
            if let Some(value) = value {
                members.retain(|(known, _)| known != name);
                members.push((Cow::Borrowed(name), value));
            }
        }
        Some(item)
    }
}
