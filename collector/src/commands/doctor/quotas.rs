//! Limits that hold nobody back, or not as they should: whom and which models they are for, prices, nodes that do not ask, and the
//! webhook. Whether the plugin runs that keeps them is looked at with the others, in [`super::plugins`].
//!
//! Where no limit is set, nothing is said.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Report;
use super::database::duration;
use super::mend::Mend;
use super::plugins::{Plugins, in_short};
use crate::commands::table::visible;
use crate::config::DoctorSettings;
use crate::counted::counted;
use crate::kong::admin::Admin;
use crate::kong::models::{Model, of_plugin};
use crate::kong::people;
use crate::kong::queue::QUEUE_PLUGIN;
use crate::kong::state::State;
use crate::kong::wanted::QUOTA_PLUGIN;
use crate::kong::ways::Way;
use crate::store::quota_facts::{Facts, Limit, Silent, Untold};

const SUBJECTS: &str = "quotas.subjects";
const MODELS: &str = "quotas.models";
const PRICES: &str = "quotas.prices";
const SYNC: &str = "quotas.sync";
const DICT: &str = "quotas.dict";
const WAITING: &str = "quotas.waiting";
const WEBHOOK: &str = "quotas.webhook";

/// The user as whom calls without a key are counted.
const NOBODY: &str = "anonymous";
/// What a node tells is noted once a minute where it is nothing new.
const NOTED_SECONDS: i64 = 60;

const WHY_NOBODY: &str = "they hold nobody back; often a name is spelled otherwise in the limit";
const WHY_FREE: &str = "what these limits are for costs nothing, so they hold nobody back";
const WHY_OLD: &str = "limits are held there to what was used then, and what other nodes use is not counted";
const WHY_UNTOLD: &str = "nobody is told that a limit is nearly used up, and at the end of its window the notice is given up";

/// What PostgreSQL alone tells.
pub(super) fn in_database(facts: &Facts, settings: &DoctorSettings, report: &mut Report) {
    if facts.limits.is_empty() {
        return;
    }
    let mend = Mend::of(settings);
    prices(&facts.limits, mend, report);
    sync(&facts.silent, report);
    let is_set = settings.webhook.quota_webhook_url.as_deref().is_some_and(|url| !url.is_empty());
    webhook(&facts.untold, is_set, mend, report);
}

/// What takes Kong to tell.
pub(super) fn in_kong(
    kong: &Admin,
    (entities, status): (&State, &Value),
    (plugins, ways): (&Plugins<'_>, &[Way<'_>]),
    facts: &Facts,
    report: &mut Report,
) {
    if facts.limits.is_empty() {
        return;
    }
    if ways.iter().any(|way| plugins.on(QUOTA_PLUGIN, way).is_some()) {
        dict(&status["memory"]["lua_shared_dicts"], report);
        waiting(&facts.limits, plugins, ways, report);
    }
    subjects(kong, &facts.limits, plugins.mend, report);
    models(entities, facts, plugins.mend, report);
}

/// The numbers of limits, and a command that removes them.
fn removing(ids: &[i64], mend: Mend<'_>) -> String {
    let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
    mend.command(&format!("quota remove {}", ids.join(" ")))
}

/// Without it the plugin lets every call in, and asks for nothing. Kong names its own dicts there, too; what names none says nothing.
fn dict(dicts: &Value, report: &mut Report) {
    if dicts["kong"].is_object() && dicts["llm_quota"].is_null() {
        report.problem(
            DICT,
            "Kong has no shared dict llm_quota",
            "llm-quota has no place to count in: limits hold nobody back",
            "KONG_NGINX_HTTP_LUA_SHARED_DICT=\"llm_gateway 16m; lua_shared_dict llm_quota 16m; lua_shared_dict llm_queue 4m\" in \
             Kong's environment; gateway apply; gateway restart kong",
        );
    }
}

/// Limits over which calls are to wait, where nothing lets them.
fn waiting(limits: &[Limit], plugins: &Plugins<'_>, ways: &[Way<'_>], report: &mut Report) {
    let ids: Vec<i64> = limits.iter().filter(|limit| limit.quota.mode == "wait").map(|limit| limit.quota.id).collect();
    if ids.is_empty() || ways.iter().any(|way| plugins.on(QUEUE_PLUGIN, way).is_some()) {
        return;
    }
    let names: Vec<String> = ids.iter().map(|id| format!("limit {id}")).collect();
    report.warning(
        WAITING,
        format!("{} lets calls wait that are over it, and no call waits here: {QUEUE_PLUGIN} is not there", in_short(&names)),
        "who is over it is refused, as by a soft limit",
        plugins.mend.with("QUEUE_IN_FLIGHT=…", "QUEUE_IN_FLIGHT=…"),
    );
}

