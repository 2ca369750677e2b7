//! `report` and `prices`, as operators run them.

use std::collections::BTreeMap;

use gateway_tests::collector::{Finished, TestApp, run};
use gateway_tests::fixtures;
use gateway_tests::postgres::Database;
use serde_json::{Value, json};

use crate::usage::assert_views_agree_with_rows;

async fn command(database: &Database, arguments: &[&str]) -> Finished {
    run(arguments, &[("DATABASE_URL", &database.url)]).await
}

async fn succeeds(database: &Database, arguments: &[&str]) -> String {
    let finished = command(database, arguments).await;
    assert!(finished.status.success(), "{arguments:?}: {finished:?}");
    finished.stdout
}

async fn report(database: &Database, arguments: &[&str]) -> Value {
    let all: Vec<&str> = ["report", "--format", "json", "--since", "2026-11-01", "--until", "2027-01-01"]
        .iter()
        .chain(arguments)
        .copied()
        .collect();
    serde_json::from_str(&succeeds(database, &all).await).unwrap()
}

/// Sums of a counter by consumer and `label`, over the pages of several collectors.
fn sums(pages: &[String], counter: &str, label: &str) -> BTreeMap<(String, String), i64> {
    let mut sums = BTreeMap::new();
    for line in pages.iter().flat_map(|page| page.lines()) {
        let Some((labels, value)) = line.strip_prefix(counter).and_then(|rest| rest.strip_prefix('{')?.split_once("} ")) else {
            continue;
        };
        let value_of = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\"")).unwrap();
            rest.split_once('"').unwrap().0.to_owned()
        };
        *sums.entry((value_of("consumer"), value_of(label))).or_default() += value.parse::<i64>().unwrap();
    }
    sums
}

#[tokio::test]
async fn report_views_rows_and_metrics_say_the_same() {
    let one = TestApp::start().await;
    let other = TestApp::start_on(one.database.clone(), &[]).await;
    for batch in ["one-object", "mixed-50", "mixed-50", "invalid-utf8-between-good"] {
        one.log(fixtures::batch(batch)).await;
        other.log(fixtures::batch(batch)).await;
    }
    for (number, name) in fixtures::entry_names().iter().enumerate() {
        let app = if number % 2 == 0 { &one } else { &other };
        assert_eq!(app.log(fixtures::entry(name)).await.status, 200);
    }
    let pages = [one.get("/metrics").await.text, other.get("/metrics").await.text];
    let calls = sums(&pages, "llm_requests_total", "code");
    let tokens = sums(&pages, "llm_tokens_total", "type");
    let client = one.database.connect().await;
    for _ in 0..2 {
        let rows = assert_views_agree_with_rows(&client).await;
        let by_consumer = report(&one.database, &["--by", "consumer"]).await;
        assert_eq!(by_consumer["total"]["calls"], json!(rows));
        let consumers = by_consumer["rows"].as_array().unwrap();
        assert!(consumers.len() > 2, "{consumers:?}");
        for row in consumers {
            let consumer = row["consumer"].as_str().unwrap();
            let of_consumer = calls.iter().filter(|((name, _), _)| name == consumer);
            assert_eq!(row["calls"], json!(of_consumer.map(|(_, calls)| calls).sum::<i64>()), "{consumer}");
            let failed = calls.iter().filter(|((name, code), _)| name == consumer && !code.starts_with(['1', '2', '3']));
            // Beyond the status, an error is also one that came in a stream.
            let failed: i64 = failed.map(|(_, calls)| calls).sum();
            assert!(row["errors"].as_i64().unwrap() >= failed, "{consumer}: {failed} {row}");
            for kind in ["prompt", "completion", "cached", "reasoning"] {
                let counted = tokens.get(&(consumer.to_owned(), kind.to_owned())).copied().unwrap_or(0);
                assert_eq!(row[format!("{kind}_tokens")], json!(counted), "{consumer} {kind}");
            }
        }
        assert_eq!(consumers.iter().map(|row| row["calls"].as_i64().unwrap()).sum::<i64>(), rows);

        // Each way of adding up has the same total, and its rows are those of the views.
        for (by, view) in
            [("day,consumer,model", "llm_usage_daily"), ("hour,consumer,model", "llm_usage_hourly"), ("model,month", "")]
        {
            let answer = report(&one.database, &["--by", by]).await;
            assert_eq!(answer["total"], by_consumer["total"], "{by}");
            if !view.is_empty() {
                let rows: i64 = client.query_one(&format!("SELECT count(*) FROM {view}"), &[]).await.unwrap().get(0);
                assert_eq!(answer["rows"].as_array().unwrap().len() as i64, rows);
            }
        }
        // No recorded call had to wait, and days do not know of it.
        let query = "SELECT to_jsonb(d) - 'consumer_username' - 'currency' - 'team' - 'forwarded_calls' - 'estimated_cost'
                || jsonb_build_object('consumer', consumer_username, 'cost', '{}'::jsonb, 'estimated_cost', '{}'::jsonb,
                    'waited_calls', 0, 'queue_ms', 0)
            FROM llm_usage_daily d ORDER BY consumer_username COLLATE \"C\", model COLLATE \"C\", day";
        let daily: Vec<Value> = client.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert_eq!(report(&one.database, &["--by", "consumer,model,day"]).await["rows"], json!(daily));
        client.query_one("SELECT llm_compact_usage()", &[]).await.unwrap();
    }
    // Rows go, numbers stay.
    let before = report(&one.database, &[]).await;
    client.batch_execute("TRUNCATE llm_logs").await.unwrap();
    assert_eq!(report(&one.database, &[]).await, before);
    one.stop().await;
    other.stop().await;
}

