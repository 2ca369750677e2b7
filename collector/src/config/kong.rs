//! Settings of what talks to Kong's Admin API.
//!
//! Those of `kong` are texts here: one that is empty is not given, and what is wrong with one is said by the name that stands in the
//! settings file ([`crate::kong::settings`]), without the value where it is a secret.

use clap::{Args, Subcommand};

use super::CertificateArgs;

/// Kong's Admin API.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// Kong's Admin API
    #[arg(long, env = "KONG_ADMIN_URL", default_value = DEFAULT_ADMIN_URL)]
    pub kong_admin_url: String,
    /// Password of Kong's Admin API, for the user `admin`, where it wants one
    #[arg(long, env = "KONG_ADMIN_PASSWORD", hide_env_values = true)]
    pub kong_admin_password: Option<String>,
    /// File that holds it in its first line
    #[arg(long, env = "KONG_ADMIN_PASSWORD_FILE")]
    pub kong_admin_password_file: Option<String>,
}

const DEFAULT_ADMIN_URL: &str = "http://127.0.0.1:8001";

impl AdminArgs {
    /// Its address, without a slash at the end.
    pub fn url(&self) -> &str {
        match self.kong_admin_url.trim_end_matches('/') {
            "" => DEFAULT_ADMIN_URL,
            url => url,
        }
    }
}

/// Settings of `kong`.
#[derive(Debug, Args)]
pub struct KongCommand {
    #[command(subcommand)]
    pub action: KongAction,
}

/// What to do with Kong's configuration.
#[derive(Debug, Subcommand)]
pub enum KongAction {
    /// Make Kong the front door of the model server: compares what it has with the settings, changes what differs, and says for each
    /// part "created", "updated", "unchanged" or "removed"
    Apply {
        /// Then wait until the gateway answers; Kong takes up to 5 s to put changes into effect
        #[arg(long)]
        wait: bool,
        /// Also remove what somebody else made in Kong and what leads to the model server past the keys, or takes the place of a plugin
        /// set up here
        #[arg(long)]
        adopt: bool,
        /// Only say what would change; status 3 when there is something
        #[arg(long)]
        dry_run: bool,
        /// Only print the sizes that follow from the settings and from what Kong captures of single users
        #[arg(long)]
        print_batch: bool,
        #[command(flatten)]
        admin: AdminArgs,
        #[command(flatten)]
        settings: Box<KongSettings>,
    },
    /// The same configuration as a declarative file, for a Kong without a database. It holds the secrets. Models and users stand in Kong
    /// alone: they are read from a running one when asked for
    Export {
        /// File to write, for its owner alone; none: standard output
        #[arg(long)]
        output: Option<std::path::PathBuf>,
        /// With the models of a running Kong, and their servers
        #[arg(long)]
        with_models: bool,
        /// With its users, too: keys, teams, groups, limits
        #[arg(long)]
        with_users: bool,
        #[command(flatten)]
        admin: AdminArgs,
        #[command(flatten)]
        settings: Box<KongSettings>,
    },
}

