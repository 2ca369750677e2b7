//! A JSON value that borrows its strings from the text it was read from.
//!
//! serde_json does the parsing; this is only the tree it fills. `serde_json::Value` copies every string and sorts every
//! object, which costs more than all other work on an entry; derived structs refuse a document for one member of an
//! unexpected type or one repeated member, and vLLM accepts both. Here nothing is refused that is JSON, members keep their
//! order, and of a repeated member the last one counts, as in vLLM (Python's `json`).
//!
//! Invariant: text goes through [`mend_escapes`] before it is parsed, so no string of a tree holds NUL or half a surrogate
//! pair: PostgreSQL can store every one of them. A borrowed string or name holds nothing that JSON would escape: it is a part of
//! JSON text, or a constant of ours.

use std::borrow::Cow;
use std::fmt;

use memchr::memmem;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// The character that stands for what cannot be stored.
pub const REPLACEMENT: char = '\u{FFFD}';

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub enum Json<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, as an integer where it was written as one that fits.
    Number(Number),
    /// A string, borrowed where it needed no unescaping.
    String(Cow<'a, str>),
    /// An array.
    Array(Vec<Json<'a>>),
    /// An object: its members in the order of the text, repeated ones included.
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
    /// A value that was put together rather than parsed, as its JSON text: written as it stands.
    Raw(String),
}

/// A JSON number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// Not negative and whole.
    Unsigned(u64),
    /// Negative and whole.
    Signed(i64),
    /// Everything else; always finite, serde_json refuses what overflows.
    Float(f64),
}

impl<'a> Json<'a> {
    /// Parses one JSON document; a byte order mark in front is skipped (vLLM accepts it).
    ///
    /// `text` must have gone through [`mend_escapes`].
    pub fn parse(text: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text.strip_prefix('\u{FEFF}').unwrap_or(text))
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
            Json::Number(number) => Json::Number(*number),
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

    /// A number, also one written as a string (Kong's serializer mixes both).
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Json::Number(Number::Unsigned(n)) => Some(*n as f64),
            Json::Number(Number::Signed(n)) => Some(*n as f64),
            Json::Number(Number::Float(n)) => Some(*n),
            Json::String(text) => text.trim().parse().ok().filter(|n: &f64| n.is_finite()),
            _ => None,
        }
    }

    /// A number rounded to a whole one; `None` when it does not fit.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Json::Number(Number::Unsigned(n)) => i64::try_from(*n).ok(),
            Json::Number(Number::Signed(n)) => Some(*n),
            other => {
                let rounded = other.as_f64()?.round();
                // 2^53: beyond it a float no longer tells neighbouring integers apart.
                (rounded.abs() <= 9_007_199_254_740_992.0).then_some(rounded as i64)
            }
        }
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

impl<'de: 'a, 'a> Deserialize<'de> for Json<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tree;
        impl<'de> Visitor<'de> for Tree {
            type Value = Json<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Json::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
                Ok(Json::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
                Ok(Json::Number(Number::Unsigned(value)))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
                Ok(Json::Number(Number::Signed(value)))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
                Ok(Json::Number(Number::Float(value)))
            }
            fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
                Ok(Json::String(Cow::Borrowed(value)))
            }
            fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
                Ok(Json::String(Cow::Owned(value.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = access.next_element()? {
                    elements.push(element);
                }
                Ok(Json::Array(elements))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Key(key), value)) = access.next_entry()? {
                    members.push((key, value));
                }
                Ok(Json::Object(members))
            }
        }
        deserializer.deserialize_any(Tree)
    }
}

/// A member's name, borrowed where it needed no unescaping (serde's own `Cow<str>` always copies).
struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl<'de> Visitor<'de> for Name {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member's name")
            }
            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(name)))
            }
            fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(name.to_owned())))
            }
        }
        deserializer.deserialize_str(Name)
    }
}

