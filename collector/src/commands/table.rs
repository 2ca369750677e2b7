//! Tables for a terminal, and names that are fit for one.

use std::borrow::Cow;
use std::fmt::Write;

use unicode_width::UnicodeWidthStr;

/// Whether a terminal would obey a character: move the cursor, change colours, turn the direction of writing.
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A name that does nothing to a terminal: users and clients make names up.
pub(super) fn visible(name: &str) -> Cow<'_, str> {
    if name.contains(is_obeyed) { Cow::Owned(name.replace(is_obeyed, "\u{fffd}")) } else { Cow::Borrowed(name) }
}

/// The same of JSON text, where nothing is lost: what JSON leaves as it is becomes an escape. Its own line breaks stay.
pub(super) fn visible_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_obeyed(c) && c != '\n' {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// Lines of aligned cells, the first row as a heading. The first `left` columns stand left, numbers right.
pub(super) fn aligned(rows: &[Vec<String>], left: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width.saturating_sub(cell.width()));
            line.push_str(if column == 0 { "" } else { "  " });
            let (before, after) = if column < left { ("", padding.as_str()) } else { (padding.as_str(), "") };
            line.extend([before, cell, after]);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_each_other_whatever_the_script() {
        let rows = [["name", "calls"], ["王小明", "7"], ["z1", "12345"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&rows, 1), "name    calls\n王小明      7\nz1      12345\n");
    }

    #[test]
    fn what_a_terminal_would_obey_is_replaced() {
        assert_eq!(visible("a\u{1b}[31mb\nc\u{9b}2Jd\u{202e}e"), "a\u{fffd}[31mb\u{fffd}c\u{fffd}2Jd\u{fffd}e");
        assert_eq!(visible_json("{\n\"a\u{9b}2J\u{202e}\": \"王\"}"), "{\n\"a\\u009b2J\\u202e\": \"王\"}");
        assert_eq!(visible("王小明, \"z\""), "王小明, \"z\"");
    }
}
