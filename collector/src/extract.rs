//! What an entry means: from Kong's log entry to a [`Call`].
//!
//! Pure functions: no I/O, no panic, nothing of HTTP, SQL or metrics. Nothing here fails; a body that cannot be understood
//! leaves its columns empty or holds the beginning of its text, and the row is written all the same.

pub mod answer;
pub mod api;
pub mod choices;
pub mod error;
pub mod messages;
pub mod privacy;
pub mod raw_log;
pub mod redact;
pub mod request;
pub mod responses;
pub mod stream;
pub mod usage;

use std::borrow::Cow;
use std::sync::Arc;

use crate::call::Call;
use crate::decode::body::{Body, parse_cut_json};
use crate::decode::json::{Json, mend_escapes, without_nul};
use crate::decode::{Entry, sse};

use answer::{Answer, joined, text_of};
use api::Api;
use privacy::Privacy;
use raw_log::Document;
use redact::{Credentials, Secrets, scrub_words};
use stream::{Merged, merge};

/// Characters that are kept of a text that no rule says how to read.
const HEAD_CHARS: usize = 500;

/// Longest name that is kept, in characters: a consumer's is part of indexes, whose entries PostgreSQL bounds at 2,700 bytes.
const MAX_NAME_CHARS: usize = 255;

/// Reads the meaning of an entry, and leaves out of it what is not to be stored.
pub fn call(entry: &Entry<'_>, secrets: &Secrets, privacy: &Privacy) -> Call {
    let fields = &entry.fields;
    let path = entry.endpoint().unwrap_or_default();
    let api = Api::of_path(path);
    let status = entry.status();
    let failed = status.is_some_and(|status| status >= 400);

    let request_text = mended(entry.request_body.as_ref());
    let mut request = match &request_text {
        None => Document::Absent,
        Some(text) => parse(text, entry.is_request_truncated()),
    };
    let response_text = mended(entry.response_body.as_ref());
    let mut response = match &response_text {
        None => ResponseBody { document: Document::Absent, ended: None },
        Some(text) if sse::looks_like_events(text) || entry.is_stream() && sse::is_fragment(text) => add_up(api, text),
        Some(text) => {
            let cut = entry.is_response_truncated() || entry.is_aborted();
            ResponseBody { document: parse(text, cut), ended: None }
        }
    };

    let mut credentials = Credentials::default();
    remove_credentials(&mut request, &mut credentials, secrets);
    remove_credentials(&mut response.document, &mut credentials, secrets);

    let mut answer = match &response.document {
        Document::Json(json) => read_answer(api, json),
        _ => Answer::default(),
    };
    add_reported(&mut answer, api, fields);
    let error = error_message(&response.document, entry.response_body.as_ref(), failed);
    let served_model = answer.model.clone().filter(|_| status.is_some_and(|status| (200..300).contains(&status)));
    let asked_model = match &request {
        Document::Json(json) => text_of(json, "model"),
        _ => None,
    };

    let name = |path: &[&str]| {
        fields.at(path).and_then(Json::as_str).filter(|name| !name.is_empty()).map(|name| head(name, MAX_NAME_CHARS))
    };
    let milliseconds = |path: &[&str]| fields.at(path).and_then(Json::as_i32).filter(|ms| *ms >= 0);

    // An answer that came in events is a small part of them; room for all of them would be held until the row is stored.
    let of_response =
        response_text.as_ref().map_or(0, |text| if response.ended.is_some() { text.len() / 16 } else { text.len() });
    let mut raw_log = String::with_capacity(3072 + request_text.as_ref().map_or(0, |text| text.len()) + of_response);
    let consumer_username = name(&["consumer", "username"]).unwrap_or_else(|| "anonymous".to_owned());
    let route = name(&["route", "name"]);
    let metadata_only = privacy.is_metadata_only(&consumer_username, route.as_deref());
    let mut masked = Masked::default();
    let bodies = if metadata_only {
        raw_log::Bodies { request: &Document::Absent, response: &Document::Absent, vectors: false }
    } else {
        raw_log::Bodies { request: &request, response: &response.document, vectors: api.answers_with_vectors() }
    };
    let mask: &redact::Mask<'_> = &|text| privacy.mask(text, |_| {});
    raw_log::write(&mut raw_log, fields, bodies, secrets, mask, &mut |text| match credentials.hide(text) {
        Cow::Borrowed(_) => masked.mask(privacy, text),
        Cow::Owned(hidden) => Cow::Owned(masked.mask(privacy, &hidden).into_owned()),
    });

    let mut call = Call {
        request_id: entry.request_id.clone(),
        consumer_username,
        started_at: entry.started_at,
        latency_ms: milliseconds(&["latencies", "request"]),
        status,
        model: answer.model.or(asked_model),
        endpoint: entry.endpoint().map(|path| secrets.scrub(path).into_owned()),
        service: name(&["service", "name"]),
        route,
        client_ip: fields.get("client_ip").and_then(Json::as_str).and_then(|ip| ip.parse().ok()),
        stream: entry.is_stream(),
        aborted: is_aborted(entry, response.ended),
        truncated: entry.is_request_truncated() || entry.is_response_truncated() || entry.is_shed(),
        prompt: match &request {
            Document::Absent => None,
            Document::Json(json) if api != Api::Other => request::prompt(api, json),
            _ => text_head(entry.request_body.as_ref()),
        },
        response: match &response.document {
            _ if failed || !api.answers_with_text() => None,
            Document::Json(_) if api != Api::Other => joined(answer.texts),
            Document::Absent => None,
            _ => text_head(entry.response_body.as_ref()),
        },
        reasoning: joined(answer.reasoning),
        tool_calls: answer.tool_calls,
        finish_reason: answer.finish_reason,
        error,
        usage: answer.usage,
        ttft_ms: milliseconds(&["llm", "ttft_ms"]),
        // -1 where Kong asked no upstream.
        upstream_latency_ms: milliseconds(&["latencies", "proxy"]),
        gateway_latency_ms: milliseconds(&["latencies", "kong"]),
        raw_log,
        masked: masked.0,
        api,
        served_model,
    };
    if metadata_only {
        (call.prompt, call.response, call.reasoning, call.tool_calls) = (None, None, None, Vec::new());
        call.error = call.error.map(|_| error::word(response.document.json()));
    }
    credentials.hide_columns(&mut call);
    privacy.mask_columns(&mut call);
    if !metadata_only {
        // Bounded at the end: what is cut in its middle has no form any more.
        call.error = call.error.map(error::stored);
    }
    call
}

