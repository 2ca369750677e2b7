//! `/v1/messages`, the Anthropic form: answers made of content blocks.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::call::{ToolCall, Unread};
use crate::decode::json::Json;

use super::answer::{Answer, MAX_NAMES, Members, append, is_blank, object, part_texts, plain_text, replace, string, text_of};
use super::stream::{Merge, Sent};
use super::unread::Pieces;
use super::usage;

/// Reads a message object.
pub fn read(message: &Json<'_>) -> Answer {
    let finish_reason = text_of(message, "stop_reason");
    let mut answer = Answer {
        model: text_of(message, "model"),
        is_finished: finish_reason.is_some(),
        finish_reason,
        usage: usage::read(message.get("usage")),
        ..Answer::default()
    };
    match message.get("content") {
        Some(Json::Array(blocks)) => blocks.iter().for_each(|block| read_block(block, &mut answer)),
        Some(content) => answer.texts.extend(part_texts(content)),
        None => {}
    }
    answer
}

fn read_block(block: &Json<'_>, answer: &mut Answer) {
    match block.get("type").and_then(Json::as_str).unwrap_or("text") {
        "thinking" => answer.reasoning.extend(text_of(block, "thinking")),
        // `tool_use`, `server_tool_use`, `mcp_tool_use`
        kind if kind.ends_with("tool_use") => answer.tool_calls.push(ToolCall {
            id: text_of(block, "id"),
            name: text_of(block, "name"),
            arguments: block.get("input").map(plain_text).unwrap_or_default(),
        }),
        "text" => answer.texts.extend(text_of(block, "text")),
        _ => {}
    }
}

/// Adds up `message_start`, the deltas of content blocks and `message_delta`.
#[derive(Debug, Default)]
pub struct Events {
    message: Members,
    usage: Members,
    blocks: Vec<Block>,
    /// The latest block of each index.
    by_index: HashMap<i64, usize>,
}

#[derive(Debug, Default)]
struct Block {
    start: Members,
    text: Option<String>,
    thinking: Option<String>,
    signature: Option<String>,
    input: Option<String>,
    citations: Vec<Json<'static>>,
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

impl Part {
    fn of_member(name: &str) -> Option<Self> {
        Some(match name {
            "text" => Self::Text,
            "thinking" => Self::Thinking,
            "signature" => Self::Signature,
            "partial_json" => Self::Input,
            _ => return None,
        })
    }
}

impl Merge for Events {
    type Place = Place;

    fn add(&mut self, event: &Sent<'_, '_>, unread: &mut Pieces) {
        let data = event.data;
        match event.kind {
            "message_start" => {
                let Some(message) = data.get("message") else { return };
                self.set_all(message);
                self.add_usage(message.get("usage"));
                // As a rule empty, but some servers start with what they have.
                for block in message.get("content").map(Json::elements).unwrap_or_default() {
                    self.open(self.blocks.len() as i64, block);
                }
            }
            "message_delta" => {
                if let Some(delta) = data.get("delta") {
                    self.set_all(delta);
                    self.add_usage(delta.get("usage"));
                }
                self.add_last(data, "delta");
            }
            // Some servers report here.
            "message_stop" => self.add_last(data, "message"),
            "content_block_start" => {
                if let Some(start) = data.get("content_block") {
                    self.open(block_index(data), start);
                }
            }
            "content_block_delta" => {
                for (name, value) in data.members() {
                    if !matches!(name.as_ref(), "type" | "index" | "delta" | "error") {
                        unread.member(name, value);
                    }
                }
                let Some(delta) = data.get("delta") else { return };
                let block = self.block(block_index(data));
                for (name, value) in delta.members() {
                    match (name.as_ref(), value) {
                        ("type", _) | (_, Json::Null) => {}
                        ("citation", citation) => block.citations.push(citation.to_static()),
                        (name, Json::String(piece)) if Part::of_member(name).is_some() => {
                            Part::of_member(name).into_iter().for_each(|part| block.push(part, piece));
                        }
                        // Whole, not in pieces.
                        ("partial_json", input @ Json::Object(_)) => block.push(Part::Input, &input.to_string()),
                        (name, value) => unread.member(name, value),
                    }
                }
            }
            "content_block_stop" => self.block(block_index(data)).stopped = true,
            "ping" | "error" => {}
            // A whole message, although a stream was asked for.
            "message" => {
                self.set_all(data);
                self.add_usage(data.get("usage"));
                for block in data.get("content").map(Json::elements).unwrap_or_default() {
                    self.open(self.blocks.len() as i64, block);
                }
            }
            _ => unread.note(Unread::Type, &data.to_string()),
        }
    }

