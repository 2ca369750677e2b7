//! A real PostgreSQL for tests.
//!
//! In this order: the server of `TEST_DATABASE_URL`; a container, when Docker works and has or can pull the image
//! (`TEST_POSTGRES_IMAGE`, by default `postgres:17`); a cluster of its own from locally installed binaries. Which one it is,
//! is said once. None of them is an error, not a skip. Each test gets a database of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use testcontainers::core::{ContainerPort, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, Config, NoTls};

use crate::process::{Reaper, free_port};

/// The server that all tests of this process share.
struct Shared {
    url: String,
    _container: Option<ContainerAsync<GenericImage>>,
    _reaper: Option<Reaper>,
}

static SHARED: OnceCell<Shared> = OnceCell::const_new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// A database of its own for one test.
#[derive(Debug, Clone)]
pub struct Database {
    /// Where it is.
    pub url: String,
}

impl Database {
    /// Makes an empty database on the shared server.
    pub async fn create() -> Self {
        let shared = SHARED.get_or_init(start_shared).await;
        Self::create_on(&shared.url).await
    }

    /// Makes an empty database on the server at `url`.
    pub async fn create_on(url: &str) -> Self {
        let name = format!("test_{}_{}", std::process::id(), DATABASES.fetch_add(1, Ordering::Relaxed));
        connect(url).await.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("a new database");
        let (server, _) = url.rsplit_once('/').expect("a URL with a database");
        Self { url: format!("{server}/{name}") }
    }

    /// A connection to it.
    pub async fn connect(&self) -> Client {
        connect(&self.url).await
    }

    /// The first column of the first row, as a number.
    pub async fn number(&self, query: &str) -> i64 {
        let row = self.connect().await.query_one(query, &[]).await.expect("one row");
        row.get::<_, i64>(0)
    }
}

/// Connects, and lives on until the client is dropped.
pub async fn connect(url: &str) -> Client {
    try_connect(url).await.unwrap_or_else(|error| panic!("cannot connect to the test database: {error}"))
}

async fn try_connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let config: Config = url.parse()?;
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn start_shared() -> Shared {
    if let Ok(url) = std::env::var("TEST_DATABASE_URL") {
        eprintln!("PostgreSQL for tests: the server of TEST_DATABASE_URL");
        return Shared { url, _container: None, _reaper: None };
    }
    let why_no_container = match start_container().await {
        Ok(shared) => return shared,
        Err(reason) => reason,
    };
    let cluster = Cluster::start(&["-c", "fsync=off"]).unwrap_or_else(|why_no_cluster| {
        panic!(
            "no PostgreSQL for tests. Set TEST_DATABASE_URL, or install one (tests/tools.sh test).\n\
             container: {why_no_container}\nlocal cluster: {why_no_cluster}"
        )
    });
    eprintln!(
        "PostgreSQL for tests: a cluster of its own from {} (no container: {why_no_container})",
        cluster.binaries.display()
    );
    Shared { url: cluster.url(), _container: None, _reaper: Some(cluster.into_reaper()) }
}

