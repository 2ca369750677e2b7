//! How PostgreSQL is reached: every connection of this program is made here.
//!
//! `sslmode` means what it means to libpq, so that a URL that works with `psql` works here. Whoever waits for a connection waits no
//! longer than it says; a connection that is given up stays counted until it is really gone (see [`super::pool`]).
//!
//! Several hosts are servers of which one takes writes at a time. They are asked one after another, first the one that answered last,
//! each for its share of the time: one that is silent must not keep from the others.
//!
//! Deliberately absent: files of passwords and services, Kerberos.

mod address;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use log::debug;
use tokio_postgres::config::{Host, SslMode as Negotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::{CancelToken, Client, Config};

use super::pool::StoreError;
pub use address::AddressError;
use tls::Tls;
pub use tls::TlsError;

/// Longest wait for bytes to be acknowledged before a connection counts as dead, and how often a silent one is asked. Without them a
/// host that vanished without a word would hold its connection, which counts, for a quarter of an hour.
const DEAD_AFTER: Duration = Duration::from_secs(30);

/// How a connection is protected, as libpq has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SslMode {
    /// Never by TLS.
    Disable,
    /// By TLS where the server refuses anything else.
    Allow,
    /// By TLS where the server has it.
    Prefer,
    /// By TLS, whoever the server is; with root certificates as `VerifyCa`.
    Require,
    /// The server's certificate is signed by one of the root certificates.
    VerifyCa,
    /// As well, and it is the certificate of the host that was asked for.
    VerifyFull,
}

impl SslMode {
    fn parse(text: &str) -> Result<Self, AddressError> {
        Ok(match text {
            "disable" => Self::Disable,
            "allow" => Self::Allow,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return Err(AddressError::SslMode),
        })
    }

    fn verifies(self) -> bool {
        matches!(self, Self::VerifyCa | Self::VerifyFull)
    }
}

/// What counts where the URL says nothing of TLS, as libpq's variables of the environment.
#[derive(Debug, Clone, Default)]
pub struct TlsDefaults {
    /// `PGSSLMODE`
    pub mode: Option<String>,
    /// `PGSSLROOTCERT`
    pub root_certificates: Option<PathBuf>,
}

/// Why the settings of the connection cannot be used. Never quotes the URL: it holds a password.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The URL.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// What belongs to TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A database, who we are there, and how the way to it is protected.
#[derive(Clone)]
pub struct Target {
    /// The first host's; user, password and database are the same for all.
    config: Config,
    /// One for each host, in the order of the URL.
    hosts: Vec<Config>,
    /// Which of them answered last.
    last: Arc<AtomicUsize>,
    mode: SslMode,
    tls: Tls,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.name())
    }
}

