//! Every recorded exchange once more, through the gateway: the client must get vLLM's bytes, and the row must be the one that was
//! written by hand for the exchange.

use gateway_tests::collector::sha256_hex;
use gateway_tests::fixtures;
use gateway_tests::gateway::{Call, Reply, Session};
use gateway_tests::vllm::Seen;
use serde_json::{Value, json};

use crate::events::{assert_same, split, usages, without_usage};

/// Columns that do not depend on where and when the call is made.
const COLUMNS: [&str; 17] = [
    "status",
    "model",
    "endpoint",
    "stream",
    "aborted",
    "truncated",
    "prompt",
    "response",
    "reasoning",
    "tool_calls",
    "finish_reason",
    "error",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "consumer_username",
];

/// Headers of the connection or of whoever made the recording.
const OWN_HEADERS: [&str; 7] =
    ["host", "connection", "content-length", "authorization", "x-api-key", "transfer-encoding", "user-agent"];

/// One recorded call.
pub(crate) struct Recorded {
    pub(crate) name: String,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Recorded {
    fn read(name: String) -> Self {
        let (line, headers) = fixtures::vllm_request_head(&name);
        let mut words = line.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let body = fixtures::vllm_request(&name);
        Self { name, method, target, headers, body }
    }

    /// Whether the gateway has the path on its list. A recorded client that went away is another test, and one that continues a
    /// response that nobody made.
    fn is_open(&self) -> bool {
        let path = self.target.split('?').next().unwrap();
        let models = ["/v1/models", "/tokenize", "/detokenize", "/v1/embeddings", "/v1/rerank", "/score"];
        let generation =
            ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"];
        (models.contains(&path) || generation.contains(&path))
            && !self.name.starts_with("disconnect-")
            && self.name != "responses-previous-id-error"
    }

    pub(crate) async fn call(&self, session: &Session, key: &str) -> Reply {
        self.request(session, key).send().await
    }

    fn request<'s>(&self, session: &'s Session, key: &str) -> Call<'s> {
        let mut call = session.call(&self.target).key(key).header("x-fixture", &self.name);
        if self.method != "GET" {
            call = call.raw_body(self.body.clone());
        }
        for (name, value) in &self.headers {
            if !OWN_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
                call = call.header_bytes(name, value.as_bytes());
            }
        }
        call.method(&self.method)
    }

    /// A stream of which the gateway asks for usage, because the client does not.
    fn may_be_edited(&self) -> bool {
        let Some(body) = parsed(&self.body) else { return false };
        let options = &body["stream_options"];
        let path = self.target.split('?').next().unwrap();
        matches!(path, "/v1/chat/completions" | "/v1/completions") && body["stream"] == true && options["include_usage"] != true
    }
}

/// A request as JSON, also one with half of a surrogate pair, which the gateway reads and serde_json does not.
fn parsed(body: &[u8]) -> Option<Value> {
    serde_json::from_str(&String::from_utf8_lossy(body).replace("\\udc00", "half")).ok()
}

/// The calls that the gateway lets through.
pub(crate) fn recorded() -> Vec<Recorded> {
    let recorded: Vec<Recorded> = fixtures::vllm_names().into_iter().map(Recorded::read).filter(Recorded::is_open).collect();
    assert!(recorded.len() > 140, "only {} recordings", recorded.len());
    recorded
}

