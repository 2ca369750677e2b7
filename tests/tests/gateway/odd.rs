//! Requests that somebody wrote by hand, so that the gateway, the model server and the collector might read them in different ways:
//! each is refused, or is in the log as the model server got it.

use gateway_tests::gateway::{Session, User};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CHAT: &str = "/v1/chat/completions";
const BODY: &str = r#"{"model":"m","messages":[{"role":"user","content":"one two three"}],"stream":true}"#;

/// Sends bytes as they stand; returns the status, and the id that the gateway gave the call.
async fn send(session: &Session, request: &[u8]) -> (u16, Option<String>) {
    let address = session.gateway.proxy_url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    // It may be refused before all of it is sent.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    // The last one: "100 Continue" may come first.
    let status = answer.rsplit("HTTP/1.1 ").next().and_then(|answer| answer.split(' ').next()?.parse().ok());
    let id = answer.lines().find_map(|line| Some(line.to_ascii_lowercase().strip_prefix("x-kong-request-id: ")?.to_owned()));
    (status.unwrap_or_else(|| panic!("{}: {answer}", String::from_utf8_lossy(request))), id)
}

fn request(user: &User, mark: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {}\r\nx-e2e-raw: {mark}\r\nConnection: close\r\n{headers}\r\n",
        user.key
    );
    [head.as_bytes(), body].concat()
}

/// A chat: refused without reaching the model server, or read.
async fn assert_one_reading(session: &Session, user: &User, number: usize, what: &str, request: Vec<u8>, mark: &str) {
    let (status, id) = send(session, &request).await;
    let seen = session.gateway.seen(|seen| seen.header("x-e2e-raw") == Some(mark));
    if status != 200 {
        assert!(matches!(status, 400 | 404 | 405 | 411 | 414 | 417 | 501), "{number} {what}: {status}");
        // Or the model server refused it.
        let by_server = seen.first().is_some_and(|seen| seen.status == Some(status));
        assert!(seen.is_empty() || by_server, "{number} {what}: refused with {status}, and it reached vLLM");
        return;
    }
    assert_eq!(seen.len(), 1, "{number} {what}");
    let row = session.row(&id.unwrap()).await;
    let llm = &row["raw_log"]["llm"];
    assert_eq!(
        (&llm["api"], &llm["model_asked"], &llm["stream_asked"]),
        (&json!("chat"), &json!("m"), &json!(true)),
        "{what}: {row}"
    );
    assert_eq!((&row["prompt"], &row["unread"]), (&json!("one two three"), &json!(false)), "{what}: {row}");
    assert!(row["completion_tokens"].is_u64(), "{what}: {row}");
    let sent: Value = serde_json::from_slice(&seen[0].body).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(sent["stream_options"]["include_usage"], true, "{what}");
    assert_eq!(row["consumer_username"], user.name.as_str(), "{what}");
}

