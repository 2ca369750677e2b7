//! `quota set`, `list`, `remove`, `status`, `webhook-test`.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use chrono::Utc;
use serde_json::{Value, json};

use super::table;
use crate::commands;
use crate::config::{AmountArgs, Mode, OfArgs, QuotaAction, QuotaSettings, WebhookArgs, WhenOver};
use crate::counted::counted;
use crate::kong::people;
use crate::notices;
use crate::page::{grouped, number};
use crate::store::quotas::{self, Key, MAX_QUOTAS, Quota, Used};
use crate::webhook;

/// Rows of `status` for a terminal, and for a program.
const MAX_LINES: i64 = 200;
const MAX_ROWS: i64 = 100_000;
/// Longest wait for a sum over two months of thousands of users.
const STATUS_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest pattern of models, in characters.
const MAX_PATTERN: usize = 200;

/// Carries out the action; returns what to print.
pub async fn run(settings: &QuotaSettings) -> Result<String> {
    let database = match &settings.action {
        QuotaAction::WebhookTest { webhook } => return webhook_test(webhook),
        _ => commands::database(&settings.database).await?,
    };
    match &settings.action {
        // Is over by now.
        QuotaAction::WebhookTest { .. } => Ok(String::new()),
        QuotaAction::Set { who, amount, currency, per, models, mode, when_over } => {
            let (kind, name) =
                whose(who)?.ok_or_else(|| anyhow!("whose limit is it: --user, --team, --each-user or --everybody?"))?;
            if models.is_empty() || models.contains(['\\', '\0']) || models.chars().count() > MAX_PATTERN {
                bail!("a pattern is the name of a model, without \\; % stands for any text");
            }
            let (unit, amount) = how_much(amount)?;
            if currency.is_some() && unit != "cost" {
                bail!("--currency is for --cost: {unit} have none");
            }
            let (currency, models) = (currency.clone().unwrap_or_default(), models.clone());
            let key = Key { kind, name: name.to_owned(), models, unit, currency, per: per.word() };
            let mode = over(mode.mode(), *when_over)?;
            match quotas::set(&database.connection().await?, &key, amount, mode.word()).await? {
                Some(quota) => Ok(format!("{}\nlimit {}, known to the gateway in a second or two\n", sentence(&quota), quota.id)),
                None => {
                    bail!("there are {MAX_QUOTAS} limits, which is all there can be: a limit with --each-user holds for everyone")
                }
            }
        }
        QuotaAction::List { json } => {
            let quotas = quotas::list(&database.connection().await?).await?;
            if *json {
                return lines(&quotas.iter().map(as_json).collect::<Vec<_>>());
            }
            if quotas.is_empty() {
                return Ok("no limits; `llm-collector quota set` sets one\n".to_owned());
            }
            let heading = ["limit", "who", "models", "mode", "amount"].map(str::to_owned).to_vec();
            let row = |quota: &Quota| {
                vec![quota.id.to_string(), who_of(quota), shown(&quota.models), quota.mode.clone(), how_much_of(quota)]
            };
            Ok(table::aligned(&std::iter::once(heading).chain(quotas.iter().map(row)).collect::<Vec<_>>(), 4))
        }
        QuotaAction::Remove { ids, who, unit, per, models } => {
            let connection = database.connection().await?;
            let mut removed = Vec::new();
            match whose(who)? {
                Some(_) if !ids.is_empty() => bail!("either numbers of limits, or whose"),
                Some((kind, name)) => {
                    let (unit, per) = (unit.map(|unit| unit.word()), per.map(|per| per.word()));
                    removed = quotas::remove_of(&connection, kind, name, models.as_deref(), unit, per).await?;
                }
                None if ids.is_empty() => {
                    bail!("which limits: numbers as `quota list` shows them, or --user, --team, --each-user, --everybody")
                }
                None => {
                    for id in ids {
                        removed.extend(quotas::remove(&connection, *id).await?);
                    }
                }
            }
            if removed.is_empty() {
                bail!("there is no such limit; `quota list` shows which there are");
            }
            Ok(removed.iter().map(|quota| format!("removed limit {}: {}\n", quota.id, sentence(quota))).collect())
        }
        QuotaAction::Status { user, team, json } => {
            user.as_deref().map_or(Ok(()), people::check_name)?;
            let connection = database.connection().await?.with_timeout(STATUS_TIMEOUT);
            let mut state = quotas::state(&connection, user.as_deref(), MAX_ROWS).await?;
            if let Some(team) = team {
                state.retain(|used| used.quota.kind == "everybody" || used.quota.kind == "team" && used.quota.name == *team);
            }
            if *json { lines(&state.iter().map(state_json).collect::<Vec<_>>()) } else { Ok(status(&state)) }
        }
    }
}

/// Posts a sample.
fn webhook_test(args: &WebhookArgs) -> Result<String> {
    let webhook = args.webhook()?.context("no webhook is set: QUOTA_WEBHOOK_URL says where it is")?;
    match webhook.post(&notices::sample(Utc::now())) {
        Ok(status) if webhook::is_taken(status) => Ok(format!("{} took the sample: status {status}\n", webhook.place())),
        Ok(status) => bail!("{} did not take the sample: status {status}", webhook.place()),
        Err(reason) => bail!("{} did not answer: {reason}", webhook.place()),
    }
}

