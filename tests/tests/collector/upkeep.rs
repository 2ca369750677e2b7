//! What is done every few seconds costs by what came since, not by what there is; and who does it is seen.

use std::time::Duration;

use gateway_tests::collector::{Process, run};
use gateway_tests::postgres::Database;
use gateway_tests::process::wait_until;
use tokio_postgres::Client;

/// Rows that a statement of upkeep may read: some thousand, of tables with a hundred thousand.
const MOST_ROWS: i64 = 12_000;

/// 16 workers of Kong that lost 20,000 times five entries, all of it known, and many that lost nothing.
const MANY_HOLES: &str = "
    INSERT INTO llm_sequences (worker, first_seq, last_seq, first_seen_at, last_seen_at)
    SELECT 'w' || w, k * 100 + 1, k * 100 + 95, now() - interval '50 minutes', now() - interval '50 minutes'
    FROM generate_series(1, 16) w, generate_series(0, 1250) k;
    INSERT INTO llm_sequence_gaps (worker, first_seq, last_seq, found_at)
    SELECT 'w' || w, k * 100 + 96, k * 100 + 100, now() - interval '30 minutes'
    FROM generate_series(1, 16) w, generate_series(0, 1249) k;
    INSERT INTO llm_workers (worker, node, given, done, done_at, ended)
    SELECT 'w' || w, 'node', 125095, 125095, now() - interval '20 minutes', true FROM generate_series(1, 5000) w;
    INSERT INTO llm_sequences (worker, first_seq, last_seq)
    SELECT 'w' || w, 1, 125095 FROM generate_series(17, 5000) w";

/// What some seconds bring.
fn some_seconds(round: i64) -> String {
    let first = 125_096 + round * 200;
    format!(
        "INSERT INTO llm_sequences (worker, first_seq, last_seq)
        SELECT 'w' || w, {first} + k * 4, {first} + k * 4 + 3 FROM generate_series(1, 16) w, generate_series(0, 40) k"
    )
}

async fn database_with_many_holes() -> Database {
    let database = Database::create().await;
    assert!(run(&["migrate"], &[("DATABASE_URL", &database.url)]).await.status.success());
    let client = database.connect().await;
    client.batch_execute(MANY_HOLES).await.unwrap();
    // A thousand at a time.
    while database.number("SELECT count(*) FROM llm_sequences WHERE NOT merged").await > 0 {
        client.batch_execute("SELECT llm_close_sequence_gaps()").await.unwrap();
    }
    while database.number("SELECT count(*) FROM llm_sequences WHERE NOT hole_found").await > 0 {
        client.batch_execute("SELECT llm_find_sequence_gaps('5 minutes')").await.unwrap();
    }
    client.batch_execute("SELECT llm_find_tail_gaps('5 minutes')").await.unwrap();
    assert_eq!(database.number("SELECT count(*) FROM llm_sequence_gaps").await, 20_000, "all of them were known");
    database
}

/// Rows that a statement reads, by PostgreSQL's own count.
async fn rows_read(client: &Client, statement: &str) -> i64 {
    // What the session read since it last told others: the same transaction, so that it tells nobody in between.
    let read = "SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::bigint FROM pg_stat_xact_user_tables";
    client.batch_execute("BEGIN").await.unwrap();
    let before: i64 = client.query_one(read, &[]).await.unwrap().get(0);
    client.batch_execute(statement).await.unwrap();
    let after: i64 = client.query_one(read, &[]).await.unwrap().get(0);
    client.batch_execute("COMMIT").await.unwrap();
    after - before
}

