//! One choice of a stream.

use std::borrow::Cow;

use crate::decode::json::Json;

use super::super::answer::{MAX_NAMES, Members, append, is_blank, object, string};
use super::super::unread::Pieces;
use super::calls::{Call, Calls, list_of};
use super::{keep_first, texts_of_part};

/// A choice so far.
#[derive(Debug, Default)]
pub(super) struct Choice {
    is_chat: bool,
    /// A delta brought text: a whole message beside it repeats it.
    has_deltas: bool,
    /// Bytes that were searched for what messages beside deltas repeat.
    searched: usize,
    role: Option<String>,
    text: Option<String>,
    content: Option<String>,
    reasoning: Option<String>,
    reasoning_content: Option<String>,
    refusal: Option<String>,
    calls: Calls,
    function_call: Option<Call>,
    audio: Members,
    logprobs: Vec<(String, Vec<Json<'static>>)>,
    rest: Members,
}

/// A text of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Of a completion.
    Text,
    /// Of a message.
    Content,
    /// vLLM's name for what the model thought.
    Reasoning,
    /// The other name.
    ReasoningContent,
    /// What the model said instead of an answer.
    Refusal,
    /// The arguments of a tool call, by its index.
    Arguments(Option<i64>),
}

/// Bytes of a choice that are searched at most for what messages beside its deltas repeat. They repeat all of it or what came last,
/// which is found at once; a stream of messages that repeat nothing must not cost the square of its length.
const MAX_SEARCHED: usize = 1 << 20;

/// Whether `new` stands in what is known. What is not looked for any more does not.
fn repeats(known: &str, new: &str, searched: &mut usize) -> bool {
    if known.starts_with(new) {
        return true;
    }
    if *searched > MAX_SEARCHED {
        return known.ends_with(new);
    }
    let found = known.rfind(new);
    *searched += known.len() - found.unwrap_or_default();
    found.is_some()
}

/// The one text that [`Choice::add`] would append; `None` where it would do more than that, or do other things the second time.
pub(super) fn choice_piece<'j>(choice: &'j Json<'_>) -> Option<(Part, &'j str)> {
    let mut only = None;
    for (name, value) in choice.members() {
        let piece = match (name.as_ref(), value) {
            ("index", _) => continue,
            ("delta", delta) => delta_piece(delta)?,
            ("text", Json::String(text)) => (Part::Text, text.as_ref()),
            ("text" | "logprobs" | "finish_reason" | "stop_reason" | "message" | "usage", Json::Null) => continue,
            // Lists grow with every chunk.
            ("text" | "logprobs" | "finish_reason" | "stop_reason" | "message" | "usage", _) | (_, Json::Array(_)) => {
                return None;
            }
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
                call_piece(call)?
            }
            ("function_call" | "audio", _) => return None,
            _ => continue,
        };
        if only.replace(piece).is_some() {
            return None;
        }
    }
    only
}

/// Arguments alone: an id or a name decides to which call they belong.
fn call_piece<'j>(call: &'j Json<'_>) -> Option<(Part, &'j str)> {
    let mut arguments = None;
    let mut index = None;
    for (name, value) in call.members() {
        match (name.as_ref(), value) {
            (_, Json::Null) => {}
            ("index", number) => index = Some(number.as_i64()?),
            ("type", kind) if kind.as_str() == Some("function") => {}
            ("function", function) => {
                for (name, value) in function.members() {
                    match (name.as_ref(), value) {
                        (_, Json::Null) => {}
                        ("arguments", Json::String(text)) if arguments.is_none() => arguments = Some(text.as_ref()),
                        _ => return None,
                    }
                }
            }
            _ => return None,
        }
    }
    Some((Part::Arguments(index), arguments?))
}

