//! What people are shown of their own usage: as JSON, and as a page. No I/O.

mod chart;
mod html;
mod words;

use std::sync::Arc;

use chrono::SecondsFormat;
use serde_json::{Map, Value, json};

pub use html::{Notice, POLICY, numbers, page};
pub use words::Words;

use crate::store::own_usage::{OwnCall, OwnUsage};
use crate::store::quotas::Used;
use crate::store::usage::Usage;

/// What somebody is shown.
#[derive(Debug, Clone)]
pub struct Own {
    /// What PostgreSQL knows, a moment ago.
    pub usage: Arc<OwnUsage>,
    /// How many of his calls wait for a place now; `None` where calls do not wait.
    pub waiting: Option<u64>,
}

/// `GET /v1/usage`. The contract is in `docs/usage.md`.
pub fn json(Own { usage: own, waiting }: &Own) -> Value {
    let with = |members: Value, usage: &Usage| {
        let Value::Object(mut members) = members else { return Value::Null };
        members.append(&mut usage.json());
        Value::Object(members)
    };
    let models = |models: &[(Option<String>, Usage)]| -> Vec<Value> {
        models.iter().map(|(model, usage)| with(json!({ "model": model }), usage)).collect()
    };
    let days = own.by_day.iter().map(|day| {
        let date = day.date.format("%Y-%m-%d").to_string();
        with(json!({ "date": date, "models": models(&day.models) }), &day.total)
    });
    json!({
        "v": 1,
        "consumer": own.consumer,
        "zone": own.zone,
        "read_at": own.read_at.to_rfc3339_opts(SecondsFormat::Secs, true),
        "today": with(json!({ "date": own.local.format("%Y-%m-%d").to_string() }), &own.today),
        "month": with(json!({ "month": own.local.format("%Y-%m").to_string() }), &own.month),
        "last_30_days": with(json!({ "models": models(&own.models) }), &own.days),
        "days": days.collect::<Vec<_>>(),
        "waiting_calls": waiting,
        "limits": own.limits.iter().map(limit).collect::<Vec<_>>(),
        "calls": own.calls.iter().map(call).collect::<Vec<_>>(),
    })
}

fn limit(limit: &Used) -> Value {
    let quota = &limit.quota;
    json!({
        "for": quota.kind,
        "team": (quota.kind == "team").then_some(&quota.name),
        "models": quota.models,
        "unit": quota.unit,
        "currency": quota.currency,
        "per": quota.per,
        "mode": quota.mode,
        "amount": number(&quota.amount),
        "used": number(&limit.used),
        "left": number(&limit.left),
        "resets_at": limit.ends_at.to_rfc3339_opts(SecondsFormat::Secs, true),
    })
}

fn call(call: &OwnCall) -> Value {
    let members = [
        ("started_at", json!(call.started_at.to_rfc3339_opts(SecondsFormat::Millis, true))),
        ("model", json!(call.model)),
        ("status", json!(call.status)),
        ("prompt_tokens", json!(call.prompt_tokens)),
        ("completion_tokens", json!(call.completion_tokens)),
        ("latency_ms", json!(call.latency_ms)),
    ];
    Value::Object(Map::from_iter(members.map(|(name, value)| (name.to_owned(), value))))
}

/// Decimal text, as PostgreSQL writes numbers, as a number of JSON.
pub fn number(text: &str) -> Value {
    serde_json::from_str(text).map_or(Value::Null, Value::Number)
}

/// Decimal text with its thousands apart: 1,234,567.5, as both languages have it.
pub fn grouped(number: &str) -> String {
    let (whole, fraction) = number.split_once('.').map_or((number, None), |(whole, fraction)| (whole, Some(fraction)));
    let mut out = String::with_capacity(number.len() * 2);
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && digit != '-' && (whole.len() - at) % 3 == 0 && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    fraction.map_or(out.clone(), |fraction| format!("{out}.{fraction}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_easy_to_read() {
        for (number, expected) in
            [("0", "0"), ("999", "999"), ("1000", "1,000"), ("1234567.5", "1,234,567.5"), ("-123456", "-123,456")]
        {
            assert_eq!(grouped(number), expected);
        }
    }
}
