//! What `llm-audit` and `llm-router` cost a gateway, and how soon a call is a row.
//!
//! Through the gateway of the end-to-end tests, to the simulated vLLM and into rows: CPU time of the gateway's workers for a call
//! of 2 KB in and 2 KB out, with key-auth and http-log alone, with `llm-audit` besides, and with `llm-router` besides both; their
//! memory over many calls; the time from the last byte of an answer to its visible row; and when the events of a stream arrive.

use std::time::{Duration, Instant};

use gateway_tests::dice::Dice;
use gateway_tests::gateway::{Session, User};
use gateway_tests::process::wait_until;
use serde_json::{Value, json};

use crate::arrival::{self, Arrival};
use crate::cpu;
use crate::load::{Request, send};
use crate::report;

/// Of the prompt, and so of the answer: the simulated vLLM echoes it.
const BODY_BYTES: usize = 2_000;
/// Calls that differ. Bodies that are the same but for an id are one chain in LuaJIT's table of strings, and each new one is compared
/// with those before to where it differs: nobody's traffic is like that.
const DIFFERENT_CALLS: usize = 256;
/// Clients at the same time.
const CLIENTS: usize = 8;
/// Measurements of CPU time, each with every set of plugins.
const ROUNDS: usize = 5;
/// Calls of each.
const CALLS: usize = 2_000;
/// Calls after plugins were switched, before which LuaJIT has code for another set of them.
const CALLS_BEFORE: usize = 1_000;
/// Calls with each set before anything is measured: until pools and buffers are filled.
const CALLS_TO_WARM_UP: usize = 3_000;
/// Calls over which memory has to stay what it is.
const SOAK_CALLS: usize = 50_000;
/// Calls after which memory is read for the first time: pools and buffers are filled by then.
const WARM_CALLS: usize = 5_000;
/// Calls whose row is waited for.
const TIMED_CALLS: usize = 400;

/// The model of the calls.
const MODEL: &str = "m";

/// Plugins that are switched off beside key-auth and http-log.
const OTHERS: [&str; 5] = ["pre-function", "rate-limiting", "prometheus", "llm-audit", "llm-router"];