/// Kind and name of who is meant, if somebody is.
fn whose(who: &OfArgs) -> Result<Option<(&'static str, &str)>> {
    Ok(match who {
        OfArgs { user: Some(name), .. } => {
            people::check_name(name)?;
            Some(("user", name))
        }
        OfArgs { team: Some(name), .. } => {
            people::check_team(name)?;
            Some(("team", name))
        }
        OfArgs { each_user: true, .. } => Some(("each_user", "")),
        OfArgs { everybody: true, .. } => Some(("everybody", "")),
        OfArgs { .. } => None,
    })
}

/// The mode with what becomes of calls over the limit.
fn over(mode: Mode, when_over: Option<WhenOver>) -> Result<Mode> {
    match (mode, when_over) {
        (mode, None) | (mode @ Mode::Soft, Some(WhenOver::Refuse)) => Ok(mode),
        (Mode::Soft | Mode::Wait, Some(WhenOver::Wait)) => Ok(Mode::Wait),
        (mode, Some(_)) => bail!("--when-over is for soft limits, this one is {}", mode.word()),
    }
}

fn how_much(amount: &AmountArgs) -> Result<(&'static str, &str)> {
    let (unit, amount) = match amount {
        AmountArgs { tokens: Some(amount), .. } => ("tokens", amount),
        AmountArgs { calls: Some(amount), .. } => ("calls", amount),
        AmountArgs { cost: Some(amount), .. } => return Ok(("cost", &amount.0)),
        AmountArgs { .. } => bail!("how much: --tokens, --calls or --cost?"),
    };
    if !amount.is_whole() {
        bail!("there is no part of one of the {unit}: {}", amount.0);
    }
    Ok((unit, &amount.0))
}

fn unit_of(quota: &Quota) -> &str {
    if quota.unit == "cost" { &quota.currency } else { &quota.unit }
}

fn how_much_of(quota: &Quota) -> String {
    let unit = unit_of(quota);
    // A currency is written the same for one as for many.
    let one = if quota.unit == "cost" { unit } else { unit.trim_end_matches('s') };
    format!("{} per {}", counted(grouped(&quota.amount), one, unit), quota.per)
}

fn shown(name: &str) -> String {
    table::visible(name).into_owned()
}

fn who_of(quota: &Quota) -> String {
    match quota.kind.as_str() {
        "user" => format!("user {}", shown(&quota.name)),
        "team" => format!("team {}", shown(&quota.name)),
        "each_user" if quota.name.is_empty() => "each user".to_owned(),
        "each_user" => format!("each user: {}", shown(&quota.name)),
        _ => "everybody together".to_owned(),
    }
}

fn sentence(quota: &Quota) -> String {
    let models = if quota.models == "%" { String::new() } else { format!(" of models {}", shown(&quota.models)) };
    format!("{}: {}{models}, {}", who_of(quota), how_much_of(quota), quota.mode)
}

fn status(state: &[Used]) -> String {
    if state.is_empty() {
        return "no limits hold, or nothing is used of any; `quota list` shows which there are\n".to_owned();
    }
    let heading = ["limit", "who", "models", "mode", "resets", "amount", "used", "left", "%"].map(str::to_owned).to_vec();
    let shown_lines = usize::try_from(MAX_LINES).unwrap_or(usize::MAX);
    let row = |used: &Used| {
        let quota = &used.quota;
        let (id, percent) = (quota.id.to_string(), format!("{:.1}", used.percent));
        let (amount, taken, left) = (how_much_of(quota), grouped(&used.used), grouped(&used.left));
        vec![id, who_of(quota), shown(&quota.models), quota.mode.clone(), used.resets.clone(), amount, taken, left, percent]
    };
    let rows: Vec<_> = std::iter::once(heading).chain(state.iter().take(shown_lines).map(row)).collect();
    let more = state.len().saturating_sub(shown_lines);
    let more = if more > 0 { format!("and {more} more, less used; --json tells all\n") } else { String::new() };
    table::aligned(&rows, 5) + &more
}

fn as_json(quota: &Quota) -> Value {
    let Quota { id, kind, name, models, unit, currency, per, amount, mode } = quota;
    json!({"id": id, "subject": kind, "name": name, "models": models, "unit": unit, "currency": currency, "per": per,
        "amount": number(amount), "mode": mode})
}

fn state_json(used: &Used) -> Value {
    let mut page = as_json(&used.quota);
    if let Some(members) = page.as_object_mut() {
        members.insert("used".to_owned(), number(&used.used));
        members.insert("left".to_owned(), number(&used.left));
        members.insert("percent".to_owned(), json!(used.percent));
        members.insert("starts_at".to_owned(), json!(used.starts_at.to_rfc3339()));
        members.insert("resets_at".to_owned(), json!(used.ends_at.to_rfc3339()));
        members.insert("resets".to_owned(), json!(used.resets));
    }
    page
}

fn lines(page: &[Value]) -> Result<String> {
    Ok(table::visible_json(&serde_json::to_string_pretty(page)?) + "\n")
}
