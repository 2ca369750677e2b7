//! Event streams, taken apart independently of the plugin and the simulated vLLM.

use bytes::Bytes;
use serde_json::Value;

/// The events with their empty lines; the last one may be incomplete.
pub(crate) fn split(stream: &[u8]) -> Vec<&[u8]> {
    let mut events = Vec::new();
    let mut rest = stream;
    while let Some(at) = rest.windows(2).position(|pair| pair == b"\n\n") {
        let (event, behind) = rest.split_at(at + 2);
        events.push(event);
        rest = behind;
    }
    if !rest.is_empty() {
        events.push(rest);
    }
    events
}

/// What an event with a usage and no choices reports.
pub(crate) fn usage(event: &[u8]) -> Option<Value> {
    let event: Value = serde_json::from_slice(event.strip_prefix(b"data: ")?).ok()?;
    let usage = event.get("usage").filter(|usage| usage.is_object())?;
    event["choices"].as_array()?.is_empty().then(|| usage.clone())
}

/// The usages of a stream.
pub(crate) fn usages(stream: &[u8]) -> Vec<Value> {
    split(stream).into_iter().filter_map(usage).collect()
}

/// The stream without its usage event.
pub(crate) fn without_usage(stream: &[u8]) -> Bytes {
    split(stream).into_iter().filter(|event| usage(event).is_none()).collect::<Vec<_>>().concat().into()
}

/// Compares bodies; says where they differ instead of printing megabytes.
pub(crate) fn assert_same(what: &str, got: &[u8], wanted: &[u8]) {
    if got != wanted {
        let at = got.iter().zip(wanted).take_while(|(a, b)| a == b).count();
        let near = |bytes: &[u8]| {
            String::from_utf8_lossy(&bytes[at.saturating_sub(80).min(bytes.len())..(at + 200).min(bytes.len())]).into_owned()
        };
        panic!(
            "{what}: {} bytes, not {}; they differ at {at}\n  got    {}\n  wanted {}",
            got.len(),
            wanted.len(),
            near(got),
            near(wanted)
        );
    }
}
