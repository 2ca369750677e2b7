//! The recordings of `tests/fixtures/vllm`, and which of them answers a request.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use serde_json::Value;

use super::answer::{Answer, Chunk, End, Framing};

/// Headers of the connection, not of the answer.
const HOP_BY_HOP: [&str; 4] = ["connection", "keep-alive", "transfer-encoding", "content-length"];

/// Recordings of servers that were started with other options or that were dying: they only answer when named, or when no other
/// recording has the same request.
const SPECIAL: [&str; 9] = ["emb-", "engine-", "key-", "prompt-30kb-cached", "ptd-", "random-", "rid-", "rp-", "sigterm-"];

/// All recordings.
#[derive(Debug)]
pub(super) struct Recordings {
    by_name: HashMap<String, Recording>,
    by_body: HashMap<(String, Bytes), String>,
    by_meaning: HashMap<(String, String), String>,
    usage_by_question: HashMap<(String, String), Value>,
}

#[derive(Debug)]
struct Recording {
    /// `POST /v1/chat/completions`
    call: String,
    request: Bytes,
    answer: Answer,
}

impl Recordings {
    /// Reads all of a folder.
    pub(super) fn read(folder: &Path) -> Self {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.expect("a folder").file_name().to_string_lossy().into_owned())
            .collect();
        // The first of equals answers.
        names.sort_by_key(|name| (SPECIAL.iter().any(|prefix| name.starts_with(prefix)), name.clone()));
        let mut all = Self {
            by_name: HashMap::new(),
            by_body: HashMap::new(),
            by_meaning: HashMap::new(),
            usage_by_question: HashMap::new(),
        };
        for name in names {
            all.add(&name, Recording::read(&folder.join(&name), &name));
        }
        all
    }

    fn add(&mut self, name: &str, recording: Recording) {
        let call = &recording.call;
        self.by_body.entry((call.clone(), recording.request.clone())).or_insert_with(|| name.to_owned());
        if let Some(meaning) = without(&recording.request, &["stream_options"]) {
            self.by_meaning.entry((call.clone(), meaning)).or_insert_with(|| name.to_owned());
        }
        if let Some(question) = without(&recording.request, &["stream_options", "stream"])
            && let Some(usage) = super::usage::of_answer(&recording.answer)
        {
            self.usage_by_question.entry((call.clone(), question)).or_insert(usage);
        }
        self.by_name.insert(name.to_owned(), recording);
    }

    /// The recording of that name; those of vLLM 0.33 answer only when they are named.
    pub(super) fn named(&self, name: &str) -> Option<Answer> {
        if let Some(recording) = self.by_name.get(name) {
            return Some(recording.answer.clone());
        }
        let folder = crate::fixtures::vllm_033().join(name);
        let is_name = name.starts_with("v33-") && !name.contains(['/', '.']);
        (is_name && folder.is_dir()).then(|| Recording::read(&folder, name).answer)
    }

    /// The recording of the same request: byte for byte, else but for `stream_options`.
    pub(super) fn matching(&self, method: &str, target: &str, body: &[u8]) -> Option<Answer> {
        let call = format!("{method} {target}");
        let exact = self.by_body.get(&(call.clone(), Bytes::copy_from_slice(body)));
        let name = match exact {
            Some(name) => name,
            None => self.by_meaning.get(&(call, without(body, &["stream_options"])?))?,
        };
        self.named(name)
    }

    /// What some recording reports for the same question, however it was to be answered.
    pub(super) fn usage(&self, method: &str, target: &str, body: &[u8]) -> Option<Value> {
        let question = without(body, &["stream_options", "stream"])?;
        self.usage_by_question.get(&(format!("{method} {target}"), question)).cloned()
    }
}

/// JSON text of an object without some members, keys sorted; `None` when it is no object.
fn without(body: &[u8], members: &[&str]) -> Option<String> {
    let mut value: Value = serde_json::from_slice(body).ok()?;
    let object = value.as_object_mut()?;
    for member in members {
        object.remove(*member);
    }
    Some(value.to_string())
}

