//! What storing parts of bodies once a day is worth: the same calls with every row whole, as the schema of before stored them, and with parts
//! apart, on fresh databases.
//!
//! - `agents`: sessions of coding agents that go on side by side, 24 of 40 calls. Each call has a system prompt of 12 KB and 20 tools of some
//!   600 bytes, which all sessions share, and all that was said before: a call of a tool and a result of 1 to 9 KB with every turn. 134 KB on
//!   average.
//! - `agents, trimmed`: the same, but a session forgets its oldest turns beyond twenty.
//! - `nothing repeats`: questions and answers of 10 KB each, all different: the worst case.
//!
//! Texts are made of 4,000 words, the common ones far more often, so that lz4 makes of them what it makes of prose.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gateway_tests::collector::Process;
use gateway_tests::dice::Dice;
use gateway_tests::postgres::{Cluster, Database};
use gateway_tests::process::wait_until;
use serde_json::{Value, json};

use crate::cpu;
use crate::load::{Request, send};

const SESSIONS: usize = 24;
const TURNS: usize = 40;
/// Turns that a session remembers which forgets.
const REMEMBERED: usize = 20;
const UNIQUE: usize = 4_000;
const BATCH: usize = 50;
const CONNECTIONS: usize = 4;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Calls {
    Agents,
    Trimmed,
    Unique,
}

impl Calls {
    fn name(self) -> &'static str {
        match self {
            Calls::Agents => "agents",
            Calls::Trimmed => "agents, trimmed",
            Calls::Unique => "nothing repeats",
        }
    }
}

/// Words as of prose.
struct Words {
    words: Vec<String>,
    dice: Dice,
}

impl Words {
    fn new() -> Self {
        let mut dice = Dice::new(11);
        let word = |dice: &mut Dice| (0..2 + dice.roll(8)).map(|_| char::from(b'a' + dice.roll(26) as u8)).collect();
        Self { words: (0..4_000).map(|_| word(&mut dice)).collect(), dice }
    }

    /// A text of about so many bytes.
    fn text(&mut self, bytes: usize) -> String {
        let mut text = String::with_capacity(bytes + 12);
        while text.len() < bytes {
            // The product of two throws: low numbers come often.
            let place = self.dice.roll(64) * self.dice.roll(63);
            text.push_str(&self.words[place as usize]);
            text.push(if self.dice.roll(12) == 0 { '\n' } else { ' ' });
        }
        text
    }
}

