//! The column `error`: the message of a failure is content, because it may repeat the request. vLLM's validation errors do, whole.
//!
//! So it is masked, bounded, left out where only metadata is stored, and removed with other content. What stands for it then is a
//! word in brackets, such as `[BadRequestError]` or `[error]`: whether and how a call failed is no content. In SQL the same is
//! told by `llm_error_has_content`.

use crate::decode::json::Json;

/// Longest message that is stored, in bytes. Those of servers are a line or two; all of it is in `raw_log`.
const MAX_BYTES: usize = 4_096;

/// Longest word that stands for a message, in bytes.
const MAX_WORD_BYTES: usize = 64;

/// What is stored of a message: all of it, or its beginning with a mark.
pub fn stored(message: String) -> String {
    if is_word(&message) {
        // Not one of ours: it goes with the other content.
        return format!("\"{message}\"");
    }
    if message.len() <= MAX_BYTES {
        return message;
    }
    format!(
        "{}… [cut, {} bytes in all]",
        message.get(..message.floor_char_boundary(MAX_BYTES)).unwrap_or_default(),
        message.len()
    )
}

/// The message of an error that stands at the top of an object, in one of the names that servers, frameworks and Kong have for it.
pub fn told<'j, 'a>(object: &'j Json<'a>) -> Option<&'j Json<'a>> {
    ["detail", "message", "msg"].iter().find_map(|name| object.get(name))
}

/// Whether an object is an error by what it says of itself: in a member `object`, as older vLLM did, by a flag, or by a code beside a
/// message where an answer or an event would be.
pub fn is_at_top(object: &Json<'_>) -> bool {
    let is_failure = |code: &Json<'_>| match code.as_f64() {
        Some(code) => code != 0.0 && !(200.0..300.0).contains(&code),
        None => code.as_str().is_some_and(|code| !code.is_empty() && !code.eq_ignore_ascii_case("ok") && code != "success"),
    };
    let has_code = || ["code", "status", "status_code"].iter().filter_map(|name| object.get(name)).any(is_failure);
    let is_answer = || ["choices", "type", "object", "id"].iter().any(|name| object.get(name).is_some());
    object.get("object").and_then(Json::as_str) == Some("error")
        || object.get("error") == Some(&Json::Bool(true))
        || told(object).is_some() && !is_answer() && has_code()
}

/// The word that stands for a failure: its type or code, which servers choose from a few.
pub fn word(answer: Option<&Json<'_>>) -> String {
    let error = answer.map(|answer| answer.get("error").unwrap_or(answer));
    let named = |name: &str| match error?.get(name)? {
        Json::String(text) => Some(format!("[{text}]")),
        Json::Number(number) => Some(format!("[{number}]")),
        _ => None,
    };
    ["type", "code"].into_iter().filter_map(named).find(|word| is_word(word)).unwrap_or_else(|| "[error]".to_owned())
}

fn is_word(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let word = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    word.is_some_and(|word| !word.is_empty() && word.len() <= MAX_WORD_BYTES && word.bytes().all(is_plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_bounded_at_a_character_and_marked() {
        assert_eq!(stored("short".to_owned()), "short");
        let long = stored("模型".repeat(50_000));
        assert!(long.starts_with("模型") && long.ends_with("… [cut, 300000 bytes in all]"), "{long}");
        assert!(long.len() < MAX_BYTES + 40);
        assert_eq!(stored("[error]".to_owned()), "\"[error]\"");
    }

    #[test]
    fn a_word_says_how_a_call_failed_and_nothing_of_what_was_asked() {
        for (answer, expected) in [
            (r#"{"error":{"message":"the patient","type":"BadRequestError","code":400}}"#, "[BadRequestError]"),
            (r#"{"error":{"message":"the patient","type":"the patient","code":400}}"#, "[400]"),
            (r#"{"type":"error","error":{"type":"invalid_request_error","message":"the patient"}}"#, "[invalid_request_error]"),
            (r#"{"error":"the patient"}"#, "[error]"),
            (r#"{"detail":"the patient"}"#, "[error]"),
        ] {
            assert_eq!(word(Some(&Json::parse(answer).unwrap())), expected);
        }
        assert_eq!(word(None), "[error]");
    }
}
