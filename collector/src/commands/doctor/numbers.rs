//! Whether llm-audit and http-log run for the same calls: a call needs both or neither. And whether a Kong that serves other things,
//! too, logs those as conversations.

use serde_json::Value;

use super::Report;
use super::plugins::{Plugins, in_short, is_collector};
use crate::config::DoctorSettings;
use crate::kong::entities::{is_own, name_of};
use crate::kong::state::State;
use crate::kong::ways::Way;

impl Plugins<'_> {
    /// Each call that llm-audit sees takes a number. Where http-log does not send its entry, the number never arrives.
    pub(super) fn numbers(&self, entities: &State, settings: &DoctorSettings, report: &mut Report) {
        let everything = entities.everything();
        let sends = |way: &Way<'_>| {
            let endpoint = self.on("http-log", way).and_then(|plugin| plugin["config"]["http_endpoint"].as_str());
            endpoint.is_some_and(|endpoint| is_collector(endpoint, settings))
        };
        // Where none is sent at all, that is the fault, and is said elsewhere.
        if !everything.iter().any(sends) {
            return;
        }
        let burns: Vec<&Way<'_>> = everything.iter().filter(|way| self.counts(way).is_some() && !sends(way)).collect();
        if burns.is_empty() {
            report.good("kong.numbers", "llm-audit and http-log run for the same calls");
            return;
        }
        // One that somebody else made must go; of the installation's own the scope is put right.
        let foreign = |plugin: &&Value| ["llm-audit", "http-log"].iter().any(|name| plugin["name"] == *name) && !is_own(plugin);
        let is_foreign = self.list.iter().filter(foreign).any(|plugin| plugin["consumer"].is_null());
        let names: Vec<String> = burns.iter().map(|way| way.name()).collect();
        report.problem(
            "kong.numbers",
            format!("llm-audit counts calls of which http-log sends no entry: {}", in_short(&names)),
            "each takes a number that never arrives: the alert for lost entries fires although nothing is lost",
            self.mend.for_owner(!is_foreign),
        );
    }

    /// An instance of llm-audit that may run on a way, for everybody or for one consumer.
    fn counts(&self, way: &Way<'_>) -> Option<&Value> {
        let fits = |of: &Value, here: Option<&str>| of["id"].as_str().is_none_or(|id| Some(id) == here);
        let (service, route) = (way.service_id(), way.route_id());
        self.list.iter().find(|plugin| {
            plugin["name"] == "llm-audit"
                && plugin["enabled"] != false
                && fits(&plugin["service"], service)
                && fits(&plugin["route"], route)
                // Who calls an unknown path is not known.
                && (route.is_some() || plugin["consumer"].is_null())
        })
    }

    /// Calls of services that do not lead to vLLM, whose bodies are kept all the same.
    pub(super) fn others(&self, entities: &State, to_vllm: &[&Value], report: &mut Report) {
        let is_other = |way: &Way<'_>| way.service_id().is_some_and(|id| !to_vllm.iter().any(|service| service["id"] == id));
        let is_kept = |plugin: &Value| !["metadata", "none"].iter().any(|word| plugin["config"]["capture"] == *word);
        let kept = |way: &Way<'_>| self.on("llm-audit", way).is_some_and(is_kept);
        let mut names: Vec<String> = Vec::new();
        for way in entities.everything().into_iter().filter(|way| is_other(way) && kept(way)) {
            let name = way.service.map(name_of).unwrap_or_default();
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        if !names.is_empty() {
            report.warning(
                "kong.shared",
                format!("the bodies of calls to other services go into the audit log: {}", in_short(&names)),
                "what these services are told and answer is nobody's conversation with a model",
                self.mend.configure(),
            );
        }
    }
}
