//! Sends requests over connections of their own, the next one when the last one was answered: batches as Kong's workers do, and
//! calls as users do.
//!
//! Plain sockets and threads, and requests made beforehand: the sender shares the cores with what it measures.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A request, and the number of log entries that it holds or makes.
#[derive(Debug)]
pub(crate) struct Request {
    head: String,
    body: String,
    entries: usize,
}

impl Request {
    /// `POST /log` of so many entries.
    pub(crate) fn log(body: String, entries: usize) -> Self {
        Self::post("/log", "", body, entries)
    }

    /// `POST` with further headers, each with its line end.
    pub(crate) fn post(path: &str, headers: &str, body: String, entries: usize) -> Self {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        Self { head, body, entries }
    }
}

/// What was sent and answered with 200.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
}

/// Sends `requests` to `address` over `connections` connections, for no longer than `limit`.
pub(crate) fn send<'r>(
    address: &str,
    requests: impl Iterator<Item = &'r Request> + Send,
    connections: usize,
    limit: Duration,
) -> Sent {
    let requests = Mutex::new(requests);
    let (entries, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                let mut connection = None;
                loop {
                    let request = requests.lock().expect("the others live").next();
                    let Some(request) = request.filter(|_| started.elapsed() < limit) else { break };
                    exchange(&mut connection, address, request);
                    entries.fetch_add(request.entries as u64, Ordering::Relaxed);
                    bytes.fetch_add(request.body.len() as u64, Ordering::Relaxed);
                }
            });
        }
    });
    Sent { entries: entries.into_inner(), bytes: bytes.into_inner(), seconds: started.elapsed().as_secs_f64() }
}

/// One request; the connection is kept unless the server closes it. Anything but 200 ends the benchmark: it would count what
/// was not stored.
fn exchange(connection: &mut Option<TcpStream>, address: &str, request: &Request) {
    let stream = connection.get_or_insert_with(|| {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        stream
    });
    stream
        .write_all(request.head.as_bytes())
        .and_then(|()| stream.write_all(request.body.as_bytes()))
        .expect("the request is sent");
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    let (head, length) = loop {
        let read = stream.read(&mut buffer).expect("an answer");
        answer.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
            if body.len() >= length.expect("an answer with its length") {
                break (head, answer.len());
            }
        }
        assert!(read > 0, "the answer breaks off: {text}");
    };
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    assert_eq!(status, "200", "{} bytes of answer: {}", length, String::from_utf8_lossy(&answer));
    if head.starts_with("http/1.0") || head.contains("connection: close") {
        *connection = None;
    }
}
