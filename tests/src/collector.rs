//! The collector under test: in this process, or as the binary that operators run.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use clap::Parser;
use llm_collector::config::{Cli, Command, ServeSettings};
use llm_collector::server::Application;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use crate::postgres::Database;
use crate::process::wait_until;

/// SHA-256, hexadecimal.
pub use llm_collector::decode::digest::sha256_hex;

/// A collector in this process.
#[derive(Debug)]
pub struct TestApp {
    /// Where it listens, without a slash at the end.
    pub url: String,
    /// Its database.
    pub database: Database,
    client: reqwest::Client,
    handle: actix_web::dev::ServerHandle,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
    _data_dir: tempfile::TempDir,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: reqwest::header::HeaderMap,
    /// The body.
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.text))
    }

    /// A count of the body.
    pub fn count(&self, name: &str) -> u64 {
        self.json()[name].as_u64().unwrap_or_else(|| panic!("no count {name} in {}", self.text))
    }
}

/// The settings of `serve` with `arguments`.
pub fn serve_settings(arguments: &[&str]) -> ServeSettings {
    let cli = Cli::try_parse_from(["llm-collector", "serve"].iter().chain(arguments)).unwrap_or_else(|error| panic!("{error}"));
    match cli.command {
        Command::Serve(settings) => settings,
        other => panic!("{other:?}"),
    }
}

impl TestApp {
    /// A collector with an empty database.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// A collector with an empty database and further arguments.
    pub async fn start_with(arguments: &[&str]) -> Self {
        Self::start_on(Database::create().await, arguments).await
    }

    /// A collector on a database.
    pub async fn start_on(database: Database, arguments: &[&str]) -> Self {
        let data_dir = tempfile::tempdir().expect("a folder");
        let data = data_dir.path().to_str().expect("a path").to_owned();
        let mut all = vec!["--listen", "127.0.0.1:0", "--database-url", &database.url, "--data-dir", &data];
        all.extend_from_slice(arguments);
        let application = Application::build(&serve_settings(&all)).await.unwrap_or_else(|error| panic!("{error:#}"));
        let url = format!("http://127.0.0.1:{}", application.port());
        let handle = application.handle();
        let running = tokio::spawn(application.run_until_stopped());
        let app = Self { url, database, client: reqwest::Client::new(), handle, running, _data_dir: data_dir };
        // It serves before its database is migrated, and puts entries into the spool meanwhile.
        wait_until("the database is migrated", Duration::from_secs(60), || async {
            app.get("/readyz").await.text.contains("postgresql")
        })
        .await;
        app
    }

    /// `POST /log`
    pub async fn log(&self, body: impl Into<reqwest::Body>) -> Answer {
        self.log_with(body, &[]).await
    }

    /// `POST /log` with headers.
    pub async fn log_with(&self, body: impl Into<reqwest::Body>, headers: &[(&str, &str)]) -> Answer {
        self.post("/log", body, headers).await
    }

    /// `POST` of JSON with headers.
    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>, headers: &[(&str, &str)]) -> Answer {
        let mut request = self.client.post(format!("{}{path}", self.url)).body(body).header("Content-Type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request).await
    }

    /// `GET`
    pub async fn get(&self, path: &str) -> Answer {
        answer(self.client.get(format!("{}{path}", self.url))).await
    }

    /// The value of a series of `/metrics`, given as it stands there; 0 when it is not there.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").await.text;
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until every day that has rows has its partition: that is made beside what is stored.
    pub async fn settled(&self) {
        wait_until("partitions are made", Duration::from_secs(60), || async {
            self.database.number("SELECT count(*) FROM llm_missing_partitions(400, 7)").await == 0
        })
        .await;
    }

    /// Stops it as SIGTERM does and waits for its end.
    pub async fn stop(self) {
        self.handle.stop(true).await;
        self.running.await.expect("the server task").unwrap_or_else(|error| panic!("{error:#}"));
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    try_answer(request).await.unwrap_or_else(|error| panic!("no answer: {error:?}"))
}

async fn try_answer(request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
    let response = request.send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Ok(Answer { status, headers, text: response.text().await? })
}

/// The path of the binary, built on first use in the profile of the tests, unless `COLLECTOR_IS_BUILT` says that it is: tests of the
/// whole workspace build it with everything else, and once more would be with other features of its dependencies.
pub fn binary() -> &'static PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let own = std::env::current_exe().expect("the path of this program");
        // target/PROFILE/deps/test or target/PROFILE/program
        let folder = own.ancestors().skip(1).find(|folder| !folder.ends_with("deps")).expect("a folder");
        if std::env::var_os("COLLECTOR_IS_BUILT").is_some() {
            return folder.join("llm-collector");
        }
        let mut build = std::process::Command::new(env!("CARGO"));
        // Both packages, so that dependencies have the features that they have in this test already: the collector alone wants
        // fewer, and cargo would build them all again.
        build.args(["build", "--quiet", "--package", "llm-collector", "--package", "gateway-tests", "--bin", "llm-collector"]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        let status = build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).status().expect("cargo");
        assert!(status.success(), "the collector does not build");
        folder.join("llm-collector")
    })
}

