//! The characters of a body: from bytes to text.

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};

use super::body::is_text;

/// UTF-32, which encoding_rs does not know because browsers do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wide {
    Utf16(&'static Encoding),
    Utf32 { is_big_endian: bool },
}

/// How JSON is encoded that is not UTF-8, as Python's `json.detect_encoding` finds out: by a mark, else by where the zero bytes of its
/// first characters are, which are ASCII. vLLM reads requests with it.
fn wide(bytes: &[u8]) -> Option<Wide> {
    let little_32 = Wide::Utf32 { is_big_endian: false };
    let big_32 = Wide::Utf32 { is_big_endian: true };
    match bytes {
        [0xFF, 0xFE, 0, 0, ..] => Some(little_32),
        [0, 0, 0xFE, 0xFF, ..] => Some(big_32),
        [0xFE, 0xFF, ..] => Some(Wide::Utf16(UTF_16BE)),
        [0xFF, 0xFE, ..] => Some(Wide::Utf16(UTF_16LE)),
        [0, 0, _, _, ..] => Some(big_32),
        [0, _, _, _, ..] => Some(Wide::Utf16(UTF_16BE)),
        [_, 0, 0, 0, ..] => Some(little_32),
        [_, 0, _, _, ..] => Some(Wide::Utf16(UTF_16LE)),
        [0, _] => Some(Wide::Utf16(UTF_16BE)),
        [_, 0] => Some(Wide::Utf16(UTF_16LE)),
        _ => None,
    }
}

/// Whether a body is JSON in UTF-16 or UTF-32. Recordings and pictures may begin like that, too: their content type tells.
pub(super) fn is_wide_json(bytes: &[u8], content_type: Option<&str>) -> bool {
    content_type.is_none_or(is_text) && wide(bytes).is_some()
}

/// Bytes as text: as UTF-8, as wide JSON, or in the declared charset. What is not of that charset costs U+FFFD.
pub(super) fn to_text(bytes: Vec<u8>, content_type: Option<&str>) -> String {
    if is_wide_json(&bytes, content_type)
        && let Some(wide) = wide(&bytes)
    {
        return match wide {
            // Takes the mark off.
            Wide::Utf16(encoding) => encoding.decode_with_bom_removal(&bytes).0.into_owned(),
            Wide::Utf32 { is_big_endian } => of_utf32(&bytes, is_big_endian),
        };
    }
    let foreign = content_type
        .and_then(declared)
        .and_then(|label| Encoding::for_label(label.as_bytes()))
        .filter(|encoding| *encoding != UTF_8 && std::str::from_utf8(&bytes).is_err());
    match foreign {
        Some(encoding) => encoding.decode_without_bom_handling(&bytes).0.into_owned(),
        // Reuses the buffer for the usual case, valid UTF-8.
        None => String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
    }
}

fn of_utf32(bytes: &[u8], is_big_endian: bool) -> String {
    let unit = |bytes: &[u8]| {
        let bytes = bytes.try_into().unwrap_or_default();
        if is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    let characters = bytes.chunks(4).map(|bytes| char::from_u32(unit(bytes)).filter(|_| bytes.len() == 4));
    let text = characters.map(|character| character.unwrap_or(super::json::REPLACEMENT));
    text.skip_while(|character| *character == '\u{FEFF}').collect()
}

/// The `charset` parameter of a content type.
pub(super) fn declared(content_type: &str) -> Option<&str> {
    content_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "{\"a\":\"长城 🎉\"}";

    fn encoded(text: &str, width: usize, is_big_endian: bool, mark: bool) -> Vec<u8> {
        let text: String = if mark { format!("\u{FEFF}{text}") } else { text.to_owned() };
        let units: Vec<u32> = match width {
            2 => text.encode_utf16().map(u32::from).collect(),
            _ => text.chars().map(u32::from).collect(),
        };
        let bytes = |unit: u32| {
            let mut bytes = unit.to_be_bytes()[4 - width..].to_vec();
            if !is_big_endian {
                bytes.reverse();
            }
            bytes
        };
        units.into_iter().flat_map(bytes).collect()
    }

    #[test]
    fn json_is_read_in_every_encoding_that_python_reads() {
        for width in [2, 4] {
            for is_big_endian in [false, true] {
                for mark in [false, true] {
                    let bytes = encoded(TEXT, width, is_big_endian, mark);
                    let json = Some("application/json");
                    assert!(is_wide_json(&bytes, json));
                    assert_eq!(to_text(bytes.clone(), json), TEXT, "{width} {is_big_endian} {mark}");
                    assert!(!is_wide_json(&bytes, Some("audio/wav")));
                    // Cut in the middle of a character.
                    let cut = to_text(bytes.get(..bytes.len() - 5).unwrap().to_vec(), None);
                    assert!(TEXT.starts_with(cut.trim_end_matches('\u{FFFD}')), "{cut:?}");
                }
            }
        }
        assert_eq!(to_text(encoded("{}", 2, false, false), None), "{}");
    }

    #[test]
    fn what_is_utf8_or_declared_is_not_taken_for_anything_else() {
        for bytes in [TEXT.as_bytes(), b"{}", b"", b"1", b"{", "\u{FEFF}{}".as_bytes()] {
            assert!(!is_wide_json(bytes, None), "{bytes:?}");
            assert_eq!(to_text(bytes.to_vec(), None).as_bytes(), bytes);
        }
        let gbk = encoding_rs::GBK.encode("{\"a\":\"网关\"}").0.into_owned();
        assert_eq!(to_text(gbk.clone(), Some("application/json; Charset=\"gbk\"")), "{\"a\":\"网关\"}");
        assert!(to_text(gbk, Some("application/json")).contains('\u{FFFD}'));
        assert_eq!(of_utf32(&[0, 0x11, 0, 0, 0, 0, 0, 0x7B], true), "\u{FFFD}{");
    }
}
