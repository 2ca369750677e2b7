//! The one record that is stored and measured: a call to the model.

use chrono::{DateTime, Utc};

use crate::decode::json::{write_list, write_string};
use crate::extract::api::Api;
use crate::extract::conversation::Turns;

/// A call, column by column as in the table `llm_logs`; see `sql/` for what each means.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Kong's identity of the request.
    pub request_id: String,
    /// Kong's consumer, `anonymous` where there is none.
    pub consumer_username: String,
    /// When Kong received the request.
    pub started_at: DateTime<Utc>,
    /// Milliseconds from the first byte of the request to the last byte of the answer.
    pub latency_ms: Option<i32>,
    /// HTTP status that the client got.
    pub status: Option<i32>,
    /// The answering model, else the one asked for.
    pub model: Option<String>,
    /// Path of the request.
    pub endpoint: Option<String>,
    /// Name of Kong's service.
    pub service: Option<String>,
    /// Name of Kong's route.
    pub route: Option<String>,
    /// Address of the client.
    pub client_ip: Option<std::net::IpAddr>,
    /// The answer was an event stream.
    pub stream: bool,
    /// The answer did not come to its end.
    pub aborted: bool,
    /// A captured body is not all of it.
    pub truncated: bool,
    /// What was asked.
    pub prompt: Option<String>,
    /// What was answered.
    pub response: Option<String>,
    /// What the model thought before.
    pub reasoning: Option<String>,
    /// The tools that the model wants called.
    pub tool_calls: Vec<ToolCall>,
    /// Why the model stopped.
    pub finish_reason: Option<String>,
    /// Message of a failure, whoever made it.
    pub error: Option<String>,
    /// Tokens as reported by the model server.
    pub usage: Usage,
    /// Whether the answer is a stored response whose tokens another call has counted: `usage` is empty then.
    pub is_repeat: bool,
    /// Tokens of prompt and answer as the gateway estimated them, where the model server reported none.
    pub estimated: (Option<i32>, Option<i32>),
    /// What of the call nobody understood, each kind once.
    pub unread: Vec<Unread>,
    /// The caller's team.
    pub team: Option<String>,
    /// The model server that the gateway chose.
    pub backend: Option<String>,
    /// Milliseconds that the gateway held the call back.
    pub queue_ms: Option<i32>,
    /// What of the gateway answered instead of a model.
    pub refused_by: Option<String>,
    /// The trace that the client says the call belongs to: 32 hexadecimal digits.
    pub trace_id: Option<String>,
    /// How long the call took inside of the model server.
    pub engine: EngineTimes,
    /// Milliseconds from the first byte of the request to the first byte of the answer's body.
    pub ttft_ms: Option<i32>,
    /// Milliseconds that Kong waited for the upstream's first byte.
    pub upstream_latency_ms: Option<i32>,
    /// Milliseconds spent in Kong itself.
    pub gateway_latency_ms: Option<i32>,
    /// The entry as JSON text, without credentials, its bodies as JSON.
    pub raw_log: String,
    /// Parts of `raw_log` that may be stored apart, in the order in which they stand there; none is inside another.
    pub parts: Vec<Part>,
    /// Where in conversations it stands.
    pub turns: Turns,
    /// What was masked in the bodies: the pattern's name and how often.
    pub masked: Vec<(std::sync::Arc<str>, u32)>,
    /// The API that the path belongs to: what metrics are labelled with, because paths are not bounded.
    pub api: Api,
    /// The model that answered successfully, for metrics: a name that a client made up never gets here.
    pub served_model: Option<String>,
}

/// A part of the bodies in `raw_log`: a message, the definition of a tool, an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Bytes of `raw_log`, JSON text.
    pub range: std::ops::Range<usize>,
    /// It is an element of a list; else a member of a body, or all of a body.
    pub is_element: bool,
    /// SHA-256 of that text.
    pub sha256: [u8; 32],
}

