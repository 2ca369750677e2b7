//! Limits at the gateway, and the rows that they are one number with.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use gateway_tests::gateway::{Reply, Session, User};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
/// Takes no tokens: its answer tells how many are left.
const TOKENIZE: &str = "/tokenize";
/// For what becomes so by itself.
const LIMIT: Duration = Duration::from_secs(60);

/// Sees to it that the plugin is there.
async fn switch_on(session: &Session) {
    let client = reqwest::Client::new();
    let plugins = format!("{}/plugins", session.gateway.admin_url);
    let list = client.get(&plugins).send().await.unwrap().bytes().await.unwrap();
    let list: Value = serde_json::from_slice(&list).unwrap();
    if list["data"].as_array().unwrap().iter().any(|plugin| plugin["name"] == "llm-quota") {
        return;
    }
    let url = format!("{}/services/vllm/plugins", session.gateway.admin_url);
    let body = json!({"name": "llm-quota"}).to_string();
    let made = client.post(url).header("content-type", "application/json").body(body).send().await.unwrap();
    assert_eq!(made.status(), 201, "{}", made.text().await.unwrap());
}

async fn execute(session: &Session, statement: &str) {
    session.rows().await.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
}

/// A limit of a user for a day.
async fn limit(session: &Session, user: &User, unit: &str, amount: u32) {
    let statement = format!(
        "INSERT INTO llm_quotas (subject_kind, subject_name, models, unit, currency, per, amount, mode)
        VALUES ('user', '{}', '%', '{unit}', '', 'day', {amount}, 'hard')",
        user.name
    );
    execute(session, &statement).await;
}

fn header(reply: &Reply, name: &str) -> Option<u64> {
    reply.headers.get(name)?.to_str().ok()?.parse().ok()
}

async fn told(session: &Session, user: &User, name: &str) -> Option<u64> {
    let reply = session.call(TOKENIZE).key(&user.key).body(r#"{"model":"m","prompt":"?"}"#).send().await;
    header(&reply, name)
}

/// A call that takes 20 and 65 tokens, and might take 30 and 100.
async fn ask(session: &Session, user: &User, stream: bool) -> Reply {
    let question = json!([{"role": "user", "content": "What is an LLM gateway?"}]);
    let body = json!({"model": "qwen-tiny", "max_tokens": 100, "messages": question, "stream": stream}).to_string();
    let fixture = if stream { "chat-en-stream-usage" } else { "chat-en" };
    session.call(CHAT).key(&user.key).header("x-fixture", fixture).body(body).send().await
}

#[tokio::test]
async fn what_is_left_is_what_the_rows_say() {
    let session = Session::alone().await;
    switch_on(&session).await;
    let user = session.user().await;
    limit(&session, &user, "tokens", 1000).await;
    let is_known = || async { told(&session, &user, "x-ratelimit-limit-tokens").await == Some(1000) };
    session.settled("the limit is known", is_known).await;

    // 85 tokens each: after the eleventh 65 are left, which may not do.
    let mut request_ids = Vec::new();
    let started = Instant::now();
    for number in 0..11 {
        let reply = ask(&session, &user, number % 2 == 1).await;
        assert_eq!(reply.status, 200, "call {number}");
        request_ids.push(reply.request_id().to_owned());
        // A call is settled when it is logged, after its answer has gone out.
        let left = Some(1000 - 85 * (number + 1));
        while told(&session, &user, "x-ratelimit-remaining-tokens").await != left {
            assert!(started.elapsed() < LIMIT, "never {left:?} were left");
        }
    }
    let refused = ask(&session, &user, false).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json()["error"]["code"], "insufficient_quota");
    assert_eq!(header(&refused, "x-ratelimit-remaining-tokens"), Some(65));

    let mut sum = 0;
    for id in &request_ids {
        let row = session.row(id).await;
        sum += row["prompt_tokens"].as_i64().unwrap() + row["completion_tokens"].as_i64().unwrap();
    }
    assert_eq!(sum, 935);
    assert_eq!(refused.row(&session).await["status"], 429);
    // The node takes its own numbers back as the collector's come: what is left does not change by it.
    session
        .settled("what is left stays", || async {
            let left = told(&session, &user, "x-ratelimit-remaining-tokens").await;
            assert_eq!(left, Some(65));
            true
        })
        .await;

    execute(&session, &format!("UPDATE llm_quotas SET amount = 900 WHERE subject_name = '{}'", user.name)).await;
    let is_lowered = || async { told(&session, &user, "x-ratelimit-limit-tokens").await == Some(900) };
    session.settled("the limit is lower", is_lowered).await;
    assert_eq!(told(&session, &user, "x-ratelimit-remaining-tokens").await, Some(0));
    execute(&session, &format!("DELETE FROM llm_quotas WHERE subject_name = '{}'", user.name)).await;
    let is_gone = || async { told(&session, &user, "x-ratelimit-limit-tokens").await.is_none() };
    session.settled("the limit is gone", is_gone).await;
}

