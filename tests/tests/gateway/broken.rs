//! Clients that go away, and a model server that dies, hangs or is not there.

use std::time::Duration;

use gateway_tests::fixtures;
use gateway_tests::gateway::{Reply, Session, User};
use gateway_tests::process::{free_port, wait_until};
use gateway_tests::vllm::Ended;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn assert_row(row: &Value, wanted: Value) {
    for (column, wanted) in wanted.as_object().unwrap() {
        assert_eq!(row[column], *wanted, "{column} of {row}");
    }
}

/// An error of the gateway in OpenAI's shape, and its row.
async fn assert_gateway_error(session: &Session, user: &User, reply: &Reply, status: u16) {
    assert_eq!(reply.status, status, "{}", reply.text());
    let error = &reply.json()["error"];
    assert_eq!(
        (&error["type"], &error["code"], &error["param"]),
        (&json!("server_error"), &Value::Null, &Value::Null),
        "{error}"
    );
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
    let row = reply.row(session).await;
    let wanted = json!({"status": status, "consumer_username": user.name, "prompt": "What is an LLM gateway?", "response": null,
        "error": error["message"], "aborted": false, "stream": false, "model": "qwen-tiny"});
    assert_row(&row, wanted);
}

#[tokio::test]
async fn a_client_that_disconnects_in_mid_stream_leaves_a_row_of_what_it_got() {
    let session = Session::begin().await;
    let user = session.user().await;
    let call = session.call(CHAT).key(&user.key).header("x-fixture", "chat-en-stream").header("x-sim-chunk-delay-ms", "50");
    let mark = call.mark();
    let mut response = call.body(fixtures::vllm_request("chat-en-stream")).open().await.unwrap();
    let id = response.headers()["x-kong-request-id"].to_str().unwrap().to_owned();
    let mut got = Vec::new();
    while got.windows(2).filter(|pair| pair == b"\n\n").count() < 6 {
        got.extend_from_slice(&response.chunk().await.unwrap().unwrap());
    }
    drop(response);
    // vLLM is told, so that it stops generating.
    wait_until("vLLM sees its client go", Duration::from_secs(5), || async {
        let seen = session.gateway.seen(|seen| seen.header("x-e2e-call") == Some(&mark));
        seen.iter().any(|seen| seen.end == Some(Ended::ClientGone))
    })
    .await;
    let row = session.row(&id).await;
    let wanted = json!({"status": 200, "aborted": true, "stream": true, "truncated": false, "finish_reason": null, "error": null,
        "prompt": "What is an LLM gateway?", "completion_tokens": null, "consumer_username": user.name});
    assert_row(&row, wanted);
    let whole = fixtures::expected_row("chat-en-stream")["response"].as_str().unwrap().to_owned();
    let kept = row["response"].as_str().unwrap();
    assert!(whole.starts_with(kept) && kept.len() < whole.len() && kept.len() > "An LLM".len(), "{kept}");
}

#[tokio::test]
async fn a_client_that_goes_before_the_answer_leaves_a_row_with_499() {
    let session = Session::begin().await;
    let user = session.user().await;
    let call = session.call(CHAT).key(&user.key).header("x-fixture", "chat-en").header("x-sim-delay-ms", "2000");
    let mark = call.mark();
    let gone = tokio::time::timeout(Duration::from_millis(400), call.body(fixtures::vllm_request("chat-en")).open()).await;
    assert!(gone.is_err(), "answered at once: {gone:?}");
    wait_until("vLLM sees its client go", Duration::from_secs(5), || async {
        let seen = session.gateway.seen(|seen| seen.header("x-e2e-call") == Some(&mark));
        seen.iter().any(|seen| seen.end == Some(Ended::ClientGone))
    })
    .await;
    let row = session.row_of(&user).await;
    let wanted = json!({"status": 499, "aborted": true, "stream": false, "response": null, "prompt": "What is an LLM gateway?",
        "completion_tokens": null, "ttft_ms": null});
    assert_row(&row, wanted);
}

