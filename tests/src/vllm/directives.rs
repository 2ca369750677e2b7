//! What a test asks of the simulated vLLM, by headers of its request. They pass through Kong like any other header.

use std::time::Duration;

use super::http::Request;

/// How an answer is to differ from an undisturbed one.
#[derive(Debug, Default)]
pub(super) struct Directives {
    /// `x-fixture: NAME`: answer with this recording.
    pub(super) fixture: Option<String>,
    /// `x-sim-delay-ms: N`: so much later than usual.
    pub(super) delay: Duration,
    /// `x-sim-break: rst:N`, `fin:N`, `rst-mid:N`, `fin-mid:N`: the connection ends after N chunks; `mid`: and half of the next.
    pub(super) breaks: Option<Break>,
    /// `x-sim-stall: N`: nothing more after N chunks, until the client goes.
    pub(super) stall_after: Option<usize>,
    /// `x-sim-split: N`: every write goes out in pieces of N bytes.
    pub(super) split: Option<usize>,
    /// `x-sim-repeat: N`: the second chunk of a stream, or the echoed text, comes N times.
    pub(super) repeat: usize,
    /// `x-sim-chunk-delay-ms: N`: from one chunk to the next, instead of the recorded time.
    pub(super) chunk_delay: Option<Duration>,
    /// `x-sim-time-scale: F`: recorded times are multiplied by it; 0 is at once.
    pub(super) time_scale: Option<f64>,
    /// `x-sim-stamp: 1`: generated events carry the time at which they were sent.
    pub(super) stamp: bool,
}

/// A connection that ends too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Break {
    /// After so many chunks.
    pub(super) after: usize,
    /// And half of the next one.
    pub(super) in_the_middle: bool,
    /// With a reset instead of an orderly end.
    pub(super) reset: bool,
}

impl Directives {
    /// Reads them; the error names a directive that is wrong, because a test with a typo must not pass.
    pub(super) fn of(request: &Request) -> Result<Self, String> {
        let mut directives = Self { repeat: 1, ..Self::default() };
        for (name, value) in &request.headers {
            let name = name.to_ascii_lowercase();
            let wrong = || format!("{name}: {value}");
            let number = || value.parse::<usize>().map_err(|_| wrong());
            let milliseconds = || value.parse::<u64>().map(Duration::from_millis).map_err(|_| wrong());
            match name.as_str() {
                "x-fixture" => directives.fixture = Some(value.clone()),
                "x-sim-delay-ms" => directives.delay = milliseconds()?,
                "x-sim-break" => directives.breaks = Some(Break::parse(value).ok_or_else(wrong)?),
                "x-sim-stall" => directives.stall_after = Some(number()?),
                "x-sim-split" => directives.split = Some(number()?),
                "x-sim-repeat" => directives.repeat = number()?,
                "x-sim-chunk-delay-ms" => directives.chunk_delay = Some(milliseconds()?),
                "x-sim-time-scale" => directives.time_scale = Some(value.parse().map_err(|_| wrong())?),
                "x-sim-stamp" => directives.stamp = value == "1",
                _ if name.starts_with("x-sim-") => return Err(wrong()),
                _ => {}
            }
        }
        Ok(directives)
    }
}

impl Break {
    fn parse(text: &str) -> Option<Self> {
        let (how, after) = text.split_once(':')?;
        let (end, middle) = how.split_once('-').unwrap_or((how, ""));
        let reset = match end {
            "rst" => true,
            "fin" => false,
            _ => return None,
        };
        let in_the_middle = match middle {
            "mid" => true,
            "" => false,
            _ => return None,
        };
        Some(Self { after: after.parse().ok()?, in_the_middle, reset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaks_are_read_and_typos_are_not() {
        assert_eq!(Break::parse("rst:3"), Some(Break { after: 3, in_the_middle: false, reset: true }));
        assert_eq!(Break::parse("fin-mid:0"), Some(Break { after: 0, in_the_middle: true, reset: false }));
        for typo in ["rst", "rst:", "end:3", "fin-middle:3", "fin:-1"] {
            assert_eq!(Break::parse(typo), None, "{typo}");
        }
    }
}
