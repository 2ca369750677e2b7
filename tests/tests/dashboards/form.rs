//! The rules that every dashboard keeps to. Grafana's own schema allows far more than is useful.

use std::cell::Cell;
use std::collections::BTreeSet;

use gateway_tests::grafana::{self, Dashboard, Language, Query, list, text};
use serde_json::Value;

/// Calls `check` with every panel and a name for it.
fn for_each_panel(check: impl Fn(&Dashboard, &Value, &str)) {
    for dashboard in &grafana::dashboards() {
        for panel in dashboard.panels() {
            check(dashboard, panel, &format!("{}: {}", dashboard.file, text(panel, "/title")));
        }
    }
}

#[test]
fn dashboards_have_fixed_uids_a_tag_and_links_to_each_other() {
    let dashboards = grafana::dashboards();
    let files: Vec<&str> = dashboards.iter().map(|dashboard| dashboard.file.as_str()).collect();
    let expected = [
        "audit-pipeline",
        "capacity",
        "conversation",
        "conversations",
        "fair-share",
        "gateway-overview",
        "quotas",
        "usage-and-cost",
    ];
    assert_eq!(files, expected);
    for dashboard in &dashboards {
        // Links and bookmarks are made of the uid.
        assert_eq!(text(&dashboard.json, "/uid"), format!("llm-{}", dashboard.file));
        assert!(dashboard.json["id"].is_null(), "{}: an id belongs to one Grafana", dashboard.file);
        assert_eq!(list(&dashboard.json, "/tags"), ["llm-gateway"], "{}", dashboard.file);
        assert_eq!(list(&dashboard.json, "/links/0/tags"), ["llm-gateway"], "{}", dashboard.file);
        assert!(dashboard.panels().len() >= 2, "{}", dashboard.file);
        assert!(!text(&dashboard.json, "/description").is_empty(), "{}", dashboard.file);
    }
}

#[test]
fn panels_have_a_title_of_their_own_a_description_a_unit_and_decimals() {
    for dashboard in &grafana::dashboards() {
        let (mut ids, mut titles) = (BTreeSet::new(), BTreeSet::new());
        for panel in dashboard.panels() {
            let title = text(panel, "/title");
            let place = format!("{}: {title}", dashboard.file);
            assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{place}: an id that another panel has");
            assert!(!title.is_empty() && titles.insert(title), "{place}: a title that another panel has");
            // What it is and what to do cannot be said in less.
            assert!(text(panel, "/description").len() > 80, "{place}: no description worth the name");
            assert!(!text(panel, "/fieldConfig/defaults/unit").is_empty(), "{place}: no unit");
            assert!(panel["fieldConfig"]["defaults"]["decimals"].is_u64(), "{place}: no decimals");
        }
    }
}

#[test]
fn panels_do_not_lie_on_each_other() {
    for dashboard in &grafana::dashboards() {
        let mut taken = BTreeSet::new();
        for panel in dashboard.panels() {
            let place = |name: &str| panel["gridPos"][name].as_u64().expect("a number");
            assert!(place("x") + place("w") <= 24, "{}: {} is too wide", dashboard.file, text(panel, "/title"));
            for x in place("x")..place("x") + place("w") {
                for y in place("y")..place("y") + place("h") {
                    assert!(taken.insert((x, y)), "{}: {} lies on another panel", dashboard.file, text(panel, "/title"));
                }
            }
        }
    }
}

#[test]
fn data_sources_are_chosen_by_a_variable() {
    for dashboard in &grafana::dashboards() {
        let variables: Vec<&Value> = dashboard.variables().iter().filter(|one| one["type"] == "datasource").collect();
        let mut sources: Vec<&Value> = dashboard.panels().iter().map(|panel| &panel["datasource"]).collect();
        sources.extend(dashboard.panels().iter().flat_map(|panel| list(panel, "/targets")).map(|target| &target["datasource"]));
        sources.extend(dashboard.variables().iter().filter(|one| one["type"] == "query").map(|one| &one["datasource"]));
        for source in &sources {
            let declared = variables.iter().any(|variable| {
                source["uid"] == format!("${{{}}}", text(variable, "/name")) && source["type"] == variable["query"]
            });
            assert!(declared, "{}: {source} is no variable of the dashboard", dashboard.file);
        }
        for variable in &variables {
            let used = sources.iter().any(|source| source["type"] == variable["query"]);
            assert!(used, "{}: nothing uses {}", dashboard.file, text(variable, "/name"));
        }
    }
}

