//! What no reader understands: kept as it came, within bounds, and counted by its kind.
//!
//! An audit must not lose text because a server speaks a dialect that nobody knew when this was written. So whoever puts an answer
//! together from events hands over here what it has no place for.

use crate::call::Unread;
use crate::decode::json::{Json, write_list, write_string};

use super::blobs::without_blobs;
use super::raw_log::Hide;

/// Bytes that are kept of one answer. Enough for a page of text in a dialect that is not known; a stream of 8 MiB that is all
/// unknown must not be stored twice.
const MAX_BYTES: usize = 64 << 10;

/// Pieces that are kept of one answer: each new one is compared with all of them.
const MAX_PIECES: usize = 256;

/// The pieces of one answer that were not understood.
#[derive(Debug, Default, PartialEq)]
pub struct Pieces {
    pieces: Vec<(Unread, String)>,
    kinds: Vec<Unread>,
    bytes: usize,
    is_more: bool,
}

impl Pieces {
    /// Notes a text that was not understood; the same one again changes nothing.
    pub fn note(&mut self, kind: Unread, text: &str) {
        if text.is_empty() || self.pieces.iter().any(|(known, piece)| *known == kind && piece == text) {
            return;
        }
        if !self.kinds.contains(&kind) {
            self.kinds.push(kind);
        }
        let room = if self.pieces.len() < MAX_PIECES { MAX_BYTES.saturating_sub(self.bytes) } else { 0 };
        let kept = text.get(..text.floor_char_boundary(room)).unwrap_or_default();
        self.is_more |= kept.len() < text.len();
        self.bytes += kept.len();
        if !kept.is_empty() {
            self.pieces.push((kind, kept.to_owned()));
        }
    }

    /// Notes a member that has no place in the answer.
    pub fn member(&mut self, name: &str, value: &Json<'_>) {
        if matches!(value, Json::Null) {
            return;
        }
        let mut text = String::new();
        write_string(&mut text, name);
        text.push(':');
        value.write(&mut text);
        self.note(Unread::Member, &text);
    }

    /// The kinds that were found, each once.
    pub fn kinds(&self) -> &[Unread] {
        &self.kinds
    }

    /// Adds the member `unread` (`[{"kind":…,"text":…}]`) to the object at the end of `out`; nothing where all was understood.
    pub fn write(&self, out: &mut String, hide: &mut Hide<'_>) {
        if self.pieces.is_empty() {
            return;
        }
        out.pop();
        out.push_str(if out.ends_with('{') { "\"unread\":" } else { ",\"unread\":" });
        write_list(out, '[', &self.pieces, ']', |out, (kind, text)| {
            out.push_str("{\"kind\":\"");
            out.push_str(kind.label());
            out.push_str("\",\"text\":");
            write_string(out, &(hide.text)(&without_blobs(text)));
            out.push('}');
        });
        if self.is_more {
            out.push_str(",\"unread_cut\":true");
        }
        out.push('}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_is_kept_once_and_all_of_them_within_bounds() {
        let mut pieces = Pieces::default();
        for _ in 0..3 {
            pieces.note(Unread::Line, "x: \"y\"");
            pieces.member("n", &Json::Bool(true));
            pieces.member("n", &Json::Null);
        }
        let mut out = "{\"a\":1}".to_owned();
        pieces.write(&mut out, &mut Hide { may: &|_| false, text: &mut |text| text.into() });
        assert_eq!(out, r#"{"a":1,"unread":[{"kind":"line","text":"x: \"y\""},{"kind":"member","text":"\"n\":true"}]}"#);
        assert_eq!(pieces.kinds(), [Unread::Line, Unread::Member]);

        for number in 0..10_000 {
            pieces.note(Unread::Event, &format!("{number} {}", "大".repeat(number % 700)));
        }
        let mut out = "{}".to_owned();
        pieces.write(&mut out, &mut Hide { may: &|_| false, text: &mut |text| text.into() });
        assert!(out.len() < 2 * MAX_BYTES && out.ends_with("],\"unread_cut\":true}"), "{} bytes", out.len());
        assert_eq!(pieces.kinds(), [Unread::Line, Unread::Member, Unread::Event]);
    }
}
