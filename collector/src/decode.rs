//! Bytes of `POST /log` to entries, each a result of its own.
//!
//! Invariants: no I/O, no panic, nothing of HTTP, SQL or metrics. Bytes that are no UTF-8 cost a replacement character, a
//! broken element of a batch costs only itself, and a body costs at most [`Limits::decoded_bytes`] of memory.
//!
//! Deliberately absent: any knowledge of what the OpenAI bodies mean; that is `extract`.

pub mod body;
mod charset;
pub mod cut;
pub mod digest;
pub mod entry;
mod form;
pub mod json;
pub mod sse;

use std::borrow::Cow;

use memchr::memmem;
use serde_json::value::RawValue;

pub use entry::Entry;

/// Bounds on what decoding one entry may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest size of one body after base64 and content encoding, in bytes. Larger bodies are cut there and the row says
    /// `truncated`. Without a bound a few kilobytes of gzip become gigabytes.
    pub decoded_bytes: usize,
}

/// Why a whole request body is no batch.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Not JSON, and nothing in it could be saved.
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    /// JSON, but neither an object nor an array.
    #[error("the body is neither a log entry (an object) nor a batch of entries (an array)")]
    NotABatch,
}

/// Why one element of a batch is no entry.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum EntryError {
    /// The element is not JSON.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// The element is JSON but not an object.
    #[error("not an object")]
    NotAnObject,
    /// There is no usable `started_at`, which every row needs.
    #[error("no usable started_at (milliseconds since 1970)")]
    NoStartedAt,
}

/// The request body as text that can be parsed: Kong passes on headers as they came, so a batch need not be UTF-8.
pub fn text(bytes: &[u8]) -> Cow<'_, str> {
    // Checked before it is mended: the lossy conversion looks at every byte, the check at sixteen at once where they are ASCII,
    // and a batch is mostly base64.
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => String::from_utf8_lossy(bytes),
    }
}

/// The elements of a batch as slices of its text: one for an object, each of an array. Elements that are not JSON are
/// handed out too (decoding them will fail); the elements around them are found all the same.
pub fn elements(text: &str) -> Result<Vec<&str>, DecodeError> {
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(text).trim();
    match text.as_bytes().first() {
        Some(b'[') => {}
        Some(b'{') => {
            return match serde_json::from_str::<&RawValue>(text) {
                Ok(raw) => Ok(vec![raw.get()]),
                Err(error) => Err(DecodeError::NotJson(error.to_string())),
            };
        }
        _ => {
            return Err(match serde_json::from_str::<&RawValue>(text) {
                Ok(_) => DecodeError::NotABatch,
                Err(error) => DecodeError::NotJson(error.to_string()),
            });
        }
    }
    match serde_json::from_str::<Vec<&RawValue>>(text) {
        Ok(elements) => Ok(elements.into_iter().map(RawValue::get).collect()),
        Err(error) => salvage(text).ok_or_else(|| DecodeError::NotJson(error.to_string())),
    }
}

/// The elements of an array that is broken somewhere: what parses, and the stretches between. `None` when nothing parses.
///
/// After a broken element the scan goes on behind the next `}` and comma from which an object parses that is a log entry (it
/// has a `request`, so that an object inside the broken element is not taken for one). Broken elements that follow each other are
/// one stretch: where one ends cannot be known.
fn salvage(array: &str) -> Option<Vec<&str>> {
    // Each try may read to the end of the text: without a bound a hostile body costs the square of its length.
    const TRIES: usize = 1_000;
    let mut tries = 0;
    let mut found_one = false;
    let mut elements = Vec::new();
    let mut rest = array.strip_prefix('[')?.trim_start();
    loop {
        if rest.is_empty() || rest == "]" {
            return found_one.then_some(elements);
        }
        if let Some((element, after)) = leading_value(rest)
            && let Some(after) = next_element(after)
        {
            found_one = true;
            elements.push(element);
            rest = after;
            continue;
        }
        let resume = memmem::find_iter(rest.as_bytes(), b",")
            .filter_map(|comma| Some((rest.get(..comma)?, rest.get(comma + 1..)?.trim_start())))
            .filter(|(before, after)| before.trim_end().ends_with('}') && after.starts_with('{'))
            .take_while(|_| {
                tries += 1;
                tries <= TRIES
            })
            .find(|(_, after)| leading_value(after).is_some_and(|(value, end)| is_entry(value) && next_element(end).is_some()));
        let Some((broken, after)) = resume else {
            elements.push(rest.strip_suffix(']').unwrap_or(rest));
            return found_one.then_some(elements);
        };
        elements.push(broken);
        rest = after;
    }
}

/// The JSON value at the start of `text`, and what follows it.
fn leading_value(text: &str) -> Option<(&str, &str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    let value = values.next()?.ok()?;
    text.get(values.byte_offset()..).map(|after| (value.get(), after))
}

/// What follows the separator behind an element; `None` where there is none.
fn next_element(after: &str) -> Option<&str> {
    let after = after.trim_start();
    after.strip_prefix(',').map(str::trim_start).or_else(|| (after == "]").then_some(after))
}

fn is_entry(value: &str) -> bool {
    json::Json::parse(value).is_ok_and(|value| value.get("request").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_one_element_and_an_array_is_its_elements() {
        assert_eq!(elements(r#" {"a":1} "#).unwrap(), [r#"{"a":1}"#]);
        assert_eq!(elements(r#"[{"a":1}, 17,"x" ]"#).unwrap(), [r#"{"a":1}"#, "17", r#""x""#]);
        assert_eq!(elements("[]").unwrap(), Vec::<&str>::new());
    }

    #[test]
    fn what_is_no_json_or_no_batch_is_refused() {
        assert!(matches!(elements(""), Err(DecodeError::NotJson(_))));
        assert!(matches!(elements("{\"a\":"), Err(DecodeError::NotJson(_))));
        assert!(matches!(elements("[nonsense]"), Err(DecodeError::NotJson(_))));
        assert_eq!(elements("17"), Err(DecodeError::NotABatch));
    }

    #[test]
    fn a_broken_element_does_not_cost_its_neighbours() {
        let good = r#"{"request":{"id":"1"}}"#;
        for broken in [
            r#"{"request":{"id":"2",}}"#,
            r#"{"request":{"tries":[{"a":1},{"b":2}],}}"#,
            r#"{"request":"\x"}"#,
            r#"{"request":[1,2}"#,
        ] {
            let text = format!("[{good},{broken}, {good} ,\n{good}]");
            assert_eq!(elements(&text).unwrap(), [good, broken, good, good], "{broken}");
        }
    }

    #[test]
    fn a_batch_that_breaks_off_keeps_what_was_whole() {
        let good = r#"{"request":{"id":"1"}}"#;
        let text = format!(r#"[{good},{good},{{"request":{{"id""#);
        assert_eq!(elements(&text).unwrap(), [good, good, r#"{"request":{"id""#]);
    }
}
