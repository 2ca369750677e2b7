//! Addresses and queries without credentials.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::names::{is_storable_name, looks_random};
use super::shapes::may_hold_credential;
use super::{Fate, REDACTED, Secrets};

/// Longest value of a known parameter that is stored, in bytes.
const MAX_VALUE_BYTES: usize = 256;

/// Whether a text can be an address that holds a query, a fragment, parameters in its path, or a user and a password.
pub(super) fn is_worth_a_look(text: &str) -> bool {
    // Most texts of an entry are a few letters, for which it does not pay to get a search going.
    const FEW: usize = 16;
    if text.len() <= FEW {
        return text.bytes().any(|byte| matches!(byte, b'?' | b'#' | b'@' | b'%' | b';'));
    }
    memchr::memchr3(b'?', b'#', b'@', text.as_bytes()).is_some() || memchr::memchr2(b'%', b';', text.as_bytes()).is_some()
}

/// A text that is an address, or has one in it, without credentials: parameters that hold them are left out, values of unknown
/// parameters and what stands before the host are replaced.
pub(super) fn scrub<'t>(secrets: &Secrets, text: &'t str) -> Cow<'t, str> {
    if !is_worth_a_look(text) {
        return Cow::Borrowed(text);
    }
    let (before, query) = match query_start(text) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let mut out = String::with_capacity(text.len() + REDACTED.len());
    push_path(secrets, &mut out, before);
    // Prose has question marks too: it is a query where it has a parameter, or where an address stands before it.
    let is_query = query.contains('=') || query.contains("%3D") || query.contains("%3d") || before.contains('/');
    if is_query {
        push_query(secrets, &mut out, query)
    } else {
        out.push_str(query)
    }
    if out == text { Cow::Borrowed(text) } else { Cow::Owned(out) }
}

/// Where a query or fragment begins; its mark may be percent-encoded, which servers differ about.
fn query_start(text: &str) -> Option<usize> {
    let encoded = |at: &usize| {
        let digits = text.as_bytes().get(at + 1..at + 3).unwrap_or_default();
        digits.eq_ignore_ascii_case(b"3f") || digits == b"23"
    };
    let plain = memchr::memchr2(b'?', b'#', text.as_bytes());
    let other = memchr::memchr_iter(b'%', text.as_bytes()).find(encoded);
    plain.into_iter().chain(other).min()
}

/// What comes before a query: user and password go, and parameters of the path are treated like those of a query.
fn push_path(secrets: &Secrets, out: &mut String, path: &str) {
    let mut rest = path;
    if let Some(at) = rest.find("://") {
        let (scheme, address) = rest.split_at(at + 3);
        let (authority, after) = address.split_at(address.find('/').unwrap_or(address.len()));
        out.push_str(scheme);
        out.push_str(&without_user(authority));
        rest = after;
    }
    let mut parts = rest.split(';');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        // A parameter ends with its segment. One of a media type or of Accept has a blank before it, and is none.
        let (parameter, after) = part.split_at(part.find('/').unwrap_or(part.len()));
        out.push(';');
        if !parameter.contains('=') || !rest.starts_with('/') {
            out.push_str(parameter);
        } else {
            // One that would be left out of a query stands here without its value.
            push_parameter(secrets, out, parameter);
        }
        out.push_str(after);
    }
}

/// A host without the user and password before it.
pub(super) fn without_user(authority: &str) -> Cow<'_, str> {
    match authority.rsplit_once('@') {
        Some((_, host)) => Cow::Owned(format!("{REDACTED}@{host}")),
        None => Cow::Borrowed(authority),
    }
}

/// A query with its mark.
fn push_query(secrets: &Secrets, out: &mut String, query: &str) {
    let is_mark = |c: char| matches!(c, '?' | '#' | '&' | ';');
    let first_length = if query.starts_with('%') { 3 } else { 1 };
    let Some((first, mut rest)) = query.split_at_checked(first_length) else { return };
    let mut mark = first;
    let mut is_first = true;
    loop {
        let (parameter, after) = rest.split_at(rest.find(is_mark).unwrap_or(rest.len()));
        let length = out.len();
        out.push_str(if is_first { first } else { mark });
        if push_parameter(secrets, out, parameter) {
            is_first = false;
        } else {
            out.truncate(length);
        }
        let Some((next_mark, next)) = after.split_at_checked(1) else { return };
        (mark, rest) = (next_mark, next);
    }
}

