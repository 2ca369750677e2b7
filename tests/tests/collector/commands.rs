//! The binary as operators run it.

use std::time::Duration;

use gateway_tests::collector::{Finished, Process, TestApp, binary, run};
use gateway_tests::fixtures;
use gateway_tests::postgres::Database;
use gateway_tests::process::{free_port, wait_until};

fn assert_fails_saying(finished: &Finished, words: &[&str]) {
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    for word in words {
        assert!(finished.stderr.contains(word), "{word} is not in: {}", finished.stderr);
    }
    assert!(!finished.stderr.contains("RUST_BACKTRACE") && !finished.stderr.contains("stack backtrace"), "{}", finished.stderr);
}

#[tokio::test]
async fn what_is_wrong_with_the_database_is_said_with_how_to_mend_it() {
    let database = Database::create().await;
    let (server, name) = database.url.rsplit_once('/').unwrap();
    let port = free_port().to_string();
    assert_fails_saying(&run(&["migrate"], &[]).await, &["DATABASE_URL"]);
    assert_fails_saying(&run(&["migrate"], &[("DATABASE_URL", "not a url")]).await, &["postgres://"]);
    let nobody_there = format!("postgres://u:pa55word@127.0.0.1:{port}/x");
    let finished = run(&["serve", "--listen", "127.0.0.1:0"], &[("DATABASE_URL", &nobody_there)]).await;
    assert_fails_saying(&finished, &[&port, "\"x\"", "check that PostgreSQL runs"]);
    assert!(!finished.stderr.contains("pa55word"));
    let missing = format!("{server}/{name}_missing");
    assert_fails_saying(&run(&["migrate"], &[("DATABASE_URL", &missing)]).await, &["does not exist", "createdb"]);
}

#[tokio::test]
async fn a_taken_port_and_an_unreadable_file_are_named() {
    let app = TestApp::start().await;
    let listen = app.url.trim_start_matches("http://").to_owned();
    let finished = run(&["serve", "--listen", &listen], &[("DATABASE_URL", &app.database.url)]).await;
    assert_fails_saying(&finished, &[&listen, "--listen"]);
    let finished = run(&["replay", "/nowhere/entries.json"], &[("DATABASE_URL", &app.database.url)]).await;
    assert_fails_saying(&finished, &["/nowhere/entries.json"]);
    let finished = run(&["serve", "--token-file", "/nowhere/token"], &[("DATABASE_URL", &app.database.url)]).await;
    assert_fails_saying(&finished, &["/nowhere/token", "--token-file"]);
    app.stop().await;
}

#[tokio::test]
async fn an_older_collector_runs_on_a_newer_schema() {
    let app = TestApp::start().await;
    let insert = "INSERT INTO refinery_schema_history (version, name, applied_on, checksum)
        VALUES (9999, 'of_a_later_release', '2099-01-01T00:00:00Z', '1') RETURNING version::bigint";
    assert_eq!(app.database.number(insert).await, 9999);
    let finished = run(&["migrate"], &[("DATABASE_URL", &app.database.url)]).await;
    assert!(finished.status.success(), "{finished:?}");
    assert_eq!(finished.stdout, "the schema is current\n");
    app.stop().await;
}

#[tokio::test]
async fn healthcheck_tells_by_its_status_whether_a_collector_lives() {
    let app = TestApp::start().await;
    let listen = app.url.trim_start_matches("http://").to_owned();
    let finished = run(&["healthcheck"], &[("COLLECTOR_LISTEN", &listen)]).await;
    assert!(finished.status.success() && finished.stdout.is_empty(), "{finished:?}");
    app.stop().await;
    assert_fails_saying(&run(&["healthcheck", "--listen", &listen], &[]).await, &[&listen, "no collector answers"]);
}

#[tokio::test]
async fn upkeep_which_listens_nowhere_is_healthy_once_the_schema_is_current() {
    let database = Database::create().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ready");
    // As one that was killed leaves it.
    std::fs::write(&file, "").unwrap();
    let variables = [("COLLECTOR_READY_FILE", file.to_str().unwrap())];
    let unreachable = format!("postgres://u:p@127.0.0.1:{}/x", free_port());
    assert_fails_saying(&run(&["upkeep", "--database-url", &unreachable], &variables).await, &["check that PostgreSQL runs"]);
    assert_fails_saying(&run(&["healthcheck"], &variables).await, &["upkeep is not at work"]);

    let mut upkeep = tokio::process::Command::new(binary())
        .args(["upkeep", "--database-url", &database.url])
        .envs(variables)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    wait_until("upkeep is healthy", Duration::from_secs(60), || async {
        run(&["healthcheck"], &variables).await.status.success()
    })
    .await;
    assert_eq!(database.number("SELECT count(*) FROM llm_logs").await, 0, "the tables are there");
    let stop = std::process::Command::new("kill").arg(upkeep.id().unwrap().to_string()).status();
    assert!(stop.unwrap().success());
    assert!(upkeep.wait().await.unwrap().success());
    assert_fails_saying(&run(&["healthcheck"], &variables).await, &["upkeep is not at work"]);
}

