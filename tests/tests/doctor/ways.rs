//! Ways to vLLM besides the gateway's own, and plugins that run where they should not. What doctor says about mending is done, and then
//! it has nothing to complain of.

use std::sync::atomic::Ordering;

use reqwest::Method;
use serde_json::{Value, json};

use super::{BROKEN, Said, Site};

/// The service and the audit plugins that `kong apply` makes.
const SERVICE: &str = "7c1ea1d0-6b1f-4000-8000-000000000001";
const HTTP_LOG: &str = "7c1ea1d0-6b1f-4000-8000-000000000206";

impl Site {
    /// Adds something to Kong that stays until it is mended.
    async fn add(&self, path: &str, entity: Value) {
        BROKEN.store(true, Ordering::SeqCst);
        self.send(Method::POST, path, &entity).await;
    }

    /// Whether Kong has this.
    async fn has(&self, path: &str) -> bool {
        reqwest::get(self.admin(path)).await.unwrap().status().is_success()
    }

    fn vllm_port(&self) -> u16 {
        self.session.gateway.vllm.url().rsplit(':').next().unwrap().parse().unwrap()
    }

    /// Runs what was said to mend a complaint, and asks doctor again.
    pub(super) async fn mended(&self, said: &Said, check: &str) -> Said {
        let command = said.mend(check);
        let mending = self.session.shell(&command).await;
        assert!(mending.success, "{command}: {} {}", mending.stdout, mending.stderr);
        // The suite's own time-out is short, and every run of the script brings it back.
        self.patch("services", "vllm", &json!({ "read_timeout": 300_000 })).await;
        let said = self.doctor().await;
        said.assert_quiet(check);
        said
    }
}

#[tokio::test]
async fn another_service_that_leads_past_the_keys_is_named_and_the_gateways_own_is_not_blamed() {
    let site = Site::healthy().await;
    // A service comes before the gateway's own in lists by its id, and calls the address by another name.
    let old = "00000000-0000-4000-8000-00000000000a";
    let service =
        json!({ "id": old, "name": "old", "host": "LOCALHOST", "port": site.vllm_port(), "read_timeout": 300_000, "retries": 0 });
    site.add("services", service).await;
    site.add("services/old/routes", json!({ "name": "by-hand", "paths": ["/old"], "response_buffering": false })).await;
    let said = site.doctor().await;
    said.assert_problem("kong.ways", &["route by-hand of service old", "past the key check", "/old"]);
    for check in ["kong.key-auth", "kong.pre-function", "kong.llm-audit", "kong.http-log", "kong.service"] {
        said.assert_quiet(check);
    }
    assert_eq!(site.mended(&said, "kong.ways").await.status, Some(0));
    assert!(!site.has("routes/by-hand").await && !site.has("services/old").await, "they are gone");
    BROKEN.store(false, Ordering::SeqCst);
}

#[tokio::test]
async fn a_route_with_rules_of_its_own_is_named() {
    let site = Site::healthy().await;
    site.add("services/vllm/routes", json!({ "name": "side-door", "paths": ["/side"] })).await;
    // A call passes the service's key check here, too; what is wrong is that answers are buffered.
    let said = site.doctor().await;
    said.assert_quiet("kong.ways");
    said.assert_warning("kong.buffering", &["side-door"]);
    // Now the route has a key check of its own, in place of the service's, that lets everybody in.
    site.add("routes/side-door/plugins", json!({ "name": "key-auth", "config": { "anonymous": "anybody" } })).await;
    let said = site.doctor().await;
    said.assert_problem("kong.key-auth", &["route side-door of service vllm", "anonymous"]);
    assert_eq!(site.mended(&said, "kong.key-auth").await.status, Some(0));
    assert!(!site.has("routes/side-door").await, "it is gone");
    BROKEN.store(false, Ordering::SeqCst);
}

