//! Erasing one person's content.

use gateway_tests::collector::{Finished, TestApp, run};
use gateway_tests::postgres::Database;
use serde_json::Value;

use crate::retention::{call, noon};

/// Ten calls each of three consumers, five of them 40 days ago, and rejected entries.
async fn filled() -> Database {
    let app = TestApp::start().await;
    let calls: Vec<Value> = ["ann", "ann2", "bob"]
        .iter()
        .flat_map(|name| (0..10).map(move |n| call(&format!("{name}-{n}"), name, noon(if n < 5 { 40 } else { 0 }))))
        .collect();
    assert_eq!(app.log(Value::from(calls).to_string()).await.count("stored"), 30);
    let rejected = r#"[{"consumer":{"username":"ann"}},{"consumer":{"username":"bob"},"note":"ann"},{"service":"\"ann\""}]"#;
    assert_eq!(app.log(rejected).await.count("rejected"), 3);
    app.settled().await;
    let database = app.database.clone();
    app.stop().await;
    let broken = "INSERT INTO llm_rejected (reason, raw, raw_sha256) VALUES ('broken', '{\"consumer\":{\"username\":\"ann\"},\"a\":', 'x')";
    database.connect().await.batch_execute(broken).await.unwrap();
    database
}

async fn erase(database: &Database, arguments: &[&str]) -> Finished {
    let mut all = vec!["erase", "--database-url", database.url.as_str()];
    all.extend_from_slice(arguments);
    run(&all, &[]).await
}

const CONTENT: &str = "SELECT count(*) FROM llm_logs WHERE prompt IS NOT NULL AND response IS NOT NULL AND reasoning IS NOT NULL
    AND tool_calls IS NOT NULL AND raw_log #> '{request,body}' IS NOT NULL AND raw_log #> '{response,body}' IS NOT NULL
    AND error LIKE 'failed on%'";
const NO_CONTENT: &str = "SELECT count(*) FROM llm_logs WHERE prompt IS NULL AND response IS NULL AND reasoning IS NULL
    AND tool_calls IS NULL AND raw_log #> '{request,body}' IS NULL AND raw_log #> '{response,body}' IS NULL AND error = '[error]'
    AND raw_log #>> '{request,id}' = request_id AND prompt_tokens = 300";

#[tokio::test]
async fn content_of_one_consumer_goes_and_rows_and_tokens_stay() {
    let database = filled().await;
    let looked = erase(&database, &["--consumer", "ann", "--dry-run"]).await;
    assert!(looked.stdout.contains("the content of 10 rows (of 10 rows, which stay), and 2 rejected entries"), "{looked:?}");
    assert_eq!(database.number(CONTENT).await, 30);

    let erased = erase(&database, &["--consumer", "ann", "--yes"]).await;
    assert!(erased.status.success() && erased.stdout.starts_with("erased: the content of 10 rows"), "{erased:?}");
    assert_eq!(database.number(&format!("{CONTENT} AND consumer_username <> 'ann'")).await, 20);
    assert_eq!(database.number(&format!("{NO_CONTENT} AND consumer_username = 'ann'")).await, 10);
    let vacuumed = "SELECT count(*) FROM pg_stat_user_tables WHERE relname ~ '^llm_logs_[0-9]{8}$' AND vacuum_count > 0";
    gateway_tests::process::wait_until("its two partitions are vacuumed", std::time::Duration::from_secs(5), || async {
        database.number(vacuumed).await == 2
    })
    .await;
    assert_eq!(database.number("SELECT count(*) FROM llm_rejected").await, 2);
    assert_eq!(database.number("SELECT count(*) FROM llm_rejected WHERE convert_from(raw, 'UTF8') LIKE '%\"bob\"%'").await, 1);
}

