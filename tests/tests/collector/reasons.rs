//! What people wrote stands in no reason and in no line of the log, whatever PostgreSQL says about a row.

use std::time::Duration;

use gateway_tests::collector::{Process, run};
use gateway_tests::postgres::Database;
use gateway_tests::process::wait_until;
use serde_json::{Value, json};

/// A trigger that says the prompt of each row, and refuses rows in every way that quotes it.
const TALKATIVE: &str = "
    CREATE FUNCTION talk() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE NOTICE 'saw %', NEW.prompt;
        RAISE WARNING 'saw %', NEW.prompt;
        CASE split_part(NEW.request_id, '-', 2)
            WHEN 'raised' THEN RAISE EXCEPTION 'no: %', NEW.prompt USING DETAIL = NEW.prompt, HINT = NEW.prompt;
            WHEN 'coded' THEN RAISE EXCEPTION 'no: %', NEW.prompt USING ERRCODE = 'check_violation';
            WHEN 'limited' THEN RAISE EXCEPTION 'no: %', NEW.prompt USING ERRCODE = 'program_limit_exceeded';
            WHEN 'number' THEN NEW.status := NEW.prompt::integer;
            WHEN 'date' THEN NEW.started_at := NEW.prompt::timestamptz;
            WHEN 'json' THEN NEW.raw_log := NEW.prompt::jsonb;
            WHEN 'null' THEN NEW.request_id := NULL;
            ELSE NULL;
        END CASE;
        RETURN NEW;
    END $$;
    CREATE TRIGGER talk BEFORE INSERT ON llm_logs FOR EACH ROW EXECUTE FUNCTION talk();
    ALTER TABLE llm_logs ADD CONSTRAINT not_checked CHECK (request_id <> 'w-checked')";

const WAYS: [&str; 8] = ["raised", "coded", "limited", "number", "date", "json", "null", "checked"];

#[tokio::test]
async fn no_reason_and_no_line_of_the_log_quotes_a_refused_row() {
    let database = Database::create().await;
    assert!(run(&["migrate"], &[("DATABASE_URL", &database.url)]).await.status.success());
    database.connect().await.batch_execute(TALKATIVE).await.unwrap();
    let process = Process::serve(&["--database-url", &database.url, "--log-level", "trace"]).await;
    let entries: Vec<Value> = WAYS
        .iter()
        .chain(&["stored"])
        .map(|way| {
            json!({"started_at": 1_795_402_800_000_i64, "response": {"status": 200}, "request": {"id": format!("w-{way}"),
                "uri": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "the patient's secret"}]}}})
        })
        .collect();
    let answer = gateway_tests::collector::post(&format!("{}/log", process.url), Value::from(entries).to_string()).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text);
    // Looking for what is refused takes a statement for each; where it takes too long, the answer is that they wait in the spool.
    let settled = "SELECT (SELECT count(*) FROM llm_rejected) * 100 + (SELECT count(*) FROM llm_logs)";
    wait_until("eight are on record and one is a row", Duration::from_secs(60), || async {
        database.number(settled).await == 801
    })
    .await;
    process.signal("TERM");
    let (_, log) = process.finished().await;
    assert!(!log.contains("patient"), "{}", log.lines().find(|line| line.contains("patient")).unwrap_or_default());

    let rows = database.connect().await.query("SELECT reason FROM llm_rejected ORDER BY id", &[]).await.unwrap();
    let reasons: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert!(reasons.iter().all(|reason| !reason.contains("patient")), "{reasons:#?}");
    // What is left still says where to look.
    for word in ["not_checked", "column request_id", "[22P02]", "[22007]", "[P0001]", "[23514]", "[54000]"] {
        assert!(reasons.iter().any(|reason| reason.contains(word)), "{word} is not in {reasons:#?}");
    }
    let listed = run(&["rejected", "list"], &[("DATABASE_URL", &database.url)]).await;
    assert!(listed.status.success() && !listed.stdout.contains("patient"), "{listed:?}");
}

#[tokio::test]
async fn a_command_that_fails_says_no_value_either() {
    let database = Database::create().await;
    let variables = [("DATABASE_URL", database.url.as_str())];
    assert!(run(&["migrate"], &variables).await.status.success());
    let talk = "CREATE FUNCTION talk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'no: %', OLD.prompt USING DETAIL = OLD.prompt; END $$;
        CREATE TRIGGER talk BEFORE UPDATE OR DELETE ON llm_logs FOR EACH ROW EXECUTE FUNCTION talk();
        INSERT INTO llm_logs (request_id, consumer_username, started_at, prompt) VALUES ('1', 'ann', now(), 'the patient''s secret')";
    database.connect().await.batch_execute(talk).await.unwrap();
    let finished = run(&["erase", "--consumer", "ann", "--yes", "--log-level", "trace"], &variables).await;
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains("[P0001]") && !finished.stderr.contains("patient"), "{finished:?}");
}
