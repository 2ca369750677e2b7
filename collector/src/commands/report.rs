//! `report`: usage and cost for people, spreadsheets and programs.
//!
//! Answers from what was counted when rows were inserted, so it stays right when content or rows are gone, and says the same as the
//! dashboards. Times are whole hours. Names come from outside: what a terminal or a spreadsheet would obey is made harmless.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use clap::ValueEnum;
use log::warn;
use serde_json::{Map, Value, json};

use super::{moment, table};
use crate::commands;
use crate::config::{Dimension, ReportFormat, ReportSettings};
use crate::store::usage::{self, Answer, Question, Usage};

/// Decimals of an amount of money in the table: a call of a thousand tokens costs about a thousandth.
const DECIMALS: usize = 4;

/// The whole hours that a report is about.
struct Range {
    since: DateTime<Utc>,
    until: DateTime<Utc>,
    offset: TimeDelta,
}

/// Asks the database; returns what to print.
pub async fn run(settings: &ReportSettings) -> Result<String> {
    let range = Range::of(settings, Utc::now())?;
    let question = Question {
        by: &settings.by,
        since: range.since,
        until: range.until,
        offset_hours: i32::try_from(range.offset.num_hours())?,
        consumer: settings.consumer.as_deref(),
        model: settings.model.as_deref(),
    };
    let database = commands::database(&settings.database)?;
    let answer = usage::ask(database.connection().await?, &question).await;
    let answer =
        answer.context("cannot read the usage (a database that an older collector made needs `llm-collector migrate`)")?;
    match settings.format {
        ReportFormat::Table if answer.rows.is_empty() => Ok(format!("no calls from {}\n", range.text())),
        ReportFormat::Table => Ok(text(&answer, &settings.by, &range)),
        ReportFormat::Csv => {
            if answer.rows.is_empty() {
                warn!("no calls from {}", range.text());
            }
            csv(&answer, &settings.by)
        }
        ReportFormat::Json => json(&answer, &settings.by, &range),
    }
}

impl Range {
    fn of(settings: &ReportSettings, now: DateTime<Utc>) -> Result<Self> {
        let offset = moment::offset(&settings.utc_offset)?;
        if let Some(month) = &settings.month {
            let (since, until) = moment::month(month, offset)?;
            return Ok(Self { since, until, offset });
        }
        let until = match &settings.until {
            Some(until) => moment::hour_after(until, offset, now)?,
            None => moment::end_of_hour(now)?,
        };
        Ok(Self { since: moment::hour(&settings.since, offset, now)?, until, offset })
    }

    /// For a person, on the clock asked for.
    fn text(&self) -> String {
        let local = |moment: DateTime<Utc>| (moment.naive_utc() + self.offset).format("%Y-%m-%d %H:%M").to_string();
        format!("{} to {} {}, in whole hours", local(self.since), local(self.until), self.clock())
    }

    fn clock(&self) -> String {
        match self.offset.num_hours() {
            0 => "UTC".to_owned(),
            hours => format!("UTC{hours:+03}:00"),
        }
    }
}

