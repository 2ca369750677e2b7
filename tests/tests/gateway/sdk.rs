//! The gateway as programs use it: through the SDKs of OpenAI and Anthropic.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use gateway_tests::fixtures;
use gateway_tests::gateway::{Session, User};
use serde_json::{Value, json};

/// The Python that has the SDKs: `E2E_PYTHON`, else what `tests/tools.sh test` made.
pub(crate) fn python() -> PathBuf {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.test/venv/bin/python");
    let python = std::env::var_os("E2E_PYTHON").map_or(made, PathBuf::from);
    assert!(python.exists(), "{} is not there: run tests/tools.sh test", python.display());
    python
}

/// Runs a script of `tests/sdk`; returns what it printed.
async fn run(session: &Session, script: &str, user: &User, limited: &User) -> Value {
    let wrong_key = "sk-wrong-in-an-sdk-0123456789";
    session.gateway.remember_key(wrong_key);
    let output = tokio::process::Command::new(python())
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk").join(script))
        .env_clear()
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("BASE_URL", &session.gateway.proxy_url)
        .env("KEY", &user.key)
        .env("WRONG_KEY", wrong_key)
        .env("KEY_OVER_THE_LIMIT", &limited.key)
        .env("MARK", mark_of(user))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(120), output).await.expect("it ends").expect("Python");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{script}: {error}: {stderr}"))
}

/// Marks the calls of a user whose model server does not answer in time.
fn mark_of(user: &User) -> String {
    format!("hangs-{}", user.name)
}

/// The model server was asked once, although the SDK would have asked three times by itself.
fn assert_asked_once(session: &Session, user: &User) {
    let asked = session.gateway.seen(|seen| seen.header("x-e2e-raw") == Some(&mark_of(user)));
    assert_eq!(asked.len(), 1, "{asked:?}");
}

/// Somebody who may make one call an hour, and has made it.
async fn user_over_the_limit(session: &Session) -> User {
    let user = session.user().await;
    let said = session.users(&["limit", &user.name, "1"]).await;
    assert!(said.success, "{}", said.stderr);
    session.settled("the limit holds", || async { session.call("/v1/models").key(&user.key).send().await.status == 429 }).await;
    user
}

/// The members of `wanted`, in `got`.
fn assert_has(what: &str, got: &Value, wanted: Value) {
    for (member, wanted) in wanted.as_object().unwrap() {
        assert_eq!(got[member], *wanted, "{member} of {what}: {got}");
    }
}

async fn assert_row(session: &Session, of: &Value, wanted: Value) {
    let row = session.row(of["request_id"].as_str().unwrap_or_else(|| panic!("no request id: {of}"))).await;
    assert_has("row", &row, wanted);
}

