//! What reached the simulated vLLM, so that tests can say what must not.

use std::collections::VecDeque;
use std::sync::Mutex;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::http::{Request, header};

/// Enough for a test run; older requests make room.
const MAX_REQUESTS: usize = 20_000;
/// Of one body. The hash is of all of it.
const MAX_BODY_BYTES: usize = 1 << 20;

/// A request and what came of it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its number, from 1.
    pub number: u64,
    /// Its method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// All headers.
    pub headers: Vec<(String, String)>,
    /// The body's first MiB.
    pub body: Vec<u8>,
    /// The body's size.
    pub body_bytes: usize,
    /// The body's SHA-256, hexadecimal.
    pub body_sha256: String,
    /// The recording that answered.
    pub recording: Option<String>,
    /// The status of the answer, once there is one.
    pub status: Option<u16>,
    /// The first MiB of the body that was sent, without chunk framing.
    pub sent: Vec<u8>,
    /// How the answer ended; `None` while it lasts.
    pub end: Option<Ended>,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All of it was sent.
    Complete,
    /// As a directive wanted it.
    Broken,
    /// The client went away.
    ClientGone,
}

impl Seen {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// Everything that was received, in one text.
    pub fn as_text(&self) -> String {
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        format!("{} {}\n{headers}\n{}", self.method, self.target, String::from_utf8_lossy(&self.body))
    }

    fn to_json(&self) -> Value {
        json!({
            "number": self.number, "method": self.method, "target": self.target, "headers": self.headers,
            "body": String::from_utf8_lossy(&self.body), "body_bytes": self.body_bytes, "body_sha256": self.body_sha256,
            "recording": self.recording, "status": self.status, "end": self.end.map(|end| format!("{end:?}")),
        })
    }
}

/// All that was seen.
#[derive(Debug, Default)]
pub(super) struct Log {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    requests: VecDeque<Seen>,
}

impl Log {
    /// Notes a request; returns its number.
    pub(super) fn request(&self, request: &Request) -> u64 {
        let seen = Seen {
            number: 0,
            method: request.method.clone(),
            target: request.target.clone(),
            headers: request.headers.clone(),
            body: capped(&request.body).to_vec(),
            body_bytes: request.body.len(),
            body_sha256: sha256_hex(&request.body),
            recording: None,
            status: None,
            sent: Vec::new(),
            end: None,
        };
        let mut inner = self.inner.lock().expect("the log");
        inner.last += 1;
        let number = inner.last;
        inner.requests.push_back(Seen { number, ..seen });
        if inner.requests.len() > MAX_REQUESTS {
            inner.requests.pop_front();
        }
        number
    }

    /// Changes what is known of a request.
    pub(super) fn update(&self, number: u64, change: impl FnOnce(&mut Seen)) {
        let mut inner = self.inner.lock().expect("the log");
        if let Some(seen) = inner.requests.iter_mut().rev().find(|seen| seen.number == number) {
            change(seen);
        }
    }

    /// Notes how the answer to a request ended.
    pub(super) fn ended(&self, number: u64, sent: Vec<u8>, end: Ended) {
        self.update(number, |seen| {
            seen.sent = sent;
            seen.end = Some(end);
        });
    }

    pub(super) fn find(&self, wanted: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        self.inner.lock().expect("the log").requests.iter().filter(|seen| wanted(seen)).cloned().collect()
    }

    pub(super) fn clear(&self) {
        self.inner.lock().expect("the log").requests.clear();
    }

    pub(super) fn to_json(&self) -> Value {
        self.find(|_| true).iter().map(Seen::to_json).collect()
    }
}

/// What is kept of a body.
pub(super) fn capped(body: &[u8]) -> &[u8] {
    &body[..body.len().min(MAX_BODY_BYTES)]
}

fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
