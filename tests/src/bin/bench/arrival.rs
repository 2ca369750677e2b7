//! When the events of a stream arrive: straight from the simulated vLLM, through the gateway without `llm-audit`, and with it. Every
//! event carries the time at which it was sent.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gateway_tests::gateway::{Session, User};
use serde_json::{Value, json};

use crate::gateway::switch;

/// Streams of each kind, and events with text in each.
const STREAMS: usize = 10;
const EVENTS: usize = 100;
/// From one event to the next.
const PAUSE_MS: u64 = 10;

/// Milliseconds from the sending of an event to its arrival, sorted.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) direct: Vec<f64>,
    pub(crate) without_audit: Vec<f64>,
    pub(crate) with_audit: Vec<f64>,
}

/// Measures the three ways.
pub(crate) async fn measure(session: &Session, user: &User) -> Arrival {
    let (vllm, gateway) = (session.gateway.vllm.url(), &session.gateway.proxy_url);
    let direct = streams(&vllm, user).await;
    switch(session, &["llm-audit"], &[], user).await;
    let without_audit = streams(gateway, user).await;
    switch(session, &["llm-audit"], &["llm-audit"], user).await;
    let with_audit = streams(gateway, user).await;
    Arrival { direct, without_audit, with_audit }
}

async fn streams(base: &str, user: &User) -> Vec<f64> {
    // The first one pays for connections and compiled code.
    stream(base, user, 5).await;
    let mut delays = Vec::new();
    for _ in 0..STREAMS {
        delays.extend(stream(base, user, EVENTS).await);
    }
    delays.sort_by(f64::total_cmp);
    delays
}

/// One stream; how late each event came.
async fn stream(base: &str, user: &User, events: usize) -> Vec<f64> {
    let words = vec!["word"; events].join(" ");
    let body = json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": words}]}).to_string();
    let request = reqwest::Client::new().post(format!("{base}/v1/chat/completions")).bearer_auth(&user.key);
    let request = request.header("x-sim-stamp", "1").header("x-sim-chunk-delay-ms", PAUSE_MS.to_string());
    let response = request.header("content-type", "application/json").body(body).send().await.expect("an answer");
    let mut response = response.error_for_status().expect("a stream");
    let (mut delays, mut rest) = (Vec::new(), Vec::new());
    while let Some(chunk) =
        tokio::time::timeout(Duration::from_secs(30), response.chunk()).await.expect("a chunk").expect("a chunk")
    {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_micros() as f64;
        rest.extend_from_slice(&chunk);
        while let Some(end) = rest.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = rest.drain(..end + 2).collect();
            let event: Option<Value> = event.strip_prefix(b"data: ").and_then(|json| serde_json::from_slice(json).ok());
            if let Some(sent) = event.and_then(|event| event["sent_at_us"].as_f64()) {
                delays.push((now - sent) / 1000.0);
            }
        }
    }
    delays
}
