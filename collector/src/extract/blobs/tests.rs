//! What is a blob, and what is none.

use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};

use super::*;
use crate::decode::digest::sha256_hex;

/// Bytes without any pattern.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn wrapped(letters: &str, length: usize, end: &str) -> String {
    letters.as_bytes().chunks(length).map(|line| format!("{}{end}", String::from_utf8_lossy(line))).collect()
}

fn replaced(kind: &str, bytes: &[u8]) -> String {
    format!("[{kind} {} bytes sha256:{}]", bytes.len(), sha256_hex(bytes))
}

#[test]
fn data_urls_are_replaced_wherever_and_however_they_stand() {
    let abc = replaced("image/png", b"abc");
    for (text, expected) in [
        ("data:image/png;base64,YWJj".to_owned(), abc.clone()),
        ("DATA:image/png;BASE64,YWJj".to_owned(), abc.clone()),
        ("data:image/png;charset=x; base64,YWJj".to_owned(), abc.clone()),
        ("see ![](data:image/png;base64,YWJj) and data: none".to_owned(), format!("see ![]({abc}) and data: none")),
        ("data:image/png;base64,YWJj please, data:image/png;base64,YWJj".to_owned(), format!("{abc} please, {abc}")),
        (
            r#"{"u":"data:image\/png;base64,YWJj"}"#.to_owned(),
            r#"{"u":"[image\/png 3 bytes sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad]"}"#.to_owned(),
        ),
        ("data:image/svg+xml,abc".to_owned(), replaced("image/svg+xml", b"abc")),
        ("data:;base64,YWJj".to_owned(), replaced("text/plain", b"abc")),
        ("metadata: 1, 2".to_owned(), "metadata: 1, 2".to_owned()),
        ("data:".to_owned(), "data:".to_owned()),
        ("data:,".to_owned(), "data:,".to_owned()),
        ("data:image/png;base64,".to_owned(), "data:image/png;base64,".to_owned()),
        ("the data: one, two; base64, three".to_owned(), "the data: one, two; base64, three".to_owned()),
    ] {
        assert_eq!(without_blobs(&text), expected, "{text}");
    }
}

#[test]
fn letters_of_a_data_url_may_be_wrapped_escaped_unpadded_and_cut() {
    let bytes = noise(1_000);
    let whole = STANDARD.encode(&bytes);
    let url = |letters: &str| format!("data:image/png;base64,{letters}");
    for letters in [
        wrapped(&whole, 76, "\n"),
        wrapped(&whole, 64, "\r\n"),
        wrapped(&whole, 76, r"\n"),
        // Put into a text of a text, and that into another one.
        wrapped(&whole, 76, r"\\n").replace('/', r"\\/"),
        wrapped(&whole, 72, r"\\\\r\\\\n  ").replace('/', r"\\\\/"),
        URL_SAFE.encode(&bytes),
        URL_SAFE_NO_PAD.encode(&bytes),
        whole.replace('/', r"\/"),
        whole.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D"),
    ] {
        let letters = letters.trim_end().trim_end_matches(['\\', 'r', 'n']);
        let text = without_blobs(&url(letters)).into_owned();
        assert_eq!(text, replaced("image/png", &bytes), "{letters}");
        assert_eq!(without_blobs(&format!("<{}> x", url(letters))), format!("<{text}> x"));
    }
    for cut in 2..6 {
        let text = url(whole.get(..whole.len() - 1 - cut).unwrap());
        let out = without_blobs(&text).into_owned();
        assert!(out.starts_with("[image/png 99") && out.ends_with(']') && out.len() < 120, "{out}");
    }
}

