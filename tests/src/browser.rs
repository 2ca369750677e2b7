//! A real browser: Debian's Chromium without a window, told what to do by its own driver, over WebDriver.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::Method;
use serde_json::{Value, json};

use crate::process::{Reaper, free_port, wait_until};

/// How long a page may take to show something.
const LIMIT: Duration = Duration::from_secs(30);
/// The member that WebDriver gives an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window and nothing that it remembers.
#[derive(Debug)]
pub struct Browser {
    session: String,
    client: reqwest::Client,
    _driver: Child,
    _reaper: Reaper,
}

/// What kind of reader it is.
#[derive(Debug, Clone, Copy)]
pub struct Reader {
    /// The language of its pages, as zh-CN.
    pub language: &'static str,
    /// Whether pages may run scripts.
    pub script: bool,
    /// Width and height of the window.
    pub size: (u32, u32),
    /// Whether it likes dark pages.
    pub dark: bool,
}

impl Browser {
    /// Starts one.
    pub async fn open(reader: Reader) -> Self {
        let folder = tempfile::Builder::new().prefix("gateway-tests-browser-").tempdir().expect("a folder").keep();
        let port = free_port();
        // In a session of its own: the driver does not end its browser when it is killed itself.
        let driver = Command::new("setsid")
            .args(["chromedriver", &format!("--port={port}"), "--log-level=WARNING"])
            .env("HOME", &folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("no chromedriver ({error}): tests/tools.sh test installs it"));
        let reaper = Reaper::new(&format!("pkill -KILL -s {}; rm -rf {}", driver.id(), folder.display()));
        let mut browser = Self {
            session: format!("http://127.0.0.1:{port}"),
            client: reqwest::Client::new(),
            _driver: driver,
            _reaper: reaper,
        };
        wait_until("the driver answers", LIMIT, || async {
            browser.client.get(format!("{}/status", browser.session)).send().await.is_ok()
        })
        .await;
        let (width, height) = reader.size;
        // Root may not have a sandbox, and containers have little of /dev/shm.
        let arguments = [
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-background-networking".to_owned(),
            "--no-first-run".to_owned(),
            "--hide-scrollbars".to_owned(),
            format!("--window-size={width},{height}"),
            format!("--user-data-dir={}", folder.join("profile").display()),
            format!("--accept-lang={}", reader.language),
        ];
        let mut preferences = json!({ "intl.accept_languages": reader.language });
        if !reader.script {
            preferences["profile.managed_default_content_settings.javascript"] = json!(2);
        }
        let capabilities = json!({
            "browserName": "chrome",
            "goog:chromeOptions": { "binary": "/usr/bin/chromium", "args": arguments, "prefs": preferences },
            "goog:loggingPrefs": { "performance": "ALL" },
        });
        let opened = browser.post("session", json!({ "capabilities": { "alwaysMatch": capabilities } })).await;
        browser.session = format!("{}/session/{}", browser.session, opened["sessionId"].as_str().expect("a session"));
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        browser.tell("Emulation.setDeviceMetricsOverride", metrics).await;
        let scheme = json!({ "name": "prefers-color-scheme", "value": if reader.dark { "dark" } else { "light" } });
        browser.tell("Emulation.setEmulatedMedia", json!({ "features": [scheme] })).await;
        // What it shows before it is told to go anywhere is its own.
        browser.go("about:blank").await;
        browser.requests().await;
        browser
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Value> {
        let mut request = self.client.request(method, format!("{}/{path}", self.session)).timeout(LIMIT * 2);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.unwrap_or_else(|error| panic!("{path}: {error}"));
        let good = answer.status().is_success();
        let answer: Value = serde_json::from_slice(&answer.bytes().await.expect("an answer")).expect("JSON");
        if good { Ok(answer["value"].clone()) } else { Err(answer["value"].clone()) }
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.send(Method::POST, path, Some(body)).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    async fn get(&self, path: &str) -> Value {
        self.send(Method::GET, path, None).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// A command of Chromium's own protocol.
    pub async fn tell(&self, command: &str, parameters: Value) -> Value {
        self.post("goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    /// Goes to an address and waits until it is there.
    pub async fn go(&self, url: &str) {
        self.post("url", json!({ "url": url })).await;
    }

    /// Loads the page again.
    pub async fn reload(&self) {
        self.post("refresh", json!({})).await;
    }

    /// Where it is.
    pub async fn address(&self) -> String {
        self.get("url").await.as_str().expect("an address").to_owned()
    }

    async fn find(&self, selector: &str) -> Option<String> {
        let found = self.send(Method::POST, "element", Some(json!({ "using": "css selector", "value": selector }))).await.ok()?;
        found[ELEMENT].as_str().map(str::to_owned)
    }

    async fn element(&self, selector: &str) -> String {
        self.find(selector).await.unwrap_or_else(|| panic!("no {selector}"))
    }

    /// Waits until an element is there and seen.
    pub async fn wait_for(&self, selector: &str) {
        wait_until(selector, LIMIT, || async { self.is_seen(selector).await }).await;
    }

    /// Whether an element is there and seen.
    pub async fn is_seen(&self, selector: &str) -> bool {
        let Some(element) = self.find(selector).await else { return false };
        self.send(Method::GET, &format!("element/{element}/displayed"), None).await.is_ok_and(|seen| seen == true)
    }

    /// The text of an element as it is seen.
    pub async fn text(&self, selector: &str) -> String {
        let element = self.element(selector).await;
        self.get(&format!("element/{element}/text")).await.as_str().expect("a text").to_owned()
    }

    /// An attribute of an element.
    pub async fn attribute(&self, selector: &str, name: &str) -> Option<String> {
        let element = self.element(selector).await;
        self.get(&format!("element/{element}/attribute/{name}")).await.as_str().map(str::to_owned)
    }

    /// A property of an element's style, as it is shown.
    pub async fn style(&self, selector: &str, property: &str) -> String {
        let element = self.element(selector).await;
        self.get(&format!("element/{element}/css/{property}")).await.as_str().expect("a value").to_owned()
    }

    /// Types into a field.
    pub async fn enter(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.post(&format!("element/{element}/value"), json!({ "text": text })).await;
    }

    /// Clicks.
    pub async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.post(&format!("element/{element}/click"), json!({})).await;
    }

    /// Width that the whole page takes.
    pub async fn page_width(&self) -> u64 {
        self.tell("Page.getLayoutMetrics", json!({})).await["cssContentSize"]["width"].as_u64().expect("a width")
    }

    /// A picture of the whole page, as PNG.
    pub async fn picture(&self) -> Vec<u8> {
        let picture = self.tell("Page.captureScreenshot", json!({ "captureBeyondViewport": true })).await;
        BASE64_STANDARD.decode(picture["data"].as_str().expect("a picture")).expect("base64")
    }

    /// Addresses of all that was asked for since the last time.
    pub async fn requests(&self) -> Vec<String> {
        let lines = self.post("se/log", json!({ "type": "performance" })).await;
        let lines = lines.as_array().expect("a log").iter();
        let messages = lines.map(|line| serde_json::from_str::<Value>(line["message"].as_str().expect("a line")).expect("JSON"));
        let sent = messages.filter(|message| message["message"]["method"] == "Network.requestWillBeSent");
        sent.map(|message| message["message"]["params"]["request"]["url"].as_str().expect("an address").to_owned()).collect()
    }
}