#[tokio::test]
async fn openais_sdk_finds_what_it_expects() {
    let session = Session::begin().await;
    let (user, limited) = (session.user().await, user_over_the_limit(&session).await);
    let seen = run(&session, "openai_calls.py", &user, &limited).await;
    let answer = fixtures::expected_row("chat-en")["response"].clone();
    let tool = &fixtures::expected_row("tools-auto-stream-usage")["tool_calls"][0];
    let calls = json!({
        "plain": {"content": answer, "finish_reason": "stop", "completion_tokens": 65},
        "streamed": {"content": answer, "finish_reason": "stop", "usages": [], "without_choices": 0},
        "streamed_with_usage": {"content": answer, "finish_reason": "stop", "usages": [65], "without_choices": 1},
        "streamed_tools": {"name": tool["name"], "arguments": tool["arguments"], "finish_reason": "tool_calls"},
        "stream_helper": {"content": answer, "has_usage": false},
        "responses": {"content": fixtures::expected_row("responses-stream")["response"], "last": "response.completed"},
        "models": {"ids": ["qwen-tiny"]},
    });
    for (call, wanted) in calls.as_object().unwrap() {
        assert_has(call, &seen[call], wanted.clone());
    }
    assert!(seen["embeddings"]["dimensions"].as_u64().is_some_and(|count| count > 100), "{}", seen["embeddings"]);
    for call in ["plain", "streamed", "streamed_with_usage"] {
        let row = json!({"consumer_username": user.name, "response": answer, "prompt_tokens": 20, "completion_tokens": 65});
        assert_row(&session, &seen[call], row).await;
    }
    let row = json!({"tool_calls": fixtures::expected_row("tools-auto-stream-usage")["tool_calls"], "response": null});
    assert_row(&session, &seen["streamed_tools"], row).await;

    let gateway = |class: &str, status: u16, code: Value, kind: &str| json!({"class": class, "status": status, "code": code, "type": kind, "param": null, "content_type": "application/json"});
    let invalid = "invalid_request_error";
    for (call, wanted) in [
        ("wrong_key", gateway("AuthenticationError", 401, json!("invalid_api_key"), invalid)),
        ("over_the_limit", gateway("RateLimitError", 429, json!("rate_limit_exceeded"), "requests")),
        ("over_the_limit_streamed", gateway("RateLimitError", 429, json!("rate_limit_exceeded"), "requests")),
        ("no_such_path", gateway("NotFoundError", 404, json!("unknown_url"), invalid)),
        ("wrong_base_url", gateway("NotFoundError", 404, json!("unknown_url"), invalid)),
        ("vllm_gone", gateway("InternalServerError", 502, Value::Null, "server_error")),
        ("vllm_hangs", gateway("InternalServerError", 504, Value::Null, "server_error")),
        ("vllm_bad_model", json!({"class": "NotFoundError", "status": 404, "type": "NotFoundError"})),
        ("vllm_too_long", json!({"class": "BadRequestError", "status": 400})),
        ("vllm_dead", json!({"class": "InternalServerError", "status": 500})),
    ] {
        assert_has(call, &seen[call], wanted);
        assert_row(&session, &seen[call], json!({"status": seen[call]["status"]})).await;
    }
    assert_asked_once(&session, &user);
    assert!(seen["over_the_limit"]["retry_after"].as_str().is_some_and(|seconds| seconds.parse::<u32>().is_ok()));
    assert!(seen["wrong_base_url"]["message"].as_str().unwrap().contains("base_url"), "{}", seen["wrong_base_url"]);
    assert_row(&session, &seen["over_the_limit"], json!({"consumer_username": limited.name})).await;
}

#[tokio::test]
async fn anthropics_sdk_finds_what_it_expects() {
    let session = Session::begin().await;
    let (user, limited) = (session.user().await, user_over_the_limit(&session).await);
    let seen = run(&session, "anthropic_calls.py", &user, &limited).await;
    for (call, fixture) in [
        ("plain", "messages-stop-sequence"),
        ("plain_with_bearer", "messages-stop-sequence"),
        ("streamed", "messages-stream"),
        ("streamed_tools", "messages-tools-stream"),
    ] {
        let expected = fixtures::expected_row(fixture);
        assert_eq!(seen[call]["stop_reason"], expected["finish_reason"], "{call}");
        assert_eq!(seen[call]["output_tokens"], expected["completion_tokens"], "{call}");
        assert_eq!(seen[call]["content"].as_str().filter(|text| !text.is_empty()), expected["response"].as_str(), "{call}");
        let mut row = json!({"consumer_username": user.name});
        for column in ["response", "tool_calls", "prompt_tokens", "completion_tokens", "finish_reason", "stream", "aborted"] {
            row[column] = expected[column].clone();
        }
        assert_row(&session, &seen[call], row).await;
    }
    assert_eq!(seen["streamed_tools"]["tools"][0]["name"], "get_weather");
    for (call, wanted) in [
        ("wrong_key", json!({"class": "AuthenticationError", "status": 401, "type": "authentication_error"})),
        ("over_the_limit", json!({"class": "RateLimitError", "status": 429, "type": "rate_limit_error"})),
        ("over_the_limit_streamed", json!({"class": "RateLimitError", "status": 429, "type": "rate_limit_error"})),
        ("no_such_path", json!({"class": "NotFoundError", "status": 404})),
        ("vllm_bad_model", json!({"class": "NotFoundError", "status": 404, "type": "NotFoundError"})),
        ("vllm_gone", json!({"class": "InternalServerError", "status": 502, "type": "api_error"})),
        ("vllm_hangs", json!({"status": 504, "type": "timeout_error"})),
    ] {
        assert_has(call, &seen[call], wanted);
        assert_row(&session, &seen[call], json!({"status": seen[call]["status"]})).await;
    }
    assert_asked_once(&session, &user);
    assert!(seen["over_the_limit"]["retry_after"].is_string(), "{}", seen["over_the_limit"]);
}
