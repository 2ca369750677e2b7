//! What an entry means: from Kong's log entry to a [`Call`].
//!
//! Pure functions: no I/O, no panic, nothing of HTTP, SQL or metrics. Nothing here fails; a body that cannot be understood
//! leaves its columns empty or holds the beginning of its text, and the row is written all the same.

pub mod answer;
pub mod api;
pub mod audio;
pub mod blobs;
pub mod choices;
pub mod conversation;
pub mod error;
pub mod messages;
pub mod privacy;
pub mod raw_log;
pub mod redact;
pub mod refused;
pub mod request;
pub mod responses;
pub mod stream;
pub mod trace;
pub mod unread;
pub mod usage;

use std::borrow::Cow;
use std::sync::Arc;

use crate::call::{Call, EngineTimes, Unread, Usage};
use crate::decode::body::Body;
use crate::decode::cut::parse_cut_json;
use crate::decode::json::{Json, REPLACEMENT, without_nul};
use crate::decode::{Entry, sse};

use answer::{Answer, joined, plain_text, text_of};
use api::Api;
use blobs::without_blobs;
use conversation::Turns;
use privacy::Privacy;
use raw_log::Document;
use redact::{Credentials, Secrets, scrub_words};
use stream::{Merge, merge};
use unread::Pieces;

/// Characters that are kept of a text that no rule says how to read.
const HEAD_CHARS: usize = 500;

/// Longest name that is kept, in characters: a consumer's is part of indexes, whose entries PostgreSQL bounds at 2,700 bytes.
const MAX_NAME_CHARS: usize = 255;

