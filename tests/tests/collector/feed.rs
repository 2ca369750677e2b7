//! What `feed parquet` leaves, read by those who will read it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use chrono::{Days, NaiveDate, Utc};
use gateway_tests::collector::{Finished, binary, run};
use gateway_tests::postgres::Database;
use gateway_tests::process::wait_until;
use serde_json::{Value, json};

/// A day some days ago.
fn day(days_ago: u64) -> NaiveDate {
    Utc::now().date_naive().checked_sub_days(Days::new(days_ago)).unwrap()
}

/// A database whose schema is current, with prices that change in the middle of a day.
async fn database() -> Database {
    let database = Database::create().await;
    let migrated = run(&["migrate", "--database-url", &database.url, "--site-time-zone", "Asia/Kolkata"], &[]).await;
    assert!(migrated.status.success(), "{migrated:?}");
    let prices = format!(
        "INSERT INTO llm_model_prices VALUES ('qwen%', '1970-01-01', 0.123456789012, 0.000000000001, 8.5, 'CNY'),
            ('qwen%', '{} 09:30+00', 0.7, 0.07, 9, 'CNY'), ('gpt-oss', '1970-01-01', 3, 1, 12, 'EUR');",
        day(3)
    );
    database.connect().await.batch_execute(&prices).await.unwrap();
    database
}

/// Adds calls spread over a day (UTC), with all that costs depend on, and about `text_bytes` of text that does not compress well.
async fn add(database: &Database, prefix: &str, day: NaiveDate, calls: u32, text_bytes: u32) {
    let insert = format!(
        "INSERT INTO llm_logs (request_id, consumer_username, started_at, latency_ms, status, prompt, response, raw_log, model, endpoint,
            client_ip, team, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, estimated_prompt_tokens,
            estimated_completion_tokens, tool_calls, error)
        SELECT '{prefix}-' || n, 'user-' || n % 17, '{day}'::timestamp AT TIME ZONE 'UTC' + interval '24 hours' * (n * 7919 % {calls}) / {calls},
            n, CASE WHEN n % 50 = 0 THEN 503 ELSE 200 END, 'asked 问 \"' || n || E'\"\n', 'answered ' || n,
            jsonb_build_object('request', jsonb_build_object('body', (SELECT string_agg(md5(n || '-' || m), '') FROM generate_series(0, {text_bytes} / 32) m))),
            (ARRAY['qwen3', 'qwen3-coder', 'gpt-oss', 'free', NULL])[n % 5 + 1],
            CASE WHEN n % 3 = 0 THEN '/v1/messages' ELSE '/v1/chat/completions' END, '10.0.0.7', CASE WHEN n % 2 = 0 THEN 'ml' END,
            CASE WHEN n % 7 > 0 THEN n * 13 % 5000 END, CASE WHEN n % 7 > 0 THEN n * 17 % 900 END, CASE WHEN n % 4 = 0 THEN n * 13 % 4000 END,
            CASE WHEN n % 6 = 0 THEN 5 END, CASE WHEN n % 7 = 0 THEN 77 END, CASE WHEN n % 14 = 0 THEN 3 END,
            CASE WHEN n % 10 = 0 THEN '[{{\"id\":\"t\",\"name\":\"f\",\"arguments\":\"{{}}\"}}]'::jsonb END,
            CASE WHEN n % 50 = 0 THEN 'the patient has' END
        FROM generate_series(1, {calls}) n"
    );
    let client = database.connect().await;
    let made = format!("SELECT llm_create_partition('{day}')");
    client.batch_execute(&made).await.unwrap();
    client.batch_execute(&insert).await.unwrap();
}

async fn feed(database: &Database, arguments: &[&str]) -> Finished {
    let mut all = vec!["feed", "--database-url", &database.url];
    all.extend_from_slice(arguments);
    run(&all, &[]).await
}

async fn succeeds(database: &Database, arguments: &[&str]) -> String {
    let finished = feed(database, arguments).await;
    assert!(finished.status.success(), "{finished:?}");
    finished.stdout
}

