//! Limits that hold nobody back, or not as they should. Where a test has a database of its own, it has the collector's schema.

use std::sync::atomic::Ordering;

use gateway_tests::postgres::Database;
use serde_json::{Value, json};

use super::database::execute;
use super::pretend::Pretend;
use super::{BROKEN, Said, Site};

const PLUGIN: &str = "llm-quota";
const CHECKS: [&str; 8] = [
    "quotas.plugin",
    "quotas.dict",
    "quotas.sync",
    "quotas.subjects",
    "quotas.models",
    "quotas.prices",
    "quotas.waiting",
    "quotas.webhook",
];

/// A limit for everybody, number 1 of its database.
const LIMIT: &str = "INSERT INTO llm_quotas (subject_kind, unit, per, amount) VALUES ('everybody', 'tokens', 'day', 1000000)";

impl Said {
    fn assert_calm_about_limits(&self) {
        for check in CHECKS {
            self.assert_quiet(check);
        }
    }

    fn says_nothing_of_limits(&self) -> bool {
        CHECKS.iter().all(|check| !self.stdout.contains(check))
    }
}

impl Site {
    async fn with_limit(&mut self, statement: &str) -> Database {
        let database = self.own_database().await;
        execute(&database, statement).await;
        database
    }

    /// Lets doctor ask a Kong that is the real one but for some of its pages.
    async fn pretended_kong(&mut self) -> Pretend {
        let kong = Pretend::before(&self.session.gateway.admin_url).await;
        self.set("KONG_ADMIN_URL", &kong.url);
        kong
    }
}

/// A call that took tokens.
fn call(user: &str, team: Option<&str>, model: &str) -> String {
    let team = team.map_or("NULL".to_owned(), |team| format!("'{team}'"));
    format!(
        "INSERT INTO llm_logs (request_id, consumer_username, team, started_at, status, model, prompt_tokens, completion_tokens)
         VALUES (gen_random_uuid()::text, '{user}', {team}, now(), 200, '{model}', 10, 10)"
    )
}

