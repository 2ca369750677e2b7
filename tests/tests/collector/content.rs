//! Large parts of bodies: stored once a day, whole again for whoever asks, and gone when nobody's row has them any more.

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use gateway_tests::collector::{TestApp, run};
use gateway_tests::dice::Dice;
use gateway_tests::fixtures;
use gateway_tests::generator::{Generator, Settings};
use gateway_tests::postgres::Database;
use gateway_tests::process::wait_until;
use llm_collector::call::Call;
use llm_collector::decode::{self, Limits};
use llm_collector::extract::{self, privacy::Privacy, redact::Secrets};
use serde_json::{Value, json};

use crate::retention::noon;

/// A text that is long enough to be a part, and is no other one's.
fn long(name: &str) -> String {
    format!("{name} ").repeat(300 / name.len() + 1)
}

/// A call of `consumer` with these messages, answered by `answer`.
pub(crate) fn call(id: &str, consumer: &str, at: DateTime<Utc>, messages: &[(&str, &str)], answer: &str) -> Value {
    let messages: Vec<Value> = messages.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    let answer = json!({"model": "m", "choices": [{"index": 0, "finish_reason": "stop",
        "message": {"role": "assistant", "content": answer}}], "usage": {"prompt_tokens": 3, "completion_tokens": 5}});
    json!({
        "request": {"id": id, "uri": "/v1/chat/completions", "method": "POST", "headers": {},
            "body": json!({"model": "m", "messages": messages, "temperature": 0.5}).to_string()},
        "response": {"status": 200, "headers": {"content-type": "application/json"}, "body": answer.to_string()},
        "consumer": {"username": consumer}, "latencies": {"request": 12}, "started_at": at.timestamp_millis(),
    })
}

/// What the collector reads out of an entry: `raw_log` is the entry that has to come back.
fn read(entry: &str) -> Call {
    let entry = decode::entry::decode(entry, Limits { decoded_bytes: 64 << 20 }).unwrap();
    extract::call(&entry, &Secrets::default(), &Privacy::default())
}

/// The same entry as a call of today, `number` milliseconds from noon.
fn today(entry: &str, number: usize) -> String {
    let name = "\"started_at\":";
    let Some(at) = entry.find(name) else { return entry.to_owned() };
    let (head, tail) = entry.split_at(at + name.len());
    let value = tail.find([',', '}', '\n']).unwrap();
    format!("{head}{}{}", noon(0).timestamp_millis() + number as i64, &tail[value..])
}

/// Which of the entries are not the same, as text, when they come back. Each has a row; of those that Kong refused for want of a key little
/// is kept on purpose.
async fn differing(database: &Database, entries: &[String]) -> Vec<String> {
    let calls = entries.iter().map(|entry| read(entry));
    let calls: Vec<Call> = calls.filter(|call| call.status != Some(401) || call.consumer_username != "anonymous").collect();
    assert!(calls.len() * 10 > entries.len() * 9);
    let ids: Vec<&str> = calls.iter().map(|call| call.request_id.as_str()).collect();
    let starts: Vec<DateTime<Utc>> = calls.iter().map(|call| call.started_at).collect();
    let raws: Vec<&str> = calls.iter().map(|call| call.raw_log.as_str()).collect();
    let query =
        "SELECT count(*), coalesce(array_agg(e.id) FILTER (WHERE llm_raw_log(l)::text IS DISTINCT FROM e.raw::jsonb::text), '{}')
        FROM unnest($1::text[], $2::timestamptz[], $3::text[]) AS e (id, started_at, raw)
        JOIN llm_logs l ON l.request_id = e.id AND l.started_at = e.started_at";
    let row = database.connect().await.query_one(query, &[&ids, &starts, &raws]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), calls.len() as i64, "each has a row");
    row.get(1)
}

const NONE: [String; 0] = [];

/// How many parts of bodies there are.
async fn parts(database: &Database, condition: &str) -> i64 {
    database.number(&format!("SELECT count(*) FROM llm_content WHERE {condition}")).await
}

const APART: &str = "SELECT count(*) FROM llm_logs WHERE contents IS NOT NULL AND raw_log::text LIKE '%\"llm_content\"%'";

