//! The smallest change that makes Kong what it should be.

use serde_json::Value;

use super::entities::{Kind, OWN_IDS, SERVICE, id_of, is_own, name_of, own_id};
use super::state::State;
use super::wanted::{OWN_PLUGINS, Part};

/// What happens to a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// It was not there.
    Created,
    /// It was another.
    Updated,
    /// It is as it should be.
    Unchanged,
    /// It should not be there.
    Removed,
}

impl Word {
    /// As the report says it.
    pub fn text(self) -> &'static str {
        match self {
            Word::Created => "created",
            Word::Updated => "updated",
            Word::Unchanged => "unchanged",
            Word::Removed => "removed",
        }
    }
}

/// One line of the report, and what it takes to make it true.
#[derive(Debug, Clone)]
pub struct Step {
    /// What happens.
    pub word: Word,
    /// What it is: `plugin key-auth`.
    pub label: String,
    /// What kind.
    pub kind: Kind,
    /// Where the Admin API has it.
    pub path: String,
    /// What it becomes.
    pub body: Option<Value>,
}

impl Step {
    fn removal(kind: Kind, entity: &Value, label: String) -> Self {
        let path = format!("/{}/{}", kind.list(), id_of(entity).unwrap_or_default());
        Self { word: Word::Removed, label, kind, path, body: None }
    }
}

/// What it takes to make each part what it should be, then to remove routes that an earlier version or setting opened and this one does
/// not.
pub fn plan(wanted: &[Part], state: &State) -> Vec<Step> {
    let mut steps: Vec<Step> = wanted.iter().filter_map(|part| step(part, state)).collect();
    let service = own_id(SERVICE);
    let is_left_over = |route: &&Value| {
        is_own(route)
            && route["service"]["id"] == service.as_str()
            && !wanted.iter().any(|part| part.kind == Kind::Route && Some(part.id.as_str()) == id_of(route))
    };
    let left_over = state.routes.iter().filter(is_left_over);
    steps.extend(left_over.map(|route| Step::removal(Kind::Route, route, format!("route {}", name_of(route)))));
    steps
}

fn step(part: &Part, state: &State) -> Option<Step> {
    let found = state.find(part.kind, &part.id);
    let word = match (&part.body, found) {
        (None, None) => return None,
        (None, Some(_)) => Word::Removed,
        (Some(_), None) => Word::Created,
        (Some(wanted), Some(found)) if covers(wanted, found) => Word::Unchanged,
        (Some(_), Some(_)) => Word::Updated,
    };
    Some(Step { word, label: part.label.clone(), kind: part.kind, path: part.path(), body: part.body.clone() })
}

/// Whether every value of `wanted` stands in `found`, too. A list must be the same list; an object may have more fields, for Kong adds
/// its defaults; but headers that are sent must be no more than these.
pub fn covers(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => wanted.iter().all(|(name, value)| {
            let other = found.get(name).unwrap_or(&Value::Null);
            let has_more = |value: &Value, other: &Value| match (value, other) {
                (Value::Object(value), Value::Object(other)) => other.len() > value.len(),
                _ => false,
            };
            !(name == "headers" && has_more(value, other)) && covers(value, other)
        }),
        (Value::Array(wanted), Value::Array(found)) => {
            wanted.len() == found.len() && wanted.iter().zip(found).all(|(wanted, found)| covers(wanted, found))
        }
        (Value::Number(wanted), Value::Number(found)) => wanted.as_f64() == found.as_f64(),
        (wanted, found) => wanted == found,
    }
}

/// What the installation did not make and what leads to the model server past the keys, or runs in the place of a plugin that it sets
/// up: left from an earlier installation, or made by hand.
#[derive(Debug, Clone, Default)]
pub struct Others<'s> {
    /// Services that lead to the model server.
    pub services: Vec<&'s Value>,
    /// Routes at our service.
    pub routes: Vec<&'s Value>,
    /// Instances of the plugins set up here.
    pub plugins: Vec<&'s Value>,
}

impl<'s> Others<'s> {
    /// Finds them. `is_shared` as in [`super::wanted::wanted`].
    pub fn find(state: &'s State, to_model: &[&'s Value], is_shared: bool) -> Self {
        let ours = own_id(SERVICE);
        let is_of_ours = |entity: &Value| entity["service"]["id"] == ours.as_str();
        let is_in_our_place = |plugin: &&Value| {
            let name = plugin["name"].as_str().unwrap_or_default();
            if !OWN_PLUGINS.contains(&name) || !plugin["consumer"].is_null() || is_own(plugin) {
                return false;
            }
            let of_our_route = plugin["route"]["id"].as_str().is_some_and(|id| id.starts_with(OWN_IDS));
            let of_all = plugin["service"].is_null() && plugin["route"].is_null();
            let is_global = !is_shared && ["llm-audit", "http-log", "prometheus"].contains(&name);
            is_of_ours(plugin) || of_our_route || (of_all && is_global)
        };
        Self {
            // The collector, to which the others of ours lead, may share an address with the model server.
            services: to_model.iter().copied().filter(|service| !is_own(service)).collect(),
            routes: state.routes.iter().filter(|route| is_of_ours(route) && !is_own(route)).collect(),
            plugins: state.plugins.iter().filter(is_in_our_place).collect(),
        }
    }

    /// Removing all of these: what they opened is reached by our own routes, with a key.
    pub fn removal(&self, state: &State) -> Vec<Step> {
        let mut steps = Vec::new();
        for service in &self.services {
            let of_service = state.routes.iter().filter(|route| route["service"]["id"] == service["id"]);
            let name = name_of(service);
            steps.extend(of_service.map(|route| {
                Step::removal(Kind::Route, route, format!("route {} of service {name}", id_of(route).unwrap_or_default()))
            }));
            steps.push(Step::removal(Kind::Service, service, format!("service {name}, which led to vLLM")));
        }
        let routes = self.routes.iter();
        steps.extend(routes.map(|route| Step::removal(Kind::Route, route, format!("route {}", name_of(route)))));
        let plugins = self.plugins.iter();
        steps.extend(plugins.map(|plugin| {
            let label = format!("plugin {}, instance {}", name_of(plugin), id_of(plugin).unwrap_or_default());
            Step::removal(Kind::Plugin, plugin, label)
        }));
        steps
    }

    /// A line for each of them.
    pub fn warnings(&self, admin_url: &str) -> Vec<String> {
        let services = self.services.iter().map(|service| {
            let (name, id) = (name_of(service), id_of(service).unwrap_or_default());
            format!("the service {name} also leads to vLLM, with other rules: its routes are at {admin_url}/services/{id}/routes")
        });
        let routes = self.routes.iter().map(|route| {
            let (name, id) = (name_of(route), id_of(route).unwrap_or_default());
            format!("the route {name} at the vLLM service was not made by this program: {admin_url}/routes/{id}")
        });
        let plugins = self.plugins.iter().map(|plugin| {
            let (name, id) = (name_of(plugin), id_of(plugin).unwrap_or_default());
            format!("the plugin {name}, instance {id}, runs in the place of this program's: {admin_url}/plugins/{id}")
        });
        let mut lines: Vec<String> = services.chain(routes).chain(plugins).collect();
        if !lines.is_empty() {
            lines.push("to remove all of these, run this with --adopt".to_owned());
        }
        lines
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
