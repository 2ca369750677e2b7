//! Talking to Kong's Admin API: every call has its end, and what cannot be read is an error, never a panic.

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use ureq::http::{Method, Request};
use ureq::tls::TlsConfig;

use super::failure::{Failure, Outcome};
use crate::config::AdminArgs;
use crate::webhook;

/// Longest wait for an answer. Kong's own database may be busy.
const TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer that is read: a page of a list has a thousand entities.
const MOST_BYTES: u64 = 64 << 20;
/// Entities a page; Kong gives no more.
const PAGE: usize = 1000;
/// Pages of a list at most: a Kong has thousands of users, each with plugins of its own.
const MOST_PAGES: usize = 200;

/// What needs no escape in an element of a path.
const ELEMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Text as one element of a path.
pub fn element(text: &str) -> String {
    utf8_percent_encode(text, ELEMENT).to_string()
}

/// The header with which the administrator of Kong's Admin API, or of Grafana, logs in.
pub fn administrator(password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("admin:{password}")))
}

/// A secret given directly, or in the first line of a file. `name` is that of its setting.
pub fn secret(name: &str, value: Option<&str>, file: Option<&str>) -> Outcome<Option<String>> {
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        return Ok(Some(value.to_owned()));
    }
    let Some(file) = file.filter(|file| !file.is_empty()) else { return Ok(None) };
    let text = std::fs::read_to_string(Path::new(file))
        .map_err(|error| Failure::new(format!("cannot read {file} ({name}_FILE)")).advise(error.to_string()))?;
    let line = text.lines().next().unwrap_or_default();
    Ok((!line.is_empty()).then(|| line.to_owned()))
}

/// Why the Admin API said nothing that could be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Nobody answers.
    #[error("does not answer: {0}")]
    Silent(String),
    /// It wants a password, or another one.
    #[error("wants a password (KONG_ADMIN_PASSWORD)")]
    Password,
    /// A status that means no answer to the question.
    #[error("answers with status {0}")]
    Status(u16),
    /// An answer that is no JSON.
    #[error("answers with no JSON")]
    NoJson,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its body; null when it is no JSON.
    pub body: Value,
}

