//! PostgreSQL goes away in every way it can.

use std::time::{Duration, Instant};

use gateway_tests::collector::{get, run};
use gateway_tests::fixtures;
use gateway_tests::process::wait_until;

use super::*;

/// Kong's time-out for a batch.
const KONG_TIMEOUT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn entries_wait_on_disk_while_postgresql_is_stopped() {
    let site = Site::new().await;
    let collector = site.collector().await;
    assert_eq!(counts(&collector, fixtures::small_batch("before", 3)).await, [3, 0, 0, 0]);
    site.cluster.stop_server("fast").unwrap();

    assert_eq!(counts(&collector, fixtures::small_batch("during", 5)).await, [0, 0, 5, 0]);
    assert_eq!(counts(&collector, fixtures::small_batch("before", 3)).await, [0, 0, 3, 0], "what is known only to PostgreSQL");
    let broken = format!("[{},17]", fixtures::small_entry("beside-a-broken-one", 1_795_400_000_000));
    assert_eq!(counts(&collector, broken).await, [0, 0, 2, 0]);
    let ready = get(&format!("{}/readyz", collector.url)).await.unwrap();
    assert_eq!((ready.status, ready.json()["takes"].as_str().unwrap().to_owned()), (200, "spool".to_owned()));
    assert_eq!(metric(&collector, "llm_collector_database_up").await, 0.0);
    assert!(metric(&collector, "llm_collector_spool_bytes").await > 1000.0);
    assert!(metric(&collector, "llm_collector_spool_oldest_seconds").await > 0.0);

    site.cluster.start_server().unwrap();
    site.wait_for_rows(9).await;
    assert_eq!(counts(&collector, fixtures::small_batch("after", 2)).await, [2, 0, 0, 0]);
    assert_eq!(site.database.number("SELECT count(*) FROM llm_rejected WHERE reason = 'not an object'").await, 1);
    // Each row once in the metrics, however often its entry came.
    let requests = r#"llm_requests_total{consumer="z1",model="m",endpoint="/v1/chat/completions",code="200"}"#;
    assert_eq!(metric(&collector, requests).await, 11.0);
    assert_eq!(metric(&collector, r#"llm_collector_entries_total{result="spooled"}"#).await, 10.0);
    assert_eq!(metric(&collector, "llm_collector_spool_bytes").await, 0.0);
}

#[tokio::test]
async fn a_server_that_hangs_is_not_waited_for() {
    let site = Site::new().await;
    let collector = site.collector().await;
    assert_eq!(counts(&collector, fixtures::small_batch("before", 1)).await, [1, 0, 0, 0]);
    let pids = site.cluster.pids();
    signal("STOP", &pids);
    let began = Instant::now();
    // The statement is sent and may or may not be carried out.
    assert_eq!(counts(&collector, fixtures::small_batch("hung", 4)).await, [0, 0, 4, 0]);
    assert!(began.elapsed() < KONG_TIMEOUT, "answered after {:?}", began.elapsed());
    assert_eq!(counts(&collector, fixtures::small_batch("later", 4)).await, [0, 0, 4, 0]);
    signal("CONT", &pids);
    site.wait_for_rows(9).await;
    let requests = r#"llm_requests_total{consumer="z1",model="m",endpoint="/v1/chat/completions",code="200"}"#;
    wait_until("every row is counted once", PATIENCE, || async { metric(&collector, requests).await == 9.0 }).await;
}

fn signal(name: &str, pids: &[u32]) {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let status = std::process::Command::new("kill").args(["-s", name]).args(&pids).status();
    assert!(status.unwrap().success());
}

#[tokio::test]
async fn a_crash_of_the_server_costs_nothing() {
    let site = Site::new().await;
    let collector = site.collector().await;
    for round in 0..3 {
        counts(&collector, fixtures::small_batch(&format!("up-{round}"), 10)).await;
        site.cluster.stop_server("immediate").unwrap();
        assert_eq!(counts(&collector, fixtures::small_batch(&format!("down-{round}"), 10)).await[2], 10);
        site.cluster.start_server().unwrap();
    }
    site.wait_for_rows(60).await;
}

#[tokio::test]
async fn a_restart_that_nobody_noticed_costs_nothing() {
    let site = Site::new().await;
    let collector = site.collector().await;
    counts(&collector, fixtures::small_batch("before", 2)).await;
    site.cluster.stop_server("fast").unwrap();
    site.cluster.start_server().unwrap();
    let [stored, _, spooled, _] = counts(&collector, fixtures::small_batch("after", 2)).await;
    assert_eq!(stored + spooled, 2);
    site.wait_for_rows(4).await;
}

#[tokio::test]
async fn no_free_connection_is_an_outage() {
    let site = Site::new().await;
    let superuser = site.database.connect().await;
    let name = site.database.url.rsplit_once('/').unwrap().1.to_owned();
    // A superuser does not meet the limit, so the collector is another role here.
    superuser.batch_execute("CREATE ROLE plain LOGIN; ALTER SCHEMA public OWNER TO plain").await.unwrap();
    let plain = Database { url: site.database.url.replace("postgres@", "plain@") };
    let collector = serve(&plain, site.data_dir(), &[]).await;
    let limit = |connections: u32| format!("ALTER DATABASE {name} CONNECTION LIMIT {connections}");
    superuser.batch_execute(&limit(0)).await.unwrap();
    let end_sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'plain'";
    superuser.batch_execute(end_sessions).await.unwrap();
    assert_eq!(counts(&collector, fixtures::small_batch("refused", 3)).await, [0, 0, 3, 0]);
    superuser.batch_execute(&limit(20)).await.unwrap();
    site.wait_for_rows(3).await;
}

#[tokio::test]
async fn a_table_that_is_gone_is_an_outage() {
    let site = Site::new().await;
    let collector = site.collector().await;
    let client = site.database.connect().await;
    client.batch_execute("ALTER TABLE llm_logs RENAME TO llm_logs_elsewhere").await.unwrap();
    assert_eq!(counts(&collector, fixtures::small_batch("gone", 3)).await, [0, 0, 3, 0]);
    client.batch_execute("ALTER TABLE llm_logs_elsewhere RENAME TO llm_logs").await.unwrap();
    site.wait_for_rows(3).await;
}

#[tokio::test]
async fn a_collector_starts_without_a_database_that_it_knows() {
    let site = Site::new().await;
    let collector = site.collector().await;
    collector.signal("TERM");
    collector.finished().await;
    site.cluster.stop_server("fast").unwrap();

    let never_seen = tempfile::tempdir().unwrap();
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--data-dir", never_seen.path().to_str().unwrap()];
    let finished = run(&arguments, &[("DATABASE_URL", &site.database.url)]).await;
    assert_eq!(finished.status.code(), Some(1), "a wrong setting must be heard of: {}", finished.stderr);

    let collector = site.collector().await;
    assert_eq!(counts(&collector, fixtures::small_batch("early", 3)).await, [0, 0, 3, 0]);
    site.cluster.start_server().unwrap();
    site.wait_for_rows(3).await;
}

#[tokio::test]
async fn what_waits_on_disk_outlives_the_collector_and_holds_no_credentials() {
    let site = Site::new().await;
    let mut collector = site.collector().await;
    site.cluster.stop_server("fast").unwrap();
    for name in ["kong-key-in-header-no-bodies", "kong-key-in-query-accepted", "chat-en"] {
        assert_eq!(counts(&collector, fixtures::entry(name)).await, [0, 0, 1, 0]);
    }
    collector.kill().await;
    for file in std::fs::read_dir(site.spool()).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains("sk-z") && !text.to_lowercase().contains("x-api-key"), "{text}");
    }
    site.cluster.start_server().unwrap();
    let _collector = site.collector().await;
    site.wait_for_rows(3).await;
    let expected = fixtures::expected_row("chat-en");
    let query = "SELECT count(*) FROM llm_logs WHERE request_id = $1 AND response = $2";
    let client = site.database.connect().await;
    let row =
        client.query_one(query, &[&expected["request_id"].as_str().unwrap(), &expected["response"].as_str().unwrap()]).await;
    assert_eq!(row.unwrap().get::<_, i64>(0), 1);
}

