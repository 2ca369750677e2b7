//! What a node is told about limits: as if it had asked the table, whatever happens at the same time and gets lost on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use gateway_tests::collector::TestApp;
use gateway_tests::dice::Dice;
use gateway_tests::postgres::Database;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::usage::texts;

pub(crate) async fn execute(client: &Client, statement: &str) {
    client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
}

/// A limit, in SQL.
pub(crate) fn limit(kind: &str, name: &str, unit: &str, per: &str) -> String {
    let currency = if unit == "cost" { "CNY" } else { "" };
    format!(
        "INSERT INTO llm_quotas (subject_kind, subject_name, unit, currency, per, amount) VALUES ('{kind}', '{name}', '{unit}', '{currency}', '{per}', 1000);"
    )
}

/// A call of a user as a member of a team.
pub(crate) fn entry(worker: &str, seq: u64, at: DateTime<Utc>, user: &str, team: &str, tokens: u64) -> Value {
    json!({"request": {"id": format!("{worker}-{seq}"), "method": "POST", "uri": "/v1/chat/completions"},
        "response": {"status": 200}, "started_at": at.timestamp_millis(), "latencies": {"proxy": 5, "request": 9},
        "consumer": {"username": user, "tags": [format!("team:{team}")]},
        "llm": {"v": 1, "worker": worker, "seq": seq, "model": "m1", "usage": {"prompt_tokens": tokens, "completion_tokens": 7}}})
}

/// What a node knows.
#[derive(Debug, Default)]
struct Node {
    version: Option<String>,
    revision: Option<String>,
    workers: Vec<String>,
    zone: String,
    /// By limit, subject and beginning of the window.
    used: BTreeMap<(i64, String, i64), f64>,
    counted: BTreeMap<String, BTreeSet<u64>>,
    limits: Vec<Value>,
    windows: Value,
    fulls: usize,
    deltas: usize,
}

impl Node {
    fn of(workers: &[&str]) -> Self {
        Self { workers: workers.iter().map(|worker| (*worker).to_owned()).collect(), ..Self::default() }
    }

