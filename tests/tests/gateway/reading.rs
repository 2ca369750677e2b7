//! One reading of a request: whatever way it is spelled, the row has what was asked and what it took; what can be read in two ways
//! is refused.

use gateway_tests::gateway::Session;
use serde_json::{Value, json};

use crate::events::usages;

const CHAT: &str = "/v1/chat/completions";
const QUESTION: &str = r#""model":"m","messages":[{"role":"user","content":"one two three"}]"#;

fn streamed(stream: &str) -> String {
    format!(r#"{{{QUESTION},"stream":{stream}}}"#)
}

#[tokio::test]
async fn a_path_spelled_otherwise_leaves_the_same_row() {
    let session = Session::begin().await;
    let user = session.user().await;
    for path in ["/v1//chat//completions", "/v1/ch%61t/completions", "/v1/chat/%63ompletions"] {
        let reply = session.call(path).key(&user.key).body(streamed("true")).send().await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        assert!(usages(&reply.body).is_empty(), "{path}: {}", reply.text());
        let row = reply.row(&session).await;
        let llm = &row["raw_log"]["llm"];
        assert_eq!(
            (&llm["api"], &llm["stream_asked"], &llm["model_asked"]),
            (&json!("chat"), &json!(true), &json!("m")),
            "{path}"
        );
        assert_eq!(row["prompt"], "one two three", "{path}");
        assert_eq!(row["completion_tokens"], 3, "{path}");
    }
}

#[tokio::test]
async fn the_model_server_is_asked_for_usage_whatever_the_client_says() {
    let session = Session::begin().await;
    let user = session.user().await;
    let padding = " ".repeat(9 << 20);
    for body in [
        streamed("1"),
        streamed(r#""Yes""#),
        streamed(r#"true,"stream_options":{"include_usage":0}"#),
        streamed(r#"true,"stream_options":{"continuous_usage_stats":true}"#),
        format!("{padding}{}", streamed("true")),
    ] {
        let name = body.trim_start().to_owned();
        let reply = session.call(CHAT).key(&user.key).body(body).send().await;
        assert_eq!(reply.status, 200, "{name}: {}", reply.text());
        let seen = reply.seen_once(&session).await;
        assert_eq!(seen.header("content-length"), Some(seen.body_bytes.to_string().as_str()), "{name}");
        if seen.body_bytes < padding.len() {
            let sent: Value = serde_json::from_slice(&seen.body).unwrap();
            assert_eq!(sent["stream_options"]["include_usage"], true, "{name}");
            assert_ne!(sent["stream_options"]["continuous_usage_stats"], true, "{name}");
        } else {
            assert_eq!(seen.body_bytes, padding.len() + name.len() + r#""stream_options":{"include_usage":true},"#.len());
            assert_eq!(reply.row(&session).await["completion_tokens"], 3);
        }
    }
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_refused_in_the_sdks_shape() {
    let session = Session::begin().await;
    let user = session.user().await;
    let utf16: Vec<u8> = streamed("true").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let deep = format!(r#"{{{QUESTION},"x":{}{}}}"#, "[".repeat(1000), "]".repeat(1000));
    for (what, body) in [
        ("UTF-16", utf16),
        ("behind the JSON", format!("{}{{}}", streamed("true")).into_bytes()),
        ("nested deeper", deep.into_bytes()),
    ] {
        let reply = session.call(CHAT).key(&user.key).body(body.clone()).send().await;
        assert_eq!(reply.status, 400, "{what}: {}", reply.text());
        let error = reply.json()["error"].clone();
        assert_eq!(error["type"], "invalid_request_error", "{what}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(what)), "{error}");
        assert!(reply.seen(&session).is_empty(), "{what}");
        let reply = session.call("/v1/messages").key(&user.key).body(body).send().await;
        assert_eq!((reply.status, &reply.json()["type"]), (400, &json!("error")), "{what}");
    }
    let encoded = session.call(CHAT).key(&user.key).header("content-encoding", "gzip").body(streamed("true")).send().await;
    assert_eq!(encoded.status, 400);
    assert!(encoded.text().contains("Content-Encoding"), "{}", encoded.text());
}

#[tokio::test]
async fn a_client_cannot_say_who_it_is_or_where_it_stands_in_the_queue() {
    let session = Session::begin().await;
    let user = session.user().await;
    let mut call = session.call(CHAT).key(&user.key).body(streamed("false"));
    for name in
        ["x-vllm-priority", "x-data-parallel-rank", "x-session-id", "x-consumer-username", "x-consumer-groups", "x_consumer_id"]
    {
        call = call.header(name, "1");
    }
    let reply = call.send().await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let seen = reply.seen_once(&session).await;
    for name in ["x-vllm-priority", "x-data-parallel-rank", "x-session-id", "x-consumer-groups", "x_consumer_id"] {
        assert_eq!(seen.header(name), None, "{name}");
    }
    assert_eq!(seen.header("x-consumer-username"), Some(user.name.as_str()));
    let latin1 = session.call(CHAT).header_bytes("authorization", b"Bearer sk-caf\xe9").body(streamed("false")).send().await;
    assert_eq!(latin1.status, 401, "{}", latin1.text());
}
