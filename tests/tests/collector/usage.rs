//! What is counted by hour and day, and what it costs.

use std::time::Duration;

use gateway_tests::collector::TestApp;
use gateway_tests::fixtures;
use gateway_tests::postgres::Database;
use tokio_postgres::Client;

/// What the rows themselves say, by `llm_usage_hourly`'s hour or `llm_usage_daily`'s day.
fn of_rows(time: &str, team: &str) -> String {
    format!(
        "SELECT {time}, consumer_username, coalesce(model, 'unknown'), {team}, count(*),
            count(*) FILTER (WHERE status IS NULL OR status >= 400 OR error IS NOT NULL), coalesce(sum(prompt_tokens), 0),
            coalesce(sum(completion_tokens), 0), coalesce(sum(cached_tokens), 0), coalesce(sum(reasoning_tokens), 0)
        FROM llm_logs GROUP BY 1, 2, 3, 4"
    )
}

/// The views say what the rows say, and nothing else. Returns how many calls that are.
pub(crate) async fn assert_views_agree_with_rows(client: &Client) -> i64 {
    assert_agree(client, "coalesce(team, '')", "team").await
}

/// The same, with the team as it is called in rows and in views: older schemas have none.
async fn assert_agree(client: &Client, team_of_row: &str, team: &str) -> i64 {
    let hour = "date_trunc('hour', started_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'";
    let day = "(started_at AT TIME ZONE 'UTC')::date";
    for (rows, time, view) in
        [(of_rows(hour, team_of_row), "hour", "llm_usage_hourly"), (of_rows(day, team_of_row), "day", "llm_usage_daily")]
    {
        let view = format!(
            "SELECT {time}, consumer_username, model, {team}, calls, errors, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens
            FROM {view}"
        );
        for (these, those) in [(&rows, &view), (&view, &rows)] {
            let query = format!("SELECT difference::text FROM (({these}) EXCEPT ALL ({those})) difference");
            let differences: Vec<String> = client.query(&query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
            assert_eq!(differences, Vec::<String>::new(), "of\n{these}\nagainst\n{those}");
        }
    }
    client.query_one("SELECT count(*) FROM llm_logs", &[]).await.unwrap().get(0)
}

pub(crate) async fn texts(client: &Client, query: &str) -> Vec<String> {
    client.query(query, &[]).await.unwrap_or_else(|error| panic!("{error:?}")).iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn every_row_is_counted_once_however_often_late_and_to_whom_it_is_sent() {
    let one = TestApp::start().await;
    let other = TestApp::start_on(one.database.clone(), &[]).await;
    let client = one.database.connect().await;
    let mut stored = 0;
    for (app, name) in [
        (&one, "mixed-50"),
        (&other, "mixed-50"),
        (&one, "one-object"),
        (&other, "invalid-utf8-between-good"),
        (&one, "mixed-50"),
    ] {
        stored += app.log(fixtures::batch(name)).await.count("stored") as i64;
    }
    assert!(stored > 50);
    let counted = assert_views_agree_with_rows(&client).await;
    assert_eq!(counted, stored);
    assert!(client.query_one("SELECT llm_compact_usage()", &[]).await.unwrap().get::<_, i64>(0) > 0);
    // Hours that are closed and compacted get more calls; half of this batch is known already.
    let known = fixtures::small_batch("late", 10);
    assert_eq!(one.log(known).await.count("stored"), 10);
    assert_eq!(other.log(fixtures::small_batch("late", 20)).await.count("stored"), 10);
    let earlier: Vec<String> =
        (0..30).map(|n| fixtures::small_entry(&format!("e{n}"), 1_795_400_000_000 - n * 3_000_000)).collect();
    assert_eq!(other.log(format!("[{}]", earlier.join(","))).await.count("stored"), 30);
    assert_eq!(assert_views_agree_with_rows(&client).await, counted + 50);
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn compaction_changes_no_number_also_while_rows_come_in() {
    let app = TestApp::start().await;
    // Makes the partition of the day: a statement that was planned before does not see it.
    assert_eq!(app.log(fixtures::small_batch("b0", 25)).await.count("stored"), 25);
    app.settled().await;
    let sender = async {
        for batch in 1..40 {
            assert_eq!(app.log(fixtures::small_batch(&format!("b{batch}"), 25)).await.count("stored"), 25);
        }
    };
    let compactor = async || {
        let client = app.database.connect().await;
        let mut compacted = 0;
        for _ in 0..60 {
            compacted += client.query_one("SELECT llm_compact_usage()", &[]).await.unwrap().get::<_, i64>(0);
            // One statement sees one moment: there is none at which rows and usage differ.
            let query = "SELECT (SELECT count(*) FROM llm_logs), (SELECT coalesce(sum(calls), 0)::bigint FROM llm_usage_hourly)";
            let row = client.query_one(query, &[]).await.unwrap();
            assert_eq!(row.get::<_, i64>(0), row.get::<_, i64>(1));
        }
        compacted
    };
    let (_, one, other) = tokio::join!(sender, compactor(), compactor());
    assert!(one + other > 1, "{one} and {other} rows were compacted");
    let client = app.database.connect().await;
    client.query_one("SELECT llm_compact_usage()", &[]).await.unwrap();
    assert_eq!(app.database.number("SELECT count(*) FROM llm_usage_deltas").await, 0);
    assert_eq!(app.database.number("SELECT count(*) FROM llm_usage").await, 1);
    assert_eq!(assert_views_agree_with_rows(&client).await, 1_000);
    app.stop().await;
}

const ROWS: &str = "INSERT INTO llm_logs (request_id, consumer_username, started_at, latency_ms, status, error, model, endpoint,
        prompt_tokens, completion_tokens)
    SELECT 'r' || n, 'user' || n % 7, '2031-03-01 00:30:00+00'::timestamptz + n * interval '7 minutes', n, 200 + n % 300,
        CASE WHEN n % 11 = 0 THEN 'failed' END, CASE WHEN n % 3 > 0 THEN 'model' || n % 3 END, '/v1/chat/completions', n, n % 13
    FROM generate_series(1, 1000) n";

#[tokio::test]
async fn rows_that_move_or_go_stay_counted_once() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    client.batch_execute(ROWS).await.unwrap();
    assert_eq!(app.database.number("SELECT count(*) FROM llm_logs_default").await, 1_000);
    assert_views_agree_with_rows(&client).await;
    client
        .batch_execute(
            "SELECT llm_create_partition(day::date) FROM generate_series('2031-03-01'::date, '2031-03-06', '1 day') day",
        )
        .await
        .unwrap();
    assert_eq!(app.database.number("SELECT count(*) FROM llm_logs_default").await, 0);
    assert_views_agree_with_rows(&client).await;

    let usage = "SELECT d::text FROM llm_usage_daily d ORDER BY 1";
    let before = texts(&client, usage).await;
    client
        .batch_execute(
            "CREATE TABLE kept AS SELECT * FROM llm_logs_20310301;
             UPDATE llm_logs SET prompt = NULL, raw_log = NULL WHERE started_at < '2031-03-03';
             DELETE FROM llm_logs WHERE consumer_username = 'user3';
             DROP TABLE llm_logs_20310302;
             ALTER TABLE llm_logs DETACH PARTITION llm_logs_20310303;
             TRUNCATE llm_logs_20310301;
             INSERT INTO llm_logs_20310301 OVERRIDING SYSTEM VALUE SELECT * FROM kept;
             SELECT llm_compact_usage();
             TRUNCATE llm_logs",
        )
        .await
        .unwrap();
    assert_eq!(texts(&client, usage).await, before);
    app.stop().await;
}

#[tokio::test]
async fn rows_from_before_usage_was_counted_are_counted_by_the_migration() {
    let database = Database::create().await;
    let client = database.connect().await;
    for migration in [include_str!("../../../sql/V1__llm_logs.sql"), include_str!("../../../sql/V2__sequences.sql"), ROWS] {
        client.batch_execute(migration).await.unwrap();
    }
    // Until V5 there are no days: what V3 has added up by hour is added up by day when V5 comes.
    for migration in [include_str!("../../../sql/V3__usage.sql"), include_str!("../../../sql/V5__usage_days.sql")] {
        client.batch_execute(migration).await.unwrap();
        assert_eq!(assert_agree(&client, "''", "''").await, 1_000);
    }
    let priced = "SELECT model FROM llm_usage_models ORDER BY model";
    assert_eq!(texts(&client, priced).await, ["model1", "model2", "unknown"]);
}

#[tokio::test]
async fn names_that_no_index_can_hold_are_counted_too() {
    let app = TestApp::start().await;
    // Random letters do not compress, so they do not fit into an index as they are.
    let mut dice = gateway_tests::dice::Dice::new(7);
    let long: String = (0..9_000).map(|_| char::from(b'a' + dice.roll(26) as u8)).collect();
    let entry =
        fixtures::small_entry("long", 1_795_400_000_000).replace(r#"\"model\":\"m\""#, &format!(r#"\"model\":\"{long}\""#));
    assert_eq!(app.log(entry).await.count("stored"), 1);
    let client = app.database.connect().await;
    client.query_one("SELECT llm_compact_usage()", &[]).await.unwrap();
    assert_eq!(texts(&client, "SELECT model FROM llm_usage_daily").await, [&long[..200]]);
    app.stop().await;
}

#[tokio::test]
async fn percentiles_are_those_of_the_rows_within_the_width_of_a_bucket() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    let rows = "SELECT setseed(0.5);
        INSERT INTO llm_logs (request_id, consumer_username, started_at, latency_ms)
        SELECT 'r' || n, 'user' || n % 40, '2026-11-20'::timestamptz + n * interval '1 minute', exp(random() * (n % 40) / 3)::int
        FROM generate_series(1, 5000) n;
        INSERT INTO llm_logs (request_id, consumer_username, started_at, latency_ms)
        VALUES ('a', 'at once', '2026-11-20', 0), ('u', 'unknown', '2026-11-20', NULL), ('v', 'one unknown', '2026-11-20', NULL),
            ('w', 'one unknown', '2026-11-20', 5000), ('f', 'for ever', '2026-11-20', 2147483647)";
    client.batch_execute(rows).await.unwrap();
    let query = "SELECT consumer_username, ARRAY[latency_p50_ms, latency_p95_ms, latency_p99_ms], exact
        FROM llm_usage_daily JOIN (
            SELECT (started_at AT TIME ZONE 'UTC')::date AS day, consumer_username,
                percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY latency_ms) AS exact
            FROM llm_logs GROUP BY 1, 2) l USING (day, consumer_username)";
    for _ in 0..2 {
        let rows = client.query(query, &[]).await.unwrap();
        assert!(rows.len() > 100, "{}", rows.len());
        for row in rows {
            let (consumer, estimated): (String, Vec<Option<i32>>) = (row.get(0), row.get(1));
            let exact: Option<Vec<Option<i32>>> = row.get(2);
            match consumer.as_str() {
                "unknown" => assert_eq!(estimated, [None; 3]),
                "at once" => assert_eq!(estimated, [Some(1); 3]),
                "for ever" => assert!(estimated[0] > Some(3_600_000), "{estimated:?}"),
                _ => {
                    for (estimated, exact) in estimated.into_iter().zip(exact.unwrap()) {
                        let (estimated, exact) = (f64::from(estimated.unwrap()), f64::from(exact.unwrap()));
                        let error = (estimated - exact).abs();
                        assert!(error <= exact * 0.08 + 0.5, "{consumer}: {estimated} for {exact}");
                    }
                }
            }
        }
        client.query_one("SELECT llm_compact_usage()", &[]).await.unwrap();
    }
    app.stop().await;
}