    fn piece<'e>(event: &'e Json<'_>) -> Option<(Place, &'e str)> {
        if event.get("type").and_then(Json::as_str) != Some("content_block_delta") {
            return None;
        }
        let mut piece = None;
        for (name, value) in event.get("delta")?.members() {
            let part = match (name.as_ref(), value) {
                ("type", _) | (_, Json::Null) => continue,
                ("citation", _) => return None,
                (name, value) => match Part::of_member(name) {
                    Some(part) => (part, value.as_str()?),
                    None => continue,
                },
            };
            if piece.replace(part).is_some() {
                return None;
            }
        }
        let (part, text) = piece?;
        Some((Place { block: block_index(event), part }, text))
    }

    fn add_piece(&mut self, place: &Place, piece: &str) {
        self.block(place.block).push(place.part, piece);
    }

    fn finish(mut self) -> Json<'static> {
        let content = self.blocks.into_iter().flat_map(Block::finish).collect();
        self.message.push((Cow::Borrowed("content"), Json::Array(content)));
        self.message.push((Cow::Borrowed("usage"), Json::Object(self.usage)));
        Json::Object(self.message)
    }
}

impl Events {
    /// The latest block of an index.
    #[expect(clippy::indexing_slicing, reason = "an index that was handed out is there: blocks are never taken away")]
    fn block(&mut self, index: i64) -> &mut Block {
        let at = *self.by_index.entry(index).or_insert_with(|| {
            self.blocks.push(Block::default());
            self.blocks.len() - 1
        });
        &mut self.blocks[at]
    }

    /// Opens a block; of an index that is used a second time, another one.
    fn open(&mut self, index: i64, start: &Json<'_>) {
        self.by_index.insert(index, self.blocks.len());
        let mut block = Block::default();
        set_members(&mut block.start, start.members());
        // The start may already carry text.
        append(&mut block.text, start, "text");
        append(&mut block.thinking, start, "thinking");
        self.blocks.push(block);
    }

    /// Takes what an event at the end says beside its member `body` into account: what an answer that is no stream has at its top.
    fn add_last(&mut self, event: &Json<'_>, body: &str) {
        self.add_usage(event.get("usage"));
        let beside = event.members().iter().filter(|(name, _)| !matches!(name.as_ref(), "type" | "usage") && name != body);
        set_members(&mut self.message, beside);
    }

    fn set_all(&mut self, source: &Json<'_>) {
        set_members(&mut self.message, source.members());
        // Both are put together from the events that follow.
        self.message.retain(|(name, _)| name != "content" && name != "usage");
    }

