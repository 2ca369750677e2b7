//! The usage event of a stream: vLLM sends it when, and only when, the request asks for it. A recording made with the other
//! wish is changed accordingly, so that a gateway that edits the wish gets what a real server would give.

use serde_json::{Value, json};

use super::answer::{Answer, Chunk};

const DONE: &[u8] = b"data: [DONE]\n\n";

/// What an answer reports, streamed or not.
pub(super) fn of_answer(answer: &Answer) -> Option<Value> {
    if answer.is_event_stream() {
        return usage_position(&answer.chunks).and_then(|at| Some(event(&answer.chunks[at])?["usage"].take()));
    }
    let body: Value = serde_json::from_slice(&answer.chunks.first()?.data).ok()?;
    body.get("usage").filter(|usage| usage.is_object()).cloned()
}

/// Whether a request wants the event.
pub(super) fn is_wanted(body: &[u8]) -> Option<bool> {
    let body: Value = serde_json::from_slice(body).ok()?;
    Some(body["stream_options"]["include_usage"] == true)
}

/// Adds or takes out the event; `usage` gives the counts when they are needed. Streams that broke off stay as they are.
pub(super) fn adapt(answer: &mut Answer, wanted: bool, usage: impl FnOnce(&[Chunk]) -> Value) {
    let chunks = &mut answer.chunks;
    match (usage_position(chunks), wanted) {
        (None, true) => {
            let Some(done) = chunks.iter().rposition(|chunk| chunk.data.as_ref() == DONE).filter(|done| *done > 0) else {
                return;
            };
            let Some(last) = event(&chunks[done - 1]).filter(|last| last.get("choices").is_some()) else { return };
            let usage = usage(chunks);
            let fingerprint = last.get("system_fingerprint").cloned();
            // vLLM puts the fingerprint on the last event, whichever that is.
            if let Some(fingerprint) = &fingerprint {
                replace(&mut chunks[done - 1], &format!(r#","system_fingerprint":{fingerprint}}}"#), "}");
            }
            let text = String::from_utf8_lossy(&chunks[done - 1].data).into_owned();
            let (start, _) = text.split_once(r#""choices":"#).expect("choices");
            let tail = fingerprint.map(|fingerprint| format!(r#","system_fingerprint":{fingerprint}"#)).unwrap_or_default();
            let added = format!("{start}\"choices\":[],\"usage\":{}{tail}}}\n\n", in_vllm_order(&usage));
            chunks.insert(done, Chunk { at_ms: chunks[done].at_ms, data: added.into() });
        }
        (Some(at), false) if at > 0 => {
            let removed = chunks.remove(at);
            if let Some(fingerprint) = event(&removed).and_then(|event| event.get("system_fingerprint").cloned()) {
                replace(&mut chunks[at - 1], "}\n\n", &format!(",\"system_fingerprint\":{fingerprint}}}\n\n"));
            }
        }
        _ => {}
    }
}

/// Counts for a stream that nobody counted: events are no tokens, but the simulation has no tokenizer.
pub(super) fn counted(chunks: &[Chunk], request: &[u8]) -> Value {
    let completion = chunks.iter().filter_map(event).filter(has_text).count();
    let prompt = String::from_utf8_lossy(request).split_whitespace().count();
    json!({"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion})
}

fn has_text(event: &Value) -> bool {
    let choice = &event["choices"][0];
    let delta = &choice["delta"];
    [&delta["content"], &delta["reasoning"], &choice["text"]]
        .iter()
        .any(|text| text.as_str().is_some_and(|text| !text.is_empty()))
        || delta["tool_calls"].is_array()
}

fn in_vllm_order(usage: &Value) -> String {
    let (prompt, total, completion) = (&usage["prompt_tokens"], &usage["total_tokens"], &usage["completion_tokens"]);
    format!(r#"{{"prompt_tokens":{prompt},"total_tokens":{total},"completion_tokens":{completion}}}"#)
}

/// Where the event is, if there is one.
fn usage_position(chunks: &[Chunk]) -> Option<usize> {
    chunks.iter().rposition(|chunk| event(chunk).is_some_and(|event| is_usage_event(&event)))
}

fn is_usage_event(event: &Value) -> bool {
    event["usage"].is_object() && event["choices"].as_array().is_some_and(Vec::is_empty)
}

fn event(chunk: &Chunk) -> Option<Value> {
    serde_json::from_slice(chunk.data.strip_prefix(b"data: ")?).ok()
}

/// Replaces the last occurrence.
fn replace(chunk: &mut Chunk, from: &str, to: &str) {
    let text = String::from_utf8_lossy(&chunk.data).into_owned();
    let at = text.rfind(from).unwrap_or_else(|| panic!("no {from} in {text}"));
    chunk.data = format!("{}{to}{}", &text[..at], &text[at + from.len()..]).into();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vllm::recording::Recordings;

    fn text(answer: &Answer) -> String {
        answer.chunks.iter().map(|chunk| String::from_utf8_lossy(&chunk.data).into_owned()).collect()
    }

    #[test]
    fn a_stream_with_usage_added_has_the_shape_of_one_that_was_recorded_with_it() {
        let recordings = Recordings::read(&crate::fixtures::vllm());
        let mut answer = recordings.named("chat-en-stream").unwrap();
        let usage = recordings.usage(
            "POST",
            "/v1/chat/completions",
            br#"{"model":"qwen-tiny","messages":[{"role":"user","content":"What is an LLM gateway?"}],"temperature":0}"#,
        );
        adapt(&mut answer, true, |_| usage.unwrap());
        let like = text(&recordings.named("chat-en-stream-usage").unwrap());
        // Both were asked the same at temperature 0: they differ in id and time alone.
        let ids = |text: &str| {
            let (_, rest) = text.split_once(r#""id":""#).unwrap();
            let id = rest.split('"').next().unwrap().to_owned();
            let (_, rest) = text.split_once(r#""created":"#).unwrap();
            (id, rest.split(',').next().unwrap().to_owned())
        };
        let ((id, created), (like_id, like_created)) = (ids(&text(&answer)), ids(&like));
        assert_eq!(text(&answer), like.replace(&like_id, &id).replace(&like_created, &created));
    }

    #[test]
    fn adding_and_taking_out_are_each_others_opposite() {
        let recordings = Recordings::read(&crate::fixtures::vllm());
        for name in ["chat-en-stream", "completions-stream", "chat-zh-stream"] {
            let recorded = recordings.named(name).unwrap();
            let mut answer = recorded.clone();
            adapt(&mut answer, true, |chunks| counted(chunks, b"a b c"));
            assert_eq!(answer.chunks.len(), recorded.chunks.len() + 1, "{name}");
            assert!(of_answer(&answer).is_some(), "{name}");
            adapt(&mut answer, false, |_| unreachable!());
            assert_eq!(text(&answer), text(&recorded), "{name}");
        }
    }

    #[test]
    fn a_stream_that_ended_in_an_error_gets_no_usage() {
        let recordings = Recordings::read(&crate::fixtures::vllm());
        let recorded = recordings.named("engine-killed-mid-stream").unwrap();
        let mut answer = recorded.clone();
        adapt(&mut answer, true, |_| unreachable!());
        assert_eq!(answer.chunks, recorded.chunks);
    }
}
