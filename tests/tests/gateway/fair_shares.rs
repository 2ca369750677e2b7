//! Calls that wait for a place of the model server: what their callers, rows and metrics say of it. Who is served when is tested with
//! the plugin (`tests/nginx-host/queue.bats`, `kong-plugins/spec/`).

use std::time::Duration;

use gateway_tests::gateway::{Session, User};
use gateway_tests::process::wait_until;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const LIMIT: Duration = Duration::from_secs(30);

fn stream() -> String {
    json!({"model": "qwen-tiny", "stream": true, "messages": [{"role": "user", "content": "What is an LLM gateway?"}]})
        .to_string()
}

async fn waiting_calls(session: &Session, user: &User) -> Value {
    session.call("/v1/usage").key(&user.key).send().await.json()["waiting_calls"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waited_says_so_in_its_row_and_its_caller_sees_nothing_but_time() {
    let session = Session::alone().await;
    let (holder, waiter) = (session.user().await, session.user().await);
    session.change(&[("QUEUE_IN_FLIGHT", "1"), ("VLLM_PRIORITY", "true")]).await;
    // A node tells of its places from its first entry on.
    session
        .settled("calls wait", || async {
            session.call(CHAT).key(&waiter.key).header("x-fixture", "chat-en").body(stream()).send().await;
            waiting_calls(&session, &waiter).await == 0
        })
        .await;

    let held = session.call(CHAT).key(&holder.key).header("x-fixture", "chat-en-stream-usage").header("x-sim-stall", "2");
    let held = held.body(stream()).open().await.expect("an answer that begins");
    let call = session.call(CHAT).key(&waiter.key).header("x-fixture", "chat-en-stream-usage").body(stream());
    let (reply, ()) = tokio::join!(call.send(), async {
        wait_until("the caller is told that a call waits", LIMIT, || async { waiting_calls(&session, &waiter).await == 1 }).await;
        assert_eq!(waiting_calls(&session, &holder).await, 0);
        // Who hangs up gives his place back.
        drop(held);
    });
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(reply.text().ends_with("data: [DONE]\n\n"));
    let row = reply.row(&session).await;
    assert!(row["queue_ms"].as_i64().expect("a wait") > 0, "{row}");
    let seen = reply.seen_once(&session).await;
    assert!(seen.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("x-vllm-priority")), "{:?}", seen.headers);
    assert_eq!(session.row_of(&holder).await["queue_ms"], Value::Null);
    assert!(session.gateway.collector_metric("llm_queue_seconds_count{model=\"qwen-tiny\"}").await >= 1.0);
}