#[tokio::test]
async fn a_limit_that_is_kept_is_no_complaint_and_without_one_nothing_is_said() {
    let site = Site::healthy().await;
    assert!(site.doctor().await.says_nothing_of_limits());
    // The real thing: a user, a call, and nodes that ask.
    let (session, user) = (&site.session, site.session.user().await);
    let set = session.collector(&["quota", "set", "--user", &user.name, "--tokens", "1M", "--per", "day"]).await;
    assert!(set.success, "{}", set.stderr);
    let call = session.call("/v1/chat/completions").key(&user.key);
    let reply = call.body(r#"{"messages":[{"role":"user","content":"?"}]}"#).send().await;
    session.row(reply.request_id()).await;
    let said = site.doctor().await;
    let removed = session.collector(&["quota", "remove", "--user", &user.name]).await;
    assert!(removed.success, "{}", removed.stderr);
    said.assert_calm_about_limits();
    assert_eq!(said.status, Some(0), "{said:?}");
    assert!(said.stdout.contains("llm-quota holds calls to 1 limit\""), "{said:?}");
}

#[tokio::test]
async fn limits_without_the_plugin_that_keeps_them_are_a_problem() {
    let mut site = Site::healthy().await;
    let database = site.own_database().await;
    let off = json!({ "enabled": false });
    let said = site.with_changed("plugins", PLUGIN, off.clone()).await;
    assert!(said.says_nothing_of_limits(), "there is none: {said:?}");

    execute(&database, LIMIT).await;
    BROKEN.store(true, Ordering::SeqCst);
    site.patch("plugins", PLUGIN, &off).await;
    let said = site.doctor().await;
    said.assert_problem("quotas.plugin", &["1 limit is set", "switched off"]);
    site.mended(&said, "quotas.plugin").await;
    BROKEN.store(false, Ordering::SeqCst);

    let said = site.with_list(|list| list.retain(|plugin| plugin["name"] != PLUGIN)).await;
    said.assert_problem("quotas.plugin", &["the plugin llm-quota is not there"]);
    assert_eq!(said.mend("quotas.plugin"), "QUOTAS=true llm-collector kong apply");
    // Where no call to vLLM passes it, or only those of one user.
    for scope in ["service", "consumer"] {
        let said = site
            .with_list(|list| {
                let plugin = list.iter_mut().find(|plugin| plugin["name"] == PLUGIN).unwrap();
                plugin[scope] = json!({ "id": "00000000-0000-4000-8000-000000000000" });
            })
            .await;
        said.assert_problem("quotas.plugin", &["the plugin llm-quota is not there"]);
    }
}

#[tokio::test]
async fn a_kong_that_cannot_keep_limits_is_a_problem() {
    let mut site = Site::healthy().await;
    site.with_limit(LIMIT).await;
    // A Kong of before the plugin.
    let kong = site.pretended_kong().await;
    kong.says_changed("/", &json!({ "plugins": { "available_on_server": { PLUGIN: null } } })).await;
    let mut plugins = kong.behind("/plugins?size=1000").await;
    plugins["data"].as_array_mut().unwrap().retain(|plugin| plugin["name"] != PLUGIN);
    kong.says("/plugins?size=1000", 200, plugins);
    let said = site.doctor().await;
    said.assert_problem("quotas.plugin", &["Kong does not have the plugin llm-quota"]);
    assert!(said.mend("quotas.plugin").contains("KONG_PLUGINS=bundled,"), "{said:?}");

    // One in which it runs before it can know who calls.
    let kong = site.pretended_kong().await;
    let available = |quota: u32| json!({ "key-auth": { "priority": 1250 }, PLUGIN: { "priority": quota } });
    kong.says_changed("/", &json!({ "plugins": { "available_on_server": available(1300) } })).await;
    site.doctor().await.assert_problem("quotas.plugin", &["runs before key-auth"]);
    kong.says_changed("/", &json!({ "plugins": { "available_on_server": available(905) } })).await;
    site.doctor().await.assert_quiet("quotas.plugin");

    let dicts = |dicts: Value| json!({ "memory": { "lua_shared_dicts": dicts } });
    let size = json!({ "capacity": 16_777_216, "allocated_slabs": 4096 });
    kong.says_changed("/status", &dicts(json!({ "kong": size, "llm_gateway": size }))).await;
    let said = site.doctor().await;
    said.assert_problem("quotas.dict", &["no shared dict llm_quota"]);
    assert!(said.mend("quotas.dict").contains("lua_shared_dict llm_quota 16m"), "{said:?}");
    kong.says_changed("/status", &dicts(json!({ "kong": size, "llm_gateway": size, "llm_quota": size }))).await;
    site.doctor().await.assert_quiet("quotas.dict");
}

/// What a node told, and how many seconds ago.
fn worker(name: &str, node: &str, given: u32, ended: bool, seen: u32) -> String {
    format!(
        "INSERT INTO llm_workers (worker, node, given, done, ended, seen_at)
         VALUES ('{name}', '{node}', {given}, {given}, {ended}, now() - interval '{seen} seconds');"
    )
}

/// A call of a worker, which was stored so many seconds ago.
fn entry(worker: &str, seq: u32, seconds: u32) -> String {
    format!(
        "INSERT INTO llm_logs (request_id, consumer_username, started_at, created_at, status, raw_log) VALUES (gen_random_uuid()::text, 'z1',
         now() - interval '{seconds} seconds', now() - interval '{seconds} seconds', 200,
         '{{\"service\":{{}},\"request\":{{}},\"llm\":{{\"worker\":\"{worker}\",\"seq\":{seq}}}}}');"
    )
}

#[tokio::test]
async fn a_node_that_sends_entries_and_does_not_ask_for_limits_is_a_problem() {
    let mut site = Site::healthy().await;
    let database = site.with_limit(LIMIT).await;
    let start = "TRUNCATE llm_logs; TRUNCATE llm_workers;";
    for (why, fine) in [
        ("it told of this call", worker("w", "n:8000", 7, false, 180) + &entry("w", 7, 120)),
        ("it tells of this call in a moment", worker("w", "n:8000", 5, false, 55) + &entry("w", 7, 5)),
        ("it has just told", worker("w", "n:8000", 5, false, 5) + &entry("w", 7, 120)),
        (
            "another worker of it has just told",
            worker("w", "n:8000", 5, false, 180) + &worker("v", "n:8000", 1, false, 5) + &entry("w", 7, 120),
        ),
        ("the worker has ended", worker("w", "n:8000", 5, true, 180) + &entry("w", 7, 120)),
        ("Kong was stopped since", worker("w", "n:8000", 5, false, 1_900) + &entry("w", 7, 1_800)),
        ("it has just been started", entry("w", 1, 40)),
        ("it has been gone for long", entry("w", 1, 1_800)),
    ] {
        execute(&database, &format!("{start} {fine}")).await;
        let said = site.doctor().await;
        assert!(!said.complaints().iter().any(|(_, check, _)| check == "quotas.sync"), "{why}: {said:?}");
    }
    let silent = worker("w", "n:8000", 5, false, 190) + &entry("w", 6, 150) + &entry("w", 7, 120);
    execute(&database, &format!("{start} {silent}")).await;
    site.doctor().await.assert_problem("quotas.sync", &["n:8000 has not asked", "2 min at least", "2 of its calls"]);
    execute(&database, &format!("{start} {}", entry("w", 1, 120))).await;
    site.doctor().await.assert_problem("quotas.sync", &["1 call of", "never asked"]);
    execute(&database, "DELETE FROM llm_quotas").await;
    assert!(site.doctor().await.says_nothing_of_limits());
}

