//! The servers of models.

use std::sync::atomic::Ordering;

use gateway_tests::process::free_port;
use serde_json::{Value, json};

use super::pretend::Pretend;
use super::{BROKEN, Said, Site};

const KEY: &str = "key-of-the-servers-0123456789";
const PATH: &str = "/upstreams/llm-one/health";

/// A gateway whose Kong says that it has models, and finds their servers so.
struct Fleet {
    site: Site,
    kong: Pretend,
}

impl Fleet {
    async fn of(models: Value) -> Self {
        let mut site = Site::healthy().await;
        let kong = Pretend::before(&site.session.gateway.admin_url).await;
        let mut plugins = kong.behind("/plugins?size=1000").await;
        plugins["data"].as_array_mut().unwrap().push(json!({
            "id": "7c1ea1d0-6b1f-4000-8000-000000000208", "name": "llm-router", "enabled": true,
            "service": { "id": "7c1ea1d0-6b1f-4000-8000-000000000001" }, "config": { "models": models },
        }));
        kong.says("/plugins?size=1000", 200, plugins);
        site.set("KONG_ADMIN_URL", &kong.url);
        Self { site, kong }
    }

    fn finds(&self, servers: &[(&str, &str)]) {
        let servers: Vec<Value> = servers
            .iter()
            .map(|(url, health)| json!({ "target": url.trim_start_matches("http://"), "health": health }))
            .collect();
        self.kong.says(&format!("{PATH}?size=1000"), 200, json!({ "data": servers }));
    }

    async fn said(&self) -> Said {
        let said = self.site.doctor().await;
        assert!(!said.stdout.contains(KEY) && !said.stderr.contains(KEY), "{said:?}");
        said
    }
}

async fn server(models: &[&str]) -> Pretend {
    let server = Pretend::new().await;
    server.says("/health", 200, "");
    let list: Vec<Value> = models.iter().map(|id| json!({ "id": id })).collect();
    server.says("/v1/models", 401, json!({ "error": "Unauthorized" }));
    server.says_to(&format!("Bearer {KEY}"), "/v1/models", 200, json!({ "object": "list", "data": list }));
    server
}

#[tokio::test]
async fn each_server_is_asked_for_the_model_it_is_to_have() {
    let fleet = Fleet::of(json!([{ "name": "one", "upstream": "llm-one", "served_as": "Org/One", "key": KEY }])).await;
    let (good, other, down) =
        (server(&["Org/One"]).await, server(&["one", "two"]).await, format!("http://127.0.0.1:{}", free_port()));
    let address = |url: &str| url.trim_start_matches("http://").to_owned();

    fleet.finds(&[(&good.url, "HEALTHY")]);
    let said = fleet.said().await;
    for check in ["models", "models.servers", "models.names", "models.keys"] {
        said.assert_quiet(check);
    }
    assert!(said.stdout.contains("1 model, and its servers have it"), "{said:?}");

    fleet.finds(&[(&good.url, "HEALTHY"), (&other.url, "HEALTHY"), (&down, "UNHEALTHY")]);
    let said = fleet.said().await;
    said.assert_problem("models.names", &[&address(&other.url), "does not have the model Org/One", "it has: one, two"]);
    assert!(said.mend("models.names").contains("llm-collector models add one URL… --served-as NAME"), "{said:?}");
    said.assert_warning("models.servers", &[&address(&down), "is down, for Kong as well"]);

    // The last one that is left.
    fleet.finds(&[(&down, "UNHEALTHY")]);
    fleet.said().await.assert_problem("models.servers", &[&address(&down), "is down"]);
    // Reached by Kong alone, or by doctor alone.
    fleet.finds(&[(&down, "HEALTHY")]);
    fleet.said().await.assert_warning("models.servers", &[&address(&down), "does not answer here", "Kong finds it healthy"]);
    fleet.finds(&[(&good.url, "DNS_ERROR")]);
    fleet.said().await.assert_problem("models.servers", &[&address(&good.url), "answers here, but Kong finds it dns_error"]);

    other.says("/health", 503, "");
    fleet.finds(&[(&good.url, "HEALTHY"), (&other.url, "HEALTHY")]);
    fleet.said().await.assert_warning("models.servers", &[&address(&other.url), "status 503"]);
    // Kong has lost the upstream, or its servers.
    for (status, page) in [(404, json!({ "message": "Not found" })), (200, json!({ "data": [] }))] {
        fleet.kong.says(&format!("{PATH}?size=1000"), status, page);
        fleet.said().await.assert_problem("models.servers", &["the model one has no servers", "llm-one"]);
    }
}

