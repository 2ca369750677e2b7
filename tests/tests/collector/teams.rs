//! Usage by team, on the site's clock, and what is added up when.

use std::time::Duration;

use gateway_tests::collector::{Finished, TestApp, run};
use gateway_tests::fixtures;
use gateway_tests::postgres::Database;
use gateway_tests::process::wait_until;
use tokio_postgres::Client;

use crate::usage::texts;

mod embedded {
    refinery::embed_migrations!("../sql");
}

/// A call of z1 as a member of a team.
fn call(id: &str, started_at_ms: i64, team: &str) -> String {
    fixtures::small_entry(id, started_at_ms)
        .replace(r#""username":"z1""#, &format!(r#""username":"z1","tags":["llm-gateway","team:{team}"]"#))
}

async fn execute(client: &Client, statement: &str) {
    client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
}

async fn compact(client: &Client) {
    execute(client, "SELECT llm_compact_usage()").await;
}

#[tokio::test]
async fn a_call_counts_for_the_team_that_its_caller_was_in_at_that_time() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    let at = 1_795_400_000_000;
    // The third one is late: it began before the caller went to another team.
    let calls = [call("a", at, "ml"), call("b", at + 2, "web"), call("c", at + 1, "ml"), fixtures::small_entry("d", at + 3)];
    let teams = "SELECT format('%s %s %s', team, sum(calls), sum(prompt_tokens)) FROM {} GROUP BY team ORDER BY team";
    for call in calls {
        assert_eq!(app.log(call).await.count("stored"), 1);
        compact(&client).await;
    }
    assert_eq!(app.log(call("e", at + 4, "web")).await.count("stored"), 1);
    for _ in 0..2 {
        for view in ["llm_usage_counts", "llm_usage_hourly", "llm_usage_daily", "llm_usage_between('-infinity', 'infinity')"] {
            assert_eq!(texts(&client, &teams.replace("{}", view)).await, [" 1 3", "ml 2 6", "web 2 6"], "{view}");
        }
        compact(&client).await;
    }
    app.stop().await;
}

#[tokio::test]
async fn tokens_that_were_estimated_are_counted_apart_and_cost_apart() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    execute(&client, "INSERT INTO llm_model_prices VALUES ('%', '2020-01-01', 1000, 100, 10000, 'CNY')").await;
    // An estimate beside what was reported is none. Refused calls take nothing; the last one went away while the server worked.
    let rows = "INSERT INTO llm_logs (request_id, consumer_username, started_at, status, model, endpoint, prompt_tokens, completion_tokens,
            estimated_prompt_tokens, estimated_completion_tokens, upstream_latency_ms)
        VALUES ('a', 'z1', '2026-11-20', 200, 'm', '/v1/chat/completions', 100, 10, 7, 7, 5),
            ('b', 'z1', '2026-11-20', 200, 'm', '/v1/chat/completions', NULL, NULL, 20, 3, 5),
            ('c', 'z1', '2026-11-20', 429, 'm', '/v1/chat/completions', NULL, NULL, NULL, NULL, NULL),
            ('d', 'z1', '2026-11-20', 499, 'm', '/v1/chat/completions', NULL, NULL, 30, NULL, NULL)";
    execute(&client, rows).await;
    let counts = "SELECT concat_ws(' ', sum(calls), sum(forwarded_calls), sum(prompt_tokens), sum(completion_tokens),
            sum(estimated_prompt_tokens), sum(estimated_completion_tokens), trim_scale(sum(cost)), trim_scale(sum(estimated_cost))) FROM {}";
    for _ in 0..2 {
        for view in ["llm_usage_hourly", "llm_usage_daily", "llm_usage_between('2026-11-20', '2026-11-21')"] {
            assert_eq!(texts(&client, &counts.replace("{}", view)).await, ["4 3 100 10 50 3 0.2 0.08"], "{view}");
        }
        compact(&client).await;
    }
    // A model of which there are only estimates has its price all the same.
    let only = rows.replace("'m'", "'n'").replace("100, 10, 7", "NULL, NULL, 7").replace("('", "('n");
    execute(&client, &only).await;
    compact(&client).await;
    let cost = "SELECT trim_scale(sum(estimated_cost))::text FROM llm_usage_hourly WHERE model = 'n'";
    assert_eq!(texts(&client, cost).await, ["0.157"]);
    app.stop().await;
}

