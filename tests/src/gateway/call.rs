//! A call to the gateway, and what came of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::Session;
use crate::process::wait_until;
use crate::vllm::Seen;

/// Marks a call on its way to the model server.
const MARK: &str = "x-e2e-call";
static CALLS: AtomicU64 = AtomicU64::new(0);

/// A call to be made.
#[derive(Debug)]
#[must_use]
pub struct Call<'s> {
    session: &'s Session,
    method: reqwest::Method,
    path: String,
    headers: HeaderMap,
    body: Option<Bytes>,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as far as it came.
    pub body: Bytes,
    /// Why the body ended too early.
    pub broken: Option<String>,
    mark: String,
}

impl<'s> Call<'s> {
    pub(super) fn new(session: &'s Session, path: &str) -> Self {
        let mark = format!("{}-{}", std::process::id(), CALLS.fetch_add(1, Ordering::Relaxed));
        let headers = HeaderMap::from_iter([(HeaderName::from_static(MARK), HeaderValue::try_from(mark).expect("a number"))]);
        Self { session, method: reqwest::Method::GET, path: path.to_owned(), headers, body: None }
    }

    /// With a key as OpenAI's SDKs send it.
    pub fn key(self, key: &str) -> Self {
        self.header("authorization", &format!("Bearer {key}"))
    }

    /// With a header.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.header_bytes(name, value.as_bytes())
    }

    /// With a header of any bytes.
    pub fn header_bytes(mut self, name: &str, value: &[u8]) -> Self {
        self.headers
            .insert(HeaderName::try_from(name).expect("a header name"), HeaderValue::from_bytes(value).expect("a header value"));
        self
    }

    /// `POST` with a JSON body.
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        self.header("content-type", "application/json").raw_body(body)
    }

    /// `POST` with a body and no content type.
    pub fn raw_body(mut self, body: impl Into<Bytes>) -> Self {
        self.method = reqwest::Method::POST;
        self.body = Some(body.into());
        self
    }

    /// With another method.
    pub fn method(mut self, method: &str) -> Self {
        self.method = method.parse().expect("a method");
        self
    }

    /// What finds the call at the model server when there is no answer.
    pub fn mark(&self) -> String {
        self.headers[MARK].to_str().expect("a text").to_owned()
    }

    /// Makes it and reads the head of the answer.
    pub async fn open(self) -> reqwest::Result<reqwest::Response> {
        let url = format!("{}{}", self.session.gateway.proxy_url, self.path);
        let mut request = self.session.client.request(self.method, url).headers(self.headers);
        if let Some(body) = self.body {
            request = request.body(body);
        }
        request.send().await
    }

    /// Makes it and reads all of the answer, or as much as comes.
    pub async fn send(self) -> Reply {
        let mark = self.mark();
        let mut response = self.open().await.unwrap_or_else(|error| panic!("no answer: {error:?}"));
        let mut body = Vec::new();
        let broken = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break None,
                Err(error) => break Some(format!("{error:?}")),
            }
        };
        Reply { status: response.status().as_u16(), headers: response.headers().clone(), body: body.into(), broken, mark }
    }
}

impl Reply {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {} {}", self.status, self.text()))
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Kong's id of the call, the same as in its row.
    pub fn request_id(&self) -> &str {
        self.header("x-kong-request-id").unwrap_or_else(|| panic!("no request id: {self:?}"))
    }

    /// Its row, once it is there.
    pub async fn row(&self, session: &Session) -> Value {
        session.row(self.request_id()).await
    }

    /// The requests that the gateway made of it: one, or none.
    pub fn seen(&self, session: &Session) -> Vec<Seen> {
        session.gateway.seen(|seen| seen.header(MARK) == Some(&self.mark))
    }

    /// The one request that the gateway made of it, once all is known of its answer.
    pub async fn seen_once(&self, session: &Session) -> Seen {
        // The client may have the last byte before it is noted.
        wait_until("the answer is noted", Duration::from_secs(5), || async {
            self.seen(session).iter().all(|seen| seen.end.is_some())
        })
        .await;
        let mut seen = self.seen(session);
        assert_eq!(seen.len(), 1, "{self:?}");
        seen.remove(0)
    }
}