impl Target {
    /// Reads a URL, or libpq's `keyword=value` text.
    pub fn parse(text: &str, defaults: &TlsDefaults) -> Result<Self, TargetError> {
        let mut settings = address::parse(text)?;
        let mut take = |name: &str| settings.remove(name);
        let mode = take("sslmode").or_else(|| defaults.mode.clone());
        let files = tls::Files {
            root_certificates: take("sslrootcert").map(PathBuf::from).or_else(|| defaults.root_certificates.clone()),
            certificate: take("sslcert").map(PathBuf::from),
            key: take("sslkey").map(PathBuf::from),
        };
        let mut hosts = address::hosts(&settings)?;
        let is_local = hosts.iter().all(|config| {
            config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_))) && config.get_hostaddrs().is_empty()
        });
        let mode = match mode.as_deref().map(str::trim).filter(|mode| !mode.is_empty()) {
            Some(mode) => SslMode::parse(mode)?,
            None => SslMode::Prefer,
        };
        // Nobody can listen in on a socket of this host, and PostgreSQL has no TLS there.
        let mode = if is_local { SslMode::Disable } else { mode };
        let tls = if mode == SslMode::Disable { Tls::none() } else { Tls::new(mode, &files)? };
        for config in &mut hosts {
            if config.get_application_name().is_none() {
                config.application_name("llm-collector");
            }
            if config.get_tcp_user_timeout().is_none() {
                config.tcp_user_timeout(DEAD_AFTER);
            }
            config.keepalives_idle(DEAD_AFTER).keepalives_interval(DEAD_AFTER / 3).keepalives_retries(3);
        }
        let config = hosts.first().cloned().ok_or(AddressError::NoHost)?;
        Ok(Self { config, hosts, last: Arc::default(), mode, tls })
    }

    /// Who, where, and how, for those who judge it; of several hosts the first one.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Connects within `patience`. `options` are settings of the session as `postgres -c` takes them. `guard` is dropped when the
    /// connection is gone, which may be long after the client was.
    pub async fn connect<G>(&self, patience: Duration, options: &str, guard: G) -> Result<Client, StoreError>
    where
        G: Send + 'static,
    {
        let share = patience / u32::try_from(self.hosts.len()).unwrap_or(u32::MAX);
        let first = self.last.load(Ordering::Relaxed);
        let mut failure = None;
        for (at, config) in self.hosts.iter().enumerate().cycle().skip(first).take(self.hosts.len()) {
            let mut config = config.clone();
            config.connect_timeout(share);
            if !options.is_empty() {
                let own = config.get_options().map(|own| format!("{own} ")).unwrap_or_default();
                config.options(format!("{own}{options}"));
            }
            let attempt = tokio::time::timeout(share, self.negotiate(&config)).await;
            match attempt
                .map_err(|_| StoreError::NoConnection(patience))
                .and_then(|connected| connected.map_err(StoreError::from))
            {
                Ok((client, connection)) => {
                    self.last.store(at, Ordering::Relaxed);
                    tokio::spawn(async move {
                        if let Err(error) = connection.await {
                            debug!("connection lost: {}", StoreError::from(error));
                        }
                        drop(guard);
                    });
                    return Ok(client);
                }
                Err(error) => {
                    debug!("no connection to {}: {error}", place(&config));
                    failure = Some(match failure {
                        Some(earlier) if says_more(&earlier, &error) => earlier,
                        _ => error,
                    });
                }
            }
        }
        Err(failure.unwrap_or(StoreError::NoConnection(patience)))
    }

    /// Asks the server to give up what a connection is at.
    pub(super) async fn cancel(&self, token: CancelToken) -> Result<(), tokio_postgres::Error> {
        token.cancel_query(self.tls.clone()).await
    }

    async fn negotiate(&self, config: &Config) -> Result<Connected, tokio_postgres::Error> {
        let (first, second) = match self.mode {
            SslMode::Disable => (Negotiation::Disable, None),
            SslMode::Allow => (Negotiation::Disable, Some(Negotiation::Require)),
            SslMode::Prefer => (Negotiation::Prefer, Some(Negotiation::Disable)),
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (Negotiation::Require, None),
        };
        match (self.once(config, first).await, second) {
            // A server that does not let us in this way may do so the other way.
            (Err(error), Some(second)) if is_about_the_way(&error) => {
                debug!("trying without sslmode's first choice: {}", StoreError::from(error));
                self.once(config, second).await
            }
            (connected, _) => connected,
        }
    }

    async fn once(&self, config: &Config, negotiation: Negotiation) -> Result<Connected, tokio_postgres::Error> {
        let mut config = config.clone();
        config.ssl_mode(negotiation);
        config.connect(self.tls.clone()).await
    }

    /// The database as a person names it: `database at host:port`, with all hosts.
    pub fn name(&self) -> String {
        let places: Vec<String> = self.hosts.iter().map(place).collect();
        format!("\"{}\" at {}", self.database(), places.join(", "))
    }

    fn database(&self) -> &str {
        self.config.get_dbname().or(self.config.get_user()).unwrap_or("postgres")
    }

    /// What to do about `error`, without the password.
    pub fn advice(&self, error: &StoreError) -> String {
        let user = self.config.get_user().unwrap_or("the current user");
        let what = match error {
            StoreError::Postgres(cause) if is_tls(cause) => {
                "check sslmode, sslrootcert and the name of the host in DATABASE_URL against the server's certificate".to_owned()
            }
            StoreError::Postgres(cause) if is_standby(cause) => {
                "no server there takes writes: DATABASE_URL has to name the primary, or all servers of which one may be it"
                    .to_owned()
            }
            StoreError::Foreign(_) => "it is not what this program left there".to_owned(),
            StoreError::Postgres(cause) => self.advice_about(cause.code()),
            StoreError::Migration(_, code @ Some(_)) => self.advice_about(code.as_ref()),
            StoreError::Migration(_, None) => "see the message".to_owned(),
            StoreError::NoConnection(_) | StoreError::NoAnswer(_) | StoreError::Unavailable(_) | StoreError::Late => {
                self.advice_about(None)
            }
        };
        format!("cannot use database {} as \"{user}\" ({what})", self.name())
    }

    fn advice_about(&self, code: Option<&SqlState>) -> String {
        let (user, database) = (self.config.get_user().unwrap_or("…"), self.database());
        match code.map(SqlState::code) {
            None => "check that PostgreSQL runs there, and that DATABASE_URL names the right host and port".to_owned(),
            Some("28P01") => format!("check user and password of DATABASE_URL: ALTER ROLE {user} PASSWORD '…'"),
            Some("28000") => "check that pg_hba.conf lets this user in from here, and that the role exists".to_owned(),
            Some("3D000") => {
                format!("check that DATABASE_URL names the right database, or make it: createdb -O {user} {database}")
            }
            Some("42501") => {
                format!("the role lacks a right: ALTER DATABASE {database} OWNER TO {user}, or GRANT it what is missing")
            }
            Some("42P07" | "42710" | "42723") => {
                "something of that name is there already: rename it, or use another database".to_owned()
            }
            Some("53300") => {
                "raise max_connections of PostgreSQL, or lower the settings of those who hold connections".to_owned()
            }
            Some("55P03") => "somebody holds a table that has to be changed: it is tried again".to_owned(),
            Some("25006") => "the server is a standby: DATABASE_URL has to name the primary".to_owned(),
            Some(_) => "see PostgreSQL's own log".to_owned(),
        }
    }
}

