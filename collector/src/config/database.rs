//! Where the database is.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use super::secret;
use crate::store::connect::{Target, TlsDefaults};

/// Where the database is.
#[derive(Debug, Clone, Args)]
pub struct DatabaseArgs {
    /// PostgreSQL, as postgres://user:password@host:port/database?sslmode=verify-full&sslrootcert=/path/to/root.crt
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// File that holds the database URL, so that the password stands in no process list
    #[arg(long, env = "DATABASE_URL_FILE", conflicts_with = "database_url")]
    pub database_url_file: Option<PathBuf>,
    /// How connections are protected where the URL has no sslmode: disable, allow, prefer, require, verify-ca or verify-full
    #[arg(long, env = "PGSSLMODE")]
    pub database_sslmode: Option<String>,
    /// Root certificates where the URL has no sslrootcert: a file, or `system`
    #[arg(long, env = "PGSSLROOTCERT")]
    pub database_sslrootcert: Option<PathBuf>,
    /// Connections to PostgreSQL at most
    #[arg(long, env = "COLLECTOR_DATABASE_CONNECTIONS", default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..=100))]
    pub database_connections: u32,
    /// Longest wait for PostgreSQL, in seconds; Kong gives up on a batch after 10
    #[arg(long, env = "COLLECTOR_DATABASE_TIMEOUT", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub database_timeout: u64,
}

impl DatabaseArgs {
    /// The database and the way to it. Says what to mend when the URL is missing or wrong, and never prints it: it holds a password.
    pub fn target(&self) -> Result<Target> {
        let url = secret(self.database_url.as_deref(), self.database_url_file.as_deref())
            .context("cannot read the file with the database URL (--database-url-file)")?
            .context("no database given: set DATABASE_URL=postgres://user:password@host:port/database (or --database-url)")?;
        let defaults = TlsDefaults { mode: self.database_sslmode.clone(), root_certificates: self.database_sslrootcert.clone() };
        Ok(Target::parse(&url, &defaults)?)
    }

    /// Longest wait for the database.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.database_timeout)
    }
}

/// What the site is known by, for those who may change the schema.
#[derive(Debug, Clone, Args)]
pub struct SiteArgs {
    /// Time zone of hours, days and months in usage, as Europe/Berlin: a name that PostgreSQL knows. Kept in the database; not given, it
    /// stays as it is, UTC at first
    #[arg(long, env = "SITE_TIME_ZONE")]
    pub site_time_zone: Option<String>,
}

impl SiteArgs {
    /// The time zone, if one is set.
    pub fn zone(&self) -> Option<String> {
        self.site_time_zone.as_ref().filter(|zone| !zone.is_empty()).cloned()
    }
}

/// Settings of `migrate`.
#[derive(Debug, Args)]
pub struct MigrateSettings {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub site: SiteArgs,
}