/// Replaces what JSON can say but PostgreSQL cannot hold: the escape `\u0000` and escapes of half a surrogate pair each
/// become `\ufffd`. Everything else stays as it is.
pub fn mend_escapes(text: Cow<'_, str>) -> Cow<'_, str> {
    // One look settles most texts: base64 has no backslash at all.
    let Some(first) = memchr::memchr(b'\\', text.as_bytes()) else { return text };
    let escapes = text.as_bytes().get(first..).unwrap_or_default();
    let is_suspicious = |at: usize| {
        let digits = escapes.get(at + 2..).unwrap_or_default();
        digits.starts_with(b"0000") || matches!(digits.first(), Some(b'd' | b'D'))
    };
    if !memmem::find_iter(escapes, br"\u").any(is_suspicious) {
        return text;
    }
    let mut mended = String::with_capacity(text.len());
    let mut rest: &str = &text;
    while let Some((before, escape)) = rest.find('\\').map(|at| rest.split_at(at)) {
        mended.push_str(before);
        let (kept, after) = match code_unit(escape) {
            Some(0) => (r"\ufffd", escape.get(6..)),
            Some(0xD800..=0xDBFF) => match escape.get(6..).and_then(code_unit) {
                Some(0xDC00..=0xDFFF) => (escape.get(..12).unwrap_or_default(), escape.get(12..)),
                _ => (r"\ufffd", escape.get(6..)),
            },
            Some(0xDC00..=0xDFFF) => (r"\ufffd", escape.get(6..)),
            _ => {
                // A backslash and what it escapes, which may be a backslash itself.
                let length = 1 + escape.chars().nth(1).map_or(0, char::len_utf8);
                (escape.get(..length).unwrap_or_default(), escape.get(length..))
            }
        };
        mended.push_str(kept);
        rest = after.unwrap_or_default();
    }
    mended.push_str(rest);
    Cow::Owned(mended)
}

/// The UTF-16 code unit of a `\uXXXX` escape at the start of `escape`.
fn code_unit(escape: &str) -> Option<u16> {
    let digits = escape.strip_prefix(r"\u")?.get(..4)?;
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok()).flatten()
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
pub fn first_special(text: &[u8]) -> Option<usize> {
    let is_special = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
    // Blocks without a branch inside become vector instructions; looking at one byte after the other was a twelfth of all work
    // on an entry.
    const BLOCK: usize = 32;
    let has_special = |block: &[u8]| block.iter().fold(false, |found, byte| found | is_special(byte));
    let plain = text.chunks_exact(BLOCK).take_while(|block| !has_special(block)).count() * BLOCK;
    text.get(plain..)?.iter().position(is_special).map(|at| plain + at)
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Number::Unsigned(n) => n.fmt(f),
            Number::Signed(n) => n.fmt(f),
            // Debug, because it switches to exponents where Display would write hundreds of zeros.
            Number::Float(n) => fmt::Debug::fmt(n, f),
        }
    }
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
            Json::Number(number) => {
                use fmt::Write;
                // Writing to a String cannot fail.
                let _ = write!(out, "{number}");
            }
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

    fn mended(text: &str) -> String {
        mend_escapes(Cow::Borrowed(text)).into_owned()
    }

    #[test]
    fn escapes_that_postgresql_cannot_hold_are_replaced_one_by_one() {
        assert_eq!(mended(r#""a\u0000b""#), r#""a\ufffdb""#);
        assert_eq!(mended(r#""x\udc00y""#), r#""x\ufffdy""#);
        assert_eq!(mended(r#""x\ud83dy""#), r#""x\ufffdy""#);
        assert_eq!(mended(r#""\ud83d\ud83d\ude00""#), r#""\ufffd\ud83d\ude00""#);
        assert_eq!(mended(r#""\uD83D\uDE00""#), r#""\uD83D\uDE00""#);
    }

    #[test]
    fn an_escaped_backslash_does_not_start_an_escape() {
        assert_eq!(mended(r#""\\u0000 \\\u0000""#), r#""\\u0000 \\\ufffd""#);
        assert_eq!(mended("\"\\u0000\\é\\"), "\"\\ufffd\\é\\");
    }

    #[test]
    fn of_a_repeated_member_the_last_one_counts() {
        let json = Json::parse(r#"{"model":"first","model":"last","n":1}"#).unwrap();
        assert_eq!(json.get("model").and_then(Json::as_str), Some("last"));
    }

    #[test]
    fn text_survives_reading_and_writing() {
        let text = r#"{"a":[1,-2,1.5,1.7954038119535e18,true,null],"b":"\"\\\n\u0001é😀","c":{}}"#;
        assert_eq!(Json::parse(text).unwrap().to_string(), text);
    }

    #[test]
    fn numbers_are_read_from_integers_floats_and_strings() {
        let json = Json::parse(r#"[3,1.795402e+12,"200","x",1e300,-1]"#).unwrap();
        let numbers: Vec<_> = json.elements().iter().map(Json::as_i64).collect();
        assert_eq!(numbers, [Some(3), Some(1_795_402_000_000), Some(200), None, None, Some(-1)]);
    }
}
