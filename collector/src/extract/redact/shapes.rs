//! Credentials that are known by their own form, wherever they stand.

use std::borrow::Cow;
use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, Input, Span, packed};
use regex::{Captures, Regex};

use super::REDACTED;

/// What begins a credential and is seldom elsewhere, in small letters.
const PREFIXES: [&str; 25] = [
    "bearer",
    "basic",
    "sk-",
    "sk_",
    "rk_",
    "eyj",
    "akia",
    "asia",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "xox",
    "aiza",
    "ya29.",
    "hf_",
    "gsk_",
    "xai-",
    "nvapi-",
    "npm_",
    "dckr_pat_",
    "dop_v1_",
];

/// What each form below has in it, in small letters: the [`PREFIXES`] and these. An entry has some seventy short texts, and the pattern
/// costs more for each than parsing it did: so a whole stretch of JSON is asked at once whether any of these is in it. Together no more
/// than 32: of more the search looks at half as many letters at once.
const OTHER_SIGNS: [&str; 5] = ["digest ", "token ", "token%20", "token+", "private key-----"];

static SIGN: LazyLock<Words> = LazyLock::new(|| Words::new(&[&PREFIXES[..], &OTHER_SIGNS[..]].concat()));

/// Words that are looked for in a text, all at once and without regard to case.
pub(super) struct Words {
    /// Looks at many letters at once, which not every processor can; knows one case only.
    packed: Option<packed::Searcher>,
    any: AhoCorasick,
}

impl Words {
    /// `words` are in small letters.
    #[expect(clippy::expect_used, reason = "constants, compiled by every test")]
    pub(super) fn new(words: &[&str]) -> Self {
        Self {
            packed: packed::Config::new().builder().extend(words).build(),
            any: AhoCorasick::builder().ascii_case_insensitive(true).build(words).expect("valid patterns"),
        }
    }

    /// Whether one of the words stands in the text.
    pub(super) fn is_any_in(&self, text: &str) -> bool {
        match &self.packed {
            Some(packed) if text.len() >= packed.minimum_len() => packed.find(text.to_ascii_lowercase()).is_some(),
            _ => self.any.is_match(text),
        }
    }

    /// Where in `text` words begin.
    fn places(&self, text: &str) -> impl Iterator<Item = usize> {
        let text = text.to_ascii_lowercase();
        let mut from = 0;
        std::iter::from_fn(move || {
            let at = match &self.packed {
                Some(packed) if text.len() - from >= packed.minimum_len() => {
                    packed.find_in(&text, Span { start: from, end: text.len() })?.start()
                }
                _ => self.any.find(Input::new(&text).range(from..))?.start(),
            };
            from = at + 1;
            Some(at)
        })
    }
}

/// What each form begins with: the [`PREFIXES`] and these. To find these and look at what begins there takes a fraction of the time in
/// which the pattern looks for all forms at every letter.
const OTHER_BEGINNINGS: [&str; 3] = ["digest", "token", "-----begin "];

static BEGINNING: LazyLock<Words> = LazyLock::new(|| Words::new(&[&PREFIXES[..], &OTHER_BEGINNINGS[..]].concat()));

/// Schemes of `Authorization` with what follows them, JSON web tokens, and the keys of OpenAI and those who follow it, Stripe, AWS,
/// GitHub, GitLab, Slack, Google, Hugging Face, Groq, xAI, Nvidia, npm, Docker and DigitalOcean, by what their makers document
/// as prefixes; private keys in PEM. Case does not matter, because some proxies change it. Of a text that begins with one of
/// the [`PREFIXES`] or [`OTHER_BEGINNINGS`]; no letter or digit may stand before it.
#[expect(clippy::expect_used, reason = "a constant, compiled by every test")]
static CREDENTIAL: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r#"(?i)\A(?:(?P<scheme>bearer(?:\s|\+|%20)+)[^\s"',;&]+"#,
        r#"|(?P<word>(?:basic|token)(?:\s|\+|%20)+)[a-z0-9+/=._~%-]{8,}"#,
        r#"|(?P<digest>digest\s+)(?:username|response|nonce)=.*"#,
        r#"|sk-[a-z0-9_-]{4,}|[sr]k_(?:live|test)_[a-z0-9]{4,}"#,
        r#"|eyj[a-z0-9_-]{5,}\.[a-z0-9_-]*(?:\.[a-z0-9_-]*)*|eyj[a-z0-9_-]{20,}"#,
        r#"|(?:akia|asia)[a-z0-9]{12,}"#,
        r#"|gh[opsur]_[a-z0-9]{10,}|github_pat_[a-z0-9_]{10,}|glpat-[a-z0-9_-]{10,}"#,
        r#"|xox[a-z]-[a-z0-9-]{8,}|aiza[a-z0-9_-]{20,}|ya29\.[a-z0-9._-]{4,}"#,
        r#"|hf_[a-z0-9]{10,}|gsk_[a-z0-9]{10,}|xai-[a-z0-9]{10,}|nvapi-[a-z0-9_-]{10,}"#,
        r#"|npm_[a-z0-9]{10,}|dckr_pat_[a-z0-9_-]{8,}|dop_v1_[a-z0-9]{10,}"#,
        r#"|-----BEGIN [a-z ]*PRIVATE KEY-----[^-]*(?:-----END [a-z ]*PRIVATE KEY-----)?)"#,
    ))
    .expect("valid pattern")
});

