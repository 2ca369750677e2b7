//! Stored responses of `/v1/responses`: whose they are, and that their tokens are counted once.

use std::time::Duration;

use gateway_tests::fixtures;
use gateway_tests::gateway::{Reply, Session, User};
use gateway_tests::process::wait_until;
use serde_json::{Value, json};

const PATH: &str = "/v1/responses";
const QUEUED: &str = "v33-responses-background-queued";
const FINISHED: &str = "v33-responses-get-by-another-key";

#[tokio::test]
async fn a_stored_response_is_given_to_whoever_made_it() {
    // Others make responses of the same recordings.
    let session = Session::alone().await;
    let (alice, bob) = (session.user().await, session.user().await);
    for name in ["responses", "responses-stream"] {
        let made = session.call(PATH).key(&alice.key).header("x-fixture", name);
        let made = made.body(gateway_tests::fixtures::vllm_request(name)).send().await;
        assert_eq!(made.status, 200);
        let text = made.text();
        let id = text.split_once("\"id\":\"").and_then(|(_, rest)| rest.split('"').next()).unwrap();
        assert!(id.starts_with("resp_"), "{id}");
        for (user, status) in [(&alice, 200), (&bob, 404)] {
            for (method, path) in [("GET", format!("/v1/responses/{id}")), ("POST", format!("/v1/responses/{id}/cancel"))] {
                let reply = session.call(&path).key(&user.key).header("x-fixture", "responses").method(method).send().await;
                assert_eq!(reply.status, status, "{method} {path}: {}", reply.text());
                assert_eq!(reply.seen(&session).is_empty(), status == 404);
                if status == 404 {
                    let wanted = serde_json::json!({"error": {"message": format!("Response with id '{id}' not found."),
                        "type": "invalid_request_error", "param": "response_id", "code": 404}});
                    assert_eq!(reply.json(), wanted);
                    assert_eq!(reply.row(&session).await["status"], 404);
                }
            }
        }
    }
    // Who made it might be another node of the gateway: that has to be asked for first.
    let nobodys = session.call("/v1/responses/resp_0123456789abcdef").key(&alice.key).method("GET").send().await;
    assert_eq!((nobodys.status, nobodys.header("retry-after")), (503, Some("2")), "{}", nobodys.text());
    assert_eq!(nobodys.json()["error"]["type"], "server_error");
    wait_until("it is known that nobody made it", Duration::from_secs(20), || async {
        let nobodys = session.call("/v1/responses/resp_0123456789abcdef").key(&alice.key).method("GET").send().await;
        nobodys.status == 404
    })
    .await;
}

async fn make(session: &Session, user: &User, recording: &str) -> Reply {
    let request = std::fs::read(fixtures::vllm_033().join(recording).join("request.json")).unwrap();
    session.call(PATH).key(&user.key).header("x-fixture", recording).body(request).send().await
}

async fn fetch(session: &Session, user: &User, id: &str, recording: &str) -> Reply {
    session.call(&format!("{PATH}/{id}")).key(&user.key).header("x-fixture", recording).method("GET").send().await
}

#[tokio::test]
async fn a_response_from_the_background_is_one_row_with_tokens_however_often_it_is_fetched() {
    let session = Session::alone().await;
    let user = session.user().await;
    let missing = || async { session.gateway.collector_metric("llm_usage_missing_total{model=\"qwen-tiny\"}").await };
    let missing_before = missing().await;
    let made = make(&session, &user, QUEUED).await;
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let mut rows = vec![made.row(&session).await];
    for recording in [QUEUED, QUEUED, FINISHED, FINISHED, FINISHED] {
        let reply = fetch(&session, &user, &id, recording).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        rows.push(reply.row(&session).await);
    }
    let counts: Vec<(&Value, &Value)> = rows.iter().map(|row| (&row["prompt_tokens"], &row["completion_tokens"])).collect();
    let none = (&Value::Null, &Value::Null);
    let usage = &fixtures_usage();
    let counted = (&usage["input_tokens"], &usage["output_tokens"]);
    assert_eq!(counts, [none, none, none, counted, none, none]);
    assert!(rows[3]["reasoning"].as_str().is_some_and(|text| text.starts_with("The lake lies north")), "{}", rows[3]);
    assert_eq!(rows[0]["prompt"], "Tell me about the lake.");
    for row in &rows {
        assert_eq!((&row["estimated_prompt_tokens"], &row["estimated_completion_tokens"]), none, "{row}");
    }
    assert_eq!(missing().await, missing_before, "nobody has to miss the usage of a response that goes on");
}

/// What the finished response reports.
fn fixtures_usage() -> Value {
    let body = std::fs::read(fixtures::vllm_033().join(FINISHED).join("response.bin")).unwrap();
    serde_json::from_slice::<Value>(&body).unwrap()["usage"].clone()
}

#[tokio::test]
async fn a_gateway_that_does_not_know_a_response_learns_whose_it_is() {
    let session = Session::alone().await;
    let (alice, bob) = (session.user().await, session.user().await);
    let maker = session.consumer_id(&alice).await;
    // As if it had been made before a restart, or at another node.
    let id = format!("resp_{}", alice.name.replace(|c: char| !c.is_ascii_alphanumeric(), ""));
    let client = session.rows().await;
    client.execute("INSERT INTO llm_response_makers VALUES ($1, $2, true)", &[&id, &maker]).await.unwrap();
    let first = fetch(&session, &alice, &id, FINISHED).await;
    assert_eq!((first.status, first.header("retry-after")), (503, Some("2")), "{}", first.text());
    assert!(first.seen(&session).is_empty(), "it reached vLLM");
    wait_until("it is known whose it is", Duration::from_secs(20), || async {
        fetch(&session, &alice, &id, FINISHED).await.status == 200
    })
    .await;
    assert_eq!(fetch(&session, &bob, &id, FINISHED).await.status, 404);
    // Its tokens were counted then.
    let row = fetch(&session, &alice, &id, FINISHED).await.row(&session).await;
    assert_eq!((&row["completion_tokens"], &row["raw_log"]["llm"]["repeat"]), (&Value::Null, &json!(true)));

    // And what is made here is known to others.
    let made = session.call(PATH).key(&bob.key).header("x-fixture", "responses");
    let made = made.body(fixtures::vllm_request("responses")).send().await.json();
    let (id, maker) = (made["id"].as_str().unwrap().to_owned(), session.consumer_id(&bob).await);
    wait_until("the collector is told", Duration::from_secs(20), || async {
        let query = "SELECT FROM llm_response_makers WHERE id = $1 AND maker = $2 AND counted";
        !client.query(query, &[&id, &maker]).await.unwrap().is_empty()
    })
    .await;
}
