//! Limits while everything dies in turn: afterwards all who tell what is used tell the same, nobody was held back falsely, and what is
//! hard was not passed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use gateway_tests::dice::Dice;
use gateway_tests::gateway::User;
use gateway_tests::nodes::{Nodes, signal};
use serde_json::{Value, json};

use super::kills::kills;
use super::*;

pub(super) const CHAT: &str = "/v1/chat/completions";
/// Nobody comes near it.
pub(super) const FAR: i64 = 1_000_000_000;
/// What a call of the recording takes.
pub(super) const CALL: i64 = 85;
/// Calls that the hard limit allows.
const HARD_CALLS: i64 = 60;
/// In which something has to change as long as not all has come to rest.
const REST: Duration = Duration::from_secs(120);

/// The tokens of a user's rows, by a query of its own.
const SUM: &str = "SELECT coalesce(sum(coalesce(prompt_tokens, estimated_prompt_tokens, 0)
    + coalesce(completion_tokens, estimated_completion_tokens, 0)), 0)::bigint FROM llm_logs WHERE consumer_username = ";

/// What callers saw.
#[derive(Debug, Default)]
struct Seen {
    answered: AtomicU64,
    broken_off: AtomicU64,
    refused: AtomicU64,
}

/// What may happen to a caller's call.
#[derive(Clone, Copy)]
struct Way {
    /// The node that is called; `None`: any.
    node: Option<usize>,
    may_be_refused: bool,
}

/// The body of a call, and how it is answered.
fn a_call(dice: &mut Dice) -> (Value, Vec<(&'static str, &'static str)>) {
    let said = |words: u64| vec!["word"; usize::try_from(words).expect("few")].join(" ");
    let body = |content: &str, stream: bool| json!({"model": "qwen-tiny", "max_tokens": 100, "stream": stream, "messages": [{"role": "user", "content": content}]});
    match dice.roll(4) {
        0 => (body("What is an LLM gateway?", true), vec![("x-fixture", "chat-en-stream-usage")]),
        1 => (body(&said(1 + dice.roll(40)), false), vec![("x-sim-delay-ms", "30")]),
        2 => (body(&said(1 + dice.roll(40)), true), vec![("x-sim-chunk-delay-ms", "2")]),
        _ => (body("What is an LLM gateway?", false), vec![("x-fixture", "chat-en")]),
    }
}

/// A call that takes as much each time, so that the sum tells how many there were.
pub(super) fn one_call() -> (Value, Vec<(&'static str, &'static str)>) {
    let messages = json!([{"role": "user", "content": "What is an LLM gateway?"}]);
    (json!({"model": "qwen-tiny", "max_tokens": 65, "messages": messages}), vec![("x-fixture", "chat-en")])
}

/// Calls until told to stop.
async fn call_on(site: Arc<Nodes>, user: User, seed: u64, way: Way, seen: Arc<Seen>, stop: Arc<AtomicBool>) {
    let mut dice = Dice::new(seed);
    let count = site.nodes.len() as u64;
    while !stop.load(Ordering::Relaxed) {
        let (body, headers) = match way.node {
            Some(_) => one_call(),
            None => a_call(&mut dice),
        };
        let node = way.node.unwrap_or_else(|| usize::try_from(dice.roll(count)).expect("few"));
        let call = site.call(node, &user, CHAT, &headers, &body);
        // Now and then the client goes away.
        let patience = if dice.roll(15) == 0 { Duration::from_millis(dice.roll(30)) } else { PATIENCE };
        let of = match tokio::time::timeout(patience, call).await.ok().flatten() {
            Some(answer) if answer.status == 429 => {
                assert!(way.may_be_refused, "{} was refused: {}", user.name, answer.text);
                &seen.refused
            }
            Some(answer) if answer.status == 200 => &seen.answered,
            _ => &seen.broken_off,
        };
        of.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(5 + dice.roll(20))).await;
    }
}

/// Kills something, or makes a node read its configuration anew.
async fn strike(site: &Nodes, dice: &mut Dice, database_is_up: &mut bool) -> &'static str {
    let nodes = site.nodes.len() as u64;
    let node = usize::try_from(dice.roll(nodes)).expect("few");
    match dice.roll(8) {
        0 | 1 => {
            site.kill_collector().await;
            site.start_collector().await;
            "collector"
        }
        2 | 3 => {
            let stopped = if *database_is_up { site.cluster.stop_server("immediate") } else { site.cluster.start_server() };
            stopped.unwrap();
            *database_is_up = !*database_is_up;
            "PostgreSQL"
        }
        4 => {
            site.nodes[node].reload();
            "reload"
        }
        _ => {
            let workers = site.nodes[node].workers();
            if let Some(pid) = workers.get(usize::try_from(dice.roll(workers.len().max(1) as u64)).expect("few")) {
                signal("KILL", *pid);
            }
            "worker"
        }
    }
}

/// What is used by the tokens limit of a user, as `status` tells it.
fn of_status(status: &Value, name: &str) -> i64 {
    let rows = status.as_array().expect("limits");
    rows.iter()
        .find(|row| row["name"] == name && row["unit"] == "tokens")
        .map_or(0, |row| row["used"].as_i64().expect("a number"))
}

