//! Recordings, pictures, files and vectors inside of JSON: replaced by what they were, how large, and their SHA-256.
//!
//! A database of conversations must not become a store of blobs, in `raw_log` as little as in the columns. With the hash an auditor
//! can still tell whether two calls had the same picture. Found are `data:` URLs however they are written, members that hold base64
//! by their name, and base64 that stands bare in a text. What may just as well be text stays: a hash is no recording.

use std::borrow::Cow;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig, Simd};

use crate::decode::digest::describe_binary;
use crate::decode::json::Json;

/// Base64 of fewer letters than this stays as it is where a member's name says that it is a blob: it may just as well be a word.
const MIN_LETTERS: usize = 64;

/// Bare base64 of fewer letters than this is text: a key, a hash, an identity. Nothing that people write has so many without a
/// blank, and 384 bytes are no picture worth the name.
const MIN_BARE_LETTERS: usize = 512;

/// Lengths of the lines of wrapped base64: MIME has 76, PEM 64. A line that is longer is not wrapped.
const LINES: std::ops::RangeInclusive<usize> = 40..=200;

/// Backslashes in front of a letter that was escaped again and again, at most.
const MAX_SLASHES: usize = 16;

/// Longest head of a `data:` URL. A media type is short; whatever else follows "data:" is prose.
const MAX_HEAD: usize = 200;

/// Blobs are cut where recordings are, and the padding is optional everywhere.
static LENIENT: LazyLock<Simd> = LazyLock::new(|| {
    let config = GeneralPurposeConfig::new();
    Simd::standard(config.with_decode_allow_trailing_bits(true).with_decode_padding_mode(DecodePaddingMode::Indifferent))
});

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_' | b'=')
}

/// The bytes that base64 stands for: of either alphabet, with or without padding, with line breaks, escapes and percent escapes
/// between the letters, cut anywhere.
fn decoded(text: &str) -> Vec<u8> {
    let mut letters = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'-' => letters.push(b'+'),
            b'_' => letters.push(b'/'),
            b'=' => {}
            // `\n`, `\/`, escaped as often as they were put into another text: only the slash is a letter.
            b'\\' => letters.extend(bytes.by_ref().find(|next| *next != b'\\').filter(|next| *next == b'/')),
            b'%' => match (bytes.next(), bytes.next().map(|digit| digit.to_ascii_uppercase())) {
                (Some(b'2'), Some(b'B')) => letters.push(b'+'),
                (Some(b'2'), Some(b'F')) => letters.push(b'/'),
                _ => {}
            },
            byte if is_letter(byte) => letters.push(byte),
            _ => {}
        }
    }
    if letters.len() % 4 == 1 {
        letters.pop();
    }
    LENIENT.decode(&letters).unwrap_or_default()
}

/// How many bytes letters of base64 stand for.
fn decoded_length(letters: &str) -> usize {
    letters.bytes().filter(|letter| *letter != b'=').count() * 3 / 4
}

/// `text` without blobs.
pub fn without_blobs(text: &str) -> Cow<'_, str> {
    let replaced = match without_data_urls(text) {
        Cow::Borrowed(text) => return without_bare_base64(text),
        Cow::Owned(replaced) => replaced,
    };
    match without_bare_base64(&replaced) {
        Cow::Borrowed(_) => Cow::Owned(replaced),
        Cow::Owned(replaced) => Cow::Owned(replaced),
    }
}

