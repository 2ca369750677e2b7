//! Every setting, once: the doc comment is the help text, the name is the flag, `env` the variable.

#![allow(missing_docs, reason = "a doc comment is help text here; flattened groups of settings have none of their own")]

mod certificate;
mod database;
mod feed;
mod import;
mod kong;
mod models;
mod quota;
mod usage;
mod users;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};

pub use certificate::CertificateArgs;
pub use database::{DatabaseArgs, MigrateSettings, SiteArgs};
pub use feed::{FeedAction, FeedSettings, ParquetSettings};
pub use import::ImportSettings;
pub use kong::{AdminArgs, KongAction, KongCommand, KongSettings};
pub use models::{BalanceWord, ModelsAction, ModelsCommand};
pub use quota::{AmountArgs, Mode, ModeArgs, OfArgs, QuotaAction, QuotaSettings, WebhookArgs, WhenOver};
pub use usage::{Dimension, PricesAction, PricesSettings, ReportFormat, ReportSettings};
pub use users::{CaptureWord, End, KeyArg, Limit, UsersAction, UsersCommand, Weight, duration, limit};

use crate::extract::privacy::{Forms, Privacy};
use crate::extract::redact::Secrets;
use crate::store::refused::limit::ROWS_OF_ADDRESS;
use crate::store::retention::Clocks;

/// Receives Kong's http-log batches, decodes the conversations with the model and keeps them in PostgreSQL.
#[derive(Debug, Parser)]
#[command(version = env!("COLLECTOR_VERSION"), propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub log: LogSettings,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Migrate the database, then receive entries until SIGTERM
    Serve(ServeSettings),
    /// Bring the database to the current schema
    Migrate(MigrateSettings),
    /// Send recorded entries through the pipeline: an array, or one entry a line
    Replay(ReplaySettings),
    /// Take over the rows of a table llm_logs that was made by hand
    Import(ImportSettings),
    /// Look at entries that could not become rows, and try them again
    Rejected(RejectedSettings),
    /// Usage and cost by consumer, model and time
    Report(ReportSettings),
    /// What models cost
    Prices(PricesSettings),
    /// Limits of tokens, calls and cost, and how far they are used
    Quota(QuotaSettings),
    /// Migrate, then remove what is too old and index texts until SIGTERM: what `serve` leaves when it works with a role that owns no tables
    Upkeep(UpkeepSettings),
    /// Remove what is older than it is to be kept, as `serve` does every hour
    Retention(RetentionSettings),
    /// Erase what one consumer asked and was answered
    Erase(EraseSettings),
    /// Copies of calls for years of analysis
    Feed(FeedSettings),
    /// Kong's configuration, as the settings want it
    Kong(KongCommand),
    /// The people who may call the model, and their keys
    Users(UsersCommand),
    /// Model servers, and who may use them
    Models(ModelsCommand),
    /// Look whether a certificate and its key, PEM on standard input, can be those of the gateway: prints the names of its hosts, its
    /// fingerprint and its end
    Certificate,
    /// Check a running installation, and say what is wrong and how to mend it
    Doctor(DoctorSettings),
    /// Ask a running collector whether it lives: status 0 if so, for health checks of containers
    Healthcheck(HealthcheckSettings),
}

/// How to log.
#[derive(Debug, Args)]
pub struct LogSettings {
    /// Form of the log on standard error
    #[arg(long, env = "COLLECTOR_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
    /// Least level to log: error, warn, info, debug, trace; or module=level pairs
    #[arg(long, env = "COLLECTOR_LOG", default_value = "warn,llm_collector=info", global = true)]
    pub log_level: String,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for a person
    Text,
    /// One JSON object a line
    Json,
}

