//! The people who may call the model: one consumer of Kong each, with one key.

use std::collections::HashMap;

use serde_json::{Value, json};
use ureq::http::Method;

use super::admin::{Admin, Reply, element};
use super::entities::{LLM_AUDIT, OWN_IDS, SERVICE, id_of, own_id};
use super::failure::{Failure, Outcome};

/// Longest name, in bytes.
const LONGEST_NAME: usize = 128;
/// Longest key.
const LONGEST_KEY: usize = 512;
/// A shorter one can be guessed.
const SHORT_KEY: usize = 20;
/// Random bytes of a new key.
const KEY_BYTES: usize = 24;

/// A name that goes into a header, into log entries, metrics and dashboards.
pub fn check_name(name: &str) -> Outcome<()> {
    let wrong = |what: String| Err(Failure::new(what));
    if name.is_empty() {
        return Err(Failure::misuse("a name is missing"));
    }
    if name.starts_with('-') {
        return Err(Failure::misuse(format!("a name must not begin with '-': {name}")));
    }
    if name.len() > LONGEST_NAME {
        return wrong(format!("a name may have {LONGEST_NAME} bytes at most"));
    }
    if name.chars().any(char::is_control) {
        return wrong("a name must not hold control characters".to_owned());
    }
    if name.starts_with(' ') || name.ends_with(' ') {
        return wrong(format!("a name must not begin or end with a blank: '{name}'"));
    }
    if name == "." || name == ".." || name.contains('/') {
        return wrong(format!("a name must not be '.' or '..' or hold a slash: '{name}'"));
    }
    if name == "anonymous" {
        return wrong("'anonymous' stands for calls without a user in the log".to_owned());
    }
    // Kong takes it for an id, where a name is looked for.
    let is_id_character = |(at, c): (usize, char)| if matches!(at, 8 | 13 | 18 | 23) { c == '-' } else { c.is_ascii_hexdigit() };
    if name.len() == OWN_IDS.len() + 12 && name.char_indices().all(is_id_character) {
        return wrong(format!("a name must not look like an id: {name}"));
    }
    Ok(())
}

/// A key: `sk-` and 192 random bits in letters and digits that survive every shell and URL.
pub fn new_key() -> Outcome<String> {
    let mut bytes = [0; KEY_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| Failure::new(format!("there are no random numbers: {error}")))?;
    Ok(bytes.iter().fold("sk-".to_owned(), |key, byte| format!("{key}{byte:02x}")))
}

/// A key that is in use already. Returns whether it is short enough to be guessed.
pub fn check_key(key: &str) -> Outcome<bool> {
    if key.is_empty() {
        return Err(Failure::new("the key is empty"));
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::new("a key must not hold blanks or characters outside ASCII"));
    }
    if key.len() > LONGEST_KEY {
        return Err(Failure::new(format!("a key may have {LONGEST_KEY} characters at most")));
    }
    Ok(key.len() < SHORT_KEY)
}

/// Users and their keys, in Kong.
#[derive(Debug)]
pub struct People {
    admin: Admin,
    /// The command that lists who there is, for messages.
    command: String,
}

/// A user that Kong knows.
#[derive(Debug, Clone)]
pub struct Person {
    /// Kong's id.
    pub id: String,
    /// The name.
    pub name: String,
}

/// What is logged of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// Prompts and answers.
    Full,
    /// Who, when, how long, model and tokens.
    Metadata,
}

impl Capture {
    /// As llm-audit spells it.
    pub fn text(self) -> &'static str {
        match self {
            Capture::Full => "full",
            Capture::Metadata => "metadata",
        }
    }
}

impl People {
    /// In this Kong. `command`: how the user of this program calls it.
    pub fn new(admin: Admin, command: impl Into<String>) -> Self {
        Self { admin, command: command.into() }
    }

