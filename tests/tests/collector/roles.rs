//! What the kit's roles may do in PostgreSQL, on a server of its own: roles belong to a whole server.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use gateway_tests::collector::{TestApp, run};
use gateway_tests::fixtures;
use gateway_tests::postgres::{Cluster, Database, connect};
use gateway_tests::process::wait_until;

/// The kit's database `llm` with its roles, as an installation makes them.
struct Kit {
    cluster: Cluster,
}

impl Kit {
    async fn install() -> Self {
        let cluster = Cluster::start(&["-c", "fsync=off"]).unwrap();
        let kit = Self { cluster };
        let passwords = ["kong", "collector", "grafana"].map(|role| format!("\\set {role}_password 'pw'\n")).concat();
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
    assert!(waits.batch_execute("SELECT 1").await.is_err());
    // Whoever does nothing is left alone, and so is the collector.
    rests.batch_execute("SELECT 1").await.unwrap();
    assert_eq!(app.log(fixtures::small_entry("one", 1_795_400_000_000)).await.count("stored"), 1);
    app.stop().await;
}