/// Reads the meaning of an entry, and leaves out of it what is not to be stored.
pub fn call(entry: &Entry<'_>, secrets: &Secrets, privacy: &Privacy) -> Call {
    let fields = &entry.fields;
    let api = api_of(entry);
    let status = entry.status();
    let failed = status.is_some_and(|status| status >= 400);

    let mut request = match text_of_body(entry.request_body.as_ref(), entry.is_request_truncated()) {
        None => Document::Absent,
        Some(text) => parse(text, entry.is_request_truncated()),
    };
    let is_cut = entry.is_response_truncated() || entry.is_aborted();
    let response_text = text_of_body(entry.response_body.as_ref(), is_cut);
    let mut response = match response_text {
        None => ResponseBody::of(Document::Absent),
        // What was said into a recording may begin like events.
        Some(text) if sse::looks_like_events(text) && (entry.is_stream() || !api.listens()) => add_up(api, text, is_cut),
        Some(text) if entry.is_stream() && sse::is_fragment(text) => add_up(api, text, is_cut),
        Some(text) => match parse(text, is_cut) {
            // Events behind something else: an error that is no event, a line of a proxy's.
            Document::Text(_) if entry.is_stream() => add_up(api, text, is_cut),
            document => ResponseBody::of(document),
        },
    };

    let mut credentials = Credentials::default();
    remove_credentials(&mut request, &mut credentials, secrets);
    remove_credentials(&mut response.document, &mut credentials, secrets);

    let mut answer = match &response.document {
        Document::Json(json) => read_answer(api, json),
        _ => Answer::default(),
    };
    add_reported(&mut answer, fields);
    let is_repeat = entry.is_repeat();
    if is_repeat {
        answer.usage = Usage::default();
    }
    let error = error_message(&response.document, entry.response_body.as_ref(), failed);
    let served_model = answer.model.clone().filter(|_| status.is_some_and(|status| (200..300).contains(&status)));
    // The plugin's reading of the request is the one that was acted on.
    let asked_model = llm_text(fields, "model_asked").or_else(|| match &request {
        Document::Json(json) => text_of(json, "model"),
        _ => None,
    });

    let name = |path: &[&str]| {
        fields.at(path).and_then(Json::as_str).filter(|name| !name.is_empty()).map(|name| head(name, MAX_NAME_CHARS))
    };
    let milliseconds = |path: &[&str]| fields.at(path).and_then(Json::as_i32).filter(|ms| *ms >= 0);

    // An answer that came in events is a small part of them; room for all of them would be held until the row is stored.
    let of_response = response_text.map_or(0, |text| if response.ended.is_some() { text.len() / 16 } else { text.len() });
    let of_request = entry.request_body.as_ref().map_or(0, |body| body.text.len());
    let mut raw_log = String::with_capacity(3072 + of_request + of_response);
    // Kong allows consumers that have only an identity of another system.
    let consumer_username = name(&["consumer", "username"]).or_else(|| name(&["consumer", "custom_id"]));
    let consumer_username = consumer_username.unwrap_or_else(|| "anonymous".to_owned());
    let route = name(&["route", "name"]);
    let metadata_only = privacy.is_metadata_only(&consumer_username, route.as_deref());
    let mut masked = Masked::default();
    let nothing = Pieces::default();
    let bodies = if metadata_only {
        raw_log::Bodies { request: &Document::Absent, response: &Document::Absent, vectors: None, unread: &nothing }
    } else {
        let vectors = api.answers_with_vectors().then(|| request::bytes_of_a_number(&request));
        raw_log::Bodies { request: &request, response: &response.document, vectors, unread: &response.unread }
    };
    let turns = if metadata_only || entry.is_request_truncated() {
        Turns::default()
    } else {
        let answer = response.document.json().filter(|_| !failed);
        conversation::turns(&consumer_username, api, request.json(), answer)
    };
    let mask: &redact::Mask<'_> = &|text| privacy.mask(text, |_| {});
    let mut hide = raw_log::Hide {
        may: &|json| !credentials.is_empty() || privacy.may_mask(json),
        text: &mut |text| match credentials.hide(text) {
            Cow::Borrowed(_) => masked.mask(privacy, text),
            Cow::Owned(hidden) => Cow::Owned(masked.mask(privacy, &hidden).into_owned()),
        },
    };
    let parts = raw_log::write(&mut raw_log, fields, bodies, secrets, mask, &mut hide);

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
        aborted: is_aborted(entry, response.ended, answer.is_finished && error.is_none()),
        truncated: entry.is_request_truncated() || entry.is_response_truncated() || entry.is_shed(),
        prompt: match &request {
            Document::Absent => None,
            Document::Json(json) if api != Api::Other => request::prompt(api, json),
            _ => text_head(entry.request_body.as_ref()),
        }
        .map(clean),
        response: match &response.document {
            _ if failed || !api.answers_with_text() => None,
            Document::Json(_) if api != Api::Other => joined(answer.texts),
            Document::Absent => None,
            // A transcription may be asked for as plain text or as subtitles.
            Document::Text(text) if api.listens() => Some(without_nul(Cow::Borrowed(text.as_ref())).into_owned()),
            _ => text_head(entry.response_body.as_ref()),
        }
        .map(clean),
        reasoning: joined(answer.reasoning).map(clean),
        tool_calls: answer.tool_calls,
        finish_reason: answer.finish_reason,
        error: error.map(clean),
        estimated: if is_repeat { (None, None) } else { estimated(answer.usage, fields) },
        usage: answer.usage,
        is_repeat,
        unread: unread_kinds(entry, api, failed, &request, &response),
        team: team(fields),
        backend: llm_text(fields, "backend"),
        queue_ms: milliseconds(&["llm", "queue_ms"]),
        refused_by: llm_text(fields, "refused_by"),
        trace_id: trace::id(fields.get("request").and_then(|request| request.get("headers"))),
        engine: engine_times(&response.document),
        ttft_ms: milliseconds(&["llm", "ttft_ms"]),
        // -1 where Kong asked no upstream.
        upstream_latency_ms: milliseconds(&["latencies", "proxy"]),
        gateway_latency_ms: milliseconds(&["latencies", "kong"]),
        raw_log,
        parts,
        turns,
        masked: masked.0,
        api,
        served_model,
    };
    for call in &mut call.tool_calls {
        call.arguments = clean(std::mem::take(&mut call.arguments));
    }
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

