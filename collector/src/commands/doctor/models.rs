//! The servers of llm-router's models: whether they live, and have the models that calls are led to them for.
//!
//! Kong looks from where it stands, doctor from here: where only one of the two reaches a server, that is said, and nothing is concluded
//! from it. Keys are sent to the servers that they are for, and never told.

use std::collections::BTreeMap;

use serde_json::Value;

use super::mend::Mend;
use super::services::get;
use super::{Level, Report};
use crate::commands::table::visible;
use crate::counted::counted;
use crate::kong::admin::Admin;
use crate::kong::entities::{SERVICE, own_id};
use crate::kong::models::{Health, Model, bearer_of, health_of, of_plugin, served_names};
use crate::kong::state::State;

const CHECK: &str = "models";
const SERVERS: &str = "models.servers";
const NAMES: &str = "models.names";
const KEYS: &str = "models.keys";
/// Names of models that a finding repeats.
const MOST_NAMES: usize = 5;

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// It is not reached from here.
    Nothing(String),
    /// Its health check has this status, which is not 200.
    Ill(u16),
    /// It lives, and its list of models has this status, which is not 200.
    NoList(u16),
    /// It has these models.
    Models(Vec<String>),
}

pub(super) fn examine(kong: &Admin, entities: &State, mend: Mend<'_>, report: &mut Report) {
    let routers = entities.plugins.iter().filter(|plugin| plugin["name"] == "llm-router" && plugin["enabled"] != false);
    let lists: Result<Vec<Vec<Model>>, _> = routers.map(of_plugin).collect();
    let models: Vec<Model> = match lists {
        Ok(lists) => lists.into_iter().flatten().collect(),
        Err(error) => {
            report.problem(CHECK, error.what, "which server a call goes to cannot be told", mend.models("list"));
            return;
        }
    };
    let service = entities.services.iter().find(|service| service["id"] == own_id(SERVICE).as_str());
    let protocol = service.and_then(|service| service["protocol"].as_str()).unwrap_or("http");
    let shared_key = service.and_then(|service| key_of_all(entities, service));
    let mut asked = BTreeMap::new();
    let before = report.problems() + report.warnings();
    for model in &models {
        let servers = match health_of(kong, model) {
            Ok(servers) if !servers.is_empty() => servers,
            _ => {
                let name = visible(&model.name);
                report.problem(
                    SERVERS,
                    format!("the model {name} has no servers: Kong has none in the upstream {}", model.upstream),
                    "every call for it gets 503",
                    mend.models(&format!("add {name} http://HOST:PORT")),
                );
                continue;
            }
        };
        // A reference to a vault is resolved in Kong alone.
        let key = model.key.as_deref().filter(|key| !key.is_empty()).or(shared_key);
        let is_known = key.is_none_or(|key| !key.starts_with("{vault://"));
        let someone_lives = servers.iter().any(|server| server.health != "UNHEALTHY" && server.health != "DNS_ERROR");
        for server in &servers {
            let known = key.filter(|_| is_known);
            let place = (server.target.clone(), known);
            let said = asked.entry(place).or_insert_with(|| ask(protocol, &server.target, known)).clone();
            let about = About { model, server, someone_lives, has_key: key.is_some(), is_known, mend };
            about.tell(&said, report);
        }
    }
    if !models.is_empty() && report.problems() + report.warnings() == before {
        report.good(CHECK, counted(models.len(), "model, and its servers have it", "models, and their servers have them"));
    }
}

/// The key that `kong apply` sends to every server.
fn key_of_all<'e>(entities: &'e State, service: &Value) -> Option<&'e str> {
    let of_service = |plugin: &&Value| plugin["name"] == "request-transformer" && plugin["service"]["id"] == service["id"];
    entities.plugins.iter().filter(of_service).filter(|plugin| plugin["enabled"] != false).find_map(bearer_of)
}

fn ask(protocol: &str, target: &str, key: Option<&str>) -> Said {
    let url = format!("{protocol}://{target}");
    match get(&format!("{url}/health"), None) {
        Ok(answer) if answer.status == 200 => {}
        Ok(answer) => return Said::Ill(answer.status),
        Err(error) => return Said::Nothing(error),
    }
    let bearer = key.map(|key| format!("Bearer {key}"));
    match get(&format!("{url}/v1/models"), bearer.as_deref()) {
        Ok(answer) if answer.status == 200 => Said::Models(served_names(&answer.json())),
        Ok(answer) => Said::NoList(answer.status),
        Err(error) => Said::Nothing(error),
    }
}

