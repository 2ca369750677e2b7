//! Starting the parts, and stopping them when the tests end, however they end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use super::{Gateway, Tls};
use crate::collector;
use crate::postgres::Database;
use crate::process::Reaper;
use crate::vllm::{Settings, SimulatedVllm};

/// Time-out of the gateway for the next byte of an answer. Short, because a test waits for it; all others are answered at once.
const READ_TIMEOUT_MS: u64 = 3000;
/// What the gateway shows the collector.
pub(crate) const TOKEN: &str = "token-of-the-end-to-end-tests";

/// The runtime of the shared parts: that of the test which came first ends with it.
static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime"));

/// The folder of the project.
pub(crate) fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a folder above").to_owned()
}

/// What a script may know of the environment: an operator's settings must not reach a test.
pub(crate) fn plain_environment() -> impl Iterator<Item = (&'static str, String)> {
    ["PATH", "HOME", "TMPDIR", "DOCKER_HOST"].into_iter().filter_map(|name| Some((name, std::env::var(name).ok()?)))
}

/// Starts everything.
pub(super) async fn start() -> Gateway {
    RUNTIME.spawn(start_parts()).await.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => panic!("{error}"),
    })
}

async fn start_parts() -> Gateway {
    let folder = tempfile::Builder::new().prefix("gateway-tests-").tempdir().expect("a folder").keep();
    let host = Host::of_environment();
    // First of all: a start that fails halfway is cleaned up, too.
    let reaper = Reaper::new(&cleanup(&folder, &host));
    let address = std::env::var("E2E_ADDRESS").unwrap_or_else(|_| "127.0.0.1".to_owned());
    let listen: SocketAddr = format!("{address}:0").parse().expect("E2E_ADDRESS is an IP address");

    let vllm = SimulatedVllm::start(Settings { listen, time_scale: 0.0 }).await.expect("the simulated vLLM");
    let database = Database::create().await;
    let (collector_url, collector) = start_collector(&folder, &listen, &database);
    let host = match host {
        Host::Running { proxy_url, admin_url } => {
            eprintln!("gateway for tests: the Kong at {proxy_url}");
            Started { proxy_url, admin_url, tls: None, logs: None, pid: None }
        }
        Host::Script { script, name } => {
            let started = start_script(script, &folder.join("gateway"), &Database::create().await).await;
            eprintln!("gateway for tests: {name}");
            started
        }
    };

    let settings = settings(&host.admin_url, &host.proxy_url, &vllm.url(), &collector_url);
    Gateway {
        proxy_url: host.proxy_url,
        tls: host.tls,
        admin_url: host.admin_url,
        vllm,
        database,
        collector_url,
        pid: host.pid,
        log_folders: std::iter::once(folder.join("collector")).chain(host.logs).collect(),
        settings,
        probe: OnceCell::new(),
        users_file: folder.join("users"),
        keys: Mutex::default(),
        own_keys: Mutex::new(vec![TOKEN.to_owned()]),
        _collector: collector,
        _reaper: reaper,
    }
}

