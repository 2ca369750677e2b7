//! A batch that is too large to be held, taken apart while it arrives.
//!
//! Elements are found by what JSON says of brackets, quotes and separators alone ([`Structure`]): what is between two commas of the
//! outermost array is read later, like any other element. Where that breaks, the batch is held until behind the broken element one is whole
//! that is a log entry, which [`Elements`] looks for; so a broken element costs itself, as in a batch that is read whole. An element that
//! is too large by itself is handed out as its head, and passed over. What is held is bounded by the limit on an element and the
//! size of a part.

use bytes::{Bytes, BytesMut};

use super::Elements;
use super::structure::{Step, Structure};

/// Whole elements of this size are handed out together.
const PART_BYTES: usize = 4 << 20;

/// What is kept of an element that is too large, in bytes.
const HEAD_BYTES: usize = 64 << 10;

/// What is kept of the end of one that is passed over: where it turns out to be broken, the next element may have begun there.
const TAIL_BYTES: usize = 1 << 10;

/// How often what came may be searched for whole elements behind broken ones, on an average: each time it is read a few times.
const MAX_SEARCHES: usize = 4;

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
    structure: Structure,
    state: State,
    /// Bytes that came, and that were looked at in search of whole elements behind broken ones.
    received: usize,
    searched: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Only blanks so far.
    Before,
    /// Among elements; or in an object, which is its only element.
    Inside,
    /// In an element that is too large.
    PassingOver,
    /// Behind a bracket that ends the array, unless more elements follow.
    Ended,
    /// Behind something that is no JSON. The buffer begins with whole elements and the broken one, or where `is_passed` somewhere in that.
    Broken {
        /// So many bytes have to be there before it is looked for a whole element again.
        next_try: usize,
        is_passed: bool,
    },
    /// Behind the end.
    After,
}

