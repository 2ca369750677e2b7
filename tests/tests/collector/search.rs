//! Looking for text in prompts and answers: what an index finds is what reading every row finds.

use std::time::Duration;

use gateway_tests::collector::TestApp;
use gateway_tests::postgres::Database;
use gateway_tests::process::wait_until;
use tokio_postgres::Client;

/// Calls of the last days, one a minute, and one far away that has no partition. Every 10th has an answer alone, every 7th is in
/// Chinese; some words are in many, some in one.
const ROWS: &str = "
    SELECT llm_create_partition(((now() AT TIME ZONE 'UTC')::date - n)) FROM generate_series(0, 6) n;
    INSERT INTO llm_logs (request_id, consumer_username, model, started_at, status, team, aborted, error, prompt, response)
    SELECT 'r' || n, 'user' || n % 3, CASE WHEN n % 4 > 0 THEN 'model' || n % 4 END, now() - n * interval '1 minute',
        CASE n % 5 WHEN 0 THEN 200 WHEN 1 THEN 200 WHEN 2 THEN 429 WHEN 3 THEN 503 END,
        CASE n % 8 WHEN 0 THEN 'ml' WHEN 1 THEN 'web' WHEN 2 THEN 'ops' END, n % 9 = 0, CASE WHEN n % 11 = 0 THEN 'failed' END,
        CASE WHEN n % 10 > 0 THEN 'Please Summarise the QUARTERLY report number ' || n || E'\\n' ||
            CASE WHEN n % 7 = 0 THEN '第' || n || '季度的安全报告，请总结。' ELSE 'It''s 50%_off for user' || n || '@example.com \\\\o/' END END,
        CASE WHEN n % 3 > 0 THEN 'Ärger mit ' || n || ' Geräten, naïve café; かな' || n || ' 한국어 𠀀𠀁' || n END
    FROM generate_series(1, 8500) n;
    INSERT INTO llm_logs (request_id, consumer_username, started_at, prompt)
    VALUES ('far', 'user0', '2019-01-01', 'the quarterly report of long ago, 季度')";

/// What people type; some finds many, some one, some nothing, some nothing that an index can help with.
const WORDS: [&str; 24] = [
    "quarterly",
    "QuarterLY REPORT number 84",
    "number 8123",
    "季度",
    "季",
    "第8120季度",
    "安全报告，请总结。",
    "度的安",
    "没有",
    "50%_off",
    "%",
    "_",
    "\\o/",
    "user83",
    "user8399@example.com",
    "ärger mit 83",
    "café; かな",
    "한국어",
    "𠀁83",
    "no such text",
    "it's",
    "r",
    "of long ago",
    "\n第",
];

const FILTERS: [&str; 10] = [
    "",
    ", consumers => ARRAY['user1']",
    ", consumers => ARRAY['user1', 'user2', 'nobody'], outcome => 'good'",
    ", models => ARRAY['unknown', 'model3'], outcome => 'failed'",
    ", outcome => '4xx'",
    ", outcome => '429', consumers => ARRAY['user0']",
    ", outcome => '5xx'",
    ", outcome => 'aborted'",
    ", NULL, NULL, 'any', ARRAY['ml', 'web']",
    ", ARRAY['user1'], NULL, 'good', ARRAY['']",
];

/// The same in SQL as somebody would write it.
const CONDITIONS: [&str; 10] = [
    "true",
    "consumer_username = 'user1'",
    "consumer_username IN ('user1', 'user2') AND status < 400 AND error IS NULL",
    "(model IS NULL OR model IN ('unknown', 'model3')) AND (status IS NULL OR status >= 400 OR error IS NOT NULL)",
    "status BETWEEN 400 AND 499",
    "status = 429 AND consumer_username = 'user0'",
    "status >= 500",
    "aborted",
    "team IN ('ml', 'web')",
    "consumer_username = 'user1' AND status < 400 AND error IS NULL AND team IS NULL",
];

async fn ids(client: &Client, query: &str, words: &str) -> Vec<String> {
    client
        .query(query, &[&words])
        .await
        .unwrap_or_else(|error| panic!("{query}: {error:?}"))
        .iter()
        .map(|row| row.get(0))
        .collect()
}

/// Searches find what reading finds, in the same order. Returns how many calls were found.
async fn assert_found_as_read(client: &Client) -> usize {
    let mut found = 0;
    for (number, words) in WORDS.into_iter().enumerate() {
        let other = 1 + number % (FILTERS.len() - 1);
        for (filter, condition) in [0, other].map(|chosen| (FILTERS[chosen], CONDITIONS[chosen])) {
            for (since, until, limit) in [
                ("'-infinity'", "'infinity'", "10000"),
                ("now() - interval '140 hours'", "now()", "100"),
                ("now() - interval '130 hours'", "now() - interval '5 days'", "7"),
                ("now() - interval '26 hours 10 minutes'", "now() - interval '90 minutes'", "3"),
            ] {
                let search = format!("SELECT request_id FROM llm_search($1, {since}, {until}, {limit}{filter})");
                let read = format!(
                    "SELECT request_id FROM llm_logs WHERE started_at BETWEEN {since} AND {until} AND {condition}
                     AND (strpos(lower(prompt), lower($1)) > 0 OR strpos(lower(response), lower($1)) > 0)
                     ORDER BY started_at DESC LIMIT {limit}"
                );
                // One transaction, so that now() is the same.
                client.batch_execute("BEGIN").await.unwrap();
                let (searched, expected) = (ids(client, &search, words).await, ids(client, &read, words).await);
                client.batch_execute("COMMIT").await.unwrap();
                assert_eq!(searched, expected, "{words:?}{filter} from {since} to {until}");
                found += searched.len();
            }
        }
    }
    found
}

