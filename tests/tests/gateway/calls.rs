//! Calls that go well.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gateway_tests::fixtures;
use gateway_tests::gateway::Session;
use serde_json::{Value, json};

use crate::events::{assert_same, split, usages, without_usage};

const CHAT: &str = "/v1/chat/completions";
const ADDED: &str = r#""stream_options":{"include_usage":true}"#;

#[tokio::test]
async fn a_plain_call_becomes_a_row_with_prompt_answer_tokens_and_consumer() {
    let session = Session::begin().await;
    let user = session.user().await;
    let reply = session.call(CHAT).key(&user.key).body(fixtures::vllm_request("chat-en")).send().await;
    assert_eq!(reply.status, 200);
    assert_same("answer", &reply.body, &fixtures::vllm_response("chat-en"));
    let row = reply.row(&session).await;
    let wanted = json!({
        "consumer_username": user.name, "status": 200, "prompt": "What is an LLM gateway?", "model": "qwen-tiny",
        "response": reply.json()["choices"][0]["message"]["content"], "finish_reason": "stop", "prompt_tokens": 20,
        "completion_tokens": 65, "endpoint": CHAT, "stream": false, "aborted": false, "truncated": false, "error": null,
        "tool_calls": null, "client_ip": row["client_ip"], "service": "vllm", "route": "vllm-chat-completions",
    });
    for (column, wanted) in wanted.as_object().unwrap() {
        assert_eq!(row[column], *wanted, "{column}");
    }
    for column in ["latency_ms", "ttft_ms", "upstream_latency_ms", "gateway_latency_ms"] {
        assert!(row[column].as_u64().is_some_and(|milliseconds| milliseconds < 10_000), "{column}: {}", row[column]);
    }
    let raw = &row["raw_log"];
    assert_eq!(raw["request"]["body"]["messages"][0]["content"], "What is an LLM gateway?");
    assert_eq!(raw["response"]["body"]["id"], reply.json()["id"]);
    assert!(raw["llm"]["seq"].is_u64() && raw["llm"]["worker"].is_string(), "{}", raw["llm"]);
}

#[tokio::test]
async fn a_streamed_call_has_usage_in_its_row_and_the_client_that_did_not_ask_does_not_see_it() {
    let session = Session::begin().await;
    let user = session.user().await;
    let request = fixtures::vllm_request("chat-en-stream");
    let reply = session.call(CHAT).key(&user.key).body(request.clone()).send().await;
    let seen = reply.seen_once(&session).await;
    assert_eq!(usages(&seen.sent).len(), 1, "vLLM was asked for usage");
    assert_same("the client's events", &reply.body, &without_usage(&seen.sent));
    assert!(reply.header("content-type").unwrap().starts_with("text/event-stream"));
    // Every other byte of the request is the client's.
    let sent = String::from_utf8(seen.body).unwrap();
    let unedited = [format!(",{ADDED}"), format!("{ADDED},")].map(|added| sent.replacen(&added, "", 1));
    assert!(unedited.iter().any(|text| text.as_bytes() == request), "{sent}");

    let row = reply.row(&session).await;
    assert_eq!((&row["prompt_tokens"], &row["completion_tokens"]), (&json!(20), &json!(65)));
    assert_eq!((&row["stream"], &row["aborted"], &row["finish_reason"]), (&json!(true), &json!(false), &json!("stop")));
    assert_eq!(row["response"], fixtures::expected_row("chat-en-stream")["response"]);
    // What the log has is what the client sent, not what the gateway made of it.
    assert_eq!(row["raw_log"]["request"]["body"].get("stream_options"), None);
}

#[tokio::test]
async fn a_client_that_asks_for_usage_gets_it_unchanged() {
    let session = Session::begin().await;
    let user = session.user().await;
    for name in ["chat-en-stream-usage", "completions-list-stream-usage", "rp-reasoning-stream-continuous-usage"] {
        let request = fixtures::vllm_request(name);
        let path = if name.starts_with("completions") { "/v1/completions" } else { CHAT };
        let reply = session.call(path).key(&user.key).header("x-fixture", name).body(request.clone()).send().await;
        assert_same(name, &reply.body, &fixtures::vllm_response(name));
        assert_same(name, &reply.seen_once(&session).await.body, &request);
    }
}

