//! The certificates that the gateway and Grafana show at their `https` addresses.

use std::time::Duration;

use chrono::Utc;

use super::{Level, Report};
use crate::certificates::pinned;
use crate::certificates::server::{ServerCertificate, TIME};
use crate::config::DoctorSettings;
use crate::counted::counted;

/// Longest wait for a certificate: everything is on this host.
const TIMEOUT: Duration = Duration::from_secs(5);
const RENEW: &str = "put the new certificate and its key in place of TLS_CERT_FILE and TLS_KEY_FILE; gateway apply";

pub(super) fn examine(settings: &DoctorSettings, report: &mut Report) {
    for (check, what, url) in [
        ("gateway.certificate", "the gateway", &settings.kong_proxy_url),
        ("grafana.certificate", "Grafana", &settings.grafana_url),
    ] {
        if url.starts_with("https://") {
            look(check, what, url, settings, report);
        }
    }
}

fn look(check: &'static str, what: &str, url: &str, settings: &DoctorSettings, report: &mut Report) {
    let shown = match pinned::shown(url, TIMEOUT) {
        Ok(shown) => shown,
        Err(error) => {
            let why = "who calls it gets an error in place of an answer";
            return report.problem(
                check,
                format!("{what} shows no certificate at {url}: {error}"),
                why,
                "gateway up; gateway apply",
            );
        }
    };
    let Some(certificate) = ServerCertificate::read(&shown) else {
        let why = "every client refuses it";
        return report.problem(check, format!("the certificate of {what} cannot be read"), why, RENEW);
    };
    let now = Utc::now();
    let ends = certificate.ends.format(TIME);
    if settings.certificate.fingerprint().is_some_and(|wanted| wanted != certificate.fingerprint) {
        report.problem(
            check,
            format!("{what} shows another certificate than the one that was put in place, until {ends}"),
            "it did not take the new one, or somebody else answers at its port",
            "gateway apply",
        );
    } else if certificate.ends <= now {
        report.problem(check, format!("the certificate of {what} ended at {ends}"), "every client refuses it", RENEW);
    } else if certificate.ends_soon(now) {
        let days = counted(certificate.days_left(now), "day", "days");
        let found = format!("the certificate of {what} ends in {days}, at {ends}");
        report.add(Level::Warning, check, found, "from then on every client refuses it", RENEW);
    } else {
        report.good(check, format!("the certificate of {what} is that of {} until {ends}", certificate.names.join(", ")));
    }
}
