//! Who there is.

use std::collections::HashMap;

use serde_json::Value;

use super::People;
use super::tags::{Class, class_of, team_of, weight_of};
use crate::kong::entities::{LLM_AUDIT, SERVICE, id_of, own_id};
use crate::kong::failure::Outcome;

/// All users.
#[derive(Debug, Clone)]
pub struct Everybody {
    /// By name.
    pub users: Vec<User>,
    /// What is captured of those who have nothing of their own.
    pub default_capture: Option<String>,
}

/// What is known of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// How many keys.
    pub keys: u64,
    /// Calls an hour of their own.
    pub limit: Option<u64>,
    /// `full`, `metadata`, `default`, or `dropped` where the collector stores no content.
    pub capture: String,
    /// When Kong heard of them, in seconds since 1970.
    pub since: Option<i64>,
    /// The team.
    pub team: Option<String>,
    /// How large the share is, where it is not as for all.
    pub weight: Option<u32>,
    /// `interactive` or `batch` as the keys are, `mixed` where some are the one and some the other.
    pub class: &'static str,
    /// Seconds until the last of the keys stops working; `None`: never, or there is none.
    pub expires_in: Option<u64>,
}

impl People {
    /// Everybody, by name. `dropped`: users of whose calls the collector stores no content.
    pub fn everybody(&self, dropped: &[String]) -> Outcome<Everybody> {
        let consumers = self.list("/consumers")?;
        let keys = self.list("/key-auths")?;
        let plugins = self.list("/plugins")?;
        // Of each key how long it works, where that has an end, and its class.
        let mut keys_of: HashMap<&str, Vec<(Option<u64>, Class)>> = HashMap::new();
        for key in &keys {
            if let Some(owner) = id_of(&key["consumer"]) {
                keys_of.entry(owner).or_default().push((key["ttl"].as_u64(), class_of(key)));
            }
        }
        // What is switched off does not count, nor what belongs to another service.
        let service = own_id(SERVICE);
        let mut own: HashMap<&str, Vec<&Value>> = HashMap::new();
        for plugin in &plugins {
            let counts =
                plugin["enabled"] != false && (plugin["service"].is_null() || plugin["service"]["id"] == service.as_str());
            if let Some(owner) = id_of(&plugin["consumer"]).filter(|_| counts) {
                own.entry(owner).or_default().push(plugin);
            }
        }
        let settings = |id: &str, name: &str, field: &str| -> Vec<Value> {
            let of_user = own.get(id).into_iter().flatten().filter(|plugin| plugin["name"] == name);
            of_user.map(|plugin| plugin["config"][field].clone()).collect()
        };
        let mut users: Vec<User> = consumers
            .iter()
            .filter_map(|consumer| {
                let id = id_of(consumer)?;
                // Somebody may have made a consumer that has another name only.
                let name = consumer["username"].as_str().or_else(|| consumer["custom_id"].as_str()).unwrap_or(id).to_owned();
                let keys = keys_of.get(id).map_or(&[][..], Vec::as_slice);
                let captures = settings(id, "llm-audit", "capture");
                let capture = if dropped.contains(&name) {
                    "dropped"
                } else if captures.iter().any(|capture| capture == "metadata") {
                    "metadata"
                } else {
                    captures.first().and_then(Value::as_str).unwrap_or("default")
                };
                Some(User {
                    keys: keys.len() as u64,
                    limit: settings(id, "rate-limiting", "hour").iter().find_map(Value::as_u64),
                    capture: capture.to_owned(),
                    since: consumer["created_at"].as_i64(),
                    team: team_of(consumer),
                    // One key without an end and there is none; Kong says of the others what is left.
                    expires_in: keys
                        .iter()
                        .map(|(left, _)| *left)
                        .collect::<Option<Vec<u64>>>()
                        .and_then(|left| left.into_iter().max()),
                    weight: weight_of(consumer),
                    class: class(keys.iter().map(|(_, class)| *class)),
                    name,
                })
            })
            .collect();
        users.sort_by(|one, other| one.name.cmp(&other.name));
        let audit = plugins.iter().find(|plugin| id_of(plugin) == Some(own_id(LLM_AUDIT).as_str()));
        let default_capture = audit.and_then(|plugin| plugin["config"]["capture"].as_str()).map(str::to_owned);
        Ok(Everybody { users, default_capture })
    }
}

/// What stands for the classes of all keys of a user.
fn class(keys: impl Iterator<Item = Class>) -> &'static str {
    let (batch, interactive): (Vec<Class>, Vec<Class>) = keys.partition(|class| *class == Class::Batch);
    match (batch.is_empty(), interactive.is_empty()) {
        (true, _) => Class::Interactive.text(),
        (false, true) => Class::Batch.text(),
        (false, false) => "mixed",
    }
}
