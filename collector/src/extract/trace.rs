//! Which trace a call belongs to, by the client's `traceparent` ([W3C Trace Context](https://www.w3.org/TR/trace-context/)).

use crate::decode::json::Json;

/// Bytes of `00-TRACE-PARENT-FLAGS`.
const LENGTH: usize = 55;

/// The trace's id, 32 hexadecimal digits; `None` where there is no such header, where it says nothing valid, or where it came twice: then
/// nobody knows which one counts.
pub(super) fn id(headers: Option<&Json<'_>>) -> Option<String> {
    let header = headers?.get("traceparent")?.as_str()?.trim();
    let (whole, more) = header.split_at_checked(LENGTH)?;
    let mut parts = whole.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    // Later versions may say more, after another dash.
    let is_whole = more.is_empty() || version != "00" && more.starts_with('-');
    let is_valid = is_hex(version, 2)
        && version != "ff"
        && is_id(trace, 32)
        && is_id(parent, 16)
        && is_hex(flags, 2)
        && parts.next().is_none()
        && is_whole;
    is_valid.then(|| trace.to_owned())
}

fn is_id(text: &str, digits: usize) -> bool {
    is_hex(text, digits) && text.bytes().any(|byte| byte != b'0')
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &str) -> Option<String> {
        id(Some(&Json::parse(headers).expect("JSON")))
    }

    #[test]
    fn a_trace_is_what_a_valid_header_names() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        for valid in [
            format!("00-{trace}-b7ad6b7169203331-01"),
            format!(" 00-{trace}-b7ad6b7169203331-00 "),
            format!("cc-{trace}-b7ad6b7169203331-01-what-comes-later"),
        ] {
            assert_eq!(of(&format!(r#"{{"traceparent":"{valid}"}}"#)).as_deref(), Some(trace), "{valid}");
        }
        for invalid in [
            String::new(),
            trace.to_owned(),
            format!("00-{trace}-b7ad6b7169203331"),
            format!("00-{trace}-b7ad6b7169203331-01-more"),
            format!("00-{trace}-b7ad6b7169203331-011"),
            format!("ff-{trace}-b7ad6b7169203331-01"),
            format!("00-{}-b7ad6b7169203331-01", trace.to_uppercase()),
            format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{trace}0-b7ad6b716920333-01"),
            format!("00-{}-b7ad6b7169203331-01", "日".repeat(11)),
            "-".repeat(55),
        ] {
            assert_eq!(of(&format!(r#"{{"traceparent":"{invalid}"}}"#)), None, "{invalid}");
        }
        let twice = format!(r#"{{"traceparent":["00-{trace}-b7ad6b7169203331-01","00-{trace}-b7ad6b7169203331-01"]}}"#);
        assert_eq!(of(&twice), None);
        assert_eq!(of("{}"), None);
        assert_eq!(id(None), None);
    }
}
