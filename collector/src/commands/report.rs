//! `report`: usage and cost for people, spreadsheets and programs.
//!
//! Answers from what was counted when rows were inserted, so it stays right when content or rows are gone, and says the same as the
//! dashboards. Times are whole hours. Names come from outside: what a terminal or a spreadsheet would obey is made harmless.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use chrono::Utc;
use clap::ValueEnum;
use log::warn;
use serde_json::{Value, json};

use super::{moment, table};
use crate::commands;
use crate::config::{Dimension, ReportFormat, ReportSettings};
use crate::store::usage::{self, Answer, Hours, Moment, Question, Usage};

/// Decimals of an amount of money in the table: a call of a thousand tokens costs about a thousandth.
const DECIMALS: usize = 4;

/// Asks the database; returns what to print.
pub async fn run(settings: &ReportSettings) -> Result<String> {
    const OLD: &str = "cannot read the usage (a database that an older collector made needs `llm-collector migrate`)";
    let (since, until) = moments(settings)?;
    let zone = settings.utc_offset.as_deref().map(moment::offset).transpose()?.map(zone);
    let database = commands::database(&settings.database).await?;
    let connection = database.connection().await?;
    let hours = usage::hours(&connection, zone.as_deref(), since, until).await.context(OLD)?;
    let question = Question {
        by: &settings.by,
        hours: &hours,
        team: settings.team.as_deref(),
        consumer: settings.consumer.as_deref(),
        model: settings.model.as_deref(),
        has_conversations: settings.conversations,
    };
    let answer = usage::ask(connection, &question).await.context(OLD)?;
    match settings.format {
        ReportFormat::Table if answer.rows.is_empty() => Ok(format!("no calls from {}\n", range(&hours))),
        ReportFormat::Table => Ok(text(&answer, &settings.by, &hours)),
        ReportFormat::Csv => {
            if answer.rows.is_empty() {
                warn!("no calls from {}", range(&hours));
            }
            csv(&answer, &settings.by)
        }
        ReportFormat::Json => json(&answer, &settings.by, &hours),
    }
}

/// What the settings say about time.
fn moments(settings: &ReportSettings) -> Result<(Moment, Moment)> {
    if let Some(month) = &settings.month {
        return moment::month(month);
    }
    let now = Utc::now();
    let until = settings.until.as_deref().map_or(Ok(Moment::At(now)), |until| moment::read(until, now))?;
    Ok((moment::read(&settings.since, now)?, until))
}

/// A time zone of whole hours as PostgreSQL reads it: its name, and hours behind UTC.
fn zone(ahead: i64) -> String {
    match ahead {
        0 => "UTC".to_owned(),
        _ => format!("<UTC{ahead:+03}:00>{:+03}", -ahead),
    }
}

/// The clock as people call it.
fn clock(hours: &Hours) -> &str {
    hours.zone.strip_prefix('<').and_then(|rest| rest.split_once('>')).map_or(&hours.zone, |(name, _)| name)
}

/// For a person.
fn range(hours: &Hours) -> String {
    let [since, until] = &hours.texts;
    format!("{since} to {until} {}, in whole hours", clock(hours))
}