/// What a finished command left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its result.
    pub stdout: String,
    /// Its log.
    pub stderr: String,
}

/// Runs the binary to its end.
pub async fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Finished {
    let data_dir = tempfile::tempdir().expect("a folder");
    let mut command = tokio::process::Command::new(binary());
    command
        .env("COLLECTOR_DATA_DIR", data_dir.path())
        .args(arguments)
        .env_remove("DATABASE_URL")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output =
        tokio::time::timeout(Duration::from_secs(60), command.output()).await.expect("the command ends").expect("it starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Finished { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The collector as a process of its own.
#[derive(Debug)]
pub struct Process {
    /// Where it listens.
    pub url: String,
    child: Child,
    log: tokio::task::JoinHandle<String>,
    /// Used when the arguments name none.
    _data_dir: tempfile::TempDir,
}

impl Process {
    /// Starts `serve` on a free port and waits until it listens.
    pub async fn serve(arguments: &[&str]) -> Self {
        Self::serve_at("127.0.0.1:0", arguments).await
    }

    /// The same at a given address: where one was that ended, another is found again.
    pub async fn serve_at(address: &str, arguments: &[&str]) -> Self {
        let data_dir = tempfile::tempdir().expect("a folder");
        let mut child = tokio::process::Command::new(binary())
            .env("COLLECTOR_DATA_DIR", data_dir.path())
            // As in the shipped binary, whose C library reserves no 64 MiB of addresses for each thread.
            .env("MALLOC_ARENA_MAX", "1")
            .args(["serve", "--listen", address])
            .args(arguments)
            .env_remove("DATABASE_URL")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the collector starts");
        let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
        let mut log = String::new();
        let url = loop {
            let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await.expect("it says that it listens");
            let Some(line) = line.expect("a line") else { panic!("the collector ended:\n{log}") };
            log.push_str(&line);
            log.push('\n');
            if let Some((_, rest)) = line.split_once("listening on ") {
                let address: String = rest.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
                break format!("http://{address}");
            }
        };
        let log = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                log.push_str(&line);
                log.push('\n');
            }
            log
        });
        Self { url, child, log, _data_dir: data_dir }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Sends it a signal, by name.
    pub fn signal(&self, name: &str) {
        let status = std::process::Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot send {name}");
    }

    /// Kills it, as a crash or the kernel's memory killer does, and waits until it is gone.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it can be killed");
    }

    /// Waits for its end; returns how it ended and its log.
    pub async fn finished(mut self) -> (ExitStatus, String) {
        let status = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await.expect("it ends").expect("a status");
        (status, self.log.await.expect("its log"))
    }
}

/// `POST` to a URL; `None` when no answer came.
pub async fn post(url: &str, body: impl Into<reqwest::Body>) -> Option<Answer> {
    try_answer(reqwest::Client::new().post(url).body(body)).await.ok()
}

/// `GET` of a URL; `None` when no answer came.
pub async fn get(url: &str) -> Option<Answer> {
    try_answer(reqwest::Client::new().get(url)).await.ok()
}

/// A body that is sent in pieces, without its length.
pub fn streamed<S>(pieces: S) -> reqwest::Body
where
    S: futures_util::Stream<Item = Result<Vec<u8>, std::io::Error>> + Send + Sync + 'static,
{
    reqwest::Body::wrap_stream(pieces)
}