/// Consumer, model, time, status, latency, tokens.
type SmallCall<'c> = (&'c str, &'c str, &'c str, i32, i32, [i32; 3]);

/// A database with calls of 2026-11-20.
async fn small_world(calls: &[SmallCall<'_>]) -> Database {
    let database = Database::create().await;
    assert!(run(&["migrate"], &[("DATABASE_URL", &database.url)]).await.status.success());
    let client = database.connect().await;
    for (number, (consumer, model, time, status, latency_ms, [prompt, cached, completion])) in calls.iter().enumerate() {
        let insert = "INSERT INTO llm_logs (request_id, consumer_username, model, started_at, status, latency_ms, endpoint,
                prompt_tokens, cached_tokens, completion_tokens)
            VALUES ($1, $2, $3, ('2026-11-20 ' || $4::text || '+00')::timestamptz, $5, $6, '/v1/chat/completions', $7, $8, $9)";
        let id = number.to_string();
        client.execute(insert, &[&id, consumer, model, time, status, latency_ms, prompt, cached, completion]).await.unwrap();
    }
    database
}

const RANGE: [&str; 5] = ["report", "--since", "2026-11-20", "--until", "2026-11-21"];

fn with_range<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    RANGE.iter().chain(arguments).copied().collect()
}

#[tokio::test]
async fn the_table_has_whole_numbers_cost_and_a_total() {
    let database = small_world(&[
        ("王小明", "glm", "10:00", 200, 1, [1_000_000, 0, 250_000]),
        ("z1", "qwen", "11:59:59", 200, 1, [2_000_000, 1_000_000, 0]),
        ("z1", "qwen", "12:00", 404, 1, [0, 0, 0]),
    ])
    .await;
    let expected = "2026-11-20 00:00 to 2026-11-21 00:00 UTC, in whole hours\n\n\
        consumer  model  calls  errors   prompt   cached  completion  reasoning  cost  p50 ms  p95 ms  p99 ms\n\
        z1        qwen       2       1  2000000  1000000           0          0     0       1       1       1\n\
        王小明    glm        1       0  1000000        0      250000          0     0       1       1       1\n\
        total                3       1  3000000  1000000      250000          0     0       1       1       1\n";
    assert_eq!(succeeds(&database, &RANGE).await, expected);

    let set = |pattern, prompt, currency| {
        vec!["prices", "set", pattern, "--prompt", prompt, "--completion", "2", "--cached", "0.1", "--currency", currency]
    };
    succeeds(&database, &set("q%", "0.5", "CNY")).await;
    succeeds(&database, &set("glm", "3", "USD")).await;
    let table = succeeds(&database, &with_range(&["--by", "hour"])).await;
    let costs: Vec<&str> =
        table.lines().skip(3).map(|line| line.split("  ").filter(|cell| !cell.is_empty()).nth(7).unwrap().trim()).collect();
    assert_eq!(costs, ["3.5000 USD", "0.6000 CNY", "0.0000 CNY", "0.6000 CNY + 3.5000 USD"], "{table}");
}

