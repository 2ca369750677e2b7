//! What a node of Kong tells: how far its workers have counted, and what it refused.

use std::time::Duration;

use chrono::Utc;
use gateway_tests::collector::{Answer, TestApp};
use gateway_tests::process::wait_until;
use serde_json::{Value, json};

async fn tell(app: &TestApp, told: &Value) -> Answer {
    app.post("/sync", told.to_string(), &[]).await
}

async fn told(app: &TestApp, told: &Value) {
    let answer = tell(app, told).await;
    assert_eq!((answer.status, answer.text.as_str()), (200, r#"{"v":1}"#), "{told}");
}

fn worker(name: &str, seq: i64, done: i64, ended: bool) -> Value {
    json!({"worker": name, "seq": seq, "done": done, "ended": ended})
}

fn entry(worker: &str, seq: i64) -> Value {
    json!({"request": {"id": format!("{worker}-{seq}"), "method": "POST", "uri": "/v1/chat/completions"},
        "response": {"status": 200}, "started_at": Utc::now().timestamp_millis(), "llm": {"v": 1, "worker": worker, "seq": seq}})
}

async fn log(app: &TestApp, worker: &str, numbers: std::ops::RangeInclusive<i64>) {
    let entries: Vec<Value> = numbers.map(|seq| entry(worker, seq)).collect();
    assert_eq!(app.log(json!(entries).to_string()).await.status, 200);
}

/// The holes as `worker first-last`, in order.
async fn gaps(app: &TestApp) -> Vec<String> {
    let query = "SELECT worker || ' ' || first_seq || '-' || last_seq FROM llm_sequence_gaps ORDER BY worker, first_seq";
    let rows = app.database.connect().await.query(query, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn wait_for_gaps(app: &TestApp, wanted: &[&str]) {
    wait_until("the holes", Duration::from_secs(20), || async { gaps(app).await == wanted }).await;
}

#[tokio::test]
async fn what_a_killed_worker_took_along_is_a_hole_and_what_waits_in_a_living_one_is_none() {
    let app = TestApp::start_with(&["--gap-grace-seconds", "1"]).await;
    log(&app, "killed", 1..=5).await;
    log(&app, "waits", 1..=5).await;
    let of = |killed: Value, waits: Value| json!({"v": 1, "node": "n", "workers": [killed, waits]});
    told(&app, &of(worker("killed", 9, 5, false), worker("waits", 40, 5, false))).await;
    told(&app, &of(worker("killed", 9, 9, true), worker("waits", 41, 5, false))).await;
    wait_for_gaps(&app, &["killed 6-9"]).await;
    // It lost entries, which no entry behind them shows; then one comes, and what is missing in front of it is the rest.
    told(&app, &of(worker("killed", 9, 9, true), worker("waits", 50, 45, false))).await;
    wait_for_gaps(&app, &["killed 6-9", "waits 6-45"]).await;
    log(&app, "waits", 51..=51).await;
    wait_for_gaps(&app, &["killed 6-9", "waits 6-45", "waits 46-50"]).await;
    assert!(app.metric("llm_collector_entries_lost_total{worker=\"waits\"}").await >= 40.0);
    app.stop().await;
}

#[tokio::test]
async fn workers_of_which_a_node_tells_no_more_have_ended() {
    let app = TestApp::start_with(&["--gap-grace-seconds", "1"]).await;
    told(&app, &json!({"node": "n", "workers": [worker("old", 3, 0, false)]})).await;
    told(&app, &json!({"node": "other", "workers": [worker("elsewhere", 3, 0, false)]})).await;
    // No worker at all is no report of workers.
    told(&app, &json!({"node": "n"})).await;
    told(&app, &json!({"node": "n", "workers": [worker("new", 0, 0, false)]})).await;
    wait_for_gaps(&app, &["old 1-3"]).await;
    app.stop().await;
}

#[tokio::test]
async fn a_worker_that_ended_with_everything_sent_leaves_no_hole() {
    let app = TestApp::start_with(&["--gap-grace-seconds", "1"]).await;
    log(&app, "done", 1..=7).await;
    told(
        &app,
        &json!({"node": "n", "workers": [worker("done", 7, 7, true), worker("silent", 0, 0, true), worker("lost", 1, 0, true)]}),
    )
    .await;
    wait_for_gaps(&app, &["lost 1-1"]).await;
    app.stop().await;
}

#[tokio::test]
async fn an_entry_whose_bodies_found_no_place_is_a_truncated_row() {
    let app = TestApp::start().await;
    let mut shed = entry("w", 1);
    shed["llm"]["shed"] = json!(true);
    assert_eq!(app.log(json!([shed, entry("w", 2)]).to_string()).await.status, 200);
    assert_eq!(app.database.number("SELECT count(*) FROM llm_logs WHERE truncated AND request_id = 'w-1'").await, 1);
    assert_eq!(app.database.number("SELECT count(*) FROM llm_logs WHERE NOT truncated AND request_id = 'w-2'").await, 1);
    app.stop().await;
}

#[tokio::test]
async fn refused_calls_are_counted_once_however_often_they_are_told() {
    let app = TestApp::start().await;
    let minute = Utc::now().timestamp() / 60 * 60 - 120;
    let count = |ip: &str, count: i64| json!({"client_ip": ip, "minute": minute, "status": 401, "count": count});
    let report = json!({"node": "n", "refused_calls": [count("192.0.2.7", 40), count("2001:db8::1", 2), count("other", 3),
        {"client_ip": "192.0.2.8", "minute": 0, "status": 401, "count": 9}]});
    told(&app, &report).await;
    told(&app, &report).await;
    let sum = |more: &str| {
        format!("SELECT coalesce(sum(count), 0)::bigint FROM llm_refused_calls WHERE status = 401 AND source = 'n' {more}")
    };
    assert_eq!(app.database.number(&sum("")).await, 45);
    assert_eq!(app.database.number(&sum("AND address = '2001:db8::/64'")).await, 2);
    app.stop().await;
}

#[tokio::test]
async fn refused_calls_of_users_are_counted_once_and_by_what_refused_them() {
    let app = TestApp::start().await;
    let minute = Utc::now().timestamp() / 60 * 60 - 120;
    let count = |user: &str, by: &str, count: i64| json!({"user": user, "refused_by": by, "minute": minute, "status": 429, "count": count});
    let report = json!({"node": "n", "refused_users": [count("alice", "quota", 7000), count("alice", "kong", 40),
        count("", "queue", 3), count("mallory", "nobody", 9)]});
    told(&app, &report).await;
    told(&app, &report).await;
    told(&app, &json!({"node": "o", "refused_users": [count("alice", "quota", 5)]})).await;
    let of = |user: &str, by: &str| {
        format!(
            "SELECT coalesce(sum(count), 0)::bigint FROM llm_refused_users
             WHERE username = '{user}' AND refused_by = '{by}' AND status = 429 AND minute = to_timestamp({minute})"
        )
    };
    for (user, by, calls) in [("alice", "quota", 7005), ("alice", "kong", 40), ("", "queue", 3), ("mallory", "nobody", 0)] {
        assert_eq!(app.database.number(&of(user, by)).await, calls, "{user:?} {by}");
    }
    assert_eq!(app.database.number("SELECT count(*) FROM llm_refused_calls").await, 0);
    assert_eq!(app.metric("llm_refused_total{by=\"quota\",model=\"unknown\"}").await, 7005.0);
    assert_eq!(app.metric("llm_refused_total{by=\"queue\",model=\"unknown\"}").await, 3.0);
    app.stop().await;
}

#[tokio::test]
async fn gauges_of_a_node_are_series() {
    let app = TestApp::start().await;
    told(
        &app,
        &json!({"node": "n:8111", "gauges": {"in_flight": 3, "queue_bytes": 7, "queue_stalled_seconds": 125, "unknown": {}}}),
    )
    .await;
    assert_eq!(app.metric("llm_gateway_in_flight{node=\"n:8111\"}").await, 3.0);
    assert_eq!(app.metric("llm_gateway_queue_stalled_seconds{node=\"n:8111\"}").await, 125.0);
    assert!(app.metric("llm_sync_age_seconds{node=\"n:8111\"}").await > 0.0);
    for number in 0..100 {
        told(&app, &json!({"node": format!("made-up-{number}")})).await;
    }
    let page = app.get("/metrics").await.text;
    assert_eq!(page.lines().filter(|line| line.starts_with("llm_gateway_in_flight{")).count(), 50);
    app.stop().await;
}

#[tokio::test]
async fn queues_of_a_node_are_series_and_vanish_with_them() {
    let app = TestApp::start().await;
    let report = json!({"node": "n", "gauges": {"in_flight": 20}, "queue": {
        "models": {"Qwen": {"in_flight": 8, "waiting": 10, "share": {"user": "bob", "places": 6}}, "default": {"in_flight": 1}},
        "waiting": {"alice": 2, "bob": 8, "carol": 0},
    }});
    told(&app, &report).await;
    assert_eq!(app.metric(r#"llm_gateway_in_flight{node="n",model="Qwen"}"#).await, 8.0);
    // Of the others eleven hold no place: the ten that wait, and one that needs none. All together are what the node counts.
    assert_eq!(app.metric(r#"llm_gateway_in_flight{node="n"}"#).await, 11.0);
    assert_eq!(app.metric(r#"llm_gateway_waiting{node="n",model="Qwen"}"#).await, 10.0);
    assert_eq!(app.metric(r#"llm_gateway_waiting{node="n",model="default"}"#).await, 0.0);
    assert_eq!(app.metric(r#"llm_gateway_waiting_users{node="n"}"#).await, 2.0);
    assert_eq!(app.metric(r#"llm_gateway_largest_share{node="n",model="Qwen",consumer="bob"}"#).await, 0.75);
    let more = json!({"node": "n", "queue": {"models": {"Qwen": {"in_flight": 8, "share": {"user": "eve", "places": 2}}}}});
    told(&app, &more).await;
    let page = app.get("/metrics").await.text;
    assert!(page.contains(r#"consumer="eve"} 0.25"#) && !page.contains("bob") && !page.contains("model=\"default\""), "{page}");
    told(&app, &json!({"node": "n", "gauges": {"in_flight": 20}})).await;
    let page = app.get("/metrics").await.text;
    assert!(!page.contains("llm_gateway_waiting{") && !page.contains("llm_gateway_largest_share{"), "{page}");
    assert_eq!(app.metric(r#"llm_gateway_in_flight{node="n"}"#).await, 20.0);
    app.stop().await;
}

#[tokio::test]
async fn everybody_is_told_how_many_of_his_own_calls_wait() {
    let app = TestApp::start_with(&["--token", "secret"]).await;
    let waiting = async |user: &str| {
        let request = reqwest::Client::new().get(format!("{}/v1/usage", app.url));
        let request = request.header("X-Collector-Token", "secret").header("X-Consumer-Username", user);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        serde_json::from_str::<Value>(&answer.text().await.unwrap()).unwrap()["waiting_calls"].clone()
    };
    let tell = async |report: Value| {
        assert_eq!(app.post("/sync", report.to_string(), &[("X-Collector-Token", "secret")]).await.status, 200);
    };
    assert_eq!(waiting("alice").await, Value::Null);
    tell(json!({"node": "a", "queue": {"waiting": {"alice": 2, "bob": 8}}})).await;
    tell(json!({"node": "b", "queue": {"waiting": {"alice": 1}}})).await;
    assert_eq!((waiting("alice").await, waiting("bob").await, waiting("eve").await), (json!(3), json!(8), json!(0)));
    tell(json!({"node": "a", "queue": {"waiting": {}}})).await;
    assert_eq!((waiting("alice").await, waiting("bob").await), (json!(1), json!(0)));
    app.stop().await;
}

#[tokio::test]
async fn queues_that_make_no_sense_cost_nothing_else() {
    let app = TestApp::start().await;
    let models: serde_json::Map<_, _> = (0..3_000).map(|n| (format!("made-up-{n}"), json!({"waiting": 1}))).collect();
    let hostile =
        json!({"node": "n", "gauges": {"in_flight": 3}, "queue": {"models": models, "waiting": {"a": u64::MAX, "b": -1}}});
    told(&app, &hostile).await;
    let page = app.get("/metrics").await.text;
    assert_eq!(page.lines().filter(|line| line.starts_with("llm_gateway_waiting{")).count(), 101);
    for queue in ["7", "[7]", r#"{"models":7}"#, r#"{"waiting":{"a":1e999}}"#, r#"{"models":{"m":{"waiting":1e999}}}"#, "null"] {
        let body = format!(r#"{{"node":"n","gauges":{{"in_flight":4}},"queue":{queue}}}"#);
        let answer = app.post("/sync", body, &[]).await;
        assert_eq!(answer.status, 200, "{queue}: {}", answer.text);
    }
    assert_eq!(app.metric(r#"llm_gateway_in_flight{node="n"}"#).await, 4.0);
    app.stop().await;
}

#[tokio::test]
async fn a_report_that_is_none_is_refused() {
    let app = TestApp::start_with(&["--token", "secret"]).await;
    let send = async |body: String, token: &str| app.post("/sync", body, &[("X-Collector-Token", token)]).await;
    assert_eq!(send(r#"{"node":"n"}"#.to_owned(), "wrong").await.status, 401);
    assert_eq!(send(r#"{"node":"n"}"#.to_owned(), "secret").await.status, 200);
    for body in ["", "{", "[]", "null", r#"{"node":7}"#, r#"{"node":"n","v":2}"#, r#"{"node":"n","workers":[{}]}"#] {
        assert_eq!(send(body.to_owned(), "secret").await.status, 400, "{body}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(send(format!(r#"{{"node":"n","x":{deep}"#), "secret").await.status, 400);
    assert_eq!(send(" ".repeat(262_145), "secret").await.status, 413);
    assert_eq!(app.database.number("SELECT count(*) FROM llm_workers").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn who_made_a_response_is_told_to_nodes_that_ask() {
    let app = TestApp::start().await;
    let made = |id: &str, maker: &str, counted: bool| json!({"id": id, "maker": maker, "counted": counted});
    told(&app, &json!({"node": "a", "responses_made": [made("resp_1", "alice", false), made("resp_2", "bob", false)]})).await;
    told(&app, &json!({"node": "a", "responses_made": [made("resp_2", "bob", true), made("", "bob", true)]})).await;
    let asked = json!({"node": "b", "responses_asked": ["resp_2", "resp_3", "resp_1", "\u{0}"]});
    let known = |answer: &Answer| {
        let answer: Value = serde_json::from_str(&answer.text).unwrap();
        let mut known = answer["responses"].as_array().unwrap().clone();
        known.sort_by_key(|response| response["id"].to_string());
        known
    };
    let answer = tell(&app, &asked).await;
    assert_eq!(known(&answer), [made("resp_1", "alice", false), made("resp_2", "bob", true)]);
    // What was counted stays so for its maker; an id that comes again is another response.
    told(&app, &json!({"node": "b", "responses_made": [made("resp_2", "bob", false), made("resp_1", "carol", false)]})).await;
    assert_eq!(known(&tell(&app, &asked).await), [made("resp_1", "carol", false), made("resp_2", "bob", true)]);
    told(&app, &json!({"node": "b", "responses_made": [made("resp_2", "carol", false)]})).await;
    assert_eq!(known(&tell(&app, &asked).await)[1], made("resp_2", "carol", false));

    let client = app.database.connect().await;
    client.execute("UPDATE llm_response_makers SET told_at = now() - interval '31 days'", &[]).await.unwrap();
    told(&app, &json!({"node": "b", "responses_made": [made("resp_4", "", false)]})).await;
    let left = client.query("SELECT id FROM llm_response_makers", &[]).await.unwrap();
    assert_eq!(left.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>(), ["resp_4"]);
    app.stop().await;
}
