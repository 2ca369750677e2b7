//! A webhook is told that a limit is nearly used up: once, signed, and whatever happens to it or to the collector.

use std::collections::VecDeque;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::web::{self, Bytes, Data};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use chrono::Utc;
use gateway_tests::collector::{Finished, TestApp, run};
use gateway_tests::postgres::{Certificates, Database};
use gateway_tests::process::wait_until;
use serde_json::{Value, json};

use crate::quotas::{entry, execute, limit};

const SECRET: &str = "a secret of the receiver";
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
struct Post {
    timestamp: String,
    signature: String,
    body: String,
}

impl Post {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

#[derive(Debug, Default)]
struct Desk {
    posts: Mutex<Vec<Post>>,
    /// What is answered; 204 when nothing stands here.
    answers: Mutex<VecDeque<u16>>,
}

/// A receiver, and the file with its secret.
pub(crate) struct Receiver {
    url: String,
    desk: Arc<Desk>,
    secret: tempfile::NamedTempFile,
    server: actix_web::dev::ServerHandle,
}

impl Receiver {
    pub(crate) fn start(answers: &[u16]) -> Self {
        let desk = Arc::new(Desk { answers: Mutex::new(answers.iter().copied().collect()), ..Desk::default() });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hooks/word-of-the-path", listener.local_addr().unwrap());
        let data = Data::from(Arc::clone(&desk));
        let server = HttpServer::new(move || App::new().app_data(data.clone()).route("/hooks/{word}", web::post().to(take)))
            .workers(1)
            .disable_signals()
            .listen(listener)
            .unwrap()
            .run();
        let handle = server.handle();
        tokio::spawn(server);
        let mut secret = tempfile::NamedTempFile::new().unwrap();
        writeln!(secret, "{SECRET}").unwrap();
        Self { url, desk, secret, server: handle }
    }

    fn secret_file(&self) -> &str {
        self.secret.path().to_str().unwrap()
    }

    /// Settings of a collector that posts here.
    pub(crate) fn arguments(&self) -> [&str; 6] {
        self.arguments_for(&self.url)
    }

    fn arguments_for<'a>(&'a self, url: &'a str) -> [&'a str; 6] {
        ["--quota-watch-seconds", "1", "--quota-webhook-url", url, "--quota-webhook-secret-file", self.secret_file()]
    }

    fn posts(&self) -> Vec<Post> {
        self.desk.posts.lock().unwrap().clone()
    }

    /// Waits for so many posts in all, and returns them.
    pub(crate) async fn wait_for(&self, number: usize) -> Vec<Value> {
        wait_until(&format!("{number} posts"), PATIENCE, || async { self.posts().len() >= number }).await;
        let posts: Vec<Value> = self.posts().iter().map(Post::json).collect();
        assert_eq!(posts.len(), number, "{posts:?}");
        posts
    }
}

async fn take(request: HttpRequest, body: Bytes, desk: Data<Desk>) -> HttpResponse {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert_eq!(header("Content-Type"), "application/json");
    let post = Post { timestamp: header("X-Gateway-Timestamp"), signature: header("X-Gateway-Signature"), body };
    desk.posts.lock().unwrap().push(post);
    let status = desk.answers.lock().unwrap().pop_front().unwrap_or(204);
    HttpResponse::build(actix_web::http::StatusCode::from_u16(status).unwrap()).finish()
}

