//! Which earlier call a call continues: its messages begin with that call's messages and answer.
//!
//! Invariant: two calls are only ever tied by a hash over the person and everything that was said before, so that nothing else can tie
//! them. What clients change when they send something again does not count: marks for caches, thoughts that they leave out, a text as a
//! string or as a list with one part, blanks between the members of arguments. What is said and by whom, calls of tools with their
//! arguments, results and pictures do. Instructions beside the messages (`system`, `instructions`) are none of them.

use std::collections::VecDeque;

use sha2::{Digest, Sha256};

use super::api::Api;
use crate::decode::json::Json;

/// How far back a call looks for one that it continues: so many of its answers may be missing.
const MAX_LOOKS: usize = 4;

/// Half of a SHA-256: enough among the calls of one person.
pub type Turn = [u8; 16];

/// Where in conversations a call stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turns {
    /// What a call has to continue to follow this one: all messages and the answer; also the identity of a stored response. None where there
    /// was no answer.
    pub ends: Vec<Turn>,
    /// What this call may continue, the longest first.
    pub continues: Vec<Turn>,
}

/// Reads the turns of a call of `person`.
pub fn turns(person: &str, api: Api, request: Option<&Json<'_>>, answer: Option<&Json<'_>>) -> Turns {
    let Some(request) = request else { return Turns::default() };
    let messages = match api {
        Api::Chat | Api::Messages => request.get("messages"),
        Api::Responses => request.get("input"),
        _ => None,
    };
    let Some(messages) = messages else { return Turns::default() };
    let mut said = Said::by(person);
    let mut looks: VecDeque<Turn> = VecDeque::new();
    match messages {
        Json::String(text) => said.feed_text("user", text),
        messages => {
            let mut was_models = false;
            for message in messages.elements() {
                let Some(who) = who(message) else { continue };
                // What the model says may be several items.
                if was_models && who != "assistant" {
                    note(&mut looks, said.turn());
                }
                was_models = who == "assistant";
                said.feed(who, message);
            }
            if was_models {
                note(&mut looks, said.turn());
            }
        }
    }
    let by_id = |id: &str| Said::by(person).with_id(id);
    let mut turns = Turns { ends: Vec::new(), continues: looks.into_iter().rev().collect() };
    if let Some(id) = request.get("previous_response_id").and_then(Json::as_str) {
        turns.continues.insert(0, by_id(id));
        said.feed_text("response", id);
    }
    let Some(answer) = answer else { return turns };
    match api {
        Api::Chat => match answer.get("choices").and_then(|choices| choices.elements().first()?.get("message")) {
            Some(message) => said.feed("assistant", message),
            None => return turns,
        },
        Api::Messages => said.feed("assistant", answer),
        _ => {
            for item in answer.get("output").map(Json::elements).unwrap_or_default() {
                if let Some(who) = who(item) {
                    said.feed(who, item);
                }
            }
            turns.ends.extend(answer.get("id").and_then(Json::as_str).map(by_id));
        }
    }
    turns.ends.push(said.turn());
    turns
}

fn note(looks: &mut VecDeque<Turn>, turn: Turn) {
    if looks.len() == MAX_LOOKS {
        looks.pop_front();
    }
    looks.push_back(turn);
}

/// Who says a message or item; `None` of thoughts, which clients may leave out.
fn who<'j>(message: &'j Json<'_>) -> Option<&'j str> {
    match message.get("type").and_then(Json::as_str) {
        Some("reasoning") => None,
        Some(kind) if kind.ends_with("_call") => Some("assistant"),
        kind => message.get("role").and_then(Json::as_str).or(kind).or(Some("")),
    }
}

/// What was said so far.
#[derive(Clone)]
struct Said(Sha256);

impl Said {
    fn by(person: &str) -> Self {
        let mut said = Self(Sha256::new());
        said.add("person", person);
        said
    }

    fn turn(&self) -> Turn {
        let hash: [u8; 32] = self.0.clone().finalize().into();
        let mut turn = Turn::default();
        turn.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        turn
    }

    fn with_id(mut self, id: &str) -> Turn {
        self.add("id", id);
        self.turn()
    }

    /// Adds a text in such a way that no other texts add up to the same.
    fn add(&mut self, kind: &str, text: &str) {
        for text in [kind, text] {
            self.0.update((text.len() as u64).to_le_bytes());
            self.0.update(text.as_bytes());
        }
    }

    fn feed_text(&mut self, who: &str, text: &str) {
        self.add("who", who);
        self.add("text", text);
    }

