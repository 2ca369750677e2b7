//! What tests of recorded entries have in common.

#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking, and uses a part of this")]

use llm_collector::call::Call;
use llm_collector::decode::{self, Limits, digest};
use llm_collector::extract::{self, privacy::Privacy, redact::Secrets};
use serde_json::{Value, json};

const LIMITS: Limits = Limits { decoded_bytes: 64 << 20 };

/// The call of an entry as Kong sends it, alone or in an array.
pub(crate) fn call_of_entry(bytes: &[u8]) -> Call {
    let text = decode::text(bytes);
    let raw = decode::elements(&text).unwrap().next().unwrap();
    let entry = decode::entry::decode(raw, LIMITS).unwrap();
    extract::call(&entry, &Secrets::default(), &Privacy::default())
}

/// Long texts are compared by length, hash, beginning and end, as the expected rows hold them.
pub(crate) fn text(text: Option<&str>) -> Value {
    match text {
        Some(text) if text.chars().count() > 600 => {
            let chars: Vec<char> = text.chars().collect();
            json!({
                "chars": chars.len(),
                "sha256": digest::sha256_hex(text.as_bytes()),
                "head": chars[..60].iter().collect::<String>(),
                "tail": chars[chars.len() - 60..].iter().collect::<String>(),
            })
        }
        text => json!(text),
    }
}