async fn start_container() -> Result<Shared, String> {
    let image = std::env::var("TEST_POSTGRES_IMAGE").unwrap_or_else(|_| "postgres:17".to_owned());
    let docker = |arguments: &[&str]| {
        Command::new("docker")
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if !docker(&["info"]) {
        return Err("Docker does not work here".to_owned());
    }
    // A registry that is not reachable may hold a connection for minutes.
    let pull =
        Command::new("timeout").args(["60", "docker", "pull", &image]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !docker(&["image", "inspect", &image]) && !pull.is_ok_and(|status| status.success()) {
        return Err(format!("the image {image} is not here and cannot be pulled"));
    }
    let (name, tag) = image.rsplit_once(':').unwrap_or((&image, "latest"));
    let port = ContainerPort::Tcp(5432);
    let container = GenericImage::new(name, tag)
        .with_exposed_port(port)
        .with_wait_for(WaitFor::message_on_stderr("database system is ready to accept connections"))
        .with_env_var("POSTGRES_HOST_AUTH_METHOD", "trust")
        .start()
        .await
        .map_err(|error| error.to_string())?;
    let host_port = container.get_host_port_ipv4(port).await.map_err(|error| error.to_string())?;
    let url = format!("postgres://postgres@127.0.0.1:{host_port}/postgres");
    // The image starts its server twice; only the second one listens on TCP.
    let ready = async {
        while try_connect(&url).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ready).await.map_err(|_| "the container's server did not start".to_owned())?;
    eprintln!("PostgreSQL for tests: a container of {image}");
    let reaper = Reaper::new(&format!("docker rm -f {}", container.id()));
    Ok(Shared { url, _container: Some(container), _reaper: Some(reaper) })
}

/// A cluster of its own from locally installed binaries: on a free port of the loopback address, in a temporary folder, never
/// the system's.
#[derive(Debug)]
pub struct Cluster {
    binaries: PathBuf,
    folder: PathBuf,
    port: u16,
    reaper: Reaper,
}

impl Cluster {
    /// Makes a cluster and starts its server with further `options` (as `postgres` takes them).
    pub fn start(options: &[&str]) -> Result<Self, String> {
        let binaries = local_binaries().ok_or("no initdb under /usr/lib/postgresql or on the path")?;
        let folder = empty_folder()?;
        let data = folder.join("data");
        run(as_server_user(&binaries.join("initdb")).arg("-D").arg(&data).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            // As deploy/compose.yaml has it: what a letter is, is known beyond ASCII.
            "--locale=C.UTF-8",
            "--no-sync",
        ]))?;
        let port = free_port();
        let reaper = stopper(&binaries, &folder);
        let cluster = Self { binaries, folder, port, reaper };
        cluster.configure(options)?;
        cluster.start_server()?;
        Ok(cluster)
    }

    /// Says where the server listens, and further `options`.
    fn configure(&self, options: &[&str]) -> Result<(), String> {
        let settings = [
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", self.folder.display()),
            "max_connections=60".to_owned(),
        ];
        let file = self.folder.join("data/postgresql.conf");
        let mut file = std::fs::OpenOptions::new().append(true).open(file).map_err(|error| error.to_string())?;
        for setting in settings.iter().map(String::as_str).chain(options.iter().copied().filter(|option| *option != "-c")) {
            let (name, value) = setting.split_once('=').ok_or("options are name=value")?;
            std::io::Write::write_all(&mut file, format!("{name} = '{value}'\n").as_bytes())
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// A server that follows this one (streaming replication) until it is promoted.
    pub fn standby(&self) -> Result<Self, String> {
        let (binaries, folder, port) = (self.binaries.clone(), empty_folder()?, free_port());
        let reaper = stopper(&binaries, &folder);
        run(as_server_user(&binaries.join("pg_basebackup"))
            .args(["--no-sync", "--write-recovery-conf", "--checkpoint=fast", "-d", &self.url(), "-D"])
            .arg(folder.join("data")))?;
        let standby = Self { binaries, folder, port, reaper };
        standby.configure(&[])?;
        standby.start_server()?;
        Ok(standby)
    }

    /// Makes a standby the server that takes writes.
    pub fn promote(&self) -> Result<(), String> {
        run(as_server_user(&self.binaries.join("pg_ctl")).arg("-D").arg(self.folder.join("data")).args(["-w", "promote"]))
    }

    /// Where its server listens.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where its first database is.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// The same with another user, password, name of the host and parameters.
    pub fn url_of(&self, user: &str, host: &str, parameters: &str) -> String {
        format!("postgres://{user}@{host}:{}/postgres?{parameters}", self.port)
    }

    /// Gives the server a certificate, and lets it in only who `rules` (lines of pg_hba.conf) lets in. Restarts it.
    pub fn protect(&self, certificates: &Certificates, rules: &str) -> Result<(), String> {
        let data = self.folder.join("data");
        let settings = [
            ("ssl", "on".to_owned()),
            ("ssl_cert_file", certificates.server.display().to_string()),
            ("ssl_key_file", certificates.key.display().to_string()),
        ];
        let mut text = std::fs::read_to_string(data.join("postgresql.conf")).map_err(|error| error.to_string())?;
        for (name, value) in settings {
            text.push_str(&format!("{name} = '{value}'\n"));
        }
        std::fs::write(data.join("postgresql.conf"), text).map_err(|error| error.to_string())?;
        std::fs::write(data.join("pg_hba.conf"), rules).map_err(|error| error.to_string())?;
        self.stop_server("fast")?;
        self.start_server()
    }

    /// The server's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Starts the server after it was stopped.
    pub fn start_server(&self) -> Result<(), String> {
        run(as_server_user(&self.binaries.join("pg_ctl"))
            .arg("-D")
            .arg(self.folder.join("data"))
            .arg("-l")
            .arg(self.folder.join("log"))
            .args(["-w", "-t", "60", "start"]))
    }

    /// Stops the server: `fast` ends sessions in order, `immediate` is a crash.
    pub fn stop_server(&self, mode: &str) -> Result<(), String> {
        run(as_server_user(&self.binaries.join("pg_ctl"))
            .arg("-D")
            .arg(self.folder.join("data"))
            .args(["-w", "-m", mode, "stop"]))
    }

    /// Process ids of the server and its sessions.
    pub fn pids(&self) -> Vec<u32> {
        let file = std::fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap_or_default();
        let Some(postmaster) = file.lines().next().and_then(|line| line.trim().parse::<u32>().ok()) else { return Vec::new() };
        let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap_or_default();
        std::iter::once(postmaster).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
    }

    fn into_reaper(self) -> Reaper {
        self.reaper
    }
}

/// A folder that a server may use.
fn empty_folder() -> Result<PathBuf, String> {
    let folder = tempfile::Builder::new().prefix("gateway-tests-pg-").tempdir().map_err(|error| error.to_string())?.keep();
    if is_root() {
        run(Command::new("chown").arg(server_user()).arg(&folder))?;
    }
    Ok(folder)
}

/// Ends the server in a folder, and removes it.
fn stopper(binaries: &Path, folder: &Path) -> Reaper {
    Reaper::new(&format!(
        "{} {} -D {} -m immediate stop; rm -rf {}",
        if is_root() { format!("runuser -u {} --", server_user()) } else { String::new() },
        binaries.join("pg_ctl").display(),
        folder.join("data").display(),
        folder.display()
    ))
}

/// A certificate of a server and the root certificate that signed it, made by openssl; and another root that did not.
#[derive(Debug)]
pub struct Certificates {
    /// The root certificate.
    pub root: PathBuf,
    /// A root certificate of somebody else.
    pub other_root: PathBuf,
    /// The server's certificate, which is for `localhost` and for nothing else.
    pub server: PathBuf,
    key: PathBuf,
    _folder: tempfile::TempDir,
}

impl Certificates {
    /// Makes them, with the signatures that openssl calls `digest`. The server's own is signed by itself where `is_self_signed`.
    pub fn make(digest: &str, is_self_signed: bool) -> Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("gateway-tests-tls-").tempdir().map_err(|error| error.to_string())?;
        let path = |name: &str| folder.path().join(name);
        let openssl = |arguments: &str| {
            run(Command::new("openssl").current_dir(folder.path()).args(arguments.split_whitespace()).arg(format!("-{digest}")))
        };
        let own = "req -x509 -nodes -newkey rsa:2048 -days 2";
        openssl(&format!("{own} -subj /CN=root -keyout root.key -out root.crt"))?;
        openssl(&format!("{own} -subj /CN=other -keyout other.key -out other.crt"))?;
        if is_self_signed {
            openssl(&format!("{own} -subj /CN=db -addext subjectAltName=DNS:localhost -keyout server.key -out server.crt"))?;
            std::fs::copy(path("server.crt"), path("root.crt")).map_err(|error| error.to_string())?;
        } else {
            openssl("req -nodes -newkey rsa:2048 -subj /CN=db -keyout server.key -out server.csr")?;
            std::fs::write(path("names"), "subjectAltName=DNS:localhost\n").map_err(|error| error.to_string())?;
            openssl(
                "x509 -req -in server.csr -CA root.crt -CAkey root.key -CAcreateserial -days 2 -extfile names -out server.crt",
            )?;
        }
        if is_root() {
            run(Command::new("chown").arg(server_user()).arg(folder.path()).arg(path("server.key")).arg(path("server.crt")))?;
        }
        run(Command::new("chmod").arg("755").arg(folder.path()))?;
        run(Command::new("chmod").arg("600").arg(path("server.key")))?;
        Ok(Self {
            root: path("root.crt"),
            other_root: path("other.crt"),
            server: path("server.crt"),
            key: path("server.key"),
            _folder: folder,
        })
    }
}

/// The newest locally installed server.
fn local_binaries() -> Option<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|folder| Some((folder.file_name().to_str()?.parse().ok()?, folder.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    versions.sort();
    let on_path = || std::env::split_paths(&std::env::var_os("PATH")?).find(|folder| folder.join("initdb").exists());
    versions.pop().map(|(_, bin)| bin).or_else(on_path)
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0)
}

/// The server refuses to run as root: then it runs as the user of Debian's package, or as nobody.
fn server_user() -> &'static str {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    if users.lines().any(|line| line.starts_with("postgres:")) { "postgres" } else { "nobody" }
}

fn as_server_user(program: &Path) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", server_user(), "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    // The folder of the tests may be closed to that user.
    command.current_dir("/");
    command
}

fn run(command: &mut Command) -> Result<(), String> {
    // Not piped: the server that pg_ctl starts would hold the pipe open.
    let log = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    let output = || log.reopen().map(Stdio::from).map_err(|error| error.to_string());
    let status = command.stdin(Stdio::null()).stdout(output()?).stderr(output()?).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let output = std::fs::read_to_string(log.path()).unwrap_or_default();
            Err(format!("{command:?}: {status}\n{output}"))
        }
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
