//! A captured body: from the string in the log entry to text.
//!
//! The order is the one in which the body was wrapped: base64 (by the plugin), content encoding (by the server), charset.
//! Every step may find that it does not apply; then the body is taken as it stands. Nothing here fails: a body that cannot be
//! decoded is still what somebody sent.

use std::borrow::Cow;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::{Simd, general_purpose::PAD};

use super::digest::describe_binary;
use super::{charset, form, inflate, sse};

/// Strict. Every byte of a body goes through it: with the processor's vectors at a seventh of the work.
static STANDARD: LazyLock<Simd> = LazyLock::new(|| Simd::standard(PAD));

/// A captured body as text. It may hold NUL, which JSON forbids and PostgreSQL cannot store: see [`without_nul`].
///
/// [`without_nul`]: super::json::without_nul
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body<'a> {
    /// The text.
    pub text: Cow<'a, str>,
    /// The text ends at the limit on the decoded size, not where the body ended.
    pub cut: bool,
}

/// The headers of one side that say how its body is to be read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Headers<'a> {
    /// `Content-Type`
    pub content_type: Option<&'a str>,
    /// `Content-Encoding`
    pub content_encoding: Option<&'a str>,
}

/// Decodes the string that stands for a body in the log entry, to at most `limit` bytes.
///
/// A string is base64 only if it decodes strictly to what it claims to be: compressed data of the declared content encoding,
/// text, JSON or SSE (also with stray bytes that are no UTF-8, or cut in the middle of a character), or bytes of a content
/// type that is no text at all. Plain text that merely happens to be made of base64's letters fails all of that. What is text
/// as it came is not compressed, whatever the header says: model servers do not read that of a request.
pub fn decode<'a>(captured: &'a str, headers: Headers<'_>, limit: usize) -> Body<'a> {
    if let Some(bytes) = base64_bytes(captured) {
        if let Some(body) = inflated(&bytes, headers, limit) {
            return body;
        }
        if let Some(fields) = headers.content_type.and_then(|kind| form::to_json(kind, &bytes)) {
            return fit(Cow::Owned(fields), false, limit);
        }
        if charset::is_wide_json(&bytes, headers.content_type) {
            return to_text(bytes, headers, false, limit);
        }
        match String::from_utf8(bytes) {
            // The usual case: looked at once, and the decoded bytes become the text.
            Ok(text) if is_plausible_text(&text) => return fit(Cow::Owned(text), false, limit),
            Ok(_) => {}
            Err(error) => {
                let bytes = error.into_bytes();
                let is_document = starts_like_a_document(&bytes);
                if let Some(kind) = headers.content_type.filter(|kind| !is_document && !is_text(kind)) {
                    return Body { text: Cow::Owned(describe_binary(kind, &bytes)), cut: false };
                }
                if is_document || headers.content_type.and_then(charset::declared).is_some() {
                    return to_text(bytes, headers, false, limit);
                }
            }
        }
    }
    if let Some(fields) = headers.content_type.and_then(|kind| form::to_json(kind, captured.as_bytes())) {
        return fit(Cow::Owned(fields), false, limit);
    }
    fit(Cow::Borrowed(captured), false, limit)
}

/// What compressed bytes are; `None` where they are not of the declared content encoding.
fn inflated(bytes: &[u8], headers: Headers<'_>, limit: usize) -> Option<Body<'static>> {
    let encoding = headers.content_encoding?;
    if std::str::from_utf8(bytes).is_ok_and(is_plausible_text) || charset::is_wide_json(bytes, headers.content_type) {
        return None;
    }
    let inflated = inflate::inflate(bytes, encoding, limit, starts_like_a_document)?;
    Some(to_text(inflated.bytes, headers, inflated.cut, limit))
}

/// `text` as far as it may be stored: `raw_log` has no other way to write a control character than six letters of JSON, and those
/// count. `cut` says that it is not all there is already.
pub fn fit(text: Cow<'_, str>, cut: bool, limit: usize) -> Body<'_> {
    const ESCAPED: usize = r"\u0001".len();
    if text.len() <= limit / ESCAPED {
        return Body { text, cut };
    }
    let mut written = 0;
    let fits = |byte: &u8| {
        let is_control = *byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r');
        written += if is_control { ESCAPED } else { 1 };
        written <= limit
    };
    let end = text.bytes().take_while(fits).count();
    if end == text.len() {
        return Body { text, cut };
    }
    let end = text.floor_char_boundary(end);
    let text = match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.get(..end).unwrap_or_default()),
        Cow::Owned(mut text) => {
            text.truncate(end);
            // What is cut off is given back, not only out of sight.
            text.shrink_to_fit();
            Cow::Owned(text)
        }
    };
    Body { text, cut: true }
}

fn base64_bytes(captured: &str) -> Option<Vec<u8>> {
    STANDARD.decode(captured).ok()
}

/// Whether decoded text is what a body would be, or base64 letters that were text all along.
fn is_plausible_text(text: &str) -> bool {
    let is_control = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    match starts_like_a_document(text.as_bytes()) {
        true => true,
        // To the end in any case, so that the processor can look at many letters at once.
        false if text.is_ascii() => !text.bytes().fold(false, |found, byte| found | is_control(char::from(byte))),
        false => !text.chars().any(is_control),
    }
}

fn starts_like_a_document(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes).trim_ascii_start();
    matches!(bytes.first(), Some(b'{' | b'['))
        || sse::looks_like_events(&String::from_utf8_lossy(bytes.get(..8).unwrap_or(bytes)))
}

