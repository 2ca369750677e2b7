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
    for model in [MODEL, OTHER] {
        session.models(&["remove", model]).await;
    }
    session.settled("the models are gone", || async { status(&session, &user.key, "qwen-tiny").await == 200 }).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
