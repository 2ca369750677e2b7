//! The page: everything that a browser is sent, as text. It holds no resource of anybody else, and its policy allows none.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use askama::Template;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::Own;
use super::chart::{self, Bar, COLOURS};
use super::words::Words;
use crate::store::own_usage::{DAYS, OwnCall};
use crate::store::quotas::Used;
use crate::store::usage::Usage;

const STYLE: &str = include_str!("../../templates/usage.css");
const SCRIPT: &str = include_str!("../../templates/usage.js");

/// Content-Security-Policy of all of it: our one style and our one script, by their hashes, and nothing else. Not even the style of an
/// element: so what a model is called cannot change the page.
pub static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
});

/// What the page says besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Nothing.
    None,
    /// The key is wrong.
    Refused,
    /// The numbers cannot be read.
    Away,
}

#[derive(Template)]
#[template(path = "usage.html")]
struct Page<'p> {
    w: &'p Words,
    style: &'p str,
    script: &'p str,
    message: &'p str,
    view: Option<View>,
}

#[derive(Template)]
#[template(path = "numbers.html")]
struct Numbers<'p> {
    w: &'p Words,
    view: View,
}

/// The whole page, with the numbers of somebody or without.
pub fn page(words: &Words, notice: Notice, own: Option<&Own>) -> Result<String, askama::Error> {
    let message = match notice {
        Notice::None => "",
        Notice::Refused => words.refused,
        Notice::Away => words.away,
    };
    Page { w: words, style: STYLE, script: SCRIPT, message, view: own.map(|own| View::of(own, words)) }.render()
}

/// The numbers alone, for the script of a page that is there.
pub fn numbers(words: &Words, own: &Own) -> Result<String, askama::Error> {
    Numbers { w: words, view: View::of(own, words) }.render()
}

/// What the templates show, as texts.
struct View {
    consumer: String,
    clock: String,
    waiting: Option<u64>,
    cards: Vec<Card>,
    limits: Vec<LimitLine>,
    chart_wide: String,
    chart_narrow: String,
    legend: Vec<String>,
    models: Vec<Line>,
    days: Vec<Line>,
    calls: Vec<CallLine>,
}

struct Card {
    id: &'static str,
    title: &'static str,
    /// For whoever compares: without separators.
    sum: i64,
    tokens: String,
    prompt: String,
    completion: String,
    estimated: Option<String>,
    calls: String,
    errors: String,
    costs: Vec<String>,
}

struct LimitLine {
    name: String,
    used: String,
    amount: String,
    left: String,
    /// Whole percent, 100 at most.
    percent: u8,
    resets: String,
}

struct Line {
    name: String,
    calls: String,
    prompt: String,
    completion: String,
    cost: String,
}

struct CallLine {
    time: String,
    model: String,
    status: String,
    failed: bool,
    prompt: String,
    completion: String,
    duration: String,
}

impl View {
    fn of(Own { usage: own, waiting }: &Own, words: &Words) -> Self {
        let name = |model: &Option<String>| match model.as_deref() {
            None => words.others.to_owned(),
            Some("unknown") => words.unknown.to_owned(),
            Some(model) => visible(model),
        };
        // Each of the first models has a colour, all others share the last one.
        let named = COLOURS.len() - 1;
        let colours: BTreeMap<&str, usize> = own
            .models
            .iter()
            .filter_map(|(model, _)| model.as_deref())
            .take(named)
            .enumerate()
            .map(|(at, it)| (it, at))
            .collect();
        let bars: Vec<Bar> = (0..i64::from(DAYS))
            .rev()
            .filter_map(|ago| own.local.date().checked_sub_signed(chrono::Duration::days(ago)))
            .map(|date| {
                let mut parts = [0; COLOURS.len()];
                for (model, usage) in own.by_day.iter().filter(|day| day.date == date).flat_map(|day| &day.models) {
                    let colour = model.as_deref().and_then(|model| colours.get(model).copied()).unwrap_or(named);
                    if let Some(part) = parts.get_mut(colour) {
                        *part += tokens(usage) + estimated(usage);
                    }
                }
                Bar { label: date.format("%m-%d").to_string(), parts }
            })
            .collect();
        let mut legend: Vec<String> = own.models.iter().take(named).map(|(model, _)| name(model)).collect();
        if own.models.len() > named {
            legend.push(words.others.to_owned());
        }
        // Without a picture the tables have all of it.
        let draw = |width, height| chart::draw(&bars, width, height).unwrap_or_default();
        Self {
            consumer: visible(&own.consumer),
            clock: format!("{} ({})", own.local.format("%Y-%m-%d %H:%M"), own.zone),
            waiting: *waiting,
            cards: vec![
                card("today", words.today, &own.today),
                card("month", words.month, &own.month),
                card("days30", words.thirty_days, &own.days),
            ],
            limits: own.limits.iter().map(|limit| limit_line(limit, words)).collect(),
            chart_wide: draw(880, 260),
            chart_narrow: draw(340, 220),
            legend,
            models: own.models.iter().map(|(model, usage)| line(name(model), usage)).collect(),
            days: own.by_day.iter().rev().map(|day| line(day.date.format("%Y-%m-%d").to_string(), &day.total)).collect(),
            calls: own
                .calls
                .iter()
                .map(|call| call_line(call, name(&call.model.clone().or_else(|| Some("unknown".to_owned())))))
                .collect(),
        }
    }
}