#[tokio::test]
async fn limits_over_which_calls_are_to_wait_want_the_plugin_that_lets_them() {
    let mut site = Site::healthy().await;
    site.with_limit(&LIMIT.replace("amount)", "amount, mode)").replace("1000000)", "1000000, 'wait')")).await;
    let said = site.doctor().await;
    said.assert_warning("quotas.waiting", &["limit 1 lets calls wait", "llm-queue is not there"]);
    assert_eq!(said.mend("quotas.waiting"), "QUEUE_IN_FLIGHT=… llm-collector kong apply");
    let said = site
        .with_list(|list| {
            let mut queue = list.iter().find(|plugin| plugin["name"] == PLUGIN).unwrap().clone();
            queue["name"] = json!("llm-queue");
            list.push(queue);
        })
        .await;
    said.assert_calm_about_limits();
}

#[tokio::test]
async fn limits_for_whom_nobody_knows_are_a_warning() {
    let mut site = Site::healthy().await;
    let user = site.session.user().await;
    let team = format!("team-of-{}", user.name);
    let said = site.session.users(&["team", &user.name, &team]).await;
    assert!(said.success, "{}", said.stderr);
    let limit = |kind: &str, name: &str| {
        format!(
            "INSERT INTO llm_quotas (subject_kind, subject_name, unit, per, amount) VALUES ('{kind}', '{name}', 'calls', 'day', 9);"
        )
    };
    let known = [
        limit("user", &user.name),
        limit("team", &team),
        limit("user", "gone"),
        limit("team", "old-team"),
        limit("user", "anonymous"),
    ];
    let database = site.with_limit(&known.concat()).await;
    // These two Kong knows no more.
    execute(&database, &call("gone", Some("old-team"), "m")).await;
    site.doctor().await.assert_quiet("quotas.subjects");
    execute(&database, &(limit("user", "misspelt") + &limit("team", "ghosts"))).await;
    let said = site.doctor().await;
    said.assert_warning("quotas.subjects", &[": user misspelt (limit 6), team ghosts (limit 7)"]);
    assert!(said.mend("quotas.subjects").ends_with("llm-collector quota remove 6 7"), "{said:?}");
    assert_eq!(said.status, Some(0), "{said:?}");
}

#[tokio::test]
async fn limits_of_models_that_there_are_not_are_a_warning() {
    let mut site = Site::healthy().await;
    let limit = |models: &str, amount: u32| {
        format!(
            "INSERT INTO llm_quotas (subject_kind, models, unit, per, amount) VALUES ('everybody', '{models}', 'calls', 'day', {amount})"
        )
    };
    let database = site.with_limit(&limit("Qwen%", 9)).await;
    site.doctor().await.assert_quiet("quotas.models");
    execute(&database, &call("z1", None, "llama-1")).await;
    site.doctor().await.assert_warning("quotas.models", &["limit 1 is for models like Qwen%", "there are: llama-1"]);
    execute(&database, &call("z1", None, "Qwen3-32B")).await;
    site.doctor().await.assert_quiet("quotas.models");

    // Usage goes by what servers call a model.
    let models = json!([{ "name": "fast", "aliases": ["quick"], "upstream": "llm-fast", "served_as": "Org/Big" }]);
    let router = json!({
        "id": "7c1ea1d0-6b1f-4000-8000-000000000208", "name": "llm-router", "enabled": true,
        "service": { "id": "7c1ea1d0-6b1f-4000-8000-000000000001" }, "config": { "models": models },
    });
    for (pattern, amount, words) in [
        ("Org/%", 9, None),
        ("fa%", 9, Some("what the gateway calls Org/Big")),
        ("quick", 9, Some("what the gateway calls Org/Big")),
        ("kept-away", 0, None),
        ("kept-away", 9, Some("none is called so")),
    ] {
        execute(&database, "TRUNCATE llm_quotas CASCADE").await;
        execute(&database, &limit(pattern, amount)).await;
        let said = site.with_list(|list| list.push(router.clone())).await;
        match words {
            Some(words) => said.assert_warning("quotas.models", &[&format!("like {pattern},"), words]),
            None => said.assert_quiet("quotas.models"),
        }
    }
}

