//! `replay`: recorded entries through the same pipeline.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result};
use log::warn;

use crate::config::ReplaySettings;
use crate::decode::json::Json;
use crate::pipeline::Pipeline;
use crate::store::Outcome;

/// Bytes of entries that are sent together.
const CHUNK_BYTES: usize = 8 << 20;

/// Longest line, and longest entry that is spread over lines. What is longer is no entry: Kong's are bounded by what a batch may hold.
const MAX_ENTRY_BYTES: usize = 256 << 20;

/// Damaged places of a file that are named each.
const MAX_NAMED: usize = 100;

/// What became of the files.
#[derive(Debug, Default)]
pub struct Replayed {
    /// What became of the entries.
    pub outcome: Outcome,
    /// Damaged places that were passed over: lines, or several of them where it cannot be told where one begins.
    pub damaged: usize,
}

/// Sends every file. What is damaged is named by its lines, never by its text, and costs only itself.
pub async fn run(settings: &ReplaySettings) -> Result<Replayed> {
    let (pipeline, writers) = super::pipeline(&settings.database, &settings.pipeline).await?;
    let mut replayed = Replayed::default();
    for file in &settings.files {
        let input: Box<dyn Read + Send> = if file == Path::new("-") {
            Box::new(std::io::stdin())
        } else {
            Box::new(std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?)
        };
        let name = file.display().to_string();
        let (outcome, damaged) =
            replay(&pipeline, BufReader::new(input), &name).await.with_context(|| format!("cannot replay {name}"))?;
        replayed.outcome += outcome;
        replayed.damaged += damaged;
    }
    drop(pipeline);
    writers.finish().await;
    Ok(replayed)
}

async fn replay(pipeline: &Pipeline, mut input: impl BufRead, name: &str) -> Result<(Outcome, usize)> {
    let mut outcome = Outcome::default();
    let mut lines = Lines::default();
    let mut chunk = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut found = Vec::new();
        if input.by_ref().take(MAX_ENTRY_BYTES as u64).read_until(b'\n', &mut line)? == 0 {
            lines.end(&mut found);
        } else {
            if !line.ends_with(b"\n") && line.len() == MAX_ENTRY_BYTES {
                skip_line(&mut input)?;
            }
            lines.push(&line, &mut found);
        }
        for document in &found {
            chunk.push(if chunk.is_empty() { b'[' } else { b',' });
            chunk.extend_from_slice(document);
        }
        if chunk.len() > CHUNK_BYTES || line.is_empty() && !chunk.is_empty() {
            chunk.push(b']');
            outcome += pipeline.take(std::mem::take(&mut chunk).into()).await?;
        }
        if line.is_empty() {
            break;
        }
    }
    for (first, last) in lines.damaged.iter().take(MAX_NAMED) {
        match last - first {
            0 => warn!("{name}, line {first}: not JSON, passed over"),
            _ => warn!("{name}, lines {first} to {last}: not JSON, passed over"),
        }
    }
    if lines.damaged.len() > MAX_NAMED {
        warn!("{name}: {} more damaged places were passed over", lines.damaged.len() - MAX_NAMED);
    }
    Ok((outcome, lines.damaged.len()))
}

/// Reads on to the end of a line without keeping it.
fn skip_line(input: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        let end = memchr::memchr(b'\n', buffer);
        let length = end.map_or(buffer.len(), |at| at + 1);
        input.consume(length);
        if end.is_some() || length == 0 {
            return Ok(());
        }
    }
}

/// Takes lines, and gives the JSON documents that they hold: one a line, spread over lines, or elements of an array, on lines
/// of their own or spread.
///
/// No string of JSON holds a line break, so a line that ends inside one is damaged, and so is what began before it. A document that
/// begins at the margin ends whatever was not complete, because the parts of one that is spread are indented (those of one
/// without any indents excepted). Each line is read a bounded number of times.
#[derive(Default)]
struct Lines {
    /// The number of the last line.
    number: usize,
    /// Lines of a document that is not complete.
    pending: Vec<u8>,
    /// The number of its first line.
    first: usize,
    /// Brackets that are open at its end.
    open: usize,
    /// Parts of it stand at the margin.
    is_flat: bool,
    /// What was read last was damaged: what follows may be the rest of it, unless it looks like an entry.
    after_damage: bool,
    /// First and last lines of what is no JSON.
    damaged: Vec<(usize, usize)>,
}

