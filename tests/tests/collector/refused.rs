//! Calls without a valid key: small, and beyond the first ones counted; once, whatever comes twice.

use chrono::{DateTime, Utc};
use gateway_tests::collector::{Answer, TestApp};
use gateway_tests::postgres::Database;
use llm_collector::store::connect::{Target, TlsDefaults};
use llm_collector::store::pool::{self, DatabaseSettings};
use llm_collector::store::refused::{self, Entry, Refused, count, counted, report};

fn refused_at(minute: i64, address: &str, status: i32) -> Refused {
    Refused { minute: DateTime::<Utc>::from_timestamp(minute, 0).unwrap(), address: address.to_owned(), status }
}

fn entry(name: &str) -> Entry {
    let started_at = DateTime::<Utc>::from_timestamp(1_795_400_050, 0).unwrap();
    Entry { refused: refused_at(1_795_400_040, "10.0.0.7", 401), request_id: name.to_owned(), started_at }
}

async fn migrated() -> (Database, pool::Database) {
    let database = Database::create().await;
    let target = Target::parse(&database.url, &TlsDefaults::default()).unwrap();
    let timeout = std::time::Duration::from_secs(10);
    llm_collector::store::migrate::migrate(&target, timeout, None).await.unwrap();
    let pool = pool::Database::new(DatabaseSettings { target, connections: 2, timeout });
    (database, pool)
}

#[tokio::test]
async fn a_node_reports_totals_so_a_report_may_come_again_or_late() {
    let (database, pool) = migrated().await;
    let connection = pool.connection().await.unwrap();
    let (one, two) = (refused_at(60, "10.0.0.7", 401), refused_at(60, "2001:db8::/64", 403));
    report(&connection, "node-1", &[(one.clone(), 5), (two.clone(), 1)]).await.unwrap();
    report(&connection, "node-1", &[(two.clone(), 1), (one.clone(), 5)]).await.unwrap();
    report(&connection, "node-1", &[(one.clone(), 7), (one.clone(), 2)]).await.unwrap();
    report(&connection, "node-1", &[(one.clone(), 6)]).await.unwrap();
    report(&connection, "node-2", &[(one.clone(), 10), (two, 0)]).await.unwrap();
    report(&connection, "node-2", &[]).await.unwrap();
    assert_eq!(database.number("SELECT sum(count)::bigint FROM llm_refused_calls WHERE address = '10.0.0.7'").await, 17);
    assert_eq!(database.number("SELECT sum(count)::bigint FROM llm_refused_calls").await, 18);
    let hostile = format!("n\0{}", "x".repeat(10_000));
    report(&connection, &hostile, &[(one, 1)]).await.unwrap();
}

#[tokio::test]
async fn an_entry_is_counted_once_whoever_sends_it_again() {
    let (database, pool) = migrated().await;
    let connection = pool.connection().await.unwrap();
    let [a, b, c] = ["a", "b", "c"].map(entry);
    assert_eq!(count(&connection, &[&a, &b, &a]).await.unwrap(), [true, true, false]);
    assert_eq!(count(&connection, &[&b, &c]).await.unwrap(), [false, true]);
    assert_eq!(counted(&connection, &[&a, &entry("d")]).await.unwrap(), [true, false]);
    assert_eq!(database.number("SELECT count FROM llm_refused_calls").await, 3);
    // What is a row already is not counted as well.
    let row = "INSERT INTO llm_logs (request_id, consumer_username, started_at, raw_log, stream, aborted, truncated)
        VALUES ('d', 'anonymous', to_timestamp(1795400050), '{}', false, false, false)";
    database.connect().await.execute(row, &[]).await.unwrap();
    assert_eq!(count(&connection, &[&entry("d")]).await.unwrap(), [false]);
}