async fn log(app: &TestApp, entries: &[String]) {
    for batch in entries.chunks(50) {
        let answer = app.log(format!("[{}]", batch.join(","))).await;
        assert_eq!(answer.count("stored"), batch.len() as u64, "{answer:?}");
    }
}

/// Waits until what a day's calls have in common is stored apart: the day's partitions are made when a row wants them, and until then rows are
/// stored whole. `entry` makes such a call; their rows do not stay.
async fn apart(app: &TestApp, entry: impl Fn(&str) -> String) {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    wait_until("parts are stored apart", Duration::from_secs(60), || async {
        let id = format!("probe-{}", asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        app.log(entry(&id)).await;
        app.database.number(&format!("SELECT count(*) FROM llm_logs WHERE request_id = '{id}' AND contents IS NOT NULL")).await
            == 1
    })
    .await;
    app.settled().await;
    app.database.connect().await.execute("DELETE FROM llm_logs WHERE request_id LIKE 'probe-%'", &[]).await.unwrap();
}

#[tokio::test]
async fn recorded_entries_come_back_as_they_would_have_been_stored() {
    let mut entries: Vec<String> =
        fixtures::entry_names().iter().map(|name| String::from_utf8_lossy(&fixtures::entry(name)).into_owned()).collect();
    for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/cases")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|end| end == "json") && !path.to_string_lossy().ends_with(".expected.json") {
            entries.push(std::fs::read_to_string(path).unwrap());
        }
    }
    let entries: Vec<String> = entries.iter().enumerate().map(|(number, entry)| today(entry.trim(), number)).collect();
    let app = TestApp::start().await;
    log(&app, &entries).await;
    assert_eq!(differing(&app.database, &entries).await, NONE);
    let apart = app.database.number(APART).await;
    assert!(apart > 100, "{apart}");
    // What a part is stored under is the hash of its text, which is JSON.
    let wrong = "SELECT count(*) FROM llm_content WHERE sha256 <> sha256(convert_to(body, 'UTF8')) OR body::jsonb IS NULL";
    assert_eq!(app.database.number(wrong).await, 0);
}

#[tokio::test]
async fn generated_calls_and_sessions_come_back_and_take_a_fraction_of_the_room() {
    let mut generator = Generator::new(&Settings { started_at_ms: noon(0).timestamp_millis(), ..Settings::default() });
    let mut entries: Vec<String> = (0..300).map(|_| generator.entry()).collect();
    let app = TestApp::start().await;
    log(&app, &entries).await;
    let bodies = "SELECT coalesce(sum(octet_length(llm_raw_log(l)::text)), 0)::bigint FROM llm_logs l WHERE id > ";
    let stored = "SELECT (SELECT coalesce(sum(octet_length(raw_log::text)), 0) FROM llm_logs WHERE id > ID)
        + (SELECT sum(octet_length(body)) FROM llm_content)";
    let before = app.database.number(&format!("{}::bigint", stored.replace("ID", "0"))).await;
    let first = app.database.number("SELECT max(id) FROM llm_logs").await;
    let session: Vec<String> =
        generator.agent_session(0, noon(0).timestamp_millis(), 40).into_iter().map(|made| made.json).collect();
    log(&app, &session).await;
    let whole = app.database.number(&format!("{bodies}{first}")).await;
    let after = app.database.number(&format!("{}::bigint", stored.replace("ID", "0"))).await;
    assert!((after - before) * 5 < whole, "{} bytes are stored of {whole}", after - before);
    entries.extend(session);
    assert_eq!(differing(&app.database, &entries).await, NONE);
}

/// A JSON value of some depth, with texts around the length from which they are parts, and with names that references have.
fn value(dice: &mut Dice, depth: u64) -> Value {
    match dice.roll(if depth == 0 { 6 } else { 10 }) {
        0 => Value::Null,
        1 => json!(dice.roll(2) == 0),
        2 => json!(dice.roll(1_000_000)),
        3 => json!({"llm_content": [dice.roll(3), dice.roll(4)]}),
        4 => json!("é\"\\\n".repeat(dice.roll(60) as usize)),
        5 => json!("x".repeat(dice.roll(600) as usize)),
        6 | 7 => (0..dice.roll(6)).map(|_| value(dice, depth - 1)).collect(),
        _ => {
            let names = ["llm_content", "messages", "tools", "a", "b", "unread", "choices"];
            (0..dice.roll(5)).map(|_| (names[dice.roll(7) as usize].to_owned(), value(dice, depth - 1))).collect()
        }
    }
}

