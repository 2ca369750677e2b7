//! Plugins of Kong that are missing, off, or set otherwise.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::pretend::Pretend;
use super::{BROKEN, Said, Site};

impl Site {
    pub(super) fn admin(&self, path: &str) -> String {
        format!("{}/{path}", self.session.gateway.admin_url)
    }

    async fn list(&self, kind: &str) -> Vec<Value> {
        let text = reqwest::get(self.admin(&format!("{kind}?size=1000"))).await.unwrap().text().await.unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["data"].as_array().unwrap().clone()
    }

    /// An entity of Kong by its name.
    pub(super) async fn entity(&self, kind: &str, name: &str) -> Value {
        let found = self.list(kind).await.into_iter().find(|entity| entity["name"] == name && entity["consumer"].is_null());
        found.unwrap_or_else(|| panic!("no {name} among the {kind}"))
    }

    pub(super) async fn send(&self, method: reqwest::Method, path: &str, body: &Value) {
        let request = reqwest::Client::new().request(method, self.admin(path)).header("Content-Type", "application/json");
        let response = request.body(body.to_string()).send().await.unwrap();
        assert!(response.status().is_success(), "{path}: {}", response.text().await.unwrap());
    }

    pub(super) async fn patch(&self, kind: &str, name: &str, change: &Value) {
        let entity = self.entity(kind, name).await;
        let path = format!("{kind}/{}", entity["id"].as_str().unwrap());
        self.send(reqwest::Method::PATCH, &path, change).await;
    }

    /// What doctor says while an entity is changed; afterwards it is as it was.
    pub(super) async fn with_changed(&self, kind: &str, name: &str, change: Value) -> Said {
        let mut before = self.entity(kind, name).await;
        let path = format!("{kind}/{}", before["id"].as_str().unwrap());
        BROKEN.store(true, Ordering::SeqCst);
        self.send(reqwest::Method::PATCH, &path, &change).await;
        let said = self.doctor().await;
        for own in ["id", "created_at", "updated_at"] {
            before.as_object_mut().unwrap().remove(own);
        }
        self.send(reqwest::Method::PUT, &path, &before).await;
        BROKEN.store(false, Ordering::SeqCst);
        said
    }

    /// What doctor says of a plugin with other settings.
    async fn with_settings(&self, plugin: &str, config: Value) -> Said {
        self.with_changed("plugins", plugin, json!({ "config": config })).await
    }

    /// What doctor says when the Admin API lists other plugins.
    pub(super) async fn with_list(&mut self, change: impl FnOnce(&mut Vec<Value>)) -> Said {
        let real = self.session.gateway.admin_url.clone();
        let kong = Pretend::before(&real).await;
        let mut list = self.list("plugins").await;
        change(&mut list);
        kong.says("/plugins?size=1000", 200, json!({ "data": list, "next": null }));
        self.set("KONG_ADMIN_URL", &kong.url);
        let said = self.doctor().await;
        self.set("KONG_ADMIN_URL", real);
        said
    }
}

const GATEWAY_PLUGINS: [&str; 5] = ["pre-function", "key-auth", "llm-audit", "http-log", "prometheus"];

#[tokio::test]
async fn a_plugin_that_is_missing_or_switched_off_is_named() {
    let mut site = Site::healthy().await;
    for name in GATEWAY_PLUGINS {
        let check = format!("kong.{name}");
        let said = site.with_list(|list| list.retain(|plugin| plugin["name"] != name)).await;
        said.assert_problem(&check, &["not there"]);
        let said = site.with_changed("plugins", name, json!({ "enabled": false })).await;
        said.assert_problem(&check, &["switched off"]);
    }
    assert_eq!(site.doctor().await.status, Some(0), "all is as it was");
}

#[tokio::test]
async fn only_plugins_count_that_a_call_to_vllm_passes() {
    let mut site = Site::healthy().await;
    let elsewhere = json!({ "id": "00000000-0000-4000-8000-000000000000" });
    let said = site.with_list(|list| list.iter_mut().for_each(|plugin| plugin["service"] = elsewhere.clone())).await;
    for name in GATEWAY_PLUGINS {
        said.assert_problem(&format!("kong.{name}"), &["not there"]);
    }
    // A user without capture is no gap in the log of the others.
    let said = site
        .with_list(|list| {
            let mut of_one = list.iter().find(|plugin| plugin["name"] == "llm-audit").unwrap().clone();
            of_one["consumer"] = elsewhere;
            of_one["enabled"] = json!(false);
            list.insert(0, of_one);
        })
        .await;
    assert_eq!(said.status, Some(0), "{said:?}");
}

