//! From recorded entries to rows.

use gateway_tests::collector::TestApp;
use gateway_tests::fixtures;
use serde_json::{Value, json};

/// The columns of a row as JSON, `started_at` in milliseconds.
const ROW: &str =
    "SELECT to_jsonb(l) - 'id' - 'created_at' - 'raw_log' - 'contents' - 'conversation' - 'started_at' - 'client_ip'
    || jsonb_build_object('started_at', (extract(epoch FROM started_at) * 1000)::bigint, 'client_ip', host(client_ip))
    FROM llm_logs l WHERE request_id = $1";

/// A long text as the expected rows hold it.
fn shortened(value: &Value) -> Value {
    match value.as_str() {
        Some(text) if text.chars().count() > 600 => {
            let chars: Vec<char> = text.chars().collect();
            json!({
                "chars": chars.len(),
                "sha256": llm_collector::decode::digest::sha256_hex(text.as_bytes()),
                "head": chars[..60].iter().collect::<String>(),
                "tail": chars[chars.len() - 60..].iter().collect::<String>(),
            })
        }
        _ => value.clone(),
    }
}

#[tokio::test]
async fn every_recorded_entry_becomes_the_expected_row() {
    let app = TestApp::start().await;
    let names = fixtures::entry_names();
    for name in &names {
        let answer = app.log(fixtures::entry(name)).await;
        assert_eq!(answer.text, r#"{"stored":1,"duplicates":0,"spooled":0,"rejected":0}"#, "{name}");
    }
    let client = app.database.connect().await;
    let mut wrong = Vec::new();
    for name in &names {
        let expected = fixtures::expected_row(name);
        let id = expected["request_id"].as_str().unwrap();
        let row: Value = client.query_one(ROW, &[&id]).await.unwrap().get(0);
        for (column, expected) in expected.as_object().unwrap() {
            let stored = shortened(&row[column]);
            if stored != *expected {
                wrong.push(format!("{name}.{column}: expected {expected}, stored {stored}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(app.database.number("SELECT count(*) FROM llm_logs").await, names.len() as i64);

    // Recorded in November 2026: in partitions of their days, not in the default one, unless that is long ago by now.
    let misplaced = "SELECT count(*) FROM llm_logs_default WHERE started_at BETWEEN now() - interval '399 days' AND now()";
    assert_eq!(app.database.number(misplaced).await, 0);

    no_credentials_in(&client).await;
    app.stop().await;
}

/// What the recorded entries carry in headers, cookies and queries.
async fn no_credentials_in(client: &tokio_postgres::Client) {
    for table in ["llm_logs", "llm_rejected"] {
        // The last is what Kong leaves of a credential; in small letters it is what the collector leaves of an unknown header.
        for secret in ["sk-z", "sk-cookie", "x-api-key", "apikey=", "REDACTED"] {
            let exact = "strpos(t::text, $1) > 0";
            let any_case = "strpos(lower(t::text), lower($1)) > 0";
            let condition = if secret == "REDACTED" { exact } else { any_case };
            let query = format!("SELECT count(*) FROM {table} t WHERE {condition}");
            let found: i64 = client.query_one(&query, &[&secret]).await.unwrap().get(0);
            assert_eq!(found, 0, "{secret} in {table}");
        }
    }
}

#[tokio::test]
async fn credentials_of_rejected_entries_are_not_kept_either() {
    let app = TestApp::start().await;
    let entry =
        r#"{"request":{"headers":{"x-api-key":"sk-z123456","authorization":"Bearer abc-secret"},"uri":"/?apikey=sk-z123456"}}"#;
    assert_eq!(app.log(format!("[{entry}]")).await.count("rejected"), 1);
    let broken = format!("[{},{entry}}},17]", fixtures::small_entry("a", 1_795_400_000_000));
    assert!(app.log(broken).await.count("rejected") >= 1);
    let client = app.database.connect().await;
    no_credentials_in(&client).await;
    let raws: Vec<Vec<u8>> =
        client.query("SELECT raw FROM llm_rejected", &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    let raws = String::from_utf8(raws.concat()).unwrap();
    assert!(!raws.contains("sk-z") && !raws.contains("abc-secret") && raws.contains("/"), "{raws}");
    app.stop().await;
}

#[tokio::test]
async fn a_batch_of_200_is_one_statement() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    client
        .batch_execute(
            "CREATE TABLE statements (rows bigint);
             CREATE FUNCTION note_statement() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN INSERT INTO statements SELECT count(*) FROM new_rows; RETURN NULL; END $$;
             CREATE TRIGGER note AFTER INSERT ON llm_logs REFERENCING NEW TABLE AS new_rows
               FOR EACH STATEMENT EXECUTE FUNCTION note_statement();",
        )
        .await
        .unwrap();
    assert_eq!(app.log(fixtures::small_batch("b", 200)).await.count("stored"), 200);
    let statements: Vec<i64> =
        // Statements without rows only ask whether rows would be taken.
        client.query("SELECT rows FROM statements WHERE rows > 0", &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(statements, [200]);
    app.stop().await;
}

#[tokio::test]
async fn rows_that_postgresql_refuses_are_put_on_record_and_their_neighbours_stored() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    client.batch_execute("ALTER TABLE llm_logs ADD CONSTRAINT no_sevens CHECK (request_id NOT LIKE '%7')").await.unwrap();
    let answer = app.log(fixtures::small_batch("r", 50)).await;
    assert_eq!(answer.text, r#"{"stored":45,"duplicates":0,"spooled":0,"rejected":5}"#);
    assert_eq!(app.metric(r#"llm_collector_entries_total{result="rejected"}"#).await, 5.0);
    let reason =
        "SELECT count(*) FROM llm_rejected WHERE reason LIKE '%no_sevens%' AND convert_from(raw, 'UTF8')::jsonb ? 'request'";
    assert_eq!(app.database.number(reason).await, 5);
    // A repeat of the batch puts nothing on record twice.
    assert_eq!(app.log(fixtures::small_batch("r", 50)).await.count("duplicates"), 45);
    assert_eq!(app.database.number("SELECT count(*) FROM llm_rejected").await, 5);
    app.stop().await;
}

#[tokio::test]
async fn hostile_values_do_not_cost_a_row() {
    let app = TestApp::start().await;
    let long = "x".repeat(10_000);
    let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    let entries = [
        format!(r#"{{"started_at":1795400000000,"request":{{"id":"{long}"}}}}"#),
        format!(r#"{{"started_at":1795400000001,"request":{{"id":"long-name"}},"consumer":{{"username":"{long}"}}}}"#),
        r#"{"started_at":1795400000002,"request":{"id":"nul\u0000","uri":"/\ud800?\u0000"},"client_ip":"not an address"}"#.to_owned(),
        r#"{"started_at":1795400000003,"request":{"id":"numbers"},"response":{"status":1e300},"latencies":{"request":1e18,"proxy":"x"}}"#.to_owned(),
        format!(r#"{{"started_at":1795400000004,"request":{{"id":"deep","uri":"/v1/chat/completions","body":"{deep}"}}}}"#),
        r#"{"started_at":-62135596800000,"request":{"id":"long ago"}}"#.to_owned(),
        r#"{"started_at":253402300799000,"request":{"id":"far away"}}"#.to_owned(),
        r#"{"started_at":1795400000005,"request":[],"response":"x","consumer":7,"llm":{},"tries":{},"request":{"id":"shapes"}}"#.to_owned(),
    ];
    let answer = app.log(format!("[{}]", entries.join(","))).await;
    assert_eq!(answer.text, format!(r#"{{"stored":{},"duplicates":0,"spooled":0,"rejected":0}}"#, entries.len()));
    app.settled().await;
    assert_eq!(app.database.number("SELECT count(*) FROM llm_logs_default").await, 2);
    app.stop().await;
}

#[tokio::test]
async fn a_batch_of_nothing_but_refused_rows_is_answered_and_ends_on_record() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    client.execute("ALTER TABLE llm_logs ADD CONSTRAINT nobody CHECK (consumer_username <> 'z1')", &[]).await.unwrap();
    let answer = app.log(fixtures::small_batch("refused", 1_000)).await;
    assert_eq!((answer.status, answer.count("spooled") + answer.count("rejected")), (200, 1_000), "{}", answer.text);
    // Looking for them took a bounded number of statements while somebody waited; the drain does the rest.
    gateway_tests::process::wait_until("every one is on record", std::time::Duration::from_secs(60), || async {
        app.database.number("SELECT count(*) FROM llm_rejected").await == 1_000
    })
    .await;
    assert_eq!(app.database.number("SELECT count(*) FROM llm_logs").await, 0);
    assert_eq!(app.metric("llm_collector_database_up").await, 1.0);
    app.stop().await;
}