#[tokio::test]
async fn nobody_can_make_up_a_reference() {
    let odd = [
        r#"{"llm_content":[0,1]}"#,
        r#"{"llm\u005fcontent":[0,1],"messages":[{"role":"user","content":"x"}]}"#,
        r#"{"messages":[{"llm_content":[0,1]},{"llm_content":[0,2]},{"llm\u005fcontent":null}]}"#,
        r#"{"messages":{"llm_content":"missing"},"tools":[[{"llm_content":[0,1]}]]}"#,
        r#"[{"llm_content":[0,1]}]"#,
        r#""llm_content""#,
        r#"{"messages":[],"messages":[{"llm_content":[9,9]}]}"#,
    ];
    let mut bodies: Vec<String> = odd.iter().map(|body| (*body).to_owned()).collect();
    // Beside parts, to which they could refer.
    bodies.extend(
        odd.iter()
            .filter(|body| body.starts_with('{'))
            .map(|body| format!("{{\"system\":\"{}\",\"tools\":[\"{}\"],{}", long("s"), long("t"), &body[1..])),
    );
    let mut dice = Dice::new(7);
    bodies.extend((0..400).map(|_| value(&mut dice, 4).to_string()));
    let entries: Vec<String> = bodies
        .iter()
        .enumerate()
        .map(|(number, body)| {
            let mut entry = call(&format!("odd-{number}"), "eve", noon(0), &[], "");
            entry["request"]["body"] = json!(body);
            entry["response"]["body"] = json!(bodies[bodies.len() - 1 - number]);
            entry.to_string()
        })
        .collect();
    let app = TestApp::start().await;
    log(&app, &entries).await;
    assert_eq!(differing(&app.database, &entries).await, NONE);
}

#[tokio::test]
async fn what_many_send_is_there_once_a_day() {
    let app = TestApp::start().await;
    let (system, shared) = (long("You are helpful."), long("tell me"));
    let mut entries = Vec::new();
    for (number, (who, at)) in [("ann", noon(0)), ("bob", noon(0)), ("ann", noon(0)), ("ann", noon(1))].into_iter().enumerate() {
        let own = long(&format!("own {number}"));
        let messages = [("system", system.as_str()), ("user", shared.as_str()), ("user", own.as_str())];
        entries.push(call(&format!("many-{number}"), who, at, &messages, "yes").to_string());
    }
    apart(&app, |id| call(id, "ann", noon(1), &[("user", &long("own 3"))], "yes").to_string()).await;
    // One by one, all at once, and once more: a repeated entry changes nothing.
    log(&app, &entries[..1]).await;
    log(&app, &entries[1..]).await;
    assert_eq!(app.log(format!("[{}]", entries.join(","))).await.count("duplicates"), 4);
    for text in [&system, &shared] {
        let days = app.database.connect().await;
        let query = "SELECT count(*), count(DISTINCT day) FROM llm_content WHERE position($1 IN body) > 0";
        let row = days.query_one(query, &[&text.trim_end()]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (2, 2), "{text}");
    }
    assert_eq!(parts(&app.database, "body LIKE '%own %'").await, 4);
    assert_eq!(differing(&app.database, &entries).await, NONE);
    // Small members stay where SQL finds them, and columns are as ever.
    let small = "SELECT count(*) FROM llm_logs WHERE raw_log #>> '{request,body,temperature}' = '0.5' AND prompt LIKE 'own %'";
    assert_eq!(app.database.number(small).await, 4);
}

