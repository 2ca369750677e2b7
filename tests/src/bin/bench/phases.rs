//! The measurements, one after the other.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gateway_tests::collector::Process;
use gateway_tests::generator::{Generator, Settings};
use gateway_tests::postgres::{Cluster, Database};
use gateway_tests::process::free_port;
use tokio_postgres::Client;

use crate::RunSettings;
use crate::cpu;
use crate::load::{Request, Sent, send};

/// Entries in a batch, as Kong's `queue.max_batch_size` sets it.
const BATCH_SIZES: [usize; 3] = [1, 20, 200];

/// One measurement.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) who: Who,
    pub(crate) round: usize,
    pub(crate) rows: u64,
    pub(crate) seconds: f64,
    /// Bytes of Kong JSON; 0 for `\copy`.
    pub(crate) bytes: u64,
    /// CPU seconds of the collector, or of psql.
    pub(crate) own_cpu: f64,
    pub(crate) server_cpu: cpu::Server,
    /// Bytes.
    pub(crate) peak_memory: u64,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// With this many entries in a batch.
    Collector(usize),
    Copy,
    Python,
    /// With a new connection to PostgreSQL for each entry.
    PythonConnecting,
}

struct Bench<'s> {
    settings: &'s RunSettings,
    cluster: Cluster,
    database: Database,
    client: Client,
    folder: tempfile::TempDir,
    generator: Generator,
}

/// Measures everything, round after round.
pub(crate) async fn run(settings: &RunSettings) -> Vec<Measured> {
    let cluster = Cluster::start(&["autovacuum=off"]).unwrap_or_else(|error| panic!("no PostgreSQL: {error}"));
    let database = Database::create_on(&cluster.url()).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_millis() as i64;
    let mut bench = Bench {
        settings,
        client: database.connect().await,
        database,
        cluster,
        folder: tempfile::tempdir().expect("a folder"),
        generator: Generator::new(&Settings { started_at_ms: now, ..Settings::default() }),
    };
    // The first collector makes the tables.
    bench.collector(0, 1, 100).await;
    let mut measured = Vec::new();
    for round in 1..=settings.rounds {
        for size in BATCH_SIZES {
            measured.push(bench.collector(round, size, settings.entries).await);
        }
        // Right after the largest batches, whose rows it copies.
        measured.push(bench.copy(round).await);
        if let Some(python) = &settings.python {
            measured.push(bench.python(round, python, Who::Python).await);
            measured.push(bench.python(round, python, Who::PythonConnecting).await);
        }
    }
    measured
}

