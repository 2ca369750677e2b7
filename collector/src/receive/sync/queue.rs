//! The part of `POST /sync` about fair shares. The contract is in `docs/contract.md`.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::is_name;
use crate::measure::queues::{Places, Queues};

/// Models that are taken from one report; a node serves dozens.
const MAX_MODELS: usize = 1_000;
/// Users with waiting calls that are taken from one report.
const MAX_USERS: usize = 10_000;
/// More calls are in no node.
const MAX_CALLS: u64 = 10_000_000;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ToldQueue {
    models: HashMap<String, Box<RawValue>>,
    waiting: HashMap<String, Box<RawValue>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ToldPlaces {
    in_flight: u64,
    waiting: u64,
    share: Option<ToldShare>,
}

#[derive(Debug, Deserialize)]
struct ToldShare {
    user: String,
    places: u64,
}

impl ToldPlaces {
    fn checked(self) -> Option<Places> {
        let Self { in_flight, waiting, share } = self;
        let largest = share.filter(|share| is_name(&share.user) && is_count(share.places));
        let largest = largest.map(|share| (share.user, share.places));
        (is_count(in_flight) && is_count(waiting)).then_some(Places { in_flight, waiting, largest })
    }
}

fn is_count(number: u64) -> bool {
    number <= MAX_CALLS
}

/// What makes sense of it, and how much was passed over.
pub(super) fn read(text: &RawValue) -> (Queues, usize) {
    let Ok(told) = serde_json::from_str::<Option<ToldQueue>>(text.get()) else { return (Queues::default(), 1) };
    let told = told.unwrap_or_default();
    let all = told.models.len() + told.waiting.len();
    let place = |(model, text): (String, Box<RawValue>)| {
        let places = serde_json::from_str::<ToldPlaces>(text.get()).ok().and_then(ToldPlaces::checked)?;
        is_name(&model).then_some((model, places))
    };
    let count = |(user, text): (String, Box<RawValue>)| {
        let count = serde_json::from_str::<u64>(text.get()).ok().filter(|count| is_count(*count))?;
        is_name(&user).then_some((user, count))
    };
    let models: HashMap<_, _> = told.models.into_iter().filter_map(place).take(MAX_MODELS).collect();
    let waiting: HashMap<_, _> = told.waiting.into_iter().filter_map(count).take(MAX_USERS).collect();
    let passed_over = all - models.len() - waiting.len();
    (Queues { models, waiting }, passed_over)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read_value(value: &Value) -> (Queues, usize) {
        read(&RawValue::from_string(value.to_string()).unwrap())
    }

    #[test]
    fn what_makes_sense_is_taken_and_the_rest_costs_itself_only() {
        let (queues, passed_over) = read_value(&json!({
            "models": {
                "Qwen": {"in_flight": 3, "waiting": 10, "share": {"user": "bob", "places": 6}, "more": []},
                "": {"in_flight": 1}, "negative": {"in_flight": -1}, "text": {"waiting": "many"}, "huge": {"waiting": u64::MAX},
                "nobody": {"in_flight": 2, "share": {"user": "", "places": 2}},
            },
            "waiting": {"alice": 2, "bob": -1, "": 3, "eve": 1.5},
            "later": 1,
        }));
        assert_eq!(passed_over, 7);
        assert_eq!(queues.waiting, HashMap::from([("alice".to_owned(), 2)]));
        let places = Places { in_flight: 3, waiting: 10, largest: Some(("bob".to_owned(), 6)) };
        let nobody = Places { in_flight: 2, ..Places::default() };
        assert_eq!(queues.models, HashMap::from([("Qwen".to_owned(), places), ("nobody".to_owned(), nobody)]));
    }

    #[test]
    fn what_is_no_queue_at_all_is_an_empty_one() {
        for value in [json!(7), json!("x"), json!({"models": []}), json!({"waiting": "x"})] {
            assert_eq!(read_value(&value), (Queues::default(), 1), "{value}");
        }
        assert_eq!(read(&RawValue::from_string(r#"{"waiting":{"a":1e999}}"#.to_owned()).unwrap()).0, Queues::default());
        assert_eq!(read_value(&json!(null)), (Queues::default(), 0));
    }

    #[test]
    fn no_more_is_kept_than_there_can_be() {
        let models: serde_json::Map<_, _> = (0..5_000).map(|n| (format!("m{n}"), json!({"waiting": 1}))).collect();
        let waiting: serde_json::Map<_, _> = (0..20_000).map(|n| (format!("u{n}"), json!(1))).collect();
        let (queues, passed_over) = read_value(&json!({"models": models, "waiting": waiting}));
        assert_eq!((queues.models.len(), queues.waiting.len(), passed_over), (MAX_MODELS, MAX_USERS, 14_000));
    }
}
