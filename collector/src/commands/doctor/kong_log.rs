//! Kong's log: what its queues say of entries that they could not send, and keys that should not be there.
//!
//! No address of Kong's tells how full its queues are; the log does. Read line by line, because it may be large.

use crate::counted::counted;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use super::Report;

/// What Kong's queue, and `llm-audit` that watches over it, write when entries are gone.
const LOST: [&str; 5] =
    ["of the log queue were left out", "entries were lost", "entries were dropped", "queue full", "queue's max_bytes"];
/// What it writes when they may soon be.
const NEAR: [&str; 2] = ["% capacity", "could not process entries"];
/// Keys of users begin so; a shorter rest is a word.
const KEY: &str = "sk-";
const KEY_LENGTH: usize = 16;

/// Lines of a log, by what they tell.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    lost: u64,
    near: u64,
    keys: u64,
}

pub(super) fn examine(path: Option<&Path>, report: &mut Report) {
    let Some(path) = path else { return };
    let counts = if path.as_os_str() == "-" {
        count(io::stdin().lock())
    } else {
        File::open(path).and_then(|file| count(BufReader::new(file)))
    };
    match counts {
        Ok(counts) => judge(&counts, report),
        Err(error) => {
            let what = format!("cannot read {}: {error}", path.display());
            report.warning("kong.log", what, "full queues would go unnoticed", "gateway logs kong | grep queue");
        }
    }
}

fn judge(counts: &Counts, report: &mut Report) {
    if counts.lost > 0 {
        report.problem(
            "kong.log.queue",
            format!("Kong's log tells {} of entries that its queue gave up", counted(counts.lost, "time", "times")),
            "these calls are not in the audit log",
            "gateway logs kong | grep queue; is the collector up? Else raise AUDIT_QUEUE_BYTES and KONG_MEMORY_MB; gateway apply",
        );
    } else if counts.near > 0 {
        report.warning(
            "kong.log.queue",
            format!("Kong's log tells {} of entries that it could not send at once", counted(counts.near, "time", "times")),
            "they wait in its memory and are sent again; a worker that ends takes them with it",
            "gateway logs kong | grep queue; gateway logs collector",
        );
    } else {
        report.good("kong.log.queue", "Kong's log tells of no trouble with its queues");
    }
    if counts.keys > 0 {
        report.problem(
            "kong.log.keys",
            counted(counts.keys, "line of Kong's log holds a key", "lines of Kong's log hold a key"),
            "keys leak to whoever reads the log",
            "tell users to send keys in a header, not in the URL; gateway users rotate NAME",
        );
    }
}

fn count(mut log: impl BufRead) -> io::Result<Counts> {
    let mut counts = Counts::default();
    let mut line = Vec::new();
    while log.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        let has = |words: &[&str]| text.contains(" queue ") && words.iter().any(|word| text.contains(word));
        counts.lost += u64::from(has(&LOST));
        counts.near += u64::from(has(&NEAR));
        counts.keys += u64::from(holds_key(&text));
        line.clear();
    }
    Ok(counts)
}

fn holds_key(text: &str) -> bool {
    let is_key = |rest: &str| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).count() >= KEY_LENGTH;
    text.split(KEY).skip(1).any(is_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_queues_say_is_counted_and_other_lines_are_not() {
        let log = "2026/11/24 [warn] [http-log] queue a1: queue at 80% capacity, context: ngx.timer\n\
            2026/11/24 [warn] [http-log] queue a1: handler could not process entries: connection refused\n\
            2026/11/24 [error] [http-log] queue a1: could not send entries, giving up after 14 retries.  200 queue entries were lost\n\
            2026/11/24 [error] [http-log] queue a1: queue full, dropping old entries until processing is successful again\n\
            2026/11/24 [error] [http-log] queue a1: byte capacity exceeded, 3 queue entries were dropped\n\
            2026/11/24 [error] 7 entries of the log queue were left out (the queue is full); their numbers are missing in llm_logs\n\
            2026/11/24 [notice] queue a1 resumed\n2026/11/24 [error] entries were lost elsewhere\n";
        assert_eq!(count(log.as_bytes()).unwrap(), Counts { lost: 4, near: 2, keys: 0 });
    }

    #[test]
    fn a_key_in_the_log_is_seen_whatever_bytes_are_around_it() {
        let log = b"GET /v1/models?apikey=sk-0123456789abcdef0123 HTTP/1.1\nthe disk-based task-sk-short\n\xff\xfe sk-0123456789abcdef\n";
        assert_eq!(count(&log[..]).unwrap(), Counts { lost: 0, near: 0, keys: 2 });
    }
}
