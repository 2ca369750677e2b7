//! Keys must not be where others can read them.

use gateway_tests::fixtures;
use gateway_tests::gateway::Session;

/// Makes calls with a key in every place that a client may put it, and then looks at everything that was written, by this test
/// and by all others that ran before: the logs, the tables, and the requests that reached vLLM.
#[tokio::test]
async fn no_key_of_any_user_is_left_anywhere() {
    let session = Session::alone().await;
    let (user, other) = (session.user().await, session.user().await);
    let wrong = "sk-wrong-0123456789-in-all-places";
    session.gateway.remember_key(wrong);
    let chat = |path: &str| session.call(path).body(fixtures::vllm_request("chat-en-stream"));
    let path = "/v1/chat/completions";
    let mut replies = Vec::new();
    for key in [&*user.key, wrong] {
        let bearer = format!("Bearer {key}");
        for call in [
            chat(path).key(key),
            chat(path).header("authorization", &format!("bearer {key}")),
            chat(path).header("authorization", key),
            chat(path).header("x-api-key", key),
            chat(path).header("x-api-key", &bearer),
            chat(path).header("api-key", key).key(&other.key),
            chat(path).header("proxy-authorization", &bearer).key(&other.key),
            chat(path).header("cookie", &format!("key={key}")).key(&other.key),
            chat(path).header("x-api-key", key).key(&other.key),
            chat(&format!("{path}?apikey={key}")),
            chat("/v1/nowhere").key(key),
            chat("/v1/nowhere").header("x-api-key", key),
            chat(&format!("/v1/nowhere?x-api-key={key}")),
            session.call("/v1/messages").header("x-api-key", key).body(fixtures::vllm_request("messages-stream")),
            chat(path).key(key).header("x-sim-break", "rst:0"),
            chat(path).key(key).header("x-sim-break", "rst-mid:3"),
        ] {
            replies.push(call.send().await);
        }
    }
    for reply in &replies {
        reply.row(&session).await;
        for key in session.gateway.keys() {
            assert!(!reply.text().contains(&key), "in an answer: {}", reply.text());
        }
    }
    let keys = session.gateway.keys();
    let mut places = session.gateway.everything_written().await;
    assert!(places.iter().any(|(name, text)| name.contains("llm_logs") && text.contains("/v1/nowhere")));
    // Of a header or a query that is no place for a key the gateway knows nothing: vLLM may see those, the log may not.
    let of_client = |seen: &gateway_tests::vllm::Seen| {
        ["api-key", "proxy-authorization", "cookie"].iter().any(|name| seen.header(name).is_some())
    };
    let seen = session.gateway.seen(|seen| !of_client(seen));
    assert!(!seen.is_empty());
    for (place, text) in &places {
        assert!(session.gateway.own_keys().iter().all(|key| !text.contains(key.as_str())), "a key of ours is in {place}");
    }
    places.extend(seen.iter().map(|seen| (format!("request {} at vLLM", seen.number), seen.as_text())));
    for (place, text) in &places {
        for key in &keys {
            // Where, but not the key itself: this, too, is a log.
            assert!(!text.contains(key.as_str()), "a key that begins with {} is in {place}", &key[..7.min(key.len())]);
        }
    }
}