#[tokio::test]
async fn two_collectors_may_migrate_at_once() {
    let database = Database::create().await;
    let variables = [("DATABASE_URL", database.url.as_str())];
    let runs = futures_util::future::join_all((0..4).map(|_| run(&["migrate"], &variables))).await;
    let applied = runs.iter().filter(|finished| finished.stdout.starts_with("applied V1")).count();
    assert!(runs.iter().all(|finished| finished.status.success()), "{runs:?}");
    assert_eq!(applied, 1, "{runs:?}");
    assert_eq!(run(&["migrate"], &variables).await.stdout, "the schema is current\n");
    // Today and the coming week.
    let partitions =
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'llm_logs'::regclass AND inhrelid <> 'llm_logs_default'::regclass";
    assert_eq!(database.number(partitions).await, 8);
}

#[tokio::test]
async fn replay_takes_arrays_lines_and_spread_out_entries() {
    let database = Database::create().await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mut lines = Vec::new();
    for name in ["chat-en", "kong-latin1-request-header", "kong-no-key-401"] {
        lines.extend(fixtures::entry(name));
        lines.push(b'\n');
    }
    lines.extend(b"not json\n\n");
    let lines = file("lines", &lines);
    let spread: serde_json::Value = serde_json::from_slice(&fixtures::entry("chat-emoji")).unwrap();
    let spread = file("spread", serde_json::to_string_pretty(&spread).unwrap().as_bytes());
    let array = file("array", &fixtures::batch("mixed-50"));
    let finished = run(&["replay", &lines, &spread, &array], &[("DATABASE_URL", &database.url)]).await;
    // One line is no entry: all others are taken, and the command says so at its end.
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stdout.ends_with("spooled, 0 rejected\n"), "{}", finished.stdout);
    assert!(finished.stderr.contains("line 4: not JSON") && !finished.stderr.contains("not json"), "{}", finished.stderr);
    let again = run(&["replay", &spread, &array], &[("DATABASE_URL", &database.url)]).await;
    assert!(again.status.success() && again.stdout.starts_with("0 stored"), "{again:?}");
    for name in ["chat-en", "kong-latin1-request-header", "kong-no-key-401", "chat-emoji"] {
        let id = fixtures::expected_row(name)["request_id"].as_str().unwrap().to_owned();
        assert_eq!(database.number(&format!("SELECT count(*) FROM llm_logs WHERE request_id = '{id}'")).await, 1, "{name}");
    }
}

#[tokio::test]
async fn replay_passes_over_a_damaged_line_wherever_it_stands() {
    let database = Database::create().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lines");
    let entries: Vec<String> = (0..3).map(|n| fixtures::small_entry(&format!("l{n}"), 1_795_400_000_000)).collect();
    let cut = entries[1].split_at(entries[1].len() / 2).0;
    for (at, lines) in
        [[cut, &entries[0], &entries[2]], [&entries[0], cut, &entries[2]], [&entries[0], &entries[2], cut]].iter().enumerate()
    {
        std::fs::write(&path, lines.join("\n")).unwrap();
        let finished = run(&["replay", path.to_str().unwrap()], &[("DATABASE_URL", &database.url)]).await;
        assert_fails_saying(&finished, &[&format!("lines, line {}: not JSON", at + 1), "one place is damaged"]);
        let taken = if at == 0 { "2 stored, 0 duplicates" } else { "0 stored, 2 duplicates" };
        assert!(finished.stdout.starts_with(taken), "{finished:?}");
        assert!(!finished.stderr.contains("hi l"), "{finished:?}");
    }
}

