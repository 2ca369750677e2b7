//! `/v1/chat/completions`, `/v1/completions` and transcriptions that are streamed: answers made of choices.

pub mod calls;
mod choice;

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::call::Usage;
use crate::decode::json::Json;

use super::answer::{Answer, MAX_NAMES, Members, is_blank, part_text, part_texts, says_nothing, set_once, text_of};
use super::stream::{Merge, Sent};
use super::unread::Pieces;
use super::usage;

use calls::list_of;
use choice::{Choice, Part, choice_piece};

/// Reads a completion object of either API.
pub fn read(completion: &Json<'_>) -> Answer {
    let mut choices: Vec<(i64, &Json<'_>)> = completion
        .get("choices")
        .map(list_of)
        .unwrap_or_default()
        .iter()
        .enumerate()
        .map(|(position, choice)| (index_of(choice).unwrap_or(position as i64), choice))
        .collect();
    choices.sort_by_key(|(index, _)| *index);
    let mut answer = Answer {
        model: text_of(completion, "model"),
        usage: usage_of(completion),
        finish_reason: choices.first().and_then(|(_, choice)| text_of(choice, "finish_reason")),
        is_finished: !choices.is_empty() && choices.iter().all(|(_, choice)| text_of(choice, "finish_reason").is_some()),
        ..Answer::default()
    };
    for (_, choice) in choices {
        let known = answer.texts.len();
        if let Some(message) = choice.get("message").or_else(|| choice.get("delta")) {
            read_message(message, &mut answer);
        }
        // Some servers send both forms, with the same text.
        let text = text_of(choice, "text");
        let is_said =
            |text: &String| answer.texts.get(known..).unwrap_or_default().iter().any(|said| said.contains(text.as_str()));
        answer.texts.extend(text.filter(|text| !is_said(text)));
    }
    answer
}

/// What a completion reports of its tokens: not all servers do so at the top.
fn usage_of(completion: &Json<'_>) -> Usage {
    let at_top = usage::read(completion.get("usage"));
    if at_top.prompt_tokens.is_some_and(|tokens| tokens > 0) {
        return at_top;
    }
    let mut known = None;
    keep_usage(&mut known, completion);
    usage::read(known.as_ref())
}

/// Takes the reports of a completion or a chunk into account.
fn keep_usage(known: &mut Option<Json<'static>>, completion: &Json<'_>) {
    let of_choices = completion.get("choices").map(list_of).unwrap_or_default().iter().filter_map(|choice| choice.get("usage"));
    completion.get("usage").into_iter().chain(of_choices).for_each(|report| usage::keep_larger(known, report));
}

/// The error inside a choice, where a proxy lost the server that was answering.
pub fn error_of<'j, 'a>(completion: &'j Json<'a>) -> Option<&'j Json<'a>> {
    completion.get("choices").map(list_of)?.iter().find_map(|choice| choice.get("error"))
}

/// What a part of a content says, and whether the model only thought it.
fn texts_of_part(part: &Json<'_>) -> (bool, Vec<String>) {
    if let Some(thinking) = part.get("thinking") {
        return (true, part_texts(thinking));
    }
    let is_thought = part.get("type").and_then(Json::as_str).is_some_and(|kind| kind.starts_with("reasoning"));
    (is_thought, part_text(part).into_iter().collect())
}

fn read_message(message: &Json<'_>, answer: &mut Answer) {
    let known = answer.texts.len();
    let mut thoughts = Vec::new();
    match message.get("content") {
        Some(Json::String(content)) => answer.texts.push(content.to_string()),
        content => {
            for (is_thought, texts) in content.map(list_of).unwrap_or_default().iter().map(texts_of_part) {
                if is_thought { thoughts.extend(texts) } else { answer.texts.extend(texts) }
            }
        }
    }
    answer.texts.extend(text_of(message, "refusal"));
    // A spoken answer says in `transcript` what the recording says.
    if answer.texts.get(known..).unwrap_or_default().iter().all(String::is_empty) {
        answer.texts.extend(message.get("audio").and_then(|audio| text_of(audio, "transcript")));
    }
    // vLLM says `reasoning`; older versions and other servers `reasoning_content`, some both with the same text.
    for text in ["reasoning", "reasoning_content"].iter().filter_map(|name| text_of(message, name)) {
        if !thoughts.iter().any(|thought: &String| thought.contains(&text)) {
            thoughts.push(text);
        }
    }
    answer.reasoning.extend(thoughts);
    answer.tool_calls.extend(message.get("tool_calls").map(list_of).unwrap_or_default().iter().map(calls::read));
    if let Some(function @ Json::Object(_)) = message.get("function_call").filter(|function| !says_nothing(function)) {
        answer.tool_calls.push(calls::read(function));
    }
}

fn index_of(value: &Json<'_>) -> Option<i64> {
    value.get("index").and_then(Json::as_i64)
}

/// Members of chunks that may differ from one to the next and say nothing of the answer.
const CHATTER: [&str; 6] = ["id", "created", "object", "model", "system_fingerprint", "obfuscation"];

/// Adds up the chunks of either API.
#[derive(Debug, Default)]
pub struct Chunks {
    head: Members,
    choices: BTreeMap<i64, Choice>,
    usage: Option<Json<'static>>,
}

/// A text of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    choice: i64,
    part: Part,
}

impl Merge for Chunks {
    type Place = Place;

    fn add(&mut self, chunk: &Sent<'_, '_>, unread: &mut Pieces) {
        if chunk.kind == "ping" {
            return;
        }
        keep_usage(&mut self.usage, chunk.data);
        for (name, value) in chunk.data.members() {
            match (name.as_ref(), value) {
                ("choices", Json::Array(_) | Json::Object(_)) => {
                    for (position, choice) in list_of(value).iter().enumerate() {
                        let index = index_of(choice).unwrap_or(position as i64);
                        self.choices.entry(index).or_default().add(choice, unread);
                    }
                }
                ("choices", Json::Null) | ("usage" | "error", _) => {}
                _ => keep_first(&mut self.head, name, value, unread),
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
                // Of several reports the largest counts.
                ("usage", usage) if !matches!(usage, Json::Null) => return None,
                _ => {}
            }
        }
        only
    }

    fn add_piece(&mut self, place: &Place, piece: &str) {
        self.choices.entry(place.choice).or_default().add_piece(place.part, piece);
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

/// Keeps the first value that says something; another one later is handed over, unless it is chatter.
fn keep_first(members: &mut Members, name: &str, value: &Json<'_>, unread: &mut Pieces) {
    if let Some((_, known)) = members.iter().find(|(known, _)| known == name)
        && !is_blank(known)
    {
        if !is_blank(value) && !CHATTER.contains(&name) && known != value {
            unread.member(name, value);
        }
        return;
    }
    if members.len() >= MAX_NAMES {
        return unread.member(name, value);
    }
    set_once(members, name, value);
}
