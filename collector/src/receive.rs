//! The HTTP edge: `POST /log`, `POST /sync`, the usage page and the pages for operators. The only place with status codes.
//!
//! Order of a request: token, then the body, chunk by chunk, each with room in memory. Nothing is buffered before it is allowed, and what
//! is buffered is counted until its rows are safe. Every answer comes in time, whatever PostgreSQL and the disk do.

pub mod room;
mod sync;
pub mod usage;

use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, RETRY_AFTER};
use actix_web::web::{self, Data, Payload};
use actix_web::{HttpRequest, HttpResponse, ResponseError};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use log::warn;
use serde_json::json;
use subtle::ConstantTimeEq;

use crate::decode::split::{Part, Splitter};
use crate::pipeline::{Entries, Pipeline, PipelineError};
use crate::store::Outcome;
use room::{Place, Room};

/// How long a body may take to arrive. Kong gives up after 10 s; whoever takes longer holds memory that others need.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an answer may take after the last byte: Kong gives up after 10 s, and promised are 8.
const ANSWER_WITHIN: Duration = Duration::from_millis(7_500);

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
    /// Whose turn it is to be told what he used.
    pub usage: usage::Desk,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the header X-Collector-Token is missing or wrong")]
    Unauthorized,
    #[error("the body is larger than {0} bytes and neither a log entry (an object) nor a batch of entries (an array)")]
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
        .configure(usage::routes)
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
    let Outcome { stored, duplicates, spooled, rejected, counted } = outcome;
    // Written out, because the contract gives the members in this order and a JSON map would sort them.
    let mut body = format!(r#"{{"stored":{stored},"duplicates":{duplicates},"spooled":{spooled},"rejected":{rejected}"#);
    if counted > 0 {
        body.push_str(&format!(r#","counted":{counted}"#));
    }
    body.push('}');
    Ok(HttpResponse::Ok().insert_header((CONTENT_TYPE, "application/json")).body(body))
}

async fn take(request: &HttpRequest, payload: Payload, receiver: &Data<Receiver>) -> Result<Outcome, Refusal> {
    if !is_authorized(request, receiver.token.as_deref()) {
        return Err(Refusal::Unauthorized);
    }
    let arrived = tokio::time::timeout(BODY_TIMEOUT, read_body(payload, receiver)).await.map_err(|_| Refusal::TooSlow)??;
    let Arrived { rest, place, mut outcome } = arrived;
    let answer_by = Instant::now() + ANSWER_WITHIN;
    if let Some(rest) = rest {
        outcome += settle(receiver, rest, answer_by, place).await?;
    }
    Ok(outcome)
}

/// What is there when the last byte has come.
struct Arrived {
    /// What was not taken yet.
    rest: Option<Rest>,
    /// The memory that it takes.
    place: Place,
    /// What became of the entries that were taken before.
    outcome: Outcome,
}

/// Something to be taken.
enum Rest {
    /// All of a body.
    Body(Bytes),
    /// A part of one that was too large to be held.
    Part(Part),
}

/// Makes entries safe, and returns in time. A task of its own: a client that hangs up must not stop what it began, and its entries count
/// until they are safe.
async fn settle(
    receiver: &Data<Receiver>,
    rest: Rest,
    answer_by: Instant,
    place: impl Send + 'static,
) -> Result<Outcome, Refusal> {
    let receiver = Data::clone(receiver);
    let taken = actix_web::rt::spawn(async move {
        let pipeline = &receiver.pipeline;
        let taken = match rest {
            Rest::Body(body) => pipeline.take_by(Entries::of_body(body)?, Some(answer_by)).await,
            Rest::Part(Part::Elements(part)) => pipeline.take_by(Entries::inside_array(part), Some(answer_by)).await,
            Rest::Part(Part::Head(head)) => {
                let reason = format!("larger than {} bytes; this is its head", receiver.max_body_bytes);
                Ok(pipeline.reject(&head, reason, Some(answer_by)).await?)
            }
        };
        drop(place);
        taken
    });
    // What is not safe by then may still become so; Kong sends it again, and then it is a duplicate.
    match tokio::time::timeout_at(answer_by.into(), taken).await {
        Ok(Ok(Ok(outcome))) => Ok(outcome),
        Ok(Ok(Err(PipelineError::Decode(error)))) => Err(Refusal::NotABatch(error.to_string())),
        Ok(Ok(Err(PipelineError::Store(error)))) => Err(Refusal::Unavailable(error.to_string())),
        Ok(Err(_)) => Err(Refusal::Unavailable("internal error".to_owned())),
        Err(_) => Err(Refusal::Unavailable(format!("they are not safe after {ANSWER_WITHIN:?}"))),
    }
}

fn is_authorized(request: &HttpRequest, token: Option<&str>) -> bool {
    let Some(token) = token else { return true };
    // Constant time: how long a wrong token takes must not tell how much of it is right.
    request.headers().get("X-Collector-Token").is_some_and(|sent| bool::from(sent.as_bytes().ct_eq(token.as_bytes())))
}

/// Reads a body. A batch that is larger than the limit is taken part by part meanwhile, so that what comes behind it need not wait for
/// somebody to lower Kong's batches.
async fn read_body(mut payload: Payload, receiver: &Data<Receiver>) -> Result<Arrived, Refusal> {
    let limit = receiver.max_body_bytes;
    let mut place = receiver.room.enter();
    let mut outcome = Outcome::default();
    let mut body = BytesMut::new();
    let mut splitter = None;
    loop {
        let chunk = tokio::select! {
            chunk = payload.next() => chunk,
            () = place.told_to_give_way() => return Err(Refusal::NoRoom),
        };
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(|error| Refusal::Broken(error.to_string()))?;
        if !place.grow(chunk.len()).await {
            return Err(Refusal::NoRoom);
        }
        if splitter.is_none() && body.len() + chunk.len() <= limit {
            body.extend_from_slice(&chunk);
            continue;
        }
        let splitter = splitter.get_or_insert_with(|| Splitter::new(limit));
        for piece in [std::mem::take(&mut body).freeze(), chunk] {
            for part in splitter.push(&piece).ok_or(Refusal::TooLarge(limit))? {
                outcome += settle(receiver, Rest::Part(part), Instant::now() + ANSWER_WITHIN, ()).await?;
            }
        }
        place.shrink_to(splitter.held());
    }
    place.arrived();
    let rest = match splitter {
        None => Some(Rest::Body(body.freeze())),
        Some(splitter) => splitter.finish().map(Rest::Part),
    };
    Ok(Arrived { rest, place, outcome })
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
