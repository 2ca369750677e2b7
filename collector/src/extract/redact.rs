//! Credentials, removed from everything that is stored.
//!
//! Of what Kong says about a call (headers, addresses, queries) values are stored whose names are known to hold nothing secret
//! ([`names`]), and of these only what does not have the form of a credential ([`shapes`]). Headers and parameters that are known to
//! hold one are left out; of all others the name stays, and [`REDACTED`] stands for the value. Of what users send to models the
//! members go that hand credentials to tools ([`bodies`]).
//!
//! Invariants: what was scrubbed and is scrubbed again stays the same. Work is linear in the text.

mod bodies;
mod names;
mod shapes;
mod uri;

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

use crate::decode::json::{Json, write_list, write_string, write_text};

pub use bodies::Credentials;
pub use shapes::may_hold_credential;

/// What stands where a credential stood.
const REDACTED: &str = "[redacted]";

/// Unknown headers or parameters of which the names are stored, of each message: nginx takes a hundred headers, other servers more.
const MAX_UNKNOWN: usize = 100;

/// Masks a text of a person's or a model's; see [`super::privacy`].
pub type Mask<'m> = dyn for<'t> Fn(&'t str) -> Cow<'t, str> + 'm;

/// What becomes of a header or parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Stored.
    Keep,
    /// The name is stored.
    Redact,
    /// Not even the name is.
    LeaveOut,
}

/// Which headers and parameters are stored.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    denied: Vec<String>,
    kept: Vec<String>,
}

impl Secrets {
    /// The built-in names, further ones that hold credentials, and further ones whose values are stored (`name*` for all that begin so).
    /// Names are compared without regard to case. What is denied is not kept.
    pub fn new(denied: &[String], kept: &[String]) -> Self {
        let names = |list: &[String]| -> Vec<String> {
            list.iter().map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty()).collect()
        };
        Self { denied: names(denied), kept: names(kept) }
    }

    /// Whether a header (or any member) of this name is known to hold a credential.
    pub fn is_secret_header(&self, name: &str) -> bool {
        names::is_secret_header(name) || self.denied.iter().any(|secret| name.eq_ignore_ascii_case(secret))
    }

    fn is_kept_by_setting(&self, name: &str) -> bool {
        self.kept.iter().any(|kept| match kept.strip_suffix('*') {
            Some(start) => name.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start)),
            None => name.eq_ignore_ascii_case(kept),
        })
    }

    fn header_fate(&self, name: &str) -> Fate {
        match () {
            () if self.is_secret_header(name) => Fate::LeaveOut,
            () if names::is_kept_header(name) || self.is_kept_by_setting(name) => Fate::Keep,
            () => Fate::Redact,
        }
    }

    fn parameter_fate(&self, name: &str) -> Fate {
        match () {
            () if self.is_secret_header(name) => Fate::LeaveOut,
            () if names::is_kept_parameter(name) || self.is_kept_by_setting(name) => Fate::Keep,
            () if names::SECRET_PARAMETERS.iter().any(|secret| name.eq_ignore_ascii_case(secret)) => Fate::LeaveOut,
            () => Fate::Redact,
        }
    }

    /// A text of Kong's (an address, a header's value) without credentials.
    pub fn scrub<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let address = uri::scrub(self, text);
        match shapes::without_credentials(&address) {
            Cow::Borrowed(_) => address,
            Cow::Owned(scrubbed) => Cow::Owned(scrubbed),
        }
    }

    /// Raw JSON text without credentials, also when it is broken: for entries that cannot become a row, or wait for it. Bodies stay as
    /// they came.
    pub fn scrub_raw(&self, raw: &str) -> String {
        let Ok(json) = Json::parse(raw) else { return self.scrub_broken(raw) };
        let writer = Writer { secrets: self, is_thorough: true, mask: &|text| text.into() };
        let mut out = String::with_capacity(raw.len());
        if let Json::Object(members) = &json {
            out.push('{');
            for (name, value) in members.iter().filter(|(name, _)| !self.is_secret_header(name)) {
                if out.len() > 1 {
                    out.push(',');
                }
                writer.name(&mut out, name);
                out.push(':');
                writer.root_value(&mut out, name, value);
            }
            out.push('}');
        } else {
            writer.value(&mut out, "", &json);
        }
        out
    }

    /// Appends the value of a member of an entry (without bodies) as JSON text, without what names alone tell is a credential. `mask`
    /// hides what users wrote in addresses and names of models.
    pub fn write_member(&self, out: &mut String, name: &str, value: &Json<'_>, mask: &Mask<'_>) {
        Writer { secrets: self, is_thorough: false, mask }.root_value(out, name, value);
    }

    /// The same without any credential: text by text, where [`may_hold_credential`] of what is written.
    pub fn write_asked_member(&self, out: &mut String, name: &str, value: &Json<'_>, mask: &Mask<'_>) {
        let start = out.len();
        self.write_member(out, name, value, mask);
        if may_hold_credential(out.get(start..).unwrap_or_default()) {
            out.truncate(start);
            Writer { secrets: self, is_thorough: true, mask }.root_value(out, name, value);
        }
    }

    /// Text that is no JSON, token by token.
    pub fn scrub_broken(&self, raw: &str) -> String {
        #[expect(clippy::expect_used, reason = "a constant, compiled by every test")]
        static TOKEN: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(r#""(?P<text>(?:[^"\\]|\\.)*)"?(?P<colon>\s*:)?|[{}]"#).expect("valid pattern"));
        let mut out = String::with_capacity(raw.len());
        let (mut depth, mut section, mut done) = (0_usize, None, 0);
        let mut name = "";
        for token in TOKEN.captures_iter(raw) {
            let Some(whole) = token.get(0) else { continue };
            out.push_str(&shapes::without_credentials(raw.get(done..whole.start()).unwrap_or_default()));
            done = whole.end();
            let Some(text) = token.name("text").map(|text| text.as_str()) else {
                let opens = whole.as_str() == "{";
                depth = if opens { depth + 1 } else { depth.saturating_sub(1) };
                match section {
                    None if opens && name.eq_ignore_ascii_case("headers") => section = Some((true, depth)),
                    None if opens && name.eq_ignore_ascii_case("querystring") => section = Some((false, depth)),
                    Some((_, inside)) if depth < inside => section = None,
                    _ => {}
                }
                out.push_str(whole.as_str());
                continue;
            };
            if token.name("colon").is_some() {
                name = text;
                let is_storable = section.is_none() || names::is_storable_name(name) && !shapes::may_hold_credential(name);
                out.push_str(&if is_storable { Cow::Borrowed(whole.as_str()) } else { format!("\"{REDACTED}\":").into() });
                continue;
            }
            let fate = match section {
                Some((true, _)) => self.header_fate(name),
                Some((false, _)) => self.parameter_fate(name),
                None if self.is_secret_header(name) || names::is_credential_member(name, true) => Fate::LeaveOut,
                None => Fate::Keep,
            };
            match fate {
                Fate::Keep if name == "body" => out.push_str(whole.as_str()),
                Fate::Keep => {
                    out.push('"');
                    out.push_str(&self.scrub(text));
                    // The end of broken text may be inside one.
                    out.push_str(whole.as_str().get(1 + text.len()..).unwrap_or_default());
                }
                Fate::Redact | Fate::LeaveOut => out.push_str(&format!("\"{REDACTED}\"")),
            }
        }
        out.push_str(&shapes::without_credentials(raw.get(done..).unwrap_or_default()));
        out
    }
}

