//! `/v1/chat/completions` and `/v1/completions`: answers made of choices.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::call::ToolCall;
use crate::decode::json::{Json, Number};

use super::answer::{Answer, append, object, string, text_of};
use super::stream::Merge;
use super::usage;

/// Reads a completion object of either API.
pub fn read(completion: &Json<'_>) -> Answer {
    let mut answer =
        Answer { model: text_of(completion, "model"), usage: usage::openai(completion.get("usage")), ..Answer::default() };
    let mut choices: Vec<(i64, &Json<'_>)> = completion
        .get("choices")
        .map(Json::elements)
        .unwrap_or_default()
        .iter()
        .enumerate()
        .map(|(position, choice)| (index_of(choice).unwrap_or(position as i64), choice))
        .collect();
    choices.sort_by_key(|(index, _)| *index);
    answer.finish_reason = choices.first().and_then(|(_, choice)| text_of(choice, "finish_reason"));
    for (_, choice) in choices {
        answer.texts.extend(text_of(choice, "text"));
        if let Some(message) = choice.get("message") {
            read_message(message, &mut answer);
        }
    }
    answer
}

fn read_message(message: &Json<'_>, answer: &mut Answer) {
    match message.get("content") {
        Some(Json::Array(parts)) => answer.texts.extend(parts.iter().filter_map(|part| text_of(part, "text"))),
        Some(content) => answer.texts.extend(content.as_str().map(str::to_owned)),
        None => {}
    }
    answer.texts.extend(text_of(message, "refusal"));
    // vLLM says `reasoning`; older versions and other servers `reasoning_content`, some both with the same text.
    answer.reasoning.extend(text_of(message, "reasoning").or_else(|| text_of(message, "reasoning_content")));
    for call in message.get("tool_calls").map(Json::elements).unwrap_or_default() {
        let function = call.get("function").or_else(|| call.get("custom")).unwrap_or(call);
        answer.tool_calls.push(ToolCall { id: text_of(call, "id"), ..read_function(function) });
    }
    if let Some(function @ Json::Object(_)) = message.get("function_call") {
        answer.tool_calls.push(read_function(function));
    }
}

fn read_function(function: &Json<'_>) -> ToolCall {
    let arguments = match function.get("arguments").or_else(|| function.get("input")) {
        Some(Json::String(text)) => text.to_string(),
        // Not what the API says, but some servers send the object itself.
        Some(other) => other.to_string(),
        None => String::new(),
    };
    ToolCall { id: None, name: text_of(function, "name"), arguments }
}

fn index_of(value: &Json<'_>) -> Option<i64> {
    value.get("index").and_then(Json::as_i64)
}

/// Adds up the chunks of either API.
#[derive(Debug, Default)]
pub struct Chunks {
    head: Vec<(Cow<'static, str>, Json<'static>)>,
    choices: BTreeMap<i64, Choice>,
    usage: Option<Json<'static>>,
}

#[derive(Debug, Default)]
struct Choice {
    is_chat: bool,
    role: Option<String>,
    text: Option<String>,
    content: Option<String>,
    reasoning: Option<String>,
    reasoning_content: Option<String>,
    refusal: Option<String>,
    tool_calls: BTreeMap<i64, ToolCall>,
    function_call: Option<ToolCall>,
    logprobs: Vec<(String, Vec<Json<'static>>)>,
    rest: Vec<(Cow<'static, str>, Json<'static>)>,
}

/// A text of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    choice: i64,
    part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Text,
    Content,
    Reasoning,
    ReasoningContent,
    Refusal,
    /// The arguments of a tool call, by its index.
    Arguments(i64),
}

impl Merge for Chunks {
    type Place = Place;

    fn add(&mut self, chunk: &Json<'_>) {
        for (name, value) in chunk.members() {
            match name.as_ref() {
                "choices" => {
                    for choice in value.elements() {
                        self.choices.entry(index_of(choice).unwrap_or(0)).or_default().add(choice);
                    }
                }
                // With `continuous_usage_stats` every chunk has running counts: the last ones are the sum.
                "usage" if !matches!(value, Json::Null) => self.usage = Some(value.to_static()),
                "usage" | "error" => {}
                _ => set_once(&mut self.head, name, value),
            }
        }
    }

    fn piece<'e>(chunk: &'e Json<'_>) -> Option<(Place, &'e str)> {
        let mut only = None;
        for (name, value) in chunk.members() {
            match (name.as_ref(), value) {
                ("choices", _) => {
                    let [choice] = value.elements() else { return None };
                    let (part, text) = choice_piece(choice)?;
                    let place = Place { choice: index_of(choice).unwrap_or(0), part };
                    if only.replace((place, text)).is_some() {
                        return None;
                    }
                }
                // Running counts: the last ones win.
                ("usage", usage) if !matches!(usage, Json::Null) => return None,
                _ => {}
            }
        }
        only
    }

    fn add_piece(&mut self, place: &Place, piece: &str) {
        let choice = self.choices.entry(place.choice).or_default();
        let text = match place.part {
            Part::Text => &mut choice.text,
            Part::Content => &mut choice.content,
            Part::Reasoning => &mut choice.reasoning,
            Part::ReasoningContent => &mut choice.reasoning_content,
            Part::Refusal => &mut choice.refusal,
            Part::Arguments(index) => return choice.tool_calls.entry(index).or_default().arguments.push_str(piece),
        };
        text.get_or_insert_default().push_str(piece);
    }

    fn finish(mut self) -> Json<'static> {
        for (name, value) in &mut self.head {
            if let ("object", Json::String(object)) = (name.as_ref(), value) {
                *object = Cow::Owned(object.trim_end_matches(".chunk").to_owned());
            }
        }
        let choices = self.choices.into_iter().map(|(index, choice)| choice.finish(index)).collect();
        self.head.push((Cow::Borrowed("choices"), Json::Array(choices)));
        self.head.extend(self.usage.map(|usage| (Cow::Borrowed("usage"), usage)));
        Json::Object(self.head)
    }
}