#[tokio::test]
async fn a_day_of_the_sites_clock_is_whole_hours_in_every_zone() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    let days = [
        ("UTC", "2026-11-20", 24),
        ("Asia/Kolkata", "2026-11-20", 24),
        ("Asia/Kathmandu", "2026-11-20", 24),
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("Pacific/Chatham", "2026-04-05", 25),
        ("Pacific/Chatham", "2026-09-27", 23),
        ("Asia/Shanghai", "2026-11-20", 24),
    ];
    for (zone, day, _) in days {
        // Every five minutes from a day before to a day after.
        let rows = format!(
            "UPDATE llm_site SET time_zone = '{zone}';
            INSERT INTO llm_logs (request_id, consumer_username, started_at)
            SELECT '{zone} {day} ' || n, '{zone} {day}', ('{day}'::timestamp AT TIME ZONE 'UTC') + n * interval '5 minutes'
            FROM generate_series(-500, 800) n"
        );
        execute(&client, &rows).await;
    }
    for _ in 0..2 {
        for (zone, day, hours) in days {
            let (from, to) =
                (format!("'{day}'::timestamp AT TIME ZONE '{zone}'"), format!("'{day}'::timestamp + '1 day'::interval"));
            let to = format!("({to}) AT TIME ZONE '{zone}'");
            let sums = format!(
                "SELECT format('%s %s', count(DISTINCT hour), sum(calls)) FROM llm_usage_counts
                WHERE hour >= {from} AND hour < {to} AND consumer_username = '{zone} {day}'
                UNION ALL
                SELECT sum(calls)::text FROM llm_usage_between({from}, {to} - interval '1 microsecond')
                WHERE consumer_username = '{zone} {day}'"
            );
            assert_eq!(
                texts(&client, &sums).await,
                [format!("{hours} {}", hours * 12), (hours * 12).to_string()],
                "{zone} {day}"
            );
        }
        compact(&client).await;
    }
    let hour = "SELECT (max(hour) AT TIME ZONE 'UTC')::text FROM llm_usage WHERE consumer_username LIKE '{}%' AND hour <= '2026-11-20 00:10+00'";
    for (zone, expected) in [("Asia/Kolkata", "23:30:00"), ("Asia/Kathmandu", "23:15:00"), ("Asia/Shanghai", "00:00:00")] {
        let hour = texts(&client, &hour.replace("{}", zone)).await;
        assert!(hour[0].ends_with(expected), "{zone}: {hour:?}");
    }
    app.stop().await;
}

async fn migrate(database: &Database, zone: &str) -> Finished {
    run(&["migrate"], &[("DATABASE_URL", &database.url), ("SITE_TIME_ZONE", zone)]).await
}

#[tokio::test]
async fn the_zone_is_one_that_postgresql_knows_and_stays_where_none_is_given() {
    let database = Database::create().await;
    let finished = migrate(&database, "Mars/Olympus").await;
    let told = finished.stderr.contains("Mars/Olympus") && finished.stderr.contains("SITE_TIME_ZONE");
    assert!(finished.status.code() == Some(1) && told, "{finished:?}");
    let nothing = "SELECT count(*) FROM pg_class WHERE relname = 'llm_logs'";
    assert_eq!(database.number(nothing).await, 0, "nothing was begun");
    let client = database.connect().await;
    for (zone, expected) in
        [("", "UTC"), ("Asia/Kolkata", "Asia/Kolkata"), ("", "Asia/Kolkata"), ("Europe/Berlin", "Europe/Berlin")]
    {
        let finished = migrate(&database, zone).await;
        assert!(finished.status.success(), "{zone}: {finished:?}");
        assert_eq!(texts(&client, "SELECT time_zone FROM llm_site").await, [expected]);
    }
    // CST is China's time and Chicago's; some offsets PostgreSQL reads the other way round.
    for wrong in ["CST", "UTC+8", "europe/berlin", "' OR true", "+08:00"] {
        assert_eq!(migrate(&database, wrong).await.status.code(), Some(1), "{wrong}");
        let set = client.execute("UPDATE llm_site SET time_zone = $1", &[&wrong]).await;
        assert!(set.is_err(), "{wrong}");
    }
    assert!(client.execute("INSERT INTO llm_site VALUES (false, 'UTC')", &[]).await.is_err(), "there is one site");
}

