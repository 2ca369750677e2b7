//! What dies, and what may not be lost: the collector as a process, a PostgreSQL cluster of its own with default durability.
//!
//! `CHAOS_KILLS=100 cargo test --release --test chaos` kills more often than the few times that every run can afford.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod gaps;
mod hostile;
mod kills;
mod leader;
mod limits;
mod locks;
mod outages;
mod quota_edges;
mod quota_kills;
mod threads;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gateway_tests::collector::{Answer, Process, get, post};
use gateway_tests::postgres::{Cluster, Database};
use gateway_tests::process::wait_until;

/// Long enough for a slow machine, short enough to notice that something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster of its own, a database in it, and a data folder.
struct Site {
    cluster: Cluster,
    database: Database,
    data: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        let cluster = Cluster::start(&[]).unwrap_or_else(|error| panic!("{error}"));
        let database = Database::create_on(&cluster.url()).await;
        Self { cluster, database, data: tempfile::tempdir().unwrap() }
    }

    fn data_dir(&self) -> &Path {
        self.data.path()
    }

    fn spool(&self) -> PathBuf {
        self.data.path().join("spool")
    }

    async fn collector(&self) -> Process {
        self.collector_with(&[]).await
    }

    async fn collector_with(&self, arguments: &[&str]) -> Process {
        serve(&self.database, self.data_dir(), arguments).await
    }

    /// Waits until every entry is a row and the spool is empty.
    async fn wait_for_rows(&self, rows: i64) {
        wait_until(&format!("{rows} rows and an empty spool"), PATIENCE, || async {
            spool_files(&self.spool()) == 0 && self.database.number("SELECT count(*) FROM llm_logs").await == rows
        })
        .await;
    }
}

async fn serve(database: &Database, data_dir: &Path, arguments: &[&str]) -> Process {
    let data_dir = data_dir.to_str().unwrap();
    let mut all = vec!["--database-url", &database.url, "--data-dir", data_dir];
    all.extend_from_slice(arguments);
    Process::serve(&all).await
}

fn spool_files(spool: &Path) -> usize {
    let Ok(files) = std::fs::read_dir(spool) else { return 0 };
    files.flatten().filter(|file| file.path().extension().is_some_and(|extension| extension == "jsonl")).count()
}

/// Sends a body to a collector; `None` when no answer came.
async fn send(collector: &Process, body: impl Into<reqwest::Body>) -> Option<Answer> {
    post(&format!("{}/log", collector.url), body).await
}

/// Sends a body and returns stored, duplicates, spooled, rejected.
async fn counts(collector: &Process, body: impl Into<reqwest::Body>) -> [u64; 4] {
    let answer = send(collector, body).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text);
    ["stored", "duplicates", "spooled", "rejected"].map(|name| answer.count(name))
}

/// The value of a series of the collector's metrics; 0 when it is not there.
async fn metric(collector: &Process, series: &str) -> f64 {
    let text = get(&format!("{}/metrics", collector.url)).await.expect("metrics").text;
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or(0.0)
}

/// How often each small entry is in the table, by its name. Half of those in a mixed batch have no request id, but all have a prompt.
async fn rows_by_name(database: &Database) -> BTreeMap<String, i64> {
    let query = "SELECT substr(prompt, 4), count(*) FROM llm_logs GROUP BY 1";
    database.connect().await.query(query, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Every acknowledged entry is there exactly once, and nothing that was never sent.
async fn assert_exactly_once(database: &Database, acknowledged: &[String], sent: usize) {
    let rows = rows_by_name(database).await;
    let missing: Vec<&String> = acknowledged.iter().filter(|id| !rows.contains_key(*id)).collect();
    assert!(missing.is_empty(), "{} of {} acknowledged entries are missing: {missing:?}", missing.len(), acknowledged.len());
    assert!(rows.values().all(|count| *count == 1), "doubled: {rows:?}");
    assert!(rows.len() <= sent, "{} rows of {sent} entries", rows.len());
}
