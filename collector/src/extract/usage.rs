//! Token counts, in whatever way an answer reports them.
//!
//! One reader for all APIs: proxies answer one of them in the words of another. The table that the plugin reads by, too, is
//! `tests/fixtures/usage.json`.

use crate::call::Usage;
use crate::decode::json::Json;

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
        ]),
        reasoning_tokens: first(&[
            &["completion_tokens_details", "reasoning_tokens"],
            &["output_tokens_details", "reasoning_tokens"],
            &["reasoning_tokens"],
        ]),
    }
}

/// All tokens that a report speaks of.
fn total(usage: &Json<'_>) -> i64 {
    let counts = read(Some(usage));
    let sum = [counts.prompt_tokens, counts.completion_tokens].into_iter().flatten().map(i64::from).sum();
    usage.get("total_tokens").and_then(count).map_or(sum, |total| sum.max(i64::from(total)))
}

/// Takes a further report of one stream into account: the one with the larger total counts, of equal ones the later, unless it
/// says less. Running counts only grow; what comes behind the last of them (`{}`, zeros) is a proxy's.
pub fn keep_larger(known: &mut Option<Json<'static>>, new: &Json<'_>) {
    let Json::Object(members) = new else { return };
    let is_kept = known.as_ref().is_some_and(|known| {
        let (old_total, new_total) = (total(known), total(new));
        old_total > new_total || old_total == new_total && known.members().len() > members.len()
    });
    if !is_kept {
        *known = Some(new.to_static());
    }
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
