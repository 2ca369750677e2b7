//! Limits while PostgreSQL is away, and when users, teams and prices change.

use std::time::Instant;

use gateway_tests::gateway::User;
use gateway_tests::nodes::Nodes;
use serde_json::Value;

use super::quota_kills::{CALL, CHAT, FAR, assert_all_agree, one_call};
use super::*;

/// How long PostgreSQL is away: `QUOTA_OUTAGE_SECONDS=600` is what is promised.
fn outage() -> Duration {
    let seconds = std::env::var("QUOTA_OUTAGE_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(4))
}

async fn set_limit(site: &Nodes, of: &[&str]) {
    site.command(&[&["quota", "set", "--per", "month", "--hard"], of].concat()).await;
}

/// A call of the size that all of these have; its status.
async fn call(site: &Nodes, node: usize, user: &User) -> u16 {
    let (body, headers) = one_call();
    site.call(node, user, CHAT, &headers, &body).await.expect("an answer").status
}

#[tokio::test]
async fn while_postgresql_is_away_nobody_is_refused_who_has_some_left_and_nothing_is_reset() {
    let site = Nodes::start(1).await;
    let (free, tight) = (site.user("free", "ml").await, site.user("tight", "ml").await);
    // What a call reserves is a little more than what it takes: for the twentieth there is room, for another one there is not.
    let allowed = 20 * CALL + 40;
    set_limit(&site, &["--user", "free", "--tokens", &FAR.to_string()]).await;
    set_limit(&site, &["--user", "tight", "--tokens", &allowed.to_string()]).await;
    site.wait_for_limit(&free, FAR).await;
    site.wait_for_limit(&tight, allowed).await;
    for done in 1..=5 {
        for (user, of) in [(&free, FAR), (&tight, allowed)] {
            assert_eq!(call(&site, 0, user).await, 200);
            site.wait_for_left(user, of - done * CALL).await;
        }
    }

    site.cluster.stop_server("fast").unwrap();
    let gone = Instant::now();
    for done in 6..=20 {
        assert_eq!(call(&site, 0, &tight).await, 200, "call {done}");
        site.wait_for_left(&tight, allowed - done * CALL).await;
    }
    let mut calls = 5;
    while calls < 20 || gone.elapsed() < outage() {
        assert_eq!(call(&site, 0, &free).await, 200, "after {:?}", gone.elapsed());
        calls += 1;
        let is_settled = || async {
            let left = site.told(0, &free).await.and_then(|told| told.tokens_left).expect("a limit");
            assert!(left <= FAR - (calls - 1) * CALL, "{left} are left after {calls} calls");
            left == FAR - calls * CALL
        };
        wait_until("the call is settled", PATIENCE, is_settled).await;
        assert_eq!(call(&site, 0, &tight).await, 429, "after {:?}", gone.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("{calls} calls in {:?} without PostgreSQL", gone.elapsed());
    // A collector that is started anew has it from its spool.
    site.kill_collector().await;
    site.start_collector().await;
    site.cluster.start_server().unwrap();
    assert_eq!(assert_all_agree(&site, &free, FAR).await, calls * CALL);
    assert_eq!(assert_all_agree(&site, &tight, allowed).await, 20 * CALL);
    assert_eq!(call(&site, 0, &tight).await, 429);
}

#[tokio::test]
async fn who_moves_or_is_renamed_leaves_what_he_used_behind_and_prices_hold_for_all_of_a_window() {
    let site = Nodes::start(2).await;
    let mut user = site.user("mover", "ml").await;
    for (name, calls) in [("ml", 10), ("web", 8)] {
        set_limit(&site, &["--team", name, "--tokens", &(calls * CALL).to_string()]).await;
    }
    site.wait_for_limit(&user, 10 * CALL).await;
    for _ in 0..3 {
        assert_eq!(call(&site, 0, &user).await, 200);
    }
    site.wait_for_left(&user, 7 * CALL).await;

    site.move_user(&user, "web").await;
    site.wait_for_left(&user, 8 * CALL).await;
    assert_eq!(call(&site, 1, &user).await, 200);
    site.wait_for_left(&user, 7 * CALL).await;
    let used = async |team: &str| {
        let status = site.command(&["quota", "status", "--team", team, "--json"]).await;
        let status: Value = serde_json::from_str(&status).expect("JSON");
        status[0]["used"].as_i64().expect("a number")
    };
    assert_eq!((used("ml").await, used("web").await), (3 * CALL, CALL));

    // The team has what its members used under any name, and the new name nothing.
    set_limit(&site, &["--each-user", "--tokens", &(6 * CALL).to_string()]).await;
    site.wait_for_left(&user, 2 * CALL).await;
    site.rename_user(&mut user, "moved").await;
    // What the team has left is less of its limit than what he has.
    site.wait_for_left(&user, 7 * CALL).await;

    // What was used at a low price costs more, too, when the price is raised.
    set_limit(&site, &["--each-user", "--tokens", &FAR.to_string()]).await;
    let price = async |price: &str| {
        let of = ["--prompt", price, "--completion", price, "--currency", "CNY", "--from", "2020-01-01"];
        site.command(&[&["prices", "set", "%"], of.as_slice()].concat()).await
    };
    price("1").await;
    set_limit(&site, &["--user", "moved", "--cost", "1", "--currency", "CNY"]).await;
    // Limits are told together: once this one is known, that is, too.
    set_limit(&site, &["--team", "web", "--tokens", &(FAR - 1).to_string()]).await;
    site.wait_for_limit(&user, FAR - 1).await;
    assert_eq!(call(&site, 0, &user).await, 200);
    site.wait_for_left(&user, FAR - 1 - 2 * CALL).await;
    price("1000000").await;
    let (body, headers) = one_call();
    for node in 0..2 {
        wait_until("the new price holds", PATIENCE, || async {
            let answer = site.call(node, &user, CHAT, &headers, &body).await.expect("an answer");
            answer.status == 429 && answer.text.contains("CNY")
        })
        .await;
    }
}
