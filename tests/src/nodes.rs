//! Several nodes of the gateway with one collector and one PostgreSQL, any of which a test may kill and start again.
//!
//! A node is the nginx test host, whose workers are processes that can be killed one by one; a Kong would have to be one on this
//! host, and its image has none.

use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::Mutex;

use crate::collector::{Process, binary};
use crate::gateway::start::{TOKEN, project, settings, start_script};
use crate::gateway::{Said, User, run};
use crate::postgres::{Cluster, Database};
use crate::process::{Reaper, free_port, wait_until};
use crate::vllm::{Settings, SimulatedVllm};

/// The script that starts a node.
const HOST: &str = "tests/nginx-host/run.sh";
/// For what becomes so by itself.
const PATIENCE: Duration = Duration::from_secs(90);
/// Entries that came to no collector are lost after so long.
const GAP_GRACE_SECONDS: &str = "5";
/// New connections go to one of two workers at random. So many good answers in a row, and both workers know.
const ANSWERS_IN_A_ROW: u32 = 12;

/// A node of the gateway.
#[derive(Debug)]
pub struct Node {
    /// Where clients call.
    pub proxy_url: String,
    /// Its Admin API.
    pub admin_url: String,
    /// The master of its workers.
    pub pid: u32,
    _reaper: Reaper,
}

/// An answer of a node.
#[derive(Debug)]
pub struct Answered {
    /// The status.
    pub status: u16,
    /// What is left of the tightest limit of tokens, where there is one.
    pub tokens_left: Option<i64>,
    /// How much that limit allows.
    pub tokens_limit: Option<i64>,
    /// The body, as far as it came.
    pub text: String,
}

/// The whole.
#[derive(Debug)]
pub struct Nodes {
    /// Where the rows are.
    pub database: Database,
    /// Its server.
    pub cluster: Cluster,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// Where the collector is, while it runs.
    pub collector_address: String,
    collector: Mutex<Option<Process>>,
    vllm: SimulatedVllm,
    client: reqwest::Client,
    data: TempDir,
}

impl Node {
    /// The processes that serve its calls.
    pub fn workers(&self) -> Vec<u32> {
        let file = format!("/proc/{0}/task/{0}/children", self.pid);
        let children = std::fs::read_to_string(file).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Makes its master read the configuration anew, as `kong reload` does.
    pub fn reload(&self) {
        signal("HUP", self.pid);
    }
}

/// Sends a signal, by name, to a process that may have ended.
pub fn signal(name: &str, pid: u32) {
    let sent =
        std::process::Command::new("kill").args(["-s", name, &pid.to_string()]).stderr(std::process::Stdio::null()).status();
    assert!(sent.is_ok(), "kill does not run");
}

impl Nodes {
    /// Starts so many nodes and all else; no user, no limit.
    pub async fn start(count: usize) -> Self {
        let data = tempfile::Builder::new().prefix("gateway-tests-nodes-").tempdir().expect("a folder");
        let cluster = Cluster::start(&[]).unwrap_or_else(|error| panic!("{error}"));
        let database = Database::create_on(&cluster.url()).await;
        let listen = "127.0.0.1:0".parse().expect("an address");
        let vllm = SimulatedVllm::start(Settings { listen, time_scale: 0.0 }).await.expect("the simulated vLLM");
        let client = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(Duration::from_secs(60)).build();
        let mut all = Self {
            database,
            cluster,
            nodes: Vec::new(),
            collector_address: format!("127.0.0.1:{}", free_port()),
            collector: Mutex::default(),
            vllm,
            client: client.expect("an HTTP client"),
            data,
        };
        all.start_collector().await;
        all.is_migrated().await;
        for number in 0..count {
            all.add_node(number).await;
        }
        all
    }

    async fn add_node(&mut self, number: usize) {
        let prefix = self.data.path().join(format!("node-{number}"));
        // First of all: a start that fails halfway is cleaned up, too.
        let reaper = Reaper::new(&format!("{} stop --prefix {}", project().join(HOST).display(), prefix.display()));
        let host = start_script(HOST, &prefix, &self.database).await;
        let pid = host.pid.expect("the nginx test host tells it");
        self.nodes.push(Node { proxy_url: host.proxy_url, admin_url: host.admin_url, pid, _reaper: reaper });
        let said = self.at_node(number, &["kong", "apply"], "").await;
        assert!(said.success, "kong apply: {}", said.stderr);
    }

    async fn is_migrated(&self) {
        let url = format!("http://{}/readyz", self.collector_address);
        wait_until("the database is migrated", PATIENCE, || async {
            crate::collector::get(&url).await.is_some_and(|answer| answer.text.contains("postgresql"))
        })
        .await;
    }

    /// Starts the collector, at the address and with the spool that it had before.
    pub async fn start_collector(&self) {
        let data_dir = self.data.path().join("collector");
        let arguments = [
            ["--database-url", &self.database.url],
            ["--data-dir", data_dir.to_str().expect("a path")],
            ["--token", TOKEN],
            ["--gap-grace-seconds", GAP_GRACE_SECONDS],
        ];
        let collector = Process::serve_at(&self.collector_address, &arguments.concat()).await;
        *self.collector.lock().await = Some(collector);
    }

