//! Bodies of some megabytes that are made to cost the square of their length. Each is read within a second or so; where the square
//! came back, it would take minutes and more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::sync::Arc;

use llm_collector::decode::Limits;
use llm_collector::extract::privacy::Privacy;
use llm_collector::extract::redact::Secrets;
use llm_collector::pipeline::Reader;
use serde_json::json;

const PATHS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"];

/// Reads an entry whose answer is `body`; it has to become a row.
fn read(path: &str, body: &str) {
    let entry = json!({"started_at": 1_795_400_000_000_i64, "consumer": {"username": "z1"}, "request": {"id": "1", "uri": path},
        "response": {"status": 200, "headers": {"content-type": "text/event-stream"}, "body": body}});
    let (secrets, privacy) = (Arc::new(Secrets::default()), Arc::new(Privacy::default()));
    let reader = Reader { limits: Limits { decoded_bytes: 8 << 20 }, secrets, privacy };
    let batch = reader.read(&mut VecDeque::from([entry.to_string().into()]));
    assert_eq!((batch.items.len(), batch.rejected.len()), (1, 0), "{path}");
}

/// `count` members with names of their own, from `first` on; a comma behind each.
fn members(first: usize, count: usize) -> String {
    (first..first + count).map(|n| format!("\"{n}\":1,")).collect()
}

#[test]
fn an_event_with_hundreds_of_thousands_of_names() {
    let names = members(0, 110_000);
    for path in PATHS {
        read(path, &format!("data: {{{names}\"choices\":[{{{names}\"delta\":{{{names}\"content\":\"x\"}}}}]}}\n\n"));
        read(
            path,
            &format!("data: {{\"type\":\"message_start\",\"message\":{{{names}\"usage\":{{{names}\"input_tokens\":1}}}}}}\n\n"),
        );
    }
}

#[test]
fn many_events_each_with_names_of_its_own() {
    let chunks = |make: &dyn Fn(String) -> String| -> String {
        (0..400).map(|n| format!("data: {}\n\n", make(members(n * 1_000, 1_000)))).collect()
    };
    for path in PATHS {
        read(path, &chunks(&|names| format!("{{{names}\"choices\":[]}}")));
        read(path, &chunks(&|names| format!("{{\"choices\":[{{{names}\"logprobs\":{{{names}\"x\":[]}}}}]}}")));
        read(
            path,
            &chunks(&|names| format!("{{\"type\":\"message_delta\",\"delta\":{{{names}\"x\":1}},\"usage\":{{{names}\"y\":1}}}}")),
        );
    }
}

#[test]
fn the_same_name_hundreds_of_thousands_of_times() {
    let blob = "A".repeat(64);
    for (name, value) in [("content", "\"x\""), ("data", &format!("\"{blob}\"")), ("model", "\"m\""), ("tool_calls", "[]")] {
        let repeated = format!("\"{name}\":{value},").repeat(3_000_000 / (name.len() + value.len() + 4));
        let others = members(0, 50_000);
        for path in PATHS {
            read(path, &format!("data: {{\"choices\":[{{\"delta\":{{{repeated}{others}\"x\":1}}}}]}}\n\n"));
            read(path, &format!("{{{repeated}{others}\"x\":1}}"));
        }
    }
}

#[test]
fn a_long_text_and_many_messages_that_repeat_nothing_of_it() {
    let long = "x y ".repeat(1_000_000);
    let messages: String =
        (0..60_000).map(|n| format!("data: {{\"choices\":[{{\"message\":{{\"content\":\"{n}\"}}}}]}}\n\n")).collect();
    read(PATHS[0], &format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{long}\"}}}}]}}\n\n{messages}"));
}

#[test]
fn tens_of_thousands_of_items_each_known_by_its_id_alone() {
    const MANY: usize = 40_000;
    let events: String = (0..MANY)
        .map(|n| format!("data: {{\"type\":\"response.output_item.added\",\"item\":{{\"id\":\"{n}\",\"type\":\"t{n}\"}}}}\n\n"))
        .collect();
    let output: Vec<_> = (0..MANY).map(|n| format!("{{\"id\":\"o{n}\",\"type\":\"o\"}}")).collect();
    let end = format!("data: {{\"type\":\"response.completed\",\"response\":{{\"output\":[{}]}}}}\n\n", output.join(","));
    read(PATHS[3], &format!("{events}{end}"));
}
