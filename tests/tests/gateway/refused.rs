//! Calls that the gateway or the model server refuses: what the SDKs read, and what is logged.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gateway_tests::fixtures;
use gateway_tests::gateway::{Reply, Session, User};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const WRONG_KEY: &str = "sk-wrong-0123456789abcdef0123456789";

/// An error in OpenAI's shape; returns its message.
fn openai_error(reply: &Reply, status: u16, kind: &str, code: Value) -> String {
    assert_eq!(reply.status, status, "{}", reply.text());
    let body = reply.json();
    let error = body["error"].as_object().unwrap_or_else(|| panic!("{body}"));
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    let members: Vec<&str> = error.keys().map(String::as_str).collect();
    assert_eq!(members, ["code", "message", "param", "type"], "{body}");
    assert_eq!((&error["type"], &error["code"], &error["param"]), (&json!(kind), &code, &Value::Null), "{body}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
    error["message"].as_str().unwrap().to_owned()
}

/// An error in Anthropic's shape; returns its message.
fn anthropic_error(reply: &Reply, status: u16, kind: &str) -> String {
    assert_eq!(reply.status, status, "{}", reply.text());
    let body = reply.json();
    assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!(kind)), "{body}");
    assert_eq!(body["request_id"], reply.request_id());
    assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
    body["error"]["message"].as_str().unwrap().to_owned()
}

/// The row of a call that never reached vLLM.
async fn assert_logged(session: &Session, reply: &Reply, consumer: &str, endpoint: &str, message: &str) {
    assert!(reply.seen(session).is_empty(), "it reached vLLM");
    let row = reply.row(session).await;
    let wanted = json!({"status": reply.status, "consumer_username": consumer, "endpoint": endpoint, "error": message,
        "response": null, "stream": false, "aborted": false, "completion_tokens": null, "upstream_latency_ms": null});
    for (column, wanted) in wanted.as_object().unwrap() {
        assert_eq!(row[column], *wanted, "{column} of {row}");
    }
}

/// Sends a request in pieces until an answer comes, with a pause behind each; returns its status and body.
async fn send_until_answered(session: &Session, head: String, piece: &[u8], pieces: usize, pause: Duration) -> (u16, Value) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = session.gateway.proxy_url.trim_start_matches("http://");
    let (mut reader, mut writer) = tokio::net::TcpStream::connect(address).await.unwrap().into_split();
    writer.write_all(head.as_bytes()).await.unwrap();
    let piece = piece.to_vec();
    let sender = tokio::spawn(async move {
        for _ in 0..pieces {
            // The server may close once it has answered.
            if writer.write_all(&piece).await.is_err() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        writer
    });
    let mut answer = Vec::new();
    let whole = loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() == length.unwrap_or(usize::MAX) {
                break text;
            }
        }
        let mut buffer = [0; 4096];
        let read = reader.read(&mut buffer).await.unwrap();
        assert!(read > 0, "the connection ended: {text}");
        answer.extend_from_slice(&buffer[..read]);
    };
    sender.abort();
    let (head, body) = whole.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.parse().unwrap())
}

#[tokio::test]
async fn a_request_that_is_too_large_gives_413_whether_it_tells_its_length_or_not() {
    let session = Session::begin().await;
    let user = session.user().await;
    for (path, length, piece, pieces) in [
        // Nothing of the body is sent: it is refused by its head.
        (CHAT, "Content-Length: 67108865", &b""[..], 0),
        (MESSAGES, "Content-Length: 67108865", b"", 0),
        (CHAT, "Transfer-Encoding: chunked", &[&b"100000\r\n"[..], &[b' '; 1 << 20], b"\r\n"].concat(), 66),
    ] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\nX-API-Key: {}\r\n{length}\r\n\r\n",
            user.key
        );
        let (status, body) = send_until_answered(&session, head, piece, pieces, Duration::ZERO).await;
        assert_eq!(status, 413, "{body}");
        let error = &body["error"];
        if path == MESSAGES {
            assert_eq!((&body["type"], &error["type"]), (&json!("error"), &json!("request_too_large")), "{body}");
        } else {
            assert_eq!(
                (&error["type"], &error["code"]),
                (&json!("invalid_request_error"), &json!("request_too_large")),
                "{body}"
            );
        }
        assert!(error["message"].as_str().unwrap().starts_with("The request is larger than the gateway accepts"), "{body}");
    }
}

