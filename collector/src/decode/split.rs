//! A batch that is too large to be held, taken apart while it arrives.
//!
//! Elements are found by brackets and quotes alone: what is between two commas of the outermost array is read later, like any other
//! element. An element that is too large by itself is handed out as its head, and passed over. What is held is bounded by the limit on
//! an element and the size of a part.

use bytes::{Bytes, BytesMut};

use super::Brackets;

/// Whole elements of this size are handed out together.
const PART_BYTES: usize = 4 << 20;

/// What is kept of an element that is too large, in bytes.
const HEAD_BYTES: usize = 64 << 10;

/// A part of the batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// Whole elements, and behind the last one the end of the array.
    Elements(Bytes),
    /// The head of an element that is too large.
    Head(Bytes),
}

/// Takes a batch apart.
#[derive(Debug)]
pub struct Splitter {
    limit: usize,
    buffer: BytesMut,
    /// Bytes of the buffer that were looked at.
    seen: usize,
    /// Behind the last comma between elements in the buffer.
    boundary: usize,
    brackets: Brackets,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Only blanks so far.
    Before,
    /// Among elements; or in an object, which is its only element.
    Inside,
    /// In an element that is too large.
    PassingOver,
    /// Behind the end.
    After,
}

impl Splitter {
    /// For elements of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        let (buffer, brackets) = (BytesMut::new(), Brackets::default());
        Self { limit, buffer, seen: 0, boundary: 0, brackets, state: State::Before }
    }

    /// Bytes that are held.
    pub fn held(&self) -> usize {
        self.buffer.len()
    }

    /// Takes more of the batch; returns what became whole. `None` when it is neither an object nor an array.
    pub fn push(&mut self, bytes: &[u8]) -> Option<Vec<Part>> {
        if self.state == State::After {
            return Some(Vec::new());
        }
        self.buffer.extend_from_slice(bytes);
        if self.state == State::Before && !self.begin()? {
            return Some(Vec::new());
        }
        let mut parts = Vec::new();
        while let Some(byte) = self.buffer.get(self.seen).copied() {
            self.seen += 1;
            if !self.brackets.pass(byte) {
                continue;
            }
            match (self.brackets.depth, byte) {
                (1, b',') if self.state == State::PassingOver => {
                    self.drop_front(self.seen);
                    self.state = State::Inside;
                }
                (1, b',') => {
                    self.boundary = self.seen;
                    if self.boundary >= PART_BYTES {
                        parts.extend(self.take_elements());
                    }
                }
                (0, _) => {
                    self.buffer.truncate(self.seen);
                    if self.state == State::PassingOver {
                        self.drop_front(self.seen);
                    }
                    self.state = State::After;
                    break;
                }
                _ => {}
            }
        }
        if self.state == State::PassingOver {
            self.drop_front(self.seen);
        } else if self.state == State::Inside && self.buffer.len() - self.boundary > self.limit {
            parts.extend(self.take_elements());
            parts.push(Part::Head(Bytes::copy_from_slice(self.buffer.get(..HEAD_BYTES).unwrap_or(&self.buffer))));
            self.drop_front(self.seen);
            self.state = State::PassingOver;
        }
        Some(parts)
    }

    /// What is left at the end.
    pub fn finish(mut self) -> Option<Part> {
        (self.state != State::PassingOver && !self.buffer.is_empty()).then(|| Part::Elements(self.buffer.split().freeze()))
    }

    /// Finds the beginning; `false` when it has not come yet, `None` when it is none.
    fn begin(&mut self) -> Option<bool> {
        let mark: &[u8] = b"\xEF\xBB\xBF";
        if self.buffer.len() < mark.len() && mark.starts_with(&self.buffer) {
            return Some(false);
        }
        let marked = if self.buffer.starts_with(mark) { mark.len() } else { 0 };
        let blanks = self.buffer.iter().skip(marked).take_while(|byte| byte.is_ascii_whitespace()).count();
        let at = marked + blanks;
        match self.buffer.get(at) {
            None if self.buffer.len() > self.limit => return None,
            None => return Some(false),
            Some(b'[') => {
                self.drop_front(at + 1);
                self.brackets.pass(b'[');
            }
            // As if it stood in an array whose end never comes.
            Some(b'{') => {
                self.drop_front(at);
                self.brackets.pass(b'[');
            }
            Some(_) => return None,
        }
        self.state = State::Inside;
        Some(true)
    }

    fn take_elements(&mut self) -> Option<Part> {
        let mut elements = self.buffer.split_to(self.boundary);
        self.seen -= self.boundary;
        self.boundary = 0;
        *elements.last_mut()? = b']';
        Some(Part::Elements(elements.freeze()))
    }

    fn drop_front(&mut self, count: usize) {
        // What is left is copied where that is less than to hold all of the old buffer.
        let rest = self.buffer.split_off(count);
        self.buffer = rest;
        self.seen = self.seen.saturating_sub(count);
        self.boundary = self.boundary.saturating_sub(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::Elements;

    /// The elements of `batch`, sent in pieces of some size; a head is marked by `~`.
    fn split(batch: &str, limit: usize, piece: usize) -> Option<Vec<String>> {
        let mut splitter = Splitter::new(limit);
        let mut parts = Vec::new();
        for piece in batch.as_bytes().chunks(piece) {
            parts.extend(splitter.push(piece)?);
            assert!(splitter.held() <= limit + PART_BYTES + piece.len());
        }
        parts.extend(splitter.finish());
        let mut elements = Vec::new();
        for part in parts {
            match part {
                Part::Elements(bytes) => {
                    elements.extend(Elements::inside(std::str::from_utf8(&bytes).unwrap()).map(str::to_owned));
                }
                Part::Head(bytes) => elements.push(format!("~{}", String::from_utf8(bytes.to_vec()).unwrap())),
            }
        }
        Some(elements)
    }

    #[test]
    fn elements_come_out_whole_wherever_the_pieces_end() {
        let batch = r#" [ {"a":"],{\"}"} , [1,2],"x,y" ,{"b":[{},{"c":"\\"}]}, 5 ] rest"#;
        let expected = [r#"{"a":"],{\"}"}"#, "[1,2]", r#""x,y""#, r#"{"b":[{},{"c":"\\"}]}"#, "5"];
        for piece in 1..batch.len() {
            assert_eq!(split(batch, 1000, piece).unwrap(), expected, "{piece}");
        }
        assert_eq!(split("\u{FEFF}[]", 1000, 1).unwrap(), Vec::<String>::new());
        assert_eq!(split("[", 1000, 1).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_element_that_is_too_large_costs_only_itself() {
        let large = format!(r#"{{"a":"{}","b":[1,2]}}"#, "x,".repeat(100));
        let batch = format!(r#"[{{"n":1}},{large},{{"n":2}},{large},{large},{{"n":3}}]"#);
        for piece in [1, 7, 64, 10_000] {
            let elements = split(&batch, 50, piece).unwrap();
            let (heads, whole): (Vec<_>, Vec<_>) = elements.into_iter().partition(|element| element.starts_with('~'));
            if piece < 64 {
                assert_eq!(whole, [r#"{"n":1}"#, r#"{"n":2}"#, r#"{"n":3}"#], "{piece}");
                assert!(heads.len() == 3 && heads.iter().all(|head| large.starts_with(&head[1..])), "{heads:?}");
            }
        }
        // The last element, and the only one.
        assert_eq!(split(&format!("[1,{large}]"), 50, 10).unwrap().len(), 2);
        let object = split(&large, 50, 10).unwrap();
        assert!(object.len() == 1 && large.starts_with(&object[0][1..]), "{object:?}");
    }

    #[test]
    fn a_batch_without_end_is_handed_out_in_parts() {
        let element = format!(r#"{{"a":"{}"}}"#, "x".repeat(100_000));
        let batch = format!("[{}]", vec![element.as_str(); 300].join(","));
        let mut splitter = Splitter::new(1 << 20);
        let mut sizes = Vec::new();
        for piece in batch.as_bytes().chunks(65_536) {
            for part in splitter.push(piece).unwrap() {
                let Part::Elements(bytes) = part else { panic!("{part:?}") };
                sizes.push(bytes.len());
            }
        }
        assert!(sizes.len() > 5 && sizes.iter().all(|size| *size < PART_BYTES + 200_000), "{sizes:?}");
        assert_eq!(split(&batch, 1 << 20, 65_536).unwrap().len(), 300);
    }

    #[test]
    fn what_is_no_batch_is_said_at_once() {
        assert_eq!(split("nonsense", 1000, 3), None);
        assert_eq!(split(&" ".repeat(2000), 1000, 100), None);
    }
}