    /// Takes a report into account. What it says of the prompt counts as a whole, and only where it is not less than what is known: some
    /// servers know the prompt at the start, others at the end, and say 0 elsewhere. Other counts only grow.
    fn add_usage(&mut self, report: Option<&Json<'_>>) {
        let Some(report) = report else { return };
        let prompt = |members: &Json<'_>| -> i64 {
            usage::PROMPT_OF_MESSAGES.iter().filter_map(|name| usage::count(members.get(name)?)).map(i64::from).sum()
        };
        let known = Json::Object(std::mem::take(&mut self.usage));
        let has_prompt = known.get("input_tokens").is_some();
        let is_prompt_kept = has_prompt && prompt(report) < prompt(&known);
        let Json::Object(mut usage) = known else { return };
        for (name, value) in report.members() {
            let before = usage.iter().find(|(known, _)| known == name).map(|(_, value)| value);
            let is_kept = match usage::PROMPT_OF_MESSAGES.contains(&name.as_ref()) {
                true => is_prompt_kept,
                false => before.and_then(usage::count) > usage::count(value),
            };
            let is_too_many = before.is_none() && usage.len() >= MAX_NAMES;
            if matches!(value, Json::Null) || before.is_some() && is_kept || is_too_many {
                continue;
            }
            usage.retain(|(known, _)| known != name);
            usage.push((Cow::Owned(name.to_string()), value.to_static()));
        }
        self.usage = usage;
    }
}

fn block_index(event: &Json<'_>) -> i64 {
    event.get("index").and_then(Json::as_i64).unwrap_or(0)
}

/// Sets every member that says something; the last value counts.
fn set_members<'s, 'a: 's>(members: &mut Members, source: impl IntoIterator<Item = &'s (Cow<'a, str>, Json<'a>)>) {
    for (name, value) in source {
        if matches!(value, Json::Null) {
            continue;
        }
        let is_full = members.len() >= MAX_NAMES;
        match members.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) if !is_blank(value) || is_blank(known) => *known = value.to_static(),
            Some(_) => {}
            None if is_full => {}
            None => members.push((Cow::Owned(name.to_string()), value.to_static())),
        }
    }
}

impl Block {
    fn push(&mut self, part: Part, piece: &str) {
        let text = match part {
            Part::Text => &mut self.text,
            Part::Thinking => &mut self.thinking,
            Part::Signature => &mut self.signature,
            Part::Input => &mut self.input,
        };
        text.get_or_insert_default().push_str(piece);
    }

    /// The block as an answer that is no stream has it, and behind it what came under its index but belongs to no such block.
    fn finish(mut self) -> Vec<Json<'static>> {
        let kind = self.start.iter().find(|(name, _)| name == "type").and_then(|(_, value)| value.as_str()).map(str::to_owned);
        let kind = kind.unwrap_or_else(|| {
            // The start is missing.
            let kind = match &self {
                Block { input: Some(_), .. } => "tool_use",
                Block { thinking: Some(_), text: None, .. } => "thinking",
                _ => "text",
            };
            self.start.push((Cow::Borrowed("type"), Json::text(kind)));
            kind.to_owned()
        });
        let is_call = kind.ends_with("tool_use");
        // A tool's input starts as `{}`, which is only a place to fill until the block is over.
        if !self.stopped
            && self.input.is_none()
            && is_call
            && self.start.iter().any(|(name, value)| name == "input" && value.members().is_empty())
        {
            self.start.retain(|(name, _)| name != "input");
        }
        // The text as it came where it is JSON, so that its spelling survives; else, cut off, as a string.
        let input = self.input.map(|text| match Json::parse(&text) {
            Ok(_) => Json::Raw(text),
            Err(_) => string(text),
        });
        let mut foreign = Vec::new();
        for (name, value) in [("text", self.text), ("thinking", self.thinking)] {
            match value {
                Some(value) if kind == name || kind != "text" && kind != "thinking" && !is_call => {
                    replace(&mut self.start, name, string(value));
                }
                Some(value) if !value.is_empty() => {
                    foreign.push(object([("type", Some(Json::text(name))), (name, Some(string(value)))]));
                }
                _ => {}
            }
        }
        let citations = (!self.citations.is_empty()).then_some(Json::Array(self.citations));
        for (name, value) in [("signature", self.signature.map(string)), ("input", input), ("citations", citations)] {
            if let Some(value) = value {
                replace(&mut self.start, name, value);
            }
        }
        let mut blocks = vec![Json::Object(self.start)];
        blocks.append(&mut foreign);
        blocks
    }
}
