//! JSON text to a tree, as Python's `json` reads it.
//!
//! Not serde_json, because the model servers are Python and read what it refuses: `NaN`, `Infinity`, numbers beyond every float,
//! integers of thousands of digits, hundreds of levels. A body that the server read and this does not is a conversation that
//! nobody can look up. Where Python is strict (control characters in strings, unknown escapes), so is this.
//!
//! What JSON or Python can say and PostgreSQL cannot hold is replaced while it is read: NUL and half a surrogate pair by U+FFFD,
//! `NaN`, the infinities and numbers that no `numeric` holds by strings of the same spelling.

use std::borrow::Cow;
use std::collections::HashSet;

use super::{Json, REPLACEMENT, first_special};

/// Levels of nesting that are read. Python's limit is its interpreter's stack, near 1,000 in the versions that vLLM runs on; what
/// goes through a tree here takes some hundred bytes of a thread's 2 MiB for each level.
const MAX_DEPTH: usize = 1_024;

/// Digits of the longest integer that Python reads (`sys.int_info.default_max_str_digits`). PostgreSQL's `numeric` holds more.
const MAX_NUMBER_BYTES: usize = 4_300;

/// Largest exponent of a 64-bit float, to either side. Beyond it Python reads infinity or zero, and PostgreSQL would write out
/// hundreds of zeros for five characters.
const MAX_EXPONENT: u32 = 308;

/// Members beyond which repeated ones are left out: whoever looks at each member by its name must not look at the same one thousands
/// of times.
const MANY_MEMBERS: usize = 64;

/// Why a text is no JSON. Says nothing of the text itself, which may be anybody's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub struct JsonError {
    what: &'static str,
    at: usize,
}

/// What is said of a text whose tree would be too large.
pub(super) fn too_many_parts() -> JsonError {
    JsonError { what: "too many parts to be read", at: 0 }
}

/// Reads the one document that `text` is.
pub(super) fn document(text: &str) -> Result<Json<'_>, JsonError> {
    let mut reader = Reader::<true>::of(text);
    let value = reader.value()?;
    reader.end()?;
    Ok(value)
}

/// Whether `text` is one document.
pub fn check(text: &str) -> Result<(), JsonError> {
    let mut reader = Reader::<false>::of(text);
    reader.pass()?;
    reader.end()
}

/// The value that `text` begins with, and what follows it.
pub fn leading(text: &str) -> Option<(&str, &str)> {
    let mut reader = Reader::<false>::of(text);
    reader.pass().ok()?;
    text.split_at_checked(reader.at)
}

/// Members without those whose name comes again: the last one counts.
fn last_of_each<'a>(mut members: Vec<(Cow<'a, str>, Json<'a>)>) -> Vec<(Cow<'a, str>, Json<'a>)> {
    let mut seen = HashSet::with_capacity(members.len());
    // From the end to the front, and so is it taken.
    let mut is_last: Vec<bool> = members.iter().rev().map(|(name, _)| seen.insert(name.clone())).collect();
    members.retain(|_| is_last.pop().unwrap_or(true));
    members
}

/// With `KEEP` it makes a tree; without, it passes over the same texts and keeps nothing.
struct Reader<'a, const KEEP: bool> {
    text: &'a str,
    at: usize,
    open: Vec<Open>,
    /// Members and elements of what is open. Each list gets a vector of its own when it is over and its length is known.
    members: Vec<(Cow<'a, str>, Json<'a>)>,
    elements: Vec<Json<'a>>,
}

/// A list that is not over, and where what is in it begins.
#[derive(Clone, Copy)]
enum Open {
    Array(usize),
    Object(usize),
}

impl<'a> Reader<'a, true> {
    /// Reads one value. Not recursive, so that the values of parts need not be moved up from call to call.
    fn value(&mut self) -> Result<Json<'a>, JsonError> {
        loop {
            let mut value = match self.peek() {
                Some(b'"') => Json::String(self.string()?),
                Some(b'{') => {
                    self.enter(Open::Object(self.members.len()))?;
                    if self.peek() != Some(b'}') {
                        self.member()?;
                        continue;
                    }
                    self.leave();
                    Json::Object(Vec::new())
                }
                Some(b'[') => {
                    self.enter(Open::Array(self.elements.len()))?;
                    if self.peek() != Some(b']') {
                        continue;
                    }
                    self.leave();
                    Json::Array(Vec::new())
                }
                first => self.scalar(first)?,
            };
            // Behind a value: what it ends, and what comes next.
            loop {
                let Some(open) = self.open.last().copied() else { return Ok(value) };
                let next = self.peek();
                match open {
                    Open::Array(start) => {
                        self.elements.push(value);
                        match next {
                            Some(b',') => {
                                self.at += 1;
                                break;
                            }
                            Some(b']') => value = Json::Array(self.elements.split_off(start)),
                            next => return Err(self.no_end(next)),
                        }
                    }
                    Open::Object(start) => {
                        if let Some((_, place)) = self.members.last_mut() {
                            *place = value;
                        }
                        match next {
                            Some(b',') => {
                                self.at += 1;
                                self.member()?;
                                break;
                            }
                            Some(b'}') => {
                                let members = self.members.split_off(start);
                                value = Json::Object(if members.len() > MANY_MEMBERS { last_of_each(members) } else { members });
                            }
                            next => return Err(self.no_end(next)),
                        }
                    }
                }
                self.leave();
            }
        }
    }

    /// The name of a member, which waits for its value.
    fn member(&mut self) -> Result<(), JsonError> {
        let name = self.name()?;
        self.members.push((name, Json::Null));
        Ok(())
    }
}

