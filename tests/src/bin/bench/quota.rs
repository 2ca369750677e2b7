//! `bench quota`: how far limits are passed when many call at once, on one node and on two, and what `POST /sync` takes with many users.
//!
//! What a call takes of a worker, `tests/bench/quota.lua` measures; `make bench-quota` runs both.

use std::time::{Duration, Instant};

use chrono::Utc;
use futures_util::future::join_all;
use gateway_tests::collector::{Process, post};
use gateway_tests::gateway::User;
use gateway_tests::nodes::Nodes;
use gateway_tests::postgres::{Cluster, Database};
use gateway_tests::process::wait_until;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::cpu;

const CHAT: &str = "/v1/chat/completions";
const AT_ONCE: usize = 1_000;
/// Calls that the limits allow which are met by all at once.
const ALLOWED: usize = 100;
/// What a call of the recording takes, in tokens.
const TOKENS: usize = 85;
/// Calls that two nodes share, and callers at each.
const SHARED: usize = 600;
const CALLERS: usize = 4;
/// Calls of a caller are so far apart.
const PACE: Duration = Duration::from_millis(25);
/// For which what another node does is not known.
const UNKNOWN: Duration = Duration::from_secs(2);
const USERS: usize = 5_000;
/// Calls a second, and seconds, over which telling is measured.
const RATE: usize = 100;
const SECONDS: usize = 30;
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures everything, and prints it line by line.
pub(crate) async fn run() {
    line("", "measured", "wanted");
    overshoot().await;
    sync().await;
}

fn line(what: &str, measured: &str, wanted: &str) {
    println!("{what:<66} {measured:>12}  {wanted}");
}

// --- how far a limit is passed -----------------------------------------------

fn body(stream: bool) -> Value {
    json!({"model": "qwen-tiny", "max_tokens": 65, "stream": stream, "messages": [{"role": "user", "content": "What is an LLM gateway?"}]})
}

/// Sets a limit and waits until all nodes know it: it is told with one of tokens, of which answers tell.
async fn limit(site: &Nodes, user: &User, of: &[&str], tokens: usize) {
    site.command(&[&["quota", "set", "--user", &user.name, "--per", "month"], of].concat()).await;
    site.wait_for_limit(user, i64::try_from(tokens).expect("a number")).await;
}

/// A thousand calls at once at the first node; how many were let in.
async fn at_once(site: &Nodes, user: &User) -> usize {
    // None ends before all have come.
    let headers = [("x-fixture", "chat-en"), ("x-sim-delay-ms", "1000")];
    let body = body(false);
    let answers = join_all((0..AT_ONCE).map(|_| site.call(0, user, CHAT, &headers, &body))).await;
    let statuses: Vec<u16> = answers.into_iter().map(|answer| answer.expect("an answer").status).collect();
    // A busy machine's model server may be too late for some of them: those were let in, too.
    assert!(statuses.iter().all(|status| matches!(status, 200 | 429 | 504)), "{statuses:?}");
    statuses.iter().filter(|status| **status != 429).count()
}

async fn overshoot() {
    let site = Nodes::start(2).await;
    let far = 1_000_000_000;
    let names = ["calls", "tokens", "soft", "shared"];
    let users = join_all(names.iter().map(|name| site.user(name, "ml"))).await;
    for user in &users {
        limit(&site, user, &["--tokens", &far.to_string(), "--shadow"], far).await;
    }

    let amount = ALLOWED.to_string();
    // Not of the calls that ask what is known.
    let of = ["--models", "qwen%", "--calls", &amount, "--hard"];
    limit(&site, &users[0], &of, far).await;
    let tokens = ALLOWED * TOKENS;
    limit(&site, &users[1], &["--tokens", &tokens.to_string(), "--hard"], tokens).await;
    let let_in = at_once(&site, &users[0]).await;
    line("hard, calls: 1,000 at once on one node, above the limit", &(let_in as i64 - ALLOWED as i64).to_string(), "0");
    let let_in = at_once(&site, &users[1]).await;
    let over = (let_in * TOKENS).saturating_sub(tokens);
    line("hard, tokens: 1,000 at once on one node, above the limit", &over.to_string(), "0");

    limit(&site, &users[2], &["--tokens", &TOKENS.to_string(), "--soft"], TOKENS).await;
    let let_in = at_once(&site, &users[2]).await;
    line("soft: 1,000 at once on one node, calls above the limit", &(let_in - 1).to_string(), "at most 999, those in flight");

    let tokens = SHARED * TOKENS;
    limit(&site, &users[3], &["--tokens", &tokens.to_string(), "--hard"], tokens).await;
    two_nodes(&site, &users[3]).await;
}

