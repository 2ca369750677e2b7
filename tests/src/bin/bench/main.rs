//! `make bench`: how much the collector takes, next to what else could be done with the same entries.
//!
//! Everything runs in one go on one machine, so that the ratios hold on any: the collector as operators run it, `\copy` of the
//! finished rows (what the store can take at most), and a collector in Python as people write it first. PostgreSQL keeps its
//! defaults, `fsync` and `synchronous_commit` among them; only autovacuum is off, whose workers would come and go in between.
//!
//! Then the gateway: what `llm-audit` costs it, and how soon a call is a row.
//!
//! Not here: how `decode` and `extract` do alone, which `cargo bench --bench decode` measures; its last result is read.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark fails by panicking, and its result is what it prints"
)]

mod arrival;
mod content;
mod cpu;
mod gateway;
mod load;
mod outage;
mod phases;
mod queries;
mod quota;
mod report;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use gateway_tests::generator::{Generator, Settings};

/// Benchmarks of the collector.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures the collector, \copy, a collector in Python and the gateway; prints a table and writes target/bench.json
    Run(RunSettings),
    /// Stops PostgreSQL for ten minutes under load and watches the collector's memory
    Outage(outage::OutageSettings),
    /// Times every SQL query of the dashboards over many rows; writes plans to target/bench-queries.txt
    Queries {
        /// Rows of llm_logs, spread over 30 days
        #[arg(long, default_value_t = 10_000_000)]
        rows: u64,
        /// Index texts as `serve --search-index` does, and look for texts over all of the time: half an hour for ten million rows
        #[arg(long)]
        search_index: bool,
    },
    /// Measures the gateway's CPU time for a call without and with llm-audit, and with llm-router besides, and nothing else
    Cpu {
        /// Times that all are measured, in turn; the medians of the ratios and differences count
        #[arg(long, default_value_t = 15)]
        rounds: usize,
        /// Bytes of the prompt, and so of the answer
        #[arg(long, default_value_t = 2_000)]
        bytes: usize,
    },
    /// Measures what storing parts of bodies once a day costs and saves, beside rows that are stored whole; prints a table
    Content {
        /// Times that everything is measured
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// Measures how far limits are passed, and what telling them to the nodes takes; prints a table
    Quota,
    /// Writes generated entries, one JSON object a line, as `llm-collector replay` reads them
    Generate {
        /// How many
        #[arg(long, default_value_t = 1_000)]
        entries: usize,
        /// One seed, one sequence of entries
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where to
        file: PathBuf,
    },
}

/// What is measured, and how long.
#[derive(Debug, clap::Args)]
struct RunSettings {
    /// Times that everything is measured; the medians count
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Connections that send at the same time, as many as Kong has workers
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Entries of one measurement at most
    #[arg(long, default_value_t = 16_000)]
    entries: usize,
    /// Seconds of one measurement at most
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Leaves the gateway out
    #[arg(long)]
    without_gateway: bool,
    /// The Python with Flask and psycopg2; without one its collector is left out
    #[arg(long)]
    python: Option<PathBuf>,
}

#[tokio::main]
async fn main() {
    match Cli::parse().command {
        Command::Run(settings) => {
            let measured = phases::run(&settings).await;
            let gateway = if settings.without_gateway { None } else { Some(gateway::run().await) };
            report::finish(&settings, &measured, gateway.as_ref());
        }
        Command::Outage(settings) => outage::run(&settings).await,
        Command::Queries { rows, search_index } => queries::run(rows, search_index).await,
        Command::Content { rounds } => content::run(rounds).await,
        Command::Quota => quota::run().await,
        Command::Cpu { rounds, bytes } => gateway::run_cpu(rounds, bytes).await,
        Command::Generate { entries, seed, file } => {
            let mut generator = Generator::new(&Settings { seed, ..Settings::default() });
            let mut out = String::new();
            for _ in 0..entries {
                generator.write_entry(&mut out);
                out.push('\n');
            }
            std::fs::write(&file, out).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
    }
}
