use serde_json::json;

use super::*;
use crate::config::KongSettings;
use crate::kong::batch::Batch;
use crate::kong::settings::Settings;
use crate::kong::wanted::wanted;

fn settings() -> Settings {
    Settings::read(&KongSettings { vllm_extra_paths: Some("/tokenizer_info".to_owned()), ..KongSettings::default() }).unwrap()
}

fn parts(settings: &Settings, is_shared: bool) -> Vec<Part> {
    wanted(settings, &Batch::of(settings, &[], "").unwrap(), is_shared, false)
}

/// A Kong that has these parts, with the defaults that it adds.
fn state(parts: &[Part]) -> State {
    let mut state = State::default();
    for part in parts {
        let Some(mut entity) = part.body.clone() else { continue };
        entity["id"] = part.id.clone().into();
        entity["created_at"] = 1.into();
        entity["tags"] = Value::Null;
        match part.kind {
            Kind::Service => state.services.push(entity),
            Kind::Route => state.routes.push(entity),
            Kind::Plugin => {
                entity["config"]["a_default"] = 7.into();
                state.plugins.push(entity);
            }
        }
    }
    state
}

fn said(steps: &[Step]) -> Vec<String> {
    let changes = steps.iter().filter(|step| step.word != Word::Unchanged);
    changes.map(|step| format!("{} {}", step.word.text(), step.label)).collect()
}

#[test]
fn what_is_as_it_should_be_is_left_alone() {
    let parts = parts(&settings(), false);
    let steps = plan(&parts, &state(&parts));
    assert!(said(&steps).is_empty(), "{steps:?}");
    // The order: nothing is open before its key is checked.
    let labels: Vec<&str> = steps.iter().map(|step| step.label.as_str()).collect();
    assert_eq!(labels[..3], ["service vllm", "plugin pre-function", "plugin key-auth"]);
    assert!(labels.contains(&"route vllm-extra"));
    let position = |label: &str| labels.iter().position(|other| *other == label);
    assert!(position("plugin key-auth of usage") < position("route usage-data"));
}

#[test]
fn an_empty_kong_gets_everything_and_no_more() {
    let parts = parts(&settings(), false);
    let steps = plan(&parts, &State::default());
    assert!(steps.iter().all(|step| step.word == Word::Created), "{steps:?}");
    // A service, 12 + 1 routes, 7 plugins: no key for the model server. Of the usage page two services, three routes, four plugins: no
    // token for the collector.
    assert_eq!(steps.len(), 21 + 9);
}

#[test]
fn every_change_by_hand_is_one_update() {
    let parts = parts(&settings(), false);
    let changes: [(&str, Kind, Value); 6] = [
        ("plugin key-auth", Kind::Plugin, json!({"config": {"anonymous": "alice"}})),
        ("plugin key-auth", Kind::Plugin, json!({"enabled": false})),
        ("plugin key-auth", Kind::Plugin, json!({"config": {"key_names": ["X-API-Key", "apikey"]}})),
        ("plugin http-log", Kind::Plugin, json!({"config": {"headers": {"X-Spy": "1"}}})),
        ("route vllm-models", Kind::Route, json!({"paths": ["/"]})),
        ("service vllm", Kind::Service, json!({"read_timeout": 1})),
    ];
    for (label, kind, change) in changes {
        let mut state = state(&parts);
        let id = &parts.iter().find(|part| part.label == label).unwrap().id;
        let list = match kind {
            Kind::Service => &mut state.services,
            Kind::Route => &mut state.routes,
            Kind::Plugin => &mut state.plugins,
        };
        let entity = list.iter_mut().find(|entity| entity["id"] == id.as_str()).unwrap();
        merge(entity, &change);
        assert_eq!(said(&plan(&parts, &state)), [format!("updated {label}")], "{change}");
    }
}

fn merge(entity: &mut Value, change: &Value) {
    match (entity, change) {
        (Value::Object(entity), Value::Object(change)) => {
            change.iter().for_each(|(name, value)| merge(entity.entry(name.clone()).or_insert(Value::Null), value));
        }
        (entity, change) => entity.clone_from(change),
    }
}

#[test]
fn what_is_no_longer_wanted_goes() {
    let mut before = settings();
    before.vllm_key = Some("sk-x".to_owned());
    let state = state(&parts(&before, false));
    let mut after = settings();
    after.extra_paths.clear();
    after.rate_limit_per_hour = 0;
    let steps = plan(&parts(&after, false), &state);
    assert_eq!(said(&steps), ["removed plugin rate-limiting", "removed plugin request-transformer", "removed route vllm-extra"]);
}