#[tokio::test]
async fn a_model_server_that_dies_in_mid_stream_leaves_a_row_of_what_came() {
    let session = Session::begin().await;
    let user = session.user().await;
    for how in ["rst:5", "fin:5", "rst-mid:5", "fin-mid:5"] {
        let call = session.call(CHAT).key(&user.key).header("x-fixture", "chat-en-stream").header("x-sim-break", how);
        let reply = call.body(fixtures::vllm_request("chat-en-stream")).send().await;
        assert_eq!(reply.status, 200, "{how}");
        assert!(reply.broken.is_some(), "{how}: the client must see that the stream broke off: {}", reply.text());
        let sent = reply.seen_once(&session).await.sent;
        assert!(sent.starts_with(&reply.body) && !reply.body.is_empty(), "{how}: {}", reply.text());
        let row = reply.row(&session).await;
        let wanted = json!({"status": 200, "aborted": true, "stream": true, "finish_reason": null, "completion_tokens": null,
            "prompt": "What is an LLM gateway?", "consumer_username": user.name});
        assert_row(&row, wanted);
        let kept = row["response"].as_str().unwrap();
        assert!(kept.starts_with("An LLM"), "{how}: {kept}");
    }
}

#[tokio::test]
async fn a_stream_that_lacks_only_its_terminating_chunk_is_complete() {
    let session = Session::begin().await;
    let user = session.user().await;
    let events = crate::events::split(&fixtures::vllm_response("chat-en-stream-usage")).len().to_string();
    let call = session.call(CHAT).key(&user.key).header("x-fixture", "chat-en-stream-usage");
    let call = call.header("x-sim-break", &format!("fin:{events}"));
    let reply = call.body(fixtures::vllm_request("chat-en-stream-usage")).send().await;
    crate::events::assert_same("events", &reply.body, &fixtures::vllm_response("chat-en-stream-usage"));
    let row = reply.row(&session).await;
    assert_row(&row, json!({"status": 200, "aborted": false, "finish_reason": "stop", "completion_tokens": 65}));
}

#[tokio::test]
async fn a_model_server_that_hangs_in_mid_stream_is_cut_off_by_the_time_out() {
    let session = Session::begin().await;
    let user = session.user().await;
    let call = session.call(CHAT).key(&user.key).header("x-fixture", "chat-en-stream").header("x-sim-stall", "8");
    let reply = call.body(fixtures::vllm_request("chat-en-stream")).send().await;
    assert!(reply.status == 200 && reply.broken.is_some(), "{}", reply.text());
    let row = reply.row(&session).await;
    assert_row(&row, json!({"status": 200, "aborted": true, "stream": true, "completion_tokens": null}));
    assert!(row["response"].as_str().is_some_and(|kept| kept.starts_with("An LLM")), "{}", row["response"]);
}

#[tokio::test]
async fn a_model_server_that_does_not_answer_in_time_gives_504() {
    let session = Session::begin().await;
    let user = session.user().await;
    let call = session.call(CHAT).key(&user.key).header("x-fixture", "chat-en").header("x-sim-delay-ms", "20000");
    let reply = call.body(fixtures::vllm_request("chat-en")).send().await;
    assert_gateway_error(&session, &user, &reply, 504).await;
    // Not tried again: it would be paid for twice.
    assert_eq!(reply.seen(&session).len(), 1);
}

#[tokio::test]
async fn a_model_server_that_closes_before_the_answer_gives_502() {
    let session = Session::begin().await;
    let user = session.user().await;
    for how in ["rst:0", "fin:0"] {
        let call = session.call(CHAT).key(&user.key).header("x-fixture", "chat-en").header("x-sim-break", how);
        let reply = call.body(fixtures::vllm_request("chat-en")).send().await;
        assert_gateway_error(&session, &user, &reply, 502).await;
        // Once more where the connection had served calls before: nginx cannot tell this from one that was closed while it was idle.
        let generated = reply.seen(&session).len();
        assert!((1..=2).contains(&generated), "{how}: generated {generated} times");
    }
}

#[tokio::test]
async fn a_model_server_that_is_not_there_gives_502() {
    let session = Session::alone().await;
    let user = session.user().await;
    session.change(&[("VLLM_URL", &format!("http://127.0.0.1:{}", free_port()))]).await;
    let call = || session.call(CHAT).key(&user.key).body(fixtures::vllm_request("chat-en"));
    session.settled("the model server is gone", || async { call().send().await.status == 502 }).await;
    let reply = call().send().await;
    assert_gateway_error(&session, &user, &reply, 502).await;
    let call = session.call("/v1/messages").header("x-api-key", &user.key).body(fixtures::vllm_request("messages-stream"));
    let reply = call.send().await;
    let body = reply.json();
    assert_eq!((reply.status, &body["type"], &body["error"]["type"]), (502, &json!("error"), &json!("api_error")), "{body}");
}