/// What DuckDB and pyarrow find in a folder.
async fn read(folder: &Path) -> Value {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = tests.join("../.test/venv/bin/python");
    let output = tokio::process::Command::new(python).arg(tests.join("feed/read.py")).arg(folder).output().await.expect("Python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What PostgreSQL finds in the rows: a SELECT that knows nothing of the feed.
async fn rows(database: &Database) -> Value {
    let sums = "SELECT jsonb_build_object('rows', count(*), 'prompts', count(prompt), 'tokens', jsonb_build_object(
            'prompt', coalesce(sum(prompt_tokens), 0), 'cached', coalesce(sum(cached_tokens), 0),
            'completion', coalesce(sum(completion_tokens), 0), 'reasoning', coalesce(sum(reasoning_tokens), 0))) FROM llm_logs
        WHERE started_at < date_trunc('day', now(), 'UTC')";
    database.connect().await.query_one(sums, &[]).await.unwrap().get(0)
}

/// What `llm-collector report` bills, in the digits of the database: JSON numbers of the report itself are binary fractions.
async fn report(database: &Database) -> Value {
    // Until a whole hour of the site's clock, behind midnight in UTC; the call of today is of noon.
    let until = format!("{}T00:30:00Z", day(0));
    let arguments =
        ["report", "--database-url", &database.url, "--since", "30d", "--until", &until, "--format", "csv", "--by", "month"];
    let printed = run(&arguments, &[]).await;
    assert!(printed.status.success(), "{printed:?}");
    let mut lines = printed.stdout.lines();
    let heading: Vec<&str> = lines.next().unwrap().split(',').collect();
    let lines: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    let column =
        |name: &str| heading.iter().position(|heading| *heading == name).unwrap_or_else(|| panic!("{name}: {heading:?}"));
    let sum = |name: &str| lines.iter().map(|line| line[column(name)].parse::<i64>().unwrap()).sum::<i64>();
    // A month may have begun in between.
    let cost = |name: &str| {
        let units = lines.iter().map(|line| units(line[column(name)])).sum::<i128>();
        let digits = format!("{units:019}");
        let (whole, fraction) = digits.split_at(digits.len() - 18);
        format!("{whole}.{fraction}").trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let tokens =
        ["prompt", "cached", "completion", "reasoning"].map(|name| (name.to_owned(), json!(sum(&format!("{name}_tokens")))));
    json!({"rows": sum("calls"), "tokens": Value::Object(tokens.into_iter().collect()),
        "cost": {"CNY": cost("cost_CNY"), "EUR": cost("cost_EUR")}})
}

/// A decimal in units of 10^-18.
fn units(text: &str) -> i128 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}{fraction:0<18}").parse().unwrap()
}

/// All readers agree: `report`, a SELECT, DuckDB, pyarrow and the manifests.
async fn assert_all_agree(database: &Database, found: &Value) {
    let (rows, report) = (rows(database).await, report(database).await);
    let manifests: Vec<&Value> = found["manifests"].as_object().unwrap().values().collect();
    let sum = |name: &str| manifests.iter().map(|manifest| manifest["tokens"][name].as_i64().unwrap()).sum::<i64>();
    for reader in ["duckdb", "pyarrow"] {
        for what in ["rows", "tokens", "prompts"] {
            assert_eq!(found[reader][what], rows[what], "{reader} {what}");
        }
        for what in ["rows", "tokens", "cost"] {
            assert_eq!(found[reader][what], report[what], "{reader} {what}");
        }
    }
    for name in ["prompt", "cached", "completion", "reasoning"] {
        assert_eq!(json!(sum(name)), rows["tokens"][name], "manifests {name}");
    }
    for kind in ["cost", "estimated_cost"] {
        for currency in ["CNY", "EUR"] {
            let costs = manifests.iter().filter_map(|manifest| manifest[kind][currency].as_str());
            assert_eq!(
                costs.map(units).sum::<i128>(),
                units(found["duckdb"][kind][currency].as_str().unwrap()),
                "{kind} {currency}"
            );
        }
    }
    assert!(manifests.iter().all(|manifest| manifest["is_true"] == true), "{manifests:?}");
    assert_eq!((&found["sorted"], &found["leftovers"]), (&json!(true), &json!([])));
}

