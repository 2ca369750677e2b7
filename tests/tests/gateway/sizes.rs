//! Large prompts and long answers.

use gateway_tests::collector::sha256_hex;
use gateway_tests::gateway::Session;
use serde_json::{Value, json};

use crate::events::{assert_same, split, usages, without_usage};

const CHAT: &str = "/v1/chat/completions";
/// What `llm-audit` keeps of a body.
const CAPTURE_BYTES: usize = 1 << 20;

/// A prompt of `bytes` bytes that does not compress and has characters of three bytes in it.
fn prompt(bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 16);
    let mut n: u32 = 1;
    while text.len() < bytes {
        n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.push_str(&format!("{n:08x} 网关 "));
    }
    text.truncate(text.floor_char_boundary(bytes));
    text
}

fn request(prompt: &str, stream: bool) -> String {
    // In the order in which the SDKs write it.
    format!(r#"{{"messages":[{{"role":"user","content":{}}}],"model":"m","stream":{stream}}}"#, json!(prompt))
}

#[tokio::test]
async fn a_prompt_of_300_kb_is_kept_whole() {
    let session = Session::begin().await;
    let user = session.user().await;
    let prompt = prompt(300 << 10);
    for stream in [false, true] {
        let request = request(&prompt, stream);
        let reply = session.call(CHAT).key(&user.key).body(request.clone()).send().await;
        assert_eq!(reply.status, 200);
        let seen = reply.seen_once(&session).await;
        if !stream {
            assert_same("request", &seen.body, request.as_bytes());
        }
        let row = reply.row(&session).await;
        assert!(row["prompt"] == *prompt, "the prompt of the row has {:?} bytes", row["prompt"].as_str().map(str::len));
        assert_eq!((&row["truncated"], &row["stream"], &row["aborted"]), (&json!(false), &json!(stream), &json!(false)));
        assert!(row["completion_tokens"].is_u64() && row["prompt_tokens"].is_u64());
        assert_eq!(row["raw_log"]["llm"]["request_bytes"], request.len());
    }
}

#[tokio::test]
async fn of_a_prompt_of_5_mb_both_ends_are_kept_and_the_true_size() {
    let session = Session::begin().await;
    let user = session.user().await;
    let prompt = prompt(5 << 20);
    for stream in [false, true] {
        let request = request(&prompt, stream);
        let reply = session.call(CHAT).key(&user.key).body(request.clone()).send().await;
        assert_eq!(reply.status, 200);
        let seen = reply.seen_once(&session).await;
        if stream {
            assert!(seen.body_bytes > request.len() && usages(&reply.body).is_empty() && !usages(&seen.sent).is_empty());
            assert_same("answer", &reply.body, &without_usage(&seen.sent));
        } else {
            assert_eq!((seen.body_bytes, &seen.body_sha256), (request.len(), &sha256_hex(request.as_bytes())));
        }
        let row = reply.row(&session).await;
        assert_eq!((&row["truncated"], &row["status"], &row["aborted"]), (&json!(true), &json!(200), &json!(false)));
        let llm = &row["raw_log"]["llm"];
        assert_eq!((&llm["request_bytes"], &llm["request_truncated"]), (&json!(request.len()), &json!(true)));
        assert_eq!(llm["response_truncated"], false);
        assert!(row["response"].is_string() && row["completion_tokens"].is_u64(), "{}", row["response"]);
        let kept = row["prompt"].as_str().unwrap_or_else(|| panic!("no prompt"));
        let (head, tail) =
            kept.split_once('[').and_then(|(head, rest)| Some((head, rest.split_once(" bytes left out]")?.1))).unwrap();
        assert!(prompt.starts_with(head) && prompt.ends_with(tail), "{} and {} bytes", head.len(), tail.len());
        assert!(head.len().min(tail.len()) > CAPTURE_BYTES * 4 / 10, "{} and {} bytes", head.len(), tail.len());
    }
}

#[tokio::test]
async fn a_question_behind_a_picture_or_blanks_of_2_mb_is_the_prompt_of_the_row() {
    let session = Session::begin().await;
    let user = session.user().await;
    let picture = "iVBORw0KGgo+/9Aa".repeat(2 * CAPTURE_BYTES / 16);
    let blanks = " ".repeat(2 * CAPTURE_BYTES);
    let parts = format!(
        r#"[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{picture}"}}}},{{"type":"text","text":"What is it?"}}]"#
    );
    for (request, prompt) in [
        (format!(r#"{{"messages":[{{"role":"user","content":{parts}}}],"model":"m"}}"#), "[image]\nWhat is it?"),
        (format!(r#"{{{blanks}"messages":[{{"role":"user","content":"What is it?"}}],"model":"m"}}"#), "What is it?"),
    ] {
        let reply = session.call(CHAT).key(&user.key).body(request.clone()).send().await;
        assert_eq!(reply.status, 200);
        let seen = reply.seen_once(&session).await;
        assert_eq!((seen.body_bytes, &seen.body_sha256), (request.len(), &sha256_hex(request.as_bytes())));
        let row = reply.row(&session).await;
        assert_eq!((&row["prompt"], &row["truncated"]), (&json!(prompt), &json!(true)));
        assert_eq!(row["raw_log"]["llm"]["request_bytes"], request.len());
    }
}

#[tokio::test]
async fn a_stream_longer_than_is_kept_reaches_the_client_whole_and_its_text_the_row() {
    let session = Session::begin().await;
    let user = session.user().await;
    let call = session.call(CHAT).key(&user.key).header("x-sim-repeat", "4000");
    let reply = call.body(request("one two three", true)).send().await;
    let seen = reply.seen_once(&session).await;
    assert!(reply.body.len() > CAPTURE_BYTES * 2, "{} bytes", reply.body.len());
    assert_eq!(split(&reply.body).len(), 3 * 4000 + 3);
    // Of what was sent the simulation keeps no more than the plugin.
    assert_same("head", &reply.body[..CAPTURE_BYTES], &seen.sent);
    assert!(usages(&reply.body).is_empty() && reply.body.ends_with(b"data: [DONE]\n\n"));

    let row = reply.row(&session).await;
    for (column, wanted) in [
        ("truncated", json!(false)),
        ("aborted", json!(false)),
        ("finish_reason", json!("stop")),
        ("completion_tokens", json!(12_000)),
    ] {
        assert_eq!(row[column], wanted, "{column}");
    }
    assert!(row["response"] == "one two three".repeat(4000), "{:?} bytes", row["response"].as_str().map(str::len));
    let llm = &row["raw_log"]["llm"];
    assert!(
        llm["response_bytes"].as_u64().unwrap() > reply.body.len() as u64,
        "{llm}: with the usage event, {}",
        reply.body.len()
    );
}

#[tokio::test]
async fn a_long_answer_that_is_not_streamed_is_cut_in_the_log_only() {
    let session = Session::begin().await;
    let user = session.user().await;
    let call = session.call(CHAT).key(&user.key).header("x-sim-repeat", "3000");
    let reply = call.body(request(&prompt(1000), false)).send().await;
    let answer: Value = reply.json();
    assert!(reply.body.len() > 2 * CAPTURE_BYTES);
    let row = reply.row(&session).await;
    assert_eq!((&row["truncated"], &row["aborted"]), (&json!(true), &json!(false)));
    assert_eq!(row["raw_log"]["llm"]["response_bytes"], reply.body.len());
    let whole = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(row["response"].as_str().is_some_and(|kept| whole.starts_with(kept) && kept.len() > CAPTURE_BYTES / 2));
}
