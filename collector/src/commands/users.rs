//! `users`: the people who may call the model.

use std::io::BufRead;
use std::process::ExitCode;

use chrono::DateTime;
use unicode_width::UnicodeWidthStr;

use super::table::visible;
use super::{PROGRAM, say};
use crate::config::{CaptureWord, KeyArg, Limit, UsersAction, UsersCommand};
use crate::kong::admin::Admin;
use crate::kong::failure::{Failure, Outcome};
use crate::kong::people::{self, Capture, Everybody, People, User};

/// Longest line that is read as a key.
const LONGEST_LINE: u64 = 4096;

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
        UsersAction::Add { name, key } => {
            let key = Key::choose(key)?;
            people.add(name, &key.text)?;
            key.show(&format!("added {name}"))
        }
        UsersAction::Rotate { name, key } => {
            let key = Key::choose(key)?;
            people.rotate(name, &key.text)?;
            key.show(&format!("rotated the key of {name}"))
        }
        UsersAction::Remove { name } => {
            people.remove(name)?;
            say::note(format!("removed {name}"));
            Ok(())
        }
        UsersAction::Limit { name, calls: Limit::Calls(calls) } => {
            people.limit(name, Some(*calls))?;
            say::note(format!("{name} may call {calls} times an hour; Kong takes up to 5 s to know"));
            Ok(())
        }
        UsersAction::Limit { name, calls: Limit::Default } => {
            people.limit(name, None)?;
            say::note(format!("{name} has the limit of all users"));
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
        UsersAction::List { metadata_consumers } => {
            let dropped: Vec<String> = metadata_consumers.iter().map(|name| name.trim().to_owned()).collect();
            list(&people.everybody(&dropped)?)
        }
    }
}

/// Whom the command is about.
fn named(action: &UsersAction) -> Option<&str> {
    match action {
        UsersAction::Add { name, .. }
        | UsersAction::Rotate { name, .. }
        | UsersAction::Remove { name }
        | UsersAction::Limit { name, .. }
        | UsersAction::Capture { name, .. } => Some(name),
        UsersAction::List { .. } => None,
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
            Some("-") => {
                let mut line = String::new();
                let read = std::io::Read::take(std::io::stdin().lock(), LONGEST_LINE).read_line(&mut line);
                read.map_err(|_| Failure::new("standard input holds no key that can be read"))?;
                line.trim_end_matches('\n').trim_end_matches('\r').to_owned()
            }
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

fn list(everybody: &Everybody) -> Outcome<()> {
    say::line(row("NAME", "KEYS", "LIMIT", "CAPTURE", "SINCE"))?;
    for user in &everybody.users {
        say::line(row_of(user))?;
    }
    if everybody.default_capture.as_deref() == Some("metadata") {
        say::note("default: metadata (AUDIT_CAPTURE)");
    }
    Ok(())
}

fn row_of(user: &User) -> String {
    let limit = user.limit.map_or_else(|| "default".to_owned(), |calls| calls.to_string());
    let since = user.since.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    let since = since.map(|at| at.format("%Y-%m-%d").to_string()).unwrap_or_default();
    row(&visible(&user.name), &user.keys.to_string(), &limit, &user.capture, &since)
}

fn row(name: &str, keys: &str, limit: &str, capture: &str, since: &str) -> String {
    const NAME_WIDTH: usize = 24;
    let padding = " ".repeat(NAME_WIDTH.saturating_sub(name.width()));
    format!("{name}{padding} {keys:>4} {limit:>8} {capture:<8}  {since}")
}