#[tokio::test]
async fn old_counts_go_and_recent_ones_stay() {
    let (database, pool) = migrated().await;
    let connection = pool.connection().await.unwrap();
    let client = database.connect().await;
    let seen = "INSERT INTO llm_refused_seen SELECT now() - hours * interval '1 hour', n
        FROM generate_series(1, 12000) n, (VALUES (25), (1)) AS age (hours) WHERE hours > 1 OR n = 1";
    client.execute(seen, &[]).await.unwrap();
    let counts = "INSERT INTO llm_refused_calls SELECT now() - days * interval '1 day', 'other', 401, '', 1
        FROM generate_series(1, 20) days";
    client.execute(counts, &[]).await.unwrap();
    let of_users = "INSERT INTO llm_refused_users SELECT now() - days * interval '1 day', n::text, 'quota', 429, '', 1
        FROM generate_series(1, 600) n, generate_series(1, 20) days WHERE days > 1 OR n = 1";
    client.execute(of_users, &[]).await.unwrap();
    assert!(refused::trim(&connection, 0).await.unwrap(), "there is more than one piece");
    assert_eq!(database.number("SELECT count(*) FROM llm_refused_users").await, 19 * 600 + 1);
    assert!(!refused::trim(&connection, 10).await.unwrap());
    assert_eq!(database.number("SELECT count(*) FROM llm_refused_users").await, 8 * 600 + 1);
    assert!(refused::trim(&connection, 0).await.is_ok_and(|more| !more), "for ever");
    assert_eq!(database.number("SELECT count(*) FROM llm_refused_seen").await, 1);
    assert_eq!(database.number("SELECT count(*) FROM llm_refused_calls").await, 9);
}

/// A call that Kong refused, with headers of whoever made it.
fn refused_call(id: &str, address: &str, header: &str) -> String {
    format!(
        r#"{{"started_at":1795400000000,"client_ip":"{address}","latencies":{{"request":1,"proxy":-1,"kong":1}},"request":{{"id":"{id}","method":"GET","uri":"/v1/models?{header}","headers":{{"user-agent":"curl","x-long":"{header}"}},"querystring":{{"{header}":"1"}}}},"response":{{"status":401,"headers":{{}},"body":"{{\"message\":\"No API key found in request\"}}"}}}}"#
    )
}

fn counts(answer: &Answer) -> [u64; 3] {
    assert_eq!(answer.status, 200, "{}", answer.text);
    [answer.count("stored"), answer.count("duplicates"), answer.json()["counted"].as_u64().unwrap_or(0)]
}

#[tokio::test]
async fn of_many_refused_calls_a_few_are_small_rows_and_the_rest_is_counted_once() {
    let app = TestApp::start().await;
    let batch = |header: &str| {
        let calls: Vec<String> = (0..150).map(|n| refused_call(&n.to_string(), "10.0.0.9", header)).collect();
        format!("[{},{}]", calls.join(","), refused_call("other", "2001:db8::7", ""))
    };
    let long = batch(&"x".repeat(30_000));
    assert_eq!(counts(&app.log(long.clone()).await), [21, 0, 130]);
    assert_eq!(counts(&app.log(long.clone()).await), [0, 151, 0]);
    let table = "SELECT count FROM llm_refused_calls WHERE address = '10.0.0.9' AND status = 401 AND source = ''
        AND minute = to_timestamp(1795399980)";
    assert_eq!(app.database.number(table).await, 130);
    assert_eq!(app.database.number("SELECT max(length(raw_log::text))::bigint FROM llm_logs").await / 1_000, 0);
    let row = "SELECT count(*) FROM llm_logs WHERE endpoint = '/v1/models' AND status = 401 AND error LIKE 'No API key%'
        AND raw_log#>>'{request,headers,user-agent}' = 'curl' AND raw_log#>>'{request,method}' = 'GET' AND client_ip IS NOT NULL";
    assert_eq!(app.database.number(row).await, 21);
    let refused = r#"llm_requests_total{consumer="anonymous",model="unknown",endpoint="/v1/models",code="401"}"#;
    assert_eq!(app.metric(refused).await, 151.0);
    assert_eq!(app.metric(r#"llm_collector_entries_total{result="counted"}"#).await, 130.0);

    // Another collector, which remembers nothing, asked in another order.
    let second = TestApp::start_on(app.database.clone(), &[]).await;
    let calls: Vec<String> = (0..150).rev().map(|n| refused_call(&n.to_string(), "10.0.0.9", "")).collect();
    assert_eq!(counts(&second.log(format!("[{}]", calls.join(","))).await), [0, 150, 0]);
    assert_eq!(app.database.number(table).await, 130);
    second.stop().await;
    app.stop().await;
}
