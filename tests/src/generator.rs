//! Log entries as Kong's http-log sends them, made up but realistic: what benchmarks and load tests send.
//!
//! The mix is that of an office with one model server: half of the calls stream; prompts are around 3 KB and up to 30 KB, streams
//! up to 60 KB; a few users make most of the calls (Zipf); a third of the text is Chinese; some calls use tools, some fail, some
//! clients go away. Shapes are copied from the recordings under `fixtures`, down to the null members that vLLM writes.
//!
//! Deterministic: one seed gives the same bytes again. Fast: the bodies of a few hundred calls are made once, in
//! base64 as the plugin logs them, and an entry puts a new head (request id, user, times, sequence number) around one of them.
//! No two entries share a request id; every worker numbers its entries from 1 without a hole.
//!
//! Knows nothing of the rest of this crate, because the benchmark of `decode` includes the file as it stands.
#![allow(clippy::indexing_slicing, reason = "test equipment fails by panicking")]

// The paths are written out, because a file that is included is otherwise searched for beside this one.
#[path = "generator/agent.rs"]
mod agent;
#[path = "generator/bodies.rs"]
mod bodies;
#[path = "generator/random.rs"]
mod random;
#[path = "generator/text.rs"]
mod text;

use std::fmt::Write;
use std::sync::Arc;

use agent::Agent;
use bodies::Exchange;
use random::Random;

/// What is to be generated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// One seed, one sequence of entries.
    pub seed: u64,
    /// `started_at` of the first entry, in milliseconds since 1970. The others follow a few milliseconds apart.
    pub started_at_ms: i64,
    /// Users; the n-th makes 1/n^1.1 of the calls that the first makes.
    pub users: usize,
    /// Teams, which the users are in by turns; none: nobody is in any.
    pub teams: &'static [&'static str],
    /// Workers of Kong, which the entries come from in turn.
    pub workers: usize,
    /// Calls whose bodies are made, to be used over and over.
    pub bodies: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { seed: 1, started_at_ms: 1_795_402_800_000, users: 200, teams: &[], workers: 8, bodies: 400 }
    }
}

/// Makes entries.
#[derive(Debug)]
pub struct Generator {
    random: Random,
    exchanges: Vec<Arc<Exchange>>,
    teams: &'static [&'static str],
    /// Users with the sum of their own and all earlier weights.
    users: Vec<(String, f64)>,
    workers: Vec<Worker>,
    started_at_ms: i64,
    made: u64,
}

/// An entry, and what its row has to say.
#[derive(Debug)]
pub struct Made {
    /// The entry, as JSON.
    pub json: String,
    /// Who called; none: the key was wrong.
    pub user: Option<String>,
    /// When, in milliseconds since 1970.
    pub started_at_ms: i64,
    /// Tokens of the prompt and of the answer that the model server reported; 0 where it reported none.
    pub tokens: (u64, u64),
}

#[derive(Debug)]
struct Worker {
    identity: String,
    seq: u64,
}

impl Generator {
    /// Makes the bodies; takes some tens of milliseconds.
    pub fn new(settings: &Settings) -> Self {
        let mut random = Random::new(settings.seed);
        let exchanges = (0..settings.bodies.max(1)).map(|_| Arc::new(Exchange::new(&mut random))).collect();
        let mut sum = 0.0;
        let users = (1..=settings.users.max(1)).map(|rank| {
            sum += (rank as f64).powf(-1.1);
            (format!("z{:06}", 100_000 + rank), sum)
        });
        let users = users.collect();
        let workers = (0..settings.workers.max(1)).map(|number| {
            let identity = format!("{}-{}-{:08x}", 30_113 + number, settings.started_at_ms - 3_600_000, random.next() as u32);
            Worker { identity, seq: 0 }
        });
        let workers = workers.collect();
        let teams = settings.teams;
        Self { random, exchanges, teams, users, workers, started_at_ms: settings.started_at_ms, made: 0 }
    }

    /// The next entry.
    pub fn entry(&mut self) -> String {
        let mut out = String::new();
        self.write_entry(&mut out);
        out
    }

    /// The next `count` entries, as the body of one `POST /log`.
    pub fn batch(&mut self, count: usize) -> String {
        let mut out = String::from("[");
        for position in 0..count {
            if position > 0 {
                out.push(',');
            }
            self.write_entry(&mut out);
        }
        out.push(']');
        out
    }

