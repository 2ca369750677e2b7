//! Answers without a recording: a chat that echoes, and the pages of vLLM's operator.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::answer::{Answer, Chunk, End, Framing};

/// Stands where the time of sending goes, in microseconds since 1970: always as long as this.
pub(super) const STAMP: &str = "\"sent_at_us\":0000000000000000";

/// More of the prompt is not echoed.
const MAX_ECHO_CHARS: usize = 2000;

/// Pages that a gateway must keep closed. Every one of them answers, so that a test sees when it does not.
const OPERATOR_PAGES: [&str; 16] = [
    "/metrics",
    "/health",
    "/load",
    "/ping",
    "/version",
    "/pause",
    "/resume",
    "/is_paused",
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/collective_rpc",
    "/server_info",
    "/invocations",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
];

/// The answer to a call that nobody recorded.
pub(super) fn answer(method: &str, path: &str, body: &[u8], repeat: usize, stamp: bool) -> Answer {
    match (method, path) {
        ("POST", "/v1/chat/completions") => chat(body, repeat, stamp),
        (_, path) if OPERATOR_PAGES.contains(&path) => {
            Answer::json(200, &json!({"reached": path, "note": "no client of a gateway may see this"}))
        }
        _ => Answer::json(404, &json!({"detail": "Not Found"})),
    }
}

fn chat(body: &[u8], repeat: usize, stamp: bool) -> Answer {
    let body: Value = match serde_json::from_slice(body) {
        Ok(body) => body,
        Err(error) => return Answer::error(400, &format!("the body is no JSON: {error}")),
    };
    let Some(prompt) = last_user_text(&body) else { return Answer::error(400, "no message of a user") };
    let echo: String = prompt.chars().take(MAX_ECHO_CHARS).collect();
    let words = words(&echo);
    let model = body["model"].as_str().unwrap_or("simulated");
    let prompt_tokens = prompt.split_whitespace().count();
    if body["stream"] == true {
        return chat_stream(model, &words, prompt_tokens, repeat, stamp, body["stream_options"]["include_usage"] == true);
    }
    let completion_tokens = words.len() * repeat;
    Answer::json(
        200,
        &json!({
            "id": new_id(), "object": "chat.completion", "created": seconds(), "model": model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": echo.repeat(repeat), "refusal": null,
                "tool_calls": [], "reasoning": null}, "logprobs": null, "finish_reason": "stop", "stop_reason": null}],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens},
        }),
    )
}

/// One event a word, as an engine that needs 20 ms a token would send it.
fn chat_stream(model: &str, words: &[&str], prompt_tokens: usize, repeat: usize, stamp: bool, usage: bool) -> Answer {
    let start = format!(
        r#"data: {{"id":"{}","object":"chat.completion.chunk","created":{},"model":{}"#,
        new_id(),
        seconds(),
        json!(model)
    );
    let stamp = if stamp { format!(",{STAMP}") } else { String::new() };
    let event = |choice: &str| format!("{start}{stamp},\"choices\":[{choice}]}}\n\n");
    let delta = |delta: Value| format!(r#"{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":null,"token_ids":null}}"#);
    let mut events = vec![event(&delta(json!({"role": "assistant", "content": ""})))];
    for word in words.iter().cycle().take(words.len() * repeat) {
        events.push(event(&delta(json!({"content": word}))));
    }
    events.push(event(r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":null}"#));
    if usage {
        let completion = words.len() * repeat;
        let total = prompt_tokens + completion;
        events.push(format!(
            "{start},\"choices\":[],\"usage\":{{\"prompt_tokens\":{prompt_tokens},\"total_tokens\":{total},\
             \"completion_tokens\":{completion}}}}}\n\n"
        ));
    }
    events.push("data: [DONE]\n\n".to_owned());
    let chunks =
        events.into_iter().enumerate().map(|(n, event)| Chunk { at_ms: 30.0 + 20.0 * n as f64, data: event.into() }).collect();
    let mut answer = Answer::text(200, "text/event-stream; charset=utf-8", "");
    answer.framing = Framing::Chunked;
    answer.chunks = chunks;
    answer.end = End::Complete;
    answer
}

fn last_user_text(body: &Value) -> Option<String> {
    let messages = body["messages"].as_array()?;
    let content = &messages.iter().rev().find(|message| message["role"] == "user")?["content"];
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => Some(parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n")),
        _ => None,
    }
}

/// Words with the blanks before them, so that they add up to the text; an empty text is one empty word.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut start = 0;
    let mut in_word = false;
    for (at, c) in text.char_indices() {
        if c.is_whitespace() && in_word {
            words.push(&text[start..at]);
            start = at;
        }
        in_word = !c.is_whitespace();
    }
    words.push(&text[start..]);
    words
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn new_id() -> String {
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    format!("chatcmpl-simulated-{:016x}", nanoseconds as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_add_up_to_the_text() {
        for text in ["", "one", " one  two\nthree ", "网关 检查"] {
            assert_eq!(words(text).concat(), text);
        }
        assert_eq!(words("one two"), ["one", " two"]);
    }
}