#[tokio::test]
async fn cost_is_of_the_longest_pattern_that_matches_and_of_the_price_of_the_hour() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    // At 10:00 and 11:00: 1,000 prompt tokens, 400 of them from the cache, and 100 of answer.
    let rows =
        "INSERT INTO llm_logs (request_id, consumer_username, started_at, status, model, endpoint, prompt_tokens, cached_tokens,
            completion_tokens)
        SELECT model || hour, 'z1', '2026-11-20 00:59:59.999+00'::timestamptz + hour * interval '1 hour', 200, model,
            '/v1/chat/completions', 1000, 400, 100
        FROM unnest(ARRAY['Qwen3-32B', 'Qwen3-8B', 'glm', '50%_off']) model, unnest(ARRAY[9, 10]) hour";
    client.batch_execute(rows).await.unwrap();
    let costs =
        "SELECT format('%s %s %s', extract(hour FROM hour AT TIME ZONE 'UTC'), trim_scale(cost), currency) FROM llm_usage_hourly
        WHERE model = '{}' ORDER BY hour";
    let cost = async |model: &str| texts(&client, &costs.replace("{}", model)).await;
    assert_eq!(cost("Qwen3-32B").await, ["9 0 ", "10 0 "]);
    let prices = "INSERT INTO llm_model_prices VALUES
        ('%', '2020-01-01', 1000, 100, 10000, 'CNY'),
        ('Qwen%', '2026-11-20 10:00+00', 2000, 0, 0, 'USD'),
        ('Qwen%', '2026-11-20 10:30+00', 9000, 9000, 9000, 'USD'),
        ('Qwen3-8_', '2026-11-20 09:00+00', 0, 0, 50000, 'EUR'),
        ('Qwen3-8B', '2026-11-20 10:00:00.001+00', 9000, 9000, 9000, 'EUR'),
        ('none', '2020-01-01', 9000, 9000, 9000, 'CNY')";
    client.batch_execute(prices).await.unwrap();
    for _ in 0..2 {
        // 600 of 0.001, 400 of 0.0001 and 100 of 0.01; then 600 of 0.002.
        assert_eq!(cost("Qwen3-32B").await, ["9 1.64 CNY", "10 1.2 USD"]);
        assert_eq!(cost("Qwen3-8B").await, ["9 5 EUR", "10 5 EUR"]);
        assert_eq!(cost("glm").await, ["9 1.64 CNY", "10 1.64 CNY"]);
        let daily = "SELECT format('%s %s %s', model, trim_scale(cost), currency) FROM llm_usage_daily
            ORDER BY model COLLATE \"C\", cost";
        let expected = ["50%_off 3.28 CNY", "Qwen3-32B 1.2 USD", "Qwen3-32B 1.64 CNY", "Qwen3-8B 10 EUR", "glm 3.28 CNY"];
        assert_eq!(texts(&client, daily).await, expected);
        client.query_one("SELECT llm_compact_usage()", &[]).await.unwrap();
    }
    for refused in
        ["('a\\', '2020-01-01', 1, 1, 1, 'CNY')", "('a', '2020-01-01', -1, 1, 1, 'CNY')", "('a', '2020-01-01', 1, 1, 1, '')"]
    {
        assert!(client.batch_execute(&format!("INSERT INTO llm_model_prices VALUES {refused}")).await.is_err(), "{refused}");
    }
    app.stop().await;
}

