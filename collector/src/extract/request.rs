//! What was asked: the prompt in a request body.

use crate::decode::json::Json;

use super::api::Api;

/// The prompt of a request whose body is JSON; `None` where there is no text.
pub fn prompt(api: Api, body: &Json<'_>) -> Option<String> {
    let prompt = match api {
        Api::Chat | Api::Messages | Api::CountTokens => last_user_text(body.get("messages")?),
        Api::Completions => texts(body.get("prompt")?),
        Api::Responses => match body.get("input")? {
            Json::String(text) => Some(text.to_string()),
            items => last_user_text(items),
        },
        Api::Embeddings | Api::Pooling | Api::Classify => {
            body.get("input").and_then(texts).or_else(|| last_user_text(body.get("messages")?))
        }
        Api::Rerank => texts(body.get("query")?),
        Api::Score => ["text_1", "data_1", "queries"].iter().find_map(|name| texts(body.get(name)?)),
        Api::Tokenize => body.get("prompt").and_then(texts).or_else(|| last_user_text(body.get("messages")?)),
        Api::Detokenize | Api::Models | Api::Other => None,
    };
    prompt.filter(|prompt| !prompt.is_empty())
}

/// A string, or the strings of a list joined by a line break; token ids are no text.
fn texts(value: &Json<'_>) -> Option<String> {
    match value {
        Json::String(text) => Some(text.to_string()),
        Json::Array(elements) => {
            let texts: Vec<&str> = elements.iter().filter_map(Json::as_str).collect();
            (!texts.is_empty()).then(|| texts.join("\n"))
        }
        _ => None,
    }
}

/// The text of the last message with role user that has content other than tool results.
fn last_user_text(messages: &Json<'_>) -> Option<String> {
    let of_user = |message: &&Json<'_>| message.get("role").and_then(Json::as_str) == Some("user");
    messages.elements().iter().rev().filter(of_user).find_map(|message| content_text(message.get("content")?))
}

/// The text of a message's content: a string, or its parts joined by a line break, where `[image]`, `[audio]` and `[file]`
/// stand for what is no text. `None` when there is nothing but tool results.
fn content_text(content: &Json<'_>) -> Option<String> {
    match content {
        Json::String(text) => (!text.is_empty()).then(|| text.to_string()),
        Json::Array(parts) => {
            let texts: Vec<&str> = parts.iter().filter_map(part_text).collect();
            (!texts.is_empty()).then(|| texts.join("\n"))
        }
        _ => None,
    }
}

fn part_text<'j>(part: &'j Json<'_>) -> Option<&'j str> {
    if let Json::String(text) = part {
        return Some(text);
    }
    let kind = part.get("type").and_then(Json::as_str).unwrap_or("text");
    match kind {
        "text" | "input_text" | "output_text" => part.get("text").and_then(Json::as_str),
        "tool_result" => None,
        _ if kind.contains("image") => Some("[image]"),
        _ if kind.contains("audio") => Some("[audio]"),
        _ => Some("[file]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(api: Api, body: &str) -> Option<String> {
        prompt(api, &Json::parse(body).unwrap())
    }

    #[test]
    fn the_last_user_message_with_content_counts() {
        let body = r#"{"messages":[{"role":"user","content":"one"},{"role":"user","content":"two"},{"role":"assistant","content":"x"},
            {"role":"user","content":[{"type":"tool_result","content":"22 C"}]},{"role":"user","content":""}]}"#;
        assert_eq!(of(Api::Messages, body).as_deref(), Some("two"));
        assert_eq!(of(Api::Chat, r#"{"messages":[{"role":"system","content":"x"}]}"#), None);
    }

    #[test]
    fn parts_are_joined_and_what_is_no_text_is_named() {
        let body = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"x"}},
            {"type":"input_audio","input_audio":{}},{"type":"document"},{"type":"tool_result"},{"type":"text","text":"b"}]}]}"#;
        assert_eq!(of(Api::Chat, body).as_deref(), Some("a\n[image]\n[audio]\n[file]\nb"));
        let body = r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"q"},{"type":"input_image"}]},
            {"type":"function_call_output","output":"r"}]}"#;
        assert_eq!(of(Api::Responses, body).as_deref(), Some("q\n[image]"));
    }

    #[test]
    fn input_text_is_found_where_an_api_has_it() {
        for (api, body, prompt) in [
            (Api::Completions, r#"{"prompt":["a","b"]}"#, Some("a\nb")),
            (Api::Completions, r#"{"prompt":[1,2]}"#, None),
            (Api::Completions, r#"{"prompt":[[1],[2]]}"#, None),
            (Api::Embeddings, r#"{"input":["a","b"]}"#, Some("a\nb")),
            (Api::Rerank, r#"{"query":"q","documents":["a"]}"#, Some("q")),
            (Api::Score, r#"{"text_1":"q","text_2":["a"]}"#, Some("q")),
            (Api::Tokenize, r#"{"messages":[{"role":"user","content":"q"}]}"#, Some("q")),
            (Api::Detokenize, r#"{"tokens":[1]}"#, None),
            (Api::Chat, r#"{"messages":"hi"}"#, None),
            (Api::Chat, "[1,2]", None),
        ] {
            assert_eq!(of(api, body).as_deref(), prompt, "{body}");
        }
    }
}
