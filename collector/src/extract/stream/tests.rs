//! Whatever comes in a stream, the pattern reads it as the parser does.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::decode;
use crate::extract::{choices, messages, responses};

/// Merges as `M` does, but parses every event.
#[derive(Default)]
struct Parsed<M>(M);

impl<M: Merge> Merge for Parsed<M> {
    type Place = ();

    fn add(&mut self, event: &Sent<'_, '_>, unread: &mut Pieces) {
        self.0.add(event, unread);
    }
    fn piece<'e>(_event: &'e Json<'_>) -> Option<((), &'e str)> {
        None
    }
    fn add_piece(&mut self, (): &(), _piece: &str) {}
    fn finish(self) -> Json<'static> {
        self.0.finish()
    }
}

fn assert_same<M: Merge>(text: &str) {
    let (fast, parsed) = (merge::<M>(text, false), merge::<Parsed<M>>(text, false));
    assert_eq!(fast.completion, parsed.completion, "{text}");
    assert_eq!(fast.ended, parsed.ended, "{text}");
    assert_eq!(fast.unread, parsed.unread, "{text}");
}

fn assert_same_for_all(text: &str) {
    assert_same::<choices::Chunks>(text);
    assert_same::<messages::Events>(text);
    assert_same::<responses::Events>(text);
}

#[test]
fn recorded_streams_come_out_as_if_every_event_had_been_parsed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/kong/entries");
    let mut streams = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let entry: serde_json::Value = serde_json::from_str(&decode::text(&bytes)).unwrap();
        let body = STANDARD.decode(entry["response"]["body"].as_str().unwrap_or_default()).unwrap();
        let text = String::from_utf8_lossy(&body);
        if sse::looks_like_events(&text) {
            assert_same_for_all(&text);
            streams += 1;
        }
    }
    assert!(streams > 50, "{streams} streams");
}