#[tokio::test]
async fn any_stretch_of_time_adds_up_to_its_hours() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    // Every 7 minutes for nearly five days. Prices change at midnight in UTC, at midnight in Beijing, and long before.
    client.batch_execute(ROWS).await.unwrap();
    let prices =
        "INSERT INTO llm_model_prices (model_pattern, valid_from, prompt_per_million, completion_per_million, currency) VALUES
        ('%', '2020-01-01', 1, 3, 'CNY'), ('model1', '2031-03-02 16:00+00', 2, 5, 'USD'), ('model2', '2031-03-04', 7, 11, 'CNY')";
    client.batch_execute(prices).await.unwrap();
    let times = [
        "-infinity",
        "2031-02-27 13:00",
        "2031-03-01 00:00",
        "2031-03-01 05:59:59.999999",
        "2031-03-01 23:59",
        "2031-03-02 00:00",
        "2031-03-02 16:30",
        "2031-03-02 23:00",
        "2031-03-03 00:00",
        "2031-03-03 00:00:00.000001",
        "2031-03-05 07:15",
        "infinity",
    ];
    let sums = "consumer_username, model, date_trunc('day', {}, 'UTC'), currency, sum(calls), sum(errors), sum(prompt_tokens),
        sum(completion_tokens), sum(cost), sum(latencies), sum(timed_calls)";
    // Half of it added up, half of it not; then all.
    client
        .batch_execute("DELETE FROM llm_usage_deltas WHERE consumer_username <> 'user1'; SELECT llm_compact_usage()")
        .await
        .unwrap();
    client.batch_execute(&ROWS.replace("'r' || n", "'again' || n")).await.unwrap();
    for _ in 0..2 {
        let mut found = 0;
        for since in times {
            for until in times {
                let between = format!(
                    "SELECT {} FROM llm_usage_between('{since}+00', '{until}+00') GROUP BY 1, 2, 3, 4",
                    sums.replace("{}", "day")
                );
                let hours = format!(
                    "SELECT {} FROM llm_usage_costs WHERE hour >= date_trunc('hour', '{since}+00'::timestamptz) AND hour <= '{until}+00'
                    GROUP BY 1, 2, 3, 4",
                    sums.replace("{}", "hour")
                );
                let query = format!(
                    "WITH days AS ({between}), hours AS ({hours}) SELECT (SELECT count(*) FROM hours), difference::text
                    FROM (SELECT 1) one LEFT JOIN (
                        (TABLE days EXCEPT ALL TABLE hours) UNION ALL (TABLE hours EXCEPT ALL TABLE days)) difference ON true"
                );
                let query = query.replace("infinity+00", "infinity");
                for row in client.query(&query, &[]).await.unwrap_or_else(|error| panic!("{query}: {error:?}")) {
                    assert_eq!(row.get::<_, Option<&str>>(1), None, "from {since} to {until}");
                    found += row.get::<_, i64>(0);
                }
            }
        }
        assert!(found > 1_000, "{found}");
        client.query_one("SELECT llm_compact_usage()", &[]).await.unwrap();
    }
    app.stop().await;
}

