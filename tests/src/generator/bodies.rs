//! The two bodies of a call, as vLLM 0.32 and the OpenAI SDK write them.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::random::Random;
use super::text::{answer, json_string, prompt, tokens};

/// Bodies and what goes with them.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) path: &'static str,
    pub(super) status: u16,
    pub(super) stream: bool,
    pub(super) aborted: bool,
    /// Kong knew the key.
    pub(super) is_known_user: bool,
    /// Kong asked vLLM, and did not answer by itself.
    pub(super) is_from_model: bool,
    pub(super) content_type: &'static str,
    /// In base64.
    pub(super) request: String,
    /// In base64.
    pub(super) response: String,
    pub(super) request_bytes: usize,
    pub(super) response_bytes: usize,
    /// From the first to the last byte of the answer.
    pub(super) milliseconds: u64,
    /// Of the prompt and of the answer, as the answer reports them.
    pub(super) tokens: (u64, u64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    ChatStream,
    ReasoningStream,
    ToolStream,
    CompletionStream,
    MessagesStream,
    ResponsesStream,
    Chat,
    ToolChat,
    Completion,
    Embeddings,
    ContextTooLong,
    WrongKey,
    RateLimited,
    ModelAway,
}

/// How many of a hundred calls are of each kind.
const MIX: [(u64, Kind); 14] = [
    (33, Kind::ChatStream),
    (6, Kind::ReasoningStream),
    (4, Kind::ToolStream),
    (2, Kind::CompletionStream),
    (3, Kind::MessagesStream),
    (2, Kind::ResponsesStream),
    (33, Kind::Chat),
    (5, Kind::ToolChat),
    (2, Kind::Completion),
    (4, Kind::Embeddings),
    (2, Kind::ContextTooLong),
    (1, Kind::WrongKey),
    (2, Kind::RateLimited),
    (1, Kind::ModelAway),
];

pub(super) const MODELS: [&str; 4] = ["qwen3-32b", "qwen3-32b", "deepseek-r1-distill-70b", "glm-4.5-air"];

/// Of a hundred streams so many end because the client went away.
const ABORTED_PERCENT: f64 = 2.0;

/// Largest stream, before base64.
const MAX_STREAM_BYTES: usize = 60_000;

const TOOLS: &str = r#""tools":[{"type":"function","function":{"name":"get_weather","description":"Get the current weather in a given city","parameters":{"type":"object","properties":{"city":{"type":"string","description":"City name"},"unit":{"type":"string","enum":["celsius","fahrenheit"]}},"required":["city"]}}},{"type":"function","function":{"name":"search_docs","description":"Search the internal documents","parameters":{"type":"object","properties":{"query":{"type":"string"},"limit":{"type":"integer"}},"required":["query"]}}}]"#;

/// What the bodies of one call are made from.
struct Call {
    kind: Kind,
    id: String,
    model: &'static str,
    created: u64,
    prompt: String,
    prompt_tokens: usize,
    /// The answer, token by token; of a call of a tool its arguments.
    tokens: Vec<String>,
    reasoning: Vec<String>,
    history: Vec<(String, String)>,
}

impl Exchange {
    pub(super) fn new(random: &mut Random) -> Self {
        let mut point = random.below(100) as u64;
        let (_, kind) = MIX
            .iter()
            .find(|(share, _)| {
                let is_here = point < *share;
                point = point.saturating_sub(*share);
                is_here
            })
            .unwrap_or(&MIX[0]);
        let call = Call::new(random, *kind);
        let request = call.request();
        let (status, mut response) = call.response(random);
        let stream = call.is_stream();
        let aborted = stream && random.chance(ABORTED_PERCENT / 100.0);
        if aborted {
            let kept = response.len() / 2;
            response.truncate(response.floor_char_boundary(kept));
        }
        Self {
            path: call.path(),
            status,
            stream,
            aborted,
            is_known_user: *kind != Kind::WrongKey,
            is_from_model: !matches!(kind, Kind::WrongKey | Kind::RateLimited | Kind::ModelAway),
            content_type: if stream { "text/event-stream; charset=utf-8" } else { "application/json" },
            request: STANDARD.encode(&request),
            response: STANDARD.encode(&response),
            request_bytes: request.len(),
            response_bytes: response.len(),
            milliseconds: 10 * (call.tokens.len() + call.reasoning.len()) as u64,
            tokens: call.reported(status, aborted),
        }
    }
}

