//! Whatever comes in, `decode` and `extract` neither panic nor lose what can be had.
//!
//! `PROPTEST_CASES=1000000 cargo test --release --test properties` looks harder.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use llm_collector::call::Call;
use llm_collector::decode::{self, Limits};
use llm_collector::extract::{self, privacy::Privacy, redact::Secrets};
use proptest::prelude::*;

/// Small, so that the limit is met too.
const LIMITS: Limits = Limits { decoded_bytes: 200_000 };

struct Recorded {
    name: String,
    bytes: Vec<u8>,
    path: String,
    response: Vec<u8>,
}

static RECORDED: LazyLock<Vec<Recorded>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/kong/entries");
    let mut recorded: Vec<Recorded> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| {
            let file = file.unwrap().path();
            let bytes = std::fs::read(&file).unwrap();
            let entry: serde_json::Value = serde_json::from_str(&decode::text(&bytes)).unwrap();
            let response = entry["response"]["body"].as_str().map(|body| STANDARD.decode(body).unwrap());
            Recorded {
                name: file.file_stem().unwrap().to_str().unwrap().to_owned(),
                bytes,
                path: entry["request"]["uri"].as_str().unwrap().to_owned(),
                response: response.unwrap_or_default(),
            }
        })
        .collect();
    recorded.sort_by(|one, other| one.name.cmp(&other.name));
    recorded
});

/// Everything that happens to a request body before it is stored: number of elements, and the calls among them.
fn read(bytes: &[u8]) -> (usize, Vec<Call>) {
    let text = decode::text(bytes);
    let Ok(elements) = decode::elements(&text).map(Iterator::collect::<Vec<_>>) else { return (0, Vec::new()) };
    let (secrets, privacy) = (Secrets::default(), Privacy::default());
    let calls = elements.iter().filter_map(|raw| {
        let entry = decode::entry::decode(raw, LIMITS).map_err(|_| secrets.scrub_raw(raw)).ok()?;
        Some(extract::call(&entry, &secrets, &privacy))
    });
    let calls = calls.collect();
    (elements.len(), calls)
}

fn entry_with(path: &str, request: &[u8], response: &[u8], llm: &str) -> Vec<u8> {
    format!(
        r#"{{"started_at":1,"request":{{"id":"x","uri":"{path}","headers":{{}},"body":"{}"}},"response":{{"status":200,"headers":{{}},"body":"{}"}},"llm":{llm}}}"#,
        STANDARD.encode(request),
        STANDARD.encode(response)
    )
    .into_bytes()
}

/// What every row must be, so that PostgreSQL takes it.
fn assert_storable(call: &Call) {
    let texts = [&call.prompt, &call.response, &call.reasoning, &call.error, &call.model, &call.finish_reason];
    assert!(texts.into_iter().flatten().all(|text| !text.contains('\0')), "NUL in {call:?}");
    let raw: serde_json::Value = serde_json::from_str(&call.raw_log).unwrap_or_else(|error| panic!("{error}: {}", call.raw_log));
    assert!(raw.is_object() && !has_nul(&raw), "{}", call.raw_log);
}

fn has_nul(json: &serde_json::Value) -> bool {
    match json {
        serde_json::Value::String(text) => text.contains('\0'),
        serde_json::Value::Array(elements) => elements.iter().any(has_nul),
        serde_json::Value::Object(members) => members.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

/// JSON of any shape, with the names that the APIs use.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let name = prop_oneof![
        proptest::sample::select(vec![
            "choices",
            "message",
            "delta",
            "content",
            "role",
            "index",
            "usage",
            "error",
            "type",
            "text",
            "tool_calls",
            "function",
            "arguments",
            "messages",
            "input",
            "output",
            "model",
            "response",
            "item",
            "logprobs",
            "finish_reason",
            "prompt",
            "data",
            "embedding",
            "content_block",
            "partial_json",
            "output_index",
            "prompt_tokens",
            "reasoning",
            "stop_reason",
        ])
        .prop_map(str::to_owned),
        ".{0,3}",
    ];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        proptest::sample::select(vec![
            "user",
            "text",
            "message",
            "response.completed",
            "content_block_delta",
            "message_start",
            "tool_use"
        ])
        .prop_map(Into::into),
        ".{0,8}".prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 48, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            proptest::collection::vec((name.clone(), inner), 0..6)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

fn any_path() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
        "/v1/rerank",
        "/tokenize",
        "/other",
    ])
}

