//! What stands in Kong alone and not in the settings: models with their servers, and people with their keys.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::kong::admin::{Admin, element};
use crate::kong::entities::{LLM_ROUTER, SERVICE, own_id};
use crate::kong::failure::{Failure, Outcome};
use crate::kong::models::of_plugin;

/// What Kong adds to an entity by itself, and what a file must not have.
const OF_KONG: [&str; 3] = ["created_at", "updated_at", "ws_id"];

/// Lists of a declarative file, in its words.
#[derive(Debug, Default)]
pub struct Live {
    /// Name of a list, and its entities.
    pub lists: Vec<(&'static str, Vec<Value>)>,
    /// There are models.
    pub has_models: bool,
}

impl Live {
    /// Reads models and their servers, and with `users` people, their keys, groups and plugins.
    pub fn read(admin: &Admin, users: bool) -> Outcome<Self> {
        let mut live = Self::default();
        live.read_models(admin)?;
        if users {
            live.read_users(admin)?;
        }
        Ok(live)
    }

    fn read_models(&mut self, admin: &Admin) -> Outcome<()> {
        let Some(plugin) = admin.find(&format!("/plugins/{}", own_id(LLM_ROUTER)))? else { return Ok(()) };
        let mut upstreams: Vec<Value> = Vec::new();
        let mut targets = Vec::new();
        for model in of_plugin(&plugin)? {
            if upstreams.iter().any(|upstream| upstream["name"] == model.upstream.as_str()) {
                continue;
            }
            let path = format!("/upstreams/{}", element(&model.upstream));
            let upstream = admin.find(&path)?;
            let missing =
                || Failure::new(format!("Kong does not have the upstream {} of the model {}", model.upstream, model.name));
            targets.extend(list(admin, &format!("{path}/targets"))?);
            upstreams.push(upstream.ok_or_else(missing)?);
        }
        self.has_models = !upstreams.is_empty();
        self.add("upstreams", upstreams);
        self.add("targets", targets);
        self.add("plugins", vec![plugin]);
        Ok(())
    }

    fn read_users(&mut self, admin: &Admin) -> Outcome<()> {
        self.add("consumers", list(admin, "/consumers")?);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let mut keys = list(admin, "/key-auths")?;
        for key in &mut keys {
            // The Admin API says how many seconds are left, a file when that is.
            if let Some(left) = key["ttl"].as_u64() {
                key["ttl"] = json!(now.saturating_add(left));
            }
        }
        self.add("keyauth_credentials", keys);
        self.add("acls", list(admin, "/acls")?);
        // Limits and captures of single people; a plugin of another service of this Kong's has nothing to do with this file.
        let ours = own_id(SERVICE);
        let is_theirs = |plugin: &Value| {
            !plugin["consumer"].is_null()
                && plugin["route"].is_null()
                && (plugin["service"].is_null() || plugin["service"]["id"] == ours.as_str())
        };
        self.add("plugins", list(admin, "/plugins")?.into_iter().filter(is_theirs).collect());
        Ok(())
    }

    fn add(&mut self, name: &'static str, entities: Vec<Value>) {
        self.lists.push((name, entities.into_iter().filter_map(as_in_a_file).collect()));
    }
}

fn list(admin: &Admin, path: &str) -> Outcome<Vec<Value>> {
    admin.list(path).map_err(|trouble| admin.explain(trouble))
}

/// An entity without what Kong adds and without what is not set.
fn as_in_a_file(entity: Value) -> Option<Value> {
    let Value::Object(mut entity) = entity else { return None };
    entity.retain(|name, value| !value.is_null() && !OF_KONG.contains(&name.as_str()));
    super::refer(&mut entity, &["service", "route", "consumer", "upstream"]);
    if let Some(Value::Object(config)) = entity.get_mut("config") {
        without_nulls(config);
    }
    Some(Value::Object(entity))
}

fn without_nulls(object: &mut Map<String, Value>) {
    object.retain(|_, value| !value.is_null());
    let inside = object.values_mut().flat_map(|value| match value {
        Value::Array(elements) => elements.iter_mut().collect(),
        value => vec![value],
    });
    inside.filter_map(Value::as_object_mut).for_each(without_nulls);
}