#[tokio::test]
async fn calls_are_counted_on_the_clock_that_serve_was_given_and_on_utc_once_nobody_knows_it() {
    let app = TestApp::start_on(Database::create().await, &["--site-time-zone", "Asia/Kolkata"]).await;
    let at = 1_795_400_000_000;
    assert_eq!(app.log(call("a", at, "ml")).await.count("stored"), 1);
    let client = app.database.connect().await;
    // A server whose files of zones are others: the check looks at what is written only.
    execute(
        &client,
        "ALTER TABLE llm_site DROP CONSTRAINT llm_site_time_zone_check; UPDATE llm_site SET time_zone = 'Gone/Zone'",
    )
    .await;
    assert_eq!(app.log(call("b", at, "ml")).await.count("stored"), 1);
    execute(&client, "DELETE FROM llm_site").await;
    assert_eq!(app.log(call("c", at, "ml")).await.count("stored"), 1);
    let hours =
        "SELECT to_char(hour AT TIME ZONE 'UTC', 'HH24:MI ') || sum(calls) FROM llm_usage_counts GROUP BY hour ORDER BY hour";
    // 02:13 in UTC, 07:43 in Kolkata.
    assert_eq!(texts(&client, hours).await, ["01:30 1", "02:00 2"]);
    app.stop().await;
}

#[tokio::test]
async fn usage_from_before_teams_stays_as_it_was_and_is_not_written_anew() {
    let database = Database::create().await;
    let mut client = database.connect().await;
    embedded::migrations::runner().set_target(refinery::Target::Version(13)).run_async(&mut client).await.unwrap();
    let rows = |prefix: &str| {
        format!(
            "INSERT INTO llm_logs (request_id, consumer_username, started_at, latency_ms, status, model, endpoint, prompt_tokens,
                completion_tokens, cached_tokens, team)
            SELECT '{prefix}' || n, 'user' || n % 7, '2031-03-01 00:30:00+00'::timestamptz + n * interval '7 minutes', n,
                200 + n % 300, 'model' || n % 3, '/v1/chat/completions', n, n % 13, n % 5, 'ml'
            FROM generate_series(1, 1000) n"
        )
    };
    execute(&client, "INSERT INTO llm_model_prices VALUES ('%', '2031-03-02 16:00+00', 1000, 100, 10000, 'CNY')").await;
    execute(&client, &rows("a")).await;
    compact(&client).await;
    // Part of the hours is added up, part of it is not.
    execute(&client, &rows("b")).await;
    let usage = "SELECT to_jsonb(u)::text FROM (SELECT hour, consumer_username, model, calls, errors, prompt_tokens, completion_tokens,
            cached_tokens, cost, currency FROM llm_usage_hourly
        UNION ALL SELECT day, consumer_username, model, calls, errors, latency_p50_ms, latency_p95_ms, latency_p99_ms, cost, currency
            FROM llm_usage_daily) u ORDER BY 1";
    let before = texts(&client, usage).await;
    assert!(before.len() > 1_000, "{}", before.len());
    // A table that is written anew, or gets an index, is another file, or has one more.
    let files = "SELECT string_agg(pg_relation_filenode(oid)::text, ' ' ORDER BY oid) FROM pg_class
        WHERE oid IN ('llm_usage'::regclass, 'llm_usage_days'::regclass)
            OR oid IN (SELECT indexrelid FROM pg_index WHERE indrelid IN ('llm_usage'::regclass, 'llm_usage_days'::regclass))
            OR oid = 'llm_usage_deltas'::regclass";
    let files_before = texts(&client, files).await;
    assert!(migrate(&database, "").await.status.success());
    let client = database.connect().await;
    assert_eq!(texts(&client, files).await, files_before);
    for _ in 0..2 {
        assert_eq!(texts(&client, usage).await, before);
        assert_eq!(texts(&client, "SELECT DISTINCT team FROM llm_usage_counts").await, [""]);
        compact(&client).await;
    }
    // The same hours once more, now with a team.
    execute(&client, &rows("c")).await;
    let sums = "SELECT format('%s %s %s', team, sum(calls), sum(prompt_tokens)) FROM llm_usage_daily GROUP BY team ORDER BY team";
    for _ in 0..2 {
        assert_eq!(texts(&client, sums).await, [" 2000 1001000", "ml 1000 500500"]);
        compact(&client).await;
    }
    assert_eq!(database.number("SELECT count(*) FROM llm_usage_deltas").await, 0);
}

