//! The usage page in a real browser, through the gateway.

use std::path::PathBuf;

use gateway_tests::browser::{Browser, Reader};
use gateway_tests::gateway::{Session, User};
use serde_json::Value;

use crate::own_usage::{report, told, use_something};

const WRONG: &str = "sk-wrong-in-the-usage-page-0123456789";
const PLAIN: Reader = Reader { language: "en-US", script: true, size: (1000, 900), dark: false };

/// Where pictures go; `make pictures` names it.
fn pictures() -> Option<PathBuf> {
    std::env::var_os("PICTURES").map(PathBuf::from)
}

/// Somebody with a month of usage, and with calls of now.
async fn somebody(session: &Session, name: &str) -> (User, i64) {
    let user = if pictures().is_some() { session.named_user(name).await } else { session.user().await };
    for (model, price) in [("GLM-4.6", "4"), ("Qwen3-235B", "2")] {
        let said = session
            .collector(&[
                "prices",
                "set",
                model,
                "--prompt",
                price,
                "--completion",
                "8",
                "--currency",
                "CNY",
                "--from",
                "2020-01-01",
            ])
            .await;
        assert!(said.success, "{}", said.stderr);
    }
    // As the trigger counts rows, only that there are none.
    let past = "INSERT INTO llm_usage_deltas (hour, consumer_username, model, calls, errors, prompt_tokens, uncached_prompt_tokens,
            cached_tokens, completion_tokens, reasoning_tokens, timed_calls, latencies)
        SELECT date_trunc('hour', now(), 'UTC') - make_interval(hours => 24 * ago + 1), $1, model, 7, 1,
            share * (40000 + ago * 7919 % 31000), share * (40000 + ago * 7919 % 31000), 0, share * (9000 + ago * 104729 % 7000), 0, 0, 0
        FROM generate_series(0, 40) AS ago, (VALUES ('GLM-4.6', 3), ('Qwen3-235B', 2), ('a <b>model</b> \u{202e}', 1)) AS models (model, share)
        WHERE (ago + 2) % 7 > 1";
    session.rows().await.execute(past, &[&user.name]).await.unwrap();
    let calls = use_something(session, &user).await;
    (user, calls)
}

fn sum(usage: &Value) -> i64 {
    ["prompt_tokens", "completion_tokens"].map(|name| usage[name].as_i64().unwrap()).iter().sum()
}

fn first_day() -> String {
    (chrono::Utc::now() - chrono::Duration::days(29)).format("%Y-%m-%d").to_string()
}

/// The numbers that the page shows are those of `report`.
async fn assert_as_in_report(session: &Session, browser: &Browser, user: &User) {
    let month = chrono::Utc::now().format("%Y-%m").to_string();
    let (today, days) = (chrono::Utc::now().format("%Y-%m-%d").to_string(), first_day());
    for (card, range) in [("#today", ["--since", &today]), ("#month", ["--month", &month]), ("#days30", ["--since", &days])] {
        let report = report(session, user, &range, "model").await;
        let shown = browser.attribute(card, "data-tokens").await.unwrap();
        assert_eq!(shown, sum(&report["total"]).to_string(), "{card}");
        assert_eq!(browser.text(card).await.replace(',', ""), shown);
    }
    let report = report(session, user, &["--since", &days], "model").await;
    let cost = report["total"]["cost"]["CNY"].as_f64().unwrap();
    assert!(cost > 1.0);
    assert!(browser.text(".cards section:nth-child(3)").await.contains(&format!("{cost:.4} CNY")));
    let models = browser.text("#models").await;
    assert!(models.contains("a <b>model</b> \u{fffd}") && models.contains("GLM-4.6"), "{models}");
    assert!(browser.text("#calls").await.contains("qwen-tiny"));
}

async fn assert_nobody_else_was_asked(session: &Session, browser: &Browser, keys: &[&str]) {
    let requests = browser.requests().await;
    assert!(requests.iter().any(|url| url.ends_with("/usage")), "{requests:?}");
    for url in requests {
        let path = url.strip_prefix(&session.gateway.proxy_url);
        // An error of Kong's, which a browser shows until it is sent back, names no icon: it asks for the usual one.
        let is_here = path.is_some_and(|path| path.starts_with("/usage") || path == "/favicon.ico");
        assert!(url == "data:," || is_here, "{url}");
        assert!(keys.iter().all(|key| !url.contains(key)), "a key is in an address");
    }
}

fn keep_picture(name: &str, picture: &[u8]) {
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 10_000);
    if let Some(folder) = pictures() {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), picture).unwrap();
    }
}

#[tokio::test]
async fn a_person_sees_in_a_browser_what_report_says() {
    let session = Session::begin().await;
    session.gateway.remember_key(WRONG);
    let (user, calls) = somebody(&session, "alice").await;
    told_in_full(&session, &user, calls).await;
    let browser = Browser::open(PLAIN).await;
    let page = format!("{}/usage", session.gateway.proxy_url);
    browser.go(&page).await;
    browser.enter("[name=key]", WRONG).await;
    browser.click("form button").await;
    browser.wait_for("#message:not(:empty)").await;
    assert!(browser.text("#message").await.contains("not valid"));
    assert!(!browser.is_seen("#today").await);

    browser.reload().await;
    browser.enter("[name=key]", &user.key).await;
    browser.click("form button").await;
    browser.wait_for("#today").await;
    assert_as_in_report(&session, &browser, &user).await;
    assert_eq!(browser.address().await, page);
    assert!(!browser.is_seen("form").await && browser.is_seen(".wide svg").await);
    assert_eq!(browser.style("body", "background-color").await, "rgba(246, 247, 249, 1)");
    keep_picture("usage.png", &browser.picture().await);

    // The tab remembers the key, until it is told not to.
    browser.reload().await;
    browser.wait_for("#today").await;
    browser.click("#forget").await;
    browser.wait_for("form").await;
    assert!(!browser.is_seen("#today").await);
    browser.reload().await;
    browser.wait_for("form").await;
    assert!(!browser.is_seen("#today").await);
    assert_nobody_else_was_asked(&session, &browser, &[&user.key, WRONG]).await;
    for (place, text) in session.gateway.everything_written().await {
        assert!(!text.contains(&user.key) && !text.contains(WRONG), "a key is in {place}");
    }
}