/// A text in which somebody quotes a request, such as the message of an error, without credentials.
pub fn scrub_words(text: &str) -> Cow<'_, str> {
    shapes::without_quoted_credentials(text)
}

struct Writer<'s> {
    secrets: &'s Secrets,
    /// Looks at every text and name by itself.
    is_thorough: bool,
    mask: &'s Mask<'s>,
}

impl Writer<'_> {
    fn root_value(&self, out: &mut String, name: &str, value: &Json<'_>) {
        match value {
            Json::Object(members) if matches!(name, "request" | "response") => self.members(out, members, true),
            value => self.value(out, name, value),
        }
    }

    /// The members of an object; with `is_message` a captured body stays as it came, for its letters can look like anything.
    fn members(&self, out: &mut String, members: &[(Cow<'_, str>, Json<'_>)], is_message: bool) {
        out.push('{');
        let mut separator = "";
        for (name, value) in members.iter().filter(|(name, _)| !self.secrets.is_secret_header(name)) {
            out.push_str(separator);
            separator = ",";
            self.name(out, name);
            out.push(':');
            match value {
                Json::String(_) if is_message && name == "body" => value.write(out),
                Json::String(_) | Json::Array(_) | Json::Object(_) if names::is_credential_member(name, true) => {
                    write_string(out, REDACTED);
                }
                value => self.value(out, name, value),
            }
        }
        out.push('}');
    }

    fn value(&self, out: &mut String, name: &str, value: &Json<'_>) {
        let (is_headers, is_query) = (name.eq_ignore_ascii_case("headers"), name.eq_ignore_ascii_case("querystring"));
        match value {
            Json::Object(members) if is_headers => {
                self.known(out, members, |name| self.secrets.header_fate(name), |out, name, value| self.header(out, name, value));
            }
            Json::Object(members) if is_query => {
                self.known(
                    out,
                    members,
                    |name| self.secrets.parameter_fate(name.trim()),
                    |out, _, value| self.parameter(out, value),
                );
            }
            // Kong writes an empty object as an empty list and back.
            Json::Array(elements) if (is_headers || is_query) && elements.is_empty() => out.push_str("[]"),
            Json::String(_) | Json::Array(_) if is_headers || is_query => write_string(out, REDACTED),
            Json::Object(members) => self.members(out, members, false),
            Json::Array(elements) => write_list(out, '[', elements, ']', |out, element| self.value(out, name, element)),
            Json::String(text) => self.text(out, name, text),
            other => other.write(out),
        }
    }

    /// Headers or parameters: those that are stored are written by `write`, of unknown ones the names.
    fn known(
        &self,
        out: &mut String,
        members: &[(Cow<'_, str>, Json<'_>)],
        fate: impl Fn(&str) -> Fate,
        write: impl Fn(&mut String, &str, &Json<'_>),
    ) {
        out.push('{');
        let (mut separator, mut unknown) = ("", 0);
        for (name, value) in members {
            let fate = fate(name);
            unknown += usize::from(fate == Fate::Redact);
            if fate == Fate::LeaveOut || fate == Fate::Redact && unknown > MAX_UNKNOWN {
                continue;
            }
            out.push_str(separator);
            separator = ",";
            if fate == Fate::Keep || names::is_storable_name(name) && !shapes::may_hold_credential(name) {
                write_text(out, name);
            } else {
                write_string(out, REDACTED);
            }
            out.push(':');
            match (fate, value) {
                (Fate::Keep, value) => write(out, name, value),
                // A parameter without a value.
                (_, Json::Bool(_)) => value.write(out),
                _ => write_string(out, REDACTED),
            }
        }
        out.push('}');
    }

    fn header(&self, out: &mut String, name: &str, value: &Json<'_>) {
        match value {
            Json::Array(values) => write_list(out, '[', values, ']', |out, value| self.header(out, name, value)),
            Json::String(text) if text.contains('@') && name.to_ascii_lowercase().ends_with("host") => {
                write_string(out, &uri::without_user(text));
            }
            Json::String(text) => self.text(out, name, text),
            Json::Object(_) | Json::Raw(_) => write_string(out, REDACTED),
            other => other.write(out),
        }
    }

    fn parameter(&self, out: &mut String, value: &Json<'_>) {
        match value {
            Json::Array(values) => write_list(out, '[', values, ']', |out, value| self.parameter(out, value)),
            Json::String(text) if text.is_empty() || uri::is_storable_value(text) => write_text(out, text),
            Json::Bool(_) | Json::Number(_) | Json::Null => value.write(out),
            _ => write_string(out, REDACTED),
        }
    }

    #[expect(clippy::ptr_arg, reason = "whether the text is borrowed decides how it is written")]
    fn name(&self, out: &mut String, name: &Cow<'_, str>) {
        match self.is_thorough.then(|| shapes::without_credentials(name)) {
            Some(Cow::Owned(scrubbed)) => write_string(out, &scrubbed),
            _ => write_text(out, name),
        }
    }

    #[expect(clippy::ptr_arg, reason = "whether the text is borrowed decides how it is written")]
    fn text(&self, out: &mut String, name: &str, text: &Cow<'_, str>) {
        let mut scrubbed = uri::scrub(self.secrets, text);
        if self.is_thorough
            && let Cow::Owned(without) = shapes::without_credentials(&scrubbed)
        {
            scrubbed = Cow::Owned(without);
        }
        // What a client calls a model stands in these.
        if matches!(name, "uri" | "url" | "upstream_uri" | "model" | "model_asked")
            && let Cow::Owned(masked) = (self.mask)(&scrubbed)
        {
            scrubbed = Cow::Owned(masked);
        }
        match scrubbed {
            Cow::Borrowed(_) => write_text(out, text),
            Cow::Owned(scrubbed) => write_string(out, &scrubbed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> Secrets {
        Secrets::new(&["x-company-key".to_owned()], &["X-Company-*".to_owned(), "tenant".to_owned()])
    }

    #[test]
    fn of_headers_and_parameters_known_ones_are_stored_and_of_others_the_names() {
        let raw = r#"{"request":{"headers":{"X-Api-Key":["a","b"],"Cookie":"c","x-company-key":"d","accept":"*/*","x-auth-token":"e",
            "x-goog-api-key":["f"],"x-company-unit":"u1","x-forwarded-authorization":"Basic Zm9vOmJhcg==","eyJhbGciOiJIUzI1NiJ9xx":"1",
            "user-agent":["sdk/1 sk-z123456","curl"],"host":"u:p@h:1","referer":"http://u:p@h/?a=1&token=g","content-length":12},
            "querystring":{"token":"h","limit":"20","model":"http://x?y","tenant":"t1","jwt":["i"],"beta":true,"x":true},
            "uri":"/?key=j&limit=1","url":"http://u:p@h/?sig=k"},"tries":{},"response":{"headers":{"set-cookie":"l","x-token":"m","via":"kong"}},
            "custom":{"token":"n","deep":[{"api-key":"o","Password":["p"],"count":3,"note":"Bearer q"}]},"upstream_uri":"/v1?X-Amz-Signature=r"}"#;
        let scrubbed = secrets().scrub_raw(raw);
        assert_eq!(
            scrubbed,
            r#"{"request":{"headers":{"accept":"*/*","x-auth-token":"[redacted]","x-goog-api-key":"[redacted]","x-company-unit":"u1","#.to_owned()
                + r#""x-forwarded-authorization":"[redacted]","[redacted]":"[redacted]","user-agent":["sdk/1 [redacted]","curl"],"#
                + r#""host":"[redacted]@h:1","referer":"http://[redacted]@h/?a=[redacted]","content-length":12},"#
                + r#""querystring":{"limit":"20","model":"[redacted]","tenant":"t1","jwt":"[redacted]","beta":true,"x":true},"#
                + r#""uri":"/?limit=1","url":"http://[redacted]@h/?sig=[redacted]"},"tries":{},"#
                + r#""response":{"headers":{"x-token":"[redacted]","via":"kong"}},"#
                + r#""custom":{"token":"[redacted]","deep":[{"Password":"[redacted]","count":3,"note":"Bearer [redacted]"}]},"#
                + r#""upstream_uri":"/v1?X-Amz-Signature=[redacted]"}"#
        );
        assert_eq!(secrets().scrub_raw(&scrubbed), scrubbed, "a second time");
        let root = Json::parse(raw).unwrap();
        for (name, value) in root.members() {
            let mut out = String::new();
            secrets().write_asked_member(&mut out, name, value, &|text| text.into());
            assert!(scrubbed.contains(&format!("\"{name}\":{out}")), "{name}: {out}");
        }
    }

    #[test]
    fn unknown_headers_are_bounded() {
        let headers: Vec<String> = (0..1_000).map(|n| format!("\"x-{n}\":\"a\"")).collect();
        let raw = format!("{{\"request\":{{\"headers\":{{{},\"accept\":\"b\"}}}}}}", headers.join(","));
        let scrubbed = secrets().scrub_raw(&raw);
        assert_eq!(scrubbed.matches("[redacted]").count(), MAX_UNKNOWN);
        assert!(scrubbed.contains("\"accept\":\"b\""));
    }

    #[test]
    fn a_body_stays_as_it_came_where_one_stands() {
        let raw = r#"{"request":{"body":"Bearer abc"},"other":{"body":"Bearer abc"}}"#;
        assert_eq!(secrets().scrub_raw(raw), r#"{"request":{"body":"Bearer abc"},"other":{"body":"Bearer [redacted]"}}"#);
    }

    #[test]
    fn masks_reach_addresses_and_names_of_models() {
        let value = Json::parse(r#"{"uri":"/v1/models/M","model":"M","worker":"M"}"#).unwrap();
        let mut out = String::new();
        secrets().write_member(&mut out, "llm", &value, &|text| text.replace('M', "[m]").into());
        assert_eq!(out, r#"{"uri":"/v1/models/[m]","model":"[m]","worker":"M"}"#);
    }

    #[test]
    fn broken_json_is_scrubbed_as_text() {
        let raw = r#"{"headers":{"x-api-key": "sk-\"z123456","Set-Cookie":["a=1","b=2"],"a":"Bearer tok","x-auth-token":"}hid","accept":"*/*"},
            "uri":"/?apikey=hidden&limit=1&jwt=den","custom":{"token":"zz"},"body":"sk-kept1","querystring":{"sig":"sg1","limit":"5""#;
        let scrubbed = secrets().scrub_raw(raw);
        for secret in ["z123456", "a=1", "b=2", "tok\"", "hid", "den", "zz", "sg1"] {
            assert!(!scrubbed.contains(secret), "{secret} in {scrubbed}");
        }
        for kept in ["*/*", "limit=1", "sk-kept1", "\"limit\":\"5\"", "x-auth-token"] {
            assert!(scrubbed.contains(kept), "{kept} is not in {scrubbed}");
        }
        assert_eq!(secrets().scrub_raw(&scrubbed), scrubbed, "a second time");
    }
}
