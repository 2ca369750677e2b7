//! JSON that breaks off: the part that was captured can be read.

use super::json::Json;

/// Members whose text is one of few, or stands for something else as a whole: half of it would be another one, or nothing.
const NAMES: [&str; 16] = [
    "call_id",
    "code",
    "finish_reason",
    "format",
    "id",
    "item_id",
    "media_type",
    "model",
    "name",
    "object",
    "reason",
    "role",
    "status",
    "stop_reason",
    "tool_call_id",
    "type",
];

/// Parses the text of a body that may break off: closes what is open, so that the part that was captured can be read.
/// `None` when there is no JSON object or array at its start.
///
/// Only for bodies known to be cut. What was cut is the end, or the middle, of which the part before the gap is read. A name of something
/// (see [`NAMES`]) of which only a part came is none.
pub fn parse_cut_json(text: &str) -> Option<String> {
    let mut open = Vec::new();
    let mut in_string = false;
    let mut escaped = false;
    // The longest prefix that can be closed: behind a whole value, or inside a string value.
    let mut best = None;
    let mut expects_value = true;
    // Where the last string began, and the one that is the name of the value in hand.
    let mut string_start = 0;
    let mut name = 0..0;
    for (at, byte) in text.bytes().enumerate() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    in_string = false;
                    if expects_value {
                        best = Some((at + 1, open.len(), false));
                    } else {
                        name = string_start..at;
                    }
                }
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => {
                in_string = true;
                string_start = at + 1;
            }
            b'{' | b'[' => {
                name = 0..0;
                open.push(byte);
                expects_value = byte == b'[';
                best = Some((at + 1, open.len(), false));
            }
            b'}' | b']' => {
                open.pop()?;
                expects_value = true;
                best = Some((at + 1, open.len(), false));
                if open.is_empty() {
                    break;
                }
            }
            b':' => expects_value = true,
            b',' => {
                // A number or literal is only known to be whole at the comma.
                best = Some((at, open.len(), false));
                expects_value = open.last() == Some(&b'[');
            }
            _ if open.is_empty() && !byte.is_ascii_whitespace() => return None,
            _ => {}
        }
    }
    let is_name = text.get(name).is_some_and(|name| NAMES.contains(&name));
    if in_string && expects_value && !is_name && !open.is_empty() {
        best = Some((text.len(), open.len(), true));
    }
    let (end, depth, inside_string) = best?;
    let mut closed = text.get(..end)?.to_owned();
    if inside_string {
        close_string(&mut closed);
    }
    for bracket in open.get(..depth)?.iter().rev() {
        closed.push(if *bracket == b'{' { '}' } else { ']' });
    }
    Json::parse(&closed).is_ok().then_some(closed)
}

/// Ends a string that broke off, without the escape that broke off with it.
fn close_string(text: &mut String) {
    let tail = text.rfind('"').unwrap_or_default();
    let mut escape = None;
    let mut bytes = text.bytes().enumerate().skip(tail + 1);
    while let Some((at, byte)) = bytes.next() {
        if byte == b'\\' {
            let length = match bytes.next() {
                Some((_, b'u')) => 6,
                _ => 2,
            };
            escape = (at + length > text.len()).then_some(at);
            if length == 6 {
                bytes.by_ref().take(4).for_each(drop);
            }
        }
    }
    if let Some(at) = escape {
        text.truncate(at);
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_json_is_closed_where_it_broke_off() {
        for (cut, closed) in [
            (r#"{"a":"b"#, r#"{"a":"b"}"#),
            (r#"{"a":"b","c"#, r#"{"a":"b"}"#),
            (r#"{"a":"b","c":tr"#, r#"{"a":"b"}"#),
            (r#"{"a":[1,2"#, r#"{"a":[1]}"#),
            (r#"{"a":[{"x":"y\u12"#, r#"{"a":[{"x":"y"}]}"#),
            (r#"{"a":"y\"#, r#"{"a":"y"}"#),
            (r#"{"a":"\\"#, r#"{"a":"\\"}"#),
            (r#"{"a":{}} rest"#, r#"{"a":{}}"#),
            (r#"{"a":"b","model":"qw"#, r#"{"a":"b"}"#),
            (r#"{"model":["qw"#, r#"{"model":["qw"]}"#),
            (r#"{"type":"x","text":"he"#, r#"{"type":"x","text":"he"}"#),
            ("[", "[]"),
        ] {
            assert_eq!(parse_cut_json(cut).as_deref(), Some(closed), "{cut}");
        }
        for text in ["", "text", "}", "{]"] {
            assert_eq!(parse_cut_json(text), None, "{text}");
        }
    }

    #[test]
    fn every_prefix_of_a_json_object_can_be_read() {
        let text = r#"{"a":"x\"\\\u00e9é","b":[1.5e3,true,null,{"c":[]}],"d":{"e":"f"}}"#;
        for end in (1..=text.len()).filter(|end| text.is_char_boundary(*end)) {
            assert!(parse_cut_json(&text[..end]).is_some(), "{}", &text[..end]);
        }
    }
}