impl Bench<'_> {
    async fn collector(&mut self, round: usize, size: usize, entries: usize) -> Measured {
        let batches = self.batches(size, entries);
        let data_dir = self.folder.path().join("data");
        let data_dir = data_dir.to_str().expect("a path");
        let collector = Process::serve(&["--database-url", &self.database.url, "--data-dir", data_dir]).await;
        self.empty_table().await;
        let (own, server) = (cpu::of_process(collector.pid()), self.server_cpu());
        let sent = self.send(collector.url.trim_start_matches("http://"), &batches);
        let measured = Measured {
            who: Who::Collector(size),
            round,
            rows: self.rows().await,
            seconds: sent.seconds,
            bytes: sent.bytes,
            own_cpu: cpu::of_process(collector.pid()) - own,
            server_cpu: self.server_cpu().since(server),
            peak_memory: cpu::peak_memory(collector.pid()),
        };
        assert_eq!(measured.rows, sent.entries, "rows of the entries that were acknowledged");
        collector.signal("TERM");
        collector.finished().await;
        measured
    }

    async fn python(&mut self, round: usize, python: &Path, who: Who) -> Measured {
        let size = BATCH_SIZES[BATCH_SIZES.len() - 1];
        // It is told after each batch whether its time is over: fewer entries than for the others will do.
        let batches = self.batches(size, self.settings.entries / 2);
        self.empty_table().await;
        let port = free_port();
        let mut child = Python(self.start_python(python, port, who == Who::PythonConnecting));
        wait_for(port, &mut child.0);
        let (own, server) = (cpu::of_process(child.0.id()), self.server_cpu());
        let sent = self.send(&format!("127.0.0.1:{port}"), &batches);
        let measured = Measured {
            who,
            round,
            rows: self.rows().await,
            seconds: sent.seconds,
            bytes: sent.bytes,
            own_cpu: cpu::of_process(child.0.id()) - own,
            server_cpu: self.server_cpu().since(server),
            peak_memory: cpu::peak_memory(child.0.id()),
        };
        assert_eq!(measured.rows, sent.entries, "rows of the entries that were acknowledged");
        measured
    }

    fn start_python(&self, python: &Path, port: u16, connecting: bool) -> Child {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/naive_collector.py");
        let log = std::fs::File::create(self.folder.path().join("python.log")).expect("a log");
        Command::new(python)
            .arg(script)
            .args(["--port", &port.to_string(), "--database-url", &self.database.url])
            .args(connecting.then_some("--connect-for-each-entry"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", python.display()))
    }

    /// `\copy` of the rows that are there, into the same table.
    async fn copy(&mut self, round: usize) -> Measured {
        let columns = self.columns().await;
        let file: PathBuf = self.folder.path().join("rows");
        self.psql(&format!("\\copy (SELECT {columns} FROM llm_logs) TO '{}'", file.display()));
        self.empty_table().await;
        let server = self.server_cpu();
        let started = Instant::now();
        let own_cpu = self.psql(&format!("\\copy llm_logs ({columns}) FROM '{}'", file.display()));
        let seconds = started.elapsed().as_secs_f64();
        Measured {
            who: Who::Copy,
            round,
            rows: self.rows().await,
            seconds,
            bytes: 0,
            own_cpu,
            server_cpu: self.server_cpu().since(server),
            peak_memory: 0,
        }
    }

    /// The columns that a row brings with it.
    async fn columns(&self) -> String {
        let query = "SELECT string_agg(column_name, ', ' ORDER BY ordinal_position) FROM information_schema.columns
            WHERE table_name = 'llm_logs' AND column_name NOT IN ('id', 'created_at')";
        self.client.query_one(query, &[]).await.expect("the columns").get(0)
    }

    /// Runs psql; returns the CPU seconds that it took.
    fn psql(&self, command: &str) -> f64 {
        let children = || cpu::of_ended_children();
        let before = children();
        let status = Command::new("psql")
            .args([&self.database.url, "-q", "-v", "ON_ERROR_STOP=1", "-c", command])
            .stdin(Stdio::null())
            .status();
        assert!(status.expect("psql").success(), "psql failed: {command}");
        children() - before
    }

    fn batches(&mut self, size: usize, entries: usize) -> Vec<Request> {
        (0..entries.div_ceil(size)).map(|_| Request::log(self.generator.batch(size), size)).collect()
    }

    fn send(&self, address: &str, batches: &[Request]) -> Sent {
        tokio::task::block_in_place(|| {
            send(address, batches.iter(), self.settings.connections, Duration::from_secs(self.settings.seconds))
        })
    }

    /// No rows, and nothing of the last measurement left to be written.
    async fn empty_table(&self) {
        self.client.batch_execute("TRUNCATE llm_logs; CHECKPOINT").await.expect("an empty table");
    }

    async fn rows(&self) -> u64 {
        let row = self.client.query_one("SELECT count(*) FROM llm_logs", &[]).await.expect("a count");
        row.get::<_, i64>(0) as u64
    }

    fn server_cpu(&self) -> cpu::Server {
        cpu::Server::now(&self.cluster.pids())
    }
}

/// Ends with the measurement.
struct Python(Child);

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(port: u16, child: &mut Child) {
    let started = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(child.try_wait().is_ok_and(|status| status.is_none()), "the Python collector ended");
        assert!(started.elapsed() < Duration::from_secs(30), "the Python collector does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
}