/// Settings of the pipeline, whatever feeds it.
#[derive(Debug, Clone, Args)]
pub struct PipelineSettings {
    /// Most bytes of both bodies of a call after base64 and content encoding; what is over it is cut
    #[arg(long, env = "COLLECTOR_MAX_DECODED_BYTES", default_value_t = 8 << 20)]
    pub max_decoded_bytes: usize,
    /// Memory for entries from when they are decoded until their rows are safe, in bytes
    #[arg(long, env = "COLLECTOR_DECODE_MEMORY_BYTES", default_value_t = 192 << 20)]
    pub decode_memory_bytes: usize,
    /// Further headers and query parameters that carry credentials and are never stored, separated by commas
    #[arg(long, env = "COLLECTOR_SECRET_HEADERS", value_delimiter = ',')]
    pub secret_headers: Vec<String>,
    /// Further headers and query parameters whose values are stored, separated by commas; NAME* for all that begin so
    #[arg(long, env = "COLLECTOR_KEEP_HEADERS", value_delimiter = ',')]
    pub keep_headers: Vec<String>,
    /// What is masked in prompts and answers before they are stored: key, email, mobile, resident-id, bank-card, separated by
    /// commas; empty masks nothing
    #[arg(long, env = "COLLECTOR_MASK", default_value = "key")]
    pub mask: Forms,
    /// Further patterns to mask, as NAME=REGEX, separated by blanks (a blank inside is \x20): staff=\bz[0-9]{6}\b
    #[arg(long, env = "COLLECTOR_MASK_PATTERNS", value_delimiter = ' ')]
    pub mask_patterns: Vec<String>,
    /// Consumers of whose calls no content is stored, only who, when, which model, how many tokens; separated by commas
    #[arg(long, env = "COLLECTOR_METADATA_CONSUMERS", value_delimiter = ',')]
    pub metadata_consumers: Vec<String>,
    /// Routes of Kong of which no content is stored, separated by commas
    #[arg(long, env = "COLLECTOR_METADATA_ROUTES", value_delimiter = ',')]
    pub metadata_routes: Vec<String>,
}

impl PipelineSettings {
    /// What is stored of what Kong says about a call.
    pub fn secrets(&self) -> Secrets {
        Secrets::new(&self.secret_headers, &self.keep_headers)
    }

    /// What is not to be stored of conversations; an error names the pattern that is wrong.
    pub fn privacy(&self) -> Result<Privacy> {
        Privacy::new(&self.mask.0, &self.mask_patterns, &self.metadata_consumers, &self.metadata_routes)
    }
}

/// Settings of `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeSettings {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, env = "COLLECTOR_LISTEN", default_value = "127.0.0.1:5000")]
    pub listen: SocketAddr,
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub site: SiteArgs,
    /// Folder for entries that PostgreSQL cannot take
    #[arg(long, env = "COLLECTOR_DATA_DIR", default_value = "./data")]
    pub data_dir: PathBuf,
    /// Most bytes in that folder; beyond it entries are refused and Kong keeps them for a while
    #[arg(long, env = "COLLECTOR_MAX_SPOOL_BYTES", default_value_t = 10 << 30)]
    pub max_spool_bytes: u64,
    /// Greatest age of an entry in that folder, in hours, before further ones are refused
    #[arg(long, env = "COLLECTOR_MAX_SPOOL_AGE_HOURS", default_value_t = 168)]
    pub max_spool_age_hours: u64,
    /// Seconds after which a number that Kong gave an entry, and that never arrived, counts as lost
    #[arg(long, env = "COLLECTOR_GAP_GRACE_SECONDS", default_value_t = 300)]
    pub gap_grace_seconds: u64,
    /// Refused calls without a valid key that become rows, of each client address and minute; further ones are counted in
    /// llm_refused_calls
    #[arg(long, env = "COLLECTOR_REFUSED_ROWS_PER_MINUTE", default_value_t = ROWS_OF_ADDRESS)]
    pub refused_rows_per_minute: usize,
    /// Secret that Kong must send as X-Collector-Token
    #[arg(long, env = "COLLECTOR_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// File that holds the secret
    #[arg(long, env = "COLLECTOR_TOKEN_FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// Listen beyond loopback without a token: whoever reaches the port can write into the audit log
    #[arg(long, env = "COLLECTOR_ALLOW_UNAUTHENTICATED")]
    pub allow_unauthenticated: bool,
    /// Largest entry, and largest request body that is held at once, in bytes; of a larger batch each entry is taken as it arrives
    #[arg(long, env = "COLLECTOR_MAX_BODY_BYTES", default_value_t = 64 << 20)]
    pub max_body_bytes: usize,
    /// Bytes of request bodies held at once; beyond it requests get 503 and Kong sends them again
    #[arg(long, env = "COLLECTOR_MAX_QUEUE_BYTES", default_value_t = 128 << 20)]
    pub max_queue_bytes: usize,
    /// Threads that take requests, and as many that store; more help only where those are busy
    #[arg(long, env = "COLLECTOR_WORKERS", default_value_t = DEFAULT_WORKERS, value_parser = workers)]
    pub workers: usize,
    #[command(flatten)]
    pub retention: RetentionClocks,
    /// Seconds between two looks at how far limits are used, at least
    #[arg(long, env = "COLLECTOR_QUOTA_WATCH_SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub quota_watch_seconds: u64,
    #[command(flatten)]
    pub webhook: WebhookArgs,
    /// Index prompts and answers of hours and days that are over, so that text is found fast; takes time and disk
    #[arg(long, env = "COLLECTOR_SEARCH_INDEX")]
    pub search_index: bool,
    #[command(flatten)]
    pub pipeline: PipelineSettings,
}