type Connected = (
    Client,
    tokio_postgres::Connection<
        tokio_postgres::Socket,
        <Tls as tokio_postgres::tls::MakeTlsConnect<tokio_postgres::Socket>>::Stream,
    >,
);

/// A server as a person names it.
fn place(config: &Config) -> String {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => config.get_hostaddrs().first().map_or_else(String::new, ToString::to_string),
    };
    format!("{host}:{}", config.get_ports().first().copied().unwrap_or(5432))
}

/// Whether `earlier` tells more about why there is no connection: what the server that is wanted said tells most, then that another
/// one takes no writes.
fn says_more(earlier: &StoreError, later: &StoreError) -> bool {
    let rank = |error: &StoreError| match error {
        StoreError::Postgres(cause) if cause.code().is_some() || is_tls(cause) => 2,
        StoreError::Postgres(cause) if is_standby(cause) => 1,
        _ => 0,
    };
    rank(earlier) > rank(later)
}

/// Whether the server was passed over because it takes no writes, or does and should not.
fn is_standby(error: &tokio_postgres::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    // What tokio-postgres makes of target_session_attrs; the socket of a server that may not be opened looks alike, and is none of these.
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::PermissionDenied && cause.raw_os_error().is_none())
}

/// Whether the server refused the way in and not us.
fn is_about_the_way(error: &tokio_postgres::Error) -> bool {
    is_tls(error) || error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}

fn is_tls(error: &tokio_postgres::Error) -> bool {
    // tokio-postgres has no other way to tell.
    error.code().is_none() && error.to_string().contains("TLS")
}