impl Lines {
    fn push(&mut self, line: &[u8], found: &mut Vec<Vec<u8>>) {
        self.number += 1;
        let text = line.strip_prefix("\u{FEFF}".as_bytes()).unwrap_or(line);
        let at_margin = text.first().is_some_and(|byte| !byte.is_ascii_whitespace());
        let text = text.trim_ascii();
        if text.is_empty() {
            return;
        }
        let begins = at_margin && text.starts_with(b"{");
        if (self.pending.is_empty() || begins)
            && let Some(alone) = documents(text)
        {
            self.give_up(self.number - 1, found);
            return self.take(alone, self.number, at_margin, found);
        }
        if begins && !self.is_flat {
            self.give_up(self.number - 1, found);
        }
        if self.pending.is_empty() {
            if matches!(text, b"[" | b"]" | b",") {
                return;
            }
            self.first = self.number;
        } else if at_margin && !matches!(text.first(), Some(b'}' | b']')) {
            self.is_flat = true;
        }
        let is_possible = self.count_brackets(text) && self.pending.len() + text.len() <= MAX_ENTRY_BYTES;
        self.pending.extend_from_slice(text);
        self.pending.push(b'\n');
        if !is_possible {
            self.give_up(self.number, found);
        } else if self.open == 0 {
            match documents(self.pending.trim_ascii()) {
                Some(complete) => {
                    self.clear();
                    self.take(complete, self.first, at_margin, found);
                }
                None => self.give_up(self.number, found),
            }
        }
    }

    /// Nothing follows.
    fn end(&mut self, found: &mut Vec<Vec<u8>>) {
        self.give_up(self.number, found);
    }

    /// Takes documents that are whole. Behind something damaged they may be parts of it.
    fn take(&mut self, documents: Vec<Vec<u8>>, first: usize, at_margin: bool, found: &mut Vec<Vec<u8>>) {
        if self.after_damage && !at_margin && !documents.iter().any(|document| is_entry(document)) {
            return self.note_damage(first, self.number);
        }
        self.after_damage = false;
        found.extend(documents);
    }

    /// Takes from what is pending the entries that are whole; the rest is damaged.
    fn give_up(&mut self, last: usize, found: &mut Vec<Vec<u8>>) {
        if self.pending.is_empty() {
            return;
        }
        let text = crate::decode::text(&self.pending);
        let text = text.trim();
        let array = if text.starts_with('[') { text.to_owned() } else { format!("[{text}]") };
        let elements = crate::decode::elements(&array).into_iter().flatten();
        found.extend(elements.map(|element| element.as_bytes().to_vec()).filter(|element| is_entry(element)));
        self.clear();
        self.note_damage(self.first, last);
    }

    fn clear(&mut self) {
        self.pending.clear();
        self.open = 0;
        self.is_flat = false;
    }

    fn note_damage(&mut self, first: usize, last: usize) {
        match self.damaged.last_mut() {
            Some(before) if self.after_damage && before.1 + 1 == first => before.1 = last,
            _ => self.damaged.push((first, last)),
        }
        self.after_damage = true;
    }

    /// Counts the brackets of a line; `false` where it ends inside a string or closes what was never opened.
    fn count_brackets(&mut self, text: &[u8]) -> bool {
        let (mut in_string, mut is_escaped) = (false, false);
        for byte in text {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' if in_string => is_escaped = true,
                b'"' => in_string = !in_string,
                b'{' | b'[' if !in_string => self.open += 1,
                b'}' | b']' if !in_string => match self.open.checked_sub(1) {
                    Some(open) => self.open = open,
                    None => return false,
                },
                _ => {}
            }
        }
        !in_string
    }
}

