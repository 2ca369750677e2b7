//! Taking over the rows of a table `llm_logs` that was made by hand.

use std::time::Duration;

use gateway_tests::collector::{Finished, binary, run};
use gateway_tests::fixtures;
use gateway_tests::postgres::Database;
use gateway_tests::process::wait_until;
use serde_json::Value;

/// As it stood in many places. Its index has the name of one of ours.
const BY_HAND: &str = "CREATE TABLE llm_logs (id serial PRIMARY KEY, request_id varchar(50), consumer_username varchar(100),
        prompt text, response text, latency_ms integer, status integer, raw_log text, created_at timestamp DEFAULT now());
    CREATE INDEX llm_logs_started_at ON llm_logs (created_at);";

/// 300 entries of Kong's, whose key is in a header and in what was asked, and rows of every other kind.
const ROWS: &str = r#"
    INSERT INTO llm_logs (request_id, consumer_username, prompt, response, latency_ms, status, raw_log)
    SELECT 'k' || n, 'ann', 'unused', 'unused', 1, 1, format(
        '{"request":{"id":"k%1$s","uri":"/v1/chat/completions","headers":{"authorization":"Bearer KEEPOUT%1$s"},"body":{"model":"m","messages":[{"role":"user","content":"ask %1$s with sk-abcdefghij0123456789KEEPOUT%1$s"}]}},"response":{"status":200,"body":{"model":"m1","choices":[{"index":0,"message":{"role":"assistant","content":"say %1$s"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}},"consumer":{"username":"ann"},"latencies":{"request":40},"llm":{"worker":"w","seq":%1$s},"started_at":%2$s}',
        n, 1795400000000 + n)
    FROM generate_series(1, 300) n;
    INSERT INTO llm_logs (request_id, consumer_username, prompt, response, latency_ms, status, raw_log)
        SELECT request_id, consumer_username, prompt, response, latency_ms, status, raw_log FROM llm_logs WHERE id = 1;
    INSERT INTO llm_logs (request_id, consumer_username, prompt, response, latency_ms, status, raw_log, created_at) VALUES
        ('c1', 'bob', 'hello', 'world', 7, 200, NULL, '2026-11-20 10:00:00.5'),
        ('c1', 'bob', 'hello', 'world', 7, 200, NULL, '2026-11-20 10:00:30'),
        ('c1', 'bob', 'again', 'world', 7, 200, NULL, '2026-11-20 10:00:00.5'),
        (NULL, 'bob', 'no id', NULL, NULL, NULL, NULL, '2026-11-20 10:01'),
        ('', 'bob', 'no id', NULL, NULL, NULL, NULL, '2026-11-20 10:01'),
        ('j1', 'cyd', 'mine is sk-abcdefghij0123456789KEEPOUT', 'abcd', 1, 200, 'no json, Bearer KEEPOUT', '2026-11-20 10:02'),
        ('t1', 'cyd', 'when?', 'never', 1, 200, NULL, NULL),
        ('t2', 'cyd', 'when?', 'never', 1, 200, NULL, 'infinity'),
        ('n1', 'cyd', NULL, NULL, NULL, NULL, '{"request":{"body":{"messages":[{"role":"user","content":"a\u0000b"}]}},"started_at":1795400100000,"llm":{"api":"chat"}}', NULL),
        ('e1', NULL, 'fail', '{"error":{"message":"boom"}}', 5, 500, NULL, '2026-11-20 10:03'),
        ('h1', 'cyd', 'huge', 'entry', 5, 200, '{"request":{"id":"KEEPOUT","a":"' || repeat('x', 65 << 20) || '"},"started_at":1}', '2026-11-20 10:04'),
        ('l1', 'cyd', repeat('y', 3 << 19), 'long', 5, 200, NULL, '2026-11-20 10:05');"#;

async fn by_hand() -> Database {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(&format!("{BY_HAND} {ROWS}")).await.unwrap();
    let entry = String::from_utf8(fixtures::entry("chat-en")).unwrap();
    client.execute("INSERT INTO llm_logs (request_id, raw_log) VALUES (NULL, $1)", &[&entry]).await.unwrap();
    database
}

