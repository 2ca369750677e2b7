//! `quota`: limits as an operator sets and sees them.

use chrono::Utc;
use gateway_tests::collector::{Finished, TestApp, run};
use serde_json::{Value, json};

use crate::quotas::{entry, execute};

async fn quota(app: &TestApp, arguments: &[&str]) -> Finished {
    let all: Vec<&str> = ["quota"].iter().chain(arguments).copied().collect();
    run(&all, &[("DATABASE_URL", &app.database.url)]).await
}

async fn done(app: &TestApp, arguments: &[&str]) -> String {
    let finished = quota(app, arguments).await;
    assert!(finished.status.success(), "{arguments:?}: {finished:?}");
    finished.stdout
}

async fn page(app: &TestApp, arguments: &[&str]) -> Vec<Value> {
    serde_json::from_str(&done(app, arguments).await).unwrap()
}

#[tokio::test]
async fn limits_are_set_replaced_listed_and_removed() {
    let app = TestApp::start().await;
    assert!(done(&app, &["list"]).await.contains("no limits"));
    let said = done(&app, &["set", "--user", "alice", "--tokens", "2M", "--per", "day"]).await;
    assert_eq!(said, "user alice: 2,000,000 tokens per day, soft\nlimit 1, known to the gateway in a second or two\n");
    done(&app, &["set", "--team", "ml", "--cost", "500.5", "--currency", "CNY", "--per", "month", "--hard"]).await;
    done(&app, &["set", "--each-user", "--calls", "500", "--per", "hour", "--mode", "shadow"]).await;
    done(&app, &["set", "--everybody", "--tokens", "0", "--per", "week", "--models", "Qwen%"]).await;
    // Set again it is another amount and another mode of the same limit.
    done(&app, &["set", "--user", "alice", "--tokens", "500k", "--per", "day", "--hard"]).await;
    let waits = done(&app, &["set", "--user", "carol", "--calls", "9", "--per", "day", "--soft", "--when-over", "wait"]).await;
    assert!(waits.starts_with("user carol: 9 calls per day, wait\n"), "{waits}");
    done(&app, &["set", "--user", "carol", "--calls", "8", "--per", "day", "--when-over", "wait"]).await;
    let list = page(&app, &["list", "--json"]).await;
    let expected =
        |id: i64, subject: &str, name: &str, models: &str, unit: &str, currency: &str, per: &str, amount: f64, mode: &str| {
            json!({"id": id, "subject": subject, "name": name, "models": models, "unit": unit, "currency": currency, "per": per,
            "amount": if amount.fract() == 0.0 { json!(amount as i64) } else { json!(amount) }, "mode": mode})
        };
    let id = |kind: &str| list.iter().find(|quota| quota["subject"] == kind).unwrap()["id"].as_i64().unwrap();
    assert_eq!(id("user"), 1);
    assert_eq!(
        list,
        [
            expected(id("everybody"), "everybody", "", "Qwen%", "tokens", "", "week", 0.0, "soft"),
            expected(id("each_user"), "each_user", "", "%", "calls", "", "hour", 500.0, "shadow"),
            expected(id("team"), "team", "ml", "%", "cost", "CNY", "month", 500.5, "hard"),
            expected(1, "user", "alice", "%", "tokens", "", "day", 500_000.0, "hard"),
            expected(6, "user", "carol", "%", "calls", "", "day", 8.0, "wait"),
        ]
    );
    let table = done(&app, &["list"]).await;
    assert!(table.contains("team ml") && table.contains("500.5 CNY per month") && table.lines().count() == 6, "{table}");
    assert!(done(&app, &["remove", "1"]).await.contains("removed limit 1: user alice"));
    done(&app, &["remove", "--each-user", "--per", "hour", "--unit", "calls"]).await;
    assert_eq!(page(&app, &["list", "--json"]).await.len(), 3);
    assert_eq!(quota(&app, &["remove", "1"]).await.status.code(), Some(1));
    app.stop().await;
}

