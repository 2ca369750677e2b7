//! Many calls at once.

use std::time::Duration;

use gateway_tests::fixtures;
use gateway_tests::gateway::Session;
use gateway_tests::process::wait_until;
use serde_json::json;

const CLIENTS: usize = 8;
const CALLS: usize = 25;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_calls_of_eight_clients_are_two_hundred_rows_without_a_hole() {
    let session = Session::begin().await;
    let user = session.user().await;
    let client = |number: usize| {
        let (session, user) = (&session, &user);
        async move {
            for call in 0..CALLS {
                let text = format!("client {number} call {call}");
                let stream = call % 2 == 0;
                let body = json!({"model": "m", "stream": stream, "messages": [{"role": "user", "content": text}]}).to_string();
                let mut request = session.call("/v1/chat/completions").key(&user.key).body(body);
                if call % 10 == 0 {
                    request = request.header("x-fixture", "chat-zh-stream").header("x-sim-chunk-delay-ms", "2");
                }
                let reply = request.send().await;
                assert!(reply.status == 200 && reply.broken.is_none(), "{text}: {}", reply.text());
            }
        }
    };
    futures_util::future::join_all((0..CLIENTS).map(client)).await;

    let database = &session.gateway.database;
    let count = |what: &str| format!("SELECT count({what}) FROM llm_logs WHERE consumer_username = '{}'", user.name);
    let all = (CLIENTS * CALLS) as i64;
    let rows = count("*");
    wait_until("every call is a row", Duration::from_secs(20), || async { database.number(&rows).await >= all }).await;
    assert_eq!(database.number(&count("*")).await, all);
    assert_eq!(database.number(&count("DISTINCT prompt")).await, all);
    assert_eq!(database.number(&count("DISTINCT request_id")).await, all);
    assert_eq!(database.number(&format!("{} AND completion_tokens > 0", count("*"))).await, all);

    // Other tests' calls take numbers of the same workers: between the first and the last of ours there is a row for each.
    let holes = format!(
        "WITH numbered AS (SELECT raw_log->'llm'->>'worker' AS worker, (raw_log->'llm'->>'seq')::bigint AS seq, consumer_username
                           FROM llm_logs),
              ours AS (SELECT worker, min(seq) AS first, max(seq) AS last FROM numbered
                       WHERE consumer_username = '{}' GROUP BY worker)
         SELECT (sum(last - first + 1) - sum((SELECT count(DISTINCT seq) FROM numbered
                 WHERE numbered.worker = ours.worker AND seq BETWEEN first AND last)))::bigint FROM ours",
        user.name
    );
    wait_until("no number is missing", Duration::from_secs(20), || async { database.number(&holes).await == 0 }).await;
    let twice = "SELECT count(*) FROM (SELECT 1 FROM llm_logs GROUP BY raw_log->'llm'->>'worker', raw_log->'llm'->>'seq'
                 HAVING count(*) > 1) AS repeated";
    assert_eq!(database.number(twice).await, 0);
    assert_eq!(database.number("SELECT count(*) FROM llm_rejected").await, 0);
}

#[tokio::test]
async fn a_connection_that_is_used_again_gives_each_call_a_row_of_its_own() {
    let session = Session::begin().await;
    let user = session.user().await;
    let client = reqwest::Client::new();
    let url = format!("{}/v1/chat/completions", session.gateway.proxy_url);
    let mut ids = Vec::new();
    for (name, fixture) in
        ["chat-en-stream", "chat-en", "err-bad-model", "chat-zh-stream-usage"].iter().cycle().take(12).enumerate()
    {
        let request =
            client.post(&url).bearer_auth(&user.key).header("x-fixture", *fixture).header("content-type", "application/json");
        let response = request.body(fixtures::vllm_request(fixture)).send().await.unwrap();
        let id = response.headers()["x-kong-request-id"].to_str().unwrap().to_owned();
        response.bytes().await.unwrap();
        ids.push((name, fixture, id));
    }
    for (number, fixture, id) in ids {
        let row = session.row(&id).await;
        let expected = fixtures::expected_row(fixture);
        for column in ["prompt", "response", "status", "finish_reason", "error", "stream", "aborted"] {
            assert_eq!(row[column], expected[column], "{number} {fixture}.{column}");
        }
    }
}
