//! The wanted state as a declarative file, for a Kong without a database. `deck` reads it, too.

use serde_json::{Map, Value, json};

use super::batch::Batch;
use super::entities::Kind;
use super::failure::Outcome;
use super::settings::{Settings, Shared};
use super::wanted::{Part, wanted};

/// The file's content. It holds the secrets of the settings.
pub fn declarative(settings: &Settings) -> Outcome<Value> {
    // Users and other services stand in the same file and are not known here.
    let is_shared = settings.shared == Shared::Yes;
    let batch = Batch::of(settings, &[], "")?;
    let mut file = Map::from_iter([("_format_version".to_owned(), json!("3.0"))]);
    for part in wanted(settings, &batch, is_shared, false) {
        let kind = part.kind;
        let Some(entity) = entity(part) else { continue };
        if let Value::Array(list) = file.entry(kind.list()).or_insert_with(|| json!([])) {
            list.push(entity);
        }
    }
    file.insert("consumers".to_owned(), json!([]));
    Ok(Value::Object(file))
}

/// An entity of the file: with its id, and with the id alone of what it belongs to.
fn entity(part: Part) -> Option<Value> {
    let Value::Object(mut entity) = part.body? else { return None };
    for name in ["service", "route", "consumer"] {
        if let Some(owner) = entity.get_mut(name) {
            *owner = owner["id"].take();
        }
    }
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
