//! A receiver of notices: JSON is posted to it, signed with a secret that it shares.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chrono::Utc;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio_rustls::rustls::crypto::ring;
use ureq::http::Uri;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::certificates;
use crate::decode::digest;

/// Longest time for a post, from the look-up of the name to the status of the answer.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Seconds of the Unix clock at which it was posted: they are signed, too, so that nobody can post it again another day.
const TIMESTAMP: &str = "X-Gateway-Timestamp";
/// `sha256=` and the hexadecimal HMAC-SHA256 of the timestamp, a point and the body.
const SIGNATURE: &str = "X-Gateway-Signature";

/// How connections of this program to HTTP servers are protected: by the certificates of a file, else by those that the system trusts. A
/// system without any believes nobody.
pub fn tls(root_certificates: Option<&Path>) -> Result<TlsConfig, certificates::Unusable> {
    let roots = match root_certificates.or(certificates::system_file()) {
        Some(file) => certificates::of_file(file)?,
        None => Vec::new(),
    };
    let roots: Vec<_> = roots.iter().map(|root| Certificate::from_der(root.as_ref()).to_owned()).collect();
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .build())
}

/// The receiver.
pub struct Webhook {
    agent: ureq::Agent,
    url: Uri,
    /// The receiver without the path, which may be a secret of its own.
    place: String,
    secret: String,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.place)
    }
}

impl Webhook {
    /// At an address, believed by the certificates of a file or of the system.
    pub fn new(url: &str, secret: String, root_certificates: Option<&Path>) -> Result<Self> {
        let wrong = "QUOTA_WEBHOOK_URL is no address as https://host/path";
        let url: Uri = url.parse().context(wrong)?;
        let (Some(scheme @ ("http" | "https")), Some(host)) = (url.scheme_str(), url.host()) else { bail!(wrong) };
        let authority = url.authority().map(ureq::http::uri::Authority::as_str).unwrap_or_default();
        if host.is_empty() || authority.contains('@') {
            bail!("{wrong}, without user and password");
        }
        let place = format!("{scheme}://{authority}");
        let is_protected = scheme == "https";
        let mut config = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // Between two posts there are minutes: a connection that was kept is likely to be dead.
            .max_idle_connections(0)
            .proxy(None);
        if is_protected {
            config = config.tls_config(tls(root_certificates).context("QUOTA_WEBHOOK_CA_FILE")?);
        }
        Ok(Self { agent: config.build().into(), url, place, secret })
    }

    /// The receiver as it may stand in a log: without the path.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Posts JSON, and waits; the status of the answer, or why there is none.
    pub fn post(&self, body: &str) -> Result<u16, String> {
        let timestamp = Utc::now().timestamp().to_string();
        let signature = signature(&self.secret, &timestamp, body).ok_or("the secret cannot be used")?;
        let request = self
            .agent
            .post(&self.url)
            .header("Content-Type", "application/json")
            .header("User-Agent", concat!("llm-collector/", env!("CARGO_PKG_VERSION")))
            .header(TIMESTAMP, &timestamp)
            .header(SIGNATURE, &signature);
        match request.send(body) {
            Ok(answer) => Ok(answer.status().as_u16()),
            Err(error) => Err(reason(&error)),
        }
    }
}

/// Whether a receiver that answers so took what was posted.
pub fn is_taken(status: u16) -> bool {
    (200..300).contains(&status)
}

fn signature(secret: &str, timestamp: &str, body: &str) -> Option<String> {
    let mut hmac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).ok()?;
    for part in [timestamp, ".", body] {
        hmac.update(part.as_bytes());
    }
    Some(format!("sha256={}", digest::hex(&hmac.finalize().into_bytes())))
}

/// What went wrong, without the address.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Rustls(error) => error.to_string(),
        ureq::Error::Timeout(_) => format!("no answer within {} s", TIMEOUT.as_secs()),
        ureq::Error::HostNotFound => "there is no such host".to_owned(),
        ureq::Error::ConnectionFailed => "nobody listens there".to_owned(),
        _ => "no answer that could be read".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_address_is_refused_and_not_shown() {
        for url in ["", "example.org/x", "ftp://example.org/x", "https://", "https://u:w0rd@example.org/x", "/x", "http://a b/"] {
            let error = format!("{:#}", Webhook::new(url, "s".to_owned(), None).unwrap_err());
            assert!(error.contains("QUOTA_WEBHOOK_URL") && !error.contains("w0rd"), "{url}: {error}");
        }
        let webhook = Webhook::new("http://example.org:8080/hooks/w0rd?a=w0rd", "w0rd".to_owned(), None).unwrap();
        assert_eq!(format!("{webhook:?} {}", webhook.place()), "http://example.org:8080 http://example.org:8080");
    }

    #[test]
    fn certificates_that_cannot_be_read_are_named() {
        let error = Webhook::new("https://example.org/", "s".to_owned(), Some(Path::new("/no/such/file"))).unwrap_err();
        assert!(format!("{error:#}").contains("/no/such/file"), "{error:#}");
    }
}