#[tokio::test]
async fn only_calls_before_a_day_when_one_is_given() {
    let database = filled().await;
    let before = noon(20).format("%Y-%m-%d").to_string();
    let erased = erase(&database, &["--consumer", "bob", "--before", &before, "--yes"]).await;
    assert!(erased.stdout.contains("the content of 5 rows (of 5 rows, which stay), and 0 rejected"), "{erased:?}");
    assert_eq!(database.number(CONTENT).await, 25);
    assert_eq!(database.number("SELECT count(*) FROM llm_logs").await, 30);
    let wrong = erase(&database, &["--consumer", "bob", "--before", "yesterday", "--yes"]).await;
    assert!(!wrong.status.success() && wrong.stderr.contains("2026-11-01"), "{wrong:?}");
}

#[tokio::test]
async fn rows_go_too_when_asked_for() {
    let database = filled().await;
    let erased = erase(&database, &["--consumer", "ann", "--rows", "--yes"]).await;
    assert!(erased.stdout.starts_with("erased: 10 rows, 10 of them with content"), "{erased:?}");
    assert_eq!(database.number("SELECT count(*) FROM llm_logs").await, 20);
    assert_eq!(database.number("SELECT count(*) FROM llm_logs WHERE consumer_username = 'ann'").await, 0);
}

#[tokio::test]
async fn nothing_is_erased_without_a_yes() {
    let database = filled().await;
    let refused = erase(&database, &["--consumer", "ann"]).await;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("--yes"), "{refused:?}");
    assert_eq!(database.number(CONTENT).await, 30);
}

#[tokio::test]
async fn nobody_of_that_name_is_an_error() {
    let database = filled().await;
    for (name, says) in [
        ("", "names nobody"),
        (" ", "names nobody"),
        ("anna", "no consumer anna"),
        ("Ann", "did you mean ann?"),
        ("%", "no consumer %"),
    ] {
        for how in ["--yes", "--dry-run"] {
            let refused = erase(&database, &["--consumer", name, how]).await;
            assert_eq!(refused.status.code(), Some(1), "{name:?} {refused:?}");
            assert!(refused.stderr.contains(says) && refused.stdout.is_empty(), "{name:?} {refused:?}");
        }
    }
    assert_eq!(database.number(CONTENT).await, 30);
    // Whose rows are gone is known by the bills, and one of whom nothing but a rejected entry is there, by that.
    assert!(erase(&database, &["--consumer", "ann", "--rows", "--yes"]).await.status.success());
    let again = erase(&database, &["--consumer", "ann", "--rows", "--yes"]).await;
    assert!(again.status.success() && again.stdout.starts_with("erased: 0 rows"), "{again:?}");
    let only_rejected =
        "INSERT INTO llm_rejected (reason, raw, raw_sha256) VALUES ('r', '{\"consumer\":{\"username\":\"eve\"}}', 'y')";
    database.connect().await.batch_execute(only_rejected).await.unwrap();
    assert!(erase(&database, &["--consumer", "eve", "--yes"]).await.status.success());
    assert_eq!(database.number("SELECT count(*) FROM llm_rejected WHERE reason = 'r'").await, 0);
}

#[tokio::test]
async fn it_does_not_run_beside_retention() {
    let database = filled().await;
    let holder = database.connect().await;
    holder.batch_execute("SELECT pg_advisory_lock(hashtext('llm_logs'), hashtext('retention'))").await.unwrap();
    let (url, mut erasing) = (database.url.clone(), Box::pin(erase(&database, &["--consumer", "ann", "--yes"])));
    let other = gateway_tests::postgres::connect(&url).await;
    let asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_try_advisory_lock%'
        AND pid <> pg_backend_pid()";
    let waits = gateway_tests::process::wait_until("it asks for the lock", std::time::Duration::from_secs(10), || async {
        other.query_one(asked, &[]).await.unwrap().get::<_, i64>(0) == 1
    });
    tokio::select! {
        () = waits => {}
        finished = &mut erasing => panic!("it did not wait: {finished:?}"),
    }
    assert_eq!(database.number(CONTENT).await, 30);
    holder.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    let finished = erasing.await;
    assert!(finished.status.success(), "{finished:?}");
    assert_eq!(database.number(CONTENT).await, 20);
}
