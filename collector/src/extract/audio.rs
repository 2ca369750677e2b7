//! `/v1/audio/transcriptions` and `translations`: text out of recordings.

use std::borrow::Cow;

use crate::decode::json::Json;

use super::answer::{Answer, append, part_texts, string, text_of};
use super::choices::{self, Chunks};
use super::stream::{Merge, Sent};
use super::unread::Pieces;
use super::usage;

/// Reads a transcription, in vLLM's form, or the chunks of one that add up to a completion.
pub fn read(transcription: &Json<'_>) -> Answer {
    let mut answer = choices::read(transcription);
    match transcription.get("text") {
        Some(text) => answer.texts.extend(part_texts(text)),
        // Verbose forms have the text twice.
        None => answer.texts.extend(transcription.get("segments").map(text_of_segments)),
    }
    answer
}

/// Segments begin with the blank in front of them, as a rule.
fn text_of_segments(segments: &Json<'_>) -> String {
    let mut all = String::new();
    for text in part_texts(segments) {
        if !all.is_empty() && !all.ends_with(char::is_whitespace) && !text.starts_with(char::is_whitespace) {
            all.push(' ');
        }
        all.push_str(&text);
    }
    all
}

/// Adds up vLLM's chunks, which are those of a chat, and OpenAI's typed events.
#[derive(Debug, Default)]
pub struct Events {
    chunks: Chunks,
    text: Option<String>,
    usage: Option<Json<'static>>,
    is_typed: bool,
}

impl Merge for Events {
    type Place = <Chunks as Merge>::Place;

    fn add(&mut self, event: &Sent<'_, '_>, unread: &mut Pieces) {
        match event.kind {
            "transcript.text.delta" => append(&mut self.text, event.data, "delta"),
            "transcript.text.done" => {
                let whole = text_of(event.data, "text");
                let is_longer = whole.as_ref().map_or(0, String::len) > self.text.as_ref().map_or(0, String::len);
                self.text = if is_longer { whole } else { self.text.take() };
                if let Some(report) = event.data.get("usage") {
                    usage::keep_larger(&mut self.usage, report);
                }
            }
            _ => return self.chunks.add(event, unread),
        }
        self.is_typed = true;
    }

    fn piece<'e>(event: &'e Json<'_>) -> Option<(Self::Place, &'e str)> {
        if event.get("type").is_some() { None } else { Chunks::piece(event) }
    }

    fn add_piece(&mut self, place: &Self::Place, piece: &str) {
        self.chunks.add_piece(place, piece);
    }

    fn finish(self) -> Json<'static> {
        let mut completion = self.chunks.finish();
        if let (true, Json::Object(members)) = (self.is_typed, &mut completion) {
            members.retain(|(name, value)| name != "choices" || !value.elements().is_empty());
            members.extend(self.text.map(|text| (Cow::Borrowed("text"), string(text))));
            members.extend(self.usage.map(|usage| (Cow::Borrowed("usage"), usage)));
        }
        completion
    }
}