/// The name of a dimension, as on the command line.
fn name(dimension: Dimension) -> String {
    dimension.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

const PERCENTILES: [&str; 3] = ["latency_p50_ms", "latency_p95_ms", "latency_p99_ms"];

/// The percentiles with their names.
fn percentiles(usage: &Usage) -> impl Iterator<Item = (&'static str, Option<i32>)> {
    let values = usage.latency_percentiles_ms.map_or([None; 3], |values| values.map(Some));
    PERCENTILES.into_iter().zip(values)
}

/// Headings of tokens that were estimated.
const ESTIMATES: [&str; 2] = ["est. prompt", "est. completion"];

/// Headings of what was waited.
const WAITS: [&str; 2] = ["waited", "waited ms"];

/// Heading and name of conversations.
const CONVERSATIONS: &str = "conversations";

fn text(answer: &Answer, by: &[Dimension], hours: &Hours) -> String {
    let numbers = ["calls", "errors", "prompt", "cached", "completion", "reasoning", "cost", "p50 ms", "p95 ms", "p99 ms"];
    let heading = by.iter().copied().map(name).chain(numbers.map(str::to_owned));
    // What is estimated matters where there is some.
    let has_estimates = answer.total.estimated().iter().any(|(_, count)| *count != 0);
    // Where no call waits, nobody needs to read of it.
    let has_waits = answer.total.waited_calls != 0;
    let besides = [(has_estimates, ESTIMATES), (has_waits, WAITS)].into_iter().filter(|(is_there, _)| *is_there);
    let heading = heading.chain(besides.flat_map(|(_, names)| names.map(str::to_owned)));
    let heading = heading.chain(answer.total.conversations.map(|_| CONVERSATIONS.to_owned())).collect();
    let row = |keys: &[String], usage: &Usage| -> Vec<String> {
        let keys = keys.iter().map(|key| if key.is_empty() { "-".to_owned() } else { table::visible(key).into_owned() });
        let counts = usage.counts().map(|(_, count)| count.to_string());
        let estimates = has_estimates.then(|| usage.estimated().map(|(_, count)| count.to_string())).into_iter().flatten();
        let percentiles = percentiles(usage).map(|(_, value)| value.map_or_else(|| "-".to_owned(), |value| value.to_string()));
        let waits = has_waits.then(|| usage.waits().map(|(_, count)| count.to_string())).into_iter().flatten();
        let conversations = usage.conversations.map(|count| count.to_string());
        keys.chain(counts)
            .chain([cost_text(usage)])
            .chain(percentiles)
            .chain(estimates)
            .chain(waits)
            .chain(conversations)
            .collect()
    };
    let mut rows: Vec<Vec<String>> = vec![heading];
    rows.extend(answer.rows.iter().map(|(keys, usage)| row(keys, usage)));
    let mut total = row(&vec![" ".to_owned(); by.len()], &answer.total);
    if let Some(first) = total.first_mut() {
        "total".clone_into(first);
    }
    rows.push(total);
    format!("{}\n\n{}", range(hours), table::aligned(&rows, by.len()))
}

fn cost_text(usage: &Usage) -> String {
    let amounts = usage.costs.iter().map(|(currency, amount)| match amount.parse::<f64>() {
        Ok(value) => format!("{value:.DECIMALS$} {currency}"),
        Err(_) => format!("{amount} {currency}"),
    });
    let amounts: Vec<String> = amounts.collect();
    if amounts.is_empty() { "0".to_owned() } else { amounts.join(" + ") }
}

/// Without a total, which a spreadsheet would add up once more. A column of cost for each currency that occurs.
fn csv(answer: &Answer, by: &[Dimension]) -> Result<String> {
    let currencies: BTreeSet<&str> = answer.total.costs.iter().map(|(currency, _)| currency.as_str()).collect();
    let mut writer = csv::Writer::from_writer(Vec::new());
    let count_names = Usage::default().counts().map(|(name, _)| name.to_owned());
    let cost_names: Vec<String> = match currencies.len() {
        0 => vec!["cost".to_owned()],
        _ => currencies.iter().map(|currency| format!("cost_{currency}")).collect(),
    };
    let heading = by.iter().copied().map(name).chain(count_names).chain(cost_names);
    let estimated_names = Usage::default().estimated().map(|(name, _)| name.to_owned());
    let wait_names = Usage::default().waits().map(|(name, _)| name.to_owned());
    let conversations = answer.total.conversations.map(|_| CONVERSATIONS.to_owned());
    writer.write_record(
        heading.chain(PERCENTILES.map(str::to_owned)).chain(estimated_names).chain(wait_names).chain(conversations),
    )?;
    for (keys, usage) in &answer.rows {
        let amount = |currency: &str| usage.costs.iter().find(|(name, _)| name == currency).map(|(_, amount)| amount.clone());
        let mut costs: Vec<String> =
            currencies.iter().map(|currency| amount(currency).unwrap_or_else(|| "0".to_owned())).collect();
        if costs.is_empty() {
            costs.push("0".to_owned());
        }
        let keys = keys.iter().map(|key| cell(key));
        let counts = usage.counts().map(|(_, count)| count.to_string());
        let percentiles = percentiles(usage).map(|(_, value)| value.map_or_else(String::new, |value| value.to_string()));
        let estimated = usage.estimated().map(|(_, count)| count.to_string());
        let waits = usage.waits().map(|(_, count)| count.to_string());
        let conversations = usage.conversations.map(|count| count.to_string());
        writer.write_record(
            keys.chain(counts).chain(costs).chain(percentiles).chain(estimated).chain(waits).chain(conversations),
        )?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// A name as a cell. Line breaks stay, quoted; what a spreadsheet would take for a formula gets an apostrophe in front.
fn cell(name: &str) -> String {
    let lines: Vec<_> = name.split('\n').map(table::visible).collect();
    let formula = if name.starts_with(['=', '+', '-', '@']) { "'" } else { "" };
    format!("{formula}{}", lines.join("\n"))
}

fn json(answer: &Answer, by: &[Dimension], hours: &Hours) -> Result<String> {
    let object = |keys: &[String], usage: &Usage| -> Value {
        let keys = by.iter().copied().map(name).zip(keys.iter().map(|key| json!(key)));
        let percentiles = percentiles(usage).map(|(name, value)| (name.to_owned(), json!(value)));
        let waits = usage.waits().map(|(name, count)| (name.to_owned(), json!(count)));
        let conversations = usage.conversations.map(|count| (CONVERSATIONS.to_owned(), json!(count)));
        Value::Object(keys.chain(usage.json()).chain(percentiles).chain(waits).chain(conversations).collect())
    };
    let report = json!({
        "since": hours.since.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "until": hours.until.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "clock": clock(hours),
        "rows": answer.rows.iter().map(|(keys, usage)| object(keys, usage)).collect::<Vec<_>>(),
        "total": object(&[], &answer.total),
    });
    Ok(table::visible_json(&serde_json::to_string_pretty(&report)?) + "\n")
}