/// Waits until all calls are counted: the page shows what is told.
async fn told_in_full(session: &Session, user: &User, calls: i64) {
    let report = report(session, user, &["--since", &chrono::Utc::now().format("%Y-%m-%d").to_string()], "model").await;
    assert!(report["total"]["calls"].as_i64().unwrap() >= calls);
    told(session, user, report["total"]["calls"].as_i64().unwrap()).await;
}

#[tokio::test]
async fn without_a_script_the_form_does_the_same() {
    let session = Session::begin().await;
    session.gateway.remember_key(WRONG);
    let (user, calls) = somebody(&session, "bob").await;
    told_in_full(&session, &user, calls).await;
    let browser = Browser::open(Reader { script: false, ..PLAIN }).await;
    let page = format!("{}/usage", session.gateway.proxy_url);
    browser.go(&page).await;
    browser.enter("[name=key]", WRONG).await;
    browser.click("form button").await;
    browser.wait_for("#message:not(:empty)").await;
    assert!(browser.text("#message").await.contains("not valid"));
    browser.enter("[name=key]", &format!(" {} ", user.key)).await;
    browser.click("form button").await;
    browser.wait_for("#today").await;
    assert_as_in_report(&session, &browser, &user).await;
    assert!(browser.is_seen("form").await && !browser.is_seen("#forget").await);
    assert_eq!(browser.address().await, page);
    assert_nobody_else_was_asked(&session, &browser, &[&user.key, WRONG]).await;
    for (place, text) in session.gateway.everything_written().await {
        assert!(!text.contains(&user.key) && !text.contains(WRONG), "a key is in {place}");
    }
}

#[tokio::test]
async fn the_page_fits_a_narrow_screen_in_the_dark_and_speaks_chinese() {
    let session = Session::begin().await;
    let (user, calls) = somebody(&session, "王小明").await;
    told_in_full(&session, &user, calls).await;
    let browser = Browser::open(Reader { language: "zh-CN", size: (360, 740), dark: true, ..PLAIN }).await;
    browser.go(&format!("{}/usage", session.gateway.proxy_url)).await;
    assert_eq!(browser.attribute("html", "lang").await.as_deref(), Some("zh-CN"));
    browser.enter("[name=key]", &user.key).await;
    browser.click("form button").await;
    browser.wait_for("#today").await;
    assert!(browser.text(".cards").await.contains("今天"));
    assert_as_in_report(&session, &browser, &user).await;
    assert!(browser.is_seen(".narrow svg").await && !browser.is_seen(".wide svg").await);
    browser.click("summary").await;
    browser.wait_for("#days").await;
    assert_eq!(browser.page_width().await, 360, "nothing has to be moved sideways");
    assert_eq!(browser.style("body", "background-color").await, "rgba(20, 24, 29, 1)");
    browser.click("summary").await;
    keep_picture("usage-narrow.png", &browser.picture().await);
    assert_nobody_else_was_asked(&session, &browser, &[&user.key]).await;
}

#[tokio::test]
async fn answers_allow_nothing_from_elsewhere_and_are_kept_by_nobody() {
    let session = Session::begin().await;
    let user = session.user().await;
    let form = |key: &str| {
        let call = session.call("/usage").header("content-type", "application/x-www-form-urlencoded");
        call.raw_body(format!("key={key}"))
    };
    let replies = [
        session.call("/usage").send().await,
        session.call("/usage?refused").send().await,
        session.call("/usage/data").key(&user.key).send().await,
        form(&user.key).send().await,
    ];
    for reply in &replies {
        assert_eq!(reply.status, 200, "{}", reply.text());
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
        for part in ["form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
            assert!(policy.contains(part), "{policy}");
        }
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
    }
    assert!(!replies[0].text().contains("data-tokens") && replies[3].text().contains("data-tokens"));

    // A form is small and has a key.
    let long = form(&"k".repeat(5_000)).send().await;
    assert_eq!(long.status, 413);
    for body in ["key=", "key=+", "key=a&key=b", "other=x", "key"] {
        let call = session.call("/usage").header("content-type", "application/x-www-form-urlencoded").raw_body(body);
        let reply = call.header("accept", "text/html").send().await;
        assert_eq!((reply.status, reply.header("refresh")), (401, Some("0; url=usage?refused")), "{body}");
    }
    // Nothing but the page is open, and no more than it.
    assert_eq!(session.call("/usage/data").send().await.status, 401);
    for path in ["/usage/", "/usage/data/x", "/usage/../metrics", "/usage/%2e%2e/metrics", "/v1/usage/x"] {
        assert_eq!(session.call(path).key(&user.key).send().await.status, 404, "{path}");
    }
}
