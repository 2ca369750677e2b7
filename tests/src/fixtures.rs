//! Recorded traffic under `tests/fixtures`.

use std::path::{Path, PathBuf};

/// The folder of recorded Kong traffic.
pub fn kong() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kong")
}

/// The folder of recorded exchanges with vLLM.
pub fn vllm() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vllm")
}

/// The folder of recorded exchanges with vLLM 0.33.
pub fn vllm_033() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vllm-0.33")
}

/// The names of all recorded exchanges with vLLM, in order.
pub fn vllm_names() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(vllm())
        .expect("recorded exchanges")
        .map(|folder| folder.expect("a folder").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The request body of a recorded exchange.
pub fn vllm_request(name: &str) -> Vec<u8> {
    read(vllm().join(name).join("request.json"))
}

/// The response body of a recorded exchange.
pub fn vllm_response(name: &str) -> Vec<u8> {
    read(vllm().join(name).join("response.bin"))
}

/// The request line and headers of a recorded exchange.
pub fn vllm_request_head(name: &str) -> (String, Vec<(String, String)>) {
    let head: serde_json::Value =
        serde_json::from_slice(&read(vllm().join(name).join("request_headers.json"))).expect("a request head is JSON");
    let headers = serde_json::from_value(head["headers"].clone()).expect("headers are pairs");
    (head["request_line"].as_str().expect("a request line").to_owned(), headers)
}

/// A recorded request body of `POST /log`.
pub fn batch(name: &str) -> Vec<u8> {
    read(kong().join("batches").join(format!("{name}.json")))
}

/// A recorded entry.
pub fn entry(name: &str) -> Vec<u8> {
    read(kong().join("entries").join(format!("{name}.json")))
}

/// The names of all recorded entries, in order.
pub fn entry_names() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(kong().join("entries"))
        .expect("recorded entries")
        .map(|file| file.expect("a file").path().file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(names.len() > 150, "only {} recorded entries", names.len());
    names
}

/// The row that a recorded entry must become.
pub fn expected_row(name: &str) -> serde_json::Value {
    let file = kong().join("expected").join(format!("{name}.json"));
    serde_json::from_slice(&read(file)).expect("an expected row is JSON")
}

/// A small entry with the given identity; distinct seconds give distinct rows.
pub fn small_entry(request_id: &str, started_at_ms: i64) -> String {
    format!(
        r#"{{"request":{{"id":"{request_id}","uri":"/v1/chat/completions","method":"POST","headers":{{}},"body":"{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"hi {request_id}\"}}]}}"}},"response":{{"status":200,"headers":{{"content-type":"application/json"}},"body":"{{\"model\":\"m\",\"choices\":[{{\"index\":0,\"message\":{{\"content\":\"hello\"}},\"finish_reason\":\"stop\"}}],\"usage\":{{\"prompt_tokens\":3,\"completion_tokens\":5}}}}"}},"consumer":{{"username":"z1"}},"latencies":{{"request":12,"proxy":11,"kong":1}},"client_ip":"10.0.0.7","started_at":{started_at_ms}}}"#
    )
}

/// `count` small entries as a batch, identified by `prefix` and a number.
pub fn small_batch(prefix: &str, count: usize) -> String {
    let entries: Vec<String> = (0..count).map(|n| small_entry(&format!("{prefix}-{n}"), 1_795_400_000_000 + n as i64)).collect();
    format!("[{}]", entries.join(","))
}

/// A small entry that has no identity, and a credential that is removed wherever the entry is kept: its bytes change on the way.
pub fn nameless_entry(prompt: &str, started_at_ms: i64) -> String {
    let entry = small_entry(prompt, started_at_ms);
    entry.replacen(&format!(r#""id":"{prompt}","#), "", 1).replacen(
        r#""headers":{}"#,
        r#""headers":{"x-api-key":"sk-z123456"}"#,
        1,
    )
}

/// As [`small_batch`], but every second entry has no identity. Their prompts tell them apart.
pub fn mixed_batch(prefix: &str, count: usize) -> String {
    let entry = |n: usize| if n.is_multiple_of(2) { small_entry } else { nameless_entry };
    let entries: Vec<String> = (0..count).map(|n| entry(n)(&format!("{prefix}-{n}"), 1_795_400_000_000 + n as i64)).collect();
    format!("[{}]", entries.join(","))
}

fn read(path: PathBuf) -> Vec<u8> {
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
