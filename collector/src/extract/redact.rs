//! Credentials: recognised by the name of what holds them, or by their own form, and removed.
//!
//! Applies to everything Kong says about a call (headers, URIs, query), not to what the user wrote to the model.

use std::borrow::Cow;
use std::sync::LazyLock;

use percent_encoding::percent_decode_str;
use regex::Regex;

use crate::decode::json::{Json, write_list, write_string, write_text};

/// Headers that carry credentials; Kong's serializer redacts only the first two, and only their values.
const SECRET_HEADERS: [&str; 7] =
    ["authorization", "proxy-authorization", "x-api-key", "apikey", "api-key", "cookie", "set-cookie"];

/// Query parameters that carry credentials: Kong's key-auth takes the key from a parameter of the header's name, other
/// gateways and SDKs use the rest.
const SECRET_PARAMETERS: [&str; 9] =
    ["api_key", "key", "token", "access_token", "auth", "secret", "password", "client_secret", "subscription-key"];

/// What stands where a credential stood.
const REDACTED: &str = "[redacted]";

/// A bearer token or an OpenAI-style key, wherever it stands; also percent-encoded.
#[expect(clippy::expect_used, reason = "a constant, compiled by every test")]
static CREDENTIAL: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"(?i)(bearer(?:\s|\+|%20)+)[^\s"',;&]+|\bsk-[a-z0-9_-]{4,}"#).expect("valid pattern"));

/// Whether it is worth asking [`CREDENTIAL`]. An entry has some seventy short texts, and of each the pattern costs more than
/// parsing it did.
fn may_hold_credential(text: &str) -> bool {
    // Beyond ASCII there are letters that differ from `s` and `k` only by case.
    !text.is_ascii()
        || memchr::memchr3_iter(b'-', b'r', b'R', text.as_bytes()).any(|at| {
            let before = |count: usize| text.get(at.checked_sub(count)?..at);
            before(2).is_some_and(|start| start.eq_ignore_ascii_case("sk"))
                || before(5).is_some_and(|start| start.eq_ignore_ascii_case("beare"))
        })
}

/// Which names carry credentials.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    more_headers: Vec<String>,
}