#[tokio::test]
async fn what_is_new_since_a_snapshot_is_among_the_deltas_or_the_note_tells() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    let insert = |id: &str| {
        format!("INSERT INTO llm_logs (request_id, consumer_username, started_at) VALUES ('{id}', 'z1', '2026-11-20 10:00+00')")
    };
    // As upkeep does it; returns how many went.
    let compact_settled = async || client.query_one("SELECT llm_compact_usage_piece(1000)", &[]).await.unwrap().get::<_, i64>(0);
    let snapshot = async || texts(&client, "SELECT pg_current_snapshot()::text").await.remove(0);
    let new_since = async |snapshot: &str| {
        let query = format!(
            "SELECT concat_ws(' ', (SELECT coalesce(sum(calls), 0) FROM llm_usage_deltas WHERE NOT pg_visible_in_snapshot(xid, '{snapshot}')),
                (SELECT CASE WHEN xid >= pg_snapshot_xmin('{snapshot}') THEN 'missing' END FROM llm_usage_compacted))"
        );
        texts(&client, &query).await.remove(0)
    };
    let seen = snapshot().await;
    let open = app.database.connect().await;
    execute(&open, &format!("BEGIN; {}", insert("open"))).await;
    execute(&client, &insert("a")).await;
    let between = snapshot().await;
    assert_eq!((new_since(&seen).await, new_since(&between).await), ("1".to_owned(), "0".to_owned()));
    assert_eq!(compact_settled().await, 0, "it is younger than a minute");
    execute(&client, "UPDATE llm_usage_deltas SET noted_at = noted_at - interval '2 minutes'").await;
    assert_eq!(compact_settled().await, 0, "an older one may still come");
    execute(
        &open,
        "UPDATE llm_usage_deltas SET noted_at = noted_at - interval '2 minutes' WHERE xid = pg_current_xact_id(); COMMIT",
    )
    .await;
    assert_eq!((new_since(&seen).await, new_since(&between).await), ("2".to_owned(), "1".to_owned()));
    let after = snapshot().await;
    // Other tests share the server, and their transactions count as well.
    let calls = "SELECT (SELECT sum(calls) FROM llm_usage_hourly)::bigint";
    wait_until("all is settled", Duration::from_secs(60), || async {
        compact_settled().await;
        assert_eq!(app.database.number(calls).await, 2);
        app.database.number("SELECT count(*) FROM llm_usage_deltas").await == 0
    })
    .await;
    for (snapshot, expected) in [(&seen, "0 missing"), (&between, "0 missing"), (&after, "0")] {
        let told = new_since(snapshot).await;
        // Whatever else was open on the server when the last one was taken may count as missing.
        assert!(told == expected || (snapshot == &after && told == "0 missing"), "{snapshot}: {told}");
    }
    // Somebody who keeps a transaction open all day does not keep usage from being added up.
    execute(&open, "BEGIN; SELECT pg_current_xact_id()").await;
    execute(&client, &insert("b")).await;
    execute(&client, "UPDATE llm_usage_deltas SET noted_at = noted_at - interval '59 minutes'").await;
    assert_eq!(compact_settled().await, 0);
    execute(&client, "UPDATE llm_usage_deltas SET noted_at = noted_at - interval '2 minutes'").await;
    assert_eq!(compact_settled().await, 1);
    assert_eq!(app.database.number(calls).await, 3);
    execute(&open, "ROLLBACK").await;
    app.stop().await;
}