#[test]
fn the_queue_is_there_as_long_as_it_has_places() {
    let of = |places: &str| {
        let given = KongSettings { queue_in_flight: Some(places.to_owned()), ..KongSettings::default() };
        parts(&Settings::read(&given).unwrap(), false)
    };
    let (without, with) = (state(&of("")), state(&of("8")));
    assert_eq!(said(&plan(&of("8"), &without)), ["created plugin llm-queue"]);
    assert_eq!(said(&plan(&of("9"), &with)), ["updated plugin llm-queue"]);
    assert_eq!(said(&plan(&of(""), &with)), ["removed plugin llm-queue"]);
    assert!(said(&plan(&of(""), &without)).is_empty());
}

#[test]
fn the_usage_page_goes_with_all_that_belongs_to_it_before_its_services() {
    let mut settings = settings();
    settings.collector_token = Some("t".to_owned());
    let state = state(&parts(&settings, false));
    settings.usage_page = false;
    let steps = plan(&parts(&settings, false), &state);
    assert_eq!(
        said(&steps),
        [
            "removed route usage-page",
            "removed plugin llm-audit of usage-page",
            "removed service usage-page",
            "removed route usage-form",
            "removed route usage-data",
            "removed plugin llm-audit of usage",
            "removed plugin request-transformer of usage",
            "removed plugin key-auth of usage",
            "removed plugin pre-function of usage",
            "removed service usage",
        ]
    );
}

#[test]
fn headers_must_be_no_more_than_these_and_other_objects_may() {
    let wanted = json!({"headers": {"a": "1"}, "queue": {"x": 1}, "list": [1, 2], "n": null});
    assert!(covers(&wanted, &json!({"headers": {"a": "1"}, "queue": {"x": 1.0, "y": 2}, "list": [1, 2], "more": 1})));
    for found in [
        json!({"headers": {"a": "1", "b": "2"}, "queue": {"x": 1}, "list": [1, 2], "n": null}),
        json!({"headers": {"a": "1"}, "queue": {"x": 1}, "list": [1, 2, 3], "n": null}),
        json!({"headers": {"a": "1"}, "queue": {"x": 1}, "list": [2, 1], "n": null}),
        json!({"headers": {"a": "1"}, "queue": {"x": 1}, "list": [1, 2], "n": 0}),
        json!({"headers": {"a": "1"}, "queue": null, "list": [1, 2], "n": null}),
    ] {
        assert!(!covers(&wanted, &found), "{found}");
    }
    assert!(!covers(&json!({"headers": null}), &json!({"headers": {"X-Spy": "1"}})));
}

#[test]
fn what_others_made_is_found_by_where_it_runs() {
    let ours = own_id(SERVICE);
    let plugin = |id: &str, name: &str, service: Value, route: Value, consumer: Value| json!({"id": id, "name": name, "service": service, "route": route, "consumer": consumer});
    let none = || Value::Null;
    let of = |id: &str| json!({ "id": id });
    let state = State {
        services: vec![json!({"id": ours, "name": "vllm"}), json!({"id": "s", "name": "second"})],
        routes: vec![
            json!({"id": own_id(101), "name": "vllm-models", "service": of(&ours)}),
            json!({"id": "r1", "name": "by-hand", "service": of(&ours)}),
            json!({"id": "r2", "name": null, "service": of("s")}),
        ],
        plugins: vec![
            plugin(&own_id(206), "http-log", none(), none(), none()),
            plugin("p1", "http-log", none(), none(), none()),
            plugin("p2", "key-auth", none(), none(), none()),
            plugin("p3", "pre-function", none(), of(&own_id(105)), none()),
            plugin("p4", "rate-limiting", of(&ours), none(), none()),
            plugin("p5", "rate-limiting", of(&ours), none(), of("alice")),
            plugin("p6", "cors", of(&ours), none(), none()),
        ],
        targets: Vec::new(),
    };
    let to_model: Vec<&Value> = state.services.iter().collect();
    let removals = |is_shared| -> Vec<String> {
        let steps = Others::find(&state, &to_model, is_shared).removal(&state);
        steps.into_iter().map(|step| step.path).collect()
    };
    let alone = ["/routes/r2", "/services/s", "/routes/r1", "/plugins/p1", "/plugins/p3", "/plugins/p4"];
    assert_eq!(removals(false), alone);
    // Where audit is bound to our service, what belongs to all calls is not in its place.
    assert_eq!(removals(true), alone.into_iter().filter(|path| *path != "/plugins/p1").collect::<Vec<_>>());
}
