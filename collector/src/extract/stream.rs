//! How the events of a stream add up to one answer.
//!
//! A stream of a thousand tokens is a thousand events that differ in nothing but the token. A tree of each was half of all work on
//! an entry, most of it in the allocator. So an event that was parsed leaves a [`Pattern`] behind: its own text around the
//! token. An event that fits is read by comparing bytes, some twenty times as fast, and one that does not is parsed.
//!
//! Invariant: what comes out is the same as if every event had been parsed. Each API says which events may leave a pattern: those
//! that, but for one text that is appended somewhere, change nothing when they come again ([`Merge::piece`]).

use std::borrow::Cow;

use crate::call::Unread;
use crate::decode::cut::parse_cut_json;
use crate::decode::json::{Json, first_special};
use crate::decode::sse;

use super::answer::says_nothing;
use super::error;
use super::unread::Pieces;

/// An event as it was sent.
#[derive(Debug, Clone, Copy)]
pub struct Sent<'j, 'a> {
    /// What kind of event it is: the member `type`, else the field `event`; empty where it says neither.
    pub kind: &'j str,
    /// Its data.
    pub data: &'j Json<'a>,
}

/// Adds up the events of a stream to the object that the API would have answered with, had it not streamed.
pub trait Merge: Default {
    /// Where a piece of text belongs.
    type Place;
    /// Takes one event into account; what has no place in the object goes to `unread`.
    fn add(&mut self, event: &Sent<'_, '_>, unread: &mut Pieces);
    /// The text of `event` that [`Merge::add`] appends, and where to; `None` if there is more than one, or if an event that
    /// differs from this one only in that text could do anything else than append, at whatever time it comes.
    fn piece<'e>(event: &'e Json<'_>) -> Option<(Self::Place, &'e str)>;
    /// Appends a piece: all that adding its event would do.
    fn add_piece(&mut self, place: &Self::Place, piece: &str);
    /// The object.
    fn finish(self) -> Json<'static>;
}

/// A stream, added up.
#[derive(Debug)]
pub struct Merged {
    /// The completion object; an error event is its member `error`.
    pub completion: Json<'static>,
    /// The event was seen after which nothing comes.
    pub ended: bool,
    /// What was not understood.
    pub unread: Pieces,
}

/// Members of an object in an event beyond which the event is not read: every name is looked for among those that are known, and no
/// server says so much in one object.
const MAX_MEMBERS: usize = 2_000;

/// Shortest event that can hold so many.
const WIDE_BYTES: usize = 4 * MAX_MEMBERS;

fn is_wide(json: &Json<'_>) -> bool {
    json.members().len() > MAX_MEMBERS
        || json.elements().iter().any(is_wide)
        || json.members().iter().any(|(_, value)| is_wide(value))
}

/// Adds up the event stream `text`. `is_cut` says that an event may break off, which is then no riddle.
pub fn merge<M: Merge>(text: &str, is_cut: bool) -> Merged {
    let mut merging = Merging { merger: M::default(), error: None, ended: false, unread: Pieces::default() };
    let mut pattern: Option<Pattern<'_, M::Place>> = None;
    for event in sse::events(text) {
        if let Some(pattern) = &pattern
            // Under another name the same data may mean something else.
            && is_same_name(event.name, pattern.name)
            && let Some(piece) = pattern.piece(&event.data)
        {
            merging.merger.add_piece(&pattern.place, &piece);
            continue;
        }
        match Json::parse(&event.data) {
            Ok(data) if event.data.len() > WIDE_BYTES && is_wide(&data) => merging.unread.note(Unread::Event, &event.data),
            Ok(data @ Json::Object(_)) => {
                let is_plain = merging.add(event.name, &data, event.is_stray);
                if let Cow::Borrowed(text) = event.data
                    && is_plain
                    && !event.is_stray
                    && let Some((place, piece)) = M::piece(&data)
                {
                    pattern = Pattern::new(event.name, text, piece, place).or(pattern);
                }
            }
            Ok(Json::Array(elements)) if elements.iter().all(|element| matches!(element, Json::Object(_))) => {
                for data in &elements {
                    merging.add(event.name, data, event.is_stray);
                }
            }
            Ok(Json::String(text)) if event.name == "error" => merging.add_error(Json::text(&text)),
            _ => merging.add_text(&event, is_cut),
        }
    }
    merging.finish()
}

/// Most events have no name. Two empty texts are not compared: they may lie where no memory is, and `memcmp`, told to compare no bytes,
/// reads there with all bytes masked out, which costs some processors most of a microsecond.
fn is_same_name(one: &str, other: &str) -> bool {
    if one.is_empty() { other.is_empty() } else { one == other }
}

struct Merging<M> {
    merger: M,
    error: Option<Json<'static>>,
    ended: bool,
    unread: Pieces,
}

impl<M: Merge> Merging<M> {
    /// Takes an event with an object as its data into account. Returns whether another one that differs in its text may be read
    /// by this one's pattern.
    fn add(&mut self, name: &str, data: &Json<'_>, is_stray: bool) -> bool {
        let kind = data.get("type").and_then(Json::as_str).unwrap_or(name);
        match kind {
            "response.completed"
            | "response.incomplete"
            | "response.failed"
            | "response.cancelled"
            | "message_stop"
            | "transcript.text.done" => self.ended = true,
            _ => {}
        }
        // Some servers have an error in each chunk that says there is none.
        let error = data.get("error").filter(|error| !says_nothing(error));
        // Errors whose message stands at the top: by the event's name or type, by what they say of themselves, or what a proxy or a framework
        // wrote between the events.
        let is_error = || {
            let is_between = is_stray && data.get("choices").is_none() && error::told(data).is_some();
            kind == "error" || name == "error" || is_between || error::is_at_top(data)
        };
        let error = error.filter(|error| **error != Json::Bool(true));
        let error = error.or_else(|| is_error().then_some(data));
        if let Some(error) = error {
            self.add_error(error.to_static());
        }
        let is_error_alone = error.is_some_and(|error| std::ptr::eq(error, data));
        if !is_error_alone {
            self.merger.add(&Sent { kind, data }, &mut self.unread);
        }
        error.is_none()
    }