impl Call {
    fn new(random: &mut Random, kind: Kind) -> Self {
        let is_chinese = random.chance(0.33);
        let prompt = prompt(random, is_chinese);
        // An event has some 215 bytes around its token.
        let stream_tokens = random.size(1_500, 18_000, MAX_STREAM_BYTES - 2_000) / 225;
        let whole_tokens = random.size(10, 150, 1_500);
        let (answer_tokens, reasoning_tokens) = match kind {
            Kind::ReasoningStream => (stream_tokens / 3, stream_tokens - stream_tokens / 3),
            Kind::ChatStream | Kind::CompletionStream | Kind::MessagesStream => (stream_tokens, 0),
            Kind::ResponsesStream => (stream_tokens / 2, 0),
            _ => (whole_tokens, 0),
        };
        let tokens = match kind {
            Kind::ToolStream | Kind::ToolChat => {
                let city = if is_chinese { "北京" } else { "Paris" };
                tokens(random, &format!(r#"{{"city": "{city}", "unit": "celsius"}}"#), 40)
            }
            _ => answer(random, is_chinese, answer_tokens),
        };
        let reasoning = answer(random, is_chinese, reasoning_tokens);
        let turns = if random.chance(0.3) { random.between(1, 3) } else { 0 };
        let history = (0..turns).map(|_| {
            let answer_length = random.size(20, 120, 400);
            (answer(random, is_chinese, 30).concat(), answer(random, is_chinese, answer_length).concat())
        });
        Self {
            history: history.collect(),
            kind,
            id: format!("{:016x}", random.next()),
            model: random.one(&MODELS),
            created: 1_795_402_412 + random.between(0, 10_000),
            prompt_tokens: 20 + prompt.chars().count() / 3,
            prompt,
            tokens,
            reasoning,
        }
    }

    fn is_stream(&self) -> bool {
        use Kind::*;
        matches!(self.kind, ChatStream | ReasoningStream | ToolStream | CompletionStream | MessagesStream | ResponsesStream)
    }

    fn path(&self) -> &'static str {
        match self.kind {
            Kind::CompletionStream | Kind::Completion => "/v1/completions",
            Kind::MessagesStream => "/v1/messages",
            Kind::ResponsesStream => "/v1/responses",
            Kind::Embeddings => "/v1/embeddings",
            _ => "/v1/chat/completions",
        }
    }

    fn request(&self) -> String {
        let (model, prompt) = (self.model, json_string(&self.prompt));
        let mut messages =
            String::from(r#"{"role":"system","content":"You are a careful assistant. Answer in the language of the question."}"#);
        for (asked, answered) in &self.history {
            let (asked, answered) = (json_string(asked), json_string(answered));
            let _ = write!(messages, r#",{{"role":"user","content":{asked}}},{{"role":"assistant","content":{answered}}}"#);
        }
        let _ = write!(messages, r#",{{"role":"user","content":{prompt}}}"#);
        let streamed = r#""stream":true,"stream_options":{"include_usage":true},"temperature":0.7"#;
        match self.kind {
            Kind::ChatStream | Kind::ReasoningStream => format!(r#"{{"messages":[{messages}],"model":"{model}",{streamed}}}"#),
            Kind::ToolStream => format!(r#"{{"messages":[{messages}],"model":"{model}",{streamed},{TOOLS}}}"#),
            Kind::ToolChat => format!(r#"{{"messages":[{messages}],"model":"{model}","temperature":0,{TOOLS}}}"#),
            Kind::CompletionStream => format!(r#"{{"model":"{model}","prompt":{prompt},"max_tokens":400,{streamed}}}"#),
            Kind::Completion => format!(r#"{{"model":"{model}","prompt":{prompt},"max_tokens":400,"temperature":0.7}}"#),
            Kind::MessagesStream => {
                format!(
                    r#"{{"max_tokens":1024,"messages":[{{"role":"user","content":{prompt}}}],"model":"{model}","stream":true}}"#
                )
            }
            Kind::ResponsesStream => format!(r#"{{"input":{prompt},"model":"{model}","stream":true}}"#),
            Kind::Embeddings => format!(r#"{{"input":[{prompt}],"model":"{model}","encoding_format":"base64"}}"#),
            _ => format!(r#"{{"messages":[{messages}],"model":"{model}","temperature":0.7}}"#),
        }
    }

    fn response(&self, random: &mut Random) -> (u16, String) {
        let error = |message: &str, kind: &str, code: u16| {
            (code, format!(r#"{{"error":{{"message":"{message}","type":"{kind}","param":null,"code":{code}}}}}"#))
        };
        match self.kind {
            Kind::ContextTooLong => error(
                "This model's maximum context length is 32768 tokens. However, your request has 40211 input tokens.",
                "BadRequestError",
                400,
            ),
            Kind::WrongKey => error("Incorrect API key provided.", "invalid_request_error", 401),
            Kind::RateLimited => error("Rate limit reached. Try again later.", "rate_limit_error", 429),
            Kind::ModelAway => error("The model server does not answer.", "server_error", 502),
            Kind::MessagesStream => (200, self.messages_stream()),
            Kind::ResponsesStream => (200, self.responses_stream()),
            Kind::Embeddings => (200, self.embedding(random)),
            Kind::Chat | Kind::ToolChat | Kind::Completion => (200, self.completion()),
            _ => (200, self.chunks()),
        }
    }

    /// Tokens of the prompt and of the answer that the answer tells.
    fn reported(&self, status: u16, aborted: bool) -> (u64, u64) {
        let (prompt, answer) = (self.prompt_tokens as u64, (self.tokens.len() + self.reasoning.len()) as u64);
        match self.kind {
            _ if status != 200 => (0, 0),
            Kind::Embeddings => (prompt, 0),
            // Its first event tells the prompt.
            Kind::MessagesStream if aborted => (prompt, 0),
            _ if aborted => (0, 0),
            _ => (prompt, answer),
        }
    }

    fn usage(&self) -> String {
        let (prompt, completion) = (self.prompt_tokens, self.tokens.len() + self.reasoning.len());
        format!(r#"{{"prompt_tokens":{prompt},"total_tokens":{},"completion_tokens":{completion}"#, prompt + completion)
    }

    fn completion(&self) -> String {
        let Self { id, model, created, .. } = self;
        let text = json_string(&self.tokens.concat());
        let end = format!(
            r#""token_ids":null,"routed_experts":null}}],"service_tier":null,"system_fingerprint":"vllm-0.32.0-401d4afc","usage":{},"prompt_tokens_details":null,"completion_tokens_details":null}},"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#,
            self.usage()
        );
        if self.kind == Kind::Completion {
            return format!(
                r#"{{"id":"cmpl-{id}","object":"text_completion","created":{created},"model":"{model}","choices":[{{"index":0,"text":{text},"logprobs":null,"finish_reason":"stop","stop_reason":null,{end}"#
            );
        }
        let (content, calls, reason) = if self.kind == Kind::ToolChat {
            let call = format!(
                r#","tool_calls":[{{"id":"chatcmpl-tool-{id}","type":"function","function":{{"name":"get_weather","arguments":{text}}}}}]"#
            );
            ("null".to_owned(), call, "tool_calls")
        } else {
            (text, String::new(), "stop")
        };
        format!(
            r#"{{"id":"chatcmpl-{id}","object":"chat.completion","created":{created},"model":"{model}","choices":[{{"index":0,"message":{{"role":"assistant","content":{content},"refusal":null,"annotations":null,"audio":null,"function_call":null{calls},"reasoning":null}},"logprobs":null,"finish_reason":"{reason}","stop_reason":null,{end}"#
        )
    }

    /// A stream of chat completions or completions.
    fn chunks(&self) -> String {
        let Self { id, model, created, .. } = self;
        let is_chat = self.kind != Kind::CompletionStream;
        let (prefix, object) = if is_chat { ("chatcmpl", "chat.completion.chunk") } else { ("cmpl", "text_completion") };
        let head =
            format!(r#"data: {{"id":"{prefix}-{id}","object":"{object}","created":{created},"model":"{model}","choices":["#);
        let mut out = String::new();
        let mut chunk = |delta: &str, reason: &str| {
            let _ = write!(
                out,
                "{head}{{\"index\":0,{delta},\"logprobs\":null,\"finish_reason\":{reason},\"token_ids\":null}}]}}\n\n"
            );
        };
        if is_chat {
            chunk(r#""delta":{"role":"assistant","content":""}"#, "null");
        }
        for token in &self.reasoning {
            chunk(&format!(r#""delta":{{"reasoning":{}}}"#, json_string(token)), "null");
        }
        if self.kind == Kind::ToolStream {
            chunk(
                &format!(
                    r#""delta":{{"content":null,"tool_calls":[{{"id":"chatcmpl-tool-{id}","type":"function","index":0,"function":{{"name":"get_weather"}}}}]}}"#
                ),
                "null",
            );
        }
        for token in &self.tokens {
            let token = json_string(token);
            match self.kind {
                Kind::CompletionStream => chunk(&format!(r#""text":{token}"#), "null"),
                Kind::ToolStream => chunk(
                    &format!(r#""delta":{{"content":null,"tool_calls":[{{"index":0,"function":{{"arguments":{token}}}}}]}}"#),
                    "null",
                ),
                _ => chunk(&format!(r#""delta":{{"content":{token}}}"#), "null"),
            }
        }
        match self.kind {
            Kind::CompletionStream => chunk(r#""text":"""#, "\"stop\""),
            Kind::ToolStream => chunk(r#""delta":{"content":null}"#, "\"tool_calls\""),
            _ => chunk(r#""delta":{"content":""}"#, "\"stop\""),
        }
        let _ = write!(out, "{head}],\"usage\":{}}}}}\n\ndata: [DONE]\n\n", self.usage());
        out
    }

    fn messages_stream(&self) -> String {
        let Self { id, model, prompt_tokens, .. } = self;
        let mut out = format!(
            "event: message_start\ndata: {{\"type\":\"message_start\",\"message\":{{\"id\":\"chatcmpl-{id}\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[],\"model\":\"{model}\",\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{{\"input_tokens\":{prompt_tokens},\"output_tokens\":0}}}}}}\n\n\
             event: content_block_start\ndata: {{\"type\":\"content_block_start\",\"content_block\":{{\"type\":\"text\",\"text\":\"\"}},\"index\":0}}\n\n"
        );
        for token in &self.tokens {
            let _ = write!(
                out,
                "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"delta\":{{\"type\":\"text_delta\",\"text\":{}}},\"index\":0}}\n\n",
                json_string(token)
            );
        }
        let _ = write!(
            out,
            "event: content_block_stop\ndata: {{\"type\":\"content_block_stop\",\"index\":0}}\n\n\
             event: message_delta\ndata: {{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":\"end_turn\",\"stop_sequence\":null}},\"usage\":{{\"input_tokens\":{prompt_tokens},\"output_tokens\":{}}}}}\n\n\
             event: message_stop\ndata: {{\"type\":\"message_stop\"}}\n\n",
            self.tokens.len()
        );
        out
    }

    fn responses_stream(&self) -> String {
        let Self { id, model, created, prompt_tokens, .. } = self;
        let text = json_string(&self.tokens.concat());
        let (item, part) = (format!("msg_{id}"), r#""annotations":[],"type":"output_text","logprobs":null"#);
        let response = |status: &str, output: &str, usage: &str| {
            format!(
                r#"{{"id":"resp_{id}","created_at":{created},"incomplete_details":null,"instructions":null,"metadata":null,"model":"{model}","object":"response","output":[{output}],"parallel_tool_calls":true,"temperature":0.0,"tool_choice":"auto","tools":[],"top_p":1.0,"background":false,"max_output_tokens":16372,"status":"{status}","usage":{usage}}}"#
            )
        };
        let done = format!(
            r#"{{"id":"{item}","content":[{{"text":{text},{part}}}],"role":"assistant","status":"completed","type":"message","phase":null}}"#
        );
        let mut out = String::new();
        let mut number = 0;
        let mut event = |kind: &str, members: &str| {
            let _ = write!(out, "event: {kind}\ndata: {{{members},\"sequence_number\":{number},\"type\":\"{kind}\"}}\n\n");
            number += 1;
        };
        let begun = format!(r#""response":{}"#, response("in_progress", "", "null"));
        event("response.created", &begun);
        event("response.in_progress", &begun);
        event(
            "response.output_item.added",
            &format!(
                r#""item":{{"id":"{item}","content":[],"role":"assistant","status":"in_progress","type":"message","phase":null}},"output_index":0"#
            ),
        );
        for token in &self.tokens {
            let token = json_string(token);
            event(
                "response.output_text.delta",
                &format!(r#""content_index":0,"delta":{token},"item_id":"{item}","logprobs":[],"output_index":0"#),
            );
        }
        event(
            "response.output_text.done",
            &format!(r#""content_index":0,"item_id":"{item}","logprobs":[],"output_index":0,"text":{text}"#),
        );
        event("response.output_item.done", &format!(r#""item":{done},"output_index":0"#));
        let usage = format!(
            r#"{{"input_tokens":{prompt_tokens},"input_tokens_details":{{"cached_tokens":0}},"output_tokens":{},"total_tokens":{}}}"#,
            self.tokens.len(),
            prompt_tokens + self.tokens.len()
        );
        event("response.completed", &format!(r#""response":{}"#, response("completed", &done, &usage)));
        out
    }

    fn embedding(&self, random: &mut Random) -> String {
        let vector: Vec<u8> = (0..1024).flat_map(|_| (random.fraction() as f32 - 0.5).to_le_bytes()).collect();
        let Self { id, model, created, prompt_tokens, .. } = self;
        format!(
            r#"{{"id":"embd-{id}","object":"list","created":{created},"model":"{model}","data":[{{"index":0,"object":"embedding","embedding":"{}"}}],"usage":{{"prompt_tokens":{prompt_tokens},"total_tokens":{prompt_tokens},"completion_tokens":0,"prompt_tokens_details":null}}}}"#,
            STANDARD.encode(vector)
        )
    }
}