/// Times inside of the model server, as it reported them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineTimes {
    /// Milliseconds in its queue.
    pub queue_ms: Option<i32>,
    /// Milliseconds from there to the first token.
    pub prefill_ms: Option<i32>,
    /// Milliseconds from the first token to the last.
    pub decode_ms: Option<i32>,
}

/// What nobody understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// The body of the request.
    Request,
    /// The body of the answer.
    Response,
    /// An event whose data is nothing known.
    Event,
    /// A line of a stream that belongs to no event.
    Line,
    /// An event of a type that is not known.
    Type,
    /// A member that has no place in the answer.
    Member,
}

impl Unread {
    /// All kinds.
    pub const ALL: [Self; 6] = [Self::Request, Self::Response, Self::Event, Self::Line, Self::Type, Self::Member];

    /// Its name in `raw_log` and in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response => "response",
            Self::Event => "event",
            Self::Line => "line",
            Self::Type => "type",
            Self::Member => "member",
        }
    }

    /// Whether text of the conversation may be missing from the columns. New types and members come with each version of a server;
    /// they are kept and counted, and say nothing about the rest.
    fn hides_text(self) -> bool {
        !matches!(self, Self::Type | Self::Member)
    }
}

/// A call of a tool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolCall {
    /// Identity by which the result refers to the call.
    pub id: Option<String>,
    /// Name of the function.
    pub name: Option<String>,
    /// Arguments as the text that came, usually JSON.
    pub arguments: String,
}

/// Token counts as reported; nothing is guessed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: Option<i32>,
    /// Tokens of the answer, reasoning included.
    pub completion_tokens: Option<i32>,
    /// Tokens of the prompt that came from the cache.
    pub cached_tokens: Option<i32>,
    /// Tokens of the answer that were reasoning.
    pub reasoning_tokens: Option<i32>,
}

impl Usage {
    /// Whether the server reported any count.
    pub fn is_reported(&self) -> bool {
        self.prompt_tokens.is_some() || self.completion_tokens.is_some()
    }
}

impl Call {
    /// Whether the answer was a success, and complete.
    pub fn succeeded(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status)) && self.error.is_none() && !self.aborted
    }

    /// The column `unread`.
    pub fn is_unread(&self) -> bool {
        self.unread.iter().any(|kind| kind.hides_text())
    }

    /// The texts of its columns that people and models chose. `raw_log` is none of them.
    pub fn texts_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let Self { model, endpoint, prompt, response, reasoning, finish_reason, error, served_model, tool_calls, .. } = self;
        let columns = [model, endpoint, prompt, response, reasoning, finish_reason, error, served_model].into_iter().flatten();
        columns.chain(
            tool_calls.iter_mut().flat_map(|ToolCall { id, name, arguments }| {
                id.iter_mut().chain(name.iter_mut()).chain(std::iter::once(arguments))
            }),
        )
    }

    /// The column `tool_calls`: JSON text, `None` where no tool was called.
    pub fn tool_calls_json(&self) -> Option<String> {
        if self.tool_calls.is_empty() {
            return None;
        }
        let mut out = String::new();
        write_list(&mut out, '[', &self.tool_calls, ']', |out, call| {
            for (prefix, value) in [("{\"id\":", &call.id), (",\"name\":", &call.name)] {
                out.push_str(prefix);
                match value {
                    Some(text) => write_string(out, text),
                    None => out.push_str("null"),
                }
            }
            out.push_str(",\"arguments\":");
            write_string(out, &call.arguments);
            out.push('}');
        });
        Some(out)
    }

    /// Bytes that the call takes in memory, roughly: its texts.
    pub fn weight(&self) -> usize {
        let texts = [&self.prompt, &self.response, &self.reasoning, &self.error];
        let arguments: usize = self.tool_calls.iter().map(|call| call.arguments.len() + 64).sum();
        512 + self.raw_log.len()
            + self.parts.len() * size_of::<Part>()
            + texts.into_iter().flatten().map(String::len).sum::<usize>()
            + arguments
    }
}
