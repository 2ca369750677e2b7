//! The usage page and `GET /v1/usage`: what one consumer used, for that consumer.
//!
//! Kong checks the key, says whose it is in `X-Consumer-Username`, and vouches for that with the collector's token, which it adds on these
//! routes alone. Without a token anybody who reaches the port could say any name, so then nobody is told anything.
//!
//! The page itself is open and holds no number. It sends the key as a header, or, without a script, as a form from which Kong takes it.
//!
//! Invariants: no answer is kept by a browser or a proxy, and none names another host. A page that is loaded again and again costs the database little: a consumer's numbers are read every few seconds
//! at most, and those of a few consumers at a time, so that entries find connections.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::http::header::{
    ACCEPT_LANGUAGE, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER, VARY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use actix_web::web::{self, Data};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use log::{error, warn};
use tokio::sync::Semaphore;

use super::{Receiver, is_authorized, json_body};
use crate::page::{self, Notice, Own, Words};
use crate::store::own_usage::{self, OwnUsage};

/// How old numbers may be that are told.
const FRESH: Duration = Duration::from_secs(3);
/// How long somebody waits whose numbers could not be read. They are many, or PostgreSQL is away.
const PAUSE: Duration = Duration::from_secs(10);
/// Consumers whose numbers are read at once.
const TURNS: usize = 2;
/// Longest wait for a turn.
const TURN_WITHIN: Duration = Duration::from_secs(4);

/// When a consumer's numbers were read, and what they were; `None` where it failed.
type Read = (Instant, Option<Arc<OwnUsage>>);

/// What was read a moment ago, and who may read.
#[derive(Debug)]
pub struct Desk {
    /// By consumer. No more than were asked for in [`PAUSE`].
    read: Mutex<HashMap<String, Read>>,
    turns: Semaphore,
}

impl Default for Desk {
    fn default() -> Self {
        Self { read: Mutex::default(), turns: Semaphore::new(TURNS) }
    }
}

impl Desk {
    fn known(&self, consumer: &str) -> Option<Option<Arc<OwnUsage>>> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.retain(|_, (at, usage)| at.elapsed() < if usage.is_some() { FRESH } else { PAUSE });
        read.get(consumer).map(|(_, usage)| usage.clone())
    }

    fn keep(&self, consumer: &str, usage: Option<Arc<OwnUsage>>) {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(consumer.to_owned(), (Instant::now(), usage));
    }
}

/// Why somebody is told nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Denied {
    #[error("usage is told through the gateway only")]
    Stranger,
    #[error("usage is told only where the collector has a token (COLLECTOR_TOKEN), which Kong sends")]
    NoToken,
    #[error("the usage cannot be read now; try again in a moment")]
    NotNow,
}

impl Denied {
    fn response(self) -> HttpResponseBuilder {
        let status = match self {
            Denied::Stranger => StatusCode::UNAUTHORIZED,
            Denied::NoToken | Denied::NotNow => StatusCode::SERVICE_UNAVAILABLE,
        };
        let mut response = private(HttpResponse::build(status));
        if self == Denied::NotNow {
            response.insert_header((RETRY_AFTER, PAUSE.as_secs()));
        }
        response
    }
}

/// The routes.
pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/v1/usage", web::get().to(json))
        .route("/usage/data", web::get().to(numbers))
        .service(web::resource("/usage").route(web::get().to(open_page)).route(web::post().to(whole_page)));
}

async fn json(request: HttpRequest, receiver: Data<Receiver>) -> HttpResponse {
    match own(&request, &receiver).await {
        Ok(own) => json_body(private(HttpResponse::Ok()), page::json(&own)),
        // In the form that the SDKs of the model's API read.
        Err(denied) => {
            let error = serde_json::json!({ "message": denied.to_string(), "type": "usage_error", "param": null, "code": null });
            json_body(denied.response(), serde_json::json!({ "error": error }))
        }
    }
}

