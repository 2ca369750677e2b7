//! A server for what cannot be had here, or cannot be broken: Grafana, and the pages on which Kong tells of itself.
//!
//! TEST EQUIPMENT, and each answer says so. It knows pages by their path and gets all others from the real thing behind it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Authorization header and path; no header means any.
type Page = (Option<String>, String);

#[derive(Debug, Default)]
struct Pages {
    known: Mutex<HashMap<Page, (u16, String)>>,
    behind: Option<String>,
}

/// The server. It ends with this value.
#[derive(Debug)]
pub(crate) struct Pretend {
    /// Where it answers on the loopback address, without a slash at the end.
    pub(crate) url: String,
    pages: Arc<Pages>,
    serving: JoinHandle<()>,
}

impl Pretend {
    /// Knows nothing yet.
    pub(crate) async fn new() -> Self {
        Self::listening_on("127.0.0.1", None).await
    }

    /// Answers for another server until it is told otherwise.
    pub(crate) async fn before(url: &str) -> Self {
        Self::listening_on("127.0.0.1", Some(url)).await
    }

    /// On another address.
    pub(crate) async fn listening_on(address: &str, behind: Option<&str>) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let url = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let pages = Arc::new(Pages { known: Mutex::default(), behind: behind.map(|url| url.trim_end_matches('/').to_owned()) });
        let shared = Arc::clone(&pages);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                // An error is a client that went away.
                tokio::spawn(async move { answer(stream, &shared).await });
            }
        });
        Self { url, pages, serving }
    }

    /// What it answers from now on to a path, query included.
    pub(crate) fn says(&self, path: &str, status: u16, body: impl ToString) {
        self.pages.known.lock().unwrap().insert((None, path.to_owned()), (status, body.to_string()));
    }

    /// What it answers to those who log in so.
    pub(crate) fn says_to(&self, authorization: &str, path: &str, status: u16, body: impl ToString) {
        let page = (Some(authorization.to_owned()), path.to_owned());
        self.pages.known.lock().unwrap().insert(page, (status, body.to_string()));
    }

    /// The page of the server behind with some of its fields changed: objects are merged, other values replaced.
    pub(crate) async fn says_changed(&self, path: &str, change: &Value) {
        let mut page = self.behind(path).await;
        merge(&mut page, change);
        self.says(path, 200, page);
    }

    /// A page of the server behind.
    pub(crate) async fn behind(&self, path: &str) -> Value {
        let (_, text) = self.pages.fetch(path).await;
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Pretend {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Pages {
    async fn fetch(&self, path: &str) -> (u16, String) {
        let Some(behind) = &self.behind else { return (404, "{}".to_owned()) };
        let response = reqwest::get(format!("{behind}{path}")).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    fn known(&self, authorization: Option<String>, path: &str) -> Option<(u16, String)> {
        let known = self.known.lock().unwrap();
        known.get(&(authorization, path.to_owned())).or_else(|| known.get(&(None, path.to_owned()))).cloned()
    }
}

async fn answer(stream: TcpStream, pages: &Pages) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut first = String::new();
    stream.read_line(&mut first).await?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut authorization = None;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((_, value)) = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("authorization")) {
            authorization = Some(value.trim().to_owned());
        }
    }
    let (status, body) = match pages.known(authorization, &path) {
        Some(page) => page,
        None => pages.fetch(&path).await,
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\nX-Test-Equipment: yes\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).await
}

fn merge(page: &mut Value, change: &Value) {
    match (page, change) {
        (Value::Object(page), Value::Object(change)) => {
            for (name, value) in change {
                merge(page.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (page, change) => page.clone_from(change),
    }
}