#[tokio::test]
async fn a_hard_limit_holds_for_many_calls_at_once() {
    let session = Session::alone().await;
    switch_on(&session).await;
    let user = session.user().await;
    let other = session.user().await;
    limit(&session, &user, "calls", 20).await;
    // What comes later is known once this one is.
    limit(&session, &other, "tokens", 7).await;
    let is_known = || async { told(&session, &other, "x-ratelimit-limit-tokens").await == Some(7) };
    session.settled("the limits are known", is_known).await;
    // No server gets this, so it takes nothing.
    let key_works = || async { session.call(CHAT).key(&user.key).body("{} x").send().await.status == 400 };
    session.settled("the key is known", key_works).await;

    let replies = join_all((0..200).map(|_| ask(&session, &user, false))).await;
    let answered = replies.iter().filter(|reply| reply.status == 200).count();
    assert!(replies.iter().all(|reply| matches!(reply.status, 200 | 429)));
    assert_eq!(answered, 20);
    execute(&session, &format!("DELETE FROM llm_quotas WHERE subject_name IN ('{}', '{}')", user.name, other.name)).await;
}

/// A script that does not wait as its answer asks leaves a few small rows and a count, and no other caller of its address pays for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_that_ignores_its_429_is_counted() {
    const CALLS: usize = 300;
    const ROWS: i64 = 5;
    let session = Session::alone().await;
    switch_on(&session).await;
    session.change(&[("REFUSED_PER_MINUTE", "5")]).await;
    let (user, neighbour) = (session.user().await, session.user().await);
    limit(&session, &user, "calls", 0).await;
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "again"}]}).to_string();
    let call = || async {
        let padding = "p".repeat(7_000);
        session.call(CHAT).key(&user.key).body(body.clone()).header("x-padding", &padding).send().await
    };
    session.settled("the limit is in effect", || async { call().await.status == 429 }).await;
    // Whatever came before, and the limit itself, belongs to the time before these calls.
    let rows = "SELECT count(*) FROM llm_logs WHERE consumer_username = $1 AND started_at >= $2";
    let counts = "SELECT coalesce(sum(count), 0)::bigint FROM llm_refused_users
        WHERE username = $1 AND refused_by = 'quota' AND status = 429 AND source <> ''";
    let began = std::time::SystemTime::now();
    for _ in 0..CALLS / 10 {
        let statuses = join_all((0..10).map(|_| call())).await;
        assert!(statuses.iter().all(|reply| reply.status == 429));
    }
    assert_eq!(ask(&session, &neighbour, false).await.status, 200, "from the same address");

    let database = session.rows().await;
    let number = async |query: &str| database.query_one(query, &[&user.name]).await.unwrap().get::<_, i64>(0);
    let started = Instant::now();
    let kept = loop {
        let kept: i64 = database.query_one(rows, &[&user.name, &began]).await.unwrap().get(0);
        // Minutes are told once they are over.
        if kept + number(counts).await >= i64::try_from(CALLS).unwrap() {
            break kept;
        }
        assert!(started.elapsed() < Duration::from_secs(90), "{kept} rows and {} counted", number(counts).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    // The calls may have begun in one minute and ended in the next.
    assert!(kept <= 2 * ROWS, "{kept} rows");
    let large = "SELECT count(*) FROM llm_logs WHERE consumer_username = $1 AND raw_log::text LIKE '%pppppppp%'";
    assert_eq!(number(large).await, 0);
}
