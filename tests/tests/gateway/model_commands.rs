//! `models` on a gateway that serves: no call is refused while servers and models come and go.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use gateway_tests::gateway::Session;
use gateway_tests::vllm::{Settings, SimulatedVllm};

const CHAT: &str = "/v1/chat/completions";
const MODEL: &str = "e2e-commanded";
const OTHER: &str = "e2e-commanded-too";

async fn server() -> SimulatedVllm {
    SimulatedVllm::start(Settings { listen: "127.0.0.1:0".parse().unwrap(), time_scale: 0.0 }).await.unwrap()
}

async fn models(session: &Session, arguments: &[&str]) -> String {
    let said = session.models(arguments).await;
    assert!(said.success, "{arguments:?}: {}", said.stderr);
    said.stdout
}

async fn status(session: &Session, key: &str, model: &str) -> u16 {
    let body = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"one two three"}}]}}"#);
    session.call(CHAT).key(key).header("x-sim-delay-ms", "20").body(body).send().await.status
}

/// The gateway knows no models, as other tests expect it.
async fn remove_all(session: &Session) {
    let listed = session.models(&["list", "--json"]).await;
    let list: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    for model in list.as_array().unwrap() {
        session.models(&["remove", model["name"].as_str().unwrap()]).await;
    }
}

/// A page of the Admin API.
async fn page(url: &str) -> serde_json::Value {
    serde_json::from_slice(&reqwest::get(url).await.unwrap().bytes().await.unwrap()).unwrap()
}

fn posts(server: &SimulatedVllm) -> usize {
    server.seen(|seen| seen.method == "POST").len()
}

#[tokio::test]
async fn models_that_change_under_load_cost_no_call() {
    let session = Session::alone().await;
    let (first, second) = (server().await, server().await);
    let urls = [format!("http://{}", first.address()), format!("http://{}", second.address())];
    let user = session.user().await;
    let over = AtomicBool::new(false);

    let outcome = AssertUnwindSafe(async {
        models(&session, &["add", MODEL, &urls[0], "--served-as", "qwen-tiny"]).await;
        session.settled("the model is there", || async { status(&session, &user.key, MODEL).await == 200 }).await;
        assert_eq!(
            status(&session, &user.key, "qwen-tiny").await,
            200,
            "the first model is still there after the second is added"
        );
        let load = async || {
            let mut served = 0;
            while !over.load(Ordering::SeqCst) {
                assert_eq!(status(&session, &user.key, MODEL).await, 200, "call {served} while models change");
                served += 1;
            }
            served
        };
        let changes = async {
            models(&session, &["add", MODEL, &urls[0], &urls[1], "--served-as", "qwen-tiny"]).await;
            session.settled("the second server is used", || async { posts(&second) > 0 }).await;
            models(&session, &["add", OTHER, &urls[1], "--served-as", "qwen-tiny"]).await;
            assert_eq!(status(&session, &user.key, OTHER).await, 200, "a model that was added is there at once");
            models(&session, &["add", MODEL, &urls[1], "--served-as", "qwen-tiny"]).await;
            let list = models(&session, &["list"]).await;
            let line = list.lines().find(|line| line.split_whitespace().next() == Some(MODEL)).unwrap().to_owned();
            assert!(line.contains(&second.address().to_string()) && !line.contains(&first.address().to_string()), "{list}");
            models(&session, &["remove", OTHER]).await;
            over.store(true, Ordering::SeqCst);
        };
        let (_, one, two, three) = tokio::join!(changes, load(), load(), load());
        assert!(one > 0 && two > 0 && three > 0);
    })
    .catch_unwind()
    .await;

    // The gateway is as before for other tests, also when this one fails.
    remove_all(&session).await;
    session.settled("the models are gone", || async { status(&session, &user.key, "qwen-tiny").await == 200 }).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[tokio::test]
async fn an_add_that_kong_refuses_leaves_nothing_behind() {
    let session = Session::alone().await;
    let servers = (server().await, server().await);
    let urls = [format!("http://{}", servers.0.address()), format!("http://{}", servers.1.address())];
    let admin = &session.gateway.admin_url;
    let upstream = format!("{admin}/upstreams/llm-{MODEL}");
    let targets = async || {
        let page = page(&format!("{upstream}/targets")).await;
        let targets = page["data"].as_array().unwrap().iter();
        targets.map(|target| target["target"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };

    let outcome = AssertUnwindSafe(async {
        models(&session, &["add", OTHER, &urls[0], "--served-as", "qwen-tiny"]).await;
        // The plugin takes a name for one model only, and says so when the servers are there already.
        let refused = session.models(&["add", MODEL, &urls[0], "--alias", OTHER]).await;
        assert!(!refused.success && !refused.stderr.contains("taken back"), "{}", refused.stderr);
        assert_eq!(reqwest::get(&upstream).await.unwrap().status(), 404);
        assert_eq!(status(&session, &session.user().await.key, "qwen-tiny").await, 200);
        // One that is there stays as it was.
        models(&session, &["add", MODEL, &urls[0], "--served-as", "qwen-tiny"]).await;
        let refused = session.models(&["add", MODEL, &urls[1], "--alias", OTHER, "--balance", "consumer"]).await;
        assert!(!refused.success, "{}", refused.stderr);
        assert_eq!(targets().await, [servers.0.address().to_string()]);
        assert_eq!(page(&upstream).await["algorithm"], "least-connections");
        let user = session.user().await;
        session.settled("the model is as before", || async { status(&session, &user.key, MODEL).await == 200 }).await;

        // One that was cut off is shown, and can be removed by the name of its model.
        models(&session, &["remove", MODEL]).await;
        let half =
            reqwest::Client::new().put(&upstream).header("Content-Type", "application/json").body("{}").send().await.unwrap();
        assert!(half.status().is_success());
        let listed = session.models(&["list"]).await;
        assert!(listed.stderr.contains(&format!("llm-{MODEL} that no model uses")), "{}", listed.stderr);
        models(&session, &["remove", MODEL]).await;
        assert_eq!(reqwest::get(&upstream).await.unwrap().status(), 404);
        assert!(!session.models(&["list"]).await.stderr.contains("no model uses"));
    })
    .catch_unwind()
    .await;

    remove_all(&session).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
