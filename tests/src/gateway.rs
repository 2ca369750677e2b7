//! The whole path under test: a gateway with the project's plugins, a simulated vLLM behind it, the collector and its database.
//!
//! The gateway is, in this order: the running Kong of `E2E_KONG_ADMIN_URL` and `E2E_KONG_PROXY_URL`; a Kong started from the
//! image that `KONG_IMAGE` names; else (`E2E_GATEWAY=nginx`) the nginx test host. Tests cannot tell which. With a Kong on another
//! machine, `E2E_ADDRESS` is the address under which it reaches this one.
//!
//! One gateway serves all tests of a process. Tests make users of their own and find their calls by request id. A test that needs
//! other settings takes the gateway [for itself](Session::alone) and leaves it as it is: the next one finds it put right.

mod call;
pub(crate) mod start;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use call::{Call, Reply};

use crate::postgres::Database;
use crate::process::Reaper;
use crate::vllm::{Seen, SimulatedVllm};

/// How long Kong may take to put a change into effect: it looks every 5 s.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
/// How long a call may take to become a row.
const ROW_LIMIT: Duration = Duration::from_secs(20);
/// New connections go to one of two workers at random. So many good answers in a row, and both workers know.
const ANSWERS_IN_A_ROW: u32 = 12;

/// All the parts.
#[derive(Debug)]
pub struct Gateway {
    /// Where clients call, without a slash at the end.
    pub proxy_url: String,
    /// Where they call over HTTPS; `None` with a Kong that was there before.
    pub tls: Option<Tls>,
    /// Kong's Admin API.
    pub admin_url: String,
    /// The model server.
    pub vllm: SimulatedVllm,
    /// Where the rows are.
    pub database: Database,
    /// Where the collector listens.
    pub collector_url: String,
    /// Logs of the collector and, where we started it, of the gateway.
    log_folders: Vec<PathBuf>,
    /// The master of the nginx test host.
    pid: Option<u32>,
    /// Of `kong apply` and `users`.
    settings: BTreeMap<String, String>,
    /// A user that waits for changes to take effect.
    probe: OnceCell<User>,
    users_file: PathBuf,
    keys: Mutex<Vec<String>>,
    own_keys: Mutex<Vec<String>>,
    _collector: std::process::Child,
    _reaper: Reaper,
}

/// The gateway over HTTPS.
#[derive(Debug)]
pub struct Tls {
    /// Where clients call, without a slash at the end.
    pub url: String,
    /// Its certificate, which signed itself, and the key.
    pub certificate: PathBuf,
}

/// Somebody who may call the model.
#[derive(Debug, Clone)]
pub struct User {
    /// The name, as it will stand in rows.
    pub name: String,
    /// The key.
    pub key: String,
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Whether it succeeded.
    pub success: bool,
    /// Its result.
    pub stdout: String,
    /// Its messages.
    pub stderr: String,
}

static SHARED: OnceCell<Gateway> = OnceCell::const_new();
static TURN: RwLock<()> = RwLock::const_new(());
/// Settings are not, or may not be, the usual ones: so it is at the beginning, whatever Kong was there before.
static CHANGED: AtomicBool = AtomicBool::new(true);
static USERS: AtomicU32 = AtomicU32::new(0);

/// A test's hold on the shared gateway.
#[derive(Debug)]
pub struct Session {
    /// The parts.
    pub gateway: &'static Gateway,
    client: reqwest::Client,
    rows: OnceCell<tokio_postgres::Client>,
    _turn: Turn,
}

/// Held, never read.
#[derive(Debug)]
#[allow(dead_code, reason = "the guards count by being there")]
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

impl Session {
    /// Beside other tests.
    pub async fn begin() -> Self {
        loop {
            let gateway = SHARED.get_or_init(start::start).await;
            let turn = TURN.read().await;
            if !CHANGED.load(Ordering::SeqCst) {
                return Self::new(gateway, Turn::Shared(turn));
            }
            drop(turn);
            drop(Self::alone().await);
        }
    }

    /// Once no other test is running, and no other will until the end. Settings are as usual.
    pub async fn alone() -> Self {
        let gateway = SHARED.get_or_init(start::start).await;
        let session = Self::new(gateway, Turn::Alone(TURN.write().await));
        if CHANGED.load(Ordering::SeqCst) {
            session.configure(&[]).await;
            session.wait_until_usual().await;
            CHANGED.store(false, Ordering::SeqCst);
        }
        session
    }

