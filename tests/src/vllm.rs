//! A simulated vLLM. Test equipment: it has no model, it says so, and nobody should point users at it.
//!
//! It answers with the recorded exchanges of `tests/fixtures/vllm`, HTTP chunk by HTTP chunk, in the recorded time or a multiple
//! of it. Which recording: the one that `x-fixture: NAME` names, else one with the same request, else one whose request differs
//! in `stream_options` only; a chat that was never recorded is echoed. A streamed completion has its usage event when, and only
//! when, the request asks for it, as from a real server, whatever was recorded. [`directives`] disturb an answer: late, slow,
//! stalled, torn.
//!
//! `GET /_seen` gives the requests that reached it, `DELETE /_seen` forgets them.

mod answer;
mod directives;
mod generated;
mod http;
mod recording;
mod seen;
mod usage;

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use answer::{Answer, End, Framing};
use directives::Directives;
use http::{Connection, Request};
use recording::Recordings;
use seen::Log;
pub use seen::{Ended, Seen};

/// What it says of itself.
pub const SERVER: &str = "simulated-vllm";

/// How it is to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Factor on recorded times: 1 as recorded, 0 at once.
    pub time_scale: f64,
}

/// A running one. It ends when this is dropped, with all that it was at: as a process that is killed.
#[derive(Debug)]
pub struct SimulatedVllm {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    recordings: Recordings,
    log: Log,
    time_scale: f64,
}

