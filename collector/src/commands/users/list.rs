//! `users list`: who there is.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use unicode_width::UnicodeWidthStr;

use crate::commands::{database, say, table::visible};
use crate::config::DatabaseArgs;
use crate::kong::failure::{Failure, Outcome};
use crate::kong::people::{Class, Everybody, People, User};
use crate::store::usage;

type LastHours = HashMap<String, DateTime<Utc>>;

pub(super) fn run(people: &People, as_json: bool, database: &DatabaseArgs, dropped: &[String]) -> Outcome<()> {
    let dropped: Vec<String> = dropped.iter().map(|name| name.trim().to_owned()).collect();
    let everybody = people.everybody(&dropped)?;
    let hours = last_hours(database).unwrap_or_else(|error| {
        say::note(format!("warning: when they called last is not known: {error:#}"));
        None
    });
    if as_json { print_json(&everybody, hours.as_ref()) } else { print_table(&everybody, hours.as_ref()) }
}

/// The hour of everybody's last call; `None` where no database is given.
fn last_hours(args: &DatabaseArgs) -> anyhow::Result<Option<LastHours>> {
    if args.database_url.is_none() && args.database_url_file.is_none() {
        return Ok(None);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let hours = runtime.block_on(async {
        // A pool belongs to the runtime in which it is made.
        let database = database(args).await?;
        Ok::<_, anyhow::Error>(usage::last_hours(database.connection().await?).await?)
    })?;
    Ok(Some(hours.into_iter().collect()))
}

/// When something ends that does so after these seconds.
pub(super) fn until(seconds: u64) -> String {
    let end = i64::try_from(seconds).ok().and_then(TimeDelta::try_seconds).and_then(|left| Utc::now().checked_add_signed(left));
    end.map(|end| end.format("%Y-%m-%d %H:%M UTC").to_string()).unwrap_or_default()
}

fn print_json(everybody: &Everybody, hours: Option<&LastHours>) -> Outcome<()> {
    let users = everybody.users.iter().map(|user| {
        let at = |moment: DateTime<Utc>| moment.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        json!({
            "name": user.name,
            "keys": user.keys,
            "limit": user.limit,
            "capture": user.capture,
            "since": user.since.and_then(|seconds| DateTime::from_timestamp(seconds, 0)).map(at),
            "expires_in_seconds": user.expires_in,
            "team": user.team,
            "weight": user.weight,
            "class": user.class,
            "last_call_hour": hours.and_then(|hours| hours.get(&user.name)).copied().map(at),
        })
    });
    let users: Vec<_> = users.collect();
    let text = serde_json::to_string_pretty(&users).map_err(|error| Failure::new(error.to_string()))?;
    say::line(text)
}

fn print_table(everybody: &Everybody, hours: Option<&LastHours>) -> Outcome<()> {
    say::line(row(["NAME", "KEYS", "LIMIT", "CAPTURE", "SINCE", "EXPIRES", "LAST CALL", "WEIGHT", "CLASS", "TEAM"]))?;
    for user in &everybody.users {
        say::line(row_of(user, hours))?;
    }
    if everybody.default_capture.as_deref() == Some("metadata") {
        say::note("default: metadata (AUDIT_CAPTURE)");
    }
    Ok(())
}

fn row_of(user: &User, hours: Option<&LastHours>) -> String {
    let limit = user.limit.map_or_else(|| "default".to_owned(), |calls| calls.to_string());
    let since = user.since.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    let since = since.map(|at| at.format("%Y-%m-%d").to_string()).unwrap_or_default();
    let expires = user.expires_in.map(|seconds| until(seconds).chars().take(10).collect::<String>());
    let last =
        hours.map(|hours| hours.get(&user.name).map_or_else(|| "-".to_owned(), |at| at.format("%Y-%m-%d %Hh").to_string()));
    row([
        &visible(&user.name),
        &user.keys.to_string(),
        &limit,
        &user.capture,
        &since,
        &expires.unwrap_or_else(|| "never".to_owned()),
        &last.unwrap_or_default(),
        &user.weight.map(|weight| weight.to_string()).unwrap_or_default(),
        // Of most people it is the same: what is said is what differs.
        if user.class == Class::Interactive.text() { "" } else { user.class },
        &visible(user.team.as_deref().unwrap_or_default()),
    ])
}

fn row([name, keys, limit, capture, since, expires, last, weight, class, team]: [&str; 10]) -> String {
    const NAME_WIDTH: usize = 24;
    let padding = " ".repeat(NAME_WIDTH.saturating_sub(name.width()));
    let line = format!(
        "{name}{padding} {keys:>4} {limit:>8} {capture:<8}  {since:<10}  {expires:<10}  {last:<14}  {weight:>6}  {class:<5}  {team}"
    );
    line.trim_end().to_owned()
}
