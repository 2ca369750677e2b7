//! Names: of headers and query parameters whose values are stored, and of what holds a credential.
//!
//! An allow list, because a list of what is secret is never complete: every gateway, cloud and tool has a header of its own for
//! a key.

use std::borrow::Cow;
use std::sync::LazyLock;

use super::shapes::Words;

/// Headers whose values are stored: what an auditor asks (who sent what with which program, when, through what) and what tells
/// how a call was served. In order.
const KEPT_HEADERS: [&str; 109] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "age",
    "allow",
    "anthropic-beta",
    "anthropic-dangerous-direct-browser-access",
    "anthropic-organization-id",
    "anthropic-version",
    "b3",
    "cache-control",
    "connection",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-range",
    "content-type",
    "date",
    "dnt",
    "etag",
    "expect",
    "expires",
    "forwarded",
    "host",
    "http-referer",
    "keep-alive",
    "last-modified",
    "location",
    "openai-beta",
    "openai-model",
    "openai-organization",
    "openai-processing-ms",
    "openai-project",
    "openai-version",
    "origin",
    "pragma",
    "priority",
    "range",
    "referer",
    "referrer-policy",
    "request-id",
    "retry-after",
    "retry-after-ms",
    "server",
    "strict-transport-security",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "upgrade-insecure-requests",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-accel-buffering",
    "x-amzn-trace-id",
    "x-anonymous-consumer",
    "x-client-name",
    "x-client-version",
    "x-cloud-trace-context",
    "x-consumer-custom-id",
    "x-consumer-groups",
    "x-consumer-id",
    "x-consumer-username",
    "x-content-type-options",
    "x-correlation-id",
    "x-credential-identifier",
    "x-data-parallel-rank",
    "x-envoy-upstream-service-time",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-path",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-scheme",
    "x-frame-options",
    "x-http-method-override",
    "x-kong-proxy-latency",
    "x-kong-request-id",
    "x-kong-response-latency",
    "x-kong-upstream-latency",
    "x-powered-by",
    "x-process-time",
    "x-real-ip",
    "x-request-id",
    "x-request-start",
    "x-requested-with",
    "x-response-time",
    "x-robots-tag",
    "x-should-retry",
    "x-stainless-arch",
    "x-stainless-async",
    "x-stainless-helper-method",
    "x-stainless-lang",
    "x-stainless-os",
    "x-stainless-package-version",
    "x-stainless-read-timeout",
    "x-stainless-retry-count",
    "x-stainless-runtime",
    "x-stainless-runtime-version",
    "x-title",
    "x-trace-id",
    "x-vllm-priority",
];

/// Beginnings of further ones, unless they speak of a credential. What they are families of is open: SDKs and limits add some.
const KEPT_PREFIXES: [&str; 7] = ["if-", "sec-ch-ua", "sec-fetch-", "x-b3-", "x-kong-", "x-ratelimit-", "x-stainless-"];

/// Beginnings of families whose members speak of tokens and credentials and hold none: limits, and what a browser may send.
const KEPT_FAMILIES: [&str; 4] = ["access-control-", "anthropic-ratelimit-", "ratelimit-", "x-ratelimit-"];

/// Words that a name has which speaks of a credential.
const SECRET_WORDS: [&str; 10] = ["auth", "cookie", "credential", "jwt", "key", "pass", "secret", "session", "sig", "token"];

static SECRETS: LazyLock<Words> = LazyLock::new(|| Words::new(&SECRET_WORDS));

/// Headers that hold credentials. They are left out, names included; Kong's serializer redacts only the first two, and only their
/// values.
const SECRET_HEADERS: [&str; 7] =
    ["authorization", "proxy-authorization", "x-api-key", "apikey", "api-key", "cookie", "set-cookie"];

/// Query parameters that hold credentials, and are left out: Kong's key-auth takes the key from a parameter of the header's name,
/// other gateways and SDKs use the rest.
pub(super) const SECRET_PARAMETERS: [&str; 9] =
    ["api_key", "key", "token", "access_token", "auth", "secret", "password", "client_secret", "subscription-key"];

