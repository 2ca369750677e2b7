//! Writes what `make demo` shows: a week of calls, the people who made them, and what the page has to say of one of them.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use gateway_tests::week::{AGENTS_USER, BUSIEST, TEAMS, Total, USERS, Week, team_of};

/// Entries in a request: a megabyte or so.
const BATCH: usize = 50;

/// A week of made-up calls: users.csv for `users import`, batch-NNN.json for `POST /log`, limits.txt for `quota set`, week.env with
/// what the calls add up to
#[derive(Debug, Parser)]
struct Arguments {
    /// Folder for the files
    folder: PathBuf,
    /// When the week ends, in milliseconds since 1970; now if not given
    #[arg(long)]
    until: Option<i64>,
}

fn main() -> anyhow::Result<()> {
    let Arguments { folder, until } = Arguments::parse();
    let until = match until {
        Some(until) => until,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis().try_into()?,
    };
    let week = Week::until(until);
    std::fs::create_dir_all(&folder)?;
    for (number, batch) in week.batches(BATCH).enumerate() {
        std::fs::write(folder.join(format!("batch-{number:03}.json")), batch)?;
    }

    let mut users = String::from("name,team\n");
    for name in (1..=USERS).map(|rank| format!("z{:06}", 100_000 + rank)) {
        writeln!(users, "{name},{}", team_of(&name).unwrap_or_default())?;
    }
    std::fs::write(folder.join("users.csv"), users)?;

    let limits = format!(
        "--user {BUSIEST} --tokens {} --per week\n\
         --user {AGENTS_USER} --tokens {} --per week\n\
         --team {} --tokens {} --per week --hard\n\
         --everybody --cost 5 --currency EUR --per week --shadow\n",
        week.limit(93, |user| user == BUSIEST),
        week.limit(98, |user| user == AGENTS_USER),
        TEAMS[0],
        week.limit(84, |user| team_of(user) == Some(TEAMS[0])),
    );
    std::fs::write(folder.join("limits.txt"), limits)?;

    let Total { calls, prompt_tokens, completion_tokens } = week.total(0, |user| user == BUSIEST);
    let numbers = format!(
        "week_calls={}\nbusiest={BUSIEST}\nbusiest_calls={calls}\nbusiest_prompt_tokens={prompt_tokens}\n\
         busiest_completion_tokens={completion_tokens}\n",
        week.total(0, |_| true).calls,
    );
    std::fs::write(folder.join("week.env"), numbers)?;
    Ok(())
}
