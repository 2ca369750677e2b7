//! Settings of `feed`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::DatabaseArgs;

/// Settings of `feed`.
#[derive(Debug, Args)]
pub struct FeedSettings {
    #[command(subcommand)]
    pub action: FeedAction,
    #[command(flatten)]
    pub database: DatabaseArgs,
}

/// What to do with feeds.
#[derive(Debug, Subcommand)]
pub enum FeedAction {
    /// Copy days that are over to Parquet files, one a day, and again those whose rows changed since
    Parquet(ParquetSettings),
    /// Which feeds there are, and how far they are
    Status {
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Forget a feed and what it has copied; its files stay where they are
    Forget {
        /// Its name
        name: String,
        /// Really
        #[arg(long)]
        yes: bool,
    },
}

/// Settings of `feed parquet`.
#[derive(Debug, Args)]
pub struct ParquetSettings {
    /// Folder to fill; made where it is missing
    #[arg(long, env = "COLLECTOR_FEED_DIR", value_name = "DIR")]
    pub to: PathBuf,
    /// Copy what people wrote, too: prompts, answers, reasoning, tool calls, messages of errors, whole entries
    #[arg(long, env = "COLLECTOR_FEED_CONTENT")]
    pub content: bool,
    /// A file an hour in place of one a day
    #[arg(long)]
    pub hourly: bool,
    /// Name of the feed: each has one folder and notes of its own
    #[arg(long, default_value = "parquet", value_parser = name)]
    pub name: String,
}

/// As the table has it.
fn name(text: &str) -> Result<String, String> {
    let is_name = text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.len() <= 40
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_'));
    if is_name { Ok(text.to_owned()) } else { Err("a name is a few small letters, digits, - and _".to_owned()) }
}
