//! Model servers: the list of the plugin `llm-router`, and an upstream of Kong for each model.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use ureq::http::Method;

use super::admin::{Admin, element};
use super::entities::{LLM_ROUTER, MODELS_ROUTE, SERVICE, VLLM_KEY, id_of, own_id};
use super::failure::{Failure, Outcome};
use super::server::Server;
use super::wanted::models_paths;
use crate::decode::digest;

/// Longest name, in bytes; the plugin takes no longer one.
const LONGEST_NAME: usize = 200;
/// Seconds between two checks of a server: who is dead is known within two of them.
const CHECK_SECONDS: u32 = 4;
/// Kong looks for changes as often as this, unless its configuration says something else.
const LOOKS_SECONDS: f64 = 5.0;

/// A model of the gateway, as the plugin's configuration has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// What people call it.
    pub name: String,
    /// Other names for it.
    #[serde(default, deserialize_with = "list")]
    pub aliases: Vec<String>,
    /// The upstream whose targets serve it.
    pub upstream: String,
    /// What its servers call it, where that is something else.
    #[serde(default)]
    pub served_as: Option<String>,
    /// Who may use it; both empty: everybody.
    #[serde(default, deserialize_with = "list")]
    pub teams: Vec<String>,
    /// See `teams`.
    #[serde(default, deserialize_with = "list")]
    pub users: Vec<String>,
    /// What its servers want as a Bearer token.
    #[serde(default)]
    pub key: Option<String>,
}

/// A list; Kong's encoder writes an empty one as an object.
fn list<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let value = Value::deserialize(from)?;
    let texts = value.as_array().map(Vec::as_slice).unwrap_or_default().iter();
    Ok(texts.filter_map(Value::as_str).map(str::to_owned).collect())
}

/// How calls are spread over the servers of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// To the server with the fewest calls.
    Least,
    /// Those of one user to one server, so that its caches are hit.
    Consumer,
}

/// A target of an upstream: its id, and `host:port`.
type Target = (String, String);

/// A server of a model, and how Kong finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// `host:port`
    pub target: String,
    /// Kong's word: `HEALTHY`, `UNHEALTHY`, `DNS_ERROR`, `HEALTHCHECKS_OFF`.
    pub health: String,
}

/// The models of the plugin.
pub fn of_plugin(plugin: &Value) -> Outcome<Vec<Model>> {
    match &plugin["config"]["models"] {
        Value::Array(models) => serde_json::from_value(models.clone().into())
            .map_err(|error| Failure::new(format!("Kong's list of models cannot be read: {error}"))),
        _ => Ok(Vec::new()),
    }
}

/// The servers of a model, as Kong sees them; none where there is no upstream.
pub fn health_of(admin: &Admin, model: &Model) -> Outcome<Vec<Health>> {
    let servers = admin.list(&format!("/upstreams/{}/health", element(&model.upstream)));
    let servers = servers.map_err(|trouble| admin.explain(trouble))?;
    let text = |server: &Value, name: &str| server[name].as_str().unwrap_or("?").to_owned();
    Ok(servers.iter().map(|server| Health { target: text(server, "target"), health: text(server, "health") }).collect())
}

/// The key that a request-transformer sends to the servers.
pub fn bearer_of(plugin: &Value) -> Option<&str> {
    let headers = plugin["config"]["add"]["headers"].as_array()?;
    headers
        .iter()
        .filter_map(Value::as_str)
        .find_map(|header| header.strip_prefix("Authorization:")?.trim().strip_prefix("Bearer "))
}

/// The names in a model server's answer to `GET /v1/models`.
pub fn served_names(page: &Value) -> Vec<String> {
    let models = page["data"].as_array().into_iter().flatten();
    models.filter_map(|model| model["id"].as_str()).map(str::to_owned).collect()
}

