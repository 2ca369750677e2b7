//! Token counts in the three ways that APIs report them.

use crate::call::Usage;
use crate::decode::json::Json;

use super::api::Api;

/// Usage as `api` reports it.
pub fn of(api: Api, usage: Option<&Json<'_>>) -> Usage {
    match api {
        Api::Responses => responses(usage),
        Api::Messages => messages(usage),
        _ => openai(usage),
    }
}

/// Usage of chat completions, completions, embeddings and their like.
pub fn openai(usage: Option<&Json<'_>>) -> Usage {
    read(
        usage,
        "prompt_tokens",
        "completion_tokens",
        &["prompt_tokens_details", "cached_tokens"],
        &["completion_tokens_details", "reasoning_tokens"],
    )
}

/// Usage of `/v1/responses`.
pub fn responses(usage: Option<&Json<'_>>) -> Usage {
    read(
        usage,
        "input_tokens",
        "output_tokens",
        &["input_tokens_details", "cached_tokens"],
        &["output_tokens_details", "reasoning_tokens"],
    )
}

/// Usage of `/v1/messages`. Its `input_tokens` leaves out cached tokens when cache details are on (vLLM 0.32); counts are
/// kept as reported.
pub fn messages(usage: Option<&Json<'_>>) -> Usage {
    read(usage, "input_tokens", "output_tokens", &["cache_read_input_tokens"], &["reasoning_tokens"])
}

fn read(usage: Option<&Json<'_>>, prompt: &str, completion: &str, cached: &[&str], reasoning: &[&str]) -> Usage {
    let count = |path: &[&str]| usage?.at(path)?.as_i32().filter(|count| *count >= 0);
    Usage {
        prompt_tokens: count(&[prompt]),
        completion_tokens: count(&[completion]),
        cached_tokens: count(cached),
        reasoning_tokens: count(reasoning),
    }
}