/// Users and teams that nobody knows. Whoever has called has been there, also where Kong has him no more.
fn subjects(kong: &Admin, limits: &[Limit], mend: Mend<'_>, report: &mut Report) {
    let unknown: Vec<&Limit> = limits.iter().filter(|limit| !limit.has_called && limit.quota.name != NOBODY).collect();
    if unknown.is_empty() {
        return;
    }
    // Kong that does not answer is a finding of its own.
    let Ok(consumers) = kong.list("/consumers") else { return };
    let is_known = |limit: &&Limit| {
        let name = limit.quota.name.as_str();
        consumers.iter().any(|consumer| match limit.quota.kind.as_str() {
            "user" => [&consumer["username"], &consumer["custom_id"]].contains(&&Value::from(name)),
            _ => {
                let mut tags = consumer["tags"].as_array().into_iter().flatten().filter_map(Value::as_str);
                tags.find_map(people::team_in) == Some(name)
            }
        })
    };
    let unknown: Vec<&Limit> = unknown.into_iter().filter(|limit| !is_known(limit)).collect();
    if unknown.is_empty() {
        return;
    }
    let whose = |limit: &&Limit| format!("{} {} (limit {})", limit.quota.kind, visible(&limit.quota.name), limit.quota.id);
    let names: Vec<String> = unknown.iter().map(whose).collect();
    let ids: Vec<i64> = unknown.iter().map(|limit| limit.quota.id).collect();
    report.warning(
        SUBJECTS,
        format!("neither Kong nor the log knows whom limits are for: {}", in_short(&names)),
        WHY_NOBODY,
        format!(
            "{} shows who there is; set the limit for the right name, then {}",
            mend.command("users list"),
            removing(&ids, mend)
        ),
    );
}

/// Limits for models that nobody calls and that the gateway does not have. One of 0 is there to keep a model away.
fn models(entities: &State, facts: &Facts, mend: Mend<'_>, report: &mut Report) {
    let routers = entities.plugins.iter().filter(|plugin| plugin["name"] == "llm-router" && plugin["enabled"] != false);
    let Ok(lists) = routers.map(of_plugin).collect::<Result<Vec<Vec<Model>>, _>>() else { return };
    let configured: Vec<Model> = lists.into_iter().flatten().collect();
    let mut has: Vec<String> = configured.iter().map(|model| served(model).to_owned()).chain(facts.models.clone()).collect();
    has.sort_unstable();
    has.dedup();
    if has.is_empty() {
        return;
    }
    for Limit { quota, .. } in facts.limits.iter().filter(|limit| !limit.has_model && limit.quota.amount != "0") {
        if has.iter().any(|name| is_like(name, &quota.models)) {
            continue;
        }
        let names = |model: &&Model| std::iter::once(&model.name).chain(&model.aliases).any(|name| is_like(name, &quota.models));
        let (id, pattern) = (quota.id, visible(&quota.models));
        let what = match configured.iter().find(names) {
            Some(model) => format!(
                "limit {id} is for models like {pattern}, which is what the gateway calls {}: limits go by the name that its servers \
                 have for it",
                visible(served(model))
            ),
            None => {
                let has: Vec<String> = has.iter().map(|name| visible(name).into_owned()).collect();
                format!("limit {id} is for models like {pattern}, and none is called so; there are: {}", in_short(&has))
            }
        };
        let mend = format!(
            "{} shows what there is; set the limit with --models for that, then {}",
            mend.models("list"),
            removing(&[id], mend)
        );
        report.warning(MODELS, what, WHY_NOBODY, mend);
    }
}

/// What a model's servers call it.
fn served(model: &Model) -> &str {
    model.served_as.as_deref().filter(|name| !name.is_empty()).unwrap_or(&model.name)
}

/// Whether a name is one of a pattern, by the rules of PostgreSQL's `LIKE`; limits have no escape character.
fn is_like(name: &str, pattern: &str) -> bool {
    let (name, pattern): (Vec<char>, Vec<char>) = (name.chars().collect(), pattern.chars().collect());
    let (mut at, mut next) = (0, 0);
    // Behind the last %, and what it stands for so far ends there.
    let mut again: Option<(usize, usize)> = None;
    while let Some(c) = name.get(at) {
        match pattern.get(next) {
            Some('%') => {
                next += 1;
                again = Some((next, at));
            }
            Some(wanted) if *wanted == '_' || wanted == c => {
                at += 1;
                next += 1;
            }
            _ => {
                let Some((behind, end)) = again else { return false };
                again = Some((behind, end + 1));
                (next, at) = (behind, end + 1);
            }
        }
    }
    pattern.iter().skip(next).all(|c| *c == '%')
}