/// What the gateway should be. A *_FILE holds the secret in its first line.
#[derive(Debug, Clone, Default, Args)]
pub struct KongSettings {
    /// The gateway, for --wait [default: http://127.0.0.1:8111]
    #[arg(long, env = "KONG_PROXY_URL")]
    pub kong_proxy_url: Option<String>,
    #[command(flatten)]
    pub certificate: CertificateArgs,
    /// The model server [default: http://127.0.0.1:8000]
    #[arg(long, env = "VLLM_URL")]
    pub vllm_url: Option<String>,
    /// Key that the model server wants (vllm serve --api-key); sent to it in place of the user's. None: none is sent
    #[arg(long, env = "VLLM_API_KEY", hide_env_values = true)]
    pub vllm_api_key: Option<String>,
    /// File with that key
    #[arg(long, env = "VLLM_API_KEY_FILE")]
    pub vllm_api_key_file: Option<String>,
    /// More paths to open, exact, blank between them
    #[arg(long, env = "VLLM_EXTRA_PATHS")]
    pub vllm_extra_paths: Option<String>,
    /// Longest wait for a connection to the model server [default: 5000]
    #[arg(long, env = "VLLM_CONNECT_TIMEOUT_MS")]
    pub vllm_connect_timeout_ms: Option<String>,
    /// Between two writes of a request [default: 60000]
    #[arg(long, env = "VLLM_WRITE_TIMEOUT_MS")]
    pub vllm_write_timeout_ms: Option<String>,
    /// Until the answer begins, and between two events [default: 300000]
    #[arg(long, env = "VLLM_READ_TIMEOUT_MS")]
    pub vllm_read_timeout_ms: Option<String>,
    /// Calls an hour for each user; 0 is no limit [default: 100]
    #[arg(long, env = "RATE_LIMIT_PER_HOUR")]
    pub rate_limit_per_hour: Option<String>,
    /// The collector [default: http://127.0.0.1:5000]
    #[arg(long, env = "COLLECTOR_URL")]
    pub collector_url: Option<String>,
    /// Its token; none: none is sent
    #[arg(long, env = "COLLECTOR_TOKEN", hide_env_values = true)]
    pub collector_token: Option<String>,
    /// File with that token
    #[arg(long, env = "COLLECTOR_TOKEN_FILE")]
    pub collector_token_file: Option<String>,
    /// Largest request that the collector takes [default: 67108864]
    #[arg(long, env = "COLLECTOR_MAX_BODY_BYTES")]
    pub collector_max_body_bytes: Option<String>,
    /// full, or metadata: model and tokens, no bodies [default: full]
    #[arg(long, env = "AUDIT_CAPTURE")]
    pub audit_capture: Option<String>,
    /// Of a request body, in the log [default: 1048576]
    #[arg(long, env = "AUDIT_MAX_REQUEST_BYTES")]
    pub audit_max_request_bytes: Option<String>,
    /// Of a response body [default: 1048576]
    #[arg(long, env = "AUDIT_MAX_RESPONSE_BYTES")]
    pub audit_max_response_bytes: Option<String>,
    /// true: ask the model server for the usage of streamed answers [default: true]
    #[arg(long, env = "AUDIT_INCLUDE_USAGE")]
    pub audit_include_usage: Option<String>,
    /// true: answer 400 to requests that the model server might read differently; false: let them pass, marked in their rows
    /// [default: true]
    #[arg(long, env = "STRICT_REQUESTS")]
    pub strict_requests: Option<String>,
    /// true: Kong's errors in the form OpenAI's SDKs expect [default: true]
    #[arg(long, env = "AUDIT_OPENAI_ERRORS")]
    pub audit_openai_errors: Option<String>,
    /// Refused calls without a valid key a minute from one address; further ones are only counted, and have to wait; 0 is no limit [default: 60]
    #[arg(long, env = "ANONYMOUS_PER_MINUTE")]
    pub anonymous_per_minute: Option<String>,
    /// Calls of a user with a valid key that the gateway may refuse in a minute until they are counted only; 0 is no limit
    /// [default: 60]
    #[arg(long, env = "REFUSED_PER_MINUTE")]
    pub refused_per_minute: Option<String>,
    /// true: the plugin llm-quota enforces the limits that `quota` sets; false: nothing enforces them [default: true]
    #[arg(long, env = "QUOTAS")]
    pub quotas: Option<String>,
    /// true: answer 503 while it is not known how far limits are used; false: let calls pass by what is known [default: false]
    #[arg(long, env = "QUOTA_FAIL_CLOSED")]
    pub quota_fail_closed: Option<String>,
    /// Tokens that a hard limit reserves for an answer where the request does not say how many it may have [default: 1024]
    #[arg(long, env = "QUOTA_DEFAULT_MAX_TOKENS")]
    pub quota_default_max_tokens: Option<String>,
    /// Whom the answer names to who has used up a limit: an address, a page. None: nobody
    #[arg(long, env = "QUOTA_CONTACT")]
    pub quota_contact: Option<String>,
    /// Calls that a model server serves at the same time; beyond that they wait in fair shares, by the plugin llm-queue. None: no call
    /// waits
    #[arg(long, env = "QUEUE_IN_FLIGHT")]
    pub queue_in_flight: Option<String>,
    /// Calls that may wait for a model server [default: 1000]
    #[arg(long, env = "QUEUE_MAX_WAITING")]
    pub queue_max_waiting: Option<String>,
    /// Of them those of one user [default: 200]
    #[arg(long, env = "QUEUE_MAX_WAITING_PER_USER")]
    pub queue_max_waiting_per_user: Option<String>,
    /// Longest wait of a call [default: 120]
    #[arg(long, env = "QUEUE_MAX_WAIT_SECONDS")]
    pub queue_max_wait_seconds: Option<String>,
    /// Of a hundred calls of users who take less than their share so many may find no place free at once; more leaves more of the
    /// server to who floods it; 100 keeps nothing free [default: 5]
    #[arg(long, env = "QUEUE_OTHERS_WAIT_PERCENT")]
    pub queue_others_wait_percent: Option<String>,
    /// Shares of teams and users that are larger or smaller than 1, as team:ml=2,alice=3
    #[arg(long, env = "QUEUE_WEIGHTS")]
    pub queue_weights: Option<String>,
    /// true: tell the model server which call is due first (vllm serve --scheduling-policy priority) [default: false]
    #[arg(long, env = "VLLM_PRIORITY")]
    pub vllm_priority: Option<String>,
    /// Nodes of Kong: each has its part of the places [default: 1]
    #[arg(long, env = "GATEWAY_HOSTS")]
    pub gateway_hosts: Option<String>,
    /// Large request bodies on their way in each worker, a user's at most half of it; 0 is any number [default: 0]
    #[arg(long, env = "UPLOAD_ROOM_MB")]
    pub upload_room_mb: Option<String>,
    /// How long a request body may take to arrive, plus a second for each 128 KiB of it; 0 is for ever [default: 60]
    #[arg(long, env = "REQUEST_BODY_SECONDS")]
    pub request_body_seconds: Option<String>,
    /// How long an entry waits for others [default: 0.5]
    #[arg(long, env = "AUDIT_BATCH_SECONDS")]
    pub audit_batch_seconds: Option<String>,
    /// Bytes of entries that each worker keeps while the collector is away [default: 134217728]
    #[arg(long, env = "AUDIT_QUEUE_BYTES")]
    pub audit_queue_bytes: Option<String>,
    /// How long a batch is sent again before it is given up [default: 86400]
    #[arg(long, env = "AUDIT_RETRY_SECONDS")]
    pub audit_retry_seconds: Option<String>,
    /// true: people see what they used, at /usage and /v1/usage of the gateway [default: true]
    #[arg(long, env = "USAGE_PAGE")]
    pub usage_page: Option<String>,
    /// 1: this Kong serves other things too. Audit and metrics are bound to the model server's service; calls to unknown paths are then
    /// neither logged nor shaped. 0: all calls go into the audit log, those of other services with their bodies. auto: 1 if Kong has a
    /// service that does not lead to the model server [default: auto]
    #[arg(long, env = "KONG_SHARED")]
    pub kong_shared: Option<String>,
    /// 1: configure a Kong older than 3.9.4, too, which has known holes [default: 0]
    #[arg(long, env = "KONG_ACCEPT_OLD")]
    pub kong_accept_old: Option<String>,
    /// Folder with other pre-function/*.lua than those that are part of this program
    #[arg(long, env = "GATEWAY_PLUGINS_DIR")]
    pub gateway_plugins_dir: Option<String>,
}
