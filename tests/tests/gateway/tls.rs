//! The gateway over HTTPS: through the SDKs, over HTTP/2, and what is looked at of its certificate.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use gateway_tests::fixtures;
use gateway_tests::gateway::{Session, Tls, User};
use gateway_tests::postgres::Certificates;
use gateway_tests::process::wait_until;
use gateway_tests::vllm::Ended;
use llm_collector::certificates::server::{Fingerprint, ServerCertificate, Unfit, usable};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::events::{assert_same, split};

const CHAT: &str = "/v1/chat/completions";

/// The gateway's HTTPS side. A Kong that was there before has none that is known, and is not tried.
fn tls(session: &Session) -> Option<&'static Tls> {
    session.gateway.tls.as_ref()
}

#[tokio::test]
async fn both_sdks_work_over_https_and_refuse_a_certificate_of_somebody_unknown() {
    let session = Session::begin().await;
    let Some(tls) = tls(&session) else { return };
    let user = session.user().await;
    let output = Command::new(crate::sdk::python())
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/tls_calls.py"))
        .env_clear()
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("BASE_URL", &tls.url)
        .env("KEY", &user.key)
        .env("SSL_CERT_FILE", &tls.certificate)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(60), output).await.expect("it ends").expect("Python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (call, fixture) in [("plain", "chat-en"), ("streamed", "chat-en-stream-usage"), ("anthropic", "messages-stop-sequence")] {
        let wanted = &fixtures::expected_row(fixture)["response"];
        assert_eq!(said[call]["content"], *wanted, "{call}");
        let row = session.row(said[call]["request_id"].as_str().unwrap()).await;
        assert_eq!((&row["response"], &row["consumer_username"]), (wanted, &json!(user.name)), "{call}");
    }
    assert!(said["stranger"].as_str().is_some_and(|error| error.contains("certificate verify failed")), "{said}");
}

/// curl as a client of HTTP/2, which writes the head of the answer before the body, and reads a body as it comes on its standard input.
fn curl(tls: &Tls, user: &User, arguments: &[&str]) -> Child {
    Command::new("curl")
        .args(["-q", "-sS", "-N", "--http2", "--noproxy", "*", "--max-time", "60", "-D", "-", "-X", "POST", "--cacert"])
        .arg(&tls.certificate)
        .args(["-H", &format!("Authorization: Bearer {}", user.key), "-H", "Content-Type: application/json"])
        .args(arguments)
        .arg(format!("{}{CHAT}", tls.url))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Head and body of what curl wrote.
fn parts(output: &[u8]) -> (String, &[u8]) {
    let at = output.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or_else(|| panic!("no head"));
    let (head, body) = output.split_at(at + 4);
    (String::from_utf8_lossy(head).into_owned(), body)
}

fn request_id(head: &str) -> &str {
    head.lines().find_map(|line| line.strip_prefix("x-kong-request-id: ")).unwrap_or_else(|| panic!("no request id: {head}"))
}

#[tokio::test]
async fn a_stream_over_http_2_comes_whole_and_becomes_a_row_whether_its_request_tells_its_length_or_not() {
    let session = Session::begin().await;
    let Some(tls) = tls(&session) else { return };
    let user = session.user().await;
    let (request, response) = (fixtures::vllm_request("chat-en-stream-usage"), fixtures::vllm_response("chat-en-stream-usage"));
    for body in [["--data-binary", "@-"], ["-T", "-"]] {
        let mark = format!("{}{}", user.name, body[0]);
        let marked = format!("x-e2e-raw: {mark}");
        let mut child = curl(tls, &user, &[&body[..], &["-H", "x-fixture: chat-en-stream-usage", "-H", &marked]].concat());
        let mut stdin = child.stdin.take().unwrap();
        // In two pieces, so that it cannot be there at once where its length is not told.
        let (one, two) = request.split_at(40);
        stdin.write_all(one).await.unwrap();
        stdin.flush().await.unwrap();
        stdin.write_all(two).await.unwrap();
        drop(stdin);
        let output = child.wait_with_output().await.unwrap().stdout;
        let (head, got) = parts(&output);
        assert!(head.starts_with("HTTP/2 200"), "{head}");
        assert_same("stream", got, &response);
        let seen = session.gateway.seen(|seen| seen.header("x-e2e-raw") == Some(&mark));
        assert_eq!(seen.len(), 1);
        assert_same("request", &seen[0].body, &request);
        let row = session.row(request_id(&head)).await;
        let wanted = fixtures::expected_row("chat-en-stream-usage");
        for column in
            ["prompt", "response", "prompt_tokens", "completion_tokens", "finish_reason", "stream", "aborted", "truncated"]
        {
            assert_eq!(row[column], wanted[column], "{column} of {row}");
        }
        assert_eq!(row["raw_log"]["llm"]["request_bytes"], request.len());
        assert_eq!(row["unread"], false);
    }
}

#[tokio::test]
async fn a_client_that_goes_in_mid_stream_of_http_2_leaves_a_row_of_what_it_got() {
    let session = Session::begin().await;
    let Some(tls) = tls(&session) else { return };
    let user = session.user().await;
    let mark = format!("x-e2e-raw: {}", user.name);
    let slow = ["-H", "x-fixture: chat-en-stream", "-H", "x-sim-chunk-delay-ms: 50", "-H", &mark, "--data-binary", "@-"];
    let mut child = curl(tls, &user, &slow);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&fixtures::vllm_request("chat-en-stream")).await.unwrap();
    drop(stdin);
    let (mut stdout, mut got) = (child.stdout.take().unwrap(), Vec::new());
    while split(&got).len() < 7 {
        assert_ne!(stdout.read_buf(&mut got).await.unwrap(), 0, "{}", String::from_utf8_lossy(&got));
    }
    child.kill().await.unwrap();
    wait_until("vLLM sees its client go", Duration::from_secs(5), || async {
        let seen = session.gateway.seen(|seen| seen.header("x-e2e-raw") == Some(&user.name));
        seen.iter().any(|seen| seen.end == Some(Ended::ClientGone))
    })
    .await;
    let row = session.row_of(&user).await;
    assert_eq!((&row["status"], &row["aborted"], &row["stream"]), (&json!(200), &json!(true), &json!(true)), "{row}");
    let whole = fixtures::expected_row("chat-en-stream")["response"].as_str().unwrap().to_owned();
    let kept = row["response"].as_str().unwrap();
    assert!(whole.starts_with(kept) && kept.len() < whole.len(), "{kept}");
}

