//! Sends batches as Kong's workers do: each over its own connection, the next one when the last one was answered.
//!
//! Plain sockets and threads, and bodies made beforehand: the sender shares the cores with what it measures.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A body of `POST /log` and the number of its entries.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) body: String,
    pub(crate) entries: usize,
}

/// What was sent and answered with 200.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
}

/// Sends `batches` to `address` over `connections` connections, for no longer than `limit`.
pub(crate) fn send(address: &str, batches: &[Batch], connections: usize, limit: Duration) -> Sent {
    let next = AtomicUsize::new(0);
    let (entries, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                let mut connection = None;
                while started.elapsed() < limit
                    && let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    post(&mut connection, address, &batch.body);
                    entries.fetch_add(batch.entries as u64, Ordering::Relaxed);
                    bytes.fetch_add(batch.body.len() as u64, Ordering::Relaxed);
                }
            });
        }
    });
    Sent { entries: entries.into_inner(), bytes: bytes.into_inner(), seconds: started.elapsed().as_secs_f64() }
}

/// One request; the connection is kept unless the server closes it. Anything but 200 ends the benchmark: it would count what
/// was not stored.
fn post(connection: &mut Option<TcpStream>, address: &str, body: &str) {
    let stream = connection.get_or_insert_with(|| {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        stream
    });
    let head = format!(
        "POST /log HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("the request is sent");
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
