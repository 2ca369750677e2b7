//! `POST /sync`: what a node of Kong tells once a second that no log entry can. The contract is in `docs/contract.md`.
//!
//! Invariant: nothing of it decides an allocation or a label without a bound, and a member that makes no sense costs itself only: the
//! node would tell it again for ever.

mod queue;
mod quota;

use std::net::IpAddr;
use std::time::Duration;

use actix_web::http::header::CONTENT_TYPE;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, Utc};
use log::warn;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{BODY_TIMEOUT, Receiver, Refusal, is_authorized};
use crate::measure::nodes::Gauges;
use crate::store::pool::StoreError;
use crate::store::refused::users::{self, RefusedUser};
use crate::store::refused::{self, Refused};
use crate::store::responses::{self, Response};
use crate::store::workers::{self, Worker};

/// Largest body. A node of 256 workers with 500 counts stays below 100 KB.
const MAX_BODY_BYTES: usize = 262_144;
/// The only version there is.
const VERSION: u64 = 1;
/// Longest name of a node or a worker, in bytes: they are parts of indexes, and a node's is a label.
const MAX_NAME_BYTES: usize = 128;
/// Workers that are taken from one body; the plugin tells of 256 at most.
const MAX_WORKERS: usize = 1_024;
/// Counts of refused calls that are taken from one body, by address and by user; the plugin sends 500 and 200.
const MAX_COUNTS: usize = 1_000;
/// Stored responses that are taken from one body; the plugin sends 300, and asks for 100.
const MAX_RESPONSES: usize = 1_000;
/// What refuses calls of users: plugins of the gateway's, and all else.
const REFUSERS: [&str; 4] = ["router", "quota", "queue", "kong"];
/// Numbers beyond this are no counts: 2^53, the last that every JSON reader holds exactly.
const MAX_NUMBER: i64 = 1 << 53;
/// Minutes that are older are not what a node can have kept.
const MAX_AGE: Duration = Duration::from_secs(8 * 86_400);

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Told {
    v: u64,
    node: String,
    workers: Vec<ToldWorker>,
    refused_calls: Vec<ToldCount>,
    refused_users: Vec<ToldUserCount>,
    responses_made: Vec<ToldResponse>,
    responses_asked: Vec<String>,
    gauges: Gauges,
    quota: Option<quota::ToldQuota>,
    /// Read apart, so that it cannot be a reason to refuse the rest.
    queue: Option<Box<RawValue>>,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            v: VERSION,
            node: String::new(),
            workers: Vec::new(),
            refused_calls: Vec::new(),
            refused_users: Vec::new(),
            responses_made: Vec::new(),
            responses_asked: Vec::new(),
            gauges: Gauges::default(),
            quota: None,
            queue: None,
        }
    }
}

#[derive(Debug, Deserialize)]
struct ToldWorker {
    worker: String,
    seq: i64,
    done: Option<i64>,
    #[serde(default)]
    ended: bool,
}

impl ToldWorker {
    fn checked(self) -> Option<Worker> {
        // An ended worker has nothing left that waits; a living one that does not say may have everything.
        let done = if self.ended { self.seq } else { self.done.unwrap_or(0) };
        let is_sound = is_name(&self.worker) && (0..=MAX_NUMBER).contains(&self.seq) && (0..=self.seq).contains(&done);
        is_sound.then_some(Worker { worker: self.worker, given: self.seq, done, ended: self.ended })
    }
}

#[derive(Debug, Deserialize)]
struct ToldCount {
    client_ip: String,
    minute: i64,
    status: i32,
    count: i64,
}

impl ToldCount {
    fn checked(&self, now: DateTime<Utc>) -> Option<(Refused, i64)> {
        let minute = sound_minute(self.minute, self.status, self.count, now)?;
        // What is no address, and "other" is none, is counted together.
        let address = refused::network(self.client_ip.parse::<IpAddr>().ok());
        Some((Refused { minute, address, status: self.status }, self.count))
    }
}

