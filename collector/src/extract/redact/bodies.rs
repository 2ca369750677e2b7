//! Credentials that a request hands on to tools, and that an answer repeats.
//!
//! `tools` of type `mcp` (`/v1/responses`, chat) have `authorization` and `headers` for the tool's server, `mcp_servers` of
//! `/v1/messages` an `authorization_token`, addresses of servers a user, a password or a key in their query; `/v1/responses` answers
//! with the tools it was sent. Other servers and gateways take such members elsewhere in a request.
//!
//! Invariants: messages, answers, arguments of calls and JSON schemas are never looked at for names: what people and models write is
//! theirs, and a schema may well describe a parameter `authorization`. What was removed is removed from these too where it stands
//! there literally, as in an error that repeats the request.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, MatchKind};

use super::names::{is_carrier, is_credential_member, is_kept_header};
use super::{REDACTED, Secrets, scrub_words};
use crate::call::Call;
use crate::decode::json::Json;

/// Members that are content, not settings of a call.
const CONTENT: [&str; 17] = [
    "arguments",
    "choices",
    "content",
    "data",
    "documents",
    "embedding",
    "input",
    "instructions",
    "messages",
    "output",
    "prompt",
    "query",
    "system",
    "text",
    "text_1",
    "text_2",
    "usage",
];

/// Members that hold JSON schemas, or parts of one.
const SCHEMAS: [&str; 13] = [
    "$defs",
    "definitions",
    "guided_json",
    "input_schema",
    "items",
    "json",
    "json_schema",
    "output_schema",
    "parameters",
    "properties",
    "response_format",
    "schema",
    "structured_outputs",
];

/// Values that are looked for in texts, at most: each further one costs memory, and a call has a handful.
const MAX_VALUES: usize = 64;

/// Shortest value that is looked for in texts: a shorter one stands there by chance.
const MIN_VALUE_BYTES: usize = 8;

/// The credentials of a call's bodies.
#[derive(Debug, Default)]
pub struct Credentials {
    values: Vec<String>,
    search: Option<AhoCorasick>,
}

impl Credentials {
    /// Removes the credentials from a body.
    pub fn remove_from(&mut self, body: &mut Json<'_>, secrets: &Secrets) {
        let before = self.values.len();
        self.members(body, secrets, false);
        if self.values.len() > before {
            self.search = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&self.values).ok();
        }
    }

    /// Whether there is none to be looked for in texts.
    pub fn is_empty(&self) -> bool {
        self.search.is_none()
    }

    /// A text without the credentials that were removed from the bodies.
    pub fn hide<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match &self.search {
            Some(search) if search.is_match(text) => Cow::Owned(search.replace_all(text, &vec![REDACTED; search.patterns_len()])),
            _ => Cow::Borrowed(text),
        }
    }

    /// The same for the texts of a call's columns.
    pub fn hide_columns(&self, call: &mut Call) {
        if self.is_empty() {
            return;
        }
        for text in call.texts_mut() {
            if let Cow::Owned(hidden) = self.hide(text) {
                *text = hidden;
            }
        }
    }

    fn members(&mut self, json: &mut Json<'_>, secrets: &Secrets, in_tool: bool) {
        match json {
            Json::Object(members) => {
                for (name, value) in members {
                    match name.as_ref() {
                        name if CONTENT.contains(&name) && !in_tool || SCHEMAS.contains(&name) => continue,
                        // The message of an error may quote a request that could not be read.
                        "error" | "detail" | "message" if !in_tool => scrub_quotes(value),
                        name if is_credential_member(name, in_tool) => self.all(value, true),
                        name if is_carrier(name) => self.carried(value),
                        name if in_tool || matches!(name, "tools" | "mcp_servers" | "servers" | "tool_choice") => {
                            self.members(value, secrets, true);
                        }
                        _ => self.members(value, secrets, false),
                    }
                    if let Json::String(address) = value
                        && address.contains("://")
                        && let Cow::Owned(scrubbed) = secrets.scrub(address)
                    {
                        self.note(address);
                        *address = Cow::Owned(scrubbed);
                    }
                }
            }
            Json::Array(elements) => elements.iter_mut().for_each(|element| self.members(element, secrets, in_tool)),
            _ => {}
        }
    }

    /// Headers or variables: a name and its value, or a list of both.
    fn carried(&mut self, value: &mut Json<'_>) {
        match value {
            Json::Object(members) => members.iter_mut().for_each(|(name, value)| self.all(value, !is_kept_header(name))),
            value => self.all(value, true),
        }
    }

    /// Removes every text in a value; `is_secret` says that it is to be looked for elsewhere.
    fn all(&mut self, value: &mut Json<'_>, is_secret: bool) {
        match value {
            Json::String(text) => {
                if is_secret {
                    self.note(text);
                }
                *text = Cow::Borrowed(REDACTED);
            }
            Json::Number(_) | Json::Raw(_) => *value = Json::String(Cow::Borrowed(REDACTED)),
            Json::Array(elements) => elements.iter_mut().for_each(|element| self.all(element, is_secret)),
            Json::Object(members) => members.iter_mut().for_each(|(_, value)| self.all(value, is_secret)),
            Json::Null | Json::Bool(_) => {}
        }
    }

    fn note(&mut self, text: &str) {
        // The scheme is no part of the secret.
        let value = text.split_once(' ').filter(|(scheme, _)| scheme.len() < 10).map_or(text, |(_, value)| value).trim();
        let is_word = value.bytes().all(|byte| byte.is_ascii_lowercase());
        let is_new = self.values.len() < MAX_VALUES && value != REDACTED && !self.values.iter().any(|known| known == value);
        if value.len() >= MIN_VALUE_BYTES && !is_word && is_new {
            self.values.push(value.to_owned());
        }
    }
}