/// Callers at both nodes, one after the other, until each was refused.
async fn two_nodes(site: &Nodes, user: &User) {
    let answered = [Mutex::new(Vec::new()), Mutex::new(Vec::new())];
    let caller = async |node: usize| {
        let body = body(false);
        loop {
            let began = Instant::now();
            let answer = site.call(node, user, CHAT, &[("x-fixture", "chat-en")], &body).await.expect("an answer");
            if answer.status != 200 {
                return;
            }
            answered[node].lock().await.push(began);
            tokio::time::sleep_until((began + PACE).into()).await;
        }
    };
    join_all((0..2 * CALLERS).map(|n| caller(n % 2))).await;
    let mut in_time = 0;
    let mut all = 0;
    for times in &answered {
        let times = times.lock().await;
        let last = *times.iter().max().expect("calls");
        in_time = in_time.max(times.iter().filter(|time| last < **time + UNKNOWN).count());
        all += times.len();
    }
    let wanted = format!("at most {in_time}, what the other one had in 2 s");
    line("hard, two nodes: calls above a limit of 600", &(all.saturating_sub(SHARED)).to_string(), &wanted);
}

// --- what it takes to tell it ------------------------------------------------

/// A call of one of the users.
fn entry(seq: usize) -> Value {
    // Users in an order without a pattern, each as often as the others.
    let user = seq * 2_654_435_761 % USERS;
    json!({"request": {"id": format!("bench-{seq}"), "method": "POST", "uri": "/v1/chat/completions"},
        "response": {"status": 200}, "started_at": Utc::now().timestamp_millis(), "latencies": {"proxy": 5, "request": 9},
        "consumer": {"username": format!("user-{user}"), "tags": [format!("team:{}", user % 50)]},
        "llm": {"v": 1, "worker": "w", "seq": seq, "model": "m1", "usage": {"prompt_tokens": 1000 + seq % 500, "completion_tokens": 300}}})
}

async fn log(collector: &Process, numbers: std::ops::Range<usize>) {
    let entries: Vec<Value> = numbers.map(entry).collect();
    let answer = post(&format!("{}/log", collector.url), json!(entries).to_string()).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text);
}

/// What a node asks with, and bytes both ways.
struct Asked {
    quota: Value,
    bytes: usize,
}

async fn ask(collector: &Process, quota: &Value) -> Asked {
    let request = json!({"v": 1, "node": "n", "quota": quota}).to_string();
    let sent = request.len();
    let answer = post(&format!("{}/sync", collector.url), request).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text);
    let told = answer.json();
    let quota = json!({"version": told["quota"]["version"], "revision": told["quota"]["revision"], "workers": ["w"]});
    Asked { quota, bytes: sent + answer.text.len() }
}

async fn sync() {
    let cluster = Cluster::start(&[]).unwrap_or_else(|error| panic!("{error}"));
    let database = Database::create_on(&cluster.url()).await;
    let collector = Process::serve(&["--database-url", &database.url]).await;
    let url = format!("{}/readyz", collector.url);
    wait_until("the database is migrated", PATIENCE, || async {
        gateway_tests::collector::get(&url).await.is_some_and(|answer| answer.text.contains("postgresql"))
    })
    .await;
    let limits = "INSERT INTO llm_quotas (subject_kind, subject_name, unit, currency, per, amount) VALUES
        ('each_user', '', 'tokens', '', 'day', 1000000), ('each_user', '', 'calls', '', 'hour', 1000),
        ('each_user', '', 'cost', 'CNY', 'month', 500);
        INSERT INTO llm_model_prices VALUES ('%', '2020-01-01', 2, 1, 8, 'CNY')";
    database.connect().await.batch_execute(limits).await.expect("limits");
    let mut next = 0;
    while next < 2 * USERS {
        log(&collector, next + 1..next + 201).await;
        next += 200;
    }
    let full = ask(&collector, &json!({"workers": ["w"]})).await;
    line("/sync, the first answer: 5,000 users, three limits each", &format!("{} KiB", full.bytes / 1024), "");

    let mut quota = full.quota;
    let (mut bytes, mut server, mut own) = (0, 0.0, 0.0);
    for _ in 0..SECONDS {
        let began = Instant::now();
        log(&collector, next + 1..next + 1 + RATE).await;
        next += RATE;
        let before = (of_server(&cluster), cpu::of_threads(collector.pid()));
        let asked = ask(&collector, &quota).await;
        server += of_server(&cluster) - before.0;
        own += cpu::of_threads(collector.pid()) - before.1;
        bytes += asked.bytes;
        quota = asked.quota;
        tokio::time::sleep_until((began + Duration::from_secs(1)).into()).await;
    }
    let a_second = |sum: f64| format!("{:.2} ms", sum * 1_000.0 / SECONDS as f64);
    let kib = format!("{:.1} KiB", bytes as f64 / 1024.0 / SECONDS as f64);
    line("/sync once a second, 100 calls a second: both ways, a second", &kib, "below 64 KiB");
    line("… PostgreSQL's processor time, a second", &a_second(server), "below 5 ms");
    line("… the collector's processor time, a second", &a_second(own), "");
}

/// Of the server's processes that run.
fn of_server(cluster: &Cluster) -> f64 {
    cluster.pids().into_iter().map(cpu::of_threads).sum()
}
