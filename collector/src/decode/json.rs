//! A JSON value that borrows its strings and numbers from the text it was read from.
//!
//! `serde_json::Value` copies every string and sorts every object, which costs more than all other work on an entry; derived
//! structs refuse a document for one member of an unexpected type or one repeated member, and vLLM accepts both. Here nothing is
//! refused that Python's `json` reads (see [`read`]), members keep their order, and of a repeated member the last one counts.
//!
//! Invariants: no string of a tree holds NUL or half a surrogate pair, and every number is one that `numeric` holds: PostgreSQL
//! can store every tree. A borrowed string or name holds nothing that JSON would escape: it is a part of JSON text, or a
//! constant of ours.

mod read;

use std::borrow::Cow;
use std::fmt;

pub use read::{JsonError, check, leading};

use super::Brackets;

/// The most that the tree of a document may take, in bytes. The tree of `[[0],[0],…]` is forty times its text; that of a conversation
/// three times, of probabilities of tokens ten times.
pub const MAX_TREE_BYTES: usize = 32 << 20;

/// Longest text whose tree cannot take more than [`MAX_TREE_BYTES`], whatever it is.
const UNCHECKED_BYTES: usize = 256 << 10;

/// The character that stands for what cannot be stored.
pub const REPLACEMENT: char = '\u{FFFD}';

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub enum Json<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, as it was written.
    Number(Cow<'a, str>),
    /// A string, borrowed where it needed no unescaping.
    String(Cow<'a, str>),
    /// An array.
    Array(Vec<Json<'a>>),
    /// An object: its members in the order of the text, repeated ones included.
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
    /// A value that was put together rather than parsed, as its JSON text: written as it stands.
    Raw(String),
}

impl<'a> Json<'a> {
    /// Parses one JSON document; a byte order mark in front is skipped (vLLM accepts it).
    pub fn parse(text: &'a str) -> Result<Self, JsonError> {
        if text.len() > UNCHECKED_BYTES && tree_bytes(text) > MAX_TREE_BYTES {
            return Err(read::too_many_parts());
        }
        read::document(text.strip_prefix('\u{FEFF}').unwrap_or(text))
    }

    /// The member `name` of an object; of repeated ones the last. `None` for other values and for `null`.
    pub fn get(&self, name: &str) -> Option<&Json<'a>> {
        let Json::Object(members) = self else { return None };
        let (_, value) = members.iter().rev().find(|(key, _)| key == name)?;
        (!matches!(value, Json::Null)).then_some(value)
    }

    /// The value at the end of a path of members.
    pub fn at(&self, path: &[&str]) -> Option<&Json<'a>> {
        path.iter().try_fold(self, |value, name| value.get(name))
    }

    /// Takes the member `name` out of an object; of repeated ones the last, the others are dropped.
    pub fn take(&mut self, name: &str) -> Option<Json<'a>> {
        let Json::Object(members) = self else { return None };
        let mut taken = None;
        members.retain_mut(|(key, value)| {
            let is_it = key == name;
            if is_it {
                taken = Some(std::mem::replace(value, Json::Null));
            }
            !is_it
        });
        taken
    }

    /// A copy that borrows nothing.
    pub fn to_static(&self) -> Json<'static> {
        match self {
            Json::Null => Json::Null,
            Json::Bool(value) => Json::Bool(*value),
            Json::Number(number) => Json::Number(Cow::Owned(number.to_string())),
            Json::String(text) => Json::text(text),
            Json::Array(elements) => Json::Array(elements.iter().map(Json::to_static).collect()),
            Json::Object(members) => {
                Json::Object(members.iter().map(|(name, value)| (Cow::Owned(name.to_string()), value.to_static())).collect())
            }
            Json::Raw(text) => Json::Raw(text.clone()),
        }
    }

    /// A string of its own.
    pub fn text(text: &str) -> Json<'static> {
        Json::String(Cow::Owned(text.to_owned()))
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Json::String(text) => Some(text),
            _ => None,
        }
    }

    /// The elements of an array; of anything else none.
    pub fn elements(&self) -> &[Json<'a>] {
        match self {
            Json::Array(elements) => elements,
            _ => &[],
        }
    }

    /// The members of an object; of anything else none.
    pub fn members(&self) -> &[(Cow<'a, str>, Json<'a>)] {
        match self {
            Json::Object(members) => members,
            _ => &[],
        }
    }

    /// A whole number of our own.
    pub fn integer(number: i64) -> Json<'static> {
        Json::Number(Cow::Owned(number.to_string()))
    }

    /// A number, also one written as a string (Kong's serializer mixes both); `None` when no float holds it.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Json::Number(text) => text.parse().ok(),
            // `parse` also knows "inf" and "NaN".
            Json::String(text) => text.trim().parse().ok().filter(|n: &f64| n.is_finite()),
            _ => None,
        }
    }

    /// A number rounded to a whole one; `None` when it does not fit.
    pub fn as_i64(&self) -> Option<i64> {
        if let Json::Number(text) = self
            && let Ok(number) = text.parse()
        {
            return Some(number);
        }
        let rounded = self.as_f64()?.round();
        // 2^53: beyond it a float no longer tells neighbouring integers apart.
        (rounded.abs() <= 9_007_199_254_740_992.0).then_some(rounded as i64)
    }

    /// A number rounded to a whole one that fits PostgreSQL's `integer`.
    pub fn as_i32(&self) -> Option<i32> {
        self.as_i64().and_then(|n| i32::try_from(n).ok())
    }

    /// `true` or `false`.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Json::Bool(value) => Some(*value),
            _ => None,
        }
    }
}