/// Removes what the call hands on to tools, and what stands in text that nobody understood.
fn remove_credentials(document: &mut Document<'_>, credentials: &mut Credentials, secrets: &Secrets) {
    match document {
        Document::Absent => {}
        Document::Json(json) => credentials.remove_from(json, secrets),
        Document::Text(text) => {
            if let Cow::Owned(scrubbed) = scrub_words(text) {
                *text = Cow::Owned(scrubbed);
            }
        }
    }
}

/// How often which pattern was found in the bodies.
#[derive(Debug, Default)]
struct Masked(Vec<(Arc<str>, u32)>);

impl Masked {
    fn mask<'t>(&mut self, privacy: &Privacy, text: &'t str) -> Cow<'t, str> {
        privacy.mask(text, |name| match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, count)) => *count += 1,
            None => self.0.push((Arc::clone(name), 1)),
        })
    }
}

fn mended<'b>(body: Option<&'b Body<'_>>) -> Option<Cow<'b, str>> {
    body.filter(|body| !body.text.is_empty()).map(|body| mend_escapes(Cow::Borrowed(body.text.as_ref())))
}

/// A body as JSON; of one that was cut the part that came.
fn parse(text: &str, cut: bool) -> Document<'_> {
    if let Ok(json) = Json::parse(text) {
        return Document::Json(json);
    }
    let part = cut.then(|| parse_cut_json(text)).flatten();
    match part.as_deref().map(Json::parse) {
        Some(Ok(json)) => Document::Json(json.to_static()),
        _ => Document::Text(Cow::Borrowed(text)),
    }
}

