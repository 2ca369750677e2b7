//! A week of an office, for `make demo`: twenty people in three teams, three models, two agents at work, errors.
//!
//! One seed and one end give the same bytes again. What each user's calls add up to is known here, without the collector.
#![allow(clippy::indexing_slicing, reason = "test equipment fails by panicking")]

use crate::dice::Dice;
use crate::generator::{Generator, Made, Settings};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// The user whose week is looked at: who makes most calls.
pub const BUSIEST: &str = "z100001";
/// A user for whom an agent works.
pub const AGENTS_USER: &str = "z100005";
/// Teams, which the users are in by turns.
pub const TEAMS: [&str; 3] = ["research", "platform", "support"];
/// Users `z100001` and following.
pub const USERS: usize = 20;

const CALLS: usize = 2_000;
/// Who has an agent (from 0), how many hours before the end it began, and how many calls it made.
const AGENTS: [(usize, i64, usize); 2] = [(1, 51, 40), (4, 3, 35)];

/// Calls that were made.
#[derive(Debug)]
pub struct Week {
    calls: Vec<Made>,
    end_ms: i64,
}

/// Calls that add up.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Total {
    /// Calls.
    pub calls: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Tokens of the answers.
    pub completion_tokens: u64,
}

impl Week {
    /// The seven days before `end_ms` (milliseconds since 1970).
    pub fn until(end_ms: i64) -> Self {
        let mut dice = Dice::new(7);
        let mut moments: Vec<i64> = std::iter::repeat_with(|| end_ms - 1 - dice_below(&mut dice, 7 * DAY_MS))
            .map(|moment| (moment, dice_below(&mut Dice::new(moment.unsigned_abs()), 100)))
            .filter(|(moment, percent)| *percent < busy_percent(*moment))
            .map(|(moment, _)| moment)
            .take(CALLS)
            .collect();
        moments.sort_unstable();
        let mut generator =
            Generator::new(&Settings { started_at_ms: end_ms - 7 * DAY_MS, users: USERS, teams: &TEAMS, ..Settings::default() });
        let mut calls: Vec<Made> = moments.into_iter().map(|moment| generator.entry_at(moment)).collect();
        for (rank, hours, steps) in AGENTS {
            calls.extend(generator.agent_session(rank, end_ms - hours * HOUR_MS, steps));
        }
        Self { calls, end_ms }
    }

    /// As bodies of `POST /log`, each of so many entries.
    pub fn batches(&self, size: usize) -> impl Iterator<Item = String> {
        self.calls.chunks(size).map(|calls| {
            let entries: Vec<&str> = calls.iter().map(|call| call.json.as_str()).collect();
            format!("[{}]", entries.join(","))
        })
    }

    /// What all calls of these users add up to, and of these what began since then.
    pub fn total(&self, since_ms: i64, is_of: impl Fn(&str) -> bool) -> Total {
        let mut total = Total::default();
        let of_them = |call: &&Made| call.started_at_ms >= since_ms && call.user.as_deref().is_some_and(&is_of);
        for Made { tokens: (prompt, completion), .. } in self.calls.iter().filter(of_them) {
            total.calls += 1;
            total.prompt_tokens += prompt;
            total.completion_tokens += completion;
        }
        total
    }

    /// When the week of the calendar began that the end is in (UTC).
    fn monday_ms(&self) -> i64 {
        let day = self.end_ms.div_euclid(DAY_MS);
        // The first of January 1970 was a Thursday.
        (day - (day + 3).rem_euclid(7)) * DAY_MS
    }

    /// A limit of tokens of which so much of a hundred is used since Monday: round, and with room for a few calls more.
    pub fn limit(&self, percent: u64, is_of: impl Fn(&str) -> bool) -> u64 {
        let Total { prompt_tokens, completion_tokens, .. } = self.total(self.monday_ms(), is_of);
        let used = prompt_tokens + completion_tokens;
        (used * 100 / percent).max(used + 20_000).next_multiple_of(1_000)
    }
}

/// The team of a user, by his name.
pub fn team_of(user: &str) -> Option<&'static str> {
    let rank = user.strip_prefix('z')?.parse::<usize>().ok()?.checked_sub(100_001)?;
    (rank < USERS).then(|| TEAMS[rank % TEAMS.len()])
}

fn dice_below(dice: &mut Dice, end: i64) -> i64 {
    dice.roll(end.unsigned_abs()).cast_signed()
}

/// Of a hundred calls that could begin at this time so many do: people work by day, and some at the weekend.
fn busy_percent(moment_ms: i64) -> i64 {
    let day = (moment_ms.div_euclid(DAY_MS) + 3).rem_euclid(7);
    let by_day = match moment_ms.rem_euclid(DAY_MS) / HOUR_MS {
        9..=11 | 13..=16 => 100,
        7..=18 => 50,
        _ => 6,
    };
    if day < 5 { by_day } else { by_day / 5 + 1 }
}
