//! The people who may call the model: one consumer of Kong each, with one key.

mod import;
mod roll;
mod tags;

use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::admin::{Admin, Reply, element};
use super::entities::{LLM_AUDIT, OWN_IDS, SERVICE, id_of, own_id};
use super::failure::{Failure, Outcome};
use crate::decode::digest;

pub use import::{Imported, Line, read_lines};
pub use roll::{Everybody, User};
pub use tags::{Class, check_team, team_in, weight};

/// Longest name, in bytes.
const LONGEST_NAME: usize = 128;
/// Longest key.
const LONGEST_KEY: usize = 512;
/// A shorter one can be guessed.
const SHORT_KEY: usize = 20;
/// Random bytes of a new key.
const KEY_BYTES: usize = 24;
/// Kong's word for a key that does not end, where one is to lose its end.
const NEVER: u64 = 0;

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

/// What a new user has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Start<'s> {
    /// The key.
    pub key: &'s str,
    /// Seconds until it stops working.
    pub expires_in: Option<u64>,
    /// The team.
    pub team: Option<&'s str>,
    /// Calls an hour.
    pub limit: Option<u32>,
    /// How large the share is, where it is not 1.
    pub weight: Option<u32>,
    /// The class of the key.
    pub class: Option<Class>,
}

/// A key: `sk-` and 192 random bits in letters and digits that survive every shell and URL.
pub fn new_key() -> Outcome<String> {
    let mut bytes = [0; KEY_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| Failure::new(format!("there are no random numbers: {error}")))?;
    Ok(format!("sk-{}", digest::hex(&bytes)))
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
    pub fn add(&mut self, name: &str, start: &Start<'_>) -> Outcome<()> {
        if let Some(person) = self.find(name)?
            && !self.keys(&person)?.is_empty()
        {
            let command = &self.command;
            return Err(Failure::new(format!("the user {name} exists already"))
                .advise(format!("A new key:  {command} users rotate '{name}'"))
                .advise(format!("Another limit:  {command} users limit '{name}' N")));
        }
        self.make(name, start)
    }

    /// Makes a user, or gives a key to one that has none: left over from an attempt that was cut off.
    fn make(&mut self, name: &str, start: &Start<'_>) -> Outcome<()> {
        self.admin.conceal(start.key);
        let (person, is_new) = match self.find(name)? {
            Some(person) => (person, false),
            None => (self.make_consumer(name, start)?, true),
        };
        let made = self.add_key(&person, start.key, start.expires_in, start.class.unwrap_or(Class::Interactive)).and_then(|()| {
            if !is_new && let Some(team) = start.team {
                self.team(name, Some(team))?;
            }
            if !is_new && let Some(weight) = start.weight {
                self.weight(name, Some(weight))?;
            }
            start.limit.map_or(Ok(()), |calls| self.set_limit(&person, Some(calls)))
        });
        made.inspect_err(|_| {
            if is_new {
                // No half-made user stays; what was refused matters more than that this fails.
                let _ = self.admin.remove(&format!("/consumers/{}", person.id));
            }
        })
    }

    fn make_consumer(&self, name: &str, start: &Start<'_>) -> Outcome<Person> {
        let mut consumer = Map::from_iter([("username".to_owned(), json!(name))]);
        if start.team.is_some() || start.weight.is_some() {
            let team = json!({ "tags": tags::with_team(&Value::Null, start.team) });
            consumer.insert("tags".to_owned(), tags::with_weight(&team, start.weight));
        }
        let reply = self.admin.tell(&Method::POST, "/consumers", Some(&Value::Object(consumer)))?;
        let id = id_of(&reply.body).filter(|_| reply.is_good());
        let id = id.ok_or_else(|| Failure::new(format!("Kong refused the user {name}: {}", self.admin.reason(&reply))))?;
        Ok(Person { id: id.to_owned(), name: name.to_owned() })
    }

    /// Gives a user a new key, of the class that all old ones have unless another is named. The old ones stop working, at once or after
    /// these seconds.
    pub fn rotate(
        &mut self,
        name: &str,
        key: &str,
        expires_in: Option<u64>,
        keep_old: Option<u64>,
        class: Option<Class>,
    ) -> Outcome<()> {
        self.admin.conceal(key);
        let person = self.must_find(name)?;
        let old = self.keys(&person)?;
        let all_batch = !old.is_empty() && old.iter().all(|key| tags::class_of(key) == Class::Batch);
        let class = class.unwrap_or(if all_batch { Class::Batch } else { Class::Interactive });
        // First the new one, so that a failure leaves a key that works.
        self.add_key(&person, key, expires_in, class)?;
        for key in old {
            let Some(id) = id_of(&key) else { continue };
            let path = format!("/consumers/{}/key-auth/{id}", person.id);
            match keep_old {
                None => self.admin.remove(&path)?,
                // One that ends sooner is not made to live longer.
                Some(seconds) if key["ttl"].as_u64().is_some_and(|left| left <= seconds) => {}
                Some(seconds) => {
                    self.admin.must(&Method::PATCH, &path, Some(&json!({ "ttl": seconds })))?;
                }
            }
        }
        Ok(())
    }

    /// Lets a user's keys stop working after these seconds; `None`: never.
    pub fn expire(&mut self, name: &str, expires_in: Option<u64>) -> Outcome<()> {
        let person = self.must_find(name)?;
        for key in self.keys(&person)? {
            let Some(id) = id_of(&key) else { continue };
            let path = format!("/consumers/{}/key-auth/{id}", person.id);
            if expires_in.is_none() && key["ttl"].is_null() {
                continue;
            }
            self.admin.must(&Method::PATCH, &path, Some(&json!({ "ttl": expires_in.unwrap_or(NEVER) })))?;
        }
        Ok(())
    }

    /// Puts a user into a team, or out of the one of today.
    pub fn team(&self, name: &str, team: Option<&str>) -> Outcome<()> {
        self.tag(name, |consumer| tags::with_team(consumer, team))
    }

    /// Gives a user a larger or smaller share where calls wait; `None`: as for all.
    pub fn weight(&self, name: &str, weight: Option<u32>) -> Outcome<()> {
        self.tag(name, |consumer| tags::with_weight(consumer, weight))
    }

    fn tag(&self, name: &str, tags: impl Fn(&Value) -> Value) -> Outcome<()> {
        let path = format!("/consumers/{}", self.must_find(name)?.id);
        let consumer = self.admin.find(&path)?.unwrap_or_default();
        self.admin.must(&Method::PATCH, &path, Some(&json!({ "tags": tags(&consumer) })))?;
        Ok(())
    }

    /// Takes a user out; what is logged stays.
    pub fn remove(&self, name: &str) -> Outcome<()> {
        let person = self.must_find(name)?;
        self.admin.remove(&format!("/consumers/{}", person.id))
    }

    /// Calls an hour for a user; `None`: as for all.
    pub fn limit(&self, name: &str, calls: Option<u32>) -> Outcome<()> {
        self.set_limit(&self.must_find(name)?, calls)
    }

    fn set_limit(&self, person: &Person, calls: Option<u32>) -> Outcome<()> {
        let own = self.own_plugin(person, "rate-limiting")?;
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
        self.add_plugin(person, "rate-limiting", config)
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

    fn keys(&self, person: &Person) -> Outcome<Vec<Value>> {
        self.list(&format!("/consumers/{}/key-auth", person.id))
    }

    fn list(&self, path: &str) -> Outcome<Vec<Value>> {
        self.admin.list(path).map_err(|trouble| self.admin.explain(trouble))
    }

    fn add_key(&self, person: &Person, key: &str, expires_in: Option<u64>, class: Class) -> Outcome<()> {
        let path = format!("/consumers/{}/key-auth", person.id);
        let mut credential = Map::from_iter([("key".to_owned(), json!(key))]);
        if let Some(seconds) = expires_in {
            credential.insert("ttl".to_owned(), json!(seconds));
        }
        if let Some(tags) = tags::of_key(class) {
            credential.insert("tags".to_owned(), tags);
        }
        let reply = self.admin.tell(&Method::POST, &path, Some(&Value::Object(credential)))?;
        match reply {
            Reply { status: 201, .. } => Ok(()),
            Reply { status: 409, .. } => Err(Failure::new("this key belongs to somebody already")),
            reply => Err(Failure::new(format!("Kong refused the key: {}", self.admin.reason(&reply)))),
        }
    }
}

/// The command that makes what users need in Kong.
fn configure(command: &str) -> String {
    if command == crate::commands::PROGRAM { format!("{command} kong apply") } else { format!("{command} apply") }
}
