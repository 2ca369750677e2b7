//! `make bench-queries`: every SQL query of every dashboard over as many rows as a busy month has.
//!
//! Rows are generated in SQL: 30 days, 200 users of whom few make most calls, 5 models. Texts are short, a few hundred bytes, so
//! that ten million rows fit into some ten gigabytes; queries read a few hundred of them at most. PostgreSQL has the settings of
//! deploy/compose.yaml, except that nothing is synced while rows are made.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use chrono::{NaiveTime, Utc};
use gateway_tests::collector::TestApp;
use gateway_tests::grafana::{self, Dashboard, Language, Moment, Query, Variables};
use gateway_tests::postgres::{Cluster, Database, connect};
use gateway_tests::process::wait_until;
use tokio_postgres::{Client, SimpleQueryMessage};

const DAYS: i64 = 30;
/// Somebody waits for it.
const LIMIT_MS: f64 = 1_000.0;
/// Times that each query runs; the median counts.
const RUNS: usize = 3;

const SETTINGS: [&str; 12] = [
    "-c",
    "shared_buffers=1GB",
    "-c",
    "work_mem=16MB",
    "-c",
    "max_wal_size=4GB",
    "-c",
    "random_page_cost=1.1",
    "-c",
    "jit=off",
    "-c",
    "fsync=off",
];

/// A query as somebody would ask it.
struct Case {
    query: Query,
    choice: &'static str,
    range: &'static str,
    sql: String,
}

/// Makes the rows, asks every query, prints a table; ends with status 1 when one takes too long. Without `search_index` texts that
/// few have are looked for over some hours only: every row of the time is read then, and no second is promised.
pub(crate) async fn run(rows: u64, search_index: bool) {
    // Midnight (UTC): the last day is over, so that it is indexed like the others.
    let end_ms = Utc::now().date_naive().and_time(NaiveTime::MIN).and_utc().timestamp_millis();
    let cluster = Cluster::start(&SETTINGS).unwrap_or_else(|error| panic!("{error}"));
    let database = Database::create_on(&cluster.url()).await;
    // A collector migrates when it starts.
    TestApp::start_on(database.clone(), &[]).await.stop().await;
    fill(&database, rows, end_ms).await;
    if search_index {
        index(&database).await;
    }

    let client = database.connect().await;
    client.batch_execute("SET timezone = 'UTC'; SET statement_timeout = '60s'").await.expect("settings");
    let (mut plans, mut slow) = (String::new(), 0);
    println!("{:>9}  {:>6}  {:<6}  {:<40}  query", "median ms", "rows", "range", "choice");
    for case in cases(&client, end_ms, search_index).await {
        let plan = plan(&client, &case.sql).await;
        let mut measured = Vec::new();
        let mut found = 0;
        for _ in 0..RUNS {
            let started = Instant::now();
            let answer = client.simple_query(&case.sql).await.unwrap_or_else(|error| panic!("{}: {error:?}", case.query.place));
            measured.push(started.elapsed().as_secs_f64() * 1_000.0);
            found = answer.iter().filter(|message| matches!(message, SimpleQueryMessage::Row(_))).count();
        }
        measured.sort_by(f64::total_cmp);
        let median = measured[RUNS / 2];
        let verdict = if median > LIMIT_MS { "  TOO SLOW" } else { "" };
        slow += usize::from(median > LIMIT_MS);
        let place = &case.query.place;
        println!("{median:>9.1}  {found:>6}  {:<6}  {:<40}  {place}{verdict}", case.range, case.choice);
        let (choice, range, sql) = (case.choice, case.range, &case.sql);
        writeln!(plans, "== {place}, {range}, {choice}: {median:.1} ms\n{sql}\n\n{plan}").expect("text");
    }
    let file = target().join("bench-queries.txt");
    std::fs::write(&file, plans).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    println!("plans: {}", file.display());
    if slow > 0 {
        println!("{slow} queries took longer than {LIMIT_MS} ms");
        std::process::exit(1);
    }
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from)
}