#[test]
fn long_base64_in_a_text_is_replaced_and_what_may_be_text_is_not() {
    let bytes = noise(3_000);
    for letters in [
        STANDARD.encode(&bytes),
        URL_SAFE_NO_PAD.encode(&bytes),
        wrapped(&STANDARD.encode(&bytes), 76, "\n"),
        wrapped(&STANDARD.encode(&bytes), 64, r"\n"),
        wrapped(&STANDARD.encode(&bytes), 64, "\r\n    "),
        wrapped(&STANDARD.encode(&bytes), 64, r"\\r\\n"),
    ] {
        let letters = letters.trim_end().trim_end_matches(['\\', 'r', 'n']).trim_end();
        for (before, after) in [("", ""), ("Decode this:\n", "\nIs it a picture?"), (r#"{"x":""#, r#""}"#), ("(", ")")] {
            assert_eq!(
                without_blobs(&format!("{before}{letters}{after}")),
                format!("{before}{}{after}", replaced("base64", &bytes)),
                "{letters}"
            );
        }
    }
    let png = [b"\x89PNG".as_slice(), &noise(900)].concat();
    assert_eq!(without_blobs(&STANDARD.encode(&png)), replaced("image/png", &png));

    let hash = "9f".repeat(2_000);
    let words: String = (0..500).map(|number| format!("Word{number}\n")).collect();
    for text in [
        "a".repeat(5_000),
        "A".repeat(5_000),
        hash,
        words,
        "ACGT".repeat(2_000),
        "-".repeat(3_000),
        "x1Y ".repeat(2_000),
        "大".repeat(2_000),
        STANDARD.encode(noise(300)),
    ] {
        assert_eq!(without_blobs(&text), text);
    }
}

#[test]
fn members_hold_blobs_by_their_names() {
    let bytes = noise(60);
    let letters = STANDARD.encode(&bytes);
    let hash = "9f".repeat(32);
    for (object, parent, name, value, expected) in [
        ("{}", "input_audio", "data", &letters, Some("audio")),
        (r#"{"format":"wav"}"#, "input_audio", "data", &letters, Some("wav")),
        (r#"{"media_type":"image/png"}"#, "source", "data", &letters, Some("image/png")),
        ("{}", "", "file_data", &letters, Some("file")),
        ("{}", "", "b64_json", &letters, Some("image")),
        ("{}", "image_embeds", "image_embeds", &letters, Some("image_embeds")),
        ("{}", "", "prompt_embeds", &URL_SAFE_NO_PAD.encode(&bytes), Some("prompt_embeds")),
        ("{}", "input_audio", "data", &wrapped(&letters, 76, "\n"), Some("audio")),
        // Opaque, a hash, a word, prose.
        ("{}", "", "data", &letters, None),
        (r#"{"type":"redacted_thinking"}"#, "", "data", &letters, None),
        (r#"{"format":"hex"}"#, "input_audio", "data", &hash, None),
        ("{}", "", "file_data", &"short".to_owned(), None),
        ("{}", "", "file_data", &"not base64, but a sentence of more than sixty-four letters. See?".repeat(2), None),
    ] {
        let found = blob(&Json::parse(object).unwrap(), parent, name, value);
        assert_eq!(found, expected.map(|kind| replaced(kind, &bytes)), "{name} in {parent}");
    }
}

#[test]
fn of_vectors_only_their_number_and_dimensions_are_kept() {
    let floats = STANDARD.encode([0; 2_048]);
    for (value, width, expected) in [
        ("[0.5,1]", 4, Some(r#"{"dimensions":2}"#)),
        ("[[0.5,1,2],[1,2,3]]", 4, Some(r#"{"vectors":2,"dimensions":3}"#)),
        (&format!("{floats:?}"), 4, Some(r#"{"dimensions":512}"#)),
        (&format!("{floats:?}"), 2, Some(r#"{"dimensions":1024}"#)),
        (&format!("[{floats:?}]"), 1, Some(r#"{"vectors":1,"dimensions":2048}"#)),
        ("[]", 4, None),
        ("[[]]", 4, None),
        (r#"[1,"a b"]"#, 4, None),
        (r#""two words""#, 4, None),
        ("{}", 4, None),
    ] {
        let mut out = String::new();
        let is_vector = write_vector(&mut out, &Json::parse(value).unwrap(), width);
        assert_eq!(is_vector.then_some(out.as_str()), expected, "{value}");
    }
}

#[test]
fn hostile_texts_take_their_own_length_and_no_more() {
    // Each is quadratic where a step goes back to the start.
    for text in [
        "data:".repeat(200_000),
        "data:a;base64,".repeat(100_000),
        format!("{}\n", "Ab1".repeat(20)).repeat(20_000),
        "A1b ".repeat(300_000),
        "data:image/png;base64,A\n".repeat(50_000),
        "\\".repeat(1_000_000),
        format!("{}{}", "Ab1".repeat(20), "\\".repeat(40)).repeat(10_000),
        format!("{}\n{}", "Ab1".repeat(20), " ".repeat(600)).repeat(2_000),
        " ".repeat(1_000_000),
    ] {
        let _ = without_blobs(&text);
    }
}