/// The one text that [`Choice::add`] would append; `None` where it would do more than that, or do other things the second time.
fn choice_piece<'j>(choice: &'j Json<'_>) -> Option<(Part, &'j str)> {
    let mut only = None;
    for (name, value) in choice.members() {
        let piece = match (name.as_ref(), value) {
            ("index", _) => continue,
            ("delta", delta) => delta_piece(delta)?,
            ("text", Json::String(text)) => (Part::Text, text.as_ref()),
            ("text" | "logprobs" | "finish_reason" | "stop_reason", Json::Null) => continue,
            // Lists grow with every chunk.
            ("text" | "logprobs" | "finish_reason" | "stop_reason", _) | (_, Json::Array(_)) => return None,
            _ => continue,
        };
        if only.replace(piece).is_some() {
            return None;
        }
    }
    only
}

fn delta_piece<'j>(delta: &'j Json<'_>) -> Option<(Part, &'j str)> {
    let mut only = None;
    for (name, value) in delta.members() {
        let piece = match (name.as_ref(), value) {
            (_, Json::Null) => continue,
            ("content", text) => (Part::Content, text.as_str()?),
            ("reasoning", text) => (Part::Reasoning, text.as_str()?),
            ("reasoning_content", text) => (Part::ReasoningContent, text.as_str()?),
            ("refusal", text) => (Part::Refusal, text.as_str()?),
            ("tool_calls", calls) => {
                let [call] = calls.elements() else { return None };
                let mut functions = call.members().iter().filter(|(name, _)| name == "function");
                let (Some((_, function)), None) = (functions.next(), functions.next()) else { return None };
                let mut arguments = function.members().iter().filter(|(name, _)| name == "arguments");
                let (Some((_, text)), None) = (arguments.next(), arguments.next()) else { return None };
                (Part::Arguments(index_of(call).unwrap_or(0)), text.as_str()?)
            }
            ("function_call", _) => return None,
            _ => continue,
        };
        if only.replace(piece).is_some() {
            return None;
        }
    }
    only
}

