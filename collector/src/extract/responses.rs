//! `/v1/responses`: answers made of output items.

mod item;
mod together;

use std::borrow::Cow;
use std::collections::HashMap;

use crate::call::{ToolCall, Unread};
use crate::decode::json::Json;

use super::answer::{Answer, joined, part_texts, plain_text, replace, text_of};
use super::stream::{Merge, Sent};
use super::unread::Pieces;
use super::usage;

use item::Item;
use together::together;

/// Reads a response object.
pub fn read(response: &Json<'_>) -> Answer {
    let reason = response.get("incomplete_details").and_then(|details| text_of(details, "reason"));
    // While it is being made, a response has a status and no end.
    let status = || text_of(response, "status").filter(|status| !is_under_way(status));
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
            // What the client is to run has a `call_id`, or is its function for sure. What the server ran itself is in `raw_log`, but for
            // tools of MCP.
            kind if matches!(kind, "mcp_call" | "function_call" | "custom_tool_call")
                || kind.ends_with("_call") && item.get("call_id").is_some() =>
            {
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

fn is_under_way(status: &str) -> bool {
    matches!(status, "in_progress" | "queued")
}

/// Adds up typed events. The terminal event carries the whole response, as a rule; where it says less than the events before it,
/// what they said stays.
#[derive(Debug, Default)]
pub struct Events {
    announced: Option<Json<'static>>,
    terminal: Option<Json<'static>>,
    usage: Option<Json<'static>>,
    items: Vec<Item>,
    /// The latest item of each index, and of each index and id: servers give several items one index, others all items one id.
    by_index: HashMap<i64, usize>,
    by_id: HashMap<(Option<i64>, String), usize>,
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
        let is_understood = item::is_about_item(kind) && self.item(kind, data).add(kind, data, unread);
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
        let output = match response.take("output") {
            Some(Json::Array(items)) => items,
            _ => Vec::new(),
        };
        let mut items = self.items;
        items.sort_by_key(|item| item.index);
        let output = together(output, items.into_iter().filter_map(Item::finish));
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
                let told = text_of(&response, "status").filter(|status| !is_under_way(status));
                if let (None, Json::Object(members)) = (told, &mut response) {
                    replace(members, "status", Json::text(status));
                }
                self.terminal = Some(response);
            }
            None if self.announced.is_none() => self.announced = Some(response.to_static()),
            None => {}
        }
    }

    /// The item that an event speaks of: by index and id, else by its index, else the latest; a new one where it speaks of none of them.
    #[expect(clippy::indexing_slicing, reason = "an index that was handed out is there: items are never taken away")]
    fn item(&mut self, kind: &str, event: &Json<'_>) -> &mut Item {
        let index = event.get("output_index").and_then(Json::as_i64);
        let id = event.get("item_id").or_else(|| event.at(&["item", "id"])).and_then(Json::as_str).filter(|id| !id.is_empty());
        let key = id.map(|id| (index, id.to_owned()));
        let of_id = key.as_ref().and_then(|key| self.by_id.get(key).copied());
        let of_index = || match index {
            Some(index) => self.by_index.get(&index).copied(),
            None => self.items.len().checked_sub(1),
        };
        let takes = |at: &usize| self.items.get(*at).is_some_and(|item| item.takes(kind, id, event));
        let known = of_id.filter(takes).or_else(|| of_index().filter(takes));
        let at = known.unwrap_or_else(|| {
            let index = index.or_else(|| self.items.last().map(|item| item.index)).unwrap_or(0);
            self.items.push(Item::new(index));
            self.items.len() - 1
        });
        self.by_index.extend(index.map(|index| (index, at)));
        self.by_id.extend(key.map(|key| (key, at)));
        &mut self.items[at]
    }
}
