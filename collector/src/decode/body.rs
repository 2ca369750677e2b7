//! A captured body: from the string in the log entry to text.
//!
//! The order is the one in which the body was wrapped: base64 (by the plugin), content encoding (by the server), charset.
//! Every step may find that it does not apply; then the body is taken as it stands. Nothing here fails: a body that cannot be
//! decoded is still what somebody sent.

use std::borrow::Cow;
use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::digest::describe_binary;
use super::{charset, form, sse};

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
/// type that is no text at all. Plain text that merely happens to be made of base64's letters fails all of that.
pub fn decode<'a>(captured: &'a str, headers: Headers<'_>, limit: usize) -> Body<'a> {
    if let Some(bytes) = base64_bytes(captured) {
        if let Some(inflated) = inflate(&bytes, headers.content_encoding, limit) {
            return to_text(Cow::Owned(inflated.bytes), headers, inflated.cut);
        }
        if let Some(fields) = headers.content_type.and_then(|kind| form::to_json(kind, &bytes)) {
            return cut_at(fields.into_bytes(), Headers::default(), limit);
        }
        if charset::is_wide_json(&bytes, headers.content_type) {
            return cut_at(bytes, headers, limit);
        }
        match String::from_utf8(bytes) {
            // The usual case: looked at once, and the decoded bytes become the text.
            Ok(text) if is_plausible_text(&text) => {
                return match text.len() <= limit {
                    true => Body { text: Cow::Owned(text), cut: false },
                    false => cut_at(text.into_bytes(), headers, limit),
                };
            }
            Ok(_) => {}
            Err(error) => {
                let bytes = error.into_bytes();
                let is_document = starts_like_a_document(&bytes);
                if let Some(kind) = headers.content_type.filter(|kind| !is_document && !is_text(kind)) {
                    return Body { text: Cow::Owned(describe_binary(kind, &bytes)), cut: false };
                }
                if is_document || headers.content_type.and_then(charset::declared).is_some() {
                    return cut_at(bytes, headers, limit);
                }
            }
        }
    }
    if let Some(fields) = headers.content_type.and_then(|kind| form::to_json(kind, captured.as_bytes())) {
        return cut_at(fields.into_bytes(), Headers::default(), limit);
    }
    let cut = captured.len() > limit;
    let kept = captured.get(..captured.floor_char_boundary(limit)).unwrap_or_default();
    Body { text: Cow::Borrowed(kept), cut }
}

fn base64_bytes(captured: &str) -> Option<Vec<u8>> {
    STANDARD.decode(captured).ok()
}

/// Whether decoded text is what a body would be, or base64 letters that were text all along.
fn is_plausible_text(text: &str) -> bool {
    starts_like_a_document(text.as_bytes()) || !text.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r'))
}

fn cut_at<'a>(mut bytes: Vec<u8>, headers: Headers<'_>, limit: usize) -> Body<'a> {
    let cut = bytes.len() > limit;
    bytes.truncate(limit);
    to_text(Cow::Owned(bytes), headers, cut)
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

fn to_text<'a>(bytes: Cow<'_, [u8]>, headers: Headers<'_>, cut: bool) -> Body<'a> {
    let text = charset::to_text(bytes.into_owned(), headers.content_type);
    Body { text: Cow::Owned(text), cut }
}

struct Inflated {
    bytes: Vec<u8>,
    cut: bool,
}