#[tokio::test]
async fn csv_has_a_column_of_cost_for_each_currency() {
    let calls = [("z1", "qwen", "10:00", 200, 1, [2_000_000, 1_000_000, 0]), ("z2", "glm", "10:00", 200, 1, [1_000_000, 0, 0])];
    let database = small_world(&calls).await;
    let heading = "consumer,calls,errors,prompt_tokens,cached_tokens,completion_tokens,reasoning_tokens";
    let csv = with_range(&["--by", "consumer", "--format", "csv"]);
    let percentiles =
        "latency_p50_ms,latency_p95_ms,latency_p99_ms,estimated_prompt_tokens,estimated_completion_tokens,waited_calls,queue_ms";
    let expected = format!(
        "{heading},cost,{percentiles}\nz1,1,0,2000000,1000000,0,0,0,1,1,1,0,0,0,0\nz2,1,0,1000000,0,0,0,0,1,1,1,0,0,0,0\n"
    );
    assert_eq!(succeeds(&database, &csv).await, expected);
    for (pattern, currency) in [("qwen", "CNY"), ("glm", "USD")] {
        // Without a price of their own, cached tokens cost what others do.
        let set = ["prices", "set", pattern, "--prompt", "0.123456", "--completion", "1", "--currency", currency];
        succeeds(&database, &set).await;
    }
    let expected = format!(
        "{heading},cost_CNY,cost_USD,{percentiles}\nz1,1,0,2000000,1000000,0,0,0.246912,0,1,1,1,0,0,0,0\nz2,1,0,1000000,0,0,0,0,0.123456,1,1,1,0,0,0,0\n"
    );
    assert_eq!(succeeds(&database, &csv).await, expected);
}

#[tokio::test]
async fn hostile_names_harm_neither_terminal_nor_spreadsheet() {
    let names = ["a,b", "say \"hi\"", "two\nlines", "red\u{1b}[31m\u{9b}2J", "left\u{202e}right", "=HYPERLINK(\"http://x\")"];
    let calls: Vec<_> = names.iter().map(|name| ("z1", *name, "10:00", 200, 1, [1, 0, 1])).collect();
    let database = small_world(&calls).await;
    let obeyed = |text: &str| text.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}');

    let table = succeeds(&database, &with_range(&["--by", "model"])).await;
    assert!(!obeyed(&table) && table.contains("two\u{fffd}lines") && table.contains("red\u{fffd}[31m"), "{table:?}");
    assert_eq!(table.lines().count(), 3 + names.len() + 1, "{table}");

    let csv = succeeds(&database, &with_range(&["--by", "model", "--format", "csv"])).await;
    assert!(!obeyed(&csv), "{csv:?}");
    for cell in ["\n\"a,b\",1,", "\n\"say \"\"hi\"\"\",1,", "\n\"two\nlines\",1,", "\n\"'=HYPERLINK(\"\"http://x\"\")\",1,"] {
        assert!(csv.contains(cell), "{cell:?} is not in {csv:?}");
    }

    let json = succeeds(&database, &with_range(&["--by", "model", "--format", "json"])).await;
    assert!(!obeyed(&json), "{json:?}");
    let json: Value = serde_json::from_str(&json).unwrap();
    for name in names {
        assert!(json["rows"].as_array().unwrap().iter().any(|row| row["model"] == name), "{name:?} is not in {json}");
    }
}

