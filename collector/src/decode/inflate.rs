//! Content encodings, undone strictly and within bounds.
//!
//! What claims to be compressed need not be: model servers ignore the header of a request, and other plugins log bodies already
//! decoded. So a body is inflated only where all of it is of the declared encoding, or breaks off in the middle of one that can be
//! told by its first bytes. Everything else stays as it came, because a wrong guess would destroy it.
//!
//! Invariants: no more than the limit is ever held, nor than [`MAX_RATIO`] times what came; windows are those that HTTP allows.

use std::io::{ErrorKind, Read};

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};

/// How many times its size a body may become. Conversations shrink to a tenth or, where they repeat themselves, a fiftieth; a bomb to a
/// thousandth (gzip) or a millionth (brotli). Beyond it a body is kept as it came, which costs nobody anything.
const MAX_RATIO: usize = 100;

/// To this size anything may grow: a short text that repeats itself is no bomb.
const FREE_BYTES: usize = 64 << 10;

/// Encodings on top of each other that are undone. Two happen (a server and a proxy in front of it); a header has room for a thousand.
const MAX_LAYERS: usize = 4;

/// Largest window of zstd, as a power of two: 8 MiB, as RFC 9659 bounds it for HTTP. The format itself would let a few bytes claim
/// gigabytes.
const ZSTD_WINDOW_LOG: u32 = 23;

/// The largest size to which `compressed` bytes can be inflated here.
pub fn most(compressed: usize) -> usize {
    compressed.saturating_mul(MAX_RATIO).max(FREE_BYTES)
}

/// What was compressed.
#[derive(Debug, PartialEq, Eq)]
pub struct Inflated {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// There is more: beyond the limit, or behind the place where the compressed data breaks off.
    pub cut: bool,
}

/// Undoes the declared content encodings, last one first, to at most `limit` bytes. `None` when there are none, or the bytes are not
/// what the header says, or would grow beyond all measure. `is_plain` tells whether bytes need no further undoing: some servers
/// name an encoding twice.
pub fn inflate(bytes: &[u8], content_encoding: &str, limit: usize, is_plain: impl Fn(&[u8]) -> bool) -> Option<Inflated> {
    let names: Vec<String> = content_encoding
        .rsplit(',')
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !matches!(name.as_str(), "identity" | ""))
        .take(MAX_LAYERS + 1)
        .collect();
    if names.len() > MAX_LAYERS {
        return None;
    }
    let allowed = most(bytes.len());
    let mut current: Option<Inflated> = None;
    for name in names {
        if current.as_ref().is_some_and(|inflated| is_plain(&inflated.bytes)) {
            break;
        }
        let (input, cut_before) = current.as_ref().map_or((bytes, false), |inflated| (inflated.bytes.as_slice(), inflated.cut));
        let step = undo(&name, input, limit.min(allowed))?;
        current = match step {
            Step::Whole(bytes) => Some(Inflated { bytes, cut: cut_before }),
            // Over the limit is long, over the ratio is a bomb.
            Step::Over(bytes) if limit <= allowed => Some(Inflated { bytes, cut: true }),
            Step::BrokenOff(bytes) if !bytes.is_empty() => Some(Inflated { bytes, cut: true }),
            Step::Over(_) | Step::BrokenOff(_) => None,
        };
        current.as_ref()?;
    }
    current
}

/// How far undoing one encoding came.
enum Step {
    /// To the end of the input, which was the end of the data.
    Whole(Vec<u8>),
    /// To the limit.
    Over(Vec<u8>),
    /// To the end of the input, in the middle of the data, which can be told by their first bytes.
    BrokenOff(Vec<u8>),
}

/// `None` when the input is not of that encoding, or nobody knows it.
fn undo(name: &str, input: &[u8], limit: usize) -> Option<Step> {
    match name {
        "gzip" | "x-gzip" => {
            input.starts_with(&[0x1F, 0x8B, 8]).then(|| read(flate2::bufread::MultiGzDecoder::new(input), limit)).flatten()
        }
        // "deflate" is zlib by RFC 9110, but some servers send the bare stream.
        "deflate" if is_zlib(input) => deflate(input, true, limit).or_else(|| deflate(input, false, limit)),
        "deflate" => deflate(input, false, limit),
        "br" => brotli(input, limit),
        "zstd" if input.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]) => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).ok()?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).ok()?;
            read(decoder, limit)
        }
        _ => None,
    }
}

