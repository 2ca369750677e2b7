//! Server-sent events out of recorded text.
//!
//! A pure function over the whole body: the kept crates parse an asynchronous stream, and there is none here. Follows the
//! event stream grammar of the HTML standard (section 9.2): lines end in LF, CRLF or CR; `data` lines of one event are joined
//! by LF; a leading byte order mark and comments are skipped. Two differences are deliberate, because this is evidence and no
//! client. An event that the end of the text cuts off is still handed out: the end of the capture is not the end of the meaning,
//! and whoever reads the event finds out whether its data is whole. And lines that are no field of an event are handed out, too:
//! servers that fail write their error there, or in the comments of an event `error` without data.

use std::borrow::Cow;

/// One server-sent event, or what stands between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// The `event` field; empty when there was none. `error` for llama.cpp's field of that name, which has the data.
    pub name: &'a str,
    /// The `data` field.
    pub data: Cow<'a, str>,
    /// Not an event: lines that follow each other and are no field that the standard knows.
    pub is_stray: bool,
}

/// The events of `text` in order; events without data are left out, as the standard says.
pub fn events(text: &str) -> Events<'_> {
    Events { rest: text.strip_prefix('\u{FEFF}').unwrap_or(text), stray: None }
}

/// What an event stream can begin with.
const FIELDS: [&str; 6] = ["data:", "event:", "id:", "retry:", "error:", ":"];

/// Whether `text` begins like an event stream.
pub fn looks_like_events(text: &str) -> bool {
    let text = without_mark(text);
    FIELDS.iter().any(|field| text.starts_with(field))
}

/// Whether `text` may be the first bytes of an event stream that broke off before its first field was whole.
pub fn is_fragment(text: &str) -> bool {
    let text = without_mark(text);
    FIELDS.iter().any(|field| field.starts_with(text))
}

fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{FEFF}').unwrap_or(text).trim_start_matches(['\n', '\r'])
}

/// Iterator over the events of a text.
#[derive(Debug)]
pub struct Events<'a> {
    rest: &'a str,
    /// Lines that wait for the event among which they stood.
    stray: Option<Cow<'a, str>>,
}

impl<'a> Events<'a> {
    fn next_line(&mut self) -> Option<&'a str> {
        let end = match self.rest.as_bytes().first()? {
            // Every other line is empty, for which it does not pay to get a search going.
            b'\n' | b'\r' => Some(0),
            _ => memchr::memchr2(b'\n', b'\r', self.rest.as_bytes()),
        };
        let Some(end) = end else {
            return Some(std::mem::take(&mut self.rest));
        };
        let (line, rest) = self.rest.split_at(end);
        self.rest = rest.strip_prefix("\r\n").or_else(|| rest.get(1..)).unwrap_or_default();
        Some(line)
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Event<'a>;

    fn next(&mut self) -> Option<Event<'a>> {
        if let Some(data) = self.stray.take() {
            return Some(Event { name: "", data, is_stray: true });
        }
        let mut name = "";
        let mut data: Option<Cow<'a, str>> = None;
        let mut comment: Option<Cow<'a, str>> = None;
        loop {
            let line = self.next_line();
            let Some(line) = line.filter(|line| !line.is_empty()) else {
                // Dynamo says in a comment what its `event: error` is about.
                let comment = comment.take();
                let of_error = || (name == "error").then(|| comment.unwrap_or_default());
                if let Some(data) = data.take().or_else(of_error) {
                    return Some(Event { name, data, is_stray: false });
                }
                if let Some(data) = self.stray.take() {
                    return Some(Event { name: "", data, is_stray: true });
                }
                name = "";
                line?;
                continue;
            };
            let (field, value) = match line.strip_prefix("data:") {
                Some(value) => ("data", value),
                None => line.split_once(':').unwrap_or((line, "")),
            };
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => add_line(&mut data, value),
                "event" if value.eq_ignore_ascii_case("error") => name = "error",
                "event" => name = value,
                "error" => {
                    name = "error";
                    add_line(&mut data, value);
                }
                // A comment has no name in front of its colon.
                "" if name == "error" => add_line(&mut comment, value),
                "id" | "retry" | "" => {}
                _ if line.trim().is_empty() => {}
                _ => add_line(&mut self.stray, line),
            }
        }
    }
}

fn add_line<'a>(text: &mut Option<Cow<'a, str>>, line: &'a str) {
    *text = Some(match text.take() {
        None => Cow::Borrowed(line),
        Some(earlier) => {
            // In place: a body of a million data lines must not cost a million copies.
            let mut joined = earlier.into_owned();
            joined.push('\n');
            joined.push_str(line);
            Cow::Owned(joined)
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<(&str, String)> {
        events(text).map(|event| (event.name, event.data.into_owned())).collect()
    }

    #[test]
    fn events_end_at_an_empty_line_whatever_ends_the_lines() {
        for text in
            ["event: a\ndata: 1\n\ndata: 2\n\n", "event: a\r\ndata: 1\r\n\r\ndata:2\r\n\r\n", "event:a\rdata:1\r\rdata: 2\r\r"]
        {
            assert_eq!(all(text), [("a", "1".to_owned()), ("", "2".to_owned())], "{text:?}");
        }
    }

    #[test]
    fn data_lines_of_one_event_are_joined_and_comments_skipped() {
        assert_eq!(all(": ping\n\nretry: 3\ndata: one\n:c\ndata:  two\nid: 7\n\n"), [("", "one\n two".to_owned())]);
    }

    #[test]
    fn an_event_cut_off_by_the_end_is_handed_out() {
        assert_eq!(all("data: 1\n\nevent: x\ndata: {\"a"), [("", "1".to_owned()), ("x", "{\"a".to_owned())]);
        assert_eq!(all("data: 1\n\nevent: x\n"), [("", "1".to_owned())]);
    }

    #[test]
    fn lines_that_are_no_field_are_handed_out_behind_the_event_among_which_they_stood() {
        let text = "data: 1\nx: y\n\n{\"a\":\n 1}\n\n \nerror: {}\n\nlast";
        let found: Vec<_> = events(text).map(|event| (event.name, event.data.into_owned(), event.is_stray)).collect();
        let expected =
            [("", "1", false), ("", "x: y", true), ("", "{\"a\":\n 1}", true), ("error", "{}", false), ("", "last", true)];
        assert_eq!(found, expected.map(|(name, data, is_stray)| (name, data.to_owned(), is_stray)));
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        assert_eq!(all("\u{FEFF}data: 1\n\n"), [("", "1".to_owned())]);
        assert!(looks_like_events("\u{FEFF}\ndata: 1"));
        assert!(!looks_like_events("{\"data\": 1}"));
    }
}