#[tokio::test]
async fn ranges_are_whole_hours_on_the_clock_asked_for() {
    let calls: Vec<_> =
        ["00:00", "09:59", "10:00", "16:30", "23:59:59.999"].map(|time| ("z1", "m", time, 200, 1, [1, 0, 1])).to_vec();
    let database = small_world(&calls).await;
    let client = database.connect().await;
    let recent = "INSERT INTO llm_logs (request_id, consumer_username, started_at, model) VALUES ('now', 'z2', now(), 'm')";
    client.batch_execute(recent).await.unwrap();
    let calls = async |arguments: &[&str]| {
        let all: Vec<&str> = ["report", "--format", "json"].iter().chain(arguments).copied().collect();
        let answer: Value = serde_json::from_str(&succeeds(&database, &all).await).unwrap();
        answer["total"]["calls"].as_i64().unwrap()
    };
    assert_eq!(calls(&["--since", "2026-11-20", "--until", "2026-11-20T10:00", "--consumer", "z1"]).await, 2);
    assert_eq!(calls(&["--since", "2026-11-20T10:59", "--until", "2026-11-20T16:01", "--consumer", "z1"]).await, 2);
    assert_eq!(calls(&["--month", "2026-11", "--consumer", "z1"]).await, 5);
    assert_eq!(calls(&["--month", "2026-12", "--consumer", "z1"]).await, 0);
    assert_eq!(calls(&["--month", "2026-11", "--consumer", "z1", "--model", "other"]).await, 0);
    assert_eq!(calls(&["--since", "1h", "--consumer", "z2"]).await, 1);
    assert_eq!(calls(&["--since", "2026-11-21", "--until", "2026-11-22", "--utc-offset", "+08:00", "--consumer", "z1"]).await, 2);

    let days = ["report", "--month", "2026-11", "--by", "day", "--consumer", "z1", "--format", "json", "--utc-offset"];
    for (offset, expected) in [("+00:00", json!([["2026-11-20", 5]])), ("-01:00", json!([["2026-11-19", 1], ["2026-11-20", 4]]))]
    {
        let all: Vec<&str> = days.iter().copied().chain([offset]).collect();
        let answer: Value = serde_json::from_str(&succeeds(&database, &all).await).unwrap();
        let seen: Vec<Value> = answer["rows"].as_array().unwrap().iter().map(|row| json!([row["day"], row["calls"]])).collect();
        assert_eq!(json!(seen), expected);
    }
}

#[tokio::test]
async fn what_is_not_there_or_wrong_is_said() {
    let database = small_world(&[]).await;
    let nothing = "no calls from 2026-11-20 00:00 to 2026-11-21 00:00 UTC, in whole hours\n";
    assert_eq!(succeeds(&database, &RANGE).await, nothing);
    let finished = command(&database, &with_range(&["--format", "csv"])).await;
    assert!(finished.stdout.starts_with("consumer,model,calls") && finished.stderr.contains(nothing.trim()), "{finished:?}");
    for (arguments, words) in [
        (vec!["report", "--since", "yesterday"], "yesterday"),
        (vec!["report", "--month", "2026-13"], "2026-13"),
        (vec!["report", "--utc-offset", "+05:30"], "whole hours"),
        (vec!["prices", "remove", "nothing"], "prices list"),
        (vec!["prices", "set", "a\\", "--prompt", "1", "--completion", "1", "--currency", "CNY"], "without \\"),
    ] {
        let finished = command(&database, &arguments).await;
        assert!(finished.status.code() == Some(1) && finished.stderr.contains(words), "{arguments:?}: {finished:?}");
    }
    let empty = Database::create().await;
    let finished = command(&empty, &["report"]).await;
    assert!(finished.status.code() == Some(1) && finished.stderr.contains("llm-collector migrate"), "{finished:?}");
}

