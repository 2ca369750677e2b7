//! Settings of the commands about usage and what it costs.

use clap::{Args, Subcommand, ValueEnum};

use super::DatabaseArgs;

/// Settings of `report`.
#[derive(Debug, Args)]
pub struct ReportSettings {
    /// What to add up by, in this order
    #[arg(long, value_enum, value_delimiter = ',', default_value = "consumer,model")]
    pub by: Vec<Dimension>,
    /// From when on: 30d, 12h, 2026-11-01 or 2026-11-01T08:00; rounded down to a whole hour
    #[arg(long, default_value = "30d")]
    pub since: String,
    /// Until when, in the same forms; rounded up to a whole hour, and by default the end of this hour
    #[arg(long)]
    pub until: Option<String>,
    /// A calendar month instead: 2026-11
    #[arg(long, conflicts_with_all = ["since", "until"])]
    pub month: Option<String>,
    /// Only this team; calls without one have the empty name
    #[arg(long)]
    pub team: Option<String>,
    /// Only this consumer
    #[arg(long)]
    pub consumer: Option<String>,
    /// Only this model
    #[arg(long)]
    pub model: Option<String>,
    /// Conversations, too: from the rows that are there, so those of calls whose rows are gone are not among them
    #[arg(long)]
    pub conversations: bool,
    /// Form of the result
    #[arg(long, value_enum, default_value_t = ReportFormat::Table)]
    pub format: ReportFormat,
    /// Whole hours that days, months and dates are ahead of UTC, as +08:00; not given, they are those of the site (SITE_TIME_ZONE)
    #[arg(long, allow_hyphen_values = true)]
    pub utc_offset: Option<String>,
    #[command(flatten)]
    pub database: DatabaseArgs,
}

/// What usage can be added up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dimension {
    /// Kong's consumer
    Consumer,
    /// The team that the consumer was in at the time of the call
    Team,
    /// Model
    Model,
    /// Month
    Month,
    /// Day
    Day,
    /// Hour
    Hour,
}

/// Form of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For a terminal
    Table,
    /// For a spreadsheet, without a total
    Csv,
    /// For a program
    Json,
}

/// Settings of `prices`.
#[derive(Debug, Args)]
pub struct PricesSettings {
    #[command(subcommand)]
    pub action: PricesAction,
    #[command(flatten)]
    pub database: DatabaseArgs,
}

/// What to do with prices.
#[derive(Debug, Subcommand)]
pub enum PricesAction {
    /// All prices
    List,
    /// Set what a million tokens of a model cost, from some time on
    Set {
        /// Name of a model; % stands for any text. Of several that match a model the longest counts
        pattern: String,
        /// Price of a million prompt tokens
        #[arg(long)]
        prompt: Price,
        /// Price of a million prompt tokens that came from the cache; the same as of others if not given
        #[arg(long)]
        cached: Option<Price>,
        /// Price of a million completion tokens, reasoning among them
        #[arg(long)]
        completion: Price,
        /// Currency, as CNY
        #[arg(long, value_parser = currency)]
        currency: String,
        /// From when on (UTC): 2026-11-01 or 2026-11-01T08:00. If not given, the first price of a pattern holds for all the past, a
        /// further one from this hour on
        #[arg(long)]
        from: Option<String>,
    },
    /// Remove the prices of a pattern
    Remove {
        /// The pattern, as `list` shows it
        pattern: String,
        /// Only the price from this time on (UTC)
        #[arg(long)]
        from: Option<String>,
    },
}

/// A price as text: PostgreSQL computes with decimals, and so exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price(pub String);

impl std::str::FromStr for Price {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.replacen('.', "", 1);
        let is_price = (1..=20).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        if is_price { Ok(Self(text.to_owned())) } else { Err("a price is a number that is not negative, as 0.5".to_owned()) }
    }
}

pub(super) fn currency(text: &str) -> Result<String, String> {
    let is_currency = (1..=10).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphabetic());
    if is_currency { Ok(text.to_owned()) } else { Err("a currency is a few letters, as CNY".to_owned()) }
}