/// `text` with every `data:` URL in it replaced by its type, size and SHA-256.
fn without_data_urls(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut done = 0;
    let mut from = 0;
    while let Some(colon) = memchr::memchr(b':', text.as_bytes().get(from..).unwrap_or_default()).map(|at| from + at) {
        from = colon + 1;
        let is_scheme = |start: &usize| text.get(*start..colon).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data"));
        let Some(start) = colon.checked_sub(4).filter(|start| *start >= done).filter(is_scheme) else { continue };
        let Some((end, blob)) = data_url(text, start, colon + 1) else { continue };
        out.push_str(text.get(done..start).unwrap_or_default());
        out.push_str(&blob);
        done = end;
        from = end;
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(text.get(done..).unwrap_or_default());
    Cow::Owned(out)
}

/// The end of the `data:` URL whose scheme ends at `head`, and what stands for it; `None` where there is none.
fn data_url(text: &str, start: usize, head: usize) -> Option<(usize, String)> {
    let rest = text.get(head..)?;
    let is_end = |byte: u8| byte == b',' || byte == b'"' || byte == b'\n';
    let length = rest.bytes().take(MAX_HEAD).position(is_end).filter(|at| rest.as_bytes().get(*at) == Some(&b','))?;
    let (header, payload) = (rest.get(..length)?, rest.get(length + 1..)?);
    // A blank that is no part of it.
    let payload =
        payload.strip_prefix(' ').filter(|payload| payload_length(payload.as_bytes()) >= MIN_LETTERS).unwrap_or(payload);
    let blank = rest.len() - length - 1 - payload.len();
    let media_type = header.split(';').next().unwrap_or_default().trim();
    let is_base64 = header.rsplit(';').next().is_some_and(|last| last.trim().eq_ignore_ascii_case("base64"));
    if is_base64 && header.contains(';') && !media_type.contains(' ') {
        let length = payload_length(payload.as_bytes());
        let letters = payload.get(..length).filter(|letters| !letters.is_empty())?;
        let blob = describe_binary(if media_type.is_empty() { "text/plain" } else { media_type }, &decoded(letters));
        return Some((head + header.len() + 1 + blank + length, blob));
    }
    // Not in base64: a whole string that is a URL is replaced, one inside prose is left alone.
    let is_whole = start == 0 && header.contains('/') && !header.contains(' ');
    is_whole.then(|| (text.len(), describe_binary(header, payload.as_bytes())))
}

/// How many bytes of `payload` are base64: letters, escapes between them, and line breaks where the lines are those of wrapped
/// base64. Prose behind a URL is made of the same letters.
fn payload_length(payload: &[u8]) -> usize {
    let mut length = 0;
    let mut line = 0;
    loop {
        let rest = payload.get(length..).unwrap_or_default();
        match rest {
            [byte, ..] if is_letter(*byte) => {
                let letters = rest.iter().take_while(|byte| is_letter(**byte)).count();
                length += letters;
                line += letters;
            }
            [b'%', b'2', b'B' | b'b' | b'F' | b'f', ..] | [b'%', b'3', b'D' | b'd', ..] => {
                length += 3;
                line += 1;
            }
            _ if let Some(slash) = escaped(rest, b"/") => {
                length += slash;
                line += 1;
            }
            _ => {
                let blank = break_length(rest);
                let next_line = rest.get(blank..).unwrap_or_default();
                let slash = escaped(next_line, b"/").unwrap_or(0);
                let letters = next_line.iter().skip(slash).take_while(|byte| is_letter(**byte)).count();
                let next = usize::from(slash > 0) + letters;
                let behind = next_line.get(slash + letters..).unwrap_or_default();
                let is_line = behind.first().is_none_or(ends_line) || break_length(behind) > 0;
                if blank == 0 || next == 0 || !LINES.contains(&line) || next > line.max(76) || !is_line {
                    return length;
                }
                length += blank;
                line = 0;
            }
        }
    }
}

/// What may stand behind the last line of base64 in a text.
fn ends_line(byte: &u8) -> bool {
    matches!(byte, b'"' | b'\'' | b')' | b'>' | b'<' | b'}' | b']' | b'\\')
}

/// The length of the line break at the start of `bytes`, escaped or not, and of what indents the next line.
fn break_length(bytes: &[u8]) -> usize {
    let mut length = 0;
    loop {
        length += match bytes.get(length..).unwrap_or_default() {
            [b'\n' | b'\r', ..] => 1,
            [b' ' | b'\t', ..] if length > 0 => 1,
            [b'%', b'0', b'A' | b'a' | b'D' | b'd', ..] => 3,
            bytes => match escaped(bytes, b"nr") {
                Some(letter) => letter,
                None => return length,
            },
        };
    }
}

/// The length of one of these letters behind backslashes, of which there are more the more texts it was put into.
fn escaped(bytes: &[u8], letters: &[u8]) -> Option<usize> {
    let slashes = bytes.iter().take(MAX_SLASHES).take_while(|byte| **byte == b'\\').count();
    (slashes > 0 && letters.contains(bytes.get(slashes)?)).then_some(slashes + 1)
}

/// The length of the line break at the end of `bytes`, and of what indents the next line.
fn break_before(bytes: &[u8]) -> usize {
    let indent = bytes.iter().rev().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    let is_slash = |bytes: &&[u8]| bytes.last() == Some(&b'\\');
    let mut rest = bytes.get(..bytes.len() - indent).unwrap_or_default();
    let end = rest.len();
    loop {
        rest = match rest {
            [before @ .., b'\n' | b'\r'] => before,
            [before @ .., b'n' | b'r'] if is_slash(&before) => {
                let slashes = before.iter().rev().take(MAX_SLASHES).take_while(|byte| **byte == b'\\').count();
                before.get(..before.len() - slashes).unwrap_or_default()
            }
            _ => break,
        };
    }
    if rest.len() == end { 0 } else { bytes.len() - rest.len() }
}

/// `text` with long base64 that stands in it replaced.
fn without_bare_base64(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut out = String::new();
    let mut done = 0;
    // Every run that is long enough holds one of the places that are looked at, and prose costs next to nothing.
    let mut at = MIN_BARE_LETTERS - 1;
    while let Some(byte) = bytes.get(at) {
        if !is_letter(*byte) {
            // It may be the end of a line of it.
            at += if byte.is_ascii_whitespace() { 1 } else { MIN_BARE_LETTERS };
            continue;
        }
        let (start, end) = run(bytes, done, at);
        if end - start >= MIN_BARE_LETTERS && looks_random(bytes.get(start..end).unwrap_or_default()) {
            let blob = decoded(text.get(start..end).unwrap_or_default());
            out.push_str(text.get(done..start).unwrap_or_default());
            out.push_str(&describe_binary(sniffed(&blob).unwrap_or("base64"), &blob));
            done = end;
        }
        at = end + MIN_BARE_LETTERS;
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(text.get(done..).unwrap_or_default());
    Cow::Owned(out)
}

/// The letters around `at`, not before `from`, and the lines before and behind them that are of the same length.
fn run(bytes: &[u8], from: usize, at: usize) -> (usize, usize) {
    let back = |end: usize| {
        let before = bytes.get(from..end).unwrap_or_default();
        let letters = before.iter().rev().take_while(|byte| is_letter(**byte)).count();
        // The `n` of an escaped line break looks like a letter.
        let is_escape = before.iter().rev().nth(letters) == Some(&b'\\') && letters > 0;
        letters - usize::from(is_escape)
    };
    let forth = |start: usize| bytes.get(start..).unwrap_or_default().iter().take_while(|byte| is_letter(**byte)).count();
    let (mut start, mut end) = (at - back(at), at + forth(at));
    let line = end - start;
    if !LINES.contains(&line) {
        return (start, end);
    }
    loop {
        let before = bytes.get(..start).unwrap_or_default();
        let blank = break_before(before);
        if blank == 0 || start < from + blank || back(start - blank) != line {
            break;
        }
        start -= blank + line;
    }
    loop {
        let blank = break_length(bytes.get(end..).unwrap_or_default());
        let next = forth(end + blank);
        if blank == 0 || next == 0 || next > line {
            break;
        }
        let behind = bytes.get(end + blank + next..).unwrap_or_default();
        // A shorter one is the last, and has the line for itself.
        let is_line = behind.first().is_none_or(ends_line) || break_length(behind) > 0;
        if !is_line {
            break;
        }
        end += blank + next;
        if next < line {
            break;
        }
    }
    (start, end)
}

/// Whether letters are such as base64 of binary data has: of all kinds, and more than hexadecimal digits.
fn looks_random(letters: &[u8]) -> bool {
    let letters = letters.get(..2_048).unwrap_or(letters);
    let count = |is_it: fn(&u8) -> bool| letters.iter().filter(|byte| is_it(byte)).count() * 50 >= letters.len();
    let mut seen = [false; 256];
    letters.iter().for_each(|letter| {
        if let Some(seen) = seen.get_mut(usize::from(*letter)) {
            *seen = true;
        }
    });
    count(u8::is_ascii_uppercase)
        && count(u8::is_ascii_lowercase)
        && count(u8::is_ascii_digit)
        && seen.iter().filter(|seen| **seen).count() >= 24
}

/// The type of a blob by its first bytes, where they are well known.
fn sniffed(bytes: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 11] = [
        (b"\x89PNG", "image/png"),
        (b"\xFF\xD8\xFF", "image/jpeg"),
        (b"GIF8", "image/gif"),
        (b"%PDF", "application/pdf"),
        (b"PK\x03\x04", "application/zip"),
        (b"OggS", "audio/ogg"),
        (b"fLaC", "audio/flac"),
        (b"ID3", "audio/mpeg"),
        (b"\xFF\xFB", "audio/mpeg"),
        (b"\x1F\x8B", "application/gzip"),
        (b"\x1A\x45\xDF\xA3", "video/webm"),
    ];
    if bytes.starts_with(b"RIFF") {
        return match bytes.get(8..12)? {
            b"WEBP" => Some("image/webp"),
            b"WAVE" => Some("audio/wav"),
            _ => None,
        };
    }
    KNOWN.iter().find(|(start, _)| bytes.starts_with(start)).map(|(_, kind)| *kind)
}

/// How base64 of files begins, as long as the first bytes tell. Under any name that is no text.
const STARTS: [(&str, &str); 9] = [
    ("iVBORw0KGgo", "image/png"),
    ("/9j/", "image/jpeg"),
    ("R0lGODdh", "image/gif"),
    ("R0lGODlh", "image/gif"),
    ("UklGR", "RIFF"),
    ("JVBERi0", "application/pdf"),
    ("T2dnUw", "audio/ogg"),
    ("ZkxhQw", "audio/flac"),
    ("GkXfo", "video/webm"),
];

/// What stands for the member `name` of `object`, which is the member `parent` of another one, where it holds base64 by its name;
/// `None` where it does not.
pub fn blob(object: &Json<'_>, parent: &str, name: &str, value: &str) -> Option<String> {
    if value.len() < MIN_LETTERS {
        return None;
    }
    let told = || ["media_type", "mime_type", "mimeType", "format"].iter().find_map(|name| object.get(name)?.as_str());
    let kind = match name {
        // OpenAI: input_audio.data with its format; Anthropic: source.data with its media_type. Elsewhere it may be anything.
        "data" => told().or_else(|| matches!(parent, "input_audio" | "audio" | "output_audio").then_some("audio"))?,
        "blob" => told().unwrap_or("blob"),
        "file_data" => "file",
        "b64_json" | "partial_image_b64" => "image",
        "image_embeds" | "audio_embeds" | "video_embeds" | "prompt_embeds" => name,
        "result" if object.get("type").and_then(Json::as_str) == Some("image_generation_call") => "image",
        _ => STARTS.iter().find(|(start, _)| value.starts_with(start))?.1,
    };
    let is_base64 = value.bytes().all(|byte| is_letter(byte) || matches!(byte, b'\n' | b'\r' | b' ' | b'\t'));
    let is_hash = value.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_base64 && !is_hash).then(|| describe_binary(kind, &decoded(value)))
}

/// Appends what stands for a vector, or for a list of them: how many and of how many dimensions. `width` is the size of a number in
/// bytes, where vectors are base64. Returns whether `value` is one.
pub fn write_vector(out: &mut String, value: &Json<'_>, width: usize) -> bool {
    let dimensions = |value: &Json<'_>| match value {
        Json::Array(numbers) if !numbers.is_empty() => {
            numbers.iter().all(|number| matches!(number, Json::Number(_))).then_some(numbers.len())
        }
        Json::String(text) if !text.is_empty() && text.bytes().all(is_letter) => Some(decoded_length(text) / width.max(1)),
        _ => None,
    };
    if let Some(dimensions) = dimensions(value) {
        out.push_str(&format!("{{\"dimensions\":{dimensions}}}"));
        return true;
    }
    let vectors = value.elements();
    let Some(all) = vectors.first().and_then(dimensions) else { return false };
    if !vectors.iter().all(|vector| dimensions(vector).is_some()) {
        return false;
    }
    out.push_str(&format!("{{\"vectors\":{},\"dimensions\":{all}}}", vectors.len()));
    true
}

#[cfg(test)]
mod tests;
