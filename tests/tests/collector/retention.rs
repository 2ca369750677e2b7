//! What retention removes, and what it leaves alone.

use std::time::Duration;

use chrono::{DateTime, Days, Utc};
use gateway_tests::collector::{Finished, Process, TestApp, get, run};
use gateway_tests::postgres::Database;
use gateway_tests::process::wait_until;
use serde_json::{Value, json};

/// Noon (UTC) some days ago.
pub(crate) fn noon(days_ago: u64) -> DateTime<Utc> {
    let day = Utc::now().date_naive().checked_sub_days(Days::new(days_ago)).unwrap();
    day.and_hms_opt(12, 0, 0).unwrap().and_utc()
}

/// The partition of a day.
fn partition(days_ago: u64) -> String {
    format!("llm_logs_{}", noon(days_ago).format("%Y%m%d"))
}

/// A call of some time ago whose prompt and answer are several kilobytes that do not compress.
pub(crate) fn call(id: &str, consumer: &str, at: DateTime<Utc>) -> Value {
    let noise: String = (0..60).map(|n| fixtures_hash(&format!("{id} {n}"))).collect();
    json!({
        "request": {"id": id, "uri": "/v1/chat/completions", "method": "POST", "headers": {"user-agent": "openai"},
            "body": json!({"model": "m", "messages": [{"role": "user", "content": format!("asked {noise}")}]}).to_string()},
        "response": {"status": 200, "headers": {"content-type": "application/json"},
            "body": json!({"model": "m", "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
                "content": format!("answered {noise}"), "reasoning_content": format!("thought {noise}"),
                "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}}],
                "error": {"message": format!("failed on {noise}")}, "usage": {"prompt_tokens": 300, "completion_tokens": 500}}).to_string()},
        "consumer": {"username": consumer}, "latencies": {"request": 12, "proxy": 11, "kong": 1},
        "client_ip": "10.0.0.7", "started_at": at.timestamp_millis(),
    })
}

fn fixtures_hash(text: &str) -> String {
    gateway_tests::collector::sha256_hex(text.as_bytes())
}

/// `count` calls of a day.
fn calls(prefix: &str, days_ago: u64, count: usize) -> String {
    let calls: Vec<Value> = (0..count).map(|n| call(&format!("{prefix}-{n}"), "z1", noon(days_ago))).collect();
    Value::from(calls).to_string()
}

/// A database with 200 calls of 10 days ago and 20 of 2 days ago and today each.
async fn filled() -> Database {
    let app = TestApp::start().await;
    for (prefix, days_ago, count) in [("old", 10, 200), ("recent", 2, 20), ("new", 0, 20)] {
        assert_eq!(app.log(calls(prefix, days_ago, count)).await.count("stored"), count as u64);
    }
    app.settled().await;
    let database = app.database.clone();
    app.stop().await;
    database.connect().await.batch_execute("VACUUM ANALYZE llm_logs").await.unwrap();
    database
}

async fn retention(database: &Database, arguments: &[&str]) -> Finished {
    let mut all = vec!["retention", "--database-url", database.url.as_str()];
    all.extend_from_slice(arguments);
    let finished = run(&all, &[]).await;
    assert!(finished.status.success(), "{finished:?}");
    finished
}

