//! How far a place in an array is, by what JSON says of brackets, quotes and separators; numbers and words are taken as they come.
//!
//! It follows a text byte by byte, and notices what cannot be JSON at the first byte that tells: a brace that is missing shows with the
//! object that begins where a name should stand, a quote that is missing with the word behind the next one.

/// Deeper nesting is taken for broken: no reader takes it, and what is open is held.
const MAX_DEPTH: usize = 4_096;

/// What a byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Part of an element, or a blank.
    Within,
    /// The comma behind an element.
    Comma,
    /// The bracket that ends the array.
    End,
    /// Something that cannot stand here.
    Broken,
}

/// What may stand next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Next {
    #[default]
    ValueOrEnd,
    Value,
    NameOrEnd,
    Name,
    Colon,
    Separator,
}

/// The structure of what stands behind the opening bracket of an array.
#[derive(Debug, Default)]
pub(super) struct Structure {
    /// Brackets that are open, but for the array's own.
    open: Vec<u8>,
    next: Next,
    in_string: bool,
    is_escaped: bool,
    in_word: bool,
}

impl Structure {
    /// Goes one byte further.
    pub(super) fn pass(&mut self, byte: u8) -> Step {
        if self.in_string {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Step::Within;
        }
        let was_in_word = std::mem::take(&mut self.in_word);
        let in_object = self.open.last() == Some(&b'{');
        match (byte, self.next) {
            (b' ' | b'\n' | b'\r' | b'\t', _) => Step::Within,
            (b'"', Next::Name | Next::NameOrEnd) => self.string(Next::Colon),
            (b'"', Next::Value | Next::ValueOrEnd) => self.string(Next::Separator),
            (b':', Next::Colon) => self.go_on(Next::Value),
            (b'{', Next::Value | Next::ValueOrEnd) => self.open(byte, Next::NameOrEnd),
            (b'[', Next::Value | Next::ValueOrEnd) => self.open(byte, Next::ValueOrEnd),
            (b'}', Next::Separator | Next::NameOrEnd) if in_object => self.close(),
            (b']', Next::Separator | Next::ValueOrEnd) if !in_object => self.close(),
            (b',', Next::Separator) if in_object => self.go_on(Next::Name),
            (b',', Next::Separator) => {
                self.next = Next::Value;
                if self.open.is_empty() { Step::Comma } else { Step::Within }
            }
            (b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'+' | b'-' | b'.', next)
                if was_in_word || matches!(next, Next::Value | Next::ValueOrEnd) =>
            {
                self.in_word = true;
                self.go_on(Next::Separator)
            }
            _ => Step::Broken,
        }
    }

    fn go_on(&mut self, next: Next) -> Step {
        self.next = next;
        Step::Within
    }

    fn string(&mut self, next: Next) -> Step {
        self.in_string = true;
        self.go_on(next)
    }

    fn open(&mut self, bracket: u8, next: Next) -> Step {
        if self.open.len() >= MAX_DEPTH {
            return Step::Broken;
        }
        self.open.push(bracket);
        self.go_on(next)
    }

    fn close(&mut self) -> Step {
        self.next = Next::Separator;
        if self.open.pop().is_some() { Step::Within } else { Step::End }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commas between elements that were passed, and what ended the walk.
    fn walk(text: &str) -> (usize, Step) {
        let (mut structure, mut commas) = (Structure::default(), 0);
        for byte in text.bytes() {
            match structure.pass(byte) {
                Step::Within => {}
                Step::Comma => commas += 1,
                step => return (commas, step),
            }
        }
        (commas, Step::Within)
    }

    #[test]
    fn what_is_json_is_passed_to_its_end() {
        for (text, commas) in [
            ("]", 0),
            (r#"{"a":"],{\"}"} , [1,2],"x,y" ,{"b":[{},{"c":"\\"}]}, 5 ]"#, 4),
            ("[[],[ ]] ,\t-1.5e+3,true,null]", 3),
            (r#"{"":{"a":[]},"b":{}}]"#, 0),
        ] {
            assert_eq!(walk(text), (commas, Step::End), "{text}");
            let array: Result<serde_json::Value, _> = serde_json::from_str(&format!("[{text}"));
            assert!(array.is_ok(), "{text}");
        }
        assert_eq!(walk(r#"{"a":"b"#), (0, Step::Within));
    }

    #[test]
    fn what_is_no_json_is_noticed() {
        for text in [
            r#"{"a":{"b":1},{"a""#,
            r#"{"a":1}},"#,
            r#"{"a":1]"#,
            r#"[1}"#,
            r#"{"a":"b},{"c"#,
            r#"{"a" 1"#,
            r#"{"a":1,}"#,
            "[1,]",
            "1 2",
            "{1",
            "\0",
            ",",
            "{\"a\":\0",
        ] {
            assert_eq!(walk(text).1, Step::Broken, "{text}");
        }
        assert_eq!(walk(&"[".repeat(5_000)).1, Step::Broken);
    }
}
