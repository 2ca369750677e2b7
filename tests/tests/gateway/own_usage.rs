//! What people are told of their own usage, through the gateway.

use std::time::Duration;

use gateway_tests::fixtures;
use gateway_tests::gateway::{Session, User};
use gateway_tests::process::wait_until;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// Calls that a user makes; returns how many.
pub(crate) async fn use_something(session: &Session, user: &User) -> i64 {
    let mut calls = 0;
    for name in ["chat-en", "chat-en-stream", "chat-zh-stream"] {
        let reply = session.call(CHAT).key(&user.key).body(fixtures::vllm_request(name)).send().await;
        assert_eq!(reply.status, 200);
        reply.row(session).await;
        calls += 1;
    }
    calls
}

/// What the user is told, once all his calls are in it.
pub(crate) async fn told(session: &Session, user: &User, calls: i64) -> Value {
    let ask = || async { session.call("/v1/usage").key(&user.key).send().await };
    wait_until("the calls are in what is told", Duration::from_secs(20), || async {
        let reply = ask().await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["today"]["calls"] == calls
    })
    .await;
    ask().await.json()
}

/// What `report` says of the user.
pub(crate) async fn report(session: &Session, user: &User, range: &[&str], by: &str) -> Value {
    let arguments = [&["report", "--consumer", &user.name, "--by", by, "--format", "json"], range].concat();
    let said = session.collector(&arguments).await;
    assert!(said.success, "{}", said.stderr);
    serde_json::from_str(&said.stdout).unwrap()
}