    fn new(gateway: &'static Gateway, turn: Turn) -> Self {
        // No connection is used twice unless a test wants it: each goes to a worker at random.
        let client = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(Duration::from_secs(60)).build();
        Self { gateway, client: client.expect("an HTTP client"), rows: OnceCell::new(), _turn: turn }
    }

    /// A call to the gateway.
    pub fn call(&self, path: &str) -> Call<'_> {
        Call::new(self, path)
    }

    // --- commands ------------------------------------------------------------------------

    /// Runs `llm-collector kong apply` with changed settings, which needs a session [of one's own](Self::alone).
    pub async fn change(&self, changes: &[(&str, &str)]) -> Said {
        assert!(matches!(self._turn, Turn::Alone(_)), "other tests are running");
        CHANGED.store(true, Ordering::SeqCst);
        self.configure(changes).await
    }

    async fn configure(&self, changes: &[(&str, &str)]) -> Said {
        let said = self.gateway.command(&["kong", "apply"], changes, "").await;
        assert!(said.success, "kong apply: {}", said.stderr);
        said
    }

    /// Runs `llm-collector kong apply --wait` with changed settings that change nothing in Kong.
    pub async fn apply_and_wait(&self, changes: &[(&str, &str)]) -> Said {
        self.gateway.command(&["kong", "apply", "--wait"], changes, "").await
    }

    /// Changes settings of a plugin for which the installation has none of its own. It needs a session [of one's
    /// own](Self::alone), which puts them back.
    pub async fn set_plugin(&self, name: &str, config: Value) {
        assert!(matches!(self._turn, Turn::Alone(_)), "other tests are running");
        let plugins = format!("{}/plugins", self.gateway.admin_url);
        let client = reqwest::Client::new();
        let list = client.get(&plugins).send().await.expect("an answer").bytes().await.expect("plugins");
        let list: Value = serde_json::from_slice(&list).expect("plugins");
        let all = list["data"].as_array().expect("plugins");
        let plugin = all.iter().find(|plugin| plugin["name"] == name && plugin["consumer"].is_null()).expect("the plugin");
        let url = format!("{plugins}/{}", plugin["id"].as_str().expect("an id"));
        let body = serde_json::json!({ "config": config }).to_string();
        let changed = client.patch(url).header("content-type", "application/json").body(body).send().await.expect("an answer");
        assert_eq!(changed.status(), 200, "{}", changed.text().await.unwrap_or_default());
    }

    /// Runs `llm-collector kong apply` with the usual settings and further arguments.
    pub async fn configure_again(&self, arguments: &[&str]) -> Said {
        self.gateway.command(&[&["kong", "apply"], arguments].concat(), &[], "").await
    }

    /// Runs a command that somebody was told to run, as a shell does that knows the binary. It needs a session [of one's
    /// own](Self::alone).
    pub async fn shell(&self, command: &str) -> Said {
        assert!(matches!(self._turn, Turn::Alone(_)), "other tests are running");
        let binary = crate::collector::binary();
        let command = format!("PATH='{}':$PATH; {command}", binary.parent().expect("its folder").display());
        self.gateway.run(Path::new("/bin/bash"), &["-c", &command], &[], "").await
    }

    /// Runs `llm-collector users`.
    pub async fn users(&self, arguments: &[&str]) -> Said {
        self.gateway.command(&[&["users"], arguments].concat(), &[], "").await
    }

    /// Runs `llm-collector users` where the rows can be asked, too.
    pub async fn users_and_rows(&self, arguments: &[&str]) -> Said {
        self.collector(&[&["users"], arguments].concat()).await
    }

    /// Runs a command of the collector that reads the rows.
    pub async fn collector(&self, arguments: &[&str]) -> Said {
        self.gateway.command(arguments, &[("DATABASE_URL", self.gateway.database.url.as_str())], "").await
    }

    /// Runs `llm-collector models`.
    pub async fn models(&self, arguments: &[&str]) -> Said {
        self.gateway.command(&[&["models"], arguments].concat(), &[], "").await
    }

    /// A user that nobody else has.
    pub async fn user(&self) -> User {
        self.gateway.new_user().await
    }

    /// A user of a name that nobody else may have.
    pub async fn named_user(&self, name: &str) -> User {
        self.gateway.note_name(name);
        self.gateway.add_user(name).await
    }

    /// The identity of a user in Kong.
    pub async fn consumer_id(&self, user: &User) -> String {
        let url = format!("{}/consumers/{}", self.gateway.admin_url, user.name);
        let consumer = reqwest::get(url).await.expect("an answer").bytes().await.expect("a consumer");
        let consumer: Value = serde_json::from_slice(&consumer).expect("a consumer");
        consumer["id"].as_str().expect("an id").to_owned()
    }

    /// A user whose key is given.
    pub async fn user_with_key(&self, key: &str) -> User {
        let name = self.gateway.new_name();
        let said = self.gateway.command(&["users", "add", &name, "--key", "-"], &[], key).await;
        assert!(said.success, "users add: {}", said.stderr);
        self.gateway.remember_key(key);
        User { name, key: key.to_owned() }
    }

    // --- waiting -------------------------------------------------------------------------

    /// Waits until a call, made again and again, is answered as it should be by all workers.
    pub async fn settled<F: Future<Output = bool>>(&self, what: &str, mut is_so: impl FnMut() -> F) {
        let started = Instant::now();
        let mut in_a_row = 0;
        while in_a_row < ANSWERS_IN_A_ROW {
            let good = is_so().await;
            in_a_row = if good { in_a_row + 1 } else { 0 };
            if !good {
                assert!(started.elapsed() < CHANGE_LIMIT, "waited {CHANGE_LIMIT:?} in vain: {what}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// Waits until all workers send calls to our model server, with nothing added, and entries to our collector.
    async fn wait_until_usual(&self) {
        let user = self.gateway.probe.get_or_init(|| self.gateway.new_user()).await;
        let started = Instant::now();
        loop {
            let ids = Mutex::new(Vec::new());
            self.settled("the usual settings", || async {
                let call = self.call("/v1/chat/completions").key(&user.key);
                let reply = call.body(r#"{"messages":[{"role":"user","content":"?"}]}"#).send().await;
                let seen = reply.seen(self);
                let good = reply.status == 200 && seen.len() == 1 && seen[0].header("authorization").is_none();
                let mut ids = ids.lock().expect("the ids");
                if good {
                    ids.push(reply.request_id().to_owned());
                } else {
                    ids.clear();
                }
                good
            })
            .await;
            let ids = ids.into_inner().expect("the ids");
            // Entries that went to another collector will not come.
            for _ in 0..40 {
                if self.count_rows(&ids).await == ids.len() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert!(started.elapsed() < CHANGE_LIMIT, "calls do not become rows");
        }
    }

    async fn count_rows(&self, ids: &[String]) -> usize {
        let query = "SELECT count(*) FROM llm_logs WHERE request_id = ANY($1)";
        let row = self.rows().await.query_one(query, &[&ids]).await.expect("a count");
        usize::try_from(row.get::<_, i64>(0)).expect("a count")
    }

    /// The row of a call, once it is there.
    pub async fn row(&self, request_id: &str) -> Value {
        self.row_where("request_id", request_id).await
    }

    /// The only row of a user, once it is there.
    pub async fn row_of(&self, user: &User) -> Value {
        self.row_where("consumer_username", &user.name).await
    }

    async fn row_where(&self, column: &str, value: &str) -> Value {
        let query = format!(
            "SELECT to_jsonb(call) || jsonb_build_object('raw_log', llm_raw_log(call)) FROM llm_logs call WHERE {column} = $1"
        );
        let started = Instant::now();
        loop {
            let rows = self.rows().await.query(&query, &[&value]).await.expect("rows");
            assert!(rows.len() < 2, "{} rows with {column} {value}", rows.len());
            if let Some(row) = rows.first() {
                return row.get(0);
            }
            assert!(started.elapsed() < ROW_LIMIT, "no row with {column} {value} after {ROW_LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A connection to the database of the rows.
    pub async fn rows(&self) -> &tokio_postgres::Client {
        self.rows.get_or_init(|| self.gateway.database.connect()).await
    }
}

/// Runs a program with these settings, and nothing else of this process's own, to its end.
pub(crate) async fn run(
    program: &Path,
    arguments: &[&str],
    settings: &BTreeMap<String, String>,
    changes: &[(&str, &str)],
    input: &str,
) -> Said {
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(start::plain_environment())
        .envs(settings)
        .envs(changes.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let mut stdin = child.stdin.take().expect("its input");
    // What was not asked to read may have ended already.
    let _ = tokio::io::AsyncWriteExt::write_all(&mut stdin, input.as_bytes()).await;
    drop(stdin);
    let output = tokio::time::timeout(Duration::from_secs(120), child.wait_with_output()).await;
    let output = output.unwrap_or_else(|_| panic!("{arguments:?} does not end")).expect("its output");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { success: output.status.success(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

impl Gateway {
    /// Runs a command of the collector in an environment of its own.
    async fn command(&self, arguments: &[&str], changes: &[(&str, &str)], input: &str) -> Said {
        self.run(crate::collector::binary(), arguments, changes, input).await
    }

    async fn run(&self, program: &Path, arguments: &[&str], changes: &[(&str, &str)], input: &str) -> Said {
        run(program, arguments, &self.settings, changes, input).await
    }

    /// A metric of the collector; 0 where it is not there yet.
    pub async fn collector_metric(&self, name: &str) -> f64 {
        let text =
            reqwest::get(format!("{}/metrics", self.collector_url)).await.expect("an answer").text().await.expect("metrics");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }

    fn new_name(&self) -> String {
        let name = format!("e2e-{}-{}", std::process::id(), USERS.fetch_add(1, Ordering::Relaxed));
        self.note_name(&name);
        name
    }

    /// Who is to be removed from a Kong that stays.
    fn note_name(&self, name: &str) {
        let mut names = std::fs::OpenOptions::new().append(true).create(true).open(&self.users_file).expect("a file");
        std::io::Write::write_all(&mut names, format!("{name}\n").as_bytes()).expect("a line");
    }

    async fn new_user(&self) -> User {
        let name = self.new_name();
        self.add_user(&name).await
    }

    async fn add_user(&self, name: &str) -> User {
        let said = self.command(&["users", "add", name], &[], "").await;
        assert!(said.success, "users add: {}", said.stderr);
        let key = said.stdout.trim().to_owned();
        self.remember_key(&key);
        User { name: name.to_owned(), key }
    }

    /// Notes a key that must not turn up anywhere.
    pub fn remember_key(&self, key: &str) {
        self.keys.lock().expect("the keys").push(key.to_owned());
    }

    /// All keys that somebody used, right or wrong.
    pub fn keys(&self) -> Vec<String> {
        self.keys.lock().expect("the keys").clone()
    }

    /// Notes a key of the installation: vLLM may see it, logs and tables must not hold it.
    pub fn remember_own_key(&self, key: &str) {
        self.own_keys.lock().expect("the keys").push(key.to_owned());
    }

    /// All keys of the installation.
    pub fn own_keys(&self) -> Vec<String> {
        self.own_keys.lock().expect("the keys").clone()
    }

    /// What the collector and, where we started it, the gateway have logged by now, each file under its name.
    pub fn logs(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for folder in &self.log_folders {
            for file in std::fs::read_dir(folder).expect("logs").flatten().map(|entry| entry.path()).filter(|path| path.is_file())
            {
                let text = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
                all.push((file.display().to_string(), String::from_utf8_lossy(&text).into_owned()));
            }
        }
        all
    }

    /// What the gateway, the collector and PostgreSQL's tables hold by now, each under the name of its place.
    pub async fn everything_written(&self) -> Vec<(String, String)> {
        let mut all = self.logs();
        let client = self.database.connect().await;
        // Each column as text, and what is bytes as the text it most likely is.
        for (table, row) in [("llm_logs", "t::text"), ("llm_rejected", "reason || encode(raw, 'escape')")] {
            let rows = client.query(&format!("SELECT {row} FROM {table} t"), &[]).await.expect("rows");
            all.push((format!("table {table}"), rows.iter().map(|row| row.get::<_, String>(0) + "\n").collect()));
        }
        all
    }

    /// The process whose children are the gateway's workers; `None` when the gateway is a Kong.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// The requests that reached the model server and of which a test knows.
    pub fn seen(&self, wanted: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        self.vllm.seen(wanted)
    }
}