    async fn ask(&self, app: &TestApp) -> Value {
        let quota = json!({"version": self.version, "revision": self.revision, "workers": self.workers});
        let answer = app.post("/sync", json!({"v": 1, "node": "n", "quota": quota}).to_string(), &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["quota"].take()
    }

    /// As the plugin does it: first what is used, then what need not be waited for.
    fn apply(&mut self, answer: &Value) {
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        if answer["full"] == true {
            self.fulls += 1;
            self.used.clear();
            self.counted.clear();
            self.limits = answer["limits"].as_array().unwrap().clone();
            self.windows = answer["windows"].clone();
        } else {
            self.deltas += 1;
            assert!(answer.get("limits").is_none() && answer.get("windows").is_none() && answer.get("prices").is_none());
        }
        for used in answer["used"].as_array().unwrap() {
            let key = (used[0].as_i64().unwrap(), used[1].as_str().unwrap().to_owned(), used[2].as_i64().unwrap());
            *self.used.entry(key).or_default() += used[3].as_f64().unwrap();
        }
        for (worker, ranges) in answer["counted"].as_object().unwrap() {
            assert!(self.workers.contains(worker));
            for range in ranges.as_array().unwrap() {
                let numbers = range[0].as_u64().unwrap()..=range[1].as_u64().unwrap();
                self.counted.entry(worker.clone()).or_default().extend(numbers);
            }
        }
        (self.version, self.revision, self.zone) = (Some(text("version")), Some(text("revision")), text("zone"));
    }

    async fn sync(&mut self, app: &TestApp) {
        let answer = self.ask(app).await;
        self.apply(&answer);
    }

    /// What of a limit is used in the window that began `back` windows ago.
    fn of_limit(&self, id: i64, subject: &str, start: i64) -> f64 {
        self.used.get(&(id, subject.to_owned(), start)).copied().unwrap_or_default()
    }

    fn start(&self, per: &str) -> i64 {
        self.windows[per][0].as_i64().unwrap()
    }
}

/// What rows add up to whose numbers are in the count: not a line of what is tested.
async fn expected(client: &Client, zone: &str, counted: &BTreeMap<String, BTreeSet<u64>>) -> BTreeMap<(i64, String, i64), f64> {
    let ids: Vec<String> =
        counted.iter().flat_map(|(worker, numbers)| numbers.iter().map(move |number| format!("{worker}-{number}"))).collect();
    let query = "SELECT q.id, CASE q.subject_kind WHEN 'each_user' THEN l.consumer_username ELSE q.subject_name END,
            extract(epoch FROM date_trunc(q.per, l.started_at, $2))::bigint,
            sum(CASE q.unit WHEN 'calls' THEN 1 WHEN 'tokens' THEN l.prompt_tokens + l.completion_tokens
                ELSE (l.prompt_tokens * 2 + l.completion_tokens * 8) / 1000000.0 END)::float8
        FROM llm_logs l, llm_quotas q
        WHERE l.request_id = ANY ($1) AND (q.subject_kind IN ('each_user', 'everybody')
            OR q.subject_kind = 'user' AND q.subject_name = l.consumer_username OR q.subject_kind = 'team' AND q.subject_name = l.team)
        GROUP BY 1, 2, 3";
    let rows = client.query(query, &[&ids, &zone]).await.unwrap();
    rows.iter().map(|row| ((row.get(0), row.get(1), row.get(2)), row.get(3))).collect()
}

fn assert_same(node: &BTreeMap<(i64, String, i64), f64>, expected: &BTreeMap<(i64, String, i64), f64>, when: &str) {
    let keys: BTreeSet<_> = node.keys().chain(expected.keys()).collect();
    for key in keys {
        let of = |map: &BTreeMap<(i64, String, i64), f64>| map.get(key).copied().unwrap_or_default();
        assert!((of(node) - of(expected)).abs() < 1e-7, "{when}: {key:?} is {} and should be {}", of(node), of(expected));
    }
}

const WORKERS: [&str; 4] = ["1-a", "2-a", "3-b", "4-b"];

/// Calls come through two collectors, twice and in any order, while transactions with the same rows are open elsewhere; some of these are
/// rolled back.
async fn write(apps: Arc<[TestApp; 2]>, database: Database, seed: u64, began: DateTime<Utc>, done: Arc<AtomicBool>) {
    let mut dice = Dice::new(seed);
    let client = database.connect().await;
    let mut sent: Vec<Value> = Vec::new();
    let mut next = [seed * 1_000; 4];
    for round in 0..25 {
        let mut batch = Vec::new();
        for _ in 0..=dice.roll(6) {
            let of = dice.roll(4) as usize;
            next[of] += 1;
            let at = began - TimeDelta::minutes(dice.roll(40) as i64);
            let (user, team) = (format!("u{}", dice.roll(5)), format!("t{}", dice.roll(2)));
            batch.push(entry(WORKERS[of], next[of], at, &user, &team, dice.roll(100)));
        }
        sent.extend(batch.clone());
        if dice.roll(3) == 0 {
            // Some that came before come again.
            batch.extend((0..3).map(|_| sent[dice.roll(sent.len() as u64) as usize].clone()));
        }
        // What another collector writes that is slow, or dies.
        let held = &batch[dice.roll(batch.len() as u64) as usize];
        let is_held = dice.roll(2) == 0;
        if is_held {
            let usage = &held["llm"]["usage"];
            let statement = format!(
                "BEGIN; INSERT INTO llm_logs (request_id, started_at, consumer_username, team, model, prompt_tokens, completion_tokens)
                VALUES ('{}', to_timestamp({} / 1000.0), '{}', '{}', 'm1', {}, {}) ON CONFLICT DO NOTHING;
                INSERT INTO llm_counted_ranges (worker, first_seq, last_seq) VALUES ('{}', {}, {})",
                held["request"]["id"].as_str().unwrap(),
                held["started_at"],
                held["consumer"]["username"].as_str().unwrap(),
                held["consumer"]["tags"][0].as_str().unwrap().trim_start_matches("team:"),
                usage["prompt_tokens"],
                usage["completion_tokens"],
                held["llm"]["worker"].as_str().unwrap(),
                held["llm"]["seq"],
                held["llm"]["seq"]
            );
            execute(&client, &statement).await;
        }
        let app = &apps[dice.roll(2) as usize];
        let ending = if dice.roll(2) == 0 { "COMMIT" } else { "ROLLBACK" };
        let body = json!(batch).to_string();
        let end = async {
            for _ in 0..dice.roll(3) {
                texts(&client, "SELECT pg_sleep(0.02)::text").await;
            }
            if is_held {
                execute(&client, ending).await;
            }
        };
        let (answer, ()) = tokio::join!(app.log(body), end);
        assert_eq!(answer.status, 200, "round {round}: {}", answer.text);
    }
    done.store(true, Ordering::Relaxed);
}

#[tokio::test]
async fn the_count_of_a_node_is_that_of_the_rows_whose_numbers_it_was_told() {
    let one = TestApp::start().await;
    let database = one.database.clone();
    let apps = Arc::new([one, TestApp::start_on(database.clone(), &[]).await]);
    let client = database.connect().await;
    let limits = [
        limit("each_user", "", "tokens", "hour"),
        limit("each_user", "", "cost", "day"),
        limit("team", "t1", "tokens", "week"),
        limit("user", "u3", "calls", "day"),
        limit("everybody", "", "tokens", "month"),
    ];
    execute(
        &client,
        &format!(
            "UPDATE llm_site SET time_zone = 'Asia/Kolkata'; {};
            INSERT INTO llm_model_prices VALUES ('m%', '2020-01-01', 2, 1, 8, 'CNY')",
            limits.concat()
        ),
    )
    .await;
    let began = Utc::now();
    let done: Vec<Arc<AtomicBool>> = (0..4).map(|_| Arc::default()).collect();
    let writers: Vec<_> = done
        .iter()
        .enumerate()
        .map(|(n, done)| tokio::spawn(write(Arc::clone(&apps), database.clone(), n as u64 + 1, began, Arc::clone(done))))
        .collect();

    // Both nodes have all workers, so that what each was told adds up to the same.
    let mut nodes = [Node::of(&WORKERS), Node::of(&WORKERS)];
    let mut dice = Dice::new(7);
    let mut rounds = 0;
    while rounds < 150 || !done.iter().all(|done| done.load(Ordering::Relaxed)) {
        rounds += 1;
        let node = &mut nodes[dice.roll(2) as usize];
        match dice.roll(40) {
            0 => *node = Node { fulls: node.fulls, deltas: node.deltas, ..Node::of(&WORKERS) },
            1 => {
                execute(
                    &client,
                    "UPDATE llm_usage_deltas SET noted_at = noted_at - interval '2 minutes';
                SELECT llm_compact_usage_piece(7)",
                )
                .await
            }
            2 | 3 => {
                execute(
                    &client,
                    "UPDATE llm_counted_ranges SET noted_at = noted_at - interval '2 minutes';
                SELECT llm_merge_counted_ranges(9)",
                )
                .await
            }
            4 => execute(&client, "UPDATE llm_quotas SET mode = 'shadow'").await,
            _ => {}
        }
        let answer = node.ask(&apps[dice.roll(2) as usize]).await;
        if dice.roll(3) == 0 {
            continue;
        }
        node.apply(&answer);
        assert_same(&node.used, &expected(&client, &node.zone, &node.counted).await, &format!("round {rounds}"));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    for node in &mut nodes {
        node.sync(&apps[0]).await;
        let all = texts(&client, "SELECT request_id FROM llm_logs").await;
        let counted: BTreeSet<String> =
            node.counted.iter().flat_map(|(worker, numbers)| numbers.iter().map(move |n| format!("{worker}-{n}"))).collect();
        assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), counted, "every row is in the count at the end");
        assert_same(&node.used, &expected(&client, &node.zone, &node.counted).await, "at the end");
        assert!(node.fulls > 0 && node.deltas > 10, "{} full answers, {} others", node.fulls, node.deltas);
    }
    // Merged, it is the same.
    execute(&client, "UPDATE llm_counted_ranges SET noted_at = noted_at - interval '2 minutes'").await;
    let merge =
        "SELECT nullif(llm_merge_counted_ranges(50), 0)::text WHERE EXISTS (SELECT FROM llm_counted_ranges WHERE NOT merged)";
    while !texts(&client, merge).await.is_empty() {}
    let ranges = database.number("SELECT count(*) FROM llm_counted_ranges").await;
    // Four writers gave each worker numbers of their own.
    assert!(ranges <= 16, "{ranges}");
    let counted = nodes[0].counted.clone();
    nodes[0].sync(&apps[0]).await;
    assert_eq!(nodes[0].counted, counted);
    for app in Arc::try_unwrap(apps).unwrap() {
        app.stop().await;
    }
}