/// The documents of a text: itself, or the elements of an array. An element may have its array's brackets and commas around it.
fn documents(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let text = crate::decode::text(text);
    let text = text.trim();
    if text.starts_with('[') && is_json(text) {
        return Some(crate::decode::elements(text).ok()?.map(|element| element.as_bytes().to_vec()).collect());
    }
    let without_comma = text.strip_suffix(',').unwrap_or(text);
    [Some(without_comma), without_comma.strip_prefix('['), without_comma.strip_suffix(']')]
        .into_iter()
        .flatten()
        .find(|text| is_json(text))
        .map(|text| vec![text.as_bytes().to_vec()])
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// Whether a text is JSON and looks like an entry of Kong's.
fn is_entry(text: &[u8]) -> bool {
    let text = crate::decode::text(text);
    Json::parse(&text).is_ok_and(|json| json.get("request").is_some() || json.get("started_at").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a file holds: identities of entries, and lines that are damaged.
    fn read(file: &str) -> (Vec<String>, Vec<(usize, usize)>) {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        file.split_inclusive('\n').for_each(|line| lines.push(line.as_bytes(), &mut found));
        lines.end(&mut found);
        let id = |text: &Vec<u8>| serde_json::from_slice::<serde_json::Value>(text).unwrap()["request"]["id"].to_string();
        // Parts of what is damaged may pass for documents; they end on record as rejected.
        (found.iter().filter(|text| is_entry(text)).map(id).collect(), lines.damaged)
    }

    fn entry(id: u32) -> String {
        format!(r#"{{"started_at":1,"tries":[{{"ip":"a"}},{{"ip":"}}b"}}],"request":{{"id":{id},"uri":"/a\"{{"}}}}"#)
    }

    fn spread(id: u32, indent: &[u8]) -> String {
        let value: serde_json::Value = serde_json::from_str(&entry(id)).unwrap();
        let mut out = Vec::new();
        let format = serde_json::ser::PrettyFormatter::with_indent(indent);
        serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut out, format)).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn ids(ids: &[u32]) -> Vec<String> {
        ids.iter().map(u32::to_string).collect()
    }

    #[test]
    fn entries_stand_on_lines_in_arrays_and_spread() {
        let [one, two, three] = [1, 2, 3].map(entry);
        let wide = [1, 2, 3].map(|id| spread(id, b"  "));
        let flat = [1, 2, 3].map(|id| spread(id, b""));
        let deeper = |text: &String| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
        for file in [
            format!("{one}\n{two}\r\n\n{three}"),
            format!("\u{FEFF}{one}\n  {two}\n[{three}]\n[]\n"),
            format!("[{one},{two},{three}]"),
            format!("[\n{one},\n{two}\n,\n{three}\n]\n"),
            format!("[{one},\n {two},\n {three}]\n"),
            format!("{}\n{}\n{three}\n", wide[0], wide[1]),
            format!("[\n{},\n{},\n{}\n]\n", deeper(&wide[0]).trim_end(), deeper(&wide[1]).trim_end(), wide[2]),
            format!("[{},{},{}]\n", wide[0], wide[1], wide[2]),
            flat.join("\n"),
        ] {
            assert_eq!(read(&file), (ids(&[1, 2, 3]), vec![]), "{file}");
        }
    }

    #[test]
    fn what_is_damaged_is_named_by_its_lines_and_costs_itself_alone() {
        let [one, two, three] = [1, 2, 3].map(entry);
        let cut = |at: usize| two.get(..two.len() - at).unwrap().to_owned();
        for damaged in [
            cut(1),
            cut(2),
            cut(5),
            cut(40),
            cut(two.len() - 1),
            "not json".to_owned(),
            format!("{two}}}"),
            "{\"a\":1 2}".to_owned(),
        ] {
            assert_eq!(read(&format!("{damaged}\n{one}\n{three}\n")), (ids(&[1, 3]), vec![(1, 1)]), "{damaged}");
            assert_eq!(read(&format!("{one}\n{damaged}\n{three}\n")), (ids(&[1, 3]), vec![(2, 2)]), "{damaged}");
            assert_eq!(read(&format!("{one}\n{three}\n{damaged}")), (ids(&[1, 3]), vec![(3, 3)]), "{damaged}");
            let (found, lines) = read(&format!("[\n{one},\n{damaged},\n{three}\n]\n"));
            assert_eq!((found, lines), (ids(&[1, 3]), vec![(3, 3)]), "{damaged}");
            // Where a broken element ends inside a line is known by its bracket alone.
            if damaged.ends_with('}') {
                assert_eq!(read(&format!("[{one},{damaged},{three}]\n")).0, ids(&[1, 3]), "{damaged}");
            }
        }
    }

    #[test]
    fn a_damaged_entry_that_is_spread_costs_itself_alone() {
        let wide = [1, 2, 3].map(|id| spread(id, b"  "));
        let last = wide[1].lines().count();
        for line in 0..last {
            for damage in [|_: &str| String::new(), |text: &str| text.replacen('"', "", 1), |text: &str| format!("{text} ?")] {
                let mut lines: Vec<String> = wide[1].lines().map(str::to_owned).collect();
                lines[line] = damage(&lines[line]);
                let broken = lines.join("\n");
                if serde_json::from_str::<serde_json::Value>(&broken).is_ok() {
                    continue;
                }
                let (found, damaged) = read(&format!("{}\n{broken}\n{}\n", wide[0], wide[2]));
                assert_eq!(found, ids(&[1, 3]), "{broken}");
                let inside = |(first, end): &(usize, usize)| last < *first && *end <= 2 * last;
                assert!(!damaged.is_empty() && damaged.iter().all(inside), "{damaged:?} {broken}");
            }
        }
    }
}