/// Entries in the order in which they come, one `Vec` a batch.
fn batches(calls: Calls, now: i64) -> Vec<Request> {
    let mut words = Words::new();
    let mut number = 0;
    let mut entry = |who: &str, request: &Value, answer: &Value| {
        number += 1;
        json!({
            "request": {"id": format!("{number:032x}"), "uri": "/v1/chat/completions", "method": "POST", "size": 1,
                "headers": {"user-agent": "agent/1.0", "content-type": "application/json", "accept": "application/json"},
                "body": request.to_string()},
            "response": {"status": 200, "size": 1, "headers": {"content-type": "application/json"}, "body": answer.to_string()},
            "consumer": {"username": who, "id": "a3c6d78f-9fd9-408f-b316-000000000001"}, "latencies": {"request": 900, "proxy": 890, "kong": 3},
            "client_ip": "10.0.0.7", "started_at": now + number, "upstream_uri": "/v1/chat/completions",
            "llm": {"v": 1, "api": "chat", "stream": false, "seq": number, "worker": "4711-1-ab"},
        })
        .to_string()
    };
    let answered = |message: Value| {
        json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 30_000, "completion_tokens": 100, "total_tokens": 30_100}})
    };
    let mut entries = Vec::new();
    if calls == Calls::Unique {
        for place in 0..UNIQUE {
            let request = json!({"model": "m", "messages": [{"role": "user", "content": words.text(10_000)}]});
            let answer = answered(json!({"role": "assistant", "content": words.text(10_000)}));
            entries.push(entry(&format!("z{}", place % 20), &request, &answer));
        }
    } else {
        let system = json!({"role": "system", "content": words.text(12_000)});
        let tools: Vec<Value> = (0..20)
            .map(|place| {
                json!({"type": "function", "function": {"name": format!("tool_{place}"), "description": words.text(400),
                    "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}}})
            })
            .collect();
        let mut sessions: Vec<Vec<Value>> =
            (0..SESSIONS).map(|_| vec![json!({"role": "user", "content": words.text(300)})]).collect();
        for turn in 0..TURNS {
            for (place, said) in sessions.iter_mut().enumerate() {
                let messages: Vec<Value> = std::iter::once(&system).chain(said.iter()).cloned().collect();
                let id = format!("call_{place}_{turn}");
                let called = json!({"role": "assistant", "content": words.text(200), "tool_calls": [{"id": id, "type": "function",
                    "function": {"name": "tool_1", "arguments": json!({"path": words.text(80)}).to_string()}}]});
                let request = json!({"model": "m", "messages": messages, "tools": tools, "temperature": 0});
                entries.push(entry(&format!("z{place}"), &request, &answered(called.clone())));
                let bytes = 1_000 + words.dice.roll(8_000) as usize;
                said.extend([called, json!({"role": "tool", "tool_call_id": id, "content": words.text(bytes)})]);
                if calls == Calls::Trimmed && said.len() > 2 * REMEMBERED {
                    said.drain(1..3);
                }
            }
        }
    }
    entries.chunks(BATCH).map(|batch| Request::log(format!("[{}]", batch.join(",")), batch.len())).collect()
}

/// What one measurement saw.
struct Seen {
    rows: f64,
    seconds: f64,
    sent_bytes: f64,
    collector_cpu: f64,
    server_cpu: f64,
    stored_bytes: f64,
    read_ms: f64,
}

async fn measure(cluster: &Cluster, calls: Calls, is_whole: bool) -> Seen {
    let database = Database::create_on(&cluster.url()).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_millis() as i64;
    let batches = batches(calls, now);
    let folder = tempfile::tempdir().expect("a folder");
    let collector =
        Process::serve(&["--database-url", &database.url, "--data-dir", folder.path().to_str().expect("a path")]).await;
    let client = database.connect().await;
    wait_until("days have a place for content", Duration::from_secs(30), || async {
        client.query_one("SELECT count(*) FROM llm_content_days", &[]).await.is_ok_and(|row| row.get::<_, i64>(0) > 7)
    })
    .await;
    if is_whole {
        // A day whose content was removed has no place for any: its rows are stored whole, as before there was one.
        let whole = "DO $$ DECLARE name text; BEGIN
            FOR name IN SELECT partition FROM llm_partition_days WHERE day IS NOT NULL LOOP
                EXECUTE format('COMMENT ON TABLE %I IS ''Content removed for a benchmark''', name);
            END LOOP;
            PERFORM llm_drop_content(day) FROM llm_content_days;
        END $$";
        client.batch_execute(whole).await.expect("rows are stored whole");
    }
    client.batch_execute("CHECKPOINT").await.expect("a checkpoint");
    let (own, server) = (cpu::of_process(collector.pid()), cpu::Server::now(&cluster.pids()));
    let address = collector.url.trim_start_matches("http://").to_owned();
    let sent = tokio::task::block_in_place(|| send(&address, batches.iter(), CONNECTIONS, Duration::from_secs(120)));
    let rows = client.query_one("SELECT count(*), count(contents) FROM llm_logs", &[]).await.expect("a count");
    assert_eq!(rows.get::<_, i64>(0) as u64, sent.entries, "rows of the entries that were acknowledged");
    assert_eq!(rows.get::<_, i64>(1) == 0, is_whole, "rows are stored as they are to be");
    let collector_cpu = cpu::of_process(collector.pid()) - own;
    let server_cpu = cpu::Server::now(&cluster.pids()).since(server).sessions;
    let size = "SELECT (SELECT sum(bytes) FROM llm_partitions)::bigint + pg_total_relation_size('llm_turns')";
    let stored_bytes = client.query_one(size, &[]).await.expect("a size").get::<_, i64>(0) as f64;
    let newest = "SELECT request_id FROM llm_logs ORDER BY started_at DESC LIMIT 1";
    let id: String = client.query_one(newest, &[]).await.expect("a row").get(0);
    client.batch_execute("ANALYZE").await.expect("statistics");
    let read = "SELECT llm_raw_log(l)::text FROM llm_logs l WHERE request_id = $1";
    let mut times: Vec<f64> = Vec::new();
    for _ in 0..21 {
        let began = Instant::now();
        let text: String = client.query_one(read, &[&id]).await.expect("an entry").get(0);
        times.push(began.elapsed().as_secs_f64() * 1e3);
        assert!(text.len() > 10_000 && !text.contains("\"missing\""));
    }
    times.sort_by(f64::total_cmp);
    collector.signal("TERM");
    collector.finished().await;
    Seen {
        rows: sent.entries as f64,
        seconds: sent.seconds,
        sent_bytes: sent.bytes as f64,
        collector_cpu,
        server_cpu,
        stored_bytes,
        read_ms: times[times.len() / 2],
    }
}

/// Measures everything, round after round, and prints a table.
pub(crate) async fn run(rounds: usize) {
    let cluster = Cluster::start(&["autovacuum=off"]).unwrap_or_else(|error| panic!("no PostgreSQL: {error}"));
    println!("load average {:.1}; CPU of collector and of PostgreSQL's sessions in microseconds a call", cpu::load_average());
    println!("calls            stored  round  KB a call  calls/s  collector  PostgreSQL  bytes stored  read back ms");
    for round in 1..=rounds {
        for calls in [Calls::Agents, Calls::Trimmed, Calls::Unique] {
            for is_whole in [true, false] {
                let seen = measure(&cluster, calls, is_whole).await;
                println!(
                    "{:<16} {:<7} {round:>5} {:>10.1} {:>8.0} {:>10.0} {:>11.0} {:>13.0} {:>13.1}",
                    calls.name(),
                    if is_whole { "whole" } else { "apart" },
                    seen.sent_bytes / seen.rows / 1e3,
                    seen.rows / seen.seconds,
                    seen.collector_cpu / seen.rows * 1e6,
                    seen.server_cpu / seen.rows * 1e6,
                    seen.stored_bytes / seen.rows,
                    seen.read_ms,
                );
            }
        }
    }
}