    /// Kills the collector.
    pub async fn kill_collector(&self) {
        if let Some(mut collector) = self.collector.lock().await.take() {
            collector.kill().await;
        }
    }

    /// Runs a command of the collector with the Admin API of a node.
    async fn at_node(&self, number: usize, arguments: &[&str], input: &str) -> Said {
        let node = &self.nodes[number];
        let collector_url = format!("http://{}", self.collector_address);
        let settings = settings(&node.admin_url, &node.proxy_url, &self.vllm.url(), &collector_url);
        run(binary(), arguments, &settings, &[], input).await
    }

    /// Runs a command of the collector that reads or changes tables; returns what it says.
    pub async fn command(&self, arguments: &[&str]) -> String {
        let settings = [("DATABASE_URL".to_owned(), self.database.url.clone())].into();
        let said = run(binary(), arguments, &settings, &[], "").await;
        assert!(said.success, "{arguments:?}: {}", said.stderr);
        said.stdout
    }

    /// Makes a user whom all nodes know.
    pub async fn user(&self, name: &str, team: &str) -> User {
        let key = format!("sk-of-{name}-0123456789-0123456789");
        for number in 0..self.nodes.len() {
            let said = self.at_node(number, &["users", "add", name, "--team", team, "--key", "-"], &key).await;
            assert!(said.success, "users add: {}", said.stderr);
        }
        User { name: name.to_owned(), key }
    }

    /// Moves a user to another team, at all nodes.
    pub async fn move_user(&self, user: &User, team: &str) {
        for number in 0..self.nodes.len() {
            let said = self.at_node(number, &["users", "team", &user.name, team], "").await;
            assert!(said.success, "users team: {}", said.stderr);
        }
    }

    /// Gives a user another name, at all nodes; the key stays.
    pub async fn rename_user(&self, user: &mut User, name: &str) {
        for node in &self.nodes {
            let request = self.client.patch(format!("{}/consumers/{}", node.admin_url, user.name));
            let body = serde_json::json!({ "username": name }).to_string();
            let answer = request.header("content-type", "application/json").body(body).send().await.expect("an answer");
            assert_eq!(answer.status().as_u16(), 200);
        }
        name.clone_into(&mut user.name);
    }

    /// A call at a node; `None` when it broke off.
    pub async fn call(&self, node: usize, user: &User, path: &str, headers: &[(&str, &str)], body: &Value) -> Option<Answered> {
        let url = format!("{}{path}", self.nodes[node].proxy_url);
        let mut request = if body.is_null() { self.client.get(url) } else { self.client.post(url).body(body.to_string()) };
        for (name, value) in headers.iter().chain(&[("content-type", "application/json")]) {
            request = request.header(*name, *value);
        }
        let response = request.bearer_auth(&user.key).send().await.ok()?;
        let status = response.status().as_u16();
        let number = |name: &str| response.headers().get(name)?.to_str().ok()?.parse().ok();
        let (tokens_left, tokens_limit) = (number("x-ratelimit-remaining-tokens"), number("x-ratelimit-limit-tokens"));
        let text = response.text().await.ok()?;
        Some(Answered { status, tokens_left, tokens_limit, text })
    }

    /// What a node knows of a user's tightest limit of tokens: a call that takes none asks.
    pub async fn told(&self, node: usize, user: &User) -> Option<Answered> {
        self.call(node, user, "/tokenize", &[], &serde_json::json!({"model": "m", "prompt": "?"})).await
    }

    /// Whether all workers of all nodes say that so much is left to a user, by his tightest limit of tokens.
    pub async fn is_left(&self, user: &User, left: i64) -> bool {
        self.all_say(user, &|told| told.tokens_left == Some(left)).await.is_none()
    }

    /// Waits until they do.
    pub async fn wait_for_left(&self, user: &User, left: i64) {
        self.wait_for(user, &format!("{left} are left"), |told| told.tokens_left == Some(left)).await;
    }

    /// Waits until all nodes know a user, and a limit that is his tightest.
    pub async fn wait_for_limit(&self, user: &User, limit: i64) {
        self.wait_for(user, &format!("a limit of {limit}"), |told| told.tokens_limit == Some(limit)).await;
    }

    async fn wait_for(&self, user: &User, what: &str, is_so: impl Fn(&Answered) -> bool) {
        let started = Instant::now();
        while let Some(other) = self.all_say(user, &is_so).await {
            assert!(started.elapsed() < PATIENCE, "{}: {what}, but {other}", user.name);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What a worker says that is not so.
    async fn all_say(&self, user: &User, is_so: &impl Fn(&Answered) -> bool) -> Option<String> {
        for node in 0..self.nodes.len() {
            for _ in 0..ANSWERS_IN_A_ROW {
                let told = self.told(node, user).await;
                if !told.as_ref().is_some_and(is_so) {
                    return Some(format!("node {node} says {told:?}"));
                }
            }
        }
        None
    }
}