    /// Adds a message, or an item of the Responses API.
    fn feed(&mut self, who: &str, message: &Json<'_>) {
        self.add("who", who);
        if let Some(text) = message.get("content").and_then(text_of_parts) {
            self.add("text", &text);
        }
        for part in message.get("content").map(Json::elements).unwrap_or_default() {
            self.feed_part(part);
        }
        for call in message.get("tool_calls").map(Json::elements).unwrap_or_default() {
            if let Some(function) = call.get("function") {
                self.feed_call(function, "arguments");
            }
        }
        match message.get("type").and_then(Json::as_str) {
            Some("function_call") => self.feed_call(message, "arguments"),
            Some("message" | "text") | None => {}
            // Results, and what servers do themselves.
            Some(_) if message.get("content").is_none() => self.feed_value("item", message),
            Some(_) => {}
        }
        if let Some(id) = message.get("tool_call_id").and_then(Json::as_str) {
            self.add("result of", id);
        }
    }

    /// Adds a part of a content that is no text.
    fn feed_part(&mut self, part: &Json<'_>) {
        match part.get("type").and_then(Json::as_str) {
            Some("tool_use") => self.feed_call(part, "input"),
            Some("thinking" | "redacted_thinking") => {}
            _ if text_of(part).is_some() => {}
            _ => self.feed_value("part", part),
        }
    }

    fn feed_call(&mut self, call: &Json<'_>, arguments: &str) {
        self.add("call", call.get("name").and_then(Json::as_str).unwrap_or_default());
        match call.get(arguments) {
            Some(Json::String(text)) => match Json::parse(text) {
                Ok(json) => self.feed_value("arguments", &json),
                Err(_) => self.add("arguments", text),
            },
            Some(json) => self.feed_value("arguments", json),
            None => {}
        }
    }

    /// Adds a value without marks for caches.
    fn feed_value(&mut self, kind: &str, value: &Json<'_>) {
        match value {
            Json::Object(members) => {
                self.add(kind, "{");
                for (name, value) in
                    members.iter().filter(|(name, _)| !matches!(name.as_ref(), "cache_control" | "id" | "status"))
                {
                    self.feed_value(name, value);
                }
                self.add("", "}");
            }
            Json::Array(elements) => {
                self.add(kind, "[");
                elements.iter().for_each(|element| self.feed_value("", element));
                self.add("", "]");
            }
            Json::String(text) => self.add(kind, text),
            Json::Raw(text) => match Json::parse(text) {
                Ok(json) => self.feed_value(kind, &json),
                Err(_) => self.add(kind, text),
            },
            other => self.add(kind, &other.to_string()),
        }
    }
}

/// The texts of a content together; `None` where there is none.
fn text_of_parts(content: &Json<'_>) -> Option<String> {
    match content {
        Json::String(text) => (!text.is_empty()).then(|| text.to_string()),
        Json::Array(parts) => {
            let text: String = parts.iter().filter_map(text_of).collect();
            (!text.is_empty()).then_some(text)
        }
        _ => None,
    }
}