#[tokio::test]
async fn a_body_that_trickles_in_has_an_end() {
    let session = Session::alone().await;
    session.change(&[("REQUEST_BODY_SECONDS", "1")]).await;
    for (path, length, piece) in [
        (CHAT, "Content-Length: 1000", &b" "[..]),
        (MESSAGES, "Content-Length: 3", b""),
        ("/v1/audio/transcriptions", "Content-Length: 1000", b"-"),
    ] {
        let user = session.user().await;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\nX-API-Key: {}\r\nx-e2e-raw: {}\r\n{length}\r\n\r\n",
            user.key, user.name
        );
        // A tenth of what is announced, in ten seconds: each read is in time.
        let (status, body) = send_until_answered(&session, head, piece, 100, Duration::from_millis(100)).await;
        assert_eq!(status, 408, "{body}");
        assert!(body["error"]["message"].as_str().is_some_and(|message| message.contains("did not arrive in time")), "{body}");
        let row = session.row_of(&user).await;
        assert_eq!(
            (&row["status"], &row["error"], &row["unread"]),
            (&json!(408), &body["error"]["message"], &json!(false)),
            "{row}"
        );
        assert!(session.gateway.seen(|seen| seen.header("x-e2e-raw") == Some(&user.name)).is_empty(), "it reached vLLM");
    }
}

#[tokio::test]
async fn a_wrong_key_and_none_at_all_give_401() {
    let session = Session::begin().await;
    session.gateway.remember_key(WRONG_KEY);
    let body = || fixtures::vllm_request("chat-en-stream");
    let wrong = session.call(CHAT).key(WRONG_KEY).body(body()).send().await;
    let message = openai_error(&wrong, 401, "invalid_request_error", json!("invalid_api_key"));
    assert!(!message.contains("sk-"), "{message}");
    assert_logged(&session, &wrong, "anonymous", CHAT, &message).await;
    let none = session.call(CHAT).body(body()).send().await;
    let message_for_none = openai_error(&none, 401, "invalid_request_error", json!("invalid_api_key"));
    assert_ne!(message, message_for_none, "a client that sent no key is told so");
    assert_logged(&session, &none, "anonymous", CHAT, &message_for_none).await;
    for (name, value) in [("authorization", "Basic dXNlcjpwYXNz"), ("authorization", "Bearer"), ("x-api-key", "")] {
        let reply = session.call(CHAT).header(name, value).body(body()).send().await;
        let message = openai_error(&reply, 401, "invalid_request_error", json!("invalid_api_key"));
        assert_logged(&session, &reply, "anonymous", CHAT, &message).await;
    }
    let get = session.call("/v1/models").key(WRONG_KEY).send().await;
    openai_error(&get, 401, "invalid_request_error", json!("invalid_api_key"));

    let body = fixtures::vllm_request("messages-stream");
    let messages = session.call(MESSAGES).header("x-api-key", WRONG_KEY).body(body).send().await;
    let message = anthropic_error(&messages, 401, "authentication_error");
    assert_logged(&session, &messages, "anonymous", MESSAGES, &message).await;
}

#[tokio::test]
async fn a_key_in_the_query_is_refused_and_not_stored() {
    let session = Session::begin().await;
    let user = session.user().await;
    for name in ["apikey", "api_key", "X-API-Key", "x-api-key", "key"] {
        let path = format!("{CHAT}?a=1&{name}={}", user.key);
        let reply = session.call(&path).body(fixtures::vllm_request("chat-en")).send().await;
        openai_error(&reply, 401, "invalid_request_error", json!("invalid_api_key"));
        assert!(reply.seen(&session).is_empty());
        let row = reply.row(&session).await;
        assert!(!row.to_string().contains(&user.key), "{name}: {row}");
        assert_eq!((&row["consumer_username"], &row["endpoint"]), (&json!("anonymous"), &json!(CHAT)));
    }
}

fn hour() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 3600
}