#[test]
fn an_event_that_fits_is_read_and_one_that_does_not_is_left_to_the_parser() {
    let event = r#"{"a":"x","b":1}"#;
    let pattern = Pattern::new("", event, event.get(6..7).unwrap(), ()).unwrap();
    for (event, piece) in [
        (r#"{"a":"","b":1}"#, Some("")),
        (r#"{"a":"大模型","b":1}"#, Some("大模型")),
        (r#"{"a":"\n\"\u00e9","b":1}"#, Some("\n\"é")),
        (r#"{"a":"x","c":"y","b":1}"#, None),
        (r#"{"a":"x\","b":1}"#, None),
        (r#"{"a":"\x","b":1}"#, None),
        ("{\"a\":\"\n\",\"b\":1}", None),
        (r#"{"a":"x","b":2}"#, None),
        (r#"{"a":"x"#, None),
        (r#"{"a":","b":1}"#, None),
    ] {
        assert_eq!(pattern.piece(event).as_deref(), piece, "{event}");
    }
    let copied = "x".to_owned();
    assert!(Pattern::new("", event, &copied, ()).is_none());
}

/// Texts, some of which end the string that they stand in.
fn piece() -> impl Strategy<Value = &'static str> {
    select(vec!["", "a", " b", "大", r"\n", r#"\""#, r"\u00e9", r"\", r#"x","reasoning":"y"#, r#"x"},"z":{"q":"y"#])
}

fn chunk() -> impl Strategy<Value = String> {
    let delta = select(vec![
        r#""delta":{"content":"~"}"#,
        r#""delta":{"role":"assistant","content":"~"}"#,
        r#""delta":{"content":"~","content":"~"}"#,
        r#""delta":{"content":"a","reasoning":"~"}"#,
        r#""delta":{"reasoning":"~"}"#,
        r#""delta":{"reasoning_content":"~","refusal":null}"#,
        r#""delta":{"refusal":"~"}"#,
        r#""delta":{"content":null,"tool_calls":[{"index":#,"function":{"arguments":"~"}}]}"#,
        r#""delta":{"tool_calls":[{"index":#,"id":"~","function":{"name":"n","arguments":"~"}}]}"#,
        r#""delta":{"tool_calls":[{"index":0,"function":{"arguments":"~"}},{"index":0,"function":{"arguments":"b"}}]}"#,
        r#""delta":{"tool_calls":[{"index":0,"function":{"arguments":"~"},"function":{"arguments":"b"}}]}"#,
        r#""delta":{"tool_calls":[{"function":{"arguments":"~"}}]}"#,
        r#""delta":{"tool_calls":[{"index":null,"id":null,"type":"function","function":{"name":null,"arguments":"~"}}]}"#,
        r#""delta":{"tool_calls":[{"index":#,"id":"i","function":{"arguments":"~"}}]}"#,
        r#""delta":{"tool_calls":[{"index":#,"function":{"name":"~","arguments":"{}"}}]}"#,
        r#""delta":{"tool_calls":{"function":{"arguments":"~"}}}"#,
        r#""delta":{"tool_calls":[{"id":"i","custom":{"input":"~"}}]}"#,
        r#""delta":{"tool_calls":[{"index":#,"extra":"~","function":{"arguments":"a"}}]}"#,
        r#""delta":{"content":[{"type":"text","text":"~"}]}"#,
        r#""delta":{"content":[{"thinking":[{"text":"~"}]},{"image":"~"}]}"#,
        r#""delta":{"content":"~","new":{"member":#}}"#,
        r#""delta":{"audio":{"transcript":"~"}}"#,
        r#""message":{"role":"assistant","content":"~"}"#,
        r#""delta":null"#,
        r#""delta":{"function_call":{"name":"f","arguments":"~"}}"#,
        r#""delta":{"content":5}"#,
        r#""delta":{},"delta":{"content":"~"}"#,
        r#""delta":"~""#,
        r#""text":"~""#,
        r#""text":"~","delta":{"content":"b"}"#,
    ]);
    let rest = select(vec![
        "",
        r#","finish_reason":null,"token_ids":null"#,
        r#","finish_reason":"stop""#,
        r#","stop_reason":"~""#,
        r#","token_ids":[#]"#,
        r#","logprobs":null"#,
        r#","logprobs":{"content":[#]}"#,
        r#","other":"~""#,
        r#","other":#"#,
        r#","usage":{"prompt_tokens":#}"#,
    ]);
    let head = select(vec![
        "",
        r#""id":"1","#,
        r#""id":"~","#,
        r#""usage":null,"#,
        r#""usage":{"a":#},"#,
        r#""usage":{"prompt_tokens":#,"completion_tokens":#},"#,
        r#""new":#,"#,
        r#""error":{"message":"~"},"#,
        r#""error":null,"#,
        r#""type":"error","#,
        r#""type":"message_stop","#,
        r#""choices":[],"#,
    ]);
    (head, 0..2, delta, rest)
        .prop_map(|(head, index, delta, rest)| format!(r#"{{{head}"choices":[{{"index":{index},{delta}{rest}}}]}}"#))
}

fn message_event() -> impl Strategy<Value = String> {
    let shapes = select(vec![
        r#"{"type":"message_start","message":{"model":"~","content":[],"usage":{"input_tokens":#}}}"#,
        r##"{"type":"content_block_start","content_block":{"type":"text","text":"~"},"index":#}"##,
        r##"{"type":"content_block_start","content_block":{"type":"tool_use","input":{}},"index":#}"##,
        r##"{"type":"content_block_delta","delta":{"type":"text_delta","text":"~"},"index":#}"##,
        r##"{"type":"content_block_delta","delta":{"type":"x","thinking":"~"},"index":#}"##,
        r##"{"type":"content_block_delta","delta":{"text":"~","thinking":"b"},"index":#}"##,
        r##"{"type":"content_block_delta","delta":{"text":"~","text":"b"},"index":#}"##,
        r##"{"type":"content_block_delta","delta":{"signature":"~"},"index":#,"error":"~"}"##,
        r##"{"type":"content_block_delta","delta":{"partial_json":"~"},"index":#}"##,
        r##"{"type":"content_block_stop","index":#}"##,
        r#"{"type":"message_delta","delta":{"stop_reason":"~"},"usage":{"output_tokens":#}}"#,
    ]);
    shapes.prop_map(str::to_owned)
}

/// The shape with its blanks filled in, several times with other texts.
fn repeated(shape: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<String>> {
    (shape, 0..3u8, proptest::collection::vec(piece(), 1..4)).prop_map(|(shape, number, pieces)| {
        let shape = shape.replace('#', &number.to_string());
        pieces.into_iter().map(|piece| shape.replace('~', piece)).collect()
    })
}

proptest! {
    #[test]
    fn any_stream_comes_out_as_if_every_event_had_been_parsed(
        events in proptest::collection::vec(prop_oneof![repeated(chunk()), repeated(message_event())], 1..12),
        order in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
    ) {
        let mut events: Vec<String> = events.into_iter().flatten().collect();
        // Patterns are met again later.
        events.extend(order.iter().map(|index| index.get(&events).clone()).collect::<Vec<_>>());
        let names = ["", "event: x\n", "event: error\n"];
        let named = events.iter().zip(order.iter().map(|index| names.get(index.index(9)).copied().unwrap_or_default()).chain(std::iter::repeat("")));
        let text: String = named.map(|(event, name)| format!("{name}data: {event}\n\n")).collect();
        assert_same_for_all(&text);
    }
}