#[tokio::test]
async fn headers_that_lie_about_the_body_change_nothing() {
    let session = Session::begin().await;
    let user = session.user().await;
    let length = BODY.len();
    let chunked = format!("{length:x}\r\n{BODY}\r\n0\r\n\r\n");
    let both = format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n");
    let lengths = |value: &str| format!("Content-Type: application/json\r\nContent-Length: {value}\r\n");
    let typed = |kind: &str| format!("{kind}Content-Length: {length}\r\n");
    for (number, (headers, body)) in [
        (typed("Content-Type: application/json\r\nContent-Type: multipart/form-data; boundary=b\r\n"), BODY),
        (typed("Content-Type: multipart/form-data; boundary=b\r\nContent-Type: application/json\r\n"), BODY),
        (typed("Content-Type: application/json; x=multipart/form-data\r\n"), BODY),
        (typed("Content-Type: application/json;charset=utf-16\r\n"), BODY),
        (typed("Content-Type: multipart/form-data; boundary=b\r\n"), BODY),
        (typed("Content-Type: application/x-www-form-urlencoded\r\n"), BODY),
        (typed("Content-Type: text/event-stream\r\n"), BODY),
        (typed(""), BODY),
        (typed("Content-Type: application/json\r\nContent-Encoding: identity\r\n"), BODY),
        (typed("Content-Type: application/json\r\nContent-Encoding: gzip\r\n"), BODY),
        (typed("Content-Type: application/json\r\nContent-Encoding: identity\r\nContent-Encoding: gzip\r\n"), BODY),
        (typed("Content-Type: application/json\r\nContent-Encoding: identity, gzip\r\n"), BODY),
        (typed("Content-Type: application/json\r\nExpect: 100-continue\r\n"), BODY),
        (typed("Content-Type: application/json\r\nExpect: a miracle\r\n"), BODY),
        (typed("Content-Type: application/json\r\nX-HTTP-Method-Override: GET\r\n"), BODY),
        (lengths(&format!("+{length}")), BODY),
        (lengths(&format!("{length}, {length}")), BODY),
        (lengths(&format!("{length}\r\nContent-Length: {length}")), BODY),
        (lengths(&format!("{length}\r\nContent-Length: 5")), BODY),
        (lengths("0x10"), BODY),
        (both.clone(), &chunked),
        ("Transfer-Encoding: chunked\r\n".to_owned(), &chunked),
        ("Transfer-Encoding: Chunked\r\n".to_owned(), &chunked),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n".to_owned(), &chunked),
        ("Transfer-Encoding: gzip, chunked\r\n".to_owned(), &chunked),
        ("Transfer-Encoding: chunked, identity\r\n".to_owned(), &chunked),
        ("Transfer-Encoding: xchunked\r\n".to_owned(), &chunked),
        ("Transfer-Encoding: identity\r\n".to_owned(), BODY),
    ]
    .into_iter()
    .enumerate()
    {
        let mark = format!("headers-{number}-{}", user.name);
        let bytes = request(&user, &mark, CHAT, &headers, body.as_bytes());
        assert_one_reading(&session, &user, number, &headers, bytes, &mark).await;
    }
}

#[tokio::test]
async fn a_path_means_the_same_to_all_or_nothing_at_all() {
    let session = Session::begin().await;
    let user = session.user().await;
    let headers = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", BODY.len());
    for (number, path) in [
        "/v1/chat%2Fcompletions",
        "/v1/chat%2fcompletions",
        "/v1%2Fchat/completions",
        "/v1/chat/completions%2F",
        "/v1/chat/completions%00",
        "/v1/chat%5Ccompletions",
        "/v1\\chat\\completions",
        "/v1/ch%2561t/completions",
        "/v1/chat/completions%3Fx",
        "/v1/chat/completions?x=/v1/models",
        "/v1/chat/completions;x=1",
        "/v1;x=1/chat/completions",
        "/V1/Chat/Completions",
        "/v1/chat/completions/",
        "/v1/chat/completions//",
        "//v1/chat/completions",
        "/v1/%2e/chat/completions",
        "/v1/%2e%2e/v1/chat/completions",
        "/v1/models/%2e%2e/chat/completions",
        "/v1/models/..%2Fchat%2Fcompletions",
        "/v1/responses%2Fresp_1",
        "/v1/chat/completions%20",
        "/v1/chat/completions%0d%0a",
        "/%76%31/%63%68%61%74/%63ompletions",
        "/v1/chat/completions#x",
        "/v1/chat/completions?%00",
        "http://other/v1/chat/completions",
        &format!("/v1/{}chat/completions", "./".repeat(2_000)),
        &format!("/v1/{}chat/completions", "x/../".repeat(1_000)),
        &format!("/v1/chat/completions?{}", "a".repeat(3_000)),
        &format!("/{}", "a/".repeat(6_000)),
    ]
    .into_iter()
    .enumerate()
    {
        let mark = format!("paths-{number}-{}", user.name);
        let bytes = request(&user, &mark, path, &headers, BODY.as_bytes());
        assert_one_reading(&session, &user, number, path, bytes, &mark).await;
    }
}