/// The name of a dimension, as on the command line.
fn name(dimension: Dimension) -> String {
    dimension.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn counts(usage: &Usage) -> [(&'static str, i64); 6] {
    [
        ("calls", usage.calls),
        ("errors", usage.errors),
        ("prompt_tokens", usage.prompt_tokens),
        ("cached_tokens", usage.cached_tokens),
        ("completion_tokens", usage.completion_tokens),
        ("reasoning_tokens", usage.reasoning_tokens),
    ]
}

const PERCENTILES: [&str; 3] = ["latency_p50_ms", "latency_p95_ms", "latency_p99_ms"];

/// The percentiles with their names.
fn percentiles(usage: &Usage) -> impl Iterator<Item = (&'static str, Option<i32>)> {
    let values = usage.latency_percentiles_ms.map_or([None; 3], |values| values.map(Some));
    PERCENTILES.into_iter().zip(values)
}

fn text(answer: &Answer, by: &[Dimension], range: &Range) -> String {
    let numbers = ["calls", "errors", "prompt", "cached", "completion", "reasoning", "cost", "p50 ms", "p95 ms", "p99 ms"];
    let heading = by.iter().copied().map(name).chain(numbers.map(str::to_owned)).collect();
    let row = |keys: &[String], usage: &Usage| -> Vec<String> {
        let keys = keys.iter().map(|key| table::visible(key).into_owned());
        let counts = counts(usage).map(|(_, count)| count.to_string());
        let percentiles = percentiles(usage).map(|(_, value)| value.map_or_else(|| "-".to_owned(), |value| value.to_string()));
        keys.chain(counts).chain([cost_text(usage)]).chain(percentiles).collect()
    };
    let mut total_keys = vec![String::new(); by.len()];
    if let Some(first) = total_keys.first_mut() {
        "total".clone_into(first);
    }
    let mut rows: Vec<Vec<String>> = vec![heading];
    rows.extend(answer.rows.iter().map(|(keys, usage)| row(keys, usage)));
    rows.push(row(&total_keys, &answer.total));
    format!("{}\n\n{}", range.text(), table::aligned(&rows, by.len()))
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
    let count_names = counts(&Usage::default()).map(|(name, _)| name.to_owned());
    let cost_names: Vec<String> = match currencies.len() {
        0 => vec!["cost".to_owned()],
        _ => currencies.iter().map(|currency| format!("cost_{currency}")).collect(),
    };
    let heading = by.iter().copied().map(name).chain(count_names).chain(cost_names);
    writer.write_record(heading.chain(PERCENTILES.map(str::to_owned)))?;
    for (keys, usage) in &answer.rows {
        let amount = |currency: &str| usage.costs.iter().find(|(name, _)| name == currency).map(|(_, amount)| amount.clone());
        let mut costs: Vec<String> =
            currencies.iter().map(|currency| amount(currency).unwrap_or_else(|| "0".to_owned())).collect();
        if costs.is_empty() {
            costs.push("0".to_owned());
        }
        let keys = keys.iter().map(|key| cell(key));
        let counts = counts(usage).map(|(_, count)| count.to_string());
        let percentiles = percentiles(usage).map(|(_, value)| value.map_or_else(String::new, |value| value.to_string()));
        writer.write_record(keys.chain(counts).chain(costs).chain(percentiles))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// A name as a cell. Line breaks stay, quoted; what a spreadsheet would take for a formula gets an apostrophe in front.
fn cell(name: &str) -> String {
    let lines: Vec<_> = name.split('\n').map(table::visible).collect();
    let formula = if name.starts_with(['=', '+', '-', '@']) { "'" } else { "" };
    format!("{formula}{}", lines.join("\n"))
}

fn json(answer: &Answer, by: &[Dimension], range: &Range) -> Result<String> {
    let object = |keys: &[String], usage: &Usage| -> Value {
        let keys = by.iter().copied().map(name).zip(keys.iter().map(|key| json!(key)));
        let counts = counts(usage).map(|(name, count)| (name.to_owned(), json!(count)));
        let cost: Map<String, Value> = usage.costs.iter().map(|(currency, amount)| (currency.clone(), number(amount))).collect();
        let percentiles = percentiles(usage).map(|(name, value)| (name.to_owned(), json!(value)));
        Value::Object(keys.chain(counts).chain([("cost".to_owned(), Value::Object(cost))]).chain(percentiles).collect())
    };
    let report = json!({
        "since": range.since.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "until": range.until.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "clock": range.clock(),
        "rows": answer.rows.iter().map(|(keys, usage)| object(keys, usage)).collect::<Vec<_>>(),
        "total": object(&[], &answer.total),
    });
    Ok(table::visible_json(&serde_json::to_string_pretty(&report)?) + "\n")
}

fn number(amount: &str) -> Value {
    amount.parse::<f64>().map_or_else(|_| json!(amount), |value| json!(value))
}