/// Reads a decoder that checks what it reads, and says where its input breaks off.
fn read(reader: impl Read, limit: usize) -> Option<Step> {
    let mut bytes = Vec::new();
    // One byte more than allowed tells "exactly the limit" from "over it".
    match reader.take(limit as u64 + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() > limit => {
            bytes.truncate(limit);
            Some(Step::Over(bytes))
        }
        Ok(_) => Some(Step::Whole(bytes)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Some(Step::BrokenOff(bytes)),
        Err(_) => None,
    }
}

/// Whether the bytes begin with the header of a zlib stream (RFC 1950).
fn is_zlib(input: &[u8]) -> bool {
    matches!(input, [method, flags, ..] if method & 15 == 8 && (u16::from(*method) << 8 | u16::from(*flags)) % 31 == 0)
}

/// flate2's readers take the end of the input for the end of the data, so this asks the decoder itself.
fn deflate(input: &[u8], has_header: bool, limit: usize) -> Option<Step> {
    const PIECE: usize = 32 << 10;
    let mut decoder = Decompress::new(has_header);
    let mut bytes = Vec::new();
    loop {
        let consumed = usize::try_from(decoder.total_in()).ok()?;
        let produced = bytes.len();
        bytes.reserve(PIECE);
        let status = decoder.decompress_vec(input.get(consumed..)?, &mut bytes, FlushDecompress::None).ok()?;
        if bytes.len() > limit {
            bytes.truncate(limit);
            return Some(Step::Over(bytes)).filter(|_| has_header);
        }
        let consumed_all = usize::try_from(decoder.total_in()).ok()? == input.len();
        match status {
            Status::StreamEnd => return consumed_all.then_some(Step::Whole(bytes)),
            // Without a header any bytes may be the beginning of a stream.
            _ if consumed_all && bytes.len() == produced => return has_header.then_some(Step::BrokenOff(bytes)),
            Status::BufError if bytes.len() == produced => return None,
            Status::Ok | Status::BufError => {}
        }
    }
}

fn brotli(input: &[u8], limit: usize) -> Option<Step> {
    // Strict: without the extension by which a few bytes can claim a window of a gigabyte.
    let mut state = BrotliState::new_strict(StandardAlloc::default(), StandardAlloc::default(), StandardAlloc::default());
    let mut bytes = Vec::new();
    let mut piece = [0; 16 << 10];
    let (mut available, mut offset, mut total) = (input.len(), 0, 0);
    loop {
        let (mut room, mut written) = (piece.len(), 0);
        let result = BrotliDecompressStream(
            &mut available,
            &mut offset,
            input,
            &mut room,
            &mut written,
            &mut piece,
            &mut total,
            &mut state,
        );
        bytes.extend_from_slice(piece.get(..written)?);
        if bytes.len() > limit {
            bytes.truncate(limit);
            // There is no sign by which brotli can be told; text it has to be at least.
            return looks_like_text(&bytes).then_some(Step::Over(bytes));
        }
        match result {
            BrotliResult::ResultSuccess => return (available == 0).then_some(Step::Whole(bytes)),
            BrotliResult::NeedsMoreOutput => {}
            BrotliResult::NeedsMoreInput => {
                return (!bytes.is_empty() && looks_like_text(&bytes)).then_some(Step::BrokenOff(bytes));
            }
            BrotliResult::ResultFailure => return None,
        }
    }
}

/// Whether bytes, which may break off within a character, are UTF-8 without control characters.
fn looks_like_text(bytes: &[u8]) -> bool {
    let is_utf8 = match std::str::from_utf8(bytes) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    is_utf8 && !bytes.iter().any(|byte| *byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r'))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LIMIT: usize = 1 << 20;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn bare(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 3).unwrap()
    }

    fn inflated(bytes: &[u8], encoding: &str, limit: usize) -> Option<Inflated> {
        inflate(bytes, encoding, limit, |_| false)
    }

    fn text() -> Vec<u8> {
        "{\"text\":\"网关\"}".repeat(50).into_bytes()
    }

    #[test]
    fn every_encoding_is_undone_also_when_stacked() {
        let text = text();
        for (encoding, bytes) in [
            ("gzip", gzip(&text)),
            ("GZIP", [gzip(&text[..10]), gzip(&text[10..])].concat()),
            ("deflate", zlib(&text)),
            ("deflate", bare(&text)),
            ("zstd", zstd(&text)),
            ("identity, gzip,x-gzip", gzip(&gzip(&text))),
            ("zstd, deflate, gzip", gzip(&zlib(&zstd(&text)))),
        ] {
            assert_eq!(inflated(&bytes, encoding, LIMIT), Some(Inflated { bytes: text.clone(), cut: false }), "{encoding}");
        }
    }

    #[test]
    fn what_is_not_wholly_of_the_declared_encoding_is_left_alone() {
        let text = text();
        for (encoding, bytes) in [
            ("gzip", text.clone()),
            ("gzip", [gzip(&text), b"no further member".to_vec()].concat()),
            ("gzip", [gzip(&text), gzip(&text)[..5].to_vec(), b"xxxxxxxxxxxx".to_vec()].concat()),
            ("deflate", text.clone()),
            ("deflate", [zlib(&text), b"rest".to_vec()].concat()),
            ("deflate", [bare(&text), b"rest".to_vec()].concat()),
            ("deflate", bare(&text)[..20].to_vec()),
            ("br", text.clone()),
            ("br", b"model".to_vec()),
            ("br", gzip(&text)),
            ("zstd", text.clone()),
            ("zstd", [zstd(&text), b"rest".to_vec()].concat()),
            ("zstd", gzip(&text)),
            ("compress", gzip(&text)),
            ("gzip, zstd", gzip(&text)),
            ("", gzip(&text)),
            ("identity", gzip(&text)),
            ("gzip,gzip,gzip,gzip,gzip", gzip(&gzip(&gzip(&gzip(&gzip(&text)))))),
        ] {
            assert!(inflated(&bytes, encoding, LIMIT).is_none(), "{encoding} {} {:?}", bytes.len(), bytes.first_chunk::<4>());
        }
    }

    #[test]
    fn a_damaged_byte_is_noticed() {
        for (encoding, bytes) in [("gzip", gzip(&text())), ("deflate", zlib(&text())), ("zstd", zstd(&text()))] {
            // The last bytes are the check sum, or for zstd (which writes none by default) the data.
            let mut damaged = bytes.clone();
            let at = damaged.len() - if encoding == "zstd" { 12 } else { 6 };
            damaged[at] ^= 0x55;
            let inflated = inflated(&damaged, encoding, LIMIT);
            assert!(inflated.as_ref().is_none_or(|inflated| encoding == "zstd" && inflated.bytes != text()), "{encoding}");
        }
    }

    #[test]
    fn an_encoding_that_is_named_twice_is_undone_once() {
        let plain = |bytes: &[u8]| bytes.starts_with(b"{");
        assert_eq!(inflate(&gzip(&text()), "gzip, gzip", LIMIT, plain).unwrap().bytes, text());
    }

    #[test]
    fn what_breaks_off_yields_what_was_whole_and_says_so() {
        // Text that hardly shrinks, so that a decoder has something to hand out before its end.
        let text: String = (0..20_000_u64).map(|n| format!("{:x} ", n.wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect();
        for (encoding, bytes) in
            [("gzip", gzip(text.as_bytes())), ("deflate", zlib(text.as_bytes())), ("zstd", zstd(text.as_bytes()))]
        {
            let part = inflated(&bytes[..bytes.len() * 3 / 4], encoding, LIMIT).unwrap();
            assert!(part.cut && part.bytes.len() > text.len() / 4, "{encoding}: {} of {}", part.bytes.len(), text.len());
            assert!(text.as_bytes().starts_with(&part.bytes), "{encoding}");
        }
    }

    #[test]
    fn what_is_longer_than_the_limit_is_cut_there() {
        let text: String = (0..20_000_u64).map(|n| format!("{:x} ", n.wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect();
        for (encoding, bytes) in
            [("gzip", gzip(text.as_bytes())), ("deflate", zlib(text.as_bytes())), ("zstd", zstd(text.as_bytes()))]
        {
            let part = inflated(&bytes, encoding, 1000).unwrap();
            assert_eq!((part.bytes.as_slice(), part.cut), (&text.as_bytes()[..1000], true), "{encoding}");
        }
    }

    /// 16 MiB of the letter a in brotli: one literal and one copy of all the rest, each with a code of its own that takes no bits.
    const BROTLI_BOMB: [u8; 13] = [0xF2, 0xFF, 0xFF, 0x1F, 0x00, 0x44, 0x58, 0x3C, 0x16, 0x50, 0xEE, 0xFD, 0x3F];

    #[test]
    fn what_grows_beyond_all_measure_is_left_alone_also_in_layers() {
        let letters = vec![b'a'; 16 << 20];
        let (gzip_bomb, zstd_bomb) = (gzip(&letters), zstd(&letters));
        for (encoding, bytes) in [
            ("gzip", gzip_bomb.clone()),
            ("deflate", zlib(&letters)),
            ("deflate", bare(&letters)),
            ("br", BROTLI_BOMB.to_vec()),
            ("br, gzip", gzip(&BROTLI_BOMB)),
            ("zstd", zstd_bomb.clone()),
            ("gzip, gzip", gzip(&gzip_bomb)),
            ("gzip, zstd", zstd(&gzip_bomb)),
            ("zstd, gzip", gzip(&zstd_bomb)),
        ] {
            assert_eq!(inflated(&bytes, encoding, 64 << 20), None, "{encoding}");
        }
        // A short text may repeat itself.
        let short = vec![b'a'; 60 << 10];
        assert_eq!(inflated(&zstd(&short), "zstd", LIMIT).unwrap().bytes, short);
    }

    #[test]
    fn a_window_of_gigabytes_is_not_made() {
        // Magic, a frame header with a window of 2 GiB, and one raw block of one byte.
        let frame = [0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xA8, 0x09, 0x00, 0x00, b'x'];
        assert_eq!(inflated(&frame, "zstd", LIMIT), None);
        // brotli's large window: 30 bits.
        assert_eq!(inflated(&[0x11, 0x1E, 0x0B, 0x03, 0x80, b'{', b'}', 0x03], "br", LIMIT), None);
    }
}