/// How long what is kept.
#[derive(Debug, Clone, Args)]
pub struct RetentionClocks {
    /// Days until prompts, answers, reasoning, tool calls and bodies are removed from rows; 0 is never
    #[arg(long, env = "COLLECTOR_KEEP_CONTENT_DAYS", default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..=MAX_DAYS))]
    pub keep_content_days: i32,
    /// Days until rows are removed; 0 is never
    #[arg(long, env = "COLLECTOR_KEEP_ROWS_DAYS", default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..=MAX_DAYS))]
    pub keep_rows_days: i32,
    /// Feed that has to have a day as it is before its rows are removed, as parquet; empty is none
    #[arg(long, env = "COLLECTOR_KEEP_ROWS_AFTER_FEED", default_value = "")]
    pub keep_rows_after_feed: String,
}

/// Two store more than ten thousand entries a second. Never the number of cores: of a machine with hundreds of them a container allows
/// fewer threads.
const DEFAULT_WORKERS: usize = 2;

fn workers(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|workers| (1..=64).contains(workers)).ok_or_else(|| "want a number from 1 to 64".to_owned())
}

/// A thousand years, so that no date runs over.
const MAX_DAYS: i64 = 365_000;

/// Settings of `upkeep`.
#[derive(Debug, Args)]
pub struct UpkeepSettings {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub site: SiteArgs,
    #[command(flatten)]
    pub clocks: RetentionClocks,
    /// Index prompts and answers of hours and days that are over, so that text is found fast; takes time and disk
    #[arg(long, env = "COLLECTOR_SEARCH_INDEX")]
    pub search_index: bool,
    /// File to make once the schema is current, and to remove at the end, for `healthcheck`: this process listens nowhere
    #[arg(long, env = "COLLECTOR_READY_FILE")]
    pub ready_file: Option<PathBuf>,
}

/// Settings of `retention`.
#[derive(Debug, Args)]
pub struct RetentionSettings {
    #[command(flatten)]
    pub clocks: RetentionClocks,
    /// Only print what would go
    #[arg(long)]
    pub dry_run: bool,
    /// Remove what is due although it looks like an accident: the clock jumped, or far more would go than ever before
    #[arg(long, conflicts_with = "dry_run")]
    pub confirm: bool,
    #[command(flatten)]
    pub database: DatabaseArgs,
}

/// Settings of `erase`.
#[derive(Debug, Args)]
pub struct EraseSettings {
    /// Whose content; an error when nobody is known by that name
    #[arg(long)]
    pub consumer: String,
    /// Only of calls before then (UTC): 90d (ago), 2026-11-01 or 2026-11-01T08:00
    #[arg(long)]
    pub before: Option<String>,
    /// Delete the rows as well: then they are in no report that reads rows
    #[arg(long)]
    pub rows: bool,
    /// Only say how much there is
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub database: DatabaseArgs,
}

/// Settings of `replay`.
#[derive(Debug, Args)]
pub struct ReplaySettings {
    /// Files with recorded entries; - is standard input
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub pipeline: PipelineSettings,
}

/// Settings of `healthcheck`.
#[derive(Debug, Args)]
pub struct HealthcheckSettings {
    /// Address on which the collector listens
    #[arg(long, env = "COLLECTOR_LISTEN", default_value = "127.0.0.1:5000")]
    pub listen: SocketAddr,
    /// File that `upkeep` keeps while it works; with it the file is looked for, and no address is asked
    #[arg(long, env = "COLLECTOR_READY_FILE")]
    pub ready_file: Option<PathBuf>,
}

/// Settings of `rejected`.
#[derive(Debug, Args)]
pub struct RejectedSettings {
    #[command(subcommand)]
    pub action: RejectedAction,
    #[command(flatten)]
    pub database: DatabaseArgs,
}