impl SimulatedVllm {
    /// Listens and answers.
    pub async fn start(settings: Settings) -> Result<Self> {
        let listener = TcpListener::bind(settings.listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            recordings: Recordings::read(&crate::fixtures::vllm()),
            log: Log::default(),
            time_scale: settings.time_scale,
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests that reached it and that a test is after.
    pub fn seen(&self, wanted: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        self.shared.log.find(wanted)
    }
}

impl Drop for SimulatedVllm {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Its connections end with it.
    let mut connections = JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of file descriptors, most likely: those that are open will be closed.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let shared = Arc::clone(&shared);
        while connections.try_join_next().is_some() {}
        // An error is a client that went away, which is no news here.
        connections.spawn(async move { serve(stream, &shared).await });
    }
}

async fn serve(stream: TcpStream, shared: &Shared) -> Result<()> {
    let mut connection = Connection::new(stream)?;
    while let Some(request) = connection.read_request().await? {
        let started = Instant::now();
        let keep_alive = request.keep_alive;
        if request.path() == "/_seen" {
            answer_for_tests(&mut connection, &request, shared).await?;
        } else {
            let number = shared.log.request(&request);
            let (answer, directives) = choose(&request, shared);
            shared.log.update(number, |seen| {
                seen.status = Some(answer.status);
                seen.recording.clone_from(&answer.recording);
            });
            let mut sending = Sending { connection, request: &request, directives, time_scale: shared.time_scale, started };
            let mut sent = Vec::new();
            let outcome = sending.send(&answer, &mut sent).await;
            let end = match &outcome {
                Ok(true) => Ended::Complete,
                Ok(false) => Ended::Broken,
                Err(_) => Ended::ClientGone,
            };
            sent.truncate(seen::capped(&sent).len());
            shared.log.ended(number, sent, end);
            connection = sending.connection;
            if !outcome? {
                let reset = sending.directives.breaks.is_some_and(|breaks| breaks.reset);
                return if reset { connection.reset() } else { Ok(()) };
            }
        }
        if !keep_alive {
            break;
        }
    }
    Ok(())
}

async fn answer_for_tests(connection: &mut Connection, request: &Request, shared: &Shared) -> Result<()> {
    let answer = match request.method.as_str() {
        "DELETE" => {
            shared.log.clear();
            Answer::json(200, &serde_json::json!({}))
        }
        _ => Answer::json(200, &shared.log.to_json()),
    };
    let body = answer.chunks.first().map(|chunk| chunk.data.clone()).unwrap_or_default();
    connection.send(&head(&answer, request)).await?;
    connection.send(&body).await
}

/// The answer to a request.
fn choose(request: &Request, shared: &Shared) -> (Answer, Directives) {
    let directives = match Directives::of(request) {
        Ok(directives) => directives,
        Err(wrong) => return (Answer::error(400, &format!("no such directive: {wrong}")), Directives::default()),
    };
    let Request { method, target, body, .. } = request;
    let recorded = match &directives.fixture {
        Some(name) => match shared.recordings.named(name) {
            Some(answer) => Some(answer),
            None => return (Answer::error(400, &format!("no such recording: {name}")), directives),
        },
        None => shared.recordings.matching(method, target, body),
    };
    let repeat = directives.repeat;
    let mut answer = match recorded {
        Some(mut answer) => {
            answer.repeat(repeat);
            answer
        }
        None => generated::answer(method, request.path(), body, repeat, directives.stamp),
    };
    if method == "HEAD" {
        answer.chunks.clear();
    }
    let has_usage_event = matches!(request.path(), "/v1/chat/completions" | "/v1/completions");
    if has_usage_event
        && answer.is_event_stream()
        && let Some(wanted) = usage::is_wanted(body)
    {
        let counted = |chunks: &[answer::Chunk]| usage::counted(chunks, body);
        usage::adapt(&mut answer, wanted, |chunks| {
            let known = shared.recordings.usage(method, target, body);
            known.filter(|_| repeat == 1).unwrap_or_else(|| counted(chunks))
        });
    }
    (answer, directives)
}

/// Status line and headers.
fn head(answer: &Answer, request: &Request) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {} {}\r\n", answer.status, answer.reason);
    for (name, value) in &answer.headers {
        let value = if name.eq_ignore_ascii_case("server") { SERVER } else { value };
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if http::header(&answer.headers, "server").is_none() {
        head.push_str(&format!("server: {SERVER}\r\n"));
    }
    match answer.framing {
        Framing::Length(length) => head.push_str(&format!("content-length: {length}\r\n")),
        Framing::Chunked if request.takes_chunks => head.push_str("transfer-encoding: chunked\r\n"),
        Framing::Chunked => {}
    }
    if !request.keep_alive {
        head.push_str("connection: close\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// An answer on its way.
struct Sending<'r> {
    connection: Connection,
    request: &'r Request,
    directives: Directives,
    time_scale: f64,
    started: Instant,
}

impl Sending<'_> {
    /// Sends it, noting the body. True when all is sent, false when the connection is to be torn as a directive says, an error
    /// when the client went.
    async fn send(&mut self, answer: &Answer, sent: &mut Vec<u8>) -> Result<bool> {
        self.connection.split = self.directives.split;
        if answer.end == End::Never && answer.chunks.is_empty() {
            return self.wait_for_the_client_to_go().await;
        }
        let chunked = answer.framing == Framing::Chunked && self.request.takes_chunks;
        self.connection.wait_until(self.due(answer.headers_at_ms, 0)).await?;
        let mut out = head(answer, self.request);
        if answer.framing == Framing::Chunked {
            self.connection.send(&out).await?;
            out.clear();
        }
        for (n, chunk) in answer.chunks.iter().enumerate() {
            if self.directives.stall_after == Some(n) {
                self.connection.send(&out).await?;
                return self.wait_for_the_client_to_go().await;
            }
            let due = self.due(chunk.at_ms, n);
            if due > Instant::now() && !out.is_empty() {
                self.connection.send(&out).await?;
                out.clear();
            }
            self.connection.wait_until(due).await?;
            let data = self.stamped(&chunk.data);
            if chunked {
                out.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
            }
            if let Some(breaks) = self.directives.breaks.filter(|breaks| breaks.after == n) {
                let half = if breaks.in_the_middle { data.slice(..data.len().div_ceil(2)) } else { Bytes::new() };
                if breaks.in_the_middle {
                    out.extend_from_slice(&half);
                    sent.extend_from_slice(&half);
                    self.connection.send(&out).await?;
                }
                return self.tear().await;
            }
            out.extend_from_slice(&data);
            if chunked {
                out.extend_from_slice(b"\r\n");
            }
            self.connection.send(&out).await?;
            out.clear();
            sent.extend_from_slice(&data);
        }
        if !out.is_empty() {
            self.connection.send(&out).await?;
        }
        if self.directives.stall_after == Some(answer.chunks.len()) {
            return self.wait_for_the_client_to_go().await;
        }
        if self.directives.breaks.is_some_and(|breaks| breaks.after == answer.chunks.len()) {
            return self.tear().await;
        }
        match answer.end {
            End::Never => self.wait_for_the_client_to_go().await,
            End::Complete if chunked => self.connection.send(b"0\r\n\r\n").await.map(|()| true),
            // A body without length or chunks ends with the connection, which HTTP/1.0 closes anyway.
            End::Complete => Ok(true),
        }
    }

    fn due(&self, at_ms: f64, chunk: usize) -> Instant {
        let directives = &self.directives;
        let at = match directives.chunk_delay {
            Some(delay) => delay * u32::try_from(chunk).expect("a number of chunks"),
            None => Duration::from_secs_f64(at_ms * directives.time_scale.unwrap_or(self.time_scale) / 1000.0),
        };
        self.started + directives.delay + at
    }

    /// The event with the time of now where one is wanted.
    fn stamped(&self, data: &Bytes) -> Bytes {
        let place = || memchr::memmem::find(data, generated::STAMP.as_bytes());
        let Some(at) = self.directives.stamp.then(place).flatten() else { return data.clone() };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros());
        let mut stamped = data.to_vec();
        stamped[at..at + generated::STAMP.len()].copy_from_slice(format!("\"sent_at_us\":{now:016}").as_bytes());
        stamped.into()
    }

    /// A reset discards what the other side has not read yet: lets it read first.
    async fn tear(&mut self) -> Result<bool> {
        self.connection.wait_until(Instant::now() + Duration::from_millis(50)).await?;
        Ok(false)
    }

    async fn wait_for_the_client_to_go(&mut self) -> Result<bool> {
        // Longer than any time-out of a gateway.
        self.connection.wait_until(Instant::now() + Duration::from_secs(3600)).await?;
        Err(Error::from(ErrorKind::TimedOut))
    }
}
