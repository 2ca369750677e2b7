//! A coding agent's session: each call has all that was said before, and the model answers with the next command to run.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::bodies::{Exchange, MODELS};
use super::random::Random;
use super::text::{answer, json_string, prompt};

const SYSTEM: &str = "You are a coding agent. Work in small steps: look, change, run the tests. Stop when they pass.";

const TASKS: [&str; 3] = [
    "The test of the import fails once in ten runs. Find out why and mend it.",
    "Move the settings of the scheduler into one file, and keep the old names working.",
    "报表导出在大文件时内存不断增长，请找出原因并修复。",
];

/// What it does next: a tool, and its arguments.
const STEPS: [(&str, &str); 6] = [
    ("run_command", r#"{"command": "cargo test --quiet import"}"#),
    ("run_command", r#"{"command": "git diff --stat"}"#),
    ("run_command", r#"{"command": "grep -rn 'fn open' src"}"#),
    ("read_file", r#"{"path": "src/import.rs", "first_line": 1, "last_line": 120}"#),
    ("read_file", r#"{"path": "src/import/lines.rs"}"#),
    ("edit_file", r#"{"path": "src/import.rs", "search": "while let Some(line)", "replace": "for line in lines"}"#),
];

const TOOLS: &str = r#""tools":[{"type":"function","function":{"name":"run_command","description":"Run a command in the project","parameters":{"type":"object","properties":{"command":{"type":"string"}},"required":["command"]}}},{"type":"function","function":{"name":"read_file","description":"Lines of a file","parameters":{"type":"object","properties":{"path":{"type":"string"},"first_line":{"type":"integer"},"last_line":{"type":"integer"}},"required":["path"]}}},{"type":"function","function":{"name":"edit_file","description":"Replace text in a file","parameters":{"type":"object","properties":{"path":{"type":"string"},"search":{"type":"string"},"replace":{"type":"string"}},"required":["path","search","replace"]}}}]"#;

/// A conversation that grows.
pub(super) struct Agent {
    model: &'static str,
    /// As JSON, commas between them.
    messages: String,
    /// Tokens that the model server has seen: it finds them in its cache.
    seen: usize,
}

impl Agent {
    pub(super) fn new(random: &mut Random) -> Self {
        let (system, task) = (json_string(SYSTEM), json_string(random.one(&TASKS)));
        let messages = format!(r#"{{"role":"system","content":{system}}},{{"role":"user","content":{task}}}"#);
        Self { model: random.one(&MODELS), messages, seen: 0 }
    }

    /// One call; the last one is answered in words.
    pub(super) fn step(&mut self, random: &mut Random, is_last: bool) -> Exchange {
        let (model, id) = (self.model, format!("{:016x}", random.next()));
        let request = format!(r#"{{"messages":[{}],"model":"{model}","temperature":0,{TOOLS}}}"#, self.messages);
        let prompt_tokens = 250 + self.messages.chars().count() / 3;
        let (message, reason, completion_tokens) = if is_last {
            let words = answer(random, false, 120);
            (format!(r#"{{"role":"assistant","content":{}}}"#, json_string(&words.concat())), "stop", words.len())
        } else {
            let (tool, arguments) = random.one(&STEPS);
            let arguments = json_string(arguments);
            let call = format!(
                r#"{{"role":"assistant","content":null,"tool_calls":[{{"id":"chatcmpl-tool-{id}","type":"function","function":{{"name":"{tool}","arguments":{arguments}}}}}]}}"#
            );
            (call, "tool_calls", random.between(20, 60) as usize)
        };
        let response = format!(
            r#"{{"id":"chatcmpl-{id}","object":"chat.completion","created":1795402412,"model":"{model}","choices":[{{"index":0,"message":{message},"logprobs":null,"finish_reason":"{reason}","stop_reason":null}}],"usage":{{"prompt_tokens":{prompt_tokens},"total_tokens":{},"completion_tokens":{completion_tokens},"prompt_tokens_details":{{"cached_tokens":{}}}}}}}"#,
            prompt_tokens + completion_tokens,
            self.seen
        );
        let output = json_string(&prompt(random, false));
        self.messages += &format!(r#",{message},{{"role":"tool","tool_call_id":"chatcmpl-tool-{id}","content":{output}}}"#);
        self.seen = prompt_tokens;
        Exchange {
            path: "/v1/chat/completions",
            status: 200,
            stream: false,
            aborted: false,
            is_known_user: true,
            is_from_model: true,
            content_type: "application/json",
            request: STANDARD.encode(&request),
            response: STANDARD.encode(&response),
            request_bytes: request.len(),
            response_bytes: response.len(),
            milliseconds: 20 * completion_tokens as u64,
            tokens: (prompt_tokens as u64, completion_tokens as u64),
        }
    }
}