/// A database in which ann and bob share a system prompt, and each has something of their own.
async fn shared() -> (Database, Vec<String>) {
    let app = TestApp::start().await;
    let system = long("You are helpful.");
    let entries: Vec<String> = ["ann", "bob"]
        .iter()
        .flat_map(|who| (0..3).map(move |number| (who, number)))
        .map(|(who, number)| {
            let own = long(&format!("{who} asks {number}"));
            let messages = [("system", system.as_str()), ("user", own.as_str())];
            call(&format!("{who}-{number}"), who, noon(0), &messages, &long(&format!("to {who}"))).to_string()
        })
        .collect();
    log(&app, &entries).await;
    let database = app.database.clone();
    app.stop().await;
    (database, entries)
}

async fn erase(database: &Database, arguments: &[&str]) {
    let mut all = vec!["erase", "--database-url", database.url.as_str(), "--yes", "--consumer"];
    all.extend_from_slice(arguments);
    let erased = run(&all, &[]).await;
    assert!(erased.status.success(), "{erased:?}");
}

#[tokio::test]
async fn erasing_somebody_leaves_what_somebody_else_has() {
    for how in [&["ann"][..], &["ann", "--rows"][..]] {
        let (database, entries) = shared().await;
        assert_eq!((parts(&database, "body LIKE '%ann%'").await, parts(&database, "true").await), (4, 9));
        erase(&database, how).await;
        assert_eq!((parts(&database, "body LIKE '%ann%'").await, parts(&database, "true").await), (0, 5));
        assert_eq!(differing(&database, &entries[3..]).await, NONE);
        assert_eq!(database.number("SELECT count(*) FROM llm_erased_content").await, 0);
        erase(&database, &["bob"]).await;
        assert_eq!(parts(&database, "true").await, 0);
    }
}

#[tokio::test]
async fn a_collector_that_remembers_what_was_erased_sends_it_again() {
    let (database, entries) = shared().await;
    let app = TestApp::start_on(database.clone(), &[]).await;
    let again = |id: &str, who: &str| call(id, who, noon(0), &[("system", &long("You are helpful.")), ("user", &long("x"))], "y");
    // It learns what is there.
    log(&app, &[again("first", "carl").to_string()]).await;
    for who in ["ann", "bob", "carl"] {
        erase(&database, &[who]).await;
    }
    assert_eq!(parts(&database, "true").await, 0);
    // A repeated batch finds its rows and does not bring back what they had.
    assert_eq!(app.log(format!("[{}]", entries.join(","))).await.count("duplicates"), 6);
    assert_eq!(parts(&database, "true").await, 0);
    let later = again("second", "dora").to_string();
    log(&app, std::slice::from_ref(&later)).await;
    assert_eq!((parts(&database, "true").await, differing(&database, &[later]).await), (2, vec![]));
}

#[tokio::test]
async fn what_a_crash_left_of_an_erasure_the_next_round_of_retention_removes() {
    let (database, entries) = shared().await;
    let client = database.connect().await;
    // As an erasure leaves it that dies after its first statement.
    client
        .batch_execute(
            "INSERT INTO llm_erased_content (day, hash) SELECT DISTINCT (started_at AT TIME ZONE 'UTC')::date, llm_content_hashes(contents)
                FROM llm_logs WHERE consumer_username = 'ann';
            UPDATE llm_logs SET raw_log = '{}', contents = NULL, prompt = NULL, response = NULL WHERE consumer_username = 'ann'",
        )
        .await
        .unwrap();
    let finished = run(&["retention", "--database-url", &database.url, "--keep-content-days", "30"], &[]).await;
    assert!(finished.status.success(), "{finished:?}");
    assert_eq!((parts(&database, "body LIKE '%ann%'").await, parts(&database, "true").await), (0, 5));
    assert_eq!(differing(&database, &entries[3..]).await, NONE);
}

