//! Certificates by which servers are believed: those of a file, those that the system trusts, or the one that a server of this
//! installation is known to have.

pub(crate) mod der;
pub mod pinned;
pub mod server;

use std::path::{Path, PathBuf};

use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

/// Where systems keep the certificates that they trust.
const SYSTEM_CERTIFICATES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Why a file of certificates is of no use.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}: {reason}", path.display())]
pub struct Unusable {
    /// The file.
    pub path: PathBuf,
    /// Why not.
    pub reason: String,
}

/// The certificates of a PEM file, one at least.
pub fn of_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let fault = |reason: String| Unusable { path: path.to_owned(), reason };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match found {
        Ok(certificates) if certificates.is_empty() => Err(fault("it holds no certificate".to_owned())),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(fault(error.to_string())),
    }
}

/// The file of certificates that the system trusts, if it has one.
pub fn system_file() -> Option<&'static Path> {
    SYSTEM_CERTIFICATES.iter().map(Path::new).find(|path| path.exists())
}