/// Checks a model's name, or another one for it.
pub fn check_model_name(name: &str) -> Outcome<()> {
    let is_plain = !name.is_empty() && name.len() <= LONGEST_NAME && !name.chars().any(char::is_control) && name.trim() == name;
    if is_plain && !name.starts_with('-') {
        return Ok(());
    }
    Err(Failure::new(format!(
        "a model's name has 1 to {LONGEST_NAME} bytes, no control characters, no blanks at its ends: '{name}'"
    )))
}

/// The name of a model's upstream: Kong takes letters, digits and `.`, `_`, `-`. What becomes another text by that gets a digest, so that
/// two names never become one.
pub fn upstream_name(model: &str) -> String {
    const MOST: usize = 60;
    let safe: String =
        model.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '-' }).take(MOST).collect();
    let safe = safe.trim_matches(['-', '.']);
    if safe == model {
        return format!("llm-{safe}");
    }
    let [a, b, c, d, ..] = digest::sha256(model.as_bytes());
    format!("llm-{safe}-{}", digest::hex(&[a, b, c, d]))
}

fn upstream(name: &str, balance: Balance) -> Value {
    let (algorithm, hash_on) = match balance {
        Balance::Least => ("least-connections", "none"),
        Balance::Consumer => ("consistent-hashing", "consumer"),
    };
    json!({
        "name": name, "algorithm": algorithm, "hash_on": hash_on,
        "healthchecks": {
            "active": {
                "type": "http", "http_path": "/health", "timeout": 3,
                "healthy": { "interval": CHECK_SECONDS, "successes": 1, "http_statuses": [200] },
                "unhealthy": {
                    "interval": CHECK_SECONDS, "tcp_failures": 1, "timeouts": 2, "http_failures": 2,
                    "http_statuses": [404, 429, 500, 501, 502, 503, 504, 505],
                },
            },
            // A server that refuses connections is dead; one that answers a call with 500 is not.
            "passive": { "type": "http", "unhealthy": { "tcp_failures": 1, "timeouts": 0, "http_failures": 0 } },
        },
    })
}

/// The models of a Kong.
#[derive(Debug)]
pub struct Models {
    admin: Admin,
    /// In the plugin's order.
    pub list: Vec<Model>,
    pause: Duration,
    protocol: String,
    first: Option<Server>,
}

impl Models {
    /// Reads them.
    pub fn read(mut admin: Admin) -> Outcome<Self> {
        let about = admin.page("/").map_err(|trouble| admin.explain(trouble))?;
        let service = admin.find(&format!("/services/{}", own_id(SERVICE)))?;
        let service = service.ok_or_else(|| Failure::new("Kong does not have the vLLM service yet: apply first"))?;
        if about["plugins"]["available_on_server"]["llm-router"].is_null() {
            return Err(
                Failure::new("Kong does not have the plugin llm-router").advise("KONG_PLUGINS=bundled,llm-audit,llm-router")
            );
        }
        let plugin = admin.find(&format!("/plugins/{}", own_id(LLM_ROUTER)))?.unwrap_or_default();
        let list = of_plugin(&plugin)?;
        list.iter().filter_map(|model| model.key.as_deref()).for_each(|key| admin.conceal(key));
        let seconds = about["configuration"]["worker_state_update_frequency"].as_f64().unwrap_or(LOOKS_SECONDS);
        let pause = Duration::try_from_secs_f64(seconds.clamp(0.0, 60.0)).unwrap_or_default() + Duration::from_millis(500);
        let protocol = service["protocol"].as_str().unwrap_or("http").to_owned();
        let host = service["host"].as_str().unwrap_or_default();
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
        let first = Server::parse(&format!("{protocol}://{host}:{}", service["port"]));
        Ok(Self { admin, list, pause, protocol, first })
    }

    /// The server of all calls as long as there are no models, with the key that it gets.
    pub fn first_server(&mut self) -> Outcome<Option<(Server, Option<String>)>> {
        let Some(first) = self.first.clone() else { return Ok(None) };
        let transformer = self.admin.find(&format!("/plugins/{}", own_id(VLLM_KEY)))?.unwrap_or_default();
        let key = bearer_of(&transformer).map(str::to_owned);
        key.iter().for_each(|key| self.admin.conceal(key));
        Ok(Some((first, key)))
    }

