//! Token counts, in whatever way an answer reports them.
//!
//! One reader for all APIs: proxies answer one of them in the words of another. The table that the plugin reads by, too, is
//! `tests/fixtures/usage.json`.

use std::borrow::Cow;

use crate::call::Usage;
use crate::decode::json::Json;

use super::answer::{Members, says_nothing};

/// Members that say how large a prompt of `/v1/messages` was: what the model had to read, and what the cache gave or took.
pub const PROMPT_OF_MESSAGES: [&str; 3] = ["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"];

/// A count: a number, also one written as a float or as a string; whole, not negative, and one that fits the column. Anything
/// else is none: nothing is guessed.
pub fn count(value: &Json<'_>) -> Option<i32> {
    let number = value.as_f64()?;
    (number.fract() == 0.0 && (0.0..=f64::from(i32::MAX)).contains(&number)).then_some(number as i32)
}

/// Reads the object `usage`. In `/v1/messages` `input_tokens` is what was neither in the cache nor written to it; written tokens
/// are prompt as well (they have no column of their own), those from the cache stand in theirs.
pub fn read(usage: Option<&Json<'_>>) -> Usage {
    let first = |paths: &[&[&str]]| paths.iter().find_map(|path| count(usage?.at(path)?));
    let written = first(&[&["cache_creation_input_tokens"]]).unwrap_or(0);
    Usage {
        prompt_tokens: first(&[&["prompt_tokens"]])
            .or_else(|| first(&[&["input_tokens"]]).and_then(|tokens| tokens.checked_add(written))),
        completion_tokens: first(&[&["completion_tokens"], &["output_tokens"]]),
        cached_tokens: first(&[
            &["prompt_tokens_details", "cached_tokens"],
            &["input_tokens_details", "cached_tokens"],
            &["cache_read_input_tokens"],
            // Moonshot's and DeepSeek's, behind a proxy.
            &["cached_tokens"],
            &["prompt_cache_hit_tokens"],
        ]),
        reasoning_tokens: first(&[
            &["completion_tokens_details", "reasoning_tokens"],
            &["output_tokens_details", "reasoning_tokens"],
            &["reasoning_tokens"],
        ]),
    }
}

/// Members of a report that are looked at one by one. Servers have a dozen; each of a stream's reports is compared with what is known.
const MAX_COUNTS: usize = 64;

/// Takes a further report of one stream into account. Running counts only grow, and no report takes back what another one said: the one
/// with the larger total of prompt and answer counts, of equal ones the later, and where it has no count or 0, the other one's stands.
/// What comes behind the last of them (`{}`, zeros, a total alone) is a proxy's.
pub fn keep_larger(known: &mut Option<Json<'static>>, new: &Json<'_>) {
    let Json::Object(members) = new else { return };
    let Some(Json::Object(kept)) = known else {
        *known = Some(Json::Object(members.iter().take(MAX_COUNTS).map(|(name, value)| owned(name, value)).collect()));
        return;
    };
    let is_newer = is_larger(read(Some(new)), kept);
    for (at, (name, value)) in members.iter().take(MAX_COUNTS).enumerate() {
        // As a rule all reports have the same members in the same order.
        let is_here = kept.get(at).is_some_and(|(known, _)| known == name);
        let place = if is_here { Some(at) } else { kept.iter().position(|(known, _)| known == name) };
        let is_full = kept.len() >= MAX_COUNTS;
        match place.map(|at| kept.get_mut(at)) {
            Some(Some((_, old))) if is_newer && replaces(value, old) || says_nothing(old) => *old = value.to_static(),
            Some(_) => {}
            None if is_full => {}
            None => kept.push(owned(name, value)),
        }
    }
}

/// Whether a member says something in the place of another one: what is no count says nothing in the place of one.
fn replaces(new: &Json<'_>, old: &Json<'_>) -> bool {
    !says_nothing(new) && (count(new).is_some() || count(old).is_none())
}

fn owned(name: &str, value: &Json<'_>) -> (Cow<'static, str>, Json<'static>) {
    (Cow::Owned(name.to_owned()), value.to_static())
}

/// Whether a report counts as many tokens as the one that is known, or more. Where it has no count or 0, it is of the same mind.
fn is_larger(new: Usage, known: &Members) -> bool {
    let member = |names: [&str; 2]| {
        let mut counts = names.iter().filter_map(|name| known.iter().find(|(known, _)| known == name));
        counts.find_map(|(_, value)| count(value)).map_or(0, i64::from)
    };
    let old = [member(["prompt_tokens", "input_tokens"]), member(["completion_tokens", "output_tokens"])];
    let new = [new.prompt_tokens, new.completion_tokens].map(|count| count.map_or(0, i64::from));
    let filled = |(new, old): (i64, i64)| if new == 0 { old } else { new };
    new.into_iter().zip(old).map(filled).sum::<i64>() >= old.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_a_whole_number_however_it_is_written() {
        for (value, expected) in [
            ("61", Some(61)),
            ("61.0", Some(61)),
            ("6.1e1", Some(61)),
            (r#"" 61 ""#, Some(61)),
            (r#""61.0""#, Some(61)),
            ("0", Some(0)),
            ("2147483647", Some(i32::MAX)),
            ("2147483648", None),
            ("-1", None),
            ("0.5", None),
            ("true", None),
            (r#""""#, None),
            (r#""0x3d""#, None),
            ("NaN", None),
            ("1e999", None),
            ("[61]", None),
        ] {
            assert_eq!(count(&Json::parse(value).unwrap()), expected, "{value}");
        }
    }

    #[test]
    fn what_overflows_the_column_is_no_count() {
        let usage = Json::parse(r#"{"input_tokens":2147483647,"cache_creation_input_tokens":1}"#).unwrap();
        assert_eq!(read(Some(&usage)).prompt_tokens, None);
    }
}
