//! What the kit's roles may do in PostgreSQL, on a server of its own: roles belong to a whole server.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use gateway_tests::collector::{TestApp, binary, run};
use gateway_tests::fixtures;
use gateway_tests::postgres::{Cluster, Database, connect};
use gateway_tests::process::wait_until;

use crate::webhook::Receiver;

/// The kit's database `llm` with its roles, as an installation makes them.
struct Kit {
    cluster: Cluster,
}

impl Kit {
    async fn install() -> Self {
        let cluster = Cluster::start(&["-c", "fsync=off"]).unwrap();
        let kit = Self { cluster };
        let passwords = ["kong", "collector", "writer", "grafana"].map(|role| format!("\\set {role}_password 'pw'\n")).concat();
        kit.psql("postgres", &(passwords + include_str!("../../../deploy/postgresql/roles.sql")));
        let migrated = run(&["migrate", "--database-url", &kit.url("llm_collector")], &[]).await;
        assert!(migrated.status.success(), "{migrated:?}");
        kit.grant();
        kit
    }

    /// Where a role finds the database.
    fn url(&self, role: &str) -> String {
        self.database("llm").replace("//postgres@", &format!("//{role}@"))
    }

    /// Where the superuser finds a database.
    fn database(&self, name: &str) -> String {
        let url = self.cluster.url();
        format!("{}/{name}", url.rsplit_once('/').unwrap().0)
    }

    fn grant(&self) -> String {
        self.psql("llm", include_str!("../../../deploy/postgresql/grants.sql"))
    }

