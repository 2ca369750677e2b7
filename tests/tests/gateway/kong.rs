//! `kong apply` and `users` on a gateway that serves.

use gateway_tests::fixtures;
use gateway_tests::gateway::Session;
use serde_json::Value;

/// Services, routes and plugins that belong to all, as Kong has them.
async fn state(session: &Session) -> Vec<Value> {
    let mut all = Vec::new();
    for list in ["services", "routes", "plugins"] {
        let url = format!("{}/{list}?size=1000", session.gateway.admin_url);
        let text = reqwest::get(url).await.unwrap().text().await.unwrap();
        let page: Value = serde_json::from_str(&text).unwrap();
        // Other tests give users limits of their own meanwhile.
        all.extend(page["data"].as_array().unwrap().iter().filter(|entity| !entity["consumer"].is_object()).cloned());
    }
    all.sort_by_key(|entity| entity["id"].to_string());
    all
}

#[tokio::test]
async fn configuring_twice_changes_nothing() {
    let session = Session::begin().await;
    let before = state(&session).await;
    assert!(before.len() > 15, "{before:?}");
    let said = session.configure_again(&[]).await;
    assert!(said.success && said.stdout.contains("nothing to change"), "{} {}", said.stdout, said.stderr);
    assert_eq!(state(&session).await, before);
    assert!(session.configure_again(&["--dry-run"]).await.success, "status 3 is for differences");
}

async fn status(session: &Session, key: &str) -> u16 {
    session.call("/v1/models").key(key).send().await.status
}

#[tokio::test]
async fn a_user_that_is_added_may_call_at_once_and_one_that_is_removed_may_not() {
    let session = Session::begin().await;
    let user = session.user().await;
    assert!(user.key.starts_with("sk-") && user.key.len() >= 3 + 32, "{} characters", user.key.len());
    assert_eq!(status(&session, &user.key).await, 200);
    assert!(session.users(&["list"]).await.stdout.contains(&user.name));

    let said = session.users(&["rotate", &user.name]).await;
    assert!(said.success, "{}", said.stderr);
    let new_key = said.stdout.trim().to_owned();
    session.gateway.remember_key(&new_key);
    assert_ne!(new_key, user.key);
    session.settled("the new key works", || async { status(&session, &new_key).await == 200 }).await;
    session.settled("the old key does not", || async { status(&session, &user.key).await == 401 }).await;

    let said = session.users(&["remove", &user.name]).await;
    assert!(said.success, "{}", said.stderr);
    session.settled("the user is gone", || async { status(&session, &new_key).await == 401 }).await;
    assert!(!session.users(&["list"]).await.stdout.contains(&format!("{} ", user.name)));
}

#[tokio::test]
async fn the_list_tells_the_hour_of_the_last_call_where_the_rows_can_be_asked() {
    let session = Session::begin().await;
    let (user, silent) = (session.user().await, session.user().await);
    let reply = session.call("/v1/chat/completions").key(&user.key).body(fixtures::vllm_request("chat-en")).send().await;
    let row = reply.row(&session).await;
    let query = r#"SELECT to_char(date_trunc('hour', started_at AT TIME ZONE 'UTC'), 'YYYY-MM-DD"T"HH24:MI:SS"Z"') FROM llm_logs
        WHERE request_id = $1"#;
    let hour = session.rows().await.query_one(query, &[&row["request_id"].as_str()]).await.unwrap().get::<_, String>(0);
    let said = session.users_and_rows(&["list", "--json"]).await;
    assert!(said.success && said.stderr.is_empty(), "{}", said.stderr);
    let users: Value = serde_json::from_str(&said.stdout).unwrap();
    let hour_of = |name: &str| {
        let found = users.as_array().unwrap().iter().find(|user| user["name"] == *name).unwrap();
        found["last_call_hour"].as_str().map(str::to_owned)
    };
    assert_eq!(hour_of(&user.name), Some(hour));
    assert_eq!(hour_of(&silent.name), None);
    // Without the database the list is there all the same.
    assert!(session.users(&["list"]).await.stdout.contains(&user.name));
}

#[tokio::test]
async fn a_key_that_somebody_uses_already_is_taken_over() {
    let session = Session::begin().await;
    let key = format!("sk-taken-over-{:024}", std::process::id());
    let user = session.user_with_key(&key).await;
    let reply = session.call("/v1/chat/completions").key(&key).body(fixtures::vllm_request("chat-en")).send().await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.row(&session).await["consumer_username"], *user.name);
    // It cannot be given to a second one.
    let said = session.users(&["add", &format!("{}-again", user.name), "--key", &key]).await;
    assert!(!said.success && !said.stderr.contains(&key), "{}", said.stderr);
}

#[tokio::test]
async fn a_key_for_vllm_takes_the_place_of_the_users() {
    let session = Session::alone().await;
    let user = session.user().await;
    let of_vllm = "sk-of-vllm-0123456789abcdef";
    session.gateway.remember_own_key(of_vllm);
    session.change(&[("VLLM_API_KEY", of_vllm)]).await;
    let call = || session.call("/v1/chat/completions").body(fixtures::vllm_request("chat-en"));
    let bearer = format!("Bearer {of_vllm}");
    session
        .settled("vLLM gets its key", || async {
            let reply = call().key(&user.key).send().await;
            reply.seen_once(&session).await.header("authorization") == Some(&bearer)
        })
        .await;
    let calls =
        [call().key(&user.key), call().header("x-api-key", &user.key), call().key(&user.key).header("x-api-key", "sk-other")];
    for call in calls {
        let reply = call.send().await;
        assert_eq!(reply.status, 200);
        let seen = reply.seen_once(&session).await;
        let sent: Vec<&str> = seen
            .headers
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("authorization"))
            .map(|(_, value)| &**value)
            .collect();
        assert_eq!(sent, [&bearer], "exactly one, and vLLM's");
        assert_eq!(seen.header("x-api-key"), None);
        let row = reply.row(&session).await;
        assert!(!row.to_string().contains(of_vllm) && row["consumer_username"] == *user.name, "{row}");
    }
}