pub(super) fn is_text(content_type: &str) -> bool {
    let kind = content_type.trim_start().to_ascii_lowercase();
    kind.starts_with("text/") || kind.contains("json") || kind.contains("xml") || kind.contains("urlencoded")
}

fn to_text(bytes: Vec<u8>, headers: Headers<'_>, cut: bool, limit: usize) -> Body<'static> {
    fit(Cow::Owned(charset::to_text(bytes, headers.content_type)), cut, limit)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LIMIT: usize = 1 << 20;
    const JSON: Headers<'static> = Headers { content_type: Some("application/json"), content_encoding: None };

    fn decoded(captured: &str, headers: Headers<'_>) -> String {
        decode(captured, headers, LIMIT).text.into_owned()
    }

    #[test]
    fn base64_of_text_json_and_sse_is_decoded() {
        for text in ["{\"a\":1}", "data: {}\n\n", "Unauthorized", "大模型", ""] {
            assert_eq!(decoded(&STANDARD.encode(text), JSON), text);
        }
    }

    #[test]
    fn text_made_of_the_letters_of_base64_stays_text() {
        for text in ["Unauthorized", "test", "null", "true", "12345678", "{\"a\":1}", "data: {}\n\n"] {
            assert_eq!(decoded(text, JSON), text);
        }
    }

    #[test]
    fn json_with_stray_bytes_costs_replacement_characters_only() {
        assert_eq!(decoded(&STANDARD.encode(b"{\"a\":\"x\xff\xfey\0\"}"), JSON), "{\"a\":\"x\u{FFFD}\u{FFFD}y\0\"}");
    }

    #[test]
    fn of_bytes_that_are_no_text_only_type_size_and_hash_are_kept() {
        let headers = Headers { content_type: Some("audio/wav; rate=8000"), content_encoding: None };
        assert_eq!(
            decoded(&STANDARD.encode(b"\xff\xfe"), headers),
            "[audio/wav 2 bytes sha256:b3d510ef04275ca8e698e5b3cbb0ece3949ef9252f0cdc839e9ee347409a2209]"
        );
    }

    #[test]
    fn a_declared_charset_is_honoured_unless_the_bytes_are_utf8_all_the_same() {
        let headers = Headers { content_type: Some("application/json; charset=GBK"), content_encoding: None };
        let gbk = encoding_rs::GBK.encode("{\"a\":\"网关\"}").0.into_owned();
        assert_eq!(decoded(&STANDARD.encode(gbk), headers), "{\"a\":\"网关\"}");
        assert_eq!(decoded(&STANDARD.encode("{\"a\":\"网关\"}"), headers), "{\"a\":\"网关\"}");
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn brotli_is_undone() {
        // The seven bytes that `printf '{"a":1}' | brotli` writes in front of the text and behind it.
        let bytes = [0x0b, 0x03, 0x80, b'{', b'"', b'a', b'"', b':', b'1', b'}', 0x03];
        let headers = Headers { content_encoding: Some("br"), ..JSON };
        assert_eq!(decoded(&STANDARD.encode(bytes), headers), "{\"a\":1}");
    }

    #[test]
    fn what_is_text_as_it_came_is_not_compressed_whatever_the_header_says() {
        let question = r#"{"model":"m","messages":[{"role":"user","content":"网关 why?"}]}"#;
        for encoding in ["gzip", "x-gzip", "deflate", "br", "zstd", "gzip, br", "compress", "identity"] {
            let headers = Headers { content_encoding: Some(encoding), ..JSON };
            for text in [question, "{\"a\":\"x\u{1}\"}", "data: {}\n\n", "Unauthorized", "x", "[", "{\"cut\":\"of", ""] {
                assert_eq!(decoded(&STANDARD.encode(text), headers), text, "{encoding}");
                assert_eq!(decoded(text, headers), text, "{encoding}");
            }
            let stray = b"{\"a\":\"\xff\"}";
            assert_eq!(decoded(&STANDARD.encode(stray), headers), "{\"a\":\"\u{FFFD}\"}", "{encoding}");
        }
    }

    #[test]
    fn what_cannot_be_decoded_stays_as_it_came() {
        let headers = Headers { content_encoding: Some("gzip"), ..JSON };
        for bytes in [gzip(&vec![b'a'; 16 << 20]), vec![0x1F, 0x8B, 8, 0, 1, 2, 3, 0xFF], b"\xfe\xfd\0\x01".to_vec()] {
            let captured = STANDARD.encode(bytes);
            let body = decode(&captured, headers, 8 << 20);
            assert!(body.text == captured && !body.cut, "{} bytes of {}", body.text.len(), captured.len());
        }
    }

    #[test]
    fn a_body_is_cut_at_the_limit() {
        let body = decode("plain text, é", JSON, 12);
        assert_eq!((&*body.text, body.cut), ("plain text, ", true));
        let captured = STANDARD.encode("plain text, é");
        assert_eq!(decode(&captured, JSON, 13), Body { text: "plain text, ".into(), cut: true });
        assert_eq!(decode(&captured, JSON, 14), Body { text: "plain text, é".into(), cut: false });
    }

    #[test]
    fn control_characters_count_as_what_they_are_written_as() {
        let captured = STANDARD.encode("{\u{1}\u{1}\u{1}\n}");
        assert_eq!(decode(&captured, JSON, 1 + 3 * 6 + 2), Body { text: "{\u{1}\u{1}\u{1}\n}".into(), cut: false });
        assert_eq!(decode(&captured, JSON, 1 + 2 * 6), Body { text: "{\u{1}\u{1}".into(), cut: true });
    }
}