/// What `kong apply` and `users` are told.
pub(crate) fn settings(admin_url: &str, proxy_url: &str, vllm_url: &str, collector_url: &str) -> BTreeMap<String, String> {
    [
        ("KONG_ADMIN_URL", admin_url),
        ("KONG_PROXY_URL", proxy_url),
        ("VLLM_URL", vllm_url),
        ("VLLM_READ_TIMEOUT_MS", &READ_TIMEOUT_MS.to_string()),
        ("COLLECTOR_URL", collector_url),
        ("COLLECTOR_TOKEN", TOKEN),
        // Nobody but the tests reaches this Kong.
        ("KONG_ACCEPT_OLD", "1"),
        ("RATE_LIMIT_PER_HOUR", "1000000"),
        ("AUDIT_BATCH_SECONDS", "0.1"),
        // All tests call from one address, and many without a key.
        ("ANONYMOUS_PER_MINUTE", "0"),
        // And some users are refused in many tests.
        ("REFUSED_PER_MINUTE", "0"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// Sizes of nginx's buffers, as deploy/compose.yaml has them.
const SHIPPED_BUFFERS: [(&str, &str); 3] = [
    ("KONG_NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE", "1m"),
    ("KONG_NGINX_PROXY_PROXY_BUFFER_SIZE", "32k"),
    ("KONG_NGINX_PROXY_PROXY_BUFFERS", "4 32k"),
];

/// What serves as the gateway.
enum Host {
    Running { proxy_url: String, admin_url: String },
    Script { script: &'static str, name: String },
}

impl Host {
    fn of_environment() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = |name: &str| variable(name).map(|url| url.trim_end_matches('/').to_owned());
        if let (Some(proxy_url), Some(admin_url)) = (url("E2E_KONG_PROXY_URL"), url("E2E_KONG_ADMIN_URL")) {
            return Self::Running { proxy_url, admin_url };
        }
        match (variable("E2E_GATEWAY").as_deref(), variable("KONG_IMAGE")) {
            (None, Some(image)) => Self::Script { script: "tests/kong/run.sh", name: format!("Kong from the image {image}") },
            (None | Some("nginx"), _) => Self::Script {
                script: "tests/nginx-host/run.sh",
                name: "the nginx test host (real Kong: set KONG_IMAGE, or E2E_KONG_PROXY_URL and E2E_KONG_ADMIN_URL)".to_owned(),
            },
            (Some(other), _) => panic!("E2E_GATEWAY is nginx or not set, not {other}"),
        }
    }
}

/// A gateway that runs.
pub(crate) struct Started {
    pub(crate) proxy_url: String,
    pub(crate) admin_url: String,
    tls: Option<Tls>,
    logs: Option<PathBuf>,
    pub(crate) pid: Option<u32>,
}

/// A certificate for this host, signed by itself, with its key behind it: one file.
async fn make_certificate(file: &Path) {
    const NAMES: &str = "subjectAltName=DNS:localhost,IP:127.0.0.1";
    let (certificate, key) = (file.with_extension("crt"), file.with_extension("key"));
    let output = tokio::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "400", "-subj", "/CN=localhost", "-addext", NAMES])
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .output();
    let output = output.await.expect("openssl");
    assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    let both = [certificate, key].map(|part| std::fs::read(part).expect("a file")).concat();
    std::fs::write(file, both).expect("a file");
}

/// Starts the gateway that a script of the project knows.
pub(crate) async fn start_script(script: &str, prefix: &Path, database: &Database) -> Started {
    let certificate = prefix.with_extension("pem");
    make_certificate(&certificate).await;
    let output = tokio::process::Command::new(project().join(script))
        // As deploy/compose.yaml has it with a certificate, and without.
        .args([
            "start",
            "--proxy",
            "127.0.0.1:0, 127.0.0.1:0 http2 ssl reuseport backlog=16384",
            "--admin",
            "127.0.0.1:0",
            "--status",
            "127.0.0.1:0",
            "--prefix",
        ])
        .arg(prefix)
        .env_clear()
        .envs(plain_environment())
        .envs(std::env::var("KONG_IMAGE").map(|image| ("KONG_IMAGE", image)))
        .env("KONG_TEST_DATABASE_URL", &database.url)
        .env("KONG_SSL_CERT", &certificate)
        .env("KONG_SSL_CERT_KEY", &certificate)
        // As deploy/compose.yaml has it with the shipped settings.
        .env("KONG_NGINX_HTTP_CLIENT_MAX_BODY_SIZE", "64m")
        .envs(SHIPPED_BUFFERS)
        .env("KONG_NGINX_PROXY_PROXY_NEXT_UPSTREAM", "error timeout non_idempotent")
        .env("KONG_NGINX_PROXY_PROXY_NEXT_UPSTREAM_TIMEOUT", format!("{READ_TIMEOUT_MS}ms"))
        .env("NGINX_HOST_WATCH_PID", std::process::id().to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output();
    let output = tokio::time::timeout(Duration::from_secs(180), output).await.expect("it starts in time").expect("a script");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    let line = |name: &str| {
        let value = stdout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {name} in {stdout}")).to_owned()
    };
    let pid = script.contains("nginx-host").then(|| line("PID").parse().expect("a number"));
    let tls = Some(Tls { url: line("PROXY_TLS_URL"), certificate });
    Started { proxy_url: line("PROXY_URL"), admin_url: line("ADMIN_URL"), tls, logs: Some(prefix.join("logs")), pid }
}

/// Starts the collector as a process of its own, with all it has to say in a file; returns where it listens.
fn start_collector(folder: &Path, listen: &SocketAddr, database: &Database) -> (String, Child) {
    let logs = folder.join("collector");
    std::fs::create_dir(&logs).expect("a folder");
    let log = logs.join("collector.log");
    let child = Command::new(collector::binary())
        .args(["serve", "--log-level", "info", "--listen", &listen.to_string(), "--data-dir"])
        .arg(folder.join("spool"))
        .env_clear()
        .envs(plain_environment())
        .env("DATABASE_URL", &database.url)
        .env("COLLECTOR_TOKEN", TOKEN)
        .env("COLLECTOR_GAP_GRACE_SECONDS", "20")
        // All tests call from one address.
        .env("COLLECTOR_REFUSED_ROWS_PER_MINUTE", "100000")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).expect("a log"))
        .spawn()
        .expect("the collector");
    std::fs::write(folder.join("collector.pid"), child.id().to_string()).expect("a file");
    (wait_for_address(&log), child)
}

/// Where the collector listens, once it says so.
fn wait_for_address(log: &Path) -> String {
    let started = Instant::now();
    loop {
        let text = std::fs::read_to_string(log).expect("its log");
        if let Some((_, rest)) = text.split_once("listening on ") {
            let address: String = rest.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
            return format!("http://{address}");
        }
        assert!(started.elapsed() < Duration::from_secs(60), "the collector does not start:\n{text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What ends all that was started, as a shell script.
fn cleanup(folder: &Path, host: &Host) -> String {
    let folder = folder.display();
    let gateway = match host {
        // The users of the tests leave no trace in a Kong that stays.
        Host::Running { admin_url, .. } => format!(
            "[ ! -s {folder}/users ] || while read name; do KONG_ADMIN_URL={admin_url} {} users remove $name; done <{folder}/users",
            collector::binary().display()
        ),
        Host::Script { script, .. } => format!("{} stop --prefix {folder}/gateway", project().join(script).display()),
    };
    format!("{gateway}; [ ! -s {folder}/collector.pid ] || kill $(cat {folder}/collector.pid); rm -rf {folder}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_of_the_tests_has_the_buffers_that_are_shipped() {
        let compose = std::fs::read_to_string(project().join("deploy/compose.yaml")).expect("a file");
        let lines: Vec<&str> = compose.lines().map(str::trim).collect();
        for (name, value) in SHIPPED_BUFFERS {
            assert!(lines.contains(&format!("{name}: {value}").as_str()), "{name}: {value} is not in deploy/compose.yaml");
        }
    }
}
