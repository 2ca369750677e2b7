//! PostgreSQL, and what is in it. Each test has a database of its own, with the collector's schema and one row.

use gateway_tests::collector::{Process, post, run};
use gateway_tests::fixtures;
use gateway_tests::postgres::Database;
use gateway_tests::process::free_port;

use super::{Site, with_password};

impl Site {
    /// Lets doctor look at an own database.
    pub(super) async fn own_database(&mut self) -> Database {
        let database = Database::create().await;
        let variables = [("DATABASE_URL", database.url.as_str())];
        assert!(run(&["migrate"], &variables).await.status.success());
        self.set("DATABASE_URL", with_password(&database.url, "a-long-and-random-one"));
        database
    }
}

pub(super) async fn execute(database: &Database, statement: &str) {
    database.connect().await.batch_execute(statement).await.unwrap();
}

const ONE_ROW: &str =
    "INSERT INTO llm_logs (request_id, consumer_username, started_at, status, raw_log) VALUES ('r', 'z1', now(), 200,
    '{\"service\":{},\"llm\":{},\"request\":{\"headers\":{},\"body\":{\"prompt\":\"my key is sk-0123456789abcdef\"}}}')";

#[tokio::test]
async fn a_database_that_is_away_or_refuses_is_a_problem_and_its_password_stays_secret() {
    let mut site = Site::healthy().await;
    let port = free_port().to_string();
    site.set("DATABASE_URL", format!("postgres://u:pa55w0rd-of-u@127.0.0.1:{port}/x"));
    let said = site.doctor().await;
    said.assert_problem("postgresql", &[&port]);
    assert!(!said.stdout.contains("pa55w0rd"), "{}", said.stdout);
    site.variables.remove("DATABASE_URL");
    site.doctor().await.assert_problem("postgresql", &["DATABASE_URL"]);
}

#[tokio::test]
async fn a_password_that_everybody_tries_first_is_a_problem() {
    let mut site = Site::healthy().await;
    let bare = site.session.gateway.database.url.clone();
    for password in ["postgres", "Password", "changeme"] {
        site.set("DATABASE_URL", with_password(&bare, password));
        site.doctor().await.assert_problem("postgresql.password", &["tries first"]);
    }
    site.set("DATABASE_URL", bare);
    site.doctor().await.assert_problem("postgresql.password", &["asks for no password"]);
}

#[tokio::test]
async fn a_database_without_the_schema_is_a_problem() {
    let mut site = Site::healthy().await;
    let empty = Database::create().await;
    site.set("DATABASE_URL", with_password(&empty.url, "a-long-and-random-one"));
    site.doctor().await.assert_problem("postgresql.schema", &["llm_logs"]);
}

#[tokio::test]
async fn a_table_without_rows_is_a_warning() {
    let mut site = Site::healthy().await;
    let database = site.own_database().await;
    let said = site.doctor().await;
    said.assert_warning("rows", &["no row yet"]);
    assert_eq!(said.status, Some(0), "{said:?}");
    execute(&database, ONE_ROW).await;
    let said = site.doctor().await;
    said.assert_quiet("rows");
    // What people write is not looked at for keys.
    said.assert_quiet("keys");
}

#[tokio::test]
async fn missing_partitions_and_rows_outside_of_them_are_found() {
    let mut site = Site::healthy().await;
    let database = site.own_database().await;
    let drop_ahead = "DO $$ DECLARE name text; BEGIN
        FOR name IN SELECT relname FROM pg_class WHERE relname ~ '^llm_logs_[0-9]{8}$'
                    AND right(relname, 8) > to_char(now() AT TIME ZONE 'UTC' + interval '1 day', 'YYYYMMDD')
        LOOP EXECUTE 'DROP TABLE ' || name; END LOOP; END $$";
    execute(&database, drop_ahead).await;
    execute(&database, "INSERT INTO llm_logs (request_id, consumer_username, started_at) VALUES ('r', 'z1', '1999-01-01')").await;
    let said = site.doctor().await;
    said.assert_problem("partitions", &["1 day ahead"]);
    said.assert_warning("partitions.default", &["1 row belongs"]);
}