    /// Keeps an error. The first one is the cause of those that follow.
    fn add_error(&mut self, error: Json<'static>) {
        match &self.error {
            None => self.error = Some(error),
            Some(known) if *known != error => self.unread.note(Unread::Event, &error.to_string()),
            Some(_) => {}
        }
    }

    /// Data that is no object: the end of the stream, several events without a line between them, or nothing known.
    fn add_text(&mut self, event: &sse::Event<'_>, is_cut: bool) {
        let text = event.data.trim();
        if text.trim_matches('"').eq_ignore_ascii_case("[DONE]") {
            self.ended = true;
            return;
        }
        if event.name == "error" {
            let part = is_cut.then(|| parse_cut_json(text)).flatten();
            if let Some(Ok(part)) = part.as_deref().map(Json::parse) {
                self.add(event.name, &part, event.is_stray);
                return;
            }
            // An event that has no more than its name tells by that.
            self.add_error(Json::text(if text.is_empty() { event.name } else { text }));
            return;
        }
        if text.is_empty() {
            return;
        }
        // Framed a second time, or with something in front of the field.
        if let Some(data) = without_field(text) {
            match Json::parse(data) {
                Ok(data @ Json::Object(_)) => drop(self.add(event.name, &data, false)),
                _ => self.add_text(&sse::Event { name: event.name, data: Cow::Borrowed(data), is_stray: event.is_stray }, is_cut),
            }
            return;
        }
        let lines: Vec<&str> = event.data.lines().collect();
        if lines.len() > 1 {
            for data in lines {
                match Json::parse(data) {
                    Ok(data @ Json::Object(_)) => drop(self.add(event.name, &data, event.is_stray)),
                    _ => self
                        .add_text(&sse::Event { name: event.name, data: Cow::Borrowed(data), is_stray: event.is_stray }, is_cut),
                }
            }
            return;
        }
        // What servers write that have no other form for it.
        let word = text.trim_start_matches('[').get(.."error".len());
        if !event.is_stray && word.is_some_and(|word| word.eq_ignore_ascii_case("error")) {
            self.add_error(Json::text(text));
            return;
        }
        // What breaks off with the recording is known to be missing.
        let breaks_off = is_cut && (parse_cut_json(text).is_some() || "[DONE]".starts_with(text) || sse::is_fragment(text));
        if !breaks_off {
            self.unread.note(if event.is_stray { Unread::Line } else { Unread::Event }, text);
        }
    }

    fn finish(self) -> Merged {
        let mut completion = self.merger.finish();
        if let (Json::Object(members), Some(error)) = (&mut completion, self.error) {
            members.retain(|(name, _)| name != "error");
            members.push((Cow::Borrowed("error"), error));
        }
        Merged { completion, ended: self.ended, unread: self.unread }
    }
}

/// What stands behind the name of the field `data`, in whatever letters and however often; `None` where a line does not begin with it,
/// or where there are several lines.
fn without_field(line: &str) -> Option<&str> {
    const FIELD: &str = "data:";
    let is_blank = |letter: char| matches!(letter, '\u{FEFF}' | ' ' | '\t');
    let mut rest = line.trim_start_matches(is_blank);
    let mut is_field = false;
    while rest.get(..FIELD.len()).is_some_and(|field| field.eq_ignore_ascii_case(FIELD)) {
        rest = rest.get(FIELD.len()..)?.trim_start_matches(is_blank);
        is_field = true;
    }
    (is_field && !rest.contains(['\n', '\r'])).then_some(rest)
}

/// An event as it stood in the stream, but for one text in it.
struct Pattern<'t, P> {
    before: &'t str,
    after: &'t str,
    place: P,
    /// The event's name.
    name: &'t str,
}

impl<'t, P> Pattern<'t, P> {
    /// The pattern of `event`, of whose tree `piece` is a string. `None` when the string had escapes and so is a copy.
    fn new(name: &'t str, event: &'t str, piece: &str, place: P) -> Option<Self> {
        let start = piece.as_ptr().addr().checked_sub(event.as_ptr().addr())?;
        let (before, rest) = event.split_at_checked(start)?;
        let after = rest.strip_prefix(piece)?;
        (before.ends_with('"') && after.starts_with('"')).then_some(Self { before, after, place, name })
    }

    /// The text that `event` has in this place; `None` when it does not fit.
    fn piece<'e>(&self, event: &'e str) -> Option<Cow<'e, str>> {
        let piece = event.strip_prefix(self.before)?.strip_suffix(self.after)?;
        if first_special(piece.as_bytes()).is_none() {
            return Some(Cow::Borrowed(piece));
        }
        // Escapes; or a quote that ends the string, and then more than one text is new.
        let quoted = event.get(self.before.len() - 1..event.len() - self.after.len() + 1)?;
        match Json::parse(quoted) {
            Ok(Json::String(piece)) => Some(piece),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