struct ResponseBody<'a> {
    document: Document<'a>,
    /// For an event stream: whether its terminal event came.
    ended: Option<bool>,
}

fn add_up(api: Api, text: &str) -> ResponseBody<'_> {
    let Merged { completion, ended } = match api {
        Api::Chat | Api::Completions => merge::<choices::Chunks>(text),
        Api::Responses => merge::<responses::Events>(text),
        Api::Messages => merge::<messages::Events>(text),
        _ => {
            let ended = merge::<stream::Unknown>(text).ended;
            return ResponseBody { document: Document::Text(Cow::Borrowed(text)), ended: Some(ended) };
        }
    };
    ResponseBody { document: Document::Json(completion), ended: Some(ended) }
}

fn read_answer(api: Api, json: &Json<'_>) -> Answer {
    match api {
        Api::Chat | Api::Completions => choices::read(json),
        Api::Responses => responses::read(json),
        Api::Messages => messages::read(json),
        _ => Answer { model: text_of(json, "model"), usage: usage::of(api, json.get("usage")), ..Answer::default() },
    }
}

/// Adds what no body told and the plugin saw: with `capture=metadata` it reports model and usage of answers it does not log.
fn add_reported(answer: &mut Answer, api: Api, fields: &Json<'_>) {
    let Some(llm) = fields.get("llm") else { return };
    if answer.model.is_none() {
        answer.model = text_of(llm, "model").filter(|model| !model.is_empty()).map(|model| head(&model, MAX_NAME_CHARS));
    }
    let usage = usage::of(api, llm.get("usage"));
    if usage.is_reported() && !answer.usage.is_reported() {
        answer.usage = usage;
    }
}

/// Whether the answer ended early. A stream that was captured whole tells by itself: an SDK that hangs up right after the
/// terminal event looks to a proxy like a client that went away.
fn is_aborted(entry: &Entry<'_>, ended: Option<bool>) -> bool {
    if !entry.is_stream() {
        return entry.is_aborted();
    }
    match (ended, &entry.response_body) {
        (Some(true), _) => false,
        (_, None) => entry.is_aborted(),
        // The terminal event may be in the part that was cut out.
        _ if entry.is_response_truncated() => entry.is_aborted(),
        _ => true,
    }
}

/// The message of a failure in the form of OpenAI, Anthropic, FastAPI (`detail`) or Kong (`message`); a failed call that has
/// none of them, the beginning of its text.
fn error_message(document: &Document<'_>, body: Option<&Body<'_>>, failed: bool) -> Option<String> {
    let message = match document {
        Document::Json(json) => json
            .get("error")
            .map(|error| text_of(error, "message").unwrap_or_else(|| plain_text(error)))
            .or_else(|| failed.then(|| json.get("detail").or_else(|| json.get("message")).map(plain_text)).flatten()),
        _ => None,
    };
    let message = message.filter(|message| !message.is_empty()).or_else(|| failed.then(|| text_head(body)).flatten());
    message.map(|message| scrub_words(&message).into_owned())
}

/// A string's text; anything else as JSON.
fn plain_text(json: &Json<'_>) -> String {
    json.as_str().map_or_else(|| json.to_string(), str::to_owned)
}

fn text_head(body: Option<&Body<'_>>) -> Option<String> {
    let text = without_nul(Cow::Owned(head(&body?.text, HEAD_CHARS)));
    (!text.is_empty()).then(|| scrub_words(&text).into_owned())
}

/// The first `count` characters.
fn head(text: &str, count: usize) -> String {
    match text.char_indices().nth(count) {
        Some((end, _)) => text.get(..end).unwrap_or(text).to_owned(),
        None => text.to_owned(),
    }
}
