//! `bench outage`: memory of the collector while PostgreSQL is stopped, and what becomes of the entries afterwards.
//!
//! Not part of `make bench`: ten minutes at 500 entries a second are 300,000 entries and 6 GB of spool.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gateway_tests::collector::Process;
use gateway_tests::generator::{Generator, Settings};
use gateway_tests::postgres::{Cluster, Database};
use gateway_tests::process::wait_until;

use crate::cpu;
use crate::load::{Request, send};

/// Entries in a batch, and connections, as with Kong's shipped configuration.
const BATCH: usize = 20;
const CONNECTIONS: usize = 4;

/// How long and how much.
#[derive(Debug, clap::Args)]
pub(crate) struct OutageSettings {
    /// Seconds without PostgreSQL
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Entries a second
    #[arg(long, default_value_t = 500)]
    rate: usize,
    /// Folder for the spool: 20 KB an entry
    #[arg(long, default_value = "/tmp")]
    folder: std::path::PathBuf,
}

/// Measures and prints.
pub(crate) async fn run(settings: &OutageSettings) {
    let cluster = Cluster::start(&[]).unwrap_or_else(|error| panic!("no PostgreSQL: {error}"));
    let database = Database::create_on(&cluster.url()).await;
    let folder = tempfile::tempdir_in(&settings.folder).expect("a folder");
    let data_dir = folder.path().to_str().expect("a path");
    let collector = Process::serve(&["--database-url", &database.url, "--data-dir", data_dir]).await;
    let address = collector.url.trim_start_matches("http://").to_owned();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_millis() as i64;
    let mut generator = Generator::new(&Settings { started_at_ms: now, ..Settings::default() });

    cluster.stop_server("fast").expect("it stops");
    let before = cpu::of_process(collector.pid());
    let started = Instant::now();
    let mut entries = 0;
    let mut highest = 0;
    // A fifth of a second at a time, so that the rate is kept whatever an answer takes.
    let of_a_slot = (settings.rate / 5).div_ceil(BATCH);
    for slot in 1..=settings.seconds * 5 {
        let requests: Vec<Request> = (0..of_a_slot).map(|_| Request::log(generator.batch(BATCH), BATCH)).collect();
        let sent = tokio::task::block_in_place(|| send(&address, requests.iter(), CONNECTIONS, Duration::from_secs(60)));
        entries += sent.entries;
        highest = highest.max(cpu::memory(collector.pid()));
        let due = started + Duration::from_millis(slot * 200);
        tokio::time::sleep_until(due.into()).await;
    }
    let took = started.elapsed().as_secs_f64();
    let used = cpu::of_process(collector.pid()) - before;
    println!(
        "{took:.0} s without PostgreSQL: {entries} entries acknowledged, {:.0} a second; highest resident memory {:.0} MiB, {:.3} CPU seconds for 1,000 entries",
        entries as f64 / took,
        highest.max(cpu::peak_memory(collector.pid())) as f64 / f64::from(1 << 20),
        used * 1e3 / entries as f64
    );

    cluster.start_server().expect("it starts");
    let started = Instant::now();
    let rows = || async { database.number("SELECT count(*) FROM llm_logs").await as u64 };
    wait_until("every entry is a row", Duration::from_secs(settings.seconds * 2 + 60), || async { rows().await == entries })
        .await;
    println!(
        "PostgreSQL is back: every entry is a row after {:.0} s; highest resident memory {:.0} MiB",
        started.elapsed().as_secs_f64(),
        cpu::peak_memory(collector.pid()) as f64 / f64::from(1 << 20)
    );
}
