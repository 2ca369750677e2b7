//! Bringing Kong to the wanted state.

use std::time::Duration;

use serde_json::Value;
use ureq::http::Method;

use super::admin::{Admin, Reply};
use super::batch::Batch;
use super::entities::{Kind, LLM_ROUTER, id_of, is_own, own_id};
use super::failure::{Failure, Outcome};
use super::plan::{Others, Step, Word, plan};
use super::queue::QUEUE_PLUGIN;
use super::settings::{Settings, Shared};
use super::state::State;
use super::wanted::{NEWER_PLUGINS, OWN_PLUGINS, QUOTA_PLUGIN, wanted};
use crate::certificates::pinned;
use crate::webhook;

/// 3.9.4 of October 2026 closes request smuggling (CVE-2026-6338), an SQL injection (CVE-2026-1907) and five holes of nginx.
pub const OLDEST_KONG: [u32; 3] = [3, 9, 4];

/// How often, and how long apart, the gateway is asked whether it is there.
const LOOKS: u32 = 60;
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// The first three numbers of a version.
pub fn numbers_of(version: &str) -> [u32; 3] {
    let mut numbers = version.split(['.', '-']).map(|number| {
        let digits = number.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse::<u32>().unwrap_or(0)
    });
    [numbers.next(), numbers.next(), numbers.next()].map(|number| number.unwrap_or(0))
}

/// Everything that is known before anything is changed.
#[derive(Debug)]
pub struct Ready {
    /// What is to be done.
    pub steps: Vec<Step>,
    /// What should be known.
    pub warnings: Vec<String>,
}

/// Looks at Kong and says what it takes, with `adopt` also to remove what somebody else made.
pub fn prepare(admin: &Admin, settings: &Settings, adopt: bool) -> Outcome<Ready> {
    let (mut warnings, settings) = check(admin, settings)?;
    let settings = &settings;
    let state = State::read(admin).map_err(|trouble| admin.explain(trouble))?;
    let to_model = state.leading_to(&settings.vllm.host, settings.vllm.port);
    let serves_others = |service: &Value| !is_own(service) && !to_model.iter().any(|other| other["id"] == service["id"]);
    let is_shared = match settings.shared {
        Shared::Yes => true,
        Shared::No => false,
        Shared::Auto => state.services.iter().any(serves_others),
    };
    let batch = Batch::of(settings, &state.plugins, admin.url())?;
    let others = Others::find(&state, &to_model, is_shared);
    let mut steps = Vec::new();
    if adopt {
        steps = others.removal(&state);
    } else {
        warnings.extend(others.warnings(admin.url()));
    }
    let has_models = state.find(Kind::Plugin, &own_id(LLM_ROUTER)).is_some();
    steps.extend(plan(&wanted(settings, &batch, is_shared, has_models), &state));
    Ok(Ready { steps, warnings })
}

/// The numbers alone.
pub fn batch(admin: &Admin, settings: &Settings) -> Outcome<Batch> {
    let plugins = admin.list("/plugins").map_err(|trouble| admin.explain(trouble))?;
    Batch::of(settings, &plugins, admin.url())
}

/// Whether this is a Kong that can be configured. Returns what is to be warned of, and the settings without what it cannot do.
fn check(admin: &Admin, settings: &Settings) -> Outcome<(Vec<String>, Settings)> {
    let about = admin.page("/").map_err(|trouble| admin.explain(trouble))?;
    let not_kong =
        || Failure::new(format!("{} does not say which version of Kong it is", admin.url())).advise("Is this Kong's Admin API?");
    let version = about["version"].as_str().filter(|version| version.contains('.')).ok_or_else(not_kong)?;
    let numbers = numbers_of(version);
    let oldest = OLDEST_KONG.map(|number| number.to_string()).join(".");
    let mut warnings = Vec::new();
    if numbers < [3, 9, 0] {
        return Err(Failure::new(format!("Kong {version} is too old: the log plugin needs 3.9"))
            .advise(format!("Use a 3.9 image, {oldest} or newer, and run 'kong migrations up'.")));
    } else if numbers < OLDEST_KONG {
        let hole = format!("Kong {version} lets requests be smuggled past the key check (CVE-2026-6338)");
        if !settings.accept_old {
            return Err(Failure::new(hole)
                .advise(format!("Use {oldest} or newer, and run 'kong migrations up'."))
                .advise("For a Kong that nobody else reaches:  KONG_ACCEPT_OLD=1"));
        }
        warnings.push(format!("{hole}; upgrade to {oldest} or newer"));
    } else if numbers >= [3, 10, 0] {
        warnings.push(format!("Kong {version}: only the 3.9 line was tested"));
    }
    if let Some(edition) = about["edition"].as_str().filter(|edition| !matches!(*edition, "" | "community")) {
        warnings.push(format!("this is Kong's {edition} edition: it may want a licence and a token for its Admin API"));
    }
    if about["configuration"]["database"] == "off" {
        return Err(Failure::new(format!("the Kong at {} runs without a database: it takes no changes here", admin.url()))
            .advise(
                "Give it a file that says the same:  llm-collector kong export --output kong.json   (KONG_DECLARATIVE_CONFIG)",
            )
            .advise("or a database: KONG_DATABASE=postgres, then 'kong migrations bootstrap'."));
    }
    let available = &about["plugins"]["available_on_server"];
    let mut settings = settings.clone();
    if settings.quotas && !is_available(available, QUOTA_PLUGIN) {
        settings.quotas = false;
        warnings.push(without(QUOTA_PLUGIN, "limits are not kept", "quotas.md, or set QUOTAS=false"));
    }
    if settings.queue.is_some() && !is_available(available, QUEUE_PLUGIN) {
        settings.queue = None;
        warnings.push(without(QUEUE_PLUGIN, "no call waits for its share", "fair-share.md, or leave QUEUE_IN_FLIGHT empty"));
    }
    let is_missing = |name: &&str| !NEWER_PLUGINS.contains(name) && !is_available(available, name);
    let missing: Vec<&str> = OWN_PLUGINS.into_iter().filter(is_missing).collect();
    if missing.is_empty() {
        return Ok((warnings, settings));
    }
    Err(Failure::new(format!("Kong does not have the plugins: {}", missing.join(" ")))
        .advise("llm-audit is part of this project, the others come with Kong. Make the folder kong-plugins")
        .advise("readable for Kong, start it with")
        .advise(format!("  KONG_PLUGINS={PLUGINS}"))
        .advise("  KONG_LUA_PACKAGE_PATH='/path/to/kong-plugins/?.lua;/path/to/kong-plugins/?/init.lua;;'")
        .advise("and run this again. Kong's log says why a plugin could not be loaded."))
}

