//! The address of a server, as people write it.

use std::sync::LazyLock;

use regex::Regex;

/// Scheme, host, port and path. No user, no password: a URL ends up in places where a secret must not.
#[allow(clippy::unwrap_used, reason = "the pattern is ours, and a test compiles it")]
static URL: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?((?:/[A-Za-z0-9._~-]+)*)/?$").unwrap()
});

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `http` or `https`.
    pub protocol: String,
    /// Name or address; one of IPv6 in brackets.
    pub host: String,
    /// Port, that of the protocol where none is written.
    pub port: u16,
    /// Path, empty where there is none.
    pub path: String,
}

impl Server {
    /// Reads a URL; `None` when it is more, or less, than an address.
    pub fn parse(url: &str) -> Option<Self> {
        let parts = URL.captures(url)?;
        let text = |number| parts.get(number).map(|part: regex::Match<'_>| part.as_str());
        let protocol = text(1)?.to_owned();
        let port = match text(3) {
            Some(port) => port.parse().ok().filter(|port| *port > 0)?,
            None if protocol == "https" => 443,
            None => 80,
        };
        Some(Self { host: text(2)?.to_owned(), port, path: text(4)?.to_owned(), protocol })
    }

    /// `host:port`, as Kong's targets spell it.
    pub fn target(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_and_what_is_more_than_an_address_is_none() {
        let parts = |url| Server::parse(url).map(|at| (at.protocol, at.host, at.port, at.path));
        let some =
            |protocol: &str, host: &str, port, path: &str| Some((protocol.to_owned(), host.to_owned(), port, path.to_owned()));
        assert_eq!(parts("http://127.0.0.1:8000"), some("http", "127.0.0.1", 8000, ""));
        assert_eq!(parts("https://vllm.example/"), some("https", "vllm.example", 443, ""));
        assert_eq!(parts("http://[::1]/v1/x/"), some("http", "[::1]", 80, "/v1/x"));
        for url in [
            "127.0.0.1:8000",
            "http://user:pw@vllm:8000",
            "ftp://x",
            "http://x:99999",
            "http://x:0",
            "http://x/?a",
            "http://x y",
            "",
        ] {
            assert_eq!(parts(url), None, "{url}");
        }
    }
}