/// The API of a call: as the plugin read it, else by the path that Kong forwarded, else by the one that the client wrote.
fn api_of(entry: &Entry<'_>) -> Api {
    let fields = &entry.fields;
    let named = fields.at(&["llm", "api"]).and_then(Json::as_str).and_then(Api::of_name);
    let forwarded = || fields.get("upstream_uri").and_then(Json::as_str).filter(|path| !path.is_empty());
    named.unwrap_or_else(|| Api::of_path(forwarded().or_else(|| entry.endpoint()).unwrap_or_default()))
}

/// A short text that the plugin noted.
fn llm_text(fields: &Json<'_>, name: &str) -> Option<String> {
    text_of(fields.get("llm")?, name).map(|text| head(&text, MAX_NAME_CHARS))
}

/// The caller's team: the tag `team:NAME` of Kong's consumer.
fn team(fields: &Json<'_>) -> Option<String> {
    let tags = fields.at(&["consumer", "tags"]).map(Json::elements).unwrap_or_default();
    let team = tags.iter().find_map(|tag| tag.as_str()?.strip_prefix("team:"))?;
    (!team.is_empty()).then(|| head(team, MAX_NAME_CHARS))
}

/// Tokens that the plugin estimated, where the server reported none. A count that is reported is never mixed with one that is not.
fn estimated(reported: Usage, fields: &Json<'_>) -> (Option<i32>, Option<i32>) {
    if reported.is_reported() {
        return (None, None);
    }
    let count = |name: &str| fields.at(&["llm", "estimated", name]).and_then(usage::count);
    (count("prompt_tokens"), count("completion_tokens"))
}

/// How long the call waited, was read and was answered inside of vLLM (0.33, `--enable-per-request-metrics`). Its time to the first
/// token begins when the call leaves the queue.
fn engine_times(document: &Document<'_>) -> EngineTimes {
    let Document::Json(json) = document else { return EngineTimes::default() };
    let time = |name: &str| json.at(&["metrics", name]).and_then(Json::as_i32).filter(|ms| *ms >= 0);
    EngineTimes {
        queue_ms: time("queue_time_ms"),
        prefill_ms: time("time_to_first_token_ms"),
        decode_ms: time("generation_time_ms"),
    }
}

/// What of the call was not understood. What the model server refused was no conversation, and what was cut is known to be.
fn unread_kinds(entry: &Entry<'_>, api: Api, failed: bool, request: &Document<'_>, response: &ResponseBody<'_>) -> Vec<Unread> {
    let mut kinds = response.unread.kinds().to_vec();
    let of_plugin = entry.fields.at(&["llm", "unread"]).is_some();
    let is_conversation = api.answers_with_choices() || matches!(api, Api::Responses | Api::Messages);
    let is_text = |document: &Document<'_>| matches!(document, Document::Text(_)) && is_conversation && !failed;
    if of_plugin || is_text(request) && !entry.is_request_truncated() {
        kinds.push(Unread::Request);
    }
    if is_text(&response.document) && !entry.is_response_truncated() && !entry.is_aborted() {
        kinds.push(Unread::Response);
    }
    kinds
}

/// The text of a body. Of one that was cut, half a character at its end is no text.
fn text_of_body<'b>(body: Option<&'b Body<'_>>, is_cut: bool) -> Option<&'b str> {
    let text = body?.text.as_ref();
    let text = if is_cut { text.strip_suffix(REPLACEMENT).unwrap_or(text) } else { text };
    (!text.is_empty()).then_some(text)
}

/// A column without blobs.
fn clean(text: String) -> String {
    match without_blobs(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(cleaned) => cleaned,
    }
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
    unread: Pieces,
}

impl<'a> ResponseBody<'a> {
    fn of(document: Document<'a>) -> Self {
        Self { document, ended: None, unread: Pieces::default() }
    }
}

fn add_up(api: Api, text: &str, is_cut: bool) -> ResponseBody<'_> {
    fn merged<M: Merge>(text: &str, is_cut: bool) -> ResponseBody<'static> {
        let merged = merge::<M>(text, is_cut);
        ResponseBody { document: Document::Json(merged.completion), ended: Some(merged.ended), unread: merged.unread }
    }
    match api {
        Api::Responses => merged::<responses::Events>(text, is_cut),
        Api::Messages => merged::<messages::Events>(text, is_cut),
        Api::Transcriptions | Api::Translations => merged::<audio::Events>(text, is_cut),
        Api::Chat | Api::Completions => merged::<choices::Chunks>(text, is_cut),
        // Not known how they add up: kept as they came. Whether they ended is told by what all of them do.
        _ => {
            let merged = merge::<choices::Chunks>(text, is_cut);
            ResponseBody { ended: Some(merged.ended), ..ResponseBody::of(Document::Text(Cow::Borrowed(text))) }
        }
    }
}