impl Reader<'_, false> {
    /// Passes over one value: every entry of a batch is passed once, to find where it ends, before it is read. What is read by
    /// [`Reader::value`] is passed, and nothing else; but nothing is moved on the way.
    fn pass(&mut self) -> Result<(), JsonError> {
        loop {
            match self.peek() {
                Some(b'"') => drop(self.string()?),
                Some(b'{') => {
                    self.enter(Open::Object(0))?;
                    if self.peek() != Some(b'}') {
                        self.name()?;
                        continue;
                    }
                    self.leave();
                }
                Some(b'[') => {
                    self.enter(Open::Array(0))?;
                    if self.peek() != Some(b']') {
                        continue;
                    }
                    self.leave();
                }
                first => drop(self.scalar(first)?),
            }
            loop {
                let Some(open) = self.open.last().copied() else { return Ok(()) };
                match (self.peek(), open) {
                    (Some(b','), Open::Object(_)) => {
                        self.at += 1;
                        self.name()?;
                        break;
                    }
                    (Some(b','), Open::Array(_)) => {
                        self.at += 1;
                        break;
                    }
                    (Some(b'}'), Open::Object(_)) | (Some(b']'), Open::Array(_)) => self.leave(),
                    (next, _) => return Err(self.no_end(next)),
                }
            }
        }
    }
}

impl<'a, const KEEP: bool> Reader<'a, KEEP> {
    fn of(text: &'a str) -> Self {
        Self { text, at: 0, open: Vec::new(), members: Vec::new(), elements: Vec::new() }
    }