/// Limits of cost for what has no price.
fn prices(limits: &[Limit], mend: Mend<'_>, report: &mut Report) {
    let set = |currency: &str| {
        format!(
            "{} shows them; {}",
            mend.command("prices list"),
            mend.command(&format!("prices set MODEL --prompt … --completion … --currency {currency}"))
        )
    };
    let mut unpriced: BTreeMap<(&[String], &str), Vec<String>> = BTreeMap::new();
    for limit in limits.iter().filter(|limit| limit.quota.unit == "cost") {
        let (id, currency) = (limit.quota.id, limit.quota.currency.as_str());
        let shown = visible(currency);
        if !limit.has_price {
            report.problem(PRICES, format!("limit {id} is in {shown}, and no price is"), WHY_FREE, set(&shown));
        } else if !limit.currencies.is_empty() && !limit.currencies.iter().any(|other| other == currency) {
            let others: Vec<String> = limit.currencies.iter().map(|other| visible(other).into_owned()).collect();
            let what = format!("limit {id} is in {shown}, and the models that it is for have prices in {}", in_short(&others));
            report.problem(PRICES, what, WHY_FREE, set(&shown));
        } else if !limit.unpriced.is_empty() {
            unpriced.entry((&limit.unpriced, currency)).or_default().push(id.to_string());
        }
    }
    for ((models, currency), ids) in unpriced {
        let models: Vec<String> = models.iter().map(|model| visible(model).into_owned()).collect();
        let what = format!("calls of {} cost nothing for limit {}: they have no price", in_short(&models), in_short(&ids));
        report.warning(PRICES, what, "whoever has used up what he may spend goes on with these models", set(&visible(currency)));
    }
}

/// Nodes that send entries, but do not ask.
fn sync(silent: &[Silent], report: &mut Report) {
    for Silent { node, calls, seconds } in silent {
        let what = match (node, seconds) {
            (Some(node), Some(seconds)) => format!(
                "{} has not asked the collector for limits for {} at least, and {calls} of its calls came since",
                visible(node),
                duration((seconds - NOTED_SECONDS).max(30))
            ),
            _ => format!(
                "{} from workers of Kong that never asked the collector for limits",
                counted(calls, "call of the last minutes came", "calls of the last minutes came")
            ),
        };
        report.problem(
            SYNC,
            what,
            WHY_OLD,
            "gateway logs kong | grep 'tell the collector' says why; POST /sync of the collector must be reachable for Kong as /log \
             is, and Kong needs the shared dict llm_gateway; gateway apply; gateway restart kong",
        );
    }
}

/// Notices that wait. Whoever is told is not named: the address may be a secret.
fn webhook(untold: &Untold, is_set: bool, mend: Mend<'_>, report: &mut Report) {
    let Untold { notices, seconds, tries, others_taken } = *untold;
    let age = duration(seconds);
    if notices == 0 {
        if is_set {
            report.good(WEBHOOK, "no notice of a limit waits for it");
        }
    } else if tries > 0 {
        report.problem(
            WEBHOOK,
            format!(
                "it has not taken {}, the oldest for {age}, after up to {}",
                counted(notices, "notice about a limit", "notices about limits"),
                counted(tries, "try", "tries")
            ),
            WHY_UNTOLD,
            format!(
                "{} says what it answers; gateway logs collector | grep 'could not tell'",
                mend.command("quota webhook-test")
            ),
        );
    } else if is_set && !others_taken {
        report.problem(
            WEBHOOK,
            format!(
                "{} for {age}, and no collector posts them",
                counted(notices, "notice about a limit waits", "notices about limits wait")
            ),
            WHY_UNTOLD,
            "give the collector QUOTA_WEBHOOK_URL and QUOTA_WEBHOOK_SECRET_FILE: gateway apply; gateway restart collector",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::is_like;

    #[test]
    fn patterns_are_those_of_postgresql() {
        for (name, pattern) in [
            ("", "%"),
            ("Qwen3", "Qwen%"),
            ("Qwen3", "%3"),
            ("Qwen3", "Qwen_"),
            ("a%b", "a%b"),
            ("aXbXb", "a%b"),
            ("é1", "_1"),
            ("ab", "%%a%b%"),
        ] {
            assert!(is_like(name, pattern), "{name} {pattern}");
        }
        for (name, pattern) in
            [("", "_"), ("qwen3", "Qwen%"), ("Qwen3", "Qwen"), ("Qwen", "Qwen_"), ("abc", "a%b"), ("ab", "a_b")]
        {
            assert!(!is_like(name, pattern), "{name} {pattern}");
        }
    }
}