fn tokens(usage: &Usage) -> i64 {
    usage.prompt_tokens + usage.completion_tokens
}

fn estimated(usage: &Usage) -> i64 {
    usage.estimated_prompt_tokens + usage.estimated_completion_tokens
}

fn card(id: &'static str, title: &'static str, usage: &Usage) -> Card {
    let estimate = estimated(usage);
    Card {
        id,
        title,
        sum: tokens(usage),
        tokens: grouped(tokens(usage)),
        prompt: grouped(usage.prompt_tokens),
        completion: grouped(usage.completion_tokens),
        estimated: (estimate > 0).then(|| grouped(estimate)),
        calls: grouped(usage.calls),
        errors: grouped(usage.errors),
        costs: usage.costs.iter().map(|(currency, amount)| money(currency, amount)).collect(),
    }
}

fn limit_line(limit: &Used, words: &Words) -> LimitLine {
    let quota = &limit.quota;
    let amount = |text: &str| {
        if quota.unit == "cost" {
            return money(&quota.currency, text);
        }
        super::grouped(text)
    };
    let unit = match quota.unit.as_str() {
        "tokens" => words.tokens,
        "calls" => words.all_calls,
        _ => words.cost,
    };
    let per = match quota.per.as_str() {
        "hour" => words.an_hour,
        "day" => words.a_day,
        "week" => words.a_week,
        _ => words.a_month,
    };
    let models = if quota.models == "%" { String::new() } else { format!(", {}", visible(&quota.models)) };
    let shared = match quota.kind.as_str() {
        "everybody" => format!(", {}", words.everybody),
        "team" => format!(", {} {}", words.team, quota.name),
        _ => String::new(),
    };
    LimitLine {
        name: format!("{unit} {per}{models}{shared}"),
        used: amount(&limit.used),
        amount: amount(&quota.amount),
        left: amount(&limit.left),
        percent: (0..=100).rev().find(|percent| f64::from(*percent) <= limit.percent).unwrap_or(0),
        resets: limit.resets.split(' ').take(2).collect::<Vec<_>>().join(" "),
    }
}

fn line(name: String, usage: &Usage) -> Line {
    let costs: Vec<String> = usage.costs.iter().map(|(currency, amount)| money(currency, amount)).collect();
    Line {
        name,
        calls: grouped(usage.calls),
        prompt: grouped(usage.prompt_tokens),
        completion: grouped(usage.completion_tokens),
        cost: if costs.is_empty() { "–".to_owned() } else { costs.join(" + ") },
    }
}

fn call_line(call: &OwnCall, model: String) -> CallLine {
    let number = |value: Option<i32>| value.map_or_else(|| "–".to_owned(), |value| grouped(value.into()));
    CallLine {
        time: call.local.format("%m-%d %H:%M:%S").to_string(),
        model,
        status: call.status.map_or_else(|| "–".to_owned(), |status| status.to_string()),
        failed: call.status.is_none_or(|status| status >= 400),
        prompt: number(call.prompt_tokens),
        completion: number(call.completion_tokens),
        duration: call.latency_ms.map_or_else(|| "–".to_owned(), |ms| format!("{:.1} s", f64::from(ms) / 1000.0)),
    }
}