/// As Python computes it.
fn signature(timestamp: &str, body: &str) -> String {
    let script =
        "import hmac, sys; print('sha256=' + hmac.new(sys.argv[1].encode(), sys.stdin.buffer.read(), 'sha256').hexdigest())";
    let mut python =
        Command::new("python3").args(["-c", script, SECRET]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    python.stdin.take().unwrap().write_all(format!("{timestamp}.{body}").as_bytes()).unwrap();
    String::from_utf8(python.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
}

/// Waits until a collector looked once more, at a sum that was not there before.
async fn looked(app: &TestApp, series: &str, ratio: f64) {
    wait_until(series, PATIENCE, || async { (app.metric(series).await - ratio).abs() < 1e-9 }).await;
}

async fn log(app: &TestApp, seq: u64, user: &str, tokens: u64) {
    // Seven tokens are the answer's.
    let call = entry("w", seq, Utc::now(), user, "ml", tokens - 7);
    assert_eq!(app.log(json!([call]).to_string()).await.count("stored"), 1);
}

const NOTICES: &str = "SELECT count(*) FROM llm_quota_notices";
const UNSENT: &str = "SELECT count(*) FROM llm_quota_notices WHERE sent_at IS NULL";

#[tokio::test]
async fn two_collectors_tell_each_threshold_once_and_sign_it() {
    let receiver = Receiver::start(&[]);
    let database = Database::create().await;
    let apps = [
        TestApp::start_on(Database { url: database.url.clone() }, &receiver.arguments()).await,
        TestApp::start_on(Database { url: database.url.clone() }, &receiver.arguments()).await,
    ];
    let client = database.connect().await;
    execute(&client, &(limit("team", "ml", "tokens", "month") + &limit("user", "zero", "tokens", "month"))).await;
    execute(&client, "UPDATE llm_quotas SET amount = 0 WHERE subject_name = 'zero'").await;
    let of_team = r#"llm_quota_used_ratio{limit="team ml tokens per month"}"#;
    log(&apps[0], 1, "alice", 799).await;
    for app in &apps {
        looked(app, of_team, 0.799).await;
    }
    assert_eq!(database.number(NOTICES).await, 0, "nothing was passed, and an amount of nothing is no news");
    for (number, tokens) in [8, 157, 67].into_iter().enumerate() {
        log(&apps[number % 2], 2 + number as u64, "alice", tokens).await;
        receiver.wait_for(number + 1).await;
    }
    let told = receiver.wait_for(3).await;
    let of = |name: &str| told.iter().map(|post| post[name].clone()).collect::<Vec<_>>();
    assert_eq!(of("threshold"), [80, 95, 100]);
    assert_eq!(of("used"), [807, 964, 1031]);
    assert_eq!(told[0]["limit"]["name"], "ml");
    assert_eq!((&told[0]["type"], &told[0]["left"], &told[0]["percent"]), (&json!("quota.threshold"), &json!(193), &json!(80.7)));

    // Further calls are no news, and neither is what is used of other limits for the first time when it is over already, but once.
    let each_user = limit("each_user", "", "calls", "month").replace("1000)", "1)");
    execute(&client, &each_user).await;
    log(&apps[1], 9, "alice", 970).await;
    let told = receiver.wait_for(4).await;
    assert_eq!((&told[3]["threshold"], &told[3]["limit"]["name"], &told[3]["used"]), (&json!(100), &json!("alice"), &json!(5)));
    for app in &apps {
        looked(app, of_team, 2.001).await;
    }
    assert_eq!((database.number(NOTICES).await, database.number(UNSENT).await), (4, 0));

    // A limit that is set below what is used: of several thresholds the highest is told.
    execute(&client, &limit("everybody", "", "tokens", "month").replace("1000)", "2400)")).await;
    assert_eq!(receiver.wait_for(5).await[4]["threshold"], 80);
    execute(&client, "UPDATE llm_quotas SET amount = 100 WHERE subject_kind = 'everybody'").await;
    assert_eq!(receiver.wait_for(6).await[5]["threshold"], 100);

    // Another window: what was told stays with the one before.
    execute(&client, "UPDATE llm_quota_notices SET starts_at = starts_at - interval '40 days' WHERE subject = 'alice'").await;
    let told = receiver.wait_for(7).await;
    assert_eq!((&told[6]["threshold"], &told[6]["limit"]["subject"]), (&json!(100), &json!("each_user")));

    for post in receiver.posts() {
        assert_eq!(post.signature, signature(&post.timestamp, &post.body));
        let age = Utc::now().timestamp() - post.timestamp.parse::<i64>().unwrap();
        assert!((0..600).contains(&age), "{post:?}");
    }
    let ids: std::collections::BTreeSet<_> = receiver.posts().iter().map(|post| post.json()["id"].to_string()).collect();
    assert_eq!(ids.len(), 6, "in another window as this test has it, in truth the same");
    for app in apps {
        app.stop().await;
    }
    receiver.server.stop(false).await;
}

#[tokio::test]
async fn a_notice_that_is_not_taken_is_posted_again_also_by_the_next_collector() {
    let receiver = Receiver::start(&[500, 302]);
    let database = Database::create().await;
    let start = |url: String| {
        let (receiver, database) = (&receiver, Database { url: database.url.clone() });
        async move { TestApp::start_on(database, &receiver.arguments_for(&url)).await }
    };
    // Nobody listens there any more.
    let closed = format!("http://{}/", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let app = start(closed.clone()).await;
    let client = database.connect().await;
    execute(&client, &limit("team", "ml", "tokens", "month")).await;
    log(&app, 1, "alice", 850).await;
    let tried = "SELECT count(*) FROM llm_quota_notices WHERE tries > 0 AND sent_at IS NULL";
    wait_until("it is tried", PATIENCE, || async { database.number(tried).await == 1 }).await;
    wait_until("the failure is counted", PATIENCE, || async {
        app.metric(r#"llm_quota_notices_total{outcome="failed"}"#).await >= 1.0
    })
    .await;
    app.stop().await;
    assert_eq!(database.number(UNSENT).await, 1);

    let app = start(receiver.url.clone()).await;
    let told = receiver.wait_for(3).await;
    assert!(told.iter().all(|post| post["id"] == told[0]["id"] && post["used"] == 850), "{told:?}");
    wait_until("it is noted", PATIENCE, || async { database.number(UNSENT).await == 0 }).await;
    assert_eq!(app.metric(r#"llm_quota_notices_total{outcome="sent"}"#).await, 1.0);
    app.stop().await;

    // When the window is over nobody wants to know any more.
    let app = start(closed).await;
    log(&app, 2, "alice", 150).await;
    wait_until("it is tried", PATIENCE, || async { database.number(tried).await == 1 }).await;
    let over = "UPDATE llm_quota_notices SET ends_at = now(), tried_at = now() - interval '1 hour', next_try_at = now() + interval '1 hour'
        WHERE sent_at IS NULL";
    wait_until("the window is over", PATIENCE, || async { client.execute(over, &[]).await.unwrap() == 1 }).await;
    wait_until("it is given up", PATIENCE, || async {
        app.metric(r#"llm_quota_notices_total{outcome="given_up"}"#).await == 1.0
    })
    .await;
    app.stop().await;
    receiver.server.stop(false).await;
}

#[tokio::test]
async fn a_minute_has_room_for_so_many_posts() {
    let receiver = Receiver::start(&[]);
    let app = TestApp::start_with(&receiver.arguments()).await;
    let client = app.database.connect().await;
    execute(&client, &limit("team", "ml", "tokens", "month")).await;
    execute(
        &client,
        "INSERT INTO llm_quota_notices (quota_id, subject, starts_at, threshold, subject_kind, models, unit, currency, per, amount, mode,
            used, ends_at)
        SELECT id, 'u' || n, now(), 80, 'each_user', '%', 'tokens', '', 'day', 1000, 'soft', 800, now() + interval '1 day'
        FROM llm_quotas, generate_series(1, 220) AS n",
    )
    .await;
    wait_until("the minute is full", PATIENCE * 2, || async { receiver.posts().len() >= 200 }).await;
    log(&app, 1, "alice", 700).await;
    looked(&app, r#"llm_quota_used_ratio{limit="team ml tokens per month"}"#, 0.7).await;
    receiver.wait_for(200).await;
    execute(&client, "UPDATE llm_quota_notices SET tried_at = tried_at - interval '2 minutes'").await;
    receiver.wait_for(220).await;
    app.stop().await;
    receiver.server.stop(false).await;
}

async fn test(variables: &[(&str, &str)]) -> Finished {
    run(&["quota", "webhook-test"], variables).await
}

#[tokio::test]
async fn a_sample_shows_whether_the_receiver_takes_notices() {
    let receiver = Receiver::start(&[200, 403]);
    let variables = [("QUOTA_WEBHOOK_URL", receiver.url.as_str()), ("QUOTA_WEBHOOK_SECRET_FILE", receiver.secret_file())];
    let finished = test(&variables).await;
    assert!(finished.status.success() && finished.stdout.contains("took the sample: status 200"), "{finished:?}");
    let told = receiver.wait_for(1).await;
    assert_eq!((&told[0]["type"], &told[0]["limit"]["name"]), (&json!("quota.test"), &json!("sample")));
    let schema: Value = serde_json::from_str(include_str!("../../../docs/schema/quota-notice.json")).unwrap();
    for (schema, page) in [(&schema, &told[0]), (&schema["properties"]["limit"], &told[0]["limit"])] {
        let names = |page: &Value| page.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(page), names(&schema["properties"]));
    }
    let post = &receiver.posts()[0];
    assert_eq!(post.signature, signature(&post.timestamp, &post.body));

    let refused = test(&variables).await;
    assert!(refused.status.code() == Some(1) && refused.stderr.contains("status 403"), "{refused:?}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}/word-of-the-path", listener.local_addr().unwrap());
    drop(listener);
    let silent = test(&[("QUOTA_WEBHOOK_URL", &closed), variables[1]]).await;
    assert!(silent.status.code() == Some(1) && silent.stderr.contains("refused"), "{silent:?}");
    for (variables, told) in [(vec![], "QUOTA_WEBHOOK_URL"), (vec![variables[0]], "QUOTA_WEBHOOK_SECRET_FILE")] {
        let finished = test(&variables).await;
        assert!(finished.status.code() == Some(1) && finished.stderr.contains(told), "{finished:?}");
    }
    for finished in [refused, silent] {
        assert!(
            !format!("{finished:?}").contains("word-of-the-path") && !format!("{finished:?}").contains(SECRET),
            "{finished:?}"
        );
    }
    receiver.server.stop(false).await;
}

#[tokio::test]
async fn a_receiver_with_tls_is_believed_by_its_root_alone() {
    let certificates = Certificates::make("sha256", false).unwrap();
    let folder = certificates.server.parent().unwrap();
    let script = "
import http.server, ssl, sys
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers['Content-Length']))
        self.send_response(202); self.send_header('Content-Length', '0'); self.end_headers()
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Receiver)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('server.crt', 'server.key')
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
";
    let mut server = Command::new("python3").args(["-c", script]).current_dir(folder).stdout(Stdio::piped()).spawn().unwrap();
    let mut port = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(server.stdout.take().unwrap()), &mut port).unwrap();
    let receiver = Receiver::start(&[]);
    let (url, root) = (format!("https://localhost:{}/", port.trim()), certificates.root.to_str().unwrap());
    let variables = [
        ("QUOTA_WEBHOOK_URL", url.as_str()),
        ("QUOTA_WEBHOOK_SECRET_FILE", receiver.secret_file()),
        ("QUOTA_WEBHOOK_CA_FILE", root),
    ];
    let believed = test(&variables).await;
    let other = certificates.other_root.to_str().unwrap();
    let stranger = test(&[variables[0], variables[1], ("QUOTA_WEBHOOK_CA_FILE", other)]).await;
    server.kill().unwrap();
    server.wait().unwrap();
    receiver.server.stop(false).await;
    assert!(believed.status.success() && believed.stdout.contains("202"), "{believed:?}");
    assert!(stranger.status.code() == Some(1) && stranger.stderr.contains("did not answer"), "{stranger:?}");
}