#[tokio::test]
async fn a_change_of_limits_prices_or_the_clock_is_answered_with_everything() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    let mut node = Node::of(&["w"]);
    assert_eq!(app.log(json!([entry("w", 1, Utc::now(), "alice", "ml", 93)]).to_string()).await.status, 200);
    let changes = [
        "SELECT 1",
        "INSERT INTO llm_quotas (subject_kind, subject_name, unit, currency, per, amount) VALUES ('user', 'alice', 'cost', 'CNY', 'month', 5)",
        "UPDATE llm_quotas SET amount = 7",
        "INSERT INTO llm_model_prices VALUES ('m%', '2020-01-01', 1000, 1, 1000, 'CNY')",
        "UPDATE llm_model_prices SET prompt_per_million = 3000",
        "UPDATE llm_site SET time_zone = 'Europe/Berlin'",
        "DELETE FROM llm_quotas",
    ];
    for change in changes {
        execute(&client, change).await;
        let answer = node.ask(&app).await;
        assert_eq!(answer["full"], true, "{change}: {answer}");
        node.apply(&answer);
        let answer = node.ask(&app).await;
        assert_eq!((&answer["full"], &answer["used"], &answer["counted"]), (&json!(false), &json!([]), &json!({})), "{change}");
        node.apply(&answer);
        match change {
            _ if change.contains("'user'") => {
                assert_eq!(
                    node.limits,
                    [json!({"id": 1, "subject": "user", "name": "alice", "models": "%", "unit": "cost",
                    "currency": "CNY", "per": "month", "amount": 5, "mode": "soft"})]
                );
                assert!(node.used.is_empty(), "without a price it costs nothing");
            }
            _ if change.contains("2020") => assert_eq!(node.of_limit(1, "alice", node.start("month")), 0.1),
            _ if change.contains("3000") => assert!((node.of_limit(1, "alice", node.start("month")) - 0.286).abs() < 1e-9),
            _ => {}
        }
    }
    assert_eq!(node.counted["w"], BTreeSet::from([1]));
    assert_eq!((node.fulls, node.deltas, node.zone.as_str(), node.limits.len()), (7, 7, "Europe/Berlin", 0));
    app.stop().await;
}