proptest! {
    #[test]
    fn any_bytes_can_come(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        read(&bytes);
        read(&[b"[{\"started_at\":1,\"request\":", bytes.as_slice(), b"}]"].concat());
    }

    #[test]
    fn a_recorded_entry_may_be_damaged_anywhere(
        which in any::<proptest::sample::Index>(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut bytes = which.get(&RECORDED).bytes.clone();
        for (at, byte) in &damage {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        read(&bytes).1.iter().for_each(assert_storable);
    }

    #[test]
    fn a_recorded_answer_may_be_damaged_anywhere(
        which in any::<proptest::sample::Index>(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..20),
        truncated in any::<bool>(),
    ) {
        let recorded = which.get(&RECORDED);
        let mut response = recorded.response.clone();
        for (at, byte) in damage.iter().filter(|_| !recorded.response.is_empty()) {
            let at = at.index(response.len());
            response[at] = *byte;
        }
        let llm = format!(r#"{{"stream":true,"response_truncated":{truncated}}}"#);
        let (_, calls) = read(&entry_with(&recorded.path, b"{}", &response, &llm));
        prop_assert_eq!(calls.len(), 1);
        assert_storable(&calls[0]);
    }

    #[test]
    fn bodies_of_any_shape_become_rows(
        path in any_path(),
        request in any_json(),
        response in any_json(),
        events in proptest::collection::vec(any_json(), 0..5),
    ) {
        let stream: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
        for response in [response.to_string(), stream] {
            let (_, calls) = read(&entry_with(path, request.to_string().as_bytes(), response.as_bytes(), "{}"));
            prop_assert_eq!(calls.len(), 1);
            assert_storable(&calls[0]);
        }
    }

    #[test]
    fn reports_of_any_shape_become_rows(path in any_path(), model in any_json(), usage in any_json(), count in any_json()) {
        for usage in [usage, serde_json::json!({"prompt_tokens": count, "input_tokens": count, "prompt_tokens_details": count})] {
            let llm = serde_json::json!({"model": model, "usage": usage});
            let (_, calls) = read(format!(r#"{{"started_at":1,"request":{{"uri":"{path}"}},"llm":{llm}}}"#).as_bytes());
            prop_assert_eq!(calls.len(), 1);
            assert_storable(&calls[0]);
            let text = model.as_str().map(|model| model.replace('\0', "\u{FFFD}")).filter(|model| !model.is_empty());
            let number = model.as_number().map(ToString::to_string);
            // A number with an exponent beyond a float's is read as the text that it is.
            prop_assert!(calls[0].model == text || number.is_some() && calls[0].model == number, "{:?}", calls[0].model);
            prop_assert!(calls[0].usage.prompt_tokens.is_none_or(|tokens| tokens >= 0));
        }
    }

    #[test]
    fn text_of_any_kind_survives_into_raw_log(text in "\\PC{0,40}", escape in proptest::sample::select(vec!["", "\\ud800", "\\u0000", "\\\\u0000", "\\ude00\\ud83d"])) {
        let body = format!(r#"{{"messages":[{{"role":"user","content":{}}}],"x":"{escape}"}}"#, serde_json::json!(text));
        let (_, calls) = read(&entry_with("/v1/chat/completions", body.as_bytes(), b"{}", "{}"));
        assert_storable(&calls[0]);
        prop_assert_eq!(calls[0].prompt.as_deref(), Some(text.as_str()).filter(|text| !text.is_empty()));
    }

    #[test]
    fn every_element_of_a_batch_is_accounted_for(
        elements in proptest::collection::vec(proptest::sample::select(vec![
            r#"{"started_at":1,"request":{"id":"a"}}"#,
            r#"{"request":{}}"#,
            "17",
            "[]",
            r#""text""#,
            "null",
        ]), 0..12),
    ) {
        let batch = format!("[{}]", elements.join(" ,\n"));
        let (count, calls) = read(batch.as_bytes());
        prop_assert_eq!(count, elements.len());
        prop_assert_eq!(calls.len(), elements.iter().filter(|element| element.contains("started_at")).count());
    }
}

/// Streams with one choice, so that what comes later is always appended.
fn streams() -> impl Iterator<Item = &'static Recorded> {
    let several = ["chat-n2-stream-usage", "completions-list-stream-usage", "tools-required-n2-stream-usage"];
    RECORDED.iter().filter(move |recorded| {
        let is_stream = recorded.response.starts_with(b"data:") || recorded.response.starts_with(b"event:");
        is_stream && !several.contains(&recorded.name.as_str())
    })
}

fn is_beginning(part: Option<&str>, whole: Option<&str>) -> bool {
    whole.unwrap_or_default().starts_with(part.unwrap_or_default())
}

#[test]
fn a_stream_cut_at_any_byte_gives_a_beginning_of_the_answer() {
    let mut cuts = 0;
    for recorded in streams() {
        let whole = &read(&entry_with(&recorded.path, b"{}", &recorded.response, r#"{"stream":true}"#)).1[0];
        // Every byte of short streams; of long ones a stride that meets every offset within an event.
        let stride = 1 + recorded.response.len() / 2_500;
        for end in (1..recorded.response.len()).step_by(stride) {
            let entry = entry_with(&recorded.path, b"{}", &recorded.response[..end], r#"{"stream":true,"aborted":true}"#);
            let part = &read(&entry).1[0];
            let context = || format!("{} cut at {end}", recorded.name);
            assert!(is_beginning(part.response.as_deref(), whole.response.as_deref()), "{}", context());
            assert!(is_beginning(part.reasoning.as_deref(), whole.reasoning.as_deref()), "{}", context());
            for (part, whole) in part.tool_calls.iter().zip(&whole.tool_calls) {
                assert!(whole.arguments.starts_with(&part.arguments), "{}", context());
            }
            assert!(part.tool_calls.len() <= whole.tool_calls.len(), "{}", context());
            cuts += 1;
        }
    }
    assert!(cuts > 50_000, "only {cuts} cuts");
}

#[test]
fn whatever_is_cut_is_called_aborted_until_the_terminal_event() {
    for recorded in streams() {
        let aborted =
            |bytes: &[u8]| read(&entry_with(&recorded.path, b"{}", bytes, r#"{"stream":true,"aborted":true}"#)).1[0].aborted;
        if !aborted(&recorded.response) {
            let text = String::from_utf8_lossy(&recorded.response);
            let terminal =
                ["data: [DONE]", "event: message_stop", "event: response.completed"].iter().find_map(|mark| text.find(mark));
            let before = terminal.unwrap_or_else(|| panic!("{} has no terminal event", recorded.name));
            assert!(aborted(&recorded.response[..before]), "{}", recorded.name);
        }
    }
}

/// What names something is whole or missing.
fn assert_no_half_names(part: &Call, whole: &Call, context: &str) {
    let names = |call: &Call| [call.model.clone(), call.finish_reason.clone()];
    for (part, whole) in names(part).into_iter().zip(names(whole)) {
        assert!(part.is_none() || part == whole, "{context}: {part:?} of {whole:?}");
    }
    let counts = |call: &Call| {
        let usage = call.usage;
        [usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens]
    };
    for (part, whole) in counts(part).into_iter().zip(counts(whole)) {
        assert!(part.is_none() || part == whole, "{context}: {part:?} of {whole:?}");
    }
    assert!(part.tool_calls.len() <= whole.tool_calls.len(), "{context}");
    for (part, whole) in part.tool_calls.iter().zip(&whole.tool_calls) {
        assert!(part.id.is_none() || part.id == whole.id, "{context}: {:?}", part.id);
        assert!(part.name.is_none() || part.name == whole.name, "{context}: {:?}", part.name);
        assert!(whole.arguments.starts_with(&part.arguments), "{context}: {}", part.arguments);
    }
}

#[test]
fn a_json_answer_cut_at_any_byte_gives_a_beginning_of_it_and_no_half_names() {
    let several = ["chat-n2", "completions-list"];
    let mut cuts = 0;
    for recorded in RECORDED.iter().filter(|recorded| recorded.response.starts_with(b"{")) {
        let whole = &read(&entry_with(&recorded.path, b"{}", &recorded.response, "{}")).1[0];
        let stride = 1 + recorded.response.len() / 400;
        for end in (1..recorded.response.len()).step_by(stride) {
            let entry = entry_with(&recorded.path, b"{}", &recorded.response[..end], r#"{"response_truncated":true}"#);
            let part = &read(&entry).1[0];
            let context = format!("{} cut at {end}", recorded.name);
            assert!(part.truncated && !part.is_unread(), "{context}");
            assert_no_half_names(part, whole, &context);
            if !several.contains(&recorded.name.as_str()) {
                let texts = [(&part.response, &whole.response), (&part.reasoning, &whole.reasoning)];
                assert!(texts.iter().all(|(part, whole)| is_beginning(part.as_deref(), whole.as_deref())), "{context}");
            }
            cuts += 1;
        }
    }
    assert!(cuts > 10_000, "only {cuts} cuts");
}