#[tokio::test]
async fn cached_tokens_are_charged_once_whichever_way_the_api_counts_them() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    client.batch_execute("INSERT INTO llm_model_prices VALUES ('%', '2020-01-01', 1000, 100, 10000, 'CNY')").await.unwrap();
    let cost = "SELECT trim_scale(sum(cost))::text FROM llm_usage_hourly";
    // 12,162 prompt tokens, 12,160 of them from the cache; 4 of answer.
    app.log(fixtures::entry("ptd-30kb-cached-stream-usage")).await;
    assert_eq!(texts(&client, cost).await, ["1.258"]);
    // 2 prompt tokens, and 12,160 from the cache; 8 of answer.
    app.log(fixtures::entry("ptd-messages-cached")).await;
    assert_eq!(texts(&client, cost).await, ["2.556"]);
    // More tokens from the cache than there are in the prompt: charged as they are, and no refund.
    let odd = "INSERT INTO llm_logs (request_id, consumer_username, started_at, model, endpoint, prompt_tokens, cached_tokens)
        VALUES ('odd', 'z1', '2026-11-20', 'm', '/v1/chat/completions', 10, 1000)";
    client.batch_execute(odd).await.unwrap();
    assert_eq!(texts(&client, cost).await, ["2.656"]);
    app.stop().await;
}