#[tokio::test]
async fn every_recorded_exchange_passes_untouched_and_becomes_the_row_written_for_it() {
    let session = Session::begin().await;
    let user = session.user().await;
    let recorded = recorded();
    let mut replies = Vec::new();
    for recorded in &recorded {
        let reply = recorded.call(&session, &user.key).await;
        let seen = reply.seen_once(&session).await;
        check_bytes(recorded, &reply, &seen);
        replies.push((recorded, reply, seen));
    }
    let mut wrong = Vec::new();
    for (recorded, reply, seen) in &replies {
        let row = reply.row(&session).await;
        let mut expected = expected_row(recorded, seen);
        expected["consumer_username"] = json!(user.name);
        for column in COLUMNS {
            let got = shortened(&row[column]);
            if got != expected[column] {
                wrong.push(format!("{}.{column}:\n  expected {}\n  got      {got}", recorded.name, expected[column]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} columns differ\n{}", wrong.len(), wrong.join("\n"));
}

/// What a stream adds up to is what it is without its events' frames: where they do not fit the plugin joins them, and the
/// collector must not notice.
#[tokio::test]
async fn a_recorded_stream_that_was_made_short_becomes_the_row_of_the_whole_one() {
    let session = Session::alone().await;
    let user = session.user().await;
    let streams: Vec<Recorded> = recorded()
        .into_iter()
        .filter(|recorded| fixtures::expected_row(&recorded.name)["stream"] == true && recorded.body.len() <= 2000)
        .collect();
    let (mut made_short, mut wrong) = (0, Vec::new());
    for limit in [2500, 6000, 15_000] {
        session.change(&[("AUDIT_MAX_RESPONSE_BYTES", &limit.to_string())]).await;
        for recorded in streams.iter().filter(|recorded| fixtures::vllm_response(&recorded.name).len() > limit) {
            let reply = recorded.request(&session, &user.key).header("x-sim-time-scale", "0").send().await;
            let seen = reply.seen_once(&session).await;
            let row = reply.row(&session).await;
            // What was too long even so is another matter.
            if row["truncated"] == true {
                continue;
            }
            made_short += 1;
            let mut expected = expected_row(recorded, &seen);
            expected["consumer_username"] = json!(user.name);
            for column in COLUMNS {
                let got = shortened(&row[column]);
                if got != expected[column] {
                    wrong.push(format!("{limit} {}.{column}:\n  expected {}\n  got      {got}", recorded.name, expected[column]));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} columns differ\n{}", wrong.len(), wrong.join("\n"));
    assert!(made_short > 30, "{made_short} streams were made short and lost nothing");
}

fn check_bytes(recorded: &Recorded, reply: &Reply, seen: &Seen) {
    let Recorded { name, .. } = recorded;
    assert_eq!(reply.broken, None, "{name}");
    assert_eq!(Some(reply.status), seen.status, "{name}");
    assert_eq!((seen.method.as_str(), seen.target.as_str()), (recorded.method.as_str(), recorded.target.as_str()), "{name}");
    if recorded.may_be_edited() {
        // The simulation itself is not to be trusted more than necessary: all but the usage is as recorded.
        let unedited = |text: &[u8]| {
            let mut body = parsed(text).unwrap();
            body.as_object_mut().unwrap().remove("stream_options");
            body
        };
        assert_eq!(unedited(&seen.body), unedited(&recorded.body), "{name}");
        assert_same(name, &reply.body, &without_usage(&seen.sent));
        let events = |body: &[u8]| split(body).len();
        assert_eq!(events(&reply.body), events(&fixtures::vllm_response(name)), "{name}");
    } else {
        // No client chooses ids.
        let forwarded = String::from_utf8_lossy(&recorded.body).replace(r#","request_id":"body-id-7""#, "");
        let forwarded = if name == "rid-body-request-id" { forwarded.as_bytes() } else { &recorded.body };
        assert_same(name, &seen.body, forwarded);
        assert_same(name, &reply.body, &fixtures::vllm_response(name));
    }
}

/// The row written for the entry that a real Kong sent. It did not ask for usage: where the stream has some now, that counts.
pub(crate) fn expected_row(recorded: &Recorded, seen: &Seen) -> Value {
    let mut expected = fixtures::expected_row(&recorded.name);
    if recorded.method == "HEAD" {
        // The plugin of the recording did not know that such an answer has no body.
        expected["aborted"] = json!(false);
    }
    if recorded.name == "prompt-raw-nul-byte" {
        // The plugin reads the model of what is no JSON to the collector.
        expected["model"] = json!("qwen-tiny");
    }
    if let Some(usage) = usages(&seen.sent).first() {
        for column in ["prompt_tokens", "completion_tokens"] {
            assert!(expected[column].is_null() || expected[column] == usage[column], "{}.{column}", recorded.name);
            expected[column] = usage[column].clone();
        }
    }
    expected
}

/// Long texts as the expected rows hold them.
fn shortened(value: &Value) -> Value {
    match value.as_str() {
        Some(text) if text.chars().count() > 600 => {
            let chars: Vec<char> = text.chars().collect();
            json!({
                "chars": chars.len(),
                "sha256": sha256_hex(text.as_bytes()),
                "head": chars[..60].iter().collect::<String>(),
                "tail": chars[chars.len() - 60..].iter().collect::<String>(),
            })
        }
        _ => value.clone(),
    }
}