#[tokio::test]
async fn a_client_that_says_it_wants_no_usage_does_not_get_it() {
    let session = Session::begin().await;
    let user = session.user().await;
    for options in ["{}", "null", r#"{"include_usage":false}"#, r#"{ "include_usage" : null }"#] {
        let question = r#""messages":[{"role":"user","content":"one two three"}]"#;
        let request = format!(r#"{{"model":"m","stream":true,"stream_options":{options},{question}}}"#);
        let reply = session.call(CHAT).key(&user.key).body(request).send().await;
        assert_eq!(reply.status, 200, "{options}: {}", reply.text());
        assert!(usages(&reply.body).is_empty(), "{options}: {}", reply.text());
        assert_same(options, &reply.body, &without_usage(&reply.seen_once(&session).await.sent));
        assert_eq!(reply.row(&session).await["completion_tokens"], 3, "{options}");
    }
}

#[tokio::test]
async fn where_the_network_cuts_a_stream_changes_nothing() {
    let session = Session::begin().await;
    let user = session.user().await;
    for (name, piece) in
        [("http10-stream", "1"), ("completions-stream", "7"), ("chat-zh-stream", "61"), ("chat-en-stream", "499")]
    {
        let path = if name.starts_with("completions") { "/v1/completions" } else { CHAT };
        let call = session.call(path).key(&user.key).header("x-fixture", name).header("x-sim-split", piece);
        let reply = call.body(fixtures::vllm_request(name)).send().await;
        let sent = reply.seen_once(&session).await.sent;
        assert_eq!(usages(&sent).len(), 1, "{name}");
        assert_same(name, &reply.body, &without_usage(&sent));
        let row = reply.row(&session).await;
        assert_eq!(row["response"], fixtures::expected_row(name)["response"], "{name}");
        assert_eq!(row["completion_tokens"], usages(&sent)[0]["completion_tokens"], "{name}");
    }
}

#[tokio::test]
async fn events_arrive_one_by_one_when_they_are_sent() {
    let session = Session::begin().await;
    let user = session.user().await;
    let request = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"a b c d e f g h i j k l m n o p"}]}"#;
    let call = session.call(CHAT).key(&user.key).header("x-sim-chunk-delay-ms", "80").header("x-sim-stamp", "1");
    let mut response = call.body(request).open().await.unwrap();
    let mut delays = Vec::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        for event in split(&chunk) {
            let event: Value = match serde_json::from_slice(event.strip_prefix(b"data: ").unwrap()) {
                Ok(event) => event,
                Err(_) => continue, // [DONE]
            };
            delays.push(now.saturating_sub(Duration::from_micros(event["sent_at_us"].as_u64().unwrap())));
        }
    }
    assert_eq!(delays.len(), 18);
    delays.sort();
    // One that waited for the next would be 80 ms late; a busy machine may well delay some.
    assert!(delays[9] < Duration::from_millis(40), "{delays:?}");
}

#[tokio::test]
async fn the_first_byte_is_timed_where_it_came() {
    let session = Session::begin().await;
    let user = session.user().await;
    let call = session.call(CHAT).key(&user.key).header("x-fixture", "chat-en-stream").header("x-sim-delay-ms", "400");
    let reply = call.header("x-sim-chunk-delay-ms", "5").body(fixtures::vllm_request("chat-en-stream")).send().await;
    let row = reply.row(&session).await;
    let [first, whole] = ["ttft_ms", "latency_ms"].map(|column| row[column].as_u64().unwrap());
    assert!((395..1500).contains(&first), "{first}");
    assert!(whole >= first + 250, "{first} {whole}");
}

#[tokio::test]
async fn keys_are_taken_as_the_sdks_of_openai_and_anthropic_send_them() {
    let session = Session::begin().await;
    let user = session.user().await;
    for (name, value) in [
        ("authorization", format!("Bearer {}", user.key)),
        ("authorization", format!("bearer {}", user.key)),
        ("authorization", format!("BEARER   {}  ", user.key)),
        ("x-api-key", user.key.clone()),
    ] {
        let call = session.call(CHAT).header(name, &value).body(fixtures::vllm_request("chat-en"));
        let reply = call.send().await;
        assert_eq!(reply.status, 200, "{name}: {value}");
        let seen = reply.seen_once(&session).await;
        for header in ["authorization", "x-api-key"] {
            assert_eq!(seen.header(header), None, "{name}: {value}");
        }
        assert_eq!(reply.row(&session).await["consumer_username"], *user.name);
    }
    // Bearer wins over the other header, whichever of them is right.
    let call = session.call(CHAT).key(&user.key).header("x-api-key", "sk-wrong-beside-a-right-one");
    assert_eq!(call.body(fixtures::vllm_request("chat-en")).send().await.status, 200);
    let call = session.call(CHAT).key("sk-wrong-beside-a-right-one").header("x-api-key", &user.key);
    assert_eq!(call.body(fixtures::vllm_request("chat-en")).send().await.status, 401);
    session.gateway.remember_key("sk-wrong-beside-a-right-one");
}