#[tokio::test]
async fn an_entry_without_an_identity_is_one_row_whichever_way_it_takes() {
    let site = Site::new().await;
    let collector = site.collector().await;
    let calls = "SELECT coalesce(sum(calls), 0)::bigint FROM llm_usage_counts";
    let batch = fixtures::mixed_batch("named-and-not", 4);
    site.cluster.stop_server("fast").unwrap();
    assert_eq!(counts(&collector, batch.clone()).await, [0, 0, 4, 0]);
    assert_eq!(counts(&collector, batch.clone()).await, [0, 0, 4, 0], "Kong saw no answer");
    site.cluster.start_server().unwrap();
    site.wait_for_rows(4).await;
    // The way past the spool, and two at once.
    assert_eq!(counts(&collector, batch.clone()).await, [0, 4, 0, 0]);
    assert_eq!(site.database.number(calls).await, 4);

    // What PostgreSQL refuses at first, and takes when it is tried again.
    let client = site.database.connect().await;
    client.batch_execute("ALTER TABLE llm_logs ADD CONSTRAINT none_yet CHECK (prompt NOT LIKE 'hi refused%')").await.unwrap();
    let refused = fixtures::mixed_batch("refused", 2);
    assert_eq!(counts(&collector, refused.clone()).await, [0, 0, 0, 2]);
    assert_eq!(counts(&collector, refused.clone()).await, [0, 0, 0, 2]);
    assert_eq!(site.database.number("SELECT count(*) FROM llm_rejected").await, 2);
    client.batch_execute("ALTER TABLE llm_logs DROP CONSTRAINT none_yet").await.unwrap();
    let retried = run(&["rejected", "retry"], &[("DATABASE_URL", &site.database.url)]).await;
    assert!(retried.stdout.starts_with("2 entries are rows now"), "{retried:?}");
    assert_eq!(counts(&collector, refused).await, [0, 2, 0, 0]);
    assert_eq!(site.database.number(calls).await, 6);
    assert_exactly_once(&site.database, &["refused-0".to_owned(), "refused-1".to_owned()], 6).await;
}

