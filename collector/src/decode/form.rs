//! Forms with files (RFC 7578): requests of the audio APIs.
//!
//! Read as the JSON object that they would have been, files replaced by what they were: `{"model":"whisper","file":"[audio/wav 48044
//! bytes sha256:…]"}`. What breaks off is read as far as it goes.

use memchr::memmem;

use super::digest::describe_binary;
use super::json::write_string;

/// Parts that are read. The APIs have some ten fields; of a form with more the rest is left out.
const MAX_PARTS: usize = 100;

/// Longest value of a field, in bytes: a prompt. What is longer was no field of these APIs and is described like a file.
const MAX_VALUE_BYTES: usize = 256 << 10;

/// A form as JSON text; `None` where it is none.
pub(super) fn to_json(content_type: &str, body: &[u8]) -> Option<String> {
    let delimiter = format!("--{}", boundary(content_type)?);
    let delimiter = delimiter.as_bytes();
    let first = memmem::find(body, delimiter)?;
    let mut rest = body.get(first + delimiter.len()..)?;
    let mut fields = String::from("{");
    for _ in 0..MAX_PARTS {
        // Behind the last part stand two hyphens.
        let Some(part) = rest.strip_prefix(b"\r\n").or_else(|| rest.strip_prefix(b"\n")) else { break };
        let end =
            memmem::find_iter(part, delimiter).find(|at| at.checked_sub(1).is_none_or(|before| part.get(before) == Some(&b'\n')));
        let content = part.get(..end.unwrap_or(part.len())).unwrap_or_default();
        write_field(&mut fields, content);
        let Some(end) = end else { break };
        rest = part.get(end + delimiter.len()..).unwrap_or_default();
    }
    fields.push('}');
    Some(fields)
}

/// The boundary of `multipart/form-data`.
fn boundary(content_type: &str) -> Option<&str> {
    let (kind, _) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    parameter(content_type, "boundary").filter(|boundary| !boundary.is_empty())
}

fn write_field(out: &mut String, part: &[u8]) {
    let (head, content) =
        match [&b"\r\n\r\n"[..], b"\n\n"].iter().find_map(|blank| Some((memmem::find(part, blank)?, blank.len()))) {
            Some((at, blank)) => (part.get(..at).unwrap_or_default(), part.get(at + blank..).unwrap_or_default()),
            None => return,
        };
    let content = content.strip_suffix(b"\r\n").or_else(|| content.strip_suffix(b"\n")).unwrap_or(content);
    let head = String::from_utf8_lossy(head);
    let header = |wanted: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| name.trim().eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
    };
    let disposition = header("content-disposition").unwrap_or_default();
    let Some(name) = parameter(disposition, "name") else { return };
    if out.len() > 1 {
        out.push(',');
    }
    write_string(out, name);
    out.push(':');
    let is_file = parameter(disposition, "filename").is_some() || content.len() > MAX_VALUE_BYTES;
    match std::str::from_utf8(content) {
        Ok(text) if !is_file => write_string(out, text),
        _ => write_string(out, &describe_binary(header("content-type").unwrap_or("file"), content)),
    }
}

/// A parameter of a header, in quotes as a rule. What stands in the quotes of another one is none.
fn parameter<'h>(header: &'h str, wanted: &str) -> Option<&'h str> {
    let (_, mut rest) = header.split_once(';')?;
    loop {
        let (name, behind) = rest.split_once('=')?;
        // A parameter without a value ends at its semicolon.
        if let Some((_, next)) = name.split_once(';') {
            rest = next.len().checked_add(1 + behind.len()).and_then(|length| rest.get(rest.len() - length..))?;
            continue;
        }
        let behind = behind.trim_start();
        let value = match behind.strip_prefix('"') {
            Some(quoted) => quoted.get(..closing_quote(quoted)).unwrap_or(quoted),
            None => behind.split(';').next().unwrap_or_default().trim_end(),
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        let used = if behind.starts_with('"') { value.len() + 1 } else { value.len() };
        (_, rest) = behind.get(used..)?.split_once(';')?;
    }
}

