//! Settings of `quota`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};

use super::usage::currency;
use super::{DatabaseArgs, secret};
use crate::webhook::Webhook;

/// Settings of `quota`.
#[derive(Debug, Args)]
pub struct QuotaSettings {
    #[command(subcommand)]
    pub action: QuotaAction,
    #[command(flatten)]
    pub database: DatabaseArgs,
}

/// What to do with limits.
#[derive(Debug, Subcommand)]
pub enum QuotaAction {
    /// Set a limit, in place of one for the same: quota set --team ml --tokens 2M --per day
    Set {
        #[command(flatten)]
        who: OfArgs,
        #[command(flatten)]
        amount: AmountArgs,
        /// Currency of the cost, as CNY
        #[arg(long, value_parser = currency)]
        currency: Option<String>,
        /// In which time, on the site's clock (SITE_TIME_ZONE)
        #[arg(long, value_enum)]
        per: Per,
        /// Only of models with such a name; % stands for any text
        #[arg(long, default_value = "%")]
        models: String,
        #[command(flatten)]
        mode: ModeArgs,
        /// What becomes of calls over a soft limit: refuse (if nothing is said); wait: they are served when nobody else waits, where calls
        /// wait at all (QUEUE_IN_FLIGHT)
        #[arg(long, value_enum, conflicts_with_all = ["hard", "shadow"])]
        when_over: Option<WhenOver>,
    },
    /// All limits
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove limits: by their numbers, or all of somebody
    Remove {
        /// Numbers, as `list` shows them
        ids: Vec<i64>,
        #[command(flatten)]
        who: OfArgs,
        /// With --user, --team …: only limits counted in this unit
        #[arg(long, value_enum)]
        unit: Option<Unit>,
        /// With --user, --team …: only limits of this window
        #[arg(long, value_enum)]
        per: Option<Per>,
        /// With --user, --team …: only limits of this pattern of models
        #[arg(long)]
        models: Option<String>,
    },
    /// How far limits are used, what is left and when all is there again; the fullest first
    Status {
        /// Only what holds for this user, and for the team that he was in at his last call
        #[arg(long, conflicts_with = "team")]
        user: Option<String>,
        /// Only what holds for this team
        #[arg(long)]
        team: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Post a sample to the webhook, and say what it answers
    WebhookTest {
        #[command(flatten)]
        webhook: WebhookArgs,
    },
}

/// Who is told that a limit is nearly used up.
#[derive(Debug, Clone, Args)]
pub struct WebhookArgs {
    /// Address to which is posted that a limit is used to 80, 95 or 100 %, as signed JSON; not given, nobody is told
    #[arg(long, env = "QUOTA_WEBHOOK_URL", hide_env_values = true)]
    pub quota_webhook_url: Option<String>,
    /// File that holds the secret with which it is signed
    #[arg(long, env = "QUOTA_WEBHOOK_SECRET_FILE")]
    pub quota_webhook_secret_file: Option<PathBuf>,
    /// Root certificates by which the receiver is believed; not given, those of the system
    #[arg(long, env = "QUOTA_WEBHOOK_CA_FILE")]
    pub quota_webhook_ca_file: Option<PathBuf>,
}

impl WebhookArgs {
    /// The receiver, if there is one.
    pub fn webhook(&self) -> Result<Option<Webhook>> {
        let Some(url) = self.quota_webhook_url.as_deref().filter(|url| !url.is_empty()) else { return Ok(None) };
        let secret = secret(None, self.quota_webhook_secret_file.as_deref())
            .context("cannot read the secret of the webhook (QUOTA_WEBHOOK_SECRET_FILE)")?
            .context(
                "QUOTA_WEBHOOK_URL wants a secret to sign with: put one into a file, and name that in QUOTA_WEBHOOK_SECRET_FILE",
            )?;
        let roots = self.quota_webhook_ca_file.as_deref().filter(|path| !path.as_os_str().is_empty());
        Ok(Some(Webhook::new(url, secret, roots)?))
    }
}

/// Whose limits are meant.
#[derive(Debug, Clone, Default, Args)]
#[group(required = false, multiple = false)]
pub struct OfArgs {
    /// This user
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// This team, all together
    #[arg(long, value_name = "NAME")]
    pub team: Option<String>,
    /// Each user, for himself
    #[arg(long)]
    pub each_user: bool,
    /// Everybody together
    #[arg(long)]
    pub everybody: bool,
}

/// How much.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct AmountArgs {
    /// Tokens of prompts and answers: 500k, 1.5M, 2000000; 0 allows nothing
    #[arg(long, value_name = "AMOUNT")]
    pub tokens: Option<Amount>,
    /// Calls that reach a model
    #[arg(long, value_name = "AMOUNT")]
    pub calls: Option<Amount>,
    /// What these tokens cost by `prices`, in --currency
    #[arg(long, value_name = "AMOUNT", requires = "currency")]
    pub cost: Option<Amount>,
}

