//! The HTTP edge: `POST /log`, `POST /sync` and the pages for operators. The only place with status codes.
//!
//! Order of a request: token, size as announced, room in memory, then the body, chunk by chunk. Nothing is buffered before it
//! is allowed, and what is buffered is counted until its rows are safe.

mod sync;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use actix_web::web::{self, Data, Payload};
use actix_web::{HttpRequest, HttpResponse, ResponseError};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use log::warn;
use serde_json::json;
use subtle::ConstantTimeEq;

use crate::measure::Metrics;
use crate::pipeline::{Pipeline, PipelineError};
use crate::store::Outcome;

/// How long a body may take to arrive. Kong gives up after 10 s; whoever takes longer holds memory that others need.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Seconds after which a client may try again.
const RETRY_AFTER_SECONDS: &str = "1";

/// What every worker shares.
#[derive(Debug)]
pub struct Receiver {
    /// Where entries go.
    pub pipeline: Pipeline,
    /// The expected `X-Collector-Token`.
    pub token: Option<String>,
    /// Largest request body.
    pub max_body_bytes: usize,
    /// Memory for bodies.
    pub room: Room,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the header X-Collector-Token is missing or wrong")]
    Unauthorized,
    #[error("the body is larger than {0} bytes; lower queue.max_batch_size of http-log or raise --max-body-bytes")]
    TooLarge(usize),
    #[error("the body did not arrive: {0}")]
    Broken(String),
    #[error("the body did not arrive within {BODY_TIMEOUT:?}")]
    TooSlow,
    #[error("{0}")]
    NotABatch(String),
    #[error("too many entries are waiting to be stored; try again")]
    NoRoom,
    #[error("the entries cannot be stored now: {0}")]
    Unavailable(String),
}

impl ResponseError for Refusal {
    fn status_code(&self) -> StatusCode {
        match self {
            Refusal::Unauthorized => StatusCode::UNAUTHORIZED,
            Refusal::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Refusal::Broken(_) | Refusal::NotABatch(_) => StatusCode::BAD_REQUEST,
            Refusal::NoRoom | Refusal::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        if self.status_code() == StatusCode::SERVICE_UNAVAILABLE {
            response.insert_header((RETRY_AFTER, RETRY_AFTER_SECONDS));
        }
        json_body(response, json!({ "error": self.to_string() }))
    }
}

fn json_body(mut response: actix_web::HttpResponseBuilder, body: serde_json::Value) -> HttpResponse {
    response.insert_header((CONTENT_TYPE, "application/json")).body(body.to_string())
}

/// The routes.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(web::resource("/log").route(web::post().to(log_entries)).default_service(web::to(|| async {
            json_body(HttpResponse::MethodNotAllowed(), json!({ "error": "send entries with POST" }))
        })))
        .service(web::resource("/sync").route(web::post().to(sync::tell)))
        .route("/healthz", web::get().to(healthz))
        .route("/readyz", web::get().to(readyz))
        .route("/metrics", web::get().to(metrics))
        .default_service(web::to(|| async {
            json_body(HttpResponse::NotFound(), json!({ "error": "no such page; entries go to POST /log" }))
        }));
}

async fn log_entries(request: HttpRequest, payload: Payload, receiver: Data<Receiver>) -> Result<HttpResponse, Refusal> {
    let outcome = take(&request, payload, &receiver).await.inspect_err(|refusal| {
        warn!(status = refusal.status_code().as_u16(); "refused entries: {refusal}");
    })?;
    let Outcome { stored, duplicates, spooled, rejected } = outcome;
    // Written out, because the contract gives the members in this order and a JSON map would sort them.
    let body = format!(r#"{{"stored":{stored},"duplicates":{duplicates},"spooled":{spooled},"rejected":{rejected}}}"#);
    Ok(HttpResponse::Ok().insert_header((CONTENT_TYPE, "application/json")).body(body))
}

async fn take(request: &HttpRequest, payload: Payload, receiver: &Data<Receiver>) -> Result<Outcome, Refusal> {
    if !is_authorized(request, receiver.token.as_deref()) {
        return Err(Refusal::Unauthorized);
    }
    let (body, place) =
        tokio::time::timeout(BODY_TIMEOUT, read_body(request, payload, receiver)).await.map_err(|_| Refusal::TooSlow)??;
    let receiver = Data::clone(receiver);
    // A task of its own: a client that hangs up must not stop what it began, and its entries count until they are safe.
    let taken = actix_web::rt::spawn(async move {
        let outcome = receiver.pipeline.take(body).await;
        drop(place);
        outcome
    });
    match taken.await {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(PipelineError::Decode(error))) => Err(Refusal::NotABatch(error.to_string())),
        Ok(Err(PipelineError::Store(error))) => Err(Refusal::Unavailable(error.to_string())),
        Err(error) => Err(Refusal::Unavailable(error.to_string())),
    }
}