#[tokio::test]
async fn days_that_are_over_become_files_that_others_read_alike() {
    let database = database().await;
    for (days_ago, calls) in [(5, 400), (3, 700), (2, 1)] {
        add(&database, &format!("d{days_ago}"), day(days_ago), calls, 400).await;
    }
    // Of this one raw_log refers to a part that the day has once.
    let shared = format!(
        "SELECT llm_create_content('{0}'); INSERT INTO llm_content VALUES ('{0}', sha256('part'), '\"a part of many\"');
        INSERT INTO llm_logs (request_id, consumer_username, started_at, raw_log, contents) VALUES ('a', 'u', '{0} 00:00+00',
            '{{\"request\":{{\"body\":{{\"messages\":[{{\"llm_content\":[0,1]}}]}}}}}}', sha256('part'))",
        day(5)
    );
    database.connect().await.batch_execute(&shared).await.unwrap();
    // Today is not over.
    let today = format!(
        "INSERT INTO llm_logs (request_id, consumer_username, started_at, prompt_tokens) VALUES ('t', 'u', '{} 12:00+00', 5)",
        day(0)
    );
    database.connect().await.batch_execute(&today).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("feed").to_str().unwrap().to_owned();
    let told = succeeds(&database, &["parquet", "--to", &to, "--content"]).await;
    assert!(told.contains("0 written again") && told.contains("1102 rows"), "{told}");
    let found = read(Path::new(&to)).await;
    assert_all_agree(&database, &found).await;
    assert_eq!(found["compression"], json!(["ZSTD"]));
    let of = |days_ago: u64| format!("day={0}/llm_logs-{0}.parquet", day(days_ago));
    assert_eq!(found["files"], json!([of(5), of(3), of(2)]));
    let manifest = &found["manifests"][format!("llm_logs-{}", day(3))];
    assert_eq!(
        (
            &manifest["rows"],
            &manifest["rows_with_content"],
            &manifest["revision"],
            &manifest["schema_version"],
            &manifest["content"]
        ),
        (&json!(700), &json!(700), &json!(1), &json!(1), &json!(true))
    );
    let rows = found["first_rows"].as_array().unwrap();
    assert_eq!(rows[0]["raw_log"], r#"{"request": {"body": {"messages": ["a part of many"]}}}"#);
    // Of the others the first is the one whose number times 7919 is divisible by 400.
    let first = &rows[1];
    let call = json!({"request_id": "d5-400", "consumer_username": "user-9", "model": "qwen3", "status": 503, "latency_ms": 400,
        "prompt": "asked 问 \"400\"\n", "response": "answered 400", "error": "the patient has", "error_kind": "[error]",
        "tool_calls": r#"[{"id": "t", "name": "f", "arguments": "{}"}]"#, "client_ip": "10.0.0.7", "team": "ml", "prompt_tokens": 200,
        "cached_tokens": 1200, "currency": "CNY", "trace_id": null, "started_at": format!("{}T00:00:00+00:00", day(5))});
    for (column, value) in call.as_object().unwrap() {
        assert_eq!(&first[column], value, "{column}: {first}");
    }
    // 1,200 cached at 10^-12 and 500 of the answer at 8.5 for a million; none of the prompt was not from the cache.
    assert_eq!(first["cost"], "0.0042500000000012");

    let again = succeeds(&database, &["parquet", "--to", &to, "--content"]).await;
    assert!(again.starts_with("0 files written, 0 written again"), "{again}");
    assert_eq!(read(Path::new(&to)).await["manifests"], found["manifests"]);
}

/// Where `feed` is when it is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So many bytes of a file are written.
    Written(u64),
    /// A file has its name, or another content under it.
    Named,
}