#[tokio::test]
async fn collectors_with_the_same_rows_never_lock_each_other_out() {
    let site = Site::new().await;
    let other_folder = tempfile::tempdir().unwrap();
    let collectors = [site.collector().await, serve(&site.database, other_folder.path(), &[]).await];
    // Rows that are slow to write, so that statements overlap for long, in opposite orders.
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END $$;
        CREATE TRIGGER slow BEFORE INSERT ON llm_logs FOR EACH ROW EXECUTE FUNCTION slow()";
    site.database.connect().await.batch_execute(slow).await.unwrap();
    for round in 0..3 {
        let entries: Vec<String> =
            (0..60).map(|n| fixtures::small_entry(&format!("r{round}-{n}"), 1_795_400_000_000 + n % 7 * 1_000)).collect();
        let mut backwards = entries.clone();
        backwards.reverse();
        let bodies = [entries, backwards].map(|entries| format!("[{}]", entries.join(",")));
        let (one, two) = tokio::join!(counts(&collectors[0], bodies[0].clone()), counts(&collectors[1], bodies[1].clone()));
        assert_eq!((one[0] + two[0], one[1] + two[1], one[2] + two[2]), (60, 60, 0), "{one:?} {two:?}");
    }
    assert!(!site.cluster.log().contains("deadlock"), "{}", site.cluster.log());
}

#[tokio::test]
async fn a_deadlock_is_tried_again_and_is_nobody_elses_business() {
    let site = Site::new().await;
    let collector = site.collector().await;
    // Two rounds of failures that are not the collector's, of the two kinds that a repeat mends.
    let failing = "CREATE SEQUENCE tries;
        CREATE FUNCTION failing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.prompt = 'hi unlucky' AND nextval('tries') < 4 THEN
                RAISE EXCEPTION 'not now' USING ERRCODE = CASE currval('tries') WHEN 2 THEN '40P01' ELSE '40001' END;
            END IF;
            IF NEW.prompt = 'hi hopeless' THEN RAISE EXCEPTION 'never' USING ERRCODE = '40P01'; END IF;
            RETURN NEW; END $$;
        CREATE TRIGGER failing BEFORE INSERT ON llm_logs FOR EACH ROW EXECUTE FUNCTION failing()";
    let client = site.database.connect().await;
    client.batch_execute(failing).await.unwrap();
    assert_eq!(counts(&collector, fixtures::small_entry("unlucky", 1_795_400_000_000)).await, [1, 0, 0, 0]);
    assert_eq!(counts(&collector, fixtures::small_entry("hopeless", 1_795_400_000_000)).await, [0, 0, 1, 0]);
    assert_eq!(metric(&collector, "llm_collector_database_up").await, 1.0);
    assert_eq!(counts(&collector, fixtures::small_batch("others", 3)).await, [3, 0, 0, 0]);
    client.batch_execute("DROP TRIGGER failing ON llm_logs").await.unwrap();
    site.wait_for_rows(5).await;
}