async fn import(database: &Database, arguments: &[&str]) -> Finished {
    let mut all =
        vec!["import", "--database-url", database.url.as_str(), "--time-zone", "Asia/Shanghai", "--max-decoded-bytes", "1048576"];
    all.extend_from_slice(arguments);
    run(&all, &[]).await
}

fn summary(finished: &Finished) -> Value {
    assert!(finished.status.success(), "{finished:?}");
    serde_json::from_str(&finished.stdout).unwrap()
}

/// What the rows that are not of the 300 must be, by hand: identity, consumer, start in Shanghai, time, status, prompt, answer, error.
const EXPECTED: &[&str] = &[
    "c1|bob|2026-11-20 10:00:00.5|7|200|hello|world|-|-",
    "c1/llm_logs_original/304|bob|2026-11-20 10:00:00.5|7|200|again|world|-|-",
    "e1|anonymous|2026-11-20 10:03:00|5|500|fail|-|boom|-",
    "h1|cyd|2026-11-20 10:04:00|5|200|huge|entry|-|-",
    "j1|cyd|2026-11-20 10:02:00|1|200|mine is [key]|abcd|-|-",
    "l1|cyd|2026-11-20 10:05:00|5|200|(yyyy)|long|-|cut",
    "llm_logs_original/305|bob|2026-11-20 10:01:00|-|-|no id|-|-|-",
    "llm_logs_original/306|bob|2026-11-20 10:01:00|-|-|no id|-|-|-",
    "n1|cyd|2026-11-23 10:15:00|-|-|a\u{FFFD}b|-|-|-",
];

const LISTED: &str = "SELECT concat_ws('|', request_id, consumer_username, started_at AT TIME ZONE 'Asia/Shanghai', coalesce(latency_ms::text, '-'),
        coalesce(status::text, '-'), CASE WHEN length(prompt) > 100 THEN '(' || left(prompt, 4) || ')' ELSE coalesce(prompt, '-') END,
        coalesce(response, '-'), coalesce(error, '-'), CASE WHEN truncated THEN 'cut' ELSE '-' END)
    FROM llm_logs WHERE consumer_username <> 'ann' AND request_id <> $1 ORDER BY request_id COLLATE \"C\"";

/// Everything that the database holds besides the table made by hand must be without keys.
async fn assert_no_keys(database: &Database) {
    let client = database.connect().await;
    let tables = "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'm') AND relnamespace = 'public'::regnamespace
        AND relname <> 'llm_logs_original'";
    let tables = client.query(tables, &[]).await.unwrap();
    assert!(tables.len() > 20);
    for table in tables {
        let table: String = table.get(0);
        let found = format!("SELECT count(*) FROM {table} t WHERE t::text LIKE '%KEEPOUT%' OR t::text LIKE '%4b4545504f5554%'");
        assert_eq!(database.number(&found).await, 0, "{table}");
    }
    let left = "SELECT count(*) FROM llm_logs_original WHERE raw_log LIKE '%KEEPOUT%' OR prompt LIKE '%KEEPOUT%'";
    assert_eq!(database.number(left).await, 303, "the table made by hand is as it was");
}