/// The same of a user with a valid key.
#[derive(Debug, Deserialize)]
struct ToldUserCount {
    user: String,
    refused_by: String,
    minute: i64,
    status: i32,
    count: i64,
}

impl ToldUserCount {
    fn checked(self, now: DateTime<Utc>) -> Option<(RefusedUser, i64)> {
        let minute = sound_minute(self.minute, self.status, self.count, now)?;
        let Self { user: username, refused_by, status, count, .. } = self;
        // Nobody's name is empty: that is who is left where there are too many.
        let is_sound = (username.is_empty() || is_name(&username)) && REFUSERS.contains(&refused_by.as_str());
        is_sound.then_some((RefusedUser { minute, username, refused_by, status }, count))
    }
}

/// The minute of a count, where it is one that can be.
fn sound_minute(minute: i64, status: i32, count: i64, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let minute = refused::minute_of(DateTime::from_timestamp(minute, 0)?);
    let is_sound = (100..=599).contains(&status)
        && (1..=MAX_NUMBER).contains(&count)
        && minute > now - MAX_AGE
        && minute < now + Duration::from_secs(3_600);
    is_sound.then_some(minute)
}

/// A stored response and who made it; what a node is told of one looks alike.
#[derive(Debug, Deserialize, Serialize)]
struct ToldResponse {
    id: String,
    maker: String,
    #[serde(default)]
    counted: bool,
}

impl ToldResponse {
    fn checked(self) -> Option<Response> {
        let Self { id, maker, counted } = self;
        // Without keys everybody is nobody.
        (is_name(&id) && (maker.is_empty() || is_name(&maker))).then_some(Response { id, maker, counted })
    }
}

/// The answer.
#[derive(Debug, Serialize)]
struct Answer {
    v: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    responses: Vec<ToldResponse>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quota: Option<Box<RawValue>>,
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME_BYTES && !name.contains('\0')
}

/// Reads a body.
fn read(body: &[u8]) -> Result<Told, Refusal> {
    let told: Told = serde_json::from_slice(body).map_err(|error| Refusal::NotABatch(format!("no report of a node: {error}")))?;
    if told.v != VERSION {
        return Err(Refusal::NotABatch(format!("version {} of a report is not known here", told.v)));
    }
    if !is_name(&told.node) {
        return Err(Refusal::NotABatch(format!("the node has no name, or one of more than {MAX_NAME_BYTES} bytes")));
    }
    if told.workers.len() > MAX_WORKERS || told.refused_calls.len() > MAX_COUNTS || told.refused_users.len() > MAX_COUNTS {
        return Err(Refusal::NotABatch(format!("more than {MAX_WORKERS} workers or {MAX_COUNTS} counts in one report")));
    }
    if told.responses_made.len() > MAX_RESPONSES || told.responses_asked.len() > MAX_RESPONSES {
        return Err(Refusal::NotABatch(format!("more than {MAX_RESPONSES} stored responses in one report")));
    }
    told.quota.as_ref().map_or(Ok(()), quota::ToldQuota::check)?;
    Ok(told)
}

/// Answers `POST /sync`.
pub(super) async fn tell(request: HttpRequest, payload: Payload, receiver: Data<Receiver>) -> Result<HttpResponse, Refusal> {
    if !is_authorized(&request, receiver.token.as_deref()) {
        return Err(Refusal::Unauthorized);
    }
    let body =
        tokio::time::timeout(BODY_TIMEOUT, payload.to_bytes_limited(MAX_BODY_BYTES)).await.map_err(|_| Refusal::TooSlow)?;
    let body = body.map_err(|_| Refusal::TooLarge(MAX_BODY_BYTES))?.map_err(|error| Refusal::Broken(error.to_string()))?;
    let told = read(&body)?;
    let queues = told.queue.as_deref().map(queue::read);
    if let Some((_, passed_over @ 1..)) = &queues {
        warn!(count = *passed_over; "passed over {passed_over} numbers that make no sense in what a node told of its queues");
    }
    receiver.pipeline.metrics.nodes.observe(&told.node, &told.gauges, queues.map(|(queues, _)| queues));
    let answer = note(&receiver, told).await.map_err(|error| Refusal::Unavailable(error.to_string()))?;
    let answer = serde_json::to_string(&answer).map_err(|error| Refusal::Broken(error.to_string()))?;
    Ok(HttpResponse::Ok().insert_header((CONTENT_TYPE, "application/json")).body(answer))
}