/// What both have.
fn shared(usage: &Value) -> Value {
    let mut usage = usage.as_object().unwrap().clone();
    let of_report = ["latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "waited_calls", "queue_ms"];
    for name in ["model", "date", "month", "day", "models"].into_iter().chain(of_report) {
        usage.remove(name);
    }
    assert!(usage.contains_key("cost") && usage.contains_key("estimated_prompt_tokens"));
    Value::Object(usage)
}

#[tokio::test]
async fn everybody_is_told_what_report_says_of_him_and_nothing_of_others() {
    let session = Session::begin().await;
    let (user, other, idle) = (session.user().await, session.user().await, session.user().await);
    let calls = use_something(&session, &user).await;
    use_something(&session, &other).await;
    let usage = told(&session, &user, calls).await;
    assert_eq!((&usage["consumer"], &usage["zone"]), (&json!(user.name), &json!("UTC")));
    // The site's clock is UTC here.
    let month = chrono::Utc::now().format("%Y-%m").to_string();
    let report_of = report(&session, &user, &["--month", &month], "model").await;
    assert_eq!(shared(&usage["month"]), shared(&report_of["total"]));
    assert!(usage["month"]["prompt_tokens"].as_i64().unwrap() > 20 && usage["month"]["completion_tokens"].as_i64().unwrap() > 65);
    let models = usage["last_30_days"]["models"].as_array().unwrap();
    assert_eq!(models.len(), report_of["rows"].as_array().unwrap().len());
    for (model, row) in models.iter().zip(report_of["rows"].as_array().unwrap()) {
        assert_eq!((&model["model"], shared(model)), (&row["model"], shared(row)));
    }
    let today = &usage["days"].as_array().unwrap()[0];
    assert_eq!(shared(today), shared(&usage["today"]));
    assert_eq!(today["date"], usage["today"]["date"]);

    let listed = usage["calls"].as_array().unwrap();
    assert_eq!(listed.len() as i64, calls);
    assert!(listed[0]["started_at"].as_str() > listed[1]["started_at"].as_str(), "the newest first");
    let members: Vec<&str> = listed[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["completion_tokens", "latency_ms", "model", "prompt_tokens", "started_at", "status"], "no content");
    assert!(!usage.to_string().contains(&other.name));

    let nothing = told(&session, &idle, 0).await;
    assert_eq!((&nothing["month"]["calls"], &nothing["calls"], &nothing["days"]), (&json!(0), &json!([]), &json!([])));
}

#[tokio::test]
async fn nobody_is_told_by_a_name_that_he_only_says() {
    let session = Session::begin().await;
    let (user, other) = (session.user().await, session.user().await);
    for (key, status) in [(None, 401), (Some("sk-wrong-of-the-usage-page"), 401), (Some(user.key.as_str()), 200)] {
        let call = session.call("/v1/usage").header("x-consumer-username", &other.name);
        let call = call.header("x-consumer-custom-id", &other.name).header("x-collector-token", "wrong");
        let reply = if let Some(key) = key { call.key(key) } else { call }.send().await;
        assert_eq!(reply.status, status, "{}", reply.text());
        if status == 200 {
            assert_eq!(reply.json()["consumer"], user.name);
            assert_eq!(reply.header("cache-control"), Some("no-store"));
        } else {
            assert!(reply.json()["error"]["message"].is_string(), "{}", reply.text());
        }
    }
    session.gateway.remember_key("sk-wrong-of-the-usage-page");
    // Past the gateway a name alone is worth nothing.
    for token in [None, Some("wrong")] {
        let request = reqwest::Client::new().get(format!("{}/v1/usage", session.gateway.collector_url));
        let request = request.header("X-Consumer-Username", &user.name);
        let request = if let Some(token) = token { request.header("X-Collector-Token", token) } else { request };
        assert_eq!(request.send().await.unwrap().status(), 401);
    }
    // The key in the address is none.
    assert_eq!(session.call(&format!("/v1/usage?X-API-Key={0}&apikey={0}", user.key)).send().await.status, 401);
}

#[tokio::test]
async fn asking_for_usage_is_no_call_to_a_model() {
    let session = Session::begin().await;
    let user = session.user().await;
    for _ in 0..3 {
        assert_eq!(session.call("/v1/usage").key(&user.key).send().await.status, 200);
    }
    // What is refused is in the audit log as elsewhere.
    let refused = session.call("/v1/usage").send().await;
    assert_eq!(refused.row(&session).await["status"], 401);
    let calls = use_something(&session, &user).await;
    let usage = told(&session, &user, calls).await;
    assert_eq!(usage["calls"].as_array().unwrap().len() as i64, calls);
    assert!(session.gateway.seen(|seen| seen.target.contains("/v1/usage")).is_empty(), "the model server was asked");
}

#[tokio::test]
async fn what_is_left_of_a_limit_is_told_to_whom_it_holds_for() {
    let session = Session::begin().await;
    let (user, other) = (session.user().await, session.user().await);
    let set = async |arguments: &[&str]| {
        let said = session.collector(&[&["quota", "set", "--user", &user.name], arguments].concat()).await;
        assert!(said.success, "{}", said.stderr);
    };
    set(&["--tokens", "2k", "--per", "day"]).await;
    set(&["--calls", "50", "--per", "month", "--models", "no-such-model"]).await;
    set(&["--tokens", "1", "--per", "week", "--mode", "shadow"]).await;
    let joined = session.users(&["team", &user.name, "e2e-shown"]).await;
    assert!(joined.success, "{}", joined.stderr);
    let of_team = session.collector(&["quota", "set", "--team", "e2e-shown", "--calls", "90", "--per", "month"]).await;
    assert!(of_team.success, "{}", of_team.stderr);
    let calls = use_something(&session, &user).await;
    let usage = told(&session, &user, calls).await;
    let team: Vec<&Value> = usage["limits"].as_array().unwrap().iter().filter(|limit| limit["for"] == "team").collect();
    assert_eq!((team.len(), &team[0]["team"], &team[0]["amount"]), (1, &json!("e2e-shown"), &json!(90)), "{usage}");
    assert!(team[0]["used"].as_i64().unwrap() > 0, "{usage}");
    let page = session.call("/usage/data").key(&user.key).send().await.text();
    assert!(page.contains("team e2e-shown"), "{page}");
    let today = usage["today"]["prompt_tokens"].as_i64().unwrap() + usage["today"]["completion_tokens"].as_i64().unwrap();
    assert!(today > 85, "{usage}");
    let own: Vec<&Value> = usage["limits"].as_array().unwrap().iter().filter(|limit| limit["for"] == "user").collect();
    assert_eq!(own.len(), 2, "what refuses nobody is no limit to tell of: {usage}");
    let midnight = (chrono::Utc::now() + chrono::Duration::days(1)).format("%Y-%m-%dT00:00:00Z").to_string();
    assert_eq!(
        own[0],
        &json!({"for": "user", "team": null, "models": "%", "unit": "tokens", "currency": "", "per": "day", "mode": "soft", "amount": 2000,
            "used": today, "left": 2000 - today, "resets_at": midnight})
    );
    assert_eq!((&own[1]["unit"], &own[1]["used"], &own[1]["left"]), (&json!("calls"), &json!(0), &json!(50)));
    let status = session.collector(&["quota", "status", "--user", &user.name, "--json"]).await;
    assert!(status.success && status.stdout.contains(&today.to_string()), "{}", status.stdout);

    let told_other = told(&session, &other, 0).await;
    assert!(told_other["limits"].as_array().unwrap().iter().all(|limit| limit["for"] != "user" && limit["for"] != "team"));
    assert!(session.collector(&["quota", "remove", "--team", "e2e-shown"]).await.success);
    assert!(session.collector(&["quota", "remove", "--user", &user.name]).await.success);
}
