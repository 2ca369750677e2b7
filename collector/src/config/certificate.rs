//! What HTTPS servers of this installation are believed by.

use clap::Args;

use crate::certificates::server::Fingerprint;

/// The certificate of the gateway and of Grafana.
#[derive(Debug, Clone, Default, Args)]
pub struct CertificateArgs {
    /// SHA-256 of the certificate by which the gateway and Grafana are believed at their https addresses, in hexadecimal, as
    /// `certificate` prints it. None: their certificates must be signed by who the system trusts
    #[arg(long, env = "GATEWAY_CERTIFICATE_SHA256", value_parser = given)]
    pub certificate_sha256: Option<Given>,
}

/// A fingerprint, or the empty text of a variable that is set to nothing.
pub(super) type Given = Option<Fingerprint>;

impl CertificateArgs {
    /// The fingerprint, if one is set.
    pub fn fingerprint(&self) -> Given {
        self.certificate_sha256.flatten()
    }
}

fn given(text: &str) -> Result<Given, &'static str> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}