/// Query parameters whose values are stored: those of the APIs that vLLM and the SDKs have. In order.
const KEPT_PARAMETERS: [&str; 19] = [
    "after",
    "api-version",
    "before",
    "beta",
    "include",
    "include[]",
    "include_usage",
    "limit",
    "model",
    "offset",
    "order",
    "page",
    "page_size",
    "sort",
    "starting_after",
    "stream",
    "timeout",
    "verbose",
    "version",
];

/// Members of a body that hold credentials wherever they stand, `-` written as `_`. In order.
const CREDENTIAL_MEMBERS: [&str; 25] = [
    "access_token",
    "api_key",
    "api_token",
    "apikey",
    "auth_token",
    "authorization",
    "authorization_token",
    "bearer",
    "bearer_token",
    "client_secret",
    "cookie",
    "id_token",
    "jwt",
    "oauth_token",
    "ocp_apim_subscription_key",
    "passwd",
    "password",
    "private_key",
    "proxy_authorization",
    "refresh_token",
    "secret",
    "secret_access_key",
    "secret_key",
    "session_token",
    "set_cookie",
];

/// Ends of names of members that hold credentials wherever they stand.
const CREDENTIAL_ENDS: [&str; 5] = ["_access_token", "_api_key", "_auth_token", "_client_secret", "_password"];

/// Ends of names of members that hold credentials in the description of a tool or a server of tools.
const CREDENTIAL_ENDS_OF_TOOLS: [&str; 9] =
    ["auth", "authorization", "cookie", "credential", "credentials", "key", "password", "secret", "token"];

/// Members that hold headers or variables for a server of tools: each value may be a credential.
const CARRIERS: [&str; 8] =
    ["default_headers", "env", "extra_headers", "header", "headers", "http_headers", "query_params", "request_headers"];

/// Longest name of an unknown header or parameter that is stored, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// A name in small letters.
fn lower(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) }
}

fn is_in(sorted: &[&str], name: &str) -> bool {
    sorted.binary_search(&name).is_ok()
}

/// The kept headers by their length, each with its end: every entry has some thirty, of one length are a few that begin alike, and hardly
/// two of these end alike.
static KEPT_BY_LENGTH: LazyLock<Vec<Vec<(u64, &str)>>> = LazyLock::new(|| {
    let longest = KEPT_HEADERS.iter().map(|name| name.len()).max().unwrap_or_default();
    let of_length = |length| KEPT_HEADERS.into_iter().filter(move |name| name.len() == length).map(|name| (end_of(name), name));
    (0..=longest).map(|length| of_length(length).collect()).collect()
});

/// The last eight letters of a name as a number; of a shorter one all of them.
fn end_of(name: &str) -> u64 {
    match name.as_bytes().last_chunk::<8>() {
        Some(end) => u64::from_le_bytes(*end),
        None => name.bytes().fold(0, |end, byte| end << 8 | u64::from(byte)),
    }
}

/// Whether a header of this name holds a credential.
pub(super) fn is_secret_header(name: &str) -> bool {
    ends_like_a_credential(name) && SECRET_HEADERS.iter().any(|secret| name.eq_ignore_ascii_case(secret))
}

/// Whether the value of a header of this name is stored.
pub(super) fn is_kept_header(name: &str) -> bool {
    let name = lower(name);
    let end = end_of(&name);
    KEPT_BY_LENGTH.get(name.len()).is_some_and(|names| names.iter().any(|(other, kept)| *other == end && *kept == name))
        || KEPT_FAMILIES.iter().any(|family| name.starts_with(family))
        || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) && !SECRETS.is_any_in(&name)
}

/// Whether the value of a query parameter of this name is stored.
pub(super) fn is_kept_parameter(name: &str) -> bool {
    is_in(&KEPT_PARAMETERS, &lower(name))
}

/// The last three letters of all names that hold a credential.
const ENDS: [u32; 12] = [
    last_three(*b"als"),
    last_three(*b"ial"),
    last_three(*b"ion"),
    last_three(*b"jwt"),
    last_three(*b"ken"),
    last_three(*b"key"),
    last_three(*b"kie"),
    last_three(*b"ord"),
    last_three(*b"ret"),
    last_three(*b"rer"),
    last_three(*b"swd"),
    last_three(*b"uth"),
];