async fn assert_taken_over(database: &Database) {
    let recorded = fixtures::expected_row("chat-en");
    let id = recorded["request_id"].as_str().unwrap();
    let client = database.connect().await;
    let rows = client.query(LISTED, &[&id]).await.unwrap();
    let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(rows, EXPECTED);
    let row = client
        .query_one("SELECT consumer_username, prompt, response, prompt_tokens, model FROM llm_logs WHERE request_id = $1", &[&id])
        .await
        .unwrap();
    let texts = [row.get::<_, &str>(0), row.get(1), row.get(2), row.get(4)];
    assert_eq!(texts, ["consumer_username", "prompt", "response", "model"].map(|name| recorded[name].as_str().unwrap()));
    assert_eq!(i64::from(row.get::<_, i32>(3)), recorded["prompt_tokens"].as_i64().unwrap());
    let ann = "SELECT count(*) FROM llm_logs l, substr(request_id, 2) n WHERE consumer_username = 'ann' AND prompt = format('ask %s with [key]', n)
        AND response = 'say ' || n AND model = 'm1' AND latency_ms = 40 AND status = 200 AND prompt_tokens = 3 AND completion_tokens = 2
        AND finish_reason = 'stop' AND started_at = to_timestamp((1795400000000 + n::bigint) / 1000.0)
        AND raw_log #>> '{request,body,model}' = 'm'";
    assert_eq!(database.number(ann).await, 300);
    assert_eq!(database.number("SELECT count(*) FROM llm_logs").await, 310);
    // Each call is counted once, whatever was killed.
    for (what, expected) in [("calls", 300), ("prompt_tokens", 900), ("completion_tokens", 600)] {
        let used = format!("SELECT sum({what})::bigint FROM llm_usage_counts WHERE consumer_username = 'ann'");
        assert_eq!(database.number(&used).await, expected, "{what}");
    }
    assert_eq!(database.number("SELECT sum(calls)::bigint FROM llm_usage_counts").await, 310);
    assert_eq!(database.number("SELECT count(*) FROM llm_rejected WHERE reason LIKE '%started_at%'").await, 2);
    // What a worker of Kong's numbered long ago says nothing of what is lost today.
    assert_eq!(database.number("SELECT count(*) FROM llm_sequences").await, 0);
    assert_eq!(database.number("SELECT count(*) FROM llm_logs_original").await, 314);
    assert_no_keys(database).await;
}

#[tokio::test]
async fn rows_come_over_once_even_if_it_is_killed_half_way() {
    let database = by_hand().await;
    let told = run(&["migrate"], &[("DATABASE_URL", &database.url)]).await;
    assert!(!told.status.success(), "{told:?}");
    for words in ["nothing was changed", "llm-collector import", "--dry-run", "docs/move.md"] {
        assert!(told.stderr.contains(words), "{words}: {told:?}");
    }
    let looked = summary(&import(&database, &["--dry-run", "--json"]).await);
    let numbers = |summary: &Value| {
        ["rows", "stored", "duplicates", "rejected", "from_columns"].map(|name| summary[name].as_i64().unwrap())
    };
    // A repeat of an entry is found out by PostgreSQL alone.
    assert_eq!(numbers(&looked), [314, 311, 1, 2, 10], "{looked}");
    assert_eq!(database.number("SELECT count(*) FROM llm_logs").await, 314, "still the table made by hand");
    assert_eq!(
        database.number("SELECT count(*) FROM pg_class WHERE relname LIKE 'llm%original%' OR relname = 'llm_import'").await,
        0
    );

    // Its first page is stored and cannot be noted.
    let client = database.connect().await;
    client
        .batch_execute(
            "SELECT pg_advisory_lock(4711);
            CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NEW; END $$;
            CREATE FUNCTION catch() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
                IF to_regclass('llm_import') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'waits') THEN
                    CREATE TRIGGER waits BEFORE UPDATE ON llm_import FOR EACH ROW EXECUTE FUNCTION wait();
                END IF;
            END $$;
            CREATE EVENT TRIGGER catches ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION catch();",
        )
        .await
        .unwrap();
    let mut killed = tokio::process::Command::new(binary())
        .args(["import", "--time-zone", "Asia/Shanghai", "--database-url", &database.url])
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND query LIKE 'UPDATE llm_import%'
        AND datname = current_database()";
    wait_until("a page is stored", Duration::from_secs(60), || async { database.number(waiting).await == 1 }).await;
    let other = import(&database, &[]).await;
    assert!(!other.status.success() && other.stderr.contains("another import is at work"), "{other:?}");
    killed.kill().await.unwrap();
    assert_eq!(database.number("SELECT count(*) FROM llm_logs").await, 200);
    assert_eq!(database.number("SELECT count(*) FROM llm_logs_original").await, 314);
    let end = "SELECT pg_terminate_backend(pid)::int::bigint FROM pg_stat_activity WHERE query LIKE 'UPDATE llm_import%'
        AND datname = current_database()";
    assert_eq!(database.number(end).await, 1);
    client.batch_execute("SELECT pg_advisory_unlock(4711)").await.unwrap();

    let rest = summary(&import(&database, &["--json"]).await);
    assert_eq!(numbers(&rest), [314, 110, 202, 2, 10], "{rest}");
    assert_eq!(rest["oldest"], "2026-11-20T02:00:00.500Z");
    assert_taken_over(&database).await;
    // Once more changes nothing, and tells the same.
    assert_eq!(summary(&import(&database, &["--json"]).await), rest);
    assert_taken_over(&database).await;
    assert_eq!(run(&["migrate"], &[("DATABASE_URL", &database.url)]).await.stdout, "the schema is current\n");
}