    fn end(&mut self) -> Result<(), JsonError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("more behind the document")),
        }
    }

    fn error(&self, what: &'static str) -> JsonError {
        JsonError { what, at: self.at }
    }

    fn bytes(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    /// The next byte that is no white space, which stays the next one.
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        loop {
            match bytes.get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                byte => return byte.copied(),
            }
        }
    }

    /// A number or a word.
    fn scalar(&mut self, first: Option<u8>) -> Result<Json<'a>, JsonError> {
        match first {
            Some(b'0'..=b'9') => self.number(),
            Some(b'-') if self.bytes().get(1) == Some(&b'I') => self.word("-Infinity", Json::String(Cow::Borrowed("-Infinity"))),
            Some(b'-') => self.number(),
            Some(b't') => self.word("true", Json::Bool(true)),
            Some(b'f') => self.word("false", Json::Bool(false)),
            Some(b'n') => self.word("null", Json::Null),
            Some(b'N') => self.word("NaN", Json::String(Cow::Borrowed("NaN"))),
            Some(b'I') => self.word("Infinity", Json::String(Cow::Borrowed("Infinity"))),
            Some(_) => Err(self.error("no value")),
            None => Err(self.error("the text ends where a value should be")),
        }
    }

    fn word(&mut self, word: &str, value: Json<'a>) -> Result<Json<'a>, JsonError> {
        if !self.bytes().starts_with(word.as_bytes()) {
            return Err(self.error("no value"));
        }
        self.at += word.len();
        Ok(value)
    }

    fn enter(&mut self, open: Open) -> Result<(), JsonError> {
        self.at += 1;
        match self.open.len() {
            // Room for a usual document, so that it need not be moved to a larger one while that is read; little for a little text.
            0 if KEEP => self.members.reserve((self.text.len() / 32).min(64)),
            MAX_DEPTH.. => return Err(self.error("nested too deeply")),
            _ => {}
        }
        self.open.push(open);
        Ok(())
    }

    fn leave(&mut self) {
        self.at += 1;
        self.open.pop();
    }

    /// The name of a member, and its colon.
    fn name(&mut self) -> Result<Cow<'a, str>, JsonError> {
        if self.peek() != Some(b'"') {
            return Err(self.error("no name of a member"));
        }
        let name = self.string()?;
        if self.peek() != Some(b':') {
            return Err(self.error("no colon behind a name"));
        }
        self.at += 1;
        Ok(name)
    }

    fn no_end(&self, next: Option<u8>) -> JsonError {
        self.error(if next.is_some() { "neither a comma nor the end of the list" } else { "the text ends inside a list" })
    }

    /// The slice of the next `length` bytes, which are skipped.
    fn take(&mut self, length: usize) -> &'a str {
        let taken = self.text.get(self.at..self.at + length).unwrap_or_default();
        self.at += length;
        taken
    }

    fn number(&mut self) -> Result<Json<'a>, JsonError> {
        let bytes = self.bytes();
        let digits = |from: usize| bytes.get(from..).unwrap_or_default().iter().take_while(|byte| byte.is_ascii_digit()).count();
        let sign = usize::from(bytes.first() == Some(&b'-'));
        let whole = digits(sign);
        if whole == 0 || whole > 1 && bytes.get(sign) == Some(&b'0') {
            return Err(self.error("no number"));
        }
        let mut length = sign + whole;
        // A point or an `e` without digits behind it is no part of the number, and then no comma follows it.
        if bytes.get(length) == Some(&b'.') {
            let fraction = digits(length + 1);
            length += if fraction > 0 { 1 + fraction } else { 0 };
        }
        let mut exponent = 0;
        if matches!(bytes.get(length), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(length + 1), Some(b'+' | b'-')));
            let count = digits(length + 1 + sign);
            let start = length + 1 + sign;
            if count > 0 {
                let digits = bytes.get(start..start + count).unwrap_or_default();
                exponent = digits.iter().fold(0u32, |sum, digit| sum.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
                length = start + count;
            }
        }
        let text = Cow::Borrowed(self.take(length));
        let fits = length <= MAX_NUMBER_BYTES && exponent <= MAX_EXPONENT;
        Ok(if fits { Json::Number(text) } else { Json::String(text) })
    }

    #[inline]
    fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        self.at += 1;
        let rest = self.bytes();
        let plain = first_special(rest);
        if let Some(length) = plain
            && rest.get(length) == Some(&b'"')
        {
            let text = self.take(length);
            self.at += 1;
            return Ok(Cow::Borrowed(text));
        }
        self.special_string(plain)
    }

    /// A string with escapes, of which the first special byte was found.
    #[inline(never)]
    fn special_string(&mut self, mut plain: Option<usize>) -> Result<Cow<'a, str>, JsonError> {
        let mut unescaped = String::new();
        if KEEP {
            // Room up to the next quote, which is its end or a part of it: a prompt of many lines would be moved time and again.
            unescaped.reserve(memchr::memchr(b'"', self.bytes()).unwrap_or_default());
        }
        loop {
            let Some(length) = plain else {
                return Err(self.error("the text ends inside a string"));
            };
            let special = self.bytes().get(length).copied();
            let piece = self.take(length);
            if KEEP {
                unescaped.push_str(piece);
            }
            match special {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Cow::Owned(unescaped));
                }
                Some(b'\\') => {
                    let character = self.escape()?;
                    if KEEP {
                        unescaped.push(character);
                    }
                }
                _ => return Err(self.error("a control character inside a string")),
            }
            plain = first_special(self.bytes());
        }
    }

    /// The character that the escape at this place stands for.
    fn escape(&mut self) -> Result<char, JsonError> {
        let character = match self.bytes().get(1) {
            Some(b'n') => '\n',
            Some(b't') => '\t',
            Some(b'r') => '\r',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(*byte),
            Some(b'u') => return self.unicode_escape(),
            _ => return Err(self.error("an unknown escape")),
        };
        self.at += 2;
        Ok(character)
    }

    fn unicode_escape(&mut self) -> Result<char, JsonError> {
        let first = code_unit(self.bytes()).ok_or_else(|| self.error("an escape that breaks off"))?;
        self.at += 6;
        if !(0xD800..=0xDBFF).contains(&first) {
            let character = char::from_u32(u32::from(first)).filter(|character| *character != '\0');
            return Ok(character.unwrap_or(REPLACEMENT));
        }
        let second = code_unit(self.bytes()).filter(|unit| (0xDC00..=0xDFFF).contains(unit));
        let Some(Ok(pair)) = second.and_then(|second| char::decode_utf16([first, second]).next()) else {
            return Ok(REPLACEMENT);
        };
        self.at += 6;
        Ok(pair)
    }
}

/// The UTF-16 code unit of a `\uXXXX` escape at the start of `escape`.
fn code_unit(escape: &[u8]) -> Option<u16> {
    let digits = escape.strip_prefix(br"\u")?.get(..4)?;
    digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | u16::try_from(char::from(*digit).to_digit(16)?).ok()?))
}

#[cfg(test)]
mod tests;
