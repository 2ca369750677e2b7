//! `models`: model servers, and who may use them.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::say;
use super::table::{aligned, visible};
use crate::config::{BalanceWord, ModelsAction, ModelsCommand};
use crate::counted::counted;
use crate::kong::admin::{Admin, secret};
use crate::kong::failure::{Failure, Outcome};
use crate::kong::models::{Balance, Health, Model, Models, check_model_name, served_names, upstream_name};
use crate::kong::people;
use crate::kong::server::Server;

/// Longest wait for a model server that is asked what it has, and its longest answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
const LONGEST_ANSWER: u64 = 1 << 20;
/// Who may use a model that is everybody's.
const EVERYBODY: &str = "everybody";
const TEAM: &str = "team:";

/// Carries out the command; the status is the program's.
pub fn run(command: &ModelsCommand) -> ExitCode {
    say::ending(carry_out(command).map(|()| ExitCode::SUCCESS))
}

fn carry_out(command: &ModelsCommand) -> Outcome<()> {
    let read = || Models::read(Admin::new(&command.admin)?);
    match &command.action {
        ModelsAction::Add { words, alias, served_as, only, balance, key_file } => {
            let (name, servers) = name_and_servers(words)?;
            alias.iter().try_for_each(|alias| check_model_name(alias))?;
            let (teams, users) = who(only)?;
            let key = match key_file.as_deref() {
                Some("-") => Some(say::first_line()?),
                file => secret("--key-file", None, file)?,
            };
            key.as_deref().map_or(Ok(false), people::check_key)?;
            let names = match name {
                Some(name) => vec![name.to_owned()],
                None if !alias.is_empty() || served_as.is_some() => {
                    return Err(Failure::misuse("--alias and --served-as need the name of the model"));
                }
                None => served(servers.first(), key.as_deref())?,
            };
            let balance = match balance {
                BalanceWord::Least => Balance::Least,
                BalanceWord::Consumer => Balance::Consumer,
            };
            let mut models = read()?;
            add_what_was_there(&mut models, &names, alias, &servers)?;
            for name in names {
                check_model_name(&name)?;
                let model = Model {
                    upstream: upstream_name(&name),
                    aliases: alias.clone(),
                    served_as: served_as.clone(),
                    teams: teams.clone(),
                    users: users.clone(),
                    key: key.clone(),
                    name: name.clone(),
                };
                models.put(model, &servers, balance)?;
                say::note(format!("{name}: {}", counted(servers.len(), "server", "servers")));
            }
            Ok(())
        }
        ModelsAction::Allow { name, who: words } => {
            let (teams, users) = who(words)?;
            read()?.allow(name, teams, users)?;
            say::note(format!("{name} is for: {}", words.join(", ")));
            Ok(())
        }
        ModelsAction::Remove { name } => {
            read()?.remove(name)?;
            say::note(format!("removed {name}"));
            Ok(())
        }
        ModelsAction::List { json } => list(&read()?, *json),
    }
}

/// With the first model calls go by the list alone: what was behind the one server until then joins it, or nobody would reach it any more.
fn add_what_was_there(models: &mut Models, names: &[String], aliases: &[String], servers: &[Server]) -> Outcome<()> {
    if !models.list.is_empty() {
        return Ok(());
    }
    let Some((first, key)) = models.first_server()?.filter(|(first, _)| !servers.contains(first)) else { return Ok(()) };
    let there = match served(Some(&first), key.as_deref()) {
        Ok(there) => there,
        Err(failure) => {
            let url = format!("{}://{}", first.protocol, first.target());
            say::note(format!("{}: its models are not reached any more until you add them: models add {url}", failure.what));
            return Ok(());
        }
    };
    for name in there.into_iter().filter(|name| !names.contains(name) && !aliases.contains(name)) {
        check_model_name(&name)?;
        let model = Model { upstream: upstream_name(&name), name: name.clone(), ..Model::default() };
        models.put(model, std::slice::from_ref(&first), Balance::Least)?;
        say::note(format!("{name}: 1 server, as before there were models"));
    }
    Ok(())
}

