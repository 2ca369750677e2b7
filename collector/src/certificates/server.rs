//! The certificate of a server of this installation, and its key: what they say, and whether they can be used.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use tokio_rustls::rustls::crypto::ring::sign::any_supported_type;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::der::{element, elements};
use crate::decode::digest;

/// From so many days before its end on somebody should see to a new one.
pub const DAYS_OF_WARNING: i64 = 30;

/// SHA-256 of a certificate, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Self {
        Self(digest::sha256(certificate))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&digest::hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for Fingerprint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "want 64 hexadecimal digits";
        if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(WANTED);
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let digits = text.get(2 * index..2 * index + 2).ok_or(WANTED)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| WANTED)?;
        }
        Ok(Self(bytes))
    }
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerCertificate {
    /// Hosts whose certificate it is: names (one may begin with `*.`) and addresses, as they stand in it.
    pub names: Vec<String>,
    /// From then on it is valid.
    pub begins: DateTime<Utc>,
    /// Until then.
    pub ends: DateTime<Utc>,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
}

impl ServerCertificate {
    /// Of a certificate in DER; `None` for what is no X.509 certificate.
    pub fn read(certificate: &[u8]) -> Option<Self> {
        let fields = Fields::read(certificate)?;
        Some(Self { names: fields.names()?, begins: fields.begins, ends: fields.ends, fingerprint: Fingerprint::of(certificate) })
    }

    /// Whole days until its end; none or fewer when it is over.
    pub fn days_left(&self, now: DateTime<Utc>) -> i64 {
        (self.ends - now).num_days()
    }

    /// Whether its end is near, or past.
    pub fn ends_soon(&self, now: DateTime<Utc>) -> bool {
        self.ends - now < TimeDelta::days(DAYS_OF_WARNING)
    }
}

/// The parts of a certificate that are looked at.
struct Fields<'c> {
    issuer: &'c [u8],
    subject: &'c [u8],
    begins: DateTime<Utc>,
    ends: DateTime<Utc>,
    extensions: &'c [u8],
}

const SEQUENCE: u8 = 0x30;

impl<'c> Fields<'c> {
    /// `TBSCertificate ::= SEQUENCE { [0] version, serialNumber, signature, issuer, validity, subject, key, … [3] extensions }`
    fn read(certificate: &'c [u8]) -> Option<Self> {
        let (SEQUENCE, certificate, _) = element(certificate)? else { return None };
        let (SEQUENCE, mut rest, _) = element(certificate)? else { return None };
        if let (0xa0, _, behind) = element(rest)? {
            rest = behind;
        }
        let mut fields = elements(rest);
        let (_serial, _signature) = (fields.next()?, fields.next()?);
        let ((SEQUENCE, issuer), (SEQUENCE, validity), (SEQUENCE, subject)) = (fields.next()?, fields.next()?, fields.next()?)
        else {
            return None;
        };
        let mut times = elements(validity);
        let (begins, ends) = (time(times.next()?)?, time(times.next()?)?);
        let extensions = fields.find(|(tag, _)| *tag == 0xa3).map_or(&[][..], |(_, content)| content);
        Some(Self { issuer, subject, begins, ends, extensions })
    }

    /// Those of the extension `subjectAltName`; none where it is missing.
    fn names(&self) -> Option<Vec<String>> {
        const SUBJECT_ALT_NAME: [u8; 3] = [0x55, 0x1d, 0x11];
        if self.extensions.is_empty() {
            return Some(Vec::new());
        }
        let (SEQUENCE, list, _) = element(self.extensions)? else { return None };
        for (_, extension) in elements(list) {
            let mut parts = elements(extension);
            if parts.next()? != (0x06, &SUBJECT_ALT_NAME) {
                continue;
            }
            // Whether the extension is critical may stand before its value.
            let (_, value) = parts.find(|(tag, _)| *tag == 0x04)?;
            let (SEQUENCE, names, _) = element(value)? else { return None };
            return Some(elements(names).filter_map(host).collect());
        }
        Some(Vec::new())
    }
}

/// A name of a host, or an address; other kinds of names are of no use to a server.
fn host((tag, content): (u8, &[u8])) -> Option<String> {
    match tag {
        0x82 => {
            let name = std::str::from_utf8(content).ok()?;
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '*');
            (!name.is_empty() && name.chars().all(is_plain)).then(|| name.to_owned())
        }
        0x87 => {
            let v4 = <[u8; 4]>::try_from(content).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(content).map(IpAddr::from)).ok()?;
            Some(address.to_string())
        }
        _ => None,
    }
}

/// `UTCTime`, whose years are those from 1950 on, or `GeneralizedTime`.
fn time((tag, content): (u8, &[u8])) -> Option<DateTime<Utc>> {
    let text = std::str::from_utf8(content).ok()?;
    let text = match tag {
        0x17 => format!("{}{text}", if text < "5" { "20" } else { "19" }),
        0x18 => text.to_owned(),
        _ => return None,
    };
    NaiveDateTime::parse_from_str(&text, "%Y%m%d%H%M%SZ").ok().map(|time| time.and_utc())
}