#[tokio::test]
async fn rejected_and_lost_entries_are_problems() {
    let mut site = Site::healthy().await;
    let database = site.own_database().await;
    execute(&database, "INSERT INTO llm_rejected (reason, raw, raw_sha256) VALUES ('x', 'x', 'x'), ('y', 'y', 'y')").await;
    execute(&database, "INSERT INTO llm_sequence_gaps (worker, first_seq, last_seq) VALUES ('w', 11, 20), ('w', 31, 31)").await;
    let old =
        "INSERT INTO llm_sequence_gaps (worker, first_seq, last_seq, found_at) VALUES ('v', 1, 500, now() - interval '8 days')";
    execute(&database, old).await;
    let said = site.doctor().await;
    said.assert_problem("rejected", &["2 entries"]);
    said.assert_problem("lost", &["11 entries"]);
}

#[tokio::test]
async fn keys_in_rows_are_a_problem_wherever_they_stand() {
    let leaks = [
        r#"{"request":{"headers":{"x-api-key":"short"}}}"#,
        r#"{"request":{"headers":{},"uri":"/v1/models?apikey=sk-0123456789abcdef"}}"#,
        r#"{"request":{"headers":{"x-own":"sk-0123456789abcdef"}}}"#,
    ];
    let mut site = Site::healthy().await;
    let database = site.own_database().await;
    execute(&database, ONE_ROW).await;
    for (number, leak) in leaks.iter().enumerate() {
        let insert = format!(
            "INSERT INTO llm_logs (request_id, consumer_username, started_at, raw_log) VALUES ('leak-{number}', 'z1', now(), '{leak}')"
        );
        execute(&database, &insert).await;
        site.doctor().await.assert_problem("keys", &[&format!("{} of the newest {} rows", number + 1, number + 2)]);
    }
}

#[tokio::test]
async fn rows_without_bodies_and_with_cut_ones_are_found() {
    let mut site = Site::healthy().await;
    let database = site.own_database().await;
    execute(&database, ONE_ROW).await;
    execute(&database, "UPDATE llm_logs SET truncated = true").await;
    // As a real Kong logs a call without the plugin.
    let file = site.data.path().join("entry.json");
    std::fs::write(&file, fixtures::entry("kong-key-in-header-no-bodies")).unwrap();
    let variables = [("DATABASE_URL", database.url.as_str())];
    assert!(run(&["replay", file.to_str().unwrap()], &variables).await.status.success());
    let said = site.doctor().await;
    said.assert_problem("bodies", &["1 of the newest 2 rows"]);
    said.assert_warning("bodies.cut", &["1 of the newest 2 rows"]);
}

#[tokio::test]
async fn entries_that_wait_on_disk_are_a_warning() {
    let mut site = Site::healthy().await;
    let database = Database::create().await;
    let collector = Process::serve(&["--database-url", &database.url]).await;
    // Nobody may connect any more, and then those who are there have to go: in one transaction they could come back before it ends.
    let name = database.url.rsplit('/').next().unwrap();
    let client = site.session.gateway.database.connect().await;
    client.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await.unwrap();
    let end = format!("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'");
    client.batch_execute(&end).await.unwrap();
    let answer = post(&format!("{}/log", collector.url), fixtures::small_batch("s", 3)).await.unwrap();
    assert_eq!(answer.count("spooled"), 3);
    site.set("COLLECTOR_URL", &collector.url);
    let said = site.doctor().await;
    said.assert_warning("collector", &["PostgreSQL does not"]);
    said.assert_warning("collector.spool", &["bytes wait on disk"]);
    said.assert_problem("kong.http-log", &[&collector.url]);
}

