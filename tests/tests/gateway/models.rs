//! Several models behind one address: who gets which, where a call goes, and what becomes of it when a server dies.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use gateway_tests::gateway::{Reply, Session, User};
use gateway_tests::process::wait_until;
use gateway_tests::vllm::{Settings, SimulatedVllm};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CHAT: &str = "/v1/chat/completions";
const SMALL: &str = "e2e-small";
const BIG: &str = "e2e-big";

fn chat(model: &str) -> String {
    format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"one two three"}}]}}"#)
}

async fn server() -> SimulatedVllm {
    server_at("127.0.0.1:0".parse().unwrap()).await
}

async fn server_at(listen: SocketAddr) -> SimulatedVllm {
    SimulatedVllm::start(Settings { listen, time_scale: 0.0 }).await.unwrap()
}

/// Kong's Admin API.
struct Admin {
    url: String,
    client: reqwest::Client,
}

impl Admin {
    async fn send(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let request = self.client.request(method.parse().unwrap(), format!("{}{path}", self.url));
        let request = request.header("content-type", "application/json").body(body.to_string());
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default())
    }

    async fn set(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.send(method, path, &body).await;
        assert!(matches!(status, 200 | 201), "{method} {path}: {status} {answer}");
        answer
    }

    async fn remove(&self, path: &str) {
        let (status, answer) = self.send("DELETE", path, &Value::Null).await;
        assert!(matches!(status, 204 | 404), "DELETE {path}: {status} {answer}");
    }

    /// An upstream whose servers are looked at every second.
    async fn upstream(&self, name: &str, targets: &[SocketAddr]) {
        let checks = json!({"active": {"http_path": "/health", "timeout": 1,
            "healthy": {"interval": 1, "successes": 1, "http_statuses": [200]},
            "unhealthy": {"interval": 1, "tcp_failures": 2, "timeouts": 2, "http_failures": 2}}});
        let upstream = json!({"algorithm": "least-connections", "healthchecks": checks});
        self.set("PUT", &format!("/upstreams/{name}"), upstream).await;
        for target in targets {
            self.set("POST", &format!("/upstreams/{name}/targets"), json!({"target": target.to_string()})).await;
        }
    }

    /// How Kong finds a server.
    async fn health(&self, upstream: &str, target: SocketAddr) -> String {
        let health = self.set("GET", &format!("/upstreams/{upstream}/health"), Value::Null).await;
        let target = target.to_string();
        let found = health["data"].as_array().unwrap().iter().find(|item| item["target"] == target);
        found.unwrap_or_else(|| panic!("{health}"))["health"].as_str().unwrap().to_owned()
    }

    async fn team(&self, user: &User, team: &str) {
        self.set("PATCH", &format!("/consumers/{}", user.name), json!({"tags": [format!("team:{team}")]})).await;
    }
}

