//! The queue of log entries in Kong's workers: an outage of the collector, floods, clients and workers that go away. What was kept
//! arrives, what was not is a hole, and nothing is stuck.
//!
//! `QUEUE_OUTAGE_SECONDS` and `QUEUE_OUTAGE_RATE` (calls a second, each of 20 KB) make the outage longer: 1800 and 100 are what a
//! night without a collector looks like.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gateway_tests::gateway::{Session, User};
use gateway_tests::process::wait_until;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CHAT: &str = "/v1/chat/completions";

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().expect("a number"))
}

fn chat(text: &str) -> String {
    json!({"model": "m", "messages": [{"role": "user", "content": text}]}).to_string()
}

/// A collector between the gateway and ours that can be away: it then accepts connections and answers 503.
struct Gate {
    url: String,
    away: std::sync::Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Gate {
    async fn before(collector_url: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let away = std::sync::Arc::new(AtomicBool::new(false));
        let target = collector_url.trim_start_matches("http://").to_owned();
        let is_away = std::sync::Arc::clone(&away);
        let task = tokio::spawn(async move {
            loop {
                let Ok((mut client, _)) = listener.accept().await else { return };
                let (target, is_away) = (target.clone(), std::sync::Arc::clone(&is_away));
                tokio::spawn(async move {
                    if is_away.load(Ordering::SeqCst) {
                        let mut head = [0; 4096];
                        let _ = client.read(&mut head).await;
                        let _ = client.write_all(b"HTTP/1.1 503 Away\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
                    } else if let Ok(mut collector) = tokio::net::TcpStream::connect(target).await {
                        // Until it is away: then a connection that is kept alive ends.
                        let until = async {
                            while !is_away.load(Ordering::SeqCst) {
                                tokio::time::sleep(Duration::from_millis(20)).await;
                            }
                        };
                        tokio::select! {
                            _ = tokio::io::copy_bidirectional(&mut client, &mut collector) => {}
                            () = until => {}
                        }
                    }
                });
            }
        });
        Self { url, away, task }
    }

    fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Calls that must succeed, from several clients; how many there were.
async fn calls(session: &Session, user: &User, text: &str, until: impl Fn(usize) -> bool + Sync, pause: Duration) -> usize {
    let made = AtomicUsize::new(0);
    let client = || async {
        while until(made.fetch_add(1, Ordering::SeqCst)) {
            let reply = session.call(CHAT).key(&user.key).body(chat(text)).send().await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            tokio::time::sleep(pause).await;
        }
        made.fetch_sub(1, Ordering::SeqCst);
    };
    tokio::join!(client(), client(), client(), client());
    made.load(Ordering::SeqCst)
}

async fn rows_of(session: &Session, user: &User) -> i64 {
    session.gateway.database.number(&format!("SELECT count(*) FROM llm_logs WHERE consumer_username = '{}'", user.name)).await
}

/// Numbers that are missing in front of the last one that arrived, of the workers that a user's calls went to.
async fn holes(session: &Session, user: &User) -> i64 {
    let query = format!(
        "WITH numbered AS (SELECT raw_log->'llm'->>'worker' AS worker, (raw_log->'llm'->>'seq')::bigint AS seq, consumer_username
                           FROM llm_logs),
              ours AS (SELECT worker, min(seq) AS first FROM numbered WHERE consumer_username = '{}' GROUP BY worker)
         SELECT coalesce(sum(last - first + 1 - arrived), 0)::bigint FROM (
             SELECT first, max(seq) AS last, count(*) AS arrived FROM ours JOIN numbered USING (worker) WHERE seq >= first
             GROUP BY worker, first) counted",
        user.name
    );
    session.gateway.database.number(&query).await
}

/// What the gateway's processes hold, in MiB; `None` when it is not ours or not here.
fn worker_memory(session: &Session) -> Option<u64> {
    let pid = session.gateway.pid()?;
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let resident = |pid: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    children.split_whitespace().filter_map(resident).max().map(|kilobytes| kilobytes / 1024)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_collector_costs_what_does_not_fit_and_nothing_else() {
    let session = Session::alone().await;
    let user = session.user().await;
    let gate = Gate::before(&session.gateway.collector_url).await;
    // Room for some hundred entries of 20 KB in each worker, and for the longest entry of users with a capture of their own.
    let (seconds, rate) = (setting("QUEUE_OUTAGE_SECONDS", 10), setting("QUEUE_OUTAGE_RATE", 100));
    let changes = [
        ("COLLECTOR_URL", gate.url.as_str()),
        ("AUDIT_MAX_REQUEST_BYTES", "200000"),
        ("AUDIT_MAX_RESPONSE_BYTES", "200000"),
        ("AUDIT_QUEUE_BYTES", if seconds > 60 { "134217728" } else { "4000000" }),
    ];
    session.change(&changes).await;
    // Both workers have to have sent an entry on the new way.
    let probe = session.user().await;
    session
        .settled("entries go through the gate", || async {
            let reply = session.call(CHAT).key(&probe.key).body(chat("probe")).send().await;
            reply.row(&session).await["status"] == 200
        })
        .await;
    calls(&session, &user, "before", |made| made < 40, Duration::ZERO).await;
    wait_until("the first rows", Duration::from_secs(20), || async { rows_of(&session, &user).await == 40 }).await;

    gate.set_away(true);
    let pause = Duration::from_millis(4_000 / rate);
    let text = "q".repeat(20_000);
    // By number: on a busy machine fewer calls a second must not leave the queue half empty.
    let most = usize::try_from(seconds * rate).unwrap();
    let during = calls(&session, &user, &text, |made| made < most, pause).await;
    if let Some(memory) = worker_memory(&session) {
        // The queue, the batch on its way, and as much again for what Lua has not given back yet; 100 for the worker itself.
        let limit = if seconds > 60 { 100 + 3 * 192 } else { 160 };
        assert!(memory < limit, "a worker holds {memory} MiB");
    }
    gate.set_away(false);

    // Kong tries again every 10 s at most. What is called now comes behind what was kept, in each worker.
    let mut after = 0;
    wait_until("entries are sent again", Duration::from_secs(60), || {
        after += 4;
        let (session, user) = (&session, &user);
        async move {
            calls(session, user, "after", |made| made < 4, Duration::ZERO).await;
            rows_of(session, user).await > 60
        }
    })
    .await;
    after += 40;
    calls(&session, &user, "after", |made| made < 40, Duration::ZERO).await;
    let all = i64::try_from(40 + during + after).unwrap();
    let seen = std::sync::Mutex::new((0, 0));
    wait_until("every call is a row or a hole", Duration::from_secs(180), || async {
        let now = (rows_of(&session, &user).await, holes(&session, &user).await);
        if std::mem::replace(&mut *seen.lock().unwrap(), now) != now {
            eprintln!("{} rows and {} holes of {all} calls", now.0, now.1);
        }
        now.0 + now.1 == all
    })
    .await;
    let lost = holes(&session, &user).await;
    let shed =
        format!("SELECT count(*) FROM llm_logs WHERE consumer_username = '{}' AND (raw_log->'llm'->>'shed')::boolean", user.name);
    let shed = session.gateway.database.number(&shed).await;
    eprintln!("{during} calls without a collector: {lost} left out, {shed} without bodies");
    assert!(lost > 0 && shed > 0, "the queue never overflowed: {lost} {shed}");
    for (name, log) in session.gateway.logs() {
        for kongs in ["queue full, dropping old entries", "byte capacity exceeded"] {
            assert!(!log.contains(kongs), "Kong dropped entries by itself: {name}");
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_away_while_it_uploads_leaves_a_row() {
    let session = Session::begin().await;
    let user = session.user().await;
    let address = session.gateway.proxy_url.trim_start_matches("http://").to_owned();
    for number in 0..6 {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        let head = format!(
            "POST {CHAT}?upload={number} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{{\"model\":",
            user.key
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        // Until the gateway has read the head and waits for the rest.
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(stream);
        // The entry of a worker that has sent none yet comes with its next one.
        session.call(CHAT).key(&user.key).body(chat("whole")).send().await;
    }
    let rows = format!("SELECT count(*) FROM llm_logs WHERE consumer_username = '{}' AND aborted AND status >= 400", user.name);
    wait_until("interrupted calls are rows", Duration::from_secs(20), || async {
        session.call(CHAT).key(&user.key).body(chat("whole")).send().await;
        session.gateway.database.number(&rows).await == 6
    })
    .await;
    wait_until("no number is missing", Duration::from_secs(20), || async { holes(&session, &user).await == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_calls_without_a_key_costs_no_conversation() {
    let session = Session::alone().await;
    let user = session.user().await;
    session.change(&[("ANONYMOUS_PER_MINUTE", "20")]).await;
    session.settled("the limit is in effect", || async { session.call(CHAT).body(chat("?")).send().await.status == 429 }).await;
    let over = AtomicBool::new(false);
    let refused = AtomicUsize::new(0);
    let flood = |key: Option<&'static str>| {
        let (session, over, refused) = (&session, &over, &refused);
        async move {
            while !over.load(Ordering::SeqCst) {
                let mut call = session.call(CHAT).body(chat("let me in")).header("x-padding", &"p".repeat(7_000));
                if let Some(key) = key {
                    call = call.key(key);
                }
                let reply = call.send().await;
                assert!(matches!(reply.status, 401 | 429), "{}", reply.status);
                assert!(key.is_none() || reply.status == 401, "a key is looked at, always");
                refused.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    let honest = async {
        let made = calls(&session, &user, "an honest question", |made| made < 100, Duration::from_millis(10)).await;
        over.store(true, Ordering::SeqCst);
        made
    };
    let (made, ..) = tokio::join!(honest, flood(None), flood(None), flood(Some("sk-wrong")), flood(None));
    wait_until("every conversation is a row", Duration::from_secs(20), || async {
        rows_of(&session, &user).await == i64::try_from(made).unwrap()
    })
    .await;
    let whole = format!(
        "SELECT count(*) FROM llm_logs WHERE consumer_username = '{}' AND prompt = 'an honest question' AND NOT truncated",
        user.name
    );
    assert_eq!(session.gateway.database.number(&whole).await, i64::try_from(made).unwrap());

    // Of the flood there are a few small rows, and a count of the rest.
    let padded = "SELECT count(*) FROM llm_logs call WHERE llm_raw_log(call)::text LIKE '%pppppppp%'";
    assert_eq!(session.gateway.database.number(padded).await, 0);
    let small = "SELECT count(*) FROM llm_logs call WHERE consumer_username = 'anonymous' AND status IN (401, 429)
                 AND started_at > now() - interval '5 minutes' AND octet_length(llm_raw_log(call)::text) > 6000";
    assert_eq!(session.gateway.database.number(small).await, 0);
    let counted = "SELECT coalesce(sum(count), 0)::bigint FROM llm_refused_calls WHERE source <> ''";
    let flood = i64::try_from(refused.load(Ordering::SeqCst)).unwrap();
    // Minutes that are over are told; two of them may have let twenty calls each become rows.
    wait_until("the rest is counted", Duration::from_secs(90), || async {
        session.gateway.database.number(counted).await >= flood - 60
    })
    .await;
}

#[tokio::test]
async fn workers_that_are_killed_leave_a_hole_where_their_entries_were() {
    let session = Session::alone().await;
    let Some(pid) = session.gateway.pid() else {
        eprintln!("skipped: the gateway is not ours to kill");
        return;
    };
    let user = session.user().await;
    calls(&session, &user, "before", |made| made < 40, Duration::ZERO).await;
    wait_until("the first rows", Duration::from_secs(20), || async { rows_of(&session, &user).await == 40 }).await;
    let gate = Gate::before(&session.gateway.collector_url).await;
    session.change(&[("COLLECTOR_URL", &gate.url)]).await;
    gate.set_away(true);
    calls(&session, &user, "taken along", |made| made < 30, Duration::ZERO).await;
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    for worker in children.split_whitespace() {
        let killed = std::process::Command::new("kill").args(["-9", worker]).status().unwrap();
        assert!(killed.success());
    }
    gate.set_away(false);
    // Once the new workers serve, they tell of the old ones; an entry of theirs tells them where the collector is.
    let lost = "SELECT coalesce(sum(last_seq - first_seq + 1), 0)::bigint FROM llm_sequence_gaps g
                JOIN llm_workers w USING (worker) WHERE w.ended";
    wait_until("the tails are holes", Duration::from_secs(90), || async {
        let reply = session.call(CHAT).key(&user.key).body(chat("after")).send().await;
        reply.status == 200 && session.gateway.database.number(lost).await >= 1
    })
    .await;
    wait_until("every call is a row or a hole", Duration::from_secs(90), || async {
        let query = format!("SELECT count(*) FROM llm_logs WHERE consumer_username = '{}' AND prompt = 'taken along'", user.name);
        session.gateway.database.number(&query).await + session.gateway.database.number(lost).await >= 30
    })
    .await;
}

#[tokio::test]
async fn the_collector_hears_of_the_node_once_a_second() {
    let session = Session::begin().await;
    let user = session.user().await;
    calls(&session, &user, "?", |made| made < 4, Duration::ZERO).await;
    let count = "SELECT count(*) FROM llm_workers WHERE NOT ended AND given > 0 AND done <= given";
    wait_until("workers are known", Duration::from_secs(20), || async { session.gateway.database.number(count).await > 0 }).await;
    let page = reqwest::get(format!("{}/metrics", session.gateway.collector_url)).await.unwrap().text().await.unwrap();
    let age =
        page.lines().find_map(|line| line.strip_prefix("llm_sync_age_seconds{")?.split(' ').next_back()?.parse::<f64>().ok());
    assert!(age.is_some_and(|age| age < 10.0), "{age:?}");
}
