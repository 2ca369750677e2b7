//! What Kong knows of a user, or of a key, by its tags. Tags of others stay.

use serde_json::Value;

use crate::kong::failure::{Failure, Outcome};

/// The tag of a consumer that says which team it belongs to.
const TEAM: &str = "team:";
/// The one that says how large its share is.
const WEIGHT: &str = "weight:";
/// The tag of a key that says of which class the calls with it are.
const CLASS: &str = "class:";
/// Longest name of a team, in bytes.
const LONGEST_TEAM: usize = 64;
/// Largest share.
const MOST_WEIGHT: u32 = 1_000;

/// Of which class the calls with a key are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Somebody waits for them.
    Interactive,
    /// They use what the others leave.
    Batch,
}

impl Class {
    /// As tags and lists spell it.
    pub fn text(self) -> &'static str {
        match self {
            Class::Interactive => "interactive",
            Class::Batch => "batch",
        }
    }
}

/// A team's name becomes a tag of Kong, which takes no comma and no slash, and a label.
pub fn check_team(team: &str) -> Outcome<()> {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '@' | '+');
    if team.is_empty() || team.len() > LONGEST_TEAM || !team.chars().all(is_plain) {
        let what = format!("a team's name has letters, digits and . _ - @ + only, at most {LONGEST_TEAM} bytes: '{team}'");
        return Err(Failure::new(what));
    }
    Ok(())
}

/// How large a share is, as people write it.
pub fn weight(text: &str) -> Result<u32, String> {
    let is_plain = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    let weight = text.parse().ok().filter(|weight| is_plain && *weight <= MOST_WEIGHT);
    weight.ok_or_else(|| format!("want a whole number from 1 to {MOST_WEIGHT} as a weight"))
}

/// The team that `team:NAME` names.
pub fn team_in(tag: &str) -> Option<&str> {
    tag.strip_prefix(TEAM)
}

/// The team of a consumer.
pub(super) fn team_of(consumer: &Value) -> Option<String> {
    value(consumer, TEAM).map(str::to_owned)
}

/// The share of a consumer that has one of its own.
pub(super) fn weight_of(consumer: &Value) -> Option<u32> {
    value(consumer, WEIGHT).and_then(|text| weight(text).ok())
}

/// The class of a key.
pub(super) fn class_of(key: &Value) -> Class {
    if value(key, CLASS) == Some(Class::Batch.text()) { Class::Batch } else { Class::Interactive }
}

fn value<'v>(entity: &'v Value, prefix: &str) -> Option<&'v str> {
    let tags = entity["tags"].as_array()?;
    tags.iter().filter_map(Value::as_str).find_map(|tag| tag.strip_prefix(prefix))
}

/// The tags of a consumer that joins a team, or leaves the one it has.
pub(super) fn with_team(consumer: &Value, team: Option<&str>) -> Value {
    with(consumer, TEAM, team)
}

/// The tags of a consumer that gets another share.
pub(super) fn with_weight(consumer: &Value, weight: Option<u32>) -> Value {
    with(consumer, WEIGHT, weight.map(|weight| weight.to_string()).as_deref())
}

/// The tags of a new key; none says that somebody waits.
pub(super) fn of_key(class: Class) -> Option<Value> {
    (class != Class::Interactive).then(|| with(&Value::Null, CLASS, Some(class.text())))
}

fn with(entity: &Value, prefix: &str, value: Option<&str>) -> Value {
    let empty = Vec::new();
    let tags = entity["tags"].as_array().unwrap_or(&empty).iter();
    let others = tags.filter(|tag| !tag.as_str().is_some_and(|tag| tag.starts_with(prefix))).cloned();
    others.chain(value.map(|value| format!("{prefix}{value}").into())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tags_change_beside_one_another() {
        let consumer = json!({"tags": ["floor:3", "team:ml", "weight:3"]});
        assert_eq!((team_of(&consumer).as_deref(), weight_of(&consumer)), (Some("ml"), Some(3)));
        assert_eq!(with_team(&consumer, Some("search")), json!(["floor:3", "weight:3", "team:search"]));
        assert_eq!(with_weight(&consumer, Some(5)), json!(["floor:3", "team:ml", "weight:5"]));
        assert_eq!(with_weight(&consumer, None), json!(["floor:3", "team:ml"]));
        assert_eq!(weight_of(&json!({"tags": ["weight:many"]})), None);
    }

    #[test]
    fn a_key_is_interactive_unless_it_says_batch() {
        assert_eq!(class_of(&json!({"tags": of_key(Class::Batch)})), Class::Batch);
        assert_eq!(of_key(Class::Interactive), None);
        for tags in [Value::Null, json!([]), json!(["class:other", "batch"])] {
            assert_eq!(class_of(&json!({ "tags": tags })), Class::Interactive);
        }
    }

    #[test]
    fn weights_are_whole_numbers() {
        assert_eq!([weight("1"), weight("1000")], [Ok(1), Ok(1000)]);
        for bad in ["", "0", "01", "1001", "-1", "+1", "1.5", "many"] {
            assert!(weight(bad).is_err(), "{bad}");
        }
    }
}