#[tokio::test]
async fn a_person_is_told_what_came_over_and_what_is_left_to_do() {
    let database = Database::create().await;
    let client = database.connect().await;
    // Renamed as `migrate` used to say, with the types that others chose.
    client
        .batch_execute(
            "CREATE TABLE llm_logs_old (id bigint PRIMARY KEY, raw_log jsonb, created_at timestamptz, remark text);
            INSERT INTO llm_logs_old VALUES (-5, '{\"request\":{\"id\":\"a\"}}', '2020-01-01 00:00Z'), (3, '{\"request\":{}}', now()),
                (9, '\"{\\\"request\\\":{\\\"id\\\":\\\"q\\\"},\\\"started_at\\\":1795400000000}\"', NULL), (10, '{}', now())",
        )
        .await
        .unwrap();
    assert!(run(&["migrate"], &[("DATABASE_URL", &database.url)]).await.status.success());
    let finished = import(&database, &["--keep-rows-days", "400"]).await;
    assert!(finished.status.success(), "{finished:?}");
    for words in [
        "llm_logs_original: 4 rows; 4 came over, 0 duplicates, 0 rejected",
        "1 of them have no log entry",
        "The oldest call is of 2020-01-01: retention (400 days) is due",
        "DROP TABLE llm_logs_original, llm_import;",
    ] {
        assert!(finished.stdout.contains(words), "{words}: {finished:?}");
    }
    assert!(finished.stderr.contains("not taken over, and stay in llm_logs_original: remark"), "{finished:?}");
    let ids = "SELECT string_agg(request_id, ' ' ORDER BY request_id COLLATE \"C\") FROM llm_logs";
    let ids: String = client.query_one(ids, &[]).await.unwrap().get(0);
    assert_eq!(ids, "a llm_logs_original/10 llm_logs_original/3 q");
    client.batch_execute("DROP TABLE llm_logs_original, llm_import").await.unwrap();
    let nothing = import(&database, &[]).await;
    assert!(!nothing.status.success() && nothing.stderr.contains("there is nothing to import"), "{nothing:?}");
}

#[tokio::test]
async fn what_is_in_the_way_is_named_and_nothing_is_changed() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(&format!("{BY_HAND} CREATE VIEW llm_usage_daily AS SELECT 1 AS one")).await.unwrap();
    for (mend, words) in [
        ("SELECT 1", "view \"llm_usage_daily\""),
        ("DROP VIEW llm_usage_daily; ALTER TABLE llm_logs DROP COLUMN id", "no column id"),
        ("CREATE TABLE llm_logs_original (id int)", "several tables whose rows could be imported: llm_logs_original, llm_logs."),
    ] {
        client.batch_execute(mend).await.unwrap();
        let finished = import(&database, &[]).await;
        assert!(!finished.status.success() && finished.stderr.contains(words), "{words}: {finished:?}");
        let changed = "SELECT count(*) FROM pg_class WHERE relname IN ('refinery_schema_history', 'llm_import', 'llm_rejected')";
        assert_eq!(database.number(changed).await, 0, "{words}");
    }
    let zone = run(&["import", "--database-url", &database.url, "--time-zone", "Mars/Base"], &[]).await;
    assert!(!zone.status.success() && zone.stderr.contains("knows no time zone \"Mars/Base\""), "{zone:?}");
}