#[tokio::test]
async fn looking_for_lost_entries_costs_by_what_came_and_not_by_the_holes_there_are() {
    let database = database_with_many_holes().await;
    let client = database.connect().await;
    for round in 0..2 {
        client.batch_execute(&some_seconds(round)).await.unwrap();
        for statement in [
            "SELECT llm_close_sequence_gaps()",
            "SELECT llm_find_sequence_gaps('5 minutes')",
            "SELECT llm_find_tail_gaps('5 minutes')",
        ] {
            let read = rows_read(&client, statement).await;
            assert!(read < MOST_ROWS, "{statement} read {read} rows");
        }
    }
    // The count would tell.
    assert!(rows_read(&client, "SELECT sum(last_seq) FROM llm_sequences").await > MOST_ROWS);
    // Nothing was found anew or taken back; and what comes late still is.
    assert_eq!(database.number("SELECT sum(last_seq - first_seq + 1)::bigint FROM llm_sequence_gaps").await, 100_000);
    let late = "INSERT INTO llm_sequences (worker, first_seq, last_seq) VALUES ('w3', 97, 98), ('w4', 90, 110)";
    client.batch_execute(late).await.unwrap();
    let arrived = "SELECT sum(arrived)::bigint FROM llm_close_sequence_gaps()";
    assert_eq!(database.number(arrived).await, 2 + 5);
    assert_eq!(database.number("SELECT sum(last_seq - first_seq + 1)::bigint FROM llm_sequence_gaps").await, 100_000 - 7);
}

#[tokio::test]
async fn numbers_that_nobody_merged_for_long_are_no_loss() {
    let database = database_with_many_holes().await;
    let client = database.connect().await;
    // More than are merged at a time came while no collector was there, and fill a hole.
    let many = "INSERT INTO llm_sequences (worker, first_seq, last_seq, first_seen_at)
        SELECT 'v', k, k, now() - interval '1 hour' FROM generate_series(5000, 1, -1) k";
    client.batch_execute(many).await.unwrap();
    for _ in 0..8 {
        let found = database.number("SELECT count(*) FROM llm_find_sequence_gaps('5 minutes')").await;
        assert_eq!(found, 0);
    }
    assert_eq!(database.number("SELECT count(*) FROM llm_sequences WHERE worker = 'v'").await, 1);
}

#[tokio::test]
async fn upkeep_that_another_process_does_is_seen() {
    let database = Database::create().await;
    assert!(run(&["migrate"], &[("DATABASE_URL", &database.url)]).await.status.success());
    let client = database.connect().await;
    // A role that owns nothing, as llm_writer.
    let role = format!("upkeep_test_{}", std::process::id());
    let grants = format!(
        "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA public TO {role};
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}; REVOKE ALL ON llm_upkeep FROM {role};
        GRANT SELECT ON llm_upkeep TO {role};
        UPDATE llm_upkeep SET seen_at = now() - interval '1 hour', retention_held = 'far more'"
    );
    client.batch_execute(&grants).await.unwrap();
    let (_, rest) = database.url.split_once('@').unwrap();
    let process = Process::serve(&["--database-url", &format!("postgres://{role}@{rest}")]).await;
    let page = || async { gateway_tests::collector::get(&format!("{}/metrics", process.url)).await.unwrap().text };
    let value = |page: &str, name: &str| -> Option<f64> {
        page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    };
    wait_until("the age is told", Duration::from_secs(60), || async {
        let page = page().await;
        value(&page, "llm_collector_upkeep_age_seconds").is_some_and(|age| (3_600.0..7_200.0).contains(&age))
            && value(&page, "llm_collector_retention_held") == Some(1.0)
    })
    .await;
    process.signal("TERM");
    process.finished().await;

    // Whoever owns the tables does it, says so, and tells no age of it.
    let process = Process::serve(&["--database-url", &database.url]).await;
    let recent = "SELECT count(*) FROM llm_upkeep WHERE seen_at > now() - interval '1 minute'";
    wait_until("it is at work", Duration::from_secs(60), || async { database.number(recent).await == 1 }).await;
    let page = gateway_tests::collector::get(&format!("{}/metrics", process.url)).await.unwrap().text;
    assert_eq!(value(&page, "llm_collector_upkeep_age_seconds"), None);
}