impl Reply {
    /// Whether it did what was asked for.
    pub fn is_good(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Kong's Admin API.
#[derive(Debug)]
pub struct Admin {
    agent: ureq::Agent,
    url: String,
    authorization: Option<String>,
    /// Texts that must not appear in a message: Kong repeats values in some of its own.
    secrets: Vec<String>,
}

impl Admin {
    /// At the address of the settings, with their password.
    pub fn new(args: &AdminArgs) -> Outcome<Self> {
        let file = args.kong_admin_password_file.as_deref();
        let password = secret("KONG_ADMIN_PASSWORD", args.kong_admin_password.as_deref(), file)?;
        let url = args.url().to_owned();
        // Whatever is not plain needs to know whom to believe.
        let is_plain = url.starts_with("http://");
        let tls =
            if is_plain { TlsConfig::default() } else { webhook::tls(None).map_err(|error| Failure::new(error.to_string()))? };
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .tls_config(tls)
            // A proxy for the internet must not see this.
            .proxy(None)
            .build()
            .into();
        Ok(Self { agent, url, authorization: password.as_deref().map(administrator), secrets: password.into_iter().collect() })
    }

    /// Where it is, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Keeps a text out of all messages.
    pub fn conceal(&mut self, secret: &str) {
        if !secret.is_empty() {
            self.secrets.push(secret.to_owned());
        }
    }

    /// Asks, or tells.
    pub fn call(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<Reply, Trouble> {
        self.request(method, path, body, self.authorization.as_deref())
    }

    /// Whether the page of `path` is there for whoever has no password.
    pub fn is_open(&self, path: &str) -> bool {
        matches!(self.request(&Method::GET, path, None, None), Ok(Reply { status: 200, .. }))
    }

    fn request(&self, method: &Method, path: &str, body: Option<&Value>, login: Option<&str>) -> Result<Reply, Trouble> {
        let mut request =
            Request::builder().method(method).uri(format!("{}{path}", self.url)).header("Accept", "application/json");
        if let Some(login) = login {
            request = request.header("Authorization", login);
        }
        let answer = match body {
            Some(body) => request
                .header("Content-Type", "application/json")
                .body(body.to_string())
                .map_err(|error| error.to_string())
                .and_then(|request| self.agent.run(request).map_err(|error| error.to_string())),
            None => request
                .body(())
                .map_err(|error| error.to_string())
                .and_then(|request| self.agent.run(request).map_err(|error| error.to_string())),
        };
        let mut answer = answer.map_err(Trouble::Silent)?;
        let status = answer.status().as_u16();
        if status == 401 {
            return Err(Trouble::Password);
        }
        let bytes = answer.body_mut().with_config().limit(MOST_BYTES).read_to_vec();
        let bytes = bytes.map_err(|error| Trouble::Silent(error.to_string()))?;
        Ok(Reply { status, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) })
    }

    /// What stands at a path; an error unless it is there.
    pub fn page(&self, path: &str) -> Result<Value, Trouble> {
        let reply = self.call(&Method::GET, path, None)?;
        match reply.status {
            200 if reply.body.is_null() => Err(Trouble::NoJson),
            200 => Ok(reply.body),
            status => Err(Trouble::Status(status)),
        }
    }

    /// A list, all pages of it; empty when what it belongs to does not exist.
    pub fn list(&self, path: &str) -> Result<Vec<Value>, Trouble> {
        let mut next = format!("{path}?size={PAGE}");
        let mut all = Vec::new();
        for _ in 0..MOST_PAGES {
            let mut page = match self.page(&next) {
                Err(Trouble::Status(404)) => return Ok(all),
                page => page?,
            };
            if let Value::Array(entities) = page["data"].take() {
                all.extend(entities);
            }
            match page["next"].as_str() {
                // Kong leaves the size out of the next page's address.
                Some(path) if path.contains("size=") => next = path.to_owned(),
                Some(path) => next = format!("{path}&size={PAGE}"),
                None => break,
            }
        }
        Ok(all)
    }

    /// Why nothing that follows could work.
    pub fn explain(&self, trouble: Trouble) -> Failure {
        let url = &self.url;
        match trouble {
            Trouble::Silent(cause) => Failure::new(format!("Kong's Admin API does not answer at {url}"))
                .advise(self.without_secrets(&cause))
                .advise("Is Kong running? Its address is set by KONG_ADMIN_LISTEN (Kong) and KONG_ADMIN_URL (this program)."),
            Trouble::Password => {
                Failure::new(format!("Kong's Admin API at {url} wants a password")).advise("Give it in KONG_ADMIN_PASSWORD_FILE.")
            }
            Trouble::Status(status) => {
                Failure::new(format!("{url} answers with status {status}")).advise("Is this Kong's Admin API?")
            }
            Trouble::NoJson => Failure::new(format!("{url} does not answer with JSON")).advise("Is this Kong's Admin API?"),
        }
    }

    /// What stands at a path; `None` when nothing does.
    pub fn find(&self, path: &str) -> Outcome<Option<Value>> {
        match self.page(path) {
            Ok(found) => Ok(Some(found)),
            Err(Trouble::Status(404)) => Ok(None),
            Err(trouble) => Err(self.explain(trouble)),
        }
    }

    /// Tells Kong something; the answer may be that it does not want to.
    pub fn tell(&self, method: &Method, path: &str, body: Option<&Value>) -> Outcome<Reply> {
        let reply = self.call(method, path, body).map_err(|trouble| self.explain(trouble))?;
        match reply.status {
            405 => Err(Failure::new(format!(
                "Kong does not take changes through its Admin API ({method} {path}: method not allowed)"
            ))
            .advise("It runs without a database: set KONG_DATABASE=postgres, or give it a file (llm-collector kong export).")),
            _ => Ok(reply),
        }
    }

    /// Tells Kong something that it has to do.
    pub fn must(&self, method: &Method, path: &str, body: Option<&Value>) -> Outcome<Value> {
        let reply = self.tell(method, path, body)?;
        if !reply.is_good() {
            return Err(Failure::new(format!("Kong refused {method} {path}: {}", self.reason(&reply))));
        }
        Ok(reply.body)
    }

    /// Removes what is at a path, if anything is.
    pub fn remove(&self, path: &str) -> Outcome<()> {
        let reply = self.tell(&Method::DELETE, path, None)?;
        if reply.is_good() || reply.status == 404 {
            return Ok(());
        }
        Err(Failure::new(format!("Kong refused DELETE {path}: {}", self.reason(&reply))))
    }

    /// The error message of an answer.
    pub fn reason(&self, reply: &Reply) -> String {
        match reply.body["message"].as_str() {
            Some(message) => self.without_secrets(message),
            None => format!("status {}", reply.status),
        }
    }

    fn without_secrets(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
    }
}
