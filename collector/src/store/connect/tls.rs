//! TLS to PostgreSQL, by rustls.
//!
//! What of a certificate is verified is `sslmode`'s business. Channel binding (SCRAM-SHA-256-PLUS, RFC 5929) comes for free: a
//! password is of no use to whoever stands in between, even where nothing is verified.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::{self, CryptoProvider};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::SslMode;
use crate::certificates;
use crate::certificates::der::element;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Nothing to verify certificates with.
    #[error("sslmode=verify-ca and verify-full need root certificates: set sslrootcert to a file, or to system")]
    NoRoots,
    /// A file that cannot be used.
    #[error("cannot use {}, which {setting} names: {reason}", path.display())]
    File {
        /// The parameter.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A certificate of ours without its key, or the other way round.
    #[error("sslcert and sslkey go together")]
    HalfACertificate,
    /// rustls does not want to.
    #[error("cannot set up TLS: {0}")]
    Rustls(#[from] Error),
}

/// Files that belong to TLS.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) root_certificates: Option<PathBuf>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

/// Makes TLS sessions.
#[derive(Clone)]
pub(super) struct Tls(Option<Arc<ClientConfig>>);

impl Tls {
    /// For connections that never ask for TLS.
    pub(super) fn none() -> Self {
        Self(None)
    }

    pub(super) fn new(mode: SslMode, files: &Files) -> Result<Self, TlsError> {
        let provider = Arc::new(crypto::ring::default_provider());
        let roots = match &files.root_certificates {
            Some(path) if path == Path::new("system") => system_certificates()?,
            Some(path) => certificates("sslrootcert", path)?,
            None if mode.verifies() => return Err(TlsError::NoRoots),
            None => Vec::new(),
        };
        let verifier = Verifier::new(mode, roots, files, Arc::clone(&provider))?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match (&files.certificate, &files.key) {
            (None, None) => config.with_no_client_auth(),
            (Some(certificate), Some(key)) => {
                let chain = certificates("sslcert", certificate)?;
                let key = PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::File {
                    setting: "sslkey",
                    path: key.clone(),
                    reason: error.to_string(),
                })?;
                config.with_client_auth_cert(chain, key)?
            }
            _ => return Err(TlsError::HalfACertificate),
        };
        Ok(Self(Some(Arc::new(config))))
    }
}

fn certificates(setting: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates::of_file(path).map_err(|certificates::Unusable { path, reason }| TlsError::File { setting, path, reason })
}

fn system_certificates() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates("sslrootcert", certificates::system_file().ok_or(TlsError::NoRoots)?)
}

/// What is verified of a server's certificate.
#[derive(Debug)]
struct Verifier {
    /// `None` where nothing is verified.
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// Root certificates, one of which may be the server's own: self-signed, as many are. As such it is no certificate of a server to
    /// webpki, but it is the very one that was asked for.
    roots: Vec<CertificateDer<'static>>,
    is_name_verified: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(
        mode: SslMode,
        roots: Vec<CertificateDer<'static>>,
        files: &Files,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let is_name_verified = mode == SslMode::VerifyFull;
        // As libpq: with root certificates at hand even `require` verifies.
        if roots.is_empty() || !(mode.verifies() || mode == SslMode::Require) {
            return Ok(Self { chain: None, roots, is_name_verified, provider });
        }
        let mut store = RootCertStore::empty();
        let (taken, _) = store.add_parsable_certificates(roots.iter().cloned());
        let fault = |reason: String| TlsError::File {
            setting: "sslrootcert",
            path: files.root_certificates.clone().unwrap_or_default(),
            reason,
        };
        if taken == 0 {
            return Err(fault("it holds no certificate that can be read".to_owned()));
        }
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider))
            .build()
            .map_err(|error| fault(error.to_string()))?;
        Ok(Self { chain: Some(chain), roots, is_name_verified, provider })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        if self.roots.iter().any(|root| root == certificate) {
            if self.is_name_verified {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match chain.verify_server_cert(certificate, intermediates, server_name, ocsp_response, now) {
            // The name is looked at last: everything else was right.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.is_name_verified => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl<S> MakeTlsConnect<S> for Tls
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type TlsConnect = Handshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, domain: &str) -> io::Result<Handshake> {
        let name = ServerName::try_from(domain.to_owned());
        Ok(Handshake { config: self.0.clone(), name: name.ok() })
    }
}

/// A TLS session about to begin.
pub(super) struct Handshake {
    config: Option<Arc<ClientConfig>>,
    name: Option<ServerName<'static>>,
}

impl<S> TlsConnect<S> for Handshake
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let (Some(config), Some(name)) = (self.config, self.name) else {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "the host has no name that a certificate could have"));
            };
            Ok(Stream(Box::new(TlsConnector::from(config).connect(name, stream).await?)))
        })
    }
}

/// A TLS session.
pub(super) struct Stream<S>(Box<tokio_rustls::client::TlsStream<S>>);

impl<S> TlsStream for Stream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn channel_binding(&self) -> ChannelBinding {
        let (_, session) = self.0.get_ref();
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        match certificate.and_then(|certificate| end_point(certificate.as_ref())) {
            Some(hash) => ChannelBinding::tls_server_end_point(hash),
            None => ChannelBinding::none(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// `tls-server-end-point` (RFC 5929): the certificate's hash, by the function of its own signature, SHA-256 at least. `None` for
/// signatures without one, as Ed25519.
fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // Object identifiers: 1.2.840.113549.1.1.x for RSA, 1.2.840.10045.4.x for ECDSA.
    const RSA: [u8; 8] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA: [u8; 6] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
    let algorithm = signature_algorithm(certificate)?;
    match (algorithm.strip_prefix(&RSA), algorithm.strip_prefix(&ECDSA)) {
        (Some([4 | 5 | 11]), _) | (_, Some([1] | [3, 2])) => Some(Sha256::digest(certificate).to_vec()),
        (Some([12]), _) | (_, Some([3, 3])) => Some(Sha384::digest(certificate).to_vec()),
        (Some([13]), _) | (_, Some([3, 4])) => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// The object identifier in `Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OBJECT IDENTIFIER, … }, … }`.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (0x30, fields, _) = element(certificate)? else { return None };
    let (_, _, behind) = element(fields)?;
    let (0x30, algorithm, _) = element(behind)? else { return None };
    let (0x06, identifier, _) = element(algorithm)? else { return None };
    Some(identifier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_der_is_no_certificate() {
        for bytes in [&[][..], &[0x30], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], &[0x30, 0x80], &[0x30, 2, 0x30, 0], &[2, 1, 1]] {
            assert_eq!(end_point(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        let certificate = |identifier: &[u8]| {
            let length = u8::try_from(identifier.len()).unwrap();
            let mut der = vec![0x30, length + 6, 0x30, 0, 0x30, length + 2, 0x06, length];
            der.extend_from_slice(identifier);
            der
        };
        for (identifier, length) in [
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11][..], Some(32)),
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12], Some(48)),
            (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4], Some(64)),
            // SHA-1 is not good enough.
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 5], Some(32)),
            // Ed25519
            (&[0x2b, 0x65, 0x70], None),
        ] {
            assert_eq!(end_point(&certificate(identifier)).map(|hash| hash.len()), length, "{identifier:?}");
        }
    }
}
