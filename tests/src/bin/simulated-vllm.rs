//! The simulated vLLM as a program: test equipment, not a model server.
#![allow(clippy::print_stderr, reason = "it tells a person where it listens")]

use std::net::SocketAddr;

use anyhow::Context;
use clap::Parser;
use gateway_tests::vllm::{Settings, SimulatedVllm};

/// A simulated vLLM that answers with recorded streams. Test equipment: it has no model
#[derive(Debug, Parser)]
struct Arguments {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// Factor on recorded times: 1 as recorded, 0.1 ten times as fast, 0 at once
    #[arg(long = "time-scale", alias = "speed", default_value_t = 1.0)]
    time_scale: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { listen, time_scale } = Arguments::parse();
    let vllm = SimulatedVllm::start(Settings { listen, time_scale })
        .await
        .with_context(|| format!("cannot listen on {listen}; choose another address with --listen"))?;
    eprintln!("SIMULATED vLLM, test equipment without a model: listening on {}", vllm.address());
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}