/// Undoes the declared content encodings, last one first. `None` when there are none or the bytes are not of that encoding
/// (other plugins log bodies already decoded). Data that breaks off yields what was whole; all of it stays under `limit`.
fn inflate(bytes: &[u8], content_encoding: Option<&str>, limit: usize) -> Option<Inflated> {
    let mut current: Option<Inflated> = None;
    for encoding in content_encoding?.rsplit(',').map(|name| name.trim().to_ascii_lowercase()) {
        let input = current.as_ref().map_or(bytes, |inflated| &inflated.bytes);
        let next = match encoding.as_str() {
            "gzip" | "x-gzip" => read_capped(flate2::read::MultiGzDecoder::new(input), limit),
            // "deflate" is zlib by RFC 9110, but some servers send the bare stream.
            "deflate" => read_capped(flate2::read::ZlibDecoder::new(input), limit)
                .or_else(|| read_capped(flate2::read::DeflateDecoder::new(input), limit)),
            "br" => read_capped(brotli_decompressor::Decompressor::new(input, 4096), limit),
            "zstd" => zstd::stream::read::Decoder::new(input).ok().and_then(|decoder| read_capped(decoder, limit)),
            "identity" | "" => continue,
            _ => return None,
        };
        let cut_before = current.is_some_and(|inflated| inflated.cut);
        current = next.map(|inflated| Inflated { cut: inflated.cut || cut_before, ..inflated });
        current.as_ref()?;
    }
    current
}

/// Reads at most `limit` bytes; `None` when not a single one could be read.
fn read_capped(reader: impl Read, limit: usize) -> Option<Inflated> {
    let mut bytes = Vec::new();
    // One byte more than allowed tells "exactly the limit" from "over it".
    let outcome = reader.take(limit as u64 + 1).read_to_end(&mut bytes);
    if outcome.is_err() && bytes.is_empty() {
        return None;
    }
    let cut = bytes.len() > limit;
    bytes.truncate(limit);
    Some(Inflated { bytes, cut })
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
    fn every_content_encoding_is_undone_also_when_stacked_or_cut_off() {
        let text = "{\"text\":\"网关\"}".repeat(50);
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        zlib.write_all(text.as_bytes()).unwrap();
        let mut bare = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        bare.write_all(text.as_bytes()).unwrap();
        let zstd = zstd::encode_all(text.as_bytes(), 3).unwrap();
        for (encoding, bytes) in [
            ("gzip", gzip(text.as_bytes())),
            ("deflate", zlib.finish().unwrap()),
            ("deflate", bare.finish().unwrap()),
            ("zstd", zstd),
            ("identity, gzip,x-gzip", gzip(&gzip(text.as_bytes()))),
        ] {
            let headers = Headers { content_encoding: Some(encoding), ..JSON };
            assert_eq!(decoded(&STANDARD.encode(bytes), headers), text, "{encoding}");
        }
        let whole = gzip(text.as_bytes());
        let headers = Headers { content_encoding: Some("GZIP"), ..JSON };
        let part = decoded(&STANDARD.encode(&whole[..whole.len() - 9]), headers);
        assert!(!part.is_empty() && text.starts_with(&part));
    }

    #[test]
    fn brotli_is_undone() {
        // The seven bytes that `printf '{"a":1}' | brotli` writes in front of the text and behind it.
        let bytes = [0x0b, 0x03, 0x80, b'{', b'"', b'a', b'"', b':', b'1', b'}', 0x03];
        let headers = Headers { content_encoding: Some("br"), ..JSON };
        assert_eq!(decoded(&STANDARD.encode(bytes), headers), "{\"a\":1}");
    }

    #[test]
    fn a_body_that_is_not_of_the_declared_encoding_is_taken_as_it_is() {
        let headers = Headers { content_encoding: Some("gzip"), ..JSON };
        assert_eq!(decoded(&STANDARD.encode("{\"a\":1}"), headers), "{\"a\":1}");
        assert_eq!(decoded("{\"a\":1}", headers), "{\"a\":1}");
    }

    #[test]
    fn a_body_that_grows_beyond_the_limit_is_cut_there() {
        let bomb = gzip(&vec![b'a'; 4 << 20]);
        let headers = Headers { content_encoding: Some("gzip"), ..JSON };
        let captured = STANDARD.encode(bomb);
        let body = decode(&captured, headers, 1000);
        assert_eq!((body.text.len(), body.cut), (1000, true));
        let body = decode("plain text, é", JSON, 12);
        assert_eq!((&*body.text, body.cut), ("plain text, ", true));
    }
}