#[tokio::test]
async fn a_certificate_is_fit_for_its_time_its_key_and_those_behind_it() {
    let session = Session::begin().await;
    let Some(tls) = tls(&session) else { return };
    let pem = std::fs::read(&tls.certificate).unwrap();
    let now = Utc::now();
    let certificate = usable(&pem, now).unwrap();
    assert_eq!(certificate.names, ["localhost", "127.0.0.1"]);
    assert_eq!(certificate.days_left(now), 399);
    let other = std::fs::read(Certificates::make("sha256", false).unwrap().root).unwrap();
    assert_eq!(usable(&pem, certificate.begins - TimeDelta::seconds(1)), Err(Unfit::NotYet(certificate.begins)));
    assert_eq!(usable(&pem, certificate.ends), Err(Unfit::Ended(certificate.ends)));
    // Who did not sign it may not stand behind it, and its key is not that of who stands before it.
    assert_eq!(usable(&[&pem[..], &other].concat(), now), Err(Unfit::Order(2)));
    assert_eq!(usable(&[&other[..], &pem].concat(), now), Err(Unfit::OtherKey));
    let broken = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    assert_eq!(usable(&[broken.as_bytes(), &pem].concat(), now), Err(Unfit::Unreadable(1)));
}

#[tokio::test]
async fn what_is_no_whole_certificate_is_none() {
    let session = Session::begin().await;
    let Some(tls) = tls(&session) else { return };
    let output = Command::new("openssl").args(["x509", "-outform", "der", "-in"]).arg(&tls.certificate).output().await.unwrap();
    let der = output.stdout;
    assert_eq!(ServerCertificate::read(&der).map(|read| read.fingerprint), Some(Fingerprint::of(&der)));
    for end in 0..der.len() {
        assert_eq!(ServerCertificate::read(&der[..end]), None, "{end} bytes");
    }
    // Any byte may be another one; what it is read as then does not matter here.
    for index in 0..der.len() {
        for other in [0, 0x7f, 0x80, 0xff] {
            let mut changed = der.clone();
            changed[index] = other;
            let _ = ServerCertificate::read(&changed);
        }
    }
}

#[tokio::test]
async fn kong_apply_waits_for_a_gateway_that_has_the_certificate() {
    let session = Session::alone().await;
    let Some(tls) = tls(&session) else { return };
    let fingerprint = usable(&std::fs::read(&tls.certificate).unwrap(), Utc::now()).unwrap().fingerprint.to_string();
    let said = session.apply_and_wait(&[("KONG_PROXY_URL", &tls.url), ("GATEWAY_CERTIFICATE_SHA256", &fingerprint)]).await;
    assert!(said.success && said.stdout.contains(&format!("live       {}", tls.url)), "{said:?}");
}