/// What the tree of a JSON text takes at most, roughly, by its punctuation.
fn tree_bytes(text: &str) -> usize {
    // A vector grows by doubling, so its elements may have twice their room; the first four are made at once.
    const ELEMENT: usize = 2 * size_of::<Json<'_>>();
    const OBJECT: usize = 4 * size_of::<(Cow<'_, str>, Json<'_>)>();
    let mut brackets = Brackets::default();
    let mut bytes = 0;
    for byte in text.bytes() {
        if brackets.pass(byte) {
            bytes += match byte {
                b',' => ELEMENT,
                b'[' => 2 * ELEMENT,
                b'{' => OBJECT,
                // A name, beside its value.
                b':' => size_of::<Cow<'_, str>>(),
                _ => 0,
            };
        }
    }
    bytes
}

/// Text without NUL, which PostgreSQL cannot hold.
pub fn without_nul(text: Cow<'_, str>) -> Cow<'_, str> {
    match memchr::memchr(0, text.as_bytes()) {
        None => text,
        Some(_) => Cow::Owned(text.replace('\0', "\u{FFFD}")),
    }
}

/// Appends a string or name of a tree to `out` as a JSON string. A borrowed one stands in the text that it was read from without
/// escapes and is copied as it stands: those are most of them.
#[expect(clippy::ptr_arg, reason = "whether the text is borrowed is what decides")]
pub fn write_text(out: &mut String, text: &Cow<'_, str>) {
    match text {
        Cow::Borrowed(text) => {
            debug_assert_eq!(first_special(text.as_bytes()), None);
            out.push('"');
            out.push_str(text);
            out.push('"');
        }
        Cow::Owned(text) => write_string(out, text),
    }
}

/// Appends `text` to `out` as a JSON string, quotes included.
pub fn write_string(out: &mut String, text: &str) {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    out.push('"');
    let mut rest = text;
    while let Some(at) = first_special(rest.as_bytes()) {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        let byte = special.bytes().next().unwrap_or_default();
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            0 => out.push(REPLACEMENT),
            control => {
                out.push_str("\\u00");
                out.extend(HEX.get(usize::from(control >> 4)));
                out.extend(HEX.get(usize::from(control & 15)));
            }
        }
        rest = special.get(1..).unwrap_or_default();
    }
    out.push_str(rest);
    out.push('"');
}

/// Where the first byte is that a JSON string cannot hold as it stands.
#[inline]
pub fn first_special(text: &[u8]) -> Option<usize> {
    // Most strings are a few letters, for which words are fastest; most bytes are in captured bodies, for which vectors are.
    const FEW: usize = 4;
    let words = text.as_chunks::<8>().0;
    for (position, word) in words.get(..FEW).unwrap_or(words).iter().enumerate() {
        if let Some(at) = first_special_of_word(*word) {
            return Some(position * 8 + at);
        }
    }
    first_special_from(text, words.len().min(FEW) * 8)
}

/// The same, eight bytes at a time.
#[inline]
fn first_special_of_word(bytes: [u8; 8]) -> Option<usize> {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    // The high bit of each byte below `limit`; a borrow can only set bits above the first byte that is one.
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit)) & !word;
    let word = u64::from_le_bytes(bytes);
    let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let found = (below(word, 0x20) | equal(b'"') | equal(b'\\')) & (ONES << 7);
    (found != 0).then(|| found.trailing_zeros() as usize / 8)
}

