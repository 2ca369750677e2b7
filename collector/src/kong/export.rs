//! The wanted state as a declarative file, for a Kong without a database. `deck` reads it, too. What the settings do not say, models and
//! people, is read from a Kong that has them ([`live`]).

pub mod live;

use serde_json::{Map, Value, json};

use super::batch::Batch;
use super::entities::Kind;
use super::failure::Outcome;
use super::settings::{Settings, Shared};
use super::wanted::{Part, wanted};
use live::Live;

/// The file's content, with what was found in a Kong. It holds secrets.
pub fn declarative(settings: &Settings, live: Live) -> Outcome<Value> {
    // Other services stand in the same file and are not known here.
    let is_shared = settings.shared == Shared::Yes;
    let batch = Batch::of(settings, &[], "")?;
    let mut file = Map::from_iter([("_format_version".to_owned(), json!("3.0"))]);
    for part in wanted(settings, &batch, is_shared, live.has_models) {
        let kind = part.kind;
        let Some(entity) = entity(part) else { continue };
        if let Value::Array(list) = file.entry(kind.list()).or_insert_with(|| json!([])) {
            list.push(entity);
        }
    }
    for (name, entities) in live.lists.into_iter().filter(|(_, entities)| !entities.is_empty()) {
        if let Value::Array(list) = file.entry(name).or_insert_with(|| json!([])) {
            list.extend(entities);
        }
    }
    file.entry("consumers").or_insert_with(|| json!([]));
    Ok(Value::Object(file))
}

/// An entity of the file: with its id, and with the id alone of what it belongs to.
fn entity(part: Part) -> Option<Value> {
    let Value::Object(mut entity) = part.body? else { return None };
    refer(&mut entity, &["service", "route", "consumer"]);
    entity.retain(|_, value| !value.is_null());
    if part.kind == Kind::Plugin
        && let Some(Value::Object(config)) = entity.get_mut("config")
    {
        config.retain(|_, value| !value.is_null());
    }
    let mut whole = Map::from_iter([("id".to_owned(), Value::String(part.id))]);
    whole.append(&mut entity);
    Some(Value::Object(whole))
}

/// What an entity belongs to, by its id alone.
fn refer(entity: &mut Map<String, Value>, owners: &[&str]) {
    for name in owners {
        if let Some(owner) = entity.get_mut(*name).filter(|owner| owner.is_object()) {
            *owner = owner["id"].take();
        }
    }
}