/// Starts a feed and kills it at a moment.
async fn kill_at(database: &Database, to: &Path, moment: Moment) {
    let mut child = tokio::process::Command::new(binary())
        .args(["feed", "--database-url", &database.url, "parquet", "--content", "--to", to.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (before, started) = (files(to), std::time::SystemTime::now());
    loop {
        let is_reached = match moment {
            Moment::Written(bytes) => sizes(&to.join("_writing"), started).iter().any(|size| *size >= bytes),
            Moment::Named => files(to) != before,
        };
        if is_reached {
            child.kill().await.unwrap();
            return;
        }
        if child.try_wait().unwrap().is_some() {
            panic!("{moment:?} was not reached: {:?}", child.wait_with_output().await);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Sizes of files that were written since; others a worker left that was killed.
fn sizes(folder: &Path, since: std::time::SystemTime) -> Vec<u64> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| entry.metadata().ok());
    entries.filter(|file| file.modified().is_ok_and(|at| at >= since)).map(|file| file.len()).collect()
}

/// Files of days with their inodes.
fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let days = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("day="));
    let files = days.flat_map(|day| std::fs::read_dir(day.path()).into_iter().flatten().flatten());
    files.filter_map(|file| Some((file.path(), std::os::unix::fs::MetadataExt::ino(&file.metadata().ok()?)))).collect()
}

#[tokio::test]
async fn a_feed_that_is_killed_in_mid_file_twenty_times_copies_every_call_once() {
    let database = database().await;
    for days_ago in [4, 3, 2] {
        add(&database, &format!("k{days_ago}"), day(days_ago), 15_000, 4_000).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path();
    let mut kills = 0;
    // Once a file is there it is not written again, so most kills come before its name.
    for moment in (0..17).map(|kill| Moment::Written(kill % 3 * (8 << 20))).chain([Moment::Named; 3]) {
        kill_at(&database, to, moment).await;
        kills += 1;
        let seen: Vec<PathBuf> = files(to).into_iter().map(|(file, _)| file).collect();
        assert!(seen.iter().all(|file| file.extension().is_some_and(|end| end == "parquet")), "{seen:?}");
        let lock = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        wait_until("its lock is free", Duration::from_secs(60), || async { database.number(lock).await == 0 }).await;
    }
    assert_eq!(kills, 20);
    succeeds(&database, &["parquet", "--content", "--to", to.to_str().unwrap()]).await;
    let found = read(to).await;
    assert_eq!(found["duckdb"]["days"], json!([4, 3, 2].map(|days_ago| json!([day(days_ago).to_string(), 15_000, 15_000]))));
    assert!(found["row_groups"].as_array().unwrap().iter().all(|groups| groups.as_u64().unwrap() > 1), "{found}");
    assert_all_agree(&database, &found).await;
    assert!(found["manifests"].as_object().unwrap().values().all(|manifest| manifest["revision"] == 1));
}

/// The manifest of a day, as the database has it.
async fn manifest_of(database: &Database, feed: &str, days_ago: u64) -> Value {
    let query = "SELECT manifest FROM llm_feed_slices WHERE feed = $1 AND starts_at = $2::date::timestamp AT TIME ZONE 'UTC'";
    database.connect().await.query_one(query, &[&feed, &day(days_ago)]).await.unwrap().get(0)
}

/// Copies until PostgreSQL's counters have told what changed, some seconds after it; returns the manifest.
async fn copied_until(database: &Database, arguments: &[&str], days_ago: u64, revision: u64) -> Value {
    wait_until("the day is written again", Duration::from_secs(90), || async {
        succeeds(database, arguments).await;
        manifest_of(database, "parquet", days_ago).await["revision"] == revision
    })
    .await;
    manifest_of(database, "parquet", days_ago).await
}

#[tokio::test]
async fn a_day_whose_rows_changed_is_written_again_and_the_manifest_says_why() {
    let database = database().await;
    add(&database, "c", day(3), 350, 200).await;
    add(&database, "other", day(2), 2, 200).await;
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("with").to_str().unwrap().to_owned();
    let plain = folder.path().join("without").to_str().unwrap().to_owned();
    let with = ["parquet", "--to", &to, "--content"];
    let without = ["parquet", "--to", &plain, "--name", "plain"];
    succeeds(&database, &with).await;
    succeeds(&database, &without).await;
    let other = manifest_of(&database, "parquet", 2).await;

    // A row that comes late.
    let late = format!(
        "INSERT INTO llm_logs (request_id, consumer_username, started_at, prompt, prompt_tokens) VALUES ('late', 'u', '{} 23:59+00', 'asked', 5)",
        day(3)
    );
    let client = database.connect().await;
    client.batch_execute(&late).await.unwrap();
    let second = copied_until(&database, &with, 3, 2).await;
    let because = json!({"late_rows": 1, "deleted_rows": 0, "rows_without_their_content": 0, "cost": false});
    assert_eq!((&second["rows"], &second["earlier"][0]["replaced_because"]), (&json!(351), &because));

    // Erased content: 21 calls are user-3's.
    let erased = run(&["erase", "--consumer", "user-3", "--yes", "--database-url", &database.url], &[]).await;
    assert!(erased.stdout.contains("the content of 21 rows"), "{erased:?}");
    let third = copied_until(&database, &with, 3, 3).await;
    let because = json!({"late_rows": 0, "deleted_rows": 0, "rows_without_their_content": 21, "cost": false});
    assert_eq!((&third["rows"], &third["earlier"][0]["replaced_because"]), (&json!(351), &because));
    assert_eq!(third["earlier"].as_array().unwrap().len(), 2);
    let found = read(Path::new(&to)).await;
    assert_eq!(found["duckdb"]["prompts"], json!(351 - 21 + 2));
    assert_eq!(found["manifests"][format!("llm_logs-{}", day(3))]["sha256"], third["sha256"]);

    // A price that is set for a time that has gone by.
    client.batch_execute("UPDATE llm_model_prices SET completion_per_million = 13 WHERE currency = 'EUR'").await.unwrap();
    let fourth = copied_until(&database, &with, 3, 4).await;
    assert_eq!(fourth["earlier"][0]["replaced_because"]["cost"], true);
    assert_ne!(fourth["cost"]["EUR"], third["cost"]["EUR"]);

    // Deleted rows.
    let erased = run(&["erase", "--consumer", "user-5", "--rows", "--yes", "--database-url", &database.url], &[]).await;
    assert!(erased.status.success(), "{erased:?}");
    let fifth = copied_until(&database, &with, 3, 5).await;
    assert_eq!((&fifth["rows"], &fifth["earlier"][0]["replaced_because"]["deleted_rows"]), (&json!(330), &json!(21)));

    // Rows that are only written anew make the same bytes, and are no revision.
    client.batch_execute("UPDATE llm_logs SET status = status WHERE request_id LIKE 'other%'").await.unwrap();
    let touched =
        "SELECT count(*) FROM llm_feed_slices s JOIN llm_feed_days d ON s.starts_at = d.day::timestamp AT TIME ZONE 'UTC'
        WHERE s.feed = 'parquet' AND s.state = llm_feed_state(s.starts_at, s.ends_at) AND s.hint = d.hint";
    wait_until("the feed has looked", Duration::from_secs(90), || async {
        succeeds(&database, &with).await;
        database.number(touched).await == 2
    })
    .await;
    let now = manifest_of(&database, "parquet", 2).await;
    assert_eq!(now["revision"], 2, "the price made the second");
    assert_eq!(now["earlier"][0]["sha256"], other["sha256"]);

    // Content that is not copied may go without a trace: what the other feed sees are rows and costs.
    succeeds(&database, &without).await;
    let plain_now = manifest_of(&database, "plain", 3).await;
    assert_eq!(
        (&plain_now["rows"], &plain_now["content"], &plain_now["rows_with_content"]),
        (&json!(330), &json!(false), &json!(0))
    );
    let found = read(Path::new(&plain)).await;
    assert_eq!((&found["duckdb"]["prompts"], &found["duckdb"]["rows"]), (&json!(0), &json!(332)));
    let columns: Vec<&Value> =
        ["error", "response", "raw_log", "tool_calls"].iter().map(|name| &found["first_rows"][0][name]).collect();
    assert!(columns.iter().all(|value| value.is_null()), "{columns:?}");
    assert_eq!(found["first_rows"][0]["error_kind"], "[error]");
}

#[tokio::test]
async fn rows_wait_for_the_feed_and_what_comes_later_does_not_replace_them() {
    let database = database().await;
    add(&database, "r", day(9), 50, 200).await;
    add(&database, "s", day(8), 50, 200).await;
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().to_str().unwrap().to_owned();
    let hourly = ["parquet", "--to", &to, "--hourly"];
    let retention = async |dry: bool| {
        let mut all =
            vec!["retention", "--database-url", &database.url, "--keep-rows-days", "5", "--keep-rows-after-feed", "parquet"];
        all.extend(dry.then_some("--dry-run"));
        let finished = run(&all, &[]).await;
        assert!(finished.status.success(), "{finished:?}");
        finished.stdout
    };
    let (lines, rows) = ("wait for the feed", "SELECT count(*) FROM llm_logs");
    assert_eq!(retention(true).await.matches(lines).count(), 2);
    retention(false).await;
    assert_eq!(database.number(rows).await, 100);
    let told = "SELECT count(*) FROM llm_upkeep WHERE waits_for_feed LIKE '2 days are % the oldest ' || $$";
    assert_eq!(database.number(&format!("{told}{}$$", day(9))).await, 1);

    succeeds(&database, &hourly).await;
    // A row that came since keeps its day, whatever the counters say by now.
    let insert = |id: &str| {
        format!("INSERT INTO llm_logs (request_id, consumer_username, started_at) VALUES ('{id}', 'u', '{} 10:30+00')", day(8))
    };
    let client = database.connect().await;
    client.batch_execute(&insert("late")).await.unwrap();
    assert_eq!(retention(true).await.matches(lines).count(), 1);
    retention(false).await;
    assert_eq!(database.number(rows).await, 51);
    wait_until("the feed has it", Duration::from_secs(90), || async {
        succeeds(&database, &hourly).await;
        retention(false).await;
        database.number(rows).await == 0
    })
    .await;
    assert_eq!(database.number("SELECT count(*) FROM llm_upkeep WHERE waits_for_feed IS NULL").await, 1);
    let found = read(folder.path()).await;
    // Hours of today that are over have files, too.
    let of_these_days = |found: &Value| {
        let days = [9, 8].map(|days_ago| format!("day={}/", day(days_ago)));
        let files = found["files"].as_array().unwrap().iter().filter_map(Value::as_str);
        files.filter(|file| days.iter().any(|day| file.starts_with(day))).count()
    };
    assert_eq!((&found["duckdb"]["rows"], of_these_days(&found)), (&json!(101), 48));

    // What comes when its day was dropped is a file of its own, and the other stays as it is.
    client.batch_execute(&format!("SELECT llm_create_partition('{}')", day(8))).await.unwrap();
    client.batch_execute(&insert("later")).await.unwrap();
    wait_until("the feed has it", Duration::from_secs(90), || async {
        succeeds(&database, &hourly).await;
        retention(false).await;
        database.number(rows).await == 0
    })
    .await;
    let found = read(folder.path()).await;
    let part = format!("llm_logs-{}T10.2", day(8));
    assert_eq!(
        (&found["duckdb"]["rows"], &found["manifests"][&part]["rows"], &found["manifests"][&part]["part"]),
        (&json!(102), &json!(1), &json!(2))
    );
    assert!(found["manifests"].as_object().unwrap().values().all(|manifest| manifest["is_true"] == true));
    assert_eq!(of_these_days(&found), 49);
    let again = succeeds(&database, &hourly).await;
    assert!(again.ends_with("0 written again, 0 as before; 0 rows\n"), "{again}");

    let status: Value = serde_json::from_str(&succeeds(&database, &["status", "--json"]).await).unwrap();
    let feed = &status[0];
    assert_eq!((&feed["name"], &feed["rows"], &feed["failure"]), (&json!("parquet"), &json!(102), &Value::Null));
    assert_eq!(feed["files"].as_u64().unwrap(), found["files"].as_array().unwrap().len() as u64);
    assert!(feed["lag_seconds"].as_i64().unwrap() < 2 * 3_600, "{feed}");
}

#[tokio::test]
async fn a_feed_stays_in_its_folder_and_as_it_was_begun() {
    let database = database().await;
    add(&database, "a", day(2), 5, 100).await;
    let folder = tempfile::tempdir().unwrap();
    let (one, other) =
        (folder.path().join("one").to_str().unwrap().to_owned(), folder.path().join("other").to_str().unwrap().to_owned());
    let refused = async |arguments: &[&str], why: &str| {
        let finished = feed(&database, arguments).await;
        assert!(!finished.status.success() && finished.stderr.contains(why), "{finished:?}");
    };
    succeeds(&database, &["parquet", "--to", &one]).await;
    refused(&["parquet", "--to", &other], "Is the disk mounted?").await;
    refused(&["parquet", "--to", &one, "--content"], "was begun with a file a day, without content").await;
    refused(&["parquet", "--to", &one, "--name", "second"], "does not know").await;
    let client = database.connect().await;
    client.query_one("SELECT pg_advisory_lock(hashtext('llm_logs'), hashtext('feed parquet'))", &[]).await.unwrap();
    assert_eq!(succeeds(&database, &["parquet", "--to", &one]).await, "another worker is at it\n");
    drop(client);
    refused(&["forget", "parquet"], "--yes").await;
    wait_until("the lock is free", Duration::from_secs(10), || async {
        feed(&database, &["forget", "parquet", "--yes"]).await.status.success()
    })
    .await;
    assert_eq!(succeeds(&database, &["status"]).await, "there is no feed\n");
    assert!(succeeds(&database, &["parquet", "--to", &other, "--content"]).await.starts_with("1 file written"));
}