/// The same from the byte `done` on, many bytes at a time.
fn first_special_from(text: &[u8], mut done: usize) -> Option<usize> {
    // Twice as far with each step: what is looked at beyond the place that is found is no more than what is before it.
    let mut length = 64;
    while let Some(rest) = text.get(done..).filter(|rest| !rest.is_empty()) {
        let part = rest.get(..length).unwrap_or(rest);
        let quote = memchr::memchr2(b'"', b'\\', part);
        let before = part.get(..quote.unwrap_or(part.len())).unwrap_or_default();
        let least = before.iter().fold(u8::MAX, |least, byte| least.min(*byte));
        let control = if least < 0x20 { before.iter().position(|byte| *byte < 0x20) } else { None };
        if let Some(at) = control.or(quote) {
            return Some(done + at);
        }
        done += part.len();
        length = length.saturating_mul(2);
    }
    None
}

impl fmt::Display for Json<'_> {
    /// Compact JSON text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(&mut text);
        f.write_str(&text)
    }
}

impl Json<'_> {
    /// Appends compact JSON text to `out`.
    pub fn write(&self, out: &mut String) {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(true) => out.push_str("true"),
            Json::Bool(false) => out.push_str("false"),
            Json::Number(number) => out.push_str(number),
            Json::String(text) => write_text(out, text),
            Json::Raw(text) => out.push_str(text),
            Json::Array(elements) => {
                write_list(out, '[', elements, ']', |out, element| element.write(out));
            }
            Json::Object(members) => write_list(out, '{', members, '}', |out, (name, value)| {
                write_text(out, name);
                out.push(':');
                value.write(out);
            }),
        }
    }
}

/// Appends `items`, separated by commas, between `open` and `close`.
pub fn write_list<T>(out: &mut String, open: char, items: &[T], close: char, mut write: impl FnMut(&mut String, &T)) {
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write(out, item);
    }
    out.push(close);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_repeated_member_the_last_one_counts() {
        let json = Json::parse(r#"{"model":"first","model":"last","n":1}"#).unwrap();
        assert_eq!(json.get("model").and_then(Json::as_str), Some("last"));
    }

    #[test]
    fn the_first_special_byte_is_found_at_every_place_and_among_all_others() {
        let plain: Vec<u8> = (0x20..=0xFF).filter(|byte| !matches!(byte, b'"' | b'\\')).collect();
        for length in 0..120 {
            let text: Vec<u8> = plain.iter().cycle().skip(length * 7).take(length).copied().collect();
            assert_eq!(first_special(&text), None, "{text:?}");
            for at in 0..length {
                for special in (0..0x20).chain([b'"', b'\\']) {
                    let mut text = text.clone();
                    text[at] = special;
                    // Another one behind it changes nothing.
                    let last = length - 1;
                    text[last] = if at == last { special } else { b'"' };
                    assert_eq!(first_special(&text), Some(at), "{special} at {at} of {length}");
                }
            }
        }
    }

    #[test]
    fn text_survives_reading_and_writing() {
        let text = r#"{"a":[1,-2,1.5,1.7954038119535e18,true,null],"b":"\"\\\n\u0001é😀","c":{}}"#;
        assert_eq!(Json::parse(text).unwrap().to_string(), text);
    }

    #[test]
    fn a_document_of_too_many_parts_is_not_read() {
        for part in ["[],", "[0],", "{},", "0,", r#"{"":0},"#, "[[[[0]]]],"] {
            let text = format!("[{}0]", part.repeat(16_000_000 / part.len()));
            assert!(Json::parse(&text).is_err(), "{part}");
        }
        let text = format!("[{}0]", r#""a sentence, of some words; [and] {brackets}","#.repeat(100_000));
        assert!(Json::parse(&text).is_ok());
    }

    #[test]
    fn numbers_are_read_from_integers_floats_and_strings() {
        let json = Json::parse(r#"[3,1.795402e+12,"200","x",1e300,-1]"#).unwrap();
        let numbers: Vec<_> = json.elements().iter().map(Json::as_i64).collect();
        assert_eq!(numbers, [Some(3), Some(1_795_402_000_000), Some(200), None, None, Some(-1)]);
    }
}