/// Where a quoted text ends: at the first quote that no backslash escapes.
fn closing_quote(quoted: &str) -> usize {
    let mut is_escaped = false;
    let end = quoted.bytes().position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    });
    end.unwrap_or(quoted.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: &str = "multipart/form-data; boundary=zz";
    const FORM: &[u8] = b"--zz\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n\
        --zz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a;b.wav\"\r\nContent-Type: audio/wav\r\n\r\n\xff\0--zz\r\n\
        --zz\r\ncontent-disposition: form-data; name=stream\r\n\r\ntrue\r\n--zz--\r\n";

    #[test]
    fn fields_are_kept_and_files_are_described() {
        // SHA-256 of the bytes ff 00 2d 2d 7a 7a.
        let file = describe_binary("audio/wav", b"\xff\0--zz");
        assert_eq!(to_json(KIND, FORM).unwrap(), format!(r#"{{"model":"whisper","file":"{file}","stream":"true"}}"#));
        assert_eq!(to_json("Multipart/Form-Data; charset=x; BOUNDARY=\"zz\"", FORM), to_json(KIND, FORM));
        let lines = String::from_utf8_lossy(FORM).replace("\r\n", "\n");
        assert!(to_json(KIND, lines.as_bytes()).unwrap().starts_with(r#"{"model":"whisper","file":"["#));
    }

    #[test]
    fn the_plugin_and_the_collector_read_forms_alike() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/forms.json");
        let cases: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        for case in cases.as_array().unwrap() {
            let text = |name: &str| case[name].as_str().unwrap();
            let fields = to_json(text("content_type"), text("body").as_bytes());
            if case["unread"].is_null() {
                let fields: serde_json::Value = serde_json::from_str(&fields.unwrap()).unwrap();
                let model = fields["model"].as_str().filter(|model| !model.is_empty());
                assert_eq!(model, case["model"].as_str(), "{}", text("name"));
                let stream = matches!(fields["stream"].as_str(), Some("true" | "1"));
                assert_eq!(stream, case["stream"], "{}", text("name"));
            }
        }
        assert!(cases.as_array().unwrap().len() > 40);
    }

    #[test]
    fn a_parameter_is_found_where_it_is_one() {
        for (header, wanted) in [
            (r#"form-data; name="a""#, Some("a")),
            (r#"form-data; filename="x; name=b"; name="a""#, Some("a")),
            (r#"form-data; filename="x\"; name=\"b"; name="a""#, Some("a")),
            (r#"form-data; x; NAME = a ; y=1"#, Some("a")),
            (r#"form-data; x;; name="a;b"#, Some("a;b")),
            (r#"form-data; filename="x; name=b"#, None),
            ("name=a", None),
            ("", None),
            ("; ;;=;=\"", None),
        ] {
            assert_eq!(parameter(header, "name"), wanted, "{header}");
        }
    }

    #[test]
    fn a_form_that_breaks_off_is_read_as_far_as_it_goes() {
        for end in 0..FORM.len() {
            let fields = to_json(KIND, FORM.get(..end).unwrap());
            assert!(fields.is_none_or(|fields| crate::decode::json::Json::parse(&fields).is_ok()), "{end}");
        }
        assert!(to_json(KIND, FORM.get(..160).unwrap()).unwrap().starts_with(r#"{"model":"whisper""#));
    }

    #[test]
    fn what_is_no_form_is_left_alone() {
        for (kind, body) in
            [("application/json", FORM), ("multipart/form-data", FORM), ("multipart/form-data; boundary=", FORM), (KIND, b"{}")]
        {
            assert_eq!(to_json(kind, body), None, "{kind}");
        }
        assert_eq!(to_json(KIND, b"--zz--").as_deref(), Some("{}"));
    }
}