/// What Kong has to be started with.
pub const PLUGINS: &str = "bundled,llm-audit,llm-router,llm-quota,llm-queue";

/// A plugin is not there. `page`: which page of the documentation names its dict, and what else can be done.
fn without(plugin: &str, result: &str, page: &str) -> String {
    format!(
        "Kong does not have the plugin {plugin}, so {result}: start it with KONG_PLUGINS={PLUGINS} and the dict of docs/{page}"
    )
}

/// Whether Kong, by its page about itself, has a plugin.
pub fn is_available(available: &Value, name: &str) -> bool {
    !available[name].is_null() && available[name] != false
}

/// Carries out a step.
pub fn carry_out(admin: &Admin, step: &Step) -> Outcome<()> {
    let (Word::Created | Word::Updated, Some(body)) = (step.word, &step.body) else {
        return if step.word == Word::Removed { admin.remove(&step.path) } else { Ok(()) };
    };
    let reply = admin.tell(&Method::PUT, &step.path, Some(body))?;
    match reply.status {
        _ if reply.is_good() => Ok(()),
        409 => Err(conflict(admin, step, body, &reply)),
        _ => Err(Failure::new(format!("Kong refused {}: {}", step.label, admin.reason(&reply)))),
    }
}

/// Somebody else's service, route or plugin is in the way.
fn conflict(admin: &Admin, step: &Step, wanted: &Value, reply: &Reply) -> Failure {
    let label = &step.label;
    if step.kind != Kind::Plugin {
        return Failure::new(format!("Kong has another {label} of that name: {}", admin.reason(reply))).advise(
            "It was not made by this program. Rename or remove it, then run this again; if it leads to vLLM, --adopt removes it.",
        );
    }
    let is_it = |plugin: &&Value| {
        plugin["name"] == wanted["name"]
            && plugin["service"]["id"] == wanted["service"]["id"]
            && plugin["route"].is_null()
            && plugin["consumer"].is_null()
            && !is_own(plugin)
    };
    let plugins = admin.list("/plugins").unwrap_or_default();
    let id = plugins.iter().find(is_it).and_then(id_of).unwrap_or_default();
    let named = if id.is_empty() { String::new() } else { format!(", id {id}") };
    Failure::new(format!("Kong has another instance of {label} with the same scope{named}"))
        .advise(format!("It was not made by this program. Look at it:  curl {}/plugins/{id}", admin.url()))
        .advise("If it is left from an earlier installation, run this again with --adopt, which removes it.")
        .advise("If this Kong serves other things and needs it, set KONG_SHARED=1: audit and metrics are then")
        .advise("bound to the vLLM service only. Then run this again.")
}

/// Waits until the gateway answers as it should: without a key /v1/models answers 401 once route and key check are in effect, and an
/// unknown path 404. At an `https` address it has the certificate of the settings by then.
pub fn wait_until_live(admin_url: &str, settings: &Settings) -> Outcome<()> {
    let proxy_url = &settings.proxy_url;
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(LOOK_TIMEOUT))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        // Who looks for another certificate wants another connection.
        .max_idle_connections(0)
        .proxy(None);
    let agent = match settings.certificate {
        Some(wanted) => pinned::agent(config.build(), wanted).map_err(|error| Failure::new(error.to_string()))?,
        None if proxy_url.starts_with("https://") => {
            let tls = webhook::tls(None).map_err(|error| Failure::new(error.to_string()))?;
            config.tls_config(tls).build().into()
        }
        None => config.build().into(),
    };
    let (mut status, mut silence) = (None, String::new());
    for _ in 0..LOOKS {
        match agent.get(format!("{proxy_url}/v1/models")).call() {
            Ok(answer) if answer.status().as_u16() == 401 => return Ok(()),
            Ok(answer) => status = Some(answer.status().as_u16()),
            Err(error) => (status, silence) = (None, error.to_string()),
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Err(match status {
        None => Failure::new(format!("the gateway does not answer at {proxy_url}: {silence}"))
            .advise("Its port is set by KONG_PROXY_LISTEN (Kong) and KONG_PROXY_URL (this program)."),
        Some(404) => Failure::new(format!("the gateway at {proxy_url} still answers 404 after 30 s"))
            .advise(format!("Is {admin_url} the Admin API of the same Kong?")),
        Some(status) => Failure::new(format!("the gateway at {proxy_url} answers {status} to a call without a key, not 401"))
            .advise("See Kong's error log."),
    })
}