/// A server of a model.
struct About<'a> {
    model: &'a Model,
    server: &'a Health,
    /// Kong finds a server of the model that answers calls.
    someone_lives: bool,
    /// Kong sends a key.
    has_key: bool,
    /// What it sends is known here.
    is_known: bool,
    mend: Mend<'a>,
}

impl About<'_> {
    fn tell(&self, said: &Said, report: &mut Report) {
        let (name, target) = (visible(&self.model.name), visible(&self.server.target));
        let is_out = matches!(self.server.health.as_str(), "UNHEALTHY" | "DNS_ERROR");
        let level = if self.someone_lives { Level::Warning } else { Level::Problem };
        let why = if self.someone_lives {
            "the model's other servers have to do its work"
        } else {
            "every call for the model gets 503"
        };
        let start = || {
            let again = self.mend.models(&format!("add {name} URL…"));
            format!("start the model server at {target}; or name the servers that there are: {again}")
        };
        match said {
            Said::Nothing(_) | Said::Ill(_) if is_out => {
                report.add(level, SERVERS, format!("{target}, a server of {name}, is down, for Kong as well"), why, start());
            }
            Said::Nothing(error) => report.warning(
                SERVERS,
                format!("{target}, a server of {name}, does not answer here ({error}); Kong finds it {}", self.kongs_word()),
                "whether it has the model could not be looked at",
                format!(
                    "curl -i http://{target}/health on the host on which Kong runs; nothing is wrong where only Kong reaches it"
                ),
            ),
            Said::Ill(status) => report.add(
                level,
                SERVERS,
                format!("{target}, a server of {name}, answers its health check with status {status}"),
                "calls that go there fail until its engine runs again",
                format!("look at the log of the model server at {target}, and start it again"),
            ),
            _ if is_out => report.add(
                level,
                SERVERS,
                format!("{target}, a server of {name}, answers here, but Kong finds it {}", self.kongs_word()),
                why,
                format!(
                    "Kong looks every few seconds; if it stays so: curl -i http://{target}/health on the host on which Kong runs"
                ),
            ),
            Said::NoList(401 | 403) if self.is_known => {
                let add = self.mend.models(&format!("add {name} URL… --key-file FILE"));
                let what = if self.has_key {
                    "does not take the key that the gateway sends"
                } else {
                    "wants a key, and the gateway has none for it"
                };
                report.problem(
                    KEYS,
                    format!("{target}, a server of {name}, {what}"),
                    "every call that goes there gets 401 from the model server",
                    format!("give the model its servers' key: {add}"),
                );
            }
            Said::NoList(status) => report.warning(
                NAMES,
                format!("{target}, a server of {name}, does not tell its models (status {status})"),
                "whether it has the model could not be looked at",
                format!("curl http://{target}/v1/models with the server's key"),
            ),
            Said::Models(names) => self.look_for_name(names, report),
        }
    }

    fn kongs_word(&self) -> String {
        match self.server.health.as_str() {
            "HEALTHCHECKS_OFF" => "neither healthy nor not: its health checks are off".to_owned(),
            word => word.to_ascii_lowercase(),
        }
    }

    fn look_for_name(&self, names: &[String], report: &mut Report) {
        let wanted = self.model.served_as.as_deref().filter(|name| !name.is_empty()).unwrap_or(&self.model.name);
        if names.iter().any(|name| name == wanted) {
            return;
        }
        let mut has: Vec<String> = names.iter().take(MOST_NAMES).map(|name| visible(name).into_owned()).collect();
        if names.len() > MOST_NAMES {
            has.push(format!("{} more", names.len() - MOST_NAMES));
        }
        let (name, has) = (visible(&self.model.name), if has.is_empty() { "none".to_owned() } else { has.join(", ") });
        report.problem(
            NAMES,
            format!(
                "{} does not have the model {}, which calls for {name} ask it for; it has: {has}",
                self.server.target,
                visible(wanted)
            ),
            "calls that go there get 404",
            format!("say what it is called there: {}", self.mend.models(&format!("add {name} URL… --served-as NAME"))),
        );
    }
}