    /// The user of a name.
    pub fn find(&self, name: &str) -> Outcome<Option<Person>> {
        let found = self.admin.find(&format!("/consumers/{}", element(name)))?;
        Ok(found.as_ref().and_then(id_of).map(|id| Person { id: id.to_owned(), name: name.to_owned() }))
    }

    /// The user of a name, who has to be there.
    pub fn must_find(&self, name: &str) -> Outcome<Person> {
        self.find(name)?.ok_or_else(|| {
            Failure::new(format!("there is no user {name}")).advise(format!("Who there is:  {} users list", self.command))
        })
    }

    /// Makes a user with a key.
    pub fn add(&mut self, name: &str, key: &str) -> Outcome<()> {
        self.admin.conceal(key);
        if let Some(person) = self.find(name)? {
            if !self.key_ids(&person)?.is_empty() {
                let command = &self.command;
                return Err(Failure::new(format!("the user {name} exists already"))
                    .advise(format!("A new key:  {command} users rotate '{name}'"))
                    .advise(format!("Another limit:  {command} users limit '{name}' N")));
            }
            // Left over from an attempt that was cut off: made, but without a key.
            return self.add_key(&person, key);
        }
        let reply = self.admin.tell(&Method::POST, "/consumers", Some(&json!({ "username": name })))?;
        let id = id_of(&reply.body).filter(|_| reply.is_good());
        let id = id.ok_or_else(|| Failure::new(format!("Kong refused the user {name}: {}", self.admin.reason(&reply))))?;
        let person = Person { id: id.to_owned(), name: name.to_owned() };
        self.add_key(&person, key).inspect_err(|_| {
            // No half-made user stays; that the key was refused matters more than that this fails.
            let _ = self.admin.remove(&format!("/consumers/{}", person.id));
        })
    }

    /// Gives a user a new key; the old ones stop working.
    pub fn rotate(&mut self, name: &str, key: &str) -> Outcome<()> {
        self.admin.conceal(key);
        let person = self.must_find(name)?;
        let old = self.key_ids(&person)?;
        // First the new one, so that a failure leaves a key that works.
        self.add_key(&person, key)?;
        for id in old {
            self.admin.remove(&format!("/consumers/{}/key-auth/{id}", person.id))?;
        }
        Ok(())
    }

    /// Takes a user out; what is logged stays.
    pub fn remove(&self, name: &str) -> Outcome<()> {
        let person = self.must_find(name)?;
        self.admin.remove(&format!("/consumers/{}", person.id))
    }

    /// Calls an hour for a user; `None`: as for all.
    pub fn limit(&self, name: &str, calls: Option<u32>) -> Outcome<()> {
        let person = self.must_find(name)?;
        let own = self.own_plugin(&person, "rate-limiting")?;
        let Some(calls) = calls else { return self.remove_plugin(own) };
        if let Some(id) = own {
            let change = json!({ "enabled": true, "config": { "hour": calls } });
            self.admin.must(&Method::PATCH, &format!("/plugins/{id}"), Some(&change))?;
            return Ok(());
        }
        // Bound to the vLLM service as well, so that it replaces the limit there and counts on with the same counter.
        let service = own_id(SERVICE);
        if self.admin.find(&format!("/services/{service}"))?.is_none() {
            return Err(self.not_configured("the vLLM service"));
        }
        let config = json!({ "hour": calls, "limit_by": "consumer", "policy": "local", "fault_tolerant": true });
        self.add_plugin(&person, "rate-limiting", config)
    }