/// All rows that a query finds, as JSON.
async fn rows(database: &Database, condition: &str) -> Vec<Value> {
    let query = format!(
        "SELECT to_jsonb(l) - 'contents' || jsonb_build_object('raw_log', llm_raw_log(l)) FROM llm_logs l WHERE {condition} ORDER BY request_id"
    );
    database.connect().await.query(&query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// A row as it has to be without content.
fn without_content(mut row: Value) -> Value {
    for column in ["prompt", "response", "reasoning", "tool_calls"] {
        row[column] = Value::Null;
    }
    assert!(row["error"].as_str().unwrap().starts_with("failed on"));
    // That it failed is no content.
    row["error"] = json!("[error]");
    for side in ["request", "response"] {
        row["raw_log"][side].as_object_mut().unwrap().remove("body");
    }
    row
}

async fn size(database: &Database, table: &str) -> i64 {
    let content = table.replace("logs", "content");
    let query =
        format!("SELECT pg_total_relation_size('{table}') + coalesce(pg_total_relation_size(to_regclass('{content}')), 0)");
    database.number(&query).await
}

const TOKENS: &str = "SELECT sum(prompt_tokens + 3 * completion_tokens + latency_ms)::bigint FROM llm_logs";
const REWRITES: &str = "SELECT count(*) FROM pg_class WHERE relname LIKE 'llm_logs_%\\_rewrite' AND relkind = 'r'";

#[tokio::test]
async fn content_goes_rows_stay_and_the_disk_space_comes_back() {
    let database = filled().await;
    let old = partition(10);
    let (old_rows, other_rows) =
        (rows(&database, "request_id LIKE 'old%'").await, rows(&database, "request_id NOT LIKE 'old%'").await);
    assert_eq!((old_rows.len(), other_rows.len()), (200, 40));
    assert!(old_rows.iter().all(|row| row["prompt"].is_string() && row["reasoning"].is_string() && row["tool_calls"].is_array()));
    assert!(old_rows.iter().all(|row| row["raw_log"]["request"]["body"].is_object()));
    let (bytes, tokens) = (size(&database, &old).await, database.number(TOKENS).await);

    let planned = retention(&database, &["--keep-content-days", "7", "--dry-run"]).await.stdout;
    let line = planned.lines().find(|line| line.starts_with(&old)).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let day = noon(10).format("%Y-%m-%d").to_string();
    assert_eq!(words, [old.as_str(), day.as_str(), "200", bytes.to_string().as_str(), "remove", "content"]);
    assert_eq!(planned.lines().count(), 2, "{planned}");
    assert_eq!(rows(&database, "request_id LIKE 'old%'").await, old_rows);
    assert_eq!(size(&database, &old).await, bytes);

    let done = retention(&database, &["--keep-content-days", "7"]).await;
    let bytes_after = size(&database, &old).await;
    assert!(bytes_after * 4 < bytes, "{bytes} bytes became {bytes_after}");
    assert!(done.stdout.contains(&format!("{} bytes came back", bytes - bytes_after)), "{done:?}");
    assert!(done.stderr.contains(&format!("retention: remove content of {old} (200 rows")), "{done:?}");
    let expected: Vec<Value> = old_rows.into_iter().map(without_content).collect();
    assert_eq!(rows(&database, "request_id LIKE 'old%'").await, expected);
    assert_eq!(rows(&database, "request_id NOT LIKE 'old%'").await, other_rows);
    assert_eq!(database.number(TOKENS).await, tokens);
    let removed = "SELECT count(*) FROM llm_partitions WHERE content_removed";
    assert_eq!(database.number(removed).await, 1);
    assert_eq!(database.number(&format!("{removed} AND partition = '{old}'")).await, 1);

    assert_eq!(retention(&database, &["--keep-content-days", "7"]).await.stdout, "nothing was due\n");
}

#[tokio::test]
async fn messages_of_errors_go_from_days_that_were_done_before_they_were_content() {
    let database = filled().await;
    let old = partition(10);
    retention(&database, &["--keep-content-days", "7"]).await;
    let as_before = format!("DROP INDEX {old}_error; UPDATE {old} SET error = 'the patient' WHERE request_id LIKE 'old-1%'");
    database.connect().await.batch_execute(&as_before).await.unwrap();
    let left = format!("SELECT count(*) FROM {old} WHERE error = 'the patient'");
    assert_eq!(database.number(&left).await, 111);
    let planned = retention(&database, &["--keep-content-days", "7", "--dry-run"]).await.stdout;
    assert!(planned.contains("111") && planned.contains("remove content of single rows"), "{planned}");
    retention(&database, &["--keep-content-days", "7"]).await;
    assert_eq!(database.number(&left).await, 0);
    assert_eq!(database.number(&format!("SELECT count(*) FROM {old} WHERE error = '[error]'")).await, 200);
    assert_eq!(retention(&database, &["--keep-content-days", "7"]).await.stdout, "nothing was due\n");
}

#[tokio::test]
async fn a_day_is_due_when_its_last_row_is_old_enough() {
    let database = filled().await;
    // The day before yesterday ended between one and two days ago.
    let planned = retention(&database, &["--keep-content-days", "2", "--dry-run"]).await.stdout;
    assert!(!planned.contains(&partition(2)), "{planned}");
    let planned = retention(&database, &["--keep-content-days", "1", "--dry-run"]).await.stdout;
    assert!(planned.contains(&partition(2)) && !planned.contains(&partition(0)), "{planned}");
}

#[tokio::test]
async fn rows_that_are_too_old_go_wherever_they_are() {
    let database = filled().await;
    let app = TestApp::start_on(database.clone(), &[]).await;
    // The default partition: long ago, and a clock that was wrong.
    let far = [call("ancient", "z1", noon(900)), call("future", "z1", Utc::now() + Days::new(900))];
    assert_eq!(app.log(Value::from(far.to_vec()).to_string()).await.count("stored"), 2);
    assert_eq!(database.number("SELECT count(*) FROM llm_logs_default").await, 2);
    assert_eq!(app.log("[{},17]").await.count("rejected"), 2);
    app.stop().await;
    let client = database.connect().await;
    client.batch_execute("UPDATE llm_rejected SET rejected_at = now() - interval '20 days' WHERE raw = '17'").await.unwrap();

    let gone = format!("SELECT count(*) FROM pg_class WHERE relname = '{}'", partition(10));
    let planned = retention(&database, &["--keep-rows-days", "8", "--dry-run"]).await.stdout;
    assert!(planned.contains("llm_rejected") && planned.contains("llm_logs_default"), "{planned}");
    assert_eq!(database.number(&gone).await, 1);
    retention(&database, &["--keep-rows-days", "8", "--keep-content-days", "1"]).await;
    assert_eq!(database.number(&gone).await, 0);
    assert_eq!(database.number("SELECT count(*) FROM llm_logs").await, 41);
    assert_eq!(database.number("SELECT count(*) FROM llm_logs WHERE request_id = 'future' AND prompt IS NOT NULL").await, 1);
    assert_eq!(database.number("SELECT count(*) FROM llm_rejected").await, 1);
    // What is kept by the longer clock has lost its content by the shorter one.
    assert_eq!(database.number("SELECT count(*) FROM llm_logs WHERE request_id LIKE 'recent%' AND prompt IS NULL").await, 20);

    // Once its writing is old, the row from the future goes as well; first its content.
    client.batch_execute("UPDATE llm_logs SET created_at = now() - interval '5 days' WHERE request_id = 'future'").await.unwrap();
    retention(&database, &["--keep-rows-days", "8", "--keep-content-days", "3"]).await;
    assert_eq!(database.number("SELECT count(*) FROM llm_logs WHERE request_id = 'future' AND prompt IS NULL").await, 1);
    retention(&database, &["--keep-rows-days", "3"]).await;
    assert_eq!(database.number("SELECT count(*) FROM llm_logs WHERE request_id = 'future'").await, 0);
}

#[tokio::test]
async fn late_rows_of_a_day_that_was_done_are_done_by_the_next_round() {
    let database = filled().await;
    retention(&database, &["--keep-content-days", "7"]).await;
    let app = TestApp::start_on(database.clone(), &[]).await;
    assert_eq!(app.log(calls("late", 10, 3)).await.count("stored"), 3);
    let planned = retention(&database, &["--keep-content-days", "7", "--dry-run"]).await.stdout;
    assert!(planned.contains("remove content of single rows"), "{planned}");
    let late = rows(&database, "request_id LIKE 'late%'").await;
    retention(&database, &["--keep-content-days", "7"]).await;
    assert_eq!(rows(&database, "request_id LIKE 'late%'").await, late.into_iter().map(without_content).collect::<Vec<_>>());

    // A dropped day whose partition comes back with a late row is dropped again.
    retention(&database, &["--keep-rows-days", "7"]).await;
    app.stop().await;
    let app = TestApp::start_on(database.clone(), &[]).await;
    assert_eq!(app.log(calls("later", 10, 3)).await.count("stored"), 3);
    app.settled().await;
    assert_eq!(database.number("SELECT count(*) FROM llm_logs").await, 43);
    retention(&database, &["--keep-rows-days", "7"]).await;
    assert_eq!(database.number("SELECT count(*) FROM llm_logs").await, 40);
    app.stop().await;
}

/// Starts a round that cannot swap, because a reader holds the table, and waits until it has written the day anew.
async fn held_up(database: &Database) -> (tokio_postgres::Client, tokio::task::JoinHandle<Finished>) {
    let reader = database.connect().await;
    reader.batch_execute("BEGIN; SELECT FROM llm_logs LIMIT 0").await.unwrap();
    let held = database.clone();
    let round = tokio::spawn(async move { retention(&held, &["--keep-content-days", "7"]).await });
    let written =
        format!("SELECT coalesce((SELECT reltuples FROM pg_class WHERE relname = '{}_rewrite'), 0)::bigint", partition(10));
    wait_until("the day is written anew", Duration::from_secs(20), || async { database.number(&written).await == 200 }).await;
    (reader, round)
}

#[tokio::test]
async fn a_row_that_comes_while_its_day_is_rewritten_survives_and_nobody_waits() {
    let database = filled().await;
    let app = TestApp::start_on(database.clone(), &[]).await;
    let (reader, round) = held_up(&database).await;
    // 60 attempts for the lock take half a minute: inserts and reads meanwhile, each well under the time-out of 4 s.
    for n in 0..10 {
        let started = std::time::Instant::now();
        let days_ago = if n == 0 { 10 } else { 0 };
        assert_eq!(app.log(calls(&format!("during{n}"), days_ago, 1)).await.count("stored"), 1);
        assert_eq!(database.number("SELECT count(*) FROM llm_logs").await, 241 + n);
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    }
    assert!(!round.is_finished());
    reader.batch_execute("COMMIT").await.unwrap();
    round.await.unwrap();
    let late = rows(&database, "request_id = 'during0-0'").await;
    assert_eq!((late[0]["prompt"].clone(), late[0]["prompt_tokens"].clone()), (Value::Null, json!(300)));
    assert_eq!(database.number("SELECT count(*) FROM llm_logs").await, 250);
    assert_eq!(database.number(&format!("SELECT count(*) FROM {} WHERE prompt IS NULL", partition(10))).await, 201);
    app.stop().await;
}

#[tokio::test]
async fn of_two_collectors_one_does_it_and_a_crash_leaves_nothing_behind() {
    let database = filled().await;
    let before = rows(&database, "true").await;
    let (reader, round) = held_up(&database).await;
    assert_eq!(retention(&database, &["--keep-content-days", "7"]).await.stdout, "another collector is at it\n");
    // The process is killed with the new table written and not yet in its place.
    round.abort();
    let _ = round.await;
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    wait_until("its lock is free", Duration::from_secs(10), || async { database.number(locks).await == 0 }).await;
    assert_eq!(database.number(REWRITES).await, 1);
    assert_eq!(rows(&database, "true").await, before);
    reader.batch_execute("COMMIT").await.unwrap();
    retention(&database, &["--keep-content-days", "7"]).await;
    assert_eq!(database.number(REWRITES).await, 0);
    assert_eq!(database.number("SELECT count(*) FROM llm_logs WHERE prompt IS NULL").await, 200);
    assert_eq!(database.number("SELECT count(*) FROM llm_logs").await, 240);
}

#[tokio::test]
async fn the_running_collector_does_it_counts_it_and_says_so() {
    let database = filled().await;
    let arguments = ["--database-url", &database.url, "--keep-content-days", "7", "--keep-rows-days", "9"];
    let process = Process::serve(&arguments).await;
    let counted = |action: &str| format!("llm_collector_retention_partitions_total{{action=\"{action}\"}} 1\n");
    wait_until("the day is dropped", Duration::from_secs(20), || async {
        let page = get(&format!("{}/metrics", process.url)).await.unwrap().text;
        page.contains(&counted("dropped")) && !page.contains(&counted("content_removed"))
    })
    .await;
    process.signal("TERM");
    let (_, log) = process.finished().await;
    assert!(log.contains(&format!("retention: drop of {} (200 rows", partition(10))), "{log}");
    assert_eq!(database.number("SELECT count(*) FROM llm_logs").await, 40);
}

#[tokio::test]
async fn far_more_than_ever_before_waits_until_it_is_confirmed() {
    let app = TestApp::start().await;
    for days_ago in 20..26 {
        assert_eq!(app.log(calls(&format!("old{days_ago}"), days_ago, 1)).await.count("stored"), 1);
    }
    app.settled().await;
    let database = app.database.clone();
    app.stop().await;
    let count = "SELECT count(*) FROM llm_logs";
    let arguments = |more: &[&'static str]| {
        [&["retention", "--database-url"][..], &[Box::leak(database.url.clone().into_boxed_str())], more].concat()
    };

    // Six days at once, and none ever before.
    let held = run(&arguments(&["--keep-rows-days", "10"]), &[]).await;
    assert_eq!((held.status.code(), database.number(count).await), (Some(1), 6), "{held:?}");
    assert!(held.stderr.contains("6 days") && held.stderr.contains("retention --confirm"), "{held:?}");
    let told = "SELECT count(*) FROM llm_upkeep WHERE retention_held LIKE '%6 days%retention --confirm%'";
    assert_eq!(database.number(told).await, 1);
    // The service stops as well, and says so; it goes on with everything else.
    let looks =
        "SELECT (seq_scan + coalesce(idx_scan, 0))::bigint FROM pg_stat_user_tables WHERE relname = 'llm_retention_rounds'";
    let before = database.number(looks).await;
    let process = Process::serve(&["--database-url", &database.url, "--keep-rows-days", "10"]).await;
    wait_until("it looked", Duration::from_secs(60), || async { database.number(looks).await > before }).await;
    process.signal("TERM");
    let (_, log) = process.finished().await;
    assert!(log.contains("retention removes nothing") && database.number(count).await == 6, "{log}");
    // Two days are usual, and do not make six usual.
    retention(&database, &["--keep-rows-days", "23"]).await;
    assert_eq!(database.number(count).await, 4);
    retention(&database, &["--keep-rows-days", "10", "--confirm"]).await;
    assert_eq!(database.number("SELECT count(*) FROM llm_upkeep WHERE retention_held IS NULL").await, 1);
    assert_eq!(database.number(count).await, 0);

    // The clock is a month ahead: one day would go, and must not.
    let app = TestApp::start_on(database.clone(), &[]).await;
    assert_eq!(app.log(calls("recent", 12, 1)).await.count("stored"), 1);
    app.settled().await;
    app.stop().await;
    let client = database.connect().await;
    client.batch_execute("UPDATE llm_retention_rounds SET last_round_at = now() - interval '30 days'").await.unwrap();
    for _ in 0..2 {
        let held = run(&arguments(&["--keep-rows-days", "10"]), &[]).await;
        assert!(held.stderr.contains("clock") && database.number(count).await == 1, "{held:?}");
    }
    retention(&database, &["--keep-rows-days", "10", "--confirm"]).await;
    assert_eq!(database.number(count).await, 0);
}

#[tokio::test]
async fn without_a_clock_nothing_is_touched() {
    let database = filled().await;
    let finished = run(&["retention", "--database-url", &database.url], &[]).await;
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains("COLLECTOR_KEEP_CONTENT_DAYS"), "{finished:?}");
    assert_eq!(database.number("SELECT count(*) FROM llm_logs WHERE prompt IS NOT NULL").await, 240);
}