#[tokio::test]
async fn a_worker_whose_queue_stands_is_a_problem() {
    let mut site = Site::healthy().await;
    let database = site.own_database().await;
    let worker = |name: &str, given: u32, done: u32, minutes: u32, ended: bool, seen: u32| {
        format!(
            "INSERT INTO llm_workers (worker, node, given, done, done_at, ended, seen_at) VALUES ('{name}', 'n', {given}, {done},
             now() - interval '{minutes} minutes', {ended}, now() - interval '{seen} seconds')"
        )
    };
    // Idle, just sending, ended, of a node that tells nothing any more: none of them stands.
    for fine in [
        worker("idle", 7, 7, 90, false, 5),
        worker("busy", 9, 7, 1, false, 0),
        worker("gone", 9, 7, 90, true, 5),
        worker("silent", 9, 7, 90, false, 600),
    ] {
        execute(&database, &fine).await;
    }
    site.doctor().await.assert_quiet("kong.queues");
    execute(&database, &worker("77-1-ab", 120, 100, 90, false, 5)).await;
    site.doctor().await.assert_problem("kong.queues", &["77-1-ab", "of n", "20 entries"]);
}

#[tokio::test]
async fn upkeep_that_does_not_work_and_retention_that_waits_for_somebody_are_problems() {
    let mut site = Site::healthy().await;
    let database = site.own_database().await;
    let said = site.doctor().await;
    said.assert_quiet("upkeep");
    said.assert_quiet("retention");
    execute(&database, "UPDATE llm_upkeep SET seen_at = now() - interval '2 hours', retention_held = '60 days are due'").await;
    let said = site.doctor().await;
    said.assert_problem("upkeep", &["2 h ago"]);
    assert!(said.mend("upkeep").contains("gateway logs upkeep"), "{said:?}");
    said.assert_problem("retention", &["60 days are due"]);
    assert!(["--dry-run", "--confirm"].iter().all(|flag| said.mend("retention").contains(flag)), "{said:?}");
}

#[tokio::test]
async fn a_feed_that_is_late_or_failed_or_keeps_rows_is_a_problem() {
    let mut site = Site::healthy().await;
    let database = site.own_database().await;
    let feed = "INSERT INTO llm_feeds (name, kind, target, slice_hours, has_content, covered_until)
        VALUES ('parquet', 'parquet', 'id', 24, true, now() - interval '20 hours')";
    execute(&database, feed).await;
    site.doctor().await.assert_quiet("feed");
    execute(&database, "UPDATE llm_feeds SET covered_until = now() - interval '4 days'").await;
    site.doctor().await.assert_problem("feed", &["parquet", "the last 4 days"]);
    let failed = "UPDATE llm_feeds SET covered_until = now(), failure = 'day=2026-11-26: no space';
        UPDATE llm_upkeep SET waits_for_feed = '3 days are not in the feed parquet'";
    execute(&database, failed).await;
    let said = site.doctor().await;
    said.assert_problem("feed", &["no space"]);
    said.assert_problem("retention.feed", &["3 days are not in the feed parquet"]);
}

#[tokio::test]
async fn a_collector_that_is_not_logged_in_as_the_role_that_can_only_add_is_a_problem_beside_upkeep() {
    let mut site = Site::healthy().await;
    site.own_database().await;
    site.doctor().await.assert_quiet("postgresql.writer");
    site.set("COLLECTOR_READY_FILE", "/run/upkeep/ready".to_owned());
    site.doctor().await.assert_problem("postgresql.writer", &["llm_writer"]);
}

#[tokio::test]
async fn a_time_zone_that_the_server_no_longer_knows_is_a_problem() {
    let mut site = Site::healthy().await;
    let database = site.own_database().await;
    site.doctor().await.assert_quiet("clock");
    // As with another image of PostgreSQL: the check looks at what is written only.
    let gone = "ALTER TABLE llm_site DROP CONSTRAINT llm_site_time_zone_check; UPDATE llm_site SET time_zone = 'Gone/Zone'";
    execute(&database, gone).await;
    let said = site.doctor().await;
    said.assert_problem("clock", &["Gone/Zone"]);
    assert!(said.mend("clock").contains("SITE_TIME_ZONE"), "{said:?}");
}