#[tokio::test]
async fn numbers_of_which_no_usage_will_come_are_not_waited_for_and_those_in_a_spool_are() {
    let app = TestApp::start_with(&["--gap-grace-seconds", "1", "--refused-rows-per-minute", "1"]).await;
    let client = app.database.connect().await;
    execute(&client, &limit("everybody", "", "tokens", "day")).await;
    let now = Utc::now();
    let mut node = Node::of(&["w"]);
    node.sync(&app).await;
    let of = |numbers: &[u64]| numbers.iter().map(|n| entry("w", *n, now, "alice", "ml", *n)).collect::<Vec<_>>();
    let sent = of(&[1, 2]);
    // One becomes a row, one comes again under another number, one PostgreSQL cannot take, two are refused calls of which one is counted only.
    let mut again = entry("w", 3, now, "alice", "ml", 1);
    again["request"]["id"] = json!("w-1");
    let mut rejected = entry("w", 4, now, "alice", "ml", 1);
    rejected["started_at"] = json!("yesterday");
    let refused = |seq: u64| {
        let mut entry = entry("w", seq, now, "x", "y", 0);
        for gone in ["consumer", "latencies"] {
            entry.as_object_mut().unwrap().remove(gone);
        }
        entry["response"]["status"] = json!(401);
        entry["client_ip"] = json!("192.0.2.1");
        entry
    };
    let all: Vec<Value> = sent.into_iter().chain([again, rejected, refused(5), refused(6)]).collect();
    let answer = app.log(json!(all).to_string()).await;
    assert_eq!((answer.count("rejected"), answer.count("counted")), (1, 1), "{}", answer.text);
    node.sync(&app).await;
    assert_eq!(node.counted["w"], (1..=6).collect(), "{}", answer.text);
    assert_eq!(node.of_limit(1, "", node.start("day")), 8.0 + 9.0);
    // What waits in a spool has arrived, and is not counted yet.
    execute(&client, "INSERT INTO llm_sequences (worker, first_seq, last_seq) VALUES ('w', 9, 9)").await;
    node.sync(&app).await;
    assert!(!node.counted["w"].contains(&9));
    // 7 and 8 were lost.
    let lost = || async { app.database.number("SELECT count(*) FROM llm_sequence_gaps").await == 1 };
    gateway_tests::process::wait_until("the hole is found", std::time::Duration::from_secs(30), lost).await;
    node.sync(&app).await;
    assert_eq!(node.counted["w"], (1..=8).collect());
    // One comes after all.
    assert_eq!(app.log(json!(of(&[7, 9])).to_string()).await.status, 200);
    node.sync(&app).await;
    assert_eq!((&node.counted["w"], node.of_limit(1, "", node.start("day"))), (&(1..=9).collect(), 17.0 + 14.0 + 16.0));
    assert_eq!(node.fulls, 1);
    app.stop().await;
}