#[tokio::test]
async fn what_makes_no_limit_is_said_and_sets_none() {
    let app = TestApp::start().await;
    for (arguments, told) in [
        (vec!["--tokens", "1", "--per", "day"], "--each-user"),
        (vec!["--user", "a", "--team", "b", "--tokens", "1", "--per", "day"], "cannot be used with"),
        (vec!["--user", "a", "--per", "day"], "--tokens"),
        (vec!["--user", "a", "--tokens", "1", "--calls", "1", "--per", "day"], "cannot be used with"),
        (vec!["--user", "a", "--tokens", "1"], "--per"),
        (vec!["--user", "a", "--tokens", "1.5", "--per", "day"], "no part"),
        (vec!["--user", "a", "--tokens", "-1", "--per", "day"], "-1"),
        (vec!["--user", "a", "--tokens", "many", "--per", "day"], "1.5M"),
        (vec!["--user", "a", "--tokens", "1", "--per", "year"], "month"),
        (vec!["--user", "a", "--cost", "1", "--per", "day"], "--currency"),
        (vec!["--user", "a", "--tokens", "1", "--currency", "CNY", "--per", "day"], "--cost"),
        (vec!["--user", "a", "--tokens", "1", "--per", "day", "--hard", "--soft"], "cannot be used with"),
        (vec!["--user", "a", "--tokens", "1", "--per", "day", "--hard", "--when-over", "wait"], "cannot be used with"),
        (vec!["--user", "a", "--tokens", "1", "--per", "day", "--mode", "shadow", "--when-over", "wait"], "this one is shadow"),
        (vec!["--user", "", "--tokens", "1", "--per", "day"], "name"),
        (vec!["--team", "a b", "--tokens", "1", "--per", "day"], "team's name"),
        (vec!["--user", "a", "--tokens", "1", "--per", "day", "--models", "a\\"], "pattern"),
    ] {
        let finished = quota(&app, &[&["set"], arguments.as_slice()].concat()).await;
        assert!(!finished.status.success() && finished.stderr.contains(told), "{arguments:?}: {finished:?}");
        assert!(!finished.stderr.contains("SQLSTATE") && !finished.stderr.contains("check constraint"), "{finished:?}");
    }
    for arguments in [vec!["remove"], vec!["remove", "1", "--everybody"], vec!["status", "--user", "a", "--team", "b"]] {
        assert!(!quota(&app, &arguments).await.status.success(), "{arguments:?}");
    }
    assert_eq!(app.database.number("SELECT count(*) FROM llm_quotas").await, 0);
    let client = app.database.connect().await;
    execute(
        &client,
        "INSERT INTO llm_quotas (subject_kind, subject_name, unit, per, amount)
        SELECT 'user', 'u' || n, 'calls', 'day', 1 FROM generate_series(1, 1000) n",
    )
    .await;
    let finished = quota(&app, &["set", "--everybody", "--calls", "1", "--per", "day"]).await;
    assert!(!finished.status.success() && finished.stderr.contains("1000"), "{finished:?}");
    done(&app, &["set", "--user", "u7", "--calls", "2", "--per", "day"]).await;
    app.stop().await;
}

#[tokio::test]
async fn status_says_what_is_used_and_left_and_when_it_is_there_again() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    execute(&client, "UPDATE llm_site SET time_zone = 'Asia/Kolkata'; INSERT INTO llm_model_prices VALUES ('%', '2020-01-01', 1000, 1, 3000, 'CNY')").await;
    done(&app, &["set", "--each-user", "--tokens", "1000", "--per", "day"]).await;
    done(&app, &["set", "--user", "bob", "--calls", "1", "--per", "month"]).await;
    done(&app, &["set", "--team", "ml", "--cost", "0.5", "--currency", "CNY", "--per", "month", "--hard"]).await;
    done(&app, &["set", "--everybody", "--calls", "0", "--per", "day", "--shadow"]).await;
    let now = Utc::now();
    let calls =
        [entry("w", 1, now, "alice", "ml", 100), entry("w", 2, now, "bob", "ml", 300), entry("w", 3, now, "bob", "web", 3)];
    assert_eq!(app.log(json!(calls).to_string()).await.count("stored"), 3);
    let shown = async |arguments: &[&str]| -> Vec<String> {
        let page = page(&app, arguments).await;
        let line = |row: &Value| {
            format!(
                "{} {} {} {} {:.1}",
                row["subject"].as_str().unwrap(),
                row["name"].as_str().unwrap(),
                row["used"],
                row["left"],
                row["percent"].as_f64().unwrap()
            )
        };
        page.iter().map(line).collect()
    };
    assert_eq!(
        shown(&["status", "--json"]).await,
        [
            "user bob 2 0 200.0",
            "everybody  3 0 100.0",
            "team ml 0.442 0.058 88.4",
            "each_user bob 317 683 31.7",
            "each_user alice 107 893 10.7"
        ]
    );
    // With what is left for the team of her last call.
    assert_eq!(
        shown(&["status", "--json", "--user", "alice"]).await,
        ["everybody  3 0 100.0", "team ml 0.442 0.058 88.4", "each_user alice 107 893 10.7"]
    );
    assert_eq!(shown(&["status", "--json", "--user", "carol"]).await, ["everybody  3 0 100.0", "each_user carol 0 1000 0.0"]);
    assert_eq!(shown(&["status", "--json", "--team", "ml"]).await, ["everybody  3 0 100.0", "team ml 0.442 0.058 88.4"]);
    let table = done(&app, &["status"]).await;
    assert!(table.lines().count() == 6 && table.contains("00:00 Asia/Kolkata") && table.contains("each user: alice"), "{table}");
    let resets = page(&app, &["status", "--json", "--user", "alice"]).await[2]["resets_at"].as_str().unwrap().to_owned();
    assert!(resets.ends_with("18:30:00+00:00"), "{resets}");
    app.stop().await;
}
