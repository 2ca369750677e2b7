//! How many log entries Kong may send at once, so that the largest batch fits into what the collector takes.

use serde_json::Value;

use super::entities::{LLM_AUDIT, id_of, own_id};
use super::failure::{Failure, Outcome};
use super::settings::Settings;

/// What an entry holds besides the two bodies, at most. Kong reads request line and headers into 4 buffers of 8 KiB; a control
/// character of one byte becomes six in JSON (\u0001): 4 * 8192 * 6. The request line, at most one of those buffers, comes four
/// times (url, uri, upstream_uri, querystring), with quotes and decoded escapes at most doubled: 4 * 8192 * 2. Response headers: one
/// buffer of 8 KiB, times six. Service, route, consumer, times, the llm table: 16 KiB is five times what was seen.
const ENTRY_OVERHEAD: u64 = 4 * 8192 * 6 + 4 * 8192 * 2 + 8192 * 6 + 16_384;

/// More entries in a batch bring nothing: the collector stores 200 as fast a row as 1000, and a larger batch costs more memory on
/// both sides when it is sent again.
const MOST_ENTRIES: u64 = 200;

/// The sizes that follow from settings and from what Kong captures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// The largest entry.
    pub entry_bytes: u64,
    /// Entries in a batch.
    pub entries: u64,
    /// The largest batch.
    pub bytes: u64,
}

/// Bytes in base64.
fn base64_bytes(bytes: u64) -> u64 {
    bytes.div_ceil(3).saturating_mul(4)
}

impl Batch {
    /// Reckons with every llm-audit that Kong has: users can have one of their own, made with these settings, earlier ones, or by hand.
    /// One that captures no bodies counts as well: `users capture` turns that on with one word.
    pub fn of(settings: &Settings, plugins: &[Value], admin_url: &str) -> Outcome<Self> {
        let ours = own_id(LLM_AUDIT);
        let others = plugins.iter().filter(|plugin| plugin["name"] == "llm-audit" && id_of(plugin) != Some(ours.as_str()));
        let sizes = others.map(|plugin| {
            ["max_request_body_size", "max_response_body_size"].map(|name| plugin["config"][name].as_u64().unwrap_or(0))
        });
        let own = [settings.max_request_bytes, settings.max_response_bytes];
        let bodies = sizes.chain([own]).map(|sizes| sizes.into_iter().map(base64_bytes).sum::<u64>()).max().unwrap_or(0);
        let entry_bytes = ENTRY_OVERHEAD.saturating_add(bodies);
        let most = settings.collector_max_body_bytes;
        // n entries of an array: n commas or brackets, and one bracket more.
        let entries = (most - 1) / (entry_bytes + 1);
        if entries == 0 {
            return Err(Failure::new(format!("a single log entry can have {entry_bytes} bytes, but the collector takes {most}"))
                .advise("Lower AUDIT_MAX_REQUEST_BYTES or AUDIT_MAX_RESPONSE_BYTES, or the sizes of a user's own llm-audit")
                .advise(format!("({admin_url}/plugins), or raise the collector's limit and COLLECTOR_MAX_BODY_BYTES.")));
        }
        // Kong refuses an entry that is larger than its whole queue.
        let queue = settings.queue_bytes;
        if queue < entry_bytes {
            let what = format!("a single log entry can have {entry_bytes} bytes, more than AUDIT_QUEUE_BYTES ({queue})");
            return Err(Failure::new(what));
        }
        let entries = entries.min(MOST_ENTRIES);
        Ok(Self { entry_bytes, entries, bytes: entries * (entry_bytes + 1) + 1 })
    }

    /// As lines of `name=number`.
    pub fn lines(&self, settings: &Settings) -> String {
        format!(
            "entry_bytes={}\nbatch_entries={}\nbatch_bytes={}\ncollector_max_body_bytes={}\nqueue_bytes={}\n",
            self.entry_bytes, self.entries, self.bytes, settings.collector_max_body_bytes, settings.queue_bytes
        )
    }
}