#[tokio::test]
async fn a_way_that_is_closed_is_none_and_one_with_other_keys_is_only_a_warning() {
    let site = Site::healthy().await;
    site.add("services/vllm/routes", json!({ "name": "closed", "paths": ["/closed"], "response_buffering": false })).await;
    site.add(
        "services",
        json!({ "name": "second", "host": "127.0.0.1", "port": site.vllm_port(), "read_timeout": 300_000, "retries": 0 }),
    )
    .await;
    site.add("services/second/routes", json!({ "name": "with-jwt", "paths": ["/jwt"], "response_buffering": false })).await;
    let own = site.entity("routes", "closed").await["id"].clone();
    let second = site.entity("services", "second").await["id"].clone();
    let mut site = site;
    let said = site
        .with_list(|list| {
            list.push(
                json!({ "id": "a", "name": "request-termination", "enabled": true, "route": { "id": own }, "service": null,
                "consumer": null, "config": { "trigger": null } }),
            );
            list.push(json!({ "id": "b", "name": "key-auth", "enabled": true, "route": { "id": own }, "service": null,
                "consumer": null, "config": { "anonymous": "anybody" } }));
            list.push(json!({ "id": "c", "name": "jwt", "enabled": true, "service": { "id": second }, "route": null,
                "consumer": null, "config": { "anonymous": null } }));
        })
        .await;
    said.assert_warning("kong.ways", &["route with-jwt of service second", "jwt"]);
    said.assert_quiet("kong.key-auth");
    assert_eq!(said.status, Some(0), "{said:?}");
    site.mended(&said, "kong.ways").await;
}

#[tokio::test]
async fn an_http_log_that_runs_for_fewer_calls_than_llm_audit_burns_numbers() {
    let site = Site::healthy().await;
    let narrower = json!({ "service": { "id": SERVICE } });
    BROKEN.store(true, Ordering::SeqCst);
    site.send(Method::PATCH, &format!("plugins/{HTTP_LOG}"), &narrower).await;
    let said = site.doctor().await;
    said.assert_problem("kong.numbers", &["calls to unknown paths", "no entry"]);
    said.assert_quiet("kong.http-log");
    assert_eq!(site.mended(&said, "kong.numbers").await.status, Some(0));
    BROKEN.store(false, Ordering::SeqCst);
}

#[tokio::test]
async fn a_route_that_holds_streams_back_is_found() {
    let site = Site::healthy().await;
    BROKEN.store(true, Ordering::SeqCst);
    site.patch("routes", "vllm-chat-completions", &json!({ "response_buffering": true })).await;
    let said = site.doctor().await;
    said.assert_warning("kong.buffering", &["route vllm-chat-completions", "response_buffering"]);
    site.mended(&said, "kong.buffering").await;
    BROKEN.store(false, Ordering::SeqCst);
}

#[tokio::test]
async fn what_other_services_are_told_is_not_kept() {
    let site = Site::healthy().await;
    site.add("services", json!({ "name": "wiki", "host": "192.0.2.1", "port": 80 })).await;
    site.add("services/wiki/routes", json!({ "name": "wiki", "paths": ["/wiki"] })).await;
    let said = site.doctor().await;
    said.assert_warning("kong.shared", &["wiki"]);
    assert_eq!(site.mended(&said, "kong.shared").await.status, Some(0));
    for path in ["routes/wiki", "services/wiki"] {
        site.send(Method::DELETE, path, &Value::Null).await;
    }
}

#[tokio::test]
async fn settings_of_a_plugin_that_were_changed_are_brought_back_by_what_doctor_says() {
    let site = Site::healthy().await;
    let changes = [
        ("key-auth", json!({ "hide_credentials": false }), "kong.key-auth"),
        ("http-log", json!({ "http_endpoint": "http://127.0.0.1:9/log" }), "kong.http-log"),
        ("prometheus", json!({ "per_consumer": false }), "kong.prometheus"),
    ];
    BROKEN.store(true, Ordering::SeqCst);
    for (plugin, config, _) in &changes {
        site.patch("plugins", plugin, &json!({ "config": config })).await;
    }
    let said = site.doctor().await;
    for (plugin, _, check) in &changes {
        assert!(said.complaints().iter().any(|(_, its, _)| its == check), "{plugin}: {said:?}");
    }
    let after = site.mended(&said, "kong.key-auth").await;
    assert_eq!(after.status, Some(0), "{after:?}");
    BROKEN.store(false, Ordering::SeqCst);
}