impl Choice {
    /// Takes a chunk's choice into account.
    pub(super) fn add(&mut self, choice: &Json<'_>, unread: &mut Pieces) {
        for (name, value) in choice.members() {
            match name.as_ref() {
                "index" | "usage" => {}
                "delta" => self.add_delta(value, unread),
                "message" => self.add_message(value, unread),
                "text" => append(&mut self.text, choice, "text"),
                "logprobs" => self.add_logprobs(value),
                "finish_reason" | "stop_reason" => {
                    if !is_blank(value) {
                        self.rest.retain(|(known, _)| known != name);
                        self.rest.push((Cow::Owned(name.to_string()), value.to_static()));
                    }
                }
                _ => match (self.rest.iter_mut().find(|(known, _)| known == name), value) {
                    (Some((_, Json::Array(known))), Json::Array(more)) => known.extend(more.iter().map(Json::to_static)),
                    _ => keep_first(&mut self.rest, name, value, unread),
                },
            }
        }
    }

    /// Appends a piece of text.
    pub(super) fn add_piece(&mut self, part: Part, piece: &str) {
        if part != Part::Text {
            self.is_chat = true;
            self.has_deltas |= !piece.is_empty();
        }
        let text = match part {
            Part::Text => &mut self.text,
            Part::Content => &mut self.content,
            Part::Reasoning => &mut self.reasoning,
            Part::ReasoningContent => &mut self.reasoning_content,
            Part::Refusal => &mut self.refusal,
            Part::Arguments(index) => return self.calls.add_arguments(index, piece),
        };
        text.get_or_insert_default().push_str(piece);
    }

    fn add_delta(&mut self, delta: &Json<'_>, unread: &mut Pieces) {
        match delta {
            Json::Null => return,
            // Text without an object around it.
            Json::String(text) => return self.add_piece(Part::Content, text),
            _ => self.is_chat = true,
        }
        for (name, value) in delta.members() {
            match (name.as_ref(), value) {
                (_, Json::Null) => {}
                ("role", role) => self.role = self.role.take().or_else(|| role.as_str().map(str::to_owned)),
                ("content", Json::String(text)) => self.add_piece(Part::Content, text),
                ("content", Json::Array(_) | Json::Object(_)) => {
                    list_of(value).iter().for_each(|part| self.add_part(part, unread));
                }
                ("reasoning", Json::String(text)) => self.add_piece(Part::Reasoning, text),
                ("reasoning_content", Json::String(text)) => self.add_piece(Part::ReasoningContent, text),
                ("refusal", Json::String(text)) => self.add_piece(Part::Refusal, text),
                ("tool_calls", calls) => self.add_calls(calls, unread),
                ("function_call", function) => self.function_call.get_or_insert_default().add_function(function),
                ("audio", audio) => self.add_audio(audio),
                _ => unread.member(name, value),
            }
        }
    }

    fn add_calls(&mut self, calls: &Json<'_>, unread: &mut Pieces) {
        self.has_deltas = true;
        self.calls.add(calls, unread);
    }

    /// A part of a content that is a list.
    fn add_part(&mut self, part: &Json<'_>, unread: &mut Pieces) {
        let (is_thought, texts) = texts_of_part(part);
        let place = if is_thought { Part::Reasoning } else { Part::Content };
        if texts.is_empty() {
            // An empty text is none, and no riddle either.
            if part.get("text").is_none() && part.get("thinking").is_none() {
                unread.member("content", part);
            }
            return;
        }
        texts.iter().for_each(|text| self.add_piece(place, text));
    }

