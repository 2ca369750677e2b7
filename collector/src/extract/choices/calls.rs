//! Tool calls that come in pieces.
//!
//! The API says that pieces belong together by `index`. Servers leave it out, send null or always 0, repeat the id with each piece,
//! send it late or make up a new one, send the name in pieces or again with each piece, and arguments as an object or all of them
//! so far; they send one call under several indexes, or the rest of a call under another one.

use std::collections::HashMap;

use crate::call::ToolCall;
use crate::decode::json::Json;

use super::super::answer::{object, string, text_of};
use super::super::unread::Pieces;

/// The calls of a choice so far.
#[derive(Debug, Default)]
pub struct Calls {
    calls: Vec<Call>,
    /// The latest call of each index and id: a stream may have very many.
    by_index: HashMap<i64, usize>,
    by_id: HashMap<String, usize>,
    last: Option<usize>,
    deltas: u64,
}

/// A call that is being put together.
#[derive(Debug, Default)]
pub struct Call {
    id: Option<String>,
    name: Option<String>,
    arguments: String,
    nesting: Nesting,
    is_custom: bool,
    index: Option<i64>,
    /// The delta that last added to it.
    delta: u64,
}

/// How far a text is a whole JSON object or array, told byte by byte.
#[derive(Debug, Default)]
struct Nesting {
    depth: i64,
    in_string: bool,
    escaped: bool,
    is_whole: bool,
}

impl Nesting {
    fn push(&mut self, text: &str) {
        for byte in text.bytes() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => {
                    self.depth -= 1;
                    self.is_whole = self.depth == 0;
                }
                _ => {}
            }
        }
    }
}

/// Where an array element of `tool_calls` belongs, and what it adds.
struct Piece<'j, 'a> {
    index: Option<i64>,
    id: Option<String>,
    name: Option<String>,
    function: &'j Json<'a>,
    is_custom: bool,
}

/// The form of a call: `function`, `custom`, or name and arguments beside the id.
pub fn function_of<'j, 'a>(call: &'j Json<'a>) -> &'j Json<'a> {
    let forms = ["function", "custom"].iter().filter_map(|form| call.get(form));
    forms.into_iter().find(|form| matches!(form, Json::Object(_))).unwrap_or(call)
}

/// The id of a call, which may be a number.
fn id_of(call: &Json<'_>) -> Option<String> {
    match call.get("id")? {
        Json::Number(number) => Some(number.to_string()),
        _ => text_of(call, "id"),
    }
}

/// The name of a call's function, which may stand where the function should.
fn name_of(call: &Json<'_>) -> Option<String> {
    text_of(function_of(call), "name").or_else(|| text_of(call, "function"))
}

/// Arguments, or the free text of a custom tool.
pub fn arguments_of<'j, 'a>(function: &'j Json<'a>) -> Option<&'j Json<'a>> {
    ["arguments", "input", "parameters"].iter().find_map(|name| function.get(name))
}

impl Calls {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Takes the member `tool_calls` of a delta into account.
    pub fn add(&mut self, calls: &Json<'_>, unread: &mut Pieces) {
        self.deltas += 1;
        list_of(calls).iter().for_each(|call| self.add_piece(call, unread));
    }

    fn add_piece(&mut self, call: &Json<'_>, unread: &mut Pieces) {
        let function = function_of(call);
        let piece = Piece {
            index: call.get("index").and_then(Json::as_i64),
            id: id_of(call),
            name: name_of(call),
            function,
            is_custom: call.get("custom").is_some() || call.get("type").and_then(Json::as_str) == Some("custom"),
        };
        for (name, value) in call.members() {
            if !matches!(
                name.as_ref(),
                "index" | "id" | "type" | "function" | "custom" | "name" | "arguments" | "input" | "parameters"
            ) {
                unread.member(name, value);
            }
        }
        let at = self.place(&piece);
        let delta = self.deltas;
        if let Some(call) = self.calls.get_mut(at) {
            call.delta = delta;
            call.add(piece);
        }
    }

    /// Appends to the arguments of the call that a piece without id and name belongs to.
    pub fn add_arguments(&mut self, index: Option<i64>, arguments: &str) {
        self.deltas += 1;
        let at = match self.known_of_arguments(index) {
            Some(at) => at,
            None => self.open(index),
        };
        self.last = Some(at);
        let delta = self.deltas;
        if let Some(call) = self.calls.get_mut(at) {
            call.delta = delta;
            call.add_arguments(arguments);
        }
    }

    fn known(&self, index: Option<i64>) -> Option<usize> {
        match index {
            Some(index) => self.by_index.get(&index).copied(),
            None => self.last,
        }
    }

    /// The call to which arguments belong that say neither id nor name. Under an index that is new they are the rest of the
    /// call before, where that has no end yet.
    fn known_of_arguments(&mut self, index: Option<i64>) -> Option<usize> {
        if let Some(at) = self.known(index) {
            return Some(at);
        }
        let at = self.last.filter(|at| self.calls.get(*at).is_some_and(|call| call.name.is_some() && !call.nesting.is_whole))?;
        self.by_index.extend(index.map(|index| (index, at)));
        Some(at)
    }

    fn open(&mut self, index: Option<i64>) -> usize {
        let at = self.calls.len();
        self.calls.push(Call { index, ..Call::default() });
        self.by_index.extend(index.map(|index| (index, at)));
        at
    }