/// A name is whatever does not look like a server; the other words are servers.
fn name_and_servers(words: &[String]) -> Outcome<(Option<&str>, Vec<Server>)> {
    let is_server = |word: &str| word.starts_with("http://") || word.starts_with("https://");
    let (name, urls) = match words.split_first() {
        Some((first, rest)) if !is_server(first) => (Some(first.as_str()), rest),
        _ => (None, words),
    };
    if urls.is_empty() {
        return Err(Failure::misuse("a model needs the URL of a server, as http://10.0.0.7:8000"));
    }
    name.map_or(Ok(()), check_model_name)?;
    let mut servers: Vec<Server> = Vec::new();
    for url in urls {
        let server = Server::parse(url).filter(|server| server.path.is_empty());
        let server = server.ok_or_else(|| Failure::new(format!("a server is http://host:port without a path, not {url}")))?;
        // Kong's targets know no address of IPv6 in brackets without a port of its own; all have one here.
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    Ok((name, servers))
}

/// Teams and users of words like `team:ml` and `alice`; both empty: everybody.
fn who(words: &[String]) -> Outcome<(Vec<String>, Vec<String>)> {
    let (mut teams, mut users) = (Vec::new(), Vec::new());
    for word in words.iter().map(|word| word.trim()).filter(|word| !word.is_empty() && *word != EVERYBODY) {
        match word.strip_prefix(TEAM) {
            Some(team) => people::check_team(team).map(|()| teams.push(team.to_owned()))?,
            None => people::check_name(word).map(|()| users.push(word.to_owned()))?,
        }
    }
    if (!teams.is_empty() || !users.is_empty()) && words.iter().any(|word| word == EVERYBODY) {
        return Err(Failure::misuse("either everybody, or teams and users"));
    }
    Ok((teams, users))
}

/// What a server has.
fn served(server: Option<&Server>, key: Option<&str>) -> Outcome<Vec<String>> {
    let Some(server) = server else { return Ok(Vec::new()) };
    let url = format!("{}://{}/v1/models", server.protocol, server.target());
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(ASK_TIMEOUT)).max_redirects(0).proxy(None).build().into();
    let mut request = agent.get(&url);
    if let Some(key) = key {
        request = request.header("Authorization", format!("Bearer {key}"));
    }
    let silent = |error: ureq::Error| Failure::new(format!("{url} does not say which models it has: {error}"));
    let mut answer = request.call().map_err(silent)?;
    let text = answer.body_mut().with_config().limit(LONGEST_ANSWER).read_to_vec().map_err(silent)?;
    let page: Value = serde_json::from_slice(&text).unwrap_or_default();
    let names = served_names(&page);
    if names.is_empty() { Err(Failure::new(format!("{url} has no models"))) } else { Ok(names) }
}

fn list(models: &Models, as_json: bool) -> Outcome<()> {
    let mut with_health: Vec<(&Model, Vec<Health>)> = Vec::new();
    for model in &models.list {
        with_health.push((model, models.health(model)?));
    }
    for orphan in models.orphans()? {
        say::note(format!("Kong has servers under {orphan} that no model uses: add the model again, or models remove {orphan}"));
    }
    if as_json {
        let page: Vec<Value> = with_health.iter().map(|(model, servers)| {
            json!({
                "name": model.name, "aliases": model.aliases, "served_as": model.served_as, "teams": model.teams,
                "users": model.users,
                "servers": servers.iter().map(|server| json!({ "target": server.target, "health": server.health })).collect::<Vec<_>>(),
            })
        }).collect();
        return say::line(serde_json::to_string_pretty(&page).map_err(|error| Failure::new(error.to_string()))?);
    }
    let mut rows = vec![["MODEL", "ALIASES", "WHO", "SERVERS"].map(str::to_owned).to_vec()];
    for (model, servers) in with_health {
        let teams = model.teams.iter().map(|team| format!("{TEAM}{team}"));
        let who: Vec<String> = teams.chain(model.users.iter().cloned()).collect();
        let servers: Vec<String> =
            servers.iter().map(|server| format!("{} {}", server.target, server.health.to_ascii_lowercase())).collect();
        let who = if who.is_empty() { EVERYBODY.to_owned() } else { who.join(",") };
        let cells = [model.name.clone(), model.aliases.join(","), who, servers.join(", ")];
        rows.push(cells.iter().map(|cell| visible(cell).into_owned()).collect());
    }
    say::line(aligned(&rows, 4).trim_end())
}