fn grouped(number: i64) -> String {
    super::grouped(&number.to_string())
}

/// Four decimals, as `report` has them: a call of a thousand tokens costs about a thousandth.
fn money(currency: &str, amount: &str) -> String {
    match amount.parse::<f64>() {
        Ok(value) => format!("{value:.4} {currency}"),
        Err(_) => format!("{amount} {currency}"),
    }
}

/// A name from outside, cut, without what turns the direction of a text around or cannot be seen.
fn visible(name: &str) -> String {
    const MOST: usize = 80;
    let is_hidden = |c: char| {
        c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let mut text: String = name.chars().take(MOST).map(|c| if is_hidden(c) { '\u{fffd}' } else { c }).collect();
    if name.chars().nth(MOST).is_some() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use chrono::NaiveDate;

    use std::sync::Arc;

    use super::*;
    use crate::store::own_usage::{Day, OwnUsage};

    fn own(model: &str) -> Own {
        let usage = Usage { calls: 2, prompt_tokens: 1_234_000, completion_tokens: 567, errors: 1, ..Usage::default() };
        let date = NaiveDate::from_ymd_opt(2026, 11, 27).unwrap();
        let models = vec![(Some(model.to_owned()), usage.clone()), (None, Usage::default())];
        let usage = OwnUsage {
            consumer: format!("{model}\u{202e}x"),
            zone: "UTC".to_owned(),
            local: date.and_hms_opt(9, 5, 0).unwrap(),
            today: usage.clone(),
            days: usage.clone(),
            models: models.clone(),
            by_day: vec![Day { date, total: usage, models }],
            ..OwnUsage::default()
        };
        Own { usage: Arc::new(usage), waiting: None }
    }

    #[test]
    fn calls_that_wait_are_shown_where_calls_wait() {
        let words = Words::for_reader("");
        let with = |waiting| numbers(words, &Own { waiting, ..own("m") }).unwrap();
        assert!(with(Some(0)).contains(r#"<strong id="waiting">0</strong>"#));
        assert!(with(Some(12)).contains(r#"<strong id="waiting">12</strong>"#));
        assert!(!with(None).contains("waiting"));
    }

    #[test]
    fn a_name_is_text_whatever_it_is() {
        let words = Words::for_reader("");
        let html = page(words, Notice::None, Some(&own("</td><script>alert(1)</script>\"'"))).unwrap();
        assert_eq!(html.matches("<script").count(), 1, "{html}");
        assert!(!html.contains('\u{202e}') && html.contains("1,234,567") && html.contains("data-tokens=\"1234567\""));
        let numbers = numbers(words, &own("<b>")).unwrap();
        assert!(numbers.contains("&#60;b&#62;") && !numbers.contains("<b>") && !numbers.contains("<script"));
    }

    #[test]
    fn style_and_script_stand_in_the_page_as_the_policy_has_them() {
        let html = page(Words::for_reader("zh"), Notice::Refused, None).unwrap();
        for (tag, policy) in [("style", "style-src 'sha256-"), ("script", "script-src 'sha256-")] {
            let inside = html.split(&format!("<{tag}>")).nth(1).unwrap().split(&format!("</{tag}>")).next().unwrap();
            let hash = POLICY.split(policy).nth(1).unwrap().split('\'').next().unwrap();
            assert_eq!(BASE64_STANDARD.encode(Sha256::digest(inside)), hash);
        }
        assert!(html.contains("密钥无效") && html.contains("lang=\"zh-CN\""));
        for forbidden in ["http:", "https:", "style=", "onclick=", "//www"] {
            let found = html.replace("http://www.w3.org/2000/svg", "").contains(forbidden);
            assert!(!found, "{forbidden}");
        }
    }

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567"), (-1_000, "-1,000")] {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(money("CNY", "1.25"), "1.2500 CNY");
    }
}