/// What to do with rejected entries.
#[derive(Debug, Subcommand)]
pub enum RejectedAction {
    /// The newest entries: number, time, size, reason
    List {
        /// How many at most
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// One entry as it came, credentials removed
    Show {
        /// Number of the entry
        id: i64,
    },
    /// Try entries again, for instance after an upgrade; what succeeds becomes a row and leaves the record
    Retry {
        /// Numbers of the entries; none means all
        ids: Vec<i64>,
        #[command(flatten)]
        pipeline: PipelineSettings,
    },
}

/// Settings of `doctor`: where the parts of an installation are.
#[derive(Debug, Clone, Args)]
pub struct DoctorSettings {
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Command of this installation, for what doctor says about mending; none: this program's own
    #[arg(long, env = "GATEWAY_COMMAND")]
    pub gateway: Option<String>,
    /// File that `upkeep` keeps: where there is one, the collector is to log in as `llm_writer`
    #[arg(long, env = "COLLECTOR_READY_FILE")]
    pub ready_file: Option<PathBuf>,
    /// Kong's status address
    #[arg(long, env = "KONG_STATUS_URL", default_value = "http://127.0.0.1:8100")]
    pub kong_status_url: String,
    /// File with Kong's log of the last day, which tells of full queues; - is standard input
    #[arg(long)]
    pub kong_log: Option<PathBuf>,
    /// The collector
    #[arg(long, env = "COLLECTOR_URL", default_value = "http://127.0.0.1:5000")]
    pub collector_url: String,
    /// Prometheus
    #[arg(long, env = "PROMETHEUS_URL", default_value = "http://127.0.0.1:9090")]
    pub prometheus_url: String,
    /// The gateway
    #[arg(long, env = "KONG_PROXY_URL", default_value = "http://127.0.0.1:8111")]
    pub kong_proxy_url: String,
    #[command(flatten)]
    pub certificate: CertificateArgs,
    /// Grafana
    #[arg(long, env = "GRAFANA_URL", default_value = "http://127.0.0.1:3000")]
    pub grafana_url: String,
    /// Password of Grafana's administrator; with it doctor asks whether the data sources answer
    #[arg(long, env = "GRAFANA_ADMIN_PASSWORD", hide_env_values = true)]
    pub grafana_password: Option<String>,
    /// vLLM
    #[arg(long, env = "VLLM_URL", default_value = "http://127.0.0.1:8000")]
    pub vllm_url: String,
    /// File with vLLM's key on the host, for what doctor says about mending
    #[arg(long, env = "VLLM_API_KEY_FILE")]
    pub vllm_key_file: Option<String>,
    /// Secret that Kong must send as X-Collector-Token
    #[arg(long, env = "COLLECTOR_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// File that holds the secret
    #[arg(long, env = "COLLECTOR_TOKEN_FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// Largest request body that the collector takes, in bytes: a batch of Kong's must fit into it
    #[arg(long, env = "COLLECTOR_MAX_BODY_BYTES", default_value_t = 64 << 20)]
    pub max_body_bytes: usize,
    /// Folder on the disk that holds the databases; how much is free there is compared with their growth
    #[arg(long, env = "COLLECTOR_DATA_DIR", default_value = "./data")]
    pub data_dir: PathBuf,
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub webhook: WebhookArgs,
    /// Print findings as JSON
    #[arg(long)]
    pub json: bool,
    /// End with status 1 for warnings, too
    #[arg(long)]
    pub strict: bool,
}

impl DoctorSettings {
    /// The collector's token, if there is one.
    pub fn checked_token(&self) -> Result<Option<String>> {
        secret(self.token.as_deref(), self.token_file.as_deref()).context("cannot read the file with the token (--token-file)")
    }
}

impl RetentionClocks {
    /// The same as the store knows it.
    pub fn clocks(&self) -> Clocks {
        let feed = self.keep_rows_after_feed.trim();
        Clocks {
            content_days: self.keep_content_days,
            rows_days: self.keep_rows_days,
            rows_after_feed: (!feed.is_empty()).then(|| feed.to_owned()),
        }
    }
}

impl ServeSettings {
    /// The token, if there is one. Refuses to be open to the network without.
    pub fn checked_token(&self) -> Result<Option<String>> {
        let token = secret(self.token.as_deref(), self.token_file.as_deref())
            .context("cannot read the file with the token (--token-file)")?;
        if token.is_none() && !self.listen.ip().is_loopback() && !self.allow_unauthenticated {
            bail!(
                "refusing to listen on {} without a token: whoever reaches the port could write into the audit log. Set \
                 COLLECTOR_TOKEN (and the same in Kong's http-log as header X-Collector-Token), listen on 127.0.0.1, or allow it \
                 with --allow-unauthenticated",
                self.listen
            );
        }
        Ok(token)
    }
}

/// A secret given directly or in a file; an empty one is none.
fn secret(value: Option<&str>, file: Option<&std::path::Path>) -> Result<Option<String>> {
    let value = match (value, file) {
        (Some(value), _) => value.to_owned(),
        (None, Some(file)) => std::fs::read_to_string(file).with_context(|| file.display().to_string())?,
        (None, None) => return Ok(None),
    };
    let value = value.trim();
    Ok((!value.is_empty()).then(|| value.to_owned()))
}