async fn plan(client: &Client, sql: &str) -> String {
    let explained = client.simple_query(&format!("EXPLAIN (ANALYZE, BUFFERS) {sql}")).await;
    let messages = explained.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let mut plan = String::new();
    for message in &messages {
        if let SimpleQueryMessage::Row(row) = message {
            writeln!(plan, "{}", row.get(0).unwrap_or_default()).expect("text");
        }
    }
    plan
}

/// Every query over a month, as the dashboard opens and as somebody who looks for something chooses.
async fn cases(client: &Client, end_ms: i64, search_index: bool) -> Vec<Case> {
    let month = (Moment::before(end_ms, DAYS * 86_400), "30 d");
    let mut cases = Vec::new();
    for dashboard in &grafana::dashboards() {
        let mut choices = vec![("as it opens", dashboard.defaults(), month)];
        let mut choose = |name, range, values: &[(&str, &str)]| choices.push((name, chosen(dashboard, values), range));
        match dashboard.file.as_str() {
            "conversations" => {
                let shift = (Moment::before(end_ms, 6 * 3_600), "6 h");
                choose("failed", month, &[("status", "failed")]);
                choose("broken off", month, &[("status", "aborted")]);
                choose("the busiest user", month, &[("consumer", "user-001")]);
                choose("a quiet user", month, &[("consumer", "user-199")]);
                choose("a quiet user who failed", month, &[("consumer", "user-199"), ("status", "5xx")]);
                choose("a seldom model", month, &[("model", "model-5")]);
                choose("2000 lines", month, &[("limit", "2000")]);
                choose("a text that many have", month, &[("text", "quarterly")]);
                choose("a text that nobody has, quiet user", month, &[("text", "no such text"), ("consumer", "user-199")]);
                choose("a text that nobody has", shift, &[("text", "no such text")]);
                if search_index {
                    choose("a text that nobody has", month, &[("text", "no such text")]);
                    choose("a text that one a day has", month, &[("text", "needle 47")]);
                    choose("a text in Chinese that one a day has", month, &[("text", "绝密")]);
                    choose("a text of many and a quiet user", month, &[("text", "quarterly"), ("consumer", "user-199")]);
                    choose("a text of many who failed", month, &[("text", "季度"), ("status", "5xx")]);
                    choose("a number that 1 of 100 has", month, &[("text", "number 27")]);
                }
            }
            "conversation" => {
                let one = "SELECT request_id, (extract(epoch FROM started_at) * 1000)::bigint::text FROM llm_logs LIMIT 1";
                let row = client.query_one(one, &[]).await.expect("a call");
                choose("a call", month, &[("request_id", row.get(0)), ("started_ms", row.get(1))]);
            }
            "usage-and-cost" => {
                choose("a user and a model", month, &[("consumer", "user-001"), ("model", "model-1")]);
                choose("as it opens", (Moment::before(end_ms, 3_600), "1 h"), &[]);
            }
            _ => {}
        }
        for query in dashboard.queries().into_iter().filter(|query| query.language == Language::Sql) {
            for (choice, variables, (moment, range)) in &choices {
                let sql = moment.expand(&query, variables);
                cases.push(Case { query: query.clone(), choice, range, sql });
            }
        }
    }
    cases
}

fn chosen(dashboard: &Dashboard, values: &[(&str, &str)]) -> Variables {
    let mut variables = dashboard.defaults();
    for (name, value) in values {
        variables.set(name, &[value]);
    }
    variables
}

/// Lets a collector index the texts.
async fn index(database: &Database) {
    let started = Instant::now();
    let app = TestApp::start_on(database.clone(), &["--search-index"]).await;
    wait_until("all texts are indexed", Duration::from_secs(3 * 3_600), async || {
        database.number("SELECT count(*) FROM llm_search_due").await == 0
    })
    .await;
    app.stop().await;
    let size = "SELECT sum(pg_relation_size(indexrelid))::bigint FROM pg_index JOIN pg_class ON oid = indexrelid WHERE relname LIKE '%\\_search'";
    let megabytes = database.number(size).await / 1_000_000;
    println!("texts indexed in {:.0} s, {megabytes} MB", started.elapsed().as_secs_f64());
}