    /// The model of a name or of another name for it.
    pub fn find(&self, name: &str) -> Outcome<&Model> {
        let found = self.list.iter().find(|model| model.name == name || model.aliases.iter().any(|alias| alias == name));
        found.ok_or_else(|| Failure::new(format!("there is no model {name}")))
    }

    /// Adds a model, or brings the one of that name to this. Its servers are known to all of Kong before the first call goes there. On an
    /// error Kong has what it had before; where not even that could be done, the next attempt does it.
    pub fn put(&mut self, model: Model, servers: &[Server], balance: Balance) -> Outcome<()> {
        if let Some(other) = servers.iter().find(|server| server.protocol != self.protocol || !server.path.is_empty()) {
            let what =
                format!("{} cannot be a server here: all have to be {}://HOST:PORT, as VLLM_URL", other.target(), self.protocol);
            return Err(Failure::new(what));
        }
        if let Some(key) = &model.key {
            self.admin.conceal(key);
        }
        let path = format!("/upstreams/{}", element(&model.upstream));
        let upstream_before = self.admin.find(&path)?;
        let there = self.targets(&path)?;
        let list_before = self.list.clone();
        self.make(model, servers, balance, &path, &there).map_err(|failure| {
            self.list = list_before;
            match self.take_back(&path, upstream_before.as_ref(), &there) {
                Ok(()) => failure,
                Err(why) => {
                    failure.advise(format!("nor could what was begun be taken back: {why}; the same command again mends it"))
                }
            }
        })?;
        for (id, _) in there.iter().filter(|(_, target)| !servers.iter().any(|server| server.target() == *target)) {
            self.admin.remove(&format!("{path}/targets/{id}"))?;
        }
        Ok(())
    }

    /// Everything new; nothing is taken away yet.
    fn make(&mut self, model: Model, servers: &[Server], balance: Balance, path: &str, there: &[Target]) -> Outcome<()> {
        self.admin.must(&Method::PUT, path, Some(&upstream(&model.upstream, balance)))?;
        let mut is_new = false;
        for server in servers.iter().filter(|server| !there.iter().any(|(_, target)| *target == server.target())) {
            self.admin.must(&Method::POST, &format!("{path}/targets"), Some(&json!({ "target": server.target() })))?;
            is_new = true;
        }
        if is_new {
            std::thread::sleep(self.pause);
        }
        match self.list.iter_mut().find(|other| other.name == model.name) {
            Some(other) => *other = model,
            None => self.list.push(model),
        }
        self.write()
    }

    /// The list and the upstream as they were.
    fn take_back(&self, path: &str, before: Option<&Value>, there: &[Target]) -> Outcome<()> {
        // First: a list that leads to an upstream which is not there costs calls.
        self.write_list()?;
        let Some(before) = before else { return self.admin.remove(path) };
        for (id, _) in self.targets(path)?.iter().filter(|(id, _)| !there.iter().any(|(other, _)| other == id)) {
            self.admin.remove(&format!("{path}/targets/{id}"))?;
        }
        let change = json!({ "algorithm": before["algorithm"], "hash_on": before["hash_on"] });
        self.admin.must(&Method::PATCH, path, Some(&change)).map(drop)
    }

    /// Upstreams of a model's kind to which neither a model nor a service leads: what an `add` left that was cut off.
    pub fn orphans(&self) -> Outcome<Vec<String>> {
        let list = |path: &str| self.admin.list(path).map_err(|trouble| self.admin.explain(trouble));
        let services = list("/services")?;
        let upstreams = list("/upstreams")?;
        let names = upstreams.iter().filter_map(|upstream| upstream["name"].as_str());
        let is_used = |name: &str| {
            self.list.iter().any(|model| model.upstream == name) || services.iter().any(|service| service["host"] == name)
        };
        Ok(names.filter(|name| name.starts_with("llm-") && !is_used(name)).map(str::to_owned).collect())
    }

