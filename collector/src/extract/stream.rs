//! How the events of a stream add up to one answer.
//!
//! A stream of a thousand tokens is a thousand events that differ in nothing but the token. A tree of each was half of all work on
//! an entry, most of it in the allocator. So an event that was parsed leaves a [`Pattern`] behind: its own text around the
//! token. An event that fits is read by comparing bytes, some twenty times as fast, and one that does not is parsed.
//!
//! Invariant: what comes out is the same as if every event had been parsed. Each API says which events may leave a pattern: those
//! that, but for one text that is appended somewhere, change nothing when they come again ([`Merge::piece`]).

use std::borrow::Cow;

use crate::decode::json::{Json, first_special};
use crate::decode::sse;

/// Adds up the events of a stream to the object that the API would have answered with, had it not streamed.
pub trait Merge: Default {
    /// Where a piece of text belongs.
    type Place;
    /// Takes one event into account; what it does not understand it leaves out.
    fn add(&mut self, event: &Json<'_>);
    /// The text of `event` that [`Merge::add`] appends, and where to; `None` if there is more than one, or if an event that
    /// differs from this one only in that text could do anything else than append, at whatever time it comes.
    fn piece<'e>(event: &'e Json<'_>) -> Option<(Self::Place, &'e str)>;
    /// Appends a piece: all that adding its event would do.
    fn add_piece(&mut self, place: &Self::Place, piece: &str);
    /// The object.
    fn finish(self) -> Json<'static>;
}

/// A stream, added up.
#[derive(Debug)]
pub struct Merged {
    /// The completion object; an error event is its member `error`.
    pub completion: Json<'static>,
    /// The event was seen after which nothing comes.
    pub ended: bool,
}

/// Adds up the event stream `text`. An event that breaks off or is no JSON is left out.
pub fn merge<M: Merge>(text: &str) -> Merged {
    let mut merger = M::default();
    let mut pattern: Option<Pattern<'_, M::Place>> = None;
    let mut error = None;
    let mut ended = false;
    for event in sse::events(text) {
        if let Some(pattern) = &pattern
            && let Some(piece) = pattern.piece(&event.data)
        {
            merger.add_piece(&pattern.place, &piece);
            continue;
        }
        if event.data == "[DONE]" {
            ended = true;
            continue;
        }
        let Ok(data) = Json::parse(&event.data) else { continue };
        let mut is_plain = true;
        match data.get("type").and_then(Json::as_str) {
            Some("response.completed" | "response.incomplete" | "response.failed" | "message_stop") => ended = true,
            // `/v1/responses` has the message beside the type, the others have an object.
            Some("error") if data.get("error").is_none() => {
                error = Some(data.to_static());
                is_plain = false;
            }
            _ => {}
        }
        if let Some(found) = data.get("error") {
            error = Some(found.to_static());
            is_plain = false;
        }
        merger.add(&data);
        if let Cow::Borrowed(text) = event.data
            && is_plain
            && let Some((place, piece)) = M::piece(&data)
        {
            pattern = Pattern::new(text, piece, place).or(pattern);
        }
    }
    let mut completion = merger.finish();
    if let (Json::Object(members), Some(error)) = (&mut completion, error) {
        members.push((Cow::Borrowed("error"), error));
    }
    Merged { completion, ended }
}

/// An event as it stood in the stream, but for one text in it.
struct Pattern<'t, P> {
    before: &'t str,
    after: &'t str,
    place: P,
}

impl<'t, P> Pattern<'t, P> {
    /// The pattern of `event`, of whose tree `piece` is a string. `None` when the string had escapes and so is a copy.
    fn new(event: &'t str, piece: &str, place: P) -> Option<Self> {
        let start = piece.as_ptr().addr().checked_sub(event.as_ptr().addr())?;
        let (before, rest) = event.split_at_checked(start)?;
        let after = rest.strip_prefix(piece)?;
        (before.ends_with('"') && after.starts_with('"')).then_some(Self { before, after, place })
    }

    /// The text that `event` has in this place; `None` when it does not fit.
    fn piece<'e>(&self, event: &'e str) -> Option<Cow<'e, str>> {
        let piece = event.strip_prefix(self.before)?.strip_suffix(self.after)?;
        if first_special(piece.as_bytes()).is_none() {
            return Some(Cow::Borrowed(piece));
        }
        // Escapes; or a quote that ends the string, and then more than one text is new.
        let quoted = event.get(self.before.len() - 1..event.len() - self.after.len() + 1)?;
        match Json::parse(quoted) {
            Ok(Json::String(piece)) => Some(piece),
            _ => None,
        }
    }
}

/// An API whose streams are not known: only whether they ended is of interest.
#[derive(Debug, Default)]
pub struct Unknown;

impl Merge for Unknown {
    type Place = ();

    fn add(&mut self, _event: &Json<'_>) {}
    fn piece<'e>(_event: &'e Json<'_>) -> Option<((), &'e str)> {
        None
    }
    fn add_piece(&mut self, (): &(), _piece: &str) {}
    fn finish(self) -> Json<'static> {
        Json::Object(Vec::new())
    }
}

#[cfg(test)]
mod tests {
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

        fn add(&mut self, event: &Json<'_>) {
            self.0.add(event);
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
        let (fast, parsed) = (merge::<M>(text), merge::<Parsed<M>>(text));
        assert_eq!(fast.completion, parsed.completion, "{text}");
        assert_eq!(fast.ended, parsed.ended, "{text}");
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
        let pattern = Pattern::new(event, event.get(6..7).unwrap(), ()).unwrap();
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
        assert!(Pattern::new(event, &copied, ()).is_none());
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
        ]);
        let head = select(vec![
            "",
            r#""id":"1","#,
            r#""id":"~","#,
            r#""usage":null,"#,
            r#""usage":{"a":#},"#,
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
            let text: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
            assert_same_for_all(&text);
        }
    }
}
