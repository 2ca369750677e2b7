//! Settings of `users`.

use clap::{Args, Subcommand, ValueEnum};

use super::AdminArgs;
use crate::kong::people;

/// Settings of `users`: the people who may call the model, one consumer of Kong with one key each.
///
/// A key is shown once, on standard output and nothing else there, so that KEY=$(llm-collector users add NAME) works; it cannot be read
/// back.
#[derive(Debug, Args)]
pub struct UsersCommand {
    #[command(subcommand)]
    pub action: UsersAction,
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Command of this installation, for what messages say about other commands
    #[arg(long, env = "GATEWAY_COMMAND", hide = true)]
    pub gateway: Option<String>,
}

/// What to do with users.
#[derive(Debug, Subcommand)]
pub enum UsersAction {
    /// Make a user and print the new key
    Add {
        /// As it will stand in rows and metrics
        name: String,
        /// The team, for reports and for who may use which model
        #[arg(long)]
        team: Option<String>,
        /// Calls an hour, where they are others than for all
        #[arg(long, value_parser = limit)]
        limit: Option<Limit>,
        /// How large the share is where calls wait, where it is not 1
        #[arg(long, value_parser = people::weight)]
        weight: Option<u32>,
        /// batch: calls with this key use what those of interactive keys leave
        #[arg(long)]
        class: Option<ClassWord>,
        /// How long the key works: 90d, 12h, 30m
        #[arg(long, value_parser = duration)]
        expires: Option<u64>,
        #[command(flatten)]
        key: KeyArg,
    },
    /// Make all users of a CSV file with the columns name, team, limit, expires, weight (all but the first may be missing), and print
    /// their keys as CSV. May run again: who is there keeps the key and gets the file's team, limit and weight
    Import {
        /// The file; - is standard input
        file: std::path::PathBuf,
        /// File for the new keys, for its owner alone, to which they are added; none: standard output
        #[arg(long)]
        keys: Option<std::path::PathBuf>,
    },
    /// Names, number of keys, limit, what is captured, since when, until when, hour of the last call, weight, class of
    /// the keys, team
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        database: Box<super::DatabaseArgs>,
        /// Users of whose calls the collector stores no content
        #[arg(long, env = "COLLECTOR_METADATA_CONSUMERS", value_delimiter = ',')]
        metadata_consumers: Vec<String>,
    },
    /// Print a new key; the old ones stop working
    Rotate {
        /// Whose
        name: String,
        /// How much longer the old keys work: 24h
        #[arg(long, value_parser = duration)]
        keep_old: Option<u64>,
        /// How long the new key works: 90d
        #[arg(long, value_parser = duration)]
        expires: Option<u64>,
        /// Class of the new key; none: that of the old ones
        #[arg(long)]
        class: Option<ClassWord>,
        #[command(flatten)]
        key: KeyArg,
    },
    /// Take a user out; what is logged stays
    Remove {
        /// Whom
        name: String,
    },
    /// Calls an hour for this user, or as for all
    Limit {
        /// Whose
        name: String,
        /// A number from 1, or `default`
        #[arg(value_parser = limit)]
        calls: Limit,
    },
    /// The team of a user; calls count for the team that the user is in at that time
    Team {
        /// Whose
        name: String,
        /// The team, or `none`
        team: String,
    },
    /// How large the share of a user is where calls wait: who has 3 gets three places for each of somebody who has 1
    Weight {
        /// Whose
        name: String,
        /// A whole number from 1 to 1000, or `default`: that of the team, else 1
        #[arg(value_parser = weight)]
        weight: Weight,
    },
    /// Until when the keys of a user work
    Expire {
        /// Whose
        name: String,
        /// From now on: 90d, 12h, 30m, or `never`
        #[arg(value_parser = end)]
        when: End,
    },
    /// Whether prompts and answers of this user are logged
    Capture {
        /// Whose
        name: String,
        /// What is logged
        what: CaptureWord,
    },
}

/// A key that is in use already.
#[derive(Debug, Clone, Args)]
pub struct KeyArg {
    /// A key that is in use already, to be taken over; - reads it from standard input, which keeps it out of the process list and the
    /// shell's history
    #[arg(long, allow_hyphen_values = true, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub key: Option<String>,
}

/// What is logged of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CaptureWord {
    /// Prompts and answers
    Full,
    /// Who, when, how long, model and tokens, but no content (that does not leave Kong's memory)
    Metadata,
    /// What is logged of all
    Default,
}

/// Of which class the calls with a key are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClassWord {
    /// Somebody waits for them
    Interactive,
    /// They use what the others leave
    Batch,
}

impl From<ClassWord> for people::Class {
    fn from(word: ClassWord) -> Self {
        match word {
            ClassWord::Interactive => people::Class::Interactive,
            ClassWord::Batch => people::Class::Batch,
        }
    }
}

/// How large a share is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// So large.
    Own(u32),
    /// As for all.
    Default,
}

fn weight(text: &str) -> Result<Weight, String> {
    if text == "default" { Ok(Weight::Default) } else { people::weight(text).map(Weight::Own) }
}

/// Calls an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// So many.
    Calls(u32),
    /// As for all.
    Default,
}

/// Calls an hour as people write them.
pub fn limit(text: &str) -> Result<Limit, String> {
    let is_plain = (1..=9).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    match text {
        "default" => Ok(Limit::Default),
        _ if is_plain => text.parse().map(Limit::Calls).map_err(|error| error.to_string()),
        _ => Err("want a number of calls an hour from 1, or 'default'".to_owned()),
    }
}

/// When something ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// After so many seconds.
    After(u64),
    /// Not at all.
    Never,
}

fn end(text: &str) -> Result<End, String> {
    if text == "never" { Ok(End::Never) } else { duration(text).map(End::After) }
}

/// The longest time that Kong takes for a key, in seconds; a little more than three years.
const LONGEST: u64 = 100_000_000;

/// A length of time in seconds: `90d`, `12h`, `30m`.
pub fn duration(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is no length of time; write it as 90d, 12h or 30m, {}d at most", LONGEST / 86_400);
    let unit = match text.chars().last() {
        Some('d') => 86_400,
        Some('h') => 3_600,
        Some('m') => 60,
        _ => return Err(wrong()),
    };
    let number = text.get(..text.len() - 1).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let seconds = number.and_then(|digits| digits.parse::<u64>().ok()).and_then(|number| number.checked_mul(unit));
    seconds.filter(|seconds| (1..=LONGEST).contains(seconds)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_as_people_write_them() {
        assert_eq!(["90d", "12h", "30m"].map(duration), [Ok(7_776_000), Ok(43_200), Ok(1_800)]);
        for bad in ["", "d", "0d", "-1d", "1", "1w", "1.5d", "99999999999999999999d", "1158d", "+1d", "1é"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!([end("never"), end("1d")], [Ok(End::Never), Ok(End::After(86_400))]);
    }

    #[test]
    fn limits_are_numbers_from_one_or_the_default() {
        assert_eq!(
            [limit("1"), limit("999999999"), limit("default")],
            [Ok(Limit::Calls(1)), Ok(Limit::Calls(999_999_999)), Ok(Limit::Default)]
        );
        for bad in ["0", "-1", "01", "many", "1.5", "", "1000000000", "+1"] {
            assert!(limit(bad).is_err(), "{bad}");
        }
    }
}
