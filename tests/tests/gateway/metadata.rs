//! Users of whom nothing is logged but who, when and how much (`capture` is `metadata`).

use gateway_tests::collector;
use gateway_tests::gateway::{Session, User};
use serde_json::{Value, json};

use crate::recordings::{expected_row, recorded};

const CHAT: &str = "/v1/chat/completions";
const QUESTION: &str = "a question that is nobody's business";

const TOKENS: [&str; 4] = ["prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"];

/// Whether `llm` may hold this.
fn may_be_reported(name: &str, value: &Value) -> bool {
    match name {
        "v" | "ttft_ms" | "request_bytes" | "response_bytes" | "seq" => value.is_u64(),
        "stream" | "request_truncated" | "response_truncated" | "aborted" => value.is_boolean(),
        "stream_asked" | "repeat" => value.is_boolean(),
        // How the plugin read the request: a word of its own, and a name of a model.
        "api" => value.as_str().is_some_and(|api| api.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')),
        "model_asked" => value == "qwen-tiny" || value == "m" || value == "no-such-model" || value == "nope",
        "estimated" => has_only_counts(value),
        "worker" => value.is_string(),
        "model" => value == "qwen-tiny" || value == "m",
        "usage" => has_only_counts(value),
        _ => false,
    }
}

fn has_only_counts(usage: &Value) -> bool {
    let members = usage.as_object().filter(|members| !members.is_empty());
    members.is_some_and(|members| members.values().all(|value| value.is_u64() || has_only_counts(value)))
}

/// A user whose calls are logged without content, by all workers.
async fn private_user(session: &Session) -> User {
    let user = session.user().await;
    let said = session.users(&["capture", &user.name, "metadata"]).await;
    assert!(said.success, "users capture: {}", said.stderr);
    session
        .settled("calls are logged without content", || async {
            let request = json!({"model": "m", "messages": [{"role": "user", "content": QUESTION}]}).to_string();
            let reply = session.call(CHAT).key(&user.key).body(request).send().await;
            reply.row(session).await["prompt"].is_null()
        })
        .await;
    user
}

/// What was said, as it would stand in JSON.
fn texts(row: &Value) -> Vec<String> {
    let texts = ["prompt", "response", "reasoning"].map(|column| &row[column]);
    // Of long texts the expected rows hold the beginning and the end.
    let parts = texts.iter().flat_map(|text| [text, &text["head"], &text["tail"]]);
    let parts = parts.filter_map(Value::as_str).filter(|text| text.chars().count() > 8);
    parts.map(|text| json!(text).to_string().trim_matches('"').to_owned()).collect()
}

fn check_privacy(what: &str, row: &Value) {
    for column in ["prompt", "response", "reasoning", "tool_calls"] {
        assert_eq!(row[column], Value::Null, "{what}: {column}");
    }
    for side in ["request", "response"] {
        assert_eq!(row["raw_log"][side].get("body"), None, "{what}: {side}");
    }
    for (name, value) in row["raw_log"]["llm"].as_object().unwrap() {
        assert!(may_be_reported(name, value), "{what}: {name} is {value}");
    }
}

#[tokio::test]
async fn a_private_users_calls_are_accounted_for_and_no_word_of_them_is_kept() {
    let session = Session::begin().await;
    let user = private_user(&session).await;
    let mut replies = Vec::new();
    for recorded in recorded() {
        let reply = recorded.call(&session, &user.key).await;
        let seen = reply.seen_once(&session).await;
        replies.push((expected_row(&recorded, &seen), recorded, reply));
    }
    let (mut wrong, mut counted) = (Vec::new(), 0);
    for (mut expected, recorded, reply) in replies {
        let row = reply.row(&session).await;
        check_privacy(&recorded.name, &row);
        for text in texts(&expected) {
            assert!(!row.to_string().contains(&text), "{}: {text} in {row}", recorded.name);
        }
        // A failed call, and one whose answer names no model, has a model only where the request was read.
        if row["raw_log"]["llm"].get("model").is_none() {
            assert!(expected["prompt_tokens"].is_null(), "{}: no model", recorded.name);
            expected["model"] = row["raw_log"]["llm"].get("model_asked").cloned().unwrap_or(Value::Null);
        }
        for column in ["status", "model", "endpoint", "stream", "aborted"].iter().chain(&TOKENS) {
            if row[column] != expected[column] {
                wrong.push(format!("{}.{column}: expected {}, got {}", recorded.name, expected[column], row[column]));
            }
        }
        counted += usize::from(row["completion_tokens"].is_u64());
    }
    assert!(wrong.is_empty(), "{} columns differ\n{}", wrong.len(), wrong.join("\n"));
    assert!(counted > 100, "only {counted} calls with tokens");
}

#[tokio::test]
async fn a_private_users_long_answers_are_counted_in_rows_and_metrics() {
    let session = Session::begin().await;
    let user = private_user(&session).await;
    let mut tokens = 0;
    for stream in [false, true] {
        let words = r#"secret "model":"evil","usage":{"prompt_tokens":9}} words"#;
        let request = json!({"messages": [{"role": "user", "content": words}], "model": "m", "stream": stream}).to_string();
        let call = session.call(CHAT).key(&user.key).header("x-sim-repeat", "3000");
        let reply = call.body(request).send().await;
        assert!(reply.body.len() > 150_000, "{} bytes", reply.body.len());
        let row = reply.row(&session).await;
        check_privacy("long", &row);
        assert!(!row.to_string().contains("secret"), "{row}");
        let llm = &row["raw_log"]["llm"];
        assert!(row["completion_tokens"].as_u64().is_some_and(|tokens| tokens >= 9000), "{llm}");
        assert_eq!((&row["truncated"], &row["aborted"], &row["stream"]), (&json!(false), &json!(false), &json!(stream)));
        assert!(llm["response_bytes"].as_u64().unwrap() >= reply.body.len() as u64, "{llm}");
        tokens += row["completion_tokens"].as_u64().unwrap();
    }
    let page = collector::get(&format!("{}/metrics", session.gateway.collector_url)).await.unwrap().text;
    let series = format!(r#"llm_tokens_total{{consumer="{}",model="m",type="completion"}} "#, user.name);
    let counted = page.lines().find_map(|line| line.strip_prefix(&series)).map(|count| count.parse::<u64>().unwrap());
    assert!(counted.is_some_and(|counted| counted > tokens), "{counted:?} instead of {tokens} and those of the set-up");
}

#[tokio::test]
async fn a_client_that_hangs_up_at_the_last_event_did_not_abort() {
    let session = Session::begin().await;
    let user = private_user(&session).await;
    let request = json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": QUESTION}]}).to_string();
    // The role, six words, the finish reason, the usage, [DONE], and then not the end.
    for (last, chunks, aborted) in [("[DONE]", "10", false), ("nobody's", "6", true)] {
        let call = session.call(CHAT).key(&user.key).header("x-sim-stall", chunks);
        let mut response = call.body(request.clone()).open().await.unwrap();
        let id = response.headers()["x-kong-request-id"].to_str().unwrap().to_owned();
        let mut read = String::new();
        while !read.contains(last) {
            read.push_str(&String::from_utf8_lossy(&response.chunk().await.unwrap().unwrap()));
        }
        drop(response);
        let row = session.row(&id).await;
        assert_eq!(row["aborted"], aborted, "hung up at {last}");
        assert_eq!(row["model"], "m");
        assert_eq!(row["completion_tokens"].as_u64(), (!aborted).then_some(6));
    }
}
