//! What stands for bytes that are not kept.

use sha2::{Digest, Sha256};

/// The SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The SHA-256 of `bytes` in lower-case hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&sha256(bytes))
}

/// `bytes` in lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut digits, byte| {
        // Writing to a String cannot fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// What is kept of a body or part that is no text, an uploaded recording for instance: `[audio/wav 48044 bytes sha256:…]`.
pub fn describe_binary(content_type: &str, bytes: &[u8]) -> String {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    format!("[{kind} {} bytes sha256:{}]", bytes.len(), sha256_hex(bytes))
}