/// The text of a part that is one.
fn text_of<'j>(part: &'j Json<'_>) -> Option<&'j str> {
    match part {
        Json::String(text) => Some(text),
        part => match part.get("type").and_then(Json::as_str) {
            None | Some("text" | "input_text" | "output_text") => part.get("text").and_then(Json::as_str),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(api: Api, request: &str, answer: &str) -> Turns {
        turns("ann", api, Json::parse(request).ok().as_ref(), Json::parse(answer).ok().as_ref())
    }

    /// Whether `later` continues `earlier`.
    fn follows(api: Api, earlier: (&str, &str), later: &str) -> bool {
        let ends = of(api, earlier.0, earlier.1).ends;
        of(api, later, "").continues.iter().any(|turn| ends.contains(turn))
    }

    const ASKED: &str = r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"q"}]}"#;
    const ANSWERED: &str = r#"{"choices":[{"message":{"role":"assistant","content":"a","reasoning_content":"hm","tool_calls":[
        {"id":"t","type":"function","function":{"name":"f","arguments":"{\"x\": 1}"}}]}}]}"#;

    #[test]
    fn a_call_with_all_that_was_said_follows() {
        let with = |message: &str, more: &str| {
            let later = format!(
                r#"{{"messages":[{{"role":"system","content":"s"}},{{"role":"user","content":[{{"type":"text","text":"q",
                "cache_control":{{"type":"ephemeral"}}}}]}},{message}{more}]}}"#
            );
            follows(Api::Chat, (ASKED, ANSWERED), &later)
        };
        let sent =
            r#"{"role":"assistant","content":"a","tool_calls":[{"id":"t","function":{"name":"f","arguments":"{\"x\":1}"}}]}"#;
        assert!(
            with(sent, "") && with(sent, r#",{"role":"tool","tool_call_id":"t","content":"r"},{"role":"user","content":"z"}"#)
        );
        // Answers that were lost in between.
        let lost = r#",{"role":"user","content":"1"},{"role":"assistant","content":"2"},{"role":"user","content":"3"}"#;
        assert!(with(sent, lost));
        for other in [
            sent.replace("\"a\"", "\"b\""),
            sent.replace(":1}", ":2}"),
            sent.replace("\"f\"", "\"g\""),
            sent.replace("assistant", "user"),
            r#"{"role":"assistant","content":"a"}"#.to_owned(),
        ] {
            assert!(!with(&other, ""), "{other}");
        }
    }

    #[test]
    fn nothing_but_everything_said_before_ties_calls_together() {
        let later =
            r#"{"messages":[{"role":"system","content":"S"},{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;
        let answer = r#"{"choices":[{"message":{"content":"a"}}]}"#;
        assert!(!follows(Api::Chat, (ASKED, answer), later), "another system message");
        assert!(follows(Api::Chat, (&ASKED.replace("\"s\"", "\"S\""), answer), later));
        let ends = turns(
            "bob",
            Api::Chat,
            Json::parse(&ASKED.replace("\"s\"", "\"S\"")).ok().as_ref(),
            Json::parse(answer).ok().as_ref(),
        )
        .ends;
        assert!(of(Api::Chat, later, "").continues.iter().all(|turn| !ends.contains(turn)), "somebody else");
        assert_eq!(of(Api::Chat, later, r#"{"error":{"message":"m"}}"#).ends, [] as [Turn; 0]);
        assert_eq!(of(Api::Embeddings, r#"{"input":"q"}"#, "{}"), Turns::default());
    }

    #[test]
    fn messages_of_the_anthropic_api_follow_without_thoughts_and_marks() {
        let asked = r#"{"system":"today","messages":[{"role":"user","content":"q"}]}"#;
        let answered = r#"{"role":"assistant","content":[{"type":"thinking","thinking":"hm"},{"type":"text","text":"a"},
            {"type":"tool_use","id":"t","name":"f","input":{"x":1}}]}"#;
        let later = r#"{"system":"tomorrow","messages":[{"role":"user","content":"q"},{"role":"assistant","content":[{"type":"text","text":"a"},
            {"type":"tool_use","id":"t","name":"f","input":{"x": 1},"cache_control":{"type":"ephemeral"}}]},
            {"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":"r"}]}]}"#;
        assert!(follows(Api::Messages, (asked, answered), later));
        assert!(!follows(Api::Messages, (asked, answered), &later.replace("\"x\": 1", "\"x\": 2")));
    }

    #[test]
    fn responses_follow_by_identity_and_by_what_was_said() {
        let asked = r#"{"input":"q"}"#;
        let answered = r#"{"id":"resp_1","output":[{"type":"reasoning","id":"r","summary":[]},{"type":"message","role":"assistant","id":"m",
            "content":[{"type":"output_text","text":"a","annotations":[]}]},{"type":"function_call","id":"c","call_id":"t","name":"f","arguments":"{}"}]}"#;
        assert!(follows(Api::Responses, (asked, answered), r#"{"input":"z","previous_response_id":"resp_1"}"#));
        assert!(!follows(Api::Responses, (asked, answered), r#"{"input":"z","previous_response_id":"resp_2"}"#));
        let later = r#"{"input":[{"role":"user","content":"q"},{"type":"message","role":"assistant","content":[{"type":"output_text","text":"a"}]},
            {"type":"function_call","call_id":"t","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"t","output":"r"}]}"#;
        assert!(follows(Api::Responses, (asked, answered), later));
        assert!(!follows(Api::Responses, (asked, answered), &later.replace("\"a\"", "\"b\"")));
    }

    #[test]
    fn only_the_last_answers_are_looked_for() {
        let messages: Vec<String> = (0..50)
            .map(|n| format!(r#"{{"role":"{}","content":"{n}"}}"#, if n % 2 == 0 { "user" } else { "assistant" }))
            .collect();
        let request = format!(r#"{{"messages":[{}]}}"#, messages.join(","));
        let seen = of(Api::Chat, &request, "");
        assert_eq!(seen.continues.len(), MAX_LOOKS);
        // The longest first: all but the last two messages are what the second one means.
        let shorter = format!(r#"{{"messages":[{}]}}"#, messages[..48].join(","));
        assert_eq!(of(Api::Chat, &shorter, "").continues[0], seen.continues[1]);
    }
}