fn is_authorized(request: &HttpRequest, token: Option<&str>) -> bool {
    let Some(token) = token else { return true };
    // Constant time: how long a wrong token takes must not tell how much of it is right.
    request.headers().get("X-Collector-Token").is_some_and(|sent| bool::from(sent.as_bytes().ct_eq(token.as_bytes())))
}

async fn read_body(request: &HttpRequest, mut payload: Payload, receiver: &Receiver) -> Result<(Bytes, Place), Refusal> {
    let limit = receiver.max_body_bytes;
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(Refusal::TooLarge(limit));
    }
    // All of an announced body is reserved before the first byte is read: bodies that each hold half of what they need, and wait
    // for the rest, would never finish.
    let mut place = receiver.room.reserve(announced.unwrap_or(0)).ok_or(Refusal::NoRoom)?;
    let mut body = BytesMut::with_capacity(place.bytes);
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| Refusal::Broken(error.to_string()))?;
        let length = body.len() + chunk.len();
        if length > limit {
            return Err(Refusal::TooLarge(limit));
        }
        if length > place.bytes && !place.grow(length - place.bytes) {
            return Err(Refusal::NoRoom);
        }
        body.extend_from_slice(&chunk);
    }
    Ok((body.freeze(), place))
}

async fn healthz() -> HttpResponse {
    json_body(HttpResponse::Ok(), json!({ "status": "ok" }))
}

/// Whether entries can be taken, and who takes them.
async fn readyz(receiver: Data<Receiver>) -> HttpResponse {
    match receiver.pipeline.store.taker().await {
        Ok(taker) => json_body(HttpResponse::Ok(), json!({ "status": "ready", "takes": taker })),
        Err(error) => json_body(HttpResponse::ServiceUnavailable(), json!({ "status": "not ready", "error": error.to_string() })),
    }
}

async fn metrics(receiver: Data<Receiver>) -> HttpResponse {
    let metrics = &receiver.pipeline.metrics;
    receiver.pipeline.store.measure_spool();
    match metrics.render() {
        Ok(text) => HttpResponse::Ok()
            .insert_header((CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8"))
            .body(text),
        Err(error) => json_body(HttpResponse::InternalServerError(), json!({ "error": error.to_string() })),
    }
}

/// Memory for request bodies, counted in bytes.
#[derive(Debug, Clone)]
pub struct Room {
    taken: Arc<AtomicUsize>,
    limit: usize,
    metrics: Arc<Metrics>,
}

impl Room {
    /// Room for `limit` bytes.
    pub fn new(limit: usize, metrics: Arc<Metrics>) -> Self {
        Self { taken: Arc::default(), limit, metrics }
    }

    fn reserve(&self, bytes: usize) -> Option<Place> {
        let mut place = Place { bytes: 0, room: self.clone() };
        place.grow(bytes).then_some(place)
    }
}

/// A reserved part of the room; given back when dropped.
#[derive(Debug)]
struct Place {
    bytes: usize,
    room: Room,
}

impl Place {
    /// Reserves more; `false` when there is no room for it.
    fn grow(&mut self, more: usize) -> bool {
        let room = &self.room;
        let grown = room.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
            taken.checked_add(more).filter(|taken| *taken <= room.limit)
        });
        if let Ok(before) = grown {
            self.bytes += more;
            room.metrics.set_queue_bytes(before + more);
        }
        grown.is_ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let before = self.room.taken.fetch_sub(self.bytes, Ordering::AcqRel);
        self.room.metrics.set_queue_bytes(before - self.bytes);
    }
}