    /// Runs a script as the superuser.
    fn psql(&self, database: &str, script: &str) -> String {
        let mut psql = Command::new("psql")
            .args(["-X", "-q", "-e", "-d", &self.database(database), "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("psql");
        psql.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = psql.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn number(&self, query: &str) -> i64 {
        Database { url: self.url("postgres") }.number(query).await
    }
}

#[tokio::test]
async fn whoever_reads_dashboards_can_leave_nothing_behind() {
    let kit = Kit::install().await;
    let reader = connect(&kit.url("llm_grafana")).await;
    assert!(reader.batch_execute("CREATE TABLE t ()").await.is_err(), "read-only by default");
    // What a session may set for itself it is rid of.
    reader.batch_execute("SET default_transaction_read_only = off; SET statement_timeout = 0").await.unwrap();
    for statement in [
        "CREATE TABLE t ()",
        "CREATE TEMP TABLE t ()",
        "CREATE TABLE public.t AS SELECT 1",
        "CREATE SCHEMA s",
        "CREATE FUNCTION f() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "DO $$ BEGIN LOOP END LOOP; END $$",
        "INSERT INTO llm_logs (request_id, consumer_username, started_at) VALUES ('r', 'c', now())",
        "UPDATE llm_logs SET prompt = NULL",
        "DELETE FROM llm_logs",
        "TRUNCATE llm_logs",
        "DELETE FROM llm_model_prices",
        "SELECT * FROM llm_rejected",
        "SELECT lo_create(0)",
        "SELECT lo_creat(-1)",
        "SELECT lo_from_bytea(0, 'x')",
        "SELECT lo_put(1, 0, 'x')",
        "SELECT lo_unlink(1)",
        "SELECT lo_open(1, 131072)",
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_try_advisory_lock(hashtext('llm_logs'), hashtext('retention'))",
        "SELECT pg_advisory_xact_lock_shared(1)",
        "SELECT pg_notify('a', 'b')",
        "SELECT pg_logical_emit_message(false, 'a', 'b')",
        "SELECT llm_create_partition('2020-01-01')",
        "SELECT llm_drop_day((now() AT TIME ZONE 'UTC')::date)",
        "SELECT llm_compact_usage()",
        "SELECT llm_trim_refused_calls(1)",
        "SELECT llm_end_long_queries()",
        "SELECT * FROM llm_own_usage('a', 30)",
        "SELECT * FROM llm_own_calls('a', 20)",
        "SET temp_file_limit = -1",
        "SET session_replication_role = replica",
    ] {
        let refused = reader.batch_execute(statement).await.expect_err(statement);
        assert_eq!(refused.code().map(|code| code.code()), Some("42501"), "{statement}: {refused:?}");
    }
    // And still it reads what dashboards show.
    for query in ["SELECT count(*) FROM llm_logs", "SELECT count(*) FROM llm_search('a', now() - interval '1 day', now())"] {
        reader.query(query, &[]).await.unwrap();
    }
    assert_eq!(kit.number("SELECT count(*) FROM pg_largeobject_metadata").await, 0);
    // Commands that were sent are echoed, and what is granted stands at the beginning of a line.
    let done =
        |echo: &str| echo.lines().filter(|line| ["GRANT", "REVOKE", "ALTER"].iter().any(|word| line.starts_with(word))).count();
    assert_eq!(done(&kit.grant()), 0, "a second run does nothing");
}

#[tokio::test]
async fn the_collector_works_with_a_role_that_can_add_and_take_nothing_away() {
    let kit = Kit::install().await;
    let receiver = Receiver::start(&[]);
    let arguments: Vec<&str> = ["--keep-content-days", "7"].into_iter().chain(receiver.arguments()).collect();
    let app = TestApp::start_on(Database { url: kit.url("llm_writer") }, &arguments).await;
    kit.psql("llm", "INSERT INTO llm_quotas (subject_kind, unit, per, amount) VALUES ('everybody', 'calls', 'month', 1)");
    let days_ago = |days: i64| chrono::Utc::now().timestamp_millis() - days * 86_400_000;
    let entries =
        [("a", 0), ("b", 3), ("c", 20), ("d", 5_000), ("a", 0)].map(|(id, days)| fixtures::small_entry(id, days_ago(days)));
    let entries = format!("[{},{},{{}}]", entries.join(","), fixtures::small_entry("bad\\u0000", 5));
    let answer = app.log(entries).await;
    assert!(answer.count("stored") >= 5 && answer.count("rejected") == 1, "{}", answer.text);
    assert_eq!(app.get("/readyz").await.status, 200);
    let synced = app.post("/sync", r#"{"node":"n","quota":{"workers":["w"]}}"#, &[]).await;
    assert_eq!((synced.status, &synced.json()["quota"]["full"]), (200, &serde_json::json!(true)), "{}", synced.text);
    assert_eq!(kit.number("SELECT count(*) FROM llm_rejected").await, 1);
    assert_eq!(receiver.wait_for(1).await[0]["threshold"], 100);
    let writer = connect(&kit.url("llm_writer")).await;
    for statement in [
        "SELECT llm_compact_usage()",
        "SELECT * FROM llm_find_sequence_gaps('1 minute')",
        "SELECT llm_trim_refused_calls(0)",
        "SELECT llm_create_partition((now() AT TIME ZONE 'UTC')::date - 30)",
        "SELECT llm_end_long_queries()",
        "SELECT llm_merge_counted_ranges(10)",
        "SELECT llm_forget_counted_ranges()",
        "SELECT llm_quota_state(now())",
        "SELECT * FROM llm_own_usage('a', 30), llm_own_calls('a', 20)",
    ] {
        writer.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    assert!(kit.number("SELECT sum(calls)::bigint FROM llm_usage").await >= 5, "usage is counted");

    let partition: String = {
        let query = "SELECT partition FROM llm_partitions WHERE day IS NOT NULL ORDER BY day LIMIT 1";
        writer.query_one(query, &[]).await.unwrap().get(0)
    };
    for statement in [
        "SELECT prompt FROM llm_logs",
        "SELECT raw_log FROM llm_logs",
        "UPDATE llm_logs SET prompt = NULL",
        "DELETE FROM llm_logs",
        "TRUNCATE llm_logs",
        "DROP TABLE llm_logs",
        "ALTER TABLE llm_logs DISABLE TRIGGER llm_count_usage",
        &format!("UPDATE {partition} SET status = 200"),
        &format!("DELETE FROM {partition}"),
        &format!("DROP TABLE {partition}"),
        &format!("ALTER TABLE llm_logs DETACH PARTITION {partition}"),
        "SELECT llm_drop_day((now() AT TIME ZONE 'UTC')::date)",
        "SELECT llm_rewrite_day((now() AT TIME ZONE 'UTC')::date)",
        "SELECT llm_swap_day((now() AT TIME ZONE 'UTC')::date)",
        "SELECT raw FROM llm_rejected",
        "DELETE FROM llm_rejected",
        "DELETE FROM llm_usage",
        "UPDATE llm_usage_days SET calls = 0",
        "INSERT INTO llm_usage_deltas SELECT * FROM llm_usage_deltas",
        "INSERT INTO llm_usage_of_teams SELECT * FROM llm_usage",
        "UPDATE llm_usage_days_of_teams SET team = ''",
        "UPDATE llm_usage_compacted SET xid = '0'",
        "UPDATE llm_site SET time_zone = 'UTC'",
        "UPDATE llm_model_prices SET prompt_per_million = 0",
        "UPDATE llm_quotas SET amount = 0",
        "UPDATE llm_quota_revision SET cluster = ''",
        "DELETE FROM llm_sequence_gaps",
        "DELETE FROM refinery_schema_history",
        "CREATE TABLE t ()",
        "DROP FUNCTION llm_compact_usage()",
        "CREATE OR REPLACE FUNCTION llm_compact_usage() RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'",
        "SET ROLE llm_collector",
    ] {
        let refused = writer.batch_execute(statement).await.expect_err(statement);
        assert_eq!(refused.code().map(|code| code.code()), Some("42501"), "{statement}: {refused:?}");
    }

    // What is too old goes all the same, by the process that has the owner's rights.
    let old = "SELECT count(*) FROM llm_logs WHERE request_id = 'c' AND prompt IS NOT NULL";
    assert_eq!(kit.number(old).await, 1, "the collector itself may not");
    let mut upkeep = tokio::process::Command::new(binary())
        .args(["upkeep", "--keep-content-days", "7", "--database-url", &kit.url("llm_collector")])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    wait_until("content of old days is gone", Duration::from_secs(30), || async { kit.number(old).await == 0 }).await;
    upkeep.start_kill().unwrap();
    app.stop().await;
}

#[tokio::test]
async fn a_role_that_owns_nothing_says_so_where_the_schema_is_old() {
    let kit = Kit::install().await;
    kit.psql("llm", "DELETE FROM refinery_schema_history WHERE version > 3");
    let finished = run(&["serve", "--listen", "127.0.0.1:0", "--database-url", &kit.url("llm_writer")], &[]).await;
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains("at version 3") && finished.stderr.contains("llm-collector migrate"), "{finished:?}");
}

#[tokio::test]
async fn a_dashboard_that_lifts_its_time_limit_is_ended_all_the_same() {
    let kit = Kit::install().await;
    let unlimited = "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0";
    let (works, waits, rests) =
        (connect(&kit.url("llm_grafana")).await, connect(&kit.url("llm_grafana")).await, connect(&kit.url("llm_grafana")).await);
    works.batch_execute(unlimited).await.unwrap();
    waits.batch_execute(&format!("{unlimited}; BEGIN; SELECT 1")).await.unwrap();
    rests.batch_execute(unlimited).await.unwrap();
    let working = tokio::spawn(async move { works.batch_execute("SELECT pg_sleep(600)").await });
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'llm_grafana' AND (query LIKE '%pg_sleep%' OR state LIKE 'idle in%')";
    wait_until("both are at work", Duration::from_secs(10), || async { kit.number(busy).await == 2 }).await;
    // As it is shipped they have a minute and a half.
    let owner = connect(&kit.url("llm_collector")).await;
    assert_eq!(owner.query_one("SELECT llm_end_long_queries()", &[]).await.unwrap().get::<_, i64>(0), 0);

    let at_once = "CREATE OR REPLACE FUNCTION llm_end_long_queries(longest interval DEFAULT '0 seconds') RETURNS bigint";
    let definition = include_str!("../../../deploy/postgresql/grants.sql");
    let body = definition.split("RETURNS bigint").nth(1).unwrap().split("ALTER FUNCTION").next().unwrap();
    kit.psql("llm", &format!("{at_once}{body}"));
    let app = TestApp::start_on(Database { url: kit.url("llm_collector") }, &[]).await;
    assert!(working.await.unwrap().is_err());
    wait_until("the idle one is ended", Duration::from_secs(60), || async { waits.batch_execute("SELECT 1").await.is_err() })
        .await;
    // Whoever does nothing is left alone, and so is the collector.
    rests.batch_execute("SELECT 1").await.unwrap();
    assert_eq!(app.log(fixtures::small_entry("one", 1_795_400_000_000)).await.count("stored"), 1);
    app.stop().await;
}