/// A parameter, with its value where it may be stored; `false` where it is to be left out.
fn push_parameter(secrets: &Secrets, out: &mut String, parameter: &str) -> bool {
    let encoded = || parameter.find("%3D").or_else(|| parameter.find("%3d")).map(|at| (at, 3));
    let Some((at, length)) = parameter.find('=').map(|at| (at, 1)).or_else(encoded) else {
        // A name alone, or a value alone.
        let name = decoded(parameter);
        out.push_str(if name.is_empty() || is_storable_name(&name) && !may_hold_credential(&name) {
            parameter
        } else {
            REDACTED
        });
        return secrets.parameter_fate(name.trim()) != Fate::LeaveOut;
    };
    let (name, value) = (parameter.get(..at).unwrap_or_default(), parameter.get(at + length..).unwrap_or_default());
    let (name_text, value_text) = (decoded(name), decoded(value));
    let fate = secrets.parameter_fate(name_text.trim());
    let is_storable = name.is_empty() || fate == Fate::Keep || is_storable_name(&name_text) && !may_hold_credential(&name_text);
    out.push_str(if is_storable { name } else { REDACTED });
    out.push_str(parameter.get(at..at + length).unwrap_or_default());
    out.push_str(if value.is_empty() || fate == Fate::Keep && is_storable_value(&value_text) { value } else { REDACTED });
    fate != Fate::LeaveOut
}

/// Whether the value of a known parameter is stored: one that holds an address or a key is not.
pub(super) fn is_storable_value(value: &str) -> bool {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ',' | ':' | '/' | '+' | '*' | ' ');
    value.len() <= MAX_VALUE_BYTES && value.chars().all(is_plain) && !may_hold_credential(value) && !looks_like_key(value)
}

/// Long and random: no cursor of an API ("resp_" and 32 digits) is taken for one.
fn looks_like_key(value: &str) -> bool {
    value.len() > 64 && looks_random(value)
}

fn decoded(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lose_their_credentials_whatever_the_spelling() {
        let secrets = Secrets::new(&["X-Company-Key".to_owned()], &["a".to_owned(), "b".to_owned()]);
        for (uri, scrubbed) in [
            ("/v1/models", "/v1/models"),
            ("/v1/models?a=1&b=2", "/v1/models?a=1&b=2"),
            ("/v1/messages?beta=true&limit=20", "/v1/messages?beta=true&limit=20"),
            ("/v1/models?apikey=sk-z123456", "/v1/models"),
            ("http://h/v1?a=1&X-API-Key=k&b=2", "http://h/v1?a=1&b=2"),
            ("/v1?x%2Dapi%2Dkey=k&x-company-key=k;api_key=k&a=1", "/v1?a=1"),
            (
                "/v1?jwt=eyJh.b.c&sig=Zz%3D&X-Amz-Signature=f00&a=1",
                "/v1?jwt=[redacted]&sig=[redacted]&X-Amz-Signature=[redacted]&a=1",
            ),
            ("/v1?a=1?token=k", "/v1?a=1"),
            ("/v1?a=%3Ftoken%3Dk", "/v1?a=[redacted]"),
            ("/v1%3Fcode%3Dzz", "/v1%3Fcode%3D[redacted]"),
            ("/v1#access_token=k&state=zz", "/v1#state=[redacted]"),
            ("/v1?0123456789abcdef0123", "/v1?[redacted]"),
            ("/v1?0123456789abcdef0123=1", "/v1?[redacted]=[redacted]"),
            ("/v1/x;jsessionid=zz/y?a=1", "/v1/x;jsessionid=[redacted]/y?a=1"),
            ("https://user:pa@ss@h:1/v1", "https://[redacted]@h:1/v1"),
            ("https://h?a=1", "https://h?a=1"),
            ("text/event-stream; charset=utf-8", "text/event-stream; charset=utf-8"),
            ("a@b.c asks: why? because", "a@b.c asks: why? because"),
            ("?", "?"),
            ("%", "%"),
            ("/v1?&&=&x", "/v1?&&=&x"),
        ] {
            let once = scrub(&secrets, uri);
            assert_eq!(once, scrubbed, "{uri}");
            assert_eq!(scrub(&secrets, &once), once, "{uri}: a second time");
        }
    }
}