/// Returns what the node asks for.
async fn note(receiver: &Receiver, told: Told) -> Result<Answer, StoreError> {
    let now = Utc::now();
    let (all_workers, all_counts) = (told.workers.len(), told.refused_calls.len() + told.refused_users.len());
    let sound: Vec<Worker> = told.workers.into_iter().filter_map(ToldWorker::checked).collect();
    let counts: Vec<(Refused, i64)> = told.refused_calls.iter().filter_map(|count| count.checked(now)).collect();
    let user_counts: Vec<(RefusedUser, i64)> = told.refused_users.into_iter().filter_map(|count| count.checked(now)).collect();
    let all_sound = counts.len() + user_counts.len();
    if (sound.len(), all_sound) != (all_workers, all_counts) {
        let (workers, counts) = (all_workers - sound.len(), all_counts - all_sound);
        warn!(workers = workers, counts = counts; "passed over {workers} workers and {counts} counts that make no sense in the report of a node");
    }
    let connection = receiver.pipeline.store.database().connection().await?;
    workers::note(&connection, &told.node, &sound).await?;
    refused::report(&connection, &told.node, &counts).await?;
    for (by, calls) in users::report(&connection, &told.node, &user_counts).await? {
        receiver.pipeline.metrics.limits.observe_refused_unseen(&by, calls);
    }
    // A node that asks for what it tells in the same report is answered with it.
    let made: Vec<Response> = told.responses_made.into_iter().filter_map(ToldResponse::checked).collect();
    responses::note(&connection, &made).await?;
    let asked: Vec<String> = told.responses_asked.into_iter().filter(|id| is_name(id)).collect();
    let found = responses::find(&connection, &asked).await?;
    let responses = found.into_iter().map(|Response { id, maker, counted }| ToldResponse { id, maker, counted }).collect();
    // Last, so that what the node told is not lost with an answer that takes too long.
    let quota = match &told.quota {
        Some(told) => Some(quota::answer(connection, told).await?),
        None => None,
    };
    Ok(Answer { v: VERSION, responses, quota })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_missing_has_a_meaning_and_what_is_unknown_has_none() {
        let told = read(br#"{"node":"n","later":{"x":[1]}}"#).unwrap();
        assert_eq!((told.v, told.workers.len(), told.refused_calls.len()), (1, 0, 0));
        for body in
            ["", "[]", "{}", r#"{"node":""}"#, r#"{"node":"n","v":2}"#, r#"{"node":"n","workers":{}}"#, r#"{"node":"a\u0000"}"#]
        {
            assert!(read(body.as_bytes()).is_err(), "{body}");
        }
        assert!(read(json!({"node": "n".repeat(MAX_NAME_BYTES + 1)}).to_string().as_bytes()).is_err());
        let many = vec![json!({"worker": "w", "seq": 1}); MAX_WORKERS + 1];
        assert!(read(json!({"node": "n", "workers": many}).to_string().as_bytes()).is_err());
    }

    #[test]
    fn numbers_that_no_worker_can_have_are_passed_over() {
        let worker = |value: serde_json::Value| serde_json::from_value::<ToldWorker>(value).unwrap().checked();
        let sound = worker(json!({"worker": "w", "seq": 5, "done": 3, "ended": false})).unwrap();
        assert_eq!(sound, Worker { worker: "w".to_owned(), given: 5, done: 3, ended: false });
        assert_eq!(worker(json!({"worker": "w", "seq": 5, "done": 3, "ended": true})).unwrap().done, 5);
        assert_eq!(worker(json!({"worker": "w", "seq": 5})).unwrap().done, 0);
        for value in [
            json!({"worker": "", "seq": 5}),
            json!({"worker": "w", "seq": -1}),
            json!({"worker": "w", "seq": i64::MAX}),
            json!({"worker": "w", "seq": 5, "done": 6}),
            json!({"worker": "w", "seq": 5, "done": -6}),
            json!({"worker": "w\u{0}", "seq": 5}),
            json!({"worker": "w".repeat(MAX_NAME_BYTES + 1), "seq": 5}),
        ] {
            assert_eq!(worker(value.clone()), None, "{value}");
        }
    }

    #[test]
    fn stored_responses_have_names_and_are_not_too_many() {
        let response = |value: serde_json::Value| serde_json::from_value::<ToldResponse>(value).unwrap().checked();
        let sound = response(json!({"id": "resp_1", "maker": "m", "counted": true})).unwrap();
        assert_eq!(sound, Response { id: "resp_1".to_owned(), maker: "m".to_owned(), counted: true });
        assert!(!response(json!({"id": "resp_1", "maker": ""})).unwrap().counted);
        for value in [
            json!({"id": "", "maker": "m"}),
            json!({"id": "a\u{0}", "maker": "m"}),
            json!({"id": "r".repeat(MAX_NAME_BYTES + 1), "maker": "m"}),
            json!({"id": "r", "maker": "m".repeat(MAX_NAME_BYTES + 1)}),
            json!({"id": "r", "maker": "\u{0}"}),
        ] {
            assert_eq!(response(value.clone()), None, "{value}");
        }
        let many = vec!["r"; MAX_RESPONSES + 1];
        assert!(read(json!({"node": "n", "responses_asked": many}).to_string().as_bytes()).is_err());
    }

    #[test]
    fn counts_are_of_minutes_that_can_be() {
        let now = DateTime::from_timestamp(1_795_716_300, 0).unwrap();
        let count = |client_ip: &str, minute: i64, status: i32, count: i64| {
            ToldCount { client_ip: client_ip.to_owned(), minute, status, count }.checked(now)
        };
        let (refused, calls) = count("2001:db8:1:2::", 1_795_716_259, 401, 7).unwrap();
        assert_eq!((refused.address.as_str(), refused.minute.timestamp(), calls), ("2001:db8:1:2::/64", 1_795_716_240, 7));
        assert_eq!(count("other", 1_795_716_240, 401, 1).unwrap().0.address, "other");
        let of_user = |user: &str, refused_by: &str, minute: i64| {
            let (user, refused_by) = (user.to_owned(), refused_by.to_owned());
            ToldUserCount { user, refused_by, minute, status: 429, count: 9 }.checked(now)
        };
        let (refused, calls) = of_user("alice", "quota", 1_795_716_259).unwrap();
        assert_eq!((refused.username.as_str(), refused.refused_by.as_str(), refused.status), ("alice", "quota", 429));
        assert_eq!((refused.minute.timestamp(), calls), (1_795_716_240, 9));
        assert_eq!(of_user("", "kong", 1_795_716_240).unwrap().0.username, "");
        for (user, by, minute) in [("a\0", "quota", 1_795_716_240), ("a", "nobody", 1_795_716_240), ("a", "quota", 0)] {
            assert_eq!(of_user(user, by, minute), None, "{user:?} {by} {minute}");
        }
        assert_eq!(of_user(&"u".repeat(MAX_NAME_BYTES + 1), "quota", 1_795_716_240), None);
        for (minute, status, calls) in
            [(0, 401, 1), (i64::MAX, 401, 1), (1_795_726_240, 401, 1), (1_795_716_240, 99, 1), (1_795_716_240, 401, 0)]
        {
            assert_eq!(count("10.0.0.7", minute, status, calls), None, "{minute} {status} {calls}");
        }
    }
}