/// How often the indexes of texts were used.
async fn scans(database: &Database) -> i64 {
    let client = database.connect().await;
    client.query("SELECT pg_stat_clear_snapshot()", &[]).await.unwrap();
    let query = "SELECT coalesce(sum(idx_scan), 0)::bigint FROM pg_stat_user_indexes WHERE indexrelname LIKE '%\\_search%'";
    client.query_one(query, &[]).await.unwrap().get(0)
}

async fn indexed(database: &Database) {
    wait_until("all texts are indexed", Duration::from_secs(60), async || {
        database.number("SELECT count(*) FROM llm_search_due").await == 0
    })
    .await;
}

const INDEXES: &str = "SELECT count(*) FROM pg_class WHERE relkind = 'i' AND relname LIKE 'llm\\_logs\\_%\\_search";

#[tokio::test]
async fn an_index_finds_what_reading_finds() {
    let app = TestApp::start().await;
    let database = app.database.clone();
    app.stop().await;
    let client = database.connect().await;
    client.batch_execute(ROWS).await.unwrap();
    let found = assert_found_as_read(&client).await;
    assert!(found > 5_000, "{found}");
    assert_eq!(database.number(&format!("{INDEXES}%'")).await, 0);

    // An index that was interrupted, and hours of a day that is over.
    let old = "to_char(now() AT TIME ZONE 'UTC' - interval '3 days', 'YYYYMMDD')";
    let old: String = client.query_one(&format!("SELECT 'llm_logs_' || {old}"), &[]).await.unwrap().get(0);
    let leftovers = format!(
        "CREATE INDEX {old}_search_05 ON {old} (started_at); CREATE INDEX {old}_search ON {old} (started_at);
         UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{old}_search'::regclass"
    );
    client.batch_execute(&leftovers).await.unwrap();
    let app = TestApp::start_on(database.clone(), &["--search-index"]).await;
    indexed(&database).await;
    assert_eq!(database.number(&format!("{INDEXES}' AND relname = '{old}_search'")).await, 1);
    assert_eq!(database.number(&format!("{INDEXES}\\___' AND relname LIKE '{old}%'")).await, 0);
    assert!(database.number("SELECT count(*) FROM llm_searchable").await >= 5);

    assert_eq!(assert_found_as_read(&client).await, found);
    client.batch_execute("SELECT pg_stat_force_next_flush()").await.unwrap();
    let used = scans(&database).await;
    assert!(used > 100, "{used}");

    // PostgreSQL 17 makes every index like this, and pg_restore always did.
    let path = format!("SET search_path TO pg_catalog; REINDEX INDEX public.{old}_search; RESET search_path");
    client.batch_execute(&path).await.unwrap();

    // What comes late, is erased, or loses its content is found as it is now; no index is made of a day without content.
    client
        .batch_execute(
            "INSERT INTO llm_logs (request_id, consumer_username, started_at, prompt)
             SELECT 'late' || n, 'user1', now() - n * interval '11 hours', '第8120季度: no such text at the QUARTERLY meeting'
             FROM generate_series(1, 12) n;
             UPDATE llm_logs SET prompt = NULL WHERE request_id = 'r8120';
             DELETE FROM llm_logs WHERE request_id = 'r8123'",
        )
        .await
        .unwrap();
    app.stop().await;
    // All of it: what goes between a search and the reading beside it would look like a difference.
    let due =
        "SELECT count(*) FROM llm_logs WHERE started_at < ((now() AT TIME ZONE 'UTC')::date - 4)::timestamp AT TIME ZONE 'UTC'
        AND num_nonnulls(prompt, response) > 0";
    assert!(database.number(due).await > 0);
    let app = TestApp::start_on(database.clone(), &["--search-index", "--keep-content-days", "4"]).await;
    wait_until("content of old days is removed", Duration::from_secs(60), async || {
        database.number("SELECT count(*) FROM llm_searchable WHERE content_removed").await >= 1 && database.number(due).await == 0
    })
    .await;
    client
        .batch_execute(
            "INSERT INTO llm_logs (request_id, consumer_username, started_at, prompt)
        SELECT 'later', 'user1', now() - interval '132 hours', 'the quarterly no such text'",
        )
        .await
        .unwrap();
    assert_found_as_read(&client).await;
    indexed(&database).await;
    assert_eq!(database.number("SELECT count(*) FROM llm_search_due").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn an_outcome_that_is_none_is_refused() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    let error = client.query("SELECT FROM llm_search('', '-infinity', 'infinity', outcome => 'bad')", &[]).await.unwrap_err();
    let message = error.as_db_error().unwrap().message();
    assert_eq!(message, "outcome 'bad' is none of any, good, failed, 4xx, 429, 5xx, aborted");
    app.stop().await;
}