/// The gateway with these models, for one test; afterwards it is as before, also when the test fails.
async fn with_models<F: Future<Output = ()>>(
    upstreams: &[(&str, &[SocketAddr])],
    models: Value,
    test: impl FnOnce(Arc<Session>, Arc<Admin>) -> F,
) {
    let session = Arc::new(Session::alone().await);
    let admin = Arc::new(Admin { url: session.gateway.admin_url.clone(), client: reqwest::Client::new() });
    // The path of a model: a part of what `kong apply` sets up, by its own name there.
    let route = json!({"name": "e2e-model", "paths": ["~/v1/models/.+$"], "strip_path": false, "service": {"name": "vllm"}});
    admin.set("PUT", "/routes/e2e-model", route).await;
    for (name, targets) in upstreams {
        admin.upstream(name, targets).await;
    }
    let plugin = admin.set("POST", "/services/vllm/plugins", json!({"name": "llm-router", "config": {"models": models}})).await;
    let user = session.user().await;
    session
        .settled("the models are known", || async {
            session.call("/v1/models").key(&user.key).send().await.json()["data"][0]["owned_by"] == "gateway"
                && session.call("/v1/models/x/y").key(&user.key).send().await.json()["error"]["code"] == "model_not_found"
        })
        .await;

    let outcome = AssertUnwindSafe(test(Arc::clone(&session), Arc::clone(&admin))).catch_unwind().await;

    admin.remove(&format!("/plugins/{}", plugin["id"].as_str().unwrap())).await;
    admin.remove("/routes/e2e-model").await;
    for (name, _) in upstreams {
        admin.remove(&format!("/upstreams/{name}")).await;
    }
    session
        .settled("the models are gone", || async {
            session.call("/v1/models").key(&user.key).send().await.json()["data"][0]["owned_by"] != "gateway"
        })
        .await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn two_models() -> Value {
    json!([
        {"name": "small", "aliases": ["default"], "upstream": SMALL},
        {"name": "org/big", "served_as": "qwen-tiny", "upstream": BIG, "teams": ["ml"], "users": [], "key": "sk-of-the-big-server"},
    ])
}

/// The one request that a server got of a call.
fn seen_by(server: &SimulatedVllm, reply: &Reply) -> Vec<gateway_tests::vllm::Seen> {
    let id = reply.request_id().to_owned();
    server.seen(|seen| seen.header("x-request-id") == Some(&id))
}

#[tokio::test]
async fn a_call_goes_to_a_server_of_its_model_and_to_no_other() {
    let (small, big) = (server().await, server().await);
    let upstreams: [(&str, &[SocketAddr]); 2] = [(SMALL, &[small.address()]), (BIG, &[big.address()])];
    with_models(&upstreams, two_models(), |session, admin| async move {
        let (bob, mila) = (session.user().await, session.user().await);
        admin.team(&mila, "ml").await;
        session.gateway.remember_own_key("sk-of-the-big-server");

        for (model, sent) in [("small", "small"), ("default", "small")] {
            let reply = session.call(CHAT).key(&bob.key).body(chat(model)).send().await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            let seen = seen_by(&small, &reply).pop().unwrap();
            assert_eq!(String::from_utf8(seen.body.clone()).unwrap(), chat(sent));
            assert_eq!(seen.header("authorization"), None);
            let row = reply.row(&session).await;
            assert_eq!(row["backend"], small.address().to_string());
            assert_eq!(row["raw_log"]["llm"]["model_asked"], model);
            assert_eq!(row["model"], "small");
            assert_eq!(row["completion_tokens"], 3);
        }

        // Named twice, and spelled with an escape: the last counts, for whichever server reads it.
        let body =
            r#"{"model":"small","stream":true,"mod\u0065l":"org/big","messages":[{"role":"user","content":"one two three"}]}"#;
        let reply = session.call(CHAT).key(&mila.key).body(body).send().await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let seen = seen_by(&big, &reply).pop().unwrap();
        assert!(seen_by(&small, &reply).is_empty());
        let text = String::from_utf8(seen.body.clone()).unwrap();
        assert!(text.contains(r#""model":"qwen-tiny","stream":true,"mod\u0065l":"qwen-tiny""#), "{text}");
        assert!(text.contains("include_usage"), "{text}");
        assert_eq!(seen.header("authorization"), Some("Bearer sk-of-the-big-server"));
        assert_eq!(reply.row(&session).await["completion_tokens"], 3);

        // A large body is rewritten in its file, once for the model and once more for the usage.
        let content = "x".repeat(8 << 20);
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{content}"}}],"stream":true,"model":"default"}}"#);
        let reply = session.call(CHAT).key(&bob.key).body(body.clone()).send().await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let seen = seen_by(&small, &reply).pop().unwrap();
        let usage = r#""stream_options":{"include_usage":true},"#;
        assert_eq!(seen.body_bytes, body.len() - "default".len() + "small".len() + usage.len());
        assert_eq!(seen.header("content-length"), Some(seen.body_bytes.to_string().as_str()));
        let row = reply.row(&session).await;
        assert_eq!((&row["status"], &row["raw_log"]["llm"]["request_bytes"]), (&json!(200), &json!(body.len())));

        // What is forbidden reads like what is not there.
        let mut answers = Vec::new();
        for model in ["org/big", "org/bog"] {
            let reply = session.call(CHAT).key(&bob.key).body(chat(model)).send().await;
            assert_eq!(reply.status, 404);
            answers.push(reply.text().replace(model, "MODEL"));
            let row = reply.row(&session).await;
            assert_eq!((&row["status"], &row["consumer_username"]), (&json!(404), &json!(bob.name)));
            let llm = &row["raw_log"]["llm"];
            assert_eq!((&llm["refused_by"], &llm["model_asked"]), (&json!("router"), &json!(model)));
            assert_eq!(row["backend"], Value::Null);
        }
        assert_eq!(answers[0], answers[1]);
        for (body, status) in [("{}", 400), (r#"{"model":1}"#, 400), ("no JSON", 400), (r#"{"model":"small"} x"#, 400)] {
            let reply = session.call(CHAT).key(&bob.key).body(body).send().await;
            assert_eq!(reply.status, status, "{body}");
            assert_eq!(reply.json()["error"]["type"], "invalid_request_error", "{body}");
            assert_eq!(reply.row(&session).await["status"], status);
        }
        assert!(session.gateway.seen(|seen| seen.header("x-consumer-username") == Some(&bob.name)).is_empty());
    })
    .await;
}

/// What both SDKs make of the models.
async fn with_sdks(session: &Session, user: &User, models: &str) -> Value {
    let output = tokio::process::Command::new(crate::sdk::python())
        .arg(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/models_calls.py"))
        .env_clear()
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("BASE_URL", &session.gateway.proxy_url)
        .env("KEY", &user.key)
        .env("MODELS", models)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(120), output).await.expect("it ends").expect("Python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn everybody_sees_the_models_they_may_use() {
    let small = server().await;
    let upstreams: [(&str, &[SocketAddr]); 2] = [(SMALL, &[small.address()]), (BIG, &[small.address()])];
    with_models(&upstreams, two_models(), |session, admin| async move {
        let (bob, mila) = (session.user().await, session.user().await);
        admin.team(&mila, "ml").await;
        let not_found = |shape: &str, model: &str| {
            let openai = shape == "openai";
            json!({"class": "NotFoundError", "code": if openai { json!("model_not_found") } else { Value::Null },
                "type": if openai { "invalid_request_error" } else { "not_found_error" },
                "message": format!("The model `{model}` does not exist or you do not have access to it.")})
        };
        for (user, list) in [(&bob, json!(["small"])), (&mila, json!(["small", "org/big"]))] {
            let seen = with_sdks(&session, user, "small default org/big no-such").await;
            for shape in ["openai", "anthropic"] {
                let big = if user.name == mila.name { json!("org/big") } else { not_found(shape, "org/big") };
                let retrieved =
                    json!({"small": "small", "default": "small", "org/big": big, "no-such": not_found(shape, "no-such")});
                let wanted = json!({"list": list, "retrieve": retrieved, "chat": not_found(shape, "no-such")});
                assert_eq!(seen[shape], wanted, "{} {shape}", user.name);
            }
        }
        let reply = session.call("/v1/models").key(&bob.key).send().await;
        let row = reply.row(&session).await;
        assert_eq!((&row["status"], &row["error"], &row["backend"]), (&json!(200), &Value::Null, &Value::Null));
        assert_eq!(row["raw_log"]["llm"]["refused_by"], Value::Null);
    })
    .await;
}

/// A server that takes a request and dies before it answers; counts how often.
async fn dying(died: Arc<AtomicUsize>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let died = Arc::clone(&died);
            tokio::spawn(async move {
                let mut head = vec![0; 65536];
                let mut length = 0;
                while !head[..length].windows(4).any(|end| end == b"\r\n\r\n") {
                    match stream.read(&mut head[length..]).await {
                        Ok(0) | Err(_) => return,
                        Ok(more) => length += more,
                    }
                }
                if head.starts_with(b"GET /health") {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
                } else {
                    died.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_call_whose_server_dies_before_the_answer_goes_to_another_one() {
    let died = Arc::new(AtomicUsize::new(0));
    let (bad, good) = (dying(Arc::clone(&died)).await, server().await);
    let upstreams: [(&str, &[SocketAddr]); 1] = [(SMALL, &[bad, good.address()])];
    let models = json!([{"name": "small", "upstream": SMALL}]);
    with_models(&upstreams, models, |session, admin| async move {
        let user = session.user().await;
        // The least busy one would be the same each time.
        admin.set("PATCH", &format!("/upstreams/{SMALL}"), json!({"algorithm": "round-robin"})).await;
        let mut calls = 0;
        while died.load(Ordering::SeqCst) < 3 {
            calls += 1;
            assert!(calls < 100, "the dying server is not asked");
            let reply = session.call(CHAT).key(&user.key).body(chat("small")).send().await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert_eq!(seen_by(&good, &reply).len(), 1);
            assert_eq!(reply.row(&session).await["backend"], good.address().to_string());
        }

        // In mid-stream nobody can go on in its place.
        let call = session.call(CHAT).key(&user.key).header("x-sim-break", "rst-mid:2").header("x-sim-repeat", "9");
        let body = r#"{"model":"small","stream":true,"messages":[{"role":"user","content":"one two three"}]}"#;
        let reply = call.body(body).send().await;
        assert!(reply.status == 200 && reply.broken.is_some(), "{} {:?}", reply.status, reply.broken);
        let row = reply.row(&session).await;
        assert_eq!((&row["aborted"], &row["backend"]), (&json!(true), &json!(good.address().to_string())));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_comes_back_under_load_costs_no_call() {
    let (first, second) = (server().await, server().await);
    let (address, other) = (first.address(), second.address());
    let upstreams: [(&str, &[SocketAddr]); 1] = [(SMALL, &[address, other])];
    let models = json!([{"name": "small", "upstream": SMALL}]);
    with_models(&upstreams, models, |session, admin| async move {
        let user = session.user().await;
        let over = AtomicBool::new(false);
        let load = async || {
            let mut served = 0;
            while !over.load(Ordering::SeqCst) {
                let reply = session.call(CHAT).key(&user.key).header("x-sim-delay-ms", "20").body(chat("small")).send().await;
                assert_eq!(reply.status, 200, "{}", reply.text());
                served += 1;
            }
            served
        };
        let incidents = async {
            let seen = async |wanted: &str| {
                wait_until(wanted, Duration::from_secs(10), || async { admin.health(SMALL, address).await == wanted }).await;
            };
            seen("HEALTHY").await;
            drop(first);
            seen("UNHEALTHY").await;
            let again = server_at(address).await;
            seen("HEALTHY").await;
            wait_until("it is used again", Duration::from_secs(10), || async {
                !again.seen(|seen| seen.method == "POST").is_empty()
            })
            .await;
            over.store(true, Ordering::SeqCst);
        };
        let (_, one, two, three) = tokio::join!(incidents, load(), load(), load());
        assert!(one > 0 && two > 0 && three > 0);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_goes_away_while_the_router_reads_leaves_a_row() {
    let small = server().await;
    let upstreams: [(&str, &[SocketAddr]); 1] = [(SMALL, &[small.address()])];
    let models = json!([{"name": "small", "upstream": SMALL}]);
    with_models(&upstreams, models, |session, _| async move {
        let user = session.user().await;
        let address = session.gateway.proxy_url.trim_start_matches("http://").to_owned();
        for _ in 0..4 {
            let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
            let head = format!(
                "POST {CHAT} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
                 Expect: 100-continue\r\nContent-Length: 100000\r\n\r\n",
                user.key
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            // It says so when it begins to wait for the body.
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 100");
            drop(stream);
        }
        let rows =
            format!("SELECT count(*) FROM llm_logs WHERE consumer_username = '{}' AND aborted AND status >= 400", user.name);
        wait_until("interrupted calls are rows", Duration::from_secs(20), || async {
            session.call(CHAT).key(&user.key).body(chat("small")).send().await;
            session.gateway.database.number(&rows).await == 4
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_stored_response_is_fetched_from_the_server_that_made_it() {
    let servers = [server().await, server().await];
    let upstreams: [(&str, &[SocketAddr]); 1] = [(SMALL, &[servers[0].address(), servers[1].address()])];
    let models = json!([{"name": "qwen-tiny", "upstream": SMALL}]);
    with_models(&upstreams, models, |session, admin| async move {
        let user = session.user().await;
        let turns = json!({"algorithm": "round-robin"});
        admin.set("PATCH", &format!("/upstreams/{SMALL}"), turns).await;
        let made_by = |reply: &Reply| servers.iter().position(|server| !seen_by(server, reply).is_empty());
        let mut makers = std::collections::BTreeSet::new();
        for _ in 0..40 {
            let call = session.call("/v1/responses").key(&user.key).header("x-fixture", "responses");
            let reply = call.body(gateway_tests::fixtures::vllm_request("responses")).send().await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            let maker = made_by(&reply).unwrap();
            let id = reply.json()["id"].as_str().unwrap().to_owned();
            let fetch = session.call(&format!("/v1/responses/{id}")).key(&user.key).header("x-fixture", "responses");
            let fetched = fetch.send().await;
            assert_eq!((fetched.status, made_by(&fetched)), (200, Some(maker)), "{}", fetched.text());
            assert_eq!(fetched.row(&session).await["backend"], servers[maker].address().to_string());
            makers.insert(maker);
            if makers.len() == 2 {
                return;
            }
        }
        panic!("only one server was ever used");
    })
    .await;
}
