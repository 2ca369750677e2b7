//! An answer before it is sent: what, in which pieces, when.

use bytes::Bytes;
use serde_json::{Value, json};

/// An answer.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) reason: String,
    /// Without those of the connection (length, framing, date stays).
    pub(super) headers: Vec<(String, String)>,
    pub(super) framing: Framing,
    pub(super) headers_at_ms: f64,
    pub(super) chunks: Vec<Chunk>,
    pub(super) end: End,
    /// The recording that it comes from.
    pub(super) recording: Option<String>,
}

/// One HTTP chunk, or a piece of a body of known length.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chunk {
    /// Since the request.
    pub(super) at_ms: f64,
    pub(super) data: Bytes,
}

/// How the client knows where the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// `Content-Length`, of this many bytes: `HEAD` announces what it does not send.
    Length(usize),
    Chunked,
}

/// What comes behind the last chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Complete,
    /// Nothing: in the recording it was the client who went.
    Never,
}

impl Answer {
    /// A JSON body.
    pub(super) fn json(status: u16, body: &Value) -> Self {
        Self::text(status, "application/json", body.to_string())
    }

    pub(super) fn text(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let data = body.into();
        Self {
            status,
            reason: reason(status).to_owned(),
            headers: vec![("content-type".to_owned(), content_type.to_owned())],
            framing: Framing::Length(data.len()),
            headers_at_ms: 0.0,
            chunks: vec![Chunk { at_ms: 0.0, data }],
            end: End::Complete,
            recording: None,
        }
    }

    /// An error in vLLM's shape.
    pub(super) fn error(status: u16, message: &str) -> Self {
        let kind = reason(status).replace(' ', "") + "Error";
        Self::json(status, &json!({"error": {"message": message, "type": kind, "param": null, "code": status}}))
    }

    pub(super) fn is_event_stream(&self) -> bool {
        super::http::header(&self.headers, "content-type").is_some_and(|kind| kind.starts_with("text/event-stream"))
    }

    /// The second chunk (in a stream: the first text) `times` times; the length follows.
    pub(super) fn repeat(&mut self, times: usize) {
        if self.chunks.len() < 2 || times == 1 {
            return;
        }
        let again = vec![self.chunks[1].clone(); times];
        self.chunks.splice(1..2, again);
        if let Framing::Length(length) = &mut self.framing {
            *length = self.chunks.iter().map(|chunk| chunk.data.len()).sum();
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        _ => "Other",
    }
}
