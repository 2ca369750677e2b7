//! Which API a call used.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// An API of the model server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses` and what is below: answers that are fetched later
    Responses,
    /// `/v1/messages`
    Messages,
    /// `/v1/messages/count_tokens`
    CountTokens,
    /// `/v1/embeddings`, and `/v2/embed` in Cohere's form
    Embeddings,
    /// `/pooling`
    Pooling,
    /// `/classify`
    Classify,
    /// `/v1/rerank` and its other paths
    Rerank,
    /// `/v1/score` and its older path
    Score,
    /// `/tokenize`
    Tokenize,
    /// `/detokenize`
    Detokenize,
    /// `/v1/audio/transcriptions`
    Transcriptions,
    /// `/v1/audio/translations`
    Translations,
    /// `/v1/models` and below
    Models,
    /// Everything else.
    Other,
}

/// An API as the log entry names it, the end of its path, and its name in metrics.
struct Known {
    api: Api,
    name: &'static str,
    ending: &'static str,
    label: &'static str,
}

const fn known(api: Api, name: &'static str, ending: &'static str, label: &'static str) -> Known {
    Known { api, name, ending, label }
}

/// Longer endings before those that end them. `Other` ends every path.
const KNOWN: [Known; 17] = [
    known(Api::Chat, "chat", "/chat/completions", "/v1/chat/completions"),
    known(Api::Completions, "completions", "/completions", "/v1/completions"),
    known(Api::Responses, "responses", "/v1/responses", "/v1/responses"),
    known(Api::Messages, "messages", "/v1/messages", "/v1/messages"),
    known(Api::CountTokens, "count_tokens", "/v1/messages/count_tokens", "/v1/messages/count_tokens"),
    known(Api::Embeddings, "embeddings", "/embeddings", "/v1/embeddings"),
    known(Api::Embeddings, "embeddings", "/v2/embed", "/v1/embeddings"),
    known(Api::Pooling, "pooling", "/pooling", "/pooling"),
    known(Api::Classify, "classify", "/classify", "/classify"),
    known(Api::Rerank, "rerank", "/rerank", "/v1/rerank"),
    known(Api::Score, "score", "/score", "/v1/score"),
    known(Api::Tokenize, "tokenize", "/tokenize", "/tokenize"),
    known(Api::Detokenize, "detokenize", "/detokenize", "/detokenize"),
    known(Api::Transcriptions, "transcriptions", "/audio/transcriptions", "/v1/audio/transcriptions"),
    known(Api::Translations, "translations", "/audio/translations", "/v1/audio/translations"),
    known(Api::Models, "models", "/v1/models", "/v1/models"),
    known(Api::Other, "other", "", "other"),
];

impl Api {
    /// The API that the plugin names (`llm.api`).
    pub fn of_name(name: &str) -> Option<Api> {
        KNOWN.iter().find(|known| known.name == name).map(|known| known.api)
    }

    /// The API of a path, which is read as Kong and the model server read it; what stands before the known ending (a route's
    /// prefix) and one slash behind it do not matter.
    pub fn of_path(path: &str) -> Api {
        let path = normalised(path);
        let path = path.strip_suffix('/').unwrap_or(&path);
        if path.contains("/v1/models/") {
            return Api::Models;
        }
        if path.contains("/v1/responses/") {
            return Api::Responses;
        }
        KNOWN.iter().find(|known| path.ends_with(known.ending)).map_or(Api::Other, |known| known.api)
    }

    /// The name of the API in metrics: its path, `other` for everything else. A bounded set, unlike paths.
    pub fn label(self) -> &'static str {
        KNOWN.iter().find(|known| known.api == self).map_or("other", |known| known.label)
    }

    /// Whether an answer is text to be kept beside `raw_log`: the others answer with numbers, names or vectors.
    pub fn answers_with_text(self) -> bool {
        self.answers_with_choices()
            || matches!(self, Api::Responses | Api::Messages | Api::Transcriptions | Api::Translations | Api::Other)
    }

    /// Whether an answer is made of choices.
    pub fn answers_with_choices(self) -> bool {
        matches!(self, Api::Chat | Api::Completions)
    }

    /// Whether the request is an uploaded recording.
    pub fn listens(self) -> bool {
        matches!(self, Api::Transcriptions | Api::Translations)
    }

    /// Whether a successful answer is expected to report the tokens it took.
    pub fn reports_usage(self) -> bool {
        matches!(self, Api::Chat | Api::Completions | Api::Responses | Api::Messages | Api::Embeddings)
    }

    /// Whether answers hold vectors, which are never stored.
    pub fn answers_with_vectors(self) -> bool {
        matches!(self, Api::Embeddings | Api::Pooling)
    }
}

/// A path without its query, as it is routed: escapes of plain characters undone, double slashes one, `.` and `..` followed
/// (RFC 3986, section 6.2.2; Kong 3.9 matches and forwards the path in this form).
fn normalised(path: &str) -> Cow<'_, str> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    if !["%", "//", "/."].iter().any(|odd| path.contains(odd)) {
        return Cow::Borrowed(path);
    }
    // An escaped slash or percent sign is no separator and no escape.
    let kept = path.replace("%25", "%2525").replace("%2F", "%252F").replace("%2f", "%252f");
    let decoded = percent_decode_str(&kept).decode_utf8_lossy();
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    Cow::Owned(format!("/{}", segments.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_and_the_collector_tell_apis_apart_alike() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/apis.json");
        let cases: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        for case in cases.as_array().unwrap() {
            let (path, name) = (case["path"].as_str().unwrap(), case["api"].as_str().unwrap());
            assert_eq!(Some(Api::of_path(path)), Api::of_name(name), "{path}");
        }
        assert!(cases.as_array().unwrap().len() > 30);
    }

    #[test]
    fn a_path_is_read_as_it_is_routed() {
        for (path, expected) in [
            ("/v1/chat/completions?x=/v1/models/", "/v1/chat/completions"),
            ("/v1/%2e%2E/./v1//chat/completions#x", "/v1/chat/completions"),
            ("/../../v1/score", "/v1/score"),
            ("/v1/chat%2Fcompletions", "/v1/chat%2Fcompletions"),
            ("/v1/chat%252Fcompletions", "/v1/chat%252Fcompletions"),
            ("/%ff/v1/score", "/\u{FFFD}/v1/score"),
            ("", ""),
        ] {
            assert_eq!(normalised(path), expected, "{path}");
        }
        assert_eq!(Api::of_path("/v1/chat%2Fcompletions"), Api::Other);
        assert_eq!(Api::of_name("made up"), None);
        assert_eq!((Api::Chat.label(), Api::Other.label()), ("/v1/chat/completions", "other"));
    }
}