fn sum_of(row: &Value) -> i64 {
    ["prompt_tokens", "completion_tokens", "estimated_prompt_tokens", "estimated_completion_tokens"]
        .iter()
        .map(|name| row[*name].as_i64().unwrap_or_else(|| panic!("no {name} in {row}")))
        .sum()
}

/// What `SELECT`, `quota status`, `report` and `/v1/usage` of each node say that a user has taken.
async fn all_tell(site: &Nodes, user: &User) -> Vec<(String, i64)> {
    let mut told = vec![("SELECT".to_owned(), site.database.number(&format!("{SUM}'{}'", user.name)).await)];
    let status: Value = serde_json::from_str(&site.command(&["quota", "status", "--json"]).await).expect("JSON");
    told.push(("quota status".to_owned(), of_status(&status, &user.name)));
    let month = chrono::Utc::now().format("%Y-%m").to_string();
    let report = site.command(&["report", "--consumer", &user.name, "--month", &month, "--format", "json"]).await;
    let report: Value = serde_json::from_str(&report).expect("JSON");
    told.push(("report".to_owned(), sum_of(&report["total"])));
    for node in 0..site.nodes.len() {
        let answer = site.call(node, user, "/v1/usage", &[], &Value::Null).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text);
        let usage: Value = serde_json::from_str(&answer.text).expect("JSON");
        told.push((format!("usage at node {node}"), sum_of(&usage["month"])));
        let limits = usage["limits"].as_array().expect("limits");
        let limit = limits.iter().find(|limit| limit["unit"] == "tokens" && limit["for"] == "user").expect("his limit");
        told.push((format!("limits at node {node}"), limit["used"].as_i64().expect("a number")));
    }
    told
}

/// Waits until no entry is on its way: then all tell the same, and each node has counted what the rows say. Returns how much that is.
pub(super) async fn assert_all_agree(site: &Nodes, user: &User, limit: i64) -> i64 {
    let (mut changed, mut before) = (Instant::now(), Vec::new());
    loop {
        let told = all_tell(site, user).await;
        let sum = told[0].1;
        if told.iter().all(|(_, other)| *other == sum) && site.is_left(user, (limit - sum).max(0)).await {
            return sum;
        }
        if told != before {
            (changed, before) = (Instant::now(), told.clone());
        }
        if changed.elapsed() > REST {
            let mut nodes = Vec::new();
            for node in 0..site.nodes.len() {
                nodes.push(site.told(node, user).await.and_then(|told| told.tokens_left));
            }
            panic!("{}: {told:?}; of {limit} are left {nodes:?}", user.name);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_kills_of_everything_all_who_tell_what_is_used_tell_the_same() {
    let site = Nodes::start(2).await;
    let (free, tight) = (site.user("free", "ml").await, site.user("tight", "ml").await);
    let hard = HARD_CALLS * CALL;
    for (user, amount) in [(&free, FAR), (&tight, hard)] {
        let amount = amount.to_string();
        site.command(&["quota", "set", "--user", &user.name, "--tokens", &amount, "--per", "month", "--hard"]).await;
    }
    site.wait_for_limit(&free, FAR).await;
    site.wait_for_limit(&tight, hard).await;

    let site = Arc::new(site);
    let (stop, seen_free, seen_tight) = (Arc::<AtomicBool>::default(), Arc::<Seen>::default(), Arc::<Seen>::default());
    let start = |user: &User, seed: u64, way: Way, seen: &Arc<Seen>| {
        tokio::spawn(call_on(Arc::clone(&site), user.clone(), seed, way, Arc::clone(seen), Arc::clone(&stop)))
    };
    let anywhere = Way { node: None, may_be_refused: false };
    let mut callers: Vec<_> = (0..4).map(|seed| start(&free, seed, anywhere, &seen_free)).collect();
    // A limit is hard on each node; together they may pass it by what the other one knows too late.
    callers.extend((10..13).map(|seed| start(&tight, seed, Way { node: Some(0), may_be_refused: true }, &seen_tight)));

    let mut dice = Dice::new(4242);
    let mut database_is_up = true;
    let mut struck = BTreeMap::<&str, usize>::new();
    for _ in 0..kills(10) {
        let before = seen_free.answered.load(Ordering::Relaxed);
        wait_until("calls are answered", PATIENCE, || async { seen_free.answered.load(Ordering::Relaxed) > before + 3 }).await;
        tokio::time::sleep(Duration::from_millis(dice.roll(200))).await;
        *struck.entry(strike(&site, &mut dice, &mut database_is_up).await).or_default() += 1;
    }
    if !database_is_up {
        site.cluster.start_server().unwrap();
    }
    wait_until("the limit is reached", PATIENCE, || async { seen_tight.refused.load(Ordering::Relaxed) > 0 }).await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }

    let site = Arc::into_inner(site).expect("all callers have ended");
    let used = assert_all_agree(&site, &free, FAR).await;
    let used_hard = assert_all_agree(&site, &tight, hard).await;
    println!("struck {struck:?}; free: {seen_free:?}, {used} tokens; tight: {seen_tight:?}, {used_hard} of {hard} tokens");
    assert!(used > 0 && used_hard <= hard, "{used_hard} of {hard} are used");
}