#[test]
fn rates_are_taken_over_the_interval_that_fits_the_chosen_time() {
    for dashboard in &grafana::dashboards() {
        for query in dashboard.queries().iter().filter(|query| query.language == Language::PromQl) {
            // Patterns of labels have brackets, too.
            let expression: String = query.text.split('"').step_by(2).collect();
            for function in ["rate(", "increase(", "irate(", "delta("] {
                for argument in expression.split(function).skip(1) {
                    let range = argument.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(range, _)| range);
                    let fits = matches!(range, Some("$__rate_interval" | "$__range"));
                    assert!(fits, "{}: {function}…[{range:?}]", query.place);
                }
            }
        }
    }
}

#[test]
fn the_audit_log_is_only_read_for_a_time() {
    for dashboard in &grafana::dashboards() {
        let reads_calls = |query: &&Query| ["llm_logs", "llm_search("].iter().any(|name| query.text.contains(name));
        for query in dashboard.queries().iter().filter(reads_calls) {
            assert!(!query.place.contains('$'), "{}: a list of choices that reads every call", query.place);
            let selects = query.text.matches("FROM llm_logs").count() + query.text.matches("FROM llm_search(").count();
            let bounded = query.text.matches("FROM llm_logs WHERE $__timeFilter(started_at)").count()
                + query.text.matches("AND started_at >= to_timestamp(").count()
                + query
                    .text
                    .matches("FROM llm_search(${text:sqlstring}, $__timeFrom()::timestamptz, $__timeTo()::timestamptz,")
                    .count();
            assert_eq!(selects, bounded, "{}: without a condition on started_at", query.place);
        }
    }
}

#[test]
fn whatever_is_typed_or_chosen_is_quoted_in_sql() {
    for dashboard in &grafana::dashboards() {
        for query in dashboard.queries().iter().filter(|query| query.language == Language::Sql) {
            for variable in query.text.split('$').skip(1) {
                let quoted =
                    variable.starts_with("__") || variable.split_once('}').is_some_and(|(name, _)| name.ends_with(":sqlstring"));
                assert!(quoted, "{}: ${variable}", query.place);
            }
        }
    }
}

#[test]
fn links_lead_to_dashboards_and_variables_that_exist() {
    let dashboards = grafana::dashboards();
    let links = Cell::new(0);
    for_each_panel(|_, panel, place| {
        for link in links_of(panel) {
            links.set(links.get() + 1);
            let (uid, parameters) = link.trim_start_matches("/d/").split_once('?').expect("a link with parameters");
            let target = dashboards.iter().find(|dashboard| text(&dashboard.json, "/uid") == uid);
            let target = target.unwrap_or_else(|| panic!("{place}: {link} leads nowhere"));
            for name in parameters.split('&').filter_map(|parameter| parameter.split_once('=')?.0.strip_prefix("var-")) {
                let there = target.variables().iter().any(|variable| text(variable, "/name") == name);
                assert!(there, "{place}: {uid} has no variable {name}");
            }
        }
    });
    assert!(links.get() >= 2, "{} links", links.get());
}

fn links_of(panel: &Value) -> Vec<String> {
    let properties = list(panel, "/fieldConfig/overrides").iter().flat_map(|one| list(one, "/properties"));
    let links = properties.filter(|property| property["id"] == "links").flat_map(|property| list(property, "/value"));
    links.map(|link| text(link, "/url").to_owned()).collect()
}
