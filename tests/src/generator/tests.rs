//! The generator keeps its promises.

use std::collections::{HashMap, HashSet};

use llm_collector::decode::{self, Limits};
use llm_collector::extract::{self, privacy::Privacy, redact::Secrets};

use crate::generator::{Generator, Settings};

fn entries(count: usize) -> Vec<serde_json::Value> {
    let batch = Generator::new(&Settings::default()).batch(count);
    serde_json::from_str(&batch).expect("a batch is JSON")
}

#[test]
fn a_seed_gives_the_same_entries_again() {
    let batch = |seed| Generator::new(&Settings { seed, ..Settings::default() }).batch(20);
    assert_eq!(batch(7), batch(7));
    assert_ne!(batch(7), batch(8));
}

#[test]
fn no_request_id_comes_twice_and_no_sequence_number_is_left_out() {
    let entries = entries(2_000);
    let ids: HashSet<_> = entries.iter().map(|entry| entry["request"]["id"].to_string()).collect();
    assert_eq!(ids.len(), entries.len());
    let mut last: HashMap<String, u64> = HashMap::new();
    for entry in &entries {
        let seq = last.entry(entry["llm"]["worker"].to_string()).or_default();
        *seq += 1;
        assert_eq!(entry["llm"]["seq"], *seq);
    }
    assert_eq!(last.len(), 8);
}

#[test]
fn the_mix_is_what_the_module_says() {
    let entries = entries(2_000);
    let share = |matches: &dyn Fn(&serde_json::Value) -> bool| {
        entries.iter().filter(|entry| matches(entry)).count() as f64 / entries.len() as f64
    };
    let streamed = share(&|entry| entry["llm"]["stream"] == true);
    assert!((0.4..0.6).contains(&streamed), "{streamed} streamed");
    let failed = share(&|entry| entry["response"]["status"].as_i64() >= Some(400));
    assert!((0.02..0.15).contains(&failed), "{failed} failed");
    let first_user = share(&|entry| entry["consumer"]["username"] == "z100001");
    assert!((0.1..0.4).contains(&first_user), "{first_user} of the first user");
    let sizes = |side: &str| {
        let mut sizes: Vec<u64> = entries.iter().filter_map(|entry| entry["llm"][side].as_u64()).collect();
        sizes.sort_unstable();
        (sizes[sizes.len() / 2], sizes[sizes.len() - 1])
    };
    let (median, largest) = sizes("request_bytes");
    assert!((1_500..5_000).contains(&median) && (20_000..36_000).contains(&largest), "requests: {median}, {largest}");
    let (_, largest) = sizes("response_bytes");
    assert!((40_000..=64_000).contains(&largest), "responses: {largest}");
}

#[test]
fn the_collector_understands_every_entry() {
    let batch = Generator::new(&Settings::default()).batch(1_000);
    let text = decode::text(batch.as_bytes());
    let limits = Limits { decoded_bytes: 64 << 20 };
    let mut with_tools = 0;
    for raw in decode::elements(&text).expect("a batch") {
        let entry = decode::entry::decode(raw, limits).expect("an entry");
        let call = extract::call(&entry, &Secrets::default(), &Privacy::default());
        assert!(call.status.is_some() && call.endpoint.is_some(), "{call:?}");
        if call.succeeded() {
            let is_vector = call.endpoint.as_deref() == Some("/v1/embeddings");
            assert!(call.prompt.is_some() && call.usage.is_reported() && call.model.is_some(), "{call:?}");
            assert!(is_vector || call.response.is_some() || !call.tool_calls.is_empty(), "{call:?}");
        } else {
            assert!(call.error.is_some() || call.aborted, "{call:?}");
        }
        with_tools += usize::from(!call.tool_calls.is_empty());
    }
    assert!(with_tools > 30, "{with_tools} with tools");
}
