//! What vLLM answers and the gateway must not hand on.

use gateway_tests::gateway::Session;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Pages of vLLM's operator, and ways to the model that the audit does not see.
const CLOSED: [&str; 20] = [
    "/metrics",
    "/health",
    "/load",
    "/ping",
    "/version",
    "/pause",
    "/resume",
    "/is_paused",
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/collective_rpc",
    "/server_info",
    "/invocations",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/docs",
    "/openapi.json",
    "/_seen",
    "/v1/chat/completions/batch",
];

#[tokio::test]
async fn pages_of_vllms_operator_are_closed_with_and_without_a_key() {
    let session = Session::begin().await;
    let user = session.user().await;
    for path in CLOSED {
        for method in ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"] {
            for key in [None, Some(&user.key)] {
                let mut call = session.call(path).method(method);
                if let Some(key) = key {
                    call = call.key(key);
                }
                let reply = call.send().await;
                assert_eq!(reply.status, 404, "{method} {path}");
                assert!(reply.seen(&session).is_empty(), "{method} {path} reached vLLM");
            }
        }
    }
}

/// Sends a request line as it stands, which no HTTP library does; returns the status.
async fn status_of(session: &Session, target: &str, key: &str, mark: &str) -> String {
    let address = session.gateway.proxy_url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {target} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {key}\r\nx-e2e-raw: {mark}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset instead of an orderly end is an answer, too.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.split(' ').nth(1).unwrap_or_else(|| panic!("{target}: {answer}")).to_owned()
}

#[tokio::test]
async fn no_spelling_of_a_path_opens_a_closed_page() {
    let session = Session::begin().await;
    let user = session.user().await;
    let mark = format!("spelling-{}", user.name);
    for target in [
        "//metrics",
        "/./metrics",
        "/v1/../metrics",
        "/v1/chat/completions/../../../metrics",
        "/v1/models/../../metrics",
        "/v1/models%2f..%2f..%2fmetrics",
        "/v1/models/%2e%2e/%2e%2e/metrics",
        "/v1/%2e%2e/metrics",
        "/%6detrics",
        "/v1/models;/../../metrics",
        "/v1/models%00/metrics",
        "/v1/models\\..\\..\\metrics",
        "/v1/models%5c..%5c..%5cmetrics",
        "/metrics?x=/v1/models",
        "/metrics#/v1/models",
        "/v1/models/../pause",
        "http://127.0.0.1/metrics",
        "/METRICS",
    ] {
        let status = status_of(&session, target, &user.key, &mark).await;
        assert!(matches!(status.as_str(), "400" | "404"), "{target}: {status}");
    }
    let seen = session.gateway.seen(|seen| seen.header("x-e2e-raw") == Some(&mark));
    assert!(seen.is_empty(), "{seen:?}");
}

#[tokio::test]
async fn a_spelling_that_means_an_open_page_is_checked_like_it() {
    let session = Session::begin().await;
    for target in ["/v1/../v1/models", "/v1/./models", "/v1/%6dodels", "//v1/models", "/v1//models"] {
        let status = status_of(&session, target, "sk-nobody", "open").await;
        assert!(matches!(status.as_str(), "401" | "404"), "{target}: {status}");
    }
    session.gateway.remember_key("sk-nobody");
}

#[tokio::test]
async fn a_web_socket_is_refused_and_no_other_upgrade() {
    let session = Session::begin().await;
    let user = session.user().await;
    for (upgrade, status) in [("websocket", 400), ("WebSocket", 400), ("h2c", 200)] {
        let call = session.call("/v1/models").key(&user.key).header("connection", "upgrade").header("upgrade", upgrade);
        let reply = call.method("GET").send().await;
        assert_eq!(reply.status, status, "{upgrade}: {}", reply.text());
        if status == 400 {
            let body = reply.json();
            assert_eq!((&body["error"]["type"], &body["error"]["code"]), (&"invalid_request_error".into(), &().into()), "{body}");
            assert!(reply.seen(&session).is_empty(), "it reached vLLM");
            assert_eq!(reply.row(&session).await["status"], 400);
        } else {
            assert!(!reply.seen_once(&session).await.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("upgrade")));
        }
    }
}
