//! The ways to the usage page, which the collector makes: a page that asks for the key, open to everybody, and the numbers, for which
//! Kong checks the key and says whose it is.
//!
//! Two services, so that nothing that wants a key is a route of the one that wants none. Calls to either are nobody's conversation with a
//! model: the audit log keeps none of them, except those that are refused.

use serde_json::{Value, json};

use super::entities::{Kind, Plugin, Reference, Route, Service, USAGE, USAGE_PAGE};
use super::settings::Settings;
use super::wanted::{Part, entity, in_kongs_notation, key_auth};

/// Longest waits for the collector. It answers within 10 s: until it is its turn, and then for the database.
const CONNECT_TIMEOUT_MS: u64 = 5_000;
const TIMEOUT_MS: u64 = 15_000;

/// All parts, in the order in which they are made; they are removed when there is to be no page.
pub(super) fn parts(settings: &Settings, is_shared: bool) -> Vec<Part> {
    let part = |kind, number, name: &str, body: Value| Part::new(kind, number, name, settings.usage_page.then_some(body));
    let token = settings.collector_token.as_ref().map(|token| {
        // What a client says is dropped: remove, then add.
        let name = "X-Collector-Token";
        json!({ "remove": { "headers": [name] }, "add": { "headers": [format!("{name}:{token}")] } })
    });
    let plugin = |number, name: &str, service, config: Option<Value>| {
        let body = config.map(|config| entity(&plugin(name, service, config)));
        Part::new(Kind::Plugin, number, &format!("{name} of {}", service_name(service)), body.filter(|_| settings.usage_page))
    };
    // Where audit belongs to the model server's service only, none runs here that would have to be held back.
    let audit = (!is_shared).then(|| json!({
        "capture": "none", "max_request_body_size": 0, "max_response_body_size": 0, "include_usage": false,
        "strict_requests": false, "openai_errors": settings.openai_errors, "anonymous_per_minute": settings.anonymous_per_minute,
    }));
    let pre_function = json!({
        "access": [settings.usage_form, settings.bearer], "header_filter": [settings.usage_form],
    });
    let mut parts = vec![
        part(Kind::Service, USAGE, service_name(USAGE), entity(&service(settings, USAGE))),
        plugin(301, "pre-function", USAGE, Some(pre_function)),
        plugin(302, "key-auth", USAGE, Some(key_auth())),
        plugin(303, "request-transformer", USAGE, token),
        plugin(304, "llm-audit", USAGE, audit.clone()),
        part(Kind::Route, 201, "usage-data", route("usage-data", USAGE, &["/v1/usage", "/usage/data"], &["GET"])),
        part(Kind::Route, 202, "usage-form", route("usage-form", USAGE, &["/usage"], &["POST"])),
        part(Kind::Service, USAGE_PAGE, service_name(USAGE_PAGE), entity(&service(settings, USAGE_PAGE))),
        plugin(305, "llm-audit", USAGE_PAGE, audit),
        part(Kind::Route, 203, "usage-page", route("usage-page", USAGE_PAGE, &["/usage"], &["GET"])),
    ];
    if !settings.usage_page {
        // A service goes when nothing belongs to it any more.
        parts.reverse();
    }
    parts
}

fn service_name(number: u64) -> &'static str {
    if number == USAGE { "usage" } else { "usage-page" }
}

fn service(settings: &Settings, number: u64) -> Service {
    let collector = &settings.collector;
    Service {
        name: service_name(number).to_owned(),
        protocol: collector.protocol.clone(),
        host: collector.host.clone(),
        port: collector.port,
        path: (!collector.path.is_empty()).then(|| collector.path.clone()),
        retries: 0,
        enabled: true,
        connect_timeout: CONNECT_TIMEOUT_MS,
        write_timeout: TIMEOUT_MS,
        read_timeout: TIMEOUT_MS,
    }
}

fn plugin(name: &str, service: u64, config: Value) -> Plugin {
    Plugin { name: name.to_owned(), service: Some(Reference::own(service)), route: None, consumer: None, enabled: true, config }
}

fn route(name: &str, service: u64, paths: &[&str], methods: &[&str]) -> Value {
    entity(&Route {
        name: name.to_owned(),
        service: Reference::own(service),
        paths: paths.iter().map(|path| in_kongs_notation(path)).collect(),
        strip_path: false,
        methods: Some(methods.iter().map(|method| (*method).to_owned()).collect()),
        hosts: None,
        headers: None,
        preserve_host: false,
        request_buffering: true,
        response_buffering: true,
    })
}