/// Three letters in one number, without regard to case.
const fn last_three([one, two, three]: [u8; 3]) -> u32 {
    u32::from_le_bytes([one, two, three, 0]) | 0x20_20_20
}

/// Whether a name ends like one that holds a credential: most do not, and are not looked at any further.
fn ends_like_a_credential(name: &str) -> bool {
    let Some(end) = name.as_bytes().last_chunk::<3>() else { return false };
    let end = last_three(*end);
    // All of them, which the processor does at once: names come in no order that it could foresee.
    ENDS.iter().fold(false, |is_one, other| is_one | (*other == end))
}

/// Whether a member of a body holds a credential; in the description of a tool more names do.
pub(super) fn is_credential_member(name: &str, in_tool: bool) -> bool {
    if !ends_like_a_credential(name) {
        return false;
    }
    let name = lower(name).replace('-', "_");
    let name = name.strip_prefix("x_").unwrap_or(&name);
    is_in(&CREDENTIAL_MEMBERS, name)
        || CREDENTIAL_ENDS.iter().any(|end| name.ends_with(end))
        || in_tool && CREDENTIAL_ENDS_OF_TOOLS.iter().any(|end| name.ends_with(end))
}

/// Whether a member of a body holds headers or variables.
pub(super) fn is_carrier(name: &str) -> bool {
    is_in(&CARRIERS, &lower(name))
}

/// Whether the name of an unknown header or parameter is stored: a client may put anything there, a key too.
pub(super) fn is_storable_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'[' | b']' | b'$' | b':');
    !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.bytes().all(is_plain) && !looks_random(name)
}

/// Whether a text has a stretch of letters and digits that no word has.
pub(super) fn looks_random(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric()).any(|stretch| {
        let digits = stretch.bytes().filter(u8::is_ascii_digit).count();
        stretch.len() >= 16 && digits > 0 || stretch.len() >= 32 || digits >= 8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_in_order() {
        for list in [&KEPT_HEADERS[..], &KEPT_PARAMETERS, &CREDENTIAL_MEMBERS, &CARRIERS] {
            assert!(list.is_sorted());
        }
    }

    #[test]
    fn no_name_of_a_credential_is_passed_over_for_its_end() {
        let all = CREDENTIAL_MEMBERS.iter().chain(&CREDENTIAL_ENDS).chain(&CREDENTIAL_ENDS_OF_TOOLS);
        for name in all {
            assert!(is_credential_member(name, true) && is_credential_member(&name.to_ascii_uppercase(), true), "{name}");
        }
        assert!(SECRET_HEADERS.iter().all(|name| is_secret_header(name) && is_secret_header(&name.to_ascii_uppercase())));
    }

    #[test]
    fn what_auditors_ask_for_is_kept_and_what_speaks_of_a_credential_is_not() {
        for name in [
            "User-Agent",
            "content-type",
            "x-stainless-runtime-version",
            "x-kong-proxy-latency",
            "x-ratelimit-remaining-tokens",
            "anthropic-ratelimit-tokens-reset",
            "access-control-allow-credentials",
            "traceparent",
        ] {
            assert!(is_kept_header(name), "{name}");
        }
        for name in [
            "x-auth-token",
            "x-goog-api-key",
            "x-amz-security-token",
            "x-forwarded-authorization",
            "x-forwarded-access-token",
            "x-stainless-token",
            "x-kong-admin-key",
            "x-company",
            "x-session-id",
            "",
        ] {
            assert!(!is_kept_header(name), "{name}");
        }
    }

    #[test]
    fn a_name_that_may_be_a_key_is_not_stored() {
        for name in ["x-company-tenant", "x-amz-content-sha256", "include[]", "$filter"] {
            assert!(is_storable_name(name), "{name}");
        }
        for name in ["", "eyJhbGciOiJIUzI1NiJ9xyz", "0123456789abcdef0123", "a b", "k\u{e9}y", &"a-".repeat(33)] {
            assert!(!is_storable_name(name), "{name}");
        }
    }
}