#[tokio::test]
async fn one_writer_does_not_wait_for_another_nor_for_compaction() {
    let app = TestApp::start().await;
    // Makes the partition of the day, for which it would wait.
    assert_eq!(app.log(fixtures::small_entry("first", 1_795_400_000_000)).await.count("stored"), 1);
    let open = app.database.connect().await;
    let insert =
        "INSERT INTO llm_logs (request_id, consumer_username, started_at) VALUES ('open', 'z1', to_timestamp(1795400000))";
    open.batch_execute(&format!("BEGIN; {insert}; SELECT llm_compact_usage()")).await.unwrap();
    let others = async {
        assert_eq!(app.log(fixtures::small_entry("other", 1_795_400_000_000)).await.count("stored"), 1);
        let client = app.database.connect().await;
        assert_eq!(client.query_one("SELECT llm_compact_usage()", &[]).await.unwrap().get::<_, i64>(0), 0);
    };
    tokio::time::timeout(Duration::from_secs(3), others).await.expect("nobody waits");
    open.batch_execute("ROLLBACK").await.unwrap();
    let client = app.database.connect().await;
    assert_eq!(assert_views_agree_with_rows(&client).await, 2);
    app.stop().await;
}

#[tokio::test]
async fn questions_are_planned_as_small_as_they_are_also_after_a_restore() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    client.batch_execute("INSERT INTO llm_model_prices VALUES ('%', '2020-01-01', 1, 1, 1, 'CNY')").await.unwrap();
    app.log(fixtures::batch("mixed-50")).await;
    // From this cost on PostgreSQL compiles a query, which takes about a second.
    let jit_above_cost = 100_000.0;
    let cost = async || {
        let plan = texts(&client, "EXPLAIN SELECT sum(cost), max(latency_p95_ms) FROM llm_usage_daily").await;
        let (_, cost) = plan[0].split_once("..").unwrap();
        cost.split_once(' ').unwrap().0.parse::<f64>().unwrap()
    };
    assert!(cost().await < jit_above_cost);
    let forget = "UPDATE pg_class SET reltuples = -1 WHERE relname LIKE 'llm\\_usage%' OR relname = 'llm_model_prices'";
    client.batch_execute(forget).await.unwrap();
    assert!(cost().await > jit_above_cost);
    client.query_one("SELECT llm_compact_usage()", &[]).await.unwrap();
    assert!(cost().await < jit_above_cost);
    app.stop().await;
}

#[tokio::test]
async fn a_latency_is_counted_without_the_call_of_a_function() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    let plan = texts(&client, "EXPLAIN (VERBOSE) SELECT llm_latency_unit(latency_ms) FROM llm_logs_default").await.join(" ");
    assert!(plan.contains("repeat(") && !plan.contains("llm_latency_unit"), "{plan}");
    assert_eq!(app.database.number("SELECT count(llm_latency_unit(NULL))").await, 0);
    app.stop().await;
}
