//! What was asked: the prompt in a request body.

use crate::decode::json::Json;

use super::api::Api;
use super::raw_log::Document;

/// The prompt of a request whose body is JSON; `None` where there is no text.
pub fn prompt(api: Api, body: &Json<'_>) -> Option<String> {
    let messages = || last_user_text(body.get("messages")?);
    let prompt = match api {
        Api::Chat | Api::Messages | Api::CountTokens => messages(),
        Api::Completions => body.get("prompt").and_then(texts),
        Api::Responses => match body.get("input")? {
            Json::String(text) => Some(text.to_string()),
            items => last_user_text(items).or_else(|| content_text(&Json::Array(bare_parts(items)))),
        },
        // Cohere's form has `texts`, or `inputs` with parts.
        Api::Embeddings | Api::Pooling | Api::Classify => {
            let names = ["input", "texts", "inputs", "images"];
            names.iter().find_map(|name| texts(body.get(name)?)).or_else(messages)
        }
        Api::Rerank => body.get("query").and_then(texts),
        Api::Score => ["text_1", "data_1", "queries", "query"].iter().find_map(|name| texts(body.get(name)?)),
        Api::Tokenize => body.get("prompt").and_then(texts).or_else(messages),
        Api::Transcriptions | Api::Translations => {
            let prompt = body.get("prompt").and_then(Json::as_str).filter(|prompt| !prompt.is_empty());
            let parts: Vec<&str> = prompt.into_iter().chain(body.get("file").map(|_| "[audio]")).collect();
            Some(parts.join("\n"))
        }
        Api::Detokenize | Api::Models | Api::Other => None,
    };
    prompt.filter(|prompt| !prompt.is_empty())
}

/// The size of a number in the vectors that the request asks for, in bytes (vLLM's `embed_dtype`).
pub fn bytes_of_a_number(request: &Document<'_>) -> usize {
    let Document::Json(body) = request else { return 4 };
    match body.get("embed_dtype").and_then(Json::as_str) {
        Some("float16" | "bfloat16") => 2,
        Some(name) if name.starts_with("fp8") => 1,
        _ => 4,
    }
}

/// A string, an object with a content, or a list of those joined by a line break; token ids are no text.
fn texts(value: &Json<'_>) -> Option<String> {
    match value {
        Json::String(text) => Some(text.to_string()),
        Json::Object(_) => content_text(value.get("content")?),
        Json::Array(elements) => {
            let texts: Vec<String> = elements.iter().filter_map(texts).collect();
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

/// Parts of a content that stand in a list of items, without a message around them.
fn bare_parts<'a>(items: &Json<'a>) -> Vec<Json<'a>> {
    let is_part = |item: &&Json<'_>| match item {
        Json::String(_) => true,
        item => item.get("type").and_then(Json::as_str).is_some_and(|kind| kind.starts_with("input_")),
    };
    items.elements().iter().filter(is_part).cloned().collect()
}

/// The text of a message's content: a string, or its parts joined by a line break, where `[image]`, `[audio]` and `[file]`
/// stand for what is no text. `None` when there is nothing but tool results.
fn content_text(content: &Json<'_>) -> Option<String> {
    match content {
        Json::String(text) => (!text.is_empty()).then(|| text.to_string()),
        Json::Array(parts) => {
            let texts: Vec<&str> = parts.iter().filter_map(part_text).filter(|text| !text.is_empty()).collect();
            (!texts.is_empty()).then(|| texts.join("\n"))
        }
        part @ Json::Object(_) => part_text(part).filter(|text| !text.is_empty()).map(str::to_owned),
        _ => None,
    }
}

/// The text of a part, or what stands for it. vLLM takes parts without a type: the member tells what they are.
fn part_text<'j>(part: &'j Json<'_>) -> Option<&'j str> {
    if let Json::String(text) = part {
        return Some(text);
    }
    let told = part.get("type").and_then(Json::as_str).filter(|kind| !kind.is_empty());
    let text = part.get("text").and_then(Json::as_str);
    let has_text = text.is_some_and(|text| !text.is_empty());
    let first = || part.members().iter().map(|(name, _)| name.as_ref()).find(|name| *name != "uuid" && *name != "cache_control");
    let kind = match told {
        Some(kind) => kind,
        None if part.get("text").is_some() => "text",
        None => first()?,
    };
    match kind {
        "text" | "input_text" | "output_text" | "refusal" => text.or_else(|| part.get("refusal").and_then(Json::as_str)),
        "thinking" => part.get("thinking").and_then(Json::as_str),
        "tool_result" => None,
        _ if has_text => text,
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
    fn a_turn_that_is_only_a_picture_is_a_turn_and_an_empty_text_is_none() {
        let earlier = r#"{"role":"user","content":"earlier"}"#;
        for (content, prompt) in [
            (r#"[{"image_url":"https://x"}]"#, "[image]"),
            (r#"[{"image_url":{"url":"https://x"},"uuid":"1"},{"uuid":"2","audio_url":"y"}]"#, "[image]\n[audio]"),
            (r#"[{"type":"text","text":""},{"type":"image_url","image_url":{"url":"x"}}]"#, "[image]"),
            (r#"[{"video_url":"x"},{"text":"q"},{"type":"","text":"r"}]"#, "[file]\nq\nr"),
            (r#"{"type":"text","text":"q"}"#, "q"),
            (r#"[{"type":"text","text":""}]"#, "earlier"),
            (r#"[{"type":"tool_result","content":"x"}]"#, "earlier"),
            ("null", "earlier"),
        ] {
            let body = format!(r#"{{"messages":[{earlier},{{"role":"user","content":{content}}}]}}"#);
            assert_eq!(of(Api::Chat, &body).as_deref(), Some(prompt), "{content}");
        }
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
            (Api::Rerank, r#"{"query":{"content":[{"type":"text","text":"q"},{"type":"image_url"}]}}"#, Some("q\n[image]")),
            (Api::Embeddings, r#"{"texts":["a","b"],"input_type":"x"}"#, Some("a\nb")),
            (
                Api::Embeddings,
                r#"{"inputs":[{"content":[{"type":"text","text":"a"},{"type":"image_url"}]}]}"#,
                Some("a\n[image]"),
            ),
            (Api::Transcriptions, r#"{"model":"m","prompt":"names","file":"[audio/wav 1 bytes]"}"#, Some("names\n[audio]")),
            (Api::Translations, r#"{"model":"m","prompt":"","file":"[audio/wav 1 bytes]"}"#, Some("[audio]")),
            (Api::Chat, r#"{"messages":"hi"}"#, None),
            (Api::Chat, "[1,2]", None),
        ] {
            assert_eq!(of(api, body).as_deref(), prompt, "{body}");
        }
    }
}