    /// Changes who may use a model.
    pub fn allow(&mut self, name: &str, teams: Vec<String>, users: Vec<String>) -> Outcome<()> {
        let name = self.find(name)?.name.clone();
        if let Some(model) = self.list.iter_mut().find(|model| model.name == name) {
            (model.teams, model.users) = (teams, users);
        }
        self.write()
    }

    /// Takes a model out of the list, and its servers away once nothing of Kong leads to them. Of a model that is not in the list, what is
    /// left of it, by its name or its upstream's.
    pub fn remove(&mut self, name: &str) -> Outcome<()> {
        if self.find(name).is_err()
            && let Some(orphan) = self.orphans()?.into_iter().find(|orphan| *orphan == name || *orphan == upstream_name(name))
        {
            return self.admin.remove(&format!("/upstreams/{}", element(&orphan)));
        }
        let upstream = self.find(name)?.upstream.clone();
        self.list.retain(|model| model.name != name && !model.aliases.iter().any(|alias| alias == name));
        self.write()?;
        if !self.list.iter().any(|model| model.upstream == upstream) {
            std::thread::sleep(self.pause);
            self.admin.remove(&format!("/upstreams/{}", element(&upstream)))?;
        }
        Ok(())
    }

    /// The servers of a model, as Kong sees them.
    pub fn health(&self, model: &Model) -> Outcome<Vec<Health>> {
        health_of(&self.admin, model)
    }

    fn targets(&self, upstream: &str) -> Outcome<Vec<Target>> {
        let targets = self.admin.list(&format!("{upstream}/targets")).map_err(|trouble| self.admin.explain(trouble))?;
        let parts = |target: &Value| Some((id_of(target)?.to_owned(), target["target"].as_str()?.to_owned()));
        Ok(targets.iter().filter_map(parts).collect())
    }

    /// The list, and the route of single models, which the plugin answers.
    fn write(&self) -> Outcome<()> {
        if self.list.is_empty() {
            self.open_one_model(false)?;
            return self.write_list();
        }
        self.write_list()?;
        self.open_one_model(true)
    }

    /// Without a model there is no plugin: all calls go to the one server then.
    fn write_list(&self) -> Outcome<()> {
        let path = format!("/plugins/{}", own_id(LLM_ROUTER));
        if self.list.is_empty() {
            return self.admin.remove(&path);
        }
        let plugin = json!({
            "name": "llm-router", "service": { "id": own_id(SERVICE) }, "enabled": true, "config": { "models": self.list },
        });
        self.admin.must(&Method::PUT, &path, Some(&plugin)).map(drop)
    }

    /// Opens `/v1/models/NAME`, which the plugin answers, or closes it.
    fn open_one_model(&self, is_open: bool) -> Outcome<()> {
        let change = json!({ "paths": models_paths(is_open) });
        self.admin.must(&Method::PATCH, &format!("/routes/{}", own_id(MODELS_ROUTE)), Some(&change))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_upstreams_are_safe_and_never_the_same_for_two_models() {
        assert_eq!(upstream_name("qwen3-8b"), "llm-qwen3-8b");
        let odd =
            ["Qwen/Qwen3-8B", "Qwen-Qwen3-8B", "模型", "模形", "a b", "a-b", "a_b", &"x".repeat(200), &"x".repeat(199), "-", "."];
        let names: std::collections::BTreeSet<String> = odd.iter().map(|name| upstream_name(name)).collect();
        assert_eq!(names.len(), odd.len(), "{names:?}");
        for name in names {
            assert!(name.len() < 80 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte)), "{name}");
        }
    }

    #[test]
    fn a_list_that_kong_wrote_as_an_object_is_empty() {
        let model = json!({ "name": "a", "upstream": "llm-a", "aliases": {}, "teams": ["x"], "served_as": null });
        let model: Model = serde_json::from_value(model).unwrap();
        assert_eq!((model.aliases, model.teams, model.users), (vec![], vec!["x".to_owned()], vec![]));
    }
}