/// Microseconds of the workers' CPU for a call, round by round.
#[derive(Debug, Default)]
pub(crate) struct Cpu {
    /// With key-auth and http-log.
    pub(crate) plain_us: Vec<f64>,
    /// With `llm-audit` besides.
    pub(crate) audit_us: Vec<f64>,
    /// With `llm-audit` and `llm-router` besides, which leads the call by its one model to the same server.
    pub(crate) router_us: Vec<f64>,
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct Measured {
    /// Of the workers, for a call.
    pub(crate) cpu: Cpu,
    /// Bytes that all workers held after so many calls.
    pub(crate) memory: Vec<(usize, u64)>,
    /// Seconds from the last byte of an answer until its row was seen, sorted.
    pub(crate) visible_seconds: Vec<f64>,
    /// When the events of a stream came.
    pub(crate) arrival: Arrival,
}

/// Measures everything.
pub(crate) async fn run() -> Measured {
    let session = Session::alone().await;
    let user = session.user().await;
    let arrival = arrival::measure(&session, &user).await;
    let visible_seconds = visible(&session, &user).await;
    let memory = memory(&session, &user).await;
    let cpu = cpu_by_plugins(&session, &calls(&user, BODY_BYTES), ROUNDS).await;
    Measured { cpu, memory, visible_seconds, arrival }
}

/// Measures CPU time alone, with as large a prompt and answer and for as long as one likes: on a machine with other work, many
/// rounds and their median tell more than a few.
pub(crate) async fn run_cpu(rounds: usize, body_bytes: usize) {
    let session = Session::alone().await;
    let user = session.user().await;
    session.change(&[("AUDIT_BATCH_SECONDS", "")]).await;
    let cpu = cpu_by_plugins(&session, &calls(&user, body_bytes), rounds).await;
    report::print_cpu(body_bytes, &cpu);
}

/// Every set of plugins in turn, so that whatever else the machine does meets all of them.
async fn cpu_by_plugins(session: &Session, calls: &Calls<'_>, rounds: usize) -> Cpu {
    models(session, &format!("add {MODEL} {} --served-as {MODEL}", session.gateway.vllm.url())).await;
    // Without llm-router calls go by the same upstream: what the balancer of Kong costs is none of the plugin's.
    let through = format!("llm-{MODEL}");
    let before = lead(session, &through).await;
    // Whose rows nobody counts.
    let looker = session.user().await;
    let mut cpu = Cpu::default();
    for round in 0..=rounds {
        for (plugins, times) in [
            (&[][..], &mut cpu.plain_us),
            (&["llm-audit"], &mut cpu.audit_us),
            (&["llm-audit", "llm-router"], &mut cpu.router_us),
        ] {
            switch(session, &OTHERS, plugins, &looker).await;
            if round == 0 {
                make_calls(session, calls, CALLS_TO_WARM_UP).await;
            } else {
                times.push(cpu_of_calls(session, calls).await);
            }
        }
    }
    lead(session, &before).await;
    models(session, &format!("remove {MODEL}")).await;
    cpu
}

/// Leads the service of the model server to another host, which may be an upstream's name. Returns the one before.
async fn lead(session: &Session, host: &str) -> String {
    let url = format!("{}/services/vllm", session.gateway.admin_url);
    let service: Value = reqwest::get(&url).await.expect("the service").text().await.expect("a text").parse().expect("JSON");
    let before = service["host"].as_str().expect("a host").to_owned();
    patch(&url, &json!({ "host": host })).await;
    before
}

/// Changes something through the Admin API.
async fn patch(url: &str, change: &Value) {
    let request = reqwest::Client::new().patch(url).header("content-type", "application/json").body(change.to_string());
    let answer = request.send().await.expect("an answer");
    assert!(answer.status().is_success(), "the Admin API answers {} to a change of {url}", answer.status());
}

/// Runs `llm-collector models`.
async fn models(session: &Session, arguments: &str) {
    let said = session.shell(&format!("llm-collector models {arguments}")).await;
    assert!(said.success, "models {arguments}: {}", said.stderr);
}

/// Switches plugins on or off and waits, with calls of `user`, until all workers know.
pub(crate) async fn switch(session: &Session, plugins: &[&str], on: &[&str], user: &User) {
    let admin_url = &session.gateway.admin_url;
    let list = reqwest::get(format!("{admin_url}/plugins?size=1000")).await.expect("the plugins").text().await.expect("a text");
    let list: Value = list.parse().expect("JSON");
    for plugin in list["data"].as_array().expect("a list") {
        let (name, id) = (plugin["name"].as_str().expect("a name"), plugin["id"].as_str().expect("an id"));
        if plugins.contains(&name) {
            patch(&format!("{admin_url}/plugins/{id}"), &json!({ "enabled": on.contains(&name) })).await;
        }
    }
    if plugins.contains(&"llm-audit") {
        // Errors have OpenAI's shape only while it is on.
        let on = on.contains(&"llm-audit");
        let shaped = || async { session.call("/v1/models").send().await.json()["error"].is_object() == on };
        session.settled("llm-audit is switched", shaped).await;
    }
    if plugins.contains(&"llm-router") {
        // It answers for the model servers.
        let on = on.contains(&"llm-router");
        let list = || async { session.call("/v1/models").header("X-API-Key", &user.key).send().await.json() };
        session.settled("llm-router is switched", || async { (list().await["data"][0]["owned_by"] == "gateway") == on }).await;
    }
}

/// Calls, and who makes them.
struct Calls<'a> {
    user: &'a User,
    requests: Vec<Request>,
}