/// Keeps the first value that is not null: chunks repeat their head.
fn set_once(members: &mut Vec<(Cow<'static, str>, Json<'static>)>, name: &str, value: &Json<'_>) {
    if !matches!(value, Json::Null) && !members.iter().any(|(known, _)| known == name) {
        members.push((Cow::Owned(name.to_owned()), value.to_static()));
    }
}

impl Choice {
    fn add(&mut self, choice: &Json<'_>) {
        for (name, value) in choice.members() {
            match name.as_ref() {
                "index" => {}
                "delta" => self.add_delta(value),
                "text" => append(&mut self.text, choice, "text"),
                "logprobs" => self.add_logprobs(value),
                "finish_reason" | "stop_reason" if !matches!(value, Json::Null) => {
                    self.rest.retain(|(known, _)| known != name);
                    set_once(&mut self.rest, name, value);
                }
                _ => match (self.rest.iter_mut().find(|(known, _)| known == name), value) {
                    (Some((_, Json::Array(known))), Json::Array(more)) => known.extend(more.iter().map(Json::to_static)),
                    _ => set_once(&mut self.rest, name, value),
                },
            }
        }
    }

    fn add_delta(&mut self, delta: &Json<'_>) {
        self.is_chat = true;
        for (name, value) in delta.members() {
            match name.as_ref() {
                "role" if self.role.is_none() => self.role = value.as_str().map(str::to_owned),
                "content" => append(&mut self.content, delta, "content"),
                "reasoning" => append(&mut self.reasoning, delta, "reasoning"),
                "reasoning_content" => append(&mut self.reasoning_content, delta, "reasoning_content"),
                "refusal" => append(&mut self.refusal, delta, "refusal"),
                "tool_calls" => {
                    for call in value.elements() {
                        let known = self.tool_calls.entry(index_of(call).unwrap_or(0)).or_default();
                        known.id = known.id.take().or_else(|| text_of(call, "id"));
                        add_function(known, call.get("function"));
                    }
                }
                "function_call" if !matches!(value, Json::Null) => {
                    add_function(self.function_call.get_or_insert_default(), Some(value));
                }
                _ => {}
            }
        }
    }

    fn add_logprobs(&mut self, logprobs: &Json<'_>) {
        for (name, values) in logprobs.members() {
            let more = values.elements().iter().map(Json::to_static);
            match self.logprobs.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => known.extend(more),
                None => self.logprobs.push((name.to_string(), more.collect())),
            }
        }
    }

    fn finish(self, index: i64) -> Json<'static> {
        let calls: Vec<_> = self
            .tool_calls
            .into_values()
            .map(|call| {
                let id = call.id.clone().map(string);
                object([("id", id), ("type", Some(Json::text("function"))), ("function", Some(function_json(call)))])
            })
            .collect();
        let message = self.is_chat.then(|| {
            object([
                ("role", self.role.map(string)),
                ("content", Some(self.content.map_or(Json::Null, string))),
                ("reasoning", self.reasoning.map(string)),
                ("reasoning_content", self.reasoning_content.map(string)),
                ("refusal", self.refusal.map(string)),
                ("tool_calls", (!calls.is_empty()).then_some(Json::Array(calls))),
                ("function_call", self.function_call.map(function_json)),
            ])
        });
        let logprobs = self.logprobs.into_iter().map(|(name, values)| (Cow::Owned(name), Json::Array(values)));
        let logprobs: Vec<_> = logprobs.collect();
        let mut choice = object([
            ("index", Some(Json::Number(Number::Signed(index)))),
            ("message", message),
            ("text", self.text.map(string)),
            ("logprobs", (!logprobs.is_empty()).then_some(Json::Object(logprobs))),
        ]);
        if let Json::Object(members) = &mut choice {
            members.extend(self.rest);
        }
        choice
    }
}

fn add_function(call: &mut ToolCall, function: Option<&Json<'_>>) {
    let Some(function) = function else { return };
    call.name = call.name.take().or_else(|| text_of(function, "name"));
    if let Some(piece) = function.get("arguments").and_then(Json::as_str) {
        call.arguments.push_str(piece);
    }
}

fn function_json(call: ToolCall) -> Json<'static> {
    object([("name", call.name.map(string)), ("arguments", Some(string(call.arguments)))])
}