#[tokio::test]
async fn the_first_price_holds_for_the_past_and_a_further_one_from_now_on() {
    let database = small_world(&[]).await;
    assert!(succeeds(&database, &["prices", "list"]).await.starts_with("no prices"));
    let set = |more: &[&'static str]| -> Vec<&'static str> {
        ["prices", "set", "Qwen%", "--completion", "2", "--currency", "CNY"].iter().chain(more).copied().collect()
    };
    assert!(succeeds(&database, &set(&["--prompt", "0.50"])).await.contains("from the beginning on: 0.50 CNY"));
    succeeds(&database, &set(&["--prompt", "1", "--from", "2026-11-01"])).await;
    // In place of the one before.
    succeeds(&database, &set(&["--prompt", "3", "--cached", "0", "--from", "2026-11-01T00:59"])).await;
    let expected = "model  from (UTC)        currency  prompt  cached  completion\n\
        Qwen%  the beginning     CNY          0.5     0.5           2\n\
        Qwen%  2026-11-01 00:00  CNY            3       0           2\n\
        for a million tokens\n";
    assert_eq!(succeeds(&database, &["prices", "list"]).await, expected);
    succeeds(&database, &set(&["--prompt", "4"])).await;
    let now = "SELECT count(*) FROM llm_model_prices WHERE prompt_per_million = 4
        AND valid_from BETWEEN now() - interval '2 hours' AND now() AND date_trunc('hour', valid_from, 'UTC') = valid_from";
    assert_eq!(database.number(now).await, 1);
    assert_eq!(succeeds(&database, &["prices", "remove", "Qwen%", "--from", "2026-11-01"]).await, "1 price removed\n");
    assert_eq!(succeeds(&database, &["prices", "remove", "Qwen%"]).await, "2 prices removed\n");
    for wrong in [["--prompt", "-1"], ["--prompt", "1e3"], ["--prompt", "."], ["--prompt", "NaN"]] {
        let finished = command(&database, &set(&wrong)).await;
        assert_eq!(finished.status.code(), Some(2), "{wrong:?}: {finished:?}");
    }
}

#[tokio::test]
async fn who_waited_is_reported_before_and_after_it_is_added_up() {
    let database = small_world(&[]).await;
    let client = database.connect().await;
    let rows = "INSERT INTO llm_logs (request_id, consumer_username, model, started_at, status, queue_ms)
        VALUES ('a', 'z1', 'qwen', '2026-11-20 10:00+00', 200, 1200), ('b', 'z1', 'qwen', '2026-11-20 10:30+00', 429, 120000),
            ('c', 'bob', 'qwen', '2026-11-20 12:00+00', 200, NULL), ('d', 'bob', 'qwen', '2026-11-20 12:00+00', 200, 0)";
    client.batch_execute(rows).await.unwrap();
    let expected = "2026-11-20 00:00 to 2026-11-21 00:00 UTC, in whole hours\n\n\
        consumer  calls  errors  prompt  cached  completion  reasoning  cost  p50 ms  p95 ms  p99 ms  waited  waited ms\n\
        bob           2       0       0       0           0          0     0       -       -       -       1          0\n\
        z1            2       1       0       0           0          0     0       -       -       -       2     121200\n\
        total         4       1       0       0           0          0     0       -       -       -       3     121200\n";
    let by = with_range(&["--by", "consumer"]);
    assert_eq!(succeeds(&database, &by).await, expected);
    client.batch_execute("SELECT llm_compact_usage()").await.unwrap();
    assert_eq!(database.number("SELECT sum(queue_ms)::bigint FROM llm_usage").await, 121_200);
    client.batch_execute(&rows.replace("('", "('again-")).await.unwrap();
    client.batch_execute("SELECT llm_compact_usage()").await.unwrap();
    let json: Value = serde_json::from_str(&succeeds(&database, &with_range(&["--format", "json"])).await).unwrap();
    assert_eq!((&json["total"]["waited_calls"], &json["total"]["queue_ms"]), (&json!(6), &json!(242_400)));
}

#[tokio::test]
async fn teams_are_reported_with_what_was_estimated_apart() {
    let database = small_world(&[]).await;
    let client = database.connect().await;
    // z1 goes from one team to another; bob is in none.
    let rows =
        "INSERT INTO llm_logs (request_id, consumer_username, team, model, started_at, status, prompt_tokens, completion_tokens,
            estimated_prompt_tokens, estimated_completion_tokens)
        VALUES ('a', 'z1', 'ml', 'qwen', '2026-11-20 10:00+00', 200, 1000, 100, NULL, NULL),
            ('b', 'z1', 'ops', 'glm', '2026-11-20 11:00+00', 499, NULL, NULL, 400, 7),
            ('c', 'bob', NULL, 'qwen', '2026-11-20 12:00+00', 200, 10, 1, NULL, NULL),
            ('d', 'eve', 'ml', 'qwen', '2026-11-20 12:00+00', 200, 5, 5, NULL, NULL)";
    client.batch_execute(rows).await.unwrap();
    let table = succeeds(&database, &with_range(&["--by", "team"])).await;
    let expected = "2026-11-20 00:00 to 2026-11-21 00:00 UTC, in whole hours\n\n\
        team   calls  errors  prompt  cached  completion  reasoning  cost  p50 ms  p95 ms  p99 ms  est. prompt  est. completion\n\
        -          1       0      10       0           1          0     0       -       -       -            0                0\n\
        ml         2       0    1005       0         105          0     0       -       -       -            0                0\n\
        ops        1       1       0       0           0          0     0       -       -       -          400                7\n\
        total      4       1    1015       0         106          0     0       -       -       -          400                7\n";
    assert_eq!(table, expected);

    let price = ["prices", "set", "%", "--prompt", "1000", "--completion", "10000", "--currency", "CNY"];
    succeeds(&database, &price).await;
    let range = ["--since", "2026-11-20", "--until", "2026-11-21"];
    let by = report_of(&database, &range, &["--by", "team,model"]).await;
    let rows: Vec<Value> =
        by["rows"].as_array().unwrap().iter().map(|row| json!([row["team"], row["model"], row["calls"]])).collect();
    assert_eq!(json!(rows), json!([["", "qwen", 1], ["ml", "qwen", 2], ["ops", "glm", 1]]));
    let total = &by["total"];
    assert_eq!((&total["cost"], &total["estimated_cost"]), (&json!({"CNY": 2.075}), &json!({"CNY": 0.47})));
    assert_eq!((&total["estimated_prompt_tokens"], &total["estimated_completion_tokens"]), (&json!(400), &json!(7)));
    for (team, calls) in [("ml", 2), ("ops", 1), ("", 1), ("nobody", 0)] {
        assert_eq!(
            report_of(&database, &range, &["--team", team]).await["total"]["calls"].as_i64().unwrap_or(0),
            calls,
            "{team}"
        );
    }
    let csv = succeeds(&database, &with_range(&["--by", "team,consumer", "--format", "csv"])).await;
    assert!(csv.contains("\nops,z1,1,1,0,0,0,0,0,,,,400,7,0,0\n"), "{csv}");
}