/// What happens when the limit is reached.
#[derive(Debug, Clone, Args)]
#[group(required = false, multiple = false)]
pub struct ModeArgs {
    /// hard: a call reserves what it may take, and is refused when that is more than is left; soft (if nothing is said): refused are calls
    /// that begin when nothing is left; wait: as soft with --when-over wait; shadow: nobody is refused
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,
    /// As --mode hard
    #[arg(long)]
    pub hard: bool,
    /// As --mode soft
    #[arg(long)]
    pub soft: bool,
    /// As --mode shadow
    #[arg(long)]
    pub shadow: bool,
}

impl ModeArgs {
    /// The mode.
    pub fn mode(&self) -> Mode {
        match self.mode {
            Some(mode) => mode,
            None if self.hard => Mode::Hard,
            None if self.shadow => Mode::Shadow,
            None => Mode::Soft,
        }
    }
}

/// What becomes of calls over a soft limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WhenOver {
    /// They are refused
    Refuse,
    /// They are served when nobody else waits
    Wait,
}

/// What happens when a limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Never more than the limit
    Hard,
    /// The call that crosses the limit is the last
    Soft,
    /// Calls over the limit are served when nobody else waits
    Wait,
    /// Nobody is refused
    Shadow,
}

/// A window of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Per {
    /// A whole hour
    Hour,
    /// From midnight
    Day,
    /// From Monday
    Week,
    /// From the first
    Month,
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Unit {
    /// Tokens
    Tokens,
    /// Calls
    Calls,
    /// Cost
    Cost,
}

macro_rules! words {
    ($($kind:ident { $($value:ident => $word:literal),* })*) => {$(
        impl $kind {
            /// As it stands in the database.
            pub fn word(self) -> &'static str {
                match self { $($kind::$value => $word),* }
            }
        }
    )*};
}
words! {
    Mode { Hard => "hard", Soft => "soft", Wait => "wait", Shadow => "shadow" }
    Per { Hour => "hour", Day => "day", Week => "week", Month => "month" }
    Unit { Tokens => "tokens", Calls => "calls", Cost => "cost" }
}

/// An amount as decimal text: PostgreSQL computes with decimals, and so exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amount(pub String);

/// Digits before the point at most, and behind it.
const MAX_WHOLE: usize = 15;
const MAX_FRACTION: usize = 6;

impl Amount {
    /// Whether it is a whole number.
    pub fn is_whole(&self) -> bool {
        !self.0.contains('.')
    }
}

impl std::str::FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "an amount is a number that is not negative, as 500000, 500k, 1.5M or 2G".to_owned();
        let (number, shift) = match text.char_indices().last() {
            Some((at, 'k' | 'K')) => (text.get(..at), 3),
            Some((at, 'm' | 'M')) => (text.get(..at), 6),
            Some((at, 'g' | 'G')) => (text.get(..at), 9),
            _ => (Some(text), 0),
        };
        let number = number.ok_or_else(wrong)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || (fraction.is_empty() && number.contains('.')) || !is_digits(whole) || !is_digits(fraction) {
            return Err(wrong());
        }
        // The point moves to the right.
        let padded = format!("{fraction:0<shift$}");
        let (more, rest) = padded.split_at_checked(shift).ok_or_else(wrong)?;
        let (whole, rest) = (format!("{whole}{more}"), rest.trim_end_matches('0'));
        let whole = whole.trim_start_matches('0');
        if whole.len() > MAX_WHOLE || rest.len() > MAX_FRACTION {
            return Err(format!("an amount has at most {MAX_WHOLE} digits, and {MAX_FRACTION} behind the point"));
        }
        let whole = if whole.is_empty() { "0" } else { whole };
        Ok(Self(if rest.is_empty() { whole.to_owned() } else { format!("{whole}.{rest}") }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_exactly() {
        let read = |text: &str| text.parse::<Amount>().map(|amount| amount.0);
        for (text, expected) in [
            ("0", "0"),
            ("000", "0"),
            ("2M", "2000000"),
            ("500k", "500000"),
            ("1.5m", "1500000"),
            ("1.2345678M", "1234567.8"),
            ("0.001k", "1"),
            ("2G", "2000000000"),
            ("0.50", "0.5"),
            ("12.340000", "12.34"),
            ("999999999999999", "999999999999999"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text}");
        }
        for text in
            ["", "k", ".5", "5.", "-1", "1e6", "1,000", "1 M", "٣", "1.5.5", "1Mk", "9999999999999999", "1G0", "0.0000001", "∞"]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
