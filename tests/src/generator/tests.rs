//! The generator keeps its promises.

use std::collections::{HashMap, HashSet};

use llm_collector::decode::{self, Limits};
use llm_collector::extract::{self, privacy::Privacy, redact::Secrets};

use crate::generator::{Generator, Settings};
use crate::week::{Week, team_of};

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

/// What the collector reads out of an entry.
fn read(json: &str) -> llm_collector::call::Call {
    let entry = decode::entry::decode(json, Limits { decoded_bytes: 64 << 20 }).expect("an entry");
    extract::call(&entry, &Secrets::default(), &Privacy::default())
}

#[test]
fn the_collector_reads_what_an_entry_was_made_of() {
    let mut generator = Generator::new(&Settings { teams: &["a-team", "b-team"], users: 3, ..Settings::default() });
    let mut made: Vec<_> = (0..1_000).map(|second| generator.entry_at(1_795_402_800_000 + second * 1_000)).collect();
    made.extend(generator.agent_session(1, 1_795_500_000_000, 12));
    for made in made {
        let call = read(&made.json);
        let read = (call.usage.prompt_tokens.unwrap_or(0), call.usage.completion_tokens.unwrap_or(0));
        assert_eq!(read, (made.tokens.0 as i32, made.tokens.1 as i32), "{call:?}");
        assert_eq!(call.started_at.timestamp_millis(), made.started_at_ms);
        let team = made.user.as_deref().map(|user| if user == "z100002" { "b-team" } else { "a-team" });
        assert_eq!((call.consumer_username.as_str(), call.team.as_deref()), (made.user.as_deref().unwrap_or("anonymous"), team));
    }
}

#[test]
fn an_agent_asks_with_all_that_was_said_before_and_ends_in_words() {
    let session = Generator::new(&Settings::default()).agent_session(0, 1_795_500_000_000, 12);
    let calls: Vec<_> = session.iter().map(|made| read(&made.json)).collect();
    assert_eq!(calls.len(), 12);
    for (earlier, later) in calls.iter().zip(&calls[1..]) {
        assert_eq!(later.prompt, earlier.prompt);
        assert_eq!(later.usage.cached_tokens, earlier.usage.prompt_tokens);
        assert!(later.started_at > earlier.started_at && later.usage.prompt_tokens > earlier.usage.prompt_tokens);
        assert!(!earlier.tool_calls.is_empty() && earlier.response.is_none(), "{earlier:?}");
    }
    assert!(calls[11].tool_calls.is_empty() && calls[11].response.is_some());
}

#[test]
fn a_week_is_the_same_again_and_lies_in_the_seven_days_before_its_end() {
    let end_ms = 1_795_777_100_000;
    let batches = || Week::until(end_ms).batches(50).collect::<Vec<_>>();
    let week = batches();
    assert_eq!(week, batches());
    let (mut users, mut failed) = (HashSet::new(), 0);
    for entry in week.iter().flat_map(|batch| serde_json::from_str::<Vec<serde_json::Value>>(batch).expect("a batch")) {
        let started = entry["started_at"].as_i64().expect("a time");
        assert!((end_ms - 7 * 86_400_000..end_ms).contains(&started), "{started}");
        if let Some(user) = entry["consumer"]["username"].as_str() {
            users.insert(user.to_owned());
            assert_eq!(entry["consumer"]["tags"][0], format!("team:{}", team_of(user).expect("a team")));
        }
        failed += usize::from(entry["response"]["status"].as_i64() >= Some(500));
    }
    assert_eq!(users.len(), 20);
    assert!(failed > 10, "{failed} failed");
}