async fn report_of(database: &Database, range: &[&str], arguments: &[&str]) -> Value {
    let all: Vec<&str> = ["report", "--format", "json"].iter().chain(range).chain(arguments).copied().collect();
    serde_json::from_str(&succeeds(database, &all).await).unwrap()
}

#[tokio::test]
async fn days_and_dates_are_those_of_the_site_and_end_where_its_clock_says() {
    for (zone, day, hours, first_hour) in [
        ("Asia/Kolkata", "2026-11-20", 24, "2026-11-19T18:30:00Z"),
        ("Europe/Berlin", "2026-10-25", 25, "2026-10-24T22:00:00Z"),
        ("Europe/Berlin", "2026-03-29", 23, "2026-03-28T23:00:00Z"),
        ("Pacific/Chatham", "2026-04-05", 25, "2026-04-04T10:15:00Z"),
    ] {
        let database = Database::create().await;
        let finished = run(&["migrate"], &[("DATABASE_URL", &database.url), ("SITE_TIME_ZONE", zone)]).await;
        assert!(finished.status.success(), "{finished:?}");
        // Every ten minutes from a day before to a day after.
        let rows = format!(
            "INSERT INTO llm_logs (request_id, consumer_username, started_at)
            SELECT n, 'z1', '{day}'::timestamp AT TIME ZONE 'UTC' + n * interval '10 minutes' FROM generate_series(-250, 400) n"
        );
        database.connect().await.batch_execute(&rows).await.unwrap();
        let days = report_of(&database, &["--month", &day[..7]], &["--by", "day"]).await;
        let of_day = days["rows"].as_array().unwrap().iter().find(|row| row["day"] == day).unwrap();
        assert_eq!(of_day["calls"], json!(hours * 6), "{zone} {day}");
        let next = (day.parse::<chrono::NaiveDate>().unwrap() + chrono::Days::new(1)).to_string();
        let range = ["--since", day, "--until", &next];
        let one = report_of(&database, &range, &["--by", "hour"]).await;
        assert_eq!((&one["total"]["calls"], &one["since"], &one["clock"]), (&json!(hours * 6), &json!(first_hour), &json!(zone)));
        let table = succeeds(&database, &[&["report"], &range[..]].concat()).await;
        assert!(table.starts_with(&format!("{day} 00:00 to {next} 00:00 {zone}, in whole hours\n")), "{table}");
        // Asked for another clock, it is that one.
        let elsewhere = report_of(&database, &range, &["--utc-offset", "+08:00"]).await;
        assert_eq!(elsewhere["clock"], json!("UTC+08:00"));
        assert_eq!(
            elsewhere["since"],
            json!(format!("{}T16:00:00Z", day.parse::<chrono::NaiveDate>().unwrap() - chrono::Days::new(1)))
        );
    }
}
