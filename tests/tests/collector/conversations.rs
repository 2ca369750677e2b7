//! Calls that continue each other.

use std::time::Duration;

use gateway_tests::collector::{TestApp, run};
use gateway_tests::generator::{Generator, Settings};
use gateway_tests::process::wait_until;
use serde_json::{Value, json};

use crate::content::call;
use crate::retention::noon;

/// The calls of a talk, each with all that was said before; `said` are what the person and the model say in turn.
fn talk(name: &str, who: &str, said: &[&str]) -> Vec<Value> {
    let number = |place: usize| chrono::Duration::seconds(place as i64);
    (0..said.len() / 2)
        .map(|turn| {
            let roles = ["user", "assistant"].into_iter().cycle();
            let messages: Vec<(&str, &str)> = roles.zip(said[..=turn * 2].iter().copied()).collect();
            call(&format!("{name}-{turn}"), who, noon(0) + number(turn), &messages, said[turn * 2 + 1])
        })
        .collect()
}

/// The conversations of calls, by their identity.
async fn conversations(app: &TestApp, condition: &str) -> Vec<(String, Option<String>)> {
    let query = format!("SELECT request_id, conversation FROM llm_logs WHERE {condition} ORDER BY request_id");
    app.database.connect().await.query(&query, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn log(app: &TestApp, calls: &[Value]) {
    let answer = app.log(Value::from(calls).to_string()).await;
    assert_eq!(answer.count("stored"), calls.len() as u64, "{answer:?}");
}

const SAID: [&str; 8] = ["hello", "hi", "how are you", "well", "really", "yes", "good", "bye"];

#[tokio::test]
async fn calls_that_continue_each_other_are_one_conversation_however_they_arrive() {
    let app = TestApp::start().await;
    // In one batch, in several, and the same talk of somebody else.
    log(&app, &talk("one", "ann", &SAID)).await;
    for call in talk("several", "bob", &SAID) {
        log(&app, &[call]).await;
    }
    let seen = conversations(&app, "true").await;
    let expected: Vec<_> = ["one", "several"]
        .iter()
        .flat_map(|name| (0..4).map(move |turn| (format!("{name}-{turn}"), Some(format!("{name}-0")))))
        .collect();
    assert_eq!(seen, expected);
    // Later calls first: each worker of Kong sends its own batches.
    for call in talk("backwards", "carl", &SAID).into_iter().rev() {
        log(&app, &[call]).await;
    }
    // Upkeep does so from time to time.
    app.database.number("SELECT llm_join_conversations()").await;
    let joined = conversations(&app, "consumer_username = 'carl'").await;
    assert!(joined.iter().all(|(_, conversation)| conversation.as_deref() == Some("backwards-0")), "{joined:?}");
    assert_eq!(app.database.number("SELECT count(*) FROM llm_awaited_turns").await, 0);
    // What comes after that finds its way, too.
    let mut longer = SAID.to_vec();
    longer.extend(["once more", "no"]);
    log(&app, &talk("backwards", "carl", &longer)[4..]).await;
    assert_eq!(conversations(&app, "request_id = 'backwards-4'").await[0].1.as_deref(), Some("backwards-0"));
}

#[tokio::test]
async fn nothing_but_the_same_words_ties_calls() {
    let app = TestApp::start().await;
    log(&app, &talk("first", "ann", &SAID[..4])).await;
    // A fork continues the same call.
    log(&app, &talk("fork", "ann", &["hello", "hi", "what else", "this"])[1..]).await;
    // One answer differs by a letter; the beginning was left out; nobody said that to ann.
    log(&app, &talk("other", "ann", &["hello", "Hi", "how are you", "well"])[1..]).await;
    log(&app, &talk("cut", "ann", &["how are you", "well", "really", "yes"])[1..]).await;
    log(&app, &talk("bob", "bob", &SAID[..4])[1..]).await;
    let seen = conversations(&app, "true").await;
    let expected = [
        ("bob-1", "bob-1"),
        ("cut-1", "cut-1"),
        ("first-0", "first-0"),
        ("first-1", "first-0"),
        ("fork-1", "first-0"),
        ("other-1", "other-1"),
    ];
    assert_eq!(seen, expected.map(|(id, conversation)| (id.to_owned(), Some(conversation.to_owned()))));
}

#[tokio::test]
async fn a_report_counts_conversations() {
    let app = TestApp::start().await;
    log(&app, &talk("long", "ann", &SAID)).await;
    log(&app, &talk("short", "ann", &["good day", "hm"])).await;
    log(&app, &talk("other", "bob", &SAID[..4])).await;
    let (since, until) =
        (noon(1).format("%Y-%m-%d").to_string(), (noon(0) + chrono::Duration::days(1)).format("%Y-%m-%d").to_string());
    let report = async |more: &[&str]| {
        let mut all = vec!["report", "--database-url", &app.database.url, "--since", &since, "--until", &until];
        all.extend(["--by", "consumer", "--format", "json"]);
        all.extend_from_slice(more);
        let finished = run(&all, &[]).await;
        assert!(finished.status.success(), "{finished:?}");
        serde_json::from_str::<Value>(&finished.stdout).unwrap()
    };
    let counted = report(&["--conversations"]).await;
    let rows: Vec<_> = counted["rows"].as_array().unwrap().iter().map(|row| (&row["consumer"], &row["conversations"])).collect();
    assert_eq!(rows, [(&json!("ann"), &json!(2)), (&json!("bob"), &json!(1))]);
    assert_eq!(counted["total"]["conversations"], 3);
    assert_eq!(report(&[]).await["total"].get("conversations"), None);
}

#[tokio::test]
async fn failed_calls_begin_none_and_what_is_erased_ties_nothing() {
    let app = TestApp::start().await;
    let mut failed = talk("failed", "ann", &SAID[..4]);
    for call in &mut failed {
        call["response"] = json!({"status": 500, "body": "{\"error\":{\"message\":\"m\"}}"});
    }
    log(&app, &failed[..1]).await;
    log(&app, &talk("well", "ann", &SAID[..2])).await;
    // It belongs to what it was to continue.
    log(&app, &failed[1..]).await;
    let seen = conversations(&app, "true").await;
    assert_eq!(
        seen.iter().map(|(_, conversation)| conversation.as_deref()).collect::<Vec<_>>(),
        [None, Some("well-0"), Some("well-0")]
    );
    let erased = run(&["erase", "--database-url", &app.database.url, "--consumer", "ann", "--yes"], &[]).await;
    assert!(erased.status.success(), "{erased:?}");
    assert_eq!(app.database.number("SELECT count(*) FROM llm_turns").await, 0);
}

#[tokio::test]
async fn the_session_of_an_agent_is_one_conversation_and_shows_what_was_new() {
    let app = TestApp::start().await;
    let mut generator = Generator::new(&Settings { started_at_ms: noon(0).timestamp_millis(), ..Settings::default() });
    let entries: Vec<String> =
        generator.agent_session(0, noon(0).timestamp_millis(), 12).into_iter().map(|made| made.json).collect();
    // Two collectors take turns, as behind a balancer.
    let other = TestApp::start_on(app.database.clone(), &[]).await;
    for (number, entry) in entries.iter().enumerate() {
        let app = if number % 2 == 0 { &app } else { &other };
        assert_eq!(app.log(entry.clone()).await.count("stored"), 1);
    }
    wait_until("calls are tied", Duration::from_secs(60), || async {
        app.database.number("SELECT count(DISTINCT conversation) FROM llm_logs").await == 1
    })
    .await;
    assert_eq!(app.database.number("SELECT count(conversation) FROM llm_logs").await, 12);
    // After the first call, each brings the results of the tools that the answer before it called, and nothing older.
    let new = "SELECT count(*) FROM (SELECT row_number() OVER (ORDER BY started_at) AS number, (SELECT count(*) FROM llm_new_messages(l)) AS new
        FROM llm_logs l) calls WHERE number > 1 AND new = 1";
    assert_eq!(app.database.number(new).await, 11);
    let own = "SELECT count(*) FROM llm_logs l, llm_new_messages(l) m WHERE m.content LIKE '%system%' AND m.role = 'system'";
    assert!(app.database.number(own).await <= 1);
}