#[tokio::test]
async fn rows_that_come_while_content_is_erased_keep_what_they_refer_to() {
    let (database, _) = shared().await;
    let app = TestApp::start_on(database.clone(), &[]).await;
    let (system, own) = (long("You are helpful."), long("ann asks 0"));
    let entries: Vec<String> = (0..200)
        .map(|number| {
            call(&format!("late-{number}"), "carl", noon(0), &[("system", &system), ("user", &own)], &long("to ann")).to_string()
        })
        .collect();
    let erasing = async {
        for who in ["ann", "bob"] {
            erase(&database, &[who]).await;
        }
    };
    let logging = async {
        for entry in &entries {
            let answer = app.log(entry.clone()).await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    };
    tokio::join!(erasing, logging);
    app.settled().await;
    wait_until("the spool is empty", Duration::from_secs(60), || async {
        database.number("SELECT count(*) FROM llm_logs WHERE consumer_username = 'carl'").await == 200
    })
    .await;
    assert_eq!(differing(&database, &entries).await, NONE);
    assert_eq!(parts(&database, "body LIKE '%bob%' OR body LIKE '%ann asks 1%'").await, 0);
}

#[tokio::test]
async fn clocks_remove_the_content_of_a_day_with_it() {
    let app = TestApp::start().await;
    let entry = |id: &str, days| call(id, "ann", noon(days), &[("user", &long("secret"))], &long("answer")).to_string();
    for days in [9, 2] {
        apart(&app, |id| entry(id, days)).await;
    }
    let entries: Vec<String> = [9, 2, 0].map(|days| entry(&format!("kept-{days}"), days)).into();
    log(&app, &entries).await;
    let retention = async |arguments: &[&str]| {
        let mut all = vec!["retention", "--confirm", "--database-url", &app.database.url];
        all.extend_from_slice(arguments);
        let finished = run(&all, &[]).await;
        assert!(finished.status.success(), "{finished:?}");
    };
    retention(&["--keep-content-days", "7"]).await;
    let of_day = |days| format!("day = '{}'", noon(days).format("%Y-%m-%d"));
    assert_eq!((parts(&app.database, &of_day(9)).await, parts(&app.database, &of_day(2)).await), (0, 2));
    assert_eq!(differing(&app.database, &entries[1..]).await, NONE);
    let left = "SELECT count(*) FROM llm_logs WHERE contents IS NOT NULL OR llm_raw_log(llm_logs)::text LIKE '%secret%'";
    assert_eq!(app.database.number(left).await, 2);
    // A row that comes late is stored whole, until the next round.
    let late = entry("late-9", 9);
    log(&app, std::slice::from_ref(&late)).await;
    assert_eq!(differing(&app.database, &[late]).await, NONE);
    retention(&["--keep-content-days", "7"]).await;
    assert_eq!(app.database.number(left).await, 2);
    retention(&["--keep-rows-days", "1"]).await;
    assert_eq!((parts(&app.database, "true").await, app.database.number(left).await), (2, 1));
    // It goes on, with what it remembered of days that are gone.
    let after = entry("after-2", 2);
    log(&app, &[after.clone(), entry("after-0", 0)]).await;
    assert_eq!(differing(&app.database, &[after]).await, NONE);
}

#[tokio::test]
async fn two_collectors_write_the_same_content_at_once() {
    let first = TestApp::start().await;
    let second = TestApp::start_on(first.database.clone(), &[]).await;
    let batch = |who: &'static str, round: usize| {
        let texts: Vec<String> = (0..20).map(|number| long(&format!("round {round} text {number}"))).collect();
        let entries: Vec<Value> = (0..20)
            .map(|number| {
                // Each in an order of its own.
                let messages: Vec<(&str, &str)> =
                    (0..20).map(|place| ("user", texts[(place * 7 + number * 3) % 20].as_str())).collect();
                call(&format!("{who}-{round}-{number}"), who, noon(0), &messages, "yes")
            })
            .collect();
        Value::from(entries).to_string()
    };
    for round in 0..25 {
        let (one, other) = tokio::join!(first.log(batch("ann", round)), second.log(batch("bob", round)));
        assert_eq!((one.count("stored"), other.count("stored")), (20, 20));
    }
    assert_eq!(parts(&first.database, "true").await, 25 * 20);
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(first.database.number(deadlocks).await, 0);
    let missing = "SELECT count(*) FROM llm_logs WHERE llm_raw_log(llm_logs)::text LIKE '%\"missing\"%'";
    assert_eq!(first.database.number(missing).await, 0);
}