/// Why a certificate and its key cannot be those of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// There is none.
    #[error("there is no certificate: want PEM, with -----BEGIN CERTIFICATE-----")]
    NoCertificate,
    /// One that cannot be read.
    #[error("certificate {0} cannot be read")]
    Unreadable(usize),
    /// There is no key.
    #[error("there is no key: want PEM, with -----BEGIN PRIVATE KEY-----")]
    NoKey,
    /// A key with a password.
    #[error("the key has a password, which nobody could type when the gateway starts (openssl pkey -in KEY -out PLAIN-KEY)")]
    Encrypted,
    /// A key that this program does not know.
    #[error("the key cannot be used: want RSA of 2048 bits and more, P-256, P-384 or Ed25519")]
    UnknownKey,
    /// Another certificate's key.
    #[error("the key is not that of the certificate; where there are several certificates, the server's own comes first")]
    OtherKey,
    /// A certificate that did not sign the one before it.
    #[error("certificate {0} did not sign the one before it: first the server's own, then who signed it, and so on")]
    Order(usize),
    /// It is nobody's.
    #[error("the certificate has no host's name (subjectAltName): SDKs and browsers refuse it")]
    NoName,
    /// Of the future.
    #[error("the certificate is not valid before {}; is the clock right?", .0.format(TIME))]
    NotYet(DateTime<Utc>),
    /// Of the past.
    #[error("the certificate ended at {}", .0.format(TIME))]
    Ended(DateTime<Utc>),
}

/// How times are written.
pub const TIME: &str = "%Y-%m-%d %H:%M UTC";

/// The server's certificate of PEM text that holds it, those that signed it, and its key, when it can be used at that time.
pub fn usable(pem: &[u8], now: DateTime<Utc>) -> Result<ServerCertificate, Unfit> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem).collect();
    if chain.is_empty() {
        return Err(Unfit::NoCertificate);
    }
    let mut certificates = Vec::with_capacity(chain.len());
    for (certificate, number) in chain.into_iter().zip(1..) {
        certificates.push(certificate.map_err(|_| Unfit::Unreadable(number))?);
    }
    let mut fields = Vec::with_capacity(certificates.len());
    for (certificate, number) in certificates.iter().zip(1..) {
        fields.push(Fields::read(certificate).ok_or(Unfit::Unreadable(number))?);
    }
    let own = certificates.first().ok_or(Unfit::NoCertificate)?;
    let server = ServerCertificate::read(own).ok_or(Unfit::Unreadable(1))?;
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| if is_encrypted(pem) { Unfit::Encrypted } else { Unfit::NoKey })?;
    // The key of the old kind with a password has the mark of one without.
    let key = any_supported_type(&key).map_err(|_| if is_encrypted(pem) { Unfit::Encrypted } else { Unfit::UnknownKey })?;
    CertifiedKey::new(vec![own.clone()], key).keys_match().map_err(|_| Unfit::OtherKey)?;
    for (pair, number) in fields.windows(2).zip(2..) {
        if let [one, next] = pair
            && one.issuer != next.subject
        {
            return Err(Unfit::Order(number));
        }
    }
    if server.names.is_empty() {
        return Err(Unfit::NoName);
    }
    if server.begins > now {
        return Err(Unfit::NotYet(server.begins));
    }
    if server.ends <= now {
        return Err(Unfit::Ended(server.ends));
    }
    Ok(server)
}

fn is_encrypted(pem: &[u8]) -> bool {
    ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"]
        .iter()
        .any(|mark| memchr::memmem::find(pem, mark.as_bytes()).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_it_is_written() {
        let fingerprint = Fingerprint::of(b"");
        assert_eq!(fingerprint.to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(fingerprint.to_string().to_uppercase().parse(), Ok(fingerprint));
        for wrong in ["", "e3b0", &"g".repeat(64), &"é".repeat(32), &"+1".repeat(32)] {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn both_ways_of_writing_times_are_read() {
        let read = |tag, text: &str| time((tag, text.as_bytes())).map(|time| time.format(TIME).to_string());
        assert_eq!(read(0x17, "261127140000Z").as_deref(), Some("2026-11-27 14:00 UTC"));
        assert_eq!(read(0x17, "500101000000Z").as_deref(), Some("1950-01-01 00:00 UTC"));
        assert_eq!(read(0x18, "20510101000000Z").as_deref(), Some("2051-01-01 00:00 UTC"));
        for (tag, text) in [(0x17, ""), (0x17, "261327140000Z"), (0x18, "261127140000Z"), (0x04, "261127140000Z")] {
            assert_eq!(read(tag, text), None, "{text}");
        }
    }
}
