//! The certificates of the gateway and of Grafana.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use chrono::Utc;
use gateway_tests::process::{free_port, wait_until};
use llm_collector::certificates::server::usable;

use super::Site;

/// A server that shows a certificate of its own, which ends in so many days. Ends with this value.
struct Shows {
    url: String,
    fingerprint: String,
    process: Child,
    _folder: tempfile::TempDir,
}

impl Shows {
    async fn certificate(days: i32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let openssl = |arguments: &str| {
            let output = Command::new("openssl").current_dir(folder.path()).args(arguments.split_whitespace()).output().unwrap();
            assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        };
        std::fs::write(folder.path().join("names"), "subjectAltName=DNS:gateway.example\n").unwrap();
        openssl("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -keyout key.pem -out csr.pem");
        openssl(&format!("x509 -req -in csr.pem -signkey key.pem -days {days} -extfile names -out own.pem"));
        let said = openssl("x509 -in own.pem -noout -fingerprint -sha256");
        let (_, digits) = std::str::from_utf8(&said).unwrap().trim().split_once('=').unwrap();
        let port = free_port();
        let process = Command::new("openssl")
            .current_dir(folder.path())
            .args(["s_server", "-quiet", "-www", "-cert", "own.pem", "-key", "key.pem", "-accept", &format!("127.0.0.1:{port}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("it listens", Duration::from_secs(10), || async {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        let fingerprint = digits.replace(':', "").to_lowercase();
        Self { url: format!("https://127.0.0.1:{port}"), fingerprint, process, _folder: folder }
    }
}

impl Drop for Shows {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_certificate_is_looked_at_as_it_is_shown() {
    let mut site = Site::healthy().await;
    let Some(tls) = site.session.gateway.tls.as_ref() else { return };
    let certificate = usable(&std::fs::read(&tls.certificate).unwrap(), Utc::now()).unwrap();
    site.set("KONG_PROXY_URL", &tls.url);
    for fingerprint in [String::new(), certificate.fingerprint.to_string()] {
        site.set("GATEWAY_CERTIFICATE_SHA256", fingerprint);
        let said = site.doctor().await;
        said.assert_quiet("gateway.certificate");
        assert!(said.stdout.contains("the certificate of the gateway is that of localhost, 127.0.0.1 until 20"), "{said:?}");
    }
    site.set("GATEWAY_CERTIFICATE_SHA256", "00".repeat(32));
    site.doctor().await.assert_problem("gateway.certificate", &["another certificate than the one that was put in place"]);
    let nobody = format!("https://127.0.0.1:{}", free_port());
    site.set("KONG_PROXY_URL", &nobody);
    site.doctor().await.assert_problem("gateway.certificate", &["shows no certificate", &nobody]);
    site.set("GATEWAY_CERTIFICATE_SHA256", "abc");
    assert!(site.doctor().await.stderr.contains("want 64 hexadecimal digits"));
}

#[tokio::test]
async fn the_end_of_a_certificate_is_a_warning_for_30_days_and_then_a_problem() {
    let mut site = Site::healthy().await;
    for (days, level, words) in
        [(31, "ok", ""), (29, "warning", "ends in 28 days"), (1, "warning", "ends in 0 days"), (-1, "problem", "ended at 20")]
    {
        let server = Shows::certificate(days).await;
        site.set("KONG_PROXY_URL", &server.url);
        let said = site.doctor().await;
        match level {
            "ok" => said.assert_quiet("gateway.certificate"),
            level => said.assert_complaint(level, "gateway.certificate", &[words]),
        }
        assert_eq!(said.status, Some(i32::from(level == "problem")), "{said:?}");
    }
}

#[tokio::test]
async fn grafana_is_told_passwords_only_where_it_has_the_certificate() {
    let mut site = Site::healthy().await;
    let server = Shows::certificate(400).await;
    site.set("GRAFANA_URL", &server.url);
    for wrong in ["", &"00".repeat(32)] {
        site.set("GATEWAY_CERTIFICATE_SHA256", wrong);
        site.doctor().await.assert_problem("grafana", &["does not answer", "certificate"]);
    }
    // The page that openssl shows to everybody is none of Grafana's, but it comes.
    site.set("GATEWAY_CERTIFICATE_SHA256", &server.fingerprint);
    let said = site.doctor().await;
    said.assert_quiet("grafana");
    said.assert_quiet("grafana.certificate");
}