    /// Appends the next entry to `out`.
    pub fn write_entry(&mut self, out: &mut String) {
        let exchange = self.draw();
        self.started_at_ms += self.random.between(0, 4) as i64;
        let point = self.point();
        self.write(out, &exchange, point);
    }

    /// The next entry, of a call at this time.
    pub fn entry_at(&mut self, started_at_ms: i64) -> Made {
        let exchange = self.draw();
        let point = self.point();
        self.made_at(started_at_ms, &exchange, point)
    }

    /// An agent at work for the `rank`-th user (from 0): calls that begin at this time and follow each other.
    pub fn agent_session(&mut self, rank: usize, started_at_ms: i64, steps: usize) -> Vec<Made> {
        let point = self.users.get(rank).map_or(0.0, |(_, sum)| *sum);
        let mut agent = Agent::new(&mut self.random);
        let mut at = started_at_ms;
        let mut session = Vec::with_capacity(steps);
        for left in (0..steps).rev() {
            let exchange = agent.step(&mut self.random, left == 0);
            session.push(self.made_at(at, &exchange, point));
            // It runs a command, then asks again.
            at += exchange.milliseconds as i64 + self.random.between(2_000, 15_000) as i64;
        }
        session
    }

    fn draw(&mut self) -> Arc<Exchange> {
        let draw = self.random.below(self.exchanges.len());
        Arc::clone(&self.exchanges[draw])
    }

    /// Where among the summed weights of the users a call falls.
    fn point(&mut self) -> f64 {
        self.random.fraction() * self.users.last().map_or(0.0, |(_, sum)| *sum)
    }

    fn made_at(&mut self, started_at_ms: i64, exchange: &Exchange, point: f64) -> Made {
        self.started_at_ms = started_at_ms;
        let mut json = String::new();
        let rank = self.write(&mut json, exchange, point);
        let user = exchange.is_known_user.then(|| self.users[rank].0.clone());
        Made { json, user, started_at_ms, tokens: exchange.tokens }
    }

    /// Appends an entry, and tells whose it is.
    fn write(&mut self, out: &mut String, exchange: &Exchange, point: f64) -> usize {
        let worker_number = self.made as usize % self.workers.len();
        let worker = &mut self.workers[worker_number];
        worker.seq += 1;
        self.made += 1;
        let rank = self.users.partition_point(|(_, sum)| *sum < point).min(self.users.len() - 1);
        let user = self.users[rank].0.as_str();
        let head = Head {
            request_id: format!("{:016x}{:016x}", self.random.next(), self.made),
            user,
            team: (!self.teams.is_empty()).then(|| self.teams[rank % self.teams.len()]),
            consumer_id: format!("a3c6d78f-9fd9-408f-b316-{:0>12}", user.trim_start_matches('z')),
            started_at_ms: self.started_at_ms,
            client: 2 + (point * 1e6) as u64 % 250,
            worker: &worker.identity,
            seq: worker.seq,
            ttft_ms: 40 + self.random.between(0, 400),
        };
        head.write(out, exchange);
        rank
    }
}

/// What is new in every entry.
struct Head<'g> {
    request_id: String,
    user: &'g str,
    team: Option<&'g str>,
    consumer_id: String,
    started_at_ms: i64,
    client: u64,
    worker: &'g str,
    seq: u64,
    ttft_ms: u64,
}