impl Recording {
    fn read(folder: &Path, name: &str) -> Self {
        let json = |file: &str| -> Value {
            let text = std::fs::read(folder.join(file)).unwrap_or_else(|error| panic!("{name}/{file}: {error}"));
            serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{name}/{file}: {error}"))
        };
        let request_head = json("request_headers.json");
        let request_line = request_head["request_line"].as_str().expect("a request line");
        let call = request_line.trim_end_matches(" HTTP/1.1").trim_end_matches(" HTTP/1.0").to_owned();
        Self {
            call,
            request: std::fs::read(folder.join("request.json")).expect("a request").into(),
            answer: Self::read_answer(folder, name, &json),
        }
    }

    fn read_answer(folder: &Path, name: &str, json: &dyn Fn(&str) -> Value) -> Answer {
        let how = json("chunks.json");
        let client_went = how["aborted"].is_string();
        let mut answer = Answer {
            status: 200,
            reason: String::new(),
            headers: Vec::new(),
            framing: Framing::Chunked,
            headers_at_ms: how["headers_at_ms"].as_f64().unwrap_or(0.0),
            chunks: Vec::new(),
            end: if client_went { End::Never } else { End::Complete },
            recording: Some(name.to_owned()),
        };
        if how["headers_at_ms"].is_null() {
            // The client went before there was an answer.
            return answer;
        }
        let head = json("response_headers.json");
        let mut status_line = head["status_line"].as_str().expect("a status line").splitn(3, ' ').skip(1);
        answer.status = status_line.next().and_then(|status| status.parse().ok()).expect("a status");
        answer.reason = status_line.next().unwrap_or_default().to_owned();
        let headers: Vec<(String, String)> =
            serde_json::from_value(head["headers"].clone()).expect("headers are pairs of names and values");
        if how["framing"] == "content-length" {
            let length = super::http::header(&headers, "content-length").and_then(|length| length.parse().ok());
            answer.framing = Framing::Length(length.expect("a length"));
        }
        answer.headers = headers;
        answer.headers.retain(|(name, _)| !HOP_BY_HOP.contains(&name.to_ascii_lowercase().as_str()));

        let mut body = Bytes::from(std::fs::read(folder.join("response.bin")).expect("a response"));
        let pieces: Vec<(f64, usize)> = serde_json::from_value(how["http_chunks"].clone()).expect("times and sizes");
        for (at_ms, size) in pieces.into_iter().filter(|(_, size)| *size > 0) {
            // A body in which a path of the recording machine was replaced is shorter than it was.
            answer.chunks.push(Chunk { at_ms, data: body.split_to(size.min(body.len())) });
        }
        assert!(body.is_empty(), "{name}: {} bytes in no chunk", body.len());
        if let (Framing::Length(length), [only]) = (&mut answer.framing, answer.chunks.as_slice()) {
            *length = only.data.len();
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Recordings {
        Recordings::read(&crate::fixtures::vllm())
    }

    #[test]
    fn a_request_finds_its_recording_byte_for_byte_or_but_for_stream_options() {
        let recordings = all();
        let find = |body: &str| recordings.matching("POST", "/v1/chat/completions", body.as_bytes())?.recording;
        let question = r#""messages":[{"role":"user","content":"What is an LLM gateway?"}],"temperature":0"#;
        let plain = format!(r#"{{"model":"qwen-tiny","stream":true,{question}}}"#);
        assert_eq!(find(&plain).as_deref(), Some("chat-en-stream"));
        let asked = format!(r#"{{"model":"qwen-tiny","stream":true,{question},"stream_options":{{"include_usage":true}}}}"#);
        assert!(find(&asked).is_some_and(|name| name.starts_with("chat-en-stream")), "{:?}", find(&asked));
        assert_eq!(find(r#"{"model":"qwen-tiny","messages":[]}"#), None);
        assert_eq!(find("no JSON"), None);
    }

    #[test]
    fn dying_servers_answer_only_when_named() {
        let recordings = all();
        let health = recordings.matching("GET", "/health", b"").unwrap();
        assert_eq!((health.status, health.recording.as_deref()), (200, Some("get-health")));
        assert_eq!(recordings.named("engine-dead-health").unwrap().status, 503);
    }
}
