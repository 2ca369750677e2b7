//! Large parts of bodies, which stand in `llm_content` once a day: `raw_log` refers to them.
//!
//! Invariants: a row and what it refers to are written by one statement. Content is written only with a new row that needs it, so that a
//! repeated batch does not bring back what was erased. What is remembered as being there ([`KnownContent`]) holds for one version of the
//! database (`llm_content_version`): the statement fails when content was removed since, or when it meets another server. Parts of
//! a statement are written in the order of their keys, as rows are.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

use chrono::NaiveDate;

use super::Item;
use crate::call::Call;

/// Parts that are remembered at least, in bytes some 5 MB: those of a thousand conversations. Twice as many at most.
const REMEMBERED: usize = 65_536;

/// What a part is stored under.
pub(super) type Key = (NaiveDate, [u8; 32]);

/// Parts that are in the database, as far as we remember.
#[derive(Debug, Default)]
pub(super) struct KnownContent(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// The version of the database for which it holds; `None` when it must be asked for.
    version: Option<String>,
    recent: HashSet<Key>,
    older: HashSet<Key>,
}

impl Known {
    fn has(&mut self, key: &Key) -> bool {
        if self.recent.contains(key) {
            return true;
        }
        let was_older = self.older.remove(key);
        if was_older {
            self.add(*key);
        }
        was_older
    }

    fn add(&mut self, key: Key) {
        if self.recent.len() >= REMEMBERED {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(key);
    }
}

impl KnownContent {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version for which it holds.
    pub(super) fn version(&self) -> Option<String> {
        self.known().version.clone()
    }

    /// Begins anew with a version.
    pub(super) fn begin(&self, version: &str) {
        let mut known = self.known();
        if known.version.as_deref() != Some(version) {
            *known = Known { version: Some(version.to_owned()), ..Known::default() };
        }
    }

    /// Forgets everything.
    pub(super) fn forget(&self) {
        *self.known() = Known::default();
    }

    /// Remembers the parts of rows that were written, if the version is still the same.
    pub(super) fn remember(&self, version: &str, keys: impl Iterator<Item = Key>) {
        let mut known = self.known();
        if known.version.as_deref() == Some(version) {
            keys.for_each(|key| {
                if !known.has(&key) {
                    known.add(key);
                }
            });
        }
    }
}

/// The parts of a call with their keys.
pub(super) fn keys(call: &Call) -> impl Iterator<Item = Key> {
    let day = call.started_at.date_naive();
    call.parts.iter().map(move |part| (day, part.sha256))
}

/// What a statement sends of its rows' parts, in the order of their keys: those that are not remembered.
pub(super) fn to_send<'i>(items: impl Iterator<Item = &'i Item>, known: &KnownContent) -> BTreeMap<Key, &'i str> {
    let mut known = known.known();
    let mut parts = BTreeMap::new();
    for item in items {
        for (part, key) in item.call.parts.iter().zip(keys(&item.call)) {
            if !known.has(&key)
                && let Some(text) = item.call.raw_log.get(part.range.clone())
            {
                parts.insert(key, text);
            }
        }
    }
    parts
}

/// `raw_log` with references instead of its parts: `{"llm_content":[first,count]}`, where `first` counts the call's parts from 0, and
/// only elements of one list that follow each other have one reference together.
pub(super) fn with_references(call: &Call) -> String {
    let left = call.parts.iter().fold(call.raw_log.len(), |left, part| left.saturating_sub(part.range.len()));
    let mut out = String::with_capacity(left + 40 * call.parts.len().min(64));
    let mut done = 0;
    let mut parts = call.parts.iter().enumerate().peekable();
    while let Some((first, part)) = parts.next() {
        out.push_str(call.raw_log.get(done..part.range.start).unwrap_or_default());
        let (mut count, mut end) = (1, part.range.end);
        // Between elements of one list there is a comma, between members there is more.
        while part.is_element
            && let Some((_, next)) = parts.next_if(|(_, next)| next.is_element && next.range.start == end + 1)
        {
            (count, end) = (count + 1, next.range.end);
        }
        out.push_str(&format!("{{\"llm_content\":[{first},{count}]}}"));
        done = end;
    }
    out.push_str(call.raw_log.get(done..).unwrap_or_default());
    out
}

/// The column `contents`: of the hash of each of a call's parts the first half. What a call lists is a good part of what it takes where all
/// else has been said before, and nobody can make a text that begins like another one's.
pub(super) fn hashes(call: &Call) -> Vec<u8> {
    call.parts.iter().flat_map(|part| part.sha256.into_iter().take(16)).collect()
}
