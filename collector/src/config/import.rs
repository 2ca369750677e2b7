//! Settings of `import`.

use clap::Args;

use super::{DatabaseArgs, PipelineSettings, RetentionClocks, SiteArgs};

/// Settings of `import`.
#[derive(Debug, Args)]
pub struct ImportSettings {
    /// Only read the table and say what would become of its rows
    #[arg(long)]
    pub dry_run: bool,
    /// Time zone of created_at where that is a time without one, as Europe/Berlin; not given: SITE_TIME_ZONE, else UTC
    #[arg(long)]
    pub time_zone: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub site: SiteArgs,
    #[command(flatten)]
    pub clocks: RetentionClocks,
    #[command(flatten)]
    pub pipeline: PipelineSettings,
}

impl ImportSettings {
    /// The clock by which a time without a time zone is read.
    pub fn zone(&self) -> String {
        self.time_zone.clone().or_else(|| self.site.zone()).unwrap_or_else(|| "UTC".to_owned())
    }
}