impl Head<'_> {
    /// Members in the order in which one running Kong wrote them.
    fn write(&self, out: &mut String, exchange: &Exchange) {
        let Exchange { path, status, stream, aborted, content_type, request, response, .. } = exchange;
        let Head { request_id, user, team, consumer_id, started_at_ms: started, client, worker, seq, ttft_ms } = self;
        let from_model = exchange.is_from_model;
        let took_ms = ttft_ms + exchange.milliseconds;
        let mut put = |text: std::fmt::Arguments<'_>| {
            // Writing to a String cannot fail.
            let _ = out.write_fmt(text);
        };
        put(format_args!("{{"));
        if exchange.is_known_user {
            let tags = team.map_or_else(String::new, |team| format!(r#","tags":["team:{team}"]"#));
            put(format_args!(
                r#""authenticated_entity":{{"id":"{consumer_id}"}},"consumer":{{"id":"{consumer_id}","username":"{user}","created_at":1795402816,"updated_at":1795402816{tags}}},"#
            ));
        }
        put(format_args!(
            r#""started_at":{started},"upstream_status":"{}","workspace_name":"default","#,
            if from_model { status.to_string() } else { String::new() }
        ));
        put(format_args!("{ROUTE},"));
        if from_model {
            put(format_args!(
                r#""tries":[{{"balancer_start":{started},"balancer_start_ns":{}e+18,"ip":"127.0.0.1","balancer_latency":0,"port":8000,"balancer_latency_ns":28672}}],"#,
                *started as f64 / 1e12
            ));
        } else {
            put(format_args!(r#""tries":{{}},"#));
        }
        put(format_args!(
            r#""workspace":"0c9d3a77-e8a6-4187-9315-b899d7150be9","client_ip":"10.20.30.{client}","source":"{}","response":{{"size":{},"status":{status},"headers":{{"connection":"close","server":"uvicorn","x-kong-proxy-latency":"1","vary":"Origin","x-kong-upstream-latency":"{ttft_ms}","transfer-encoding":"chunked","x-kong-request-id":"{request_id}","via":"1.1 kong/3.9.3","ratelimit-limit":"100000","ratelimit-reset":"2588","x-ratelimit-limit-hour":"100000","x-ratelimit-remaining-hour":"{}","content-type":"{content_type}","ratelimit-remaining":"{}"}},"body":"{response}"}},"#,
            if from_model { "upstream" } else { "kong" },
            exchange.response_bytes + 620,
            100_000 - seq % 100_000,
            100_000 - seq % 100_000,
        ));
        put(format_args!(
            r#"{SERVICE},"upstream_uri":"{path}","llm":{{"stream":{stream},"seq":{seq},"worker":"{worker}","v":1,"ttft_ms":{ttft_ms},"request_bytes":{},"response_bytes":{},"request_truncated":false,"response_truncated":false,"aborted":{aborted}}},"#,
            exchange.request_bytes, exchange.response_bytes
        ));
        put(format_args!(
            r#""latencies":{{"kong":1,"request":{took_ms},"proxy":{},"receive":{}}},"#,
            if from_model { *ttft_ms as i64 } else { -1 },
            exchange.milliseconds
        ));
        put(format_args!(
            r#""request":{{"id":"{request_id}","querystring":{{}},"method":"POST","headers":{{{SDK_HEADERS},"content-length":"{}","x-consumer-id":"{consumer_id}","authorization":"REDACTED","content-type":"application/json","x-consumer-username":"{user}"}},"url":"http://gateway.example:8111{path}","uri":"{path}","size":{},"body":"{request}"}}}}"#,
            exchange.request_bytes,
            exchange.request_bytes + 840,
        ));
    }
}

const ROUTE: &str = r#""route":{"name":"vllm-route","created_at":1795402302,"updated_at":1795402302,"paths":["/"],"preserve_host":false,"id":"33cf625f-241c-479d-8986-c7b9d50eb4ab","protocols":["http","https"],"service":{"id":"14dc9acb-8ccc-43ec-918a-0b81971c29c3"},"strip_path":true,"ws_id":"0c9d3a77-e8a6-4187-9315-b899d7150be9","path_handling":"v0","request_buffering":true,"response_buffering":true,"https_redirect_status_code":426,"regex_priority":0}"#;

const SERVICE: &str = r#""service":{"connect_timeout":5000,"read_timeout":300000,"name":"vllm-service","created_at":1795402302,"updated_at":1795402816,"id":"14dc9acb-8ccc-43ec-918a-0b81971c29c3","write_timeout":60000,"host":"127.0.0.1","port":8000,"ws_id":"0c9d3a77-e8a6-4187-9315-b899d7150be9","enabled":true,"retries":5,"protocol":"http"}"#;

const SDK_HEADERS: &str = r#""x-stainless-os":"Linux","x-stainless-arch":"x64","x-stainless-runtime":"CPython","x-stainless-runtime-version":"3.11.7","host":"gateway.example:8111","x-stainless-retry-count":"0","x-stainless-read-timeout":"120","accept":"application/json","user-agent":"OpenAI/Python 3.54.0","x-stainless-package-version":"3.54.0","x-stainless-lang":"python","x-stainless-async":"false""#;