/// Calls of about so many bytes in and as many out.
fn calls(user: &User, body_bytes: usize) -> Calls<'_> {
    // The simulated vLLM echoes no more than 2,000 bytes of a prompt.
    let headers = format!("X-API-Key: {}\r\nX-Sim-Repeat: {}\r\n", user.key, (body_bytes / BODY_BYTES).max(1));
    let mut dice = Dice::new(1);
    let mut word = || format!("{:04x} and another one ", dice.roll(0x10000));
    let request = |_| {
        let prompt: String = (0..body_bytes / 21).map(|_| word()).collect();
        let body = json!({"model": MODEL, "messages": [{"role": "user", "content": prompt}]}).to_string();
        Request::post("/v1/chat/completions", &headers, body, 1)
    };
    Calls { user, requests: (0..DIFFERENT_CALLS).map(request).collect() }
}

/// Makes calls and waits until all are rows: only then the workers have done all their work for them.
async fn make_calls(session: &Session, calls: &Calls<'_>, count: usize) {
    let before = rows(session, calls.user).await;
    let address = session.gateway.proxy_url.trim_start_matches("http://");
    let sent = tokio::task::block_in_place(|| {
        send(address, calls.requests.iter().cycle().take(count), CLIENTS, Duration::from_secs(120))
    });
    assert_eq!(sent.entries, count as u64, "calls that were answered in time");
    let all = before + count as u64;
    wait_until("all calls are rows", Duration::from_secs(60), || async { rows(session, calls.user).await == all }).await;
}

async fn rows(session: &Session, user: &User) -> u64 {
    let query = "SELECT count(*) FROM llm_logs WHERE consumer_username = $1";
    let row = session.rows().await.query_one(query, &[&user.name]).await.expect("a count");
    row.get::<_, i64>(0) as u64
}

/// Microseconds of the workers' CPU for a call.
async fn cpu_of_calls(session: &Session, calls: &Calls<'_>) -> f64 {
    make_calls(session, calls, CALLS_BEFORE).await;
    let workers = cpu::listeners(&session.gateway.proxy_url);
    assert!(!workers.is_empty(), "the gateway is not on this host: its CPU time cannot be read");
    let used = || workers.iter().map(|pid| cpu::of_threads(*pid)).sum::<f64>();
    let before = used();
    make_calls(session, calls, CALLS).await;
    (used() - before) * 1e6 / CALLS as f64
}

/// Memory of the workers over many calls.
async fn memory(session: &Session, user: &User) -> Vec<(usize, u64)> {
    let calls = calls(user, BODY_BYTES);
    let held = || cpu::listeners(&session.gateway.proxy_url).iter().map(|pid| cpu::memory(*pid)).sum();
    let mut memory = Vec::new();
    for part in 1..=SOAK_CALLS / WARM_CALLS {
        make_calls(session, &calls, WARM_CALLS).await;
        memory.push((part * WARM_CALLS, held()));
    }
    memory
}

/// Seconds from the last byte of an answer until its row is seen, with the batching that `kong apply` sets up by itself.
async fn visible(session: &Session, user: &User) -> Vec<f64> {
    session.change(&[("AUDIT_BATCH_SECONDS", "")]).await;
    let clients = (0..CLIENTS).map(|client| async move {
        let mut seconds = Vec::new();
        for number in 0..TIMED_CALLS / CLIENTS {
            let words = "word and another one ".repeat(10 + (client + number * 7) % 90);
            let body = json!({"model": MODEL, "stream": number % 2 == 0, "messages": [{"role": "user", "content": words}]});
            let reply = session.call("/v1/chat/completions").key(&user.key).body(body.to_string()).send().await;
            let ended = Instant::now();
            assert_eq!(reply.status, 200, "{}", reply.text());
            wait_for_row(session, reply.request_id()).await;
            seconds.push(ended.elapsed().as_secs_f64());
        }
        seconds
    });
    let mut seconds: Vec<f64> = futures_util::future::join_all(clients).await.concat();
    seconds.sort_by(f64::total_cmp);
    seconds
}

async fn wait_for_row(session: &Session, request_id: &str) {
    let query = "SELECT count(*) FROM llm_logs WHERE request_id = $1";
    let rows = session.rows().await;
    let started = Instant::now();
    while rows.query_one(query, &[&request_id]).await.expect("a count").get::<_, i64>(0) == 0 {
        assert!(started.elapsed() < Duration::from_secs(30), "no row of {request_id}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