impl Secrets {
    /// The built-in names and further headers, whose names are compared without regard to case.
    pub fn with_headers(more: &[String]) -> Self {
        Self { more_headers: more.iter().map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty()).collect() }
    }

    /// Whether a header (or any member) of this name holds a credential.
    pub fn is_secret_header(&self, name: &str) -> bool {
        SECRET_HEADERS.iter().any(|secret| name.eq_ignore_ascii_case(secret))
            || self.more_headers.iter().any(|secret| name.eq_ignore_ascii_case(secret))
    }

    /// Whether a query parameter of this name holds a credential.
    pub fn is_secret_parameter(&self, name: &str) -> bool {
        let decoded = percent_decode_str(name).decode_utf8_lossy();
        let name = decoded.trim();
        self.is_secret_header(name) || SECRET_PARAMETERS.iter().any(|secret| name.eq_ignore_ascii_case(secret))
    }

    /// A text of Kong's (a URI, a header's value, an error message) without credentials: secret query parameters are left out,
    /// tokens and keys are replaced.
    pub fn scrub<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let without_parameters = match text.split_once('?') {
            Some((path, query)) if query.contains('=') => self.scrub_query(text, path, query),
            _ => Cow::Borrowed(text),
        };
        if !may_hold_credential(&without_parameters) {
            return without_parameters;
        }
        match CREDENTIAL.replace_all(&without_parameters, |found: &regex::Captures<'_>| {
            format!("{}{REDACTED}", found.get(1).map_or("", |scheme| scheme.as_str()))
        }) {
            Cow::Borrowed(_) => without_parameters,
            Cow::Owned(scrubbed) => Cow::Owned(scrubbed),
        }
    }

    fn scrub_query<'t>(&self, text: &'t str, path: &str, query: &str) -> Cow<'t, str> {
        let is_kept = |parameter: &&str| !self.is_secret_parameter(parameter.split('=').next().unwrap_or_default());
        let parameters: Vec<&str> = query.split(['&', ';']).collect();
        if parameters.iter().all(&is_kept) {
            return Cow::Borrowed(text);
        }
        let kept: Vec<&str> = parameters.into_iter().filter(is_kept).collect();
        Cow::Owned(if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) })
    }

    /// Raw JSON text without credentials, also when it is broken: for entries that cannot become a row.
    pub fn scrub_raw(&self, raw: &str) -> String {
        match Json::parse(raw) {
            Ok(json) => {
                let mut out = String::with_capacity(raw.len());
                self.write(&mut out, &json, false);
                out
            }
            Err(_) => self.scrub_broken(raw),
        }
    }

    /// Appends `json` as text, without credentials. `is_query` says that `json` is a query's names and values.
    pub fn write(&self, out: &mut String, json: &Json<'_>, is_query: bool) {
        match json {
            Json::Object(members) => {
                let is_kept = |name: &str| !(self.is_secret_header(name) || is_query && self.is_secret_parameter(name));
                out.push('{');
                for (position, (name, value)) in members.iter().filter(|(name, _)| is_kept(name)).enumerate() {
                    if position > 0 {
                        out.push(',');
                    }
                    write_text(out, name);
                    out.push(':');
                    // A captured body is the user's, and base64 letters can look like anything.
                    if name == "body" && matches!(value, Json::String(_)) {
                        value.write(out);
                    } else {
                        self.write(out, value, name == "querystring");
                    }
                }
                out.push('}');
            }
            Json::Array(elements) => {
                write_list(out, '[', elements, ']', |out, element| self.write(out, element, is_query));
            }
            Json::String(text) => match self.scrub(text) {
                Cow::Borrowed(_) => write_text(out, text),
                Cow::Owned(scrubbed) => write_string(out, &scrubbed),
            },
            other => other.write(out),
        }
    }

    fn scrub_broken(&self, raw: &str) -> String {
        let names: Vec<String> =
            SECRET_HEADERS.iter().copied().chain(self.more_headers.iter().map(String::as_str)).map(regex::escape).collect();
        let names = names.join("|");
        let parameters = SECRET_PARAMETERS.map(regex::escape).join("|");
        let patterns = [
            (format!(r#"(?i)("(?:{names})"\s*:\s*)(?:"(?:[^"\\]|\\.)*"?|\[[^\]]*\]?)"#), format!("$1\"{REDACTED}\"")),
            (format!(r#"(?i)([?&;](?:{names}|{parameters})=)[^&;"\s]*"#), format!("${{1}}{REDACTED}")),
        ];
        let scrubbed = patterns.iter().fold(raw.to_owned(), |text, (pattern, replacement)| match Regex::new(pattern) {
            Ok(regex) => regex.replace_all(&text, replacement.as_str()).into_owned(),
            // Cannot happen with escaped names; nothing is kept rather than a secret.
            Err(_) => String::new(),
        });
        CREDENTIAL.replace_all(&scrubbed, REDACTED).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_parameters_leave_a_uri_whatever_their_spelling() {
        let secrets = Secrets::with_headers(&["X-Company-Key".to_owned()]);
        for (uri, scrubbed) in [
            ("/v1/models", "/v1/models"),
            ("/v1/models?a=1&b=2", "/v1/models?a=1&b=2"),
            ("/v1/models?apikey=sk-z123456", "/v1/models"),
            ("http://h/v1?a=1&X-API-Key=k&b=2", "http://h/v1?a=1&b=2"),
            ("/v1?x%2Dapi%2Dkey=k&x-company-key=k;api_key=k&a=1", "/v1?a=1"),
            ("/v1?a=Bearer%20abc&b=sk-z123456", "/v1?a=Bearer%20[redacted]&b=[redacted]"),
            ("/v1/sk-z123456/x", "/v1/[redacted]/x"),
            ("Bearer abc.def", "Bearer [redacted]"),
            ("a task-force of risk-takers", "a task-force of risk-takers"),
            ("BEARER\tabc SK-z123456", "BEARER\t[redacted] [redacted]"),
            ("网关 sk-z123456", "网关 [redacted]"),
        ] {
            assert_eq!(secrets.scrub(uri), scrubbed, "{uri}");
        }
    }

    #[test]
    fn members_that_hold_credentials_are_left_out_at_any_depth() {
        let secrets = Secrets::with_headers(&["x-company-key".to_owned()]);
        let raw = r#"{"request":{"headers":{"X-Api-Key":["a","b"],"Cookie":"c","x-company-key":"d","accept":"*/*"},
            "querystring":{"token":"e","a":["Bearer f"]},"uri":"/?key=g"},"tries":{}}"#;
        assert_eq!(
            secrets.scrub_raw(raw),
            r#"{"request":{"headers":{"accept":"*/*"},"querystring":{"a":["Bearer [redacted]"]},"uri":"/"},"tries":{}}"#
        );
    }

    #[test]
    fn broken_json_is_scrubbed_as_text() {
        let raw = r#"{"headers":{"x-api-key": "sk-\"z123456","Set-Cookie":["a=1","b=2"],"a":"Bearer tok"},"uri":"/?apikey=hidden&b=1","#;
        let scrubbed = Secrets::default().scrub_raw(raw);
        for secret in ["z123456", "a=1", "b=2", "tok", "hidden"] {
            assert!(!scrubbed.contains(secret), "{secret} in {scrubbed}");
        }
        assert!(scrubbed.contains("&b=1"));
    }
}