/// Whether a text may hold a credential by its form.
pub fn may_hold_credential(text: &str) -> bool {
    SIGN.is_any_in(text)
}

/// A text without what has the form of a credential.
pub(super) fn without_credentials(text: &str) -> Cow<'_, str> {
    if !may_hold_credential(text) {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    let mut done = 0;
    for at in BEGINNING.places(text) {
        let (before, rest) = text.split_at_checked(at).unwrap_or_default();
        let is_inside_word = before.bytes().next_back().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if at < done || is_inside_word && !rest.starts_with('-') {
            continue;
        }
        let Some(found) = CREDENTIAL.captures(rest) else { continue };
        let whole = found.get(0).map_or("", |whole| whole.as_str());
        out.push_str(text.get(done..at).unwrap_or_default());
        out.push_str(&replaced(&found, whole));
        done = at + whole.len();
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(text.get(done..).unwrap_or_default());
    Cow::Owned(out)
}

/// What stands for a credential that was found.
fn replaced(found: &Captures<'_>, whole: &str) -> String {
    if let Some(word) = found.name("word") {
        // "basic arithmetic" and "token generation" are prose.
        let value = whole.get(word.len()..).unwrap_or_default();
        return if value.bytes().any(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase() || byte == b'=') {
            format!("{}{REDACTED}", word.as_str())
        } else {
            whole.to_owned()
        };
    }
    format!("{}{REDACTED}", found.name("scheme").or_else(|| found.name("digest")).map_or("", |scheme| scheme.as_str()))
}

/// A member whose name speaks of a credential, with its value: in JSON, in JSON inside a string, and as Python writes it, which is how
/// vLLM repeats a request that it refuses.
#[expect(clippy::expect_used, reason = "a constant, compiled by every test")]
static MEMBER: LazyLock<Regex> = LazyLock::new(|| {
    let name = r"(?:[a-z0-9_-]*(?:authorization|api[_-]?key|access[_-]token|auth[_-]token|secret|password|cookie|security[_-]token)|authorization_token)";
    let carrier = r"(?:extra_|default_|http_|request_)?headers";
    Regex::new(&format!(
        r#"(?i)("{name}"\s*:\s*")(?:[^"\\]|\\.)*|(\\+"{name}\\+"\s*:\s*\\+")[^"\\]*|('{name}'\s*:\s*['"])[^'"]*|(\\*["']{name}\\*["']\s*:\s*[\[{{])[^\]}}]*|(\\*["']{carrier}\\*["']\s*:\s*[\[{{])[^\]}}]*|(://)[^\s/"'@]*@|([?&](?:[a-z_-]*(?:key|token|sig|signature|secret|password)|auth|code|jwt)=)[^&\s"'\\]*"#
    ))
    .expect("valid pattern")
});

/// What a text has that quotes such a member.
static QUOTED: LazyLock<Words> = LazyLock::new(|| {
    let words = ["authorization", "key", "token", "secret", "password", "cookie", "headers"];
    let ends = words.iter().flat_map(|word| ["\"", "'", "\\"].map(|quote| format!("{word}{quote}")));
    let of_addresses = ["://", "key=", "token=", "sig=", "signature=", "secret=", "password=", "auth=", "code=", "jwt="];
    let all: Vec<String> = ends.chain(of_addresses.map(str::to_owned)).collect();
    Words::new(&all.iter().map(String::as_str).collect::<Vec<_>>())
});

/// A text in which somebody quotes JSON, without the credentials that names in it speak of, and without what has the form of one.
pub(super) fn without_quoted_credentials(text: &str) -> Cow<'_, str> {
    if !QUOTED.is_any_in(text) {
        return without_credentials(text);
    }
    let without_members = MEMBER.replace_all(text, |found: &Captures<'_>| {
        let name = (1..=7).find_map(|group| found.get(group)).map_or("", |name| name.as_str());
        format!("{name}{REDACTED}{}", if name == "://" { "@" } else { "" })
    });
    match without_credentials(&without_members) {
        Cow::Borrowed(_) => without_members,
        Cow::Owned(scrubbed) => Cow::Owned(scrubbed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_in_any_case_and_wherever_it_stands() {
        let signs = [&PREFIXES[..], &OTHER_SIGNS[..]].concat();
        assert!(signs.iter().all(|sign| !sign.bytes().any(|byte| byte.is_ascii_uppercase())));
        for sign in signs {
            for length in [0, 1, 7, 31, 64, 200] {
                let around = "{\"a\": [1, \u{e9}]} ".repeat(20).chars().take(length).collect::<String>();
                for text in [format!("{around}{sign}"), format!("{sign}{around}"), format!("{around}{sign}{around}")] {
                    assert!(may_hold_credential(&text) && may_hold_credential(&text.to_ascii_uppercase()), "{text}");
                }
                assert!(!may_hold_credential(&around));
            }
        }
    }

    #[test]
    fn keys_are_known_by_their_form() {
        // Made up, in the form that their makers document.
        for (text, expected) in [
            ("Bearer abc.def", "Bearer [redacted]"),
            ("BEARER\tabc SK-z123456", "BEARER\t[redacted] [redacted]"),
            ("a=Bearer%20abc&b=sk-z123456", "a=Bearer%20[redacted]&b=[redacted]"),
            ("Basic dXNlcjpwYXNzd29yZA==", "Basic [redacted]"),
            ("x eyJhbGciOiJub25lIn0.eyJhIjoxfQ. y", "x [redacted] y"),
            ("AKIAIOSFODNN7EXAMPLE", "[redacted]"),
            ("curl/8 (ghp_0123456789abcdefghij)", "curl/8 ([redacted])"),
            ("ya29.zzTOKENzz-7731", "[redacted]"),
            ("hf_abcdefghijKLMNOP", "[redacted]"),
            ("网关 sk-z123456", "网关 [redacted]"),
            ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----!", "[redacted]!"),
            ("a task-force of risk-takers, Asia/Shanghai", "a task-force of risk-takers, Asia/Shanghai"),
            ("basic arithmetic, token generation", "basic arithmetic, token generation"),
            // One behind the other, inside of what only begins like one, and at either end.
            ("Token generation Token abcdefg1 token\tabcdefg2", "Token generation Token [redacted] token\t[redacted]"),
            ("sk-sk-sk-sk- ask-sk-abcd eyj-sk-abcd", "[redacted] ask-[redacted] eyj-[redacted]"),
            ("x-----BEGIN PRIVATE KEY-----\nMIIE", "x[redacted]"),
        ] {
            assert_eq!(without_credentials(text), expected, "{text}");
        }
    }

    #[test]
    fn quoted_requests_lose_their_credentials_and_keep_the_rest() {
        for (text, expected) in [
            (
                "{'tools': [{'type': 'mcp', 'authorization': 'zzTOKENzz', 'headers': {'X-A': 'zzKEYzz'}, 'n': 1}]}",
                "{'tools': [{'type': 'mcp', 'authorization': '[redacted]', 'headers': {[redacted]}, 'n': 1}]}",
            ),
            (r#"data: {"x-api-key": "z\"zKEYzz","a":1}"#, r#"data: {"x-api-key": "[redacted]","a":1}"#),
            (r#"{"detail":"{\"authorization_token\": \"zz\"}"}"#, r#"{"detail":"{\"authorization_token\": \"[redacted]\"}"}"#),
            ("see https://u:zz@h/x?a=1&api_key=zz&b=2", "see https://[redacted]@h/x?a=1&api_key=[redacted]&b=2"),
            (
                "the headers of a letter, and authorization of a payment",
                "the headers of a letter, and authorization of a payment",
            ),
        ] {
            assert_eq!(without_quoted_credentials(text), expected, "{text}");
        }
    }
}