impl Splitter {
    /// For elements of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        let (buffer, structure) = (BytesMut::new(), Structure::default());
        Self { limit, buffer, seen: 0, boundary: 0, structure, state: State::Before, received: 0, searched: 0 }
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
        self.received = self.received.saturating_add(bytes.len());
        if self.state == State::Before && !self.begin()? {
            return Some(Vec::new());
        }
        let mut parts = Vec::new();
        loop {
            self.scan(&mut parts);
            if !self.mend(&mut parts) {
                break;
            }
        }
        match self.state {
            State::PassingOver => self.drop_front(self.seen.saturating_sub(TAIL_BYTES.min(self.limit / 4))),
            State::Inside if self.buffer.len() - self.boundary > self.limit => {
                parts.extend(self.take_elements());
                parts.push(self.head());
                self.drop_front(self.seen);
                self.state = State::PassingOver;
            }
            State::Broken { is_passed, .. } if self.buffer.len() > self.limit => {
                if !is_passed {
                    parts.push(self.head());
                }
                // An entry that has begun may still become whole.
                self.drop_front(self.buffer.len() - self.limit / 2);
                self.state = State::Broken { next_try: self.limit, is_passed: true };
            }
            _ => {}
        }
        Some(parts)
    }

    /// What is left at the end.
    pub fn finish(mut self) -> Option<Part> {
        match self.state {
            State::PassingOver => return None,
            State::Broken { is_passed: true, .. } => {
                self.readable();
                let text = std::str::from_utf8(&self.buffer).unwrap_or_default();
                let behind = behind_first(text)?;
                self.drop_front(behind);
            }
            State::Ended => self.buffer.truncate(self.boundary),
            _ => {}
        }
        (!self.buffer.is_empty()).then(|| Part::Elements(self.buffer.split().freeze()))
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
            Some(b'[') => self.drop_front(at + 1),
            // As if it stood in an array whose end never comes.
            Some(b'{') => self.drop_front(at),
            Some(_) => return None,
        }
        self.state = State::Inside;
        Some(true)
    }

    /// Looks at what came, until the end of it or of the array, or something that is no JSON.
    fn scan(&mut self, parts: &mut Vec<Part>) {
        while let (State::Inside | State::PassingOver | State::Ended, Some(byte)) =
            (self.state, self.buffer.get(self.seen).copied())
        {
            self.seen += 1;
            if self.state == State::Ended {
                match byte {
                    b',' | b'}' | b']' => self.broken(),
                    byte if byte.is_ascii_whitespace() => {}
                    _ => {
                        self.buffer.truncate(self.boundary);
                        self.state = State::After;
                    }
                }
                continue;
            }
            match self.structure.pass(byte) {
                Step::Within => {}
                Step::Comma if self.state == State::PassingOver => {
                    self.drop_front(self.seen);
                    self.state = State::Inside;
                }
                Step::Comma => {
                    self.boundary = self.seen;
                    if self.boundary >= PART_BYTES {
                        parts.extend(self.take_elements());
                    }
                }
                Step::End => {
                    if self.state == State::PassingOver {
                        self.drop_front(self.seen);
                    }
                    self.boundary = self.seen;
                    self.state = State::Ended;
                }
                Step::Broken => self.broken(),
            }
        }
    }

    fn broken(&mut self) {
        self.state = State::Broken { next_try: 0, is_passed: self.state == State::PassingOver };
    }

    /// Looks for whole elements behind a broken one, where more came than the last time; `true` when it found some.
    fn mend(&mut self, parts: &mut Vec<Part>) -> bool {
        let State::Broken { next_try, is_passed } = self.state else { return false };
        if self.buffer.len() < next_try || self.searched / MAX_SEARCHES > self.received {
            return false;
        }
        self.searched = self.searched.saturating_add(self.buffer.len());
        self.readable();
        let readable = std::str::from_utf8(&self.buffer).unwrap_or_else(|error| {
            // The rest of its last character is still to come.
            std::str::from_utf8(self.buffer.get(..error.valid_up_to()).unwrap_or_default()).unwrap_or_default()
        });
        let first = if is_passed { behind_first(readable) } else { Some(0) };
        let text = readable.get(first.unwrap_or(readable.len())..).unwrap_or_default();
        let whole = behind_last(text);
        if first.is_none() || whole == 0 && !is_passed {
            // Twice as much the next time: all tries together cost as much as the last one.
            self.state = State::Broken { next_try: (self.buffer.len() * 2).min(self.limit), is_passed };
            return false;
        }
        self.drop_front(first.unwrap_or(0));
        self.boundary = whole;
        if whole > 0 {
            parts.extend(self.take_elements());
        }
        (self.seen, self.boundary, self.structure, self.state) = (0, 0, Structure::default(), State::Inside);
        true
    }

    /// Makes the buffer text, as whoever reads elements does later; but for a character that has not come to its end.
    fn readable(&mut self) {
        let Err(error) = std::str::from_utf8(&self.buffer) else { return };
        if error.error_len().is_none() {
            return;
        }
        let mut text = BytesMut::with_capacity(self.buffer.len());
        let mut chunks = self.buffer.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.extend_from_slice(chunk.valid().as_bytes());
            let is_cut = std::str::from_utf8(chunk.invalid()).is_err_and(|error| error.error_len().is_none());
            if is_cut && chunks.peek().is_none() {
                text.extend_from_slice(chunk.invalid());
            } else if !chunk.invalid().is_empty() {
                text.extend_from_slice("\u{FFFD}".as_bytes());
            }
        }
        drop(chunks);
        self.buffer = text;
    }

    fn head(&self) -> Part {
        Part::Head(Bytes::copy_from_slice(self.buffer.get(..HEAD_BYTES).unwrap_or(&self.buffer)))
    }

    /// Hands out what is before the boundary, which is behind a comma.
    fn take_elements(&mut self) -> Option<Part> {
        let mut elements = self.buffer.split_to(self.boundary);
        self.seen = self.seen.saturating_sub(self.boundary);
        self.boundary = 0;
        // Blanks may stand behind the comma.
        let comma = elements.iter().rposition(|byte| *byte == b',')?;
        elements.truncate(comma + 1);
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

/// Where in `text`, which begins somewhere in an element, the next one begins that is a log entry.
fn behind_first(text: &str) -> Option<usize> {
    let mut elements = Elements::inside(text);
    let comma = elements.end_of_broken()?;
    let behind = elements.rest.get(comma + 1..)?.trim_start();
    Some(text.len() - behind.len())
}

/// Where in `text` the last element begins, which may not have come to its end.
fn behind_last(text: &str) -> usize {
    let mut elements = Elements::inside(text);
    let mut begin = 0;
    while elements.next().is_some() && !matches!(elements.rest, "" | "]") {
        begin = text.len() - elements.rest.len();
    }
    begin
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

    fn entry(id: &str) -> String {
        format!(r#"{{"request":{{"id":"{id}","tries":[{{"n":1}},{{"n":2}}]}},"x":[1,{{"y":"}},{{\"request\":1"}}]}}"#)
    }

    /// Ways in which an element is no JSON, each a whole element by the eyes of a person.
    fn broken_elements() -> Vec<String> {
        let good = entry("broken");
        let without_last = good[..good.len() - 1].to_owned();
        vec![
            without_last.clone(),
            without_last[..without_last.len() - 1].to_owned(),
            good.replacen("]}", "]", 1),
            good.replacen("\"}]", "\"}", 1),
            format!("{good}}}"),
            format!("{good}]"),
            format!("{good}]]}}}}"),
            good.replacen("broken\"", "broken", 1),
            good.replacen("\"broken", "broken", 1),
            good.replacen("\"id\"", "\"id", 1),
            good.replacen("broken", "bro\0ken", 1),
            good.replacen(':', "\0", 1),
            good.replacen(':', "", 1),
            good.replacen(',', ",,", 1),
            format!("{good}{good}"),
            "{".to_owned(),
            "nonsense".to_owned(),
            "\"".to_owned(),
        ]
    }

    #[test]
    fn a_broken_element_costs_itself_wherever_it_stands() {
        let good: Vec<String> = (0..4).map(|n| entry(&n.to_string())).collect();
        let [first, second, third, fourth] = good.as_slice() else { panic!() };
        for broken in broken_elements() {
            for batch in [
                format!("[{broken},{first},{second},{third},{fourth}]"),
                format!("[{first},{second} , {broken},\n{third},{fourth}]"),
                format!("[{first},{broken},{broken},{second},{third},{broken},{fourth}]"),
                format!("[{first},{second},{third},{fourth},{broken}]"),
            ] {
                for piece in [1, 2, 7, 50, 100_000] {
                    let elements = split(&batch, 1_000_000, piece).unwrap();
                    let whole: Vec<&String> = elements.iter().filter(|element| good.contains(element)).collect();
                    assert_eq!(whole, [first, second, third, fourth], "{broken} in pieces of {piece}: {elements:#?}");
                    // Nothing of the rest is lost: it is there to be put on record.
                    assert!(elements.len() > 4, "{broken}: {elements:#?}");
                }
            }
        }
    }

    #[test]
    fn a_broken_element_that_is_too_large_costs_itself() {
        let good: Vec<String> = (0..3).map(|n| entry(&n.to_string())).collect();
        let large = format!(r#"{{"request":{{"body":"{}""#, "x,{".repeat(1_000));
        for broken in [
            format!("{large}}}"),
            format!("{large}}}}}}}"),
            large.replacen("\"x", "\"x\0\"", 1),
            large[..large.len() - 1].to_owned(),
        ] {
            let batch = format!("[{},{broken},{},{}]", good[0], good[1], good[2]);
            for piece in [1, 7, 64, 100_000] {
                let elements = split(&batch, 600, piece).unwrap();
                let whole: Vec<&String> = elements.iter().filter(|element| good.contains(element)).collect();
                assert_eq!(whole, [&good[0], &good[1], &good[2]], "{} in pieces of {piece}: {elements:#?}", &broken[..40]);
            }
        }
    }

    #[test]
    fn searching_for_what_is_whole_takes_no_longer_than_reading_it_some_times() {
        // Between entries objects that seem to reach to the end.
        let batch = format!("[{}]", format!(r#"{},x,{{"a":[,{{"a":[,{{"a":["#, entry("1")).repeat(40_000));
        let mut splitter = Splitter::new(1 << 20);
        for piece in batch.as_bytes().chunks(65_536) {
            splitter.push(piece).unwrap();
        }
        assert!(splitter.searched <= (MAX_SEARCHES + 2) * splitter.received, "{} of {}", splitter.searched, splitter.received);
    }

    #[test]
    fn characters_that_pieces_cut_and_bytes_that_are_none_cost_nothing() {
        let good = [entry("绝密"), entry("é")];
        let batch = format!("[{},{{,{}]", good[0], good[1]);
        for piece in 1..20 {
            let elements = split(&batch, 1_000_000, piece).unwrap();
            assert!(good.iter().all(|good| elements.contains(good)), "{piece}: {elements:#?}");
        }
        let mut bytes = batch.into_bytes();
        bytes.splice(1..1, b"{\"request\":{\"id\":\"\xff\"}},{\xff,".iter().copied());
        let mut splitter = Splitter::new(1_000_000);
        let mut found = String::new();
        for piece in bytes.chunks(3) {
            for part in splitter.push(piece).unwrap() {
                let Part::Elements(bytes) = part else { panic!() };
                found.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
        let Some(Part::Elements(rest)) = splitter.finish() else { panic!() };
        found.push_str(&String::from_utf8_lossy(&rest));
        assert!(good.iter().all(|good| found.contains(good.as_str())), "{found}");
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
