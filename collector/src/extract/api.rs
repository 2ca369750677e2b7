//! Which API a path belongs to.

/// An API of the model server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses`
    Responses,
    /// `/v1/messages`
    Messages,
    /// `/v1/messages/count_tokens`
    CountTokens,
    /// `/v1/embeddings`
    Embeddings,
    /// `/pooling`
    Pooling,
    /// `/classify`
    Classify,
    /// `/v1/rerank` and its older paths
    Rerank,
    /// `/v1/score` and its older path
    Score,
    /// `/tokenize`
    Tokenize,
    /// `/detokenize`
    Detokenize,
    /// `/v1/models` and below
    Models,
    /// Everything else.
    Other,
}

/// The ends of paths, longer ones before those that end them, and how metrics name the API.
const ENDINGS: [(&str, Api, &str); 14] = [
    ("/chat/completions", Api::Chat, "/v1/chat/completions"),
    ("/completions", Api::Completions, "/v1/completions"),
    ("/v1/responses", Api::Responses, "/v1/responses"),
    ("/v1/messages", Api::Messages, "/v1/messages"),
    ("/v1/messages/count_tokens", Api::CountTokens, "/v1/messages/count_tokens"),
    ("/embeddings", Api::Embeddings, "/v1/embeddings"),
    ("/pooling", Api::Pooling, "/pooling"),
    ("/classify", Api::Classify, "/classify"),
    ("/rerank", Api::Rerank, "/v1/rerank"),
    ("/score", Api::Score, "/v1/score"),
    ("/tokenize", Api::Tokenize, "/tokenize"),
    ("/detokenize", Api::Detokenize, "/detokenize"),
    ("/v1/models", Api::Models, "/v1/models"),
    ("", Api::Other, "other"),
];

impl Api {
    /// The API of a path; what stands before the known ending (a route's prefix) and one slash behind it do not matter.
    pub fn of_path(path: &str) -> Api {
        let path = path.strip_suffix('/').unwrap_or(path);
        if path.contains("/v1/models/") {
            return Api::Models;
        }
        ENDINGS.iter().find(|(ending, ..)| path.ends_with(ending)).map_or(Api::Other, |(_, api, _)| *api)
    }

    /// The name of the API in metrics: its path, `other` for everything else. A bounded set, unlike paths.
    pub fn label(self) -> &'static str {
        ENDINGS.iter().find(|(_, api, _)| *api == self).map_or("other", |(_, _, label)| label)
    }

    /// Whether an answer is text to be kept beside `raw_log`: the others answer with numbers, names or vectors.
    pub fn answers_with_text(self) -> bool {
        matches!(self, Api::Chat | Api::Completions | Api::Responses | Api::Messages | Api::Other)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_recognised_by_its_end() {
        for (path, api) in [
            ("/v1/chat/completions", Api::Chat),
            ("/slow/v1/chat/completions/", Api::Chat),
            ("/v1/completions", Api::Completions),
            ("/v1/messages/count_tokens", Api::CountTokens),
            ("/score", Api::Score),
            ("/v2/rerank", Api::Rerank),
            ("/detokenize", Api::Detokenize),
            ("/tokenize", Api::Tokenize),
            ("/v1/models/org/model", Api::Models),
            ("/metrics", Api::Other),
            ("", Api::Other),
        ] {
            assert_eq!(Api::of_path(path), api, "{path}");
        }
        assert_eq!(Api::Chat.label(), "/v1/chat/completions");
        assert_eq!(Api::Other.label(), "other");
    }
}