#[tokio::test]
async fn what_no_node_can_know_is_answered_with_everything_and_what_none_asks_is_refused() {
    let app = TestApp::start().await;
    let mut node = Node::of(&["w"]);
    node.sync(&app).await;
    let revision = node.revision.clone().unwrap();
    let long = format!("1:900:{}", (1..9_000).map(|n| n.to_string()).collect::<Vec<_>>().join(","));
    let versions = [
        "",
        "x",
        "1",
        "1:2",
        "0:0:",
        "5:3:",
        "1:9223372036854775807:",
        "1:2:5",
        "-1:5:",
        "1:99999999999999999999:",
        "\u{0}",
        "1:1:';--",
        &long,
    ];
    for version in versions {
        let quota = json!({"version": version, "revision": revision, "workers": ["w", "", "w\u{0}", "w".repeat(5_000)]});
        let answer = app.post("/sync", json!({"node": "n", "quota": quota}).to_string(), &[]).await;
        assert_eq!((answer.status, &answer.json()["quota"]["full"]), (200, &json!(true)), "{version}: {}", answer.text);
    }
    for revision in ["", "x", "\u{0}", &"r".repeat(100_000)] {
        let quota = json!({"version": node.version, "revision": revision});
        let answer = app.post("/sync", json!({"node": "n", "quota": quota}).to_string(), &[]).await;
        assert_eq!((answer.status, &answer.json()["quota"]["full"]), (200, &json!(true)), "{revision}");
    }
    for quota in [json!(1), json!({"version": 1}), json!({"workers": {}}), json!({"workers": vec!["w"; 1_025]})] {
        assert_eq!(app.post("/sync", json!({"node": "n", "quota": quota}).to_string(), &[]).await.status, 400, "{quota}");
    }
    // Without limits there is an answer all the same, and without a question none.
    let answer = app.post("/sync", json!({"node": "n"}).to_string(), &[]).await;
    assert_eq!(answer.text, r#"{"v":1}"#);
    app.stop().await;
}

#[tokio::test]
async fn in_a_database_that_was_restored_numbers_of_the_old_server_mean_nothing() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    execute(&client, &limit("everybody", "", "calls", "day")).await;
    let mut node = Node::of(&["w"]);
    assert_eq!(app.log(json!([entry("w", 1, Utc::now(), "alice", "ml", 1)]).to_string()).await.status, 200);
    node.sync(&app).await;
    // As a dump brings it: transactions that this server will have only in years.
    execute(
        &client,
        "UPDATE llm_quota_revision SET cluster = 'another'; UPDATE llm_usage_deltas SET xid = '900000000';
        UPDATE llm_counted_ranges SET xid = '900000000'; UPDATE llm_usage_compacted SET xid = '900000000'",
    )
    .await;
    for _ in 0..3 {
        node.sync(&app).await;
        assert_eq!((node.of_limit(1, "", node.start("day")), &node.counted["w"]), (1.0, &BTreeSet::from([1])));
    }
    assert_eq!((node.fulls, node.deltas), (2, 2));
    app.stop().await;
}