/// A user with a limit of `limit` calls, all of which are used up; returns the reply that said so.
async fn over_the_limit(session: &Session, limit: usize) -> (User, Reply) {
    // Kong counts by the hour of the clock: one that strikes in between starts anew.
    loop {
        let user = session.user().await;
        let said = session.users(&["limit", &user.name, &limit.to_string()]).await;
        assert!(said.success, "{}", said.stderr);
        let started = hour();
        let mut allowed = 0;
        let refused = loop {
            let reply = session.call("/v1/models").key(&user.key).send().await;
            match reply.status {
                200 => allowed += 1,
                _ => break reply,
            }
            if allowed > 4 * limit {
                // The limit has not reached this worker yet.
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
            assert!(allowed < 40 * limit, "{allowed} calls of a user with a limit of {limit}");
        };
        if hour() == started {
            return (user, refused);
        }
    }
}

#[tokio::test]
async fn a_user_over_the_limit_gets_429_with_the_time_to_wait() {
    let session = Session::begin().await;
    let (user, refused) = over_the_limit(&session, 5).await;
    let message = openai_error(&refused, 429, "requests", json!("rate_limit_exceeded"));
    assert!(message.contains('5') && message.contains("hour"), "{message}");
    let wait: u64 = refused.header("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!((1..=3600).contains(&wait), "{wait}");
    assert_eq!(refused.header("x-ratelimit-limit-hour"), Some("5"));
    assert_eq!(refused.header("x-ratelimit-remaining-hour"), Some("0"));
    assert_logged(&session, &refused, &user.name, "/v1/models", &message).await;

    // Kong's workers may learn of the limit one after the other.
    let body = fixtures::vllm_request("chat-en-stream");
    session.settled("the limit holds", || async { session.call("/v1/models").key(&user.key).send().await.status == 429 }).await;
    let streamed = session.call(CHAT).key(&user.key).body(body).send().await;
    let message = openai_error(&streamed, 429, "requests", json!("rate_limit_exceeded"));
    assert_logged(&session, &streamed, &user.name, CHAT, &message).await;
    let body = fixtures::vllm_request("messages-stream");
    let messages = session.call(MESSAGES).header("x-api-key", &user.key).body(body).send().await;
    let message = anthropic_error(&messages, 429, "rate_limit_error");
    assert!(messages.header("retry-after").is_some());
    assert_logged(&session, &messages, &user.name, MESSAGES, &message).await;

    let said = session.users(&["limit", &user.name, "default"]).await;
    assert!(said.success, "{}", said.stderr);
    session.settled("the limit is gone", || async { session.call("/v1/models").key(&user.key).send().await.status == 200 }).await;
}

#[tokio::test]
async fn a_limit_counts_each_call_once() {
    const LIMIT: usize = 300;
    let session = Session::begin().await;
    let started = hour();
    let user = session.user().await;
    let said = session.users(&["limit", &user.name, &LIMIT.to_string()]).await;
    assert!(said.success, "{}", said.stderr);
    let allowed = AtomicUsize::new(0);
    let call = || async {
        let reply = session.call("/v1/models").key(&user.key).send().await;
        allowed.fetch_add(usize::from(reply.status == 200), Ordering::Relaxed);
        reply
    };
    // While Kong does not know of the limit its calls count all the same, in hundreds at most.
    session
        .settled("the limit is known", || async {
            call().await.header("x-ratelimit-limit-hour") == Some(LIMIT.to_string().as_str())
        })
        .await;
    while call().await.status == 200 {
        assert!(allowed.load(Ordering::Relaxed) <= LIMIT + 2 || hour() != started, "more calls than allowed");
    }
    let allowed = allowed.load(Ordering::Relaxed);
    // Kong counts just after it has answered.
    assert!((LIMIT..=LIMIT + 2).contains(&allowed) || hour() != started, "{allowed} calls of {LIMIT}");
}

#[tokio::test]
async fn an_unknown_path_gives_404_and_a_row() {
    let session = Session::begin().await;
    let user = session.user().await;
    for path in ["/v1/chat/completion", "/v1/nope", "/chat/completions", "/", "/v1/chat/completions/", "/v1/models/"] {
        for key in [Some(&user.key), None] {
            let mut call = session.call(path).body(fixtures::vllm_request("chat-en"));
            if let Some(key) = key {
                call = call.key(key);
            }
            let reply = call.send().await;
            let message = openai_error(&reply, 404, "invalid_request_error", json!("unknown_url"));
            assert!(message.contains(&format!("POST {path}")), "{message}");
            assert_logged(&session, &reply, "anonymous", path, &message).await;
        }
    }
}

#[tokio::test]
async fn errors_of_vllm_pass_untouched() {
    let session = Session::begin().await;
    let user = session.user().await;
    for (name, path, status) in [
        ("err-bad-model", CHAT, 404),
        ("err-bad-model-stream", CHAT, 404),
        ("err-context-too-long", CHAT, 400),
        ("err-invalid-json", CHAT, 400),
        ("key-messages-missing", CHAT, 401),
        ("engine-dead-next-request", CHAT, 500),
        ("messages-bad-model-error", MESSAGES, 404),
    ] {
        let call = session.call(path).key(&user.key).header("x-fixture", name);
        let reply = call.body(fixtures::vllm_request(name)).send().await;
        assert_eq!(reply.status, status, "{name}");
        crate::events::assert_same(name, &reply.body, &fixtures::vllm_response(name));
        assert_eq!(reply.header("content-type"), Some("application/json"), "{name}");
        let row = reply.row(&session).await;
        assert_eq!((&row["status"], &row["consumer_username"]), (&json!(status), &json!(user.name)), "{name}");
        assert!(row["error"].is_string() && row["response"].is_null(), "{name}: {row}");
    }
}