fn scrub_quotes(value: &mut Json<'_>) {
    match value {
        Json::String(text) => {
            if let Cow::Owned(scrubbed) = scrub_words(text) {
                *text = Cow::Owned(scrubbed);
            }
        }
        Json::Array(elements) => elements.iter_mut().for_each(scrub_quotes),
        Json::Object(members) => members.iter_mut().for_each(|(_, value)| scrub_quotes(value)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(body: &str) -> (String, Credentials) {
        let mut json = Json::parse(body).unwrap();
        let mut credentials = Credentials::default();
        credentials.remove_from(&mut json, &Secrets::default());
        (json.to_string(), credentials)
    }

    #[test]
    fn what_is_handed_to_tools_is_removed() {
        for body in [
            r#"{"tools":[{"type":"mcp","server_label":"cal","authorization":"ya29.zzSECRETzz"}]}"#,
            r#"{"tools":[{"type":"mcp","headers":{"Authorization":"Bearer zzSECRETzz","X-Api-Key":["zzSECRETzz1"]}}]}"#,
            r#"{"tools":[{"type":"mcp","headers":[{"name":"X-Key","value":"zzSECRETzz"}]}]}"#,
            r#"{"tools":[{"type":"mcp","server_url":"https://me:zzSECRETzz@h/mcp"}]}"#,
            r#"{"tools":[{"type":"mcp","server_url":"https://h/mcp?key=zzSECRETzz&a=zzSECRETzz"}]}"#,
            r#"{"tools":[{"type":"mcp","authorization":{"type":"oauth","token":"zzSECRETzz"}}]}"#,
            r#"{"tools":[{"type":"web_search","service":{"subscription_key":"zzSECRETzz"}}]}"#,
            r#"{"mcp_servers":[{"type":"url","url":"https://h","name":"n","authorization_token":"zzSECRETzz"}]}"#,
            r#"{"mcp_servers":{"erp":{"command":"npx","env":{"ERP_PASS":"zzSECRETzz"}}}}"#,
            r#"{"api_key":"zzSECRETzz","model":"m"}"#,
            r#"{"extra_body":{"tools":[{"x-api-key":"zzSECRETzz"}]},"extra_headers":{"X-A":"zzSECRETzz"}}"#,
            r#"{"response":{"tools":[{"authorization":"zzSECRETzz"}]}}"#,
        ] {
            let (out, _) = removed(body);
            assert!(!out.contains("zzSECRETzz") && out.contains(REDACTED), "{out}");
            let (before, after): (serde_json::Value, serde_json::Value) =
                (serde_json::from_str(body).unwrap(), serde_json::from_str(&out).unwrap());
            assert_eq!(shape(&before), shape(&after), "names and everything else stay");
        }
    }

    /// The names and structure of JSON.
    fn shape(json: &serde_json::Value) -> serde_json::Value {
        match json {
            serde_json::Value::Object(members) => {
                members.iter().map(|(name, value)| (name.clone(), shape(value))).collect::<serde_json::Map<_, _>>().into()
            }
            serde_json::Value::Array(elements) => elements.iter().map(shape).collect::<Vec<_>>().into(),
            _ => serde_json::Value::Null,
        }
    }

    #[test]
    fn errors_quote_no_credential_of_a_request_that_was_not_read() {
        for body in [
            r#"{"error":{"message":"[{'input': {'authorization': 'zzSECRETzz', 'a': 1}}]","type":"BadRequestError"}}"#,
            r#"{"detail":[{"input":{"note":"Bearer zzSECRETzz"}}]}"#,
            r#"{"message":"{\"api_key\": \"zzSECRETzz\"}"}"#,
        ] {
            let (out, _) = removed(body);
            assert!(!out.contains("zzSECRETzz") && out.contains(REDACTED), "{out}");
        }
    }

    #[test]
    fn what_only_has_such_a_name_stays() {
        for body in [
            r#"{"tools":[{"type":"function","function":{"name":"authorization","parameters":{"type":"object","properties":{"authorization":{"type":"string","default":"none at all"},"headers":{"type":"object"}}}}}]}"#,
            r#"{"tools":[{"name":"f","input_schema":{"properties":{"password":{"type":"string","const":"hunter22"}}}}]}"#,
            r#"{"tools":[{"type":"mcp","server_url":"https://h/mcp","allowed_tools":["headers"],"require_approval":"never"}]}"#,
            r#"{"messages":[{"role":"user","content":"my password","tool_calls":[{"function":{"arguments":"{\"token\":\"abc\"}"}}],"headers":{"a":"b c d e f"}}]}"#,
            r#"{"input":[{"type":"function_call_output","output":"x","authorization":"y y y y y"}],"max_tokens":5}"#,
            r#"{"response_format":{"json_schema":{"schema":{"properties":{"secret":{"enum":["aaaa bbbb"]}}}}}}"#,
            r#"{"output":[{"type":"mcp_call","arguments":"{}","headers":{"a":"b"}}],"choices":[{"logprobs":{"content":[{"token":"Paris is"}]}}]}"#,
        ] {
            assert_eq!(removed(body).0, body);
        }
    }

    #[test]
    fn what_was_removed_is_hidden_where_it_is_repeated() {
        let (_, credentials) = removed(
            r#"{"tools":[{"authorization":"Bearer zzSECRETzz","headers":{"Accept":"application/json","X-Env":"production","X-Key":"ab"}}]}"#,
        );
        let text = "zzSECRETzz, application/json, production, ab, Bearer zzSECRETzz";
        assert_eq!(credentials.hide(text), "[redacted], application/json, production, ab, Bearer [redacted]");
        assert!(matches!(Credentials::default().hide(text), Cow::Borrowed(_)));
    }
}