#[tokio::test]
async fn what_is_used_and_what_was_refused_are_series() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    execute(&client, &(limit("team", "ml", "tokens", "day") + &limit("each_user", "", "calls", "hour"))).await;
    let now = Utc::now();
    let mut calls = vec![entry("w", 1, now, "alice", "ml", 893), entry("w", 2, now, "bob", "web", 3)];
    calls.push(entry("w", 6, now, "dave", "ml", 43));
    for (seq, by) in [(3, "quota"), (4, "quota"), (5, "somebody")] {
        let mut refused = entry("w", seq, now, "alice", "ml", 0);
        refused["response"]["status"] = json!(429);
        refused["latencies"]["proxy"] = json!(-1);
        refused["llm"] = json!({"v": 1, "worker": "w", "seq": seq, "refused_by": by});
        calls.push(refused);
    }
    assert_eq!(app.log(json!(calls).to_string()).await.count("stored"), 6);
    assert_eq!(
        texts(&client, "SELECT DISTINCT refused_by FROM llm_logs WHERE refused_by IS NOT NULL ORDER BY 1").await,
        ["quota", "somebody"]
    );
    // What was refused reached no model.
    assert_eq!(app.database.number("SELECT sum(used)::bigint FROM llm_quota_state(now()) WHERE unit = 'calls'").await, 3);
    assert_eq!(app.metric(r#"llm_refused_total{by="quota",model="unknown"}"#).await, 2.0);
    assert_eq!(app.metric(r#"llm_refused_total{by="other",model="unknown"}"#).await, 1.0);
    // The first look came before the calls did.
    let of_team = r#"llm_quota_used_ratio{limit="team ml tokens per day"}"#;
    let shown = || async { app.metric(of_team).await == 0.95 };
    gateway_tests::process::wait_until("the gauge", std::time::Duration::from_secs(60), shown).await;
    assert_eq!(app.metric(r#"llm_quota_used_ratio{limit="each user calls per hour"}"#).await, 0.001);

    // Of one user, with what others of his team used of its limit; where one holds for everybody together, with what all used.
    let state =
        |user: &str| format!("SELECT trim(subject || ' ' || used) FROM llm_quota_state(now(), '{user}') ORDER BY subject_kind");
    assert_eq!(texts(&client, &state("alice")).await, ["alice 1", "ml 950"]);
    assert_eq!(texts(&client, &state("bob")).await, ["bob 1"]);
    assert_eq!(texts(&client, &state("carol")).await, ["carol 0"]);
    execute(&client, &limit("everybody", "", "calls", "hour")).await;
    assert_eq!(texts(&client, &state("alice")).await, ["alice 1", "3", "ml 950"]);
    app.stop().await;
}
