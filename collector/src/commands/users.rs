//! `users`: the people who may call the model.

mod import;
mod list;

use std::process::ExitCode;

use super::{PROGRAM, say};
use crate::config::{CaptureWord, End, KeyArg, Limit, UsersAction, UsersCommand, Weight};
use crate::kong::admin::Admin;
use crate::kong::failure::Outcome;
use crate::kong::people::{self, Capture, People, Start};

/// Carries out the command; the status is the program's.
pub fn run(command: &UsersCommand) -> ExitCode {
    say::ending(carry_out(command).map(|()| ExitCode::SUCCESS))
}

fn carry_out(command: &UsersCommand) -> Outcome<()> {
    if let Some(name) = named(&command.action) {
        people::check_name(name)?;
    }
    let gateway = command.gateway.as_deref().filter(|gateway| !gateway.is_empty());
    let mut people = People::new(Admin::new(&command.admin)?, gateway.unwrap_or(PROGRAM));
    match &command.action {
        UsersAction::Add { name, team, limit, weight, class, expires, key } => {
            team.as_deref().map_or(Ok(()), people::check_team)?;
            let key = Key::choose(key)?;
            let limit = limit.and_then(calls);
            let start = Start {
                key: &key.text,
                expires_in: *expires,
                team: team.as_deref(),
                limit,
                weight: *weight,
                class: class.map(Into::into),
            };
            people.add(name, &start)?;
            key.show(&format!("added {name}"))
        }
        UsersAction::Rotate { name, keep_old, expires, class, key } => {
            let key = Key::choose(key)?;
            people.rotate(name, &key.text, *expires, *keep_old, class.map(Into::into))?;
            key.show(&format!("rotated the key of {name}"))
        }
        UsersAction::Remove { name } => {
            people.remove(name)?;
            say::note(format!("removed {name}"));
            Ok(())
        }
        UsersAction::Limit { name, calls: limit } => {
            people.limit(name, calls(*limit))?;
            say::note(match limit {
                Limit::Calls(calls) => format!("{name} may call {calls} times an hour; Kong takes up to 5 s to know"),
                Limit::Default => format!("{name} has the limit of all users"),
            });
            Ok(())
        }
        UsersAction::Capture { name, what } => {
            let capture = match what {
                CaptureWord::Full => Some(Capture::Full),
                CaptureWord::Metadata => Some(Capture::Metadata),
                CaptureWord::Default => None,
            };
            people.capture(name, capture)?;
            say::note(match capture {
                Some(capture) => format!("of {name} is logged: {}; Kong takes up to 5 s to know", capture.text()),
                None => format!("of {name} is logged what is logged of all users"),
            });
            Ok(())
        }
        UsersAction::Team { name, team } => {
            let team = Some(team.as_str()).filter(|team| *team != "none");
            team.map_or(Ok(()), people::check_team)?;
            people.team(name, team)?;
            say::note(match team {
                Some(team) => format!("{name} is in the team {team}"),
                None => format!("{name} is in no team"),
            });
            Ok(())
        }
        UsersAction::Weight { name, weight } => {
            let weight = match weight {
                Weight::Own(weight) => Some(*weight),
                Weight::Default => None,
            };
            people.weight(name, weight)?;
            say::note(match weight {
                Some(weight) => format!("the share of {name} has the weight {weight}; Kong takes up to 5 s to know"),
                None => format!("the share of {name} has the weight of the team, else 1"),
            });
            Ok(())
        }
        UsersAction::Expire { name, when } => {
            let seconds = match when {
                End::After(seconds) => Some(*seconds),
                End::Never => None,
            };
            people.expire(name, seconds)?;
            say::note(match seconds {
                Some(seconds) => format!("the keys of {name} work until {}", list::until(seconds)),
                None => format!("the keys of {name} work until they are taken away"),
            });
            Ok(())
        }
        UsersAction::Import { file, keys } => import::run(&mut people, file, keys.as_deref()),
        UsersAction::List { json, database, metadata_consumers } => list::run(&people, *json, database, metadata_consumers),
    }
}

fn calls(limit: Limit) -> Option<u32> {
    match limit {
        Limit::Calls(calls) => Some(calls),
        Limit::Default => None,
    }
}

/// Whom the command is about.
fn named(action: &UsersAction) -> Option<&str> {
    match action {
        UsersAction::Add { name, .. }
        | UsersAction::Rotate { name, .. }
        | UsersAction::Remove { name }
        | UsersAction::Limit { name, .. }
        | UsersAction::Team { name, .. }
        | UsersAction::Weight { name, .. }
        | UsersAction::Expire { name, .. }
        | UsersAction::Capture { name, .. } => Some(name),
        UsersAction::Import { .. } | UsersAction::List { .. } => None,
    }
}

/// A key, and whether it was made here.
struct Key {
    text: String,
    is_new: bool,
}

impl Key {
    fn choose(given: &KeyArg) -> Outcome<Self> {
        let text = match given.key.as_deref() {
            None => return Ok(Self { text: people::new_key()?, is_new: true }),
            Some("-") => say::first_line()?,
            Some(key) => key.to_owned(),
        };
        if people::check_key(&text)? {
            say::note("warning: this key is short enough to be guessed; rotate it when you can");
        }
        Ok(Self { text, is_new: false })
    }

    fn show(&self, done: &str) -> Outcome<()> {
        if !self.is_new {
            say::note(format!("{done}, with the key given"));
            return Ok(());
        }
        say::note(format!("{done}; this is the only time the key is shown:"));
        say::line(&self.text)
    }
}