#[tokio::test]
async fn a_key_that_a_server_does_not_take_is_found_and_not_told() {
    let other = "another-key-of-this-model-4711";
    let fleet = Fleet::of(json!([{ "name": "one", "upstream": "llm-one", "key": other }])).await;
    let server = server(&["one"]).await;
    fleet.finds(&[(&server.url, "HEALTHY")]);
    let said = fleet.said().await;
    said.assert_problem("models.keys", &["a server of one, does not take the key"]);
    assert!(!said.stdout.contains(other), "{said:?}");
    // What Kong alone can resolve is not held against anybody.
    drop(fleet);
    let fleet = Fleet::of(json!([{ "name": "one", "upstream": "llm-one", "key": "{vault://env/one-key}" }])).await;
    fleet.finds(&[(&server.url, "HEALTHY")]);
    fleet.said().await.assert_warning("models.names", &["does not tell its models (status 401)"]);
}

#[tokio::test]
async fn the_gateways_own_key_goes_to_servers_without_one_of_their_own() {
    let fleet = Fleet::of(json!([{ "name": "one", "upstream": "llm-one" }])).await;
    let server = server(&["one"]).await;
    fleet.finds(&[(&server.url, "HEALTHY")]);
    fleet.said().await.assert_problem("models.keys", &["wants a key, and the gateway has none for it"]);
    let mut plugins = fleet.kong.behind("/plugins?size=1000").await;
    let list = plugins["data"].as_array_mut().unwrap();
    list.retain(|plugin| plugin["name"] != "request-transformer");
    let service = json!({ "id": "7c1ea1d0-6b1f-4000-8000-000000000001" });
    list.push(json!({ "id": "7c1ea1d0-6b1f-4000-8000-000000000208", "name": "llm-router", "service": service,
        "config": { "models": [{ "name": "one", "upstream": "llm-one" }] } }));
    list.push(
        json!({ "id": "7c1ea1d0-6b1f-4000-8000-000000000204", "name": "request-transformer", "enabled": true, "service": service,
        "config": { "add": { "headers": [format!("Authorization:Bearer {KEY}")] } } }),
    );
    fleet.kong.says("/plugins?size=1000", 200, plugins);
    fleet.said().await.assert_quiet("models.keys");
}

#[tokio::test]
async fn models_that_are_really_configured_are_read_from_kong() {
    let site = Site::healthy().await;
    BROKEN.store(true, Ordering::SeqCst);
    let server = server(&["there"]).await;
    server.says("/v1/models", 200, json!({ "data": [{ "id": "there" }] }));
    let added = site.session.models(&["add", "missing", &server.url]).await;
    assert!(added.success, "{}", added.stderr);
    let said = site.doctor().await;
    let listed = site.session.models(&["list", "--json"]).await;
    let list: Value = serde_json::from_str(&listed.stdout).unwrap();
    for model in list.as_array().unwrap() {
        let removed = site.session.models(&["remove", model["name"].as_str().unwrap()]).await;
        assert!(removed.success, "{}", removed.stderr);
    }
    said.assert_problem("models.names", &["does not have the model missing", "it has: there"]);
    site.doctor().await.assert_quiet("models.names");
    BROKEN.store(false, Ordering::SeqCst);
}
