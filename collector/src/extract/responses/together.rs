//! The items of a terminal event and those that the events before it add up to, as one list.

use std::collections::HashMap;

use crate::decode::json::Json;

use super::item::length;

/// Puts `items` into `output`: in the place of the item that is the same, where they say more than it does; else in the place that
/// their number among the items gives them. Either may be very long.
pub(super) fn together(mut output: Vec<Json<'static>>, items: impl Iterator<Item = Json<'static>>) -> Vec<Json<'static>> {
    let mut free = Free::of(&output);
    // With the place in the list that comes out.
    let mut new: Vec<(usize, Json<'static>)> = Vec::new();
    for (position, item) in items.enumerate() {
        // Those that were put in all stand before this one.
        let place = position.saturating_sub(new.len());
        match free.take(place, &item).and_then(|at| output.get_mut(at)) {
            Some(known) if length(&item) > length(known) => *known = item,
            Some(_) => {}
            None => new.push((position.min(output.len() + new.len()), item)),
        }
    }
    if new.is_empty() {
        return output;
    }
    let mut all = Vec::with_capacity(output.len() + new.len());
    let mut output = output.into_iter();
    for (at, item) in new {
        all.extend(output.by_ref().take(at.saturating_sub(all.len())));
        all.push(item);
    }
    all.extend(output);
    all
}

/// Items of the terminal event that have no counterpart yet.
struct Free {
    is_free: Vec<bool>,
    types: Vec<Option<String>>,
    /// Their places in order, the last one first.
    by_id: HashMap<String, Vec<usize>>,
    by_type: HashMap<String, Vec<usize>>,
}

impl Free {
    fn of(output: &[Json<'_>]) -> Self {
        let mut free =
            Self { is_free: vec![true; output.len()], types: Vec::new(), by_id: HashMap::new(), by_type: HashMap::new() };
        free.types = output.iter().map(|item| key(item, "type")).collect();
        for (at, item) in output.iter().enumerate().rev() {
            for (name, places) in [("id", &mut free.by_id), ("type", &mut free.by_type)] {
                if let Some(key) = key(item, name) {
                    places.entry(key).or_default().push(at);
                }
            }
        }
        free
    }

    /// Takes the item that is the same as `item`: of its id, else of its type, first the one in its place.
    fn take(&mut self, place: usize, item: &Json<'_>) -> Option<usize> {
        let Self { is_free, types, by_id, by_type } = self;
        let kind = key(item, "type");
        let first = |places: Option<&mut Vec<usize>>| {
            let places = places?;
            // Those that were taken in another way are no candidates any more.
            while places.pop_if(|at| is_free.get(*at) == Some(&false)).is_some() {}
            places.last().copied()
        };
        let of_id = key(item, "id").and_then(|id| first(by_id.get_mut(&id)));
        let at = match of_id {
            Some(at) => at,
            None => {
                let kind = kind?;
                let in_place = types.get(place).is_some_and(|known| known.as_ref() == Some(&kind));
                let of_type = first(by_type.get_mut(&kind));
                if in_place && is_free.get(place) == Some(&true) { place } else { of_type? }
            }
        };
        *is_free.get_mut(at)? = false;
        Some(at)
    }
}

/// The value of a member, to compare it by.
fn key(item: &Json<'_>, name: &str) -> Option<String> {
    item.get(name).map(Json::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<Json<'static>> {
        match Json::parse(text).unwrap().to_static() {
            Json::Array(items) => items,
            other => panic!("{other}"),
        }
    }

    fn of(output: &str, items: &str) -> String {
        Json::Array(together(list(output), list(items).into_iter())).to_string()
    }

    #[test]
    fn items_find_their_counterparts_by_id_then_by_place_then_by_type() {
        for (output, items, expected) in [
            ("[]", r#"[{"type":"a"},{"type":"b"}]"#, r#"[{"type":"a"},{"type":"b"}]"#),
            (
                r#"[{"id":"2","input":"x"},{"id":"1","input":""}]"#,
                r#"[{"id":"1","input":"yy"},{"id":"2","input":""}]"#,
                r#"[{"id":"2","input":"x"},{"id":"1","input":"yy"}]"#,
            ),
            (
                r#"[{"type":"a","n":0},{"type":"b"},{"type":"a","n":1}]"#,
                r#"[{"type":"c"},{"type":"b"},{"type":"d"},{"type":"a","input":"z"},{"type":"a","input":"y"}]"#,
                r#"[{"type":"c"},{"type":"a","input":"z"},{"type":"d"},{"type":"b"},{"type":"a","input":"y"}]"#,
            ),
            // Of two of a type the one in its place, although another one is before it.
            (
                r#"[{"type":"a"},{"type":"b"},{"type":"a","n":1},{"type":"c"}]"#,
                r#"[{"type":"b"},{"type":"c"},{"type":"a","input":"z"}]"#,
                r#"[{"type":"a"},{"type":"b"},{"type":"a","input":"z"},{"type":"c"}]"#,
            ),
            (r#"[{"type":"a"}]"#, r#"[{"type":"b"},{"type":"a"},{"type":"a"}]"#, r#"[{"type":"b"},{"type":"a"},{"type":"a"}]"#),
            ("[1,2]", r#"[{"x":1},{"x":2},{"x":3}]"#, r#"[{"x":1},{"x":2},{"x":3},1,2]"#),
            (r#"[{"id":1}]"#, r#"[{"id":"1"},{"id":1,"input":"x"}]"#, r#"[{"id":"1"},{"id":1,"input":"x"}]"#),
        ] {
            assert_eq!(of(output, items), expected, "{output} and {items}");
        }
    }

    #[test]
    fn very_many_items_are_put_together_at_once() {
        // Looking at every item for each other one would take hours.
        const MANY: usize = 200_000;
        let items = |kind: &'static str| {
            (0..MANY).map(move |number| Json::parse(&format!(r#"{{"type":"{kind}","id":{number}}}"#)).unwrap().to_static())
        };
        let output: Vec<_> = items("a").collect();
        assert_eq!(together(output.clone(), items("b").rev().collect::<Vec<_>>().into_iter()).len(), MANY);
        assert_eq!(together(output.clone(), (0..MANY).map(|_| Json::Null)).len(), 2 * MANY);
        let of_type = (0..MANY).map(|_| Json::parse(r#"{"type":"a"}"#).unwrap().to_static());
        assert_eq!(together(output, of_type).len(), MANY);
    }
}