fn read_answer(api: Api, json: &Json<'_>) -> Answer {
    match api {
        Api::Chat | Api::Completions => choices::read(json),
        Api::Responses => responses::read(json),
        Api::Messages => messages::read(json),
        Api::Transcriptions | Api::Translations => audio::read(json),
        _ => {
            // Cohere's form bills instead of reporting.
            let report = json.get("usage").or_else(|| json.at(&["meta", "billed_units"]));
            Answer { model: text_of(json, "model"), usage: usage::read(report), ..Answer::default() }
        }
    }
}

/// Adds what no body told and the plugin saw: with `capture=metadata` it reports model and usage of answers it does not log.
fn add_reported(answer: &mut Answer, fields: &Json<'_>) {
    if answer.model.is_none() {
        answer.model = llm_text(fields, "model");
    }
    let usage = usage::read(fields.at(&["llm", "usage"]));
    if usage.is_reported() && !answer.usage.is_reported() {
        answer.usage = usage;
    }
}

/// Whether the answer ended early. A stream that was captured whole tells by itself: an SDK that hangs up right after the
/// terminal event looks to a proxy like a client that went away. Without that event it is whole if every choice says why it ended
/// and the body came to its end.
fn is_aborted(entry: &Entry<'_>, ended: Option<bool>, is_finished: bool) -> bool {
    if !entry.is_stream() {
        return entry.is_aborted();
    }
    match (ended, &entry.response_body) {
        (Some(true), _) => false,
        (_, None) => entry.is_aborted(),
        _ if is_finished => entry.is_aborted(),
        // The terminal event may be in the part that was cut out.
        _ if entry.is_response_truncated() => entry.is_aborted(),
        _ => true,
    }
}

/// The message of a failure in the form of OpenAI, Anthropic, FastAPI (`detail`) or Kong (`message`); a failed call that has
/// none of them, the beginning of its text.
fn error_message(document: &Document<'_>, body: Option<&Body<'_>>, failed: bool) -> Option<String> {
    let Document::Json(json) = document else { return failed.then(|| text_head(body)).flatten() };
    let told = || error::told(json);
    let is_error = failed || error::is_at_top(json);
    let error = json.get("error").or_else(|| choices::error_of(json)).filter(|error| failed || !answer::says_nothing(error));
    // A flag, whose message stands beside it.
    let error = error.filter(|error| **error != Json::Bool(true) || told().is_none());
    let message = match (error, is_error.then(told).flatten()) {
        (Some(error), _) => error_text(error)?,
        (None, Some(message)) => plain_text(message),
        (None, None) => return failed.then(|| text_head(body)).flatten(),
    };
    (!message.is_empty()).then(|| scrub_words(&message).into_owned())
}

/// An error's message; where that is empty, its type or code.
fn error_text(error: &Json<'_>) -> Option<String> {
    let Json::Object(members) = error else {
        return (!answer::says_nothing(error)).then(|| plain_text(error)).filter(|message| !message.trim().is_empty());
    };
    let has_message = members.iter().any(|(name, _)| name == "message");
    let message = || {
        ["message", "detail", "msg"]
            .iter()
            .filter_map(|name| error.get(name))
            .map(plain_text)
            .find(|text| !text.trim().is_empty())
    };
    // A proxy's around the one of the server behind it.
    let inner = || error.get("error").and_then(error_text);
    let name = || text_of(error, "type").or_else(|| error.get("code").map(plain_text)).filter(|name| !name.is_empty());
    let whole = || (!has_message && !answer::says_nothing(error)).then(|| error.to_string());
    message().or_else(inner).or_else(|| name().filter(|_| has_message)).or_else(whole)
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
