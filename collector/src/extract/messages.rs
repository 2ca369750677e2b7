//! `/v1/messages`, the Anthropic form: answers made of content blocks.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::call::ToolCall;
use crate::decode::json::Json;

use super::answer::{Answer, append, string, text_of};
use super::stream::Merge;
use super::usage;

/// Reads a message object.
pub fn read(message: &Json<'_>) -> Answer {
    let mut answer = Answer {
        model: text_of(message, "model"),
        finish_reason: text_of(message, "stop_reason"),
        usage: usage::messages(message.get("usage")),
        ..Answer::default()
    };
    for block in message.get("content").map(Json::elements).unwrap_or_default() {
        match block.get("type").and_then(Json::as_str) {
            Some("text") => answer.texts.extend(text_of(block, "text")),
            Some("thinking") => answer.reasoning.extend(text_of(block, "thinking")),
            Some("tool_use" | "server_tool_use") => answer.tool_calls.push(ToolCall {
                id: text_of(block, "id"),
                name: text_of(block, "name"),
                arguments: match block.get("input") {
                    Some(Json::String(text)) => text.to_string(),
                    Some(input) => input.to_string(),
                    None => String::new(),
                },
            }),
            _ => {}
        }
    }
    answer
}

/// Adds up `message_start`, the deltas of content blocks and `message_delta`.
#[derive(Debug, Default)]
pub struct Events {
    message: Vec<(Cow<'static, str>, Json<'static>)>,
    usage: Vec<(Cow<'static, str>, Json<'static>)>,
    blocks: BTreeMap<i64, Block>,
}

#[derive(Debug, Default)]
struct Block {
    start: Vec<(Cow<'static, str>, Json<'static>)>,
    text: Option<String>,
    thinking: Option<String>,
    signature: Option<String>,
    input: Option<String>,
    stopped: bool,
}

/// A text of a content block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    block: i64,
    part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Text,
    Thinking,
    Signature,
    Input,
}

impl Merge for Events {
    type Place = Place;

    fn add(&mut self, event: &Json<'_>) {
        match event.get("type").and_then(Json::as_str) {
            Some("message_start") => {
                let Some(message) = event.get("message") else { return };
                self.set_all(message);
                set_members(&mut self.usage, message.get("usage"));
            }
            Some("message_delta") => {
                if let Some(delta) = event.get("delta") {
                    self.set_all(delta);
                }
                set_members(&mut self.usage, event.get("usage"));
            }
            Some("content_block_start") => {
                let Some(start) = event.get("content_block") else { return };
                let block = self.block(event);
                set_members(&mut block.start, Some(start));
                // The start may already carry text.
                append(&mut block.text, start, "text");
                append(&mut block.thinking, start, "thinking");
            }
            Some("content_block_delta") => {
                let Some(delta) = event.get("delta") else { return };
                let block = self.block(event);
                append(&mut block.text, delta, "text");
                append(&mut block.thinking, delta, "thinking");
                append(&mut block.signature, delta, "signature");
                append(&mut block.input, delta, "partial_json");
            }
            Some("content_block_stop") => self.block(event).stopped = true,
            _ => {}
        }
    }

    fn piece<'e>(event: &'e Json<'_>) -> Option<(Place, &'e str)> {
        if event.get("type").and_then(Json::as_str) != Some("content_block_delta") {
            return None;
        }
        let mut piece = None;
        for (name, value) in event.get("delta")?.members() {
            let part = match name.as_ref() {
                "text" => Part::Text,
                "thinking" => Part::Thinking,
                "signature" => Part::Signature,
                "partial_json" => Part::Input,
                _ => continue,
            };
            if piece.replace((part, value.as_str()?)).is_some() {
                return None;
            }
        }
        let (part, text) = piece?;
        Some((Place { block: block_index(event), part }, text))
    }

    fn add_piece(&mut self, place: &Place, piece: &str) {
        let block = self.blocks.entry(place.block).or_default();
        let text = match place.part {
            Part::Text => &mut block.text,
            Part::Thinking => &mut block.thinking,
            Part::Signature => &mut block.signature,
            Part::Input => &mut block.input,
        };
        text.get_or_insert_default().push_str(piece);
    }

    fn finish(mut self) -> Json<'static> {
        let content = self.blocks.into_values().map(Block::finish).collect();
        self.message.push((Cow::Borrowed("content"), Json::Array(content)));
        self.message.push((Cow::Borrowed("usage"), Json::Object(self.usage)));
        Json::Object(self.message)
    }
}

impl Events {
    fn block(&mut self, event: &Json<'_>) -> &mut Block {
        self.blocks.entry(block_index(event)).or_default()
    }

    fn set_all(&mut self, source: &Json<'_>) {
        set_members(&mut self.message, Some(source));
        // Both are put together from the events that follow.
        self.message.retain(|(name, _)| name != "content" && name != "usage");
    }
}

fn block_index(event: &Json<'_>) -> i64 {
    event.get("index").and_then(Json::as_i64).unwrap_or(0)
}

/// Sets every member that is not null; the last value counts.
fn set_members(members: &mut Vec<(Cow<'static, str>, Json<'static>)>, source: Option<&Json<'_>>) {
    for (name, value) in source.map(Json::members).unwrap_or_default() {
        if matches!(value, Json::Null) {
            continue;
        }
        match members.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value.to_static(),
            None => members.push((Cow::Owned(name.to_string()), value.to_static())),
        }
    }
}

impl Block {
    fn finish(mut self) -> Json<'static> {
        // A tool's input starts as `{}`, which is only a place to fill until the block is over.
        if !self.stopped && self.input.is_none() {
            self.start.retain(|(name, _)| name != "input");
        }
        // The text as it came where it is JSON, so that its spelling survives; else, cut off, as a string.
        let input = self.input.map(|text| match Json::parse(&text) {
            Ok(_) => Json::Raw(text),
            Err(_) => string(text),
        });
        for (name, value) in [
            ("text", self.text.map(string)),
            ("thinking", self.thinking.map(string)),
            ("signature", self.signature.map(string)),
            ("input", input),
        ] {
            if let Some(value) = value {
                self.start.retain(|(known, _)| known != name);
                self.start.push((Cow::Borrowed(name), value));
            }
        }
        Json::Object(self.start)
    }
}