#[tokio::test]
async fn rejected_entries_can_be_listed_shown_and_retried() {
    let app = TestApp::start().await;
    let variables = [("DATABASE_URL", app.database.url.as_str())];
    assert_eq!(run(&["rejected", "list"], &variables).await.stdout, "no rejected entries\n");
    let client = app.database.connect().await;
    client.batch_execute("ALTER TABLE llm_logs ADD CONSTRAINT none_yet CHECK (request_id NOT LIKE 'later%')").await.unwrap();
    let entry = fixtures::small_entry("later", 1_795_400_000_000);
    assert_eq!(app.log(format!("[{entry},17]")).await.count("rejected"), 2);

    let listed = run(&["rejected", "list"], &variables).await.stdout;
    assert!(listed.contains("none_yet") && listed.contains("not an object"), "{listed}");
    let id: i64 = client.query_one("SELECT id FROM llm_rejected WHERE reason LIKE '%none_yet%'", &[]).await.unwrap().get(0);
    let shown = run(&["rejected", "show", &id.to_string()], &variables).await.stdout;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap()["request"]["id"], "later");
    assert_fails_saying(&run(&["rejected", "show", "4711"], &variables).await, &["4711"]);

    let retried = run(&["rejected", "retry"], &variables).await;
    assert_eq!(retried.stdout, "0 entries are rows now, 2 are still rejected\n");
    assert_fails_saying(&retried, &[&format!("entry {id} is still rejected"), "2 entries are no rows"]);
    assert_fails_saying(&run(&["rejected", "retry", "4711"], &variables).await, &["there is no rejected entry 4711"]);
    client.batch_execute("ALTER TABLE llm_logs DROP CONSTRAINT none_yet").await.unwrap();
    assert_eq!(run(&["rejected", "retry"], &variables).await.stdout, "1 entry is a row now, 1 is still rejected\n");
    let prompt = "SELECT count(*) FROM llm_logs WHERE request_id = 'later' AND prompt = 'hi later'";
    assert_eq!(app.database.number(prompt).await, 1);
    assert_eq!(app.database.number("SELECT count(*) FROM llm_rejected").await, 1);
    app.stop().await;
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight() {
    let database = Database::create().await;
    let process = Process::serve(&["--database-url", &database.url]).await;
    let blocker = database.connect().await;
    blocker.batch_execute("BEGIN; LOCK TABLE llm_logs IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let url = format!("{}/log", process.url);
    let request = tokio::spawn(reqwest::Client::new().post(url).body(fixtures::small_batch("t", 3)).send());
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()
        AND query ~ 'INSERT INTO llm_logs|llm_create_partition'";
    gateway_tests::process::wait_until("the insert waits", Duration::from_secs(3), || async {
        database.number(waiting).await == 1
    })
    .await;
    process.signal("TERM");
    blocker.batch_execute("COMMIT").await.unwrap();
    let answer = request.await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    let (status, log) = process.finished().await;
    assert!(status.success(), "{status:?}\n{log}");
    assert!(log.contains("stopped"), "{log}");
    assert_eq!(database.number("SELECT count(*) FROM llm_logs").await, 3);
}

#[tokio::test]
async fn the_log_is_json_when_asked_for_and_holds_neither_bodies_nor_keys() {
    let database = Database::create().await;
    let process = Process::serve(&[
        "--database-url",
        &database.url,
        "--token",
        "tok-s3cret",
        "--log-format",
        "json",
        "--log-level",
        "debug",
    ])
    .await;
    let client = reqwest::Client::new();
    let post = |body: Vec<u8>, token: &'static str| {
        client.post(format!("{}/log", process.url)).body(body).header("X-Collector-Token", token).send()
    };
    for name in ["kong-key-in-query-accepted", "kong-key-in-header-no-bodies", "chat-en", "kong-key-in-query-401"] {
        assert_eq!(post(fixtures::entry(name), "tok-s3cret").await.unwrap().status(), 200);
        assert_eq!(post(fixtures::entry(name), "tok-wr0ng").await.unwrap().status(), 401);
    }
    assert_eq!(post(b"{\"authorization\":\"Bearer sk-z123456\"".to_vec(), "tok-s3cret").await.unwrap().status(), 400);
    let entry = r#"[{"request":{"headers":{"x-api-key":"sk-z123456"}},"response":{"body":"LLM gateway"}}]"#;
    assert_eq!(post(entry.as_bytes().to_vec(), "tok-s3cret").await.unwrap().status(), 200);
    process.signal("TERM");
    let (_, log) = process.finished().await;
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["time"].is_string() && line["level"].is_string() && line["message"].is_string());
    }
    assert!(log.contains("\"status\":401"), "{log}");
    for secret in ["sk-z", "tok-s3cret", "tok-wr0ng", "LLM gateway", "postgres://"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}
