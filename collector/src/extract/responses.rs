//! `/v1/responses`: answers made of output items.

mod item;

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::call::{ToolCall, Unread};
use crate::decode::json::Json;

use super::answer::{Answer, joined, part_texts, plain_text, replace, text_of};
use super::stream::{Merge, Sent};
use super::unread::Pieces;
use super::usage;

use item::{Item, length};

/// Reads a response object.
pub fn read(response: &Json<'_>) -> Answer {
    let reason = response.get("incomplete_details").and_then(|details| text_of(details, "reason"));
    // While it is being made, a response has a status and no end.
    let status = || text_of(response, "status").filter(|status| !matches!(status.as_str(), "in_progress" | "queued"));
    let finish_reason = reason.or_else(status);
    let mut answer = Answer {
        model: text_of(response, "model"),
        usage: usage::read(response.get("usage")),
        is_finished: finish_reason.is_some(),
        finish_reason,
        ..Answer::default()
    };
    for item in response.get("output").map(Json::elements).unwrap_or_default() {
        let texts = |name: &str| joined(item.get(name).map(part_texts).unwrap_or_default());
        match item.get("type").and_then(Json::as_str).unwrap_or("message") {
            "message" => answer.texts.extend(texts("content")),
            "reasoning" => answer.reasoning.extend(texts("content").or_else(|| texts("summary"))),
            // What the client is to run has a `call_id`. What the server ran itself is in `raw_log`, but for tools of MCP.
            kind if kind == "mcp_call" || kind.ends_with("_call") && item.get("call_id").is_some() => {
                let arguments = ["arguments", "input", "action", "operation"].iter().find_map(|name| item.get(name));
                answer.tool_calls.push(ToolCall {
                    id: text_of(item, "call_id").or_else(|| text_of(item, "id")),
                    name: text_of(item, "name").or_else(|| Some(kind.to_owned())),
                    arguments: arguments.map(plain_text).unwrap_or_default(),
                });
            }
            _ => {}
        }
    }
    answer
}

/// Adds up typed events. The terminal event carries the whole response, as a rule; where it says less than the events before it,
/// what they said stays.
#[derive(Debug, Default)]
pub struct Events {
    announced: Option<Json<'static>>,
    terminal: Option<Json<'static>>,
    usage: Option<Json<'static>>,
    items: BTreeMap<i64, Item>,
}

impl Merge for Events {
    type Place = ();

    fn add(&mut self, event: &Sent<'_, '_>, unread: &mut Pieces) {
        let (kind, data) = (event.kind, event.data);
        if let Some(response) = data.get("response") {
            self.add_response(kind, response);
            return;
        }
        // A whole response, although a stream was asked for.
        if data.get("object").and_then(Json::as_str) == Some("response") {
            self.add_response("response.completed", data);
            return;
        }
        let is_understood = match self.item(data) {
            Some(item) => item.add(kind, data),
            None => false,
        };
        // Events of tools that the server runs tell how far they are; the item tells the rest.
        let is_progress = [".in_progress", ".searching", ".interpreting", ".generating", ".completed", ".partial_image"]
            .iter()
            .any(|end| kind.starts_with("response.") && kind.ends_with(end));
        if !is_understood && !is_progress && !matches!(kind, "ping" | "error" | "keepalive") {
            unread.note(Unread::Type, &data.to_string());
        }
    }

    /// Events are numbered, so that no two of them fit one pattern.
    fn piece<'e>(_event: &'e Json<'_>) -> Option<((), &'e str)> {
        None
    }

    fn add_piece(&mut self, (): &(), _piece: &str) {}

    fn finish(self) -> Json<'static> {
        let mut response = self.terminal.or(self.announced).unwrap_or_else(|| Json::Object(Vec::new()));
        let mut output = match response.take("output") {
            Some(Json::Array(items)) => items,
            _ => Vec::new(),
        };
        let mut is_taken = vec![false; output.len()];
        for (position, item) in self.items.into_values().filter_map(Item::finish).enumerate() {
            match counterpart(&output, &is_taken, position, &item) {
                Some(at) => {
                    if let (Some(known), Some(taken)) = (output.get_mut(at), is_taken.get_mut(at)) {
                        *taken = true;
                        if length(&item) > length(known) {
                            *known = item;
                        }
                    }
                }
                None => {
                    let at = position.min(output.len());
                    output.insert(at, item);
                    is_taken.insert(at, true);
                }
            }
        }
        if let Json::Object(members) = &mut response {
            members.push((Cow::Borrowed("output"), Json::Array(output)));
            if let Some(usage) = self.usage {
                replace(members, "usage", usage);
            }
        }
        response
    }
}

impl Events {
    fn add_response(&mut self, kind: &str, response: &Json<'_>) {
        if let Some(report) = response.get("usage") {
            usage::keep_larger(&mut self.usage, report);
        }
        let status =
            kind.strip_prefix("response.").filter(|end| matches!(*end, "completed" | "incomplete" | "failed" | "cancelled"));
        match status {
            Some(status) => {
                let mut response = response.to_static();
                if let (None, Json::Object(members)) = (text_of(&response, "status"), &mut response) {
                    replace(members, "status", Json::text(status));
                }
                self.terminal = Some(response);
            }
            None if self.announced.is_none() => self.announced = Some(response.to_static()),
            None => {}
        }
    }

    /// The item that an event speaks of: by its index, else by its id, else the latest.
    fn item(&mut self, event: &Json<'_>) -> Option<&mut Item> {
        if let Some(index) = event.get("output_index").and_then(Json::as_i64) {
            return Some(self.items.entry(index).or_default());
        }
        let id = event.get("item_id").or_else(|| event.at(&["item", "id"])).and_then(Json::as_str)?;
        let known = self.items.iter().rev().find(|(_, item)| item.is(id)).map(|(index, _)| *index);
        let next = || self.items.last_key_value().map_or(0, |(index, _)| index.saturating_add(1));
        let index = known.unwrap_or_else(next);
        Some(self.items.entry(index).or_default())
    }
}

/// The item of the terminal event that is the same as `item`: of its id, else of its type, first in its place.
fn counterpart(output: &[Json<'_>], is_taken: &[bool], position: usize, item: &Json<'_>) -> Option<usize> {
    let is_free = |at: &usize| is_taken.get(*at) == Some(&false);
    let has = |name: &'static str| {
        let wanted = item.get(name);
        move |at: &usize| wanted.is_some() && output.get(*at).and_then(|known| known.get(name)) == wanted
    };
    let free = || (0..output.len()).filter(is_free);
    free().find(has("id")).or_else(|| Some(position).filter(is_free).filter(has("type"))).or_else(|| free().find(has("type")))
}
