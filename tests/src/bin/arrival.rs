//! Measures when the events of a stream arrive: straight from the simulated vLLM, through the gateway without `llm-audit`, and
//! through the gateway as configured. Every event carries the time at which it was sent.
//!
//! Starts all that it needs, like the end-to-end tests; `E2E_KONG_ADMIN_URL` and the like choose the gateway.
#![allow(clippy::print_stdout, clippy::expect_used, clippy::indexing_slicing, reason = "it reports to a person, or not at all")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use gateway_tests::gateway::{Session, User};
use serde_json::{Value, json};

/// Measures how much later the events of a stream arrive through the gateway, and prints it as JSON, in milliseconds
#[derive(Debug, Parser)]
struct Arguments {
    /// Streams of each kind; the kinds take turns
    #[arg(long, default_value_t = 20)]
    streams: usize,
    /// Events with text in a stream
    #[arg(long, default_value_t = 100)]
    events: usize,
    /// Milliseconds from one event to the next
    #[arg(long, default_value_t = 10)]
    pause_ms: u64,
}

/// The ways from the model server to the client.
const WAYS: [&str; 3] = ["direct", "without_audit", "gateway"];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let session = Session::alone().await;
    let user = session.user().await;
    let mut delays: [Vec<f64>; 3] = Default::default();
    for way in WAYS {
        // Settings change twice, not with every stream: Kong takes seconds to know.
        audit(&session, way == "gateway").await?;
        measure(&session, &user, way, &arguments, true).await?;
        let own = &mut delays[WAYS.iter().position(|other| *other == way).expect("a way")];
        for _ in 0..arguments.streams {
            own.extend(measure(&session, &user, way, &arguments, false).await?);
        }
    }
    let of = |way: usize| summary(&delays[way]);
    let [direct, without_audit, gateway] = [of(0), of(1), of(2)];
    let more = |a: &Value, b: &Value| -> Value {
        let pairs = ["p50", "p99", "max"].map(|name| {
            let difference = a[name].as_f64().unwrap_or(f64::NAN) - b[name].as_f64().unwrap_or(f64::NAN);
            (name.to_owned(), json!((difference * 1000.0).round() / 1000.0))
        });
        Value::Object(pairs.into_iter().collect())
    };
    let report = json!({
        "events": delays[0].len(),
        "delay_ms": {"direct": direct, "without_audit": without_audit, "gateway": gateway},
        "added_ms": {"by_gateway": more(&gateway, &direct), "by_audit": more(&gateway, &without_audit)},
    });
    println!("{report:#}");
    Ok(())
}

/// Switches `llm-audit` on or off.
async fn audit(session: &Session, on: bool) -> Result<()> {
    let gateway = session.gateway;
    let plugins: Value = reqwest::get(format!("{}/plugins?size=1000", gateway.admin_url)).await?.text().await?.parse()?;
    let plugin = plugins["data"].as_array().context("no plugins")?.iter().find(|plugin| plugin["name"] == "llm-audit");
    let id = plugin.and_then(|plugin| plugin["id"].as_str()).context("llm-audit is not there")?;
    let request = reqwest::Client::new().patch(format!("{}/plugins/{id}", gateway.admin_url));
    let body = json!({ "enabled": on }).to_string();
    let answer = request.header("content-type", "application/json").body(body).send().await?;
    ensure!(answer.status().is_success(), "the Admin API answers {}", answer.status());
    // Errors have OpenAI's shape only while it is on.
    session
        .settled("llm-audit is switched", || async { session.call("/v1/models").send().await.json()["error"].is_object() == on })
        .await;
    Ok(())
}

/// One stream; how late each event came, in milliseconds.
async fn measure(session: &Session, user: &User, way: &str, arguments: &Arguments, warm_up: bool) -> Result<Vec<f64>> {
    let base = if way == "direct" { session.gateway.vllm.url() } else { session.gateway.proxy_url.clone() };
    let words = vec!["word"; if warm_up { 5 } else { arguments.events }].join(" ");
    let body = json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": words}]}).to_string();
    let request = reqwest::Client::new().post(format!("{base}/v1/chat/completions")).bearer_auth(&user.key);
    let request = request.header("x-sim-stamp", "1").header("x-sim-chunk-delay-ms", arguments.pause_ms.to_string());
    let mut response = request.header("content-type", "application/json").body(body).send().await?.error_for_status()?;
    let mut delays = Vec::new();
    let mut rest = Vec::new();
    while let Some(chunk) = tokio::time::timeout(Duration::from_secs(30), response.chunk()).await?? {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as f64;
        rest.extend_from_slice(&chunk);
        while let Some(end) = rest.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = rest.drain(..end + 2).collect();
            let event: Option<Value> = event.strip_prefix(b"data: ").and_then(|json| serde_json::from_slice(json).ok());
            if let Some(sent) = event.and_then(|event| event["sent_at_us"].as_f64()) {
                delays.push((now - sent) / 1000.0);
            }
        }
    }
    Ok(delays)
}

fn summary(delays: &[f64]) -> Value {
    let mut sorted = delays.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
    json!({"p50": at(0.5), "p99": at(0.99), "max": at(1.0)})
}