    /// A message beside the deltas (it repeats them) or in their place (it grows, or is a piece like a delta).
    fn add_message(&mut self, message: &Json<'_>, unread: &mut Pieces) {
        if !matches!(message, Json::Object(_)) {
            return;
        }
        self.is_chat = true;
        let has_deltas = self.has_deltas;
        for (name, value) in message.members() {
            let whole = match (name.as_ref(), value) {
                ("content", Json::Array(_) | Json::Object(_)) => self.content_of_parts(value, unread),
                _ => value.as_str().map(Cow::Borrowed),
            };
            let text = match (name.as_ref(), value) {
                (_, Json::Null) => continue,
                ("role", role) => {
                    self.role = self.role.take().or_else(|| role.as_str().map(str::to_owned));
                    continue;
                }
                ("tool_calls", calls) => {
                    // Without deltas each message has all calls so far.
                    if !has_deltas || self.calls.is_empty() {
                        self.calls = Calls::default();
                        self.calls.add(calls, unread);
                    }
                    continue;
                }
                ("content", _) if whole.is_some() => &mut self.content,
                ("reasoning", Json::String(_)) => &mut self.reasoning,
                ("reasoning_content", Json::String(_)) => &mut self.reasoning_content,
                ("refusal", Json::String(_)) => &mut self.refusal,
                _ => {
                    unread.member(name, value);
                    continue;
                }
            };
            let (known, new) = (text.get_or_insert_default(), whole.unwrap_or_default());
            if new.starts_with(known.as_str()) {
                *known = new.into_owned();
            } else if !has_deltas {
                known.push_str(&new);
            } else if !repeats(known, &new, &mut self.searched) {
                unread.member(name, value);
            }
        }
    }

    /// The text of a message whose content is a list of parts. Thoughts among them, and what is no text, are taken into account.
    fn content_of_parts(&mut self, content: &Json<'_>, unread: &mut Pieces) -> Option<Cow<'static, str>> {
        let mut text = None;
        let has_deltas = self.has_deltas;
        for part in list_of(content) {
            match texts_of_part(part) {
                (false, texts) if !texts.is_empty() => text.get_or_insert_with(String::new).extend(texts),
                // Thoughts are added as pieces, unless a delta has said them.
                _ if !has_deltas => self.add_part(part, unread),
                _ => {}
            }
        }
        self.has_deltas = has_deltas;
        text.map(Cow::Owned)
    }

    /// A spoken answer: recording and transcript come in pieces.
    fn add_audio(&mut self, audio: &Json<'_>) {
        for (name, value) in audio.members() {
            let is_full = self.audio.len() >= MAX_NAMES;
            let known = self.audio.iter_mut().find(|(known, _)| known == name).map(|(_, known)| known);
            match (name.as_ref(), known, value) {
                (_, _, Json::Null) => {}
                ("data" | "transcript", Some(Json::String(known)), Json::String(piece)) => known.to_mut().push_str(piece),
                (_, Some(known), value) => *known = value.to_static(),
                (_, None, _) if is_full => {}
                (_, None, value) => self.audio.push((Cow::Owned(name.to_string()), value.to_static())),
            }
        }
    }

    fn add_logprobs(&mut self, logprobs: &Json<'_>) {
        for (name, values) in logprobs.members() {
            let more = values.elements().iter().map(Json::to_static);
            let is_full = self.logprobs.len() >= MAX_NAMES;
            match self.logprobs.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => known.extend(more),
                None if is_full => {}
                None => self.logprobs.push((name.to_string(), more.collect())),
            }
        }
    }

    /// The choice as an answer that is no stream has it.
    pub(super) fn finish(self, index: i64) -> Json<'static> {
        let message = self.is_chat.then(|| {
            object([
                ("role", self.role.map(string)),
                ("content", Some(self.content.map_or(Json::Null, string))),
                ("reasoning", self.reasoning.map(string)),
                ("reasoning_content", self.reasoning_content.map(string)),
                ("refusal", self.refusal.map(string)),
                ("tool_calls", self.calls.finish()),
                ("function_call", self.function_call.filter(|call| !call.is_empty()).map(Call::finish_function)),
                ("audio", (!self.audio.is_empty()).then_some(Json::Object(self.audio))),
            ])
        });
        let logprobs = self.logprobs.into_iter().map(|(name, values)| (Cow::Owned(name), Json::Array(values)));
        let logprobs: Vec<_> = logprobs.collect();
        let mut choice = object([
            ("index", Some(Json::integer(index))),
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