#[tokio::test]
async fn what_makes_right_keys_fail_is_found() {
    let mut site = Site::healthy().await;
    let said = site.with_settings("key-auth", json!({ "key_names": ["apikey"] })).await;
    said.assert_problem("kong.pre-function", &["header", "apikey"]);
    // The code in a phase after key-auth.
    let code = site.entity("plugins", "pre-function").await["config"]["access"].clone();
    let said = site.with_settings("pre-function", json!({ "access": [], "header_filter": code })).await;
    said.assert_problem("kong.pre-function", &["no code for the access phase"]);
    // The plugin itself after key-auth, which a Kong of another make allows.
    let real = site.session.gateway.admin_url.clone();
    let kong = Pretend::before(&real).await;
    let available = json!({ "pre-function": { "priority": 1000 }, "key-auth": { "priority": 1250 } });
    kong.says_changed("/", &json!({ "plugins": { "available_on_server": available } })).await;
    site.set("KONG_ADMIN_URL", &kong.url);
    site.doctor().await.assert_problem("kong.pre-function", &["after key-auth"]);
}

#[tokio::test]
async fn keys_that_leak_and_doors_that_stand_open_are_found() {
    let site = Site::healthy().await;
    let leaks = [("hide_credentials", json!(false)), ("key_in_query", json!(true)), ("anonymous", json!("anybody"))];
    for (setting, value) in leaks {
        let said = site.with_settings("key-auth", json!({ setting: value })).await;
        said.assert_problem("kong.key-auth", &[setting]);
    }
}

#[tokio::test]
async fn an_http_log_that_does_not_reach_the_collector_is_found() {
    let site = Site::healthy().await;
    let said = site.with_settings("http-log", json!({ "http_endpoint": "http://127.0.0.1:9/log" })).await;
    said.assert_problem("kong.http-log", &["127.0.0.1:9", &site.session.gateway.collector_url]);
    for headers in [json!({ "X-Collector-Token": "another" }), Value::Null] {
        let said = site.with_settings("http-log", json!({ "headers": headers })).await;
        said.assert_problem("kong.token", &["does not send the token"]);
        assert!(!said.stdout.contains("another"), "{}", said.stdout);
    }
}

#[tokio::test]
async fn a_queue_that_loses_entries_is_found() {
    let site = Site::healthy().await;
    let queue = |change: Value| {
        let site = &site;
        async move { site.with_settings("http-log", json!({ "queue": change })).await }
    };
    queue(json!({ "max_batch_size": 1 })).await.assert_problem("kong.queue", &["sent alone"]);
    queue(json!({ "max_retry_time": 60 })).await.assert_problem("kong.queue", &["given up after 60 s"]);
    // Two bodies of a megabyte each are 2,796,208 bytes in base64; 30 such entries are more than 64 MiB.
    queue(json!({ "max_batch_size": 30 })).await.assert_problem("kong.queue", &["30 entries", "67108864"]);
    queue(json!({ "max_bytes": 1_000_000 })).await.assert_problem("kong.queue", &["2796208", "1000000"]);
    queue(json!({ "max_bytes": null })).await.assert_warning("kong.queue", &["no limit in bytes"]);
    site.doctor().await.assert_quiet("kong.queue");
}

#[tokio::test]
async fn groups_of_metrics_that_are_off_are_named() {
    let site = Site::healthy().await;
    let groups = ["status_code_metrics", "latency_metrics", "bandwidth_metrics", "upstream_health_metrics", "per_consumer"];
    for group in groups {
        let said = site.with_settings("prometheus", json!({ group: false })).await;
        said.assert_problem("kong.prometheus", &[group]);
    }
}

#[tokio::test]
async fn an_audit_without_bodies_is_no_problem_when_it_is_meant_so() {
    let site = Site::healthy().await;
    let said = site.with_settings("llm-audit", json!({ "capture": "metadata" })).await;
    assert_eq!(said.status, Some(0), "{said:?}");
    assert!(said.stdout.contains("keeps no prompts and answers"), "{}", said.stdout);
}