#[tokio::test]
async fn limits_of_cost_without_prices_are_found() {
    let mut site = Site::healthy().await;
    let price = |pattern: &str, currency: &str| {
        format!(
            "INSERT INTO llm_model_prices (model_pattern, prompt_per_million, currency) VALUES ('{pattern}', 1, '{currency}')"
        )
    };
    let limit =
        "INSERT INTO llm_quotas (subject_kind, unit, currency, per, amount) VALUES ('each_user', 'cost', 'CNY', 'month', 500)";
    let database = site.with_limit(limit).await;
    let said = site.doctor().await;
    said.assert_problem("quotas.prices", &["limit 1 is in CNY, and no price is"]);
    assert!(said.mend("quotas.prices").contains("llm-collector prices set MODEL"), "{said:?}");

    execute(&database, &price("unused", "CNY")).await;
    site.doctor().await.assert_quiet("quotas.prices");
    execute(&database, &price("dear%", "USD")).await;
    execute(&database, &call("z1", None, "dear-1")).await;
    site.doctor().await.assert_problem("quotas.prices", &["limit 1 is in CNY", "have prices in USD"]);
    execute(&database, &price("dear-1", "CNY")).await;
    site.doctor().await.assert_quiet("quotas.prices");

    execute(&database, &call("z1", None, "free-1")).await;
    let said = site.doctor().await;
    said.assert_warning("quotas.prices", &["calls of free-1 cost nothing for limit 1"]);
    assert_eq!(said.status, Some(0), "{said:?}");
    // A limit of tokens needs no price, and one of other models not this one.
    execute(&database, "UPDATE llm_quotas SET models = 'dear%'").await;
    site.doctor().await.assert_quiet("quotas.prices");
    execute(&database, "UPDATE llm_quotas SET models = '%', unit = 'tokens', currency = ''").await;
    site.doctor().await.assert_quiet("quotas.prices");
}

#[tokio::test]
async fn notices_that_a_webhook_does_not_take_are_a_problem() {
    const ADDRESS: &str = "https://chat.example.org/hooks/a-secret-path";
    let mut site = Site::healthy().await;
    let database = site.with_limit(LIMIT).await;
    let notice = |noted: u32, tries: u32, tried: &str, ends: &str, sent: &str| {
        format!(
            "INSERT INTO llm_quota_notices (quota_id, subject, starts_at, threshold, subject_kind, models, unit, currency, per, amount,
                mode, used, ends_at, noted_at, tries, tried_at, sent_at)
             VALUES (1, '', now() - interval '1 hour', (SELECT count(*) FROM llm_quota_notices), 'everybody', '%', 'tokens', '', 'day',
                1000000, 'soft', 900000, now() + interval '{ends}', now() - interval '{noted} minutes', {tries},
                now() - interval '{tried}', {sent})"
        )
    };
    for fine in [
        notice(20, 1, "19 minutes", "2 hours", "now() - interval '19 minutes'"),
        notice(5, 4, "1 minute", "2 hours", "NULL"),
        notice(90, 4, "2 minutes", "-1 minute", "NULL"),
        // A webhook that is set no more.
        notice(200, 4, "3 hours", "2 hours", "NULL"),
    ] {
        execute(&database, &fine).await;
    }
    site.set("QUOTA_WEBHOOK_URL", ADDRESS);
    let said = site.doctor().await;
    said.assert_quiet("quotas.webhook");
    assert!(said.stdout.contains("no notice of a limit waits"), "{said:?}");

    execute(&database, &notice(20, 5, "2 minutes", "2 hours", "NULL")).await;
    let said = site.doctor().await;
    said.assert_problem("quotas.webhook", &["has not taken 1 notice about a limit", "the oldest for 20 min", "up to 5 tries"]);
    assert!(said.mend("quotas.webhook").contains("llm-collector quota webhook-test"), "{said:?}");
    assert!(!said.stdout.contains("secret-path"), "{said:?}");

    // Noted, and posted by nobody: which is wrong only where there is a webhook, and none was posted in place of it.
    execute(&database, "UPDATE llm_quota_notices SET tries = 0, tried_at = NULL, noted_at = now() - interval '30 minutes'").await;
    site.doctor().await.assert_problem("quotas.webhook", &["no collector posts them"]);
    site.variables.remove("QUOTA_WEBHOOK_URL");
    site.doctor().await.assert_quiet("quotas.webhook");
    site.set("QUOTA_WEBHOOK_URL", ADDRESS);
    execute(&database, "UPDATE llm_quota_notices SET sent_at = now() WHERE sent_at IS NOT NULL").await;
    site.doctor().await.assert_quiet("quotas.webhook");
}