/// The numbers alone, for the script of the page.
async fn numbers(request: HttpRequest, receiver: Data<Receiver>) -> HttpResponse {
    match own(&request, &receiver).await {
        Ok(own) => html(private(HttpResponse::Ok()), page::numbers(words(&request), &own)),
        // The script says why.
        Err(denied) => denied.response().finish(),
    }
}

/// The page without numbers. Kong sends a browser back to it whose key it refused.
async fn open_page(request: HttpRequest) -> HttpResponse {
    let notice = if request.query_string() == "refused" { Notice::Refused } else { Notice::None };
    html(private(HttpResponse::Ok()), page::page(words(&request), notice, None))
}

/// The page with numbers, for a browser without a script.
async fn whole_page(request: HttpRequest, receiver: Data<Receiver>) -> HttpResponse {
    match own(&request, &receiver).await {
        Ok(own) => html(private(HttpResponse::Ok()), page::page(words(&request), Notice::None, Some(&own))),
        Err(denied) => html(denied.response(), page::page(words(&request), Notice::Away, None)),
    }
}

fn words(request: &HttpRequest) -> &'static Words {
    let accepted = request.headers().get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
    Words::for_reader(accepted.unwrap_or_default())
}

/// An answer that nobody keeps.
fn private(mut response: HttpResponseBuilder) -> HttpResponseBuilder {
    response.insert_header((CACHE_CONTROL, "no-store"));
    response
}

fn html(mut response: HttpResponseBuilder, text: Result<String, impl std::fmt::Display>) -> HttpResponse {
    match text {
        Ok(text) => response
            .insert_header((CONTENT_TYPE, "text/html; charset=utf-8"))
            .insert_header((CONTENT_SECURITY_POLICY, page::POLICY.as_str()))
            .insert_header((REFERRER_POLICY, "no-referrer"))
            .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
            .insert_header((X_FRAME_OPTIONS, "DENY"))
            .insert_header((VARY, "Accept-Language"))
            .body(text),
        Err(reason) => {
            error!("cannot make the usage page: {reason}");
            HttpResponse::InternalServerError().finish()
        }
    }
}

/// Who calls, by the word of Kong.
fn caller(request: &HttpRequest, token: Option<&str>) -> Result<String, Denied> {
    let token = token.ok_or(Denied::NoToken)?;
    if !is_authorized(request, Some(token)) {
        return Err(Denied::Stranger);
    }
    // As rows have it: the name, else the other name. Kong sends them as they are, in UTF-8.
    let name = ["X-Consumer-Username", "X-Consumer-Custom-Id"].into_iter().find_map(|name| request.headers().get(name));
    let name = name.and_then(|name| std::str::from_utf8(name.as_bytes()).ok()).filter(|name| !name.is_empty());
    name.map(str::to_owned).ok_or(Denied::Stranger)
}

/// What the caller is told.
async fn own(request: &HttpRequest, receiver: &Receiver) -> Result<Own, Denied> {
    let consumer = caller(request, receiver.token.as_deref())?;
    let usage = numbers_of(&consumer, receiver).await?;
    Ok(Own { usage, waiting: receiver.pipeline.metrics.nodes.queues.waiting_of(&consumer) })
}

/// What PostgreSQL knows of a consumer.
async fn numbers_of(consumer: &str, receiver: &Receiver) -> Result<Arc<OwnUsage>, Denied> {
    let desk = &receiver.usage;
    if let Some(known) = desk.known(consumer) {
        return known.ok_or(Denied::NotNow);
    }
    let turn = tokio::time::timeout(TURN_WITHIN, desk.turns.acquire()).await;
    let Ok(Ok(_turn)) = turn else { return Err(Denied::NotNow) };
    // Somebody of that name may have been before us.
    if let Some(known) = desk.known(consumer) {
        return known.ok_or(Denied::NotNow);
    }
    let read = match receiver.pipeline.store.database().connection().await {
        Ok(connection) => own_usage::read(&connection, consumer).await,
        Err(error) => Err(error),
    };
    let usage = read.inspect_err(|error| warn!("cannot read what somebody used: {error}")).ok().map(Arc::new);
    desk.keep(consumer, usage.clone());
    usage.ok_or(Denied::NotNow)
}