    /// What is logged of a user; `None`: what is logged of all.
    pub fn capture(&self, name: &str, capture: Option<Capture>) -> Outcome<()> {
        let person = self.must_find(name)?;
        let own = self.own_plugin(&person, "llm-audit")?;
        let Some(capture) = capture else { return self.remove_plugin(own) };
        // Kong runs the one instance that fits best: the user's own replaces that of all, so it has to have its other settings.
        let of_all = self.admin.find(&format!("/plugins/{}", own_id(LLM_AUDIT)))?;
        let of_all = of_all.ok_or_else(|| self.not_configured("the llm-audit plugin of this gateway"))?;
        let mut config = of_all["config"].as_object().cloned().unwrap_or_default();
        config.insert("capture".to_owned(), capture.text().into());
        let Some(id) = own else { return self.add_plugin(&person, "llm-audit", Value::Object(config)) };
        let change = json!({ "enabled": true, "config": config });
        self.admin.must(&Method::PATCH, &format!("/plugins/{id}"), Some(&change))?;
        Ok(())
    }

    fn not_configured(&self, what: &str) -> Failure {
        Failure::new(format!("Kong does not have {what} yet")).advise(format!("Make it first:  {}", configure(&self.command)))
    }

    fn add_plugin(&self, person: &Person, name: &str, config: Value) -> Outcome<()> {
        let plugin = json!({ "name": name, "service": { "id": own_id(SERVICE) }, "config": config });
        self.admin.must(&Method::POST, &format!("/consumers/{}/plugins", person.id), Some(&plugin))?;
        Ok(())
    }

    fn remove_plugin(&self, id: Option<String>) -> Outcome<()> {
        id.map_or(Ok(()), |id| self.admin.remove(&format!("/plugins/{id}")))
    }

    /// The id of a user's own instance of a plugin.
    fn own_plugin(&self, person: &Person, name: &str) -> Outcome<Option<String>> {
        let plugins = self.list(&format!("/consumers/{}/plugins", person.id))?;
        Ok(plugins.iter().find(|plugin| plugin["name"] == name).and_then(id_of).map(str::to_owned))
    }

    fn key_ids(&self, person: &Person) -> Outcome<Vec<String>> {
        let keys = self.list(&format!("/consumers/{}/key-auth", person.id))?;
        Ok(keys.iter().filter_map(id_of).map(str::to_owned).collect())
    }

    fn list(&self, path: &str) -> Outcome<Vec<Value>> {
        self.admin.list(path).map_err(|trouble| self.admin.explain(trouble))
    }

    fn add_key(&self, person: &Person, key: &str) -> Outcome<()> {
        let path = format!("/consumers/{}/key-auth", person.id);
        let reply = self.admin.tell(&Method::POST, &path, Some(&json!({ "key": key })))?;
        match reply {
            Reply { status: 201, .. } => Ok(()),
            Reply { status: 409, .. } => Err(Failure::new("this key belongs to somebody already")),
            reply => Err(Failure::new(format!("Kong refused the key: {}", self.admin.reason(&reply)))),
        }
    }

    /// Everybody, by name. `dropped`: users of whose calls the collector stores no content.
    pub fn everybody(&self, dropped: &[String]) -> Outcome<Everybody> {
        let consumers = self.list("/consumers")?;
        let keys = self.list("/key-auths")?;
        let plugins = self.list("/plugins")?;
        let mut counts: HashMap<&str, u64> = HashMap::new();
        for owner in keys.iter().filter_map(|key| id_of(&key["consumer"])) {
            *counts.entry(owner).or_default() += 1;
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
                let captures = settings(id, "llm-audit", "capture");
                let capture = if dropped.contains(&name) {
                    "dropped"
                } else if captures.iter().any(|capture| capture == "metadata") {
                    "metadata"
                } else {
                    captures.first().and_then(Value::as_str).unwrap_or("default")
                };
                Some(User {
                    keys: counts.get(id).copied().unwrap_or(0),
                    limit: settings(id, "rate-limiting", "hour").iter().find_map(Value::as_u64),
                    capture: capture.to_owned(),
                    since: consumer["created_at"].as_i64(),
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

/// The command that makes what users need in Kong.
fn configure(command: &str) -> String {
    if command == crate::commands::PROGRAM { format!("{command} kong apply") } else { format!("{command} apply") }
}

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
}
