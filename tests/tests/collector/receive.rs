//! `POST /log` and the pages for operators.

use std::time::Duration;

use gateway_tests::collector::{Answer, TestApp, serve_settings};
use gateway_tests::dice::Dice;
use gateway_tests::fixtures;
use llm_collector::server::Application;

fn counts(answer: &Answer) -> [u64; 4] {
    assert_eq!(answer.status, 200, "{}", answer.text);
    ["stored", "duplicates", "spooled", "rejected"].map(|name| answer.count(name))
}

#[tokio::test]
async fn an_object_and_an_array_are_stored_and_repeats_are_duplicates() {
    let app = TestApp::start().await;
    let answer = app.log(fixtures::batch("one-object")).await;
    assert_eq!(answer.text, r#"{"stored":1,"duplicates":0,"spooled":0,"rejected":0}"#);
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(counts(&app.log(fixtures::batch("one-entry-array")).await), [0, 1, 0, 0]);
    assert_eq!(counts(&app.log(fixtures::batch("mixed-50")).await), [49, 1, 0, 0]);
    assert_eq!(counts(&app.log(fixtures::batch("mixed-50")).await), [0, 50, 0, 0]);
    assert_eq!(counts(&app.log("[]").await), [0, 0, 0, 0]);
    assert_eq!(app.database.number("SELECT count(*) FROM llm_logs").await, 50);
    app.stop().await;
}

#[tokio::test]
async fn the_same_entry_twice_in_a_batch_is_one_row() {
    let app = TestApp::start().await;
    let entry = fixtures::small_entry("twice", 1_795_400_000_000);
    assert_eq!(counts(&app.log(format!("[{entry},{entry}]")).await), [1, 1, 0, 0]);
    app.stop().await;
}

#[tokio::test]
async fn bytes_that_are_no_utf8_cost_replacement_characters_only() {
    let app = TestApp::start_with(&["--keep-headers", "X-Weird"]).await;
    assert_eq!(counts(&app.log(fixtures::batch("invalid-utf8-between-good")).await), [3, 0, 0, 0]);
    let header = "SELECT count(*) FROM llm_logs WHERE raw_log->'request'->'headers'->>'x-weird' = E'caf\\uFFFD'";
    assert_eq!(app.database.number(header).await, 1);
    app.stop().await;
}

#[tokio::test]
async fn a_bad_element_does_not_fail_its_batch() {
    let app = TestApp::start().await;
    let [one, two] = ["one", "two"].map(|id| fixtures::small_entry(id, 1_795_400_000_000));
    assert_eq!(counts(&app.log(format!(r#"[{one},17,{{"request":{{}}}},{two}]"#)).await), [2, 0, 0, 2]);
    let broken = format!(r#"[{one},{{"request":{{"id":"x",}}}},{}]"#, fixtures::small_entry("three", 1_795_400_000_000));
    assert_eq!(counts(&app.log(broken).await), [1, 1, 0, 1]);
    let reasons =
        app.database.connect().await.query("SELECT reason, raw FROM llm_rejected ORDER BY length(raw)", &[]).await.unwrap();
    let reasons: Vec<(String, Vec<u8>)> = reasons.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(reasons[0], ("not an object".to_owned(), b"17".to_vec()));
    assert!(reasons[1].0.starts_with("not JSON"), "{reasons:?}");
    assert!(reasons[2].0.contains("started_at"), "{reasons:?}");
    app.stop().await;
}

#[tokio::test]
async fn every_entry_that_comes_in_is_stored_a_duplicate_or_rejected() {
    let app = TestApp::start().await;
    let mut dice = Dice::new(2026);
    let (mut rows, mut on_record) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    for _ in 0..60 {
        let (mut stored, mut duplicates, mut rejected) = (0, 0, 0);
        let elements: Vec<String> = (0..1 + dice.roll(40))
            .map(|_| match dice.roll(8) {
                0 => {
                    let element = format!("{}", dice.roll(50));
                    rejected += 1;
                    on_record.insert(element.clone());
                    element
                }
                1 => {
                    let element = format!(r#"{{"request":{{"id":"no-start-{}"}}}}"#, dice.roll(50));
                    rejected += 1;
                    on_record.insert(element.clone());
                    element
                }
                _ => {
                    let id = format!("id-{}", dice.roll(400));
                    if rows.insert(id.clone()) {
                        stored += 1
                    } else {
                        duplicates += 1
                    }
                    fixtures::small_entry(&id, 1_795_400_000_000)
                }
            })
            .collect();
        let answer = app.log(format!("[{}]", elements.join(","))).await;
        assert_eq!(counts(&answer), [stored, duplicates, 0, rejected], "{elements:?}");
    }
    assert_eq!(app.database.number("SELECT count(*) FROM llm_logs").await, rows.len() as i64);
    assert_eq!(app.database.number("SELECT count(*) FROM llm_rejected").await, on_record.len() as i64);
    app.stop().await;
}

#[tokio::test]
async fn what_is_no_json_is_refused_with_a_reason() {
    let app = TestApp::start().await;
    for body in ["", "{", "[17", "nonsense", "17", "\"text\""] {
        let answer = app.log(body).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(!answer.json()["error"].as_str().unwrap().is_empty(), "{body}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_token_is_asked_for_when_there_is_one() {
    let app = TestApp::start_with(&["--token", "s3cret-token"]).await;
    let entry = fixtures::batch("one-object");
    for headers in
        [&[][..], &[("X-Collector-Token", "wrong")], &[("X-Collector-Token", "s3cret-toke")], &[("X-Collector-Token", "")]]
    {
        let answer = app.log_with(entry.clone(), headers).await;
        assert_eq!(answer.status, 401);
        assert!(answer.json()["error"].as_str().unwrap().contains("X-Collector-Token"));
    }
    assert_eq!(counts(&app.log_with(entry, &[("x-collector-token", "s3cret-token")]).await), [1, 0, 0, 0]);
    app.stop().await;
}

#[tokio::test]
async fn what_is_over_the_limit_and_no_batch_is_refused_whether_announced_or_not() {
    let app = TestApp::start_with(&["--max-body-bytes", "5000"]).await;
    let announced = app.log(vec![b' '; 5001]).await;
    assert_eq!((announced.status, announced.json()["error"].is_string()), (413, true));
    let pieces = futures_util::stream::iter((0..100).map(|_| Ok::<_, std::io::Error>(vec![b' '; 100])));
    assert_eq!(app.log(gateway_tests::collector::streamed(pieces)).await.status, 413);
    assert_eq!(app.log("x".repeat(6_000)).await.status, 413);
    assert_eq!(counts(&app.log(fixtures::batch("one-object")).await), [1, 0, 0, 0]);
    app.stop().await;
}

#[tokio::test]
async fn of_a_batch_over_the_limit_every_entry_is_taken_but_one_that_is_over_it_alone() {
    let app = TestApp::start_with(&["--max-body-bytes", "5000", "--max-queue-bytes", "100000"]).await;
    let batch = fixtures::small_batch("many", 100);
    assert!(batch.len() > 50_000);
    assert_eq!(counts(&app.log(batch.clone()).await), [100, 0, 0, 0]);
    let pieces: Vec<Vec<u8>> = batch.as_bytes().chunks(700).map(<[u8]>::to_vec).collect();
    let pieces = futures_util::stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
    assert_eq!(counts(&app.log(gateway_tests::collector::streamed(pieces)).await), [0, 100, 0, 0]);

    let large = fixtures::small_entry(&"x".repeat(20_000), 1_795_400_000_000);
    let [one, two] = ["one", "two"].map(|id| fixtures::small_entry(id, 1_795_400_000_000));
    let pieces: Vec<Vec<u8>> = format!("[{one},{large},{two}]").as_bytes().chunks(700).map(<[u8]>::to_vec).collect();
    let pieces = futures_util::stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
    assert_eq!(counts(&app.log(gateway_tests::collector::streamed(pieces)).await), [2, 0, 0, 1]);
    let head = "SELECT count(*) FROM llm_rejected WHERE reason LIKE 'larger than 5000 bytes%' AND length(raw) > 4000";
    assert_eq!(app.database.number(head).await, 1);
    // Alone it is the same: repeating it would not make it smaller.
    assert_eq!(counts(&app.log(large).await)[3], 1);
    assert_eq!(app.metric("llm_collector_queue_bytes").await, 0.0);
    app.stop().await;
}

#[tokio::test]
async fn connections_that_announce_much_and_send_nothing_hold_up_nobody() {
    let app = TestApp::start().await;
    let address = app.url.trim_start_matches("http://").to_owned();
    let mut idle = Vec::new();
    for _ in 0..4 {
        let mut connection = tokio::net::TcpStream::connect(&address).await.unwrap();
        let request = b"POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: 67108864\r\n\r\n[{";
        tokio::io::AsyncWriteExt::write_all(&mut connection, request).await.unwrap();
        idle.push(connection);
    }
    gateway_tests::process::wait_until("they are being read", Duration::from_secs(10), || async {
        app.metric("llm_collector_queue_bytes").await == 8.0
    })
    .await;
    assert_eq!(counts(&app.log(fixtures::batch("one-object")).await), [1, 0, 0, 0]);
    drop(idle);
    app.stop().await;
}

#[tokio::test]
async fn who_holds_all_of_the_memory_and_sends_no_more_gives_way() {
    let app = TestApp::start_with(&["--max-queue-bytes", "100000"]).await;
    let mut connection = tokio::net::TcpStream::connect(app.url.trim_start_matches("http://")).await.unwrap();
    let head = b"POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n[";
    tokio::io::AsyncWriteExt::write_all(&mut connection, &[&head[..], &[b' '; 99_998]].concat()).await.unwrap();
    gateway_tests::process::wait_until("it holds all of it", Duration::from_secs(10), || async {
        app.metric("llm_collector_queue_bytes").await == 99_999.0
    })
    .await;
    // Kong sends again for as long as this and longer.
    gateway_tests::process::wait_until("others are served", Duration::from_secs(20), || async {
        app.log(fixtures::batch("one-object")).await.status == 200
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn bodies_beyond_the_memory_limit_are_put_off() {
    let app = TestApp::start_with(&["--max-queue-bytes", "1000"]).await;
    let answer = app.log(fixtures::batch("one-object")).await;
    assert_eq!((answer.status, answer.headers["retry-after"].to_str().unwrap()), (503, "1"));
    assert!(answer.json()["error"].is_string());
    assert_eq!(app.metric("llm_collector_queue_bytes").await, 0.0);
    app.stop().await;
}

#[tokio::test]
async fn the_pages_for_operators_answer() {
    let app = TestApp::start().await;
    assert_eq!(app.get("/healthz").await.status, 200);
    let ready = app.get("/readyz").await;
    assert_eq!((ready.status, ready.json()["takes"].as_str().unwrap().to_owned()), (200, "postgresql".to_owned()));
    assert_eq!(app.get("/nowhere").await.status, 404);
    assert_eq!(app.get("/log").await.status, 405);
    app.stop().await;
}

#[tokio::test]
async fn listening_beyond_loopback_needs_a_token_or_an_explicit_word() {
    let url = "postgres://nobody@127.0.0.1:1/none";
    let error = |arguments: &'static [&'static str]| async move {
        let data = tempfile::tempdir().unwrap();
        let fixed = ["--listen", "0.0.0.0:0", "--database-url", url, "--data-dir", data.path().to_str().unwrap()];
        let arguments: Vec<&str> = fixed.iter().chain(arguments).copied().collect();
        match Application::build(&serve_settings(&arguments)).await {
            Ok(_) => panic!("it started"),
            Err(error) => format!("{error:#}"),
        }
    };
    let refused = error(&[]).await;
    assert!(refused.contains("COLLECTOR_TOKEN") && refused.contains("--allow-unauthenticated"), "{refused}");
    // With either it gets as far as the database, which is not there.
    assert!(error(&["--token", "t"]).await.contains("127.0.0.1:1"));
    assert!(error(&["--allow-unauthenticated"]).await.contains("127.0.0.1:1"));
}

#[tokio::test]
async fn clients_that_hang_up_leave_nothing_reserved() {
    let app = TestApp::start().await;
    let address = app.url.trim_start_matches("http://").to_owned();
    for _ in 0..5 {
        let mut connection = tokio::net::TcpStream::connect(&address).await.unwrap();
        let request = b"POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n[{";
        tokio::io::AsyncWriteExt::write_all(&mut connection, request).await.unwrap();
    }
    gateway_tests::process::wait_until("nothing is reserved", Duration::from_secs(10), || async {
        app.metric("llm_collector_queue_bytes").await == 0.0
    })
    .await;
    app.stop().await;
}