    /// The call that a piece belongs to; opens one where it is a new call's.
    fn place(&mut self, piece: &Piece<'_, '_>) -> usize {
        let with_id = piece.id.as_ref().and_then(|id| self.by_id.get(id).copied());
        let with_id = with_id.filter(|at| self.calls.get(*at).is_some_and(|call| call.is_meant_by(piece)));
        let at = with_id.or_else(|| {
            let is_rest = piece.id.is_none() && piece.name.is_none();
            let at = if is_rest { self.known_of_arguments(piece.index) } else { self.known(piece.index) }?;
            self.calls.get(at)?.goes_on(piece, self.deltas).then_some(at)
        });
        let at = at.unwrap_or_else(|| self.open(piece.index));
        if let Some(id) = &piece.id {
            self.by_id.insert(id.clone(), at);
        }
        self.last = Some(at);
        at
    }

    /// The calls as the answer's member `tool_calls`; `None` where there is none.
    pub fn finish(self) -> Option<Json<'static>> {
        let calls: Vec<_> = self.calls.into_iter().filter(|call| !call.is_empty()).map(Call::finish).collect();
        (!calls.is_empty()).then_some(Json::Array(calls))
    }
}

impl Call {
    /// Whether nothing was said of it.
    pub fn is_empty(&self) -> bool {
        self.id.is_none() && self.name.is_none() && self.arguments.is_empty()
    }

    /// Whether a piece that has this call's id is one of it. Some servers number no call, so that an id may stand for several; others
    /// send one call under several indexes.
    fn is_meant_by(&self, piece: &Piece<'_, '_>) -> bool {
        if piece.index.is_none() || self.index.is_none() || piece.index == self.index {
            return true;
        }
        let is_same_name = piece.name.is_none() || piece.name == self.name;
        is_same_name && (!self.nesting.is_whole || arguments_of(piece.function).is_some_and(|more| self.has_said(more)))
    }

    /// Whether these arguments are the ones that are known.
    fn has_said(&self, arguments: &Json<'_>) -> bool {
        match arguments {
            Json::String(text) => self.arguments == *text,
            other => self.arguments == other.to_string(),
        }
    }

    /// Whether a piece of the same index (or without one) goes on with this call, whose id it does not have.
    fn goes_on(&self, piece: &Piece<'_, '_>, delta: u64) -> bool {
        if piece.index.is_none() && self.delta == delta {
            return false;
        }
        let is_another_name = match (&self.name, &piece.name) {
            (Some(_), Some(_)) if self.nesting.is_whole => true,
            // Before the arguments a name may come in pieces, and may be said again with each of their pieces.
            (Some(known), Some(name)) => !self.arguments.is_empty() && known != name,
            _ => false,
        };
        match (&self.id, &piece.id) {
            // A new id is a new call; but some servers make up one for each piece.
            (Some(_), Some(_)) => piece.name.is_none() && self.name.is_some() && !self.nesting.is_whole && piece.index.is_some(),
            _ => !is_another_name,
        }
    }

    fn add(&mut self, piece: Piece<'_, '_>) {
        self.is_custom |= piece.is_custom;
        if self.id.is_none() {
            self.id = piece.id;
        }
        self.add_name(piece.name);
        self.add_arguments_of(piece.function);
    }

    /// Takes a piece of name and arguments into account.
    pub fn add_function(&mut self, function: &Json<'_>) {
        self.add_name(text_of(function, "name"));
        self.add_arguments_of(function);
    }

    fn add_name(&mut self, name: Option<String>) {
        match (&mut self.name, name) {
            (Some(known), Some(name)) if name.starts_with(known.as_str()) => *known = name,
            (Some(known), Some(name)) => known.push_str(&name),
            (known @ None, name) => *known = name,
            (Some(_), None) => {}
        }
    }

    fn add_arguments_of(&mut self, function: &Json<'_>) {
        match arguments_of(function) {
            Some(Json::String(text)) => self.add_arguments(text),
            // Whole, and said again with each piece.
            Some(other) => {
                self.arguments = other.to_string();
                self.nesting = Nesting { is_whole: true, ..Nesting::default() };
            }
            None => {}
        }
    }

    fn add_arguments(&mut self, piece: &str) {
        // Said once more at the end.
        if self.nesting.is_whole && self.arguments == piece {
            return;
        }
        // All so far: no object holds its own beginning, quote and all, right behind it.
        if piece.len() > self.arguments.len() && self.arguments.starts_with("{\"") && piece.starts_with(&self.arguments) {
            self.arguments.clear();
            self.nesting = Nesting::default();
        }
        self.nesting.push(piece);
        self.arguments.push_str(piece);
    }

    fn finish(self) -> Json<'static> {
        let (kind, arguments) = if self.is_custom { ("custom", "input") } else { ("function", "arguments") };
        let function = object([("name", self.name.map(string)), (arguments, Some(string(self.arguments)))]);
        object([("id", self.id.map(string)), ("type", Some(Json::text(kind))), (kind, Some(function))])
    }

    /// The call as the older member `function_call`.
    pub fn finish_function(self) -> Json<'static> {
        object([("name", self.name.map(string)), ("arguments", Some(string(self.arguments)))])
    }
}

/// The elements of a list; some servers send the one there is without a list around it.
pub fn list_of<'j, 'a>(list: &'j Json<'a>) -> &'j [Json<'a>] {
    match list {
        Json::Object(_) => std::slice::from_ref(list),
        list => list.elements(),
    }
}

/// A call of a whole answer.
pub fn read(call: &Json<'_>) -> ToolCall {
    let function = function_of(call);
    let arguments = match arguments_of(function) {
        Some(Json::String(text)) => text.to_string(),
        // Not what the API says, but some servers send the object itself.
        Some(other) => other.to_string(),
        None => String::new(),
    };
    ToolCall { id: id_of(call), name: name_of(call), arguments }
}

#[cfg(test)]
mod tests;