/// A day at a time, two days at once.
async fn fill(database: &Database, rows: u64, end_ms: i64) {
    let started = Instant::now();
    let client = database.connect().await;
    let per_day = rows / DAYS.unsigned_abs();
    let day = |back: i64| format!("to_timestamp({}) - interval '{back} days'", end_ms / 1_000);
    for back in 1..=DAYS {
        let made = format!("SELECT llm_create_partition((({}) AT TIME ZONE 'UTC')::date)", day(back));
        client.batch_execute(&made).await.expect("a partition");
    }
    let half = |rest: i64| {
        let url = database.url.clone();
        async move {
            let client = connect(&url).await;
            for back in (1..=DAYS).filter(|back| back % 2 == rest) {
                let statement = ROWS.replace("$DAY", &day(back)).replace("$ROWS", &per_day.to_string());
                client.batch_execute(&statement).await.unwrap_or_else(|error| panic!("{error:?}"));
            }
        }
    };
    tokio::join!(half(0), half(1));
    let finish =
        "INSERT INTO llm_model_prices (model_pattern, prompt_per_million, cached_per_million, completion_per_million, currency)
        VALUES ('%', 1, 0.5, 4, 'EUR'), ('model-1', 2, 1, 8, 'EUR'), ('model-2', 3, 1, 9, 'EUR');
        SELECT llm_compact_usage()";
    client.batch_execute(finish).await.expect("usage");
    client.batch_execute("VACUUM ANALYZE").await.expect("statistics");
    let size = database.number("SELECT pg_database_size(current_database())").await;
    println!("{} rows, {} MB, made in {:.0} s", per_day * DAYS.unsigned_abs(), size / 1_000_000, started.elapsed().as_secs_f64());
}

/// The calls of one day.
const ROWS: &str = "
INSERT INTO llm_logs (request_id, consumer_username, started_at, latency_ms, status, prompt, response, raw_log, model, endpoint,
    service, route, client_ip, stream, aborted, finish_reason, error, prompt_tokens, completion_tokens, cached_tokens,
    ttft_ms, upstream_latency_ms, gateway_latency_ms)
SELECT md5($DAY || '-' || n), 'user-' || lpad(floor(200 ^ who)::text, 3, '0'),
    $DAY + n * (interval '1 day' / $ROWS), floor(200 * exp(4 * luck))::integer,
    status, 'Please summarise the ' || word || ' report number ' || n || ' for the board' || CASE WHEN n = 4711 THEN ' needle 4711 绝密: ' ELSE ': ' END || repeat(word || ' figures and outlook ', 8),
    CASE WHEN status = 200 THEN 'The ' || word || ' report says: ' || repeat('revenue of ' || n || ' in ' || word || ' grew, costs fell; ', 8) END,
    jsonb_build_object('request', jsonb_build_object('id', n, 'uri', '/v1/chat/completions', 'method', 'POST'),
        'response', jsonb_build_object('status', status), 'latencies', jsonb_build_object('request', 200, 'kong', 2)),
    'model-' || 1 + floor(5 * which * which * which)::integer, '/v1/chat/completions', 'vllm', 'vllm', '10.0.0.1', luck < 0.7,
    luck < 0.02, CASE WHEN status = 200 THEN 'stop' END, CASE WHEN status <> 200 THEN 'refused' END,
    floor(2000 * luck)::integer, floor(500 * which)::integer, floor(500 * luck)::integer, 120, 180, 2
FROM (
    SELECT n, random() AS who, random() AS which, random() AS luck,
        (ARRAY[200, 200, 200, 200, 200, 200, 200, 200, 200, 200, 200, 200, 200, 200, 200, 200, 200, 400, 429, 500])[1 + floor(20 * random())] AS status,
        (ARRAY['quarterly', 'annual', 'weekly', 'safety', 'audit', 'travel', 'budget', 'hiring', '季度', '安全'])[1 + floor(10 * random())] AS word
    FROM generate_series(0, $ROWS - 1) AS n
) AS calls";
