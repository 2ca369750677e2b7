//! Bytes of `POST /log` to entries, each a result of its own.
//!
//! Invariants: no I/O, no panic, nothing of HTTP, SQL or metrics. Bytes that are no UTF-8 cost a replacement character, a
//! broken element of a batch costs only itself, and the bodies of an entry become at most [`Limits::decoded_bytes`].
//!
//! Deliberately absent: any knowledge of what the OpenAI bodies mean; that is `extract`.

pub mod body;
mod charset;
pub mod cut;
pub mod digest;
pub mod entry;
mod form;
pub mod inflate;
pub mod json;
pub mod split;
pub mod sse;
mod structure;

use std::borrow::Cow;

use bytes::Bytes;
use bytestring::ByteString;

pub use entry::Entry;

/// Bounds on what decoding one entry may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most bytes of both bodies of an entry together, after base64 and content encoding. What is over it is cut, and the row says
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

/// The same, with its bytes.
pub fn owned_text(bytes: Bytes) -> ByteString {
    ByteString::try_from(bytes.clone()).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into())
}

/// The elements of a batch as slices of its text: one for an object, each of an array. Elements that are not JSON are
/// handed out too (decoding them will fail); the elements around them are found all the same.
pub fn elements(text: &str) -> Result<Elements<'_>, DecodeError> {
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(text).trim();
    let whole = || json::check(text).map_err(|error| DecodeError::NotJson(error.to_string()));
    match text.as_bytes().first() {
        Some(b'[') => {
            let inside = text.strip_prefix('[').unwrap_or_default();
            let elements = Elements::inside(inside);
            if elements.rest != "]" && !elements.clone().has_one() {
                return Err(whole().err().unwrap_or(DecodeError::NotABatch));
            }
            Ok(elements)
        }
        Some(b'{') => whole().map(|()| Elements { rest: text, work: 0, in_array: false }),
        _ => Err(whole().err().unwrap_or(DecodeError::NotABatch)),
    }
}

/// Elements of an array, one after the other: a large array costs no list of its elements.
///
/// After a broken element the search goes on behind the next comma from which an object parses that is a log entry (it has a
/// `request`, so that an object inside the broken element is not taken for one) with another comma or the end behind it. Broken elements that follow each other are
/// one stretch: where one ends cannot be known.
#[derive(Debug, Clone)]
pub struct Elements<'a> {
    /// What was not handed out yet.
    pub rest: &'a str,
    /// Bytes that may still be read in search of the end of broken elements. Each try may read to the end of the text: without a bound
    /// a hostile body costs the square of its length.
    pub work: usize,
    /// Elements are separated; else `rest` is the only one.
    pub in_array: bool,
}

impl<'a> Elements<'a> {
    /// The elements of what stands behind the opening bracket of an array.
    pub fn inside(array: &'a str) -> Self {
        Self { rest: array.trim_start(), work: array.len().saturating_mul(4), in_array: true }
    }

    /// Whether any element is whole.
    fn has_one(mut self) -> bool {
        while json::leading(self.rest).is_none_or(|(_, behind)| next_element(behind).is_none()) {
            let Some(comma) = self.end_of_broken() else { return false };
            self.rest = self.rest.get(comma + 1..).unwrap_or_default().trim_start();
        }
        true
    }

    /// Where the broken element in front of `rest` ends: the comma.
    fn end_of_broken(&mut self) -> Option<usize> {
        let rest = self.rest;
        for comma in memchr::memchr_iter(b',', rest.as_bytes()) {
            let after = rest.get(comma + 1..)?.trim_start();
            // Within a string quotes have a backslash: text never looks like that.
            if !after.strip_prefix('{').is_some_and(|inside| inside.trim_start().starts_with('"')) {
                continue;
            }
            let (length, is_whole) = span(after);
            self.work = self.work.checked_sub(length)?;
            let value = after.get(..length).filter(|_| is_whole);
            if value.is_some_and(is_entry) && after.get(length..).is_some_and(|behind| next_element(behind).is_some()) {
                return Some(comma);
            }
        }
        None
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() || self.rest == "]" && self.in_array {
            self.rest = "";
            return None;
        }
        if !self.in_array {
            return Some(std::mem::take(&mut self.rest));
        }
        if let Some((element, behind)) = json::leading(self.rest)
            && let Some(after) = next_element(behind)
        {
            self.rest = after;
            return Some(element);
        }
        let Some(comma) = self.end_of_broken() else {
            let broken = std::mem::take(&mut self.rest);
            return Some(broken.strip_suffix(']').unwrap_or(broken));
        };
        let broken = self.rest.get(..comma);
        self.rest = self.rest.get(comma + 1..).unwrap_or_default().trim_start();
        broken
    }
}

/// How far the object at the start of `text` reaches by its brackets and quotes, and whether it comes to its end.
fn span(text: &str) -> (usize, bool) {
    let mut brackets = Brackets::default();
    let end = text.bytes().position(|byte| {
        brackets.pass(byte);
        brackets.depth == 0
    });
    end.map_or((text.len(), false), |at| (at + 1, true))
}

/// Where in the structure of JSON text a place is, as far as brackets and quotes tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct Brackets {
    /// Objects and arrays that are open.
    pub depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Brackets {
    /// Goes one byte further; returns whether the byte is outside of strings.
    pub fn pass(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        true
    }
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

    fn all(text: &str) -> Vec<&str> {
        elements(text).unwrap().collect()
    }

    #[test]
    fn an_object_is_one_element_and_an_array_is_its_elements() {
        assert_eq!(all(r#" {"a":1} "#), [r#"{"a":1}"#]);
        assert_eq!(all(r#"[{"a":1}, 17,"x" ]"#), [r#"{"a":1}"#, "17", r#""x""#]);
        assert_eq!(all("[ ]"), Vec::<&str>::new());
    }

    #[test]
    fn what_is_no_json_or_no_batch_is_refused() {
        for text in ["", "{\"a\":", "{\"a\":1} rest", "[nonsense]", "[", "[,]"] {
            assert!(matches!(elements(text), Err(DecodeError::NotJson(_))), "{text}");
        }
        assert_eq!(elements("17").map(Iterator::count), Err(DecodeError::NotABatch));
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
            assert_eq!(all(&text), [good, broken, good, good], "{broken}");
        }
    }

    #[test]
    fn a_batch_that_breaks_off_keeps_what_was_whole() {
        let good = r#"{"request":{"id":"1"}}"#;
        let text = format!(r#"[{good},{good},{{"request":{{"id""#);
        assert_eq!(all(&text), [good, good, r#"{"request":{"id""#]);
    }

    #[test]
    fn a_body_full_of_broken_elements_is_read_a_few_times_at_most() {
        // From every one of half a million commas an object seems to begin that reaches to the end.
        let text = format!(r#"[{{"request":{{}}}},{}"#, r#"{"a":"b"},x},{"request":[{"#.repeat(500_000));
        let mut elements = elements(&text).unwrap();
        assert_eq!(elements.next(), Some(r#"{"request":{}}"#));
        assert!(elements.by_ref().count() > 0);
    }
}
